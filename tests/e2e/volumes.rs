//! Pods with volumes get a node where their volume is.

use karpenter::api::v1::NodeClaim;
use serde_json::{Value, json};

use crate::chain::one_initialized;
use crate::support::{Controller, World, until};

const MANIFESTS: &str = "examples/weasel-eks/manifests.yaml";

fn pod(name: &str, claim: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [{"name": "pause", "image": "pause",
            "resources": {"requests": {"cpu": "250m"}}}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]}})
}

/// A volume in a zone, and the claim that it is meant for.
fn volume(zone: &str) -> Vec<Value> {
    let modes = json!(["ReadWriteOnce"]);
    vec![
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "data"},
            "spec": {"accessModes": modes, "capacity": {"storage": "1Gi"},
                "storageClassName": "", "persistentVolumeReclaimPolicy": "Retain",
                "csi": {"driver": "ebs.csi.aws.com", "volumeHandle": "vol-1"},
                "claimRef": {"namespace": "default", "name": "data"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "topology.kubernetes.io/zone", "operator": "In",
                        "values": [zone]}]}]}}}}),
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "data", "namespace": "default"},
            "spec": {"accessModes": modes, "storageClassName": "", "volumeName": "data",
                "resources": {"requests": {"storage": "1Gi"}}}}),
    ]
}

fn values(claim: &NodeClaim, key: &str) -> Vec<String> {
    let found = claim.spec.requirements.iter().find(|r| r.key == key);
    found.map(|r| r.values.clone()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_goes_where_its_volume_is() {
    const ZONE: &str = "us-east-1b";
    let world = World::up().await;
    let controller = Controller::start(&world);
    world.apply_file(MANIFESTS).await;
    for object in volume(ZONE) {
        world.apply(&object.to_string()).await;
    }
    until("a bound claim", || async {
        let phase = world.kubectl(&["get", "pvc", "data", "-o", "jsonpath={.status.phase}"]);
        (phase == "Bound").then_some(())
    })
    .await;
    world.apply(&pod("with-data", "data").to_string()).await;
    world.apply(&pod("without", "missing").to_string()).await;

    let claim = one_initialized(&world).await;
    assert_eq!(values(&claim, "topology.kubernetes.io/zone"), [ZONE]);
    until("the pod running", || async { (world.running().await == 1).then_some(()) }).await;
    let told = controller.says(&["ignoring pod", "without"]).await;
    assert!(told.contains(r#"PersistentVolumeClaim \"missing\" not found"#), "{told}");
    let text = "Failed to schedule pod, getting persistent volume claim";
    until("the event", || async {
        world.events("FailedScheduling").await.iter().any(|t| t.starts_with(text)).then_some(())
    })
    .await;
    assert_eq!(world.claims().await.len(), 1);
}
