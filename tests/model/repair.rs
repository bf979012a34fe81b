//! Nodes that turn sick and do not recover are replaced, within limits.

use std::sync::Arc;

use karpenter::model::World;
use karpenter::model::cloud::Instance;
use serde_json::json;

use crate::support::*;

const GATE: &str = "NodeRepair";

/// So many nodes with one pod each, of one pool.
async fn fleet(w: &mut World, nodes: u32, change: impl FnOnce(&mut serde_json::Value)) {
    w.apply(calm("default", change));
    w.start();
    w.apply(deployment("web", nodes, "1", apart("web")));
    runs(w, "web", nodes as usize).await;
    w.pass(2 * MINUTE).await;
}

fn sicken(w: &World) -> Arc<Instance> {
    let first = w.instances().remove(0);
    w.cloud.sicken(&first.provider_id);
    first
}

fn is_there(w: &World, instance: &Instance) -> bool {
    w.instances().iter().any(|i| i.provider_id == instance.provider_id)
}

#[test]
fn without_the_gate_a_sick_node_stays() {
    scenario(async |w| {
        fleet(w, 6, |_| ()).await;
        let sick = sicken(w);
        always(w, 2 * HOUR, "it stays", |w| is_there(w, &sick)).await;
    });
}

#[test]
fn a_node_that_is_annotated_is_not_repaired() {
    gated(GATE, async |w| {
        fleet(w, 6, |_| ()).await;
        let sick = sicken(w);
        w.change("nodes", "", &sick.node_name, "", |n| {
            n["metadata"]["annotations"]["karpenter.sh/do-not-repair"] = json!("true");
        });
        always(w, 2 * HOUR, "it stays", |w| is_there(w, &sick)).await;
    });
}

#[test]
fn nothing_is_repaired_while_more_than_a_fifth_of_a_pool_is_sick() {
    gated(GATE, async |w| {
        fleet(w, 6, |_| ()).await;
        let sick: Vec<_> = w.instances().into_iter().take(3).collect();
        for instance in &sick {
            w.cloud.sicken(&instance.provider_id);
        }
        always(w, 2 * HOUR, "all stay", |w| sick.iter().all(|i| is_there(w, i))).await;
    });
}

#[test]
fn repair_waits_for_a_budget_that_allows_nothing() {
    gated(GATE, async |w| {
        fleet(w, 6, |spec| {
            spec["disruption"]["budgets"] =
                json!([{ "nodes": "100%" }, { "nodes": "0", "reasons": ["Unhealthy"] }]);
        })
        .await;
        let sick = sicken(w);
        always(w, 2 * HOUR, "it stays", |w| is_there(w, &sick)).await;
        w.change("nodepools", "", "default", "", |p| {
            p["spec"]["disruption"]["budgets"] = json!([{ "nodes": "100%" }]);
        });
        until(w, HOUR, "it goes", |w| !is_there(w, &sick)).await;
    });
}

#[test]
fn repair_does_not_wait_for_a_budget_for_other_reasons() {
    gated(GATE, async |w| {
        fleet(w, 6, |spec| {
            spec["disruption"]["budgets"] =
                json!([{ "nodes": "100%" }, { "nodes": "0", "reasons": ["Drifted"] }]);
        })
        .await;
        let sick = sicken(w);
        until(w, 2 * HOUR, "it goes", |w| !is_there(w, &sick)).await;
    });
}

#[test]
fn the_replacement_of_a_sick_node_comes_first() {
    gated(GATE, async |w| {
        fleet(w, 6, |_| ()).await;
        let sick = sicken(w);
        let replaced = |w: &World| {
            w.get("nodeclaims", &sick.claim)
                .is_none_or(|c| c["metadata"]["deletionTimestamp"].is_string())
        };
        always(w, 25 * MINUTE, "it is waited out", |w| is_there(w, &sick)).await;
        until(w, HOUR, "it is given up", replaced).await;
        assert!(usable(w) >= 6, "{} usable\n{}", usable(w), tail(w));
    });
}

#[test]
fn the_drain_of_a_sick_node_is_bounded_even_where_a_budget_of_pods_holds_it() {
    gated(GATE, async |w| {
        fleet(w, 6, |_| ()).await;
        w.apply(budget("web", "maxUnavailable", json!(0)));
        let sick = sicken(w);
        until(w, 2 * HOUR, "it goes", |w| !is_there(w, &sick)).await;
        until(w, HOUR, "all pods run", |w| w.running("web") == 6).await;
    });
}

#[test]
fn killed_while_a_sick_node_is_replaced_the_drain_stays_bounded() {
    gated(GATE, async |w| {
        fleet(w, 6, |_| ()).await;
        w.apply(budget("web", "maxUnavailable", json!(0)));
        let sick = sicken(w);
        until(w, 2 * HOUR, "a replacement is made", |w| !replacements(w).is_empty()).await;
        w.kill().await;
        w.pass(MINUTE).await;
        w.start();
        let deadline = |w: &World| {
            w.get("nodeclaims", &sick.claim).is_none_or(|c| {
                let key = "karpenter.sh/nodeclaim-termination-timestamp";
                c["metadata"]["annotations"][key].is_string()
            })
        };
        until(w, 30 * MINUTE, "the drain has an end", deadline).await;
        until(w, HOUR, "it goes", |w| !is_there(w, &sick)).await;
    });
}

#[test]
fn as_karpenter_1_14_does_a_sick_node_goes_at_once_when_that_is_asked_for() {
    with(
        |o| {
            o.flags.push("--feature-gates=NodeRepair=true".to_owned());
            o.flags.push("--legacy-node-repair=true".to_owned());
        },
        async |w| {
            fleet(w, 6, |spec| spec["disruption"]["budgets"] = json!([{ "nodes": "0" }])).await;
            let sick = sicken(w);
            always(w, 25 * MINUTE, "it is waited out", |w| is_there(w, &sick)).await;
            until(w, 20 * MINUTE, "it goes", |w| !is_there(w, &sick)).await;
            runs(w, "web", 6).await;
        },
    );
}

#[test]
fn a_sick_node_of_a_static_pool_is_replaced() {
    gated("NodeRepair,StaticCapacity", async |w| {
        w.apply(pool("static", |spec| {
            spec["replicas"] = json!(6);
            only_types(spec, &["c2"]);
        }));
        w.start();
        until(w, 10 * MINUTE, "six", |w| usable(w) == 6).await;
        let sick = sicken(w);
        until(w, 2 * HOUR, "six are usable, without it", |w| usable(w) == 6 && !is_there(w, &sick))
            .await;
        assert!(w.cloud.instances().len() <= 7);
    });
}
