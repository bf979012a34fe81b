//! Pods with volumes go where their volumes are, and nodes wait for them.

use std::collections::BTreeMap;
use std::sync::Arc;

use karpenter::model::World;
use serde_json::{Value, json};

use crate::support::*;

/// Starts with a pool and one pod that has a volume.
async fn database(w: &mut World, pool: Value) {
    w.apply(pool);
    volume_claims(w, &["data"]);
    w.start();
    w.apply(deployment("db", 1, "1", mounts("data")));
    runs(w, "db", 1).await;
}

fn zone_of(w: &World, app: &str) -> String {
    let node = node_of(w, app);
    let node = w.get("nodes", &node).unwrap();
    node["metadata"]["labels"]["topology.kubernetes.io/zone"].as_str().unwrap().to_owned()
}

#[test]
fn a_pod_comes_back_to_the_zone_of_its_volume() {
    scenario(async |w| {
        database(w, calm("default", |_| ())).await;
        let zone = zone_of(w, "db");
        for _ in 0..3 {
            let node = node_of(w, "db");
            delete_claim_of(w, &node);
            until(w, 10 * MINUTE, "the node goes", |w| !w.names("nodes").contains(&node)).await;
            runs(w, "db", 1).await;
            assert_eq!(zone_of(w, "db"), zone);
        }
    });
}

#[test]
fn a_drifted_node_is_replaced_in_the_zone_of_its_volume() {
    scenario(async |w| {
        database(w, calm("default", |_| ())).await;
        w.pass(2 * MINUTE).await;
        let (zone, node) = (zone_of(w, "db"), node_of(w, "db"));
        w.cloud.drift(&claim_of(w, &node), "AMIDrift");
        until(w, HOUR, "replaced", |w| w.running("db") == 1 && !w.names("nodes").contains(&node))
            .await;
        assert_eq!(zone_of(w, "db"), zone);
        assert_eq!(w.cloud.bill().launches, 2, "{}", tail(w));
    });
}

#[test]
fn a_pod_is_not_moved_out_of_the_zone_of_its_volume_to_save_money() {
    scenario(async |w| {
        database(w, pool("default", |_| ())).await;
        let (zone, node) = (zone_of(w, "db"), node_of(w, "db"));
        let other = ZONES.into_iter().find(|z| *z != zone).unwrap();
        // A large node elsewhere has room for the pod, but its volume is not there.
        w.apply(deployment("big", 1, "12", |t| {
            t["spec"]["nodeSelector"] = json!({ "topology.kubernetes.io/zone": other });
        }));
        runs(w, "big", 1).await;
        always(w, HOUR, "it stays", |w| w.names("nodes").contains(&node)).await;
        assert_eq!(w.running("db"), 1);
    });
}

#[test]
fn a_pod_whose_claim_is_missing_launches_nothing_until_it_is_there() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("db", 1, "1", mounts("data")));
        always(w, 10 * MINUTE, "nothing", |w| w.instances().is_empty()).await;
        volume_claims(w, &["data"]);
        runs(w, "db", 1).await;
    });
}

#[test]
fn nodes_are_launched_for_as_many_volumes_as_they_attach() {
    with(
        |o| {
            let limits: BTreeMap<String, u64> = [("ebs.csi.aws.com".to_owned(), 2)].into();
            o.types = catalog()
                .iter()
                .map(|kind| {
                    let mut kind = (**kind).clone();
                    kind.volume_limits.extend(limits.clone());
                    Arc::new(kind)
                })
                .collect();
        },
        async |w| {
            w.apply(calm("default", |_| ()));
            let names = ["one", "two", "three", "four", "five"];
            volume_claims(w, &names);
            w.start();
            for name in names {
                w.apply(deployment(name, 1, "100m", mounts(name)));
            }
            until(w, 10 * MINUTE, "three nodes", |w| w.instances().len() == 3).await;
            for name in names {
                runs(w, name, 1).await;
            }
        },
    );
}

#[test]
fn a_stateful_set_with_volumes_survives_the_loss_of_its_nodes() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        volume_claims(w, &["data"]);
        w.start();
        let mut set = deployment("db", 1, "1", mounts("data"));
        set["kind"] = json!("StatefulSet");
        w.apply(set);
        runs(w, "db", 1).await;
        let zone = zone_of(w, "db");
        let first = w.instances().remove(0);
        w.cloud.vanish(&first.provider_id);
        until(w, 40 * MINUTE, "it runs again", |w| {
            w.running("db") == 1 && w.cloud.instances().len() == 1
        })
        .await;
        assert_eq!(zone_of(w, "db"), zone);
    });
}

#[test]
fn the_volume_of_a_pod_that_is_not_drained_holds_no_node() {
    with(
        |o| o.pace.detach = std::time::Duration::from_secs(3600),
        async |w| {
            w.apply(calm("default", |spec| {
                spec["template"]["spec"]["terminationGracePeriod"] = json!("10m");
            }));
            volume_claims(w, &["data"]);
            w.start();
            w.apply(deployment("db", 1, "1", mounts("data")));
            runs(w, "db", 1).await;
            let node = node_of(w, "db");
            delete_claim_of(w, &node);
            always(w, 8 * MINUTE, "it waits for the volume", |w| w.names("nodes").contains(&node))
                .await;
            until(w, 10 * MINUTE, "its grace period ends that", |w| {
                !w.names("nodes").contains(&node)
            })
            .await;
        },
    );
}
