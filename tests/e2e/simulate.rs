//! `karpenter simulate --from-cluster`: what a running cluster is read as, and what is kept of it.

use std::path::Path;
use std::process::{Command, Output};

use karpenter::scheduling::pod::PodInfo;
use serde_json::{Value, json};

use crate::chain::one_initialized;
use crate::support::world::root;
use crate::support::{Controller, World, until};

const MANIFESTS: &str = "examples/weasel-eks/manifests.yaml";
/// A word that may stand nowhere but in the cluster.
const SECRET: &str = "hunter2-hunter2";

/// Runs `karpenter simulate` in the world's environment, changed by these settings.
fn simulate(world: &World, words: &[&str], settings: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_karpenter"))
        .arg("simulate")
        .args(words)
        .env_clear()
        .envs(std::env::vars().filter(|(k, _)| matches!(k.as_str(), "PATH" | "HOME" | "TMPDIR")))
        .envs(&world.env)
        .envs(settings.iter().copied())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The outcome as JSON, without what differs from run to run.
fn outcome(world: &World, words: &[&str], settings: &[(&str, &str)]) -> Value {
    let done = simulate(world, &[words, &["--output", "json"]].concat(), settings);
    assert!(done.status.success(), "{words:?}: {}", text(&done.stderr));
    let mut value: Value = serde_json::from_slice(&done.stdout).unwrap();
    for measured in ["solveSeconds", "peakRssBytes"] {
        value.as_object_mut().unwrap().remove(measured);
    }
    value
}

/// A pod with the secret in its environment, its command and an annotation.
fn pod(name: &str, cpu: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "annotations": {"note": SECRET}},
        "spec": {"containers": [{"name": "pause", "image": "pause", "args": [SECRET],
            "env": [{"name": "PASSWORD", "value": SECRET},
                {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "token"}}}],
            "resources": {"requests": {"cpu": cpu}}}]}})
}

/// A cluster with one node of Karpenter's on which a pod and a daemon run, and pods that wait: one
/// held back by a gate, one for which a node must be launched, one that fits nowhere.
async fn cluster() -> World {
    let world = World::up().await;
    let secret = json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "s", "namespace": "default"}, "stringData": {"token": SECRET}});
    world.apply(&secret.to_string()).await;
    let template =
        json!({"metadata": {"labels": {"app": "agent"}}, "spec": pod("", "100m")["spec"]});
    let daemon = json!({"apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": "agent", "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": "agent"}}, "template": template}});
    world.apply(&daemon.to_string()).await;
    let mut controller = Controller::start(&world);
    world.apply_file(MANIFESTS).await;
    world.apply(&pod("running", "1").to_string()).await;
    one_initialized(&world).await;
    until("the pod and the daemon running", || async {
        (world.running().await == 2).then_some(())
    })
    .await;
    controller.stop();
    let mut gated = pod("gated", "100m");
    gated["spec"]["schedulingGates"] = json!([{"name": "example.com/later"}]);
    for pending in [gated, pod("more", "1500m"), pod("huge", "900")] {
        world.apply(&pending.to_string()).await;
    }
    until("two pods that fit nowhere", || async {
        let pods = world.pods().await;
        (pods.iter().filter(|p| PodInfo::from_pod(p).is_provisionable()).count() == 2).then_some(())
    })
    .await;
    world
}

fn check(found: &Value) {
    let claims = found["nodeClaims"].as_array().unwrap();
    assert_eq!(claims.len(), 1, "{found}");
    assert_eq!(claims[0]["pods"], json!(["default/more"]));
    assert_eq!(claims[0]["cheapest"]["instanceType"], "t3.medium");
    // The daemon has its share of the new node.
    assert_eq!(claims[0]["requests"]["cpu"], "1600m");
    assert_eq!(found["unschedulable"][0]["pod"], "default/huge");
    assert_eq!(found["unschedulable"].as_array().unwrap().len(), 1);
    assert!(found["totalPrice"].as_f64().unwrap() > 0.0);
}

