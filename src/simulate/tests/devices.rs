//! Pods with claims on devices, through scenarios.

use serde_json::{Value, json};

use super::{World, base, load, pod, scheduling, solved};

fn on() -> Value {
    let mut document = base();
    document["options"] = json!({"featureGates": {"DynamicResources": true}});
    document["objects"] = json!([class()]);
    document["pods"] = json!([]);
    document
}

fn class() -> Value {
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "gpu"},
        "spec": {"selectors": [{"cel": {"expression": "device.driver == 'gpu.example.com'"}}]}})
}

fn push(list: &mut Value, item: Value) {
    list.as_array_mut().unwrap().push(item);
}

fn slice(name: &str, place: Value, devices: Value) -> Value {
    let mut spec = json!({"driver": "gpu.example.com", "devices": devices,
        "pool": {"name": name, "generation": 1, "resourceSliceCount": 1}});
    spec.as_object_mut().unwrap().extend(place.as_object().unwrap().clone());
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice",
        "metadata": {"name": name}, "spec": spec})
}

fn one_gpu() -> Value {
    json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu"}}]})
}

fn claim(name: &str, devices: Value) -> Value {
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"name": name, "namespace": "n"}, "spec": {"devices": devices}})
}

fn template(devices: Value) -> Value {
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate",
        "metadata": {"name": "t", "namespace": "n"}, "spec": {"spec": {"devices": devices}}})
}

fn wants(mut pod: Value, source: Value) -> Value {
    let mut entry = json!({"name": "gpu"});
    entry.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
    pod["spec"]["resourceClaims"] = json!([entry]);
    pod
}

fn from_template(name: &str) -> Value {
    wants(pod(name, "100m"), json!({"resourceClaimTemplateName": "t"}))
}

fn from_claim(name: &str, claim: &str) -> Value {
    wants(pod(name, "100m"), json!({"resourceClaimName": claim}))
}

/// A type whose instances have two devices on a shared link.
fn gpu_type() -> Value {
    json!({"name": "g5.large", "capacity": {"cpu": "4", "memory": "16Gi", "pods": "29"},
        "offerings": [{"zone": "a", "capacityType": "spot", "price": 0.5},
            {"zone": "b", "capacityType": "spot", "price": 0.5}],
        "resourceSlices": [{"driver": "gpu.example.com", "pool": "own",
            "devices": [{"name": "gpu-0", "attributes": {"index": {"int": 0}}},
                {"name": "gpu-1", "attributes": {"index": {"int": 1}}}],
            "attributeBindings": [{"attribute": "link", "devices": ["gpu-0", "gpu-1"]}]}]})
}

fn error(out: &Value, at: usize) -> &str {
    out["unschedulable"][at]["error"].as_str().unwrap()
}

#[test]
fn pods_with_claims_are_left_alone_unless_asked_for() {
    let mut document = on();
    document.as_object_mut().unwrap().remove("options");
    document["pods"] = json!([from_template("a")]);
    let out = solved(&document);
    assert_eq!(
        error(&out, 0),
        "pod has Dynamic Resource Allocation requirements that are not yet supported by Karpenter"
    );
}

#[test]
fn devices_on_the_network_are_given_once_each() {
    let mut document = on();
    let two = json!([{"name": "x"}, {"name": "y"}]);
    push(&mut document["objects"], slice("net", json!({"allNodes": true}), two));
    push(&mut document["objects"], template(one_gpu()));
    document["pods"] = json!([from_template("a"), from_template("b"), from_template("c")]);
    let out = solved(&document);
    assert_eq!(out["nodeClaims"][0]["pods"], json!(["n/a", "n/b"]));
    assert_eq!(
        error(&out, 0),
        "allocating dynamic resources, resourceclaim \"n/c-gpu\": no devices are left that satisfy request \"r\""
    );
}

