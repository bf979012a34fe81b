//! PodDisruptionBudgets of every kind, while nodes drain and while nodes are chosen.

use karpenter::model::World;
use serde_json::{Value, json};

use crate::support::*;

fn healthy(w: &World, app: &str) -> usize {
    w.pods_of(app).iter().filter(|p| condition(p, "Ready") == Some("True")).count()
}

/// Pods on one node, which is told to go.
async fn drained(w: &mut World, replicas: u32, budgets: &[Value]) -> String {
    w.apply(calm("default", |_| ()));
    w.start();
    w.apply(deployment("web", replicas, "1", |_| ()));
    for budget in budgets {
        w.apply(budget.clone());
    }
    runs(w, "web", replicas as usize).await;
    w.pass(MINUTE).await;
    let node = node_of(w, "web");
    delete_claim_of(w, &node);
    node
}

fn named(name: &str, mut budget: Value) -> Value {
    budget["metadata"]["name"] = json!(name);
    budget
}

#[test]
fn min_available_in_percent_is_kept_while_a_node_drains() {
    scenario(async |w| {
        let node = drained(w, 4, &[budget("web", "minAvailable", json!("50%"))]).await;
        always(w, 10 * MINUTE, "two are always healthy", |w| healthy(w, "web") >= 2).await;
        assert!(!w.names("nodes").contains(&node), "{}", tail(w));
        assert_eq!(w.running("web"), 4);
    });
}

#[test]
fn max_unavailable_in_percent_is_kept_while_a_node_drains() {
    scenario(async |w| {
        let node = drained(w, 4, &[budget("web", "maxUnavailable", json!("25%"))]).await;
        always(w, 10 * MINUTE, "three are always healthy", |w| healthy(w, "web") >= 3).await;
        assert!(!w.names("nodes").contains(&node), "{}", tail(w));
    });
}

#[test]
fn min_available_of_all_replicas_holds_the_drain() {
    scenario(async |w| {
        let node = drained(w, 3, &[budget("web", "minAvailable", json!(3))]).await;
        always(w, 20 * MINUTE, "all stay", |w| healthy(w, "web") == 3).await;
        assert!(w.names("nodes").contains(&node));
        // One more replica, and there is room for one to go.
        w.scale("web", 4);
        until(w, 20 * MINUTE, "it goes", |w| !w.names("nodes").contains(&node)).await;
    });
}

#[test]
fn a_hundred_percent_may_be_unavailable() {
    scenario(async |w| {
        let node = drained(w, 3, &[budget("web", "maxUnavailable", json!("100%"))]).await;
        until(w, 10 * MINUTE, "it goes", |w| !w.names("nodes").contains(&node)).await;
        runs(w, "web", 3).await;
    });
}

#[test]
fn a_pod_with_two_budgets_is_not_evicted() {
    scenario(async |w| {
        let two = [
            budget("web", "maxUnavailable", json!(1)),
            named("other", budget("web", "maxUnavailable", json!(1))),
        ];
        let node = drained(w, 2, &two).await;
        always(w, 20 * MINUTE, "both stay", |w| healthy(w, "web") == 2).await;
        w.delete("poddisruptionbudgets", "other");
        until(w, 20 * MINUTE, "it goes", |w| !w.names("nodes").contains(&node)).await;
    });
}

#[test]
fn a_budget_for_other_pods_holds_nothing() {
    scenario(async |w| {
        let node = drained(w, 2, &[budget("others", "maxUnavailable", json!(0))]).await;
        until(w, 10 * MINUTE, "it goes", |w| !w.names("nodes").contains(&node)).await;
    });
}

#[test]
fn a_budget_that_comes_in_the_middle_of_a_drain_is_kept() {
    scenario(async |w| {
        let node = drained(w, 6, &[budget("web", "maxUnavailable", json!(1))]).await;
        until(w, 10 * MINUTE, "one has gone", |w| {
            w.pods_of("web").iter().filter(|p| p["spec"]["nodeName"] == node.as_str()).count() < 6
        })
        .await;
        w.change("poddisruptionbudgets", "default", "web", "", |b| {
            b["spec"]["maxUnavailable"] = json!(0);
        });
        w.pass(2 * MINUTE).await;
        always(w, 20 * MINUTE, "the others stay", |w| healthy(w, "web") == 6).await;
        assert!(w.names("nodes").contains(&node));
    });
}

#[test]
fn pods_of_two_apps_drain_side_by_side_each_within_its_budget() {
    scenario(async |w| {
        w.apply(deployment("other", 3, "100m", |_| ()));
        w.apply(budget("other", "maxUnavailable", json!(1)));
        let node = drained(w, 3, &[budget("web", "maxUnavailable", json!(1))]).await;
        always(w, 10 * MINUTE, "two of each", |w| {
            healthy(w, "web") >= 2 && healthy(w, "other") >= 2
        })
        .await;
        assert!(!w.names("nodes").contains(&node), "{}", tail(w));
    });
}

#[test]
fn a_node_is_consolidated_only_while_its_pods_may_go() {
    scenario(async |w| {
        w.apply(budget("web", "minAvailable", json!(1)));
        oversized(w).await;
        let node = node_of(w, "web");
        always(w, HOUR, "one pod of which one has to be there", |w| {
            w.names("nodes").contains(&node)
        })
        .await;
        w.change("poddisruptionbudgets", "default", "web", "", |b| {
            b["spec"]["minAvailable"] = json!(0);
        });
        until(w, HOUR, "a small one", |w| types(w) == ["c2"] && w.running("web") == 1).await;
    });
}

#[test]
fn pods_of_a_daemon_are_evicted_after_the_others() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.apply(daemon_set("agent", "100m", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |t| {
            t["metadata"]["annotations"]["model.karpenter.sh/ends-in"] = json!("60");
            t["spec"]["terminationGracePeriodSeconds"] = json!(90);
        }));
        runs(w, "web", 1).await;
        runs(w, "agent", 1).await;
        let node = node_of(w, "web");
        let (daemon, begun) = (w.pods_of("agent").remove(0), w.clock.now());
        delete_claim_of(w, &node);
        let name = daemon["metadata"]["name"].as_str().unwrap();
        until(w, 10 * MINUTE, "the daemon goes", |w| {
            w.get("pods", name).is_none_or(|p| p["metadata"]["deletionTimestamp"].is_string())
        })
        .await;
        assert!(w.clock.since(begun) >= MINUTE, "{:?}", w.clock.since(begun));
    });
}

#[test]
fn a_grace_period_of_the_node_begins_with_its_deletion_and_not_before() {
    scenario(async |w| {
        w.apply(calm("default", |spec| {
            spec["template"]["spec"]["terminationGracePeriod"] = json!("20m");
        }));
        w.start();
        w.apply(deployment("web", 2, "1", |_| ()));
        w.apply(budget("web", "maxUnavailable", json!(0)));
        runs(w, "web", 2).await;
        w.pass(HOUR).await;
        let node = node_of(w, "web");
        delete_claim_of(w, &node);
        always(w, 18 * MINUTE, "all stay", |w| healthy(w, "web") == 2).await;
        until(w, 10 * MINUTE, "it goes", |w| !w.names("nodes").contains(&node)).await;
        runs(w, "web", 2).await;
    });
}
