//! From planned NodeClaims to real ones.

use futures::future::join_all;
use kube::Api;
use kube::api::PostParams;

use super::super::{Context, Error};
use super::decisions::Decisions;
use super::{listed, record};
use crate::api::finalizers;
use crate::api::v1::{NodeClaim, NodePool};
use crate::operator::{logging, metrics};
use crate::scheduling::resources::{Name, ResourceList};
use crate::scheduling::results::{PlannedClaim, Results};

/// Creates the claims of a round side by side; the failure of one leaves the others alone.
pub(super) async fn all(
    ctx: &Context,
    decisions: &Decisions,
    results: &Results,
    pods: &record::Pods<'_>,
) {
    join_all(results.new_claims.iter().map(|planned| async move {
        match launch(ctx, planned, "provisioned").await {
            Ok(claim) => {
                let name = claim.metadata.name.unwrap_or_default();
                for pod in planned.pods.iter().filter_map(|key| pods.real(key)) {
                    decisions.claimed(&pod.key, &name);
                    record::nominated(ctx, pod, &format!("nodeclaim/{name}"));
                }
            }
            Err(error) => {
                let pool = planned.node_pool.metadata.name.as_deref().unwrap_or_default();
                tracing::error!(
                    "NodePool" = %logging::obj(pool),
                    "error" = format!("creating node claim, {error}"),
                    "failed to create nodeclaim"
                );
            }
        }
    }))
    .await;
}

/// Creates a planned claim, logs it and counts it.
///
/// # Errors
/// When the pool is gone or uses more than its limits, or the API server refuses.
pub(in crate::controllers) async fn launch(
    ctx: &Context,
    planned: &PlannedClaim,
    reason: &str,
) -> Result<NodeClaim, Error> {
    launch_with(ctx, planned, reason, |_| {}).await
}

/// The same with a change of the claim before it is created.
///
/// # Errors
/// As [`launch`].
pub(in crate::controllers) async fn launch_with(
    ctx: &Context,
    planned: &PlannedClaim,
    reason: &str,
    change: impl FnOnce(&mut NodeClaim),
) -> Result<NodeClaim, Error> {
    let pool = planned.node_pool.metadata.name.clone().unwrap_or_default();
    let claim = create_claim(ctx, planned, &pool, change).await?;
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    tracing::info!(
        "NodePool" = %logging::obj(&pool),
        "NodeClaim" = %logging::obj(name),
        "requests" = %logging::json(&planned.requests),
        "instance-types" = listed(planned.instance_types.iter().map(|t| &t.name)),
        "created nodeclaim"
    );
    let relaxed = planned.min_values_relaxed.to_string();
    metrics::NODECLAIMS_CREATED.with_label_values(&[reason, &pool, &relaxed]).inc();
    Ok(claim)
}

/// Creates a planned claim unless its pool has used up its limits, and takes it into the state at
/// once: nothing else is decided before it has its instance.
async fn create_claim(
    ctx: &Context,
    planned: &PlannedClaim,
    pool: &str,
    change: impl FnOnce(&mut NodeClaim),
) -> Result<NodeClaim, Error> {
    let current = ctx.cluster.pool(pool).ok_or_else(|| {
        Error::Other(format!("getting current resource usage, NodePool {pool:?} not found"))
    })?;
    check_limits(ctx, &current)?;
    let _place = Place::take(ctx, &current)?;
    let mut claim = planned.to_node_claim();
    // From the first moment, so that launching needs no write before.
    claim.metadata.finalizers = Some(vec![finalizers::TERMINATION.to_owned()]);
    change(&mut claim);
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    let created = api.create(&PostParams::default(), &claim).await?;
    ctx.cluster.apply_created(created.clone(), &planned.pods, most(planned));
    Ok(created)
}

/// A place within the pool's limit of nodes, held until the claim is in the state or could not be
/// made: rounds and commands that run at the same time see each other's.
struct Place<'a> {
    ctx: &'a Context,
    pool: Option<String>,
}

impl<'a> Place<'a> {
    /// Static pools reserve their nodes themselves.
    fn take(ctx: &'a Context, pool: &NodePool) -> Result<Self, Error> {
        let limits = ResourceList::from_quantities_lossy(pool.spec.limits.as_ref());
        let limit = limits.find(&Name::from("nodes")).filter(|_| pool.spec.replicas.is_none());
        let name = pool.metadata.name.clone().unwrap_or_default();
        let Some(limit) = limit else { return Ok(Self { ctx, pool: None }) };
        if !ctx.cluster.reserve_node(&name, limit) {
            return Err(Error::Other(format!(
                "node limits have been exhausted for nodepool (NodePool={name})"
            )));
        }
        Ok(Self { ctx, pool: Some(name) })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            self.ctx.cluster.release_nodes(pool, 1);
        }
    }
}

/// The most of each resource that the instance may have.
fn most(planned: &PlannedClaim) -> ResourceList {
    let mut most = ResourceList::new();
    for (name, amount) in planned.instance_types.iter().flat_map(|t| t.capacity.iter()) {
        if most.get(name) < amount {
            most.set(name.clone(), amount);
        }
    }
    most
}

/// Refuses a claim for a pool that uses more than its limits already.
fn check_limits(ctx: &Context, pool: &NodePool) -> Result<(), Error> {
    let Some(limits) = &pool.spec.limits else { return Ok(()) };
    let name = pool.metadata.name.as_deref().unwrap_or_default();
    let mut usage = ResourceList::new();
    for node in ctx.cluster.state_nodes_of(name).iter().filter(|n| !n.deleting()) {
        usage.add(&node.capacity());
    }
    for (resource, limit) in ResourceList::from_quantities_lossy(Some(limits)).iter() {
        if usage.get(resource) > limit {
            let one = |value: i64| {
                let list: ResourceList = [(resource.clone(), value)].into_iter().collect();
                list.to_quantities().into_values().next().map(|q| q.0).unwrap_or_default()
            };
            return Err(Error::Other(format!(
                "resource usage exceeds limit (limit={}, resource-name={}, usage={})",
                one(limit),
                resource.as_str(),
                one(usage.get(resource))
            )));
        }
    }
    Ok(())
}
