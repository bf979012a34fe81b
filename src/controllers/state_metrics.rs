//! Gauges of what the state holds: nodes with what they offer and carry, NodePools with their
//! limits, usage and cost.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::cost::{self, Prices};
use super::{Context, runner};
use crate::api::labels;
use crate::api::v1::{NodeClaim, NodePool};
use crate::operator::logging;
use crate::operator::metrics::page::{Family, Page, render};
use crate::operator::metrics::{self, Level, series::Series};
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::node::StateNode;
use crate::scheduling::resources::{Name, ResourceList};

/// NodePools are measured this often.
const POOLS_EVERY: Duration = Duration::from_secs(10);

/// Adds nodes to the metrics, and starts measuring NodePools.
pub fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    if ctx.settings.disable_cluster_state_observability {
        return;
    }
    metrics::add_source(ctx, |ctx, page| {
        write_nodes(&ctx.cluster.state_nodes(), ctx.clock.now(), page);
    });
    let prices = Arc::new(Prices::default());
    if ctx.settings.cost_metrics {
        cost::start(ctx, &prices);
    }
    let (of_pools, kept) = (Arc::clone(ctx), Arc::new(Mutex::default()));
    runner::repeat(tasks, "metrics.nodepool", move || {
        let (ctx, kept, prices) = (Arc::clone(&of_pools), Arc::clone(&kept), Arc::clone(&prices));
        async move {
            let (series, unknown) = &mut *kept.lock().await;
            pools(&ctx, series, unknown, &prices).await;
            Ok(Some(POOLS_EVERY))
        }
    });
}

/// An amount as metrics show it: cores, bytes, pieces.
#[allow(clippy::cast_precision_loss, reason = "a metric is a float")]
fn shown(name: &Name, amount: i64) -> f64 {
    if *name == Name::Cpu { amount as f64 / 1000.0 } else { amount as f64 }
}

/// The series of one node, or of all nodes of a kind together.
#[derive(Default)]
struct Row {
    /// Amounts in the order of [`AMOUNTS`].
    amounts: [ResourceList; 6],
    /// Age in seconds, of a single node.
    age: Option<f64>,
}

/// The gauges of a row's amounts.
const AMOUNTS: [&std::sync::LazyLock<Family>; 6] = [
    &metrics::NODES_ALLOCATABLE,
    &metrics::NODES_POD_REQUESTS,
    &metrics::NODES_POD_LIMITS,
    &metrics::NODES_DAEMON_REQUESTS,
    &metrics::NODES_DAEMON_LIMITS,
    &metrics::NODES_SYSTEM_OVERHEAD,
];

/// Writes what nodes offer and carry. Below the level `full` nodes are added up.
pub(super) fn write_nodes(nodes: &[StateNode], now: Timestamp, page: &mut Page<'_>) {
    let full = page.level() == Level::Full;
    if let Some(mut lines) = page.family(&metrics::CLUSTER_STATE_NODES) {
        lines.add(&[], f64::from(u32::try_from(nodes.len()).unwrap_or(u32::MAX)));
    }
    let mut rows: BTreeMap<Vec<&str>, Row> = BTreeMap::new();
    let (mut offered, mut requested) = (ResourceList::new(), ResourceList::new());
    // A claim whose Node has not joined offers nothing that a pod could use yet.
    for node in nodes.iter().filter(|n| n.node.is_some()) {
        let (allocatable, load) = (node.allocatable(), node.load());
        let mut overhead = node.capacity();
        // What the kubelet and the system keep is the difference of the two: no object has it as a
        // figure.
        overhead.sub(&allocatable);
        offered.add(&allocatable);
        requested.add(&load.pods);
        requested.add(&load.daemons);
        let row = rows.entry(labels_of(node, full)).or_default();
        let amounts = [
            &allocatable,
            &load.pods,
            &load.pod_limits,
            &load.daemons,
            &load.daemon_limits,
            &overhead,
        ];
        row.amounts.iter_mut().zip(amounts).for_each(|(sum, part)| sum.add(part));
        let created = node.node.as_ref().and_then(|n| n.metadata.creation_timestamp.as_ref());
        row.age = created.map(|at| now.duration_since(at.0).as_secs_f64().max(0.0));
    }
    write_rows(&rows, page);
    if let Some(mut lines) = page.family(&metrics::CLUSTER_UTILIZATION) {
        for (name, total) in offered.iter().filter(|(_, total)| *total > 0) {
            let share = 100.0 * shown(name, requested.get(name)) / shown(name, total);
            lines.add(&[&metrics::metric_label(name.as_str())], share);
        }
    }
}

