//! Other people's objects beside ours, and objects that cannot be understood.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use karpenter::api::v1::{EC2NodeClass, NodeClaim, NodePool};
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource};
use serde_json::{Value, json};

use crate::chain::one_initialized;
use crate::instances::node_pool;
use crate::support::{Controller, World, node_class, stays, until};

/// An EKS Auto Mode cluster's NodePool, NodeClaims and Node; one of the claims is old enough to
/// expire and none of their instances is known to our account.
fn auto_mode() -> Vec<Value> {
    let class = json!({"group": "eks.amazonaws.com", "kind": "NodeClass", "name": "default"});
    let labels = json!({"karpenter.sh/nodepool": "general-purpose", "team": "auto",
        "eks.amazonaws.com/nodeclass": "default", "node.kubernetes.io/instance-type": "c6a.large"});
    let spec = json!({"nodeClassRef": class, "requirements": [], "expireAfter": "1s"});
    vec![
        json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool",
            "metadata": {"name": "general-purpose"},
            "spec": {"template": {"metadata": {"labels": {"team": "auto"}}, "spec": {
                "nodeClassRef": class, "requirements": [], "expireAfter": "1s"}}}}),
        json!({"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
            "metadata": {"name": "general-purpose-old", "labels": labels}, "spec": spec}),
        json!({"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
            "metadata": {"name": "general-purpose-new", "labels": labels}, "spec": spec}),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "auto-node",
            "labels": labels, "finalizers": ["karpenter.sh/termination"],
            "annotations": {"local-world/unhealthy": "true"}},
            "spec": {"providerID": "aws:///us-east-1a/i-0123456789abcdef0"}}),
    ]
}

fn version<K: Resource>(object: &K) -> String {
    object.meta().resource_version.clone().unwrap()
}

/// Resource versions of everything that belongs to Auto Mode.
async fn versions(world: &World) -> Vec<String> {
    let pools = Api::<NodePool>::all(world.kube.clone());
    let claims = Api::<NodeClaim>::all(world.kube.clone());
    vec![
        version(&pools.get("general-purpose").await.unwrap()),
        version(&claims.get("general-purpose-old").await.unwrap()),
        version(&claims.get("general-purpose-new").await.unwrap()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn another_providers_objects_are_left_alone() {
    let world = World::up().await;
    for object in auto_mode() {
        world.apply(&object.to_string()).await;
    }
    // As a controller of theirs would: launched, registered, running long since.
    let claims = Api::<NodeClaim>::all(world.kube.clone());
    let conditions: Vec<Value> = ["Launched", "Registered", "Initialized"]
        .iter()
        .map(|kind| {
            json!({"type": kind, "status": "True", "reason": kind, "message": "",
                "lastTransitionTime": "2024-01-01T00:00:00Z"})
        })
        .collect();
    let status = json!({"status": {"providerID": "aws:///us-east-1a/i-0123456789abcdef0",
        "nodeName": "auto-node", "conditions": conditions}});
    let old = "general-purpose-old";
    claims.patch_status(old, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    let before = versions(&world).await;

    let controller = Controller::start(&world);
    world.apply(&node_class("default", json!({})).to_string()).await;
    world.apply(&node_pool(&["t3.medium"], &["on-demand"]).to_string()).await;
    world.deploy("inflate", 1, "250m", "200Mi").await;
    until("our own pool works", || async { (world.running().await == 1).then_some(()) }).await;
    // A pod that only their pool would serve.
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "theirs", "namespace": "default"},
        "spec": {"nodeSelector": {"team": "auto"}, "containers": [{"name": "c", "image": "c",
            "resources": {"requests": {"cpu": "100m"}}}]}});
    world.apply(&pod.to_string()).await;
    let nodes = Api::<Node>::all(world.kube.clone());
    nodes.delete("auto-node", &Default::default()).await.unwrap();
    controller.says(&["could not schedule pod", "theirs"]).await;
    // Long enough for expiry, for the first garbage collections of instances, and for a drain.
    stays(Duration::from_secs(20), "nothing of theirs is written or deleted", before, || async {
        versions(&world).await
    })
    .await;
    let node = nodes.get("auto-node").await.unwrap();
    assert_eq!(node.metadata.finalizers.unwrap(), ["karpenter.sh/termination"]);
    let taints = node.spec.unwrap().taints.unwrap_or_default();
    assert!(taints.iter().all(|t| t.key != "karpenter.sh/disrupted"), "{taints:?}");
    assert_eq!(world.instances().await.len(), 1, "one for our own pod");
    assert_eq!(world.claims().await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_without_spec_stops_nobody() {
    let world = World::up().await;
    let bare = json!({"apiVersion": "karpenter.k8s.aws/v1", "kind": "EC2NodeClass",
        "metadata": {"name": "bare"}});
    world.apply(&bare.to_string()).await;
    world.apply(&node_class("default", json!({})).to_string()).await;
    world.apply(&node_pool(&["t3.medium"], &["on-demand"]).to_string()).await;
    world.deploy("inflate", 1, "250m", "200Mi").await;
    let _controller = Controller::start(&world);
    one_initialized(&world).await;
    // The class says on itself what it lacks.
    let classes = Api::<kube::api::DynamicObject>::all_with(
        world.kube.clone(),
        &kube::api::ApiResource::erase::<EC2NodeClass>(&()),
    );
    until("the class without spec is not ready", || async {
        let class = classes.get("bare").await.ok()?;
        let list = class.data["status"]["conditions"].as_array()?.clone();
        list.iter().find(|c| c["type"] == "Ready" && c["status"] == "False").map(drop)
    })
    .await;
}
