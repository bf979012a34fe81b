//! Broken input: what is said about it, and that all is well once it is mended.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use karpenter::api::v1::{EC2NodeClass, NodePool};
use kube::Api;
use serde_json::{Value, json};

use crate::chain::one_initialized;
use crate::support::{Controller, World, node_class, until};

/// A NodePool of t3.medium with more requirements.
fn node_pool(name: &str, class: &str, requirements: &[Value]) -> Value {
    let mut all = vec![
        json!({"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["t3.medium"]}),
    ];
    all.extend(requirements.iter().cloned());
    json!({
        "apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": {"name": name},
        "spec": {"template": {"spec": {
            "requirements": all,
            "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": class},
        }}},
    })
}

fn find<'a>(list: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    list.iter().find(|c| c.type_ == kind)
}

/// Waits until a condition of the EC2NodeClass is False, with these words in its message.
async fn class_says(world: &World, name: &str, kind: &str, words: &str) {
    let api = Api::<EC2NodeClass>::all(world.kube.clone());
    until(&format!("{name}: {kind} is False for {words:?}"), || async {
        let class = api.get(name).await.ok()?;
        let list = class.status?.conditions;
        let found = find(&list, kind)?;
        (found.status == "False" && found.message.contains(words)).then_some(())
    })
    .await;
}

/// Waits until a condition of the NodePool is as told, with these words in reason or message.
async fn pool_says(world: &World, name: &str, kind: &str, status: &str, words: &str) {
    let api = Api::<NodePool>::all(world.kube.clone());
    until(&format!("{name}: {kind} is {status} for {words:?}"), || async {
        let pool = api.get(name).await.ok()?;
        let list = pool.status?.conditions;
        let found = find(&list, kind)?;
        let text = format!("{} {}", found.reason, found.message);
        (found.status == status && text.contains(words)).then_some(())
    })
    .await;
}

/// Waits for an event with that reason and these words.
async fn event_says(world: &World, reason: &str, words: &str) {
    until(&format!("an event {reason} with {words:?}"), || async {
        world.events(reason).await.into_iter().find(|m| m.contains(words))
    })
    .await;
}

async fn pods_run(world: &World, count: usize) {
    until(&format!("{count} running pods"), || async {
        (world.running().await == count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_image_is_told_and_mended() {
    let world = World::up().await;
    let controller = Controller::start(&world);
    let wrong = json!({"amiSelectorTerms": [{"id": "ami-00000000000000bad"}]});
    world.apply(&node_class("default", wrong).to_string()).await;
    world.apply(&node_pool("default", "default", &[]).to_string()).await;
    world.deploy("inflate", 1, "250m", "200Mi").await;
    class_says(&world, "default", "AMIsReady", "AMISelector did not match any AMIs").await;
    class_says(&world, "default", "Ready", "AMIsReady=False").await;
    pool_says(&world, "default", "Ready", "False", "NodeClassReady=False").await;
    controller.says(&["ignoring nodepool, not ready", "\"default\""]).await;
    assert!(world.claims().await.is_empty());

    world.apply(&node_class("default", json!({})).to_string()).await;
    one_initialized(&world).await;
    pods_run(&world, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subnets_that_no_selector_finds_are_told_and_mended() {
    let world = World::up().await;
    let controller = Controller::start(&world);
    let wrong = json!({"subnetSelectorTerms": [{"tags": {"karpenter.sh/discovery": "nobody"}}]});
    world.apply(&node_class("default", wrong).to_string()).await;
    world.apply(&node_pool("default", "default", &[]).to_string()).await;
    world.deploy("inflate", 1, "250m", "200Mi").await;
    class_says(&world, "default", "SubnetsReady", "SubnetSelector did not match any Subnets").await;
    pool_says(&world, "default", "Ready", "False", "NodeClassReady=False").await;
    controller.says(&["ignoring nodepool, not ready"]).await;

    world.apply(&node_class("default", json!({})).to_string()).await;
    one_initialized(&world).await;
    pods_run(&world, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_impossible_pool_and_a_missing_class_are_told_and_mended() {
    let world = World::up().await;
    let controller = Controller::start(&world);
    world.apply(&node_class("default", json!({})).to_string()).await;
    let arm = json!({"key": "kubernetes.io/arch", "operator": "In", "values": ["arm64"]});
    world.apply(&node_pool("impossible", "default", &[arm]).to_string()).await;
    world.apply(&node_pool("orphan", "nowhere", &[]).to_string()).await;
    world.deploy("inflate", 1, "250m", "200Mi").await;

    pool_says(&world, "orphan", "NodeClassReady", "False", "NodeClassNotFound").await;
    pool_says(&world, "orphan", "Ready", "False", "NodeClassReady=False").await;
    pool_says(&world, "impossible", "Ready", "True", "").await;
    event_says(&world, "NoCompatibleInstanceTypes", "").await;
    event_says(&world, "FailedScheduling", "Failed to schedule pod").await;
    controller
        .says(&["skipping, nodepool requirements filtered out all instance types", "impossible"])
        .await;
    controller.says(&["could not schedule pod", "inflate"]).await;
    assert!(world.claims().await.is_empty());

    // One mended pool is enough, whatever becomes of the other.
    world.apply(&node_class("nowhere", json!({})).to_string()).await;
    pool_says(&world, "orphan", "Ready", "True", "").await;
    let claim = one_initialized(&world).await;
    assert_eq!(claim.metadata.labels.unwrap()["karpenter.sh/nodepool"], "orphan");
    pods_run(&world, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_aws_is_told_and_waited_for() {
    let world = World::up().await;
    world.fault(json!({"code": "ServiceUnavailable", "status": 503})).await;
    let mut controller = Controller::start(&world);
    controller.says(&["\"level\":\"ERROR\"", "ec2 api connectivity check failed"]).await;
    assert!(controller.alive());
    world.heal().await;
    world.apply(&node_class("default", json!({})).to_string()).await;
    world.apply(&node_pool("default", "default", &[]).to_string()).await;
    pool_says(&world, "default", "Ready", "True", "").await;

    // It goes away once more, this time in the midst of work.
    world.fault(json!({"service": "ec2", "code": "ServiceUnavailable", "status": 503})).await;
    world.deploy("inflate", 1, "250m", "200Mi").await;
    until("the claim says so", || async {
        let claims = world.claims().await;
        let list = claims.first()?.status.clone()?.conditions;
        let launched = list.iter().find(|c| c.type_ == "Launched")?;
        (launched.status == "Unknown" && launched.reason == "LaunchFailed").then_some(())
    })
    .await;
    controller.says(&["launching nodeclaim", "ServiceUnavailable"]).await;
    assert!(controller.alive());
    world.heal().await;
    one_initialized(&world).await;
    pods_run(&world, 1).await;
    assert_eq!(world.instances().await.len(), 1);
}
