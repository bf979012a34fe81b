//! Nodes that exist, as the loop sees them: what is free on them and which of them are alike.

use std::collections::BTreeMap;
use std::sync::Arc;

use fixedbitset::FixedBitSet;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::amounts::{Amounts, Resources, subtract};
use super::bound::Bound;
use super::daemons::{Daemons, is_there};
use super::intern::Interner;
use super::tolerance::Tolerance;
use crate::api::labels;
use crate::scheduling::node::StateNode;
use crate::scheduling::pod::{HostPort, PodInfo, PodKey};
use crate::scheduling::requirements::Requirements;
use crate::scheduling::resources::{Name, ResourceList};
use crate::scheduling::snapshot::NodePoolInput;
use crate::scheduling::solver::ids::{
    DaemonId, Id, KeyId, List, ReqId, SetId, SortId, TaintsId, TolerationsId, ValueId,
};
use crate::scheduling::taints::prefer_no_schedule;

/// A host port and the pod that has it.
pub(super) type TakenPort = (PodKey, HostPort);

/// A node that may take pods.
pub(super) struct ExistingNode {
    pub(super) name: String,
    /// Index in the snapshot.
    pub(super) index: usize,
    /// Which nodes it is like.
    pub(super) alike: SortId,
    /// Its host name.
    pub(super) host: ValueId,
    /// What is free once its daemons run.
    pub(super) room: Amounts,
    /// Something is overcommitted: nothing fits.
    pub(super) full: bool,
    pub(super) ports: Vec<TakenPort>,
}

/// Nodes with the same taints and the same labels, as far as these matter.
pub(super) struct Alike {
    pub(super) set: SetId,
    pub(super) taints: TaintsId,
    pub(super) nodes: FixedBitSet,
}

/// All nodes in the order in which they are tried.
#[derive(Default)]
pub(super) struct Existing {
    pub(super) nodes: Vec<ExistingNode>,
    pub(super) alike: List<SortId, Alike>,
    /// Node by name in the snapshot's order.
    pub(super) by_index: FxHashMap<usize, usize>,
    /// What the nodes of each pool have, where a pool is limited.
    pub(super) used: FxHashMap<String, ResourceList>,
    /// DaemonSets whose pods are still to come, by the node's place in the snapshot; known only
    /// where their pods matter to others.
    pub(super) missing: FxHashMap<usize, Daemons>,
}

/// What turning nodes into numbers needs.
pub(super) struct Setting<'a> {
    pub(super) interner: &'a mut Interner,
    pub(super) tolerance: &'a mut Tolerance,
    pub(super) resources: &'a Resources,
    /// Keys that something in this round asks about.
    pub(super) keys: &'a [KeyId],
    pub(super) daemons: &'a [Arc<PodInfo>],
    /// Pods of DaemonSets matter to pods that wait.
    pub(super) neighbours: bool,
    /// What nodes have without end.
    pub(super) unlimited: &'a ResourceList,
}

impl Existing {
    pub(super) fn new(
        nodes: &[StateNode],
        bound: &Bound,
        pools: Option<&[NodePoolInput]>,
        setting: &mut Setting<'_>,
    ) -> Self {
        let mut order: Vec<(bool, &str, usize)> = nodes
            .iter()
            .enumerate()
            .filter(|(_, n)| !n.deleting())
            // Initialized nodes first, then by name: Karpenter's order.
            .map(|(i, n)| (!n.initialized(), n.name(), i))
            .collect();
        order.sort_unstable();
        let names: Vec<Arc<str>> =
            setting.keys.iter().map(|k| Arc::clone(setting.interner.key_name(*k))).collect();
        let mut existing = Self::default();
        let mut index: FxHashMap<(SetId, TaintsId), SortId> = FxHashMap::default();
        let mut daemons = DaemonNeeds::new(setting);
        for (_, name, at) in order {
            let state = &nodes[at];
            if let Some(pool) = state.node_pool().filter(|_| pools.is_some()) {
                // Before a lost node is passed over: limits are about what exists.
                existing.used.entry(pool.to_owned()).or_default().add(&charged(state, pools));
            }
            // It counts towards its pool's limits all the same: the instance is paid for until it
            // is gone.
            if state.lost() {
                continue;
            }
            let (set, taints) = signature(state, &names, setting);
            let alike = *index.entry((set, taints)).or_insert_with(|| {
                existing.alike.push(Alike { set, taints, nodes: FixedBitSet::new() })
            });
            let position = existing.nodes.len();
            existing.alike[alike].nodes.grow_and_insert(position);
            // A node that has not joined has no label yet; its name is what topology counts it by.
            let hostname = state.labels().get(labels::HOSTNAME).map_or(name, String::as_str);
            let host_key = setting.interner.hostname;
            let host = setting.interner.value(host_key, hostname);
            if setting.neighbours {
                let missing = daemons.missing((set, taints, host), state, setting);
                existing.missing.insert(at, missing);
            }
            let need = daemons.of(set, taints, host, setting);
            let (room, full) = room(state, need, (at, bound), setting.resources, setting.unlimited);
            existing.by_index.insert(at, position);
            existing.nodes.push(ExistingNode {
                name: name.to_owned(),
                index: at,
                alike,
                host,
                room,
                full,
                ports: bound.ports(at).to_vec(),
            });
        }
        existing
    }
}

