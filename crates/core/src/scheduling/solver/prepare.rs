//! From a snapshot to numbers: everything that does not change while pods are placed.

use std::sync::Arc;

use fixedbitset::FixedBitSet;
use rustc_hash::{FxHashMap, FxHashSet};

use super::amounts::Resources;
use super::bound::Bound;
use super::catalog::Catalog;
use super::choices::Choices;
use super::classes::{Builder, ClassIndex, Classes, Groups, KindId, Sort, Work};
use super::existing::{Existing, Setting, signature};
use super::intern::{Interner, KeyId, SetId, ValueId};
use super::stock::{Stock, Template, pool_requirements};
use super::tolerance::{TaintsId, Tolerance};
use super::topology::{Counts, GroupId, Topology};
use crate::api::{labels, taints};
use crate::scheduling::dra::Inventory;
use crate::scheduling::pod::PodInfo;
use crate::scheduling::resources::ResourceList;
use crate::scheduling::results::SkippedPool;
use crate::scheduling::snapshot::{NodePoolInput, Snapshot};

/// A pod to place.
pub(super) struct Waiting {
    pub(super) pod: Arc<PodInfo>,
    pub(super) kind: KindId,
}

/// A snapshot in numbers.
pub(super) struct Prepared<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) interner: Interner,
    pub(super) tolerance: Tolerance,
    pub(super) resources: Resources,
    pub(super) stock: Stock,
    pub(super) template_taints: Vec<TaintsId>,
    pub(super) skipped: Vec<SkippedPool>,
    pub(super) topology: Topology,
    pub(super) classes: Classes,
    pub(super) waiting: Vec<Waiting>,
    pub(super) existing: Existing,
    /// What the pool of each template may still use: its limits less the capacity of its nodes.
    pub(super) limits: Vec<Option<ResourceList>>,
    /// Hosts that stand for nodes which pods are counted on; planned nodes come after these.
    pub(super) first_claim_host: u32,
    pub(super) choices: Choices,
    /// Pods may come to tolerate PreferNoSchedule taints.
    pub(super) tolerate_prefer: bool,
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
            .then_with(|| b.node_pool.metadata.name.cmp(&a.node_pool.metadata.name))
    });
    pools
}

