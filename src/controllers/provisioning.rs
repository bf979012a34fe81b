//! Provisioning: pods that fit nowhere are collected, scheduled, and given NodeClaims.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Api;
use kube::api::PostParams;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;

use super::Context;
use crate::api::conditions;
use crate::api::v1::{NodeClaim, NodePool};
use crate::cluster::{Change, State};
use crate::operator::events::Event;
use crate::operator::logging;
use crate::scheduling::node::StateNode;
use crate::scheduling::pod::{PodInfo, PodKey};
use crate::scheduling::resources::ResourceList;
use crate::scheduling::results::{PlannedClaim, PodError, Results};
use crate::scheduling::snapshot::{NodePoolInput, Options, Snapshot};
use crate::scheduling::solver::solve_while;

/// Pods that still wait are looked at again after this long.
const RETRY: Duration = Duration::from_secs(10);
/// A scheduling round stops after this long with what it has.
const SOLVE_LIMIT: Duration = Duration::from_secs(60);

/// Starts the provisioner.
pub fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let ctx = Arc::clone(ctx);
    tasks.spawn(async move { run(ctx).await }.instrument(logging::controller_span("provisioner")));
}

async fn run(ctx: Arc<Context>) {
    let mut changes = ctx.cluster.subscribe();
    let window =
        Window { idle: ctx.settings.batch_idle_duration, max: ctx.settings.batch_max_duration };
    loop {
        window.wait(&mut changes, &ctx.cluster).await;
        if !ctx.cluster.synced() {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        }
        provision(&ctx).await;
    }
}

/// How long pods are collected.
#[derive(Clone, Copy, Debug)]
struct Window {
    idle: Duration,
    max: Duration,
}

impl Window {
    /// Waits for a waiting pod, then until no new one came for a while.
    async fn wait(self, changes: &mut Receiver<Change>, cluster: &State) {
        let mut seen: HashSet<PodKey> = HashSet::new();
        let retry = Instant::now() + RETRY;
        let has_work = |cluster: &State| !cluster.provisionable_pods().is_empty();
        loop {
            match timeout_at(retry, next_pod(changes, cluster)).await {
                Ok(Some(key)) => {
                    seen.insert(key);
                    break;
                }
                Ok(None) => return,
                Err(_) if has_work(cluster) => return,
                Err(_) => return Box::pin(self.wait(changes, cluster)).await,
            }
        }
        let end = Instant::now() + self.max;
        let mut idle_end = Instant::now() + self.idle;
        while let Ok(Some(key)) = timeout_at(idle_end.min(end), next_pod(changes, cluster)).await {
            if seen.insert(key) {
                idle_end = Instant::now() + self.idle;
            }
        }
    }
}

/// The next pod that waits for a node.
async fn next_pod(changes: &mut Receiver<Change>, cluster: &State) -> Option<PodKey> {
    loop {
        match changes.recv().await {
            Ok(Change::Pod(key)) => {
                if cluster.pod(&key).is_some_and(|p| p.is_provisionable()) {
                    return Some(key);
                }
            }
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => {
                if let Some(pod) = cluster.provisionable_pods().first() {
                    return Some(pod.key.clone());
                }
            }
            Err(RecvError::Closed) => return None,
        }
    }
}

/// First five, then how many more.
pub(super) fn listed<T: ToString>(items: impl ExactSizeIterator<Item = T>) -> String {
    let total = items.len();
    let shown: Vec<String> = items.take(5).map(|i| i.to_string()).collect();
    if total > shown.len() {
        return format!("{} and {} other(s)", shown.join(", "), total - shown.len());
    }
    shown.join(", ")
}

async fn provision(ctx: &Context) {
    let started = std::time::Instant::now();
    let nodes = ctx.cluster.state_nodes();
    let mut pods = ctx.cluster.provisionable_pods();
    let now = ctx.clock.now();
    let leaving = nodes.iter().filter(|n| n.deleting()).flat_map(|n| &n.pods);
    pods.extend(leaving.filter(|p| p.is_reschedulable() && !p.do_not_disrupt_active(now)).cloned());
    if pods.is_empty() {
        return;
    }
    let node_pools = usable_pools(ctx).await;
    if node_pools.is_empty() {
        tracing::info!("no dynamic nodepools found");
        return;
    }
    let snapshot = snapshot(ctx, node_pools, nodes, pods.clone());
    let limit = started + SOLVE_LIMIT;
    let solved = tokio::task::spawn_blocking(move || {
        solve_while(&snapshot, &|| std::time::Instant::now() < limit)
    })
    .await;
    let Ok(results) = solved else { return };
    if !results.new_claims.is_empty() {
        tracing::info!(
            "Pods" = listed(pods.iter().map(|p| p.key.to_string())),
            "duration" = logging::go_duration(started.elapsed()),
            "found provisionable pod(s)"
        );
    }
    record(ctx, &results, &pods);
    join_all(results.new_claims.iter().map(|claim| create(ctx, claim, &pods))).await;
}

