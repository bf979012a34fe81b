//! Hydration: Nodes made by older versions get the label that names their node class.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::task::JoinSet;

use super::all_nodes;
use crate::controllers::nodeclaim::hydration::class_label;
use crate::controllers::runner::{self, Identity};
use crate::controllers::{Context, Outcome};

const NODES: Identity = Identity { name: "node.hydration", group: "", kind: "Node", workers: 10 };

/// Starts the controller.
pub(super) fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    tasks.spawn(runner::run(NODES, Arc::clone(ctx), all_nodes, runner::changed_node, node));
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
