//! What one node is, holds and costs.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Verdict, money};
use crate::api::{conditions, labels};
use crate::disruption::candidate::Pools;
use crate::scheduling::node::{StateNode, is_ready};
use crate::scheduling::resources::{ApiQuantity, Name, ResourceList};

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeRow {
    /// The Node's name, or the NodeClaim's until the Node has joined.
    pub name: String,
    /// The NodeClaim behind the node; absent for nodes that Karpenter does not manage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_claim: Option<String>,
    /// The NodePool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_pool: Option<String>,
    /// The instance type.
    pub instance_type: String,
    /// The zone.
    pub zone: String,
    /// `spot`, `on-demand` or `reserved`.
    pub capacity_type: String,
    /// `Launching`, `Registering`, `Initializing`, `Ready`, `NotReady` or `Deleting`.
    pub state: String,
    /// Price per hour in the provider's currency; absent where it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price: Option<f64>,
    /// When the NodeClaim was created, or the Node where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub created: Option<Timestamp>,
    /// Number of pods that run on it, DaemonSets' pods included.
    pub pods: usize,
    /// What these pods request.
    #[schemars(with = "BTreeMap<String, String>")]
    pub requested: BTreeMap<String, ApiQuantity>,
    /// What the node offers to pods.
    #[schemars(with = "BTreeMap<String, String>")]
    pub allocatable: BTreeMap<String, ApiQuantity>,
    /// Requested share of allocatable cpu, 0 to 1.
    pub cpu_share: f64,
    /// Requested share of allocatable memory, 0 to 1.
    pub memory_share: f64,
    /// Why each disruption method left it alone when it was last looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verdicts: Vec<Verdict>,
}

impl NodeRow {
    pub(super) fn new(node: &StateNode, pools: &Pools<'_>, verdicts: Vec<Verdict>) -> Self {
        let label = |key: &str| node.labels().get(key).cloned().unwrap_or_default();
        let allocatable = node.allocatable();
        let mut requested = ResourceList::new();
        for pod in node.pods.iter().filter(|p| !p.terminal) {
            requested.add(&pod.requests);
        }
        let created =
            node.node_claim.as_ref().and_then(|c| c.metadata.creation_timestamp.as_ref()).or_else(
                || node.node.as_ref().and_then(|n| n.metadata.creation_timestamp.as_ref()),
            );
        Self {
            name: node.name().to_owned(),
            node_claim: node.node_claim.as_ref().and_then(|c| c.metadata.name.clone()),
            node_pool: node.node_pool().map(str::to_owned),
            instance_type: label(labels::INSTANCE_TYPE),
            zone: label(labels::ZONE),
            capacity_type: label(labels::CAPACITY_TYPE),
            state: state(node).to_owned(),
            price: pools.price_of(node).map(money),
            created: created.map(|t| t.0),
            pods: node.pods.iter().filter(|p| !p.terminal).count(),
            cpu_share: share(&requested, &allocatable, &Name::Cpu),
            memory_share: share(&requested, &allocatable, &Name::Memory),
            requested: requested.to_quantities(),
            allocatable: allocatable.to_quantities(),
            verdicts,
        }
    }
}

/// Requested share of what is allocatable, 0 to 1; three digits are what a page can show.
pub(super) fn share(requested: &ResourceList, allocatable: &ResourceList, name: &Name) -> f64 {
    let whole = allocatable.get(name);
    if whole <= 0 {
        return 0.0;
    }
    #[allow(clippy::cast_precision_loss, reason = "a share needs no more than a float holds")]
    let share = requested.get(name) as f64 / whole as f64;
    (share.clamp(0.0, 1.0) * 1e3).round() / 1e3
}

fn state(node: &StateNode) -> &'static str {
    if node.deleting() {
        return "Deleting";
    }
    let ready = node.node.as_deref().is_some_and(is_ready);
    let Some(claim) = &node.node_claim else { return if ready { "Ready" } else { "NotReady" } };
    let launched = claim
        .status
        .as_ref()
        .is_some_and(|s| conditions::is_true(&s.conditions, conditions::LAUNCHED));
    match (launched || node.node.is_some(), node.registered(), node.initialized()) {
        (false, ..) => "Launching",
        (true, false, _) => "Registering",
        (true, true, false) => "Initializing",
        (true, true, true) if ready => "Ready",
        (true, true, true) => "NotReady",
    }
}
