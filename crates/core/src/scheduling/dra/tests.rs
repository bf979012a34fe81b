use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::device::{Capacity, Device};
use super::pool::{flaw, pools, unpublished};
use super::*;

mod property;

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn slice(name: &str, spec: Value) -> Slice {
    Slice::new(&read(json!({"metadata": {"name": name}, "spec": spec})))
}

#[test]
fn only_the_newest_generation_of_a_pool_counts_and_it_must_be_whole() {
    let part = |name: &str, generation: i64, count: i64, device: &str| {
        let spec = json!({"driver": "d", "allNodes": true, "devices": [{"name": device}],
            "pool": {"name": "p", "generation": generation, "resourceSliceCount": count}});
        Arc::new(slice(name, spec))
    };
    let all = [part("a", 1, 1, "x"), part("b", 2, 2, "y"), part("c", 2, 2, "z")];
    let found = pools(&all);
    let newest = found.values().next().unwrap();
    assert_eq!(newest.len(), 2);
    assert_eq!(flaw(newest), None);
    assert_eq!(flaw(&newest[..1]), Some(pool::Flaw::Incomplete));
    let twice = [part("b", 2, 2, "y"), part("c", 2, 2, "y")];
    assert_eq!(flaw(&twice.iter().collect::<Vec<_>>()), Some(pool::Flaw::Invalid));
    let spec = json!({"driver": "d", "allNodes": true, "devices": [{"name": "x",
        "consumesCounters": [{"counterSet": "s", "counters": {"c": {"value": "1"}}}]}],
        "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}});
    assert_eq!(flaw(&[&Arc::new(slice("a", spec))]), Some(pool::Flaw::Invalid));
}

#[test]
fn capacity_is_rounded_as_its_policy_says() {
    let of = |policy: Value| -> Capacity {
        let mut capacity = json!({"value": "10"});
        if !policy.is_null() {
            capacity["requestPolicy"] = policy;
        }
        let device: k8s_openapi::api::resource::v1::Device =
            read(json!({"name": "d", "capacity": {"m": capacity}}));
        Device::new(&device, "x").capacity.into_values().next().unwrap()
    };
    let units = |v: Option<i128>| v.map(|v| v / 1_000_000_000);
    let ask = |c: &Capacity, n: i128| units(c.consumed(Some(n * 1_000_000_000)));
    let free = of(Value::Null);
    assert_eq!(
        (units(free.consumed(None)), ask(&free, 3), ask(&free, 11)),
        (Some(10), Some(3), None)
    );
    let values = of(json!({"default": "2", "validValues": ["2", "4", "8"]}));
    assert_eq!(units(values.consumed(None)), Some(2));
    assert_eq!((ask(&values, 3), ask(&values, 8), ask(&values, 9)), (Some(4), Some(8), None));
    let range = of(json!({"default": "2", "validRange": {"min": "2", "max": "8", "step": "3"}}));
    assert_eq!((ask(&range, 1), ask(&range, 3), ask(&range, 5)), (Some(2), Some(5), Some(5)));
    assert_eq!((ask(&range, 6), ask(&range, 9)), (Some(8), None));
}

#[test]
fn a_node_is_ready_once_its_drivers_have_published_whole_pools() {
    let mut slices: BTreeMap<String, Arc<Slice>> = BTreeMap::new();
    let mut add = |name: &str, driver: &str, place: Value, count: i64| {
        let mut spec = json!({"driver": driver, "devices": [],
            "pool": {"name": name, "generation": 1, "resourceSliceCount": count}});
        spec.as_object_mut().unwrap().extend(place.as_object().unwrap().clone());
        slices.insert(name.to_owned(), Arc::new(slice(name, spec)));
    };
    add("a", "gpu", json!({"nodeName": "n1"}), 1);
    add("b", "nic", json!({"nodeName": "n1"}), 2);
    add("c", "net", json!({"allNodes": true}), 1);
    let missing =
        |drivers: &[&'static str], node: &str| unpublished(drivers.iter().copied(), node, &slices);
    assert_eq!(missing(&["gpu"], "n1"), None);
    assert_eq!(missing(&["gpu", "nic"], "n1"), Some("nic"));
    assert_eq!(missing(&["gpu"], "n2"), Some("gpu"));
    assert_eq!(missing(&["net"], "n2"), None);
    assert_eq!(missing(&["unheard"], "n1"), Some("unheard"));
}

#[test]
fn what_is_not_supported_is_reported() {
    let claim = |devices: Value| {
        Claim::new(&read(json!({"metadata": {"name": "c"}, "spec": {"devices": devices}})))
    };
    let exact = json!([{"name": "r", "exactly": {"deviceClassName": "c"}}]);
    let distinct = json!({"requests": exact, "constraints": [{"distinctAttribute": "d/a"}]});
    assert_eq!(
        claim(distinct).invalid.as_deref(),
        Some("only matchAttribute constraints are supported")
    );
    let mode =
        json!([{"name": "r", "exactly": {"deviceClassName": "c", "allocationMode": "Some"}}]);
    assert!(claim(json!({"requests": mode})).invalid.unwrap().contains("allocation mode"));
    assert_eq!(claim(json!({"requests": exact})).invalid, None);
}