#[test]
fn devices_pin_the_node_to_where_they_can_be_reached() {
    let mut document = on();
    document["instanceTypes"] = json!([gpu_type()]);
    document["instanceTypes"][0].as_object_mut().unwrap().remove("resourceSlices");
    let zone = json!({"nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["b"]}]}]}});
    push(&mut document["objects"], slice("zonal", zone, json!([{"name": "x"}])));
    push(&mut document["objects"], claim("c", one_gpu()));
    document["pods"] = json!([from_claim("a", "c")]);
    let out = solved(&document);
    assert_eq!(out["nodeClaims"][0]["cheapest"]["zone"], "b");
    // A pod that must be elsewhere does not get the device.
    document["pods"][0]["spec"]["nodeSelector"] = json!({"topology.kubernetes.io/zone": "a"});
    assert!(error(&solved(&document), 0).starts_with("allocating dynamic resources, "));
}

#[test]
fn only_types_that_have_the_devices_are_launched() {
    let mut document = on();
    push(&mut document["instanceTypes"], gpu_type());
    push(&mut document["objects"], template(one_gpu()));
    document["pods"] =
        json!([pod("plain", "100m"), from_template("a"), from_template("b"), from_template("c")]);
    let out = solved(&document);
    assert_eq!(out["unschedulable"], json!([]));
    let gpu: Vec<&Value> = out["nodeClaims"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|c| c["instanceTypes"] == json!(["g5.large"]))
        .collect();
    let count = |c: &Value| {
        let pods = c["pods"].as_array().unwrap();
        pods.iter().filter(|p| *p != "n/plain").count()
    };
    assert_eq!(gpu.len(), 2);
    assert_eq!(count(gpu[0]) + count(gpu[1]), 3);
    assert!(gpu.iter().all(|c| count(c) <= 2));
    // A pod without claims may join a node with devices, but no type is lost for pods with claims.
    document["pods"] = json!([from_template("a"), pod("big", "3")]);
    assert_eq!(solved(&document)["nodeClaims"][0]["instanceTypes"], json!(["g5.large"]));
    // Devices are there, but on types that are too small.
    let mut large = from_template("a");
    large["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "5".into();
    document["pods"] = json!([large]);
    document["instanceTypes"][0]["capacity"]["cpu"] = "8".into();
    assert_eq!(
        error(&solved(&document), 0),
        "no instance type satisfies both scheduling and dynamic resource requirements"
    );
}

#[test]
fn devices_that_will_agree_satisfy_a_constraint_on_what_nobody_knows_yet() {
    let mut document = on();
    document["instanceTypes"] = json!([gpu_type()]);
    let two = |attribute: &str| {
        json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu", "count": 2}}],
            "constraints": [{"matchAttribute": attribute}]})
    };
    push(&mut document["objects"], claim("linked", two("gpu.example.com/link")));
    push(&mut document["objects"], claim("alike", two("gpu.example.com/index")));
    document["pods"] = json!([from_claim("a", "linked"), from_claim("b", "alike")]);
    let out = solved(&document);
    assert_eq!(out["nodeClaims"][0]["pods"], json!(["n/a"]));
    assert_eq!(out["unschedulable"][0]["pod"], "n/b");
}

#[test]
fn what_cannot_be_looked_at_is_reported() {
    let mut document = on();
    document["pods"] = json!([from_claim("a", "gone")]);
    assert_eq!(error(&solved(&document), 0), "resourceclaim \"n/gone\" not found");
    push(&mut document["objects"], slice("net", json!({"allNodes": true}), json!([{"name": "x"}])));
    let selected = |expression: &str| {
        json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu",
            "selectors": [{"cel": {"expression": expression}}]}}]})
    };
    let other = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "tpu"}}]});
    let distinct = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu"}}],
        "constraints": [{"distinctAttribute": "a/b"}]});
    for (devices, expected) in [
        (other, "deviceclass \"tpu\" not found"),
        (selected("device.driver =="), "selector \"device.driver ==\" does not compile: "),
        (selected("device.attributes['x'].y"), "on device gpu.example.com/net/x: "),
        (distinct, "resourceclaim \"n/c\": only matchAttribute constraints are supported"),
    ] {
        let mut document = document.clone();
        push(&mut document["objects"], claim("c", devices));
        document["pods"] = json!([from_claim("a", "c")]);
        let out = solved(&document);
        assert!(error(&out, 0).starts_with("allocating dynamic resources, "), "{out}");
        assert!(error(&out, 0).contains(expected), "{}", error(&out, 0));
    }
    // Nothing to allocate is no obstacle.
    document["pods"] = json!([from_template("a")]);
    document["pods"][0]["status"] = json!({"resourceClaimStatuses": [{"name": "gpu"}]});
    assert_eq!(solved(&document)["nodeClaims"][0]["pods"], json!(["n/a"]));
}

