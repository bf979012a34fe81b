//! How nodes go: drained within budgets and grace periods, volumes detached, instances ended.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;

use crate::support::*;

#[test]
fn a_deleted_claim_drains_its_node_and_ends_its_instance() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 2, "1", |_| ()));
        runs(w, "web", 2).await;
        let node = node_of(w, "web");
        delete_claim_of(w, &node);
        until(w, 10 * MINUTE, "moved", |w| {
            w.running("web") == 2 && !w.names("nodes").contains(&node)
        })
        .await;
        until(w, 5 * MINUTE, "one instance is left", |w| w.cloud.instances().len() == 1).await;
        assert_eq!(w.names("nodeclaims").len(), 1);
    });
}

#[test]
fn a_deleted_node_takes_its_claim_with_it() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        let (node, claim) = (node_of(w, "web"), w.names("nodeclaims").remove(0));
        w.delete("nodes", &node);
        until(w, 10 * MINUTE, "both are gone", |w| {
            !w.names("nodes").contains(&node) && !w.names("nodeclaims").contains(&claim)
        })
        .await;
        runs(w, "web", 1).await;
    });
}

#[test]
fn a_budget_that_allows_nothing_holds_the_drain() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 2, "1", |_| ()));
        w.apply(budget("web", "maxUnavailable", json!(0)));
        runs(w, "web", 2).await;
        w.pass(MINUTE).await;
        let node = node_of(w, "web");
        delete_claim_of(w, &node);
        always(w, 10 * MINUTE, "the pods stay", |w| w.running("web") == 2).await;
        assert!(w.names("nodes").contains(&node));
        assert!(reasons(w, "Node").contains(&"FailedDraining".to_owned()));
        w.delete("poddisruptionbudgets", "web");
        until(w, 10 * MINUTE, "the node goes", |w| !w.names("nodes").contains(&node)).await;
        runs(w, "web", 2).await;
    });
}

#[test]
fn a_budget_lets_pods_go_one_at_a_time() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 4, "1", |_| ()));
        w.apply(budget("web", "maxUnavailable", json!(1)));
        runs(w, "web", 4).await;
        w.pass(MINUTE).await;
        let node = node_of(w, "web");
        delete_claim_of(w, &node);
        let healthy = |w: &karpenter::model::World| {
            w.pods_of("web").iter().filter(|p| condition(p, "Ready") == Some("True")).count() >= 3
        };
        always(w, 10 * MINUTE, "three are always healthy", healthy).await;
        assert_eq!(w.running("web"), 4);
        assert!(!w.names("nodes").contains(&node));
    });
}

#[test]
fn a_grace_period_of_the_node_ends_even_what_a_budget_holds() {
    scenario(async |w| {
        w.apply(calm("default", |spec| {
            spec["template"]["spec"]["terminationGracePeriod"] = json!("10m");
        }));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        w.apply(budget("web", "maxUnavailable", json!(0)));
        runs(w, "web", 1).await;
        let node = node_of(w, "web");
        delete_claim_of(w, &node);
        always(w, 8 * MINUTE, "it stays for a while", |w| w.names("nodes").contains(&node)).await;
        until(w, 10 * MINUTE, "it goes", |w| !w.names("nodes").contains(&node)).await;
        assert!(reasons(w, "NodeClaim").contains(&"TerminationGracePeriodExpiring".to_owned()));
        runs(w, "web", 1).await;
    });
}

#[test]
fn a_pod_that_must_not_be_disrupted_holds_the_drain() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |t| {
            t["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] = json!("true");
        }));
        runs(w, "web", 1).await;
        let (node, pod) = (node_of(w, "web"), w.pods_of("web").remove(0));
        delete_claim_of(w, &node);
        always(w, 10 * MINUTE, "the pod stays", |w| {
            w.pods_of("web").iter().any(|p| p["metadata"]["uid"] == pod["metadata"]["uid"])
        })
        .await;
    });
}

#[test]
fn a_pod_that_ends_slowly_is_waited_for() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |t| {
            t["metadata"]["annotations"]["model.karpenter.sh/ends-in"] = json!("240");
            t["spec"]["terminationGracePeriodSeconds"] = json!(300);
        }));
        runs(w, "web", 1).await;
        let node = node_of(w, "web");
        let id = w.instances().remove(0).provider_id.clone();
        delete_claim_of(w, &node);
        always(w, Duration::from_secs(230), "the instance stays", |w| {
            w.instances().iter().any(|i| i.provider_id == id)
        })
        .await;
        until(w, 5 * MINUTE, "it goes", |w| !w.names("nodes").contains(&node)).await;
    });
}

#[test]
fn the_instance_waits_for_its_volumes_to_be_detached() {
    with(
        |o| o.pace.detach = Duration::from_secs(120),
        async |w| {
            w.apply(calm("default", |_| ()));
            w.apply(json!({ "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
                "metadata": { "name": "gp3" }, "provisioner": "ebs.csi.aws.com",
                "volumeBindingMode": "WaitForFirstConsumer" }));
            w.apply(json!({ "kind": "PersistentVolumeClaim", "metadata": { "name": "data" },
                "spec": { "storageClassName": "gp3", "accessModes": ["ReadWriteOnce"],
                    "resources": { "requests": { "storage": "1Gi" } } } }));
            w.start();
            w.apply(deployment("db", 1, "1", |t| {
                t["spec"]["volumes"] =
                    json!([{ "name": "v", "persistentVolumeClaim": { "claimName": "data" } }]);
            }));
            runs(w, "db", 1).await;
            assert_eq!(w.names("volumeattachments").len(), 1);
            let node = node_of(w, "db");
            let id = w.instances().remove(0).provider_id.clone();
            delete_claim_of(w, &node);
            always(w, Duration::from_secs(100), "the instance stays", |w| {
                w.instances().iter().any(|i| i.provider_id == id)
            })
            .await;
            until(w, 10 * MINUTE, "it goes", |w| !w.names("nodes").contains(&node)).await;
            runs(w, "db", 1).await;
        },
    );
}

#[test]
fn a_drained_node_takes_no_new_pods() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |t| {
            t["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] = json!("true");
        }));
        runs(w, "web", 1).await;
        let node = node_of(w, "web");
        delete_claim_of(w, &node);
        w.pass(MINUTE).await;
        w.apply(deployment("late", 1, "100m", |_| ()));
        runs(w, "late", 1).await;
        assert_ne!(node_of(w, "late"), node);
    });
}

/// What is logged, as text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_end_of_a_node_is_logged_once_although_the_watch_is_late() {
    scenario(async |w| {
        let log = Log::default();
        let written = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || written.clone())
            .finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        w.apply(calm("default", |_| ()));
        w.server.set_faults(LateWatch("nodes"));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        let node = node_of(w, "web");
        w.delete("nodes", &node);
        // A kubelet writes its Node all the time.
        let mut beats = 0;
        while w.get("nodes", &node).is_some() {
            beats += 1;
            w.change("nodes", "", &node, "status", |n| {
                n["status"]["conditions"][0]["message"] = json!(beats.to_string());
            });
            w.pass(Duration::from_millis(200)).await;
            assert!(beats < 6000, "{}", tail(w));
        }
        w.pass(2 * MINUTE).await;
        let text = String::from_utf8(log.0.lock().clone()).unwrap();
        let count = |what: &str| text.lines().filter(|l| l.contains(what)).count();
        assert_eq!(count("deleted nodeclaim"), 1, "{text}");
        assert_eq!(count("deleted node") - count("deleted nodeclaim"), 1, "{text}");
    });
}
