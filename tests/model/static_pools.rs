//! Static pools keep a number of nodes, whatever waits.

use karpenter::model::World;
use serde_json::{Value, json};

use crate::support::*;

const GATE: &str = "StaticCapacity";

fn fixed(replicas: u32, change: impl FnOnce(&mut Value)) -> Value {
    pool("static", |spec| {
        spec["replicas"] = json!(replicas);
        only_types(spec, &["c2"]);
        change(spec);
    })
}

#[test]
fn a_static_pool_follows_its_replicas() {
    gated(GATE, async |w| {
        w.apply(fixed(2, |_| ()));
        w.start();
        until(w, 10 * MINUTE, "two", |w| usable(w) == 2).await;
        w.change("nodepools", "", "static", "", |p| p["spec"]["replicas"] = json!(5));
        until(w, 10 * MINUTE, "five", |w| usable(w) == 5).await;
        w.change("nodepools", "", "static", "", |p| p["spec"]["replicas"] = json!(0));
        until(w, 20 * MINUTE, "none", |w| w.instances().is_empty()).await;
    });
}

#[test]
fn empty_nodes_of_a_static_pool_stay() {
    gated(GATE, async |w| {
        w.apply(fixed(3, |_| ()));
        w.start();
        until(w, 10 * MINUTE, "three", |w| usable(w) == 3).await;
        let names = w.names("nodeclaims");
        always(w, HOUR, "the same three", |w| w.names("nodeclaims") == names).await;
    });
}

#[test]
fn pods_that_wait_get_no_node_of_a_static_pool() {
    gated(GATE, async |w| {
        w.apply(fixed(1, |_| ()));
        w.start();
        until(w, 10 * MINUTE, "one", |w| usable(w) == 1).await;
        w.apply(deployment("web", 8, "1", |_| ()));
        always(w, 10 * MINUTE, "still one", |w| w.instances().len() == 1).await;
        assert!(w.running("web") >= 1, "its room is used");
    });
}

#[test]
fn the_nodes_that_go_first_are_those_without_pods() {
    gated(GATE, async |w| {
        w.apply(fixed(3, |_| ()));
        w.start();
        until(w, 10 * MINUTE, "three", |w| usable(w) == 3).await;
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        let node = node_of(w, "web");
        w.change("nodepools", "", "static", "", |p| p["spec"]["replicas"] = json!(1));
        until(w, 20 * MINUTE, "one", |w| w.names("nodes").len() == 1).await;
        assert_eq!(w.names("nodes"), [node]);
        assert_eq!(w.running("web"), 1);
    });
}

#[test]
fn a_static_pool_never_has_more_nodes_than_its_limit() {
    gated(GATE, async |w| {
        w.apply(fixed(6, |spec| spec["limits"] = json!({ "nodes": "4" })));
        w.start();
        until(w, 10 * MINUTE, "four", |w| usable(w) == 4).await;
        always(w, 20 * MINUTE, "no more", |w| w.cloud.instances().len() <= 4).await;
    });
}

#[test]
fn a_deleted_claim_of_a_static_pool_is_made_again() {
    gated(GATE, async |w| {
        w.apply(fixed(2, |_| ()));
        w.start();
        until(w, 10 * MINUTE, "two", |w| usable(w) == 2).await;
        let first = w.names("nodeclaims").remove(0);
        w.delete("nodeclaims", &first);
        until(w, 10 * MINUTE, "two again", |w| {
            usable(w) == 2 && !w.names("nodeclaims").contains(&first)
        })
        .await;
    });
}

#[test]
fn drifted_nodes_of_a_static_pool_are_replaced_one_for_one() {
    gated(GATE, async |w| {
        w.apply(fixed(3, |spec| {
            spec["disruption"]["budgets"] = json!([{ "nodes": "1" }]);
        }));
        w.start();
        until(w, 10 * MINUTE, "three", |w| usable(w) == 3).await;
        w.change("nodepools", "", "static", "", |p| {
            p["spec"]["template"]["metadata"] = json!({ "labels": { "team": "blue" } });
        });
        let ready = |w: &World| {
            let stands = |n: &&std::sync::Arc<Value>| {
                condition(n, "Ready") == Some("True")
                    && n["metadata"]["deletionTimestamp"].is_null()
            };
            w.all("nodes").iter().filter(stands).count()
        };
        always(w, HOUR, "three always stand", |w| ready(w) >= 3).await;
        let nodes = w.all("nodes");
        assert_eq!(nodes.len(), 3);
        assert!(nodes.iter().all(|n| n["metadata"]["labels"]["team"] == "blue"), "{}", tail(w));
    });
}

#[test]
fn drift_of_a_static_pool_waits_for_room_below_the_limit() {
    gated(GATE, async |w| {
        w.apply(fixed(2, |spec| spec["limits"] = json!({ "nodes": "2" })));
        w.start();
        until(w, 10 * MINUTE, "two", |w| usable(w) == 2).await;
        w.change("nodepools", "", "static", "", |p| {
            p["spec"]["template"]["metadata"] = json!({ "labels": { "team": "blue" } });
        });
        always(w, 15 * MINUTE, "never more than two", |w| w.cloud.instances().len() <= 2).await;
        w.change("nodepools", "", "static", "", |p| p["spec"]["limits"] = json!({ "nodes": "3" }));
        until(w, HOUR, "all are new", |w| {
            let nodes = w.all("nodes");
            nodes.len() == 2 && nodes.iter().all(|n| n["metadata"]["labels"]["team"] == "blue")
        })
        .await;
    });
}

#[test]
fn a_static_pool_whose_launches_fail_comes_up_later() {
    gated(GATE, async |w| {
        w.apply(fixed(2, |_| ()));
        sell_out(w, &["c2"], Some(0));
        w.start();
        w.pass(20 * MINUTE).await;
        assert!(w.instances().is_empty());
        assert!(w.names("nodeclaims").len() <= 2, "no heap of claims");
        sell_out(w, &["c2"], None);
        until(w, 20 * MINUTE, "two", |w| usable(w) == 2).await;
        always(w, 10 * MINUTE, "two instances", |w| w.cloud.instances().len() == 2).await;
    });
}

#[test]
fn an_expired_node_of_a_static_pool_is_replaced() {
    gated(GATE, async |w| {
        w.apply(fixed(2, |spec| spec["template"]["spec"]["expireAfter"] = json!("40m")));
        w.start();
        until(w, 10 * MINUTE, "two", |w| usable(w) == 2).await;
        let first = w.names("nodeclaims");
        w.pass(HOUR).await;
        until(w, 20 * MINUTE, "two new ones", |w| {
            usable(w) == 2 && w.names("nodeclaims").iter().all(|n| !first.contains(n))
        })
        .await;
    });
}

#[test]
fn killed_while_a_static_pool_grows_it_has_no_node_too_many() {
    gated(GATE, async |w| {
        w.apply(fixed(4, |_| ()));
        w.start();
        until(w, 10 * MINUTE, "claims are made", |w| !w.names("nodeclaims").is_empty()).await;
        w.kill().await;
        w.pass(MINUTE).await;
        w.start();
        always(w, 15 * MINUTE, "at most four", |w| w.cloud.instances().len() <= 4).await;
        assert_eq!(usable(w), 4, "{}", tail(w));
    });
}
