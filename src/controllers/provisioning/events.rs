//! The events of provisioning.

use std::fmt::Display;

use super::pod_reference;
use crate::api::v1::NodePool;
use crate::operator::events::{Event, Report, reference};
use crate::scheduling::pod::PodInfo;

/// No instance type is left of a pool's own requirements.
pub(super) fn no_compatible_instance_types(pool: &NodePool, by_min_values: bool) -> Event {
    let suffix = if by_min_values { " due to minValues incompatibility" } else { "" };
    Report::NoCompatibleInstanceTypes { cause: &suffix }.on(reference(pool))
}

/// No place was found for a pod.
pub(super) fn failed_scheduling(pod: &PodInfo, why: impl Display) -> Event {
    Report::FailedScheduling { why: &why.to_string() }.on(pod_reference(pod))
}

/// A pod is expected to run on a claim or a node.
pub(super) fn nominated(pod: &PodInfo, on: &str) -> Event {
    Report::Nominated { on: &on }.on(pod_reference(pod))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn texts_and_windows_are_those_that_viewers_parse() {
        let pod = PodInfo::default();
        let failed = failed_scheduling(&pod, "no room");
        assert_eq!(failed.message, "Failed to schedule pod, no room");
        assert_eq!((failed.warning, failed.dedupe_for), (true, Duration::from_secs(300)));
        let nominated = nominated(&pod, "nodeclaim/c");
        assert_eq!(nominated.message, "Pod should schedule on: nodeclaim/c");
        assert!(nominated.limited && !nominated.warning);
        let pool = NodePool::new("p", Default::default());
        let none = no_compatible_instance_types(&pool, true);
        assert!(none.message.ends_with("instance types due to minValues incompatibility"));
        assert_eq!(none.dedupe_for, Duration::from_secs(60));
    }
}
