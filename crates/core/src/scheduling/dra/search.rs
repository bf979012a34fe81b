//! The search for devices: depth first through claims, requests and devices, with backtracking.

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::Error;
use super::claim::{Choice, Mode, by_name};
use super::device::{Amount, Attribute, Placement, Term};
use super::inventory::{BindingId, ClaimId, DevId, Inventory, PoolId, SelectorId, SlotId};
use crate::api::labels;
use crate::scheduling::requirements::{Allow, Requirements};
use crate::scheduling::taints::tolerate_all;

/// Most devices that a claim can hold; the API server allows no more.
const MOST_DEVICES: usize = 32;
/// Devices that one search tries before it gives up: some seconds' worth.
const STEPS: u64 = 500_000;

/// A device chosen for a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Pick {
    /// The device.
    pub device: DevId,
    /// The request's choice that it is for.
    pub request: Arc<str>,
    /// What it takes of slots, except for the device's counters, which only its first user draws
    /// on.
    pub(super) taken: Vec<(SlotId, Amount)>,
    /// Taken with `adminAccess`, which leaves it to others.
    pub(super) admin: bool,
    /// The requirements that it puts on the node.
    pub(super) nodes: Option<Requirements>,
    /// No other node can reach it.
    pub(super) bound: bool,
}

/// What a claim was given.
pub(super) type Given = Vec<(ClaimId, Vec<Pick>)>;

/// What this round has taken, besides what claims of the cluster hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Taken {
    pub(super) devices: FxHashSet<DevId>,
    pub(super) slots: FxHashMap<SlotId, Amount>,
}

impl Taken {
    /// Adds what these picks take.
    pub(super) fn add<'p>(
        &mut self,
        inventory: &Inventory,
        picks: impl IntoIterator<Item = &'p Pick>,
    ) {
        for pick in picks.into_iter().filter(|p| !p.admin) {
            let dev = &inventory.devices[pick.device];
            // A shared device draws on its counters once, whoever used it first.
            if !inventory.used.contains(&pick.device) && self.devices.insert(pick.device) {
                for (slot, value) in &dev.counters {
                    *self.slots.entry(*slot).or_insert(0) += value;
                }
            }
            for (slot, value) in &pick.taken {
                *self.slots.entry(*slot).or_insert(0) += value;
            }
        }
    }
}

/// Where devices are looked for.
pub(super) struct Place<'a> {
    /// The node's name, when it exists.
    pub(super) node: Option<&'a str>,
    /// Labels that a new node may lack.
    pub(super) allow: Allow<'a>,
    /// Pools to look in, those of the cluster first.
    pub(super) pools: Vec<PoolId>,
}

impl Place<'_> {
    /// Whether a term selects the node, given what it is so far.
    pub(super) fn selected(&self, term: &Term, node: &Requirements) -> bool {
        if term.empty {
            return false;
        }
        let named = match (&term.name, self.node) {
            (None, _) => true,
            (Some(wanted), Some(name)) => wanted.has(name),
            // A node without a name yet can only meet a term that excludes some names.
            (Some(wanted), None) => wanted.is_complement(),
        };
        named && node.compatible(&term.labels, self.allow).is_ok()
    }
}

/// What the devices of a claim have in common so far, for one of its `matchAttribute` constraints.
#[derive(Clone, Debug, PartialEq)]
enum Common {
    Open,
    Values(Attribute),
    /// The set of devices that will agree in a value nobody knows yet.
    Set(BindingId),
}

/// How a node reaches a device.
struct Reach<'a> {
    /// The requirements that this puts on the node.
    labels: Option<&'a Requirements>,
    /// No other node does.
    bound: bool,
}

/// What [`Search::take`] changed, for taking it back.
struct Undo {
    node: Requirements,
    common: Vec<Common>,
    new_device: bool,
}

/// One search.
pub(super) struct Search<'a> {
    pub(super) inventory: &'a Inventory,
    pub(super) verdicts: &'a mut FxHashMap<(SelectorId, DevId), Result<bool, Error>>,
    pub(super) place: Place<'a>,
    pub(super) taken: Taken,
    /// What the node is so far.
    pub(super) node: Requirements,
    pub(super) claims: &'a [ClaimId],
    /// The node's requirements at the start.
    start: Requirements,
    /// Devices that choices may take, by claim, request and choice. The search comes back to a
    /// choice many times, while its list depends on the start only.
    lists: FxHashMap<(usize, usize, usize), Arc<[DevId]>>,
    found: Given,
    /// What the devices have in common by each constraint, claim by claim.
    common: Vec<Vec<Common>>,
    steps: u64,
    /// The furthest that the search came: the claim and request that could not be satisfied, for
    /// the error.
    deepest: (usize, usize),
}

