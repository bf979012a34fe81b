//! A slow, obviously right reading of the rules, and random scenarios to try it on.
//!
//! The tests beside this file and `make compare` both use it.

pub mod check;
pub mod fits;
pub mod label;
pub mod model;
pub mod outcome;
pub mod place;
pub mod random;
pub mod topology;

use karpenter::scheduling;
use karpenter::simulate::report::Report;
use karpenter::simulate::{World, load};
use serde_json::Value;

/// What `karpenter simulate` would print for a scenario.
pub fn solve(scenario: &Value) -> Value {
    let read = load(scenario.to_string().as_bytes()).expect("a readable scenario");
    let world = World::new(read).expect("a usable scenario");
    let results = scheduling::solve(&world.snapshot);
    serde_json::to_value(Report::new(&results).with_left_out(&world)).expect("a report")
}

/// Rules that a result breaks.
pub fn broken(doc: &model::Document, outcome: &outcome::Outcome) -> Vec<String> {
    check::World::new(doc, outcome).problems()
}

/// Everything wrong with a result: broken rules, and left-over pods that would fit.
pub fn problems(doc: &model::Document, outcome: &outcome::Outcome) -> Vec<String> {
    let world = check::World::new(doc, outcome);
    let mut found = world.problems();
    found.extend(fitting(&world));
    found
}

/// Left-over pods that would fit somewhere.
///
/// Pods that wait for reserved capacity are left out, and so are those with a rule by zone (or
/// another domain that several nodes share) about pods of this very round: where a planned node
/// will be is settled step by step, and what a step leaves open is taken up in the next round.
pub fn fitting(world: &check::World<'_>) -> Vec<String> {
    let left = world.outcome.unschedulable.iter().filter(|l| !l.error.contains("reserved"));
    left.filter_map(|left| {
        let pod = world.pods.get(&left.pod)?;
        if fits::depends_on_this_round(world, pod) {
            return None;
        }
        let place = fits::somewhere(world, pod)?;
        Some(format!("{} fits on {place}; the solver says: {}", left.pod, left.error))
    })
    .collect()
}
