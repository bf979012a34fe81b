use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::api::labels;
use crate::api::v1::{NodePool, Operator};
use crate::scheduling::instance_type::{InstanceType, Offering, Overhead};
use crate::scheduling::node::{NodeView, StateNode};
use crate::scheduling::pod::PodInfo;
use crate::scheduling::requirements::Requirement;
use crate::scheduling::resources::{Name, ResourceList};
use crate::scheduling::snapshot::NodePoolInput;

fn instance_type(name: &str, cpu: i64, memory_gib: i64, price: f64) -> Arc<InstanceType> {
    let offerings = ["a", "b"]
        .iter()
        .flat_map(|zone| {
            [(labels::CAPACITY_SPOT, price / 2.0), (labels::CAPACITY_ON_DEMAND, price)].map(
                |(kind, price)| Offering {
                    requirements: [
                        Requirement::is(labels::ZONE, zone),
                        Requirement::is(labels::CAPACITY_TYPE, kind),
                    ]
                    .into_iter()
                    .collect(),
                    price,
                    available: true,
                    ..Offering::default()
                },
            )
        })
        .collect();
    Arc::new(InstanceType {
        name: Arc::from(name),
        requirements: [
            Requirement::is(labels::INSTANCE_TYPE, name),
            Requirement::is(labels::ARCH, "amd64"),
            Requirement::new(labels::ZONE, Operator::In, ["a", "b"]),
            Requirement::new(labels::CAPACITY_TYPE, Operator::In, ["spot", "on-demand"]),
        ]
        .into_iter()
        .collect(),
        offerings,
        capacity: [(Name::Cpu, cpu * 1000), (Name::Memory, memory_gib << 30), (Name::Pods, 20)]
            .into_iter()
            .collect(),
        overhead: Overhead::default(),
        ..InstanceType::default()
    })
}

pub(super) fn pool(name: &str, spec: serde_json::Value) -> NodePoolInput {
    NodePoolInput {
        node_pool: Arc::new(NodePool::new(name, serde_json::from_value(spec).unwrap())),
        instance_types: [
            instance_type("small", 2, 4, 0.1),
            instance_type("medium", 4, 8, 0.2),
            instance_type("large", 16, 32, 0.8),
        ]
        .into(),
    }
}

