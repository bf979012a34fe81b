//! The devices of a round, numbered, and the claims of its pods.

use std::collections::HashSet;
use std::sync::Arc;

use cel::Program;
use rustc_hash::{FxHashMap, FxHashSet};

use super::claim::{Choice, Claim, ClaimSource, User, generated_name};
use super::device::{Amount, Device, Placement, Qualified, Term, TypePool};
use super::pool::{self, Flaw};
use super::{ClaimKey, Error, Objects};
use crate::scheduling::ids::{Id, List, Run, ids};
use crate::scheduling::node::StateNode;
use crate::scheduling::pod::{PodInfo, PodKey};

ids! {
    /// A device.
    pub DevId,
    /// An amount that allocations draw on: a counter, or a capacity of a shared device.
    pub SlotId,
    /// A claim.
    pub ClaimId,
    /// The devices that a provider gives instance types; the first for types without any.
    pub DeviceSetId,
    /// A pool of devices.
    pub(super) PoolId,
    /// A selector.
    pub(super) SelectorId,
    /// Devices of a pool that will agree in an attribute.
    pub(super) BindingId,
}

/// A device with its place in the round.
#[derive(Debug)]
pub(super) struct Dev {
    pub(super) device: Arc<Device>,
    pub(super) pool: PoolId,
    pub(super) place: Placement,
    /// A device that an instance will have, rather than one that is published.
    pub(super) template: bool,
    pub(super) counters: Vec<(SlotId, Amount)>,
    /// Capacities by name, when the device is shared.
    pub(super) shares: Vec<(Qualified, SlotId)>,
    /// Sets of devices that will agree in an attribute.
    pub(super) bindings: Vec<(Qualified, BindingId)>,
}

/// A pool of devices.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) driver: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) flaw: Option<Flaw>,
    pub(super) devices: Run<DevId>,
}

/// A choice of a request with its selectors.
#[derive(Debug)]
pub(super) struct ChoiceInfo {
    pub(super) choice: Choice,
    /// The selectors of class and request; an error when the class is not there.
    pub(super) selectors: Result<Vec<SelectorId>, Error>,
}

/// A claim that pods of the round refer to.
#[derive(Debug)]
pub(super) struct ClaimInfo {
    pub(super) claim: Arc<Claim>,
    /// Set when it holds devices, and so stays where these are: the node selector's terms, if it
    /// has one.
    pub(super) fixed: Option<Option<Arc<[Term]>>>,
    /// Choices of each request, best first.
    pub(super) requests: Vec<(Arc<str>, Vec<ChoiceInfo>)>,
}

/// A selector, compiled.
#[derive(Debug)]
pub(super) struct Selector {
    pub(super) text: Arc<str>,
    pub(super) program: Result<Program, String>,
}

/// Everything about devices that does not change during a round.
#[derive(Debug, Default)]
pub struct Inventory {
    pub(super) devices: List<DevId, Dev>,
    pub(super) pools: List<PoolId, Pool>,
    /// Pools that are there.
    pub(super) in_cluster: Run<PoolId>,
    /// Pools of instance types, by set.
    sets: List<DeviceSetId, Run<PoolId>>,
    set_index: FxHashMap<usize, DeviceSetId>,
    /// What each slot holds.
    pub(super) slots: List<SlotId, Amount>,
    /// Devices that claims hold.
    pub(super) used: FxHashSet<DevId>,
    /// What claims draw.
    pub(super) drawn: FxHashMap<SlotId, Amount>,
    pub(super) claims: List<ClaimId, ClaimInfo>,
    pub(super) selectors: List<SelectorId, Selector>,
    selector_index: FxHashMap<Arc<str>, SelectorId>,
    pods: FxHashMap<PodKey, Result<Vec<ClaimId>, Error>>,
    bindings: usize,
}

/// Pods by uid; by name those without one, as in a scenario file.
#[derive(Default)]
struct Pods<'a> {
    ids: HashSet<&'a str>,
    names: HashSet<(&'a str, &'a str)>,
}

