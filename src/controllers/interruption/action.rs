//! What is done about an announcement: events, marks, and the end of the NodeClaim.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::Api;

use super::message::{Action, Kind};
use crate::api::v1::NodeClaim;
use crate::api::{annotations, labels};
use crate::cloud::aws::AwsProvider;
use crate::cloud::aws::instance::parse_provider_id;
use crate::controllers::nodeclaim::deletion;
use crate::controllers::nodeclaim::termination::write_deadline;
use crate::controllers::{Context, Error, observability};
use crate::operator::events::{Recorder, Report, reference};
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
    if let Some(report) = kind.event() {
        publish(&ctx.recorder, report, report, claim, node);
    }
    // Before the NodeClaim is deleted: the launch of its replacement may start at once.
    mark(aws, kind, claim);
    let action = kind.action();
    if action == Action::Nothing {
        return Ok(());
    }
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    // Also for a claim that is being deleted: its drain would wait for pods on a machine that
    // fails.
    if action == Action::ForcefulTermination {
        end_grace(ctx, &api, claim).await?;
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let name = claim.metadata.name.clone().unwrap_or_default();
    // Somebody else deleted it meanwhile: it is theirs to count.
    if !deletion::delete(ctx, &name).await? {
        return Ok(());
    }
    tracing::info!(
        "messageKind" = kind.name(),
        "NodeClaim" = %logging::obj(&name),
        "action" = ?action,
        "Node" = node.map(|n| tracing::field::display(node_reference(n))),
        "initiating delete from interruption message"
    );
    terminating(&ctx.recorder, claim, node);
    observability::disrupted(claim, kind.name(), "");
    Ok(())
}

/// Publishes what is announced on the NodeClaim and on its Node.
fn publish(
    recorder: &Recorder,
    of_claim: Report<'_>,
    of_node: Report<'_>,
    claim: &NodeClaim,
    node: Option<&Arc<Node>>,
) {
    recorder.publish(of_claim.on(reference(claim)));
    if let Some(node) = node {
        recorder.publish(of_node.on(reference(&**node)));
    }
}

fn terminating(recorder: &Recorder, claim: &NodeClaim, node: Option<&Arc<Node>>) {
    let of_claim = Report::TerminatingOnInterruption { kind: &"NodeClaim" };
    let of_node = Report::TerminatingOnInterruption { kind: &"Node" };
    publish(recorder, of_claim, of_node, claim, node);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn each_kind_of_announcement_is_published_on_the_claim_and_its_node() {
        let clock = Clock::manual(jiff::Timestamp::UNIX_EPOCH);
        let (recorder, mut events) = Recorder::captured(clock);
        let claim: NodeClaim = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "c", "uid": "c"}, "spec": {}}))
        .unwrap();
        let mut node = Node::default();
        node.metadata.uid = Some("n".to_owned());
        let node = Arc::new(node);
        let mut published = |warning: bool| {
            let pair = [events.try_recv().unwrap(), events.try_recv().unwrap()];
            assert_eq!(pair[0].involved.kind.as_deref(), Some("NodeClaim"));
            assert_eq!(pair[1].involved.kind.as_deref(), Some("Node"));
            assert!(pair.iter().all(|e| e.warning == warning && e.reason == pair[0].reason));
            pair[0].reason.to_string()
        };
        for (kind, warning, reason) in [
            (Kind::SpotInterrupted, true, "SpotInterrupted"),
            (Kind::RebalanceRecommendation, false, "SpotRebalanceRecommendation"),
            (Kind::InstanceStopped, true, "InstanceStopping"),
            (Kind::InstanceTerminated, true, "InstanceTerminating"),
            (Kind::CapacityReservationInterrupted, true, "CapacityReservationInstanceInterrupted"),
            (Kind::SystemStatus, true, "InstanceUnhealthy"),
        ] {
            let report = kind.event().unwrap();
            publish(&recorder, report, report, &claim, Some(&node));
            assert_eq!(published(warning), reason);
        }
        terminating(&recorder, &claim, Some(&node));
        assert_eq!(published(true), "TerminatingOnInterruption");
        assert!(Kind::NoOp.event().is_none());
    }
}
