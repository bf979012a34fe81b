//! Nodes that are unhealthy and do not recover are replaced or rebooted.

use karpenter::model::{Options, World};
use serde_json::{Value, json};

use crate::support::*;

/// Six nodes of one pod each, of one pool.
async fn fleet(w: &mut World, pool: impl FnOnce(&mut Value), pods: impl FnOnce(&mut Value)) {
    w.apply(calm("default", pool));
    w.start();
    w.apply(deployment("web", 6, "1", |t| {
        apart("web")(t);
        pods(t);
    }));
    runs(w, "web", 6).await;
    w.pass(2 * MINUTE).await;
}

/// Plays a scenario with these nodes, repair being on.
fn six(
    pool: impl FnOnce(&mut Value) + Send,
    pods: impl FnOnce(&mut Value) + Send,
    body: impl AsyncFnOnce(&mut World) + Send,
) {
    gated("NodeRepair", async |w| {
        fleet(w, pool, pods).await;
        body(w).await;
    });
}

/// Makes the first node sick; returns its provider id.
fn sicken(w: &World) -> String {
    let sick = w.instances().remove(0).provider_id.clone();
    w.cloud.sicken(&sick);
    sick.to_string()
}

fn has(w: &World, provider_id: &str) -> bool {
    w.instances().iter().any(|i| i.provider_id == provider_id)
}

/// Whether an event has such a message.
fn says(w: &World, text: &str) -> bool {
    w.all("events").iter().any(|e| e["message"].as_str().is_some_and(|m| m.contains(text)))
}

fn claim_of(w: &World, provider_id: &str) -> std::sync::Arc<Value> {
    let all = w.all("nodeclaims");
    all.iter().find(|c| c["status"]["providerID"] == provider_id).unwrap().clone()
}

#[test]
fn a_sick_node_is_replaced_within_its_budget_and_its_replacement_comes_first() {
    six(
        |_| (),
        |_| (),
        async |w| {
            let sick = sicken(w);
            // The sick node stays until seven machines are there.
            until(w, HOUR, "a replacement", |w| w.instances().len() == 7).await;
            assert!(has(w, &sick), "the replacement comes first");
            let reason = claim_of(w, &sick)["status"]["conditions"].clone();
            let reason =
                reason.as_array().unwrap().iter().find(|c| c["type"] == "DisruptionReason");
            assert_eq!(reason.unwrap()["reason"], "Unhealthy");
            until(w, HOUR, "it goes", |w| !has(w, &sick) && w.running("web") == 6).await;
            assert_eq!(w.instances().len(), 6);
        },
    );
}

#[test]
fn a_sick_node_waits_for_a_budget_for_unhealthy_nodes() {
    let none = |spec: &mut Value| {
        spec["disruption"]["budgets"] = json!([{ "nodes": "0", "reasons": ["Unhealthy"] }]);
    };
    six(
        none,
        |_| (),
        async |w| {
            let sick = sicken(w);
            always(w, HOUR, "it stays", |w| has(w, &sick) && w.instances().len() == 6).await;
            w.change("nodepools", "", "default", "", |p| {
                p["spec"]["disruption"]["budgets"] =
                    json!([{ "nodes": "1", "reasons": ["Unhealthy"] }]);
            });
            until(w, 20 * MINUTE, "it goes", |w| !has(w, &sick)).await;
        },
    );
}

#[test]
fn a_sick_node_that_is_protected_from_repair_stays_and_says_so() {
    six(
        |_| (),
        |_| (),
        async |w| {
            let sick = w.instances().remove(0);
            w.change("nodes", "", &sick.node_name, "", |node| {
                node["metadata"]["annotations"]["karpenter.sh/do-not-repair"] = json!("true");
            });
            w.cloud.sicken(&sick.provider_id);
            w.pass(25 * MINUTE).await;
            assert!(!says(w, "Repair is blocked through"), "not due yet");
            always(w, HOUR, "it stays", |w| has(w, &sick.provider_id)).await;
            assert!(says(w, "Repair is blocked through"));
            w.change("nodes", "", &sick.node_name, "", |node| {
                node["metadata"]["annotations"]["karpenter.sh/do-not-repair"] = json!("false");
            });
            until(w, 20 * MINUTE, "it goes", |w| !has(w, &sick.provider_id)).await;
        },
    );
}

#[test]
fn while_many_nodes_of_a_pool_are_sick_none_is_repaired() {
    six(
        |_| (),
        |_| (),
        async |w| {
            let all = w.instances();
            all.iter().take(3).for_each(|i| w.cloud.sicken(&i.provider_id));
            always(w, 2 * HOUR, "they stay", |w| all.iter().all(|i| has(w, &i.provider_id))).await;
            assert!(reasons(w, "NodePool").contains(&"NodeRepairBlocked".to_owned()));
        },
    );
}

