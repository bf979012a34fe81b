//! Single-node consolidation: nodes that can go by themselves, or become a cheaper one each.
//!
//! One node after the other is looked at, as Karpenter does, but to the end: one pass finds all that
//! Karpenter finds in as many. No command counts on a node that another removes, or on one that is still
//! to come, so that each holds whatever becomes of the others.

use std::collections::{BTreeMap, HashSet, VecDeque};

use super::methods::{Pass, Search};
use super::{Candidate, Command, Input, Method, Rejection, consolidation};

/// Each command after the first is looked for in a world that is prepared once more, from the whole
/// cluster. So many nodes are read that way in one pass, which takes about two seconds however large the
/// cluster is (10,000 nodes are read in one); what is left over is found by the next pass.
const MOST_READ: usize = 20_000;

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

/// Takes of the commands those that hold beside each other: each is looked for once more, on the cluster
/// that the ones before leave. First those that no pod moves for to a node that may go itself, then the
/// others.
fn take_all(pass: &mut Pass<'_>, found: Vec<Command>) {
    if found.len() < 2 {
        return found.into_iter().for_each(|command| pass.decision.take(command));
    }
    let names: Vec<String> =
        found.iter().flat_map(|c| &c.candidates).map(|c| c.node.name().to_owned()).collect();
    let mut beside = Beside::new(pass);
    pass.ground().close(&names, true);
    let rest = beside.take(pass, found, true);
    pass.ground().close(&names, false);
    beside.take(pass, rest, false);
}

/// Commands that are taken one beside the other.
struct Beside {
    /// Nodes that pods of commands before are expected on; nothing once that is not known.
    expecting: Option<HashSet<String>>,
    most_worlds: usize,
}

impl Beside {
    fn new(pass: &mut Pass<'_>) -> Self {
        let nodes = pass.input.snapshot.nodes.len().max(1);
        let most_worlds = pass.ground().prepared() + MOST_READ / nodes;
        Self { expecting: Some(HashSet::new()), most_worlds }
    }

    /// Takes what still holds, and returns the rest. As good: what saves less now waits.
    fn take(&mut self, pass: &mut Pass<'_>, found: Vec<Command>, as_good: bool) -> Vec<Command> {
        let mut rest = Vec::new();
        for first in found {
            let candidate = &first.candidates[0];
            let Some(expecting) = &mut self.expecting else { break };
            if expecting.contains(candidate.node.name()) {
                continue;
            }
            let worse = |c: &Command| as_good && c.savings < first.savings - 1e-9;
            let none_yet = pass.decision.commands.is_empty();
            let again = if none_yet || pass.ground().prepared() < self.most_worlds {
                attempt(pass, candidate).ok().filter(|c| !worse(c))
            } else {
                None
            };
            let Some(command) = again else {
                rest.push(first);
                continue;
            };
            pass.budgets.take(candidate.pool_name());
            match pass.carry_out(&command) {
                Some(nodes) => expecting.extend(nodes),
                None => self.expecting = None,
            }
            pass.decision.take(command);
        }
        rest
    }
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
