//! From a scenario's description of an instance type to the solver's.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::scenario::{
    BindingSpec, InstanceTypeSpec, OfferingSpec, RequirementSpec, TypeSliceSpec,
};
use super::{ScenarioError, check};
use crate::api::labels;
use crate::api::v1::Operator;
use crate::scheduling::dra::TypePool;
use crate::scheduling::dra::device::{Binding, Device, counters, qualified};
use crate::scheduling::instance_type::{InstanceType, Offering, Overhead};
use crate::scheduling::requirements::{Requirement, Requirements, Sharing};
use crate::scheduling::resources::{ApiQuantity, ResourceList};

/// Converts one instance type; `path` is its place.
pub(super) fn instance_type(
    path: &str,
    spec: &InstanceTypeSpec,
    sharing: &mut Sharing,
) -> Result<InstanceType, ScenarioError> {
    if spec.name.is_empty() {
        return Err(ScenarioError::new(format!("{path}.name"), "expected a name"));
    }
    for (at, offering) in spec.offerings.iter().enumerate() {
        check_offering(&format!("{path}.offerings[{at}]"), offering)?;
    }
    Ok(InstanceType {
        name: Arc::from(spec.name.as_str()),
        requirements: sharing.share(type_requirements(spec)),
        offerings: spec.offerings.iter().map(|o| offering(o, sharing)).collect(),
        capacity: amounts(&format!("{path}.capacity"), &spec.capacity)?,
        overhead: Overhead {
            kube_reserved: amounts(&format!("{path}.overhead"), &spec.overhead)?,
            ..Overhead::default()
        },
        devices: type_pools(&format!("{path}.resourceSlices"), &spec.resource_slices)?.into(),
        ..InstanceType::default()
    })
}

fn check_offering(path: &str, offering: &OfferingSpec) -> Result<(), ScenarioError> {
    let wrong =
        |field: &str, message: String| Err(ScenarioError::new(format!("{path}.{field}"), message));
    let (price, left) = (offering.price, offering.reservation_capacity);
    if !price.is_finite() || price < 0.0 {
        return wrong("price", format!("expected a price of zero or more, found {price}"));
    }
    if left < 0 {
        return wrong("reservationCapacity", format!("expected zero or more, found {left}"));
    }
    if offering.zone.is_empty() {
        return wrong("zone", "expected a zone's name".to_owned());
    }
    let known = [labels::CAPACITY_ON_DEMAND, labels::CAPACITY_SPOT, labels::CAPACITY_RESERVED];
    if !known.contains(&offering.capacity_type.as_str()) {
        let (found, known) = (&offering.capacity_type, known.join(", "));
        return wrong("capacityType", format!("unknown value {found:?}, expected one of {known}"));
    }
    Ok(())
}

/// Pools of devices; what several entries say about one pool is put together.
fn type_pools(path: &str, specs: &[TypeSliceSpec]) -> Result<Vec<TypePool>, ScenarioError> {
    let mut pools: Vec<TypePool> = Vec::new();
    for (at, spec) in specs.iter().enumerate() {
        let more = type_pool(spec);
        let same = |p: &&mut TypePool| p.driver == more.driver && p.pool == more.pool;
        let Some(pool) = pools.iter_mut().find(same) else {
            pools.push(more);
            continue;
        };
        let known = |d: &&Arc<Device>| pool.devices.iter().any(|other| other.name == d.name);
        if let Some(again) = more.devices.iter().find(known) {
            let message = format!("second device {:?} of pool {:?}", again.name, spec.pool);
            return Err(ScenarioError::new(format!("{path}[{at}].devices"), message));
        }
        pool.devices.extend(more.devices);
        pool.counters.extend(more.counters);
        pool.bindings.extend(more.bindings);
    }
    Ok(pools)
}