pub(super) fn pod(name: &str, cpu: &str, spec: serde_json::Value) -> Arc<PodInfo> {
    let mut value = json!({"metadata": {"name": name, "namespace": "n", "uid": name},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
    for (key, field) in spec.as_object().into_iter().flatten() {
        value["spec"][key] = field.clone();
    }
    Arc::new(PodInfo::from_pod(&serde_json::from_value(value).unwrap()))
}

pub(super) fn snapshot(pools: Vec<NodePoolInput>, pods: Vec<Arc<PodInfo>>) -> Snapshot {
    Snapshot { node_pools: pools, pods, ..Snapshot::default() }
}

#[test]
fn pods_share_the_cheapest_node_that_holds_them() {
    let results = solve(&snapshot(
        vec![pool("p", json!({}))],
        vec![pod("a", "1", json!({})), pod("b", "1", json!({}))],
    ));
    assert_eq!(results.new_claims.len(), 1);
    let claim = &results.new_claims[0];
    assert_eq!(claim.pods.len(), 2);
    let (cheapest, offering) = claim.cheapest().unwrap();
    assert_eq!((&*cheapest.name, offering.capacity_type()), ("small", "spot"));
}

#[test]
fn heavier_pools_come_first_and_limits_hold() {
    let pools = vec![
        pool("light", json!({})),
        pool("heavy", json!({"weight": 10, "limits": {"cpu": "2"}})),
    ];
    let pods = (0..3).map(|i| pod(&format!("p{i}"), "1900m", json!({}))).collect();
    let results = solve(&snapshot(pools, pods));
    let used: Vec<_> =
        results.new_claims.iter().map(|c| c.node_pool.metadata.name.clone().unwrap()).collect();
    assert_eq!(used.iter().filter(|n| *n == "heavy").count(), 1, "{used:?}");
    assert!(results.errors.is_empty());
}

#[test]
fn an_offering_may_be_of_another_size_than_its_type() {
    let with = |available: bool| {
        let mut kind = (*instance_type("small", 2, 4, 0.1)).clone();
        let more: ResourceList = [(Name::Cpu, 8000)].into_iter().collect();
        let reserve: ResourceList = [(Name::Cpu, 1000)].into_iter().collect();
        kind.offerings.push(Offering {
            capacity_override: Some(Arc::new(more)),
            overhead_override: Some(Arc::new(reserve)),
            available,
            ..kind.offerings[0].clone()
        });
        let mut pool = pool("p", json!({}));
        pool.instance_types = [Arc::new(kind)].into();
        pool
    };
    let placed = |pool: NodePoolInput, cpu: &str, spec: serde_json::Value| {
        solve(&snapshot(vec![pool], vec![pod("a", cpu, spec)])).errors.is_empty()
    };
    assert!(placed(with(true), "7", json!({})) && !placed(with(true), "7500m", json!({})));
    assert!(placed(with(false), "2", json!({})) && !placed(with(false), "3", json!({})));
    // What is large enough must also be where the pod may go.
    let elsewhere = json!({"nodeSelector": {"topology.kubernetes.io/zone": "b"}});
    assert!(!placed(with(true), "7", elsewhere.clone()) && placed(with(true), "2", elsewhere));
}

#[test]
fn existing_nodes_are_used_before_new_ones() {
    let node = serde_json::from_value(json!({
        "metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1"}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}}}))
    .unwrap();
    let mut input = snapshot(
        vec![pool("p", json!({}))],
        vec![pod("a", "3", json!({})), pod("b", "3", json!({}))],
    );
    input.nodes = vec![NodeView { node: Some(Arc::new(node)), ..NodeView::default() }.into()];
    let results = solve(&input);
    assert_eq!(results.existing.len(), 1);
    assert_eq!(results.new_claims.len(), 1);
}

#[test]
fn preferences_are_relaxed_only_when_they_cannot_be_met() {
    let prefer = |zone: &str| {
        json!({"affinity": {"nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference":
                {"matchExpressions": [{"key": labels::ZONE, "operator": "In", "values": [zone]}]}}]}}})
    };
    let input = snapshot(vec![pool("p", json!({}))], vec![pod("a", "1", prefer("b"))]);
    let claim = &solve(&input).new_claims[0];
    assert_eq!(claim.requirements.get(labels::ZONE).unwrap().single(), Some("b"));
    let input = snapshot(vec![pool("p", json!({}))], vec![pod("a", "1", prefer("nowhere"))]);
    assert_eq!(solve(&input).new_claims.len(), 1);
}

#[test]
fn refusals_say_why() {
    let taint = json!({"template": {"spec": {"taints": [
        {"key": "team", "value": "x", "effect": "NoSchedule"}]}}});
    let results = solve(&snapshot(vec![pool("p", taint)], vec![pod("a", "1", json!({}))]));
    assert_eq!(results.errors[0].1.to_string(), "did not tolerate taint (taint=team=x:NoSchedule)");
    let results = solve(&snapshot(vec![pool("p", json!({}))], vec![pod("a", "100", json!({}))]));
    let text = results.errors[0].1.to_string();
    assert!(text.contains("no instance type has enough resources"), "{text}");
}

#[test]
fn daemons_take_their_share() {
    let mut input = snapshot(vec![pool("p", json!({}))], vec![pod("a", "1900m", json!({}))]);
    input.daemonset_pods = vec![pod("d", "500m", json!({}))];
    let results = solve(&input);
    let claim = &results.new_claims[0];
    assert_eq!(&*claim.instance_types[0].name, "medium");
    assert_eq!(claim.requests.get(&Name::Cpu), 2400);
    assert_eq!(claim.requests.get(&Name::Pods), 2);
}

