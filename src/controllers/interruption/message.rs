//! Messages of EventBridge, and what each kind of them is about.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::operator::events::Report;

/// What is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Nothing that matters here.
    NoOp,
    SpotInterrupted,
    RebalanceRecommendation,
    InstanceStopped,
    InstanceTerminated,
    CapacityReservationInterrupted,
    ScheduledChange,
    /// EC2's checks of the instance fail.
    InstanceStatus,
    /// EC2's checks of the machine below fail.
    SystemStatus,
    /// EC2 has something planned for the instance.
    EventStatus,
}

/// What is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    CordonAndDrain,
    /// Without waiting for anything.
    ForcefulTermination,
}

impl Kind {
    /// The name in metrics and reasons.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::NoOp => "no_op",
            Self::SpotInterrupted => "spot_interrupted",
            Self::RebalanceRecommendation => "rebalance_recommendation",
            Self::InstanceStopped => "instance_stopped",
            Self::InstanceTerminated => "instance_terminated",
            Self::CapacityReservationInterrupted => "capacity_reservation_interrupted",
            Self::ScheduledChange => "scheduled_change",
            Self::InstanceStatus => "instance_status",
            Self::SystemStatus => "system_status",
            Self::EventStatus => "event_status",
        }
    }

    pub(super) fn action(self) -> Action {
        match self {
            Self::NoOp | Self::RebalanceRecommendation => Action::Nothing,
            Self::InstanceStatus | Self::SystemStatus => Action::ForcefulTermination,
            Self::SpotInterrupted
            | Self::InstanceStopped
            | Self::InstanceTerminated
            | Self::CapacityReservationInterrupted
            | Self::ScheduledChange
            | Self::EventStatus => Action::CordonAndDrain,
        }
    }

    /// The event on the NodeClaim and its Node.
    pub(super) fn event(self) -> Option<Report<'static>> {
        Some(match self {
            Self::NoOp => return None,
            Self::SpotInterrupted => Report::SpotInterrupted,
            Self::RebalanceRecommendation => Report::SpotRebalanceRecommendation,
            Self::InstanceStopped => Report::InstanceStopping,
            Self::InstanceTerminated => Report::InstanceTerminating,
            Self::CapacityReservationInterrupted => Report::CapacityReservationInterrupted,
            Self::ScheduledChange
            | Self::EventStatus
            | Self::InstanceStatus
            | Self::SystemStatus => Report::InstanceUnhealthy,
        })
    }
}

/// A message, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: Kind,
    /// Ids of instances, of this cluster or not.
    pub(super) instances: Vec<String>,
    /// When it was sent.
    pub(super) time: Option<Timestamp>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", default)]
#[derive(Default)]
struct Envelope {
    version: String,
    source: String,
    detail_type: String,
    time: Option<Timestamp>,
    detail: Value,
}

/// Reads a message; one of a kind that does not matter here is no mistake.
///
/// # Errors
/// When it is no JSON, or not of EventBridge's form.
pub(super) fn parse(body: &str) -> Result<Message, String> {
    // SQS lets anybody who may send leave the body out, and the queue must get rid of it.
    if body.is_empty() {
        return Ok(Message { kind: Kind::NoOp, instances: Vec::new(), time: None });
    }
    let envelope: Envelope =
        serde_json::from_str(body).map_err(|e| format!("{e}, expected an EventBridge event"))?;
    let detail = &envelope.detail;
    let text = |key: &str| detail.get(key).and_then(Value::as_str).unwrap_or_default();
    let kind = match (
        envelope.version.as_str(),
        envelope.source.as_str(),
        envelope.detail_type.as_str(),
    ) {
        ("0", "aws.ec2", "EC2 Spot Instance Interruption Warning") => Kind::SpotInterrupted,
        ("0", "aws.ec2", "EC2 Instance Rebalance Recommendation") => Kind::RebalanceRecommendation,
        ("0", "aws.ec2", "EC2 Instance State-change Notification") => of_state(text("state")),
        ("0", "aws.ec2", "EC2 Capacity Reservation Instance Interruption Warning") => {
            Kind::CapacityReservationInterrupted
        }
        ("0", "aws.health", "AWS Health Event")
            if text("service") == "EC2" && text("eventTypeCategory") == "scheduledChange" =>
        {
            Kind::ScheduledChange
        }
        _ => Kind::NoOp,
    };
    let instances = match kind {
        Kind::NoOp => Vec::new(),
        // AWS Health names the instances as entities, and several in one message.
        Kind::ScheduledChange => detail
            .get("affectedEntities")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|e| e.get("entityValue")?.as_str().map(str::to_owned))
            .collect(),
        _ => vec![text("instance-id").to_owned()],
    };
    Ok(Message { kind, instances, time: envelope.time })
}

