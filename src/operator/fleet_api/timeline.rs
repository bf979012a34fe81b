//! What happened over the last day: decisions, and cost per hour.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most decisions that are kept: a busy day's, without growing with the cluster.
const DECISIONS: usize = 2_000;
/// How long anything is kept. With one sample per minute that is 1,440 samples.
const KEPT: SignedDuration = SignedDuration::from_hours(24);
/// Time between samples of the cost.
const SAMPLE: SignedDuration = SignedDuration::from_secs(60);

/// Decisions and samples of the cost, oldest first: at most 2,000 and 1,440, some 400 KiB.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Timeline {
    /// NodeClaims that were launched or deleted.
    decisions: VecDeque<Decision>,
    /// Samples of the cost per hour, with their times.
    #[schemars(with = "Vec<(String, f64)>")]
    cost: VecDeque<(Timestamp, f64)>,
    /// What was saved, by NodePool and reason.
    pub savings: Vec<Saving>,
}

/// What the decisions for one NodePool and reason save, an estimate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Saving {
    /// The NodePool.
    pub node_pool: String,
    /// The disruption reason in small letters, or `packing`.
    pub reason: String,
    /// Per hour, by the decisions of the last 24 hours, in the provider's currency.
    pub per_hour: f64,
    /// Since the first decision that is known.
    pub total: f64,
}

/// A NodeClaim that was launched or that goes away.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// When.
    #[schemars(with = "String")]
    pub time: Timestamp,
    /// `launched` or `deleted`.
    pub kind: &'static str,
    /// The NodeClaim.
    pub node_claim: String,
    /// Its NodePool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_pool: Option<String>,
    /// The instance type that was launched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
    /// Why it goes away, such as `Underutilized`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Price per hour, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price: Option<f64>,
}

impl Timeline {
    /// Adds a decision.
    pub fn add(&mut self, decision: Decision) {
        let now = decision.time;
        self.decisions.push_back(decision);
        if self.decisions.len() > DECISIONS {
            self.decisions.pop_front();
        }
        self.forget(now);
    }

    /// Adds the cost per hour, unless the last sample is less than a minute old.
    pub fn sample(&mut self, now: Timestamp, cost: f64) {
        if self.cost.back().is_some_and(|(last, _)| now.duration_since(*last) < SAMPLE) {
            return;
        }
        self.cost.push_back((now, cost));
        self.forget(now);
    }

    fn forget(&mut self, now: Timestamp) {
        let old = |time: Timestamp| now.duration_since(time) > KEPT;
        while self.decisions.front().is_some_and(|d| old(d.time)) {
            self.decisions.pop_front();
        }
        while self.cost.front().is_some_and(|(time, _)| old(*time)) {
            self.cost.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(second: i64) -> Decision {
        Decision {
            time: Timestamp::from_second(second).unwrap(),
            kind: "launched",
            node_claim: format!("claim-{second}"),
            node_pool: None,
            instance_type: None,
            reason: None,
            price: None,
        }
    }

    #[test]
    fn the_oldest_decisions_are_forgotten_first() {
        let mut timeline = Timeline::default();
        for second in 0..3_000 {
            timeline.add(decision(second));
        }
        assert_eq!(timeline.decisions.len(), DECISIONS);
        assert_eq!(timeline.decisions.front().unwrap().node_claim, "claim-1000");
        timeline.add(decision(200_000));
        assert_eq!(timeline.decisions.len(), 1);
    }

    #[test]
    fn the_cost_is_sampled_once_per_minute() {
        let mut timeline = Timeline::default();
        for second in 0..120 {
            timeline.sample(Timestamp::from_second(second).unwrap(), 1.0);
        }
        assert_eq!(timeline.cost.len(), 2);
    }
}
