//! What consolidation puts in the place of nodes: fewer, cheaper, several, spot for spot.

use std::sync::Arc;

use karpenter::model::World;
use serde_json::{Value, json};

use crate::support::*;

fn spot(spec: &mut Value) {
    spec["template"]["spec"]["requirements"][0]["values"] = json!(["spot"]);
}

/// A pool whose nodes have to be of one type for now.
fn confined(w: &World, kind: &str) {
    w.change("nodepools", "", "default", "", |p| only_types(&mut p["spec"], &[kind]));
}

/// Takes back what [`confined`] asked for, without drift.
fn freed(w: &World) {
    w.change("nodepools", "", "default", "", |p| {
        p["spec"]["template"]["spec"]["requirements"].as_array_mut().unwrap().truncate(1);
    });
}

#[test]
fn two_nodes_become_one_that_is_cheaper() {
    scenario(async |w| {
        w.apply(pool("default", |_| ()));
        confined(w, "c8");
        w.start();
        w.apply(deployment("web", 2, "5", |_| ()));
        runs(w, "web", 2).await;
        assert_eq!(types(w), ["c8", "c8"]);
        let launched = w.cloud.bill().launches;
        w.apply(deployment("small", 2, "1400m", |_| ()));
        w.delete("deployments", "web");
        freed(w);
        until(w, 30 * MINUTE, "one node", |w| types(w) == ["c4"] && w.running("small") == 2).await;
        assert_eq!(w.cloud.bill().launches, launched + 1, "{}", tail(w));
    });
}

#[test]
fn three_nodes_that_are_hardly_used_become_one() {
    scenario(async |w| {
        w.apply(pool("default", |_| ()));
        w.start();
        w.apply(deployment("web", 3, "3", apart("web")));
        runs(w, "web", 3).await;
        assert_eq!(types(w), ["c4", "c4", "c4"]);
        // Each of the nodes has room for one of them.
        w.apply(deployment("small", 3, "600m", |_| ()));
        runs(w, "small", 3).await;
        w.delete("deployments", "web");
        until(w, HOUR, "one small node", |w| types(w) == ["c2"] && w.running("small") == 3).await;
    });
}

#[test]
fn one_large_node_becomes_several_small_ones_only_where_that_is_asked_for() {
    let play = |asked: bool| {
        scenario(async move |w| {
            w.apply(pool("default", |_| ()));
            if asked {
                w.change("nodepools", "", "default", "", |p| {
                    p["metadata"]["annotations"] =
                        json!({ "karpenter.rs/consolidation-max-replacements": "3" });
                });
            }
            // Sixteen cores at a price at which two small nodes are far cheaper.
            w.cloud.set_prices(|kind, o| (kind == "c16").then_some(o.price * 3.0));
            confined(w, "c16");
            w.start();
            w.apply(deployment("web", 6, "1800m", |_| ()));
            runs(w, "web", 6).await;
            assert_eq!(types(w), ["c16"]);
            w.scale("web", 4);
            let _ = w.within(2 * MINUTE, |w| w.running("web") == 4).await;
            sell_out(w, &["c8"], Some(0));
            w.change("nodepools", "", "default", "", |p| {
                let kinds = json!(["c2", "c4", "c16"]);
                p["spec"]["template"]["spec"]["requirements"][1]["values"] = kinds;
            });
            w.pass(40 * MINUTE).await;
            assert_eq!(w.running("web"), 4);
            if asked {
                assert_eq!(types(w), ["c4", "c4"], "{}", tail(w));
            } else {
                assert_eq!(types(w), ["c16"], "{}", tail(w));
            }
        });
    };
    play(false);
    play(true);
}

fn spot_to_spot(
    gate: bool,
    types: Vec<Arc<karpenter::scheduling::instance_type::InstanceType>>,
) -> bool {
    let mut replaced = false;
    let change = |o: &mut karpenter::model::Options| {
        o.types = types;
        if gate {
            o.flags.push("--feature-gates=SpotToSpotConsolidation=true".to_owned());
        }
    };
    with(change, async |w| {
        w.apply(pool("default", spot));
        w.start();
        w.apply(deployment("web", 38, "1", |_| ()));
        runs(w, "web", 38).await;
        let launched = w.cloud.bill().launches;
        w.scale("web", 1);
        w.pass(40 * MINUTE).await;
        assert_eq!(w.running("web"), 1);
        replaced = w.cloud.bill().launches > launched;
        assert!(w.instances().iter().all(|i| i.capacity_type == "spot"));
    });
    replaced
}

#[test]
fn a_spot_node_is_replaced_by_a_cheaper_spot_node_where_that_is_switched_on() {
    assert!(spot_to_spot(true, many_types()));
    assert!(!spot_to_spot(false, many_types()));
}

#[test]
fn a_spot_node_is_not_replaced_where_fewer_than_fifteen_types_are_cheaper() {
    let types = many_types().into_iter().skip(8).collect();
    assert!(!spot_to_spot(true, types));
}

