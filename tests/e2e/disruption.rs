//! Disruption that launches something first, and a controller that dies in the middle of it.

mod moves;

use std::time::Duration;

use karpenter::api::v1::NodeClaim;
use serde_json::{Value, json};

use crate::chain::condition;
use crate::support::{Controller, World, until, within};

const CLASS: &str = "examples/weasel-eks/manifests.yaml";
const MINUTES: Duration = Duration::from_secs(240);

fn pool(name: &str, types: &[&str], over: Value) -> Value {
    let mut pool = json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool",
        "metadata": {"name": name},
        "spec": {
            "disruption": {"consolidateAfter": "Never", "budgets": [{"nodes": "100%"}]},
            "template": {"metadata": {"labels": {"pool": name}}, "spec": {
                "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass",
                    "name": "default"},
                "requirements": [
                    {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["on-demand"]},
                    {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": types}]}}}});
    for (key, part) in over.as_object().into_iter().flatten() {
        pool["spec"][key] = part.clone();
    }
    pool
}

/// A world with the node class and no pool but the given ones.
async fn begin(world: &World, pools: &[Value]) {
    world.apply_file(CLASS).await;
    world.kubectl(&["delete", "nodepool", "default"]);
    for pool in pools {
        world.apply(&pool.to_string()).await;
    }
}

fn name(claim: &NodeClaim) -> String {
    claim.metadata.name.clone().unwrap_or_default()
}

fn type_of(claim: &NodeClaim) -> String {
    let labels = claim.metadata.labels.as_ref();
    labels.and_then(|l| l.get("node.kubernetes.io/instance-type")).cloned().unwrap_or_default()
}

async fn initialized(world: &World, count: usize) -> Vec<NodeClaim> {
    within(MINUTES, &format!("{count} initialized NodeClaim(s)"), || async {
        let claims = world.claims().await;
        let ready = claims.len() == count && claims.iter().all(|c| condition(c, "Initialized"));
        ready.then_some(claims)
    })
    .await
}

async fn tainted(world: &World) -> usize {
    let marked = |node: &k8s_openapi::api::core::v1::Node| {
        let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
        taints.is_some_and(|t| t.iter().any(|t| t.key == "karpenter.sh/disrupted"))
    };
    world.nodes().await.iter().filter(|n| marked(n)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_are_replaced_by_a_cheaper_one() {
    let world = World::up().await;
    let controller = Controller::start(&world);
    let types = ["m5.xlarge", "m5.2xlarge"];
    begin(&world, &[pool("mixed", &types, json!({}))]).await;
    // Two large pods take a node each; a small one joins each of them.
    world.deploy("large", 2, "6", "1Gi").await;
    initialized(&world, 2).await;
    until("two large pods", || async { (world.running().await == 2).then_some(()) }).await;
    world.deploy("small", 2, "1200m", "1Gi").await;
    until("four pods", || async { (world.running().await == 4).then_some(()) }).await;
    let before = world.claims().await;
    assert!(before.len() == 2 && before.iter().all(|c| type_of(c) == "m5.2xlarge"));

    world.scale("large", 0);
    until("two small pods", || async { (world.running().await == 2).then_some(()) }).await;
    let now = json!({"disruption": {"consolidateAfter": "0s", "budgets": [{"nodes": "100%"}]}});
    world.apply(&pool("mixed", &types, now).to_string()).await;
    within(MINUTES, "one smaller node", || async {
        let claims = world.claims().await;
        let one = claims.len() == 1 && type_of(&claims[0]) == "m5.xlarge";
        (one && condition(&claims[0], "Initialized")).then_some(())
    })
    .await;
    within(MINUTES, "both pods again", || async { (world.running().await == 2).then_some(()) })
        .await;
    let lines = controller.logged("disrupting node(s)");
    assert_eq!(lines.len(), 1, "one command: {lines:?}");
    assert_eq!(lines[0]["decision"], "replace");
    assert_eq!(lines[0]["disrupted-node-count"], 2);
    assert_eq!(lines[0]["replacement-node-count"], 1);
    let events = world.events("DisruptionLaunching").await;
    assert!(events.iter().any(|e| e == "Launching NodeClaim: Underutilized"), "{events:?}");
    assert!(!world.events("ConsolidationCandidate").await.is_empty());
    within(MINUTES, "one instance", || async {
        (world.instances().await.len() == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drifted_nodes_of_a_static_pool_are_replaced_within_its_limit() {
    let world = World::up().await;
    let gates = ("FEATURE_GATES", "StaticCapacity=true");
    let _controller = Controller::with(&world, &[gates]);
    let fixed = |team: &str| {
        let mut pool =
            pool("fixed", &["t3.medium"], json!({"replicas": 2, "limits": {"nodes": "3"}}));
        pool["spec"]["template"]["metadata"]["labels"]["team"] = json!(team);
        pool
    };
    begin(&world, &[fixed("a")]).await;
    let old: Vec<String> = initialized(&world, 2).await.iter().map(name).collect();

    world.apply(&fixed("b").to_string()).await;
    let mut most = 0;
    for _ in 0..240 {
        let claims = world.claims().await;
        most = most.max(claims.len());
        let fresh = claims.iter().all(|c| !old.contains(&name(c)));
        if claims.len() == 2 && fresh && claims.iter().all(|c| condition(c, "Initialized")) {
            assert_eq!(most, 3, "one more than replicas at a time, as the limit says");
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("the drifted nodes are still there: {:?}", world.claims().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_under_way_survives_the_controller() {
    let world = World::up().await;
    let mut controller = Controller::start(&world);
    begin(&world, &[pool("one", &["t3.medium"], json!({}))]).await;
    world.deploy("inflate", 1, "500m", "200Mi").await;
    let old = name(&initialized(&world, 1).await[0]);

    // The replacement is created, and its launch takes long enough to die meanwhile.
    world
        .fault(json!({"service": "ec2", "action": "CreateFleet", "delay": 600,
            "code": "InternalError", "status": 500}))
        .await;
    let mut drifted = pool("one", &["t3.medium"], json!({}));
    drifted["spec"]["template"]["metadata"]["labels"]["team"] = json!("b");
    world.apply(&drifted.to_string()).await;
    within(MINUTES, "a replacement", || async { (world.claims().await.len() == 2).then_some(()) })
        .await;
    assert_eq!(tainted(&world).await, 1);
    controller.kill();
    world.heal().await;
    let made: Vec<String> = world.claims().await.iter().map(name).filter(|n| *n != old).collect();

    let second = Controller::start(&world);
    second.says(&["resuming a disruption command"]).await;
    within(MINUTES, "the old node gone", || async {
        let claims = world.claims().await;
        (claims.len() == 1 && condition(&claims[0], "Initialized")).then_some(())
    })
    .await;
    let left: Vec<String> = world.claims().await.iter().map(name).collect();
    assert_eq!(left, made, "the same replacement, and no other");
    assert!(second.logged("created nodeclaim").is_empty());
    within(MINUTES, "one instance", || async {
        (world.instances().await.len() == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_without_a_replacement_are_taken_back_after_a_restart() {
    let world = World::up().await;
    let mut controller = Controller::start(&world);
    begin(&world, &[pool("one", &["t3.medium"], json!({}))]).await;
    world.deploy("inflate", 1, "500m", "200Mi").await;
    let claim = initialized(&world, 1).await.remove(0);
    // A pod that is still pending when the taint comes would get a second node.
    until("the pod runs", || async { (world.running().await == 1).then_some(()) }).await;
    controller.kill();
    // What a process leaves that dies between the taint and the launch.
    let node = claim.status.as_ref().and_then(|s| s.node_name.clone()).unwrap();
    world.kubectl(&["taint", "node", &node, "karpenter.sh/disrupted:NoSchedule"]);
    let mut list: Vec<Value> =
        serde_json::from_value(serde_json::to_value(&claim.status).unwrap()["conditions"].clone())
            .unwrap();
    list.push(json!({"type": "DisruptionReason", "status": "True", "reason": "Drifted",
        "message": "Drifted", "lastTransitionTime": "2026-01-01T00:00:00Z"}));
    let patch = json!({"status": {"conditions": list}}).to_string();
    let at = name(&claim);
    let words = ["patch", "nodeclaim", &at, "--subresource=status", "--type=merge", "-p", &patch];
    world.kubectl(&words);
    assert_eq!(tainted(&world).await, 1);

    let _second = Controller::start(&world);
    within(MINUTES, "no mark", || async {
        let claims = world.claims().await;
        let clear = claims.len() == 1 && !condition(&claims[0], "DisruptionReason");
        (clear && tainted(&world).await == 0).then_some(())
    })
    .await;
    assert_eq!(world.instances().await.len(), 1);
}
