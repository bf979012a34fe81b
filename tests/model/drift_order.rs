//! Which drifted nodes go first, which wait, and what keeps one.

use karpenter::model::World;
use karpenter::model::cloud::CloudError;
use serde_json::{Value, json};

use crate::support::*;

/// Nodes that were made one after the other, the oldest first.
async fn aged(w: &mut World, count: u32, change: impl FnOnce(&mut Value)) -> Vec<String> {
    w.apply(calm("default", change));
    w.start();
    w.apply(deployment("web", 0, "1", apart("web")));
    let mut order: Vec<String> = Vec::new();
    for n in 1..=count {
        w.scale("web", n);
        runs(w, "web", n as usize).await;
        w.pass(3 * MINUTE).await;
        order.extend(
            w.names("nodes").into_iter().filter(|name| !order.contains(name)).collect::<Vec<_>>(),
        );
    }
    order
}

fn drift_all(w: &World) {
    for claim in w.names("nodeclaims") {
        w.cloud.drift(&claim, "AMIDrift");
    }
}

fn alive(w: &World, node: &str) -> bool {
    w.get("nodes", node).is_some_and(|n| n["metadata"]["deletionTimestamp"].is_null())
}

#[test]
fn the_node_that_drifted_first_goes_first() {
    scenario(async |w| {
        let nodes = aged(w, 3, |spec| {
            spec["disruption"]["budgets"] = json!([{ "nodes": "1" }]);
        })
        .await;
        // In the reverse order of their age.
        for node in nodes.iter().rev() {
            w.cloud.drift(&claim_of(w, node), "AMIDrift");
            w.change("nodepools", "", "default", "", |p| {
                p["spec"]["disruption"]["budgets"] = json!([{ "nodes": "0" }]);
            });
            w.pass(10 * MINUTE).await;
        }
        w.change("nodepools", "", "default", "", |p| {
            p["spec"]["disruption"]["budgets"] = json!([{ "nodes": "1" }]);
        });
        let mut gone = Vec::new();
        for _ in 0..720 {
            w.pass(std::time::Duration::from_secs(5)).await;
            gone.extend(
                nodes
                    .iter()
                    .filter(|n| !alive(w, n) && !gone.contains(*n))
                    .cloned()
                    .collect::<Vec<_>>(),
            );
        }
        let expected: Vec<String> = nodes.iter().rev().cloned().collect();
        assert_eq!(gone, expected, "{}", tail(w));
        assert_eq!(w.running("web"), 3);
    });
}

#[test]
fn a_node_that_is_annotated_does_not_drift_away() {
    scenario(async |w| {
        let nodes = aged(w, 2, |_| ()).await;
        w.change("nodes", "", &nodes[0], "", |n| {
            n["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] = json!("true");
        });
        drift_all(w);
        until(w, HOUR, "the other goes", |w| !alive(w, &nodes[1])).await;
        assert!(alive(w, &nodes[0]));
    });
}

#[test]
fn a_protected_pod_keeps_a_drifted_node_that_has_no_grace_period() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", protected));
        runs(w, "web", 1).await;
        w.pass(2 * MINUTE).await;
        let node = node_of(w, "web");
        drift_all(w);
        always(w, HOUR, "it stays", |w| alive(w, &node)).await;
        assert_eq!(w.cloud.bill().launches, 1);
    });
}

#[test]
fn a_protected_pod_does_not_keep_a_drifted_node_that_has_a_grace_period() {
    scenario(async |w| {
        w.apply(calm("default", |spec| {
            spec["template"]["spec"]["terminationGracePeriod"] = json!("15m");
        }));
        w.start();
        w.apply(deployment("web", 1, "1", protected));
        runs(w, "web", 1).await;
        w.pass(2 * MINUTE).await;
        let node = node_of(w, "web");
        drift_all(w);
        until(w, 30 * MINUTE, "it is told to go", |w| !alive(w, &node)).await;
        always(w, 10 * MINUTE, "and has its time", |w| w.names("nodes").contains(&node)).await;
        until(w, 20 * MINUTE, "it is gone", |w| !w.names("nodes").contains(&node)).await;
        runs(w, "web", 1).await;
    });
}

#[test]
fn a_pool_whose_replacement_failed_waits_and_others_go_on() {
    scenario(async |w| {
        w.apply(calm("first", |spec| {
            spec["template"]["spec"]["requirements"].as_array_mut().unwrap().push(json!({
                "key": "team", "operator": "In", "values": ["one"] }));
            only_types(spec, &["c2"]);
        }));
        w.apply(calm("second", |spec| {
            spec["template"]["spec"]["requirements"].as_array_mut().unwrap().push(json!({
                "key": "team", "operator": "In", "values": ["two"] }));
            only_types(spec, &["c4"]);
        }));
        w.start();
        for (app, team) in [("a", "one"), ("b", "two")] {
            w.apply(deployment(app, 1, "1", |t| {
                t["spec"]["nodeSelector"] = json!({ "team": team })
            }));
            runs(w, app, 1).await;
            w.pass(2 * MINUTE).await;
        }
        let (one, two) = (node_of(w, "a"), node_of(w, "b"));
        sell_out(w, &["c2"], Some(0));
        drift_all(w);
        until(w, 20 * MINUTE, "the second pool's goes", |w| !alive(w, &two)).await;
        assert!(alive(w, &one));
        // Tried less and less often.
        w.pass(HOUR).await;
        let tries = reasons(w, "NodeClaim");
        assert!(tries.contains(&"DisruptionLaunching".to_owned()), "{tries:?}");
        let failed =
            w.journal.tail(100_000).iter().filter(|l| l.contains("InsufficientCapacity")).count();
        assert!((2..20).contains(&failed), "{failed}");
        sell_out(w, &["c2"], None);
        until(w, 3 * HOUR, "the first one's goes in the end", |w| !alive(w, &one)).await;
        runs(w, "a", 1).await;
    });
}