#[test]
fn the_node_claim_names_the_drivers_of_its_devices() {
    let mut document = on();
    push(&mut document["instanceTypes"], gpu_type());
    push(&mut document["objects"], template(one_gpu()));
    document["pods"] = json!([from_template("a")]);
    let world = World::new(load(document.to_string().as_bytes()).unwrap()).unwrap();
    let results = scheduling::solve(&world.snapshot);
    let planned = &results.new_claims[0];
    let notes = planned.to_node_claim().metadata.annotations.unwrap();
    assert_eq!(notes["karpenter.sh/requested-dra-drivers"], "gpu.example.com");
    let devices = planned.devices.as_ref().unwrap();
    assert_eq!(devices.by_claim["n/a-gpu"], ["gpu.example.com/own/gpu-0"]);
    document["pods"] = json!([pod("plain", "100m")]);
    let world = World::new(load(document.to_string().as_bytes()).unwrap()).unwrap();
    let planned = &scheduling::solve(&world.snapshot).new_claims[0];
    let notes = planned.to_node_claim().metadata.annotations.unwrap();
    assert!(!notes.contains_key("karpenter.sh/requested-dra-drivers"));
}

#[test]
fn pods_that_share_a_claim_on_an_instances_own_device_stay_together() {
    let mut document = on();
    document["instanceTypes"] = json!([gpu_type()]);
    push(&mut document["objects"], claim("c", one_gpu()));
    let mut pods = vec![from_claim("a", "c"), from_claim("b", "c")];
    document["pods"] = json!(pods);
    assert_eq!(solved(&document)["nodeClaims"][0]["pods"], json!(["n/a", "n/b"]));
    for pod in &mut pods {
        pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "3".into();
    }
    document["pods"] = json!(pods);
    let out = solved(&document);
    assert_eq!(out["nodeClaims"][0]["pods"], json!(["n/a"]));
    assert_eq!(
        error(&out, 0),
        "allocating dynamic resources, claim is bound to a different in-flight NodeClaim"
    );
}

fn node(name: &str, pods: Value) -> Value {
    json!({"node": {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "20"}}}, "pods": pods})
}

#[test]
fn a_nodes_own_devices_serve_its_pods_and_no_others() {
    let mut document = on();
    document["nodes"] = json!([node("n1", json!([])), node("n2", json!([]))]);
    push(
        &mut document["objects"],
        slice("own", json!({"nodeName": "n2"}), json!([{"name": "x"}, {"name": "y"}])),
    );
    push(&mut document["objects"], template(one_gpu()));
    document["pods"] = json!([from_template("a"), from_template("b"), from_template("c")]);
    let out = solved(&document);
    assert_eq!(out["existingNodes"], json!([{"name": "n2", "pods": ["n/a", "n/b"]}]));
    assert_eq!(out["unschedulable"][0]["pod"], "n/c");
}

