//! Nodes that are not needed go, and dear ones are replaced, within budgets.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use karpenter::model::api::{Call, Fault, FaultPlan};
use serde_json::json;

use crate::support::*;

#[test]
fn an_empty_node_goes() {
    scenario(async |w| {
        w.apply(pool("default", |_| ()));
        w.start();
        w.apply(deployment("web", 2, "1", |_| ()));
        runs(w, "web", 2).await;
        w.scale("web", 0);
        until(w, 10 * MINUTE, "no node is left", |w| w.names("nodes").is_empty()).await;
        assert!(w.cloud.instances().is_empty() && w.names("nodeclaims").is_empty());
    });
}

#[test]
fn an_empty_node_stays_as_long_as_its_pool_says() {
    scenario(async |w| {
        w.apply(pool("default", |spec| {
            spec["disruption"]["consolidationPolicy"] = json!("WhenEmpty");
            spec["disruption"]["consolidateAfter"] = json!("15m");
        }));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        w.scale("web", 0);
        always(w, 13 * MINUTE, "it stays", |w| w.instances().len() == 1).await;
        until(w, 10 * MINUTE, "it goes", |w| w.instances().is_empty()).await;
    });
}

#[test]
fn pods_move_together_when_a_node_has_room() {
    scenario(async |w| {
        w.apply(pool("default", |_| ()));
        w.start();
        w.apply(deployment("one", 1, "3500m", |_| ()));
        runs(w, "one", 1).await;
        w.apply(deployment("two", 1, "3500m", |_| ()));
        runs(w, "two", 1).await;
        assert_eq!(w.instances().len(), 2);
        // Both fit on one half-empty node now.
        for app in ["one", "two"] {
            w.delete("deployments", app);
        }
        w.apply(deployment("small", 2, "500m", |_| ()));
        until(w, 30 * MINUTE, "one small node", |w| w.running("small") == 2 && types(w) == ["c2"])
            .await;
    });
}

/// Writes one NodeClaim's status late, and counts the evictions.
struct SlowStatus {
    claim: String,
    evictions: Arc<AtomicUsize>,
}

impl FaultPlan for SlowStatus {
    fn fault(&mut self, call: &Call) -> Option<Fault> {
        if call.subresource == "eviction" {
            self.evictions.fetch_add(1, Ordering::SeqCst);
        }
        let status = call.kind.plural == "nodeclaims" && call.subresource == "status";
        (status && call.name == self.claim).then_some(Fault::Delay(Duration::from_millis(700)))
    }
}

#[test]
fn nodes_that_ripen_shortly_after_one_another_are_looked_at_together() {
    scenario(async |w| {
        w.apply(pool("default", |spec| spec["disruption"]["consolidateAfter"] = json!("Never")));
        w.start();
        for app in ["one", "two"] {
            w.apply(deployment(app, 1, "3200m", |_| ()));
            runs(w, app, 1).await;
        }
        w.apply(deployment("small", 2, "500m", |_| ()));
        runs(w, "small", 2).await;
        assert_eq!(types(w), ["c4", "c4"]);
        w.delete("deployments", "one");
        w.delete("deployments", "two");
        w.pass(MINUTE).await;
        let evictions = Arc::new(AtomicUsize::new(0));
        let claim = w.names("nodeclaims").remove(0);
        w.server.set_faults(SlowStatus { claim, evictions: Arc::clone(&evictions) });
        w.change("nodepools", "", "default", "", |pool| {
            pool["spec"]["disruption"]["consolidateAfter"] = json!("0s");
        });
        until(w, 30 * MINUTE, "one small node", |w| w.running("small") == 2 && types(w) == ["c2"])
            .await;
        // One node after the other, a pod would move twice.
        assert_eq!(evictions.load(Ordering::SeqCst), 2, "{}", tail(w));
    });
}

