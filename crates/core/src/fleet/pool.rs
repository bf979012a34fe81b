//! What a NodePool has, may still do, and when that changes.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::verdict::AHEAD_DAYS;
use super::{NodeRow, calendar, money};
use crate::disruption::{Reason, budget};
use crate::scheduling::resources::{ApiQuantity, ResourceList};
use crate::scheduling::snapshot::{NodePoolInput, Snapshot};

/// One NodePool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolRow {
    /// Its name.
    pub name: String,
    /// `spec.weight`.
    pub weight: i64,
    /// Number of its nodes.
    pub nodes: usize,
    /// Those of which budgets take their percentages: initialized, and managed by Karpenter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted: Option<i64>,
    /// What its nodes cost per hour, as far as their prices are known.
    pub cost: f64,
    /// `spec.limits`.
    #[schemars(with = "BTreeMap<String, String>")]
    pub limits: BTreeMap<String, ApiQuantity>,
    /// What its nodes use of each limited resource.
    #[schemars(with = "BTreeMap<String, String>")]
    pub used: BTreeMap<String, ApiQuantity>,
    /// What is left of each limited resource; zero where the limit is exceeded.
    #[schemars(with = "BTreeMap<String, String>")]
    pub remaining: BTreeMap<String, ApiQuantity>,
    /// Instance types that it may launch.
    pub instance_types: usize,
    /// Pending pods for which one of its nodes will be created.
    pub waiting_pods: usize,
    /// How many nodes may be disrupted, for each reason.
    pub budgets: Vec<BudgetRow>,
    /// How its last launches ended, newest first. Only the controller knows them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub launches: Vec<Launch>,
}

/// How the launch of a NodeClaim ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Launch {
    /// When.
    #[schemars(with = "String")]
    pub time: Timestamp,
    /// The NodeClaim.
    pub node_claim: String,
    /// The instance type; absent for a launch that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
    /// The zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// `spot`, `on-demand` or `reserved`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_type: Option<String>,
    /// The class of the error, such as `InsufficientCapacityError`; absent for a launch that succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The error in words, at most 400 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A NodePool's budget for one reason.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BudgetRow {
    /// `Empty`, `Drifted`, `Underutilized` or `Unhealthy`.
    pub reason: String,
    /// Nodes that may be disrupted at the same time; absent without a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed: Option<i64>,
    /// Nodes that are deleting or not ready now, and count against it.
    pub used: i64,
    /// When the number next changes, within eight days.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub changes_at: Option<Timestamp>,
    /// The number after that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub then_allowed: Option<i64>,
    /// Why the budgets cannot be read; nothing is disrupted then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl PoolRow {
    pub(super) fn new(
        input: &NodePoolInput,
        snapshot: &Snapshot,
        rows: &[NodeRow],
        now: Timestamp,
    ) -> Self {
        let pool = &input.node_pool;
        let name = pool.metadata.name.clone().unwrap_or_default();
        let own = rows.iter().filter(|r| r.node_pool.as_deref() == Some(&name));
        let limits = pool.spec.limits.clone().unwrap_or_default();
        let mut capacity = ResourceList::new();
        let own_nodes =
            snapshot.nodes.iter().filter(|n| n.managed() && n.node_pool() == Some(name.as_str()));
        for node in own_nodes.filter(|n| !n.deleting()) {
            capacity.add(&node.capacity());
        }
        let limited = ResourceList::from_quantities_lossy(Some(&limits));
        let (mut used, mut remaining) = (ResourceList::new(), ResourceList::new());
        for (resource, limit) in limited.iter() {
            used.set(resource.clone(), capacity.get(resource));
            remaining.set(resource.clone(), (limit - capacity.get(resource)).max(0));
        }
        let reasons = super::REASONS;
        let pools = std::slice::from_ref(input);
        // Every reason counts the same nodes.
        let counted = budget::Budgets::new(pools, &snapshot.nodes, reasons[0], now).of(&name).total;
        Self {
            counted: Some(counted),
            weight: pool.spec.weight.unwrap_or(0).into(),
            nodes: own.clone().count(),
            cost: money(own.filter_map(|r| r.price).sum()),
            limits,
            used: used.to_quantities(),
            remaining: remaining.to_quantities(),
            instance_types: input.instance_types.len(),
            waiting_pods: 0,
            launches: Vec::new(),
            budgets: reasons.into_iter().map(|r| budget_row(input, snapshot, r, now)).collect(),
            name,
        }
    }
}

fn budget_row(
    input: &NodePoolInput,
    snapshot: &Snapshot,
    reason: Reason,
    now: Timestamp,
) -> BudgetRow {
    let pool = input.node_pool.as_ref();
    let name = pool.metadata.name.clone().unwrap_or_default();
    let pools = std::slice::from_ref(input);
    let allowance = budget::Budgets::new(pools, &snapshot.nodes, reason, now).of(&name);
    let mut row = BudgetRow {
        reason: reason.as_str().to_owned(),
        used: allowance.disrupting,
        ..BudgetRow::default()
    };
    match calendar(pool, allowance.total, reason, now, AHEAD_DAYS) {
        Ok(windows) => {
            row.allowed = windows.first().and_then(|w| w.allowed);
            if let Some(next) = windows.get(1) {
                row.changes_at = Some(next.from);
                row.then_allowed = next.allowed;
            }
        }
        Err(error) => {
            row.allowed = Some(0);
            row.error = Some(error.to_string());
        }
    }
    row
}
