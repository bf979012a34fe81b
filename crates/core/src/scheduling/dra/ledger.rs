//! The devices that a round has booked so far, and the search for more.

use std::collections::BTreeMap;
use std::sync::Arc;

use fixedbitset::FixedBitSet;
use rustc_hash::FxHashMap;

use super::inventory::{ClaimId, DevId, DeviceSetId, Inventory, SelectorId, SlotId};
use super::search::{Given, Pick, Place, Search, Taken, without_host};
use super::{ClaimKey, Error};
use crate::scheduling::pod::PodKey;
use crate::scheduling::requirements::{Allow, Requirements};

/// A place where devices are booked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// An existing node, by its number.
    Node(usize),
    /// A planned node, by its number.
    Claim(usize),
}

/// Instance types of a planned node that come with the same devices, and what is booked if the node
/// becomes one of them. The type is open until the launch, so that each group has bookings of its
/// own.
#[derive(Clone, Debug, Default)]
pub struct TypeGroup {
    /// The types, by their number.
    pub types: FixedBitSet,
    /// What the provider says about their devices.
    pub set: DeviceSetId,
    booked: Given,
}

impl TypeGroup {
    /// Types with the same devices, without any booking.
    #[must_use]
    pub fn new(types: FixedBitSet, set: DeviceSetId) -> Self {
        Self { types, set, booked: Vec::new() }
    }
}

/// The devices that an existing node would give to a pod.
#[derive(Clone, Debug, Default)]
pub struct NodePlan {
    pub(super) given: Given,
}

/// How a planned node would change if it took a pod.
#[derive(Clone, Debug, Default)]
pub struct ClaimPlan {
    /// The types that can serve the pod, with all that is booked for them.
    pub groups: Vec<TypeGroup>,
    /// The requirements that the devices put on the node, its host name left out.
    pub requirements: Requirements,
    new: Vec<ClaimId>,
}

impl ClaimPlan {
    /// All types that can serve the pod.
    #[must_use]
    pub fn types(&self) -> FixedBitSet {
        let mut all = FixedBitSet::new();
        for group in &self.groups {
            all.grow(group.types.len());
            all.union_with(&group.types);
        }
        all
    }
}

/// Where a claim got its devices in this round.
#[derive(Clone, Debug)]
struct Decided {
    site: Site,
    /// Only that node can reach its devices.
    bound: bool,
    requirements: Requirements,
}

impl Decided {
    fn new<'p>(site: Site, picks: impl IntoIterator<Item = &'p Pick>) -> Self {
        let mut decided = Self { site, bound: false, requirements: Requirements::new() };
        for pick in picks {
            decided.bound |= pick.bound;
            if let Some(nodes) = &pick.nodes {
                decided.requirements.merge(nodes);
            }
        }
        decided
    }
}

/// The devices of a planned node, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Booked {
    /// The node's stand-in name, until the API server gives it one.
    pub id: String,
    /// The drivers, sorted.
    pub drivers: Vec<String>,
    /// Devices by claim.
    pub by_claim: BTreeMap<String, Vec<String>>,
    /// Devices that were booked for types which the node lost later, by type.
    pub released: BTreeMap<String, Vec<String>>,
    lost: Vec<(usize, Vec<String>)>,
}

impl Booked {
    /// Calls the types that the node lost by their names.
    pub fn name_types(&mut self, name: impl Fn(usize) -> String) {
        for (kind, devices) in self.lost.drain(..) {
            self.released.entry(name(kind)).or_default().extend(devices);
        }
    }
}

/// The bookings of a round.
#[derive(Debug)]
pub struct Ledger {
    inventory: Arc<Inventory>,
    verdicts: FxHashMap<(SelectorId, DevId), Result<bool, Error>>,
    nodes: FxHashMap<usize, Given>,
    claims: BTreeMap<usize, Vec<TypeGroup>>,
    decided: FxHashMap<ClaimId, Decided>,
    released: FxHashMap<usize, Vec<(usize, Vec<String>)>>,
}

/// What an existing node is.
#[derive(Clone, Debug)]
pub struct NodeSite<'a> {
    /// Its number.
    pub node: usize,
    /// Its name.
    pub name: &'a str,
    /// Its labels.
    pub labels: Requirements,
    /// The devices of its type, while the node has not published its own.
    pub set: DeviceSetId,
}

/// What a planned node is.
#[derive(Clone, Debug)]
pub struct ClaimSite<'a> {
    /// Its number, once it is planned.
    pub claim: Option<usize>,
    /// Its requirements so far, with a stand-in for its host name.
    pub requirements: Requirements,
    /// Labels that it may lack.
    pub allow: Allow<'a>,
}

