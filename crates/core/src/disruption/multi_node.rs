//! Multi-node consolidation: a set of nodes that can go together, with at most one cheaper node in
//! their place.
//!
//! Which sets there are is not a matter of one order. The nodes with the best savings are tried as
//! Karpenter does, but also each pool and each zone by itself, and those first that waste most. In
//! each order the search grows from two nodes up and shrinks from all of them down: two may not pay
//! where three do. The set that saves most wins, whatever the order that it came from.

use std::collections::{BTreeMap, BTreeSet};

use super::methods::{Pass, Search};
use super::score::Score;
use super::{Candidate, Command, Input, Method, Rejection, consolidation};
use crate::api::labels;
use crate::scheduling::resources::Name;

/// Most candidates of a command. Karpenter stops at 101.
const WINDOW: usize = 500;
/// In an order of so few candidates each number of them is tried.
const EACH_NUMBER: usize = 8;
/// Most sets that a pass simulates.
const MOST_SETS: usize = 64;

pub(super) struct MultiNode;

impl Search for MultiNode {
    fn fit(&self, _: &Input<'_>, candidate: &Candidate) -> Result<(), Rejection> {
        consolidation::fit(candidate)
    }

    fn search(&self, pass: &mut Pass<'_>, candidates: Vec<Candidate>) {
        let mut found = Found::default();
        for (at, order) in orders(&candidates).into_iter().enumerate() {
            let chosen = within_budgets(pass, &order);
            if chosen.len() < 2 {
                continue;
            }
            let most = grow(pass, &chosen, &mut found);
            // All that may go in this pass goes: no other order does better.
            if (at == 0 && most == chosen.len()) || !found.more(pass) {
                break;
            }
        }
        pass.decision.judged.extend(match (&found.best, found.refused) {
            (Some(command), _) => command.scores.clone(),
            (None, refused) => refused,
        });
        if let Some(command) = found.best {
            pass.decision.take(command);
        }
        let left: Vec<&Candidate> =
            candidates.iter().filter(|c| pass.budgets.remaining(c.pool_name()) <= 0).collect();
        for candidate in left {
            if !going(pass, candidate) {
                pass.over_budget(candidate);
            }
        }
    }
}

fn going(pass: &Pass<'_>, candidate: &Candidate) -> bool {
    let mut all = pass.decision.commands.iter().flat_map(|c| &c.candidates);
    all.any(|c| c.node.name() == candidate.node.name())
}

/// The best set so far.
#[derive(Default)]
struct Found {
    best: Option<Command>,
    /// Scores of the last command that a pool did not agree to.
    refused: Vec<Score>,
    tried: BTreeSet<Vec<String>>,
}

impl Found {
    fn more(&self, pass: &mut Pass<'_>) -> bool {
        self.tried.len() < MOST_SETS && pass.go_on()
    }

    /// Tries one set; true when it can go.
    fn attempt(&mut self, pass: &mut Pass<'_>, set: &[&Candidate]) -> bool {
        let mut names: Vec<String> = set.iter().map(|c| c.node.name().to_owned()).collect();
        names.sort_unstable();
        if !self.tried.insert(names) {
            return false;
        }
        let Ok(mut command) = consolidation::compute(pass, set, Method::MultiNode) else {
            return false;
        };
        let scores = pass.balance.scores(set, command.savings);
        if scores.iter().any(|s| !s.approved()) {
            self.refused = scores;
            return false;
        }
        command.scores = scores;
        if self.best.as_ref().is_none_or(|best| best.savings < command.savings) {
            self.best = Some(command);
        }
        true
    }
}

/// Looks for the largest part of an order that can go; returns how many that are.
fn grow(pass: &mut Pass<'_>, order: &[&Candidate], found: &mut Found) -> usize {
    let all = order.len().min(WINDOW);
    let (mut least, mut most, mut reached) = (2, all, 0);
    while least <= most && found.more(pass) {
        let middle = least.midpoint(most);
        if found.attempt(pass, &order[..middle]) {
            reached = middle;
            least = middle + 1;
        } else {
            most = middle - 1;
        }
    }
    // A set may pay where a smaller one does not, so that halving missed it.
    let numbers: Vec<usize> = if all <= EACH_NUMBER {
        (reached.max(1) + 1..=all).rev().collect()
    } else {
        let shrinking = std::iter::successors(Some(all), |n| Some(n * 2 / 3));
        shrinking.take_while(|n| *n > reached.max(1)).collect()
    };
    for number in numbers {
        if !found.more(pass) {
            break;
        }
        if found.attempt(pass, &order[..number]) {
            return number;
        }
    }
    reached
}

/// The orders in which sets are looked for, without those that add nothing.
fn orders(candidates: &[Candidate]) -> Vec<Vec<&Candidate>> {
    let all: Vec<&Candidate> = candidates.iter().collect();
    let mut wasteful = all.clone();
    wasteful.sort_by(|a, b| {
        wasted(b).total_cmp(&wasted(a)).then_with(|| a.node.name().cmp(b.node.name()))
    });
    let mut orders = vec![all.clone()];
    for key in [labels::NODEPOOL, labels::ZONE] {
        let mut groups: BTreeMap<&str, Vec<&Candidate>> = BTreeMap::new();
        for candidate in &wasteful {
            groups.entry(candidate.label(key).unwrap_or_default()).or_default().push(*candidate);
        }
        if groups.len() > 1 {
            orders.extend(groups.into_values());
        }
    }
    orders.insert(1, wasteful);
    orders
}

/// The part of a node's price that is paid for what none of its pods requests.
fn wasted(candidate: &Candidate) -> f64 {
    let (allocatable, free) = (candidate.node.allocatable(), candidate.node.available());
    let part = |name: Name| {
        let (all, free) = (allocatable.get(&name), free.get(&name));
        #[allow(clippy::cast_precision_loss, reason = "a share of a node, for an order")]
        if all > 0 { (free.max(0) as f64 / all as f64).min(1.0) } else { 0.0 }
    };
    candidate.price * part(Name::Cpu).min(part(Name::Memory))
}

/// Those of an order that the budgets of their pools let go.
fn within_budgets<'a>(pass: &mut Pass<'_>, order: &[&'a Candidate]) -> Vec<&'a Candidate> {
    let mut budgets = pass.budgets.clone();
    let mut chosen = Vec::with_capacity(order.len());
    for candidate in order {
        if budgets.take(candidate.pool_name()) {
            chosen.push(*candidate);
        } else {
            pass.decision.constrained = true;
        }
    }
    chosen
}
