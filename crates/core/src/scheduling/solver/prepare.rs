//! From a snapshot to numbers: everything that does not change while pods are placed.

use std::ops::Deref;
use std::sync::Arc;

use fixedbitset::FixedBitSet;
use rustc_hash::{FxHashMap, FxHashSet};

use super::amounts::Resources;
use super::attach::Attachable;
use super::bound::Bound;
use super::choices::Choices;
use super::classes::{Builder, ClassIndex, Classes, Groups, Sort, Work};
use super::devices::Devices;
use super::existing::{Existing, Setting, signature};
use super::intern::{EMPTY, Interner};
use super::plan::{Mark, Plan};
use super::stock::{Stock, Template, template_requirements};
use super::tolerance::Tolerance;
use super::topology::{Kind, Topology};
use super::world::{Memo, Shared};
use crate::api::{labels, taints};
use crate::scheduling::dra::Inventory;
use crate::scheduling::pod::PodInfo;
use crate::scheduling::resources::ResourceList;
use crate::scheduling::results::SkippedPool;
use crate::scheduling::snapshot::{NodePoolInput, Snapshot};
use crate::scheduling::solver::ids::{
    DaemonId, FilterId, GroupId, HostId, Id, KeyId, KindId, List, PodId, ReqId, SetId, TaintsId,
    TemplateId, ValueId,
};

/// A pod to place.
#[derive(Clone)]
pub(super) struct Waiting {
    pub(super) pod: Arc<PodInfo>,
    pub(super) kind: KindId,
}

/// A snapshot, one's own or another's.
#[derive(Clone)]
pub(super) enum Source<'a> {
    Borrowed(&'a Snapshot),
    Shared(Arc<Snapshot>),
}

impl Deref for Source<'_> {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        match self {
            Self::Borrowed(snapshot) => snapshot,
            Self::Shared(snapshot) => snapshot,
        }
    }
}

/// A snapshot in numbers.
pub(super) struct Prepared<'a> {
    pub(super) snapshot: Source<'a>,
    pub(super) interner: Interner,
    pub(super) tolerance: Tolerance,
    pub(super) resources: Resources,
    pub(super) stock: Stock,
    pub(super) template_taints: List<TemplateId, TaintsId>,
    pub(super) skipped: Vec<SkippedPool>,
    pub(super) topology: Topology,
    pub(super) classes: Classes,
    pub(super) waiting: List<PodId, Waiting>,
    pub(super) existing: Existing,
    /// What a try changes.
    pub(super) plan: Plan,
    /// Hosts that stand for nodes which pods are counted on; planned nodes come after these.
    pub(super) first_claim_host: HostId,
    pub(super) choices: Choices,
    /// Pods may come to tolerate PreferNoSchedule taints.
    pub(super) tolerate_prefer: bool,
    /// Answers that hold for every round.
    pub(super) memo: Memo,
    /// What taking nodes out needs, where that is asked for.
    pub(super) shared: Option<Shared>,
    /// How many volumes nodes take.
    pub(super) attachable: Attachable,
    /// Devices, when pods have claims on some.
    pub(super) devices: Option<Arc<Inventory>>,
}

/// Whether a pool is there for waiting pods: it is not static, and not being deleted.
pub(super) fn serves(pool: &NodePoolInput) -> bool {
    let pool = &pool.node_pool;
    pool.spec.replicas.is_none() && pool.metadata.deletion_timestamp.is_none()
}

/// Pools that may launch nodes for waiting pods, heaviest first; equal ones by name, last first.
fn usable_pools(snapshot: &Snapshot) -> Vec<&NodePoolInput> {
    let mut pools: Vec<&NodePoolInput> =
        snapshot.node_pools.iter().filter(|p| serves(p) && !p.instance_types.is_empty()).collect();
    pools.sort_by(|a, b| {
        let weight = |p: &NodePoolInput| p.node_pool.spec.weight.unwrap_or(0);
        weight(b)
            .cmp(&weight(a))
            // Karpenter's order of equal weights, which users may have come to rely on.
            .then_with(|| b.node_pool.metadata.name.cmp(&a.node_pool.metadata.name))
    });
    pools
}

impl<'a> Prepared<'a> {
    /// What a planned node is for groups of host names.
    pub(super) fn host_of_claim(&self, claim: usize) -> HostId {
        HostId::new(self.first_claim_host.at() + claim)
    }

