//! The methods, in their order.

use std::collections::{BTreeMap, VecDeque};

use super::budget::{self, Allowance};
use super::consolidation::{self, Balance};
use super::pdb::Limits;
use super::{Candidate, Command, Decision, Input, Method, Reason, candidate, simulation};
use crate::api::conditions;
use crate::api::v1::NodePool;

/// Most candidates of a multi-node command.
const MULTI_NODE_WINDOW: usize = 100;

type Allowances = BTreeMap<String, Allowance>;

/// Looks for one command by one method; stops early, with the best found, once `go_on` says no.
#[must_use]
pub fn decide(input: &Input<'_>, method: Method, go_on: &dyn Fn() -> bool) -> Decision {
    let mut decision = Decision::default();
    let limits = Limits::new(input.pdbs);
    let all = candidate::collect(input, &limits, method, &mut decision.rejected);
    let balance = Balance::new(input, &all);
    let candidates = fitting(all, method, &mut decision);
    decision.eligible = candidates.len();
    if candidates.is_empty() {
        return decision;
    }
    let mut left = remaining(input, method.reason());
    match method {
        Method::Emptiness => empty(candidates, &mut left, &mut decision),
        Method::Drift => drift(input, candidates, &left, &mut decision),
        Method::MultiNode => multi(input, candidates, &mut left, &balance, &mut decision, go_on),
        Method::SingleNode => single(input, candidates, &left, &balance, &mut decision, go_on),
    }
    decision
}

fn remaining(input: &Input<'_>, reason: Reason) -> BTreeMap<String, i64> {
    let pools: Vec<&NodePool> =
        input.snapshot.node_pools.iter().map(|p| p.node_pool.as_ref()).collect();
    let all: Allowances = budget::allowances(&pools, &input.snapshot.nodes, reason, input.now);
    all.into_iter().map(|(name, a)| (name, a.remaining())).collect()
}

/// Takes one from the pool's budget.
fn take(left: &mut BTreeMap<String, i64>, pool: &str) -> bool {
    match left.get_mut(pool) {
        Some(n) if *n > 0 => {
            *n -= 1;
            true
        }
        _ => false,
    }
}

/// The candidates that the method is about.
fn fitting(all: Vec<Candidate>, method: Method, decision: &mut Decision) -> Vec<Candidate> {
    let mut list: Vec<Candidate> = all
        .into_iter()
        .filter(|c| match fits(c, method) {
            Ok(()) => true,
            Err(text) => {
                if !text.is_empty() {
                    decision.rejected.insert(c.node.name().to_owned(), text);
                }
                false
            }
        })
        .collect();
    list.sort_by(|a, b| {
        b.savings_ratio()
            .total_cmp(&a.savings_ratio())
            .then_with(|| a.node.name().cmp(b.node.name()))
    });
    list
}

fn fits(candidate: &Candidate, method: Method) -> Result<(), String> {
    match method {
        Method::Emptiness => {
            if candidate.pool.spec.replicas.is_some() || !candidate.is_empty() {
                return Err(String::new());
            }
            if candidate.pool.spec.disruption.consolidate_after.duration().is_none() {
                let pool = candidate.pool_name();
                return Err(format!("NodePool {pool:?} has consolidation disabled"));
            }
            if candidate.node.buffer_pods > 0 {
                return Err(format!("Node {:?} has buffer pods", candidate.node.name()));
            }
            if !candidate.condition(conditions::CONSOLIDATABLE) {
                return Err(String::new());
            }
            Ok(())
        }
        Method::Drift => {
            let fit =
                candidate.pool.spec.replicas.is_none() && candidate.condition(conditions::DRIFTED);
            if fit { Ok(()) } else { Err(String::new()) }
        }
        Method::MultiNode | Method::SingleNode => consolidation::fit(candidate),
    }
}

/// All empty nodes at once.
fn empty(candidates: Vec<Candidate>, left: &mut BTreeMap<String, i64>, decision: &mut Decision) {
    let mut chosen = Vec::new();
    for candidate in candidates {
        if take(left, candidate.pool_name()) {
            chosen.push(candidate);
        } else {
            decision.constrained = true;
            reject(decision, &candidate, "disruption budget is used up");
        }
    }
    if chosen.is_empty() {
        return;
    }
    decision.command = Some(Command {
        reason: Reason::Empty,
        method: Method::Emptiness,
        savings: chosen.iter().map(|c| c.price).sum(),
        candidates: chosen,
        replacements: Vec::new(),
        nominated: Vec::new(),
    });
}

fn reject(decision: &mut Decision, candidate: &Candidate, text: &str) {
    decision.rejected.insert(candidate.node.name().to_owned(), text.to_owned());
}

