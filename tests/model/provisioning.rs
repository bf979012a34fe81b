//! From a pending pod to a node.

use karpenter::model::cloud::CloudError;
use serde_json::json;

use crate::support::*;

#[test]
fn a_pending_pod_gets_a_node() {
    scenario(async |w| {
        w.apply(pool("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        assert_eq!(types(w), ["c2"]);
        assert_eq!(w.names("nodeclaims").len(), 1);
    });
}

#[test]
fn pods_that_come_together_share_a_node() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 7, "1", |_| ()));
        runs(w, "web", 7).await;
        assert_eq!(types(w), ["c8"]);
    });
}

#[test]
fn without_a_pool_nothing_is_launched() {
    scenario(async |w| {
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        always(w, 10 * MINUTE, "no instance", |w| w.instances().is_empty()).await;
    });
}

#[test]
fn a_pod_that_fits_no_type_launches_nothing_and_is_told() {
    scenario(async |w| {
        w.apply(pool("default", |_| ()));
        w.start();
        w.apply(deployment("huge", 1, "64", |_| ()));
        always(w, 10 * MINUTE, "no instance", |w| w.instances().is_empty()).await;
        assert!(reasons(w, "Pod").contains(&"FailedScheduling".to_owned()));
    });
}

#[test]
fn a_limit_is_never_passed() {
    scenario(async |w| {
        w.apply(pool("default", |spec| spec["limits"] = json!({ "cpu": "8" })));
        w.start();
        w.apply(deployment("web", 20, "1", |_| ()));
        always(w, 10 * MINUTE, "at most eight cores", |w| {
            w.instances().iter().map(|i| i.capacity.get(&"cpu".into())).sum::<i64>() <= 8000
        })
        .await;
        assert!(w.running("web") >= 7, "{}", w.running("web"));
    });
}

#[test]
fn pods_spread_over_zones() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 6, "1", |t| {
            t["spec"]["topologySpreadConstraints"] = json!([{ "maxSkew": 1,
                "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": { "matchLabels": { "app": "web" } } }]);
        }));
        runs(w, "web", 6).await;
        let mut zones: Vec<String> = w.instances().iter().map(|i| i.zone.clone()).collect();
        zones.sort();
        zones.dedup();
        assert_eq!(zones, ZONES);
    });
}

#[test]
fn pods_that_must_be_apart_get_a_node_each() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 4, "100m", |t| {
            t["spec"]["affinity"] = json!({ "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [{
                    "topologyKey": "kubernetes.io/hostname",
                    "labelSelector": { "matchLabels": { "app": "web" } } }] } });
        }));
        runs(w, "web", 4).await;
        assert_eq!(w.instances().len(), 4);
    });
}

#[test]
fn a_node_selector_chooses_the_zone() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |t| {
            t["spec"]["nodeSelector"] = json!({ "topology.kubernetes.io/zone": "c" });
        }));
        runs(w, "web", 1).await;
        assert_eq!(w.instances()[0].zone, "c");
    });
}

#[test]
fn taints_keep_out_pods_that_do_not_tolerate_them() {
    scenario(async |w| {
        w.apply(calm("tainted", |spec| {
            spec["template"]["spec"]["taints"] =
                json!([{ "key": "only", "value": "batch", "effect": "NoSchedule" }]);
        }));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        w.apply(deployment("batch", 1, "1", |t| {
            t["spec"]["tolerations"] = json!([{ "key": "only", "operator": "Exists" }]);
        }));
        runs(w, "batch", 1).await;
        always(w, 5 * MINUTE, "web waits", |w| w.running("web") == 0).await;
    });
}

#[test]
fn the_heavier_pool_is_used_first() {
    scenario(async |w| {
        w.apply(calm("light", |_| ()));
        w.apply(calm("heavy", |spec| spec["weight"] = json!(50)));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        let claims = w.all("nodeclaims");
        assert_eq!(claims[0]["metadata"]["labels"]["karpenter.sh/nodepool"], "heavy");
    });
}

#[test]
fn spot_is_taken_where_both_are_allowed() {
    scenario(async |w| {
        w.apply(calm("default", |spec| {
            spec["template"]["spec"]["requirements"] = json!([{
                "key": "karpenter.sh/capacity-type", "operator": "In",
                "values": ["spot", "on-demand"] }]);
        }));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        assert_eq!(w.instances()[0].capacity_type, "spot");
    });
}