#[test]
fn one_pass_replaces_several_nodes_each_by_a_command_of_its_own() {
    scenario(async |w| {
        w.apply(pool("default", |spec| spec["disruption"]["consolidateAfter"] = json!("Never")));
        w.start();
        w.apply(deployment("filler", 3, "2700m", apart("filler")));
        runs(w, "filler", 3).await;
        w.apply(deployment("small", 3, "500m", apart("small")));
        runs(w, "small", 3).await;
        assert_eq!(types(w), ["c4", "c4", "c4"]);
        w.delete("deployments", "filler");
        w.pass(MINUTE).await;
        w.change("nodepools", "", "default", "", |pool| {
            pool["spec"]["disruption"]["consolidateAfter"] = json!("0s");
        });
        // All three are marked, and their replacements on the way, before any is deleted.
        until(w, 10 * MINUTE, "three commands", |w| {
            marked(w).len() == 3 && replacements(w).len() == 3 && w.names("nodeclaims").len() == 6
        })
        .await;
        until(w, 30 * MINUTE, "three small nodes", |w| {
            w.running("small") == 3 && types(w) == ["c2", "c2", "c2"]
        })
        .await;
    });
}

#[test]
fn a_node_that_is_too_large_is_replaced_by_a_smaller_one() {
    scenario(async |w| {
        w.apply(pool("default", |_| ()));
        w.start();
        w.apply(deployment("web", 12, "1", |_| ()));
        runs(w, "web", 12).await;
        let before = w.cloud.hourly();
        w.scale("web", 1);
        until(w, 30 * MINUTE, "a small one", |w| types(w) == ["c2"] && w.running("web") == 1).await;
        until(w, 5 * MINUTE, "it is cheaper", |w| w.cloud.hourly() < before).await;
    });
}

#[test]
fn the_replacement_is_there_before_the_node_goes() {
    scenario(async |w| {
        w.apply(pool("default", |_| ()));
        w.start();
        w.apply(deployment("web", 12, "1", |_| ()));
        runs(w, "web", 12).await;
        let first = w.instances().remove(0).node_name.clone();
        w.scale("web", 1);
        until(w, 30 * MINUTE, "the first goes", |w| {
            w.get("nodes", &first).is_none_or(|n| n["metadata"]["deletionTimestamp"].is_string())
        })
        .await;
        assert!(usable(w) >= 1, "{}", tail(w));
    });
}

#[test]
fn a_replacement_that_cannot_be_had_leaves_the_node_as_it_was() {
    scenario(async |w| {
        w.apply(pool("default", |_| ()));
        w.start();
        w.apply(deployment("web", 12, "1", |_| ()));
        runs(w, "web", 12).await;
        for zone in ZONES {
            for kind in ["c2", "c4", "c8"] {
                w.cloud.set_left(kind, zone, "on-demand", Some(0));
            }
        }
        w.scale("web", 1);
        w.pass(20 * MINUTE).await;
        assert_eq!((w.running("web"), w.instances().len()), (1, 1), "{}", tail(w));
        // Nothing stays marked, and what is had again is used again.
        for zone in ZONES {
            w.cloud.set_left("c2", zone, "on-demand", None);
        }
        until(w, HOUR, "a small one", |w| types(w) == ["c2"] && w.running("web") == 1).await;
    });
}

