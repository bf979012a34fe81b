//! Capacity that no pod asks for: static pools, buffers; and overlays over what it costs.

use karpenter::api::v1::NodeClaim;
use serde_json::{Value, json};

use crate::chain::condition;
use crate::support::{Controller, World, until};

const MANIFESTS: &str = "examples/weasel-eks/manifests.yaml";
const GATES: (&str, &str) =
    ("FEATURE_GATES", "StaticCapacity=true,CapacityBuffer=true,NodeOverlay=true");

async fn of_pool(world: &World, pool: &str) -> Vec<NodeClaim> {
    let named = |c: &NodeClaim| {
        c.metadata.labels.as_ref().and_then(|l| l.get("karpenter.sh/nodepool")).cloned()
    };
    let all = world.claims().await;
    all.into_iter().filter(|c| named(c).as_deref() == Some(pool)).collect()
}

async fn ready_claims(world: &World, pool: &str, count: usize) -> Vec<NodeClaim> {
    until(&format!("{count} initialized NodeClaim(s) of {pool}"), || async {
        let claims = of_pool(world, pool).await;
        let ready = claims.len() == count && claims.iter().all(|c| condition(c, "Initialized"));
        ready.then_some(claims)
    })
    .await
}

fn fixed(replicas: i64) -> Value {
    json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": {"name": "fixed"},
        "spec": {"replicas": replicas, "template": {"spec": {
            "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass",
                "name": "default"},
            "requirements": [
                {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["on-demand"]},
                {"key": "node.kubernetes.io/instance-type", "operator": "In",
                    "values": ["t3.medium"]}]}}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_pool_keeps_its_number_of_nodes() {
    let world = World::up().await;
    let controller = Controller::with(&world, &[GATES]);
    world.apply_file(MANIFESTS).await;
    world.apply(&fixed(2).to_string()).await;
    let claims = ready_claims(&world, "fixed", 2).await;
    controller.says(&["provisioning nodeclaims to satisfy replica count"]).await;
    assert_eq!(world.instances().await.len(), 2);

    // A node that goes away is replaced.
    let gone = claims[0].metadata.name.clone().unwrap();
    world.kubectl(&["delete", "nodeclaim", &gone, "--wait=false"]);
    until("another claim in its place", || async {
        let claims = of_pool(&world, "fixed").await;
        let fresh =
            claims.len() == 2 && claims.iter().all(|c| c.metadata.name != Some(gone.clone()));
        fresh.then_some(())
    })
    .await;
    ready_claims(&world, "fixed", 2).await;

    world.kubectl(&["scale", "nodepool", "fixed", "--replicas=1"]);
    ready_claims(&world, "fixed", 1).await;
    controller.says(&["deprovisioning nodeclaims to satisfy replica count"]).await;
    until("one instance", || async { (world.instances().await.len() == 1).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buffer_keeps_room_and_an_overlay_marks_what_it_costs() {
    let world = World::up().await;
    let _controller = Controller::with(&world, &[GATES]);
    world.apply_file(MANIFESTS).await;
    let overlay = json!({"apiVersion": "karpenter.sh/v1alpha1", "kind": "NodeOverlay",
        "metadata": {"name": "dear"}, "spec": {"requirements": [
            {"key": "node.kubernetes.io/instance-type", "operator": "In",
                "values": ["t3.medium"]}], "priceAdjustment": "+10%"}});
    world.apply(&overlay.to_string()).await;
    world.kubectl(&["wait", "--for=condition=Ready", "nodeoverlay/dear", "--timeout=60s"]);
    let template = json!({"apiVersion": "v1", "kind": "PodTemplate",
        "metadata": {"name": "web", "namespace": "default"},
        "template": {"spec": {"containers": [{"name": "c", "image": "pause",
            "resources": {"requests": {"cpu": "500m", "memory": "200Mi"}}}]}}});
    world.apply(&template.to_string()).await;
    let buffer = json!({"apiVersion": "autoscaling.x-k8s.io/v1beta1", "kind": "CapacityBuffer",
        "metadata": {"name": "room", "namespace": "default"},
        "spec": {"replicas": 3, "podTemplateRef": {"name": "web"}}});
    world.apply(&buffer.to_string()).await;

    let claims = ready_claims(&world, "default", 1).await;
    let marks = claims[0].metadata.annotations.clone().unwrap();
    assert_eq!(marks["karpenter.sh/price-overlay-applied"], "true");
    let requests = claims[0].spec.resources.clone().unwrap().requests.unwrap();
    assert_eq!(requests["cpu"].0, "1500m");
    until("room on existing nodes", || async {
        let text = world.kubectl(&["get", "capacitybuffer", "room", "-o", "json"]);
        let buffer: Value = serde_json::from_str(&text).unwrap();
        let list = buffer["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let fits = list
            .iter()
            .any(|c| c["type"] == "Provisioning" && c["reason"] == "FitsExistingCapacity");
        (fits && buffer["status"]["replicas"] == 3).then_some(())
    })
    .await;

    // Pods of the shape find the room at once: no second node.
    world.deploy("web", 2, "500m", "200Mi").await;
    until("two running pods", || async { (world.running().await == 2).then_some(()) }).await;
}
