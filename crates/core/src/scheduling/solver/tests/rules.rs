//! Weights, limits, preferences and neighbours, each before the price.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;

/// A pool whose types are these: name, cores, price; each in the zones and capacity types named.
fn pool_of(
    name: &str,
    spec: Value,
    types: &[(&str, i64, f64)],
    zones: &[&str],
    capacity_type: &str,
) -> NodePoolInput {
    let kinds = types.iter().map(|(name, cpu, price)| {
        let mut kind = (*instance_type(name, *cpu, 4 * cpu, *price)).clone();
        let offering = |zone: &&str| Offering {
            requirements: [
                Requirement::is(labels::ZONE, zone),
                Requirement::is(labels::CAPACITY_TYPE, capacity_type),
            ]
            .into_iter()
            .collect(),
            price: *price,
            available: true,
            ..Offering::default()
        };
        kind.offerings = zones.iter().map(offering).collect();
        kind.requirements.replace(Requirement::new(labels::ZONE, Operator::In, zones));
        Arc::new(kind)
    });
    NodePoolInput {
        node_pool: Arc::new(NodePool::new(name, serde_json::from_value(spec).unwrap())),
        instance_types: kinds.collect(),
    }
}

fn small_pods(count: usize, cpu: &str, spec: &Value) -> Vec<Arc<PodInfo>> {
    (0..count).map(|i| pod(&format!("p{i}"), cpu, spec.clone())).collect()
}

fn by_pool(results: &Results) -> BTreeMap<String, usize> {
    let mut pools = BTreeMap::new();
    for claim in &results.new_claims {
        *pools.entry(claim.node_pool.metadata.name.clone().unwrap()).or_insert(0) +=
            claim.pods.len();
    }
    pools
}

const SIZES: [(&str, i64, f64); 2] = [("small", 2, 0.1), ("large", 32, 2.0)];

#[test]
fn a_heavier_pool_with_room_is_filled_whatever_a_lighter_one_costs() {
    let pools = || {
        vec![
            pool_of(
                "heavy",
                json!({"weight": 100, "limits": {"cpu": "32"}}),
                &SIZES,
                &["a"],
                "spot",
            ),
            pool_of("middle", json!({"weight": 50}), &[("tiny", 2, 0.05)], &["a"], "spot"),
            pool_of("light", json!({}), &[("tiny", 2, 0.01)], &["a"], "spot"),
        ]
    };
    let results = solve(&snapshot(pools(), small_pods(10, "900m", &json!({}))));
    assert_eq!(by_pool(&results), BTreeMap::from([("heavy".to_owned(), 10)]));
    // What the heavy pool's limit does not hold goes to the next by weight, not by price.
    let results = solve(&snapshot(pools(), small_pods(40, "900m", &json!({}))));
    let pools = by_pool(&results);
    assert_eq!((pools["heavy"], pools["middle"], pools.get("light")), (20, 20, None), "{pools:?}");
}

#[test]
fn of_pools_of_equal_weight_the_cheaper_one_launches() {
    for (cheap, dear) in [("a", "b"), ("b", "a")] {
        let pools = vec![
            pool_of(cheap, json!({"weight": 7}), &[("small", 2, 0.03)], &["a"], "spot"),
            pool_of(dear, json!({"weight": 7}), &[("small", 2, 0.08)], &["a"], "on-demand"),
        ];
        let mut input = snapshot(pools, small_pods(3, "1", &json!({})));
        for pack_by_price in [true, false] {
            input.options.pack_by_price = pack_by_price;
            let used = by_pool(&solve(&input));
            assert_eq!(used, BTreeMap::from([(cheap.to_owned(), 3)]));
        }
    }
}

