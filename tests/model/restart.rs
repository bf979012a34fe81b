//! The controllers are killed in the middle of things; nothing is lost or doubled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use karpenter::model::World;
use karpenter::model::api::{Call, Fault, FaultPlan};
use karpenter::model::cloud::{CloudFault, Plan};

use crate::support::*;

/// Hangs on the first call that is as described, so that the process can be killed there.
pub struct HangOn {
    pub verb: &'static str,
    pub plural: &'static str,
    pub fault: Fault,
    pub done: Arc<AtomicBool>,
}

impl FaultPlan for HangOn {
    fn fault(&mut self, call: &Call) -> Option<Fault> {
        let meant = call.verb == self.verb && call.kind.plural == self.plural;
        if !meant || call.user != "karpenter" || self.done.swap(true, Ordering::SeqCst) {
            return None;
        }
        Some(self.fault.clone())
    }
}

struct CloudHang(&'static str, CloudFault, Arc<AtomicBool>);

impl Plan for CloudHang {
    fn fault(&mut self, call: &'static str) -> Option<CloudFault> {
        (call == self.0 && !self.2.swap(true, Ordering::SeqCst)).then(|| self.1.clone())
    }
}

/// Kills the controllers once that call hangs, and starts them again a minute later.
pub async fn kill_when(w: &mut World, done: &Arc<AtomicBool>) {
    let reached = w.within(HOUR, |_| done.load(Ordering::SeqCst)).await;
    assert!(reached, "the call is never made\n{}", tail(w));
    w.kill().await;
    w.pass(MINUTE).await;
    w.start();
}

async fn one_web_pod_on_one_node(w: &World) {
    until(w, HOUR, "one pod on one node", |w| {
        w.running("web") == 1
            && w.cloud.instances().len() == 1
            && w.names("nodeclaims").len() == 1
            && w.names("nodes").len() == 1
    })
    .await;
    always(w, 10 * MINUTE, "it stays so", |w| w.cloud.instances().len() == 1).await;
}

fn killed_at_call(verb: &'static str, plural: &'static str, fault: Fault) {
    scenario(async move |w| {
        let done = Arc::new(AtomicBool::new(false));
        w.server.set_faults(HangOn { verb, plural, fault, done: Arc::clone(&done) });
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        kill_when(w, &done).await;
        one_web_pod_on_one_node(w).await;
    });
}

#[test]
fn killed_before_a_claim_is_made_it_is_made_once() {
    killed_at_call("create", "nodeclaims", Fault::HangBefore);
}

#[test]
fn killed_after_a_claim_is_made_there_is_no_second_one() {
    killed_at_call("create", "nodeclaims", Fault::HangAfter);
}

#[test]
fn killed_before_a_claim_is_written_nothing_is_doubled() {
    killed_at_call("patch", "nodeclaims", Fault::HangBefore);
}

#[test]
fn killed_after_a_claim_is_written_nothing_is_doubled() {
    killed_at_call("patch", "nodeclaims", Fault::HangAfter);
}

#[test]
fn killed_while_a_node_registers_it_registers_again() {
    killed_at_call("patch", "nodes", Fault::HangBefore);
}

fn killed_at_cloud(call: &'static str, fault: CloudFault) {
    scenario(async move |w| {
        let done = Arc::new(AtomicBool::new(false));
        w.cloud.set_faults(CloudHang(call, fault, Arc::clone(&done)));
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        if call == "delete" {
            runs(w, "web", 1).await;
            let node = node_of(w, "web");
            delete_claim_of(w, &node);
        }
        kill_when(w, &done).await;
        one_web_pod_on_one_node(w).await;
        let launches = if call == "delete" { 2 } else { 1 };
        assert_eq!(w.cloud.bill().launches, launches, "{}", tail(w));
    });
}

#[test]
fn killed_after_a_launch_the_instance_is_found_again() {
    killed_at_cloud("create", CloudFault::HangAfter);
}

#[test]
fn killed_before_a_launch_there_is_one_launch() {
    killed_at_cloud("create", CloudFault::HangBefore);
}

#[test]
fn killed_before_an_instance_ends_it_ends() {
    killed_at_cloud("delete", CloudFault::HangBefore);
}

#[test]
fn killed_after_an_instance_ends_its_claim_goes() {
    killed_at_cloud("delete", CloudFault::HangAfter);
}

#[test]
fn a_lost_answer_to_a_launch_makes_no_second_instance() {
    scenario(async |w| {
        let done = Arc::new(AtomicBool::new(false));
        w.cloud.set_faults(CloudHang("create", CloudFault::Lost, done));
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        one_web_pod_on_one_node(w).await;
        assert_eq!(w.cloud.bill().launches, 1);
    });
}

/// Kills the controllers in the middle of a replacement.
fn killed_while_replacing(after: u64) {
    scenario(async move |w| {
        w.apply(pool("default", |_| ()));
        w.start();
        w.apply(deployment("web", 12, "1", |_| ()));
        runs(w, "web", 12).await;
        w.scale("web", 1);
        until(w, 30 * MINUTE, "a replacement is made", |w| w.names("nodeclaims").len() > 1).await;
        w.pass(std::time::Duration::from_secs(after)).await;
        w.kill().await;
        w.pass(MINUTE).await;
        w.start();
        until(w, 2 * HOUR, "one small node", |w| {
            w.running("web") == 1 && types(w) == ["c2"] && w.cloud.instances().len() == 1
        })
        .await;
        until(w, 10 * MINUTE, "nothing stays marked", |w| usable(w) == 1).await;
    });
}

#[test]
fn killed_just_after_a_replacement_was_made_the_cluster_comes_to_rest() {
    killed_while_replacing(0);
}

#[test]
fn killed_while_a_replacement_starts_the_cluster_comes_to_rest() {
    killed_while_replacing(20);
}

#[test]
fn killed_while_the_replaced_node_drains_the_cluster_comes_to_rest() {
    killed_while_replacing(70);
}

#[test]
fn watches_that_are_cut_all_the_time_lose_nothing() {
    scenario(async |w| {
        w.apply(pool("default", |_| ()));
        w.start();
        w.apply(deployment("web", 6, "1", |_| ()));
        for _ in 0..30 {
            w.pass(std::time::Duration::from_secs(7)).await;
            w.server.cut_watches("karpenter");
        }
        runs(w, "web", 6).await;
        w.server.store().compact();
        w.server.cut_watches("karpenter");
        w.scale("web", 0);
        until(w, 20 * MINUTE, "no node is left", |w| w.names("nodes").is_empty()).await;
    });
}
