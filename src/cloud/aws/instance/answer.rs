//! What a fleet's answer means: an instance, a lack of capacity, or a failure; and what is learnt.

use std::collections::BTreeSet;

use super::Provider;
use super::fleet::{Answer, Placed, Refused};
use super::launch::Attempt;
use super::record::Instance;
use crate::api::labels;
use crate::cloud::aws::errors;
use crate::cloud::aws::instancetype::capacity::EFA;
use crate::cloud::aws::launchtemplate::wants_network_devices;
use crate::cloud::aws::unavailable::{Refusal, Scope};
use crate::cloud::{Detail, Error, FailedCall};
use crate::operator::events::Report;
use crate::operator::metrics;
use crate::scheduling::resources::Name;

/// EC2 refuses a pool since its subnet has no address left.
const NO_ADDRESS: &str = "InsufficientFreeAddressesInSubnet";
/// Part of the message about a full spread placement group.
const SPREAD_LIMIT: &str = "limit of instances in this spread placement group";

impl Provider {
    /// Learns from the refusals, and makes the launch's outcome of the answer.
    pub(super) fn read_answer(
        &self,
        attempt: &Attempt<'_>,
        answer: &Answer,
    ) -> Result<Instance, Error> {
        for refused in answer.errors.iter() {
            self.learn(attempt, answer, refused);
        }
        // After learning: a fleet that got its instance still names the pools that were refused.
        if let Some(placed) = &answer.placed {
            return Ok(self.launched(attempt, placed));
        }
        // EC2 repeats the same error for each override.
        let texts: BTreeSet<String> = answer.errors.iter().map(ToString::to_string).collect();
        let text = texts.into_iter().collect::<Vec<_>>().join("; ");
        let message = format!("with fleet error(s), {text}");
        // The call itself went well; what it could not do has a name in the log all the same.
        let call = FailedCall {
            service: "EC2",
            operation: "CreateFleet",
            status: 200,
            code: "UnfulfillableCapacity".to_owned(),
            request_id: answer.request_id.clone(),
        };
        let lacking =
            |e: &Refused| errors::is_unfulfillable(&e.code) || e.code == errors::SPOT_ROLE_MISSING;
        if !answer.errors.is_empty() && answer.errors.iter().all(lacking) {
            return Err(Error::InsufficientCapacity(Detail::from(message).of_call(call)));
        }
        let (reason, condition) = errors::launch_failure(&text);
        Err(Error::Create {
            reason: reason.to_owned(),
            condition: condition.to_owned(),
            message: Detail::from(format!("creating instance, {message}")).of_call(call),
        })
    }

    fn learn(&self, attempt: &Attempt<'_>, answer: &Answer, refused: &Refused) {
        let place = refused.place.clone().unwrap_or_default();
        let subnet = attempt.subnets.values().find(|c| c.subnet.zone == place.zone);
        let zone_id = subnet.and_then(|c| c.subnet.zone_id.as_deref()).unwrap_or_default();
        let (reason, _) = errors::launch_failure(&refused.to_string());
        metrics::INSTANCE_LAUNCH_FAILURES
            .with_label_values(&[&place.zone, zone_id, attempt.capacity_type, reason])
            .inc();
        if refused.code == errors::SPOT_ROLE_MISSING {
            self.unavailable.mark_capacity_type(labels::CAPACITY_SPOT);
            let code = format!("{:?}", errors::SPOT_ROLE_MISSING);
            self.report(attempt.claim, Report::SpotRoleMissing { code: &code });
        }
        // Without a pool, or for a fault of the request itself, no offering is to blame.
        if refused.place.is_none() || !errors::is_unfulfillable(&refused.code) {
            return;
        }
        if attempt.capacity_type == labels::CAPACITY_RESERVED {
            self.reservation_refused(attempt, refused);
            return;
        }
        let scope = attempt
            .placement
            .as_ref()
            .map(|group| Scope { group: &group.id, partition: attempt.partition.as_deref() });
        let full = refused.message.contains(SPREAD_LIMIT);
        let kinds: Vec<&str> = if full && scope.is_some() {
            // The group is full in that zone, whatever the type.
            attempt.types.iter().map(|t| &*t.name).collect()
        } else {
            vec![&place.instance_type]
        };
        for instance_type in kinds {
            self.unavailable.note(&Refusal {
                reason: &refused.code,
                capacity_type: attempt.capacity_type,
                instance_type,
                zone: &place.zone,
                scope,
                fleet: answer.fleet.as_deref(),
            });
        }
        if refused.code == NO_ADDRESS && !place.subnet.is_empty() {
            self.unavailable.mark_subnet(&place.subnet);
            self.subnets.mark_exhausted(&place.subnet);
        }
    }