/// What a node takes of its pool's limits. A claim that has no instance yet may get the largest of
/// its types, as the round that made it reckoned.
pub(super) fn charged(state: &StateNode, pools: Option<&[NodePoolInput]>) -> ResourceList {
    let mut list = state.capacity();
    let Some(claim) = state.node_claim.as_ref().filter(|_| list.iter().count() == 1) else {
        return list;
    };
    let asked = Requirements::from_api(&claim.spec.requirements);
    let wanted = asked.get(labels::INSTANCE_TYPE);
    let own = |p: &&NodePoolInput| p.node_pool.metadata.name.as_deref() == state.node_pool();
    let types = pools.into_iter().flatten().filter(own).flat_map(|p| p.instance_types.iter());
    for kind in types.filter(|t| wanted.is_none_or(|r| r.has(&t.name))) {
        list.max(&kind.capacity);
    }
    list
}

/// The labels that matter, and the taints.
pub(super) fn signature(
    state: &StateNode,
    names: &[Arc<str>],
    setting: &mut Setting<'_>,
) -> (SetId, TaintsId) {
    let mut reqs: SmallVec<[ReqId; 12]> = SmallVec::new();
    for (key, name) in setting.keys.iter().zip(names) {
        if let Some(text) = labels::value_of(state.labels(), name) {
            let value = setting.interner.value(*key, text);
            reqs.push(setting.interner.one_of(*key, &[value]));
        }
    }
    let set = setting.interner.set_of(reqs);
    (set, setting.tolerance.taints(&state.taints()))
}

/// Daemons that a node is going to run, by signature.
struct DaemonNeeds {
    /// Requirements and tolerations of each daemon.
    wants: List<DaemonId, (SetId, ReqId, TolerationsId)>,
    amounts: List<DaemonId, Amounts>,
    by_host: bool,
    known: FxHashMap<(SetId, TaintsId), Amounts>,
}

impl DaemonNeeds {
    fn new(setting: &mut Setting<'_>) -> Self {
        let mut wants = List::default();
        let mut amounts = List::default();
        for daemon in setting.daemons {
            let mut tolerations = daemon.constraints.tolerations.clone();
            tolerations.push(prefer_no_schedule());
            let (set, host) =
                setting.interner.intern_once(&daemon.constraints.strict_requirements());
            wants.push((set, host, setting.tolerance.tolerations(&tolerations)));
            amounts.push(setting.resources.vector(&daemon.requests));
        }
        let by_host = wants.iter().any(|(_, host, _)| !host.is_none());
        Self { wants, amounts, by_host, known: FxHashMap::default() }
    }

    fn belongs(
        &self,
        daemon: DaemonId,
        (set, taints, host): (SetId, TaintsId, ValueId),
        setting: &mut Setting<'_>,
    ) -> bool {
        let (wanted, host_req, tolerations) = self.wants[daemon];
        setting.tolerance.tolerates(tolerations, taints)
            && setting.interner.compatible(set, wanted, false)
            && (host_req.is_none() || setting.interner.has(host_req, host))
    }

