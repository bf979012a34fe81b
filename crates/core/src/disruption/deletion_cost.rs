//! Which of a ReplicaSet's pods should go first when it is scaled down: those on nodes that
//! consolidation would remove. Kubernetes' own annotation says so to the ReplicaSet's controller.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::budget::Budgets;
use super::candidate::{self, Pools};
use super::pdb::Limits;
use super::{Candidate, Input, Method, Reason};
use crate::api::{conditions, taints};
use crate::scheduling::node::StateNode;
use crate::scheduling::pod::{PodInfo, PodKey};

/// The cost of pods on nodes that are going away.
const LEAVING: i32 = i32::MIN;

/// The cost that a pod is to have; none takes the annotation away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The pod.
    pub pod: PodKey,
    /// Its UID.
    pub uid: Arc<str>,
    /// The annotation's value.
    pub cost: Option<i32>,
}

/// Costs to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// One for each pod whose cost is another.
    pub pods: Vec<Write>,
    /// How many nodes of each pool have such pods.
    pub nodes: BTreeMap<String, usize>,
}

impl Writes {
    /// Adds what is to be written for a node's pods; true when that is something.
    fn add(&mut self, node: &StateNode, cost: Option<i32>) -> bool {
        let before = self.pods.len();
        let of_sets = node.pods.iter().filter(|p| is_controlled(p, &[REPLICA_SET]));
        for pod in of_sets.filter(|p| p.replica_cost != cost) {
            self.pods.push(Write { pod: pod.key.clone(), uid: Arc::clone(&pod.uid), cost });
        }
        let some = self.pods.len() > before;
        if some {
            *self.nodes.entry(node.node_pool().unwrap_or_default().to_owned()).or_default() += 1;
        }
        some
    }
}

type Kind = (&'static str, &'static str);

const REPLICA_SET: Kind = ("apps/v1", "ReplicaSet");
/// Controllers that make a pod again wherever there is room.
const RECREATING: &[Kind] = &[REPLICA_SET, ("batch/v1", "Job"), ("apps/v1", "DaemonSet")];

/// What becomes of a node's pods' costs.
enum Rank {
    /// The node is going away.
    Leaving,
    Drifted,
    Ordinary,
    /// Nothing is known in favour of its going.
    Cleared,
}

/// The costs that pods are to have, as far as they are not so already: nodes going away first; then
/// drifted nodes and ordinary ones by what is saved for their disruption, as many as budgets let go;
/// on all other nodes none. Of the nodes that are not going away at most `most` get theirs at once.
#[must_use]
pub fn writes(input: &Input<'_>, most: usize) -> Writes {
    let (pools, limits) = (Pools::new(input.pools), Limits::new(input.pdbs));
    let mut writes = Writes::default();
    let (mut drifted, mut ordinary, mut cleared) = (Vec::new(), Vec::new(), Vec::new());
    for node in input.snapshot.nodes.iter().filter(|n| n.managed()) {
        let ratio = ratio(&pools, node);
        match rank(input, &pools, &limits, node) {
            Rank::Leaving => drop(writes.add(node, Some(LEAVING))),
            Rank::Drifted => drifted.push((ratio, node)),
            Rank::Ordinary => ordinary.push((ratio, node)),
            Rank::Cleared => cleared.push((ratio, node)),
        }
    }
    let mut ranked = within(input, drifted, Reason::Drifted, &mut cleared);
    ranked.extend(within(input, ordinary, Reason::Underutilized, &mut cleared));
    let mut left = most;
    let count = i32::try_from(ranked.len()).unwrap_or(i32::MAX);
    for (node, at) in ranked.into_iter().zip(0..) {
        if left > 0 && writes.add(node, Some(at - count)) {
            left -= 1;
        }
    }
    for (_, node) in cleared {
        if left > 0 && writes.add(node, None) {
            left -= 1;
        }
    }
    writes
}

/// What is saved for each unit of disruption.
fn ratio(pools: &Pools<'_>, node: &StateNode) -> f64 {
    let price = pools.price_of(node).unwrap_or(0.0);
    price / candidate::disruption_cost(&node.pods)
}

fn rank(input: &Input<'_>, pools: &Pools<'_>, limits: &Limits, node: &StateNode) -> Rank {
    let tainted = node.node.as_ref().and_then(|n| n.spec.as_ref()?.taints.as_deref());
    if node.deleting() || tainted.unwrap_or_default().iter().any(taints::marks_disruption) {
        return Rank::Leaving;
    }
    let Ok(candidate) = candidate::build(input, pools, limits, Method::SingleNode, node) else {
        return Rank::Cleared;
    };
    if candidate.instance_type.is_none() || node.pods.iter().any(|p| pins(p)) {
        return Rank::Cleared;
    }
    if is_drifted(&candidate) {
        return Rank::Drifted;
    }
    match candidate.pool.spec.disruption.consolidate_after.duration() {
        Some(_) => Rank::Ordinary,
        None => Rank::Cleared,
    }
}

fn is_drifted(candidate: &Candidate) -> bool {
    !candidate.is_static() && candidate.condition(conditions::DRIFTED)
}

/// Nothing would bring the pod back elsewhere.
fn pins(pod: &PodInfo) -> bool {
    &*pod.key.namespace != "kube-system" && !is_controlled(pod, RECREATING)
}

fn is_controlled(pod: &PodInfo, kinds: &[Kind]) -> bool {
    pod.owner.as_deref().is_some_and(|o| {
        o.controller && kinds.iter().any(|(v, k)| *o.api_version == **v && *o.kind == **k)
    })
}

/// The nodes that budgets let go for a reason, what saves most first; the others are cleared.
fn within<'a>(
    input: &Input<'_>,
    mut nodes: Vec<(f64, &'a StateNode)>,
    reason: Reason,
    cleared: &mut Vec<(f64, &'a StateNode)>,
) -> Vec<&'a StateNode> {
    nodes.sort_by(|(a, x), (b, y)| b.total_cmp(a).then_with(|| x.name().cmp(y.name())));
    let mut budgets = Budgets::new(input.pools, &input.snapshot.nodes, reason, input.now);
    let mut allowed = Vec::new();
    for (ratio, node) in nodes {
        if budgets.take(node.node_pool().unwrap_or_default()) {
            allowed.push(node);
        } else {
            cleared.push((ratio, node));
        }
    }
    allowed
}