impl<'a> Search<'a> {
    pub(super) fn new(
        inventory: &'a Inventory,
        verdicts: &'a mut FxHashMap<(SelectorId, DevId), Result<bool, Error>>,
        place: Place<'a>,
        taken: Taken,
        node: Requirements,
        claims: &'a [ClaimId],
    ) -> Self {
        Self {
            inventory,
            verdicts,
            place,
            taken,
            start: node.clone(),
            node,
            claims,
            lists: FxHashMap::default(),
            found: Vec::new(),
            common: Vec::new(),
            steps: 0,
            deepest: (0, 0),
        }
    }

    /// Devices for all claims, and what the node must be for them.
    ///
    /// # Errors
    /// When there are none, or a claim cannot be looked at.
    pub(super) fn run(mut self) -> Result<(Given, Requirements), Error> {
        for id in self.claims {
            let claim = &self.inventory.claims[*id].claim;
            if let Some(why) = &claim.invalid {
                return Err(Error::Unsupported(claim.key.clone(), why.clone()));
            }
        }
        if self.claim(0)? {
            return Ok((self.found, self.node));
        }
        let (claim, request) = self.deepest;
        let info = &self.inventory.claims[self.claims[claim]];
        let name = info.requests.get(request).map(|(name, _)| Arc::clone(name));
        Err(Error::NoDevices(info.claim.key.clone(), name.unwrap_or_default()))
    }

    fn claim(&mut self, at: usize) -> Result<bool, Error> {
        let Some(id) = self.claims.get(at) else { return Ok(true) };
        let matches = self.inventory.claims[*id].claim.matches.len();
        self.common.push(vec![Common::Open; matches]);
        self.found.push((*id, Vec::new()));
        if self.request(at, 0)? {
            return Ok(true);
        }
        self.common.pop();
        self.found.pop();
        Ok(false)
    }

