//! What the selectors of an EC2NodeClass find.

use std::time::Duration;

use serde_json::json;

use super::super::{Error, Outcome};
use super::{Controller, MINUTE, status_of};
use crate::api::conditions;
use crate::api::v1::EC2NodeClass;
use crate::cloud::aws::ami::AmiError;
use crate::cloud::aws::errors::AwsError;
use crate::cloud::aws::{capacityreservation, placementgroup};
use crate::operator::logging;

/// True when the condition holds for the class as it is now: an outage of AWS must not undo that.
fn is_settled(class: &EC2NodeClass, kind: &str) -> bool {
    let list = class.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    conditions::get(list, kind).is_some_and(|c| {
        c.status == conditions::TRUE && c.observed_generation == class.metadata.generation
    })
}

impl Controller {
    /// Reports a call that the policy does not allow on the condition that needs its answer. One
    /// that holds for the class as it is now stays: what was found is still right.
    pub(super) fn report_denied(&self, class: &mut EC2NodeClass, kind: &str, error: &AwsError) {
        if error.is_unauthorized() && !is_settled(class, kind) {
            self.set(class, kind, conditions::FALSE, "Unauthorized", &error.denial());
        }
    }

    pub(super) async fn amis(&self, class: &mut EC2NodeClass) -> Outcome {
        let kind = conditions::AMIS_READY;
        let version = self.aws.version.get().await?;
        let found = match self.aws.amis.list(class, &version).await {
            Ok(found) => found,
            Err(AmiError::UnsupportedAlias(text)) => {
                self.set(class, kind, conditions::FALSE, "UnsupportedAlias", &text);
                return Ok(self.terminal(&format!("getting amis, {text}")));
            }
            Err(error) => {
                if let AmiError::NoRelease(alias) = &error
                    && !is_settled(class, kind)
                {
                    status_of(class).amis.clear();
                    let message = format!(
                        "AMISelector did not match any AMIs, there are none for the alias {alias:?}"
                    );
                    self.set(class, kind, conditions::FALSE, "AMINotFound", &message);
                }
                if let AmiError::Aws { error, .. } = &error {
                    self.report_denied(class, kind, error);
                }
                return Err(Error::Other(error.to_string()));
            }
        };
        if found.is_empty() {
            status_of(class).amis.clear();
            let message = "AMISelector did not match any AMIs";
            self.set(class, kind, conditions::FALSE, "AMINotFound", message);
            return Ok(Some(MINUTE));
        }
        let mut ids: Vec<&str> = found.iter().map(|a| a.id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        if self.is_news(class, kind, ids.join(",")) {
            tracing::debug!("ids" = %logging::json(&ids), "discovered amis");
        }
        status_of(class).amis = found;
        self.set_true(class, kind);
        Ok(Some(5 * MINUTE))
    }

    pub(super) async fn capacity_reservations(&self, class: &mut EC2NodeClass) -> Outcome {
        let kind = conditions::CAPACITY_RESERVATIONS_READY;
        let terms = class.spec.capacity_reservation_selector_terms.clone().unwrap_or_default();
        let found = self
            .aws
            .capacity_reservations
            .list(&terms)
            .await
            .map_err(|e| Error::Other(format!("getting capacity reservations, {e}")))?;
        let Some(found) = found else {
            // What was known stays: reserved nodes must not seem to have left their reservations.
            self.set_true(class, kind);
            return Ok(Some(MINUTE));
        };
        let now = self.now();
        let total = found.len();
        let (mut list, mut again, mut failed) = (Vec::new(), MINUTE, 0);
        for reservation in &found {
            match capacityreservation::to_status(reservation, now) {
                Ok(entry) => list.push(entry),
                Err(_) => failed += 1,
            }
            if let Some(end) = capacityreservation::end_of(reservation) {
                let left = Duration::try_from(end.duration_since(now)).unwrap_or(Duration::ZERO);
                again = again.min(left);
            }
        }
        if failed > 0 {
            tracing::error!(
                "error-count" = failed,
                "total-count" = total,
                "failed to parse discovered capacity reservations"
            );
        }
        let ids: Vec<&str> = list.iter().map(|r| r.id.as_str()).collect();
        if !ids.is_empty() && self.is_news(class, kind, ids.join(",")) {
            tracing::debug!("ids" = %logging::json(&ids), "discovered capacity reservations");
        }
        status_of(class).capacity_reservations = list;
        self.set_true(class, kind);
        Ok(Some(again))
    }

    pub(super) async fn placement_group(&self, class: &mut EC2NodeClass) -> Outcome {
        let kind = conditions::PLACEMENT_GROUP_READY;
        let Some(selector) = class.spec.placement_group_selector.clone() else {
            self.set_true(class, kind);
            return Ok(None);
        };
        let wanted = placementgroup::wanted(&selector);
        match self.aws.placement_groups.get(class).await {
            Ok(Some(group)) => {
                let text = format!("{}/{}/{}", group.id, group.name, group.strategy);
                if self.is_news(class, kind, text) {
                    tracing::debug!(
                        "id" = group.id,
                        "name" = group.name,
                        "strategy" = group.strategy,
                        "discovered placement group"
                    );
                }
                self.set_true(class, kind);
                Ok(Some(MINUTE))
            }
            Ok(None) => {
                let message = format!("Placement group {wanted:?} not found");
                self.set(class, kind, conditions::FALSE, "PlacementGroupNotFound", &message);
                Ok(Some(MINUTE))
            }
            Err(error) if error.is_unauthorized() => {
                let message = format!("Failed to resolve placement group: {}", error.message);
                let reason = "PlacementGroupResolutionFailed";
                self.set(class, kind, conditions::FALSE, reason, &message);
                Ok(Some(MINUTE))
            }
            Err(error) => {
                let message = "Failed to resolve placement group";
                let reason = "PlacementGroupResolutionFailed";
                self.set(class, kind, conditions::FALSE, reason, message);
                Err(Error::Other(format!(
                    "resolving placement group, {error} (placement-group={wanted})"
                )))
            }
        }
    }

    pub(super) async fn subnets(&self, class: &mut EC2NodeClass) -> Outcome {
        let kind = conditions::SUBNETS_READY;
        let outcome = self.aws.subnets.list(class).await;
        let found = outcome.inspect_err(|e| self.report_denied(class, kind, e))?;
        if found.is_empty() {
            status_of(class).subnets.clear();
            let message = "SubnetSelector did not match any Subnets";
            self.set(class, kind, conditions::FALSE, "SubnetsNotFound", message);
            return Ok(Some(MINUTE));
        }
        let mut shown: Vec<_> = found
            .iter()
            .map(|s| json!({"id": s.id, "zone": s.zone, "zoneID": s.zone_id}))
            .collect();
        shown.sort_by_key(ToString::to_string);
        let shown = json!(shown);
        if self.is_news(class, kind, shown.to_string()) {
            tracing::debug!("subnets" = %logging::json(&shown), "discovered subnets");
        }
        status_of(class).subnets = found;
        self.set_true(class, kind);
        Ok(Some(MINUTE))
    }

    pub(super) async fn security_groups(&self, class: &mut EC2NodeClass) -> Outcome {
        let kind = conditions::SECURITY_GROUPS_READY;
        let outcome = self.aws.security_groups.list(class).await;
        let found = outcome.inspect_err(|e| self.report_denied(class, kind, e))?;
        if found.is_empty() && !class.spec.security_group_selector_terms.is_empty() {
            status_of(class).security_groups.clear();
            let message = "SecurityGroupSelector did not match any SecurityGroups";
            self.set(class, kind, conditions::FALSE, "SecurityGroupsNotFound", message);
            return Ok(Some(MINUTE));
        }
        let ids: Vec<&str> = found.iter().map(|g| g.id.as_str()).collect();
        if self.is_news(class, kind, ids.join(",")) {
            tracing::debug!("security-groups" = %logging::json(&ids), "discovered security groups");
        }
        status_of(class).security_groups = found;
        self.set_true(class, kind);
        Ok(Some(5 * MINUTE))
    }
}
