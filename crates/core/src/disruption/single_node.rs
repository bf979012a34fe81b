//! Single-node consolidation: nodes that can go by themselves, or become a cheaper one each.
//!
//! One node after the other is looked at, as Karpenter does, but to the end: one pass finds all that
//! Karpenter finds in as many. No command counts on a node that another removes, or on one that is still
//! to come, so that each holds whatever becomes of the others.

use std::collections::{BTreeMap, HashSet, VecDeque};

use super::methods::{Pass, Search};
use super::{Candidate, Command, Input, Method, Rejection, consolidation};

pub(super) struct SingleNode;

impl Search for SingleNode {
    fn fit(&self, _: &Input<'_>, candidate: &Candidate) -> Result<(), Rejection> {
        consolidation::fit(candidate)
    }

    fn search(&self, pass: &mut Pass<'_>, candidates: Vec<Candidate>) {
        let mut budgets = pass.budgets.clone();
        let mut found = Vec::new();
        for candidate in take_turns(candidates) {
            if !pass.go_on() {
                pass.reject(&candidate, Rejection::NotTried);
                continue;
            }
            if budgets.remaining(candidate.pool_name()) <= 0 {
                pass.over_budget(&candidate);
                continue;
            }
            // If not even its going away pays, nothing has to be simulated.
            let worth = pass.balance.judge(&[&candidate], candidate.price);
            match worth.map_err(Rejection::NotWorth).and_then(|_| first_try(pass, &candidate)) {
                Ok(command) => {
                    budgets.take(candidate.pool_name());
                    found.push(command);
                }
                Err(rejection) => pass.reject(&candidate, rejection),
            }
        }
        take_all(pass, found);
    }
}

/// Takes the first command, and of the others those that hold beside it: each is looked for once more,
/// on the cluster that the ones before leave.
fn take_all(pass: &mut Pass<'_>, found: Vec<Command>) {
    let several = found.len() > 1;
    let names: Vec<String> =
        found.iter().flat_map(|c| &c.candidates).map(|c| c.node.name().to_owned()).collect();
    // Nodes that pods of these commands are expected on.
    let mut expecting: HashSet<String> = HashSet::new();
    for (at, first) in found.into_iter().enumerate() {
        let candidate = first.candidates[0].clone();
        if expecting.contains(candidate.node.name()) {
            continue;
        }
        let again = if several { beside(pass, &candidate, &names, first.savings) } else { None };
        let Some(command) = again.or((at == 0).then_some(first)) else { continue };
        pass.budgets.take(candidate.pool_name());
        let goes_on = if several { pass.carry_out(&command) } else { None };
        pass.decision.take(command);
        match goes_on {
            Some(nodes) => expecting.extend(nodes),
            None => return,
        }
    }
}

/// The command for a node beside others: with no pod on a node that is to go itself, unless it saves less
/// that way.
fn beside(
    pass: &mut Pass<'_>,
    candidate: &Candidate,
    others: &[String],
    savings: f64,
) -> Option<Command> {
    pass.ground().close(others, true);
    let apart = attempt(pass, candidate).ok();
    if apart.as_ref().is_some_and(|c| c.savings > savings - 1e-9) {
        return apart;
    }
    pass.ground().close(others, false);
    attempt(pass, candidate).ok()
}

/// The first look at a node, whose scores count.
fn first_try(pass: &mut Pass<'_>, candidate: &Candidate) -> Result<Command, Rejection> {
    let found = attempt(pass, candidate);
    match &found {
        Ok(command) => pass.decision.judged.extend(command.scores.iter().cloned()),
        Err(Rejection::NotWorth(score)) => pass.decision.judged.push(score.clone()),
        Err(_) => {}
    }
    found
}

fn attempt(pass: &mut Pass<'_>, candidate: &Candidate) -> Result<Command, Rejection> {
    let mut command = consolidation::compute(pass, &[candidate], Method::SingleNode)?;
    command.scores =
        pass.balance.judge(&[candidate], command.savings).map_err(Rejection::NotWorth)?;
    Ok(command)
}

/// One candidate of each pool in turn, each pool's in their order.
fn take_turns(candidates: Vec<Candidate>) -> Vec<Candidate> {
    let mut pools: BTreeMap<String, VecDeque<Candidate>> = BTreeMap::new();
    for candidate in candidates {
        pools.entry(candidate.pool_name().to_owned()).or_default().push_back(candidate);
    }
    let mut list = Vec::new();
    while !pools.is_empty() {
        pools.retain(|_, queue| {
            list.extend(queue.pop_front());
            !queue.is_empty()
        });
    }
    list
}
