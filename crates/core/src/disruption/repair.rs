//! Repair: nodes that are broken and do not recover are replaced like any others, within the budgets
//! for the reason `Unhealthy`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;

use super::command::Repair;
use super::methods::{Pass, Search};
use super::static_drift::Room;
use super::{Candidate, Input, Method, Rejection, drift};
use crate::scheduling::node::StateNode;

/// While more nodes than this share of a pool are unhealthy, something else than they is at fault.
pub const MOST_UNHEALTHY_PERCENT: usize = 20;
/// A node's place in the order rises by one for each of these that it has been waiting.
const AGING: Duration = Duration::from_secs(1800);

/// A condition of a Node that is not waited out for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepairPolicy {
    /// Type of the Node's condition.
    pub condition: &'static str,
    /// The status that is bad.
    pub status: &'static str,
    /// How long it is waited out.
    pub toleration: Duration,
    /// How long the drain may take, blocked pods or not; none leaves it to the NodeClaim.
    pub drain: Option<Duration>,
    /// 0 to 100: which broken nodes go first.
    pub priority: u8,
}

/// A policy that is due for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The policy, its drain bound the shortest of all that are due.
    pub policy: RepairPolicy,
    /// Since when.
    pub since: Timestamp,
}

/// Policies whose condition a node has, and when each is due. A condition that does not say since
/// when it holds is taken to hold since the Node is there.
pub fn matching<'a>(
    node: &'a Node,
    policies: &'a [RepairPolicy],
) -> impl Iterator<Item = (RepairPolicy, Option<Timestamp>)> + 'a {
    let list = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let created = node.metadata.creation_timestamp.as_ref().map(|t| t.0);
    list.flat_map(move |condition| {
        let same =
            move |p: &&RepairPolicy| p.condition == condition.type_ && p.status == condition.status;
        let since = condition.last_transition_time.as_ref().map(|t| t.0).max(created);
        policies.iter().filter(same).map(move |p| (*p, since.map(|s| s + p.toleration)))
    })
}

/// The policy that decides about a node, once one is due: of the highest priority, then the one that
/// was due first.
#[must_use]
pub fn eligible(input: &Input<'_>, node: &StateNode) -> Option<Due> {
    let due: Vec<Due> = matching(node.node.as_deref()?, input.repair)
        .filter_map(|(policy, at)| Some(Due { policy, since: at.filter(|at| *at <= input.now)? }))
        .collect();
    let mut best = *due.iter().min_by(|a, b| {
        b.policy
            .priority
            .cmp(&a.policy.priority)
            .then(a.since.cmp(&b.since))
            .then_with(|| a.policy.condition.cmp(b.policy.condition))
    })?;
    best.policy.drain = due.iter().filter_map(|d| d.policy.drain).min();
    Some(best)
}

/// How many of so many nodes may be unhealthy.
#[must_use]
pub fn most_unhealthy(all: usize) -> usize {
    (all * MOST_UNHEALTHY_PERCENT).div_ceil(100)
}

pub(super) struct Repairing;

impl Search for Repairing {
    fn fit(&self, _: &Input<'_>, _: &Candidate) -> Result<(), Rejection> {
        Ok(())
    }

    fn search(&self, pass: &mut Pass<'_>, candidates: Vec<Candidate>) {
        let sick = sick_pools(pass.input);
        let mut room = Room::default();
        let terminate_first = pass.input.gates.terminate_first_repair;
        for (candidate, due) in in_order(pass.input, candidates) {
            let pool = candidate.pool_name();
            if sick.contains(pool) {
                pass.reject(&candidate, Rejection::ManyUnhealthy(pool.to_owned()));
                continue;
            }
            // A node that never came up is in no budget, and so uses none.
            if candidate.node.initialized() && pass.budgets.remaining(pool) <= 0 {
                pass.over_budget(&candidate);
                continue;
            }
            let found = if candidate.is_static() {
                room.replace(pass, Method::Repair, &candidate, terminate_first)
            } else {
                drift::replace(pass, Method::Repair, &candidate, terminate_first)
            };
            match found {
                Ok(mut command) => {
                    let Due { policy, .. } = due;
                    command.repair =
                        Some(Repair { condition: policy.condition, drain: policy.drain });
                    pass.decision.take(command);
                    return;
                }
                Err(rejection) => pass.reject(&candidate, rejection),
            }
        }
    }
}

/// Pools of which more than a fifth, rounded up, has a condition that the policies know.
fn sick_pools(input: &Input<'_>) -> BTreeSet<String> {
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for state in &input.snapshot.nodes {
        let (Some(pool), Some(node)) = (state.node_pool(), &state.node) else { continue };
        let count = counts.entry(pool).or_default();
        count.0 += 1;
        count.1 += usize::from(matching(node, input.repair).next().is_some());
    }
    let sick = counts.into_iter().filter(|(_, (all, bad))| *bad > most_unhealthy(*all));
    sick.map(|(pool, _)| pool.to_owned()).collect()
}

/// The most urgent first: by the rank of the priority and the time since the repair is due.
fn in_order(input: &Input<'_>, candidates: Vec<Candidate>) -> Vec<(Candidate, Due)> {
    let due: Vec<(Candidate, Due)> = candidates
        .into_iter()
        .filter_map(|c| {
            let due = eligible(input, &c.node)?;
            Some((c, due))
        })
        .collect();
    let priorities: BTreeSet<u8> = due.iter().map(|(_, d)| d.policy.priority).collect();
    let score = |due: &Due| {
        let rank = priorities.iter().filter(|p| **p < due.policy.priority).count();
        let waiting = input.now.duration_since(due.since).as_secs_f64().max(0.0);
        f64::from(u32::try_from(rank).unwrap_or(u32::MAX)) + waiting / AGING.as_secs_f64()
    };
    let mut scored: Vec<(f64, Candidate, Due)> =
        due.into_iter().map(|(c, d)| (score(&d), c, d)).collect();
    scored.sort_by(|a, b| {
        b.0.total_cmp(&a.0)
            .then(a.1.disruption_cost.total_cmp(&b.1.disruption_cost))
            .then_with(|| a.1.node.name().cmp(b.1.node.name()))
    });
    scored.into_iter().map(|(_, c, d)| (c, d)).collect()
}
