//! The marks of a node that is being disrupted: a taint that keeps new pods away, and the reason on
//! its NodeClaim. They carry a command across a restart.

use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use tokio::time::sleep;

use super::super::patch;
use super::super::{Context, Error};
use super::InFlight;
use crate::api::v1::NodeClaim;
use crate::api::{conditions, taints};
use crate::disruption::Candidate;

/// How often a mark is tried, and the first wait between; each is five times as long as the last.
const ATTEMPTS: u32 = 4;
const FIRST_WAIT: Duration = Duration::from_millis(10);
/// Nodes that are marked or freed at once.
const AT_ONCE: usize = 10;

/// Takes back the marks of commands that nobody works on any more.
pub(super) async fn clean_up(ctx: &Context, in_flight: &InFlight) -> Result<(), Error> {
    let mut stale = Vec::new();
    for node in ctx.cluster.state_nodes() {
        let queued = node.provider_id().is_some_and(|id| in_flight.queued.lock().contains(id));
        // A reboot keeps its mark for as long as it lasts.
        if queued || node.deleting() || node.rebooting() {
            continue;
        }
        if let (Some(claim), Some(node)) = (node.node_claim.clone(), node.node.clone())
            && is_marked(&node, &claim)
        {
            stale.push((node, claim));
        }
    }
    let work: Vec<_> = stale.iter().map(|(node, claim)| unmark(ctx, node, claim)).collect();
    let freed: Vec<Result<(), Error>> =
        stream::iter(work).buffer_unordered(AT_ONCE).collect().await;
    freed.into_iter().collect()
}

fn is_marked(node: &Node, claim: &NodeClaim) -> bool {
    let tainted = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let status = claim.status.as_ref();
    tainted.iter().any(taints::marks_disruption)
        || status.is_some_and(|s| {
            conditions::get(&s.conditions, conditions::DISRUPTION_REASON).is_some()
        })
}

/// Removes the taint and the condition that mark a node as being disrupted, also those that an older
/// release left behind.
pub(super) async fn unmark(ctx: &Context, node: &Node, claim: &NodeClaim) -> Result<(), Error> {
    // The list of taints is made from the one that the Node has: kubelets write their Nodes all the time.
    let nodes = Api::<Node>::all(ctx.client.clone());
    patch::edit(&nodes, node, |wanted| {
        if wanted.metadata.deletion_timestamp.is_none()
            && let Some(spec) = &mut wanted.spec
            && let Some(list) = &mut spec.taints
        {
            list.retain(|t| !taints::marks_disruption(t));
        }
    })
    .await?;
    let mut changed = claim.clone();
    let list = &mut changed.status.get_or_insert_default().conditions;
    if conditions::clear(list, conditions::DISRUPTION_REASON) {
        let api = Api::<NodeClaim>::all(ctx.client.clone());
        patch::merge(&api, claim, &changed).await?;
    }
    Ok(())
}

/// Takes back the marks of NodeClaims, by name.
pub(super) async fn unmark_claims(ctx: &Context, claims: &[String]) {
    ctx.cluster.unmark_for_deletion(claims);
    for name in claims {
        let Some(state) = ctx.cluster.state_node(name) else { continue };
        let (Some(claim), Some(node)) = (&state.node_claim, &state.node) else { continue };
        if let Err(error) = unmark(ctx, node, claim).await {
            tracing::error!("error" = %error, "Reconciler error");
        }
    }
}

/// Marks candidates; returns those that could not be, by the name of their NodeClaim.
pub(super) async fn mark_all(
    ctx: &Context,
    candidates: &[Candidate],
    reason: &str,
) -> Vec<(String, Error)> {
    let work: Vec<_> = candidates.iter().map(|c| mark_one(ctx, c, reason)).collect();
    let outcomes: Vec<Result<(), (String, Error)>> =
        stream::iter(work).buffer_unordered(AT_ONCE).collect().await;
    outcomes.into_iter().filter_map(Result::err).collect()
}

async fn mark_one(
    ctx: &Context,
    candidate: &Candidate,
    reason: &str,
) -> Result<(), (String, Error)> {
    let marked = mark_fresh(ctx, candidate, reason).await;
    marked.map_err(|error| (candidate.claim_name().to_owned(), error))
}

async fn mark_fresh(ctx: &Context, candidate: &Candidate, reason: &str) -> Result<(), Error> {
    let mut last = Error::Other("node is gone".to_owned());
    let mut wait = FIRST_WAIT;
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            sleep(wait).await;
            wait *= 5;
        }
        // Read from the API server: what is marked is what is there.
        let claims = Api::<NodeClaim>::all(ctx.client.clone());
        let claim = claims.get(candidate.claim_name()).await?;
        let node = Api::<Node>::all(ctx.client.clone()).get(candidate.node.name()).await?;
        match mark(ctx, &node, &claim, reason).await {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Marks a node as being disrupted: no new pods, and the reason on its claim.
async fn mark(ctx: &Context, node: &Node, claim: &NodeClaim, reason: &str) -> Result<(), Error> {
    let disrupted = taints::disrupted();
    let nodes = Api::<Node>::all(ctx.client.clone());
    patch::edit(&nodes, node, |wanted| {
        let list = wanted.spec.get_or_insert_default().taints.get_or_insert_default();
        if !list.iter().any(|t| taints::matches(t, &disrupted)) {
            list.push(disrupted.clone());
        }
    })
    .await?;
    let mut changed = claim.clone();
    let generation = claim.metadata.generation;
    let now = ctx.clock.now();
    let list = &mut changed.status.get_or_insert_default().conditions;
    let kind = conditions::DISRUPTION_REASON;
    conditions::set(list, kind, conditions::TRUE, reason, reason, generation, now);
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    patch::merge(&api, claim, &changed).await?;
    Ok(())
}
