//! Which instance types a launch asks for: the cheapest that fit, less what would waste money.

use std::sync::Arc;

use crate::api::labels;
use crate::api::v1::NodeClaim;
use crate::scheduling::instance_type::{InstanceType, sort_by_price};
use crate::scheduling::requirements::{Requirement, Requirements};
use crate::scheduling::resources::{Name, ResourceList};

/// Most instance types in one fleet request.
pub const MAX_TYPES: usize = 60;

/// The types to ask for, cheapest first; empty when none is left.
#[must_use]
pub fn for_launch(types: &[Arc<InstanceType>], claim: &NodeClaim) -> Vec<Arc<InstanceType>> {
    let requirements = Requirements::from_api(&claim.spec.requirements);
    let requests = ResourceList::from_quantities_lossy(
        claim.spec.resources.as_ref().and_then(|r| r.requests.as_ref()),
    );
    let mut kept: Vec<Arc<InstanceType>> = types
        .iter()
        .filter(|t| {
            t.requirements.intersects(&requirements).is_ok()
                && requests.fits(&t.allocatable())
                && t.compatible_offerings(&requirements).next().is_some()
        })
        .cloned()
        .collect();
    if requirements.iter().all(|r| r.min_values().is_none()) {
        kept = without_exotic(kept);
        kept = without_dear_spot(kept, &requirements);
    }
    sort_by_price(&mut kept, &requirements);
    kept.truncate(MAX_TYPES);
    kept
}

/// Leaves out metal and accelerated types unless nothing else is left.
fn without_exotic(types: Vec<Arc<InstanceType>>) -> Vec<Arc<InstanceType>> {
    const DEVICES: &[&str] = &[
        "nvidia.com/gpu",
        "amd.com/gpu",
        "habana.ai/gaudi",
        "aws.amazon.com/neuron",
        "aws.amazon.com/neuroncore",
    ];
    let exotic = |t: &InstanceType| {
        let size = t.requirements.get(labels::INSTANCE_SIZE).and_then(Requirement::single);
        size.is_some_and(|s| s.contains("metal"))
            || DEVICES.iter().any(|d| t.capacity.get(&Name::from(*d)) != 0)
    };
    let plain: Vec<_> = types.iter().filter(|t| !exotic(t)).cloned().collect();
    if plain.is_empty() { types } else { plain }
}

/// Leaves out spot offerings that cost more than the cheapest on-demand one.
fn without_dear_spot(
    types: Vec<Arc<InstanceType>>,
    requirements: &Requirements,
) -> Vec<Arc<InstanceType>> {
    let prices = |kind: &str| {
        types
            .iter()
            .flat_map(|t| t.compatible_offerings(requirements))
            .filter(|o| o.capacity_type() == kind)
            .map(|o| o.price)
            .min_by(f64::total_cmp)
    };
    let (Some(_), Some(limit)) =
        (prices(labels::CAPACITY_SPOT), prices(labels::CAPACITY_ON_DEMAND))
    else {
        return types;
    };
    types
        .into_iter()
        .filter_map(|t| {
            let dear = |o: &crate::scheduling::instance_type::Offering| {
                o.capacity_type() == labels::CAPACITY_SPOT && o.price > limit
            };
            if !t.offerings.iter().any(dear) {
                return Some(t);
            }
            let mut copy = (*t).clone();
            copy.offerings.retain(|o| !dear(o));
            (!copy.offerings.is_empty()).then(|| Arc::new(copy))
        })
        .collect()
}

/// The capacity type to ask for: reserved, else spot, else on-demand.
#[must_use]
pub fn capacity_type(types: &[Arc<InstanceType>], requirements: &Requirements) -> &'static str {
    [labels::CAPACITY_RESERVED, labels::CAPACITY_SPOT]
        .into_iter()
        .find(|kind| {
            requirements.get(labels::CAPACITY_TYPE).is_none_or(|r| r.has(kind))
                && types
                    .iter()
                    .flat_map(|t| t.compatible_offerings(requirements))
                    .any(|o| o.capacity_type() == *kind)
        })
        .unwrap_or(labels::CAPACITY_ON_DEMAND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::instance_type::Offering;

    fn instance_type(name: &str, spot: f64, on_demand: f64, gpu: i64) -> Arc<InstanceType> {
        let offering = |kind: &str, price: f64| Offering {
            requirements: [
                Requirement::is(labels::CAPACITY_TYPE, kind),
                Requirement::is(labels::ZONE, "a"),
            ]
            .into_iter()
            .collect(),
            price,
            available: true,
            ..Offering::default()
        };
        Arc::new(InstanceType {
            name: Arc::from(name),
            requirements: [Requirement::is(labels::INSTANCE_TYPE, name)].into_iter().collect(),
            offerings: vec![offering("spot", spot), offering("on-demand", on_demand)],
            capacity: [(Name::Cpu, 2000), (Name::from("nvidia.com/gpu"), gpu)]
                .into_iter()
                .collect(),
            ..InstanceType::default()
        })
    }

    #[test]
    fn exotic_types_and_dear_spot_are_left_out() {
        let types = [
            instance_type("a", 0.5, 1.0, 0),
            instance_type("b", 1.5, 3.0, 0),
            instance_type("g", 0.1, 0.2, 1),
        ];
        let kept = for_launch(&types, &NodeClaim::default());
        assert_eq!(kept.iter().map(|t| &*t.name).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(kept[1].offerings.len(), 1);
        assert_eq!(capacity_type(&kept, &Requirements::new()), "spot");
        let only_gpu = for_launch(&types[2..], &NodeClaim::default());
        assert_eq!(only_gpu.len(), 1);
    }
}
