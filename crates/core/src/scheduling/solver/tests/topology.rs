//! Spread, affinity and anti-affinity, as the loop decides them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;

fn labelled(name: &str, app: &str, spec: Value) -> Arc<PodInfo> {
    let mut value = json!({"metadata": {"name": name, "namespace": "n", "uid": name,
        "labels": {"app": app}},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}});
    for (key, field) in spec.as_object().into_iter().flatten() {
        value["spec"][key] = field.clone();
    }
    Arc::new(PodInfo::from_pod(&serde_json::from_value(value).unwrap()))
}

fn selector(app: &str) -> Value {
    json!({"matchLabels": {"app": app}})
}

fn spread(key: &str, app: &str, more: Value) -> Value {
    let mut constraint = json!({"maxSkew": 1, "topologyKey": key,
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector(app)});
    for (key, field) in more.as_object().into_iter().flatten() {
        constraint[key] = field.clone();
    }
    json!({"topologySpreadConstraints": [constraint]})
}

fn affinity(kind: &str, key: &str, app: &str) -> Value {
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": key, "labelSelector": selector(app)}]}}})
}

fn many(count: usize, app: &str, spec: &Value) -> Vec<Arc<PodInfo>> {
    (0..count).map(|i| labelled(&format!("{app}{i}"), app, spec.clone())).collect()
}

/// Pods by zone; an empty zone for nodes that are not pinned.
fn by_zone(results: &Results) -> BTreeMap<String, usize> {
    let mut zones = BTreeMap::new();
    for claim in &results.new_claims {
        let zone = claim.requirements.get(labels::ZONE).and_then(Requirement::single);
        *zones.entry(zone.unwrap_or("").to_owned()).or_insert(0) += claim.pods.len();
    }
    zones
}

fn solved(pods: Vec<Arc<PodInfo>>) -> Results {
    solve(&snapshot(vec![pool("p", json!({}))], pods))
}

#[test]
fn zones_are_filled_evenly() {
    let results = solved(many(7, "a", &spread(labels::ZONE, "a", json!({}))));
    assert!(results.errors.is_empty(), "{:?}", results.errors);
    let zones = by_zone(&results);
    assert_eq!(zones.values().sum::<usize>(), 7);
    assert!(zones["a"].abs_diff(zones["b"]) <= 1, "{zones:?}");
}

#[test]
fn too_few_domains_count_as_an_empty_one() {
    // Two zones where three are asked for: the lowest count is taken for zero.
    let results = solved(many(4, "a", &spread(labels::ZONE, "a", json!({"minDomains": 3}))));
    assert_eq!(results.errors.len(), 2);
    assert_eq!(by_zone(&results), BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 1)]));
    let text = results.errors[0].1.to_string();
    assert!(
        text.starts_with(
            "unsatisfiable topology constraint for topology spread, \
             key=topology.kubernetes.io/zone (counts = a: 1, b: 1, podDomains = \
             topology.kubernetes.io/zone Exists, nodeDomains = topology.kubernetes.io/zone Exists"
        ),
        "{text}"
    );
}

#[test]
fn hosts_hold_no_more_than_the_skew() {
    let results = solved(many(5, "a", &spread(labels::HOSTNAME, "a", json!({"maxSkew": 2}))));
    assert!(results.errors.is_empty());
    assert_eq!(results.new_claims.len(), 3);
    assert!(results.new_claims.iter().all(|c| c.pods.len() <= 2));
}

#[test]
fn pods_that_avoid_each_other_get_nodes_of_their_own() {
    let mut pods = many(4, "a", &affinity("podAntiAffinity", labels::HOSTNAME, "a"));
    pods.extend(many(4, "b", &json!({})));
    let results = solved(pods);
    assert!(results.errors.is_empty());
    for claim in &results.new_claims {
        assert!(claim.pods.iter().filter(|p| p.name.starts_with('a')).count() <= 1);
    }
}

