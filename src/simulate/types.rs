//! From a scenario's description of an instance type to the solver's.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::scenario::{InstanceTypeSpec, OfferingSpec, RequirementSpec};
use super::{ScenarioError, check};
use crate::api::labels;
use crate::api::v1::Operator;
use crate::scheduling::instance_type::{InstanceType, Offering, Overhead};
use crate::scheduling::requirements::{Requirement, Requirements};
use crate::scheduling::resources::{ApiQuantity, ResourceList};

/// Converts one instance type; `path` is its place.
pub(super) fn instance_type(
    path: &str,
    spec: &InstanceTypeSpec,
) -> Result<InstanceType, ScenarioError> {
    if spec.name.is_empty() {
        return Err(ScenarioError::new(format!("{path}.name"), "expected a name"));
    }
    if let Some(at) = spec.offerings.iter().position(|o| !o.price.is_finite() || o.price < 0.0) {
        let place = format!("{path}.offerings[{at}].price");
        return Err(ScenarioError::new(place, "expected a price of zero or more"));
    }
    Ok(InstanceType {
        name: Arc::from(spec.name.as_str()),
        requirements: type_requirements(spec),
        offerings: spec.offerings.iter().map(offering).collect(),
        capacity: amounts(&format!("{path}.capacity"), &spec.capacity)?,
        overhead: Overhead {
            kube_reserved: amounts(&format!("{path}.overhead"), &spec.overhead)?,
            ..Overhead::default()
        },
        ..InstanceType::default()
    })
}

fn requirements(specs: &[RequirementSpec]) -> Requirements {
    specs.iter().map(|r| Requirement::new(&r.key, r.operator, &r.values)).collect()
}

fn amounts(path: &str, map: &BTreeMap<String, ApiQuantity>) -> Result<ResourceList, ScenarioError> {
    check::quantities(path, Some(map))?;
    ResourceList::from_quantities(map)
        .map_err(|e| ScenarioError::new(format!("{path}.{}", e.name), e.source))
}

/// Name, zones and capacity types follow from the name and what can be had.
fn type_requirements(spec: &InstanceTypeSpec) -> Requirements {
    let available = || spec.offerings.iter().filter(|o| o.available);
    let mut all: Requirements = [
        Requirement::is(labels::INSTANCE_TYPE, &spec.name),
        Requirement::new(labels::ZONE, Operator::In, available().map(|o| &o.zone)),
        Requirement::new(
            labels::CAPACITY_TYPE,
            Operator::In,
            available().map(|o| &o.capacity_type),
        ),
    ]
    .into_iter()
    .collect();
    all.merge(&requirements(&spec.requirements));
    all
}

fn offering(spec: &OfferingSpec) -> Offering {
    let mut all: Requirements = [
        Requirement::is(labels::ZONE, &spec.zone),
        Requirement::is(labels::CAPACITY_TYPE, &spec.capacity_type),
    ]
    .into_iter()
    .collect();
    for (key, value) in &spec.labels {
        all.replace(Requirement::is(key, value));
    }
    all.merge(&requirements(&spec.requirements));
    Offering {
        requirements: all,
        price: spec.price,
        available: spec.available,
        reservation_capacity: spec.reservation_capacity,
        ..Offering::default()
    }
}
