//! Pods with ResourceClaims get nodes from which devices for them can be reached.

use serde_json::{Value, json};

use crate::chain::one_initialized;
use crate::support::{Controller, World, until};

const MANIFESTS: &str = "examples/weasel-eks/manifests.yaml";

fn pod(name: &str, claim: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [{"name": "pause", "image": "pause",
            "resources": {"requests": {"cpu": "250m"}, "claims": [{"name": "net"}]}}],
            "resourceClaims": [{"name": "net", "resourceClaimName": claim}]}})
}

fn claim(name: &str) -> Value {
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"devices": {"requests": [{"name": "net", "exactly": {
            "deviceClassName": "net", "selectors": [{"cel": {"expression":
                "device.attributes['net.example.com'].speed >= 100"}}]}}]}}})
}

/// One fast device and one slow one, both reached over the network.
fn devices() -> Vec<Value> {
    let device =
        |name: &str, speed: i64| json!({"name": name, "attributes": {"speed": {"int": speed}}});
    vec![
        json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass",
            "metadata": {"name": "net"}, "spec": {"selectors": [
                {"cel": {"expression": "device.driver == 'net.example.com'"}}]}}),
        json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice",
            "metadata": {"name": "net"}, "spec": {"driver": "net.example.com", "allNodes": true,
                "pool": {"name": "net", "generation": 1, "resourceSliceCount": 1},
                "devices": [device("slow", 10), device("fast", 100)]}}),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_with_claims_get_nodes_while_there_are_devices() {
    let world = World::up().await;
    let controller = Controller::with(&world, &[("IGNORE_DRA_REQUESTS", "false")]);
    world.apply_file(MANIFESTS).await;
    for object in devices() {
        world.apply(&object.to_string()).await;
    }
    world.apply(&claim("first").to_string()).await;
    world.apply(&pod("with-device", "first").to_string()).await;

    let node_claim = one_initialized(&world).await;
    let notes = node_claim.metadata.annotations.unwrap_or_default();
    assert_eq!(notes["karpenter.sh/requested-dra-drivers"], "net.example.com");
    until("the pod running", || async { (world.running().await == 1).then_some(()) }).await;
    let told = controller.says(&["allocated devices"]).await;
    assert!(told.contains("net.example.com/net/fast"), "{told}");
    let told = controller.says(&["updated tracked devices for claim"]).await;
    assert!(told.contains("net.example.com/net/fast"), "{told}");

    // The only device that is fast enough is taken, so that a new node would be no help.
    world.apply(&claim("second").to_string()).await;
    world.apply(&pod("without-device", "second").to_string()).await;
    let text = "Failed to schedule pod, allocating dynamic resources, resourceclaim";
    until("the event", || async {
        world.events("FailedScheduling").await.iter().any(|t| t.starts_with(text)).then_some(())
    })
    .await;
    assert_eq!(world.claims().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_with_claims_are_left_alone_by_default() {
    let world = World::up().await;
    let controller = Controller::start(&world);
    world.apply_file(MANIFESTS).await;
    for object in devices() {
        world.apply(&object.to_string()).await;
    }
    world.apply(&claim("first").to_string()).await;
    world.apply(&pod("with-device", "first").to_string()).await;
    let text = "skipping pod with Dynamic Resource Allocation requirements, not yet supported by Karpenter";
    controller.says(&[text, "with-device"]).await;
    assert!(world.claims().await.is_empty());
}
