//! An instance as far as Karpenter cares.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::types::{Instance as Ec2Instance, InstanceLifecycleType, InstanceType as Ec2Type};
use jiff::Timestamp;

use crate::api::labels;

/// An instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Instance {
    pub id: String,
    pub instance_type: String,
    pub zone: String,
    /// Zone id, where EC2's answer has it.
    pub zone_id: Option<String>,
    pub capacity_type: String,
    pub image_id: String,
    pub state: String,
    pub launched: Option<Timestamp>,
    pub subnet_id: String,
    /// The capacity reservation that it was launched into, for reserved capacity.
    pub reservation_id: Option<String>,
    /// `default` or `capacity-block`, for reserved capacity.
    pub reservation_type: Option<String>,
    /// Whether EC2 may take the reserved capacity back.
    pub interruptible: bool,
    pub security_groups: BTreeSet<String>,
    pub tags: BTreeMap<String, String>,
    /// Elastic fabric adapters that it has.
    pub efa: i64,
    /// `default` or `dedicated`.
    pub tenancy: String,
    pub placement_group_id: Option<String>,
    pub placement_partition: Option<i32>,
}

impl Instance {
    /// `aws:///zone/id`.
    #[must_use]
    pub fn provider_id(&self) -> String {
        format!("aws:///{}/{}", self.zone, self.id)
    }

    /// True when it is shutting down or terminated.
    #[must_use]
    pub fn terminating(&self) -> bool {
        matches!(self.state.as_str(), "shutting-down" | "terminated")
    }

    /// Reads EC2's description. Without `reserved_capacity`, reservations are not looked at.
    #[must_use]
    pub fn of_ec2(instance: &Ec2Instance, reserved_capacity: bool) -> Self {
        let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
        let some = |value: Option<&str>| value.filter(|v| !v.is_empty()).map(str::to_owned);
        let placement = instance.placement();
        let reservation = Some(instance).filter(|_| reserved_capacity).and_then(reservation_of);
        let lifecycle = instance.instance_lifecycle();
        let spot = some(instance.spot_instance_request_id()).is_some();
        let capacity_type = match (spot, &reservation) {
            (true, _) => labels::CAPACITY_SPOT,
            (false, Some(_)) => labels::CAPACITY_RESERVED,
            (false, None) => labels::CAPACITY_ON_DEMAND,
        };
        let reserved = capacity_type == labels::CAPACITY_RESERVED;
        let block = lifecycle == Some(&InstanceLifecycleType::CapacityBlock);
        let interruptible =
            lifecycle == Some(&InstanceLifecycleType::InterruptibleCapacityReservation);
        Self {
            id: text(instance.instance_id()),
            instance_type: instance.instance_type().map_or("", Ec2Type::as_str).to_owned(),
            zone: text(placement.and_then(|p| p.availability_zone())),
            zone_id: some(placement.and_then(|p| p.availability_zone_id())),
            capacity_type: capacity_type.to_owned(),
            image_id: text(instance.image_id()),
            state: instance
                .state()
                .and_then(|s| s.name())
                .map_or("", aws_sdk_ec2::types::InstanceStateName::as_str)
                .to_owned(),
            launched: instance.launch_time().and_then(|t| Timestamp::from_second(t.secs()).ok()),
            subnet_id: text(instance.subnet_id()),
            reservation_id: reservation.filter(|_| reserved),
            reservation_type: reserved
                .then(|| if block { "capacity-block" } else { "default" }.to_owned()),
            interruptible: reserved && interruptible,
            security_groups: instance
                .security_groups()
                .iter()
                .filter_map(|g| g.group_id().map(str::to_owned))
                .collect(),
            tags: instance.tags().iter().map(|t| (text(t.key()), text(t.value()))).collect(),
            efa: count_efa(instance),
            tenancy: placement
                .and_then(|p| p.tenancy())
                .map(|t| t.as_str())
                .filter(|t| !t.is_empty())
                .unwrap_or("default")
                .to_owned(),
            placement_group_id: some(placement.and_then(|p| p.group_id())),
            placement_partition: placement.and_then(|p| p.partition_number()).filter(|n| *n != 0),
        }
    }
}

/// The reservation that an instance was launched into. An open reservation also covers on-demand
/// instances that happen to match it; those are not reserved capacity for Karpenter.
fn reservation_of(instance: &Ec2Instance) -> Option<String> {
    let id = instance.capacity_reservation_id().filter(|id| !id.is_empty())?;
    let preference =
        instance.capacity_reservation_specification()?.capacity_reservation_preference()?;
    (preference.as_str() == "capacity-reservations-only").then(|| id.to_owned())
}

fn count_efa(instance: &Ec2Instance) -> i64 {
    let fabric = instance
        .network_interfaces()
        .iter()
        .filter(|i| matches!(i.interface_type(), Some("efa" | "efa-only")));
    i64::try_from(fabric.count()).unwrap_or(0)
}

/// The instance id at the end of a provider id such as `aws:///us-east-1a/i-0`.
#[must_use]
pub fn parse_provider_id(provider_id: &str) -> Option<&str> {
    let rest = provider_id.strip_prefix("aws:///")?;
    let (_, id) = rest.rsplit_once('/')?;
    (!id.is_empty()).then_some(id)
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::{
        CapacityReservationPreference, CapacityReservationSpecificationResponse,
    };

    use super::*;

    #[test]
    fn provider_ids_end_in_the_instance_id() {
        assert_eq!(parse_provider_id("aws:///us-east-1b/i-0cf1"), Some("i-0cf1"));
        for bad in ["", "aws:///", "gce:///a/b", "aws:///us-east-1b/"] {
            assert_eq!(parse_provider_id(bad), None, "{bad}");
        }
    }

    #[test]
    fn capacity_types_are_distinguished() {
        let preference = |p: CapacityReservationPreference| {
            CapacityReservationSpecificationResponse::builder()
                .capacity_reservation_preference(p)
                .build()
        };
        let only = preference(CapacityReservationPreference::CapacityReservationsOnly);
        let reserved = Ec2Instance::builder()
            .capacity_reservation_id("cr-1")
            .capacity_reservation_specification(only)
            .instance_lifecycle(InstanceLifecycleType::CapacityBlock)
            .build();
        let read = Instance::of_ec2(&reserved, true);
        assert_eq!(read.capacity_type, "reserved");
        assert_eq!(read.reservation_id.as_deref(), Some("cr-1"));
        assert_eq!(read.reservation_type.as_deref(), Some("capacity-block"));
        assert!(!read.interruptible);
        assert_eq!(Instance::of_ec2(&reserved, false).capacity_type, "on-demand");
        let open = Ec2Instance::builder()
            .capacity_reservation_id("cr-1")
            .capacity_reservation_specification(preference(CapacityReservationPreference::Open))
            .build();
        let read = Instance::of_ec2(&open, true);
        assert_eq!((read.capacity_type.as_str(), read.reservation_id), ("on-demand", None));
        let spot = Ec2Instance::builder().spot_instance_request_id("sir-1").build();
        let read = Instance::of_ec2(&spot, true);
        assert_eq!((read.capacity_type.as_str(), read.tenancy.as_str()), ("spot", "default"));
    }
}
