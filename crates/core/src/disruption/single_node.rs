//! Single-node consolidation: the first node that can go, or become a cheaper one.

use std::collections::{BTreeMap, VecDeque};

use super::methods::{Pass, Search};
use super::{Candidate, Input, Method, Rejection, consolidation};

pub(super) struct SingleNode;

impl Search for SingleNode {
    fn fit(&self, _: &Input<'_>, candidate: &Candidate) -> Result<(), Rejection> {
        consolidation::fit(candidate)
    }

    fn search(&self, pass: &mut Pass<'_>, candidates: Vec<Candidate>) {
        let mut found = false;
        for candidate in take_turns(candidates) {
            if found {
                continue;
            }
            if !pass.go_on() {
                pass.reject(&candidate, Rejection::NotTried);
                continue;
            }
            if pass.budgets.remaining(candidate.pool_name()) <= 0 {
                pass.over_budget(&candidate);
                continue;
            }
            match attempt(pass, &candidate) {
                Ok(()) => found = true,
                Err(rejection) => pass.reject(&candidate, rejection),
            }
        }
    }
}

fn attempt(pass: &mut Pass<'_>, candidate: &Candidate) -> Result<(), Rejection> {
    // If not even its going away pays, nothing has to be simulated.
    pass.balance.judge(&[candidate], candidate.price).map_err(Rejection::NotWorth)?;
    let mut command = consolidation::compute(pass, &[candidate], Method::SingleNode)?;
    let scores = pass.balance.scores(&[candidate], command.savings);
    pass.decision.judged.extend(scores.iter().cloned());
    if let Some(low) = scores.iter().find(|s| !s.approved()) {
        return Err(Rejection::NotWorth(low.clone()));
    }
    command.scores = scores;
    pass.decision.take(command);
    Ok(())
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
