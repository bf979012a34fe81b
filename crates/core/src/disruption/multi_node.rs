//! Multi-node consolidation: a set of nodes that can go together, with at most one cheaper node in
//! their place.
//!
//! Which sets there are is not a matter of one order. The nodes with the best savings are tried as
//! Karpenter does, but also each pool and each zone by itself, and those first that waste most. In
//! each order the search grows from two nodes up and shrinks from all of them down: two may not pay
//! where three do. The set that saves most wins, whatever the order that it came from.

use std::collections::{BTreeMap, BTreeSet};

use super::consolidation::{self, Refusal};
use super::methods::{Pass, Search};
use super::score::{Score, savings};
use super::{Candidate, Command, Input, Method, Rejection};
use crate::api::labels;
use crate::scheduling::resources::Name;
use crate::scheduling::results::PlannedClaim;

/// Most candidates of a command that only removes nodes; Karpenter takes as many. A larger set becomes
/// several commands, each checked and carried out by itself.
const MOST_CANDIDATES: usize = 100;
/// In an order of so few candidates each number of them is tried.
const EACH_NUMBER: usize = 8;
/// Most sets that a pass simulates before the best is filled up.
const MOST_SETS: usize = 64;
/// How many pods a pass may place on paper while it looks for sets. Placing one takes less than ten
/// microseconds, so this is about ten seconds at most, on a cluster of any size: the loop is not held up
/// for longer. Karpenter stops this search by the clock, after a minute; a count gives equal answers to
/// equal input.
const MOST_WORK: usize = 1_000_000;
/// The part of it that the sets of the orders may take; the rest is for filling the best one up.
const WORK_FOR_ORDERS: usize = MOST_WORK / 2;
/// Where the search for better sets begins: so many tenths of the best, filled up in the order of
/// savings or of waste.
const STARTS: [(usize, bool); 5] = [(10, false), (8, true), (9, true), (7, true), (10, true)];
/// After so many nodes of a type that cannot go along, others of the type are not tried.
const MOST_ALIKE: usize = 8;
/// How many nodes of a set may stay after all, one after the other.
const MOST_KEPT: usize = 3;

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
            found.own = at == 0;
            let most = grow(pass, &chosen, &mut found);
            // All that may go in this pass goes: no other order does better.
            if (at == 0 && most == chosen.len()) || !found.more(pass) {
                break;
            }
        }
        if !found.best.is_empty() {
            improve(pass, &candidates, &mut found);
        }
        let commands: Vec<Command> =
            found.best.into_iter().flat_map(|whole| divide(pass, whole)).collect();
        let judged = commands.iter().flat_map(|c| c.scores.iter().cloned());
        pass.decision.judged.extend(judged);
        if commands.is_empty() {
            pass.decision.judged.extend(found.refused);
        }
        for command in commands {
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
    best: Vec<Command>,
    /// Scores of the last command that a pool did not agree to.
    refused: Vec<Score>,
    tried: BTreeSet<Vec<String>>,
    /// Sets are those that Karpenter would try, too: whatever saves anything is taken.
    own: bool,
}

impl Found {
    fn more(&self, pass: &mut Pass<'_>) -> bool {
        self.tried.len() < MOST_SETS && pass.work < WORK_FOR_ORDERS && pass.go_on()
    }

    /// Tries one set; true when it can go.
    fn attempt(&mut self, pass: &mut Pass<'_>, set: &[&Candidate]) -> bool {
        let mut names: Vec<String> = set.iter().map(|c| c.node.name().to_owned()).collect();
        names.sort_unstable();
        if !self.tried.insert(names) {
            return false;
        }
        let found = consolidation::compute(pass, set, Method::MultiNode).ok();
        let Some(commands) = found.and_then(|c| self.approved(pass, vec![c])) else { return false };
        let better = if self.own {
            savings(&self.best) < savings(&commands)
        } else {
            pass.balance.pays_more(&self.best, &commands)
        };
        if better {
            self.best = commands;
        }
        true
    }

    /// The commands with their scores, where all pools agree.
    fn approved(&mut self, pass: &Pass<'_>, mut commands: Vec<Command>) -> Option<Vec<Command>> {
        for command in &mut commands {
            let set: Vec<&Candidate> = command.candidates.iter().collect();
            let scores = pass.balance.scores(&set, command.savings);
            if scores.iter().any(|s| !s.approved()) {
                self.refused = scores;
                return None;
            }
            command.scores = scores;
        }
        Some(commands)
    }
}

