//! NodeClaims that have outlived their instance.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::deletion;
use crate::api::conditions;
use crate::api::v1::NodeClaim;
use crate::controllers::{Context, Error, observability, read_live, runner};
use crate::operator::logging;
use crate::scheduling::node::is_ready;

/// Claims are compared with instances this often.
const PERIOD: Duration = Duration::from_secs(120);

/// Starts the controller.
pub(super) fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
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

/// Deletes claims that were registered and whose instance is gone.
async fn collect(ctx: &Context) -> Result<(), Error> {
    let claims = read_live::list::<NodeClaim>(&ctx.client).await?.objects;
    let alive: HashSet<String> = ctx
        .cloud
        .list()
        .await?
        .into_iter()
        .filter(|c| c.metadata.deletion_timestamp.is_none())
        .filter_map(|c| c.status?.provider_id)
        .collect();
    let mut errors = Vec::new();
    for claim in claims.iter().filter(|claim| claim.is_managed()) {
        if let Err(error) = collect_one(ctx, claim, &alive).await {
            errors.push(error);
        }
    }
    Error::all(errors)
}

/// Deletes a claim that was registered, and whose instance is not among those that are alive.
async fn collect_one(
    ctx: &Context,
    claim: &NodeClaim,
    alive: &HashSet<String>,
) -> Result<(), Error> {
    let status = claim.status.clone().unwrap_or_default();
    let Some(id) = status.provider_id else { return Ok(()) };
    let registered = conditions::is_true(&status.conditions, conditions::REGISTERED);
    if !registered || claim.metadata.deletion_timestamp.is_some() || alive.contains(&id) {
        return Ok(());
    }
    let nodes = ctx.cluster.nodes_by_provider_id(&id);
    if let [node] = nodes.as_slice()
        && is_ready(node)
    {
        return Ok(());
    }
    // Lists show a new instance late, and an instance that is asked for by its id at once: a node that is
    // still on its way up must not lose its NodeClaim.
    match ctx.cloud.get(&id).await {
        Ok(found) if found.metadata.deletion_timestamp.is_none() => return Ok(()),
        Ok(_) => {}
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error.into()),
    }
    let name = claim.metadata.name.clone().unwrap_or_default();
    if deletion::delete(ctx, &name).await? {
        observability::disrupted_with_pods(ctx, claim, "garbage_collected", "");
    }
    tracing::debug!(
        "NodeClaim" = %logging::obj(&name),
        "Node" = %logging::obj(nodes.first().and_then(|n| n.metadata.name.as_deref()).unwrap_or("")),
        "provider-id" = id,
        "garbage collecting nodeclaim with no cloudprovider representation"
    );
    Ok(())
}
