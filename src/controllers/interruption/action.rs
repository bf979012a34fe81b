//! What is done about an announcement: events, marks, and the end of the NodeClaim.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::Api;

use super::message::{Action, Kind};
use crate::api::v1::NodeClaim;
use crate::api::{annotations, labels};
use crate::cloud::aws::AwsProvider;
use crate::cloud::aws::instance::parse_provider_id;
use crate::controllers::nodeclaim::termination::write_deadline;
use crate::controllers::{Context, Error, observability, patch};
use crate::operator::events::{Event, reference};
use crate::operator::logging;

/// Acts on what is announced about an instance; one of another cluster is left alone.
pub(super) async fn take(
    ctx: &Context,
    aws: &AwsProvider,
    kind: Kind,
    instance: &str,
) -> Result<(), Error> {
    let claims = ctx.cluster.claims().into_iter();
    let own = claims.filter(|c| instance_of(c).is_some_and(|id| id == instance));
    for claim in own {
        let id = claim.status.as_ref().and_then(|s| s.provider_id.as_deref()).unwrap_or_default();
        let node = ctx.cluster.nodes_by_provider_id(id).into_iter().next();
        take_for(ctx, aws, kind, &claim, node.as_ref()).await?;
    }
    Ok(())
}

/// The instance of a claim.
pub(super) fn instance_of(claim: &NodeClaim) -> Option<&str> {
    parse_provider_id(claim.status.as_ref()?.provider_id.as_deref()?)
}

async fn take_for(
    ctx: &Context,
    aws: &AwsProvider,
    kind: Kind,
    claim: &NodeClaim,
    node: Option<&Arc<Node>>,
) -> Result<(), Error> {
    let say = |on: ObjectReference, warning: bool, reason: &'static str, text: &str| {
        ctx.recorder.publish(Event::new(on, warning, reason, text.to_owned()));
    };
    if let Some((warning, reason, text)) = kind.event() {
        say(reference(claim), warning, reason, text);
        if let Some(node) = node {
            say(reference(&**node), warning, reason, text);
        }
    }
    mark(aws, kind, claim);
    let action = kind.action();
    if action == Action::Nothing {
        return Ok(());
    }
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    if action == Action::ForcefulTermination {
        end_grace(ctx, &api, claim).await?;
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let name = claim.metadata.name.clone().unwrap_or_default();
    if !patch::delete(&api, &name).await? {
        return Ok(());
    }
    tracing::info!(
        "messageKind" = kind.name(),
        "NodeClaim" = %logging::obj(&name),
        "action" = ?action,
        "Node" = node.map(|n| tracing::field::display(node_reference(n))),
        "initiating delete from interruption message"
    );
    let reason = "TerminatingOnInterruption";
    say(reference(claim), true, reason, "Interruption triggered termination for the NodeClaim");
    if let Some(node) = node {
        let text = "Interruption triggered termination for the Node";
        say(reference(&**node), true, reason, text);
    }
    observability::disrupted(claim, kind.name(), "");
    Ok(())
}

fn node_reference(node: &Node) -> logging::Json {
    logging::obj(node.metadata.name.as_deref().unwrap_or_default())
}

/// What was lost here can hardly be had again at once.
fn mark(aws: &AwsProvider, kind: Kind, claim: &NodeClaim) {
    let label = |key: &str| claim.metadata.labels.as_ref().and_then(|l| l.get(key));
    match kind {
        Kind::SpotInterrupted => {
            let place = (label(labels::INSTANCE_TYPE), label(labels::ZONE));
            if let (Some(instance_type), Some(zone)) = place {
                let spot = labels::CAPACITY_SPOT;
                aws.unavailable_offerings.mark(kind.name(), spot, instance_type, zone);
            }
        }
        Kind::CapacityReservationInterrupted => {
            if let Some(id) = label(labels::CAPACITY_RESERVATION_ID) {
                aws.capacity_reservations.mark_unavailable(id);
            }
        }
        _ => {}
    }
}

/// Lets the drain wait for nothing, unless an end is set already.
async fn end_grace(ctx: &Context, api: &Api<NodeClaim>, claim: &NodeClaim) -> Result<(), Error> {
    let key = annotations::TERMINATION_TIMESTAMP;
    if claim.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(key)) {
        return Ok(());
    }
    write_deadline(api, claim, ctx.clock.now()).await?;
    Ok(())
}
