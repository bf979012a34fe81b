//! When a NodePool's budgets open and close.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::api::v1::NodePool;
use crate::disruption::Reason;
use crate::disruption::budget::{self, BudgetError, UNLIMITED};

/// Most moments that are looked at, whatever the schedules are: a schedule of every minute has 10,080 a week.
const MOST_MOMENTS: usize = 50_000;

/// A time in which a NodePool's budgets for one reason stay the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// First moment.
    pub from: Timestamp,
    /// First moment after it.
    pub until: Timestamp,
    /// Nodes that may be disrupted at the same time; absent without a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed: Option<i64>,
}

/// The windows of a pool of `total` nodes from now on, for so many days, in order and without gaps.
///
/// # Errors
/// When any budget of the pool cannot be read.
pub fn calendar(
    pool: &NodePool,
    total: i64,
    reason: Reason,
    now: Timestamp,
    days: i64,
) -> Result<Vec<Window>, BudgetError> {
    let end = now + SignedDuration::from_hours(24 * days.clamp(1, 366));
    let mut moments = vec![now];
    for budget in &pool.spec.disruption.budgets {
        budget::changes(budget, now, end, MOST_MOMENTS, &mut moments)?;
    }
    moments.retain(|t| *t >= now && *t < end);
    moments.sort_unstable();
    moments.dedup();
    let mut windows: Vec<Window> = Vec::new();
    for from in moments {
        let allowed = budget::allowed(pool, total, reason, from)?;
        let allowed = (allowed < UNLIMITED).then_some(allowed);
        match windows.last_mut() {
            Some(last) if last.allowed == allowed => {}
            last => {
                if let Some(last) = last {
                    last.until = from;
                }
                windows.push(Window { from, until: end, allowed });
            }
        }
    }
    Ok(windows)
}