impl Ledger {
    /// Nothing is booked.
    #[must_use]
    pub fn new(inventory: Arc<Inventory>) -> Self {
        Self {
            inventory,
            verdicts: FxHashMap::default(),
            nodes: FxHashMap::default(),
            claims: BTreeMap::new(),
            decided: FxHashMap::default(),
            released: FxHashMap::default(),
        }
    }

    /// The devices of the round.
    #[must_use]
    pub fn inventory(&self) -> &Arc<Inventory> {
        &self.inventory
    }

    /// Whether an existing node can serve a pod's claims.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn on_node(&mut self, pod: &PodKey, site: &NodeSite<'_>) -> Result<NodePlan, Error> {
        let inventory = Arc::clone(&self.inventory);
        let Some(claims) = inventory.pod(pod) else { return Ok(NodePlan::default()) };
        let claims = claims.as_ref().map_err(Clone::clone)?;
        let own = Site::Node(site.node);
        let place = self.place(Some(site.name), Allow::Nothing, site.set);
        let mut node = site.labels.clone();
        let open = self.open(claims, own, &place, &mut node)?;
        if open.is_empty() {
            return Ok(NodePlan::default());
        }
        // What others took is added up for each question instead of kept, because bookings of a
        // planned node shrink when it loses types.
        let mut taken = self.taken_elsewhere(own);
        for (_, picks) in self.nodes.get(&site.node).into_iter().flatten() {
            taken.add(&inventory, picks);
        }
        let search = Search::new(&inventory, &mut self.verdicts, place, taken, node, &open);
        Ok(NodePlan { given: search.run()?.0 })
    }

    /// Books what an existing node gives to a pod.
    pub fn commit_node(&mut self, node: usize, plan: NodePlan) {
        for (claim, picks) in &plan.given {
            self.decided.insert(*claim, Decided::new(Site::Node(node), picks));
        }
        self.nodes.entry(node).or_default().extend(plan.given);
    }

    /// Which types of a planned node can serve a pod's claims, and what they ask of it.
    ///
    /// Groups are tried in order. Each one narrows the node for those after it, so that the node's
    /// requirements hold for every type that is left.
    ///
    /// # Errors
    /// Why none can.
    pub fn on_claim(
        &mut self,
        pod: &PodKey,
        site: &ClaimSite<'_>,
        types: &[TypeGroup],
    ) -> Result<ClaimPlan, Error> {
        let inventory = Arc::clone(&self.inventory);
        let nothing = Ok(Vec::new());
        let claims = inventory.pod(pod).unwrap_or(&nothing).as_ref().map_err(Clone::clone)?;
        // A node that is not planned yet has no number: one that no planned node uses stands for
        // it.
        let own = Site::Claim(site.claim.unwrap_or(usize::MAX));
        // Claims that hold devices already do not depend on the type, so that they are settled once
        // for all groups.
        let place = self.place(None, site.allow, DeviceSetId::FIRST);
        let mut node = site.requirements.clone();
        let open = self.open(claims, own, &place, &mut node)?;
        if open.is_empty() {
            let requirements = without_host(&node);
            return Ok(ClaimPlan { groups: types.to_vec(), requirements, new: Vec::new() });
        }
        let elsewhere = self.taken_elsewhere(own);
        let mut groups = Vec::new();
        let mut failure = None;
        for group in types {
            let mut taken = elsewhere.clone();
            for (_, picks) in &group.booked {
                taken.add(&inventory, picks);
            }
            let place = self.place(None, site.allow, group.set);
            let from = node.clone();
            match Search::new(&inventory, &mut self.verdicts, place, taken, from, &open).run() {
                Ok((given, narrowed)) => {
                    let mut booked = group.booked.clone();
                    booked.extend(given);
                    groups.push(TypeGroup { booked, ..group.clone() });
                    node = narrowed;
                }
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        match failure {
            Some(error) if groups.is_empty() => Err(error),
            _ => Ok(ClaimPlan { groups, requirements: without_host(&node), new: open }),
        }
    }

    /// Books what a planned node gives to a pod.
    pub fn commit_claim(&mut self, claim: usize, plan: ClaimPlan) {
        for id in &plan.new {
            let booked = plan.groups.iter().flat_map(|g| &g.booked);
            let picks = booked.filter(|(given, _)| given == id).flat_map(|(_, picks)| picks);
            self.decided.insert(*id, Decided::new(Site::Claim(claim), picks));
        }
        self.claims.insert(claim, plan.groups);
    }

    /// The types of a planned node with what is booked for them; `None` when nothing is.
    #[must_use]
    pub fn groups(&self, claim: usize) -> Option<&[TypeGroup]> {
        self.claims.get(&claim).map(Vec::as_slice)
    }

    /// Releases what is booked for types that a planned node no longer has.
    pub fn keep(&mut self, claim: usize, types: &FixedBitSet) {
        let Some(groups) = self.claims.get_mut(&claim) else { return };
        for group in groups.iter_mut() {
            let mut gone = group.types.clone();
            gone.difference_with(types);
            if gone.is_clear() {
                continue;
            }
            let picks = group.booked.iter().flat_map(|(_, picks)| picks);
            let names: Vec<String> = picks.map(|p| self.inventory.shown(p.device)).collect();
            let released = self.released.entry(claim).or_default();
            released.extend(gone.ones().map(|t| (t, names.clone())));
            group.types.intersect_with(types);
        }
        groups.retain(|g| !g.types.is_clear());
    }

    /// The devices of a planned node; `None` when it has none.
    #[must_use]
    pub fn booked(&self, claim: usize) -> Option<Booked> {
        let groups = self.claims.get(&claim)?;
        let mut booked = Booked::default();
        for (id, picks) in groups.iter().flat_map(|g| &g.booked) {
            let key: &ClaimKey = &self.inventory.claims[*id].claim.key;
            let list = booked.by_claim.entry(key.to_string()).or_default();
            for pick in picks {
                booked.drivers.push(self.inventory.driver(pick.device).to_string());
                list.push(self.inventory.shown(pick.device));
            }
            list.sort();
            list.dedup();
        }
        booked.drivers.sort();
        booked.drivers.dedup();
        booked.lost = self.released.get(&claim).cloned().unwrap_or_default();
        (!booked.by_claim.is_empty()).then_some(booked)
    }

    fn place<'p>(&self, node: Option<&'p str>, allow: Allow<'p>, set: DeviceSetId) -> Place<'p> {
        let pools = self.inventory.in_cluster.iter().chain(self.inventory.pools_of(set).iter());
        Place { node, allow, pools: pools.collect() }
    }

    /// The claims that still need devices. Those that have some narrow the node to where these can
    /// be reached.
    fn open(
        &self,
        claims: &[ClaimId],
        own: Site,
        place: &Place<'_>,
        node: &mut Requirements,
    ) -> Result<Vec<ClaimId>, Error> {
        let mut open = Vec::new();
        for id in claims {
            let info = &self.inventory.claims[*id];
            let key = || info.claim.key.clone();
            if let Some(decided) = self.decided.get(id) {
                if decided.site == own {
                    continue;
                }
                // A claim shared by pods is allocated once: pods on another node cannot use devices
                // that only the first one reaches.
                if decided.bound {
                    return Err(Error::BoundElsewhere);
                }
                if node.compatible(&decided.requirements, place.allow).is_err() {
                    return Err(Error::AllocatedElsewhere(key()));
                }
                node.merge(&decided.requirements);
            } else if let Some(fixed) = &info.fixed {
                let Some(terms) = fixed else { continue };
                let term = terms.iter().find(|t| place.selected(t, node));
                let term = term.ok_or_else(|| Error::AllocatedElsewhere(key()))?;
                // An existing node has its labels, and nothing to narrow.
                if place.node.is_none() {
                    node.merge(&term.labels);
                }
            } else {
                open.push(*id);
            }
        }
        Ok(open)
    }

    /// What all other nodes have taken. A planned node becomes only one of its types but nobody
    /// knows which, so that the most that any of them needs counts.
    fn taken_elsewhere(&self, own: Site) -> Taken {
        let inventory = &self.inventory;
        // Devices that an instance will have are not shared with other nodes.
        let there = |p: &&Pick| !inventory.devices[p.device].template;
        let mut taken = Taken::default();
        let mut nodes: Vec<&usize> = self.nodes.keys().collect();
        nodes.sort_unstable();
        for node in nodes.into_iter().filter(|n| own != Site::Node(**n)) {
            for (_, picks) in &self.nodes[node] {
                taken.add(inventory, picks.iter().filter(there));
            }
        }
        for (_, groups) in self.claims.iter().filter(|(c, _)| own != Site::Claim(**c)) {
            let mut most: FxHashMap<SlotId, i128> = FxHashMap::default();
            let mut devices = taken.devices.clone();
            for group in groups {
                let mut alone = Taken { devices: taken.devices.clone(), ..Taken::default() };
                for (_, picks) in &group.booked {
                    alone.add(inventory, picks.iter().filter(there));
                }
                for (slot, value) in alone.slots {
                    let known = most.entry(slot).or_insert(0);
                    *known = (*known).max(value);
                }
                devices.extend(alone.devices);
            }
            taken.devices = devices;
            for (slot, value) in most {
                *taken.slots.entry(slot).or_insert(0) += value;
            }
        }
        taken
    }
}
