//! Hydration: NodeClaims made by older versions get the label that names their node class.

use std::sync::Arc;

use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::task::JoinSet;

use super::all_claims;
use crate::api::labels;
use crate::api::v1::NodeClaim;
use crate::controllers::runner::{self, Identity};
use crate::controllers::{Context, Outcome};

const CLAIMS: Identity =
    Identity { name: "nodeclaim.hydration", group: labels::GROUP, kind: "NodeClaim", workers: 10 };

/// Starts the controller.
pub(super) fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let ctx = Arc::clone(ctx);
    tasks.spawn(runner::run(CLAIMS, ctx, all_claims, runner::changed_claim, claim));
}

/// The label that names a claim's node class.
pub(in crate::controllers) fn class_label(claim: &NodeClaim) -> (String, &str) {
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
