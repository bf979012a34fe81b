//! Node repair as a disruption: a sick node is replaced within its budget, or rebooted.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use karpenter::api::v1::NodeClaim;
use serde_json::{Value, json};

use crate::instances::{apply, metric, node_pool, running, spread};
use crate::support::{Controller, World, node_class, stays, until, within};

const HOUR: i64 = 3600;
const MINUTES: Duration = Duration::from_secs(240);

/// A pool whose budget for unhealthy nodes is this.
fn pool(unhealthy: &str) -> Value {
    let mut pool = node_pool(&["t3.medium"], &["on-demand"]);
    pool["spec"]["disruption"] = json!({"consolidateAfter": "Never",
        "budgets": [{"nodes": "100%"}, {"nodes": unhealthy, "reasons": ["Unhealthy"]}]});
    pool
}

/// A world with a node for each of two pods, and the claim of the first node.
async fn two_nodes(settings: &[(&str, &str)], unhealthy: &str) -> (World, Controller, NodeClaim) {
    let world = World::up().await;
    let controller = Controller::with(&world, settings);
    apply(&world, &[node_class("default", json!({})), pool(unhealthy), spread("web", 2)]).await;
    running(&world, 2).await;
    let claim = world.claims().await.remove(0);
    (world, controller, claim)
}

fn node_name(claim: &NodeClaim) -> &str {
    claim.status.as_ref().unwrap().node_name.as_deref().unwrap()
}

fn patch_status(world: &World, node: &str, status: Value) {
    let patch = json!({ "status": status }).to_string();
    let words = ["patch", "node", node, "--subresource=status", "--type=strategic", "-p", &patch];
    world.kubectl(&words);
}

/// Lets a node's condition be False for so long that its repair is due.
fn sicken(world: &World, node: &str, kind: &str, reason: &str) {
    // A condition counts from the node's creation on at most.
    world.make_older(node, HOUR);
    let since = Timestamp::now() - jiff::SignedDuration::from_secs(HOUR);
    let condition = json!({"type": kind, "status": "False", "reason": reason,
        "lastTransitionTime": since.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()});
    patch_status(world, node, json!({ "conditions": [condition] }));
}

fn mark(world: &World, node: &str, annotation: &str) {
    world.kubectl(&["annotate", "node", node, annotation]);
}

async fn names(world: &World) -> Vec<String> {
    let mut all: Vec<String> =
        world.nodes().await.into_iter().filter_map(|n| n.metadata.name).collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sick_node_is_replaced_within_its_budget_replacement_first_and_a_protected_one_stays() {
    let gate = [("FEATURE_GATES", "NodeRepair=true")];
    let (world, controller, claim) = two_nodes(&gate, "0").await;
    let sick = node_name(&claim);
    let before = names(&world).await;

    mark(&world, sick, "karpenter.sh/do-not-repair=true");
    sicken(&world, sick, "KernelReady", "Deadlock");
    // An event of that reason on the node, such as one while pods are expected there, keeps others
    // back for two minutes.
    within(MINUTES, "what protects it", || async {
        let blocked = world.events("DisruptionBlocked").await;
        blocked.iter().any(|e| e.contains("karpenter.sh/do-not-repair")).then_some(())
    })
    .await;
    stays(Duration::from_secs(15), "the protected node", before.clone(), || names(&world)).await;

    // Without the annotation, the budget lets none go.
    mark(&world, sick, "karpenter.sh/do-not-repair-");
    stays(Duration::from_secs(25), "the nodes", before.clone(), || names(&world)).await;

    world.apply(&pool("1").to_string()).await;
    let mut both = false;
    let begun = std::time::Instant::now();
    loop {
        let now = names(&world).await;
        let here = now.iter().any(|n| n == sick);
        assert!(now.len() >= 2, "the replacement comes first: {now:?}");
        both |= now.len() == 3 && here;
        if now.len() == 2 && !here {
            break;
        }
        assert!(begun.elapsed() < MINUTES, "another node in its place: {now:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(both, "both nodes were there for a while");
    running(&world, 2).await;
    assert_eq!(controller.logged("disrupting node(s)")[0]["decision"], "replace");
    let line = &controller.logged("selected repair policy")[0];
    assert_eq!(
        (&line["condition"], &line["action"]),
        (&json!("KernelReady"), &json!("ReplaceNode"))
    );
    let labels = ["condition=\"kernel_ready\"", "nodepool=\"default\"", "image_id=\"ami-"];
    let name = "karpenter_nodeclaims_unhealthy_disrupted_total";
    assert_eq!(metric(&controller, name, &labels).await, Some(1.0));
}

async fn node(world: &World, name: &str) -> Node {
    world.nodes().await.into_iter().find(|n| n.metadata.name.as_deref() == Some(name)).unwrap()
}

fn rebooting(claim: &NodeClaim) -> Option<(&str, &str)> {
    let list = &claim.status.as_ref()?.conditions;
    let found = list.iter().find(|c| c.type_ == "Rebooting")?;
    Some((found.status.as_str(), found.reason.as_str()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_that_a_reboot_clears_keeps_the_instance() {
    let gates =
        [("FEATURE_GATES", "NodeRepair=true"), ("AWS_FEATURE_GATES", "RebootForRepair=true")];
    let (world, _controller, claim) = two_nodes(&gates, "1").await;
    let sick = node_name(&claim);
    let before = names(&world).await;
    sicken(&world, sick, "AcceleratedHardwareReady", "NvidiaXID109Error");
    let of = || async {
        let all = world.claims().await;
        all.into_iter().find(|c| c.metadata.uid == claim.metadata.uid).unwrap()
    };
    until("the reboot", || async {
        (rebooting(&of().await) == Some(("True", "RebootIssued"))).then_some(())
    })
    .await;
    let calls = world.calls("RebootInstances").await;
    assert_eq!(calls.len(), 1, "{calls:?}");
    let state = node(&world, sick).await;
    let taints = state.spec.unwrap().taints.unwrap_or_default();
    assert!(taints.iter().any(|t| t.key == "karpenter.sh/rebooting"), "{taints:?}");

    // The machine is back, as another boot.
    let healthy = json!([{"type": "AcceleratedHardwareReady", "status": "True", "reason": "Fine",
        "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()}]);
    let status = json!({"nodeInfo": {"bootID": "the-second-boot"}, "conditions": healthy});
    patch_status(&world, sick, status);
    until("the end of the reboot", || async {
        (rebooting(&of().await) == Some(("False", "RebootSucceeded"))).then_some(())
    })
    .await;
    until("an initialized node without taints", || async {
        let state = node(&world, sick).await;
        let label = state.metadata.labels?.get("karpenter.sh/initialized").cloned();
        let taints = state.spec?.taints.unwrap_or_default();
        (label.as_deref() == Some("true") && taints.is_empty()).then_some(())
    })
    .await;
    assert_eq!(names(&world).await, before);
    running(&world, 2).await;
    assert!(!world.events("RebootObserved").await.is_empty());
}
