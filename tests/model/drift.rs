//! Nodes that are not as they should be are replaced.

use karpenter::model::World;
use karpenter::operator::metrics;
use serde_json::json;

use crate::support::*;

#[test]
fn a_change_of_the_pools_template_replaces_its_nodes() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 2, "1", |_| ()));
        runs(w, "web", 2).await;
        w.pass(MINUTE).await;
        w.change("nodepools", "", "default", "", |p| {
            p["spec"]["template"]["metadata"] = json!({ "labels": { "team": "blue" } });
        });
        until(w, HOUR, "all nodes have the label", |w| {
            let nodes = w.all("nodes");
            w.running("web") == 2
                && !nodes.is_empty()
                && nodes.iter().all(|n| n["metadata"]["labels"]["team"] == "blue")
        })
        .await;
    });
}

/// Starts with one node, which the provider calls drifted, until another has its place.
async fn one_drifts_and_is_replaced(w: &mut World) {
    w.start();
    w.apply(deployment("web", 1, "1", |_| ()));
    runs(w, "web", 1).await;
    w.pass(2 * MINUTE).await;
    let claim = w.names("nodeclaims").remove(0);
    w.cloud.drift(&claim, "AMIDrift");
    until(w, HOUR, "another claim", |w| {
        w.running("web") == 1 && !w.names("nodeclaims").contains(&claim)
    })
    .await;
}

#[test]
fn an_instance_that_the_provider_calls_drifted_is_replaced() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        one_drifts_and_is_replaced(w).await;
    });
}

#[test]
fn drift_waits_for_a_budget_that_says_so() {
    scenario(async |w| {
        w.apply(calm("default", |spec| {
            spec["disruption"]["budgets"] = json!([{ "nodes": "0", "reasons": ["Drifted"] }]);
        }));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        w.pass(2 * MINUTE).await;
        let claim = w.names("nodeclaims").remove(0);
        w.cloud.drift(&claim, "AMIDrift");
        always(w, 10 * MINUTE, "it stays", |w| w.names("nodeclaims").contains(&claim)).await;
        let claims = w.all("nodeclaims");
        assert_eq!(condition(&claims[0], "Drifted"), Some("True"));
    });
}

#[test]
fn requirements_that_a_node_no_longer_meets_are_drift() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        w.pass(2 * MINUTE).await;
        assert_eq!(types(w), ["c2"]);
        w.change("nodepools", "", "default", "", |p| {
            p["spec"]["template"]["spec"]["requirements"].as_array_mut().unwrap().push(json!({
                "key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["c4"] }));
        });
        until(w, HOUR, "another type", |w| w.running("web") == 1 && types(w) == ["c4"]).await;
    });
}

#[test]
fn drifted_nodes_go_one_after_the_other_within_the_budget() {
    scenario(async |w| {
        w.apply(calm("default", |spec| {
            spec["disruption"]["budgets"] = json!([{ "nodes": "1" }]);
        }));
        w.start();
        w.apply(deployment("web", 4, "1", |t| {
            t["spec"]["affinity"] = json!({ "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [{
                    "topologyKey": "kubernetes.io/hostname",
                    "labelSelector": { "matchLabels": { "app": "web" } } }] } });
        }));
        runs(w, "web", 4).await;
        until(w, 5 * MINUTE, "four are usable", |w| usable(w) == 4).await;
        w.change("nodepools", "", "default", "", |p| {
            p["spec"]["template"]["metadata"] = json!({ "labels": { "team": "blue" } });
        });
        always(w, 5 * MINUTE, "three are always usable", |w| usable(w) >= 3).await;
        until(w, 2 * HOUR, "all are new", |w| {
            let nodes = w.all("nodes");
            nodes.len() == 4 && nodes.iter().all(|n| n["metadata"]["labels"]["team"] == "blue")
        })
        .await;
    });
}

/// How many NodeClaims of a pool the metric says were disrupted.
fn disrupted(pool: &str) -> f64 {
    let mut page = String::new();
    metrics::render_into(&mut |piece| {
        page.push_str(&piece);
        true
    });
    page.lines()
        .filter(|line| line.starts_with("karpenter_nodeclaims_disrupted_total{"))
        .filter(|line| line.contains(&format!("nodepool=\"{pool}\"")))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

#[test]
fn a_deletion_is_counted_once_although_the_watch_is_late() {
    scenario(async |w| {
        w.apply(calm("late-claims", |_| ()));
        w.server.set_faults(LateWatch("nodeclaims"));
        one_drifts_and_is_replaced(w).await;
        w.pass(MINUTE).await;
        assert_eq!(disrupted("late-claims"), 1.0, "{}", tail(w));
    });
}
