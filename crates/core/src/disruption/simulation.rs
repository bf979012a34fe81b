//! What scheduling would make of the cluster without some of its nodes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::pdb::Limits;
use super::rejection::Stranded;
use super::{Candidate, Input};
use crate::api::{conditions, labels};
use crate::scheduling::node::StateNode;
use crate::scheduling::pod::{PodInfo, PodKey};
use crate::scheduling::results::Results;
use crate::scheduling::snapshot::{NodePoolInput, Options, Snapshot};
use crate::scheduling::solver::solve;

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

/// Removes the candidates and schedules their pods, together with those that wait already.
pub fn without(
    input: &Input<'_>,
    limits: &Limits,
    candidates: &[&Candidate],
    consolidating: bool,
) -> Simulated {
    let launching = Launching { pools: &input.snapshot.node_pools, several: false };
    without_but(input, limits, candidates, consolidating, launching)
}

/// How a simulation may launch nodes.
#[derive(Clone, Copy)]
pub struct Launching<'a> {
    /// In these pools.
    pub pools: &'a [NodePoolInput],
    /// More nodes where they cost less than fewer would.
    pub several: bool,
}

/// The same, with nodes launched in another way.
pub fn without_but(
    input: &Input<'_>,
    limits: &Limits,
    candidates: &[&Candidate],
    consolidating: bool,
    launching: Launching<'_>,
) -> Simulated {
    let gone: HashSet<&str> = candidates.iter().map(|c| c.node.name()).collect();
    let mut pods: Vec<Arc<PodInfo>> = input.snapshot.pods.clone();
    let waiting: HashSet<PodKey> = pods.iter().map(|p| p.key.clone()).collect();
    let leaving: Vec<&StateNode> = input.snapshot.nodes.iter().filter(|n| n.deleting()).collect();
    let of_leaving: HashSet<PodKey> = leaving
        .iter()
        .flat_map(|n| &n.pods)
        .filter(|p| p.is_reschedulable())
        .map(|p| p.key.clone())
        .collect();
    pods.extend(
        leaving
            .iter()
            .flat_map(|n| &n.pods)
            .filter(|p| limits.moves(p, input.now))
            .chain(candidates.iter().flat_map(|c| c.pods.iter()))
            .filter(|p| !waiting.contains(&p.key))
            .cloned(),
    );
    let settled: HashSet<PodKey> = candidates
        .iter()
        .flat_map(|c| c.pods.iter())
        .filter(|p| !p.pending && !of_leaving.contains(&p.key))
        .map(|p| p.key.clone())
        .collect();
    let mut nodes: Vec<StateNode> = input
        .snapshot
        .nodes
        .iter()
        .filter(|n| !gone.contains(n.name()) && !n.deleting())
        .cloned()
        .collect();
    let unsettled: HashSet<String> = if consolidating {
        nodes.iter().filter(|n| in_quiet_time(input, n)).map(|n| n.name().to_owned()).collect()
    } else {
        HashSet::new()
    };
    let uninitialized: HashMap<String, String> = nodes
        .iter()
        .filter(|n| n.managed() && !n.initialized())
        .map(|n| (n.name().to_owned(), claim_name(n)))
        .collect();
    // Only settled pods keep away from nodes in their quiet time. Where no others are placed, such
    // nodes are closed, so that the settled pods find other places rather than none.
    let moving = candidates.iter().map(|c| c.pods.len()).sum::<usize>();
    if waiting.is_empty() && of_leaving.is_empty() && settled.len() == moving {
        for node in nodes.iter_mut().filter(|n| unsettled.contains(n.name())) {
            node.closed = true;
        }
    }
    let snapshot = Snapshot {
        // A command mostly has room for one replacement, so that more and cheaper nodes are no help.
        options: Options {
            pack_by_price: launching.several,
            reserved_fallback: true,
            ..input.snapshot.options
        },
        nodes,
        node_pools: launching.pools.to_vec(),
        pods,
        daemonset_pods: input.snapshot.daemonset_pods.clone(),
        pod_volumes: input.snapshot.pod_volumes.clone(),
        dynamic: Arc::clone(&input.snapshot.dynamic),
        namespaces: input.snapshot.namespaces.clone(),
        well_known: input.snapshot.well_known.clone(),
    };
    let results = solve(&snapshot);
    let mut stranded: Vec<Stranded> = results
        .errors
        .iter()
        .filter(|(key, _)| !waiting.contains(key))
        .map(|(key, error)| Stranded { pod: key.clone(), why: error.to_string() })
        .collect();
    for (name, keys) in &results.existing {
        for key in keys {
            let why = if let Some(claim) = uninitialized.get(name)
                && !of_leaving.contains(key)
                && !waiting.contains(key)
            {
                format!("would schedule against uninitialized nodeclaim/{claim}, node/{name}")
            } else if unsettled.contains(name) && settled.contains(key) {
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
    let after = pool.and_then(|p| p.node_pool.spec.disruption.consolidate_after.duration());
    let status = node.node_claim.as_ref().and_then(|c| c.status.as_ref());
    let (Some(after), Some(status)) = (after.filter(|a| !a.is_zero()), status) else {
        return false;
    };
    let Some(initialized) = conditions::get(&status.conditions, conditions::INITIALIZED)
        .filter(|c| c.status == conditions::TRUE)
    else {
        return false;
    };
    let last =
        status.last_pod_event_time.as_ref().map_or(initialized.last_transition_time.0, |t| t.0);
    Duration::try_from(input.now.duration_since(last)).unwrap_or_default() < after
}

/// Whether all pods of a node in a capacity reservation would have a place if its slot were given
/// back first.
pub fn fits_own_reservation(input: &Input<'_>, limits: &Limits, candidate: &Candidate) -> bool {
    let Some(id) = candidate.label(labels::CAPACITY_RESERVATION_ID) else { return false };
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
                    offering.available = true;
                    offering.reservation_capacity += 1;
                }
                Arc::new(kind)
            });
            let instance_types = types.collect();
            NodePoolInput { node_pool: Arc::clone(&pool.node_pool), instance_types }
        })
        .collect();
    let launching = Launching { pools: &pools, several: false };
    freed && without_but(input, limits, &[candidate], false, launching).stranded.is_empty()
}
