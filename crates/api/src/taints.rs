//! Taints that Karpenter sets, and those that come and go while a node starts.

use k8s_openapi::api::core::v1::Taint;

/// Key of the taint on nodes that are being disrupted or terminated.
pub const DISRUPTED_KEY: &str = "karpenter.sh/disrupted";
/// Key of the same taint in the time of v1beta1, value `disrupting`.
pub const DISRUPTION_KEY_V1BETA1: &str = "karpenter.sh/disruption";
/// Key of the taint from boot until registration.
pub const UNREGISTERED_KEY: &str = "karpenter.sh/unregistered";
/// Key of the taint on nodes that are being rebooted.
pub const REBOOTING_KEY: &str = "karpenter.sh/rebooting";
/// Effect: new pods stay away.
pub const NO_SCHEDULE: &str = "NoSchedule";
/// Effect: pods that are there leave as well.
pub const NO_EXECUTE: &str = "NoExecute";
/// Effect: new pods stay away if they can.
pub const PREFER_NO_SCHEDULE: &str = "PreferNoSchedule";

/// `karpenter.sh/disrupted:NoSchedule`.
#[must_use]
pub fn disrupted() -> Taint {
    new(DISRUPTED_KEY, None, NO_SCHEDULE)
}

/// `karpenter.sh/unregistered:NoExecute`.
#[must_use]
pub fn unregistered() -> Taint {
    new(UNREGISTERED_KEY, None, NO_EXECUTE)
}

/// `karpenter.sh/rebooting:NoSchedule`.
#[must_use]
pub fn rebooting() -> Taint {
    new(REBOOTING_KEY, None, NO_SCHEDULE)
}

/// A taint without a time.
#[must_use]
pub fn new(key: &str, value: Option<&str>, effect: &str) -> Taint {
    Taint {
        key: key.to_owned(),
        value: value.map(str::to_owned),
        effect: effect.to_owned(),
        time_added: None,
    }
}

/// Taints are the same when key and effect agree; the value does not count, as for Kubernetes.
#[must_use]
pub fn matches(a: &Taint, b: &Taint) -> bool {
    a.key == b.key && a.effect == b.effect
}

/// True for the taint of a node that is being disrupted, as this or an older release sets it.
#[must_use]
pub fn marks_disruption(taint: &Taint) -> bool {
    matches(taint, &disrupted())
        || taint.key == DISRUPTION_KEY_V1BETA1 && taint.effect == NO_SCHEDULE
}

/// True for a taint that is expected to disappear while the node initializes.
#[must_use]
pub fn is_ephemeral(taint: &Taint) -> bool {
    // The kubelet, the node controller and the cloud provider set these while a node starts, and
    // remove them. Scheduling ignores them on a node that is not initialized.
    let (key, effect) = (taint.key.as_str(), taint.effect.as_str());
    match key {
        "node.kubernetes.io/not-ready" => effect == NO_SCHEDULE || effect == NO_EXECUTE,
        "node.kubernetes.io/unreachable" => effect == NO_SCHEDULE,
        "node.cloudprovider.kubernetes.io/uninitialized" => effect == NO_SCHEDULE,
        UNREGISTERED_KEY => effect == NO_EXECUTE,
        // A rebooting node is not initialized until it is back.
        REBOOTING_KEY => effect == NO_SCHEDULE,
        _ => key.starts_with("readiness.k8s.io/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_older_releases_are_known() {
        assert!(marks_disruption(&disrupted()));
        let old = "karpenter.sh/disruption";
        assert!(marks_disruption(&new(old, Some("disrupting"), NO_SCHEDULE)));
        assert!(!marks_disruption(&new(old, Some("disrupting"), NO_EXECUTE)));
        assert!(!marks_disruption(&unregistered()));
    }

    #[test]
    fn a_reboot_passes() {
        assert!(is_ephemeral(&rebooting()));
        assert!(!is_ephemeral(&new(REBOOTING_KEY, None, NO_EXECUTE)));
    }
}
