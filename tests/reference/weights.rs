//! Of two results, which keeps more of what comes before the price.

use serde_json::{Value, json};

use super::reference::check::World;
use super::reference::model::Document;
use super::reference::outcome::Outcome;
use super::reference::standing::Standing;

fn pod(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["containers"] = json!([{"name": "app", "image": "app"}]);
    json!({"metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}}, "spec": spec})
}

fn node(zone: &str, pods: Value) -> Value {
    json!({"node": {
        "metadata": {"name": format!("node-{zone}"), "labels": {"topology.kubernetes.io/zone": zone}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}},
    }, "pods": pods})
}

/// A pod that would rather be with `web`, of which zone a has one.
fn scenario() -> Document {
    let near = json!([{"weight": 1, "podAffinityTerm": {
        "topologyKey": "topology.kubernetes.io/zone",
        "labelSelector": {"matchLabels": {"app": "web"}}}}]);
    let wish = json!({"affinity": {"podAffinity":
        {"preferredDuringSchedulingIgnoredDuringExecution": near}}});
    let pool = |name: &str, weight: i32| {
        json!({"metadata": {"name": name}, "spec": {"weight": weight, "template": {"spec": {
            "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"},
            "requirements": []}}}})
    };
    Document::read(json!({
        "nodePools": [pool("light", 1), pool("heavy", 2)],
        "instanceTypes": [{"name": "c.2", "requirements": [], "capacity": {"cpu": "2", "memory": "4Gi", "pods": "10"},
            "offerings": [{"zone": "b", "capacityType": "spot", "price": 0.1, "available": true}]}],
        "nodes": [node("a", json!([pod("first", json!({"nodeName": "node-a"}))])), node("b", json!([]))],
        "pods": [pod("second", wish)],
    }))
}

fn standing(outcome: Value) -> Standing {
    let (doc, outcome) = (scenario(), Outcome::read(outcome));
    Standing::of(&World::new(&doc, &outcome))
}

fn on_node(name: &str) -> Standing {
    standing(json!({"nodeClaims": [], "unschedulable": [], "totalPrice": 0.0,
        "existingNodes": [{"name": name, "pods": ["default/second"]}]}))
}

fn from_pool(name: &str) -> Standing {
    standing(json!({"existingNodes": [], "unschedulable": [], "totalPrice": 0.1,
        "nodeClaims": [{"nodePool": name, "requirements": [], "requests": {}, "pods": ["default/second"],
            "instanceTypes": ["c.2"], "cheapest": null}]}))
}

#[test]
fn an_unmet_preference_is_worse_and_so_is_a_lighter_pool() {
    assert!(on_node("node-a") < on_node("node-b"));
    assert!(on_node("node-b") < from_pool("heavy"), "a node that exists comes first");
    assert!(from_pool("heavy") < from_pool("light"));
}