impl<'a> Prepared<'a> {
    /// Prepares a snapshot for the placing of its pods.
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        let pools = usable_pools(snapshot);
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
        for pod in snapshot.pods.iter().chain(&daemons) {
            resources.note(&pod.requests);
        }
        let mut interner = Interner::new(&snapshot.well_known);
        let mut prepared = Self {
            stock: Stock::new(resources.len()),
            snapshot,
            tolerance: Tolerance::default(),
            template_taints: Vec::new(),
            skipped: Vec::new(),
            topology: Topology::default(),
            classes: Classes::default(),
            waiting: Vec::with_capacity(snapshot.pods.len()),
            existing: Existing::default(),
            limits: Vec::new(),
            first_claim_host: 0,
            choices: Choices::default(),
            tolerate_prefer,
            devices: super::devices::inventory(snapshot),
            interner: Interner::new(&snapshot.well_known),
            resources,
        };
        std::mem::swap(&mut interner, &mut prepared.interner);
        for input in &pools {
            prepared.add_pool(input, &daemons);
        }
        let counting = prepared.add_pods(tolerate_prefer);
        prepared.add_nodes(&daemons, &pools, &counting);
        prepared.limits = prepared.limits_left();
        prepared
    }

    fn limits_left(&self) -> Vec<Option<ResourceList>> {
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
        match self.stock.add_pool(input, daemons, &self.resources, best_effort, &mut self.interner)
        {
            Ok(()) => {
                if let Some(template) = self.stock.templates.last() {
                    self.template_taints.push(self.tolerance.taints(&template.taints));
                }
            }
            Err(skipped) => self.skipped.push(skipped),
        }
    }

    /// Sorts pods into classes and makes their topology groups.
    fn add_pods(&mut self, tolerate_prefer: bool) -> Counting<'a> {
        let snapshot = self.snapshot;
        let mut builder = Builder::new(snapshot, tolerate_prefer);
        builder.note_namespaces();
        let mut work = Work {
            interner: &mut self.interner,
            tolerance: &mut self.tolerance,
            topology: &mut self.topology,
            resources: &self.resources,
        };
        let sorts: Vec<Sort> = snapshot.pods.iter().map(|pod| builder.sort(pod)).collect();
        let mut seen = FxHashSet::default();
        for sort in &sorts {
            if seen.insert(builder.group_key(*sort)) {
                builder.make_groups(*sort, &mut work);
            }
        }
        let bound = Bound::new(snapshot, &self.resources);
        let mut inverse: FxHashMap<usize, Vec<GroupId>> = FxHashMap::default();
        for (node, pod) in &bound.apart {
            inverse.entry(*node).or_default().extend(builder.inverse_groups(pod, &mut work));
        }
        builder.index_groups(work.topology);
        let selected =
            bound.labelled.iter().map(|pod| builder.counted_by(pod, work.topology)).collect();
        let mut index = ClassIndex::default();
        for (at, (pod, sort)) in snapshot.pods.iter().zip(&sorts).enumerate() {
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
                .map(|_| at as u32);
            let kind =
                self.classes.kind_of(pod, *sort, volumes, own, &mut index, &mut builder, &mut work);
            self.waiting.push(Waiting { pod: Arc::clone(pod), kind });
        }
        Counting { bound, selected, inverse }
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
        for filter in &self.topology.filters {
            for (set, _) in &filter.terms {
                keys.extend(self.interner.set(*set).iter().map(|(k, _)| *k));
            }
        }
        keys.extend(self.topology.groups.iter().map(|g| g.key));
        keys.remove(&self.interner.hostname);
        let mut keys: Vec<KeyId> = keys.into_iter().collect();
        keys.sort_unstable();
        keys
    }

    fn add_nodes(
        &mut self,
        daemons: &[Arc<PodInfo>],
        pools: &[&NodePoolInput],
        counting: &Counting<'_>,
    ) {
        self.topology.counts.resize(self.topology.groups.len(), Counts::default());
        self.know_domains(pools);
        let keys = self.keys_that_matter(daemons);
        let mut setting = Setting {
            interner: &mut self.interner,
            tolerance: &mut self.tolerance,
            resources: &self.resources,
            keys: &keys,
            daemons,
        };
        let nodes = &self.snapshot.nodes;
        let limited = self.stock.templates.iter().any(|t| t.limits.is_some());
        self.existing = Existing::new(nodes, &counting.bound, limited, &mut setting);
        let mut host = self.existing.nodes.len() as u32;
        if !self.topology.groups.is_empty() {
            let names: Vec<Arc<str>> =
                keys.iter().map(|k| Arc::clone(self.interner.key_name(*k))).collect();
            let mut known = FxHashSet::default();
            for (index, state) in nodes.iter().enumerate() {
                let position = self.existing.by_index.get(&index).copied();
                let here = position.map_or_else(
                    || {
                        host += 1;
                        host - 1
                    },
                    |p| p as u32,
                );
                let setting = (&keys[..], &names[..], daemons);
                let (set, taints, name) = self.place_of(index, here, setting);
                let joined = position.is_some() && state.node.is_some();
                if joined && known.insert((set, taints)) {
                    self.know_domains_of(set, taints, name);
                }
                self.count_node(index, here, (set, taints, name), counting);
            }
        }
        self.first_claim_host = host.next_multiple_of(64);
    }

    /// Makes the domains known that the pools can launch into.
    ///
    /// [Q] Upstream also takes the values that a pool excludes for domains; here they are none.
    fn know_domains(&mut self, pools: &[&NodePoolInput]) {
        let mut by_key: FxHashMap<KeyId, Vec<(TaintsId, FixedBitSet)>> = FxHashMap::default();
        for id in 0..self.topology.groups.len() {
            let group = self.topology.get(id as u32);
            let (key, filter) = (group.key, group.filter);
            if key == self.interner.hostname {
                continue;
            }
            let of_pools = by_key
                .entry(key)
                .or_insert_with(|| pools.iter().map(|p| self.domains_of(p, key)).collect());
            let tolerations =
                self.topology.filters.get_index(filter as usize).and_then(|f| f.tolerations);
            for (taints, domains) in of_pools {
                if tolerations.is_none_or(|t| self.tolerance.tolerates(t, *taints)) {
                    for domain in domains.ones() {
                        self.topology.know(id as u32, domain as ValueId);
                    }
                }
            }
        }
    }

    fn domains_of(&mut self, input: &NodePoolInput, key: KeyId) -> (TaintsId, FixedBitSet) {
        let pool = &input.node_pool;
        let taints =
            self.tolerance.taints(pool.spec.template.spec.taints.as_deref().unwrap_or_default());
        let (set, _) = self.interner.intern_once(&pool_requirements(pool));
        let own = self.interner.get(set, key);
        let mut found = FixedBitSet::new();
        if let Some(req) = own.map(|r| self.interner.req(r)).filter(|r| !r.complement) {
            req.values.iter().for_each(|v| found.grow_and_insert(*v as usize));
        }
        let catalog: Option<&mut Catalog> =
            self.stock.catalogs.iter_mut().find(|c| Arc::ptr_eq(&c.types, &input.instance_types));
        if let Some(catalog) = catalog {
            catalog
                .values(key, own, &mut self.interner, &mut |v| found.grow_and_insert(v as usize));
        }
        (taints, found)
    }

    /// Requirements, taints and host name of a node.
    fn place_of(
        &mut self,
        index: usize,
        host: u32,
        (keys, names, daemons): (&[KeyId], &[Arc<str>], &[Arc<PodInfo>]),
    ) -> (SetId, TaintsId, ValueId) {
        if let Some(node) = self.existing.nodes.get(host as usize) {
            let alike = &self.existing.alike[node.alike as usize];
            return (alike.set, alike.taints, node.host);
        }
        let state = &self.snapshot.nodes[index];
        let mut setting = Setting {
            interner: &mut self.interner,
            tolerance: &mut self.tolerance,
            resources: &self.resources,
            keys,
            daemons,
        };
        let (set, taints) = signature(state, names, &mut setting);
        let hostname = state.labels().get(labels::HOSTNAME).map_or(state.name(), String::as_str);
        let key = self.interner.hostname;
        (set, taints, self.interner.value(key, hostname))
    }

    /// Makes the domains of a node that is there known to the groups whose filter it passes.
    fn know_domains_of(&mut self, set: SetId, taints: TaintsId, name: ValueId) {
        for id in 0..self.topology.groups.len() as u32 {
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
                self.topology.know(id, domain);
            }
        }
    }

    /// Counts the pods of a node for the groups that select them.
    fn count_node(
        &mut self,
        index: usize,
        host: u32,
        (set, node_taints, host_name): (SetId, TaintsId, ValueId),
        counting: &Counting<'_>,
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
                    self.topology.record(*id, set, host, &self.interner);
                }
            }
        }
        for id in counting.inverse.get(&index).into_iter().flatten() {
            self.topology.record(*id, set, host, &self.interner);
        }
    }
}

/// What counting bound pods needs.
struct Counting<'a> {
    bound: Bound<'a>,
    /// Groups that count the pods that are like each labelled one.
    selected: Vec<Groups>,
    /// Inverse groups that bound pods own, by node.
    inverse: FxHashMap<usize, Vec<GroupId>>,
}