#[test]
fn a_protected_pod_does_not_hold_a_sick_node_longer_than_the_policy_says() {
    six(
        |_| (),
        protected,
        async |w| {
            let sick = sicken(w);
            until(w, HOUR, "the claim is deleted", |w| {
                let all = w.all("nodeclaims");
                let claim = all.iter().find(|c| c["status"]["providerID"] == sick.as_str());
                claim.is_some_and(|c| c["metadata"]["deletionTimestamp"].is_string())
            })
            .await;
            always(w, 25 * MINUTE, "the pod keeps its time", |w| has(w, &sick)).await;
            until(w, 20 * MINUTE, "it goes", |w| !has(w, &sick) && w.running("web") == 6).await;
        },
    );
}

#[test]
fn a_repair_whose_controller_ends_keeps_its_bound_for_the_drain() {
    six(
        |_| (),
        protected,
        async |w| {
            let sick = sicken(w);
            until(w, HOUR, "a replacement", |w| w.instances().len() == 7).await;
            w.kill().await;
            w.start();
            until(w, 90 * MINUTE, "it goes", |w| !has(w, &sick) && w.running("web") == 6).await;
        },
    );
}

fn boots(w: &World, provider_id: &str) -> u32 {
    w.instances().iter().find(|i| i.provider_id == provider_id).map_or(0, |i| i.boots)
}

fn initialized(w: &World, provider_id: &str) -> bool {
    let claim = claim_of(w, provider_id);
    let taints = w.all("nodes");
    let node = taints.iter().find(|n| n["spec"]["providerID"] == provider_id).unwrap();
    let tainted = node["spec"]["taints"].as_array().is_some_and(|t| !t.is_empty());
    condition(&claim, "Initialized") == Some("True")
        && node["metadata"]["labels"]["karpenter.sh/initialized"] == "true"
        && !tainted
}

#[test]
fn a_fault_that_a_reboot_clears_keeps_the_node_and_the_third_time_it_is_replaced() {
    six(
        |_| (),
        |_| (),
        async |w| {
            let first = w.instances().remove(0);
            let id = first.provider_id.clone();
            for times in 1..=2 {
                hardware_fails(w, &first.node_name, "Xid119");
                always(w, 9 * MINUTE, "waited out", |w| boots(w, &id) == times - 1).await;
                until(w, 30 * MINUTE, "rebooted", |w| boots(w, &id) == times).await;
                assert_eq!(condition(&claim_of(w, &id), "Rebooting"), Some("True"));
                until(w, 10 * MINUTE, "back", |w| {
                    condition(&claim_of(w, &id), "Rebooting") == Some("False")
                        && initialized(w, &id)
                })
                .await;
                until(w, 10 * MINUTE, "no marks are left", |w| {
                    condition(&claim_of(w, &id), "DisruptionReason").is_none()
                })
                .await;
                runs(w, "web", 6).await;
                w.pass(5 * MINUTE).await;
            }
            assert!(reasons(w, "NodeClaim").contains(&"RebootObserved".to_owned()));
            hardware_fails(w, &first.node_name, "Xid119");
            until(w, HOUR, "replaced", |w| !has(w, &id)).await;
            runs(w, "web", 6).await;
        },
    );
}

#[test]
fn a_reboot_whose_controller_ends_goes_on_and_is_made_once() {
    six(
        |_| (),
        |_| (),
        async |w| {
            let first = w.instances().remove(0);
            let id = first.provider_id.clone();
            hardware_fails(w, &first.node_name, "Xid119");
            until(w, 30 * MINUTE, "requested", |w| {
                condition(&claim_of(w, &id), "Rebooting") == Some("True")
            })
            .await;
            for _ in 0..6 {
                w.kill().await;
                w.start();
                w.pass(std::time::Duration::from_secs(7)).await;
            }
            until(w, 30 * MINUTE, "back", |w| boots(w, &id) > 0 && initialized(w, &id)).await;
            w.pass(10 * MINUTE).await;
            assert_eq!(boots(w, &id), 1);
        },
    );
}