/// Looks for the largest part of an order that can go; returns how many that are.
fn grow(pass: &mut Pass<'_>, order: &[&Candidate], found: &mut Found) -> usize {
    let all = order.len();
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

/// Looks for better sets around the best: with other candidates in place of some, and with all that
/// can go along.
fn improve(pass: &mut Pass<'_>, candidates: &[Candidate], found: &mut Found) {
    let names: BTreeSet<String> =
        found.best.iter().flat_map(|c| &c.candidates).map(|c| c.node.name().to_owned()).collect();
    let (set, rest): (Vec<&Candidate>, Vec<&Candidate>) =
        candidates.iter().partition(|c| names.contains(c.node.name()));
    for (tenths, by_waste) in STARTS {
        let (kept, freed) = set.split_at((set.len() * tenths).div_ceil(10));
        let mut others: Vec<&Candidate> = freed.iter().chain(&rest).copied().collect();
        if by_waste {
            others.sort_by(|a, b| wasted(b).total_cmp(&wasted(a)));
        }
        let from = if freed.is_empty() { found.best.clone() } else { Vec::new() };
        let commands = fill_up(pass, (kept, from), &others, found);
        if pass.balance.pays_more(&found.best, &commands) {
            found.best = commands;
        }
    }
}

/// Adds to a set what can go with it: where the next node of an order cannot, one after it may.
/// Blocks of candidates are tried first and halved until one fits.
fn fill_up<'a>(
    pass: &mut Pass<'_>,
    (set, mut best): (&[&'a Candidate], Vec<Command>),
    rest: &[&'a Candidate],
    found: &mut Found,
) -> Vec<Command> {
    let mut set = set.to_vec();
    let mut failed: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut at, mut block) = (0, rest.len().div_ceil(4));
    while at < rest.len() && pass.work < MOST_WORK && pass.go_on() {
        let next = &rest[at..rest.len().min(at + block)];
        let kind = next[0].label(labels::INSTANCE_TYPE).unwrap_or_default();
        if failed.get(kind).is_some_and(|times| *times >= MOST_ALIKE) {
            at += 1;
            continue;
        }
        let larger: Vec<&Candidate> = set.iter().chain(next).copied().collect();
        let mut budgets = pass.budgets.clone();
        let fits = larger.iter().all(|c| budgets.take(c.pool_name()));
        let commands = if fits { together(pass, larger, found) } else { None };
        match commands.filter(|(_, commands)| pass.balance.pays_more(&best, commands)) {
            Some((larger, commands)) => {
                best = commands;
                set = larger;
                at += next.len();
                block *= 2;
            }
            None if next.len() > 1 => block = next.len() / 2,
            None => {
                *failed.entry(kind).or_default() += 1;
                at += 1;
            }
        }
    }
    best
}

/// The commands for a set, without the nodes that can as well stay as be replaced with their like.
fn together<'a>(
    pass: &mut Pass<'_>,
    mut set: Vec<&'a Candidate>,
    found: &mut Found,
) -> Option<(Vec<&'a Candidate>, Vec<Command>)> {
    for _ in 0..MOST_KEPT {
        match consolidation::together(pass, &set) {
            Ok(commands) => return found.approved(pass, commands).map(|commands| (set, commands)),
            Err(Refusal::Keep(node)) => set.retain(|c| c.node.name() != node),
            Err(Refusal::Other(_)) => return None,
        }
    }
    None
}

/// A set that is too large for one command, as several: the nodes whose pods need the replacement stay
/// together, and nodes that are only removed go in parts. Each part leaves more room than the whole.
fn divide(pass: &Pass<'_>, whole: Command) -> Vec<Command> {
    if whole.candidates.len() <= MOST_CANDIDATES || whole.replacements.len() > 1 {
        return vec![whole];
    }
    let part = |candidates: Vec<&Candidate>, replacements: Vec<PlannedClaim>| {
        let scores = |savings| pass.balance.scores(&candidates, savings);
        let own = candidates.iter().map(|c| (*c).clone()).collect();
        let command = Command::delete(whole.method, own).with_replacements(replacements);
        let scores = scores(command.savings);
        Command { nominated: whole.nominated.clone(), scores, ..command }
    };
    let mut left: Vec<&Candidate> = whole.candidates.iter().collect();
    let mut all = Vec::new();
    if let Some(claim) = whole.replacements.first() {
        let (with, without) = consolidation::in_need_of(&left, claim);
        let command = part(with, whole.replacements.clone());
        if command.savings <= 0.0 || command.candidates.len() < 2 {
            return vec![whole];
        }
        left = without;
        all.push(command);
    }
    // In turns, so that each part is worth about as much.
    let parts = left.len().div_ceil(MOST_CANDIDATES);
    let turn = |at| left.iter().skip(at).step_by(parts).copied().collect();
    all.extend((0..parts).map(|at| part(turn(at), Vec::new())));
    all.retain(|c| c.scores.iter().all(Score::approved));
    all
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
