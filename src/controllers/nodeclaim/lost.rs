//! Claims that were registered and whose Node is gone, while the instance may still run.
//!
//! Nothing can run on such an instance any more: its kubelet registers again only when it starts.
//! The claim is no room for pods from the first moment; after a grace period, in which a Node may
//! come back, it goes, and the instance with it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Api;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::super::runner::{self, Identity};
use super::super::{Context, Outcome, observability, patch};
use super::is_true;
use crate::api::v1::NodeClaim;
use crate::api::{conditions, labels};
use crate::cluster::{Change, State};
use crate::operator::logging;

const IDENTITY: Identity =
    Identity { name: "nodeclaim.lost", group: labels::GROUP, kind: "NodeClaim", workers: 5 };
/// A Node may come back for this long.
const GRACE: Duration = Duration::from_secs(10 * 60);

/// When the Node of each claim was first missed. After a restart the grace period begins again.
type Missed = Mutex<HashMap<String, Timestamp>>;

/// Starts the controller.
pub(super) fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let missed: Arc<Missed> = Arc::default();
    tasks.spawn(runner::run(
        IDENTITY,
        Arc::clone(ctx),
        super::all_claims,
        of_change,
        move |ctx, name| {
            let missed = Arc::clone(&missed);
            async move { reconcile(&ctx, &missed, &name).await }
        },
    ));
}

/// The claim that changed, or that of the Node that did.
fn of_change(ctx: &Context, change: &Change) -> Vec<String> {
    match change {
        Change::NodeClaim(name) => vec![name.clone()],
        Change::Node(name) => {
            let of_node = |claim: &Arc<NodeClaim>| {
                claim.status.as_ref().and_then(|s| s.node_name.as_deref()) == Some(name)
            };
            let claims = ctx.cluster.claims().into_iter().filter(of_node);
            claims.filter_map(|c| c.metadata.name.clone()).collect()
        }
        _ => Vec::new(),
    }
}

async fn reconcile(ctx: &Context, missed: &Missed, name: &str) -> Outcome {
    let lost = ctx.cluster.claim(name).filter(|claim| is_lost(&ctx.cluster, claim));
    let Some(claim) = lost else {
        missed.lock().remove(name);
        return Ok(None);
    };
    let since = *missed.lock().entry(name.to_owned()).or_insert_with(|| ctx.clock.now());
    let passed = ctx.clock.since(since);
    if passed < GRACE {
        return Ok(Some(GRACE.saturating_sub(passed)));
    }
    if patch::delete(&Api::<NodeClaim>::all(ctx.client.clone()), name).await? {
        observability::disrupted_with_pods(ctx, &claim, "garbage_collected", "");
        tracing::info!(
            "NodeClaim" = %logging::obj(name),
            "duration" = logging::go_duration(passed),
            "garbage collecting nodeclaim whose node is gone"
        );
    }
    missed.lock().remove(name);
    Ok(None)
}

fn is_lost(state: &State, claim: &NodeClaim) -> bool {
    let id = claim.status.as_ref().and_then(|s| s.provider_id.as_deref());
    claim.metadata.deletion_timestamp.is_none()
        && is_true(claim, conditions::REGISTERED)
        && id.is_some_and(|id| state.nodes_by_provider_id(id).is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_registered_claim_is_lost_while_it_has_no_node() {
        let state = State::default();
        let claim = |conditions: Value| -> NodeClaim {
            serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": {},
                "status": {"providerID": "aws:///z/i-1", "conditions": conditions}}))
            .unwrap()
        };
        let registered = claim(json!([{"type": "Registered", "status": "True", "reason": "",
            "message": "", "lastTransitionTime": "1970-01-01T00:00:00Z"}]));
        assert!(is_lost(&state, &registered));
        assert!(!is_lost(&state, &claim(json!([]))), "its Node has not joined yet");
        let node = json!({"metadata": {"name": "n"}, "spec": {"providerID": "aws:///z/i-1"}});
        state.apply_node(serde_json::from_value(node).unwrap());
        assert!(!is_lost(&state, &registered));
        state.delete_node("n");
        assert!(is_lost(&state, &registered));
    }
}