#[test]
fn a_claim_object_carries_what_the_provider_needs() {
    let spec = json!({"template": {"metadata": {"labels": {"team": "x"}}, "spec": {
        "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "c"}}}});
    let results = solve(&snapshot(vec![pool("p", spec)], vec![pod("a", "1", json!({}))]));
    let claim = results.new_claims[0].to_node_claim();
    let labels_of = claim.metadata.labels.unwrap();
    assert_eq!(labels_of["team"], "x");
    assert_eq!(labels_of[labels::NODEPOOL], "p");
    assert_eq!(labels_of[labels::EC2NODECLASS], "c");
    assert_eq!(claim.metadata.generate_name.as_deref(), Some("p-"));
    let types = claim.spec.requirements.iter().find(|r| r.key == labels::INSTANCE_TYPE).unwrap();
    assert_eq!(types.values, ["large", "medium", "small"]);
    assert!(claim.spec.requirements.iter().all(|r| r.key != labels::HOSTNAME));
}

mod holding;
mod properties;
mod rules;
mod topology;
mod world;

#[test]
fn a_round_reports_how_many_pods_wait_and_may_be_stopped() {
    let pods: Vec<_> = (0..3).map(|i| pod(&format!("p{i}"), "1", json!({}))).collect();
    let snapshot = snapshot(vec![pool("p", json!({}))], pods);
    let reported = std::cell::RefCell::new(Vec::new());
    let results = solve_while(&snapshot, &|left| {
        reported.borrow_mut().push(left);
        left > 1
    });
    assert_eq!(*reported.borrow(), [3, 2, 1]);
    // The pod that was not reached is in no list.
    assert_eq!(results.new_claims[0].pods.len(), 2);
    assert!(results.errors.is_empty());
}

#[test]
fn limits_and_relaxations_are_reported() {
    let gone = json!({"affinity": {"nodeAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": {
            "matchExpressions": [{"key": "topology.kubernetes.io/zone", "operator": "In",
                "values": ["gone"]}]}}]}}});
    let pods = vec![pod("a", "1", gone), pod("b", "1", json!({}))];
    let limited = pool("p", json!({"limits": {"cpu": "9"}}));
    let mut snapshot = snapshot(vec![limited], pods);
    let results = solve(&snapshot);
    let limit =
        crate::scheduling::results::LimitedPool { name: "p".to_owned(), excluded: 1, total: 3 };
    assert_eq!(results.limited_pools, [limit]);
    assert!(results.relaxed.is_empty());
    snapshot.options.report_relaxations = true;
    let results = solve(&snapshot);
    assert_eq!(results.relaxed.len(), 1);
    let (key, steps) = &results.relaxed[0];
    assert_eq!(key.to_string(), "n/a");
    assert_eq!(
        steps[0],
        "removing: spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0]={\"weight\":1,\"preference\":{\"matchExpressions\":[{\"key\":\"topology.kubernetes.io/zone\",\"operator\":\"In\",\"values\":[\"gone\"]}]}}"
    );
}

#[test]
fn pods_that_must_share_a_host_start_on_one_with_room_for_all() {
    let node = serde_json::from_value(json!({
        "metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1"}},
        "status": {"allocatable": {"cpu": "1", "memory": "8Gi", "pods": "10"}}}))
    .unwrap();
    let near = json!({"affinity": {"podAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{
            "topologyKey": "kubernetes.io/hostname", "labelSelector": {}}]}}});
    let pods = (0..3).map(|i| pod(&format!("p{i}"), "1", near.clone())).collect();
    let mut input = snapshot(vec![pool("p", json!({}))], pods);
    input.nodes = vec![NodeView { node: Some(Arc::new(node)), ..NodeView::default() }.into()];
    let results = solve(&input);
    // Upstream puts the first on the node that is there, and leaves the others.
    assert_eq!(results.errors.len(), 0);
    assert_eq!(results.new_claims[0].pods.len(), 3);
}
