//! The loop's documented behaviour: orders, counts, reservations and the choice of types.

use serde_json::{Value, json};

use super::facts::{asking, error, pods, required, requirement};
use super::{base, pod, solved};

const ZONE: &str = "topology.kubernetes.io/zone";

fn node(name: &str, allocatable: Value, bound: Value) -> Value {
    json!({"node": {"metadata": {"name": name, "labels": {}},
        "status": {"allocatable": allocatable}}, "pods": bound})
}

fn owned_by_daemon_set(mut pod: Value) -> Value {
    pod["metadata"]["ownerReferences"] = json!([
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u"}]);
    pod
}

/// The base's type under another name, with one offering.
fn kind(name: &str, cpu: &str, zone: &str, price: f64) -> Value {
    let mut kind = base()["instanceTypes"][0].clone();
    kind["name"] = name.into();
    kind["capacity"]["cpu"] = cpu.into();
    kind["offerings"] = json!([{"zone": zone, "capacityType": "spot", "price": price}]);
    kind
}

#[test]
fn the_first_in_the_queue_gets_what_is_left() {
    let first = |change: &dyn Fn(&mut Value, &mut Value)| {
        let mut document = base();
        document["nodePools"][0]["spec"]["limits"] = json!({"cpu": "2"});
        let (mut a, mut b) = (pod("a", "1500m"), pod("b", "1500m"));
        for one in [&mut a, &mut b] {
            one["metadata"]["creationTimestamp"] = "2026-01-01T00:00:01Z".into();
            one["metadata"]["uid"] = "m".into();
        }
        change(&mut a, &mut b);
        document["pods"] = json!([a, b]);
        pods(&solved(&document))[0][0].clone()
    };
    let cpu = "/spec/containers/0/resources/requests";
    assert_eq!(first(&|_, _| ()), "n/a");
    assert_eq!(first(&|_, b| b.pointer_mut(cpu).unwrap()["cpu"] = "1600m".into()), "n/b");
    assert_eq!(first(&|_, b| b.pointer_mut(cpu).unwrap()["memory"] = "1Gi".into()), "n/b");
    let older = "2026-01-01T00:00:00Z";
    assert_eq!(first(&|_, b| b["metadata"]["creationTimestamp"] = older.into()), "n/b");
    assert_eq!(first(&|_, b| b["metadata"]["uid"] = "l".into()), "n/b");
    // Priority is not looked at.
    assert_eq!(first(&|_, b| b["spec"]["priority"] = 1000.into()), "n/a");
}

#[test]
fn initialized_nodes_come_first_then_names_count() {
    let mut document = base();
    document["pods"] = json!([pod("large", "300m"), pod("middle", "200m"), pod("small", "100m")]);
    let one = || json!({"cpu": "1", "pods": "1"});
    let mut starting = node("b", one(), json!([]));
    starting["node"]["metadata"]["labels"] =
        json!({"karpenter.sh/nodepool": "default", "karpenter.sh/registered": "true"});
    starting["nodeClaim"] = json!({"metadata": {"name": "c"}, "spec": {"requirements": [],
        "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "n"}}});
    document["nodes"] = json!([node("z", one(), json!([])), starting, node("a", one(), json!([]))]);
    let expected = json!([{"name": "a", "pods": ["n/large"]}, {"name": "b", "pods": ["n/small"]},
        {"name": "z", "pods": ["n/middle"]}]);
    assert_eq!(solved(&document)["existingNodes"], expected);
}

#[test]
fn daemons_that_a_node_lacks_keep_their_room() {
    let fits = |daemon: Option<&str>, cpu: &str| {
        let mut document = base();
        document["daemonSetPods"] = json!([pod("d", "600m")]);
        document["pods"] = json!([pod("a", cpu)]);
        let bound: Vec<Value> =
            daemon.into_iter().map(|cpu| owned_by_daemon_set(pod("d-1", cpu))).collect();
        let all = json!({"cpu": "1", "pods": "9"});
        document["nodes"] = json!([node("x", all, json!(bound))]);
        !solved(&document)["existingNodes"].as_array().unwrap().is_empty()
    };
    assert!(fits(None, "400m") && !fits(None, "401m"));
    assert!(fits(Some("600m"), "400m") && !fits(Some("600m"), "401m"));
    assert!(fits(Some("100m"), "400m") && !fits(Some("100m"), "401m"));
    assert!(fits(Some("700m"), "300m") && !fits(Some("700m"), "301m"));
}

#[test]
fn nothing_fits_on_a_node_that_is_overcommitted_in_anything() {
    let mut document = base();
    document["pods"] = json!([pod("a", "100m")]);
    let mut heavy = pod("heavy", "100m");
    heavy["spec"]["containers"][0]["resources"]["requests"]["memory"] = "2Gi".into();
    let all = json!({"cpu": "1", "memory": "1Gi", "pods": "9"});
    document["nodes"] = json!([node("x", all, json!([heavy]))]);
    assert_eq!(solved(&document)["existingNodes"], json!([]));
    document["nodes"][0]["pods"][0]["status"] = json!({"phase": "Succeeded"});
    assert_eq!(solved(&document)["existingNodes"][0]["name"], "x");
}

#[test]
fn waiting_for_a_reservation_keeps_a_pod_from_lighter_pools() {
    let mut document = base();
    let mut light = document["nodePools"][0].clone();
    light["metadata"]["name"] = "light".into();
    document["nodePools"][0]["spec"]["weight"] = 10.into();
    document["nodePools"].as_array_mut().unwrap().push(light);
    document["instanceTypes"][0]["nodePools"] = json!(["default"]);
    document["instanceTypes"][0]["offerings"].as_array_mut().unwrap().push(json!({"zone": "a",
        "capacityType": "reserved", "price": 0.0001, "reservationCapacity": 1,
        "labels": {"karpenter.k8s.aws/capacity-reservation-id": "cr-1"}}));
    let mut other = kind("c5.large", "2", "a", 0.02);
    other["nodePools"] = json!(["light"]);
    document["instanceTypes"].as_array_mut().unwrap().push(other);
    document["pods"] = json!([pod("a", "1500m"), pod("b", "1500m")]);
    let out = solved(&document);
    assert_eq!(pods(&out), [json!(["n/a"])]);
    assert!(error(&out).ends_with("are available, but could not be reserved"));
    assert_eq!(out["unschedulable"][0]["nodePools"], json!([]));
}

#[test]
fn a_node_books_every_reservation_that_it_might_take() {
    let mut document = base();
    document["instanceTypes"] =
        json!([kind("m5.large", "2", "a", 1.0), kind("m6i.large", "2", "a", 1.0)]);
    for (at, id) in ["cr-1", "cr-2"].into_iter().enumerate() {
        document["instanceTypes"][at]["offerings"][0] = json!({"zone": "a",
            "capacityType": "reserved", "price": 0.0001, "reservationCapacity": 1,
            "labels": {"karpenter.k8s.aws/capacity-reservation-id": id}});
    }
    document["pods"] = json!([pod("a", "1500m"), pod("b", "1500m")]);
    let out = solved(&document);
    assert_eq!(pods(&out), [json!(["n/a"])]);
    let ids = requirement(&out["nodeClaims"][0], "karpenter.k8s.aws/capacity-reservation-id");
    assert_eq!(ids["values"], json!(["cr-1", "cr-2"]));
}

#[test]
fn types_are_ordered_by_the_offerings_that_the_node_may_take() {
    let mut document = base();
    document["pods"] = json!([pod("a", "100m")]);
    document["instanceTypes"] = json!([kind("b", "2", "a", 0.1), kind("a", "2", "a", 0.2)]);
    for (at, price) in [1.3, 1.0].into_iter().enumerate() {
        document["instanceTypes"][at]["offerings"]
            .as_array_mut()
            .unwrap()
            .push(json!({"zone": "a", "capacityType": "on-demand", "price": price}));
    }
    assert_eq!(solved(&document)["nodeClaims"][0]["instanceTypes"], json!(["b", "a"]));
    document["nodePools"][0]["spec"]["template"]["spec"]["requirements"] = json!([
        {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["on-demand"]}]);
    assert_eq!(solved(&document)["nodeClaims"][0]["instanceTypes"], json!(["a", "b"]));
}

#[test]
fn six_hundred_types_are_kept_and_must_be_various_enough() {
    let mut document = base();
    document["pods"] = json!([pod("a", "100m")]);
    document["instanceTypes"] = (0..650)
        .map(|n| {
            let mut kind = kind(&format!("t-{n:03}"), "2", "a", 1.0 + f64::from(n));
            let family = if n < 600 { "cheap" } else { "dear" };
            kind["requirements"] = json!([
                {"key": "example.com/family", "operator": "In", "values": [family]}]);
            kind
        })
        .collect();
    let out = solved(&document);
    let kept = out["nodeClaims"][0]["instanceTypes"].as_array().unwrap().clone();
    assert_eq!((kept.len(), &kept[0], &kept[599]), (600, &json!("t-000"), &json!("t-599")));
    document["nodePools"][0]["spec"]["template"]["spec"]["requirements"] = json!([
        {"key": "example.com/family", "operator": "Exists", "minValues": 2}]);
    let out = solved(&document);
    assert_eq!(out["nodeClaims"], json!([]));
    assert_eq!(
        error(&out),
        "pod didn’t schedule because NodePool couldn’t meet minValues requirements, validating minValues, minValues requirement is not met for label(s) (label(s)=[example.com/family]) (NodePool=default)"
    );
    document["options"] = json!({"minValuesPolicy": "BestEffort"});
    assert_eq!(pods(&solved(&document)), [json!(["n/a"])]);
}

#[test]
fn min_values_count_only_what_the_claim_still_allows() {
    let mut document = asking(json!({"nodeSelector": {ZONE: "a"}}));
    document["instanceTypes"][0]["offerings"]
        .as_array_mut()
        .unwrap()
        .push(json!({"zone": "b", "capacityType": "spot", "price": 0.03}));
    document["nodePools"][0]["spec"]["template"]["spec"]["requirements"] = json!([
        {"key": ZONE, "operator": "Exists", "minValues": 2}]);
    let out = solved(&document);
    assert!(error(&out).contains("minValues requirement is not met"), "{}", error(&out));
}

#[test]
fn the_reason_states_when_different_types_have_what_is_asked_for() {
    let mut document = asking(json!({"nodeSelector": {"kubernetes.io/arch": "arm64"}}));
    let mut small = kind("m6g.medium", "1", "a", 0.01);
    small["requirements"][0]["values"] = json!(["arm64"]);
    document["instanceTypes"].as_array_mut().unwrap().push(small);
    document["pods"][0]["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "1500m".into();
    assert!(error(&solved(&document)).starts_with(
        "no instance type which had enough resources and the required offering met the scheduling requirements, requirements="
    ));
}

#[test]
fn what_daemons_add_is_reported_as_a_range_where_it_differs() {
    let mut document = asking(json!({}));
    let mut arm = kind("m6g.large", "2", "a", 0.02);
    arm["requirements"][0]["values"] = json!(["arm64"]);
    document["instanceTypes"].as_array_mut().unwrap().push(arm);
    let mut daemon = pod("d", "500m");
    daemon["spec"]["nodeSelector"] = json!({"kubernetes.io/arch": "arm64"});
    document["daemonSetPods"] = json!([daemon]);
    document["pods"][0]["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "7".into();
    let out = solved(&document);
    assert!(
        error(&out).ends_with(
            "resources=min={\"cpu\":\"7\",\"pods\":\"1\"}, max={\"cpu\":\"7500m\",\"pods\":\"2\"}"
        ),
        "{}",
        error(&out)
    );
}

#[test]
fn integers_are_compared_as_such() {
    let of = |operator: &str, value: &str| {
        let key = "karpenter.k8s.aws/instance-cpu";
        let mut document =
            asking(required(json!([{"key": key, "operator": operator, "values": [value]}])));
        document["instanceTypes"][0]["requirements"]
            .as_array_mut()
            .unwrap()
            .push(json!({"key": key, "operator": "In", "values": ["16"]}));
        pods(&solved(&document)).len()
    };
    assert_eq!([of("Gt", "9"), of("Gt", "15"), of("Gt", "16")], [1, 1, 0]);
    assert_eq!([of("Lt", "9"), of("Lt", "16"), of("Lt", "17")], [0, 0, 1]);
    assert_eq!(of("Gt", &i64::MAX.to_string()), 0);
}

/// A pod that is to be spread over zones, and a node in the cheaper zone with one of its like.
fn spread(fields: Value, bound: Value) -> Value {
    let mut constraint = json!({"maxSkew": 1, "topologyKey": ZONE,
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "a"}}});
    constraint.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let mut document = asking(json!({"topologySpreadConstraints": [constraint]}));
    document["instanceTypes"] = json!([kind("a", "2", "a", 0.1), kind("b", "2", "b", 9.0)]);
    let mut like = pod("like", "100m");
    like["metadata"]["labels"] = json!({"app": "a"});
    for (part, value) in bound.as_object().unwrap() {
        like[part].as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
    }
    let full = json!({"cpu": "100m", "pods": "1"});
    document["nodes"] = json!([node("x", full, json!([like]))]);
    document["nodes"][0]["node"]["metadata"]["labels"] = json!({ZONE: "a", "team": "t"});
    document
}

fn zone_of(document: &Value) -> String {
    let out = solved(document);
    out["nodeClaims"][0]["cheapest"]["zone"].as_str().unwrap_or_else(|| error(&out)).to_owned()
}

#[test]
fn only_pods_that_stay_are_counted() {
    assert_eq!(zone_of(&spread(json!({}), json!({}))), "b");
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    assert_eq!(zone_of(&spread(json!({}), going)), "a");
    let mut done = spread(json!({}), json!({}));
    done["nodes"][0]["pods"][0]["status"] = json!({"phase": "Failed"});
    done["nodes"][0]["node"]["status"]["allocatable"]["pods"] = "0".into();
    assert_eq!(zone_of(&done), "a");
    let elsewhere = json!({"metadata": {"namespace": "m"}});
    assert_eq!(zone_of(&spread(json!({}), elsewhere)), "a");
    let other = json!({"metadata": {"labels": {"app": "b"}}});
    assert_eq!(zone_of(&spread(json!({}), other)), "a");
    // Those on nodes that are on their way out still count, as long as they do not move.
    let kept = json!({"metadata": {"annotations": {"karpenter.sh/do-not-disrupt": "true"}}});
    let mut leaving = spread(json!({}), kept);
    leaving["nodes"][0]["node"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    assert_eq!(zone_of(&leaving), "b");
}

#[test]
fn the_policies_say_which_nodes_count() {
    let with = |fields: Value, taint: bool, selector: Value| {
        let mut document = spread(fields, json!({}));
        document["pods"][0]["spec"]["nodeSelector"] = selector;
        document["nodePools"][0]["spec"]["template"]["metadata"] = json!({"labels": {"team": "u"}});
        if taint {
            document["nodes"][0]["node"]["spec"] =
                json!({"taints": [{"key": "x", "effect": "NoSchedule"}]});
        }
        zone_of(&document)
    };
    let none = || json!({});
    assert_eq!(with(json!({}), true, none()), "b");
    assert_eq!(with(json!({"nodeTaintsPolicy": "Ignore"}), true, none()), "b");
    assert_eq!(with(json!({"nodeTaintsPolicy": "Honor"}), true, none()), "a");
    assert_eq!(with(json!({"nodeTaintsPolicy": "Honor"}), false, none()), "b");
    let team = || json!({"team": "u"});
    assert_eq!(with(json!({}), false, team()), "a");
    assert_eq!(with(json!({"nodeAffinityPolicy": "Honor"}), false, team()), "a");
    assert_eq!(with(json!({"nodeAffinityPolicy": "Ignore"}), false, team()), "b");
}

#[test]
fn too_few_domains_keep_pods_back() {
    assert_eq!(zone_of(&spread(json!({"minDomains": 2}), json!({}))), "b");
    let three = solved(&spread(json!({"minDomains": 3, "maxSkew": 1}), json!({})));
    assert_eq!(three["nodeClaims"][0]["cheapest"]["zone"], "b");
    let mut full = spread(json!({"minDomains": 3}), json!({}));
    full["instanceTypes"].as_array_mut().unwrap().remove(1);
    assert!(error(&solved(&full)).contains("(counts = a: 1, podDomains ="));
}

#[test]
fn namespaces_are_chosen_by_name_or_by_label() {
    let of = |fields: Value, labels: Value| {
        let mut term = json!({"topologyKey": ZONE, "labelSelector": {"matchLabels": {"app": "a"}}});
        term.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let mut document = spread(json!({}), json!({"metadata": {"namespace": "m"}}));
        document["pods"][0]["metadata"]["labels"] = json!({});
        document["pods"][0]["spec"]["topologySpreadConstraints"] = json!([]);
        document["pods"][0]["spec"]["affinity"] = json!({"podAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": [term]}});
        document["objects"] =
            json!([{"kind": "Namespace", "metadata": {"name": "m", "labels": labels}}]);
        pods(&solved(&document)).len()
    };
    assert_eq!(of(json!({}), json!({})), 0);
    assert_eq!(of(json!({"namespaces": ["m"]}), json!({})), 1);
    assert_eq!(of(json!({"namespaceSelector": {}}), json!({})), 1);
    let team = || json!({"namespaceSelector": {"matchLabels": {"team": "t"}}});
    assert_eq!(of(team(), json!({})), 0);
    assert_eq!(of(team(), json!({"team": "t"})), 1);
    let name = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "m"}}});
    assert_eq!(of(name, json!({})), 1);
}

#[test]
fn nodes_may_have_deprecated_labels_only() {
    let mut document = asking(json!({"nodeSelector": {ZONE: "z"}}));
    document["nodes"] = json!([node("x", json!({"cpu": "1", "pods": "9"}), json!([]))]);
    document["nodes"][0]["node"]["metadata"]["labels"] =
        json!({"failure-domain.beta.kubernetes.io/zone": "z"});
    assert_eq!(solved(&document)["existingNodes"][0]["pods"], json!(["n/a"]));
}

#[test]
fn a_soft_taint_of_any_pool_may_come_to_be_tolerated() {
    let mut document = asking(json!({}));
    let soft = json!([{"key": "x", "effect": "PreferNoSchedule"}]);
    document["nodes"] = json!([node("x", json!({"cpu": "1", "pods": "9"}), json!([]))]);
    document["nodes"][0]["node"]["spec"] = json!({"taints": soft});
    document["instanceTypes"] = json!([]);
    // Only a pool with such a taint makes pods tolerate them in the end.
    assert_eq!(solved(&document)["existingNodes"], json!([]));
    document["nodePools"][0]["spec"]["template"]["spec"]["taints"] = soft;
    assert_eq!(solved(&document)["existingNodes"][0]["pods"], json!(["n/a"]));
}
