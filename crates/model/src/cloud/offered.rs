//! What is offered, and what an instance's Node carries.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use karpenter_api::labels;
use karpenter_core::scheduling::instance_type::{InstanceType, Offering};
use karpenter_core::scheduling::resources::Name;

use super::Instance;

/// Type, zone and capacity type of an offering.
pub(super) type Place = (String, String, String);

pub(super) fn key_of(kind: &InstanceType, offering: &Offering) -> Place {
    (kind.name.to_string(), offering.zone().to_owned(), offering.capacity_type().to_owned())
}

/// The type without offerings that are not available.
pub(super) fn without(
    kind: &Arc<InstanceType>,
    gone: &BTreeMap<Place, Timestamp>,
) -> Arc<InstanceType> {
    if !kind.offerings.iter().any(|o| gone.contains_key(&key_of(kind, o))) {
        return Arc::clone(kind);
    }
    let mut changed = (**kind).clone();
    for offering in &mut changed.offerings {
        offering.available &= !gone.contains_key(&key_of(kind, offering));
    }
    Arc::new(changed)
}

/// The types, the largest of them nearly for free.
pub(super) fn with_wrong_price(types: &[Arc<InstanceType>]) -> Arc<[Arc<InstanceType>]> {
    let largest = types.iter().map(|t| t.capacity.get(&Name::Cpu)).max();
    let wrong = |kind: &Arc<InstanceType>| {
        let mut kind = (**kind).clone();
        if Some(kind.capacity.get(&Name::Cpu)) == largest {
            kind.offerings.iter_mut().for_each(|o| o.price = 0.001);
        }
        Arc::new(kind)
    };
    types.iter().map(wrong).collect()
}

/// Labels that a kubelet gives its Node.
#[must_use]
pub fn node_labels(instance: &Instance) -> BTreeMap<String, String> {
    let mut all = instance.labels.clone();
    all.insert(labels::HOSTNAME.to_owned(), instance.node_name.clone());
    all.insert(labels::INSTANCE_TYPE.to_owned(), instance.instance_type.to_string());
    all
}