/// The file holds what decides, and nothing of what is nobody's business.
fn check_saved(file: &Path) {
    let saved = std::fs::read_to_string(file).unwrap();
    for word in [SECRET, "PASSWORD", "\"Secret\"", "managedFields", "pause"] {
        assert!(!saved.replace("\"name\": \"pause\"", "").contains(word), "{word}");
    }
    let saved: Value = serde_json::from_str(&saved).unwrap();
    assert_eq!(saved["nodes"].as_array().unwrap().len(), 1);
    assert_eq!(saved["nodes"][0]["pods"].as_array().unwrap().len(), 2);
    assert!(saved["nodes"][0]["nodeClaim"]["status"]["providerID"].is_string());
    assert_eq!(saved["daemonSetPods"].as_array().unwrap().len(), 1);
    assert_eq!(saved["pods"].as_array().unwrap().len(), 2);
    assert!(!saved["instanceTypes"].as_array().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_read_saved_and_decided_on_again() {
    let world = cluster().await;
    let file = world.dir.join("scenario.json");
    let name = file.to_str().unwrap();
    let found = outcome(&world, &["--from-cluster", "--save", name], &[]);
    check(&found);
    check_saved(&file);
    assert_eq!(outcome(&world, &["--scenario", name], &[("KUBECONFIG", "/dev/null")]), found);

    let table = simulate(&world, &["--from-cluster"], &[]);
    assert!(table.status.success(), "{}", text(&table.stderr));
    let table = text(&table.stdout);
    for part in ["t3.medium", "cpu=1600m", "default/huge", "1 new node(s) for 1 pod(s)"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    // Disruption is decided on from the same reading: the node is in use, and stays.
    let kept = outcome(&world, &["--from-cluster", "--disrupt"], &[]);
    assert_eq!(kept["commands"], json!([]), "{kept}");

    // Where AWS cannot be asked, a saved answer of it does; without one that is told.
    let nowhere = [("AWS_ENDPOINT_URL", "http://127.0.0.1:1"), ("AWS_MAX_ATTEMPTS", "1")];
    let refused = simulate(&world, &["--from-cluster"], &nowhere);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("--aws-instance-types FILE"), "{refused:?}");
    let answer = world.dir.join("instance-types.json");
    let packed = root().join("tests/data/instance-types.json.gz");
    let unpacked = Command::new("gzip").arg("-dc").arg(packed).output().unwrap();
    std::fs::write(&answer, unpacked.stdout).unwrap();
    let types = ["--from-cluster", "--aws-instance-types", answer.to_str().unwrap()];
    check(&outcome(&world, &types, &nowhere));

    let refused = simulate(&world, &["--from-cluster"], &[("KUBECONFIG", "/dev/null")]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).starts_with("karpenter simulate: reading the cluster: "));
}

/// What a changed NodePool would do to a running cluster: nodes, money, moves.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_node_pool_is_tried_on_the_running_cluster() {
    let world = cluster().await;
    let read = world.kubectl(&["get", "nodepools.v1.karpenter.sh", "default", "-o", "json"]);
    let mut pool: Value = serde_json::from_str(&read).unwrap();
    let file = world.dir.join("nodepool.yaml");
    let name = file.to_str().unwrap();
    let write = |pool: &Value| std::fs::write(&file, pool.to_string()).unwrap();

    // As it is, nothing changes.
    write(&pool);
    let same = outcome(&world, &["--from-cluster", "-f", name], &[]);
    assert_eq!(same["nodePools"][0]["change"], "unchanged", "{same}");
    assert_eq!(same["withChange"], same["withoutChange"], "{same}");

    // On demand instead of spot: its node is replaced, and costs more.
    let requirements = pool["spec"]["template"]["spec"]["requirements"].as_array_mut().unwrap();
    let capacity = requirements.iter_mut().find(|r| r["key"] == "karpenter.sh/capacity-type");
    capacity.unwrap()["values"] = json!(["on-demand"]);
    write(&pool);
    let found = outcome(&world, &["--from-cluster", "-f", name], &[]);
    let of_pool = json!({"name": "default", "change": "changed", "nodes": 1, "drifted": 1});
    assert_eq!(found["nodePools"], json!([of_pool]), "{found}");
    let commands = found["commands"].as_array().unwrap();
    assert!(commands.iter().any(|c| c["reason"] == "Drifted"), "{found}");
    let price = |figures: &str| found[figures]["price"].as_f64().unwrap();
    assert!(price("withChange") > price("withoutChange"), "{found}");
    assert_eq!(found["withoutChange"]["evictions"], 0, "{found}");
    assert!(found["withChange"]["evictions"].as_u64().unwrap() >= 1, "{found}");
    assert_eq!(found["withChange"]["unschedulable"], 1, "the huge pod: {found}");

    let table = simulate(&world, &["--from-cluster", "-f", name], &[]);
    let table = text(&table.stdout);
    for part in ["with the change", "Drifted", "t3.medium", "The change costs "] {
        assert!(table.contains(part), "{part}: {table}");
    }
    // The cluster itself stays as it was.
    assert_eq!(world.claims().await.len(), 1);
    let kept = world.kubectl(&["get", "nodepools.v1.karpenter.sh", "default", "-o", "json"]);
    assert_eq!(
        serde_json::from_str::<Value>(&kept).unwrap(),
        serde_json::from_str::<Value>(&read).unwrap()
    );
}
