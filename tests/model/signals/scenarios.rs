//! The lives of clusters that together show everything.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use karpenter::model::World;
use karpenter::model::api::{Call, Fault, FaultPlan};
use karpenter::model::cloud::{CloudError, CloudFault, Plan};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Shown, play};
use crate::support::*;

pub type Scenario = fn(&Arc<Mutex<Shown>>);

pub const ALL: &[Scenario] = &[
    pods_wait_and_run,
    nodes_come_and_fail,
    nodes_drain,
    nodes_are_consolidated,
    balanced_nodes_are_consolidated,
    nodes_drift,
    static_nodes_drift,
    nodes_turn_sick,
    nodes_are_rebooted,
    objects_are_odd,
];

/// Waits for an event of a reason.
async fn event(world: &World, reason: &str) {
    let is = |w: &World| w.all("events").iter().any(|e| e["reason"] == reason);
    until(world, 2 * HOUR, reason, is).await;
}

fn protected_for(value: &str) -> impl FnOnce(&mut Value) + use<> {
    let value = value.to_owned();
    move |t| t["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] = json!(value)
}

/// Pods that get nodes, pods that fit nowhere, pods that are not valid; daemons; limits.
fn pods_wait_and_run(shown: &Arc<Mutex<Shown>>) {
    play(
        shown,
        |_| (),
        async |w| {
            w.apply(calm("default", |spec| spec["limits"] = json!({ "cpu": "1000" })));
            w.apply(calm("hollow", |spec| {
                spec["template"]["spec"]["requirements"].as_array_mut().unwrap().push(json!({
                "key": "node.kubernetes.io/instance-type", "operator": "In",
                "values": ["none"] }));
            }));
            w.apply(daemon_set("agent", "100m", |t| {
                t["spec"]["containers"][0]["resources"]["limits"] = json!({ "cpu": "200m" });
            }));
            w.start();
            w.apply(deployment("web", 3, "1", |t| {
                t["spec"]["containers"][0]["resources"]["limits"] = json!({ "cpu": "2" });
            }));
            w.apply(deployment("large", 1, "100", |t| {
                t["spec"]["nodeSelector"] = json!({ "topology.kubernetes.io/zone": "a" });
            }));
            w.apply(deployment("lost", 1, "1", |t| {
                t["spec"]["volumes"] =
                    json!([{ "name": "v", "persistentVolumeClaim": { "claimName": "none" } }]);
            }));
            w.apply(deployment("never", 1, "100m", protected_for("soon")));
            w.apply(deployment("short", 1, "100m", protected_for("3m")));
            runs(w, "web", 3).await;
            w.pass(10 * MINUTE).await;
        },
    );
}

/// Launches that fail, nodes that are not what they should be, classes that come and go.
fn nodes_come_and_fail(shown: &Arc<Mutex<Shown>>) {
    play(
        shown,
        |_| (),
        async |w| {
            w.apply(calm("default", |_| ()));
            w.server.set_faults(LateNodes);
            w.cloud.fail_next(CloudError::InsufficientCapacity("none".to_owned()));
            w.cloud.fail_next(CloudError::Failed("not now".to_owned()));
            w.start();
            w.apply(deployment("web", 1, "1", |_| ()));
            until(w, 20 * MINUTE, "a node", |w| !w.names("nodes").is_empty()).await;
            let node = w.names("nodes").remove(0);
            // The watch shows the Node a while later.
            w.change("nodes", "", &node, "", |n| n["spec"]["taints"] = json!([]));
            event(w, "UnregisteredTaintMissing").await;
            runs(w, "web", 1).await;
            until(w, 10 * MINUTE, "initialized", |w| {
                w.all("nodeclaims").iter().all(|c| condition(c, "Initialized") == Some("True"))
            })
            .await;
            let claim = w.names("nodeclaims").remove(0);
            w.change("nodeclaims", "", &claim, "status", |c| {
                c["status"]["capacity"]["memory"] = json!("1000Gi");
                c["spec"]["resources"]["requests"]["memory"] = json!("1Gi");
            });
            event(w, "FailedConsistencyCheck").await;
            // A type that is offered no more has no price.
            w.change("nodeclaims", "", &claim, "", |c| {
                c["metadata"]["labels"]["node.kubernetes.io/instance-type"] = json!("gone");
            });
            class_comes_and_goes(w).await;
        },
    );
}

/// Nodes are shown ten seconds late.
struct LateNodes;

impl FaultPlan for LateNodes {
    fn fault(&mut self, _: &Call) -> Option<Fault> {
        None
    }

    fn lag(&mut self, call: &Call) -> Duration {
        let late = call.user == "karpenter" && call.kind.plural == "nodes";
        Duration::from_secs(if late { 10 } else { 0 })
    }
}

async fn class_comes_and_goes(w: &World) {
    let ready = |status: &str| {
        json!([{ "type": "Ready", "status": status, "reason": "Test", "message": "so it is",
            "lastTransitionTime": "2026-01-05T00:00:00Z", "observedGeneration": 1 }])
    };
    w.apply(json!({ "apiVersion": "karpenter.k8s.aws/v1", "kind": "EC2NodeClass",
        "metadata": { "name": "other", "finalizers": ["example.com/held"] },
        "spec": { "role": "role", "amiSelectorTerms": [{ "alias": "al2023@latest" }],
            "subnetSelectorTerms": [{ "tags": { "a": "b" } }],
            "securityGroupSelectorTerms": [{ "tags": { "a": "b" } }] } }));
    for status in ["Unknown", "False"] {
        w.change("ec2nodeclasses", "", "other", "status", |c| {
            c["status"] = json!({ "conditions": ready(status) });
        });
        w.pass(MINUTE).await;
    }
    w.apply(json!({ "apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
        "metadata": { "name": "by-hand", "labels": { "karpenter.sh/nodepool": "default" } },
        "spec": { "requirements": [], "nodeClassRef": { "group": "karpenter.k8s.aws",
            "kind": "EC2NodeClass", "name": "other" } } }));
    event(w, "NodeClassNotReady").await;
    w.delete("ec2nodeclasses", "other");
    w.apply(calm("short", |_| ()));
    w.change("nodepools", "", "short", "", |p| {
        p["metadata"]["finalizers"] = json!(["example.com/held"]);
    });
    w.pass(MINUTE).await;
    w.delete("nodepools", "short");
    w.pass(MINUTE).await;
    for (plural, name) in [("ec2nodeclasses", "other"), ("nodepools", "short")] {
        w.change(plural, "", name, "", |o| o["metadata"]["finalizers"] = json!([]));
    }
    w.pass(MINUTE).await;
}

/// A drain that a budget holds until the deadline, and one that waits for a volume.
fn nodes_drain(shown: &Arc<Mutex<Shown>>) {
    let slow = |o: &mut karpenter::model::Options| o.pace.detach = Duration::from_secs(120);
    play(shown, slow, async |w| {
        w.apply(calm("default", |spec| {
            spec["template"]["spec"]["terminationGracePeriod"] = json!("10m");
        }));
        w.apply(json!({ "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
            "metadata": { "name": "gp3" }, "provisioner": "ebs.csi.aws.com",
            "volumeBindingMode": "WaitForFirstConsumer" }));
        w.apply(json!({ "kind": "PersistentVolumeClaim", "metadata": { "name": "data" },
            "spec": { "storageClassName": "gp3", "accessModes": ["ReadWriteOnce"],
                "resources": { "requests": { "storage": "1Gi" } } } }));
        w.start();
        let zone = |zone: &'static str| json!({ "topology.kubernetes.io/zone": zone });
        w.apply(deployment("web", 2, "1", |t| t["spec"]["nodeSelector"] = zone("a")));
        w.apply(budget("web", "maxUnavailable", json!(0)));
        w.apply(deployment("db", 1, "1", |t| {
            t["spec"]["nodeSelector"] = zone("b");
            t["spec"]["volumes"] =
                json!([{ "name": "v", "persistentVolumeClaim": { "claimName": "data" } }]);
        }));
        runs(w, "web", 2).await;
        runs(w, "db", 1).await;
        for app in ["web", "db"] {
            let node = node_of(w, app);
            if w.get("nodes", &node).is_some_and(|n| n["metadata"]["deletionTimestamp"].is_null()) {
                delete_claim_of(w, &node);
            }
        }
        w.pass(20 * MINUTE).await;
        runs(w, "web", 2).await;
        let spot = w.instances().remove(0).provider_id.clone();
        w.cloud.vanish(&spot);
        w.pass(10 * MINUTE).await;
    });
}

/// Emptiness, several nodes for none, one for a cheaper one, and commands that hold no longer.
fn nodes_are_consolidated(shown: &Arc<Mutex<Shown>>) {
    play(
        shown,
        |_| (),
        async |w| {
            w.apply(pool("default", |_| ()));
            w.start();
            w.apply(deployment("kept", 1, "1500m", protected_for("true")));
            runs(w, "kept", 1).await;
            w.apply(deployment("web", 12, "1", |_| ()));
            runs(w, "web", 12).await;
            w.scale("web", 1);
            // The command is looked at again after fifteen seconds: its node is protected by then.
            event(w, "ConsolidationCandidate").await;
            let node = node_of(w, "web");
            let protect = |on: bool| {
                w.change("nodes", "", &node, "", |n| {
                    n["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] =
                        json!(on.to_string());
                });
            };
            protect(true);
            event(w, "ConsolidationRejected").await;
            protect(false);
            until(w, HOUR, "small ones", |w| !types(w).contains(&"c16".to_owned())).await;
            w.apply(deployment("apart", 4, "100m", apart("apart")));
            runs(w, "apart", 4).await;
            w.delete("deployments", "apart");
            w.apply(deployment("even", 3, "900m", |_| ()));
            runs(w, "even", 3).await;
            w.pass(20 * MINUTE).await;
            for app in ["web", "even", "kept"] {
                w.scale(app, 0);
            }
            until(w, HOUR, "no node is left", |w| w.names("nodes").is_empty()).await;
        },
    );
}

/// The policy Balanced, and budgets that let nothing go or cannot be read.
fn balanced_nodes_are_consolidated(shown: &Arc<Mutex<Shown>>) {
    play(
        shown,
        |_| (),
        async |w| {
            w.apply(pool("default", |spec| {
                spec["disruption"]["consolidationPolicy"] = json!("Balanced");
            }));
            for team in ["closed", "broken"] {
                w.apply(pool(team, |spec| {
                    spec["disruption"]["budgets"] = json!([{ "nodes": "0" }]);
                    spec["template"]["metadata"] = json!({ "labels": { "team": team } });
                    spec["template"]["spec"]["taints"] =
                        json!([{ "key": "team", "effect": "NoSchedule" }]);
                }));
            }
            w.start();
            for team in ["closed", "broken"] {
                w.apply(deployment(team, 1, "1", |t| {
                    t["spec"]["nodeSelector"] = json!({ "team": team });
                    t["spec"]["tolerations"] = json!([{ "operator": "Exists" }]);
                }));
                runs(w, team, 1).await;
            }
            w.change("nodepools", "", "broken", "", |p| {
                p["spec"]["disruption"]["budgets"] =
                    json!([{ "nodes": "1", "schedule": "99 99 * * *", "duration": "1h" }]);
            });
            w.apply(deployment("web", 12, "1", |_| ()));
            runs(w, "web", 12).await;
            w.scale("web", 1);
            event(w, "ConsolidationApproved").await;
            w.pass(20 * MINUTE).await;
        },
    );
}

/// Drift, with a replacement that cannot be had at first.
fn nodes_drift(shown: &Arc<Mutex<Shown>>) {
    play(
        shown,
        |_| (),
        async |w| {
            w.apply(calm("default", |spec| {
                spec["template"]["spec"]["terminationGracePeriod"] = json!("1h");
            }));
            w.start();
            w.apply(deployment("web", 2, "1", |_| ()));
            runs(w, "web", 2).await;
            w.pass(2 * MINUTE).await;
            w.cloud.fail_next(CloudError::InsufficientCapacity("none".to_owned()));
            let first: BTreeSet<String> = w.names("nodeclaims").into_iter().collect();
            w.change("nodepools", "", "default", "", |p| {
                p["spec"]["template"]["metadata"] = json!({ "labels": { "team": "blue" } });
            });
            until(w, 2 * HOUR, "all are new", |w| {
                w.running("web") == 2 && !w.names("nodeclaims").iter().any(|n| first.contains(n))
            })
            .await;
            w.pass(5 * MINUTE).await;
        },
    );
}

fn static_nodes_drift(shown: &Arc<Mutex<Shown>>) {
    play(shown, gates_on("StaticCapacity"), async |w| {
        w.apply(pool("static", |spec| {
            spec["replicas"] = json!(2);
            spec.as_object_mut().unwrap().remove("disruption");
        }));
        w.start();
        until(w, 10 * MINUTE, "two nodes", |w| usable(w) == 2).await;
        w.change("nodepools", "", "static", "", |p| {
            p["spec"]["template"]["metadata"] = json!({ "labels": { "team": "blue" } });
        });
        until(w, 2 * HOUR, "both are new", |w| {
            let nodes = w.all("nodes");
            nodes.len() == 2 && nodes.iter().all(|n| n["metadata"]["labels"]["team"] == "blue")
        })
        .await;
    });
}

/// One sick node of six is repaired; when three are, none is.
fn nodes_turn_sick(shown: &Arc<Mutex<Shown>>) {
    play(shown, gates_on("NodeRepair"), async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 6, "1", apart("web")));
        runs(w, "web", 6).await;
        w.pass(5 * MINUTE).await;
        let first = w.instances().remove(0);
        w.cloud.sicken(&first.provider_id);
        until(w, 2 * HOUR, "replaced", |w| {
            w.instances().iter().all(|i| i.provider_id != first.provider_id)
        })
        .await;
        runs(w, "web", 6).await;
        for instance in w.instances().into_iter().take(3) {
            w.cloud.sicken(&instance.provider_id);
        }
        event(w, "NodeRepairBlocked").await;
    });
}

