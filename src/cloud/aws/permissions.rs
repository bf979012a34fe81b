//! Features that the IAM policy may leave out: such a feature is turned off with one clear warning.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;

use super::errors::AwsError;
use crate::clock::Clock;
use crate::operator::metrics;

/// A feature that is off is tried again this often: the policy may have been extended.
const RETRY: Duration = Duration::from_secs(3600);

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
    /// Removing instance profiles that nobody uses any more.
    InstanceProfileCollection,
    /// Staying away from zones under a zonal shift.
    ZonalShift,
    /// Tagging instances after their launch.
    Tagging,
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
            Self::Tagging => (
                "tagging",
                "ec2:CreateTags",
                "instances lack the tags Name and karpenter.sh/nodeclaim",
            ),
        }
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
        let first = self.off.lock().insert(feature, self.clock.now() + RETRY).is_none();
        let (name, permission, missed) = feature.describe();
        metrics::FEATURE_DISABLED.with_label_values(&[name, permission]).set(1.0);
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
        metrics::FEATURE_DISABLED.with_label_values(&[name, permission]).set(0.0);
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
    fn a_refusal_turns_a_feature_off_for_an_hour() {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        let permissions = Permissions::new(&clock);
        let error = |code: &str| AwsError {
            operation: "DescribeInstanceStatus",
            code: code.to_owned(),
            message: "no".to_owned(),
        };
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
}