#[test]
fn an_on_demand_node_becomes_a_spot_node_where_the_pool_allows_both() {
    scenario(async |w| {
        w.apply(pool("default", |spec| {
            spec["template"]["spec"]["requirements"][0]["values"] = json!(["spot", "on-demand"]);
        }));
        for zone in ZONES {
            for kind in ["c2", "c4", "c8", "c16"] {
                w.cloud.set_left(kind, zone, "spot", Some(0));
            }
        }
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        assert_eq!(w.instances()[0].capacity_type, "on-demand");
        sell_out(w, &["c2", "c4", "c8", "c16"], None);
        until(w, HOUR, "spot", |w| {
            w.running("web") == 1 && w.instances().iter().all(|i| i.capacity_type == "spot")
        })
        .await;
        assert_eq!(w.instances().len(), 1);
    });
}

#[test]
fn when_everything_is_dear_nothing_is_replaced() {
    scenario(async |w| {
        oversized(w).await;
        w.cloud.set_prices(|kind, _| (kind != "c16").then_some(5.0));
        let launched = w.cloud.bill().launches;
        always(w, HOUR, "it stays", |w| types(w) == ["c16"]).await;
        assert_eq!(w.cloud.bill().launches, launched);
    });
}

#[test]
fn a_price_that_falls_is_used() {
    scenario(async |w| {
        w.apply(pool("default", |_| ()));
        w.start();
        w.apply(deployment("web", 3, "1", |_| ()));
        runs(w, "web", 3).await;
        assert_eq!(types(w), ["c4"]);
        w.cloud.set_prices(|kind, _| (kind == "c8").then_some(0.01));
        until(w, HOUR, "the cheap one", |w| types(w) == ["c8"] && w.running("web") == 3).await;
    });
}

#[test]
fn pods_that_must_be_apart_keep_their_nodes() {
    scenario(async |w| {
        w.apply(pool("default", |_| ()));
        w.start();
        w.apply(deployment("web", 4, "100m", apart("web")));
        runs(w, "web", 4).await;
        let claims = w.names("nodeclaims");
        always(w, HOUR, "the same four", |w| w.names("nodeclaims") == claims).await;
    });
}

#[test]
fn pods_spread_over_zones_stay_so_while_nodes_are_consolidated() {
    scenario(async |w| {
        w.apply(pool("default", |_| ()));
        for zone in ZONES {
            w.apply(deployment(&format!("big-{zone}"), 1, "6", |t| {
                t["spec"]["nodeSelector"] = json!({ "topology.kubernetes.io/zone": zone });
            }));
        }
        w.start();
        // Kubernetes spreads over the zones that have nodes, so all have one before the pods come.
        for zone in ZONES {
            runs(w, &format!("big-{zone}"), 1).await;
        }
        w.apply(deployment("web", 3, "300m", |t| {
            t["spec"]["topologySpreadConstraints"] = json!([{ "maxSkew": 1,
                "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": { "matchLabels": { "app": "web" } } }]);
        }));
        runs(w, "web", 3).await;
        for zone in ZONES {
            w.delete("deployments", &format!("big-{zone}"));
        }
        w.pass(HOUR).await;
        assert_eq!(w.running("web"), 3, "{}", tail(w));
        let mut zones: Vec<String> = w.instances().iter().map(|i| i.zone.clone()).collect();
        zones.sort();
        assert_eq!(zones, ZONES, "{}", tail(w));
        assert_eq!(types(w), ["c2", "c2", "c2"]);
    });
}

#[test]
fn a_pool_that_consolidates_empty_nodes_only_keeps_the_others() {
    scenario(async |w| {
        w.apply(pool("default", |spec| {
            spec["disruption"]["consolidationPolicy"] = json!("WhenEmpty");
        }));
        w.start();
        alone_on_a_large_node(w).await;
        always(w, HOUR, "it stays", |w| types(w) == ["c16"]).await;
        w.scale("web", 0);
        until(w, 10 * MINUTE, "it goes", |w| w.instances().is_empty()).await;
    });
}

#[test]
fn a_pool_that_never_consolidates_keeps_even_empty_nodes() {
    scenario(async |w| {
        w.apply(pool("default", |spec| spec["disruption"]["consolidateAfter"] = json!("Never")));
        w.start();
        w.apply(deployment("web", 2, "1", |_| ()));
        runs(w, "web", 2).await;
        w.scale("web", 0);
        always(w, HOUR, "it stays", |w| w.instances().len() == 1).await;
    });
}

#[test]
fn a_pod_that_tolerates_disruption_moves_from_one_pool_to_a_cheaper_one() {
    scenario(async |w| {
        w.apply(pool("default", |spec| only_types(spec, &["c8"])));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        assert_eq!(types(w), ["c8"]);
        w.apply(pool("cheap", |spec| only_types(spec, &["c2"])));
        until(w, HOUR, "in the cheap pool", |w| types(w) == ["c2"] && w.running("web") == 1).await;
        assert_eq!(nodes_of(w, "cheap").len(), 1);
    });
}

#[test]
fn a_daemon_alone_keeps_no_node() {
    scenario(async |w| {
        w.apply(pool("default", |_| ()));
        w.apply(daemon_set("agent", "100m", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        runs(w, "agent", 1).await;
        w.scale("web", 0);
        until(w, 10 * MINUTE, "it goes", |w| w.instances().is_empty()).await;
    });
}
