//! What must hold for every scenario.

use karpenter::scheduling;
use karpenter::simulate::load;
use karpenter::simulate::report::Report;
use serde_json::Value;

use super::reference::check::World;
use super::reference::model::Document;
use super::reference::outcome::Outcome;
use super::reference::{fitting, random};

/// What `karpenter simulate` would print for a scenario.
fn solve(scenario: &Value) -> Value {
    let read = load(scenario.to_string().as_bytes()).expect("a readable scenario");
    let world = karpenter::simulate::World::new(read).expect("a usable scenario");
    let results = scheduling::solve(&world.snapshot);
    serde_json::to_value(Report::new(&results).with_left_out(&world)).expect("a report")
}

/// How many random scenarios each property is tried on; `REFERENCE_SCENARIOS` sets another number.
fn seeds() -> std::ops::Range<u64> {
    let wanted = std::env::var("REFERENCE_SCENARIOS").ok().and_then(|t| t.parse().ok());
    0..wanted.unwrap_or(150)
}

/// Fails with every seed that has problems, after trying them all.
fn none_of(problems: impl Fn(&Document, &Outcome) -> Vec<String>) {
    let mut failures = Vec::new();
    for seed in seeds() {
        let scenario = random::scenario(seed);
        let outcome = Outcome::read(solve(&scenario));
        let doc = Document::read(scenario);
        let found = problems(&doc, &outcome);
        if !found.is_empty() {
            failures.push(format!("seed {seed}:\n  {}", found.join("\n  ")));
        }
    }
    assert!(failures.is_empty(), "{} of {:?}\n{}", failures.len(), seeds(), failures.join("\n"));
}

#[test]
fn every_placement_is_valid() {
    none_of(|doc, outcome| World::new(doc, outcome).problems());
}

#[test]
fn unschedulable_pods_fit_nowhere() {
    none_of(|doc, outcome| fitting(&World::new(doc, outcome)));
}

#[test]
fn the_same_scenario_gives_the_same_bytes() {
    for seed in seeds().step_by(5) {
        let scenario = random::scenario(seed);
        assert_eq!(solve(&scenario).to_string(), solve(&scenario).to_string(), "seed {seed}");
    }
}

#[test]
fn the_order_of_the_input_does_not_matter() {
    for seed in seeds().step_by(5) {
        let scenario = random::scenario(seed);
        let mut turned = scenario.clone();
        for list in ["pods", "nodes", "nodePools", "instanceTypes", "objects"] {
            turned[list].as_array_mut().expect("a list").reverse();
        }
        assert_eq!(solve(&scenario), solve(&turned), "seed {seed}");
    }
}

/// Scenarios in which Karpenter's chance once found a cheaper packing than ours, with its lowest price.
const LUCKY: &[(u64, f64)] = &[(331, 1.30412)];

#[test]
fn karpenter_is_never_cheaper_even_by_chance() {
    for (seed, price) in LUCKY {
        let ours = solve(&random::scenario(*seed))["totalPrice"].as_f64().expect("a price");
        assert!(ours <= price + 1e-9, "seed {seed}: {ours} instead of {price}");
    }
}
