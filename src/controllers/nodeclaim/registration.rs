//! Registration: the Node that joined is matched with its claim and takes over its labels.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;

use super::super::nodepool::health;
use super::super::patch;
use super::super::{Context, Outcome};
use super::{decided, events, set_true, status_of, unknown};
use crate::api::v1::NodeClaim;
use crate::api::{conditions, finalizers, labels, taints};
use crate::operator::logging;

/// Matches the claim with its Node unless that is decided.
pub(super) async fn run(ctx: &Context, claim: &mut NodeClaim) -> Outcome {
    if decided(claim, conditions::REGISTERED) {
        return Ok(None);
    }
    let now = ctx.clock.now();
    let provider_id = claim.status.as_ref().and_then(|s| s.provider_id.clone()).unwrap_or_default();
    let nodes = if provider_id.is_empty() {
        Vec::new()
    } else {
        ctx.cluster.nodes_by_provider_id(&provider_id)
    };
    let node = match nodes.as_slice() {
        [] => {
            let text = "Node not registered with cluster";
            unknown(claim, conditions::REGISTERED, "NodeNotFound", text, now);
            return Ok(None);
        }
        [one] => Arc::clone(one),
        _ => {
            let generation = claim.metadata.generation;
            conditions::set(
                &mut status_of(claim).conditions,
                conditions::REGISTERED,
                conditions::FALSE,
                "MultipleNodesFound",
                "Invariant violated, matched multiple nodes",
                generation,
                now,
            );
            return Ok(None);
        }
    };
    let name = node.metadata.name.clone().unwrap_or_default();
    // Only a warning: a node without the taint works, but pods may start before its labels are
    // there.
    warn_if_untainted(ctx, claim, &node);
    let api = Api::<Node>::all(ctx.client.clone());
    let Some(more) = ctx.cloud.registration_labels(claim).await? else {
        let text = "Awaiting what EC2 tells of the instance";
        unknown(claim, conditions::REGISTERED, "AwaitingInstance", text, now);
        return Ok(Some(Duration::from_secs(1)));
    };
    claim.metadata.labels.get_or_insert_default().extend(more);
    // A kubelet that starts writes its Node all the time.
    patch::edit(&api, &node, |wanted| sync(claim, wanted)).await?;
    // After the write of the Node: the name says that the Node has its labels and finalizer.
    status_of(claim).node_name = Some(name.clone());
    tracing::info!(
        "provider-id" = provider_id,
        "Node" = %logging::obj(&name),
        "registered nodeclaim"
    );
    set_true(claim, conditions::REGISTERED, ctx.clock.now());
    health::note(ctx, claim, true).await
}

fn warn_if_untainted(ctx: &Context, claim: &NodeClaim, node: &Node) {
    let registered =
        node.metadata.labels.as_ref().is_some_and(|l| l.contains_key(labels::REGISTERED));
    let list = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    if registered || list.iter().any(|t| taints::matches(t, &taints::unregistered())) {
        return;
    }
    let text =
        "missing taint prevents registration-related race conditions on Karpenter-managed nodes";
    tracing::error!(
        "error" = text,
        "taint" = "karpenter.sh/unregistered:NoExecute",
        "node claim registration error"
    );
    ctx.recorder.publish(events::unregistered_taint_missing(claim));
}

/// Gives the Node what the claim says it has.
fn sync(claim: &NodeClaim, node: &mut Node) {
    let held = node.metadata.finalizers.get_or_insert_default();
    if !held.iter().any(|f| f == finalizers::TERMINATION) {
        held.push(finalizers::TERMINATION.to_owned());
    }
    let uid = claim.metadata.uid.clone().unwrap_or_default();
    let owners = node.metadata.owner_references.get_or_insert_default();
    if !owners.iter().any(|o| o.uid == uid && o.kind == "NodeClaim") {
        owners.push(OwnerReference {
            api_version: "karpenter.sh/v1".to_owned(),
            kind: "NodeClaim".to_owned(),
            name: claim.metadata.name.clone().unwrap_or_default(),
            uid,
            block_owner_deletion: Some(true),
            controller: None,
        });
    }
    let node_labels = node.metadata.labels.get_or_insert_default();
    // Read before the claim's labels are laid over the Node's: the kubelet's own label decides.
    let keep_taints = node_labels.get(labels::DO_NOT_SYNC_TAINTS).is_some_and(|v| v == "true");
    node_labels.extend(claim.metadata.labels.clone().unwrap_or_default());
    node_labels.insert(labels::REGISTERED.to_owned(), "true".to_owned());
    node.metadata
        .annotations
        .get_or_insert_default()
        .extend(claim.metadata.annotations.clone().unwrap_or_default());
    let list = node.spec.get_or_insert_default().taints.get_or_insert_default();
    if !keep_taints {
        let own = claim.spec.taints.iter().chain(&claim.spec.startup_taints).flatten();
        add_missing(list, own);
    }
    // In the same write as the labels, so that no pod sees the node without either.
    list.retain(|t| !taints::matches(t, &taints::unregistered()));
}

fn add_missing<'a>(list: &mut Vec<Taint>, wanted: impl Iterator<Item = &'a Taint>) {
    for taint in wanted {
        if !list.iter().any(|t| taints::matches(t, taint)) {
            list.push(taint.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claim() -> NodeClaim {
        serde_json::from_value(json!({"metadata": {"name": "c", "uid": "u",
            "labels": {"karpenter.sh/nodepool": "p"}},
            "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}))
        .unwrap()
    }

    #[test]
    fn the_node_takes_over_labels_taints_and_ownership() {
        let mut node: Node = serde_json::from_value(json!({"metadata": {"name": "n"},
            "spec": {"taints": [{"key": "karpenter.sh/unregistered", "effect": "NoExecute"}]}}))
        .unwrap();
        sync(&claim(), &mut node);
        sync(&claim(), &mut node);
        let labels_of = node.metadata.labels.clone().unwrap();
        assert_eq!(labels_of["karpenter.sh/nodepool"], "p");
        assert_eq!(labels_of[labels::REGISTERED], "true");
        assert_eq!(node.metadata.owner_references.unwrap().len(), 1);
        let left = node.spec.unwrap().taints.unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].key, "a");
    }

    #[test]
    fn a_node_may_keep_its_taints() {
        let mut node: Node = serde_json::from_value(json!({"metadata": {"name": "n",
            "labels": {"karpenter.sh/do-not-sync-taints": "true"}}}))
        .unwrap();
        sync(&claim(), &mut node);
        assert!(node.spec.unwrap().taints.unwrap().is_empty());
    }
}
