//! When pods last came to a NodeClaim's node, or left it: what `consolidateAfter` runs from.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use tokio::task::JoinSet;

use super::status_of;
use crate::api::labels;
use crate::api::v1::NodeClaim;
use crate::cluster::Change;
use crate::controllers::patch;
use crate::controllers::runner::{self, Identity};
use crate::controllers::{Context, Outcome};

const POD_EVENTS: Identity =
    Identity { name: "nodeclaim.podevents", group: labels::GROUP, kind: "NodeClaim", workers: 10 };
/// Pod events closer together than this are one.
const POD_EVENT_DEDUPE: Duration = Duration::from_secs(10);

/// Starts the controller.
pub(super) fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let ctx = Arc::clone(ctx);
    tasks.spawn(runner::run(POD_EVENTS, ctx, |_| Vec::new(), claims_of_pod, pod_event));
}

/// Claims whose node a pod has just come to, or left.
fn claims_of_pod(ctx: &Context, change: &Change) -> Vec<String> {
    let Change::Bound(node) = change else { return Vec::new() };
    ctx.cluster
        .claims()
        .iter()
        .filter(|c| c.status.as_ref().and_then(|s| s.node_name.as_deref()) == Some(node))
        .filter_map(|c| c.metadata.name.clone())
        .collect()
}

async fn pod_event(ctx: Arc<Context>, name: String) -> Outcome {
    let Some(before) = ctx.cluster.claim(&name) else { return Ok(None) };
    let last = before.status.as_ref().and_then(|s| s.last_pod_event_time.clone());
    if last.is_some_and(|t| ctx.clock.since(t.0) < POD_EVENT_DEDUPE) {
        return Ok(None);
    }
    let mut claim = (*before).clone();
    status_of(&mut claim).last_pod_event_time = Some(Time(ctx.clock.now()));
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    patch::merge(&api, &*before, &claim).await?;
    Ok(None)
}