    /// A reservation that is refused is full. Its type and zone may well be available outside of
    /// it.
    fn reservation_refused(&self, attempt: &Attempt<'_>, refused: &Refused) {
        let Some(place) = refused.place.as_ref() else { return };
        if refused.message.contains(SPREAD_LIMIT) {
            return;
        }
        let id = attempt
            .types
            .iter()
            .filter(|t| *t.name == *place.instance_type)
            .flat_map(|t| t.compatible_offerings(&attempt.requirements))
            .find(|o| o.zone() == place.zone)
            .map(|o| o.reservation_id().to_owned());
        if let Some(id) = id.filter(|id| !id.is_empty()) {
            tracing::debug!(
                "reason" = refused.code,
                "instance-type" = place.instance_type,
                "zone" = place.zone,
                "capacity-reservation-id" = id,
                "marking capacity reservation unavailable"
            );
            self.reservations.mark_unavailable(&id);
        }
    }

    /// The instance, as far as the fleet's answer describes it.
    fn launched(&self, attempt: &Attempt<'_>, placed: &Placed) -> Instance {
        let place = &placed.place;
        let kind = attempt.types.iter().find(|t| *t.name == *place.instance_type);
        let offering = kind.and_then(|t| {
            let mut list = t.compatible_offerings(&attempt.requirements);
            list.find(|o| o.zone() == place.zone)
        });
        let value = |key: &str| {
            offering
                .filter(|_| attempt.capacity_type == labels::CAPACITY_RESERVED)
                .and_then(|o| o.requirements.get(key)?.single().map(str::to_owned))
        };
        let template = attempt
            .templates
            .iter()
            .find(|t| t.instance_types.iter().any(|i| *i.name == *place.instance_type));
        let image = Some(place.image.clone()).filter(|i| !i.is_empty());
        // The launch template has adapters only in these cases, whatever the type could have.
        let wants_efa = attempt.wants(EFA)
            || attempt.has_own_interfaces()
            || wants_network_devices(attempt.claim);
        let subnet = attempt.subnets.get(&place.zone);
        let groups = attempt.class.status.iter().flat_map(|s| &s.security_groups);
        Instance {
            id: placed.id.clone(),
            instance_type: place.instance_type.clone(),
            zone: place.zone.clone(),
            zone_id: subnet.and_then(|c| c.subnet.zone_id.clone()),
            capacity_type: attempt.capacity_type.to_owned(),
            image_id: image.or_else(|| template.map(|t| t.image_id.clone())).unwrap_or_default(),
            state: "pending".to_owned(),
            launched: Some(self.clock.now()),
            subnet_id: place.subnet.clone(),
            reservation_id: value(labels::CAPACITY_RESERVATION_ID),
            reservation_type: value(labels::CAPACITY_RESERVATION_TYPE),
            interruptible: value(labels::CAPACITY_RESERVATION_INTERRUPTIBLE).as_deref()
                == Some("true"),
            security_groups: groups.map(|g| g.id.clone()).collect(),
            tags: attempt.tags.clone(),
            efa: kind.filter(|_| wants_efa).map_or(0, |t| t.capacity.get(&Name::from(EFA))),
            tenancy: attempt.tenancy.to_owned(),
            placement_group_id: attempt.placement.as_ref().map(|g| g.id.clone()),
            placement_partition: attempt.partition.as_deref().and_then(|p| p.parse().ok()),
        }
    }
}

#[cfg(test)]
mod tests;
