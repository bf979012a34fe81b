//! What scheduling would make of the cluster without some of its nodes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::pdb::Limits;
use super::rejection::Stranded;
use super::{Candidate, Input, on_paper};
use crate::api::v1::NodePool;
use crate::api::{conditions, labels};
use crate::scheduling::node::StateNode;
use crate::scheduling::pod::{PodInfo, PodKey};
use crate::scheduling::results::Results;
use crate::scheduling::snapshot::{NodePoolInput, Options, Snapshot};
use crate::scheduling::solver::World;

/// The outcome of a simulation.
pub struct Simulated {
    pub results: Results,
    /// Pods that would be left without a node, and why.
    pub stranded: Vec<Stranded>,
}

impl Simulated {
    /// Existing nodes on which pods are expected.
    pub fn nominated(&self) -> Vec<String> {
        self.results.existing.iter().map(|(name, _)| name.clone()).collect()
    }
}

/// How a simulation may launch nodes.
#[derive(Clone, Copy)]
pub struct Launching<'a> {
    /// In these pools.
    pub pools: &'a [NodePoolInput],
    /// More nodes where they cost less than fewer would.
    pub several: bool,
    /// Pods that a reservation would take wait for one, and take nothing else.
    pub strict: bool,
}

/// What all questions of a pass have in common, and the worlds that answer them: a world is prepared
/// once for each way to launch nodes, so that a question costs by the candidates' pods.
pub struct Ground {
    /// Pods that have to be placed whoever is asked about.
    pods: Vec<Arc<PodInfo>>,
    waiting: HashSet<PodKey>,
    of_leaving: HashSet<PodKey>,
    /// Nodes that stay unless they are asked about; those in their quiet time are closed.
    nodes: Vec<StateNode>,
    /// Nodes on their way out.
    leaving: Vec<StateNode>,
    unsettled: HashSet<String>,
    /// NodeClaims of nodes that are not initialized, by the node's name.
    uninitialized: HashMap<String, String>,
    worlds: Vec<(Way, World)>,
    /// How many worlds were prepared so far.
    prepared: usize,
}

/// A way to launch nodes: the pools with their lists of types, whether more nodes may cost less, and
/// whether pods wait for reservations.
type Way = (Vec<(String, usize)>, bool, bool);

impl Ground {
    pub fn new(input: &Input<'_>, limits: &Limits) -> Self {
        let waiting: HashSet<PodKey> = input.snapshot.pods.iter().map(|p| p.key.clone()).collect();
        let bound_to_leaving =
            || input.snapshot.nodes.iter().filter(|n| n.deleting()).flat_map(|n| &n.pods);
        let moves = bound_to_leaving()
            .filter(|p| limits.moves(p, input.now))
            .filter(|p| !waiting.contains(&p.key));
        let pods = input.snapshot.pods.iter().chain(moves).cloned().collect();
        let of_leaving =
            bound_to_leaving().filter(|p| p.is_reschedulable()).map(|p| p.key.clone()).collect();
        let (leaving, mut nodes): (Vec<StateNode>, Vec<StateNode>) =
            input.snapshot.nodes.iter().cloned().partition(|n| n.deleting());
        let mut unsettled = HashSet::new();
        for node in &mut nodes {
            if in_quiet_time(input, node) {
                unsettled.insert(node.name().to_owned());
                node.closed = true;
            }
        }
        let uninitialized = nodes
            .iter()
            .filter(|n| n.managed() && !n.initialized())
            .map(|n| (n.name().to_owned(), claim_name(n)))
            .collect();
        let (worlds, prepared) = (Vec::new(), 0);
        Self {
            pods,
            waiting,
            of_leaving,
            nodes,
            leaving,
            unsettled,
            uninitialized,
            worlds,
            prepared,
        }
    }

    /// How many worlds were prepared so far.
    pub fn prepared(&self) -> usize {
        self.prepared
    }

