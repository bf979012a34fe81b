//! Gauges of what the state holds: nodes with what they offer and carry, NodePools with their
//! limits, usage and cost.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::{Context, runner};
use crate::api::labels;
use crate::api::v1::{NodeClaim, NodePool};
use crate::operator::logging;
use crate::operator::metrics::{self, series::Series};
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::node::StateNode;
use crate::scheduling::resources::{Name, ResourceList};

/// Nodes are measured this often.
const NODES_EVERY: Duration = Duration::from_secs(5);
/// NodePools are measured this often.
const POOLS_EVERY: Duration = Duration::from_secs(10);

/// Starts measuring.
pub fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    if ctx.settings.disable_cluster_state_observability {
        return;
    }
    let (of_nodes, series) = (Arc::clone(ctx), Series::default());
    runner::repeat(tasks, "metrics.node", move || {
        nodes(&of_nodes, &series);
        std::future::ready(Ok(Some(NODES_EVERY)))
    });
    let (of_pools, kept) = (Arc::clone(ctx), Arc::new(Mutex::default()));
    runner::repeat(tasks, "metrics.nodepool", move || {
        let (ctx, kept) = (Arc::clone(&of_pools), Arc::clone(&kept));
        async move {
            let (series, unknown) = &mut *kept.lock().await;
            pools(&ctx, series, unknown).await;
            Ok(Some(POOLS_EVERY))
        }
    });
}

/// An amount as metrics show it: cores, bytes, pieces.
#[allow(clippy::cast_precision_loss, reason = "a metric is a float")]
fn shown(name: &Name, amount: i64) -> f64 {
    if *name == Name::Cpu { amount as f64 / 1000.0 } else { amount as f64 }
}

/// What a node carries.
#[derive(Default)]
struct Load {
    pods: ResourceList,
    daemons: ResourceList,
}

impl Load {
    fn of(node: &StateNode) -> Self {
        let mut load = Self::default();
        for pod in node.pods.iter().filter(|p| !p.terminal) {
            let part = if pod.owners.daemon_set { &mut load.daemons } else { &mut load.pods };
            part.add(&pod.requests);
        }
        load
    }
}

fn nodes(ctx: &Context, series: &Series) {
    let gauges = [
        &*metrics::NODES_ALLOCATABLE,
        &*metrics::NODES_POD_REQUESTS,
        &*metrics::NODES_DAEMON_REQUESTS,
        &*metrics::NODES_SYSTEM_OVERHEAD,
        &*metrics::NODES_CURRENT_LIFETIME,
    ];
    let now = ctx.clock.now();
    let all = ctx.cluster.state_nodes();
    let count = u32::try_from(all.len()).unwrap_or(u32::MAX);
    metrics::CLUSTER_STATE_NODES.with_label_values::<&str>(&[]).set(f64::from(count));
    let mut there = std::collections::HashSet::new();
    let (mut offered, mut requested) = (ResourceList::new(), ResourceList::new());
    for node in all.iter().filter(|n| n.node.is_some()) {
        let own = labels_of(node);
        let (allocatable, load) = (node.allocatable(), Load::of(node));
        let mut overhead = node.capacity();
        overhead.sub(&allocatable);
        let mut samples = Vec::new();
        let amounts = [(0, &allocatable), (1, &load.pods), (2, &load.daemons), (3, &overhead)];
        for (gauge, list) in amounts {
            for (name, amount) in list.iter().filter(|(n, _)| n.as_str() != "nodes") {
                let mut labels = own.clone();
                labels.push(metrics::metric_label(name.as_str()));
                samples.push((gauge, labels, shown(name, amount)));
            }
        }
        let created = node.node.as_ref().and_then(|n| n.metadata.creation_timestamp.as_ref());
        if let Some(created) = created {
            samples.push((4, own, now.duration_since(created.0).as_secs_f64().max(0.0)));
        }
        series.set(&gauges, node.name(), samples);
        there.insert(node.name());
        offered.add(&allocatable);
        requested.add(&load.pods);
        requested.add(&load.daemons);
    }
    series.keep(&gauges, |name| there.contains(name));
    for (name, total) in offered.iter().filter(|(_, total)| *total > 0) {
        let share = 100.0 * shown(name, requested.get(name)) / shown(name, total);
        let kind = metrics::metric_label(name.as_str());
        metrics::CLUSTER_UTILIZATION.with_label_values(&[&kind]).set(share);
    }
}

/// Values of the labels of node metrics, but for what one metric has besides.
fn labels_of(node: &StateNode) -> Vec<String> {
    let mut list: Vec<String> = metrics::NODE_LABELS
        .iter()
        .map(|(key, _)| node.labels().get(*key).cloned().unwrap_or_default())
        .collect();
    let object = node.node.as_ref();
    let phase = object.and_then(|n| n.status.as_ref()).and_then(|s| s.phase.clone());
    list.push(object.and_then(|n| n.metadata.name.clone()).unwrap_or_default());
    list.push(phase.unwrap_or_default());
    list.push(node.managed().to_string());
    list
}

