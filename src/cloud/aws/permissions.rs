//! Features that the IAM policy may leave out: such a feature is turned off with one clear warning.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;

use super::errors::AwsError;
use crate::clock::Clock;
use crate::operator::metrics;

/// A feature that is off is tried again this often: the policy may have been extended.
pub const RETRY: Duration = Duration::from_secs(600);

/// Something that works only with a permission of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Feature {
    /// Live on-demand prices.
    OnDemandPrices,
    /// Live spot prices.
    SpotPrices,
    /// Capacity reservations.
    CapacityReservations,
    /// Placement groups.
    PlacementGroups,
    /// Acting on impaired instances.
    InstanceStatus,
    /// Removing instance profiles that are no longer used.
    InstanceProfileCollection,
    /// Staying away from zones under a zonal shift.
    ZonalShift,
    /// Tagging instances after their launch.
    Tagging,
    /// Acting on what AWS announces in the queue.
    Interruptions,
    /// Rebooting instances to repair them.
    Reboot,
}

impl Feature {
    /// The feature's name in metrics, the permission that it needs, and what is missed without.
    #[must_use]
    pub fn describe(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::OnDemandPrices => (
                "on-demand-prices",
                "pricing:GetProducts",
                "on-demand prices stay as they were last known",
            ),
            Self::SpotPrices => (
                "spot-prices",
                "ec2:DescribeSpotPriceHistory",
                "spot offerings are taken to cost what on-demand ones do",
            ),
            Self::CapacityReservations => (
                "capacity-reservations",
                "ec2:DescribeCapacityReservations",
                "capacity reservations are not used",
            ),
            Self::PlacementGroups => (
                "placement-groups",
                "ec2:DescribePlacementGroups",
                "node classes with a placement group cannot be used",
            ),
            Self::InstanceStatus => (
                "instance-status",
                "ec2:DescribeInstanceStatus",
                "impaired instances are not replaced",
            ),
            Self::InstanceProfileCollection => (
                "instance-profile-collection",
                "iam:ListInstanceProfiles",
                "instance profiles of deleted node classes may stay",
            ),
            Self::ZonalShift => {
                ("zonal-shift", "arc-zonal-shift:GetManagedResource", "zonal shifts are not heeded")
            }
            Self::Interruptions => (
                "interruptions",
                "sqs:GetQueueUrl, sqs:ReceiveMessage",
                "nodes are not drained ahead of interruptions",
            ),
            Self::Reboot => (
                "reboot",
                "ec2:RebootInstances",
                "unhealthy nodes that a reboot would repair are replaced",
            ),
            Self::Tagging => (
                "tagging",
                "ec2:CreateTags",
                "instances lack the tags Name and karpenter.sh/nodeclaim",
            ),
        }
    }
}

impl Feature {
    /// The error for callers that cannot do without a feature that is off.
    #[must_use]
    pub fn refusal(self) -> AwsError {
        let (name, permission, _) = self.describe();
        let text = format!("the controller's IAM policy does not allow {permission}");
        AwsError::local(name, "UnauthorizedOperation", text)
    }
}

/// Sets a feature's series, one per permission.
fn show(feature: &str, permissions: &str, value: f64) {
    for permission in permissions.split(", ") {
        metrics::FEATURE_DISABLED.with_label_values(&[feature, permission]).set(value);
    }
}

/// Knows which features are off.
#[derive(Debug)]
pub struct Permissions {
    clock: Clock,
    /// When each feature that is off is tried again.
    off: Mutex<HashMap<Feature, Timestamp>>,
}

impl Permissions {
    /// Every feature is taken to be allowed.
    #[must_use]
    pub fn new(clock: &Clock) -> Self {
        Self { clock: clock.clone(), off: Mutex::default() }
    }

    /// Whether a feature is off at the moment.
    #[must_use]
    pub fn is_off(&self, feature: Feature) -> bool {
        self.off.lock().get(&feature).is_some_and(|retry| *retry > self.clock.now())
    }

    /// Makes a feature's call, unless the feature is off; nothing where it is, or gets, off.
    ///
    /// # Errors
    /// Whatever else went wrong with the call.
    pub async fn ask<T>(
        &self,
        feature: Feature,
        call: impl Future<Output = Result<T, AwsError>>,
    ) -> Result<Option<T>, AwsError> {
        if self.is_off(feature) {
            return Ok(None);
        }
        self.settle(feature, call.await)
    }

    /// Looks at how a feature's call went. A refusal turns it off, and is no error any more.
    ///
    /// # Errors
    /// Whatever else went wrong with the call.
    pub fn settle<T>(
        &self,
        feature: Feature,
        outcome: Result<T, AwsError>,
    ) -> Result<Option<T>, AwsError> {
        match outcome {
            Err(error) if error.is_unauthorized() => {
                self.turn_off(feature, &error);
                Ok(None)
            }
            Err(error) => Err(error),
            Ok(value) => {
                self.turn_on(feature);
                Ok(Some(value))
            }
        }
    }

