//! How the last launches of each NodePool ended, for whoever asks.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::api::labels;
use crate::api::v1::NodeClaim;
use crate::fleet::Launch;

/// Launches that are kept for each NodePool.
const EACH: usize = 10;
/// NodePools whose launches are kept. A launch takes less than 1 KiB, so that all take less than 5 MiB.
const MOST_POOLS: usize = 500;
/// Characters of an error that are kept: messages of AWS can have thousands.
const MOST_CHARACTERS: usize = 400;

/// The last launches by NodePool, oldest first.
#[derive(Debug, Default)]
pub struct Launches(Mutex<BTreeMap<String, VecDeque<Launch>>>);

impl Launches {
    /// Keeps a launch that succeeded.
    pub(super) fn succeeded(&self, claim: &NodeClaim, now: Timestamp) {
        let label = |key: &str| claim.metadata.labels.as_ref().and_then(|l| l.get(key)).cloned();
        let launch = Launch {
            instance_type: label(labels::INSTANCE_TYPE),
            zone: label(labels::ZONE),
            capacity_type: label(labels::CAPACITY_TYPE),
            ..Launch::default()
        };
        self.keep(claim, now, launch);
    }

    /// Keeps a launch that failed, with the class of the error.
    pub(super) fn failed(&self, claim: &NodeClaim, now: Timestamp, class: &str, message: &str) {
        let mut text: String = message.chars().take(MOST_CHARACTERS).collect();
        if text.len() < message.len() {
            text.pop();
            text.push('…');
        }
        let launch =
            Launch { error: Some(class.to_owned()), message: Some(text), ..Launch::default() };
        self.keep(claim, now, launch);
    }

    fn keep(&self, claim: &NodeClaim, time: Timestamp, launch: Launch) {
        let pool = claim.metadata.labels.as_ref().and_then(|l| l.get(labels::NODEPOOL));
        let Some(pool) = pool else { return };
        let node_claim = claim.metadata.name.clone().unwrap_or_default();
        let mut pools = self.0.lock();
        let kept = pools.entry(pool.clone()).or_default();
        // A launch that is tried again and again is one launch.
        kept.retain(|before| before.node_claim != node_claim);
        kept.push_back(Launch { time, node_claim, ..launch });
        if kept.len() > EACH {
            kept.pop_front();
        }
        if pools.len() > MOST_POOLS {
            let idle = pools.iter().min_by_key(|(_, kept)| kept.back().map(|l| l.time));
            if let Some(name) = idle.map(|(name, _)| name.clone()) {
                pools.remove(&name);
            }
        }
    }

    /// The last launches of a NodePool, newest first.
    #[must_use]
    pub fn of(&self, pool: &str) -> Vec<Launch> {
        self.0.lock().get(pool).map(|kept| kept.iter().rev().cloned().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(pool: &str, name: &str) -> NodeClaim {
        serde_json::from_value(serde_json::json!({"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
            "metadata": {"name": name, "labels": {labels::NODEPOOL: pool, labels::INSTANCE_TYPE: "m5.large",
                labels::ZONE: "a", labels::CAPACITY_TYPE: "spot"}},
            "spec": {"requirements": [], "nodeClassRef": {"group": "g", "kind": "k", "name": "n"}}}))
        .unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_last_launches_of_a_pool_are_kept_and_one_that_is_tried_again_counts_once() {
        let launches = Launches::default();
        for second in 0..20 {
            launches.failed(&claim("p", "first"), at(second), "InsufficientCapacityError", "none");
        }
        launches.succeeded(&claim("p", "second"), at(30));
        launches.succeeded(&claim("other", "third"), at(40));
        let of: Vec<_> = launches.of("p");
        let shown: Vec<_> =
            of.iter().map(|l| (l.node_claim.as_str(), l.time, l.error.as_deref())).collect();
        let failed = Some("InsufficientCapacityError");
        assert_eq!(shown, [("second", at(30), None), ("first", at(19), failed)]);
        assert_eq!(of[0].instance_type.as_deref(), Some("m5.large"));
        for number in 0..20 {
            launches.succeeded(&claim("p", &format!("n{number}")), at(50 + number));
        }
        assert_eq!(launches.of("p").len(), EACH);
        assert_eq!(launches.of("p")[0].node_claim, "n19");
    }

    #[test]
    fn memory_is_bounded_however_many_pools_and_however_long_the_errors() {
        let launches = Launches::default();
        for number in 0..=MOST_POOLS {
            let second = i64::try_from(number).unwrap();
            let pool = format!("p{number}");
            launches.failed(&claim(&pool, "c"), at(second), "LaunchFailed", &"é".repeat(9000));
        }
        assert_eq!(launches.0.lock().len(), MOST_POOLS);
        assert!(launches.of("p0").is_empty(), "the pool that has been idle for longest goes");
        let message = launches.of("p1")[0].message.clone().unwrap();
        assert_eq!(message.chars().count(), MOST_CHARACTERS);
        assert!(message.ends_with('…'));
    }
}
