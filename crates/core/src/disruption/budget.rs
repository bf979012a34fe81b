//! Disruption budgets: how many nodes of a pool may be disrupted at once.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::Reason;
use crate::api::conditions;
use crate::api::schedule::Schedule;
use crate::api::v1::{Budget, NodePool};
use crate::scheduling::node::{StateNode, is_ready};
use crate::scheduling::snapshot::NodePoolInput;

/// What a budget without a limit allows.
pub const UNLIMITED: i64 = i32::MAX as i64;

/// A budget that cannot be read; nothing may be disrupted until it is mended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BudgetError(String);

/// Nodes that a value stands for, percentages rounded up.
fn nodes_of(value: &str, total: i64) -> Result<i64, BudgetError> {
    let bad = || {
        BudgetError(format!("parsing budget nodes {value:?}: expected a number or a percentage"))
    };
    match value.strip_suffix('%') {
        Some(percent) => {
            let percent: i64 = percent.parse().map_err(|_| bad())?;
            Ok((total * percent + 99) / 100)
        }
        None => value.parse().map_err(|_| bad()),
    }
}

/// True while the budget restricts.
fn is_active(budget: &Budget, now: Timestamp) -> Result<bool, BudgetError> {
    let (Some(schedule), Some(duration)) = (&budget.schedule, &budget.duration) else {
        return Ok(budget.schedule.is_none() && budget.duration.is_none());
    };
    let (schedule, length) = times(schedule, duration)?;
    Ok(schedule.next_after(now - length).is_some_and(|next| next <= now))
}

/// When a budget begins to restrict, and for how long.
fn times(schedule: &str, duration: &str) -> Result<(Schedule, Duration), BudgetError> {
    let length = crate::api::duration::parse_go(duration)
        .map_err(|e| BudgetError(format!("parsing budget duration {duration:?}: {e}")))?;
    let schedule = schedule
        .parse()
        .map_err(|e| BudgetError(format!("parsing budget schedule {schedule:?}: {e}")))?;
    Ok((schedule, length))
}

/// Adds the moments between two others at which the budget begins or ends to restrict, at most so many.
///
/// # Errors
/// When the budget cannot be read.
pub fn changes(
    budget: &Budget,
    from: Timestamp,
    until: Timestamp,
    most: usize,
    into: &mut Vec<Timestamp>,
) -> Result<(), BudgetError> {
    let (Some(schedule), Some(duration)) = (&budget.schedule, &budget.duration) else {
        return Ok(());
    };
    let (schedule, length) = times(schedule, duration)?;
    let mut hit = from - length;
    for _ in 0..most {
        match schedule.next_after(hit) {
            Some(next) if next < until => hit = next,
            _ => break,
        }
        into.extend([hit, hit + length]);
    }
    Ok(())
}

/// How many of a pool's `total` nodes may be under disruption for a reason.
///
/// # Errors
/// When any budget of the pool cannot be read.
pub fn allowed(
    pool: &NodePool,
    total: i64,
    reason: Reason,
    now: Timestamp,
) -> Result<i64, BudgetError> {
    let mut least = UNLIMITED;
    for budget in &pool.spec.disruption.budgets {
        let nodes = nodes_of(&budget.nodes, total)?;
        let active = is_active(budget, now)?;
        let concerned = budget
            .reasons
            .as_ref()
            .is_none_or(|list| list.is_empty() || list.iter().any(|r| r == reason.as_str()));
        if active && concerned {
            least = least.min(nodes);
        }
    }
    Ok(least)
}

/// A pool's budget for one reason at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// Nodes that count.
    pub total: i64,
    /// Nodes that may be under disruption.
    pub allowed: i64,
    /// Nodes that are under disruption already.
    pub disrupting: i64,
    /// Why nothing is allowed, when a budget cannot be read.
    pub error: Option<BudgetError>,
}

impl Allowance {
    /// How many more nodes may be disrupted.
    #[must_use]
    pub fn remaining(&self) -> i64 {
        (self.allowed - self.disrupting).max(0)
    }
}

/// What the budgets of each pool leave, by the pool's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Budgets(BTreeMap<String, Allowance>);

impl Budgets {
    /// Counts the nodes of each pool; a pool with a budget that cannot be read lets nothing go.
    #[must_use]
    pub fn new(
        pools: &[NodePoolInput],
        nodes: &[StateNode],
        reason: Reason,
        now: Timestamp,
    ) -> Self {
        let mut all: BTreeMap<String, Allowance> = BTreeMap::new();
        for node in nodes.iter().filter(|n| counts(n)) {
            let Some(pool) = node.node_pool() else { continue };
            let allowance = all.entry(pool.to_owned()).or_default();
            allowance.total += 1;
            let unready = node.node.as_deref().is_none_or(|n| !is_ready(n));
            // Repair is about nodes that are not ready: they do not use up its own budget.
            let unready = unready && reason != Reason::Unhealthy;
            if node.deleting() || node.rebooting() || unready {
                allowance.disrupting += 1;
            }
        }
        let of = |pool: &NodePoolInput| {
            let name = pool.node_pool.metadata.name.clone().unwrap_or_default();
            let mut allowance = all.remove(&name).unwrap_or_default();
            match allowed(&pool.node_pool, allowance.total, reason, now) {
                Ok(number) => allowance.allowed = number,
                Err(error) => allowance.error = Some(error),
            }
            (name, allowance)
        };
        Self(pools.iter().map(of).collect())
    }

