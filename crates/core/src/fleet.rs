//! The cluster in figures: what each node holds and costs, what each NodePool may still do, and why each
//! pending pod waits.
//!
//! Everything here is made from a [`Snapshot`] and from decisions that were made on one, so that the
//! controller's API, its page and the command line show the same figures. The types are the schema of
//! the JSON documents; [`SCHEMA`] names its version, and fields are only ever added within a version.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::disruption::Reason;
use crate::disruption::candidate::Pools;
use crate::scheduling::results::Results;
use crate::scheduling::snapshot::{NodePoolInput, Snapshot};

mod calendar;
mod cost;
mod node;
mod pod;
mod pool;
#[cfg(test)]
mod tests;
mod verdict;

pub use calendar::{Window, calendar};
pub use cost::{Cost, Share, pod_share};
pub use node::NodeRow;
pub use pod::{Missing, NearestType, PodRow, PoolVerdict, Waiting};
pub use pool::{BudgetRow, Launch, PoolRow};
pub use verdict::{Rejections, Verdict};

/// Version of the JSON documents.
pub const SCHEMA: &str = "karpenter.fleet/v1";

/// Reasons with a budget, in the order in which they are shown.
pub const REASONS: [Reason; 4] =
    [Reason::Empty, Reason::Drifted, Reason::Underutilized, Reason::Unhealthy];

/// The whole cluster at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Fleet {
    /// `karpenter.fleet/v1`.
    pub schema: String,
    /// When the figures were taken.
    #[schemars(with = "String")]
    pub time: Timestamp,
    /// Nodes, by name.
    pub nodes: Vec<NodeRow>,
    /// NodePools, by name.
    pub node_pools: Vec<PoolRow>,
    /// Pending pods, by namespace and name.
    pub pods: Vec<PodRow>,
    /// What the nodes cost per hour.
    pub cost: Cost,
}

impl Fleet {
    /// Takes the figures of a snapshot, and of what scheduling decided on its pending pods.
    ///
    /// `pools` are all NodePools, also those in which nothing is launched for pods.
    #[must_use]
    pub fn new(
        snapshot: &Snapshot,
        pools: &[NodePoolInput],
        results: &Results,
        rejections: &Rejections,
        now: Timestamp,
    ) -> Self {
        let by_name = Pools::new(pools);
        let mut verdicts = verdict::Verdicts::new(&by_name, now);
        let mut nodes: Vec<NodeRow> = snapshot
            .nodes
            .iter()
            .map(|node| {
                let of_node = rejections.get(node.name()).map_or(&[][..], Vec::as_slice);
                NodeRow::new(node, &by_name, verdicts.of(node, of_node))
            })
            .collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let mut node_pools: Vec<PoolRow> =
            pools.iter().map(|p| PoolRow::new(p, snapshot, &nodes, now)).collect();
        node_pools.sort_by(|a, b| a.name.cmp(&b.name));
        let mut pods = pod::rows(snapshot, results);
        pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        for row in &mut node_pools {
            row.waiting_pods = pods.iter().filter(|p| p.waits_for(&row.name)).count();
        }
        let cost = Cost::new(snapshot, &nodes);
        Self { schema: SCHEMA.to_owned(), time: now, nodes, node_pools, pods, cost }
    }

    /// The node of that name, or the one of the NodeClaim of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeRow> {
        self.nodes
            .iter()
            .find(|n| n.name == name)
            .or_else(|| self.nodes.iter().find(|n| n.node_claim.as_deref() == Some(name)))
    }

    /// The NodePool of that name.
    #[must_use]
    pub fn node_pool(&self, name: &str) -> Option<&PoolRow> {
        self.node_pools.iter().find(|p| p.name == name)
    }

    /// The pending pod of that name.
    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&PodRow> {
        self.pods.iter().find(|p| p.namespace == namespace && p.name == name)
    }
}

/// Rounded to a hundred-thousandth: prices are published with that many digits.
fn money(amount: f64) -> f64 {
    // Adding zero turns the -0 of an empty sum into 0.
    (amount * 1e5).round() / 1e5 + 0.0
}
