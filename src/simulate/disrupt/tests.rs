use serde_json::{Value, json};

use super::*;
use crate::simulate::load;

mod rest;

fn kind(name: &str, cpu: &str, price: f64) -> Value {
    json!({"name": name, "capacity": {"cpu": cpu, "memory": "64Gi", "pods": "50"},
        "requirements": [],
        "offerings": [{"zone": "a", "capacityType": "on-demand", "price": price}]})
}

fn pod(name: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "n"},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})
}

fn node(name: &str, kind: &str, cpu: &str, pods: &[&str]) -> Value {
    let pods: Vec<Value> = pods
        .iter()
        .enumerate()
        .map(|(at, cpu)| {
            let mut pod = pod(&format!("{name}-{at}"), cpu);
            pod["status"] = json!({"phase": "Running"});
            pod
        })
        .collect();
    json!({"pods": pods, "node": {"metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": "a",
            "node.kubernetes.io/instance-type": kind, "karpenter.sh/nodepool": "p",
            "karpenter.sh/capacity-type": "on-demand", "karpenter.sh/registered": "true",
            "karpenter.sh/initialized": "true"}},
        "spec": {"providerID": format!("aws:///a/{name}")},
        "status": {"capacity": {"cpu": cpu, "memory": "64Gi", "pods": "50"},
            "allocatable": {"cpu": cpu, "memory": "64Gi", "pods": "50"},
            "conditions": [{"type": "Ready", "status": "True"}]}}})
}

fn document(nodes: &[Value], pods: &[Value]) -> Value {
    json!({"nodePools": [{"apiVersion": "karpenter.sh/v1", "kind": "NodePool",
            "metadata": {"name": "p"}, "spec": {
                "disruption": {"consolidateAfter": "0s", "budgets": [{"nodes": "100%"}]},
                "template": {"spec": {"requirements": [], "nodeClassRef":
                    {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "d"}}}}}],
        "instanceTypes": [kind("small", "2", 0.1), kind("medium", "4", 0.2), kind("large", "16", 0.8)],
        "nodes": nodes, "pods": pods})
}

fn world(document: &Value) -> World {
    World::for_disruption(load(document.to_string().as_bytes()).unwrap()).unwrap()
}

fn asked(document: &Value) -> DisruptReport {
    disrupt(world(document), Timestamp::from_second(3600).unwrap())
}

fn candidates(report: &DisruptReport) -> Vec<&str> {
    report.commands.iter().flat_map(|c| &c.candidates).map(String::as_str).collect()
}

fn code<'a>(report: &'a DisruptReport, node: &str, method: &str) -> &'a str {
    let node = report.rejected.iter().find(|r| r.node == node).unwrap();
    node.methods.iter().find(|m| m.method == method).unwrap().code
}

#[test]
fn a_node_that_a_waiting_pod_needs_is_not_disrupted() {
    let idle = node("idle", "medium", "4", &[]);
    assert_eq!(candidates(&asked(&document(std::slice::from_ref(&idle), &[]))), ["idle"]);
    let report = asked(&document(&[idle], &[pod("waits", "3")]));
    assert!(report.commands.is_empty(), "{report:?}");
    assert_eq!(code(&report, "idle", "Emptiness"), "nominated");
    assert_eq!((report.launched, report.unschedulable), (0, 0));
}

#[test]
fn nominated_and_marked_nodes_can_be_stated() {
    let mut nominated = node("a", "small", "2", &[]);
    nominated["nominated"] = json!(true);
    let mut marked = node("b", "small", "2", &[]);
    marked["markedForDeletion"] = json!(true);
    let report = asked(&document(&[nominated, marked, node("c", "small", "2", &[])], &[]));
    assert_eq!(candidates(&report), ["c"]);
    assert_eq!(code(&report, "a", "Emptiness"), "nominated");
    assert_eq!(code(&report, "b", "Emptiness"), "deleting");
}

#[test]
fn each_method_says_why_a_node_stays_and_what_it_costs() {
    let report = asked(&document(&[node("full", "small", "2", &["1500m"])], &[]));
    assert_eq!(code(&report, "full", "Emptiness"), "not_empty");
    assert_eq!(code(&report, "full", "Drift"), "not_drifted");
    assert_eq!(code(&report, "full", "SingleNodeConsolidation"), "not_cheaper");
    let node = &report.rejected[0];
    assert_eq!(node.reason, "Can't replace with a cheaper node");
    assert_eq!((node.price, node.disruption_cost), (Some(0.1), Some(2.0)));
    assert!(node.score.is_some());
    let budget = report.budgets.iter().find(|b| b.reason == "Empty").unwrap();
    assert_eq!((budget.nodes, budget.allowed, budget.disrupting), (1, Some(1), 0));
}

#[test]
fn a_node_without_a_node_claim_is_not_quietly_taken_for_consolidatable() {
    let report = asked(&document(&[node("bare", "small", "2", &[])], &[]));
    assert!(report.assumed[0].contains("\"bare\" has no NodeClaim"), "{:?}", report.assumed);
}

#[test]
fn pools_that_are_not_ready_and_static_ones_take_part() {
    let mut not_ready = document(&[node("idle", "small", "2", &[])], &[]);
    not_ready["nodePools"][0]["status"] = json!({"conditions": [{"type": "Ready",
        "status": "False", "reason": "NodeClassNotReady", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    assert_eq!(candidates(&asked(&not_ready)), ["idle"]);
    let mut fixed = document(&[node("idle", "small", "2", &[])], &[]);
    fixed["nodePools"][0]["spec"]["replicas"] = json!(1);
    let report = asked(&fixed);
    assert_eq!(code(&report, "idle", "Emptiness"), "static");
    assert_eq!(code(&report, "idle", "StaticDrift"), "not_drifted");
}

#[test]
fn a_budget_that_cannot_be_read_is_refused_by_its_place() {
    let mut broken = document(&[node("idle", "small", "2", &[])], &[]);
    broken["nodePools"][0]["spec"]["disruption"]["budgets"] =
        json!([{"nodes": "1", "schedule": "0 0 15W * *", "duration": "1h"}]);
    let refused = World::for_disruption(load(broken.to_string().as_bytes()).unwrap())
        .unwrap_err()
        .to_string();
    assert!(refused.contains("budgets[0].schedule") && refused.contains("15W"), "{refused}");
}

#[test]
fn the_whole_plan_goes_on_until_nothing_is_left_and_counts_money_and_evictions() {
    let nodes = [
        node("a", "large", "16", &["500m", "500m"]),
        node("b", "large", "16", &["1"]),
        node("c", "medium", "4", &[]),
    ];
    let report = all(world(&document(&nodes, &[])), Timestamp::from_second(3600).unwrap());
    let plan = report.plan.as_ref().unwrap();
    assert!(plan.at_rest, "{report:?}");
    assert_eq!((plan.nodes_before, plan.nodes_after), (3, 1));
    assert!((plan.price_before - 1.8).abs() < 1e-9);
    assert!((plan.price_after - 0.1).abs() < 1e-9, "two cores of pods fit a small node");
    let saved: f64 = report.commands.iter().map(|c| c.savings).sum();
    assert!((plan.price_before - plan.price_after - saved).abs() < 1e-9);
    let moved: usize = report.commands.iter().map(|c| c.evictions).sum();
    assert_eq!(plan.evictions, moved);
    assert!(moved >= 3);
    let shown = report.to_string();
    assert!(shown.contains("then at rest") && shown.contains("1.8000 -> 0.1000"), "{shown}");
}
