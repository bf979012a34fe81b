//! Nodes in capacity reservations: `capacityreservation.capacitytype` and
//! `capacityreservation.expiration`.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use tokio::task::JoinSet;

use super::every;
use crate::api::labels;
use crate::api::v1::{CapacityReservationSelectorTerm, NodeClaim};
use crate::cloud::aws::AwsProvider;
use crate::cloud::aws::capacityreservation::to_status;
use crate::controllers::patch::{self, Lock};
use crate::controllers::{Context, Error, runner};
use crate::operator::logging;

const PERIOD: Duration = Duration::from_secs(60);
/// Where somebody else wrote meanwhile, it is tried again after this long.
const CONFLICT: Duration = Duration::from_secs(1);
/// Claims that are deleted at once.
const PARALLEL: usize = 10;

pub(super) fn start(ctx: &Arc<Context>, aws: &Arc<AwsProvider>, tasks: &mut JoinSet<()>) {
    if !ctx.settings.gates.reserved_capacity {
        return;
    }
    let (context, provider) = (Arc::clone(ctx), Arc::clone(aws));
    runner::repeat(tasks, "capacityreservation.capacitytype", move || {
        let (ctx, aws) = (Arc::clone(&context), Arc::clone(&provider));
        async move { Ok(Some(if capacity_types(&ctx, &aws).await? { PERIOD } else { CONFLICT })) }
    });
    let (context, provider) = (Arc::clone(ctx), Arc::clone(aws));
    every(tasks, "capacityreservation.expiration", PERIOD, move || {
        let (ctx, aws) = (Arc::clone(&context), Arc::clone(&provider));
        async move { expirations(&ctx, &aws).await }
    });
}

fn label<'a>(claim: &'a NodeClaim, key: &str) -> Option<&'a str> {
    claim.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn is_reserved(claim: &NodeClaim) -> bool {
    label(claim, labels::CAPACITY_TYPE) == Some(labels::CAPACITY_RESERVED)
}

/// Whether the claim or its Node says that the instance is in a reservation. The two are written
/// one after the other, and whoever writes a Node may put old labels back.
fn seems_reserved(ctx: &Context, claim: &NodeClaim) -> bool {
    let id = claim.status.as_ref().and_then(|s| s.provider_id.as_deref()).unwrap_or_default();
    is_reserved(claim)
        || (!id.is_empty()
            && ctx.cluster.nodes_by_provider_id(id).iter().any(|node| {
                let label =
                    node.metadata.labels.as_ref().and_then(|l| l.get(labels::CAPACITY_TYPE));
                label.is_some_and(|c| c == labels::CAPACITY_RESERVED)
            }))
}

/// An instance whose reservation is gone runs on, as an on-demand one: its labels follow. False
/// when something is left to do since it changed meanwhile.
async fn capacity_types(ctx: &Context, aws: &AwsProvider) -> Result<bool, Error> {
    let reserved: Vec<_> =
        ctx.cluster.claims().into_iter().filter(|c| seems_reserved(ctx, c)).collect();
    if reserved.is_empty() {
        return Ok(true);
    }
    let types: HashMap<String, String> = aws
        .instances
        .list()
        .await?
        .into_iter()
        .map(|i| (i.provider_id(), i.capacity_type))
        .collect();
    let (mut updated, mut done) = (Vec::new(), true);
    for claim in reserved {
        let id = claim.status.as_ref().and_then(|s| s.provider_id.as_deref()).unwrap_or_default();
        if types.get(id).map(String::as_str) != Some(labels::CAPACITY_ON_DEMAND) {
            continue;
        }
        match relabel_all(ctx, &claim, id).await {
            Err(error) if patch::is_conflict(&error) => done = false,
            outcome => {
                outcome?;
                updated.push(claim.metadata.name.clone().unwrap_or_default());
            }
        }
    }
    if !updated.is_empty() {
        tracing::debug!(
            "NodeClaims" = %logging::json(&updated),
            "updated capacity type for nodeclaims"
        );
    }
    Ok(done)
}

