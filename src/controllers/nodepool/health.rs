//! Whether the nodes that a NodePool launched lately registered: `NodeRegistrationHealthy`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use kube::Api;
use parking_lot::Mutex;

use super::super::patch;
use super::super::{Context, Outcome};
use crate::api::conditions;
use crate::api::v1::{NodeClaim, NodePool};

/// Launches that are remembered of each pool.
const REMEMBERED: usize = 4;
/// Failures among them that make a pool unhealthy: half, however few are remembered.
const UNHEALTHY: usize = REMEMBERED / 2;

/// What the last launches of each pool, by its UID, came to.
#[derive(Default)]
pub struct Tracker {
    outcomes: Mutex<HashMap<String, VecDeque<bool>>>,
}

impl Tracker {
    /// Health of a pool; `None` while nothing is remembered.
    fn health(&self, pool: &str) -> Option<bool> {
        let outcomes = self.outcomes.lock();
        outcomes.get(pool).filter(|o| !o.is_empty()).map(healthy)
    }

    /// The health that one more outcome would make.
    fn health_with(&self, pool: &str, success: bool) -> bool {
        let mut outcomes = self.outcomes.lock().get(pool).cloned().unwrap_or_default();
        remember(&mut outcomes, success);
        healthy(&outcomes)
    }

    fn add(&self, pool: &str, success: bool) {
        remember(self.outcomes.lock().entry(pool.to_owned()).or_default(), success);
    }

    fn clear(&self, pool: &str) {
        self.outcomes.lock().remove(pool);
    }
}

fn remember(outcomes: &mut VecDeque<bool>, success: bool) {
    if outcomes.len() == REMEMBERED {
        outcomes.pop_front();
    }
    outcomes.push_back(success);
}

fn healthy(outcomes: &VecDeque<bool>) -> bool {
    outcomes.iter().filter(|success| !**success).count() < UNHEALTHY
}

/// The pool that made a claim.
fn owner(ctx: &Context, claim: &NodeClaim) -> Option<Arc<NodePool>> {
    let owners = claim.metadata.owner_references.iter().flatten();
    owners.filter(|o| o.kind == "NodePool").find_map(|reference| {
        let pool = ctx.cluster.pool(&reference.name)?;
        // A pool of the same name that was made later did not make the claim.
        (pool.metadata.uid.as_ref() == Some(&reference.uid)).then_some(pool)
    })
}

/// Notes that a claim's node registered, or that it did not in time.
pub(in crate::controllers) async fn note(
    ctx: &Context,
    claim: &NodeClaim,
    success: bool,
) -> Outcome {
    let api = Api::<NodePool>::all(ctx.client.clone());
    let Some(before) = owner(ctx, claim) else { return Ok(None) };
    let uid = before.metadata.uid.clone().unwrap_or_default();
    let mut pool = (*before).clone();
    // One failure among successes changes nothing, and one success after failures neither.
    if ctx.registration_health.health_with(&uid, success) == success {
        set_condition(&mut pool, claim, success, ctx.clock.now());
    }
    // Others write the pool's status too: the condition is laid over theirs.
    if let Some(written) = patch::merge(&api, &*before, &pool).await? {
        ctx.cluster.apply_pool(written);
    }
    // After the write: a write that fails is made again, and must not count twice.
    ctx.registration_health.add(&uid, success);
    Ok(None)
}

fn set_condition(pool: &mut NodePool, claim: &NodeClaim, success: bool, now: Timestamp) {
    let generation = pool.metadata.generation;
    let list = &mut pool.status.get_or_insert_default().conditions;
    let kind = conditions::NODE_REGISTRATION_HEALTHY;
    if success {
        conditions::set_true(list, kind, generation, now);
        return;
    }
    if conditions::is_false(list, kind) {
        return;
    }
    let of_claim = claim.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let (reason, message) = match conditions::get(of_claim, conditions::LAUNCHED) {
        Some(launched) if launched.status != conditions::TRUE => {
            (launched.reason.clone(), launched.message.clone())
        }
        _ => ("RegistrationFailed".to_owned(), "Failed to register node".to_owned()),
    };
    conditions::set(list, kind, conditions::FALSE, &reason, &message, generation, now);
}

/// Starts over when pool or class changed; else takes over what an earlier process found.
pub(super) fn judge(
    tracker: &Tracker,
    pool: &mut NodePool,
    class_generation: Option<i64>,
    now: Timestamp,
) {
    let Some(class_generation) = class_generation else { return };
    let uid = pool.metadata.uid.clone().unwrap_or_default();
    let generation = pool.metadata.generation;
    let status = pool.status.get_or_insert_default();
    let kind = conditions::NODE_REGISTRATION_HEALTHY;
    let known = conditions::get(&status.conditions, kind).cloned();
    // A new process takes over the verdict; two failures are what makes it negative.
    if tracker.health(&uid).is_none() {
        match known.as_ref().map(|c| c.status.as_str()) {
            Some(conditions::TRUE) => tracker.add(&uid, true),
            Some(conditions::FALSE) => {
                tracker.add(&uid, false);
                tracker.add(&uid, false);
            }
            _ => {}
        }
    }
    let current = known.is_some_and(|c| c.observed_generation == generation)
        && status.node_class_observed_generation == Some(class_generation);
    if !current {
        let (reason, message) = (conditions::AWAITING, conditions::AWAITING_MESSAGE);
        let unknown = conditions::UNKNOWN;
        conditions::set(&mut status.conditions, kind, unknown, reason, message, generation, now);
        tracker.clear(&uid);
    }
    status.node_class_observed_generation = Some(class_generation);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn two_failures_among_four_are_unhealthy() {
        let tracker = Tracker::default();
        assert_eq!(tracker.health("p"), None);
        tracker.add("p", false);
        assert_eq!(tracker.health("p"), Some(true));
        assert!(!tracker.health_with("p", false));
        tracker.add("p", false);
        assert_eq!(tracker.health("p"), Some(false));
        for _ in 0..2 {
            tracker.add("p", true);
            assert_eq!(tracker.health("p"), Some(false));
        }
        tracker.add("p", true);
        assert_eq!(tracker.health("p"), Some(true));
    }

    #[test]
    fn a_changed_pool_starts_anew_and_a_restart_does_not() {
        let now = Timestamp::UNIX_EPOCH;
        let mut pool = NodePool::new("p", serde_json::from_value(json!({})).unwrap());
        pool.metadata.uid = Some("u".to_owned());
        pool.metadata.generation = Some(1);
        let tracker = Tracker::default();
        judge(&tracker, &mut pool, Some(1), now);
        let status = |p: &NodePool| {
            let list = p.status.clone().unwrap().conditions;
            conditions::get(&list, conditions::NODE_REGISTRATION_HEALTHY).unwrap().status.clone()
        };
        assert_eq!(status(&pool), conditions::UNKNOWN);
        let claim = NodeClaim::default();
        set_condition(&mut pool, &claim, false, now);
        assert_eq!(status(&pool), conditions::FALSE);
        let restarted = Tracker::default();
        judge(&restarted, &mut pool, Some(1), now);
        assert_eq!(restarted.health("u"), Some(false));
        assert_eq!(status(&pool), conditions::FALSE);
        judge(&restarted, &mut pool, Some(2), now);
        assert_eq!(restarted.health("u"), None);
        assert_eq!(status(&pool), conditions::UNKNOWN);
    }
}
