//! Instances whose end is announced, and those that end without a word.

use karpenter::model::World;
use serde_json::{Value, json};

use crate::support::*;

fn spot(spec: &mut Value) {
    spec["template"]["spec"]["requirements"][0]["values"] = json!(["spot"]);
}

async fn spot_pods(w: &mut World, count: u32, change: impl FnOnce(&mut Value)) {
    w.apply(calm("default", spot));
    w.start();
    w.apply(deployment("web", count, "1", change));
    runs(w, "web", count as usize).await;
}

/// Lets pods take most of the time that an interruption leaves.
fn slow(template: &mut Value) {
    template["metadata"]["annotations"]["model.karpenter.sh/ends-in"] = json!("100");
    template["spec"]["terminationGracePeriodSeconds"] = json!(110);
}

#[test]
fn an_interruption_waits_for_no_budget() {
    scenario(async |w| {
        spot_pods(w, 3, |_| ()).await;
        w.change("nodepools", "", "default", "", |p| {
            p["spec"]["disruption"]["budgets"] = json!([{ "nodes": "0" }]);
        });
        let first = w.instances().remove(0);
        w.cloud.interrupt(&first.provider_id);
        until(w, 3 * MINUTE, "they run elsewhere", |w| {
            w.running("web") == 3 && w.instances().iter().all(|i| i.claim != first.claim)
        })
        .await;
    });
}

#[test]
fn pods_of_an_interrupted_node_get_a_node_before_it_is_gone() {
    scenario(async |w| {
        spot_pods(w, 1, slow).await;
        let first = w.instances().remove(0);
        w.cloud.interrupt(&first.provider_id);
        until(w, MINUTE, "another one is launched", |w| w.cloud.instances().len() == 2).await;
        assert!(w.cloud.instances().iter().any(|i| i.provider_id == first.provider_id));
    });
}

#[test]
fn many_interruptions_at_once_lose_no_pod() {
    scenario(async |w| {
        spot_pods(w, 6, apart("web")).await;
        let first = w.instances();
        for instance in &first {
            w.cloud.interrupt(&instance.provider_id);
        }
        until(w, 10 * MINUTE, "all run elsewhere", |w| {
            w.running("web") == 6
                && w.cloud.instances().len() == 6
                && w.instances().iter().all(|i| first.iter().all(|f| f.claim != i.claim))
        })
        .await;
        assert_eq!(w.cloud.bill().launches, 12, "{}", tail(w));
    });
}

#[test]
fn an_interruption_while_nobody_looks_is_acted_upon_later() {
    scenario(async |w| {
        spot_pods(w, 1, |_| ()).await;
        let first = w.instances().remove(0);
        w.kill().await;
        w.cloud.interrupt(&first.provider_id);
        w.pass(5 * MINUTE).await;
        assert!(w.instances().is_empty());
        w.start();
        until(w, 20 * MINUTE, "it runs again", |w| {
            w.running("web") == 1 && w.names("nodes").len() == 1 && w.names("nodeclaims").len() == 1
        })
        .await;
    });
}

#[test]
fn an_interrupted_node_takes_no_new_pods() {
    scenario(async |w| {
        spot_pods(w, 1, slow).await;
        let first = w.instances().remove(0);
        w.cloud.interrupt(&first.provider_id);
        w.pass(10 * std::time::Duration::from_secs(1)).await;
        w.apply(deployment("late", 1, "100m", |_| ()));
        runs(w, "late", 1).await;
        assert_ne!(node_of(w, "late"), first.node_name);
    });
}

#[test]
fn pods_that_a_budget_holds_lose_an_interrupted_node_and_run_elsewhere() {
    scenario(async |w| {
        spot_pods(w, 1, |_| ()).await;
        w.apply(budget("web", "maxUnavailable", json!(0)));
        let first = w.instances().remove(0);
        w.cloud.interrupt(&first.provider_id);
        until(w, 20 * MINUTE, "it runs elsewhere", |w| {
            w.running("web") == 1 && w.names("nodes").iter().all(|n| *n != first.node_name)
        })
        .await;
    });
}

#[test]
fn the_interrupted_replacement_of_a_command_takes_the_command_back() {
    scenario(async |w| {
        w.apply(pool("default", |spec| {
            spec["template"]["spec"]["requirements"][0]["values"] = json!(["spot", "on-demand"]);
        }));
        sell_out(w, &["c2", "c4", "c8", "c16"], None);
        for zone in ZONES {
            for kind in ["c2", "c4", "c8", "c16"] {
                w.cloud.set_left(kind, zone, "spot", Some(0));
            }
        }
        w.start();
        w.apply(deployment("big", 1, "12", |_| ()));
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        runs(w, "big", 1).await;
        for zone in ZONES {
            w.cloud.set_left("c2", zone, "spot", None);
        }
        w.pass(5 * MINUTE).await;
        w.delete("deployments", "big");
        until(w, 30 * MINUTE, "a replacement runs", |w| {
            w.instances().iter().any(|i| replacements(w).contains(&i.claim))
        })
        .await;
        let new = replacements(w).remove(0);
        let instance = w.instances().into_iter().find(|i| i.claim == new).unwrap();
        w.cloud.interrupt(&instance.provider_id);
        if instance.capacity_type == "spot" {
            until(w, 5 * MINUTE, "it is gone", |w| !w.names("nodeclaims").contains(&new)).await;
        }
        until(w, HOUR, "one small node in the end", |w| {
            w.running("web") == 1 && types(w) == ["c2"] && marked(w).is_empty()
        })
        .await;
    });
}

#[test]
fn an_instance_that_ends_without_a_word_is_replaced() {
    scenario(async |w| {
        spot_pods(w, 4, apart("web")).await;
        for instance in w.instances().iter().take(2) {
            w.cloud.vanish(&instance.provider_id);
        }
        until(w, 30 * MINUTE, "four again", |w| {
            w.running("web") == 4 && w.names("nodes").len() == 4 && w.cloud.instances().len() == 4
        })
        .await;
    });
}

#[test]
fn when_spot_runs_out_pods_go_to_on_demand() {
    scenario(async |w| {
        w.apply(calm("default", |spec| {
            spec["template"]["spec"]["requirements"][0]["values"] = json!(["spot", "on-demand"]);
        }));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        assert_eq!(w.instances()[0].capacity_type, "spot");
        for zone in ZONES {
            for kind in ["c2", "c4", "c8", "c16"] {
                w.cloud.set_left(kind, zone, "spot", Some(0));
            }
        }
        let first = w.instances().remove(0);
        w.cloud.interrupt(&first.provider_id);
        until(w, 10 * MINUTE, "on demand", |w| {
            w.running("web") == 1 && w.instances().iter().all(|i| i.capacity_type == "on-demand")
        })
        .await;
    });
}
