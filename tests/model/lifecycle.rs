//! The stages of a NodeClaim's life, and what ends it early.

use std::time::Duration;

use serde_json::json;

use crate::support::*;

#[test]
fn a_claim_is_launched_registered_and_initialized() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        until(w, 5 * MINUTE, "the claim is ready", |w| {
            w.all("nodeclaims").iter().all(|c| {
                ["Launched", "Registered", "Initialized", "Ready"]
                    .iter()
                    .all(|kind| condition(c, kind) == Some("True"))
            })
        })
        .await;
        let node = w.all("nodes").remove(0);
        let labels = &node["metadata"]["labels"];
        assert_eq!(labels["karpenter.sh/registered"], "true");
        assert_eq!(labels["karpenter.sh/initialized"], "true");
        assert_eq!(labels["karpenter.sh/nodepool"], "default");
        let finalizers = node["metadata"]["finalizers"].as_array().unwrap();
        assert!(finalizers.contains(&json!("karpenter.sh/termination")));
        let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        assert!(!taints.iter().any(|t| t["key"] == "karpenter.sh/unregistered"), "{taints:?}");
    });
}

#[test]
fn an_instance_that_never_joins_is_replaced_after_fifteen_minutes() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.cloud.never_join(1);
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        until(w, 2 * MINUTE, "one is launched", |w| w.instances().len() == 1).await;
        let first = w.instances().remove(0).provider_id.clone();
        always(w, 13 * MINUTE, "it is waited for", |w| {
            w.instances().iter().any(|i| i.provider_id == first)
        })
        .await;
        runs(w, "web", 1).await;
        until(w, 5 * MINUTE, "only the new one is left", |w| {
            w.cloud.instances().len() == 1 && w.instances()[0].provider_id != first
        })
        .await;
    });
}

#[test]
fn a_startup_taint_is_waited_for() {
    scenario(async |w| {
        w.apply(calm("default", |spec| {
            spec["template"]["spec"]["startupTaints"] =
                json!([{ "key": "example.com/starting", "effect": "NoSchedule" }]);
        }));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        until(w, 5 * MINUTE, "registered", |w| {
            w.all("nodeclaims").iter().any(|c| condition(c, "Registered") == Some("True"))
        })
        .await;
        always(w, 5 * MINUTE, "not initialized", |w| {
            w.all("nodeclaims").iter().all(|c| condition(c, "Initialized") != Some("True"))
        })
        .await;
        assert_eq!(w.instances().len(), 1);
        let node = w.names("nodes").remove(0);
        w.change("nodes", "", &node, "", |n| {
            n["spec"]["taints"]
                .as_array_mut()
                .unwrap()
                .retain(|t| t["key"] != "example.com/starting");
        });
        runs(w, "web", 1).await;
        until(w, 5 * MINUTE, "initialized", |w| {
            w.all("nodeclaims").iter().all(|c| condition(c, "Initialized") == Some("True"))
        })
        .await;
    });
}

#[test]
fn a_claim_whose_instance_vanished_is_collected_and_its_pods_move() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 2, "1", |_| ()));
        runs(w, "web", 2).await;
        let first = w.instances().remove(0).provider_id.clone();
        w.cloud.vanish(&first);
        until(w, 30 * MINUTE, "the pods run elsewhere", |w| {
            w.running("web") == 2
                && w.instances().len() == 1
                && w.names("nodeclaims").len() == 1
                && w.names("nodes").len() == 1
        })
        .await;
    });
}

#[test]
fn an_instance_without_a_claim_is_removed() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        let stray: karpenter::api::v1::NodeClaim = serde_json::from_value(json!({
            "apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
            "metadata": { "name": "stray", "uid": "11111111-1111-4111-8111-111111111111" },
            "spec": { "nodeClassRef": { "group": "karpenter.k8s.aws", "kind": "EC2NodeClass",
                "name": "default" }, "requirements": [] } }))
        .unwrap();
        w.cloud.launch(&stray).await.unwrap();
        assert_eq!(w.instances().len(), 1);
        until(w, 10 * MINUTE, "it goes", |w| w.cloud.instances().is_empty()).await;
    });
}

#[test]
fn a_node_expires_and_is_replaced() {
    scenario(async |w| {
        w.apply(calm("default", |spec| spec["template"]["spec"]["expireAfter"] = json!("30m")));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        let first = w.instances().remove(0).provider_id.clone();
        w.pass(20 * MINUTE).await;
        assert_eq!(w.instances()[0].provider_id, first);
        until(w, HOUR, "another one", |w| {
            w.running("web") == 1 && w.cloud.instances().iter().all(|i| i.provider_id != first)
        })
        .await;
    });
}

#[test]
fn a_spot_node_whose_end_is_announced_is_left_in_time() {
    scenario(async |w| {
        w.apply(calm("default", |spec| {
            spec["template"]["spec"]["requirements"][0]["values"] = json!(["spot"]);
        }));
        w.start();
        w.apply(deployment("web", 3, "1", |_| ()));
        runs(w, "web", 3).await;
        let first = w.instances().remove(0).provider_id.clone();
        w.cloud.interrupt(&first);
        until(w, 3 * MINUTE, "the pods run elsewhere", |w| {
            w.running("web") == 3 && w.instances().iter().all(|i| i.provider_id != first)
        })
        .await;
    });
}

#[test]
fn a_node_that_stays_sick_is_repaired() {
    with(
        |o| o.flags.push("--feature-gates=NodeRepair=true".to_owned()),
        async |w| {
            w.apply(calm("default", |_| ()));
            w.start();
            // One of many: repairs stop when too many are sick.
            w.apply(deployment("web", 6, "1", |t| {
                t["spec"]["affinity"] = json!({ "podAntiAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": [{
                        "topologyKey": "kubernetes.io/hostname",
                        "labelSelector": { "matchLabels": { "app": "web" } } }] } });
            }));
            runs(w, "web", 6).await;
            w.pass(5 * MINUTE).await;
            assert_eq!(w.instances().len(), 6);
            let first = w.instances().remove(0);
            w.cloud.sicken(&first.provider_id);
            always(w, 25 * MINUTE, "waited out", |w| {
                w.instances().iter().any(|i| i.provider_id == first.provider_id)
            })
            .await;
            until(w, 30 * MINUTE, "replaced", |w| {
                w.instances().iter().all(|i| i.provider_id != first.provider_id)
            })
            .await;
        },
    );
}

#[test]
fn lists_that_lag_behind_make_no_second_instance_and_lose_none() {
    with(
        |o| o.behaviour.consistency = Duration::from_secs(90),
        async |w| {
            w.apply(calm("default", |_| ()));
            w.start();
            w.apply(deployment("web", 5, "1", |_| ()));
            runs(w, "web", 5).await;
            let before = w.cloud.bill().launches;
            w.pass(30 * MINUTE).await;
            assert_eq!(w.running("web"), 5);
            assert_eq!(w.cloud.bill().launches, before);
        },
    );
}
