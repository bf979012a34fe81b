//! Repair: unhealthy nodes that do not recover are replaced like any others, or rebooted, within the
//! budgets for the reason `Unhealthy`.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::command::Repair;
use super::methods::{Pass, Search};
use super::static_drift::Room;
use super::{Candidate, Command, Input, Method, Rejection, drift};
use crate::api::conditions;
use crate::api::v1::NodeClaim;
use crate::scheduling::node::StateNode;

mod policy;

pub use policy::{Action, Due, Match, Policies, PolicyError, RepairPolicy, due};

/// While more nodes than this share of a pool are unhealthy, something else than they is at fault.
pub const MOST_UNHEALTHY_PERCENT: usize = 20;

/// What is done about a node, once a policy is due. A node whose reboots did not help is replaced.
#[must_use]
pub fn eligible(input: &Input<'_>, node: &StateNode) -> Option<Due> {
    let ended = node.node_claim.as_deref().and_then(last_reboot);
    let matches = input.repair.matching(node.node.as_deref()?, ended);
    let mut found = due(&matches, input.now)?;
    let uid = node.node_claim.as_ref().and_then(|c| c.metadata.uid.as_deref());
    if uid.is_some_and(|uid| input.rebooted.contains(uid)) {
        found.policy.action = Action::Replace;
    }
    Some(found)
}

/// When the last reboot ended: conditions from before it say nothing.
#[must_use]
pub fn last_reboot(claim: &NodeClaim) -> Option<Timestamp> {
    let list = claim.status.as_ref().map(|s| s.conditions.as_slice())?;
    conditions::get(list, conditions::REBOOTING)
        .filter(|c| c.status == conditions::FALSE)
        .map(|c| c.last_transition_time.0)
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
        for (candidate, due) in in_order(candidates) {
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
            match command(pass, &mut room, &candidate, &due) {
                Ok(command) => {
                    pass.decision.take(command);
                    return;
                }
                Err(rejection) => pass.reject(&candidate, rejection),
            }
        }
    }
}

/// The command for one node, without a look at its pool's budget.
fn command(
    pass: &mut Pass<'_>,
    room: &mut Room,
    candidate: &Candidate,
    due: &Due,
) -> Result<Command, Rejection> {
    let terminate_first = pass.input.gates.terminate_first_repair;
    let mut command = match due.policy.action {
        // The node comes back, and so do the pods that nothing else has room for.
        Action::Reboot => Command::delete(Method::Repair, vec![candidate.clone()]),
        Action::Replace if candidate.is_static() => {
            room.replace(pass, Method::Repair, candidate, terminate_first)?
        }
        Action::Replace => drift::replace(pass, Method::Repair, candidate, terminate_first)?,
    };
    if due.policy.action == Action::Reboot {
        command.savings = 0.0;
    }
    command.repair = candidate.node.node_claim.as_deref().map(|claim| Repair::new(due, claim));
    Ok(command)
}

/// Pools of which more than a fifth, rounded up, has a condition that the policies know.
fn sick_pools(input: &Input<'_>) -> BTreeSet<String> {
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for state in &input.snapshot.nodes {
        let (Some(pool), Some(node)) = (state.node_pool(), &state.node) else { continue };
        let count = counts.entry(pool).or_default();
        count.0 += 1;
        count.1 += usize::from(input.repair.knows(node));
    }
    let sick = counts.into_iter().filter(|(_, (all, bad))| *bad > most_unhealthy(*all));
    sick.map(|(pool, _)| pool.to_owned()).collect()
}

/// The most urgent first, then what costs least to disrupt.
fn in_order(candidates: Vec<Candidate>) -> Vec<(Candidate, Due)> {
    let due = candidates.into_iter().filter_map(|c| {
        let due = c.repair.clone()?;
        Some((c, due))
    });
    let mut list: Vec<(Candidate, Due)> = due.collect();
    list.sort_by(|(a, x), (b, y)| {
        y.score
            .total_cmp(&x.score)
            .then(a.disruption_cost.total_cmp(&b.disruption_cost))
            .then_with(|| a.node.name().cmp(b.node.name()))
    });
    list
}