    /// Removes candidates on paper: later questions are asked of what is left then. False where that
    /// cannot be, because other pods wait as well, or pods have volumes.
    pub fn carry_out(
        &mut self,
        input: &Input<'_>,
        candidates: &[&Candidate],
        results: &Results,
    ) -> bool {
        let volumes = &input.snapshot.pod_volumes;
        let mut pods = candidates.iter().flat_map(|c| c.pods.iter());
        let known = self.waiting.is_empty()
            && self.of_leaving.is_empty()
            && (volumes.is_empty() || pods.all(|p| !volumes.contains_key(&p.key)))
            && on_paper::without(&mut self.nodes, candidates, results);
        self.worlds.clear();
        known
    }

    /// Keeps pods of later questions off nodes that are to go, too, or lets them there again.
    pub fn close(&mut self, nodes: &[String], closed: bool) {
        let mut changed = false;
        for node in &mut self.nodes {
            let named = nodes.iter().any(|name| name == node.name());
            // Those in their quiet time are closed for a reason of their own.
            if named && node.closed != closed && !self.unsettled.contains(node.name()) {
                node.closed = closed;
                changed = true;
            }
        }
        if changed {
            self.worlds.clear();
        }
    }

    /// The snapshot in which questions are asked.
    fn snapshot(&self, input: &Input<'_>, launching: Launching<'_>) -> Snapshot {
        Snapshot {
            // A command mostly has room for one replacement, so that more and cheaper nodes are no help.
            options: Options {
                pack_by_price: launching.several,
                reserved_fallback: !launching.strict,
                ..input.snapshot.options
            },
            nodes: self.nodes.clone(),
            left_out: self.leaving.clone(),
            node_pools: launching.pools.to_vec(),
            pods: self.pods.clone(),
            daemonset_pods: input.snapshot.daemonset_pods.clone(),
            pod_volumes: input.snapshot.pod_volumes.clone(),
            dynamic: Arc::clone(&input.snapshot.dynamic),
            namespaces: input.snapshot.namespaces.clone(),
            well_known: input.snapshot.well_known.clone(),
        }
    }

    fn world(&mut self, input: &Input<'_>, launching: Launching<'_>) -> &mut World {
        let pool = |p: &NodePoolInput| {
            let name = p.node_pool.metadata.name.clone().unwrap_or_default();
            (name, p.instance_types.as_ptr().addr())
        };
        let way: Way =
            (launching.pools.iter().map(pool).collect(), launching.several, launching.strict);
        let at = match self.worlds.iter().position(|(known, _)| *known == way) {
            Some(at) => at,
            None => {
                let snapshot = Arc::new(self.snapshot(input, launching));
                self.worlds.push((way, World::new(snapshot, PodInfo::is_reschedulable)));
                self.prepared += 1;
                self.worlds.len() - 1
            }
        };
        &mut self.worlds[at].1
    }
}

/// Removes the candidates and schedules their pods, together with those that wait already.
pub fn without(
    input: &Input<'_>,
    ground: &mut Ground,
    candidates: &[&Candidate],
    consolidating: bool,
) -> Simulated {
    let pools = &input.snapshot.node_pools;
    let launching = Launching { pools, several: false, strict: false };
    without_but(input, ground, candidates, consolidating, launching)
}