impl<'a> Pods<'a> {
    fn new(pods: impl IntoIterator<Item = &'a Arc<PodInfo>>) -> Self {
        let mut all = Self::default();
        for pod in pods {
            if pod.uid.is_empty() {
                all.names.insert((&pod.key.namespace, &pod.key.name));
            } else {
                all.ids.insert(&pod.uid);
            }
        }
        all
    }

    fn contains(&self, namespace: &str, user: &User) -> bool {
        self.ids.contains(&*user.uid) || self.names.contains(&(namespace, &*user.name))
    }
}

/// The pods that count as alive, and those that this round places.
struct Users<'a> {
    alive: Pods<'a>,
    batch: Pods<'a>,
    /// Claims that pods of the batch refer to.
    wanted: HashSet<ClaimKey>,
}

impl Users<'_> {
    /// Whether a claim keeps its devices. It does while a pod that stays uses it. When this round
    /// moves all of its pods, the devices are free to be chosen again; and a claim that waits for
    /// its first pod keeps what it was allocated.
    fn keep(&self, claim: &Claim) -> bool {
        let namespace = &*claim.key.namespace;
        let stays = |user: &User| {
            self.alive.contains(namespace, user) && !self.batch.contains(namespace, user)
        };
        claim.other_users
            || claim.pods.iter().any(stays)
            || (claim.pods.is_empty() && self.wanted.contains(&claim.key))
    }
}

/// The claims that a pod refers to, by name; those still to be created have the name of
/// [`generated_name`].
pub(crate) fn claim_keys(pod: &PodInfo) -> impl Iterator<Item = ClaimKey> {
    pod.device_claims().iter().filter_map(|entry| match &entry.source {
        ClaimSource::Claim(name) => Some(ClaimKey::new(&pod.key.namespace, name)),
        ClaimSource::Template(_) => {
            let name = generated_name(&pod.key.name, &entry.name);
            Some(ClaimKey::new(&pod.key.namespace, &name))
        }
        ClaimSource::Nothing => None,
    })
}

