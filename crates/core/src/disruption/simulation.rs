//! What scheduling would make of the cluster without some of its nodes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::{Candidate, Input};
use crate::api::conditions;
use crate::scheduling::node::StateNode;
use crate::scheduling::pod::{PodInfo, PodKey};
use crate::scheduling::results::Results;
use crate::scheduling::snapshot::{Options, Snapshot};
use crate::scheduling::solver::solve;

/// The outcome of a simulation.
pub struct Simulated {
    pub results: Results,
    /// Pods that would be left without a node, and why.
    pub stranded: Vec<(PodKey, String)>,
}

/// Removes the candidates and schedules their pods, together with those that wait already.
pub fn without(input: &Input<'_>, candidates: &[&Candidate], consolidating: bool) -> Simulated {
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
            .filter(|p| p.is_reschedulable() && !p.do_not_disrupt_active(input.now))
            .chain(candidates.iter().flat_map(|c| &c.pods))
            .filter(|p| !waiting.contains(&p.key))
            .cloned(),
    );
    let settled: HashSet<PodKey> = candidates
        .iter()
        .flat_map(|c| &c.pods)
        .filter(|p| !p.pending && !of_leaving.contains(&p.key))
        .map(|p| p.key.clone())
        .collect();
    let nodes: Vec<StateNode> = input
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
    let uninitialized: HashSet<String> = nodes
        .iter()
        .filter(|n| n.managed() && !n.initialized())
        .map(|n| n.name().to_owned())
        .collect();
    let nothing_waits = waiting.is_empty() && of_leaving.is_empty();
    let snapshot = Snapshot {
        // A command has room for one replacement, so that more and cheaper nodes are no help.
        options: Options {
            pack_by_price: false,
            reserved_fallback: true,
            ..input.snapshot.options
        },
        nodes: if nothing_waits {
            nodes.into_iter().filter(|n| !unsettled.contains(n.name())).collect()
        } else {
            nodes
        },
        pods,
        ..input.snapshot.clone()
    };
    let results = solve(&snapshot);
    let mut stranded: Vec<(PodKey, String)> = results
        .errors
        .iter()
        .filter(|(key, _)| !waiting.contains(key))
        .map(|(key, error)| (key.clone(), error.to_string()))
        .collect();
    for (name, keys) in &results.existing {
        for key in keys {
            if uninitialized.contains(name) && !of_leaving.contains(key) && !waiting.contains(key) {
                let text = format!("would schedule against uninitialized node/{name}");
                stranded.push((key.clone(), text));
            } else if unsettled.contains(name) && settled.contains(key) {
                let text =
                    format!("would schedule against node/{name} within its consolidateAfter");
                stranded.push((key.clone(), text));
            }
        }
    }
    Simulated { results, stranded }
}

/// Within the pool's `consolidateAfter` since the last pod came or went.
fn in_quiet_time(input: &Input<'_>, node: &StateNode) -> bool {
    let pool = input
        .snapshot
        .node_pools
        .iter()
        .find(|p| p.node_pool.metadata.name.as_deref() == node.node_pool());
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
