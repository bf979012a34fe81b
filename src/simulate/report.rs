//! What was decided, in the form that is printed.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use crate::api::labels;
use crate::api::v1::{NodeSelectorRequirementWithMinValues, Operator};
use crate::scheduling::requirements::Requirement;
use crate::scheduling::resources::{ApiQuantity, ResourceList};
use crate::scheduling::results::{PlannedClaim, PodError, Results};

/// The outcome of scheduling.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Nodes to launch, in the order in which they were planned.
    pub node_claims: Vec<ClaimReport>,
    /// Nodes that exist and get pods.
    pub existing_nodes: Vec<NodeReport>,
    /// Pods that fit nowhere.
    pub unschedulable: Vec<PodReport>,
    /// Objects of the scenario that have no effect, and why; left out when there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub without_effect: Vec<LeftOut>,
    /// Sum of the cheapest prices an hour.
    pub total_price: f64,
    /// Time that the decision took; only when measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solve_seconds: Option<f64>,
    /// The most memory that the process had; only when measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_rss_bytes: Option<u64>,
}

/// An object without effect.
#[derive(Clone, Debug, Serialize)]
pub struct LeftOut {
    pub object: String,
    pub reason: String,
}

/// A node to launch; its details are worked out when they are printed, since the names of
/// hundreds of types for each of thousands of nodes would take more memory than deciding did.
#[derive(Clone, Debug)]
pub struct ClaimReport(PlannedClaim);

/// What is printed of a node to launch.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimDetails {
    pub node_pool: String,
    pub requirements: Vec<NodeSelectorRequirementWithMinValues>,
    pub taints: Vec<k8s_openapi::api::core::v1::Taint>,
    pub requests: BTreeMap<String, ApiQuantity>,
    pub pods: Vec<String>,
    /// Cheapest first.
    pub instance_types: Vec<String>,
    pub cheapest: Option<Launch>,
}

/// The cheapest way to launch a node.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Launch {
    pub instance_type: String,
    pub zone: String,
    pub capacity_type: String,
    pub price: f64,
    /// Nobody published the price.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub price_estimated: bool,
}

/// A node that exists and the pods that it gets.
#[derive(Clone, Debug, Serialize)]
pub struct NodeReport {
    pub name: String,
    pub pods: Vec<String>,
}

/// A pod that fits nowhere.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodReport {
    pub pod: String,
    pub error: String,
    /// What each pool has against it.
    pub node_pools: Vec<PoolReason>,
}

/// Why a pool has no node for a pod.
#[derive(Clone, Debug, Serialize)]
pub struct PoolReason {
    pub name: String,
    pub reason: String,
}

impl Report {
    /// Describes results.
    #[must_use]
    pub fn new(results: &Results) -> Self {
        let node_claims: Vec<ClaimReport> =
            results.new_claims.iter().map(ClaimReport::new).collect();
        let mut existing_nodes: Vec<NodeReport> = results
            .existing
            .iter()
            .map(|(name, pods)| NodeReport {
                name: name.clone(),
                pods: pods.iter().map(ToString::to_string).collect(),
            })
            .collect();
        existing_nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let mut unschedulable: Vec<PodReport> = results
            .errors
            .iter()
            .map(|(pod, error)| PodReport {
                pod: pod.to_string(),
                error: error.to_string(),
                node_pools: match error {
                    PodError::Pools(pools) => pools
                        .iter()
                        .map(|(name, reason)| PoolReason {
                            name: name.clone(),
                            reason: reason.to_string(),
                        })
                        .collect(),
                    _ => Vec::new(),
                },
            })
            .collect();
        // In the order of names, so that reports of two runs can be compared line by line.
        unschedulable.sort_by(|a, b| a.pod.cmp(&b.pod));
        Self {
            without_effect: Vec::new(),
            total_price: total(&node_claims),
            node_claims,
            existing_nodes,
            unschedulable,
            solve_seconds: None,
            peak_rss_bytes: None,
        }
    }
}

impl Report {
    /// Adds what of a scenario did not come before the solver: pods that are left alone, and
    /// objects without effect.
    #[must_use]
    pub fn with_left_out(mut self, world: &super::World) -> Self {
        self.unschedulable.extend(world.ignored.iter().map(|(pod, why)| PodReport {
            pod: pod.to_string(),
            error: format!("ignoring pod, {why}"),
            node_pools: Vec::new(),
        }));
        self.unschedulable.sort_by(|a, b| a.pod.cmp(&b.pod));
        self.without_effect = world
            .left_out
            .iter()
            .map(|(object, reason)| LeftOut { object: object.clone(), reason: reason.clone() })
            .collect();
        self
    }
}

/// The sum of prices, without the dust that adding binary fractions leaves.
fn total(claims: &[ClaimReport]) -> f64 {
    // Adding to zero: the sum of nothing would be printed as -0.
    tidy(claims.iter().filter_map(ClaimReport::price).fold(0.0, |sum, price| sum + price))
}

/// Rounded to a billionth: far below any price, far above the error of adding them.
pub(super) fn tidy(amount: f64) -> f64 {
    (amount * 1e9).round() / 1e9
}

impl ClaimReport {
    /// Describes a planned node.
    #[must_use]
    pub fn new(claim: &PlannedClaim) -> Self {
        Self(claim.clone())
    }

    /// Number of pods meant for the node.
    #[must_use]
    pub fn pods(&self) -> usize {
        self.0.pods.len()
    }

    /// The lowest price.
    #[must_use]
    pub fn price(&self) -> Option<f64> {
        self.0.cheapest().map(|(_, offering)| offering.price)
    }

    /// What is printed.
    #[must_use]
    pub fn details(&self) -> ClaimDetails {
        let claim = &self.0;
        let mut requirements = claim.requirements.clone();
        // Needed only while solving; no NodeClaim carries them.
        for key in [labels::HOSTNAME, labels::REGISTERED, labels::INITIALIZED] {
            requirements.remove(key);
        }
        let names = claim.instance_types.iter().map(|t| t.name.as_ref());
        let min_values = requirements.get(labels::INSTANCE_TYPE).and_then(Requirement::min_values);
        requirements.replace(
            Requirement::new(labels::INSTANCE_TYPE, Operator::In, names)
                .with_min_values(min_values),
        );
        ClaimDetails {
            node_pool: claim.node_pool.metadata.name.clone().unwrap_or_default(),
            requirements: requirements.to_api(),
            taints: claim.taints.clone(),
            requests: ResourceList::to_quantities(&claim.requests),
            pods: claim.pods.iter().map(ToString::to_string).collect(),
            instance_types: claim.instance_types.iter().map(|t| t.name.to_string()).collect(),
            cheapest: claim.cheapest().map(|(kind, offering)| Launch {
                instance_type: kind.name.to_string(),
                zone: offering.zone().to_owned(),
                capacity_type: offering.capacity_type().to_owned(),
                price: offering.price,
                price_estimated: offering.price_estimated,
            }),
        }
    }
}

impl Serialize for ClaimReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.details().serialize(serializer)
    }
}

/// The most memory that this process has had, in bytes; `None` where the system does not report it.
#[must_use]
pub fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
