//! Nodes that have lived long enough, and what may delay their end.

use karpenter::model::World;
use serde_json::{Value, json};

use crate::support::*;

fn expiring(after: &str, grace: Option<&str>) -> Value {
    calm("default", |spec| {
        spec["template"]["spec"]["expireAfter"] = json!(after);
        if let Some(grace) = grace {
            spec["template"]["spec"]["terminationGracePeriod"] = json!(grace);
        }
    })
}

/// One pod on a node that expires; returns the node.
async fn one(w: &mut World, pool: Value, change: impl FnOnce(&mut Value)) -> String {
    w.apply(pool);
    w.start();
    w.apply(deployment("web", 1, "1", change));
    runs(w, "web", 1).await;
    node_of(w, "web")
}

#[test]
fn an_expired_node_waits_for_pods_that_must_not_be_disrupted() {
    scenario(async |w| {
        let node = one(w, expiring("20m", None), protected).await;
        always(w, 2 * HOUR, "the pod stays", |w| w.names("nodes").contains(&node)).await;
        let claims = w.all("nodeclaims");
        assert!(claims.iter().any(|c| c["metadata"]["deletionTimestamp"].is_string()));
    });
}

#[test]
fn an_expired_node_with_a_grace_period_goes_when_that_ends() {
    scenario(async |w| {
        let node = one(w, expiring("20m", Some("30m")), protected).await;
        always(w, 45 * MINUTE, "it stays", |w| w.names("nodes").contains(&node)).await;
        until(w, 20 * MINUTE, "it goes", |w| !w.names("nodes").contains(&node)).await;
        until(w, 10 * MINUTE, "the pod runs elsewhere", |w| w.running("web") == 1).await;
    });
}

#[test]
fn expiry_needs_no_budget() {
    scenario(async |w| {
        let mut pool = expiring("20m", None);
        pool["spec"]["disruption"]["budgets"] = json!([{ "nodes": "0" }]);
        let node = one(w, pool, |_| ()).await;
        until(w, 30 * MINUTE, "it goes", |w| !w.names("nodes").contains(&node)).await;
        runs(w, "web", 1).await;
    });
}

#[test]
fn an_annotated_node_expires_all_the_same() {
    scenario(async |w| {
        let node = one(w, expiring("20m", None), |_| ()).await;
        w.change("nodes", "", &node, "", |n| {
            n["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] = json!("true");
        });
        until(w, 30 * MINUTE, "it goes", |w| !w.names("nodes").contains(&node)).await;
    });
}

#[test]
fn a_new_node_is_launched_while_the_expired_one_drains() {
    scenario(async |w| {
        let node = one(w, expiring("20m", None), |t| {
            t["metadata"]["annotations"]["model.karpenter.sh/ends-in"] = json!("600");
            t["spec"]["terminationGracePeriodSeconds"] = json!(900);
        })
        .await;
        until(w, 30 * MINUTE, "two nodes", |w| w.instances().len() == 2).await;
        assert!(w.names("nodes").contains(&node));
        until(w, 20 * MINUTE, "one", |w| w.instances().len() == 1 && w.running("web") == 1).await;
    });
}

#[test]
fn many_nodes_that_expire_together_are_all_replaced() {
    scenario(async |w| {
        w.apply(expiring("20m", None));
        w.start();
        w.apply(deployment("web", 8, "1", apart("web")));
        runs(w, "web", 8).await;
        let first = w.names("nodes");
        assert_eq!(first.len(), 8);
        until(w, HOUR, "eight new ones", |w| {
            w.running("web") == 8 && w.names("nodes").iter().all(|n| !first.contains(n))
        })
        .await;
    });
}

#[test]
fn killed_when_a_node_expires_it_expires_after_the_restart() {
    scenario(async |w| {
        let node = one(w, expiring("20m", None), |_| ()).await;
        w.pass(10 * MINUTE).await;
        w.kill().await;
        w.pass(HOUR).await;
        assert!(w.names("nodes").contains(&node));
        w.start();
        until(w, 10 * MINUTE, "it goes", |w| !w.names("nodes").contains(&node)).await;
        runs(w, "web", 1).await;
    });
}

#[test]
fn a_change_of_expire_after_does_not_touch_nodes_that_are_there() {
    scenario(async |w| {
        let node = one(w, expiring("Never", None), |_| ()).await;
        w.change("nodepools", "", "default", "", |p| {
            p["spec"]["disruption"]["budgets"] = json!([{ "nodes": "0" }]);
            p["spec"]["template"]["spec"]["expireAfter"] = json!("5m");
        });
        always(w, HOUR, "it stays", |w| w.names("nodes").contains(&node)).await;
    });
}
