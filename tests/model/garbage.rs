//! What is left over on either side is found and removed, and nothing else.

use karpenter::model::World;
use karpenter::model::cloud::{CloudFault, Plan};
use serde_json::json;

use crate::support::*;

/// Answers of these calls are lost while it lasts.
struct Lost(&'static str, u32);

impl Plan for Lost {
    fn fault(&mut self, call: &'static str) -> Option<CloudFault> {
        if call != self.0 || self.1 == 0 {
            return None;
        }
        self.1 -= 1;
        Some(CloudFault::Lost)
    }
}

async fn stray(w: &World, uid: &str) {
    let claim: karpenter::api::v1::NodeClaim = serde_json::from_value(json!({
        "apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
        "metadata": { "name": format!("stray-{uid}"), "uid": uid },
        "spec": { "nodeClassRef": { "group": "karpenter.k8s.aws", "kind": "EC2NodeClass",
            "name": "default" }, "requirements": [] } }))
    .unwrap();
    w.cloud.launch(&claim).await.unwrap();
}

async fn two_pods(w: &mut World) {
    w.apply(calm("default", |_| ()));
    w.start();
    w.apply(deployment("web", 2, "1", apart("web")));
    runs(w, "web", 2).await;
}

#[test]
fn a_stray_instance_goes_and_the_others_stay() {
    scenario(async |w| {
        two_pods(w).await;
        let own: Vec<String> = w.instances().iter().map(|i| i.provider_id.clone()).collect();
        stray(w, "1").await;
        stray(w, "2").await;
        until(w, 10 * MINUTE, "two are left", |w| w.instances().len() == 2).await;
        always(w, HOUR, "they are the first two", |w| {
            w.instances().iter().all(|i| own.contains(&i.provider_id)) && w.running("web") == 2
        })
        .await;
    });
}

#[test]
fn a_claim_whose_launch_was_answered_and_lost_many_times_has_one_instance() {
    scenario(async |w| {
        w.cloud.set_faults(Lost("create", 5));
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        always(w, 20 * MINUTE, "one instance", |w| w.cloud.instances().len() == 1).await;
    });
}

#[test]
fn a_claim_that_is_deleted_after_a_lost_answer_leaves_no_instance() {
    scenario(async |w| {
        w.cloud.set_faults(Lost("create", 1000));
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        until(w, 5 * MINUTE, "an instance", |w| !w.cloud.instances().is_empty()).await;
        w.delete("deployments", "web");
        for name in w.names("nodeclaims") {
            w.delete("nodeclaims", &name);
        }
        w.cloud.set_faults(Lost("create", 0));
        until(w, 30 * MINUTE, "nothing is left", |w| {
            w.cloud.instances().is_empty() && w.names("nodeclaims").is_empty()
        })
        .await;
    });
}

#[test]
fn an_end_whose_answer_was_lost_is_an_end() {
    scenario(async |w| {
        two_pods(w).await;
        w.cloud.set_faults(Lost("delete", 3));
        let node = node_of(w, "web");
        delete_claim_of(w, &node);
        until(w, 20 * MINUTE, "gone and made up for", |w| {
            !w.names("nodes").contains(&node)
                && w.running("web") == 2
                && w.cloud.instances().len() == 2
                && w.names("nodeclaims").len() == 2
        })
        .await;
    });
}

#[test]
fn claims_whose_instances_all_vanished_are_all_collected() {
    scenario(async |w| {
        two_pods(w).await;
        let old = w.names("nodeclaims");
        for instance in w.instances() {
            w.cloud.vanish(&instance.provider_id);
        }
        until(w, HOUR, "two new ones", |w| {
            w.running("web") == 2 && w.names("nodeclaims").iter().all(|n| !old.contains(n))
        })
        .await;
    });
}

#[test]
fn an_instance_that_vanished_before_it_registered_is_made_again() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        until(w, 5 * MINUTE, "launched", |w| w.instances().len() == 1).await;
        let first = w.instances().remove(0);
        w.cloud.vanish(&first.provider_id);
        until(w, 40 * MINUTE, "it runs", |w| w.running("web") == 1).await;
        until(w, 10 * MINUTE, "one of each", |w| {
            w.names("nodeclaims").len() == 1 && w.cloud.instances().len() == 1
        })
        .await;
    });
}

#[test]
fn an_instance_whose_claim_was_removed_by_force_goes() {
    scenario(async |w| {
        two_pods(w).await;
        let first = w.instances().remove(0);
        w.change("nodeclaims", "", &first.claim, "", |c| c["metadata"]["finalizers"] = json!([]));
        w.delete("nodeclaims", &first.claim);
        until(w, 30 * MINUTE, "it goes", |w| {
            w.cloud.instances().iter().all(|i| i.provider_id != first.provider_id)
        })
        .await;
        until(w, 20 * MINUTE, "both run", |w| w.running("web") == 2).await;
        assert_eq!(w.cloud.instances().len(), 2);
    });
}

#[test]
fn a_node_that_nobody_manages_is_left_alone() {
    scenario(async |w| {
        two_pods(w).await;
        w.apply(json!({ "kind": "Node", "metadata": { "name": "own", "labels": {
                "kubernetes.io/hostname": "own" } },
            "spec": {},
            "status": { "allocatable": { "cpu": "4", "memory": "8Gi", "pods": "10" },
                "conditions": [{ "type": "Ready", "status": "True" }] } }));
        always(w, HOUR, "it stays", |w| {
            w.get("nodes", "own").is_some_and(|n| n["metadata"]["deletionTimestamp"].is_null())
        })
        .await;
        assert!(w.get("nodes", "own").unwrap()["metadata"]["finalizers"].is_null());
    });
}

#[test]
fn what_came_and_went_while_the_controllers_were_dead_is_put_in_order() {
    scenario(async |w| {
        two_pods(w).await;
        w.kill().await;
        let first = w.instances().remove(0);
        w.cloud.vanish(&first.provider_id);
        stray(w, "1").await;
        w.scale("web", 3);
        w.pass(10 * MINUTE).await;
        w.start();
        until(w, HOUR, "three of each", |w| {
            w.running("web") == 3
                && w.cloud.instances().len() == 3
                && w.names("nodeclaims").len() == 3
                && w.names("nodes").len() == 3
        })
        .await;
    });
}

#[test]
fn a_node_that_comes_up_before_lists_show_its_instance_stays() {
    let late = |o: &mut karpenter::model::Options| {
        o.behaviour.consistency = 10 * MINUTE;
        // Collected every two minutes: what is ready is let be anyway.
        o.pace.ready = 5 * MINUTE;
    };
    with(late, async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        until(w, 5 * MINUTE, "a node", |w| !w.names("nodes").is_empty()).await;
        let first = w.names("nodeclaims");
        always(w, 9 * MINUTE, "it stays", |w| w.names("nodeclaims") == first).await;
        runs(w, "web", 1).await;
    });
}
