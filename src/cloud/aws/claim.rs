//! A NodeClaim as its instance shows it.

use std::collections::BTreeMap;

use kube::api::ObjectMeta;

use super::AwsProvider;
use super::instance::Instance;
use super::instancetype::capacity::EFA;
use crate::api::labels;
use crate::api::v1::{EC2NodeClass, NodeClaim, NodeClaimStatus};
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::resources::ResourceList;

/// Labels of a reservation: a type may have several, its instance has one or none.
const OF_RESERVATIONS: &[&str] = &[
    labels::CAPACITY_RESERVATION_ID,
    labels::CAPACITY_RESERVATION_TYPE,
    labels::CAPACITY_RESERVATION_INTERRUPTIBLE,
];

impl AwsProvider {
    /// A claim as an instance shows it; without a node class it lacks what follows from the type.
    pub(super) fn claim_of(&self, instance: &Instance, class: Option<&EC2NodeClass>) -> NodeClaim {
        let types = class.and_then(|c| self.instance_types.list(c).ok());
        let mut types = types.iter().flat_map(|t| t.iter());
        let kind = types.find(|t| *t.name == *instance.instance_type);
        let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
        NodeClaim {
            metadata: ObjectMeta {
                labels: Some(all_labels(instance, kind.map(AsRef::as_ref), class)),
                creation_timestamp: instance.launched.map(time),
                // EC2 does not say since when an instance is terminating; callers only ask whether
                // it is.
                deletion_timestamp: instance.terminating().then(|| time(self.clock.now())),
                ..ObjectMeta::default()
            },
            status: Some(NodeClaimStatus {
                provider_id: Some(instance.provider_id()),
                image_id: Some(instance.image_id.clone()),
                capacity: kind.map(|t| present(&t.capacity, instance).to_quantities()),
                allocatable: kind.map(|t| present(&t.allocatable(), instance).to_quantities()),
                ..NodeClaimStatus::default()
            }),
            ..NodeClaim::default()
        }
    }
}

/// Amounts that are there; fabric adapters only where the instance has some.
fn present(list: &ResourceList, instance: &Instance) -> ResourceList {
    list.iter()
        .filter(|(name, value)| *value != 0 && (name.as_str() != EFA || instance.efa > 0))
        .map(|(name, value)| (name.clone(), value))
        .collect()
}

fn all_labels(
    instance: &Instance,
    kind: Option<&InstanceType>,
    class: Option<&EC2NodeClass>,
) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    // Labels of the type come first: what is known of the instance itself replaces them below.
    for requirement in kind.iter().flat_map(|t| t.requirements.iter()) {
        if let Some(value) = requirement.single()
            && !OF_RESERVATIONS.contains(&&**requirement.key())
        {
            all.insert(requirement.key().to_string(), value.to_owned());
        }
    }
    let subnets = class.and_then(|c| c.status.as_ref()).map(|s| s.subnets.as_slice());
    let zone_id = subnets
        .unwrap_or_default()
        .iter()
        .filter(|s| s.zone == instance.zone)
        .find_map(|s| s.zone_id.clone());
    let reserved = instance.capacity_type == labels::CAPACITY_RESERVED;
    let interruptible = instance.interruptible.to_string();
    let partition = instance.placement_partition.map(|n| n.to_string()).unwrap_or_default();
    // Whoever waits for the partition looks for the empty label.
    let partitioned = kind.is_some_and(|t| t.requirements.has(labels::PLACEMENT_GROUP_PARTITION));
    let pairs = [
        (labels::INSTANCE_TYPE, Some(instance.instance_type.clone())),
        (labels::ZONE, Some(instance.zone.clone())),
        (labels::ZONE_ID, zone_id),
        (labels::CAPACITY_TYPE, Some(instance.capacity_type.clone())),
        (labels::INSTANCE_TENANCY, Some(instance.tenancy.clone())),
        (labels::CAPACITY_RESERVATION_ID, instance.reservation_id.clone().filter(|_| reserved)),
        (labels::CAPACITY_RESERVATION_TYPE, instance.reservation_type.clone().filter(|_| reserved)),
        (labels::CAPACITY_RESERVATION_INTERRUPTIBLE, reserved.then_some(interruptible)),
        (labels::PLACEMENT_GROUP_ID, instance.placement_group_id.clone()),
        (labels::PLACEMENT_GROUP_PARTITION, partitioned.then_some(partition)),
        (labels::NODEPOOL, instance.tags.get(labels::NODEPOOL).cloned()),
    ];
    all.extend(pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::requirements::Requirement;

    #[test]
    fn labels_come_from_the_instance_before_its_type() {
        let kind = InstanceType {
            requirements: [
                Requirement::is(labels::INSTANCE_CPU, "2"),
                Requirement::is(labels::CAPACITY_RESERVATION_ID, "cr-1"),
                Requirement::is(labels::ZONE, "us-east-1a"),
                Requirement::new(
                    labels::INSTANCE_TENANCY,
                    crate::api::v1::Operator::In,
                    ["default", "dedicated"],
                ),
            ]
            .into_iter()
            .collect(),
            ..InstanceType::default()
        };
        let mut instance = Instance {
            zone: "us-east-1b".to_owned(),
            capacity_type: "spot".to_owned(),
            tenancy: "default".to_owned(),
            ..Instance::default()
        };
        let all = all_labels(&instance, Some(&kind), None);
        assert_eq!(all[labels::INSTANCE_CPU], "2");
        assert_eq!(all[labels::ZONE], "us-east-1b");
        assert_eq!(all[labels::INSTANCE_TENANCY], "default");
        assert!(!all.contains_key(labels::CAPACITY_RESERVATION_ID));
        assert!(!all.contains_key(labels::PLACEMENT_GROUP_PARTITION));
        instance.capacity_type = "reserved".to_owned();
        instance.reservation_id = Some("cr-2".to_owned());
        let all = all_labels(&instance, Some(&kind), None);
        assert_eq!(all[labels::CAPACITY_RESERVATION_ID], "cr-2");
        assert_eq!(all[labels::CAPACITY_RESERVATION_INTERRUPTIBLE], "false");
    }
}
