use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::api::labels;
use crate::scheduling::instance_type::{InstanceType, Offering, Overhead};
use crate::scheduling::node::{NodeView, StateNode};
use crate::scheduling::pod::PodInfo;
use crate::scheduling::requirements::Requirement;
use crate::scheduling::resources::Name;
use crate::scheduling::snapshot::NodePoolInput;

fn kind(name: &str, cpu: i64, price: f64) -> Arc<InstanceType> {
    let on_demand = labels::CAPACITY_ON_DEMAND;
    Arc::new(InstanceType {
        name: Arc::from(name),
        requirements: [
            Requirement::is(labels::INSTANCE_TYPE, name),
            Requirement::is(labels::ZONE, "a"),
            Requirement::is(labels::CAPACITY_TYPE, on_demand),
        ]
        .into_iter()
        .collect(),
        offerings: vec![Offering {
            requirements: [
                Requirement::is(labels::ZONE, "a"),
                Requirement::is(labels::CAPACITY_TYPE, on_demand),
            ]
            .into_iter()
            .collect(),
            price,
            available: true,
            ..Offering::default()
        }],
        capacity: [(Name::Cpu, cpu * 1000), (Name::Memory, cpu << 32), (Name::Pods, 20)]
            .into_iter()
            .collect(),
        overhead: Overhead::default(),
        ..InstanceType::default()
    })
}

fn pod(name: &str, cpu: &str) -> Arc<PodInfo> {
    Arc::new(PodInfo::from_pod(
        &serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n", "uid": name},
            "spec": {"nodeName": "x",
                "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
            "status": {"phase": "Running"}}))
        .unwrap(),
    ))
}

fn node(name: &str, kind: &str, cpu: &str, conditions: &[&str], pods: &[&str]) -> StateNode {
    let on_demand = labels::CAPACITY_ON_DEMAND;
    let labels = json!({labels::INSTANCE_TYPE: kind, labels::ZONE: "a",
        labels::CAPACITY_TYPE: on_demand, labels::NODEPOOL: "p",
        labels::REGISTERED: "true", labels::INITIALIZED: "true"});
    let amounts = json!({"cpu": cpu, "memory": "64Gi", "pods": "20"});
    let conditions: Vec<Value> = conditions
        .iter()
        .chain(&["Initialized"])
        .map(|c| {
            json!({"type": c, "status": "True", "reason": c, "message": "",
                "lastTransitionTime": "1970-01-01T00:00:00Z"})
        })
        .collect();
    let id = format!("aws:///a/{name}");
    let view = NodeView {
        node: Some(Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": labels},
                "spec": {"providerID": id}, "status": {"capacity": amounts, "allocatable": amounts,
                "conditions": [{"type": "Ready", "status": "True"}]}}))
            .unwrap(),
        )),
        node_claim: Some(Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": labels},
                "spec": {}, "status": {"providerID": id, "conditions": conditions}}))
            .unwrap(),
        )),
        pods: pods.iter().enumerate().map(|(i, cpu)| pod(&format!("{name}-{i}"), cpu)).collect(),
        ..NodeView::default()
    };
    view.into()
}

fn snapshot(disruption: Value, nodes: Vec<StateNode>) -> Snapshot {
    Snapshot {
        node_pools: vec![NodePoolInput {
            node_pool: Arc::new(crate::api::v1::NodePool::new(
                "p",
                serde_json::from_value(json!({"disruption": disruption})).unwrap(),
            )),
            instance_types: [kind("small", 2, 0.1), kind("medium", 4, 0.2), kind("large", 16, 0.8)]
                .into(),
        }],
        nodes,
        ..Snapshot::default()
    }
}

fn run(snapshot: &Snapshot, method: Method) -> Decision {
    let queued = HashSet::new();
    let now = Timestamp::from_second(3600).unwrap();
    let input = Input { snapshot, pdbs: &[], now, queued: &queued, spot_to_spot: false };
    decide(&input, method, &|| true)
}

fn names(decision: &Decision) -> Vec<&str> {
    decision.command.iter().flat_map(|c| &c.candidates).map(|c| c.node.name()).collect()
}

const ALL: &[&str] = &["Consolidatable"];

#[test]
fn empty_nodes_go_within_their_budget() {
    let nodes = || {
        vec![
            node("a", "small", "2", ALL, &[]),
            node("b", "small", "2", ALL, &[]),
            node("c", "small", "2", ALL, &["1"]),
            node("d", "small", "2", &[], &[]),
        ]
    };
    let all = json!({"budgets": [{"nodes": "100%"}]});
    let decision = run(&snapshot(all, nodes()), Method::Emptiness);
    assert_eq!(names(&decision), ["a", "b"]);
    assert!((decision.command.unwrap().savings - 0.2).abs() < 1e-9);
    let one = json!({"budgets": [{"nodes": "10%"}]});
    let decision = run(&snapshot(one, nodes()), Method::Emptiness);
    assert_eq!(names(&decision), ["a"]);
    assert!(decision.constrained);
    let never = json!({"consolidateAfter": "Never"});
    assert!(run(&snapshot(never, nodes()), Method::Emptiness).command.is_none());
}

