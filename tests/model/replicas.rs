//! Two replicas of the controllers: one acts, and another takes over when it is gone or cut off.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use karpenter::model::World;
use karpenter::model::api::{Call, Fault, FaultPlan};
use serde_json::json;

use crate::support::*;

const ONE: &str = "karpenter-one";
const TWO: &str = "karpenter-two";

/// Whoever leads is cut off from the API server for as long as the switch is on.
struct Cut {
    user: &'static str,
    on: Arc<AtomicBool>,
}

impl FaultPlan for Cut {
    fn fault(&mut self, call: &Call) -> Option<Fault> {
        let cut = self.on.load(Ordering::SeqCst) && call.user == self.user;
        cut.then_some(Fault::Unreachable)
    }
}

fn leader(w: &World) -> Option<String> {
    let lease = w.store.get(karpenter::model::api::kind("leases"), "kube-system", "karpenter")?;
    let holder = lease["spec"]["holderIdentity"].as_str()?;
    Some(holder.to_owned()).filter(|h| !h.is_empty())
}

async fn two_replicas(w: &mut World) {
    w.apply(calm("default", |_| ()));
    w.start_replica(ONE);
    until(w, MINUTE, "one leads", |w| leader(w).as_deref() == Some(ONE)).await;
    w.start_replica(TWO);
}

async fn one_of_each(w: &World, count: usize) {
    until(w, 20 * MINUTE, "one of each", |w| {
        w.running("web") == count
            && w.cloud.instances().len() == count
            && w.names("nodeclaims").len() == count
    })
    .await;
    let launches = w.cloud.bill().launches;
    w.pass(20 * MINUTE).await;
    assert_eq!(w.cloud.bill().launches, launches, "{}", tail(w));
}

#[test]
fn of_two_replicas_one_acts() {
    scenario(async |w| {
        two_replicas(w).await;
        w.apply(deployment("web", 3, "1", apart("web")));
        one_of_each(w, 3).await;
        assert_eq!(w.cloud.bill().launches, 3);
        assert_eq!(leader(w).as_deref(), Some(ONE));
    });
}

#[test]
fn when_the_leader_dies_the_other_takes_over() {
    scenario(async |w| {
        two_replicas(w).await;
        w.apply(deployment("web", 2, "1", apart("web")));
        runs(w, "web", 2).await;
        w.kill_replica(ONE).await;
        w.scale("web", 4);
        until(w, MINUTE, "the other leads", |w| leader(w).as_deref() == Some(TWO)).await;
        one_of_each(w, 4).await;
        assert_eq!(w.cloud.bill().launches, 4);
    });
}

#[test]
fn a_leader_that_is_cut_off_stops_and_the_other_takes_over() {
    scenario(async |w| {
        two_replicas(w).await;
        w.apply(deployment("web", 2, "1", apart("web")));
        runs(w, "web", 2).await;
        let on = Arc::new(AtomicBool::new(true));
        w.server.set_faults(Cut { user: ONE, on: Arc::clone(&on) });
        w.server.cut_watches(ONE);
        w.scale("web", 4);
        until(w, MINUTE, "the other leads", |w| leader(w).as_deref() == Some(TWO)).await;
        one_of_each(w, 4).await;
        // What was cut off comes back, and does not act on what it knew.
        on.store(false, Ordering::SeqCst);
        one_of_each(w, 4).await;
        assert_eq!(leader(w).as_deref(), Some(TWO));
        assert_eq!(w.cloud.bill().launches, 4);
    });
}

#[test]
fn a_leader_that_is_cut_off_in_the_middle_of_a_launch_doubles_nothing() {
    for after in [0, 50, 200, 1000, 3000, 8000] {
        scenario(async move |w| {
            two_replicas(w).await;
            let on = Arc::new(AtomicBool::new(false));
            w.server.set_faults(Cut { user: ONE, on: Arc::clone(&on) });
            w.apply(deployment("web", 3, "1", apart("web")));
            until(w, MINUTE, "claims are made", |w| w.names("nodeclaims").len() == 3).await;
            w.pass(Duration::from_millis(after)).await;
            on.store(true, Ordering::SeqCst);
            w.server.cut_watches(ONE);
            until(w, MINUTE, "the other leads", |w| leader(w).as_deref() == Some(TWO)).await;
            one_of_each(w, 3).await;
            assert_eq!(w.cloud.bill().launches, 3, "{}", tail(w));
        });
    }
}

#[test]
fn a_command_that_the_old_leader_began_is_finished_by_the_new_one() {
    scenario(async |w| {
        w.apply(pool("default", |_| ()));
        w.start_replica(ONE);
        until(w, MINUTE, "one leads", |w| leader(w).as_deref() == Some(ONE)).await;
        w.start_replica(TWO);
        alone_on_a_large_node(w).await;
        replacement_begins(w).await;
        w.kill_replica(ONE).await;
        until(w, 30 * MINUTE, "one small node", |w| {
            w.running("web") == 1 && types(w) == ["c2"] && w.cloud.instances().len() == 1
        })
        .await;
        assert_eq!(w.cloud.bill().launches, 2, "{}", tail(w));
    });
}

#[test]
fn leaders_that_die_again_and_again_lose_nothing() {
    scenario(async |w| {
        two_replicas(w).await;
        w.apply(deployment("web", 1, "1", apart("web")));
        for round in 0..6 {
            w.scale("web", round + 1);
            w.pass(Duration::from_secs(u64::from(7 * round + 3))).await;
            let gone = if leader(w).as_deref() == Some(ONE) { ONE } else { TWO };
            w.kill_replica(gone).await;
            w.pass(Duration::from_secs(2)).await;
            w.start_replica(gone);
            w.pass(30 * Duration::from_secs(1)).await;
        }
        one_of_each(w, 6).await;
        assert_eq!(w.cloud.bill().launches, 6, "{}", tail(w));
    });
}

#[test]
fn a_lease_that_someone_else_holds_lets_nobody_act() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start_replica(ONE);
        until(w, MINUTE, "one leads", |w| leader(w).is_some()).await;
        w.kill_replica(ONE).await;
        w.start_replica(TWO);
        w.apply(deployment("web", 1, "1", |_| ()));
        always(w, Duration::from_secs(14), "the lease is not over", |w| w.instances().is_empty())
            .await;
        runs(w, "web", 1).await;
        w.change("deployments", "default", "web", "", |d| d["metadata"]["labels"] = json!({}));
    });
}