fn write_rows(rows: &BTreeMap<Vec<&str>, Row>, page: &mut Page<'_>) {
    let own = metrics::NODES_CURRENT_LIFETIME.labels();
    // Once for all families: they share the labels, and quoting them is most of the cost of a line.
    let rendered: Vec<(String, &Row)> =
        rows.iter().map(|(values, row)| (render(own, values), row)).collect();
    for (index, family) in AMOUNTS.into_iter().enumerate() {
        let Some(mut lines) = page.family(family) else { continue };
        for (labels, row) in &rendered {
            // The count of nodes is a limit of pools, not a resource that a node has.
            for (name, amount) in row.amounts[index].iter().filter(|(n, _)| n.as_str() != "nodes") {
                let kind = metrics::metric_label(name.as_str());
                lines.add_rendered(labels, &[&kind], shown(name, amount));
            }
        }
    }
    if let Some(mut lines) = page.family(&metrics::NODES_CURRENT_LIFETIME) {
        for (values, row) in rows {
            row.age.into_iter().for_each(|age| lines.add(values, age));
        }
    }
}

/// The labels that stay when nodes are added up.
const KEPT: &[&str] = &[
    labels::NODEPOOL,
    labels::ZONE,
    labels::REGION,
    labels::ARCH,
    labels::OS,
    labels::CAPACITY_TYPE,
];

/// Values of the labels of node metrics but for the resource; those that name one node or its type
/// only when every node is shown by itself.
fn labels_of(node: &StateNode, full: bool) -> Vec<&str> {
    let values = metrics::NODE_LABELS.iter().map(|(key, _)| {
        let shown = full || KEPT.contains(key);
        node.labels().get(*key).filter(|_| shown).map_or("", String::as_str)
    });
    let object = node.node.as_ref();
    let phase = object.and_then(|n| n.status.as_ref()).and_then(|s| s.phase.as_deref());
    let name = object.and_then(|n| n.metadata.name.as_deref()).filter(|_| full);
    let managed = if node.managed() { "true" } else { "false" };
    let mut list: Vec<&str> = values.collect();
    list.extend([name.unwrap_or_default(), phase.unwrap_or_default(), managed]);
    list
}

async fn pools(
    ctx: &Context,
    series: &Series,
    unknown: &mut HashMap<String, String>,
    prices: &Prices,
) {
    let mut known = HashMap::new();
    let gauges =
        [&*metrics::NODEPOOLS_LIMIT, &*metrics::NODEPOOLS_USAGE, &*metrics::NODEPOOLS_COST];
    let all = ctx.cluster.pools();
    let claims = ctx.cluster.claims();
    // A claim of the same name may come again, and is logged again then.
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
        let of_pool = prices_of(ctx, pool, of_pool, unknown).await;
        samples.push((2, vec![name.clone()], of_pool.values().sum()));
        known.extend(of_pool);
        series.set(&gauges, &name, samples);
    }
    series.keep(&gauges, |name| ctx.cluster.pool(name).is_some());
    prices.set(known);
}

fn label<'a>(claim: &'a NodeClaim, key: &str) -> Option<&'a String> {
    claim.metadata.labels.as_ref()?.get(key)
}

