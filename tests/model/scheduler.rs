//! The scheduler of the model world, by Kubernetes' rules.

use karpenter::model::World;
use serde_json::{Value, json};

use crate::support::*;

fn one_node(w: &mut World) {
    w.apply(json!({ "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": "n", "labels": { "kubernetes.io/hostname": "n" } }, "spec": {} }));
    w.change("nodes", "", "n", "status", |node| {
        node["status"] = json!({
            "capacity": { "cpu": "16", "memory": "64Gi", "pods": "110" },
            "allocatable": { "cpu": "16", "memory": "64Gi", "pods": "110" },
            "conditions": [{ "type": "Ready", "status": "True" }] });
    });
    // The API server gives every new Node the taint of one that is not ready.
    w.change("nodes", "", "n", "", |node| node["spec"]["taints"] = json!([]));
}

/// A pod that keeps away from hosts with pods that a term selects.
fn pod(w: &World, namespace: &str, name: &str, labels: Value, term: Value) {
    let mut term = term;
    let mut spec = json!({ "containers": [{ "name": "c", "image": "image" }] });
    if !term.is_null() {
        term["topologyKey"] = json!("kubernetes.io/hostname");
        spec["affinity"] = json!({ "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [term] } });
    }
    w.apply(json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "labels": labels }, "spec": spec }));
}

fn bound(w: &World) -> Vec<String> {
    let pods = w.all("pods");
    let bound = pods.iter().filter(|p| p["spec"]["nodeName"].is_string());
    let mut names: Vec<String> =
        bound.map(|p| p["metadata"]["name"].as_str().unwrap_or_default().to_owned()).collect();
    names.sort();
    names
}

#[test]
fn match_label_keys_keep_pods_of_one_revision_apart_only() {
    scenario(async |w| {
        one_node(w);
        let term = json!({ "labelSelector": { "matchLabels": { "app": "x" } },
            "matchLabelKeys": ["revision"] });
        for (name, revision) in [("a", "1"), ("b", "2"), ("c", "1")] {
            let labels = json!({ "app": "x", "revision": revision });
            pod(w, "default", name, labels, term.clone());
            w.pass(MINUTE).await;
        }
        assert_eq!(bound(w), ["a", "b"]);
    });
}

#[test]
fn a_namespace_selector_names_the_namespaces_that_a_term_is_about() {
    scenario(async |w| {
        one_node(w);
        for team in ["red", "blue"] {
            w.apply(json!({ "apiVersion": "v1", "kind": "Namespace",
                "metadata": { "name": team, "labels": { "team": team } } }));
        }
        pod(w, "red", "present", json!({ "app": "x" }), Value::Null);
        w.pass(MINUTE).await;
        let away_from = |team: &str| {
            json!({ "labelSelector": { "matchLabels": { "app": "x" } },
                "namespaceSelector": { "matchLabels": { "team": team } } })
        };
        pod(w, "default", "free", json!({}), away_from("blue"));
        pod(w, "default", "kept-away", json!({}), away_from("red"));
        w.pass(MINUTE).await;
        assert_eq!(bound(w), ["free", "present"]);
    });
}