#[test]
fn one_pod_that_avoids_others_by_zone_blocks_every_zone_that_it_may_land_in() {
    let results = solved(many(3, "a", &affinity("podAntiAffinity", labels::ZONE, "a")));
    assert_eq!(results.new_claims.iter().map(|c| c.pods.len()).sum::<usize>(), 1);
    assert_eq!(results.errors.len(), 2);
}

#[test]
fn those_that_are_avoided_keep_away_too() {
    // "b" itself asks for nothing, but "a" wants no "b" in its zone.
    let mut pinned = affinity("podAntiAffinity", labels::ZONE, "b");
    pinned["nodeSelector"] = json!({labels::ZONE: "a"});
    let mut pods = vec![labelled("a0", "a", pinned)];
    pods.extend(many(3, "b", &json!({})));
    let results = solved(pods);
    assert!(results.errors.is_empty(), "{:?}", results.errors);
    for claim in &results.new_claims {
        let others = claim.pods.iter().any(|p| p.name.starts_with('b'));
        let zone = claim.requirements.get(labels::ZONE).unwrap();
        assert_eq!(zone.single(), Some(if others { "b" } else { "a" }));
    }
}

#[test]
fn friends_go_to_one_zone() {
    let results = solved(many(40, "a", &affinity("podAffinity", labels::ZONE, "a")));
    assert!(results.errors.is_empty());
    assert!(results.new_claims.len() > 1);
    assert_eq!(by_zone(&results).len(), 1);
    assert!(!by_zone(&results).contains_key(""));
}

#[test]
fn friends_of_nobody_wait() {
    let results = solved(many(1, "a", &affinity("podAffinity", labels::ZONE, "b")));
    assert_eq!(results.errors.len(), 1);
    assert!(results.errors[0].1.to_string().contains("for pod affinity"));
}

#[test]
fn bound_pods_count() {
    let node = |name: &str, zone: &str| {
        let node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels":
                {labels::HOSTNAME: name, labels::ZONE: zone, labels::NODEPOOL: "p"}},
            "status": {"allocatable": {"cpu": "2", "memory": "8Gi", "pods": "10"}}}))
        .unwrap();
        let mut bound = PodInfo::clone(&labelled("old", "a", json!({})));
        bound.node_name = Some(name.into());
        let pods = vec![Arc::new(bound)];
        NodeView { node: Some(Arc::new(node)), pods, ..NodeView::default() }.into()
    };
    let pods = many(1, "a", &spread(labels::ZONE, "a", json!({})));
    let mut input = snapshot(vec![pool("p", json!({}))], pods);
    input.nodes = vec![node("n1", "a")];
    let results = solve(&input);
    assert!(results.existing.is_empty());
    assert_eq!(by_zone(&results), BTreeMap::from([("b".to_owned(), 1)]));
    // The same constraint that leaves tainted nodes out, and a pod that avoids bound ones.
    input.pods = vec![labelled("x", "x", affinity("podAntiAffinity", labels::ZONE, "a"))];
    assert_eq!(by_zone(&solve(&input)), BTreeMap::from([("b".to_owned(), 1)]));
    input.pods = vec![labelled("x", "x", affinity("podAffinity", labels::HOSTNAME, "a"))];
    assert_eq!(solve(&input).existing, [("n1".to_owned(), vec![input.pods[0].key.clone()])]);
}

#[test]
fn preferences_hold_until_they_cannot() {
    let prefer = json!({"affinity": {"podAntiAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "podAffinityTerm":
                {"topologyKey": labels::HOSTNAME, "labelSelector": selector("a")}}]}}});
    let results = solved(many(3, "a", &prefer));
    assert_eq!(results.new_claims.len(), 3);
    let mut input = snapshot(vec![pool("p", json!({}))], many(3, "a", &prefer));
    input.options.respect_preferences = false;
    assert_eq!(solve(&input).new_claims.len(), 1);
}

