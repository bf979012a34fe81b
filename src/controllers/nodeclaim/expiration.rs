//! NodeClaims that have outlived their `expireAfter`.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::{all_claims, deletion};
use crate::api::labels;
use crate::controllers::runner::{self, Identity};
use crate::controllers::{Context, Outcome, observability};

const EXPIRATION: Identity =
    Identity { name: "nodeclaim.expiration", group: labels::GROUP, kind: "NodeClaim", workers: 10 };

/// Starts the controller.
pub(super) fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let ctx = Arc::clone(ctx);
    tasks.spawn(runner::run(EXPIRATION, ctx, all_claims, runner::changed_claim, expire));
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
    if deletion::delete(&ctx, &name).await? {
        observability::disrupted_with_pods(&ctx, &claim, "expired", "");
    }
    tracing::debug!("deleting expired nodeclaim");
    Ok(None)
}
