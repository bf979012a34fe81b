//! What the nodes cost per hour, and for whom.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{NodeRow, money};
use crate::scheduling::node::StateNode;
use crate::scheduling::pod::PodInfo;
use crate::scheduling::resources::{Name, ResourceList};
use crate::scheduling::snapshot::Snapshot;

/// Cost per hour in the provider's currency.
///
/// A node's price is divided among its pods by their shares ([`pod_share`]). What no pod requests is `wasted`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cost {
    /// All nodes whose price is known.
    pub total: f64,
    /// The part of it that no pod requests.
    pub wasted: f64,
    /// Nodes whose price is not known; they are in none of the sums.
    pub nodes_without_price: usize,
    /// By NodePool, largest first; nodes without one count as `<none>`.
    pub node_pools: Vec<Share>,
    /// By namespace of the pods, largest first; without the wasted part.
    pub namespaces: Vec<Share>,
    /// By capacity type, largest first.
    pub capacity_types: Vec<Share>,
    /// By zone, largest first.
    pub zones: Vec<Share>,
}

/// One part of the cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// The NodePool, namespace, capacity type or zone.
    pub name: String,
    /// Cost per hour.
    pub cost: f64,
    /// The wasted part of it; zero for namespaces.
    pub wasted: f64,
    /// Number of nodes, or of pods for namespaces.
    pub count: usize,
}

#[derive(Default)]
struct Sums(BTreeMap<String, Share>);

impl Sums {
    fn add(&mut self, name: &str, cost: f64, wasted: f64, count: usize) {
        let name = if name.is_empty() { "<none>" } else { name };
        let share = self.0.entry(name.to_owned()).or_default();
        share.cost += cost;
        share.wasted += wasted;
        share.count += count;
    }

    fn sorted(self) -> Vec<Share> {
        let mut list: Vec<Share> = self
            .0
            .into_iter()
            .map(|(name, s)| Share { name, cost: money(s.cost), wasted: money(s.wasted), ..s })
            .collect();
        // Stable, so that equal costs stay in the order of their names.
        list.sort_by(|a, b| b.cost.total_cmp(&a.cost));
        list
    }
}

impl Cost {
    pub(super) fn new(snapshot: &Snapshot, rows: &[NodeRow]) -> Self {
        let by_name: BTreeMap<&str, &StateNode> =
            snapshot.nodes.iter().map(|n| (n.name(), n)).collect();
        let (mut pools, mut namespaces, mut kinds, mut zones) =
            (Sums::default(), Sums::default(), Sums::default(), Sums::default());
        let mut cost = Self::default();
        for row in rows {
            let Some(price) = row.price else {
                cost.nodes_without_price += 1;
                continue;
            };
            let mut used = 0.0;
            if let Some(node) = by_name.get(row.name.as_str()) {
                for (namespace, part, pods) in by_namespace(node, price) {
                    used += part;
                    namespaces.add(&namespace, part, 0.0, pods);
                }
            }
            let wasted = (price - used).max(0.0);
            cost.total += price;
            cost.wasted += wasted;
            pools.add(row.node_pool.as_deref().unwrap_or_default(), price, wasted, 1);
            kinds.add(&row.capacity_type, price, wasted, 1);
            zones.add(&row.zone, price, wasted, 1);
        }
        Self {
            total: money(cost.total),
            wasted: money(cost.wasted),
            node_pools: pools.sorted(),
            namespaces: namespaces.sorted(),
            capacity_types: kinds.sorted(),
            zones: zones.sorted(),
            ..cost
        }
    }
}

/// A pod's share of its node: the mean of its shares of cpu, of memory, and of each device that the
/// node offers.
#[allow(clippy::cast_precision_loss, reason = "a share is a float")]
#[must_use]
pub fn pod_share(pod: &PodInfo, allocatable: &ResourceList) -> f64 {
    let counted =
        |name: &Name| matches!(name, Name::Cpu | Name::Memory) || name.as_str().contains('/');
    let shares: Vec<f64> = allocatable
        .iter()
        .filter(|(name, amount)| counted(name) && *amount > 0)
        .map(|(name, amount)| (pod.requests.get(name) as f64 / amount as f64).min(1.0))
        .collect();
    if shares.is_empty() { 0.0 } else { shares.iter().sum::<f64>() / shares.len() as f64 }
}

/// The parts of a node's price that each namespace's pods are responsible for, and their number.
fn by_namespace(node: &StateNode, price: f64) -> Vec<(String, f64, usize)> {
    let whole = node.allocatable();
    let mut parts: BTreeMap<&str, (f64, usize)> = BTreeMap::new();
    for pod in node.pods.iter().filter(|p| !p.terminal) {
        let part = price * pod_share(pod, &whole);
        let entry = parts.entry(&pod.key.namespace).or_default();
        entry.0 += part;
        entry.1 += 1;
    }
    parts.into_iter().map(|(name, (part, pods))| (name.to_owned(), part, pods)).collect()
}