    fn turn_off(&self, feature: Feature, error: &AwsError) {
        // The entry stays when its time is up, so a retry that is refused again logs nothing.
        let first = self.off.lock().insert(feature, self.clock.now() + RETRY).is_none();
        let (name, permission, missed) = feature.describe();
        show(name, permission, 1.0);
        if first {
            tracing::warn!(
                "feature" = name,
                "permission" = permission,
                "error" = %error,
                "not authorized to perform {permission}, {missed}; allow it in the controller's IAM policy to turn this on"
            );
        }
    }

    fn turn_on(&self, feature: Feature) {
        let was_off = self.off.lock().remove(&feature).is_some();
        let (name, permission, _) = feature.describe();
        show(name, permission, 0.0);
        if was_off {
            tracing::info!(
                "feature" = name,
                "permission" = permission,
                "feature is authorized now"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_of_1_15_allows_reboots_of_what_may_be_terminated_and_of_nothing_else() {
        let statements = |text: &str| -> Vec<serde_json::Value> {
            let policy: serde_json::Value = serde_json::from_str(text).unwrap();
            policy["Statement"].as_array().unwrap().clone()
        };
        let allows = |statement: &serde_json::Value, action: &str| {
            statement["Action"].as_array().is_some_and(|all| all.iter().any(|a| a == action))
        };
        let of_1_15 = statements(include_str!("../../../deploy/iam/controller-policy-1.15.json"));
        let found: Vec<_> = of_1_15.iter().filter(|s| allows(s, "ec2:RebootInstances")).collect();
        let [scoped] = found[..] else { panic!("{found:?}") };
        assert_eq!(scoped["Sid"], "AllowScopedDeletion");
        assert!(allows(scoped, "ec2:TerminateInstances"));
        assert!(scoped["Condition"]["StringEquals"].is_object(), "{scoped}");
        let of_1_14 = statements(include_str!("../../../deploy/iam/controller-policy-1.14.json"));
        assert!(!of_1_14.iter().any(|s| allows(s, "ec2:RebootInstances")));
    }

    #[test]
    fn a_refusal_turns_a_feature_off_for_a_while() {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        let permissions = Permissions::new(&clock);
        let error = |code: &str| AwsError::local("DescribeInstanceStatus", code, "no");
        let feature = Feature::InstanceStatus;
        assert!(!permissions.is_off(feature));
        let refused = permissions.settle::<()>(feature, Err(error("UnauthorizedOperation")));
        assert_eq!(refused, Ok(None));
        assert!(permissions.is_off(feature));
        assert!(!permissions.is_off(Feature::ZonalShift));
        clock.advance(RETRY);
        assert!(!permissions.is_off(feature));
        let other = permissions.settle::<()>(feature, Err(error("RequestLimitExceeded")));
        assert_eq!(other.unwrap_err().code, "RequestLimitExceeded");
        assert_eq!(permissions.settle(feature, Ok(1)), Ok(Some(1)));
        assert!(!permissions.is_off(feature));
    }

    #[test]
    fn each_permission_has_a_series_of_its_own() {
        let permissions = Permissions::new(&Clock::manual(Timestamp::UNIX_EPOCH));
        let error = AwsError::local("GetQueueUrl", "AccessDenied", "no");
        permissions.turn_off(Feature::Interruptions, &error);
        for permission in ["sqs:GetQueueUrl", "sqs:ReceiveMessage"] {
            let series =
                metrics::FEATURE_DISABLED.with_label_values(&["interruptions", permission]);
            assert!((series.get() - 1.0).abs() < f64::EPSILON, "{permission}");
        }
    }

    #[tokio::test]
    async fn a_feature_that_is_off_is_not_asked() {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        let permissions = Permissions::new(&clock);
        let feature = Feature::PlacementGroups;
        let calls = std::cell::Cell::new(0);
        let call = |answer: Result<u8, AwsError>| {
            let calls = &calls;
            async move {
                calls.set(calls.get() + 1);
                answer
            }
        };
        let refused = || AwsError::local("DescribePlacementGroups", "UnauthorizedOperation", "no");
        assert_eq!(permissions.ask(feature, call(Err(refused()))).await, Ok(None));
        assert_eq!(permissions.ask(feature, call(Ok(1))).await, Ok(None));
        assert_eq!(calls.get(), 1);
        clock.advance(RETRY);
        assert_eq!(permissions.ask(feature, call(Ok(1))).await, Ok(Some(1)));
        assert_eq!(calls.get(), 2);
    }
}