#[test]
fn a_wish_is_kept_although_another_zone_costs_less() {
    let zone = |zone: &str, price: f64| {
        let name = format!("in-{zone}");
        pool_of(&name, json!({}), &[("small", 2, price)], &[zone], "on-demand")
    };
    let spread = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": labels::ZONE,
        "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {}}]});
    let pools = vec![zone("a", 0.1), zone("b", 0.9)];
    let results = solve(&snapshot(pools.clone(), small_pods(4, "1500m", &spread)));
    let used = by_pool(&results);
    assert_eq!((used["in-a"], used["in-b"]), (2, 2));
    let prefers = json!({"affinity": {"nodeAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": {
            "matchExpressions": [{"key": labels::ZONE, "operator": "In", "values": ["b"]}]}}]}}});
    let results = solve(&snapshot(pools, small_pods(4, "1500m", &prefers)));
    assert_eq!(by_pool(&results), BTreeMap::from([("in-b".to_owned(), 4)]));
}

#[test]
fn a_batch_makes_no_more_nodes_than_the_limit_leaves() {
    let apart = json!({"affinity": {"podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": labels::HOSTNAME, "labelSelector": {}}]}}});
    let limited = |nodes: &str| pool("p", json!({"limits": {"nodes": nodes}}));
    let mut input = snapshot(vec![limited("3")], small_pods(5, "1", &apart));
    let results = solve(&input);
    assert_eq!((results.new_claims.len(), results.errors.len()), (3, 2));
    let text = results.errors[0].1.to_string();
    assert!(text.starts_with("node limits have been exhausted"), "{text}");
    // Nodes beyond the limit, made by others, leave room for none either.
    let node = |name: &str| {
        let node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {labels::NODEPOOL: "p"}}}));
        StateNode::from(NodeView { node: Some(Arc::new(node.unwrap())), ..NodeView::default() })
    };
    input.nodes = vec![node("n1"), node("n2"), node("n3"), node("n4")];
    assert!(solve(&input).new_claims.is_empty());
}

fn spread_by_zone(selector: Value) -> Value {
    let mut spec = selector;
    spec["topologySpreadConstraints"] = json!([{"maxSkew": 1, "topologyKey": labels::ZONE,
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}]);
    spec
}

#[test]
fn domains_are_those_in_which_a_pod_can_have_a_node() {
    let types = [("small", 2, 0.1)];
    let team = |name: &str, zones: &[&str]| {
        let spec = json!({"template": {"metadata": {"labels": {"team": name}}}});
        pool_of(name, spec, &types, zones, "on-demand")
    };
    let pools = vec![team("x", &["a", "b"]), team("y", &["a", "b", "c"])];
    let of_x = spread_by_zone(json!({"nodeSelector": {"team": "x"}}));
    let results = solve(&snapshot(pools, small_pods(4, "1500m", &of_x)));
    assert!(results.errors.is_empty(), "{:?}", results.errors);
    // A pool names a zone in which nothing is offered; another has a type of its own there.
    let named = |name: &str, zone: &str, more: Value| {
        let mut requirements =
            vec![json!({"key": labels::ZONE, "operator": "In", "values": [zone]})];
        requirements.extend(more.as_array().into_iter().flatten().cloned());
        let spec = json!({"template": {"spec": {"requirements": requirements}}});
        pool_of(name, spec, &types, &["a", "b"], "on-demand")
    };
    let spot = json!([{"key": labels::CAPACITY_TYPE, "operator": "In", "values": ["spot"]}]);
    let pools = vec![
        pool_of("p", json!({}), &types, &["a"], "on-demand"),
        named("typo", "z", json!([])),
        named("no-spot-there", "b", spot),
    ];
    let results = solve(&snapshot(pools, small_pods(3, "1500m", &spread_by_zone(json!({})))));
    assert!(results.errors.is_empty(), "{:?}", results.errors);
}

#[test]
fn a_zone_that_has_no_capacity_for_now_is_no_domain() {
    let mut pool = pool_of("p", json!({}), &[("small", 2, 0.1)], &["a", "b"], "on-demand");
    let mut kind = (*pool.instance_types[0]).clone();
    kind.offerings[1].available = false;
    pool.instance_types = [Arc::new(kind)].into();
    let results = solve(&snapshot(vec![pool], small_pods(3, "1500m", &spread_by_zone(json!({})))));
    assert!(results.errors.is_empty(), "{:?}", results.errors);
}

