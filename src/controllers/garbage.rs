//! NodeClaims that have outlived their time or their instance.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use kube::Api;
use tokio::task::JoinSet;

use super::observability;
use super::patch;
use super::runner::{self, Identity};
use super::{Context, Error, Outcome};
use crate::api::v1::NodeClaim;
use crate::api::{conditions, labels};
use crate::operator::logging;
use crate::scheduling::node::is_ready;

const EXPIRATION: Identity =
    Identity { name: "nodeclaim.expiration", group: labels::GROUP, kind: "NodeClaim", workers: 10 };
/// Claims are compared with instances this often.
const PERIOD: Duration = Duration::from_secs(120);

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
    runner::singleton(
        tasks,
        "nodeclaim.garbagecollection",
        ctx,
        |_, _| false,
        move || {
            let ctx = Arc::clone(&context);
            async move { collect(&ctx).await.map(|()| Some(PERIOD)) }
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

/// Deletes claims that were registered and whose instance is gone.
async fn collect(ctx: &Context) -> Result<(), Error> {
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    let claims = api.list(&Default::default()).await?;
    let alive: HashSet<String> = ctx
        .cloud
        .list()
        .await?
        .into_iter()
        .filter(|c| c.metadata.deletion_timestamp.is_none())
        .filter_map(|c| c.status?.provider_id)
        .collect();
    for claim in claims {
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