#[test]
fn own_label_values_distinguish_revisions() {
    let spec = spread(labels::ZONE, "a", json!({"matchLabelKeys": ["app"]}));
    let mut pods = many(2, "a", &spec);
    let other = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": labels::ZONE,
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}, "matchLabelKeys": ["app"]}]});
    pods.extend(many(2, "b", &other));
    let results = solved(pods);
    assert!(results.errors.is_empty());
    assert_eq!(by_zone(&results), BTreeMap::from([("a".to_owned(), 2), ("b".to_owned(), 2)]));
}

#[test]
fn volumes_constrain_the_node_but_not_the_count() {
    use crate::scheduling::volumes::PodVolumes;
    let pods = many(3, "a", &spread(labels::ZONE, "a", json!({})));
    let mut input = snapshot(vec![pool("p", json!({}))], pods);
    let place = |zone: &str| PodVolumes {
        alternatives: vec![[Requirement::is(labels::ZONE, zone)].into_iter().collect()],
        ..PodVolumes::default()
    };
    for pod in &input.pods {
        input.pod_volumes.insert(pod.key.clone(), Arc::new(place("a")));
    }
    // Zone b stays empty and counts, so that a second pod would be one too many in zone a.
    let results = solve(&input);
    assert_eq!(by_zone(&results), BTreeMap::from([("a".to_owned(), 1)]));
    assert_eq!(results.errors.len(), 2);
    // The first place that works is taken.
    let both = PodVolumes {
        alternatives: ["nowhere", "b"]
            .iter()
            .map(|zone| [Requirement::is(labels::ZONE, zone)].into_iter().collect())
            .collect(),
        ..PodVolumes::default()
    };
    input.pods.truncate(1);
    input.pod_volumes = [(input.pods[0].key.clone(), Arc::new(both))].into();
    assert_eq!(by_zone(&solve(&input)), BTreeMap::from([("b".to_owned(), 1)]));
}

/// A pod anywhere, one that settles the zone of their common node, and one with an opinion.
fn settled_late(opinion: &str) -> Results {
    let mut pods = many(1, "web", &json!({}));
    pods.extend(many(1, "x", &json!({"nodeSelector": {labels::ZONE: "a"}})));
    pods.extend(many(1, "z", &affinity(opinion, labels::ZONE, "web")));
    let results = solved(pods);
    assert!(results.errors.is_empty(), "{:?}", results.errors);
    results
}

#[test]
fn a_zone_settled_by_a_later_pod_counts_for_those_there_before() {
    assert_eq!(by_zone(&settled_late("podAffinity")), BTreeMap::from([("a".to_owned(), 3)]));
}

#[test]
fn a_zone_that_a_node_can_no_longer_be_in_is_free_again() {
    let zones = by_zone(&settled_late("podAntiAffinity"));
    assert_eq!(zones, BTreeMap::from([("a".to_owned(), 2), ("b".to_owned(), 1)]));
}

#[test]
fn nodes_count_by_every_term_of_the_affinity_whichever_a_pod_is_placed_by() {
    // Spot is a domain, though only a pool that the pods do not tolerate has it.
    let kind = |name: &str| {
        json!({"template": {"spec": {"requirements": [
            {"key": labels::CAPACITY_TYPE, "operator": "In", "values": [name]}]}}})
    };
    let mut tainted = kind("spot");
    tainted["template"]["spec"]["taints"] =
        json!([{"key": "team", "value": "x", "effect": "NoSchedule"}]);
    let zone = |name: &str| {
        json!({"matchExpressions": [
            {"key": labels::ZONE, "operator": "In", "values": [name]}]})
    };
    let mut spec = spread(labels::CAPACITY_TYPE, "a", json!({}));
    spec["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [zone("a"), zone("b")]}}});
    let pools = vec![pool("p", kind("on-demand")), pool("q", tainted)];
    let results = solve(&snapshot(pools, many(2, "a", &spec)));
    assert_eq!(results.errors.len(), 1, "a second pod on demand is two more than on spot");
}