fn daemon(name: &str, spec: Value) -> Arc<PodInfo> {
    let mut value = json!({"metadata": {"name": name, "namespace": "n", "labels": {"ds": name},
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": name, "uid": "u"}]},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "100m"}}}]}});
    for (key, field) in spec.as_object().into_iter().flatten() {
        value["spec"][key] = field.clone();
    }
    Arc::new(PodInfo::from_pod(&serde_json::from_value(value).unwrap()))
}

fn beside(kind: &str, key: &str, labels: Value) -> Value {
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": key, "labelSelector": {"matchLabels": labels}}]}}})
}

#[test]
fn pods_of_daemon_sets_are_neighbours_on_nodes_to_come() {
    let solved = |daemons: Vec<Arc<PodInfo>>, spec: Value| {
        let mut input = snapshot(vec![pool("p", json!({}))], small_pods(2, "1", &spec));
        input.daemonset_pods = daemons;
        let results = solve(&input);
        (results.new_claims.iter().map(|c| c.pods.len()).sum::<usize>(), results)
    };
    for key in [labels::HOSTNAME, labels::ZONE] {
        let near = || beside("podAffinity", key, json!({"ds": "cni"}));
        let far = || beside("podAntiAffinity", key, json!({"ds": "cni"}));
        assert_eq!(solved(vec![daemon("cni", json!({}))], near()).0, 2, "{key}");
        assert_eq!(solved(Vec::new(), near()).0, 0, "{key}");
        assert_eq!(solved(vec![daemon("cni", json!({}))], far()).0, 0, "{key}");
        assert_eq!(solved(Vec::new(), far()).0, 2, "{key}");
    }
    // It runs on large nodes only: these are taken, and left out by those that keep away.
    let on_large = json!({"nodeSelector": {labels::INSTANCE_TYPE: "large"}});
    let types = |kind: &str| {
        let spec = beside(kind, labels::HOSTNAME, json!({"ds": "cni"}));
        let (placed, results) = solved(vec![daemon("cni", on_large.clone())], spec);
        assert_eq!(placed, 2);
        let names = results.new_claims[0].instance_types.iter().map(|t| t.name.to_string());
        names.collect::<Vec<_>>()
    };
    assert_eq!(types("podAffinity"), ["large"]);
    assert_eq!(types("podAntiAffinity"), ["small", "medium"]);
    // The DaemonSet keeps others away itself.
    let lonely = json!({"affinity": {"podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": labels::HOSTNAME,
            "labelSelector": {"matchExpressions": [{"key": "ds", "operator": "DoesNotExist"}]}}]}}});
    assert_eq!(solved(vec![daemon("cni", lonely)], json!({})).0, 0);
}

#[test]
fn a_node_that_waits_for_its_daemons_counts_as_having_them() {
    let node = serde_json::from_value(json!({
        "metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1"}},
        "status": {"allocatable": {"cpu": "8", "memory": "8Gi", "pods": "10"}}}))
    .unwrap();
    let near = beside("podAffinity", labels::HOSTNAME, json!({"ds": "cni"}));
    let mut input = snapshot(vec![pool("p", json!({}))], small_pods(2, "1", &near));
    input.daemonset_pods = vec![daemon("cni", json!({}))];
    input.nodes =
        vec![StateNode::from(NodeView { node: Some(Arc::new(node)), ..NodeView::default() })];
    let results = solve(&input);
    assert_eq!((results.existing.len(), results.new_claims.len()), (1, 0));
}

#[test]
fn anti_affinity_over_a_label_that_a_node_lacks_does_not_apply() {
    let apart = beside("podAntiAffinity", "example.com/rack", json!({}));
    let mut pods = small_pods(3, "500m", &apart);
    pods.push(pod("other", "500m", json!({})));
    let results = solve(&snapshot(vec![pool("p", json!({}))], pods.clone()));
    assert_eq!((results.new_claims.len(), results.errors.len()), (1, 0));
    // Where nodes have the label it does: for them and for those that they keep away.
    let racks = json!({"template": {"metadata": {"labels": {"example.com/rack": "r1"}}}});
    let results = solve(&snapshot(vec![pool("p", racks)], small_pods(3, "500m", &apart)));
    assert_eq!(results.errors.len(), 2);
    let near = beside("podAffinity", "example.com/rack", json!({}));
    let results = solve(&snapshot(vec![pool("p", json!({}))], small_pods(1, "500m", &near)));
    assert_eq!(results.errors.len(), 1);
}

