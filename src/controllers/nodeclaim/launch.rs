//! Launch: the provider makes the instance, the claim learns what it is.

use super::super::observability;
use super::super::provisioning::decisions::Decisions;
use super::super::provisioning::pod_reference;
use super::super::{Context, Error, Outcome};
use super::{condition, decided, deletion, events, set_true, status_of, unknown};
use crate::api::v1::NodeClaim;
use crate::api::{annotations, conditions, labels};
use crate::cloud;
use crate::operator::logging;

/// Launches the claim's instance unless that is decided.
pub(super) async fn run(ctx: &Context, decisions: &Decisions, claim: &mut NodeClaim) -> Outcome {
    if decided(claim, conditions::LAUNCHED) {
        return Ok(None);
    }
    let now = ctx.clock.now();
    if condition(claim, conditions::LAUNCHED).is_none() {
        unknown(
            claim,
            conditions::LAUNCHED,
            "AwaitingReconciliation",
            "object is awaiting reconciliation",
            now,
        );
    }
    let class = ctx.cluster.class_of(&claim.spec.node_class_ref);
    match ctx.cloud.create(claim, class.as_deref()).await {
        Ok(created) => {
            merge(claim, created);
            add_overlay_capacity(ctx, claim);
            set_true(claim, conditions::LAUNCHED, ctx.clock.now());
            ctx.launches.succeeded(claim, ctx.clock.now());
            log_launched(claim);
            Ok(None)
        }
        Err(error @ cloud::Error::InsufficientCapacity(_)) => {
            ctx.recorder.publish(events::insufficient_capacity(claim, &error));
            report_on_pods(ctx, decisions, claim, &error);
            give_up(ctx, claim, &error).await
        }
        Err(error @ cloud::Error::NodeClassNotReady(_)) => {
            ctx.recorder.publish(events::node_class_not_ready(claim, &error));
            give_up(ctx, claim, &error).await
        }
        Err(error) => {
            let (reason, message) = match &error {
                cloud::Error::Create { reason, condition, .. } => {
                    (reason.clone(), condition.clone())
                }
                other => ("LaunchFailed".to_owned(), other.to_string()),
            };
            ctx.launches.failed(claim, now, &reason, &message);
            unknown(claim, conditions::LAUNCHED, &reason, &message, now);
            Err(Error::Launch(error))
        }
    }
}

/// Reports the failure on the pods that the claim was made for and that still wait.
fn report_on_pods(ctx: &Context, decisions: &Decisions, claim: &NodeClaim, error: &cloud::Error) {
    for key in decisions.pods_of(claim.metadata.name.as_deref().unwrap_or_default()) {
        let pod = ctx.cluster.pod(&key).filter(|p| p.node_name.is_none() && !p.terminal);
        if let Some(pod) = pod {
            let object = pod_reference(&pod);
            ctx.recorder.publish(events::nominated_claim_failed(object, claim, error));
        }
    }
}

/// The claim cannot be launched as it is: it is deleted, and its pods are scheduled again.
async fn give_up(ctx: &Context, claim: &NodeClaim, error: &cloud::Error) -> Outcome {
    log_failure!(*error, "failed launching nodeclaim");
    ctx.launches.failed(claim, ctx.clock.now(), error.class(), &error.to_string());
    let reason = match error {
        cloud::Error::NodeClassNotReady(_) => "nodeclass_not_ready",
        _ => "insufficient_capacity",
    };
    if deletion::delete(ctx, claim.metadata.name.as_deref().unwrap_or("")).await? {
        observability::disrupted(claim, reason, "");
    }
    Ok(None)
}

/// The claim's own labels win, the provider's annotations win.
fn merge(claim: &mut NodeClaim, created: NodeClaim) {
    let mut all = created.metadata.labels.unwrap_or_default();
    all.extend(claim.metadata.labels.take().unwrap_or_default());
    claim.metadata.labels = Some(all);
    let annotations = claim.metadata.annotations.get_or_insert_default();
    annotations.extend(created.metadata.annotations.unwrap_or_default());
    let from = created.status.unwrap_or_default();
    let status = status_of(claim);
    status.provider_id = from.provider_id;
    status.image_id = from.image_id;
    status.capacity = from.capacity;
    status.allocatable = from.allocatable;
}

/// Resources that only overlays know of are expected on the node as well; without them its pods
/// would be taken for homeless until something announces the resources.
fn add_overlay_capacity(ctx: &Context, claim: &mut NodeClaim) {
    let marks = claim.metadata.annotations.as_ref();
    if marks.and_then(|a| a.get(annotations::CAPACITY_OVERLAY_APPLIED)).is_none() {
        return;
    }
    let label = |key: &str| claim.metadata.labels.as_ref().and_then(|l| l.get(key));
    let (Some(pool), Some(kind)) = (label(labels::NODEPOOL), label(labels::INSTANCE_TYPE)) else {
        return;
    };
    let Some(store) = ctx.cluster.overlay_store() else { return };
    let more = store.capacity(pool, kind).to_quantities();
    let status = status_of(claim);
    for list in [&mut status.capacity, &mut status.allocatable] {
        list.get_or_insert_default().extend(more.clone());
    }
}

fn log_launched(claim: &NodeClaim) {
    let label = |key: &str| {
        claim.metadata.labels.as_ref().and_then(|l| l.get(key)).cloned().unwrap_or_default()
    };
    let status = claim.status.clone().unwrap_or_default();
    tracing::info!(
        "provider-id" = status.provider_id.unwrap_or_default(),
        "instance-type" = label(labels::INSTANCE_TYPE),
        "zone" = label(labels::ZONE),
        "capacity-type" = label(labels::CAPACITY_TYPE),
        "allocatable" = %logging::json(&status.allocatable.unwrap_or_default()),
        "launched nodeclaim"
    );
}