/// The prices of the pool's launched claims an hour, by the claim's name. A claim without a known
/// price counts as free, which is logged once per claim.
async fn prices_of<'a>(
    ctx: &Context,
    pool: &Arc<NodePool>,
    claims: impl Iterator<Item = &'a Arc<NodeClaim>>,
    unknown: &mut HashMap<String, String>,
) -> HashMap<String, f64> {
    let name = pool.metadata.name.as_deref().unwrap_or_default();
    let mut types = ctx.instance_types(pool).await.unwrap_or_else(|_| Arc::new([]));
    // The price that decisions are made by, not the one that AWS asks for.
    if let Some(changed) = ctx.cluster.overlay_store().and_then(|s| s.apply(name, &types)) {
        types = changed;
    }
    let by_name: BTreeMap<&str, &Arc<InstanceType>> = types.iter().map(|t| (&*t.name, t)).collect();
    let mut prices = HashMap::new();
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
        let claim = claim.metadata.name.clone().unwrap_or_default();
        match offering {
            Some(offering) => drop(prices.insert(claim, offering.price)),
            None => {
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
    prices
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::metrics::{Options, page_of};
    use crate::scheduling::node::NodeView;
    use crate::scheduling::pod::{Owners, PodInfo};

    fn node(name: &str, zone: &str) -> StateNode {
        let pod = |daemon_set: bool, cpu: i64, limit: i64| PodInfo {
            owners: Owners { daemon_set, ..Owners::default() },
            requests: [(Name::Cpu, cpu)].into_iter().collect(),
            limits: Arc::new([(Name::Cpu, limit)].into_iter().collect()),
            ..PodInfo::default()
        };
        let done = PodInfo { terminal: true, ..pod(false, 9000, 9000) };
        let object = serde_json::json!({
            "metadata": {"name": name, "creationTimestamp": "1970-01-01T00:00:10Z", "labels": {
                labels::NODEPOOL: "default", labels::ZONE: zone,
                labels::INSTANCE_TYPE: "m5.large",
            }},
            "status": {"capacity": {"cpu": "2"}, "allocatable": {"cpu": "1900m"}},
        });
        NodeView {
            node: Some(Arc::new(serde_json::from_value(object).unwrap())),
            pods: [pod(false, 500, 600), pod(false, 250, 300), pod(true, 100, 200), done]
                .map(Arc::new)
                .into(),
            ..NodeView::default()
        }
        .into()
    }

    fn lines(level: Level, start: &str) -> Vec<String> {
        let nodes = [node("a", "z1"), node("b", "z1"), node("c", "z2")];
        let now = Timestamp::from_second(25).unwrap();
        let options = Options { level, ..Options::default() };
        let text = page_of(&options, |page| write_nodes(&nodes, now, page));
        text.lines().filter(|l| l.starts_with(start)).map(str::to_owned).collect()
    }

    #[test]
    fn a_node_shows_what_it_offers_and_what_pods_and_daemons_take_of_it() {
        for (name, cpu) in [
            ("karpenter_nodes_allocatable", "1.9"),
            ("karpenter_nodes_total_pod_requests", "0.75"),
            ("karpenter_nodes_total_pod_limits", "0.9"),
            ("karpenter_nodes_total_daemon_requests", "0.1"),
            ("karpenter_nodes_total_daemon_limits", "0.2"),
            ("karpenter_nodes_system_overhead", "0.1"),
        ] {
            let found = lines(Level::Full, &format!("{name}{{"));
            let of_a: Vec<_> = found.iter().filter(|l| l.contains(r#"node_name="a""#)).collect();
            let [line] = of_a.as_slice() else { panic!("{name}: {found:?}") };
            assert!(line.ends_with(&format!(" {cpu}")), "{line}");
            for label in [r#"zone="z1""#, r#"instance_type="m5.large""#, r#"resource_type="cpu""#] {
                assert!(line.contains(label), "{line}");
            }
        }
        let ages = lines(Level::Full, "karpenter_nodes_current_lifetime_seconds{");
        assert!(ages.len() == 3 && ages.iter().all(|l| l.ends_with(" 15")), "{ages:?}");
        let share = lines(Level::Full, "karpenter_cluster_utilization_percent{");
        assert!(
            share[0]
                .starts_with(r#"karpenter_cluster_utilization_percent{resource_type="cpu"} 44.7"#)
        );
        assert_eq!(
            lines(Level::Full, "karpenter_cluster_state_node_count "),
            ["karpenter_cluster_state_node_count 3"]
        );
    }

    #[test]
    fn nodes_of_one_pool_and_zone_are_added_up_below_the_full_level() {
        let found = lines(Level::Standard, "karpenter_nodes_allocatable{");
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains(r#"zone="z1""#) && found[0].ends_with(" 3.8"), "{found:?}");
        assert!(
            found
                .iter()
                .all(|l| l.contains(r#"node_name="""#) && l.contains(r#"instance_type="""#))
        );
        assert!(lines(Level::Standard, "karpenter_nodes_current_lifetime_seconds").is_empty());
    }

    #[test]
    fn amounts_are_cores_and_bytes() {
        assert!((shown(&Name::Cpu, 750) - 0.75).abs() < 1e-9);
        assert!((shown(&Name::Memory, 750) - 750.0).abs() < 1e-9);
    }
}
