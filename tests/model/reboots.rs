//! Reboots that cannot be had, and those that are asked for wrongly.

use karpenter::model::World;
use karpenter::model::cloud::{CloudFault, Plan};
use serde_json::{Value, json};

use crate::support::*;

/// Two nodes of one pod each; plays with the first node's claim and its node.
fn two(
    pods: impl FnOnce(&mut Value) + Send,
    body: impl AsyncFnOnce(&mut World, &str, &str) + Send,
) {
    gated("NodeRepair", async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 2, "1", |t| {
            apart("web")(t);
            pods(t);
        }));
        runs(w, "web", 2).await;
        w.pass(2 * MINUTE).await;
        let node = w.instances()[0].node_name.clone();
        let claim = claim_of(w, &node);
        body(w, &claim, &node).await;
    });
}

struct NoReboots;

impl Plan for NoReboots {
    fn fault(&mut self, call: &'static str) -> Option<CloudFault> {
        (call == "reboot").then_some(CloudFault::Fail)
    }
}

fn rebooting(w: &World, claim: &str) -> Option<(String, String)> {
    let claim = w.get("nodeclaims", claim)?;
    let list = claim["status"]["conditions"].as_array()?;
    let found = list.iter().find(|c| c["type"] == "Rebooting")?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason")))
}

#[test]
fn a_node_whose_reboot_cannot_be_had_is_replaced_within_the_bound_of_its_drain() {
    two(protected, async |w, claim, node| {
        w.cloud.set_faults(NoReboots);
        hardware_fails(w, node, "Xid119");
        let requested = |w: &World| rebooting(w, claim).is_some();
        until(w, 30 * MINUTE, "the request", requested).await;
        // The drain has five minutes, and the cloud is asked for five more.
        let gone = |w: &World| {
            let claim = w.get("nodeclaims", claim);
            claim.is_none_or(|c| c["metadata"]["deletionTimestamp"].is_string())
        };
        always(w, 9 * MINUTE, "it is asked for", |w| !gone(w)).await;
        until(w, 3 * MINUTE, "the claim is deleted", gone).await;
        let deadline = w.get("nodeclaims", claim).unwrap();
        let deadline = &deadline["metadata"]["annotations"];
        let deadline = deadline["karpenter.sh/nodeclaim-termination-timestamp"].as_str().unwrap();
        let left = deadline.parse::<jiff::Timestamp>().unwrap().duration_since(w.clock.now());
        assert!(left.as_secs() <= 300, "{left:?}");
        until(w, 7 * MINUTE, "the node is gone", |w| w.get("nodes", node).is_none()).await;
        runs(w, "web", 2).await;
        assert!(reasons(w, "NodeClaim").contains(&"RebootFailed".to_owned()));
    });
}

#[test]
fn a_reboot_with_a_bound_that_cannot_be_read_fails_and_leaves_the_node_alone() {
    two(
        |_| (),
        async |w, claim, node| {
            let now = w.clock.now().to_string();
            w.change("nodeclaims", "", claim, "", |c| {
                c["metadata"]["annotations"]["karpenter.sh/reboot-termination-grace-period"] =
                    json!("soon");
            });
            w.change("nodeclaims", "", claim, "status", |c| {
                c["status"]["conditions"].as_array_mut().unwrap().push(json!({
                    "type": "Rebooting", "status": "True", "reason": "RebootRequested",
                    "message": "x", "lastTransitionTime": now }));
            });
            let failed = Some(("False".to_owned(), "RebootFailed".to_owned()));
            until(w, MINUTE, "it fails", |w| rebooting(w, claim) == failed).await;
            always(w, HOUR, "the node stays", |w| w.get("nodes", node).is_some()).await;
            assert_eq!(w.instances()[0].boots, 0);
            let node = w.get("nodes", node).unwrap();
            assert!(node["spec"]["taints"].as_array().is_none_or(Vec::is_empty), "{node}");
        },
    );
}