/// The same, with nodes launched in another way.
pub fn without_but(
    input: &Input<'_>,
    ground: &mut Ground,
    candidates: &[&Candidate],
    consolidating: bool,
    launching: Launching<'_>,
) -> Simulated {
    let names: Vec<&str> = candidates.iter().map(|c| c.node.name()).collect();
    let moving: Vec<&Arc<PodInfo>> = candidates.iter().flat_map(|c| c.pods.iter()).collect();
    let settled: HashSet<&PodKey> = moving
        .iter()
        .filter(|p| !p.pending && !ground.of_leaving.contains(&p.key))
        .map(|p| &p.key)
        .collect();
    // Only settled pods keep away from nodes in their quiet time. Where no others are placed, such
    // nodes are closed, so that the settled pods find other places rather than none.
    let nothing_waits = ground.waiting.is_empty() && ground.of_leaving.is_empty();
    let closing = consolidating && nothing_waits && settled.len() == moving.len();
    let pods: Vec<Arc<PodInfo>> =
        moving.iter().filter(|p| !ground.waiting.contains(&p.key)).map(|p| Arc::clone(p)).collect();
    let results = ground.world(input, launching).without(&names, &pods, closing);
    let mut stranded: Vec<Stranded> = results
        .errors
        .iter()
        .filter(|(key, _)| !ground.waiting.contains(key))
        .map(|(key, error)| Stranded { pod: key.clone(), why: error.to_string() })
        .collect();
    for (name, keys) in &results.existing {
        for key in keys {
            let why = if let Some(claim) = ground.uninitialized.get(name)
                && !ground.of_leaving.contains(key)
                && !ground.waiting.contains(key)
            {
                format!("would schedule against uninitialized nodeclaim/{claim}, node/{name}")
            } else if consolidating && ground.unsettled.contains(name) && settled.contains(key) {
                format!("would schedule against node/{name} within its consolidateAfter")
            } else {
                continue;
            };
            stranded.push(Stranded { pod: key.clone(), why });
        }
    }
    Simulated { results, stranded }
}

fn claim_name(node: &StateNode) -> String {
    node.node_claim.as_ref().and_then(|c| c.metadata.name.clone()).unwrap_or_default()
}

/// Within the pool's `consolidateAfter` since the last pod came or went.
fn in_quiet_time(input: &Input<'_>, node: &StateNode) -> bool {
    let pool =
        input.pools.iter().find(|p| p.node_pool.metadata.name.as_deref() == node.node_pool());
    pool.and_then(|p| quiet_until(node, &p.node_pool)).is_some_and(|until| input.now < until)
}

/// The end of the pool's `consolidateAfter` since the last pod came or went; none where the pool waits
/// for nothing or never consolidates, and before the node is initialized.
#[must_use]
pub fn quiet_until(node: &StateNode, pool: &NodePool) -> Option<Timestamp> {
    let after = pool.spec.disruption.consolidate_after.duration().filter(|a| !a.is_zero())?;
    let status = node.node_claim.as_ref()?.status.as_ref()?;
    let initialized = conditions::get(&status.conditions, conditions::INITIALIZED)
        .filter(|c| c.status == conditions::TRUE)?;
    let last =
        status.last_pod_event_time.as_ref().map_or(initialized.last_transition_time.0, |t| t.0);
    Some(last.checked_add(after).unwrap_or(Timestamp::MAX))
}

/// What becomes of the pods of a node in a capacity reservation if its slot is given back first;
/// nothing unless all of them have a place then.
pub fn in_own_reservation(
    input: &Input<'_>,
    ground: &mut Ground,
    candidate: &Candidate,
) -> Option<Simulated> {
    if candidate.label(labels::CAPACITY_TYPE) != Some(labels::CAPACITY_RESERVED) {
        return None;
    }
    let id = candidate.label(labels::CAPACITY_RESERVATION_ID).filter(|id| !id.is_empty())?;
    let mut freed = false;
    let pools: Vec<NodePoolInput> = input
        .snapshot
        .node_pools
        .iter()
        .map(|pool| {
            let types = pool.instance_types.iter().map(|kind| {
                if !kind.offerings.iter().any(|o| o.reservation_id() == id) {
                    return Arc::clone(kind);
                }
                freed = true;
                let mut kind = (**kind).clone();
                for offering in kind.offerings.iter_mut().filter(|o| o.reservation_id() == id) {
                    // One that is gone for another reason than being full stays gone.
                    offering.available |= offering.reservation_full;
                    offering.reservation_full = false;
                    offering.reservation_capacity += 1;
                }
                Arc::new(kind)
            });
            let instance_types = types.collect();
            NodePoolInput { node_pool: Arc::clone(&pool.node_pool), instance_types }
        })
        .collect();
    let launching = Launching { pools: &pools, several: false, strict: true };
    // The lists of types are made for this question, and so is the world: no other asks for it.
    let known = ground.worlds.len();
    let simulated = freed.then(|| without_but(input, ground, &[candidate], false, launching));
    ground.worlds.truncate(known);
    simulated.filter(|s| s.stranded.is_empty())
}