fn of_state(state: &str) -> Kind {
    match (state, state.to_lowercase().as_str()) {
        // Exactly so written it is a stop; in other cases of letters it counts as an end, as in
        // Karpenter.
        ("stopping" | "stopped", _) => Kind::InstanceStopped,
        (_, "stopping" | "stopped" | "shutting-down" | "terminated") => Kind::InstanceTerminated,
        _ => Kind::NoOp,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(source: &str, detail_type: &str, detail: Value) -> Message {
        let body = json!({"version": "0", "id": "1", "account": "123456789012",
            "region": "us-east-1", "resources": [], "time": "2026-01-02T03:04:05Z",
            "source": source, "detail-type": detail_type, "detail": detail});
        parse(&body.to_string()).unwrap()
    }

    #[test]
    fn every_kind_is_distinguished_from_the_others() {
        let one = json!({"instance-id": "i-1", "instance-action": "terminate"});
        for (detail_type, kind) in [
            ("EC2 Spot Instance Interruption Warning", Kind::SpotInterrupted),
            ("EC2 Instance Rebalance Recommendation", Kind::RebalanceRecommendation),
            (
                "EC2 Capacity Reservation Instance Interruption Warning",
                Kind::CapacityReservationInterrupted,
            ),
        ] {
            let message = read("aws.ec2", detail_type, one.clone());
            assert_eq!((message.kind, message.instances), (kind, vec!["i-1".to_owned()]));
            assert_eq!(message.time, Some("2026-01-02T03:04:05Z".parse().unwrap()));
            assert_eq!(read("aws.ecs", detail_type, one.clone()).kind, Kind::NoOp);
        }
        for (state, kind) in [
            ("stopping", Kind::InstanceStopped),
            ("stopped", Kind::InstanceStopped),
            ("shutting-down", Kind::InstanceTerminated),
            ("terminated", Kind::InstanceTerminated),
            ("Terminated", Kind::InstanceTerminated),
            ("running", Kind::NoOp),
        ] {
            let detail = json!({"instance-id": "i-1", "state": state});
            let message = read("aws.ec2", "EC2 Instance State-change Notification", detail);
            assert_eq!(message.kind, kind, "{state}");
        }
    }

    #[test]
    fn only_planned_changes_of_ec2_matter() {
        let health = |service: &str, category: &str| {
            let entities = [json!({"entityValue": "i-1"}), json!({"entityValue": "i-2"})];
            let detail = json!({"service": service, "eventTypeCategory": category,
                "affectedEntities": entities});
            read("aws.health", "AWS Health Event", detail)
        };
        let message = health("EC2", "scheduledChange");
        assert_eq!((message.kind, message.instances.len()), (Kind::ScheduledChange, 2));
        assert_eq!(health("RDS", "scheduledChange").kind, Kind::NoOp);
        let other = health("EC2", "issue");
        assert_eq!((other.kind, other.instances.len()), (Kind::NoOp, 0));
    }

    #[test]
    fn what_is_not_known_is_let_go_and_what_is_no_event_is_a_mistake() {
        assert_eq!(parse("").unwrap().kind, Kind::NoOp);
        assert_eq!(parse("{}").unwrap().kind, Kind::NoOp);
        let later = json!({"version": "1", "source": "aws.ec2",
            "detail-type": "EC2 Spot Instance Interruption Warning", "detail": {}});
        assert_eq!(parse(&later.to_string()).unwrap().kind, Kind::NoOp);
        assert!(parse("no json").unwrap_err().contains("EventBridge"));
        assert!(parse("[1]").is_err());
    }
}