/// The claim comes last: it is what tells that something is to be done.
async fn relabel_all(ctx: &Context, claim: &NodeClaim, id: &str) -> Result<(), kube::Error> {
    relabel_nodes(ctx, id).await?;
    let mut changed = claim.clone();
    relabel(changed.metadata.labels.get_or_insert_default());
    let claims = Api::<NodeClaim>::all(ctx.client.clone());
    patch::apply(&claims, claim, &changed, Lock::Optimistic).await
}

fn relabel(all: &mut std::collections::BTreeMap<String, String>) {
    all.insert(labels::CAPACITY_TYPE.to_owned(), labels::CAPACITY_ON_DEMAND.to_owned());
    all.remove(labels::CAPACITY_RESERVATION_ID);
    all.remove(labels::CAPACITY_RESERVATION_TYPE);
}

async fn relabel_nodes(ctx: &Context, provider_id: &str) -> Result<(), kube::Error> {
    for node in ctx.cluster.nodes_by_provider_id(provider_id) {
        let own = node.metadata.labels.clone().unwrap_or_default();
        let registered = own.get(labels::REGISTERED).is_some_and(|v| v == "true");
        if !registered || node.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let mut changed = (*node).clone();
        relabel(changed.metadata.labels.get_or_insert_default());
        let nodes = Api::<Node>::all(ctx.client.clone());
        patch::apply(&nodes, &node, &changed, Lock::Optimistic).await?;
    }
    Ok(())
}

/// Nodes in capacity blocks are drained before EC2 ends them.
async fn expirations(ctx: &Context, aws: &AwsProvider) -> Result<(), Error> {
    let claims: Vec<_> = ctx
        .cluster
        .claims()
        .into_iter()
        .filter(|c| is_reserved(c) && c.metadata.deletion_timestamp.is_none())
        .collect();
    let ids: BTreeSet<&str> =
        claims.iter().filter_map(|c| label(c, labels::CAPACITY_RESERVATION_ID)).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let terms: Vec<CapacityReservationSelectorTerm> = ids
        .iter()
        .map(|id| CapacityReservationSelectorTerm {
            id: Some((*id).to_owned()),
            ..CapacityReservationSelectorTerm::default()
        })
        .collect();
    let Some(found) = aws.capacity_reservations.list(&terms).await? else { return Ok(()) };
    let now = ctx.clock.now();
    let expiring: BTreeSet<String> = found
        .iter()
        .filter_map(|r| to_status(r, now).ok())
        .filter(|r| r.state == "expiring")
        .map(|r| r.id)
        .collect();
    let doomed = claims.iter().filter(|c| {
        label(c, labels::CAPACITY_RESERVATION_ID).is_some_and(|id| expiring.contains(id))
    });
    let deletions: Vec<_> = doomed.map(|claim| delete(ctx, claim)).collect();
    let outcomes: Vec<Result<(), Error>> =
        stream::iter(deletions).buffer_unordered(PARALLEL).collect().await;
    outcomes.into_iter().collect()
}

async fn delete(ctx: &Context, claim: &NodeClaim) -> Result<(), Error> {
    let name = claim.metadata.name.clone().unwrap_or_default();
    tracing::info!(
        "NodeClaim" = %logging::obj(&name),
        "initiating delete for capacity block expiration"
    );
    patch::delete(&Api::<NodeClaim>::all(ctx.client.clone()), &name).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_reservation_is_on_demand() {
        let mut all = std::collections::BTreeMap::from(
            [
                (labels::CAPACITY_TYPE, "reserved"),
                (labels::CAPACITY_RESERVATION_ID, "cr-1"),
                (labels::CAPACITY_RESERVATION_TYPE, "default"),
                (labels::CAPACITY_RESERVATION_INTERRUPTIBLE, "false"),
            ]
            .map(|(k, v)| (k.to_owned(), v.to_owned())),
        );
        relabel(&mut all);
        assert_eq!(all[labels::CAPACITY_TYPE], "on-demand");
        // That label tells what the instance was launched as.
        assert_eq!(all.len(), 2);
    }
}
