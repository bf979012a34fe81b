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
use crate::controllers::nodeclaim::deletion;
use crate::controllers::patch;
use crate::controllers::{Context, Error};
use crate::operator::logging;

const PERIOD: Duration = Duration::from_secs(60);
/// Claims that are deleted at once.
const PARALLEL: usize = 10;

pub(super) fn start(ctx: &Arc<Context>, aws: &Arc<AwsProvider>, tasks: &mut JoinSet<()>) {
    if !ctx.settings.gates.reserved_capacity {
        return;
    }
    let (context, provider) = (Arc::clone(ctx), Arc::clone(aws));
    every(tasks, "capacityreservation.capacitytype", PERIOD, move || {
        let (ctx, aws) = (Arc::clone(&context), Arc::clone(&provider));
        async move { capacity_types(&ctx, &aws).await }
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

/// An instance whose reservation is gone runs on, as an on-demand one: its labels follow.
async fn capacity_types(ctx: &Context, aws: &AwsProvider) -> Result<(), Error> {
    let reserved: Vec<_> =
        ctx.cluster.claims().into_iter().filter(|c| seems_reserved(ctx, c)).collect();
    if reserved.is_empty() {
        return Ok(());
    }
    let types: HashMap<String, String> = aws
        .instances
        .list()
        .await?
        .into_iter()
        .map(|i| (i.provider_id(), i.capacity_type))
        .collect();
    follow(ctx, reserved, &types).await
}

/// Gives claims and Nodes the labels of what their instances have become, by provider id.
async fn follow(
    ctx: &Context,
    reserved: Vec<Arc<NodeClaim>>,
    types: &HashMap<String, String>,
) -> Result<(), Error> {
    let mut updated = Vec::new();
    for claim in reserved {
        let id = claim.status.as_ref().and_then(|s| s.provider_id.as_deref()).unwrap_or_default();
        // An instance that the list lacks says nothing; only one that runs on demand has left its
        // reservation.
        if types.get(id).map(String::as_str) != Some(labels::CAPACITY_ON_DEMAND) {
            continue;
        }
        relabel_all(ctx, &claim, id).await?;
        updated.push(claim.metadata.name.clone().unwrap_or_default());
    }
    if !updated.is_empty() {
        tracing::debug!(
            "NodeClaims" = %logging::json(&updated),
            "updated capacity type for nodeclaims"
        );
    }
    Ok(())
}

/// The claim comes last: its label is what shows that there is work left.
async fn relabel_all(ctx: &Context, claim: &NodeClaim, id: &str) -> Result<(), kube::Error> {
    relabel_nodes(ctx, id).await?;
    let mut changed = claim.clone();
    relabel(changed.metadata.labels.get_or_insert_default());
    let claims = Api::<NodeClaim>::all(ctx.client.clone());
    patch::merge(&claims, claim, &changed).await.map(drop)
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
        // A Node that registers later gets the labels of its claim; one that goes needs none.
        if !registered || node.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let mut changed = (*node).clone();
        relabel(changed.metadata.labels.get_or_insert_default());
        let nodes = Api::<Node>::all(ctx.client.clone());
        patch::merge(&nodes, &*node, &changed).await?;
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
    deletion::delete(ctx, &name).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    use karpenter_model::api::{ApiServer, Journal, Store, kind};
    use serde_json::{Value, json};

    use crate::controllers::tests::context;

    /// An API server with a claim and its Node, which have these capacity types.
    fn world(claim: &str, node: &str) -> (Arc<Store>, Arc<Context>) {
        let store = Arc::new(Store::new(1, Arc::new(|| jiff::Timestamp::UNIX_EPOCH)));
        let server = ApiServer::new(Arc::clone(&store), Journal::default(), Duration::ZERO);
        let ctx = context(&server.client("karpenter"));
        let meta = |capacity: &str| {
            let mut labels = json!({labels::CAPACITY_TYPE: capacity, labels::REGISTERED: "true"});
            if capacity == labels::CAPACITY_RESERVED {
                labels[labels::CAPACITY_RESERVATION_ID] = json!("cr-1");
            }
            json!({"name": "x", "labels": labels})
        };
        let create = |plural: &str, object: Value| {
            (*store.create(kind(plural), "", object).ok().unwrap()).clone()
        };
        let object = json!({"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
            "metadata": meta(claim), "spec": {"requirements": [], "nodeClassRef": {
                "group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"}}});
        let mut object = create("nodeclaims", object);
        object["status"] = json!({"providerID": "aws:///a/i-1"});
        ctx.cluster.apply_claim(serde_json::from_value(object).unwrap());
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": meta(node),
            "spec": {"providerID": "aws:///a/i-1"}});
        let object = create("nodes", object);
        ctx.cluster.apply_node(serde_json::from_value(object).unwrap());
        (store, ctx)
    }

    /// Capacity type and reservation of the claim and of its Node after a look at the instance.
    async fn after(claim: &str, node: &str, instance: &str) -> [(Value, Value); 2] {
        let (store, ctx) = world(claim, node);
        let claims = ctx.cluster.claims();
        let reserved: Vec<_> = claims.into_iter().filter(|c| seems_reserved(&ctx, c)).collect();
        let types = HashMap::from([("aws:///a/i-1".to_owned(), instance.to_owned())]);
        follow(&ctx, reserved, &types).await.unwrap();
        ["nodeclaims", "nodes"].map(|plural| {
            let object = store.get(kind(plural), "", "x").unwrap();
            let label = |key: &str| object["metadata"]["labels"][key].clone();
            (label(labels::CAPACITY_TYPE), label(labels::CAPACITY_RESERVATION_ID))
        })
    }

    #[tokio::test(start_paused = true)]
    async fn claim_and_node_follow_an_instance_whose_reservation_ended_each_by_itself() {
        let on_demand = || (json!("on-demand"), Value::Null);
        let reserved = || (json!("reserved"), json!("cr-1"));
        for (claim, node) in
            [("reserved", "reserved"), ("reserved", "on-demand"), ("on-demand", "reserved")]
        {
            let found = after(claim, node, "on-demand").await;
            assert_eq!(found, [on_demand(), on_demand()], "{claim}, {node}");
        }
        // As long as the reservation lasts they stay.
        let found = after("reserved", "reserved", "reserved").await;
        assert_eq!(found, [reserved(), reserved()]);
    }

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
        // That label names what the instance was launched as.
        assert_eq!(all.len(), 2);
    }
}