/// The cluster at this moment, with the pods to place.
pub(super) fn snapshot(
    ctx: &Context,
    node_pools: Vec<NodePoolInput>,
    nodes: Vec<StateNode>,
    pods: Vec<Arc<PodInfo>>,
) -> Snapshot {
    Snapshot {
        options: Options {
            respect_preferences: ctx.settings.respect_preferences,
            best_effort_min_values: ctx.settings.best_effort_min_values,
            reserved_capacity: ctx.settings.gates.reserved_capacity,
            ignore_dynamic_resources: ctx.settings.ignore_dra_requests,
            ..Options::default()
        },
        node_pools,
        daemonset_pods: ctx.cluster.daemon_set_pods(),
        nodes,
        pods,
        namespaces: ctx.cluster.namespaces(),
        ..Snapshot::default()
    }
}

/// NodePools that are ready, with what they may launch.
pub(super) async fn usable_pools(ctx: &Context) -> Vec<NodePoolInput> {
    let mut inputs = Vec::new();
    for pool in ctx.cluster.pools() {
        let name = pool.metadata.name.clone().unwrap_or_default();
        if pool.spec.replicas.is_some() || pool.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let status = pool.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        if !conditions::is_true(status, conditions::READY) {
            tracing::error!("NodePool" = %logging::obj(&name), "ignoring nodepool, not ready");
            continue;
        }
        match ctx.cloud.instance_types(&pool).await {
            Ok(types) if types.is_empty() => {
                tracing::info!("NodePool" = %logging::obj(&name), "skipping, no resolved instance types found");
            }
            Ok(instance_types) => {
                inputs.push(NodePoolInput { node_pool: pool, instance_types });
            }
            Err(error) => {
                tracing::error!("NodePool" = %logging::obj(&name), "error" = %error, "skipping, unable to resolve instance types");
            }
        }
    }
    inputs
}

fn pod_reference(pod: &PodInfo) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.key.namespace.to_string()),
        name: Some(pod.key.name.to_string()),
        uid: Some(pod.uid.to_string()),
        ..ObjectReference::default()
    }
}

/// Tells what was decided: logs, events, nominations.
fn record(ctx: &Context, results: &Results, pods: &[Arc<PodInfo>]) {
    let find = |key: &PodKey| pods.iter().find(|p| p.key == *key);
    for (key, error) in &results.errors {
        let reference = logging::obj_ns(&key.namespace, &key.name);
        if *error == PodError::DynamicResources {
            tracing::info!("Pod" = %reference, "skipping pod with Dynamic Resource Allocation requirements, not yet supported by Karpenter");
        } else {
            tracing::error!("Pod" = %reference, "error" = %error, "could not schedule pod");
        }
        if let Some(pod) = find(key) {
            let mut event = Event::new(
                pod_reference(pod),
                true,
                "FailedScheduling",
                format!("Failed to schedule pod, {error}"),
            );
            event.dedupe_for = Duration::from_secs(300);
            ctx.recorder.publish(event);
        }
    }
    let window = (2 * ctx.settings.batch_max_duration).max(Duration::from_secs(10));
    for (name, keys) in &results.existing {
        let node = ctx.cluster.state_nodes().into_iter().find(|n| n.name() == name);
        let claim = node.and_then(|n| n.node_claim.as_ref().and_then(|c| c.metadata.name.clone()));
        if let Some(claim) = &claim {
            ctx.cluster.nominate(claim, ctx.clock.now() + window);
        }
        let on = match &claim {
            Some(claim) => format!("nodeclaim/{claim}, node/{name}"),
            None => format!("node/{name}"),
        };
        for pod in keys.iter().filter_map(find) {
            nominated(ctx, pod, &on);
        }
    }
    let claimed: usize = results.new_claims.iter().map(|c| c.pods.len()).sum();
    if claimed > 0 {
        tracing::info!(
            "nodeclaims" = results.new_claims.len(),
            "pods" = claimed,
            "computed new nodeclaim(s) to fit pod(s)"
        );
        let reused: usize = results.existing.iter().map(|(_, p)| p.len()).sum();
        if reused > 0 {
            tracing::info!(
                "nodes" = results.existing.len(),
                "pods" = reused,
                "computed unready node(s) will fit pod(s)"
            );
        }
    }
}