/// The node that has been drifted for the longest, those without pods first.
fn drift(
    input: &Input<'_>,
    mut candidates: Vec<Candidate>,
    left: &BTreeMap<String, i64>,
    decision: &mut Decision,
) {
    candidates.sort_by_key(|c| {
        let status = c.node.node_claim.as_ref().and_then(|c| c.status.as_ref());
        let since = status
            .and_then(|s| conditions::get(&s.conditions, conditions::DRIFTED))
            .map(|c| c.last_transition_time.0);
        (!c.pods.is_empty(), since, c.node.name().to_owned())
    });
    for candidate in &candidates {
        if left.get(candidate.pool_name()).copied().unwrap_or(0) <= 0 {
            decision.constrained = true;
            reject(decision, candidate, "disruption budget is used up");
            continue;
        }
        let simulated = simulation::without(input, &[candidate], false);
        if let Some((pod, error)) = simulated.stranded.first() {
            let text = format!("Not all pods would schedule, {pod} => {error}");
            reject(decision, candidate, &text);
            continue;
        }
        let replacements = simulated.results.new_claims;
        let paid: f64 =
            replacements.iter().filter_map(|r| r.cheapest().map(|(_, o)| o.price)).sum();
        decision.command = Some(Command {
            reason: Reason::Drifted,
            method: Method::Drift,
            savings: candidate.price - paid,
            candidates: vec![candidate.clone()],
            nominated: simulated.results.existing.iter().map(|(n, _)| n.clone()).collect(),
            replacements,
        });
        return;
    }
}

/// The longest run of candidates, best first, that can go together.
fn multi(
    input: &Input<'_>,
    candidates: Vec<Candidate>,
    left: &mut BTreeMap<String, i64>,
    balance: &Balance,
    decision: &mut Decision,
    go_on: &dyn Fn() -> bool,
) {
    let mut chosen = Vec::new();
    for candidate in candidates {
        if take(left, candidate.pool_name()) {
            chosen.push(candidate);
        } else {
            decision.constrained = true;
        }
    }
    if chosen.len() < 2 {
        return;
    }
    let (mut min, mut max) = (1, MULTI_NODE_WINDOW.min(chosen.len() - 1));
    while min <= max && go_on() {
        let middle = min.midpoint(max);
        let group: Vec<&Candidate> = chosen[..=middle].iter().collect();
        match consolidation::compute(input, &group, Method::MultiNode) {
            Ok(command) if balance.approves(&group, command.savings) => {
                decision.command = Some(command);
                min = middle + 1;
            }
            _ => max = middle - 1,
        }
    }
}

/// The first candidate that can go; pools take turns.
fn single(
    input: &Input<'_>,
    candidates: Vec<Candidate>,
    left: &BTreeMap<String, i64>,
    balance: &Balance,
    decision: &mut Decision,
    go_on: &dyn Fn() -> bool,
) {
    for candidate in take_turns(candidates) {
        if !go_on() {
            return;
        }
        if left.get(candidate.pool_name()).copied().unwrap_or(0) <= 0 {
            decision.constrained = true;
            reject(decision, &candidate, "disruption budget is used up");
            continue;
        }
        if !balance.approves(&[&candidate], candidate.price) {
            reject(decision, &candidate, "savings are not worth the disruption");
            continue;
        }
        match consolidation::compute(input, &[&candidate], Method::SingleNode) {
            Ok(command) if balance.approves(&[&candidate], command.savings) => {
                decision.command = Some(command);
                return;
            }
            Ok(_) => reject(decision, &candidate, "savings are not worth the disruption"),
            Err(text) => reject(decision, &candidate, &text),
        }
    }
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

/// Why a command that was found a while ago must not be carried out any more.
///
/// An emptiness command may shrink to what is still empty and within budget.
///
/// # Errors
/// With the reason: churn, budget or scheduling.
pub fn still_valid(input: &Input<'_>, command: &Command) -> Result<Command, &'static str> {
    let mut decision = Decision::default();
    let limits = Limits::new(input.pdbs);
    let all = candidate::collect(input, &limits, command.method, &mut decision.rejected);
    let now: Vec<Candidate> = fitting(all, command.method, &mut decision)
        .into_iter()
        .filter(|c| command.candidates.iter().any(|old| old.claim_name() == c.claim_name()))
        .collect();
    let mut left = remaining(input, command.reason);
    if command.method == Method::Emptiness {
        if now.is_empty() {
            return Err("churn");
        }
        let kept: Vec<Candidate> =
            now.into_iter().filter(|c| take(&mut left, c.pool_name())).collect();
        if kept.is_empty() {
            return Err("budget");
        }
        let savings = kept.iter().map(|c| c.price).sum();
        return Ok(Command { candidates: kept, savings, ..command.clone() });
    }
    if now.len() != command.candidates.len() {
        return Err("churn");
    }
    if !now.iter().all(|c| take(&mut left, c.pool_name())) {
        return Err("budget");
    }
    let simulated = simulation::without(input, &now.iter().collect::<Vec<_>>(), true);
    if !simulated.stranded.is_empty() {
        return Err("scheduling");
    }
    let fits = match (command.replacements.as_slice(), simulated.results.new_claims.as_slice()) {
        ([], []) => true,
        ([old], [new]) => old
            .instance_types
            .iter()
            .all(|t| new.instance_types.iter().any(|other| other.name == t.name)),
        _ => false,
    };
    if fits { Ok(command.clone()) } else { Err("scheduling") }
}
