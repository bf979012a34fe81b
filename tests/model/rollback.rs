//! Commands that cannot go on: what they marked is freed, and nothing is launched in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use karpenter::model::World;
use karpenter::model::api::{Call, Fault, FaultPlan};
use karpenter::model::cloud::CloudError;
use serde_json::json;

use crate::restart::{HangOn, kill_when};
use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn no_node_is_launched_for_pods_of_a_marked_node_whose_replacement_failed() {
    scenario(async |w| {
        oversized(w).await;
        let launched = w.cloud.bill().launches;
        sell_out(w, &["c2", "c4", "c8"], Some(0));
        let made = w.names("nodeclaims");
        until(w, 30 * MINUTE, "a replacement is refused", |w| refused(w) > 0).await;
        always(w, 10 * MINUTE, "only replacements are made", |w| {
            w.names("nodeclaims").iter().all(|n| made.contains(n) || replacements(w).contains(n))
        })
        .await;
        assert_eq!(w.cloud.bill().launches, launched, "{}", tail(w));
    });
}

#[test]
fn a_failed_replacement_frees_its_node_at_once() {
    scenario(async |w| {
        oversized(w).await;
        w.cloud.fail_next(CloudError::InsufficientCapacity("none".to_owned()));
        until(w, 30 * MINUTE, "a replacement is refused", |w| refused(w) > 0).await;
        until(w, SECOND, "nothing is marked", |w| marked(w).is_empty()).await;
    });
}

#[test]
fn a_replacement_deleted_by_hand_frees_its_node() {
    scenario(async |w| {
        oversized(w).await;
        let node = node_of(w, "web");
        let new = replacement_begins(w).await;
        w.delete("nodeclaims", &new);
        until(w, 3 * SECOND, "nothing is marked", |w| marked(w).is_empty()).await;
        assert!(w.names("nodes").contains(&node));
        until(w, HOUR, "a small one in the end", |w| types(w) == ["c2"] && w.running("web") == 1)
            .await;
    });
}

#[test]
fn a_replacement_that_never_joins_is_given_up_after_ten_minutes() {
    scenario(async |w| {
        oversized(w).await;
        let node = node_of(w, "web");
        w.cloud.never_join(1);
        let new = replacement_begins(w).await;
        always(w, 9 * MINUTE, "the node stays marked", |w| marked(w) == [node.clone()]).await;
        until(w, 2 * MINUTE, "the replacement goes", |w| !w.names("nodeclaims").contains(&new))
            .await;
        assert!(w.names("nodes").contains(&node), "{}", tail(w));
        until(w, HOUR, "a small one in the end", |w| types(w) == ["c2"] && w.running("web") == 1)
            .await;
    });
}

#[test]
fn a_replacement_that_never_initializes_is_given_up() {
    scenario(async |w| {
        oversized(w).await;
        let node = node_of(w, "web");
        w.change("nodepools", "", "default", "", |p| {
            p["spec"]["disruption"]["budgets"] =
                json!([{ "nodes": "100%" }, { "nodes": "0", "reasons": ["Drifted"] }]);
            p["spec"]["template"]["spec"]["startupTaints"] =
                json!([{ "key": "example.com/starting", "effect": "NoSchedule" }]);
        });
        let new = replacement_begins(w).await;
        until(w, 15 * MINUTE, "it goes", |w| !w.names("nodeclaims").contains(&new)).await;
        assert_eq!((w.running("web"), node_of(w, "web")), (1, node));
    });
}

#[test]
fn the_vanished_instance_of_a_replacement_frees_the_node() {
    scenario(async |w| {
        oversized(w).await;
        let node = node_of(w, "web");
        let new = replacement_begins(w).await;
        until(w, MINUTE, "launched", |w| w.instances().iter().any(|i| i.claim == new)).await;
        let id = w.instances().iter().find(|i| i.claim == new).unwrap().provider_id.clone();
        w.cloud.vanish(&id);
        until(w, 15 * MINUTE, "nothing is marked", |w| marked(w).is_empty()).await;
        assert!(w.names("nodes").contains(&node) || w.running("web") == 1);
        until(w, HOUR, "a small one in the end", |w| types(w) == ["c2"] && w.running("web") == 1)
            .await;
    });
}