    /// A pool's budget; one that is not known allows nothing.
    #[must_use]
    pub fn of(&self, pool: &str) -> Allowance {
        self.0.get(pool).cloned().unwrap_or_default()
    }

    /// How many more nodes of a pool may be disrupted.
    #[must_use]
    pub fn remaining(&self, pool: &str) -> i64 {
        self.0.get(pool).map_or(0, Allowance::remaining)
    }

    /// Takes one node from the pool's budget, if there is room.
    pub fn take(&mut self, pool: &str) -> bool {
        match self.0.get_mut(pool) {
            Some(allowance) if allowance.remaining() > 0 => {
                allowance.disrupting += 1;
                true
            }
            _ => false,
        }
    }

    /// All pools.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Allowance)> {
        self.0.iter().map(|(name, allowance)| (name.as_str(), allowance))
    }
}

fn counts(node: &StateNode) -> bool {
    let terminating = node
        .node_claim
        .as_ref()
        .and_then(|c| c.status.as_ref())
        .is_some_and(|s| conditions::is_true(&s.conditions, conditions::INSTANCE_TERMINATING));
    // A node that reboots is not initialized until it is back, and is there all the same.
    node.managed() && (node.initialized() || node.rebooting()) && !terminating
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_budget_that_cannot_be_read_lets_nothing_go_and_says_why() {
        let mut pool = pool(json!([{"nodes": "0", "schedule": "0 0 L * *", "duration": "1h"}]));
        pool.metadata.name = Some("p".to_owned());
        let input = NodePoolInput { node_pool: pool.into(), instance_types: [].into() };
        let budgets = Budgets::new(&[input], &[], Reason::Empty, Timestamp::UNIX_EPOCH);
        let allowance = budgets.of("p");
        assert_eq!(allowance.remaining(), 0);
        let error = allowance.error.unwrap().to_string();
        assert!(error.contains("0 0 L * *") && error.contains("day of month"), "{error}");
    }

    fn pool(budgets: serde_json::Value) -> NodePool {
        NodePool::new(
            "p",
            serde_json::from_value(json!({"disruption": {"budgets": budgets}})).unwrap(),
        )
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_least_active_budget_counts() {
        let now = Timestamp::UNIX_EPOCH;
        let of = |b, total| allowed(&pool(b), total, Reason::Empty, now);
        assert_eq!(of(json!([{"nodes": "10%"}]), 11), Ok(2));
        assert_eq!(of(json!([{"nodes": "10%"}]), 0), Ok(0));
        assert_eq!(of(json!([{"nodes": "3"}, {"nodes": "0", "reasons": ["Drifted"]}]), 9), Ok(3));
        assert_eq!(of(json!([{"nodes": "3"}, {"nodes": "0", "reasons": ["Empty"]}]), 9), Ok(0));
        assert_eq!(of(json!([]), 9), Ok(UNLIMITED));
        assert!(of(json!([{"nodes": "x"}]), 9).is_err());
    }

    #[test]
    fn a_window_opens_by_its_schedule() {
        let budgets =
            pool(json!([{"nodes": "0", "schedule": "0 9 * * mon-fri", "duration": "8h"}]));
        let of = |time| allowed(&budgets, 5, Reason::Drifted, at(time)).unwrap();
        assert_eq!(of("2026-11-24T08:59:59Z"), UNLIMITED);
        assert_eq!(of("2026-11-24T09:00:00Z"), 0);
        assert_eq!(of("2026-11-24T16:59:59Z"), 0);
        assert_eq!(of("2026-11-24T17:00:01Z"), UNLIMITED);
        assert_eq!(of("2026-11-28T10:00:00Z"), UNLIMITED);
        let daily = pool(json!([{"nodes": "0", "schedule": "@daily", "duration": "10m"}]));
        assert_eq!(allowed(&daily, 5, Reason::Drifted, at("2026-11-24T00:05:00Z")), Ok(0));
        let midnight = pool(json!([{"nodes": "0", "schedule": "@midnight", "duration": "10m"}]));
        assert_eq!(allowed(&midnight, 5, Reason::Drifted, at("2026-11-24T00:05:00Z")), Ok(0));
        let quarters = pool(json!([{"nodes": "0", "schedule": "5/15 * * * *", "duration": "5m"}]));
        assert_eq!(allowed(&quarters, 5, Reason::Drifted, at("2026-11-24T00:22:00Z")), Ok(0));
        let broken = pool(json!([{"nodes": "0", "schedule": "every day", "duration": "10m"}]));
        assert!(allowed(&broken, 5, Reason::Drifted, at("2026-11-24T00:05:00Z")).is_err());
    }
}