#[test]
fn what_daemons_request_is_room_that_pods_do_not_get() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.apply(daemon_set("agent", "500m", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1800m", |_| ()));
        runs(w, "web", 1).await;
        runs(w, "agent", 1).await;
        assert_eq!(types(w), ["c4"]);
    });
}

#[test]
fn what_cannot_be_had_in_one_zone_is_taken_in_another() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        for zone in ["a", "b"] {
            w.cloud.set_left("c2", zone, "on-demand", Some(0));
        }
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        assert_eq!(w.instances()[0].zone, "c");
    });
}

#[test]
fn without_capacity_the_claim_is_given_up_and_another_type_is_found() {
    scenario(async |w| {
        w.apply(calm("default", |spec| {
            spec["template"]["spec"]["requirements"].as_array_mut().unwrap().push(json!({
                "key": "node.kubernetes.io/instance-type", "operator": "In",
                "values": ["c2", "c4"] }));
        }));
        w.cloud.fail_next(CloudError::InsufficientCapacity("none".to_owned()));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        assert_eq!(w.instances().len(), 1);
        assert!(reasons(w, "NodeClaim").contains(&"InsufficientCapacityError".to_owned()));
    });
}

#[test]
fn a_launch_that_fails_is_tried_again() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        for _ in 0..3 {
            w.cloud.fail_next(CloudError::Failed("not now".to_owned()));
        }
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        assert_eq!((w.instances().len(), w.names("nodeclaims").len()), (1, 1));
    });
}

#[test]
fn a_pool_that_is_being_deleted_takes_no_pods() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        w.delete("nodepools", "default");
        until(w, 10 * MINUTE, "the nodes go", |w| w.instances().is_empty()).await;
        always(w, 5 * MINUTE, "no new one", |w| w.instances().is_empty()).await;
    });
}

#[test]
fn pods_of_a_job_get_nodes_and_the_nodes_go_after_it() {
    scenario(async |w| {
        w.apply(pool("default", |_| ()));
        w.start();
        w.apply(json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "j" },
            "spec": { "completions": 4, "parallelism": 4, "template": {
                "metadata": { "labels": { "app": "j" },
                    "annotations": { "model.karpenter.sh/run-for": "120" } },
                "spec": { "restartPolicy": "Never", "containers": [{ "name": "c",
                    "image": "image", "resources": { "requests": { "cpu": "1" } } }] } } } }));
        until(w, 10 * MINUTE, "four succeed", |w| {
            w.get("jobs", "j").is_some_and(|j| j["status"]["succeeded"] == 4)
        })
        .await;
        until(w, 10 * MINUTE, "no node is left", |w| w.names("nodes").is_empty()).await;
    });
}

#[test]
fn a_static_pool_keeps_its_replicas() {
    with(
        |o| o.flags.push("--feature-gates=StaticCapacity=true".to_owned()),
        async |w| {
            w.apply(pool("static", |spec| {
                spec["replicas"] = json!(3);
                spec.as_object_mut().unwrap().remove("disruption");
            }));
            w.start();
            until(w, 10 * MINUTE, "three nodes", |w| usable(w) == 3).await;
            let first = w.instances().remove(0);
            w.cloud.vanish(&first.provider_id);
            until(w, 20 * MINUTE, "three again", |w| usable(w) == 3 && w.instances().len() == 3)
                .await;
            w.change("nodepools", "", "static", "", |p| p["spec"]["replicas"] = json!(1));
            until(w, 20 * MINUTE, "one", |w| w.instances().len() == 1).await;
        },
    );
}

#[test]
fn the_same_seed_gives_the_same_journal() {
    let play = || {
        let mut digest = None;
        karpenter::model::in_runtime(7, async || {
            let mut w = karpenter::model::World::new(karpenter::model::Options::new(7, catalog()));
            w.apply(pool("default", |_| ()));
            w.start();
            w.apply(deployment("web", 9, "1", |_| ()));
            w.pass(10 * MINUTE).await;
            w.scale("web", 2);
            w.pass(10 * MINUTE).await;
            digest = Some((w.journal.digest(), w.journal.tail(100_000)));
        });
        digest.unwrap()
    };
    let (one, two) = (play(), play());
    for (a, b) in one.1.iter().zip(&two.1) {
        assert_eq!(a, b);
    }
    assert_eq!(one.0, two.0);
}
