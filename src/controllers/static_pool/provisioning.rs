//! Launches the nodes that a static pool lacks.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use super::super::{Context, Error, Outcome, provisioning};
use crate::api::conditions;
use crate::api::v1::NodePool;
use crate::scheduling::resources::{Name, ResourceList};

/// A pool is looked at again after this long.
const PERIOD: Duration = Duration::from_secs(60);
/// A pool at its limit is looked at again after this long.
const AT_LIMIT: Duration = Duration::from_secs(30);

/// The most nodes that a pool may have.
pub(super) fn node_limit(pool: &NodePool) -> i64 {
    let limits = ResourceList::from_quantities_lossy(pool.spec.limits.as_ref());
    limits.find(&Name::from("nodes")).unwrap_or(i64::MAX)
}

pub(super) async fn reconcile(ctx: Arc<Context>, name: String) -> Outcome {
    let Some((pool, replicas)) = super::kept(&ctx, &name) else { return Ok(None) };
    let status = pool.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    if !conditions::is_true(status, conditions::READY) {
        return Ok(None);
    }
    let count = ctx.cluster.count_claims(&name);
    if count.active + count.pending_disruption >= replicas {
        return Ok(Some(PERIOD));
    }
    let granted = ctx.cluster.reserve_nodes(&name, node_limit(&pool), replicas - count.active);
    if granted <= 0 {
        tracing::info!("nodepool node limit reached");
        return Ok(Some(AT_LIMIT));
    }
    tracing::info!(
        "current" = count.active,
        "desired" = replicas,
        "provision-count" = granted,
        "provisioning nodeclaims to satisfy replica count"
    );
    let planned = super::planned(&pool);
    let (ctx, name, planned) = (&*ctx, name.as_str(), &planned);
    let made = join_all((0..granted).map(|_| async move {
        let outcome = provisioning::launch(ctx, planned, "provisioned").await;
        ctx.cluster.release_nodes(name, 1);
        outcome
    }))
    .await;
    let errors: Vec<String> = made
        .into_iter()
        .filter_map(Result::err)
        .map(|error| format!("creating node claim, {error}"))
        .collect();
    if errors.is_empty() { Ok(Some(PERIOD)) } else { Err(Error::Other(errors.join("; "))) }
}
