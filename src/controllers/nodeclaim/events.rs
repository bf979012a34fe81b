//! The events of NodeClaims' lives.

use std::fmt::Display;

use k8s_openapi::api::core::v1::ObjectReference;

use crate::api::v1::NodeClaim;
use crate::cloud;
use crate::operator::events::{Event, Report, reference};

fn name(claim: &NodeClaim) -> &str {
    claim.metadata.name.as_deref().unwrap_or_default()
}

/// No offering could be launched; the claim is deleted.
pub(super) fn insufficient_capacity(claim: &NodeClaim, error: &cloud::Error) -> Event {
    Report::InsufficientCapacity { claim: &name(claim), error }.on(reference(claim))
}

/// The same on a pod that the claim was made for.
pub(super) fn nominated_claim_failed(
    pod: ObjectReference,
    claim: &NodeClaim,
    error: &cloud::Error,
) -> Event {
    Report::NominatedClaimFailed { claim: &name(claim), error }.on(pod)
}

/// The node class cannot be used; the claim is deleted.
pub(super) fn node_class_not_ready(claim: &NodeClaim, error: &cloud::Error) -> Event {
    Report::NodeClassNotReady { claim: &name(claim), error }.on(reference(claim))
}

/// The Node came without the taint that keeps pods away until it is registered.
pub(super) fn unregistered_taint_missing(claim: &NodeClaim) -> Event {
    Report::UnregisteredTaintMissing.on(reference(claim))
}

/// The Node is smaller than the claim promised.
pub(super) fn failed_consistency_check(claim: &NodeClaim, issue: &str) -> Event {
    Report::FailedConsistencyCheck { issue: &issue }.on(reference(claim))
}

/// Pods that are left at the deadline are deleted.
pub(super) fn termination_grace_period_expiring(
    claim: &NodeClaim,
    deadline: impl Display,
) -> Event {
    Report::TerminationGracePeriodExpiring { deadline: &deadline.to_string() }.on(reference(claim))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_launch_is_reported_on_the_claim_and_on_its_pods() {
        let claim: NodeClaim = serde_json::from_value(serde_json::json!({
            "apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
            "metadata": {"name": "c", "uid": "u"},
            "spec": {"requirements": [],
                "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "d"}},
        }))
        .unwrap();
        let error = cloud::Error::InsufficientCapacity("no spot".into());
        let on_claim = insufficient_capacity(&claim, &error);
        assert_eq!(on_claim.message, "NodeClaim c event: insufficient capacity, no spot");
        assert_eq!((&*on_claim.reason, on_claim.warning), ("InsufficientCapacityError", true));
        let pod = ObjectReference { uid: Some("p".to_owned()), ..ObjectReference::default() };
        let on_pod = nominated_claim_failed(pod, &claim, &error);
        assert_eq!(
            on_pod.message,
            "NodeClaim c nominated for this pod failed to launch: insufficient capacity, no spot"
        );
        assert!(on_pod.limited && on_pod.warning && on_pod.dedupe == "p");
        let error = cloud::Error::NodeClassNotReady("d".into());
        let event = node_class_not_ready(&claim, &error);
        assert_eq!((&*event.reason, event.dedupe.as_str()), ("NodeClassNotReady", "u"));
        assert_eq!(event.message, "NodeClaim c event: NodeClassRef not ready, d");
    }
}