    fn request(&mut self, at: usize, request: usize) -> Result<bool, Error> {
        let inventory = self.inventory;
        let info = &inventory.claims[self.claims[at]];
        let Some((_, choices)) = info.requests.get(request) else { return self.claim(at + 1) };
        self.deepest = self.deepest.max((at, request));
        for (number, info) in choices.iter().enumerate() {
            let selectors = info.selectors.as_ref().map_err(Clone::clone)?;
            let list = match self.lists.get(&(at, request, number)) {
                Some(list) => Arc::clone(list),
                None => {
                    let list: Arc<[DevId]> =
                        self.candidates(&info.choice, selectors, at, request)?.into();
                    self.lists.insert((at, request, number), Arc::clone(&list));
                    list
                }
            };
            let done = match info.choice.mode {
                Mode::Count(count) => self.count(at, request, &info.choice, count, &list)?,
                Mode::All => self.all(at, request, &info.choice, &list)?,
            };
            if done {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Devices that a choice may take, in order. It is a superset: reach is checked for the node as
    /// it was at the start, and again when a device is taken.
    fn candidates(
        &mut self,
        choice: &Choice,
        selectors: &[SelectorId],
        at: usize,
        request: usize,
    ) -> Result<Vec<DevId>, Error> {
        let inventory = self.inventory;
        let mut list = Vec::new();
        for pool in self.place.pools.clone() {
            let pool = &inventory.pools[pool];
            let reachable: Vec<DevId> =
                pool.devices.iter().filter(|id| self.reach(*id, &self.start).is_some()).collect();
            if reachable.is_empty() {
                continue;
            }
            if let Some(flaw) = pool.flaw {
                // All devices of a pool that is not whole cannot be known. A request for a number
                // of devices may find them in other pools.
                if choice.mode == Mode::All {
                    let info = &inventory.claims[self.claims[at]];
                    return Err(Error::Pool(
                        info.claim.key.clone(),
                        Arc::clone(&info.requests[request].0),
                        format!("{}/{}", pool.driver, pool.name),
                        flaw.as_str(),
                    ));
                }
                continue;
            }
            for id in reachable {
                let device = &inventory.devices[id].device;
                if tolerate_all(&device.taints, &choice.tolerations).is_ok()
                    && self.matches(selectors, id)?
                {
                    list.push(id);
                }
            }
        }
        Ok(list)
    }

    fn matches(&mut self, selectors: &[SelectorId], id: DevId) -> Result<bool, Error> {
        for selector in selectors {
            // Evaluating CEL is by far the slowest step, and its result depends on nothing but
            // selector and device: it is kept for the whole round.
            let verdict = match self.verdicts.get(&(*selector, id)) {
                Some(known) => known.clone(),
                None => {
                    let new = self.evaluate(*selector, id);
                    self.verdicts.insert((*selector, id), new.clone());
                    new
                }
            };
            if !verdict? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn evaluate(&self, selector: SelectorId, id: DevId) -> Result<bool, Error> {
        let selector = &self.inventory.selectors[selector];
        let program = selector.program.as_ref().map_err(|why| {
            Error::Selector(format!("selector {:?} does not compile: {why}", selector.text))
        })?;
        let device = &self.inventory.devices[id].device;
        super::selector::holds(program, device, self.inventory.driver(id)).map_err(|why| {
            let name = self.inventory.shown(id);
            Error::Selector(format!("selector {:?} on device {name}: {why}", selector.text))
        })
    }

    /// How a node reaches a device: `None` when it cannot.
    fn reach(&self, id: DevId, node: &Requirements) -> Option<Reach<'a>> {
        let inventory = self.inventory;
        let dev = &inventory.devices[id];
        match &dev.place {
            Placement::Everywhere => Some(Reach { labels: None, bound: dev.template }),
            Placement::Node(name) => {
                (self.place.node == Some(name)).then_some(Reach { labels: None, bound: true })
            }
            Placement::Unsaid => None,
            Placement::Selected(terms) => {
                let term = terms.iter().find(|t| self.place.selected(t, node))?;
                Some(Reach { labels: Some(&term.labels), bound: term.name.is_some() })
            }
        }
    }

    /// Takes a number of devices out of a list. Their order makes no difference, so that after each
    /// one only later ones are tried.
    fn count(
        &mut self,
        at: usize,
        request: usize,
        choice: &Choice,
        left: usize,
        list: &[DevId],
    ) -> Result<bool, Error> {
        if left == 0 {
            return self.request(at, request + 1);
        }
        for (place, id) in list.iter().enumerate() {
            if list.len() - place < left {
                break;
            }
            let Some(undo) = self.take(at, request, choice, *id)? else { continue };
            if self.count(at, request, choice, left - 1, &list[place + 1..])? {
                return Ok(true);
            }
            self.put_back(at, undo);
        }
        Ok(false)
    }

    /// Takes all devices of a list that the node can reach. There is one way to do so, and no
    /// backtracking within it.
    fn all(
        &mut self,
        at: usize,
        request: usize,
        choice: &Choice,
        list: &[DevId],
    ) -> Result<bool, Error> {
        let mut undo = Vec::new();
        let mut complete = true;
        for id in list {
            // A device that the earlier ones put out of reach is not one of the node's.
            if self.reach(*id, &self.node).is_none() {
                continue;
            }
            match self.take(at, request, choice, *id)? {
                Some(one) => undo.push(one),
                None => {
                    complete = false;
                    break;
                }
            }
        }
        // A request for all devices needs at least one.
        if complete && !undo.is_empty() && self.request(at, request + 1)? {
            return Ok(true);
        }
        while let Some(one) = undo.pop() {
            self.put_back(at, one);
        }
        Ok(false)
    }

    /// Takes a device if it is free and goes together with what was taken before.
    fn take(
        &mut self,
        at: usize,
        request: usize,
        choice: &Choice,
        id: DevId,
    ) -> Result<Option<Undo>, Error> {
        self.steps += 1;
        let inventory = self.inventory;
        let info = &inventory.claims[self.claims[at]];
        if self.steps > STEPS {
            return Err(Error::GaveUp(info.claim.key.clone()));
        }
        let dev = &inventory.devices[id];
        let picks = &self.found[at].1;
        // A claim cannot hold one device twice, even if it is shared.
        if picks.len() >= MOST_DEVICES || picks.iter().any(|p| p.device == id) {
            return Ok(None);
        }
        let in_use = inventory.used.contains(&id) || self.taken.devices.contains(&id);
        if in_use && !choice.admin && !dev.device.shared {
            return Ok(None);
        }
        let Some(reach) = self.reach(id, &self.node) else { return Ok(None) };
        let Some(taken) = self.capacity(choice, id) else { return Ok(None) };
        // A shared device in use has drawn on its counters already.
        let counts = !choice.admin && !in_use;
        let enough = |slot: &SlotId, value: &Amount| {
            let drawn =
                inventory.drawn.get(slot).unwrap_or(&0) + self.taken.slots.get(slot).unwrap_or(&0);
            drawn + value <= inventory.slots[*slot]
        };
        if !taken.iter().all(|(s, v)| enough(s, v))
            || (counts && !dev.counters.iter().all(|(s, v)| enough(s, v)))
        {
            return Ok(None);
        }
        let Some(common) = self.joined(at, &info.requests[request].0, choice, id) else {
            return Ok(None);
        };
        let pick = Pick {
            device: id,
            request: Arc::clone(&choice.name),
            taken,
            admin: choice.admin,
            nodes: reach.labels.cloned(),
            bound: reach.bound,
        };
        let undo = Undo {
            node: self.node.clone(),
            common: std::mem::replace(&mut self.common[at], common),
            new_device: counts,
        };
        if let Some(nodes) = &pick.nodes {
            self.node.merge(nodes);
        }
        self.taken.add(inventory, std::slice::from_ref(&pick));
        self.found[at].1.push(pick);
        Ok(Some(undo))
    }

    fn put_back(&mut self, at: usize, undo: Undo) {
        let Some(pick) = self.found[at].1.pop() else { return };
        let mut give = |slot: SlotId, value: Amount| {
            *self.taken.slots.entry(slot).or_insert(0) -= value;
        };
        if !pick.admin {
            pick.taken.iter().for_each(|(slot, value)| give(*slot, *value));
        }
        if undo.new_device {
            let counters = &self.inventory.devices[pick.device].counters;
            counters.iter().for_each(|(slot, value)| give(*slot, *value));
            self.taken.devices.remove(&pick.device);
        }
        self.node = undo.node;
        self.common[at] = undo.common;
    }

    /// What a choice takes of a device's capacities; `None` when they do not suffice.
    fn capacity(&self, choice: &Choice, id: DevId) -> Option<Vec<(SlotId, Amount)>> {
        let dev = &self.inventory.devices[id];
        let asked = by_name(&choice.capacity, self.inventory.driver(id));
        let known = &dev.device.capacity;
        if asked.keys().any(|name| !known.contains_key(name)) {
            return None;
        }
        if !dev.device.shared {
            // A device that is not shared is taken as a whole, and only has to be large enough.
            let enough =
                asked.iter().all(|(name, value)| known[name].consumed(Some(*value)).is_some());
            return enough.then(Vec::new);
        }
        if choice.admin {
            return Some(Vec::new());
        }
        dev.shares
            .iter()
            .map(|(name, slot)| Some((*slot, known.get(name)?.consumed(asked.get(name).copied())?)))
            .collect()
    }

    /// What the claim's devices have in common once this one is added; `None` when a constraint is
    /// violated.
    fn joined(&self, at: usize, request: &str, choice: &Choice, id: DevId) -> Option<Vec<Common>> {
        let claim = &self.inventory.claims[self.claims[at]].claim;
        let dev = &self.inventory.devices[id];
        let mut common = self.common[at].clone();
        for (known, constraint) in common.iter_mut().zip(&claim.matches) {
            if !constraint.concerns(request, &choice.name) {
                continue;
            }
            let value = dev.device.attributes.get(&constraint.attribute);
            let set = dev.bindings.iter().find(|(name, _)| *name == constraint.attribute);
            // A known value and a set of devices that will agree cannot be compared, so that one
            // constraint never mixes the two. Nor does a device satisfy it that has neither.
            *known = match (&*known, value, set) {
                (Common::Open, Some(value), _) => Common::Values(value.clone()),
                (Common::Values(before), Some(value), _) => Common::Values(before.common(value)?),
                (Common::Open, None, Some((_, set))) => Common::Set(*set),
                (Common::Set(before), None, Some((_, set))) if before == set => Common::Set(*set),
                _ => return None,
            };
        }
        Some(common)
    }
}

/// Drops the host name: a planned node has a stand-in only, by which no selector may ask for it.
pub(super) fn without_host(requirements: &Requirements) -> Requirements {
    let mut rest = requirements.clone();
    rest.remove(labels::HOSTNAME);
    rest
}