    /// Prepares a snapshot for the placing of its pods.
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        Self::with_movable(Source::Borrowed(snapshot), &[]).0
    }

    /// Prepares a snapshot for the placing of its pods, and of pods on its nodes, which come after
    /// these. Returns besides what counting pods needs, and which domains the pools make known to
    /// each group.
    pub(super) fn with_movable(
        source: Source<'a>,
        movable: &[Arc<PodInfo>],
    ) -> (Self, Counting, List<GroupId, FixedBitSet>) {
        let own = source.clone();
        let snapshot: &Snapshot = &own;
        let pods: Vec<&Arc<PodInfo>> = snapshot.pods.iter().chain(movable).collect();
        let pools = usable_pools(snapshot);
        // As in Karpenter: giving up that taint is a relaxation that is tried only where some pool
        // has it.
        let tolerate_prefer = snapshot.node_pools.iter().filter(|p| serves(p)).any(|p| {
            let list = p.node_pool.spec.template.spec.taints.as_deref().unwrap_or_default();
            list.iter().any(|t| t.effect == taints::PREFER_NO_SCHEDULE)
        });
        let daemons: Vec<Arc<PodInfo>> = snapshot
            .daemonset_pods
            .iter()
            .filter(|p| !(p.dynamic_resources && snapshot.options.ignore_dynamic_resources))
            .cloned()
            .collect();
        let mut resources = Resources::default();
        for pod in pods.iter().copied().chain(&daemons) {
            // Only what somebody asks for gets a column: nodes list many resources that matter to
            // nobody.
            resources.note(&pod.requests);
        }
        let attachable = Attachable::new(snapshot, &pods);
        attachable.note(&mut resources);
        let mut interner = Interner::new(&snapshot.well_known);
        let mut prepared = Self {
            stock: Stock::new(resources.len()),
            snapshot: source,
            tolerance: Tolerance::default(),
            template_taints: List::default(),
            skipped: Vec::new(),
            topology: Topology::default(),
            classes: Classes::default(),
            waiting: List::default(),
            existing: Existing::default(),
            plan: Plan::default(),
            first_claim_host: HostId::FIRST,
            choices: super::choices::plain(snapshot.pods.len()),
            memo: Memo::default(),
            shared: None,
            tolerate_prefer,
            devices: super::devices::inventory(snapshot, &pods),
            attachable,
            interner: Interner::new(&snapshot.well_known),
            resources,
        };
        std::mem::swap(&mut interner, &mut prepared.interner);
        for input in &pools {
            prepared.add_pool(input, &daemons);
        }
        let counting = prepared.add_pods(tolerate_prefer, &pods, &daemons);
        let known = prepared.add_nodes(&daemons, &pools, &counting);
        prepared.begin();
        (prepared, counting, known)
    }

    /// Takes back every change of the plan since a mark.
    pub(super) fn undo(&mut self, mark: Mark) {
        self.plan.undo(mark, &self.topology);
    }

    /// Fills in where every try begins.
    fn begin(&mut self) {
        let limits = self.limits_left();
        let mut reservations: FxHashMap<Arc<str>, i64> = FxHashMap::default();
        if self.snapshot.options.reserved_capacity {
            for (id, left) in self.stock.catalogs.iter().flat_map(|c| &c.reservations) {
                let least = reservations.entry(Arc::clone(id)).or_insert(*left);
                // Two pools may have asked EC2 at different times; the smaller answer is the safe
                // one.
                *least = (*left).min(*least);
            }
        }
        self.plan.begin(&self.existing, self.resources.len(), limits, reservations);
        self.plan.devices = self.devices.as_ref().map(|d| Box::new(Devices::new(d)));
    }

    fn limits_left(&self) -> List<TemplateId, Option<ResourceList>> {
        let left = |t: &Template| {
            let mut left = t.limits.clone()?;
            if let Some(used) = self.existing.used.get(&*t.name) {
                left.sub(used);
            }
            Some(left)
        };
        self.stock.templates.iter().map(left).collect()
    }

    fn add_pool(&mut self, input: &NodePoolInput, daemons: &[Arc<PodInfo>]) {
        let best_effort = self.snapshot.options.best_effort_min_values;
        let known = (&self.resources, &self.attachable);
        match self.stock.add_pool(input, daemons, known, best_effort, &mut self.interner) {
            Ok(()) => {
                if let Some(template) = self.stock.templates.last() {
                    self.template_taints.push(self.tolerance.taints(&template.taints));
                }
            }
            Err(skipped) => self.skipped.push(skipped),
        }
    }

    /// Sorts pods into classes and makes their topology groups.
    fn add_pods(
        &mut self,
        tolerate_prefer: bool,
        pods: &[&Arc<PodInfo>],
        daemons: &[Arc<PodInfo>],
    ) -> Counting {
        let own = self.snapshot.clone();
        let snapshot: &Snapshot = &own;
        let mut builder = Builder::new(snapshot, tolerate_prefer);
        builder.note_namespaces();
        let mut work = Work {
            interner: &mut self.interner,
            tolerance: &mut self.tolerance,
            topology: &mut self.topology,
            resources: &self.resources,
            attachable: &self.attachable,
        };
        let sorts: Vec<Sort> = pods.iter().map(|pod| builder.sort(pod)).collect();
        let mut seen = FxHashSet::default();
        for sort in &sorts {
            // Pods of a kind make the same groups; the first of them is enough.
            if seen.insert(builder.group_key(*sort)) {
                builder.make_groups(*sort, &mut work);
            }
        }
        let bound = Bound::new(snapshot, &self.resources);
        let mut inverse: FxHashMap<usize, Vec<GroupId>> = FxHashMap::default();
        for (node, pod) in &bound.apart {
            inverse.entry(*node).or_default().extend(builder.inverse_groups(pod, &mut work));
        }
        let of_daemons: Vec<_> =
            daemons.iter().map(|d| builder.inverse_groups(d, &mut work)).collect();
        // After all groups are made, and before anything is counted in them.
        builder.index_groups(work.topology);
        for (at, (daemon, inverse)) in daemons.iter().zip(of_daemons).enumerate() {
            let spread = |id: &GroupId| work.topology.get(*id).kind == Kind::Spread;
            let counted = builder.counted_by(daemon, work.topology);
            let counted: Groups = counted.into_iter().filter(|id| !spread(id)).collect();
            counted
                .into_iter()
                .chain(inverse)
                .for_each(|id| work.topology.add_daemon(id, DaemonId::new(at)));
        }
        let mut ending: FxHashMap<usize, Groups> = FxHashMap::default();
        for (node, pod) in &bound.ending {
            let counted = builder.counted_by(pod, work.topology);
            let apart = |id: &GroupId| work.topology.get(*id).kind == Kind::AntiAffinity;
            ending.entry(*node).or_default().extend(counted.into_iter().filter(apart));
        }
        let selected =
            bound.labelled.iter().map(|pod| builder.counted_by(pod, work.topology)).collect();
        let mut index = ClassIndex::default();
        for (at, (pod, sort)) in pods.iter().zip(&sorts).enumerate() {
            let volumes = if snapshot.pod_volumes.is_empty() {
                None
            } else {
                snapshot.pod_volumes.get(&pod.key).map(Arc::as_ref)
            };
            // Claims for devices are a pod's own, mostly, and so is what they leave for it.
            let own = self
                .devices
                .as_ref()
                .filter(|d| pod.dynamic_resources && d.concerns(&pod.key))
                .map(|_| PodId::new(at));
            let kind =
                self.classes.kind_of(pod, *sort, volumes, own, &mut index, &mut builder, &mut work);
            self.waiting.push(Waiting { pod: Arc::clone(pod), kind });
        }
        Counting { bound, selected, inverse, ending }
    }

    /// Keys on which a node's labels make a difference.
    fn keys_that_matter(&mut self, daemons: &[Arc<PodInfo>]) -> Vec<KeyId> {
        let mut keys: FxHashSet<KeyId> = FxHashSet::default();
        for class in &self.classes.classes {
            let volumes = class.volumes.iter().map(|(set, _)| *set);
            for set in [class.set, class.strict].into_iter().chain(volumes) {
                keys.extend(self.interner.set(set).iter().map(|(k, _)| *k));
            }
        }
        for daemon in daemons {
            let (set, _) = self.interner.intern_once(&daemon.constraints.strict_requirements());
            keys.extend(self.interner.set(set).iter().map(|(k, _)| *k));
        }
        for filter in self.topology.filters.iter() {
            for (set, _) in &filter.terms {
                keys.extend(self.interner.set(*set).iter().map(|(k, _)| *k));
            }
        }
        keys.extend(self.topology.groups.iter().map(|g| g.key));
        // Every node differs in it: with it no two nodes would be alike.
        keys.remove(&self.interner.hostname);
        let mut keys: Vec<KeyId> = keys.into_iter().collect();
        keys.sort_unstable();
        keys
    }

    fn add_nodes(
        &mut self,
        daemons: &[Arc<PodInfo>],
        pools: &[&NodePoolInput],
        counting: &Counting,
    ) -> List<GroupId, FixedBitSet> {
        self.plan.tally.grow(self.topology.groups.len());
        self.know_domains(pools);
        let of_pools = self.plan.tally.known();
        let keys = self.keys_that_matter(daemons);
        let mut unlimited = ResourceList::new();
        self.attachable.add_unlimited(&mut unlimited);
        let mut setting = Setting {
            interner: &mut self.interner,
            tolerance: &mut self.tolerance,
            resources: &self.resources,
            keys: &keys,
            daemons,
            neighbours: self.topology.counts_daemons(),
            unlimited: &unlimited,
        };
        let source = self.snapshot.clone();
        let nodes = &source.nodes;
        let limited = self.stock.templates.iter().any(|t| t.limits.is_some());
        let limited = limited.then_some(&self.snapshot.node_pools[..]);
        self.existing = Existing::new(nodes, &counting.bound, limited, &mut setting);
        let mut hosts = self.existing.nodes.len();
        if !self.topology.groups.is_empty() {
            let names: Vec<Arc<str>> =
                keys.iter().map(|k| Arc::clone(self.interner.key_name(*k))).collect();
            let mut known = FxHashSet::default();
            for (index, state) in nodes.iter().enumerate() {
                let position = self.existing.by_index.get(&index).copied();
                let here = position.map_or_else(
                    || {
                        hosts += 1;
                        HostId::new(hosts - 1)
                    },
                    HostId::new,
                );
                let setting = (&keys[..], &names[..], daemons);
                let (set, taints, name) = self.place_of(index, here, setting);
                let joined = position.is_some() && state.node.is_some();
                if joined && known.insert((set, taints)) {
                    self.know_domains_of(set, taints, name);
                }
                self.count_node(index, here, (set, taints, name), counting, true);
                self.count_daemons(index, here, set, true);
            }
        }
        self.first_claim_host = HostId::new(hosts.next_multiple_of(64));
        of_pools
    }

    /// Makes the domains known that nodes can be launched in: those of the combinations of pool,
    /// type and offering that a group's pods may use, as far as the group asks for that.
    ///
    /// [Q] Upstream takes every value that a pool names or a type has for a domain of everybody,
    /// so that pods wait for ever for a domain in which they can have no node.
    fn know_domains(&mut self, pools: &[&NodePoolInput]) {
        let mut known: FxHashMap<(KeyId, FilterId), FixedBitSet> = FxHashMap::default();
        for id in self.topology.groups.ids() {
            let group = self.topology.get(id);
            let (key, filter) = (group.key, group.filter);
            if key == self.interner.hostname {
                continue;
            }
            let domains = match known.get(&(key, filter)) {
                Some(domains) => domains.clone(),
                None => {
                    let mut found = FixedBitSet::new();
                    pools.iter().for_each(|p| self.domains_of(p, key, filter, &mut found));
                    known.insert((key, filter), found.clone());
                    found
                }
            };
            domains.ones().for_each(|domain| self.plan.tally.know(id, ValueId::new(domain)));
        }
    }

    /// The domains of a pool's new nodes that count for a filter.
    fn domains_of(
        &mut self,
        input: &NodePoolInput,
        key: KeyId,
        filter: FilterId,
        found: &mut FixedBitSet,
    ) {
        let wanted = self.topology.filters.get(filter).cloned().unwrap_or_default();
        let pool = &input.node_pool;
        let taints =
            self.tolerance.taints(pool.spec.template.spec.taints.as_deref().unwrap_or_default());
        if wanted.tolerations.is_some_and(|t| !self.tolerance.tolerates(t, taints)) {
            return;
        }
        let Some(catalog) =
            self.stock.catalogs.iter_mut().find(|c| Arc::ptr_eq(&c.types, &input.instance_types))
        else {
            return;
        };
        let (set, _) = self.interner.intern_once(&template_requirements(pool));
        let anything = [(EMPTY, ReqId::NONE)];
        let terms = if wanted.terms.is_empty() { &anything[..] } else { &wanted.terms };
        for (term, host) in terms {
            // A new node's name is not known: it can only be asked not to be some other.
            let elsewhere = !host.is_none() && !self.interner.req(*host).complement;
            if !elsewhere && self.interner.compatible(set, *term, true) {
                let set = self.interner.merge(set, *term);
                catalog.domains(key, set, &mut self.interner, &mut |v| {
                    found.grow_and_insert(v.at());
                });
            }
        }
    }

    /// Requirements, taints and host name of a node.
    fn place_of(
        &mut self,
        index: usize,
        host: HostId,
        (keys, names, daemons): (&[KeyId], &[Arc<str>], &[Arc<PodInfo>]),
    ) -> (SetId, TaintsId, ValueId) {
        if let Some(node) = self.existing.nodes.get(host.at()) {
            let alike = &self.existing.alike[node.alike];
            return (alike.set, alike.taints, node.host);
        }
        let state = &self.snapshot.nodes[index];
        let mut setting = Setting {
            interner: &mut self.interner,
            tolerance: &mut self.tolerance,
            resources: &self.resources,
            keys,
            daemons,
            neighbours: false,
            unlimited: &ResourceList::new(),
        };
        let (set, taints) = signature(state, names, &mut setting);
        let hostname = state.labels().get(labels::HOSTNAME).map_or(state.name(), String::as_str);
        let key = self.interner.hostname;
        (set, taints, self.interner.value(key, hostname))
    }

    /// Makes the domains of a node that is there known to the groups whose filter it passes.
    fn know_domains_of(&mut self, set: SetId, taints: TaintsId, name: ValueId) {
        for id in self.topology.groups.ids() {
            let group = self.topology.get(id);
            let (key, filter) = (group.key, group.filter);
            let Some(req) = self.interner.get(set, key) else { continue };
            let Some(domain) = self.interner.req(req).values.first().copied() else { continue };
            let pass = self.topology.passes(
                filter,
                set,
                taints,
                Some(name),
                &mut self.interner,
                &mut self.tolerance,
            );
            if pass {
                self.plan.tally.know(id, domain);
            }
        }
    }

    /// Counts the pods of DaemonSets that are still to come to a node, or takes them out.
    pub(super) fn count_daemons(&mut self, index: usize, host: HostId, set: SetId, come: bool) {
        let Some(missing) = self.existing.missing.get(&index) else { return };
        for id in self.topology.groups.ids() {
            let coming = self.topology.daemons(id).iter().filter(|d| missing.contains(d)).count();
            for _ in 0..coming {
                self.plan.tally.change(&self.topology, id, set, host, &self.interner, come);
            }
        }
    }

    /// Counts the pods of a node for the groups that select them, or takes them out.
    pub(super) fn count_node(
        &mut self,
        index: usize,
        host: HostId,
        (set, node_taints, host_name): (SetId, TaintsId, ValueId),
        counting: &Counting,
        come: bool,
    ) {
        for like in counting.bound.counted(index) {
            for id in &counting.selected[*like as usize] {
                let filter = self.topology.get(*id).filter;
                let pass = self.topology.passes(
                    filter,
                    set,
                    node_taints,
                    Some(host_name),
                    &mut self.interner,
                    &mut self.tolerance,
                );
                if pass {
                    self.plan.tally.change(&self.topology, *id, set, host, &self.interner, come);
                }
            }
        }
        let ending = counting.ending.get(&index).into_iter().flatten();
        for id in counting.inverse.get(&index).into_iter().flatten().chain(ending) {
            self.plan.tally.change(&self.topology, *id, set, host, &self.interner, come);
        }
    }
}

/// What counting bound pods needs.
pub(super) struct Counting {
    bound: Bound,
    /// Groups that count the pods that are like each labelled one.
    selected: Vec<Groups>,
    /// Inverse groups that bound pods own, by node.
    inverse: FxHashMap<usize, Vec<GroupId>>,
    /// Groups of anti-affinity that count pods which are being deleted, by node.
    ending: FxHashMap<usize, Groups>,
}