#[test]
fn a_pod_that_must_not_be_disrupted_keeps_its_node() {
    scenario(async |w| {
        w.apply(pool("default", |_| ()));
        w.start();
        w.apply(deployment("big", 10, "1", |_| ()));
        runs(w, "big", 10).await;
        w.apply(deployment("web", 1, "100m", |t| {
            t["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] = json!("true");
        }));
        runs(w, "web", 1).await;
        let node = node_of(w, "web");
        w.scale("big", 0);
        always(w, 10 * MINUTE, "it stays", |w| w.names("nodes").contains(&node)).await;
    });
}

#[test]
fn a_budget_of_pods_keeps_its_node() {
    scenario(async |w| {
        w.apply(pool("default", |_| ()));
        w.start();
        w.apply(deployment("big", 10, "1", |_| ()));
        w.apply(deployment("web", 1, "100m", |_| ()));
        w.apply(budget("web", "maxUnavailable", json!(0)));
        runs(w, "big", 10).await;
        runs(w, "web", 1).await;
        let node = node_of(w, "web");
        w.scale("big", 0);
        always(w, 10 * MINUTE, "it stays", |w| w.names("nodes").contains(&node)).await;
    });
}

#[test]
fn a_pool_whose_budget_is_zero_is_left_alone() {
    scenario(async |w| {
        w.apply(pool("default", |spec| {
            spec["disruption"]["budgets"] = json!([{ "nodes": "0" }]);
        }));
        w.start();
        w.apply(deployment("web", 3, "1", |_| ()));
        runs(w, "web", 3).await;
        let count = w.instances().len();
        w.scale("web", 0);
        always(w, 10 * MINUTE, "all stay", |w| w.instances().len() == count).await;
    });
}

#[test]
fn no_more_nodes_go_at_once_than_the_budget_says() {
    scenario(async |w| {
        w.apply(pool("default", |spec| {
            spec["disruption"]["budgets"] = json!([{ "nodes": "1" }]);
        }));
        w.start();
        w.apply(deployment("web", 5, "1", |t| {
            t["spec"]["affinity"] = json!({ "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [{
                    "topologyKey": "kubernetes.io/hostname",
                    "labelSelector": { "matchLabels": { "app": "web" } } }] } });
        }));
        runs(w, "web", 5).await;
        until(w, 5 * MINUTE, "five are usable", |w| usable(w) == 5).await;
        w.scale("web", 0);
        let one = |w: &karpenter::model::World| {
            let nodes = w.all("nodes");
            let going = nodes.iter().filter(|n| {
                n["spec"]["taints"]
                    .as_array()
                    .is_some_and(|t| t.iter().any(|t| t["key"] == "karpenter.sh/disrupted"))
            });
            going.count() <= 1
        };
        always(w, 30 * MINUTE, "one at a time", one).await;
        assert!(w.names("nodes").is_empty(), "{}", tail(w));
    });
}

#[test]
fn a_cluster_left_alone_comes_to_rest() {
    scenario(async |w| {
        w.apply(pool("default", |_| ()));
        w.start();
        for (app, replicas, cpu) in [("a", 5, "700m"), ("b", 3, "1500m"), ("c", 9, "200m")] {
            w.apply(deployment(app, replicas, cpu, |_| ()));
        }
        w.pass(20 * MINUTE).await;
        let (launches, nodes) = (w.cloud.bill().launches, w.names("nodes"));
        w.pass(20 * MINUTE).await;
        assert_eq!(w.cloud.bill().launches, launches, "{}", tail(w));
        assert_eq!(w.names("nodes"), nodes);
        assert_eq!((w.running("a"), w.running("b"), w.running("c")), (5, 3, 9));
    });
}

#[test]
fn a_spot_node_is_not_replaced_by_a_cheaper_spot_node_unless_that_is_switched_on() {
    scenario(async |w| {
        w.apply(pool("default", |spec| {
            spec["template"]["spec"]["requirements"][0]["values"] = json!(["spot"]);
        }));
        w.start();
        w.apply(deployment("web", 3, "1", |_| ()));
        runs(w, "web", 3).await;
        let launched = w.cloud.bill().launches;
        w.scale("web", 1);
        w.pass(20 * MINUTE).await;
        assert_eq!(w.cloud.bill().launches, launched, "{}", tail(w));
    });
}

#[test]
fn a_price_that_falls_is_used_although_nothing_in_the_cluster_changes() {
    scenario(async |w| {
        w.apply(pool("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "3", |_| ()));
        runs(w, "web", 1).await;
        always(w, 20 * MINUTE, "it stays", |w| types(w) == ["c4"]).await;
        w.cloud.set_prices(|kind, _| (kind == "c8").then_some(0.01));
        until(w, 3 * MINUTE, "the cheaper type is taken", |w| types(w) == ["c8"]).await;
    });
}
