//! What holds for every input.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::scheduling::pod::PodKey;
use crate::scheduling::resources::ResourceList;
use crate::scheduling::taints::tolerate_all;

/// One pod in short.
#[derive(Clone, Debug)]
pub(super) struct Sketch {
    cpu: i64,
    app: u8,
    rule: u8,
    zone: u8,
    tolerates: bool,
}

pub(super) fn sketch() -> impl Strategy<Value = Sketch> {
    (1_i64..30, 0_u8..4, 0_u8..9, 0_u8..5, any::<bool>())
        .prop_map(|(cpu, app, rule, zone, tolerates)| Sketch { cpu, app, rule, zone, tolerates })
}

fn spec_of(sketch: &Sketch) -> Value {
    let app = json!({"matchLabels": {"app": sketch.app.to_string()}});
    let term = |key: &str| json!({"topologyKey": key, "labelSelector": app});
    let required = |kind: &str, key: &str| json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term(key)]}}});
    let spread = |key: &str| {
        json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": key,
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": app}]})
    };
    let mut spec = match sketch.rule {
        0 => spread(labels::ZONE),
        1 => spread(labels::HOSTNAME),
        2 => required("podAffinity", labels::ZONE),
        3 => required("podAntiAffinity", labels::HOSTNAME),
        4 => required("podAntiAffinity", labels::ZONE),
        _ => json!({}),
    };
    if sketch.zone < 2 {
        let zone = ["a", "b"][usize::from(sketch.zone)];
        spec["nodeSelector"] = json!({labels::ZONE: zone});
    }
    if sketch.tolerates {
        spec["tolerations"] = json!([{"key": "team", "operator": "Exists"}]);
    }
    spec["containers"] = json!([{"name": "c", "resources":
        {"requests": {"cpu": format!("{}00m", sketch.cpu), "memory": "512Mi"}}}]);
    spec
}

pub(super) fn pods_of(sketches: &[Sketch]) -> Vec<Arc<PodInfo>> {
    sketches
        .iter()
        .enumerate()
        .map(|(index, sketch)| {
            let name = format!("p{index:03}");
            let value = json!({"metadata": {"name": name, "namespace": "n", "uid": name,
                "labels": {"app": sketch.app.to_string()}}, "spec": spec_of(sketch)});
            Arc::new(PodInfo::from_pod(&serde_json::from_value(value).unwrap()))
        })
        .collect()
}

pub(super) fn input(sketches: &[Sketch], nodes: usize) -> Snapshot {
    let tainted = json!({"weight": 5, "limits": {"cpu": "40"}, "template": {"spec": {"taints": [
        {"key": "team", "value": "x", "effect": "NoSchedule"}]}}});
    let mut snapshot =
        snapshot(vec![pool("plain", json!({})), pool("tainted", tainted)], pods_of(sketches));
    for index in 0..nodes {
        let name = format!("n{index}");
        let zone = ["a", "b"][index % 2];
        let node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {labels::HOSTNAME: name, labels::ZONE: zone}},
            "status": {"allocatable": {"cpu": "3", "memory": "4Gi", "pods": "5"}}}))
        .unwrap();
        let view = NodeView { node: Some(Arc::new(node)), ..NodeView::default() };
        snapshot.nodes.push(view.into());
    }
    snapshot
}

/// Everything about results that could differ.
pub(super) fn fingerprint(results: &Results) -> Vec<String> {
    let mut lines: Vec<String> = results
        .new_claims
        .iter()
        .map(|c| {
            let mut pods: Vec<String> = c.pods.iter().map(ToString::to_string).collect();
            pods.sort();
            let types: Vec<&str> = c.instance_types.iter().map(|t| &*t.name).collect();
            format!("{pods:?} {types:?} {} {}", c.requirements, c.requests)
        })
        .chain(results.existing.iter().map(|(name, pods)| {
            let mut pods: Vec<String> = pods.iter().map(ToString::to_string).collect();
            pods.sort();
            format!("{name} {pods:?}")
        }))
        .chain(results.errors.iter().map(|(key, error)| format!("{key} {error}")))
        .collect();
    lines.sort();
    lines
}

