//! Limits of pools, and claims that do not come up.

use karpenter::model::World;
use karpenter::model::cloud::{CloudFault, Plan};
use serde_json::json;

use crate::support::*;

#[test]
fn a_limit_of_nodes_holds() {
    scenario(async |w| {
        w.apply(pool("default", |spec| spec["limits"] = json!({ "nodes": "3" })));
        w.start();
        w.apply(deployment("web", 6, "1", apart("web")));
        always(w, 15 * MINUTE, "three at most", |w| w.cloud.instances().len() <= 3).await;
        assert_eq!(w.running("web"), 3);
        w.change("nodepools", "", "default", "", |p| p["spec"]["limits"] = json!({ "nodes": "6" }));
        runs(w, "web", 6).await;
    });
}

#[test]
fn a_limit_of_memory_holds() {
    scenario(async |w| {
        // Four GiB a core: sixteen cores.
        w.apply(pool("default", |spec| spec["limits"] = json!({ "memory": "64Gi" })));
        w.start();
        w.apply(deployment("web", 30, "1", |_| ()));
        always(w, 15 * MINUTE, "sixteen cores at most", |w| cores(w) <= 16).await;
        assert!(w.running("web") >= 14, "{}", w.running("web"));
    });
}

#[test]
fn what_one_pool_may_not_launch_another_does() {
    scenario(async |w| {
        w.apply(pool("small", |spec| {
            spec["weight"] = json!(10);
            spec["limits"] = json!({ "cpu": "2" });
        }));
        w.apply(pool("other", |_| ()));
        w.start();
        w.apply(deployment("web", 4, "1500m", apart("web")));
        runs(w, "web", 4).await;
        assert_eq!((nodes_of(w, "small").len(), nodes_of(w, "other").len()), (1, 3));
    });
}

#[test]
fn a_limit_of_zero_launches_nothing() {
    scenario(async |w| {
        w.apply(pool("default", |spec| spec["limits"] = json!({ "cpu": "0" })));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        always(w, 10 * MINUTE, "nothing", |w| w.names("nodeclaims").is_empty()).await;
    });
}

#[test]
fn a_limit_that_is_lowered_ends_no_node() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 4, "1", apart("web")));
        runs(w, "web", 4).await;
        w.change("nodepools", "", "default", "", |p| p["spec"]["limits"] = json!({ "cpu": "2" }));
        let names = w.names("nodes");
        always(w, HOUR, "all stay", |w| w.names("nodes") == names).await;
        w.scale("web", 5);
        always(w, 10 * MINUTE, "no fifth", |w| w.instances().len() == 4).await;
    });
}

#[test]
fn room_under_a_limit_is_used_again_once_a_node_is_gone() {
    scenario(async |w| {
        w.apply(pool("default", |spec| {
            spec["limits"] = json!({ "cpu": "4" });
            only_types(spec, &["c2", "c4"]);
        }));
        w.start();
        w.apply(deployment("one", 2, "1500m", apart("one")));
        runs(w, "one", 2).await;
        w.apply(deployment("two", 1, "1500m", |_| ()));
        always(w, 5 * MINUTE, "there is no room", |w| w.running("two") == 0).await;
        w.scale("one", 1);
        until(w, 20 * MINUTE, "there is", |w| w.running("two") == 1).await;
        always(w, 10 * MINUTE, "four cores at most", |w| cores(w) <= 4).await;
    });
}

#[test]
fn many_batches_at_once_stay_within_the_limit() {
    scenario(async |w| {
        w.apply(pool("default", |spec| spec["limits"] = json!({ "cpu": "10" })));
        w.start();
        for n in 0..12 {
            w.apply(deployment(&format!("app{n}"), 1, "1500m", |_| ()));
            w.pass(std::time::Duration::from_millis(700)).await;
        }
        always(w, 15 * MINUTE, "ten cores at most", |w| cores(w) <= 10).await;
    });
}

/// Every launch fails as long as it is on.
struct Refused;

impl Plan for Refused {
    fn fault(&mut self, call: &'static str) -> Option<CloudFault> {
        (call == "create").then_some(CloudFault::Fail)
    }
}

struct Fine;

impl Plan for Fine {
    fn fault(&mut self, _: &'static str) -> Option<CloudFault> {
        None
    }
}

#[test]
fn a_claim_that_is_not_launched_within_five_minutes_is_given_up() {
    scenario(async |w| {
        w.cloud.set_faults(Refused);
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        until(w, MINUTE, "a claim", |w| w.names("nodeclaims").len() == 1).await;
        let first = w.names("nodeclaims").remove(0);
        always(w, 4 * MINUTE, "it is tried", |w| w.names("nodeclaims").contains(&first)).await;
        until(w, 3 * MINUTE, "it is given up", |w| !w.names("nodeclaims").contains(&first)).await;
        w.cloud.set_faults(Fine);
        runs(w, "web", 1).await;
        assert_eq!(w.cloud.bill().launches, 1);
    });
}

fn registers(w: &World) -> Option<String> {
    let pool = w.get("nodepools", "default")?;
    condition(&pool, "NodeRegistrationHealthy").map(str::to_owned)
}

#[test]
fn a_pool_whose_nodes_do_not_register_says_so() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.cloud.never_join(4);
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        until(w, 2 * HOUR, "it says so", |w| registers(w).as_deref() == Some("False")).await;
        until(w, 2 * HOUR, "it runs in the end", |w| w.running("web") == 1).await;
    });
}

#[test]
fn instances_that_never_join_are_not_paid_for_for_long() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.cloud.never_join(3);
        w.start();
        w.apply(deployment("web", 3, "1", apart("web")));
        w.pass(17 * MINUTE).await;
        until(w, 5 * MINUTE, "three that joined", |w| {
            w.running("web") == 3 && w.cloud.instances().len() == 3
        })
        .await;
        assert_eq!(w.cloud.bill().launches, 6);
    });
}

#[test]
fn a_node_that_is_slow_to_be_ready_is_waited_for() {
    with(
        |o| o.pace.ready = 12 * MINUTE,
        async |w| {
            w.apply(calm("default", |_| ()));
            w.start();
            w.apply(deployment("web", 1, "1", |_| ()));
            until(w, 14 * MINUTE, "it runs", |w| w.running("web") == 1).await;
            assert_eq!(w.cloud.bill().launches, 1);
        },
    );
}

#[test]
fn pods_that_go_away_before_their_node_is_there_leave_nothing() {
    scenario(async |w| {
        w.apply(pool("default", |_| ()));
        w.start();
        w.apply(deployment("web", 3, "1", apart("web")));
        until(w, MINUTE, "claims", |w| w.names("nodeclaims").len() == 3).await;
        w.delete("deployments", "web");
        until(w, 20 * MINUTE, "nothing is left", |w| {
            w.cloud.instances().is_empty() && w.names("nodeclaims").is_empty()
        })
        .await;
    });
}

#[test]
fn a_pool_that_is_made_late_serves_pods_that_wait() {
    scenario(async |w| {
        w.start();
        w.apply(deployment("web", 2, "1", |_| ()));
        w.pass(30 * MINUTE).await;
        w.apply(pool("default", |_| ()));
        until(w, 3 * MINUTE, "they run", |w| w.running("web") == 2).await;
    });
}