#[test]
fn a_protected_pod_goes_through_the_reboot_with_its_node() {
    six(
        |_| (),
        protected,
        async |w| {
            let first = w.instances().remove(0);
            let on = |w: &World| {
                let pods = w.pods_of("web");
                let pod = pods.iter().find(|p| p["spec"]["nodeName"] == first.node_name.as_str());
                pod.map(|p| p["metadata"]["uid"].clone())
            };
            let before = on(w).unwrap();
            hardware_fails(w, &first.node_name, "Xid119");
            until(w, 30 * MINUTE, "rebooted", |w| boots(w, &first.provider_id) == 1).await;
            until(w, 10 * MINUTE, "back", |w| initialized(w, &first.provider_id)).await;
            assert_eq!(on(w), Some(before), "neither evicted nor deleted");
        },
    );
}

/// The deletion costs of the pods of an app, by whether they share the node of another app's pod.
fn costs(w: &World, app: &str, beside: &str) -> (Vec<i64>, Vec<i64>) {
    let node = node_of(w, beside);
    let cost = |pod: &std::sync::Arc<Value>| -> i64 {
        let all = &pod["metadata"]["annotations"];
        let cost = all["controller.kubernetes.io/pod-deletion-cost"].as_str();
        cost.and_then(|c| c.parse().ok()).unwrap_or(0)
    };
    let (here, there): (Vec<_>, Vec<_>) =
        w.pods_of(app).into_iter().partition(|p| p["spec"]["nodeName"] == node.as_str());
    (here.iter().map(cost).collect(), there.iter().map(cost).collect())
}

#[test]
fn scaling_down_empties_the_node_that_consolidation_would_remove_first() {
    let gate = "--feature-gates=PodDeletionCostManagement=true".to_owned();
    with(
        |o| o.flags.push(gate),
        async |w| {
            w.apply(pool("default", |spec| {
                spec["disruption"]["consolidateAfter"] = json!("24h");
            }));
            w.start();
            w.apply(deployment("fill", 1, "15", |_| ()));
            runs(w, "fill", 1).await;
            w.pass(MINUTE).await;
            // One of them fits beside the other; the small node for the rest saves less.
            w.apply(deployment("web", 4, "1", |_| ()));
            runs(w, "web", 4).await;
            w.pass(5 * MINUTE).await;
            assert_eq!(costs(w, "web", "fill"), (vec![-2], vec![-1, -1, -1]));
            w.scale("web", 3);
            until(w, 5 * MINUTE, "scaled down", |w| w.pods_of("web").len() == 3).await;
            assert!(costs(w, "web", "fill").0.is_empty());
            w.change("nodepools", "", "default", "", |p| {
                p["spec"]["disruption"]["budgets"] = json!([{ "nodes": "0" }]);
            });
            w.pass(3 * MINUTE).await;
            assert_eq!(costs(w, "web", "fill").1, [0, 0, 0], "no budget, no costs");
        },
    );
}

#[test]
fn without_the_gate_a_sick_node_stays() {
    scenario(async |w| {
        fleet(w, |_| (), |_| ()).await;
        let sick = sicken(w);
        always(w, 2 * HOUR, "it stays", |w| has(w, &sick)).await;
    });
}

#[test]
fn repair_does_not_wait_for_a_budget_for_other_reasons() {
    let drifted = |spec: &mut Value| {
        spec["disruption"]["budgets"] =
            json!([{ "nodes": "100%" }, { "nodes": "0", "reasons": ["Drifted"] }]);
    };
    six(
        drifted,
        |_| (),
        async |w| {
            let sick = sicken(w);
            until(w, 2 * HOUR, "it goes", |w| !has(w, &sick)).await;
        },
    );
}

#[test]
fn the_drain_of_a_sick_node_is_bounded_even_where_a_budget_of_pods_holds_it() {
    six(
        |_| (),
        |_| (),
        async |w| {
            w.apply(budget("web", "maxUnavailable", json!(0)));
            let sick = sicken(w);
            until(w, 2 * HOUR, "it goes", |w| !has(w, &sick)).await;
            until(w, HOUR, "all pods run", |w| w.running("web") == 6).await;
        },
    );
}

#[test]
fn as_karpenter_1_14_does_a_sick_node_goes_at_once_when_that_is_asked_for() {
    let legacy = |o: &mut Options| {
        gates_on("NodeRepair")(o);
        o.flags.push("--legacy-node-repair=true".to_owned());
    };
    with(legacy, async |w| {
        let none = |spec: &mut Value| spec["disruption"]["budgets"] = json!([{ "nodes": "0" }]);
        fleet(w, none, |_| ()).await;
        let sick = sicken(w);
        always(w, 25 * MINUTE, "it is waited out", |w| has(w, &sick)).await;
        until(w, 20 * MINUTE, "it goes", |w| !has(w, &sick)).await;
        runs(w, "web", 6).await;
    });
}
