//! One preparation for many questions: what would become of a snapshot without some of its nodes.
//!
//! Disruption asks that of every candidate. Preparing a snapshot reads every node and every pod, so
//! it is done once; for a question nodes are taken out, their pods are placed, and all is put back.
//! What a question costs depends on the pods to place, not on the cluster, but for a few words of
//! each set of nodes.
//!
//! The outcome is that of solving a snapshot with the nodes left out and their pods waiting: what
//! the nodes say about how many volumes their type attaches is not forgotten with them.

use std::sync::Arc;

use fixedbitset::FixedBitSet;
use rustc_hash::FxHashMap;

use super::amounts::{Amounts, fits};
use super::choices;
use super::existing::{Alike, charged};
use super::finish::Written;
use super::prepare::{Counting, Prepared, Source, Waiting};
use super::{outcome, solve};
use crate::scheduling::pod::PodInfo;
use crate::scheduling::resources::ResourceList;
use crate::scheduling::results::Results;
use crate::scheduling::snapshot::Snapshot;
use crate::scheduling::solver::ids::{
    ClassId, GroupId, HostId, Id, KindId, List, NeedId, PodId, SetId, ShapeId, SortId, ValueId,
};

/// Answers that hold for every round over a snapshot.
#[derive(Default)]
pub(super) struct Memo {
    /// What a shape's requirements become with a class, before topology; by class and shape.
    pub(super) merged: List<ClassId, List<ShapeId, Option<Option<SetId>>>>,
    /// Nodes whose taints and labels suit a class.
    pub(super) class_nodes: List<ClassId, Option<FixedBitSet>>,
    /// Nodes that have room for some amounts before anything is placed.
    roomy: FxHashMap<Amounts, FixedBitSet>,
    pub(super) written: Written,
}

/// What is needed to take nodes out and to put them back.
pub(super) struct Shared {
    counting: Counting,
    /// The kind of each pod that may have to move, by its address.
    kinds: FxHashMap<usize, KindId>,
    /// Pods that wait whatever is taken out.
    waiting: List<PodId, Waiting>,
    /// Nodes that take no pod that runs already, and whether that holds for the question at hand.
    pub(super) closed: FixedBitSet,
    pub(super) closing: bool,
}

impl<'a> Prepared<'a> {
    /// Nodes that may have room for a need before anything is placed: those with room for amounts
    /// that are hardly less, of which there are few however many needs there are.
    pub(super) fn nodes_with_room(&mut self, need: NeedId) -> &FixedBitSet {
        let least: Amounts = self.classes.needs[need].iter().map(|n| round_down(*n)).collect();
        let nodes = &self.existing.nodes;
        self.memo.roomy.entry(least).or_insert_with_key(|least| {
            let mut found = FixedBitSet::with_capacity(nodes.len());
            found.extend((0..nodes.len()).filter(|n| fits(least, &nodes[*n].room)));
            found
        })
    }

    /// Makes ready for [`World::without`]; nothing where the outcome would not be the same.
    fn share(mut self, counting: Counting, known: &List<GroupId, FixedBitSet>) -> Option<Self> {
        // Devices are searched with all pods that have claims on them at hand, and a rule about host
        // names may count one of two nodes that are otherwise alike.
        let by_name = |f: &super::topology::Filter| f.terms.iter().any(|(_, host)| !host.is_none());
        if self.devices.is_some() || self.topology.filters.iter().any(by_name) {
            return None;
        }
        let nodes = self.existing.nodes.len();
        let mut joined = List::of(0, self.existing.alike.len());
        let mut closed = FixedBitSet::with_capacity(nodes);
        for (at, node) in self.existing.nodes.iter().enumerate() {
            let state = &self.snapshot.nodes[node.index];
            joined[node.alike] += u32::from(state.node.is_some());
            closed.set(at, state.closed);
        }
        let mut by_nodes = FxHashMap::default();
        for at in self.existing.alike.ids().filter(|at| joined[*at] > 0) {
            for (group, domain) in self.domains_of_sort(at) {
                if !known[group].contains(domain.at()) {
                    *by_nodes.entry((group, domain)).or_insert(0) += 1;
                }
            }
        }
        let split = self.snapshot.pods.len();
        let movable = self.waiting.split_off(split);
        let kinds = movable.iter().map(|w| (Arc::as_ptr(&w.pod).addr(), w.kind)).collect();
        let waiting = std::mem::take(&mut self.waiting);
        self.plan.know_nodes(joined, by_nodes);
        self.shared = Some(Shared { counting, kinds, waiting, closed, closing: false });
        Some(self)
    }

    /// The domains that nodes of a sort make known, each with the group for which it counts.
    fn domains_of_sort(&mut self, alike: SortId) -> Vec<(GroupId, ValueId)> {
        let Alike { set, taints, .. } = self.existing.alike[alike];
        let mut found = Vec::new();
        for id in self.topology.groups.ids() {
            let group = self.topology.get(id);
            let (key, filter) = (group.key, group.filter);
            if key == self.interner.hostname {
                continue;
            }
            let Some(req) = self.interner.get(set, key) else { continue };
            let Some(domain) = self.interner.req(req).values.first().copied() else { continue };
            let (interner, tolerance) = (&mut self.interner, &mut self.tolerance);
            if self.topology.passes(filter, set, taints, None, interner, tolerance) {
                found.push((id, domain));
            }
        }
        found
    }

