//! Whether an EC2NodeClass whose selectors found everything can really be launched from.

use std::time::Duration;

use super::super::{Error, Outcome};
use super::{Controller, status_of};
use crate::api::conditions;
use crate::api::v1::{EC2NodeClass, NodeClaim};
use crate::cloud::aws::ami::AmiFamily;
use crate::cloud::aws::tags;

const AGAIN: Duration = Duration::from_secs(600);
/// Conditions without which there is nothing to validate.
const NEEDED: &[&str] = &[
    conditions::AMIS_READY,
    conditions::INSTANCE_PROFILE_READY,
    conditions::SECURITY_GROUPS_READY,
    conditions::SUBNETS_READY,
];

impl Controller {
    /// Sets `ValidationSucceeded`; the first thing that is wrong decides.
    pub(super) async fn validate(&self, class: &mut EC2NodeClass) -> Outcome {
        let kind = conditions::VALIDATION_SUCCEEDED;
        if AmiFamily::of(class) == AmiFamily::Al2023
            && let Err(error) = self.aws.launch_templates.resolve_cidr().await
        {
            let message = "Failed to detect the cluster CIDR";
            self.set(class, kind, conditions::FALSE, "ClusterCIDRResolutionFailed", message);
            return Err(Error::Other(format!("failed to detect the cluster CIDR, {error}")));
        }
        let list = &status_of(class).conditions;
        let state = if NEEDED.iter().any(|k| conditions::is_false(list, k)) {
            Some(conditions::FALSE)
        } else if NEEDED.iter().any(|k| !conditions::is_true(list, k)) {
            Some(conditions::UNKNOWN)
        } else {
            None
        };
        if let Some(state) = state {
            let message = "Awaiting AMI, Instance Profile, Security Group, and Subnet resolution";
            self.set(class, kind, state, "DependenciesNotReady", message);
            return Ok(Some(AGAIN));
        }
        let claim = NodeClaim::default();
        if let Err(error) = tags::of(class, &claim, &self.ctx.settings.cluster_name) {
            let text = error.to_string();
            self.set(class, kind, conditions::FALSE, "TagValidationFailed", &text);
            tracing::error!("error" = text, "validating tags");
            return Ok(None);
        }
        self.set_true(class, kind);
        Ok(Some(AGAIN))
    }
}
