//! `karpenter replay` as users call it, and what it records of a cluster.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::World;
use crate::support::until;

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
duration: 20m
workloads:
- name: web
  kind: Deployment
  requests: {cpu: 500m, memory: 1Gi}
  replicas: {steps: [{at: 0s, replicas: 4}, {at: 10m, replicas: 3}]}
";

#[test]
fn a_replay_prints_json_and_draws_a_chart() {
    let (workload, folder) = (file(SHORT), tempfile::tempdir().unwrap());
    let chart = folder.path().join("chart.svg");
    let mut words = POOLS.to_vec();
    words.extend(["--output", "json", "--chart", chart.to_str().unwrap()]);
    let done = replay(workload.path(), &words);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let outcomes: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&outcomes[0]["name"], &outcomes[1]["name"]), (&json!("on-demand"), &json!("spot")));
    assert_eq!(outcomes[0]["pendingAtEnd"], 0);
    assert!(std::fs::read_to_string(chart).unwrap().starts_with("<svg"));
}

#[test]
fn bad_input_of_a_replay_ends_with_2_and_names_the_place() {
    let complains = |text: &str, place: &str| {
        let workload = file(text);
        let output = replay(workload.path(), &POOLS);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(place), "{said}");
    };
    complains(&SHORT.replace("duration: 20m", "length: 20m"), "length: unknown field");
    complains(
        &SHORT.replace("replicas: 3}", "replicas: -3}"),
        "workloads[0].replicas.steps[1].replicas",
    );
    complains(
        &SHORT.replace("at: 10m", "at: 0s"),
        "workloads[0].replicas.steps[1].at: expected a time after",
    );
    let daemons = format!(
        "daemonSets: [{{name: a, requests: {{cpu: 1}}}}, {{name: a, requests: {{cpu: 1}}}}]{SHORT}"
    );
    complains(&daemons, "daemonSets[1].name: expected a name of its own");
    let workload = file(SHORT);
    let output = replay(workload.path(), &["--nodepools", "examples/scenarios/shop.yaml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("expected at least one NodePool"));
    let output = replay(workload.path(), &["--nodepools", "nowhere.yaml"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn bad_words_of_a_recording_end_with_2() {
    for words in [
        &["--record", "week.yaml", "--for", "5 days"][..],
        &["--record", "week.yaml", "--for", "0s"],
        &["--record", "week.yaml", "--every", "-1m"],
        &["--record", "week.yaml", "--workload", "other.yaml"],
        &["--for", "1h"],
    ] {
        let done = Command::new(env!("CARGO_BIN_EXE_karpenter")).arg("replay").args(words).output();
        let done = done.unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(2), "{words:?}: {said}");
    }
}

#[tokio::test]
async fn a_cluster_is_recorded_until_the_recorder_is_interrupted() {
    let world = World::up().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("recorded.json");
    let deployment = |replicas: u32| {
        json!({ "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": "web", "namespace": "default" },
            "spec": { "replicas": replicas, "selector": { "matchLabels": { "app": "web" } },
                "template": { "metadata": { "labels": { "app": "web" } },
                    "spec": { "containers": [{ "name": "c", "image": "secret-image",
                        "env": [{ "name": "PASSWORD", "value": "hunter2" }],
                        "resources": { "requests": { "cpu": "250m" } } }] } } } })
    };
    world.apply(&deployment(2).to_string()).await;
    let mut recorder = Command::new(env!("CARGO_BIN_EXE_karpenter"))
        .args(["replay", "--every", "1s", "--for", "1h", "--record"])
        .arg(&file)
        .envs(&world.env)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let replicas = || {
        let text = std::fs::read_to_string(&file).ok()?;
        let document: Value = serde_json::from_str(&text).unwrap();
        let all = document["workloads"].as_array()?;
        Some(all.iter().find(|w| w["name"] == "web")?["replicas"].clone())
    };
    until("the Deployment in the file", || async { replicas() }).await;
    // Steps are whole seconds apart.
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.apply(&deployment(5).to_string()).await;
    until("the change in the file", || async {
        (replicas()?["steps"].as_array()?.last()?["replicas"] == 5).then_some(())
    })
    .await;
    let pid = recorder.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(recorder.wait().unwrap().success());
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains("hunter2") && !text.contains("secret-image"), "{text}");
    let done = replay(&file, &POOLS);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}