    /// Takes a node out, with its pods and its part of the limits.
    fn take_out(&mut self, node: usize) {
        if !self.plan.take_out(node) {
            return;
        }
        let Some(shared) = self.shared.take() else { return };
        let of = &self.existing.nodes[node];
        let (index, sort, name) = (of.index, of.alike, of.host);
        let Alike { set, taints, .. } = self.existing.alike[sort];
        let host = HostId::new(node);
        self.count_node(index, host, (set, taints, name), &shared.counting, false);
        self.count_daemons(index, host, set, false);
        self.shared = Some(shared);
        let source = self.snapshot.clone();
        let state = &source.nodes[index];
        if state.node.is_some() && self.plan.leave(sort) {
            for (group, domain) in self.domains_of_sort(sort) {
                self.plan.unknow(group, domain);
            }
        }
        let Some(pool) = state.node_pool() else { return };
        for template in self.stock.templates.ids() {
            if &*self.stock.templates[template].name == pool
                && let Some(left) = self.plan.limit_mut(template)
            {
                let freed = charged(state, Some(&self.snapshot.node_pools));
                left.add(&limited_part(left, &freed));
            }
        }
    }
}

/// An amount without all but its three leading bits.
fn round_down(amount: i64) -> i64 {
    let spare = amount.checked_ilog2().unwrap_or(0).saturating_sub(2);
    amount >> spare << spare
}

/// What of a node's capacity its pool's limits name.
fn limited_part(limits: &ResourceList, capacity: &ResourceList) -> ResourceList {
    let named = |(name, amount): (&_, i64)| {
        limits.find(name).is_some().then(|| (Clone::clone(name), amount))
    };
    capacity.iter().filter_map(named).collect()
}

/// A snapshot that is ready for questions.
pub struct World {
    snapshot: Arc<Snapshot>,
    /// Nothing where each question has to be answered from the beginning.
    prepared: Option<Box<Prepared<'static>>>,
    /// Places of nodes by name.
    by_name: FxHashMap<String, usize>,
}

impl World {
    /// Prepares a snapshot. Its waiting pods are placed with every question; pods on its nodes may
    /// be moved where `may_move` says so.
    #[must_use]
    pub fn new(snapshot: Arc<Snapshot>, may_move: impl Fn(&PodInfo) -> bool) -> Self {
        let on_nodes = snapshot.nodes.iter().flat_map(|n| &n.pods);
        let movable: Vec<Arc<PodInfo>> = on_nodes.filter(|p| may_move(p)).cloned().collect();
        let source = Source::Shared(Arc::clone(&snapshot));
        let (prepared, counting, known) = Prepared::with_movable(source, &movable);
        let prepared = prepared.share(counting, &known).map(Box::new);
        let named = snapshot.nodes.iter().enumerate();
        let by_name = named.map(|(at, node)| (node.name().to_owned(), at)).collect();
        Self { snapshot, prepared, by_name }
    }

    /// What would become of the snapshot without these nodes, with these pods of theirs waiting as
    /// well. With `closing`, nodes that are closed take no pod.
    pub fn without(&mut self, nodes: &[&str], pods: &[Arc<PodInfo>], closing: bool) -> Results {
        let places: Vec<usize> =
            nodes.iter().filter_map(|name| self.by_name.get(*name).copied()).collect();
        if !self.loses_a_rule(&places, pods)
            && let Some(prepared) = &mut self.prepared
            && let Some(results) = prepared.without(&places, pods, closing)
        {
            return results;
        }
        solve(&without(&self.snapshot, &places, pods, closing))
    }

    /// True when a pod with required anti-affinity goes with its node and does not come back.
    ///
    /// The prepared groups would keep the rule without its owner: it would count nobody, but still
    /// hold others to the domains that it knows of.
    fn loses_a_rule(&self, nodes: &[usize], pods: &[Arc<PodInfo>]) -> bool {
        let gone = nodes.iter().flat_map(|at| &self.snapshot.nodes[*at].pods);
        gone.filter(|pod| !pod.constraints.anti_affinity.is_empty())
            .any(|pod| !pods.iter().any(|moved| Arc::ptr_eq(moved, pod)))
    }
}

impl Prepared<'_> {
    /// Answers one question; nothing when a pod is not known.
    fn without(
        &mut self,
        nodes: &[usize],
        pods: &[Arc<PodInfo>],
        closing: bool,
    ) -> Option<Results> {
        let shared = self.shared.as_mut()?;
        let kind = |pod: &Arc<PodInfo>| shared.kinds.get(&Arc::as_ptr(pod).addr()).copied();
        let more: Option<Vec<Waiting>> =
            pods.iter().map(|p| Some(Waiting { pod: Arc::clone(p), kind: kind(p)? })).collect();
        let more = more?;
        shared.closing = closing;
        self.waiting = shared.waiting.iter().cloned().chain(more).collect();
        self.choices = choices::plain(self.waiting.len());
        let mark = self.plan.mark();
        let places = nodes.iter().filter_map(|index| self.existing.by_index.get(index).copied());
        for node in places.collect::<Vec<usize>>() {
            self.take_out(node);
        }
        let mut results = outcome(self, &|_| true);
        results.skipped_pools.clone_from(&self.skipped);
        self.undo(mark);
        Some(results)
    }
}

/// The same question as a snapshot of its own.
fn without(snapshot: &Snapshot, nodes: &[usize], pods: &[Arc<PodInfo>], closing: bool) -> Snapshot {
    let mut own = snapshot.clone();
    let all = std::mem::take(&mut own.nodes).into_iter().enumerate();
    for (at, node) in all {
        if nodes.contains(&at) { &mut own.left_out } else { &mut own.nodes }.push(node);
    }
    if !closing {
        own.nodes.iter_mut().filter(|n| n.closed).for_each(|n| n.closed = false);
    }
    own.pods.extend(pods.iter().cloned());
    own
}