#[test]
fn a_node_whose_pods_fit_elsewhere_is_deleted() {
    let nodes =
        vec![node("big", "large", "16", ALL, &["1"]), node("rest", "medium", "4", ALL, &["1"])];
    let decision = run(&snapshot(json!({}), nodes), Method::SingleNode);
    assert_eq!(names(&decision), ["big"], "its savings are the greatest");
    assert_eq!(decision.command.unwrap().decision(), "delete");
}

#[test]
fn a_large_node_is_replaced_with_a_cheaper_one() {
    let nodes = vec![node("big", "large", "16", ALL, &["1"])];
    let decision = run(&snapshot(json!({}), nodes), Method::SingleNode);
    let command = decision.command.unwrap();
    assert_eq!(command.decision(), "replace");
    let types: Vec<&str> =
        command.replacements[0].instance_types.iter().map(|t| &*t.name).collect();
    assert_eq!(types, ["small", "medium"]);
    assert!((command.savings - 0.7).abs() < 1e-9);
}

#[test]
fn an_estimated_price_never_justifies_a_replacement() {
    let estimated = |wanted: &'static [&'static str]| {
        let nodes = vec![node("big", "large", "16", ALL, &["1"])];
        let mut snapshot = snapshot(json!({}), nodes);
        let types = snapshot.node_pools[0].instance_types.iter().map(|kind| {
            let mut kind = (**kind).clone();
            kind.offerings[0].price_estimated = wanted.contains(&&*kind.name);
            Arc::new(kind)
        });
        snapshot.node_pools[0].instance_types = types.collect();
        run(&snapshot, Method::SingleNode)
    };
    let types = |decision: Decision| -> Vec<String> {
        let mut command = decision.command.unwrap();
        command.replacements.remove(0).instance_types.iter().map(|t| t.name.to_string()).collect()
    };
    assert_eq!(types(estimated(&["small"])), ["medium"]);
    let decision = estimated(&["small", "medium"]);
    assert!(decision.command.is_none());
    assert_eq!(decision.rejected["big"], "Can't replace with a cheaper node");
    let decision = estimated(&["large"]);
    assert!(decision.command.is_none(), "what the node costs is not known either");
    assert!(decision.rejected["big"].ends_with("the price of large is estimated"));
}

#[test]
fn several_nodes_become_one() {
    let nodes = (0..4).map(|i| node(&format!("n{i}"), "medium", "4", ALL, &["900m"])).collect();
    let budget = json!({"budgets": [{"nodes": "100%"}]});
    let decision = run(&snapshot(budget, nodes), Method::MultiNode);
    let command = decision.command.unwrap();
    assert_eq!(command.candidates.len(), 3);
    assert!(command.replacements.is_empty(), "three fit on the fourth");
}

#[test]
fn a_protected_pod_keeps_its_node() {
    let mut busy = node("busy", "large", "16", ALL, &["1"]);
    let mut guarded = (*busy.pods[0]).clone();
    guarded.do_not_disrupt = Some("true".into());
    busy.pods = vec![Arc::new(guarded)];
    let decision = run(&snapshot(json!({}), vec![busy]), Method::SingleNode);
    assert!(decision.command.is_none());
    assert!(decision.rejected["busy"].contains("do-not-disrupt"), "{:?}", decision.rejected);
}

#[test]
fn a_drifted_node_is_replaced_whatever_that_costs() {
    let nodes = vec![node("old", "small", "2", &["Drifted"], &["1"])];
    let decision = run(&snapshot(json!({}), nodes), Method::Drift);
    let command = decision.command.unwrap();
    assert_eq!((command.reason, command.replacements.len()), (Reason::Drifted, 1));
    let text = command.describe("id");
    assert!(text.starts_with("Drifted/id: replace: nodepools=[p]: [old] -> [1 replacement]"));
}

#[test]
fn a_command_that_no_longer_holds_is_dropped() {
    let snap = snapshot(json!({}), vec![node("a", "small", "2", ALL, &[])]);
    let command = run(&snap, Method::Emptiness).command.unwrap();
    let queued = HashSet::new();
    let now = Timestamp::from_second(3600).unwrap();
    let check = |snapshot: &Snapshot| {
        let input = Input { snapshot, pdbs: &[], now, queued: &queued, spot_to_spot: false };
        still_valid(&input, &command).map(|c| c.candidates.len())
    };
    assert_eq!(check(&snap), Ok(1));
    let busy = snapshot(json!({}), vec![node("a", "small", "2", ALL, &["1"])]);
    assert_eq!(check(&busy), Err("churn"));
}