    /// Daemons that belong on a node and are not there yet.
    fn missing(
        &self,
        node: (SetId, TaintsId, ValueId),
        state: &StateNode,
        setting: &mut Setting<'_>,
    ) -> Daemons {
        let belongs = |at: &DaemonId| self.belongs(*at, node, setting);
        let mut found: Daemons = self.wants.ids().filter(belongs).collect();
        found.retain(|at| !is_there(&setting.daemons[at.at()], state));
        found
    }

    /// What daemons request on a node like that.
    fn of(
        &mut self,
        set: SetId,
        taints: TaintsId,
        host: ValueId,
        setting: &mut Setting<'_>,
    ) -> Amounts {
        if let Some(known) = self.known.get(&(set, taints)) {
            return known.clone();
        }
        let mut total = setting.resources.zero();
        for at in self.wants.ids() {
            if self.belongs(at, (set, taints, host), setting) {
                super::amounts::add(&mut total, &self.amounts[at]);
            }
        }
        // With a DaemonSet that names a host, nodes of one signature differ.
        if !self.by_host {
            self.known.insert((set, taints), total.clone());
        }
        total
    }
}

/// What is free on a node, and whether anything is overcommitted.
///
/// The remaining need of daemons is what those that belong on the node request, less what the
/// DaemonSet pods that are there already request.
fn room(
    state: &StateNode,
    mut need: Amounts,
    (at, bound): (usize, &Bound),
    resources: &Resources,
    unlimited: &ResourceList,
) -> (Amounts, bool) {
    let allocatable = state.allocatable();
    let mut room = resources.vector(&allocatable);
    resources.add_to(&mut room, unlimited, 1);
    subtract(&mut room, bound.requests(at));
    subtract(&mut need, bound.of_daemons(at));
    for amount in &mut need {
        *amount = (*amount).max(0);
    }
    // What is not allocatable at all counts as nothing rather than as a debt: only resources that
    // the node names can be overcommitted.
    subtract(&mut room, &need);
    let over = |(amount, name): (&i64, &Name)| *amount < 0 && allocatable.find(name).is_some();
    let full = room.iter().zip(resources.names()).any(over)
        // Also in what nobody asks for in this round.
        || (bound.requests_others(at)
            && state.available().iter().any(|(name, amount)| over((&amount, name))));
    for amount in &mut room {
        *amount = (*amount).max(0);
    }
    (room, full)
}

/// How many volumes each driver has on a node, and may have.
#[derive(Clone, Debug, Default)]
pub(super) struct Volumes {
    limits: BTreeMap<String, u64>,
    attached: BTreeMap<Arc<str>, FxHashSet<Arc<str>>>,
}

impl Volumes {
    /// The volumes of a node's bound pods, and how many the node takes.
    pub(super) fn new(state: &StateNode, limits: BTreeMap<String, u64>) -> Self {
        let mut volumes = Self { limits, ..Self::default() };
        volumes.add(&state.attached);
        volumes
    }

    /// Whether a pod's volumes can be attached too; volumes that are there already count once.
    pub(super) fn has_room(&self, more: &[(Arc<str>, Arc<str>)]) -> bool {
        more.iter().all(|(driver, _)| {
            let Some(limit) = self.limits.get(&**driver) else { return true };
            let here = self.attached.get(driver);
            let new: FxHashSet<&Arc<str>> = more
                .iter()
                // A volume that is attached already needs no second slot.
                .filter(|(d, claim)| d == driver && here.is_none_or(|h| !h.contains(claim)))
                .map(|(_, claim)| claim)
                .collect();
            (here.map_or(0, FxHashSet::len) + new.len()) as u64 <= *limit
        })
    }

    /// Attaches volumes; returns those that were not attached before.
    pub(super) fn add(&mut self, more: &[(Arc<str>, Arc<str>)]) -> Vec<(Arc<str>, Arc<str>)> {
        let mut new = Vec::new();
        for (driver, claim) in more {
            if self.attached.entry(Arc::clone(driver)).or_default().insert(Arc::clone(claim)) {
                new.push((Arc::clone(driver), Arc::clone(claim)));
            }
        }
        new
    }

    /// How many are attached.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.attached.values().map(FxHashSet::len).sum()
    }

    /// Detaches volumes.
    pub(super) fn remove(&mut self, gone: &[(Arc<str>, Arc<str>)]) {
        for (driver, claim) in gone {
            if let Some(attached) = self.attached.get_mut(driver) {
                attached.remove(claim);
            }
        }
    }
}