#[test]
fn a_node_deleted_while_its_replacement_starts_loses_no_pod() {
    scenario(async |w| {
        oversized(w).await;
        let node = node_of(w, "web");
        replacement_begins(w).await;
        w.delete("nodes", &node);
        until(w, 20 * MINUTE, "it runs on the replacement", |w| {
            w.running("web") == 1 && types(w) == ["c2"]
        })
        .await;
        assert_eq!(w.cloud.bill().launches, 2, "{}", tail(w));
    });
}

#[test]
fn a_pool_deleted_while_a_replacement_starts_leaves_nothing_behind() {
    scenario(async |w| {
        oversized(w).await;
        replacement_begins(w).await;
        w.delete("nodepools", "default");
        until(w, 20 * MINUTE, "all is gone", |w| {
            w.cloud.instances().is_empty() && w.names("nodeclaims").is_empty()
        })
        .await;
    });
}

#[test]
fn killed_while_a_replacement_fails_the_node_is_freed() {
    scenario(async |w| {
        oversized(w).await;
        let launched = w.cloud.bill().launches;
        sell_out(w, &["c2", "c4", "c8"], Some(0));
        let done = Arc::new(AtomicBool::new(false));
        w.server.set_faults(HangOn {
            verb: "create",
            plural: "nodeclaims",
            fault: Fault::HangAfter,
            done: Arc::clone(&done),
        });
        kill_when(w, &done).await;
        until(w, 5 * MINUTE, "nothing is marked", |w| marked(w).is_empty()).await;
        w.pass(20 * MINUTE).await;
        assert_eq!((w.running("web"), w.instances().len()), (1, 1), "{}", tail(w));
        assert_eq!(w.cloud.bill().launches, launched);
    });
}

#[test]
fn a_replacement_that_vanished_while_nobody_looked_frees_the_node() {
    scenario(async |w| {
        oversized(w).await;
        let node = node_of(w, "web");
        let new = replacement_begins(w).await;
        w.kill().await;
        w.change("nodeclaims", "", &new, "", |c| c["metadata"]["finalizers"] = json!([]));
        w.delete("nodeclaims", &new);
        w.start();
        until(w, 3 * MINUTE, "the first node is free", |w| !marked(w).contains(&node)).await;
        until(w, HOUR, "a small one in the end", |w| types(w) == ["c2"] && w.running("web") == 1)
            .await;
        until(w, 10 * MINUTE, "no other instance", |w| w.cloud.instances().len() == 1).await;
    });
}

#[test]
fn drift_whose_replacement_fails_leaves_the_node_and_its_pods() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        w.pass(2 * MINUTE).await;
        let (node, launched) = (node_of(w, "web"), w.cloud.bill().launches);
        sell_out(w, &["c2", "c4", "c8", "c16"], Some(0));
        w.cloud.drift(&claim_of(w, &node), "AMIDrift");
        let pod = w.pods_of("web").remove(0);
        always(w, 20 * MINUTE, "the same pod runs", |w| {
            w.pods_of("web").iter().all(|p| p["metadata"]["uid"] == pod["metadata"]["uid"])
        })
        .await;
        assert_eq!(w.cloud.bill().launches, launched);
        until(w, MINUTE, "nothing is marked", |w| marked(w).is_empty()).await;
    });
}

#[test]
fn pods_that_come_meanwhile_do_not_take_the_room_of_a_replacement() {
    scenario(async |w| {
        oversized(w).await;
        replacement_begins(w).await;
        // The replacement has two cores, of which one is spoken for.
        w.apply(deployment("late", 1, "1500m", |_| ()));
        until(w, 20 * MINUTE, "both run, no third launch for them", |w| {
            w.running("web") == 1 && w.running("late") == 1 && marked(w).is_empty()
        })
        .await;
        let first = w.pods_of("web").remove(0);
        assert_ne!(first["spec"]["nodeName"], w.pods_of("late")[0]["spec"]["nodeName"]);
    });
}