async fn pools(ctx: &Context, series: &Series, unknown: &mut HashMap<String, String>) {
    let gauges =
        [&*metrics::NODEPOOLS_LIMIT, &*metrics::NODEPOOLS_USAGE, &*metrics::NODEPOOLS_COST];
    let all = ctx.cluster.pools();
    let claims = ctx.cluster.claims();
    unknown.retain(|name, _| ctx.cluster.claim(name).is_some());
    for pool in &all {
        let name = pool.metadata.name.clone().unwrap_or_default();
        let limits = ResourceList::from_quantities_lossy(pool.spec.limits.as_ref());
        let status = pool.status.as_ref();
        let usage = ResourceList::from_quantities_lossy(status.and_then(|s| s.resources.as_ref()));
        let mut samples = Vec::new();
        for (gauge, list) in [(0, &limits), (1, &usage)] {
            for (resource, amount) in list.iter() {
                let kind = metrics::metric_label(resource.as_str());
                samples.push((gauge, vec![kind, name.clone()], shown(resource, amount)));
            }
        }
        let of_pool = claims.iter().filter(|c| label(c, labels::NODEPOOL) == Some(&name));
        let cost = cost(ctx, pool, of_pool, unknown).await;
        samples.push((2, vec![name.clone()], cost));
        series.set(&gauges, &name, samples);
    }
    series.keep(&gauges, |name| ctx.cluster.pool(name).is_some());
}

fn label<'a>(claim: &'a NodeClaim, key: &str) -> Option<&'a String> {
    claim.metadata.labels.as_ref()?.get(key)
}

/// The price of the pool's launched claims an hour. A claim without a known price counts as free,
/// which is told once a claim.
async fn cost<'a>(
    ctx: &Context,
    pool: &Arc<NodePool>,
    claims: impl Iterator<Item = &'a Arc<NodeClaim>>,
    unknown: &mut HashMap<String, String>,
) -> f64 {
    let name = pool.metadata.name.as_deref().unwrap_or_default();
    let mut types = ctx.instance_types(pool).await.unwrap_or_else(|_| Arc::new([]));
    if let Some(changed) = ctx.cluster.overlay_store().and_then(|s| s.apply(name, &types)) {
        types = changed;
    }
    let by_name: BTreeMap<&str, &Arc<InstanceType>> = types.iter().map(|t| (&*t.name, t)).collect();
    let mut total = 0.0;
    for claim in claims {
        let (Some(kind), Some(capacity), Some(zone)) = (
            label(claim, labels::INSTANCE_TYPE),
            label(claim, labels::CAPACITY_TYPE),
            label(claim, labels::ZONE),
        ) else {
            continue;
        };
        let offering = by_name.get(kind.as_str()).and_then(|t| {
            t.offerings.iter().find(|o| o.zone() == zone && o.capacity_type() == capacity)
        });
        match offering {
            Some(offering) => total += offering.price,
            None => {
                let claim = claim.metadata.name.clone().unwrap_or_default();
                if unknown.insert(claim.clone(), name.to_owned()).is_none() {
                    metrics::NODEPOOLS_COST_ERRORS.with_label_values(&[name]).inc();
                    tracing::error!(
                        "NodePool" = %logging::obj(name),
                        "NodeClaim" = %logging::obj(&claim),
                        "offering price unknown — cost tracking will undercount for this nodeclaim until next update"
                    );
                }
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::node::NodeView;
    use crate::scheduling::pod::{Owners, PodInfo};

    #[test]
    fn daemons_are_told_apart_from_other_pods() {
        let pod = |daemon_set: bool, cpu: i64| {
            Arc::new(PodInfo {
                owners: Owners { daemon_set, ..Owners::default() },
                requests: [(Name::Cpu, cpu)].into_iter().collect(),
                ..PodInfo::default()
            })
        };
        let done = Arc::new(PodInfo { terminal: true, ..(*pod(false, 9000)).clone() });
        let pods = vec![pod(false, 500), pod(false, 250), pod(true, 100), done];
        let load = Load::of(&NodeView { pods, ..NodeView::default() }.into());
        assert_eq!(load.pods.get(&Name::Cpu), 750);
        assert_eq!(load.daemons.get(&Name::Cpu), 100);
        assert!((shown(&Name::Cpu, 750) - 0.75).abs() < 1e-9);
        assert!((shown(&Name::Memory, 750) - 750.0).abs() < 1e-9);
    }
}