#[test]
fn devices_of_allocated_claims_are_taken_while_somebody_uses_them() {
    let mut document = on();
    let mut user = pod("user", "100m");
    user["metadata"]["uid"] = "u".into();
    user["status"] = json!({"phase": "Running"});
    document["nodes"] = json!([node("n1", json!([user])), node("n2", json!([]))]);
    push(&mut document["objects"], slice("own", json!({"nodeName": "n1"}), json!([{"name": "x"}])));
    let mut held = claim("held", one_gpu());
    let by_name = json!({"nodeSelectorTerms": [{"matchFields": [
        {"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]});
    held["status"] = json!({"allocation": {"nodeSelector": by_name, "devices": {"results": [
            {"request": "r", "driver": "gpu.example.com", "pool": "own", "device": "x"}]}},
        "reservedFor": [{"resource": "pods", "name": "user", "uid": "u"}]});
    push(&mut document["objects"], held);
    push(&mut document["objects"], template(one_gpu()));
    document["pods"] = json!([from_template("a"), from_claim("b", "held")]);
    let out = solved(&document);
    assert_eq!(out["existingNodes"], json!([{"name": "n1", "pods": ["n/b"]}]));
    assert_eq!(out["unschedulable"][0]["pod"], "n/a");
    // Without its user, the claim releases the device.
    document["nodes"][0]["pods"] = json!([]);
    document["pods"] = json!([from_template("a")]);
    let out = solved(&document);
    assert_eq!(out["existingNodes"], json!([{"name": "n1", "pods": ["n/a"]}]));
}

#[test]
fn the_first_choice_that_can_be_had_counts_and_all_means_all() {
    let mut document = on();
    document["nodes"] = json!([node("n1", json!([]))]);
    document["nodePools"] = json!([]);
    push(
        &mut document["objects"],
        slice(
            "own",
            json!({"nodeName": "n1"}),
            json!([
        {"name": "x", "attributes": {"model": {"string": "big"}}},
        {"name": "y", "attributes": {"model": {"string": "small"}}}]),
        ),
    );
    let model = |name: &str, model: &str| {
        let expression = format!("device.attributes['gpu.example.com'].model == '{model}'");
        json!({"name": name, "deviceClassName": "gpu",
            "selectors": [{"cel": {"expression": expression}}]})
    };
    let either = json!({"requests": [{"name": "r",
        "firstAvailable": [model("big", "big"), model("small", "small")]}]});
    push(&mut document["objects"], template(either));
    let all = json!({"requests": [{"name": "r",
        "exactly": {"deviceClassName": "gpu", "allocationMode": "All"}}]});
    push(&mut document["objects"], claim("all", all));
    document["pods"] = json!([from_template("a"), from_template("b"), from_claim("c", "all")]);
    let out = solved(&document);
    assert_eq!(out["existingNodes"][0]["pods"], json!(["n/a", "n/b"]));
    document["pods"] = json!([from_claim("a", "all"), from_template("b")]);
    let out = solved(&document);
    assert_eq!(out["existingNodes"][0]["pods"], json!(["n/a"]));
    assert_eq!(out["unschedulable"][0]["pod"], "n/b");
}

#[test]
fn what_several_entries_say_about_one_pool_of_devices_is_put_together() {
    let mut document = on();
    let mut kind = gpu_type();
    let whole = kind["resourceSlices"][0].clone();
    let part = |at: usize| {
        json!({"driver": "gpu.example.com", "pool": "own",
        "devices": [whole["devices"][at]]})
    };
    kind["resourceSlices"] = json!([part(0), part(1)]);
    document["instanceTypes"] = json!([kind]);
    push(&mut document["objects"], template(one_gpu()));
    document["pods"] = json!([from_template("a"), from_template("b")]);
    let out = solved(&document);
    assert_eq!(out["nodeClaims"][0]["pods"], json!(["n/a", "n/b"]));
    document["instanceTypes"][0]["resourceSlices"] = json!([part(0), part(0)]);
    let error = load(document.to_string().as_bytes()).and_then(World::new).unwrap_err();
    assert!(error.to_string().contains("second device \"gpu-0\" of pool \"own\""), "{error}");
}

#[test]
fn of_pools_of_equal_weight_the_cheaper_one_launches_for_pods_with_claims() {
    for (cheap, dear) in [("a", "b"), ("b", "a")] {
        let mut document = on();
        let mut kind = gpu_type();
        let dearer = json!({"zone": "a", "capacityType": "on-demand", "price": 0.9});
        push(&mut kind["offerings"], dearer);
        document["instanceTypes"] = json!([kind]);
        let pool = |name: &str, capacity_type: &str| {
            let mut pool = base()["nodePools"][0].clone();
            pool["metadata"]["name"] = json!(name);
            pool["spec"]["template"]["spec"]["requirements"] = json!([
                {"key": "karpenter.sh/capacity-type", "operator": "In", "values": [capacity_type]}]);
            pool
        };
        document["nodePools"] = json!([pool(cheap, "spot"), pool(dear, "on-demand")]);
        push(&mut document["objects"], template(one_gpu()));
        document["pods"] = json!([from_template("x"), from_template("y")]);
        let out = solved(&document);
        assert_eq!(out["unschedulable"], json!([]), "{out}");
        // The devices that were planned are those of the pool that was taken: the second pod joins.
        assert_eq!(out["nodeClaims"].as_array().unwrap().len(), 1, "{out}");
        assert_eq!(out["nodeClaims"][0]["nodePool"], cheap);
    }
}