fn nominated(ctx: &Context, pod: &PodInfo, on: &str) {
    let message = format!("Pod should schedule on: {on}");
    ctx.recorder.publish(Event::new(pod_reference(pod), false, "Nominated", message));
}

async fn create(ctx: &Context, planned: &PlannedClaim, pods: &[Arc<PodInfo>]) {
    let pool = planned.node_pool.metadata.name.clone().unwrap_or_default();
    match create_claim(ctx, planned, &pool).await {
        Ok(claim) => {
            let name = claim.metadata.name.clone().unwrap_or_default();
            tracing::info!(
                "NodePool" = %logging::obj(&pool),
                "NodeClaim" = %logging::obj(&name),
                "requests" = %logging::json(&planned.requests),
                "instance-types" = listed(planned.instance_types.iter().map(|t| &t.name)),
                "created nodeclaim"
            );
            for pod in pods.iter().filter(|p| planned.pods.contains(&p.key)) {
                nominated(ctx, pod, &format!("nodeclaim/{name}"));
            }
        }
        Err(error) => {
            tracing::error!("NodePool" = %logging::obj(&pool), "error" = %error, "creating node claim");
        }
    }
}

pub(super) async fn create_claim(
    ctx: &Context,
    planned: &PlannedClaim,
    pool: &str,
) -> Result<NodeClaim, super::Error> {
    let current = Api::<NodePool>::all(ctx.client.clone()).get(pool).await?;
    check_limits(ctx, &current)?;
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    let created = api.create(&PostParams::default(), &planned.to_node_claim()).await?;
    ctx.cluster.apply_claim(created.clone());
    Ok(created)
}

/// Refuses a claim for a pool that uses more than its limits already.
fn check_limits(ctx: &Context, pool: &NodePool) -> Result<(), super::Error> {
    let Some(limits) = &pool.spec.limits else { return Ok(()) };
    let name = pool.metadata.name.as_deref();
    let mut usage = ResourceList::new();
    for node in ctx.cluster.state_nodes().iter().filter(|n| !n.deleting()) {
        if node.node_pool() == name {
            usage.add(&node.capacity());
        }
    }
    for (resource, limit) in ResourceList::from_quantities_lossy(Some(limits)).iter() {
        if usage.get(resource) > limit {
            let one = |value: i64| {
                let list: ResourceList = [(resource.clone(), value)].into_iter().collect();
                list.to_quantities().into_values().next().map(|q| q.0).unwrap_or_default()
            };
            return Err(super::Error::Other(format!(
                "resource usage exceeds limit (limit={}, resource-name={}, usage={})",
                one(limit),
                resource.as_str(),
                one(usage.get(resource))
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn waiting(name: &str) -> k8s_openapi::api::core::v1::Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n"},
            "spec": {"containers": []}, "status": {"conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}}))
        .unwrap()
    }

    /// Seconds that a window stays open when pods come at these times.
    async fn window_of(times: &[(u64, &str)]) -> u64 {
        let state = Arc::new(State::default());
        let mut changes = state.subscribe();
        let feeder = Arc::clone(&state);
        let times: Vec<(u64, String)> = times.iter().map(|(t, n)| (*t, (*n).to_owned())).collect();
        tokio::spawn(async move {
            let start = Instant::now();
            for (at, name) in times {
                tokio::time::sleep_until(start + Duration::from_secs(at)).await;
                feeder.apply_pod(&waiting(&name));
            }
        });
        let start = Instant::now();
        let window = Window { idle: Duration::from_secs(5), max: Duration::from_secs(10) };
        window.wait(&mut changes, &state).await;
        start.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn only_new_pods_keep_a_batch_open() {
        assert_eq!(window_of(&[(0, "a"), (3, "a")]).await, 5);
        assert_eq!(window_of(&[(0, "a"), (3, "b")]).await, 8);
        assert_eq!(window_of(&[(0, "a"), (4, "b"), (8, "c"), (9, "d")]).await, 10);
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(listed(["a", "b"].iter()), "a, b");
        assert_eq!(listed((0..7).collect::<Vec<i32>>().iter()), "0, 1, 2, 3, 4 and 2 other(s)");
    }
}