/// Does something to the cluster as soon as a node gets the taint of a command.
struct AtTaint {
    done: Arc<AtomicBool>,
}

impl FaultPlan for AtTaint {
    fn fault(&mut self, call: &Call) -> Option<Fault> {
        let meant = call.verb == "patch" && call.kind.plural == "nodes";
        if meant && call.user == "karpenter" && !self.done.swap(true, Ordering::SeqCst) {
            // Time enough for the test to act between the decision and the taint.
            return Some(Fault::Delay(Duration::from_secs(20)));
        }
        None
    }
}

/// Plays until a command is about to write its taint, lets the test act, and goes on.
async fn between_decision_and_taint(w: &mut World, act: impl FnOnce(&World)) {
    oversized(w).await;
    until(w, 5 * MINUTE, "scaled down", |w| w.pods_of("web").len() == 1).await;
    let done = Arc::new(AtomicBool::new(false));
    w.server.set_faults(AtTaint { done: Arc::clone(&done) });
    until(w, 30 * MINUTE, "a taint is about to be written", |_| done.load(Ordering::SeqCst)).await;
    act(w);
    w.pass(30 * SECOND).await;
}

#[test]
fn a_pod_that_becomes_protected_between_decision_and_taint_stops_the_command() {
    scenario(async |w| {
        let mut pod = String::new();
        between_decision_and_taint(w, |w| {
            let name = w.pods_of("web")[0]["metadata"]["name"].as_str().unwrap().to_owned();
            w.change("pods", "default", &name, "", |p| {
                p["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] = json!("true");
            });
            pod = name;
        })
        .await;
        always(w, 20 * MINUTE, "the pod stays", |w| w.get("pods", &pod).is_some()).await;
        assert!(marked(w).is_empty() && replacements(w).is_empty(), "{}", tail(w));
    });
}

#[test]
fn a_pod_that_arrives_between_decision_and_taint_stops_the_command() {
    scenario(async |w| {
        let mut node = String::new();
        between_decision_and_taint(w, |w| {
            node = node_of(w, "web");
            w.apply(deployment("late", 6, "1", |_| ()));
        })
        .await;
        assert!(marked(w).is_empty() && replacements(w).is_empty(), "{}", tail(w));
        runs(w, "late", 6).await;
        assert_eq!(node_of(w, "late"), node, "the node was kept");
    });
}

#[test]
fn a_budget_of_pods_that_arrives_between_decision_and_taint_stops_the_command() {
    scenario(async |w| {
        let mut pod = String::new();
        between_decision_and_taint(w, |w| {
            pod = w.pods_of("web")[0]["metadata"]["name"].as_str().unwrap().to_owned();
            w.apply(budget("web", "maxUnavailable", json!(0)));
        })
        .await;
        always(w, 20 * MINUTE, "the pod stays", |w| w.get("pods", &pod).is_some()).await;
        assert!(replacements(w).is_empty(), "{}", tail(w));
    });
}

#[test]
fn a_node_that_is_annotated_while_it_is_validated_stays() {
    scenario(async |w| {
        oversized(w).await;
        let node = node_of(w, "web");
        until(w, 5 * MINUTE, "consolidatable", |w| {
            w.all("nodeclaims").iter().any(|c| condition(c, "Consolidatable") == Some("True"))
        })
        .await;
        // The decision waits for fifteen seconds before it is looked at again.
        w.pass(5 * SECOND).await;
        w.change("nodes", "", &node, "", |n| {
            n["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] = json!("true");
        });
        always(w, 20 * MINUTE, "it stays", |w| w.names("nodes").contains(&node)).await;
        assert!(replacements(w).is_empty(), "{}", tail(w));
    });
}

#[test]
fn marks_that_an_older_process_left_are_taken_back() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        w.kill().await;
        let node = node_of(w, "web");
        w.change("nodes", "", &node, "", |n| {
            n["spec"]["taints"] =
                json!([{ "key": "karpenter.sh/disrupted", "effect": "NoSchedule" }]);
        });
        w.start();
        until(w, 2 * MINUTE, "it is free", |w| marked(w).is_empty()).await;
        assert_eq!(w.running("web"), 1);
    });
}