impl Inventory {
    /// The devices of these nodes and of the network, and those that instances of these types will
    /// have.
    #[must_use]
    pub fn new<'a>(
        objects: &Objects,
        pods: &[Arc<PodInfo>],
        nodes: &[StateNode],
        types: impl IntoIterator<Item = &'a Arc<[TypePool]>>,
    ) -> Self {
        let mut inventory = Self { sets: vec![Run::default()].into(), ..Self::default() };
        inventory.add_cluster(objects, nodes);
        for pools in types {
            inventory.add_types(pools);
        }
        let users = Users {
            alive: Pods::new(nodes.iter().flat_map(|n| &n.pods).filter(|p| !p.terminal)),
            batch: Pods::new(pods),
            wanted: pods.iter().flat_map(|p| claim_keys(p)).collect(),
        };
        for claim in objects.claims.values().filter(|c| users.keep(c)) {
            inventory.hold(claim);
        }
        let mut index = FxHashMap::default();
        for pod in pods.iter().filter(|p| p.dynamic_resources) {
            let found = inventory.claims_of(pod, objects, &users, &mut index);
            inventory.pods.insert(pod.key.clone(), found);
        }
        inventory
    }

    /// The claims of a pod; `None` when it has none.
    ///
    /// # Errors
    /// When one of them is not there.
    pub(super) fn pod(&self, key: &PodKey) -> Option<&Result<Vec<ClaimId>, Error>> {
        self.pods.get(key)
    }

    /// Why a pod's claims cannot be looked at, if so.
    #[must_use]
    pub fn unresolved(&self, key: &PodKey) -> Option<&Error> {
        self.pods.get(key)?.as_ref().err()
    }

    /// Whether a pod has claims that bear on where it goes.
    #[must_use]
    pub fn concerns(&self, key: &PodKey) -> bool {
        self.pods.get(key).is_some_and(|claims| claims.as_ref().map_or(true, |c| !c.is_empty()))
    }

    /// The index of a type's devices.
    #[must_use]
    pub fn set_of(&self, pools: &Arc<[TypePool]>) -> DeviceSetId {
        self.set_index.get(&address(pools)).copied().unwrap_or(DeviceSetId::FIRST)
    }

    /// Whether any instance type comes with devices.
    #[must_use]
    pub fn has_type_devices(&self) -> bool {
        self.sets.len() > 1
    }

    pub(super) fn pools_of(&self, set: DeviceSetId) -> Run<PoolId> {
        self.sets.get(set).copied().unwrap_or_default()
    }

    fn add_cluster(&mut self, objects: &Objects, nodes: &[StateNode]) {
        let there: FxHashSet<&str> = nodes
            .iter()
            // As in Karpenter: until a node is initialized its drivers may have published only some
            // devices, so that the type's own list counts instead.
            .filter(|n| n.initialized() && !n.deleting())
            .filter_map(|n| n.node.as_ref()?.metadata.name.as_deref())
            .collect();
        let counted = objects
            .slices
            .values()
            .filter(|s| s.owner.as_deref().is_none_or(|o| there.contains(o)));
        for ((driver, name), slices) in pool::pools(counted) {
            let flaw = pool::flaw(&slices);
            let mut slots = FxHashMap::default();
            for ((set, counter), value) in slices.iter().flat_map(|s| &s.counters) {
                slots.insert((Arc::clone(set), Arc::clone(counter)), self.slot(*value));
            }
            let start = self.devices.len();
            for slice in &slices {
                for device in &slice.devices {
                    let place = match &slice.place {
                        Placement::Unsaid => device.place.clone(),
                        place => place.clone(),
                    };
                    self.add_device(device, place, false, &slots);
                }
            }
            let devices = Run::new(start, self.devices.len());
            self.pools.push(Pool { driver, name, flaw, devices });
        }
        self.in_cluster = Run::new(0, self.pools.len());
    }

    fn add_types(&mut self, pools: &Arc<[TypePool]>) {
        if pools.is_empty() || self.set_index.contains_key(&address(pools)) {
            return;
        }
        let first = self.pools.len();
        for found in pools.iter() {
            let flaw =
                pool::contradiction(&found.devices, &found.counters).then_some(Flaw::Invalid);
            let mut slots = FxHashMap::default();
            for (key, value) in &found.counters {
                slots.insert(key.clone(), self.slot(*value));
            }
            let start = self.devices.len();
            for device in &found.devices {
                // Everywhere, since the caller looks into these pools only for nodes of the type.
                self.add_device(device, Placement::Everywhere, true, &slots);
            }
            let devices = Run::new(start, self.devices.len());
            self.bind(found, devices);
            let (driver, name) = (Arc::clone(&found.driver), Arc::clone(&found.pool));
            self.pools.push(Pool { driver, name, flaw, devices });
        }
        let set = self.sets.push(Run::new(first, self.pools.len()));
        self.set_index.insert(address(pools), set);
    }

    fn slot(&mut self, value: Amount) -> SlotId {
        self.slots.push(value)
    }

    fn add_device(
        &mut self,
        device: &Arc<Device>,
        place: Placement,
        template: bool,
        counters: &FxHashMap<(Arc<str>, Arc<str>), SlotId>,
    ) {
        let drawn = device.consumes.iter().filter_map(|(set, name, value)| {
            let slot = counters.get(&(Arc::clone(set), Arc::clone(name)))?;
            Some((*slot, *value))
        });
        let counters = drawn.collect();
        let mut shares = Vec::new();
        if device.shared {
            for (name, capacity) in &device.capacity {
                shares.push((name.clone(), self.slot(capacity.value)));
            }
        }
        self.devices.push(Dev {
            device: Arc::clone(device),
            pool: PoolId::new(self.pools.len()),
            place,
            template,
            counters,
            shares,
            bindings: Vec::new(),
        });
    }

    /// Numbers the sets of a pool's devices that will agree in an attribute. Sets that overlap are
    /// joined: agreeing is transitive.
    fn bind(&mut self, pool: &TypePool, devices: Run<DevId>) {
        let mut sets: Vec<(&Qualified, Vec<&Arc<str>>)> = Vec::new();
        for binding in &pool.bindings {
            let mut joined: Vec<&Arc<str>> = binding.devices.iter().collect();
            sets.retain_mut(|(attribute, names)| {
                let meets =
                    **attribute == binding.attribute && names.iter().any(|n| joined.contains(n));
                if meets {
                    joined.append(names);
                }
                !meets
            });
            sets.push((&binding.attribute, joined));
        }
        for (attribute, names) in sets {
            let set = BindingId::new(self.bindings);
            self.bindings += 1;
            for id in devices.iter() {
                let dev = &mut self.devices[id];
                if names.contains(&&dev.device.name) {
                    dev.bindings.push((attribute.clone(), set));
                }
            }
        }
    }

    /// Books what an allocated claim holds. Devices held with `adminAccess` stay available.
    fn hold(&mut self, claim: &Claim) {
        let Some(allocation) = &claim.allocation else { return };
        for held in allocation.devices.iter().filter(|h| !h.admin) {
            let mut pools = self.in_cluster.iter().map(|id| &self.pools[id]);
            let Some(pool) =
                pools.find(|p| p.driver == held.device.driver && p.name == held.device.pool)
            else {
                continue;
            };
            let named = |id: &DevId| self.devices[*id].device.name == held.device.device;
            let Some(id) = pool.devices.iter().find(named) else { continue };
            let dev = &self.devices[id];
            // Counters belong to the device, and are drawn on once however many claims share it;
            // capacity is drawn on by each of them.
            if self.used.insert(id) {
                for (slot, value) in &dev.counters {
                    *self.drawn.entry(*slot).or_insert(0) += value;
                }
            }
            let taken = super::claim::by_name(&held.consumed, &held.device.driver);
            for (name, slot) in &dev.shares {
                if let Some(value) = taken.get(name) {
                    *self.drawn.entry(*slot).or_insert(0) += value;
                }
            }
        }
    }

    fn claims_of(
        &mut self,
        pod: &PodInfo,
        objects: &Objects,
        users: &Users<'_>,
        index: &mut FxHashMap<ClaimKey, ClaimId>,
    ) -> Result<Vec<ClaimId>, Error> {
        let mut ids = Vec::new();
        for key in claim_keys(pod) {
            let id = match index.get(&key) {
                Some(id) => *id,
                None => {
                    let claim = objects
                        .claims
                        .get(&key)
                        .ok_or_else(|| Error::ClaimNotFound(key.clone()))?;
                    let id = self.add_claim(claim, objects, users);
                    index.insert(key, id);
                    id
                }
            };
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    fn add_claim(&mut self, claim: &Arc<Claim>, objects: &Objects, users: &Users<'_>) -> ClaimId {
        let requests = claim
            .requests
            .iter()
            .map(|request| {
                let choices =
                    request.choices.iter().map(|c| self.choice(c, objects)).collect::<Vec<_>>();
                (Arc::clone(&request.name), choices)
            })
            .collect();
        let kept = claim.allocation.as_ref().filter(|_| users.keep(claim));
        self.claims.push(ClaimInfo {
            claim: Arc::clone(claim),
            fixed: kept.map(|a| a.nodes.clone()),
            requests,
        })
    }

    fn choice(&mut self, choice: &Choice, objects: &Objects) -> ChoiceInfo {
        let selectors = match objects.classes.get(&*choice.class) {
            None => Err(Error::ClassNotFound(Arc::clone(&choice.class))),
            Some(class) => Ok(class
                .selectors
                .iter()
                .chain(&choice.selectors)
                .map(|text| self.selector(text))
                .collect()),
        };
        ChoiceInfo { choice: choice.clone(), selectors }
    }

    fn selector(&mut self, text: &Arc<str>) -> SelectorId {
        if let Some(id) = self.selector_index.get(text) {
            return *id;
        }
        let program = super::selector::compile(text);
        let id = self.selectors.push(Selector { text: Arc::clone(text), program });
        self.selector_index.insert(Arc::clone(text), id);
        id
    }

    /// The driver of a device.
    pub(super) fn driver(&self, id: DevId) -> &Arc<str> {
        &self.pools[self.devices[id].pool].driver
    }

    /// A device as people read it.
    pub(super) fn shown(&self, id: DevId) -> String {
        let dev = &self.devices[id];
        let pool = &self.pools[dev.pool];
        format!("{}/{}/{}", pool.driver, pool.name, dev.device.name)
    }
}

fn address(pools: &Arc<[TypePool]>) -> usize {
    Arc::as_ptr(pools).cast::<TypePool>() as usize
}