fn type_pool(spec: &TypeSliceSpec) -> TypePool {
    let binding = |b: &BindingSpec| Binding {
        attribute: qualified(&b.attribute, &spec.driver),
        devices: b.devices.iter().map(|d| Arc::from(d.as_str())).collect(),
    };
    TypePool {
        driver: Arc::from(spec.driver.as_str()),
        pool: Arc::from(spec.pool.as_str()),
        devices: spec.devices.iter().map(|d| Arc::new(Device::new(d, &spec.driver))).collect(),
        counters: counters(&spec.shared_counters),
        bindings: spec.attribute_bindings.iter().map(binding).collect(),
    }
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
        // Only from what is available, as the EC2 provider's types have it.
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

fn offering(spec: &OfferingSpec, sharing: &mut Sharing) -> Offering {
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
        requirements: sharing.share(all),
        price: spec.price,
        price_estimated: spec.price_estimated,
        available: spec.available,
        reservation_capacity: spec.reservation_capacity,
        ..Offering::default()
    }
}

/// The scenario's description of an instance type: the reverse of [`instance_type`].
pub(super) fn describe(of_type: &InstanceType) -> Value {
    let derived = [labels::INSTANCE_TYPE, labels::ZONE, labels::CAPACITY_TYPE];
    json!({
        "name": of_type.name.as_ref(),
        "requirements": described(&of_type.requirements, &derived, |_| true),
        "capacity": of_type.capacity.to_quantities(),
        "overhead": of_type.overhead.total().to_quantities(),
        "offerings": of_type.offerings.iter().map(describe_offering).collect::<Vec<_>>(),
    })
}

fn describe_offering(offering: &Offering) -> Value {
    let own = [labels::ZONE, labels::CAPACITY_TYPE];
    let more: BTreeMap<&str, &str> = offering
        .requirements
        .iter()
        .filter(|r| !own.contains(&r.key().as_ref()))
        .filter_map(|r| Some((r.key().as_ref(), r.single()?)))
        .collect();
    let mut value = json!({
        "zone": offering.zone(), "capacityType": offering.capacity_type(), "price": offering.price,
        "available": offering.available, "labels": more,
        "requirements": described(&offering.requirements, &own, |r| r.single().is_none()),
    });
    if offering.price_estimated {
        value["priceEstimated"] = true.into();
    }
    if offering.reservation_capacity != 0 {
        value["reservationCapacity"] = offering.reservation_capacity.into();
    }
    value
}

fn described(
    all: &Requirements,
    without: &[&str],
    wanted: impl Fn(&Requirement) -> bool,
) -> Vec<Value> {
    let kept: Requirements =
        all.iter().filter(|r| !without.contains(&r.key().as_ref()) && wanted(r)).cloned().collect();
    kept.to_api()
        .into_iter()
        .map(|r| json!({"key": r.key, "operator": r.operator, "values": r.values}))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_described_is_read_back_the_same() {
        let document = json!({
            "name": "m5.large",
            "requirements": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]},
                {"key": "example.com/gpu", "operator": "DoesNotExist"}],
            "capacity": {"cpu": "2", "memory": "8Gi", "pods": "29"},
            "overhead": {"cpu": "70m", "memory": "600Mi"},
            "offerings": [{"zone": "a", "capacityType": "spot", "price": 0.03, "available": false,
                "labels": {"topology.k8s.aws/zone-id": "use1-az1"},
                "requirements": [{"key": "example.com/reserved", "operator": "DoesNotExist"}]},
                {"zone": "b", "capacityType": "on-demand", "price": 0.1, "priceEstimated": true,
                    "reservationCapacity": 2}]
        });
        let read = |value: &Value| {
            let spec: InstanceTypeSpec = serde_json::from_value(value.clone()).unwrap();
            instance_type("", &spec, &mut Sharing::default()).unwrap()
        };
        let first = read(&document);
        let again = read(&describe(&first));
        assert_eq!(format!("{first:?}"), format!("{again:?}"));
    }
}