#[test]
fn a_failed_launch_of_a_replacement_is_tried_again_after_a_minute() {
    scenario(async |w| {
        let nodes = aged(w, 1, |_| ()).await;
        w.cloud.fail_next(CloudError::InsufficientCapacity("none".to_owned()));
        drift_all(w);
        until(w, 20 * MINUTE, "replaced", |w| !alive(w, &nodes[0]) && w.running("web") == 1).await;
    });
}

#[test]
fn drift_waits_for_the_window_of_its_budget() {
    scenario(async |w| {
        // The world begins at midnight of a Monday.
        let nodes = aged(w, 1, |spec| {
            spec["disruption"]["budgets"] =
                json!([{ "nodes": "0", "schedule": "0 0 * * *", "duration": "5h" }]);
        })
        .await;
        drift_all(w);
        always(w, 4 * HOUR, "it stays", |w| alive(w, &nodes[0])).await;
        until(w, 2 * HOUR, "it goes", |w| !alive(w, &nodes[0])).await;
    });
}

#[test]
fn half_of_the_nodes_at_most_go_at_once_where_the_budget_says_so() {
    scenario(async |w| {
        w.apply(calm("default", |spec| {
            spec["disruption"]["budgets"] = json!([{ "nodes": "50%" }]);
        }));
        w.start();
        w.apply(deployment("web", 6, "1", apart("web")));
        runs(w, "web", 6).await;
        w.pass(3 * MINUTE).await;
        drift_all(w);
        let first = w.names("nodes");
        // Replacements that are up count, too; nodes whose instance is ending do not.
        let half = |w: &World| {
            let mut claims = w.all("nodeclaims");
            claims.retain(|c| condition(c, "InstanceTerminating") != Some("True"));
            let chosen = claims.iter().filter(|c| condition(c, "DisruptionReason") == Some("True"));
            chosen.count() <= claims.len().div_ceil(2)
        };
        always(w, HOUR, "half of them at most", half).await;
        assert!(w.names("nodes").iter().all(|n| !first.contains(n)), "{}", tail(w));
        assert_eq!(w.running("web"), 6);
    });
}

#[test]
fn an_empty_drifted_node_goes_without_a_replacement() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        w.pass(2 * MINUTE).await;
        w.scale("web", 0);
        drift_all(w);
        until(w, 20 * MINUTE, "it goes", |w| w.instances().is_empty()).await;
        assert_eq!(w.cloud.bill().launches, 1);
    });
}

#[test]
fn a_budget_of_pods_that_allows_nothing_keeps_a_drifted_node() {
    scenario(async |w| {
        let nodes = aged(w, 1, |_| ()).await;
        w.apply(budget("web", "maxUnavailable", json!(0)));
        drift_all(w);
        always(w, HOUR, "it stays", |w| alive(w, &nodes[0])).await;
        assert_eq!(w.cloud.bill().launches, 1);
        w.delete("poddisruptionbudgets", "web");
        until(w, 20 * MINUTE, "it goes", |w| !alive(w, &nodes[0])).await;
    });
}

#[test]
fn a_label_that_a_node_lost_is_not_drift() {
    scenario(async |w| {
        let nodes = aged(w, 1, |spec| {
            spec["template"]["metadata"] = json!({ "labels": { "team": "blue" } });
        })
        .await;
        w.change("nodes", "", &nodes[0], "", |n| {
            n["metadata"]["labels"].as_object_mut().unwrap().remove("team");
        });
        always(w, 30 * MINUTE, "it stays", |w| alive(w, &nodes[0])).await;
    });
}

#[test]
fn a_change_of_what_is_no_part_of_the_template_is_not_drift() {
    scenario(async |w| {
        let nodes = aged(w, 1, |_| ()).await;
        w.change("nodepools", "", "default", "", |p| {
            p["spec"]["weight"] = json!(7);
            p["spec"]["limits"] = json!({ "cpu": "1000" });
            p["spec"]["disruption"]["consolidateAfter"] = json!("12h");
        });
        always(w, 30 * MINUTE, "it stays", |w| alive(w, &nodes[0])).await;
    });
}

#[test]
fn a_taint_that_the_pool_adds_is_drift() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |t| {
            t["spec"]["tolerations"] = json!([{ "key": "only", "operator": "Exists" }]);
        }));
        runs(w, "web", 1).await;
        w.pass(2 * MINUTE).await;
        w.change("nodepools", "", "default", "", |p| {
            p["spec"]["template"]["spec"]["taints"] =
                json!([{ "key": "only", "value": "web", "effect": "NoSchedule" }]);
        });
        until(w, HOUR, "a node with the taint", |w| {
            w.running("web") == 1
                && w.all("nodes").iter().all(|n| {
                    n["spec"]["taints"]
                        .as_array()
                        .is_some_and(|t| t.iter().any(|t| t["key"] == "only"))
                })
        })
        .await;
    });
}