/// A fault that a reboot mends, and one for which no reboot can be had.
fn nodes_are_rebooted(shown: &Arc<Mutex<Shown>>) {
    play(shown, gates_on("NodeRepair"), async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 6, "1", apart("web")));
        runs(w, "web", 6).await;
        w.pass(5 * MINUTE).await;
        let nodes: Vec<_> = w.instances().iter().map(|i| i.node_name.clone()).collect();
        hardware_fails(w, &nodes[0], "Xid119");
        event(w, "RebootObserved").await;
        w.pass(20 * MINUTE).await;
        w.cloud.set_faults(NoReboots);
        hardware_fails(w, &nodes[1], "Xid119");
        event(w, "RebootFailed").await;
    });
}

struct NoReboots;

impl Plan for NoReboots {
    fn fault(&mut self, call: &'static str) -> Option<CloudFault> {
        (call == "reboot").then_some(CloudFault::Fail)
    }
}

/// An object that cannot be read, and an API server that is slow and refuses.
fn objects_are_odd(shown: &Arc<Mutex<Shown>>) {
    play(
        shown,
        |_| (),
        async |w| {
            w.apply(calm("default", |_| ()));
            w.apply(json!({ "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
                "metadata": { "name": "odd" }, "provisioner": 5 }));
            w.server.set_faults(Slow(0));
            w.start();
            w.apply(deployment("web", 2, "1", |_| ()));
            event(w, "Unreadable").await;
            runs(w, "web", 2).await;
            w.pass(10 * MINUTE).await;
        },
    );
}

/// Every seventh write takes half a minute, every fifth is refused.
struct Slow(u32);

impl FaultPlan for Slow {
    fn fault(&mut self, call: &Call) -> Option<Fault> {
        if call.user != "karpenter" || call.verb != "patch" {
            return None;
        }
        self.0 += 1;
        match self.0 {
            n if n % 7 == 0 => Some(Fault::Delay(Duration::from_secs(30))),
            n if n % 5 == 0 => Some(Fault::Refuse(500)),
            _ => None,
        }
    }
}
