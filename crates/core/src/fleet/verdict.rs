//! Why disruption leaves a node alone, and until when that holds by itself.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::calendar;
use crate::api::v1::NodePool;
use crate::disruption::budget::Allowance;
use crate::disruption::candidate::Pools;
use crate::disruption::{Method, Reason, Rejection, quiet_until};
use crate::scheduling::node::StateNode;

/// How far ahead a window of a budget is looked for.
pub(super) const AHEAD_DAYS: i64 = 8;

/// What each method last had against each node, by the node's name.
pub type Rejections = BTreeMap<String, Vec<(Method, Rejection)>>;

/// Why a disruption method left a node alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// The method, such as `Emptiness` or `SingleNodeConsolidation`.
    pub method: String,
    /// A word for the reason that does not change.
    pub code: String,
    /// The reason, in the words of the events.
    pub message: String,
    /// When the reason ends by itself: a protection, an expected pod, `consolidateAfter` or a budget's window. Absent for
    /// reasons that hold until the cluster changes; every node is looked at again within seconds of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub until: Option<Timestamp>,
}

/// Makes verdicts of rejections.
pub(super) struct Verdicts<'a> {
    pools: &'a Pools<'a>,
    now: Timestamp,
    // Nodes of one NodePool share its budgets, whose windows take a while to find.
    windows: BTreeMap<(&'a str, Reason, i64), Option<Timestamp>>,
}

impl<'a> Verdicts<'a> {
    pub(super) fn new(pools: &'a Pools<'a>, now: Timestamp) -> Self {
        Self { pools, now, windows: BTreeMap::new() }
    }

    pub(super) fn of(
        &mut self,
        node: &'a StateNode,
        rejections: &[(Method, Rejection)],
    ) -> Vec<Verdict> {
        let verdict = |(method, rejection): &(Method, Rejection)| Verdict {
            method: method.name().to_owned(),
            code: rejection.label().to_owned(),
            message: rejection.to_string(),
            until: self.until(node, *method, rejection),
        };
        rejections.iter().map(verdict).collect()
    }

    fn until(
        &mut self,
        node: &'a StateNode,
        method: Method,
        rejection: &Rejection,
    ) -> Option<Timestamp> {
        let name = node.node_pool()?;
        let pool = self.pools.of(name)?.node_pool.as_ref();
        let until = match rejection {
            Rejection::ProtectedPod { until, .. } => *until,
            Rejection::Nominated => node.nominated_until,
            Rejection::NotConsolidatable => quiet_until(node, pool),
            Rejection::BudgetUsedUp(allowance) => {
                let (reason, now) = (method.reason(), self.now);
                let key = (name, reason, allowance.disrupting);
                *self.windows.entry(key).or_insert_with(|| opens(pool, allowance, reason, now))
            }
            _ => None,
        };
        until.filter(|time| *time > self.now)
    }
}

/// When the pool's budgets next allow more nodes than are under disruption now.
fn opens(
    pool: &NodePool,
    allowance: &Allowance,
    reason: Reason,
    now: Timestamp,
) -> Option<Timestamp> {
    let windows = calendar(pool, allowance.total, reason, now, AHEAD_DAYS).ok()?;
    let mut later = windows.into_iter().skip(1);
    later.find(|w| w.allowed.is_none_or(|n| n > allowance.disrupting)).map(|w| w.from)
}
