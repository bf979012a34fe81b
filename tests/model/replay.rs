//! `karpenter replay` as users call it.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn replay(workload: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_karpenter"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["replay", "--instance-types", "examples/replay/instance-types.yaml", "--workload"])
        .arg(workload)
        .args(words)
        .output()
        .unwrap()
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

const POOLS: [&str; 4] =
    ["--nodepools", "examples/replay/on-demand.yaml", "--nodepools", "examples/replay/spot.yaml"];

const SHORT: &str = "
duration: 4h
workloads:
- name: web
  kind: Deployment
  requests: {cpu: 500m, memory: 1Gi}
  replicas: {steps: [{at: 0s, replicas: 20}, {at: 2h, replicas: 3}]}
- name: job
  kind: Job
  requests: {cpu: 1, memory: 1Gi}
  runs: {at: 1h, pods: 4, podRunsFor: 10m}
";

#[test]
#[ignore = "takes more than 40 seconds in a debug build"]
fn a_replay_compares_pools_and_is_the_same_every_time() {
    let (workload, folder) = (file(SHORT), tempfile::tempdir().unwrap());
    let chart = folder.path().join("chart.svg");
    let mut words = POOLS.to_vec();
    words.extend(["--output", "json", "--chart", chart.to_str().unwrap()]);
    let (one, two) = (replay(workload.path(), &words), replay(workload.path(), &words));
    assert!(one.status.success(), "{}", String::from_utf8_lossy(&one.stderr));
    assert_eq!(String::from_utf8(one.stdout.clone()), String::from_utf8(two.stdout));
    let outcomes: Value = serde_json::from_slice(&one.stdout).unwrap();
    let (demand, spot) = (&outcomes[0], &outcomes[1]);
    assert_eq!((&demand["name"], &spot["name"]), (&"on-demand".into(), &"spot".into()));
    assert!(spot["money"].as_f64() < demand["money"].as_f64(), "{outcomes}");
    assert!(demand["podsBound"].as_u64().unwrap() >= 24, "{outcomes}");
    assert_eq!(demand["pendingAtEnd"], 0);
    let waits = demand["waitMedian"].as_f64().unwrap();
    assert!((20.0..180.0).contains(&waits), "{waits}");
    // The second half of the time needs less.
    let samples = demand["samples"].as_array().unwrap();
    let price = |hour: f64| {
        let at = samples.iter().find(|s| s["hour"].as_f64().unwrap() >= hour).unwrap();
        at["pricePerHour"].as_f64().unwrap()
    };
    assert!(price(3.5) < price(1.8) / 2.0, "{} {}", price(3.5), price(1.8));
    assert!(std::fs::read_to_string(chart).unwrap().starts_with("<svg"));
}

#[test]
fn bad_input_ends_with_2_and_names_the_place() {
    let complains = |text: &str, place: &str| {
        let workload = file(text);
        let output = replay(workload.path(), &POOLS);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(place), "{said}");
    };
    complains(&SHORT.replace("duration: 4h", "length: 4h"), "length: unknown field");
    complains(
        &SHORT.replace("replicas: 3}", "replicas: -3}"),
        "workloads[0].replicas.steps[1].replicas",
    );
    complains(
        &SHORT.replace("at: 2h", "at: 0s"),
        "workloads[0].replicas.steps[1].at: expected a time after",
    );
    let workload = file(SHORT);
    let output = replay(workload.path(), &["--nodepools", "examples/scenarios/shop.yaml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("expected at least one NodePool"));
    let output = replay(workload.path(), &["--nodepools", "nowhere.yaml"]);
    assert_eq!(output.status.code(), Some(2));
}
