//! Initialization: the Node is ready, its start-up taints are gone, its resources are there.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::Api;
use kube::api::{Patch, PatchParams};

use super::super::{Context, Outcome};
use super::{decided, is_true, set_true, unknown};
use crate::api::v1::NodeClaim;
use crate::api::{annotations, conditions, labels, taints};
use crate::operator::logging;
use crate::scheduling::dra;
use crate::scheduling::resources::ResourceList;

/// Checks whether the Node can be used, once it is registered.
pub(super) async fn run(ctx: &Context, claim: &mut NodeClaim) -> Outcome {
    // While its instance reboots, a node is initialized by the boot that goes.
    if decided(claim, conditions::INITIALIZED) || is_true(claim, conditions::REBOOTING) {
        return Ok(None);
    }
    let now = ctx.clock.now();
    if !is_true(claim, conditions::REGISTERED) {
        if super::condition(claim, conditions::INITIALIZED).is_none() {
            let text = "Node not registered with cluster";
            unknown(claim, conditions::INITIALIZED, "NodeNotRegistered", text, now);
        }
        return Ok(None);
    }
    let provider_id = claim.status.as_ref().and_then(|s| s.provider_id.clone()).unwrap_or_default();
    let nodes = ctx.cluster.nodes_by_provider_id(&provider_id);
    // Two Nodes of one instance are an error that registration reports.
    let [node] = nodes.as_slice() else {
        let text = "Node not registered with cluster";
        unknown(claim, conditions::INITIALIZED, "NodeNotFound", text, now);
        return Ok(None);
    };
    let node = Arc::clone(node);
    let missing = not_yet(claim, &node);
    if let Some((reason, message)) = missing.or_else(|| devices_missing(ctx, claim, &node)) {
        unknown(claim, conditions::INITIALIZED, reason, &message, now);
        return Ok(None);
    }
    let name = node.metadata.name.clone().unwrap_or_default();
    let patch = serde_json::json!({"metadata": {"labels": {labels::INITIALIZED: "true"}}});
    Api::<Node>::all(ctx.client.clone())
        // No version: a kubelet that starts writes its Node all the time, and a label conflicts
        // with nothing.
        .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.clone()).unwrap_or_default();
    tracing::info!(
        "provider-id" = provider_id,
        "Node" = %logging::obj(&name),
        "allocatable" = %logging::json(&allocatable),
        "initialized nodeclaim"
    );
    set_true(claim, conditions::INITIALIZED, ctx.clock.now());
    Ok(None)
}

/// What is still missing: reason and message.
fn not_yet(claim: &NodeClaim, node: &Node) -> Option<(&'static str, String)> {
    let status = node.status.clone().unwrap_or_default();
    let ready =
        status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    if !ready {
        return Some(("NodeNotReady", "Node status is NotReady".to_owned()));
    }
    let list = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let startup = claim.spec.startup_taints.as_deref().unwrap_or_default();
    if let Some(taint) = startup.iter().find(|s| list.iter().any(|t| taints::matches(s, t))) {
        let message = format!("StartupTaint {:?} still exists", text(taint));
        return Some(("StartupTaintsExist", message));
    }
    if let Some(taint) = list.iter().find(|t| taints::is_ephemeral(t)) {
        let message = format!("KnownEphemeralTaint {:?} still exists", text(taint));
        return Some(("KnownEphemeralTaintsExist", message));
    }
    let requested = ResourceList::from_quantities_lossy(
        claim.spec.resources.as_ref().and_then(|r| r.requests.as_ref()),
    );
    let allocatable = ResourceList::from_quantities_lossy(status.allocatable.as_ref());
    // A device plugin registers its resource after the Node is ready; pods sent before would be
    // refused.
    let missing = requested.iter().find(|(name, value)| *value != 0 && allocatable.get(name) == 0);
    missing.map(|(name, _)| {
        let message = format!("Resource {:?} was requested but not registered", name.as_str());
        ("ResourceNotRegistered", message)
    })
}

/// A driver of which the claim's pods were promised devices, and that has not published them yet.
fn devices_missing(
    ctx: &Context,
    claim: &NodeClaim,
    node: &Node,
) -> Option<(&'static str, String)> {
    if ctx.settings.ignore_dra_requests {
        return None;
    }
    let drivers = claim.metadata.annotations.as_ref()?.get(annotations::REQUESTED_DRA_DRIVERS)?;
    let drivers = drivers.split(',').map(str::trim).filter(|d| !d.is_empty());
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let slices = &ctx.cluster.dynamic_resources().slices;
    let driver = dra::pool::unpublished(drivers, name, slices)?;
    let message = format!("DRA driver {driver:?} has not published a complete resource pool");
    Some(("DRADriverPoolsNotPublished", message))
}

fn text(taint: &Taint) -> String {
    match taint.value.as_deref().filter(|v| !v.is_empty()) {
        Some(value) => format!("{}={value}:{}", taint.key, taint.effect),
        None => format!("{}:{}", taint.key, taint.effect),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn reason(claim: serde_json::Value, node: serde_json::Value) -> Option<&'static str> {
        let claim: NodeClaim = serde_json::from_value(claim).unwrap();
        let node: Node = serde_json::from_value(node).unwrap();
        not_yet(&claim, &node).map(|(reason, _)| reason)
    }

    #[test]
    fn checks_come_in_order() {
        let claim = json!({"metadata": {}, "spec": {
            "startupTaints": [{"key": "s", "effect": "NoSchedule"}],
            "resources": {"requests": {"nvidia.com/gpu": "1"}}}});
        let mut node = json!({"metadata": {}, "spec": {"taints": [
            {"key": "s", "effect": "NoSchedule"},
            {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]}, "status": {}});
        assert_eq!(reason(claim.clone(), node.clone()), Some("NodeNotReady"));
        node["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        assert_eq!(reason(claim.clone(), node.clone()), Some("StartupTaintsExist"));
        node["spec"]["taints"].as_array_mut().unwrap().remove(0);
        assert_eq!(reason(claim.clone(), node.clone()), Some("KnownEphemeralTaintsExist"));
        node["spec"]["taints"] = json!([]);
        assert_eq!(reason(claim.clone(), node.clone()), Some("ResourceNotRegistered"));
        node["status"]["allocatable"] = json!({"nvidia.com/gpu": "1"});
        assert_eq!(reason(claim, node), None);
    }
}