fn check(snapshot: &Snapshot, results: &Results) -> Result<(), TestCaseError> {
    let pods: BTreeMap<PodKey, &Arc<PodInfo>> =
        snapshot.pods.iter().map(|p| (p.key.clone(), p)).collect();
    let mut seen: BTreeSet<PodKey> = BTreeSet::new();
    let mut hosts: Vec<(String, Vec<PodKey>)> = Vec::new();
    for claim in &results.new_claims {
        prop_assert!(!claim.instance_types.is_empty());
        let mut total = ResourceList::new();
        for key in &claim.pods {
            total.add(&pods[key].requests);
            prop_assert!(tolerate_all(&claim.taints, &pods[key].constraints.tolerations).is_ok());
            let wanted = pods[key].constraints.strict_requirements();
            prop_assert!(claim.requirements.intersects(&wanted).is_ok());
        }
        prop_assert_eq!(&total, &claim.requests);
        for kind in claim.instance_types.iter() {
            prop_assert!(total.fits(&kind.allocatable()), "{} on {}", total, kind.name);
            prop_assert!(kind.cheapest(&claim.requirements).is_some());
        }
        let zone = claim.requirements.get(labels::ZONE).and_then(Requirement::single);
        hosts.push((zone.unwrap_or("").to_owned(), claim.pods.clone()));
    }
    for (name, keys) in &results.existing {
        let node = snapshot.nodes.iter().find(|n| n.name() == name).unwrap();
        let mut total = ResourceList::new();
        keys.iter().for_each(|key| total.add(&pods[key].requests));
        prop_assert!(total.fits(node.available()));
        hosts.push((node.labels()[labels::ZONE].clone(), keys.clone()));
    }
    for key in hosts.iter().flat_map(|(_, keys)| keys).chain(results.errors.iter().map(|e| &e.0)) {
        prop_assert!(seen.insert(key.clone()), "{} twice", key);
    }
    prop_assert_eq!(seen.len(), snapshot.pods.len());
    check_topology(&pods, &hosts)
}

fn check_topology(
    pods: &BTreeMap<PodKey, &Arc<PodInfo>>,
    hosts: &[(String, Vec<PodKey>)],
) -> Result<(), TestCaseError> {
    let app = |key: &PodKey| pods[key].labels["app"].clone();
    for (zone, keys) in hosts {
        for key in keys {
            let own = app(key);
            let constraints = &pods[key].constraints;
            let here = keys.iter().filter(|k| app(k) == own).count();
            for term in &constraints.anti_affinity {
                if term.topology_key == labels::HOSTNAME {
                    prop_assert!(here == 1, "{} is not alone: {:?}", key, keys);
                } else {
                    let near = hosts
                        .iter()
                        .filter(|(z, _)| z == zone && !z.is_empty())
                        .flat_map(|(_, keys)| keys)
                        .filter(|k| app(k) == own)
                        .filter(|k| pods[*k].constraints.anti_affinity.contains(term))
                        .count();
                    // Others may sit on nodes whose zone was open when this one was placed.
                    prop_assert!(near <= 1, "{} is not alone in {}", key, zone);
                }
            }
            for constraint in &constraints.spread {
                if constraint.topology_key == labels::ZONE {
                    prop_assert!(!zone.is_empty());
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn placed_pods_are_placed_well(
        sketches in proptest::collection::vec(sketch(), 1..40),
        nodes in 0_usize..4,
    ) {
        let snapshot = input(&sketches, nodes);
        check(&snapshot, &solve(&snapshot))?;
    }

    #[test]
    fn equal_input_gives_equal_output_in_any_order(
        sketches in proptest::collection::vec(sketch(), 1..30),
        nodes in 0_usize..4,
        turn in 0_usize..30,
    ) {
        let snapshot = input(&sketches, nodes);
        let once = fingerprint(&solve(&snapshot));
        prop_assert_eq!(&once, &fingerprint(&solve(&snapshot)));
        let mut turned = snapshot.clone();
        let count = turned.pods.len();
        turned.pods.rotate_left(turn % count);
        turned.node_pools.reverse();
        turned.nodes.reverse();
        prop_assert_eq!(&once, &fingerprint(&solve(&turned)));
    }
}
