//! NodeClaims that have outlived their time or their instance.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Api;
use tokio::task::JoinSet;

use super::observability;
use super::patch;
use super::runner::{self, Identity};
use super::{Context, Error, Outcome, read_live};
use crate::api::v1::NodeClaim;
use crate::api::{conditions, labels};
use crate::cluster::State;
use crate::operator::logging;
use crate::scheduling::node::is_ready;

const EXPIRATION: Identity =
    Identity { name: "nodeclaim.expiration", group: labels::GROUP, kind: "NodeClaim", workers: 10 };
/// Claims are compared with instances this often.
const PERIOD: Duration = Duration::from_secs(120);

/// Time that a registered claim is given to have a Node again.
const LOST: Duration = Duration::from_secs(5 * 60);

/// Starts expiration and garbage collection.
pub fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    tasks.spawn(runner::run(
        EXPIRATION,
        Arc::clone(ctx),
        super::nodeclaim::all_claims,
        runner::changed_claim,
        expire,
    ));
    let context = Arc::clone(ctx);
    let lost: Arc<tokio::sync::Mutex<Lost>> = Arc::default();
    runner::singleton(
        tasks,
        "nodeclaim.garbagecollection",
        ctx,
        |_, _| false,
        move || {
            let (ctx, lost) = (Arc::clone(&context), Arc::clone(&lost));
            async move {
                collect_lost(&ctx, &mut *lost.lock().await).await?;
                collect(&ctx).await.map(|()| Some(PERIOD))
            }
        },
    );
}

async fn expire(ctx: Arc<Context>, name: String) -> Outcome {
    let Some(claim) = ctx.cluster.claim(&name) else { return Ok(None) };
    let (Some(limit), Some(created)) = (
        claim.spec.expire_after.as_ref().and_then(|d| d.duration()),
        &claim.metadata.creation_timestamp,
    ) else {
        return Ok(None);
    };
    if claim.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let age = ctx.clock.since(created.0);
    if age < limit {
        return Ok(Some(limit - age));
    }
    if patch::delete(&Api::<NodeClaim>::all(ctx.client.clone()), &name).await? {
        observability::disrupted_with_pods(&ctx, &claim, "expired", "");
    }
    tracing::debug!("deleting expired nodeclaim");
    Ok(None)
}

/// Claims whose Node is gone, and since when.
type Lost = HashMap<String, Timestamp>;

/// Deletes claims that were registered and whose Node is gone: no pod can run on the instance, which
/// costs as much as before. A kubelet that starts anew registers its Node again, so that the claim
/// is given some time.
async fn collect_lost(ctx: &Context, lost: &mut Lost) -> Result<(), Error> {
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    for claim in overdue(&ctx.cluster, lost, ctx.clock.now()) {
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        if patch::delete(&api, name).await? {
            observability::disrupted(&claim, "garbage_collected", "");
        }
        tracing::info!(
            "NodeClaim" = %logging::obj(name),
            "grace-period" = logging::go_duration(LOST),
            "garbage collecting nodeclaim whose node is gone"
        );
    }
    Ok(())
}

/// Claims whose Node has been gone for the whole of the grace period.
fn overdue(state: &State, lost: &mut Lost, now: Timestamp) -> Vec<Arc<NodeClaim>> {
    let nodes = state.state_nodes();
    let without: Vec<&Arc<NodeClaim>> = nodes
        .iter()
        .filter(|n| n.lost() && !n.deleting())
        // A Node that does not count yet is there nevertheless.
        .filter(|n| n.provider_id().is_none_or(|id| state.nodes_by_provider_id(id).is_empty()))
        .filter_map(|n| n.node_claim.as_ref())
        .collect();
    let name = |claim: &NodeClaim| claim.metadata.name.clone().unwrap_or_default();
    let names: HashSet<String> = without.iter().map(|c| name(c)).collect();
    lost.retain(|known, _| names.contains(known));
    let late = without.into_iter().filter(|claim| {
        let since = *lost.entry(name(claim)).or_insert(now);
        Duration::try_from(now.duration_since(since)).is_ok_and(|gone| gone >= LOST)
    });
    late.cloned().collect()
}

/// Deletes claims that were registered and whose instance is gone.
async fn collect(ctx: &Context) -> Result<(), Error> {
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    let claims = read_live::list::<NodeClaim>(&ctx.client).await?.objects;
    let alive: HashSet<String> = ctx
        .cloud
        .list()
        .await?
        .into_iter()
        .filter(|c| c.metadata.deletion_timestamp.is_none())
        .filter_map(|c| c.status?.provider_id)
        .collect();
    for claim in claims.into_iter().filter(NodeClaim::is_managed) {
        let status = claim.status.clone().unwrap_or_default();
        let Some(id) = status.provider_id else { continue };
        let registered = conditions::is_true(&status.conditions, conditions::REGISTERED);
        if !registered || claim.metadata.deletion_timestamp.is_some() || alive.contains(&id) {
            continue;
        }
        let nodes = ctx.cluster.nodes_by_provider_id(&id);
        if let [node] = nodes.as_slice()
            && is_ready(node)
        {
            continue;
        }
        let name = claim.metadata.name.clone().unwrap_or_default();
        if patch::delete(&api, &name).await? {
            observability::disrupted_with_pods(ctx, &claim, "garbage_collected", "");
        }
        tracing::debug!(
            "NodeClaim" = %logging::obj(&name),
            "Node" = %logging::obj(nodes.first().and_then(|n| n.metadata.name.as_deref()).unwrap_or("")),
            "provider-id" = id,
            "garbage collecting nodeclaim with no cloudprovider representation"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_registered_claim_without_a_node_goes_after_a_grace_period() {
        let state = State::default();
        let at = |minutes: u64| Timestamp::UNIX_EPOCH + Duration::from_secs(60 * minutes);
        let registered = json!([{"type": "Registered", "status": "True", "reason": "",
            "message": "", "lastTransitionTime": "1970-01-01T00:00:00Z"}]);
        let claim = json!({"metadata": {"name": "c"}, "spec": {},
            "status": {"providerID": "aws:///z/i-1", "conditions": registered}});
        state.apply_claim(serde_json::from_value(claim).unwrap());
        let launched = json!({"metadata": {"name": "d"}, "spec": {},
            "status": {"providerID": "aws:///z/i-2"}});
        state.apply_claim(serde_json::from_value(launched).unwrap());
        let mut lost = Lost::default();
        let mut names = |now| -> Vec<String> {
            let late = overdue(&state, &mut lost, now);
            late.iter().filter_map(|c| c.metadata.name.clone()).collect()
        };
        assert!(names(at(0)).is_empty());
        assert!(names(at(4)).is_empty());
        assert_eq!(names(at(5)), ["c"]);
        let node = json!({"metadata": {"name": "n"}, "spec": {"providerID": "aws:///z/i-1"}});
        state.apply_node(serde_json::from_value(node).unwrap());
        assert!(names(at(6)).is_empty(), "its Node is back");
        state.delete_node("n");
        assert!(names(at(7)).is_empty(), "the time begins anew");
    }
}
