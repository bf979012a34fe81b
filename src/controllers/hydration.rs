//! Hydration: objects made by older versions get the label that names their node class.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::task::JoinSet;

use super::runner::{self, Identity};
use super::{Context, Outcome};
use crate::api::labels;
use crate::api::v1::NodeClaim;

const CLAIMS: Identity =
    Identity { name: "nodeclaim.hydration", group: labels::GROUP, kind: "NodeClaim", workers: 10 };
const NODES: Identity = Identity { name: "node.hydration", group: "", kind: "Node", workers: 10 };

/// Starts both controllers.
pub fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    tasks.spawn(runner::run(
        CLAIMS,
        Arc::clone(ctx),
        super::nodeclaim::all_claims,
        runner::changed_claim,
        claim,
    ));
    tasks.spawn(runner::run(
        NODES,
        Arc::clone(ctx),
        super::node::all_nodes,
        runner::changed_node,
        node,
    ));
}

/// The label that names a claim's node class.
fn class_label(claim: &NodeClaim) -> (String, &str) {
    let class = &claim.spec.node_class_ref;
    (format!("{}/{}", class.group, class.kind.to_lowercase()), &class.name)
}

async fn claim(ctx: Arc<Context>, name: String) -> Outcome {
    let Some(claim) = ctx.cluster.claim(&name) else { return Ok(None) };
    let (key, value) = class_label(&claim);
    if claim.metadata.labels.as_ref().is_some_and(|l| l.contains_key(&key)) {
        return Ok(None);
    }
    let patch = json!({"metadata": {"labels": {key: value}}});
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    api.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(None)
}

async fn node(ctx: Arc<Context>, name: String) -> Outcome {
    let Some(node) = ctx.cluster.node(&name) else { return Ok(None) };
    let Some(id) = node.spec.as_ref().and_then(|s| s.provider_id.clone()) else { return Ok(None) };
    let Some(claim) = ctx.cluster.claim_by_provider_id(&id) else { return Ok(None) };
    let (key, value) = class_label(&claim);
    if node.metadata.labels.as_ref().is_some_and(|l| l.contains_key(&key)) {
        return Ok(None);
    }
    let patch = json!({"metadata": {"labels": {key: value}}});
    let api = Api::<Node>::all(ctx.client.clone());
    api.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(None)
}
