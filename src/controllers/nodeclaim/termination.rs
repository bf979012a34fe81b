//! Termination: the Nodes go first, then the instance, then the claim.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::Api;

use super::super::patch;
use super::super::{Context, Outcome};
use super::{events, is_true, set_true, status_of};
use crate::api::v1::NodeClaim;
use crate::api::{annotations, conditions, finalizers};

/// Time between looks at an instance that is shutting down.
const POLL: Duration = Duration::from_secs(5);

/// Takes one step towards the claim's end; every step may be repeated.
pub(super) async fn finalize(ctx: &Context, api: &Api<NodeClaim>, before: NodeClaim) -> Outcome {
    let mut claim = before.clone();
    if !claim.metadata.finalizers.iter().flatten().any(|f| f == finalizers::TERMINATION) {
        return Ok(None);
    }
    if let Some(deadline) = annotate_deadline(&mut claim) {
        ctx.recorder.publish(events::termination_grace_period_expiring(&claim, deadline));
        patch::merge(api, &before, &claim).await?;
        return Ok(Some(Duration::ZERO));
    }
    let provider_id = claim.status.as_ref().and_then(|s| s.provider_id.clone()).unwrap_or_default();
    if is_true(&claim, conditions::REGISTERED) {
        let nodes = ctx.cluster.nodes_by_provider_id(&provider_id);
        let node_api = Api::<Node>::all(ctx.client.clone());
        for node in nodes.iter().filter(|n| n.metadata.deletion_timestamp.is_none()) {
            patch::delete(&node_api, node.metadata.name.as_deref().unwrap_or("")).await?;
        }
        if !nodes.is_empty() {
            // The last Node's end wakes this up; the time is for a change that was missed.
            return Ok(Some(POLL));
        }
    }
    if !provider_id.is_empty() && !instance_gone(ctx, api, &before, &mut claim).await? {
        return Ok(Some(POLL));
    }
    if patch::release(api, &before, finalizers::TERMINATION).await? {
        tracing::info!("provider-id" = provider_id, "deleted nodeclaim");
    }
    Ok(None)
}

/// Writes down when draining has to be over; returns it when it is new.
fn annotate_deadline(claim: &mut NodeClaim) -> Option<String> {
    let grace = claim.grace_period();
    let start = claim.metadata.deletion_timestamp.as_ref().map(|t| t.0);
    let known = claim
        .metadata
        .annotations
        .as_ref()
        .is_some_and(|a| a.contains_key(annotations::TERMINATION_TIMESTAMP));
    let (Some(grace), Some(start), false) = (grace, start, known) else { return None };
    let deadline = insert_deadline(claim, start + grace);
    log_deadline(&deadline);
    Some(deadline)
}

/// Puts down when draining has to be over, in whole seconds; returns it as it is written.
fn insert_deadline(claim: &mut NodeClaim, at: Timestamp) -> String {
    let deadline = at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let all = claim.metadata.annotations.get_or_insert_default();
    all.insert(annotations::TERMINATION_TIMESTAMP.to_owned(), deadline.clone());
    deadline
}

/// Logs what [`write_deadline`] wrote.
fn log_deadline(deadline: &str) {
    tracing::info!(
        "karpenter.sh/nodeclaim-termination-timestamp" = deadline,
        "annotated nodeclaim"
    );
}

/// Lets the drain of a claim's node be over at a time, whatever its grace period; returns the time as
/// it is written.
///
/// # Errors
/// When the API server refuses.
pub(in crate::controllers) async fn write_deadline(
    api: &Api<NodeClaim>,
    claim: &NodeClaim,
    at: Timestamp,
) -> Result<String, kube::Error> {
    let mut marked = claim.clone();
    let deadline = insert_deadline(&mut marked, at);
    patch::merge(api, claim, &marked).await?;
    Ok(deadline)
}

/// Lets the drain of a claim's node be over at a time, unless an earlier one is written already.
///
/// # Errors
/// When the API server refuses.
pub(in crate::controllers) async fn tighten_deadline(
    api: &Api<NodeClaim>,
    claim: &NodeClaim,
    at: Timestamp,
) -> Result<(), kube::Error> {
    let marks = claim.metadata.annotations.as_ref();
    let written = marks.and_then(|a| a.get(annotations::TERMINATION_TIMESTAMP));
    if written.and_then(|t| t.parse::<Timestamp>().ok()).is_none_or(|known| at < known) {
        log_deadline(&write_deadline(api, claim, at).await?);
    }
    Ok(())
}

/// Asks for the instance's end; true once it is gone.
async fn instance_gone(
    ctx: &Context,
    api: &Api<NodeClaim>,
    before: &NodeClaim,
    claim: &mut NodeClaim,
) -> Result<bool, super::super::Error> {
    let gone = match ctx.cloud.delete(claim).await {
        Ok(()) => false,
        Err(error) if error.is_not_found() => true,
        Err(error) => return Err(error.into()),
    };
    if !is_true(claim, conditions::INSTANCE_TERMINATING) {
        status_of(claim);
        set_true(claim, conditions::INSTANCE_TERMINATING, ctx.clock.now());
        patch::merge(api, before, claim).await?;
    }
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::controllers::tests::{Asked, api_server};

    #[tokio::test]
    async fn a_deadline_that_is_written_only_ever_becomes_earlier() {
        let asked = Asked::default();
        let api = Api::<NodeClaim>::all(api_server(Vec::new(), &asked));
        let at = |second| Timestamp::from_second(second).unwrap();
        let claim: NodeClaim = serde_json::from_value(json!({"metadata": {"name": "c",
            "annotations": {annotations::TERMINATION_TIMESTAMP: "1970-01-01T00:01:00Z"}},
            "spec": {}}))
        .unwrap();
        tighten_deadline(&api, &claim, at(60)).await.unwrap();
        tighten_deadline(&api, &claim, at(3600)).await.unwrap();
        assert!(asked.lock().is_empty());
        // This API server has no such claim: one that is gone needs no deadline.
        tighten_deadline(&api, &claim, at(59)).await.unwrap();
        assert_eq!(*asked.lock(), ["PATCH /apis/karpenter.sh/v1/nodeclaims/c"]);
    }
}