#[test]
fn a_claim_whose_node_is_gone_is_no_room_but_counts_for_limits() {
    let claim = |registered: &str| {
        serde_json::from_value(json!({
            "metadata": {"name": "ghost", "labels": {labels::NODEPOOL: "p"}},
            "spec": {"nodeClassRef": {"group": "g", "kind": "k", "name": "n"}, "requirements": []},
            "status": {"capacity": {"cpu": "8", "memory": "8Gi", "pods": "9"},
                "allocatable": {"cpu": "8", "memory": "8Gi", "pods": "9"},
                "conditions": [{"type": "Registered", "status": registered, "reason": "r",
                    "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}))
        .unwrap()
    };
    let with = |registered: &str, limit: &str| {
        let limited = pool("p", json!({"limits": {"nodes": limit}}));
        let mut input = snapshot(vec![limited], small_pods(1, "1", &json!({})));
        let ghost = StateNode::from(NodeView {
            node_claim: Some(Arc::new(claim(registered))),
            ..NodeView::default()
        });
        input.nodes = vec![ghost];
        let results = solve(&input);
        (results.existing.len(), results.new_claims.len(), results.errors.len())
    };
    assert_eq!(with("True", "2"), (0, 1, 0));
    assert_eq!(with("True", "1"), (0, 0, 1));
    // One that is still on its way is room.
    assert_eq!(with("Unknown", "2"), (1, 0, 0));
}

#[test]
fn a_claim_that_has_no_instance_yet_counts_as_its_largest_type() {
    let claim = serde_json::from_value(json!({
        "metadata": {"name": "coming", "labels": {labels::NODEPOOL: "p"}},
        "spec": {"nodeClassRef": {"group": "g", "kind": "k", "name": "n"}, "requirements": [
            {"key": labels::INSTANCE_TYPE, "operator": "In", "values": ["small", "medium"]}]}}))
    .unwrap();
    let mut input =
        snapshot(vec![pool("p", json!({"limits": {"cpu": "7"}}))], small_pods(1, "3", &json!({})));
    assert_eq!(solve(&input).new_claims.len(), 1);
    input.nodes = vec![StateNode::from(NodeView {
        node_claim: Some(Arc::new(claim)),
        ..NodeView::default()
    })];
    assert!(solve(&input).new_claims.is_empty());
}

#[test]
fn a_terminating_pod_keeps_others_away_until_it_is_gone() {
    let value = |name: &str, spec: &Value, more: Value| {
        let mut pod = json!({"metadata": {"name": name, "namespace": "n", "uid": name,
            "labels": {"app": "a"}}, "spec": spec});
        pod["spec"]["containers"] = json!([{"name": "c"}]);
        for (key, field) in more.as_object().unwrap() {
            pod["metadata"][key] = field.clone();
        }
        Arc::new(PodInfo::from_pod(&serde_json::from_value(pod).unwrap()))
    };
    let apart = beside("podAntiAffinity", labels::HOSTNAME, json!({"app": "a"}));
    let placed = |old: &Value, new: &Value| {
        let node = serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1"}},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}}}))
        .unwrap();
        let ending = value("old", old, json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}));
        let mut input = snapshot(vec![pool("p", json!({}))], vec![value("new", new, json!({}))]);
        input.nodes = vec![StateNode::from(NodeView {
            node: Some(Arc::new(node)),
            pods: vec![ending],
            ..NodeView::default()
        })];
        solve(&input).existing.len()
    };
    assert_eq!(placed(&json!({}), &json!({})), 1);
    assert_eq!(placed(&apart, &json!({})), 0);
    assert_eq!(placed(&json!({}), &apart), 0);
}

#[test]
fn min_values_count_only_what_the_claim_still_allows() {
    let spec = json!({"template": {"spec": {"requirements": [
        {"key": labels::ZONE, "operator": "Exists", "minValues": 2}]}}});
    let solved = |spec: Value, pod_spec: Value| {
        solve(&snapshot(vec![pool("p", spec)], small_pods(1, "1", &pod_spec)))
    };
    assert_eq!(solved(spec.clone(), json!({})).new_claims.len(), 1);
    let results = solved(spec, json!({"nodeSelector": {labels::ZONE: "a"}}));
    let text = results.errors[0].1.to_string();
    let expected =
        "minValues requirement is not met for label(s) (label(s)=[topology.kubernetes.io/zone])";
    assert!(text.starts_with(expected), "{text}");
}

#[test]
fn topology_rules_that_exclude_each_other_are_both_named_with_their_counts() {
    // One rule asks for the zone with the fewest, the other for the zone where others are.
    let node = |name: &str, zone: &str, app: &str| {
        let node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, labels::ZONE: zone}},
            "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "1"}}}))
        .unwrap();
        let there = json!({"metadata": {"name": name, "namespace": "n", "labels": {"app": app}},
            "spec": {"containers": [{"name": "c"}], "nodeName": name}, "status": {"phase": "Running"}});
        StateNode::from(NodeView {
            node: Some(Arc::new(node)),
            pods: vec![Arc::new(PodInfo::from_pod(&serde_json::from_value(there).unwrap()))],
            ..NodeView::default()
        })
    };
    let mut spec = beside("podAffinity", labels::ZONE, json!({"app": "x"}));
    spec["affinity"]["podAntiAffinity"] =
        beside("podAntiAffinity", labels::ZONE, json!({"app": "y"}))["affinity"]["podAntiAffinity"]
            .clone();
    let mut input = snapshot(vec![pool("p", json!({}))], small_pods(1, "1", &spec));
    input.nodes = vec![node("n1", "a", "x"), node("n2", "a", "y")];
    let text = solve(&input).errors[0].1.to_string();
    assert!(
        text.contains("pod affinity, key=topology.kubernetes.io/zone (counts = a: 1, b: 0"),
        "{text}"
    );
    assert!(
        text.contains("pod anti-affinity, key=topology.kubernetes.io/zone (counts = a: 1, b: 0"),
        "{text}"
    );
    assert!(text.contains("exclude each other"), "{text}");
}

#[test]
fn a_full_reservation_is_waited_for_only_where_nothing_else_will_do() {
    let with = |capacity: i64, spec: Value, other: bool| {
        let mut pool = pool_of("p", spec, &[("small", 2, 0.1)], &["a"], "on-demand");
        let mut kind = (*pool.instance_types[0]).clone();
        kind.requirements.replace(Requirement::new(
            labels::CAPACITY_TYPE,
            Operator::In,
            ["on-demand", "reserved"],
        ));
        kind.offerings.push(Offering {
            requirements: [
                Requirement::is(labels::ZONE, "a"),
                Requirement::is(labels::CAPACITY_TYPE, labels::CAPACITY_RESERVED),
                Requirement::is(labels::CAPACITY_RESERVATION_ID, "r-1"),
            ]
            .into_iter()
            .collect(),
            available: true,
            reservation_capacity: capacity,
            ..Offering::default()
        });
        pool.instance_types = [Arc::new(kind)].into();
        let mut pools = vec![pool];
        pools.extend(
            other.then(|| pool_of("q", json!({}), &[("small", 2, 0.1)], &["a"], "on-demand")),
        );
        solve(&snapshot(pools, small_pods(1, "1", &json!({}))))
    };
    let reserved = || {
        json!({"weight": 9, "template": {"spec": {"requirements": [
            {"key": labels::CAPACITY_TYPE, "operator": "In", "values": ["reserved"]}]}}})
    };
    assert_eq!(by_pool(&with(1, reserved(), true))["p"], 1);
    assert_eq!(by_pool(&with(0, reserved(), true))["q"], 1);
    assert_eq!(by_pool(&with(0, json!({}), false))["p"], 1);
    let waits = with(0, reserved(), false);
    assert!(matches!(waits.errors[0].1, crate::scheduling::results::PodError::Reserved(_)));
}
