//! The Balanced policy: a command must save a share of the pool's cost that is worth its share of
//! the pool's disruption.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::candidate::{self, Pools};
use super::{Candidate, Command, Input};
use crate::api::v1::ConsolidationPolicy;

/// Karpenter's k: savings must be at least half (1/k) of their disruption, both as shares.
pub const K: f64 = 2.0;
/// Savings share over disruption share that a command must reach.
pub const THRESHOLD: f64 = 1.0 / K;

/// What a command is worth to one NodePool.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The NodePool.
    pub pool: String,
    /// Its policy; only `Balanced` is judged.
    pub policy: ConsolidationPolicy,
    /// Savings share over disruption share.
    pub value: f64,
    /// Price an hour that is saved, the pool's part of it.
    pub savings: f64,
    /// Disruption cost of the pool's candidates.
    pub disruption: f64,
    /// Price an hour of all of the pool's nodes.
    pub pool_cost: f64,
    /// Disruption cost of all of the pool's nodes.
    pub pool_disruption: f64,
}

impl Score {
    /// Whether the pool agrees.
    #[must_use]
    pub fn approved(&self) -> bool {
        self.policy != ConsolidationPolicy::Balanced || self.value >= THRESHOLD
    }

    /// `approved` or `rejected`, as in metrics.
    #[must_use]
    pub fn decision(&self) -> &'static str {
        if self.approved() { "approved" } else { "rejected" }
    }

    /// The share of the pool's cost that is saved.
    #[must_use]
    pub fn savings_fraction(&self) -> f64 {
        if self.pool_cost > 0.0 { self.savings / self.pool_cost } else { 0.0 }
    }

    /// The share of the pool's disruption cost that the command causes.
    #[must_use]
    pub fn disruption_fraction(&self) -> f64 {
        if self.pool_disruption > 0.0 { self.disruption / self.pool_disruption } else { 0.0 }
    }

    /// The comparison with the threshold, for people.
    #[must_use]
    pub fn comparison(&self) -> String {
        format!(
            "score {:.2} {} threshold {THRESHOLD:.2} (k: {K}, savings {:.1}%, disruption {:.1}%)",
            self.value,
            if self.value >= THRESHOLD { ">=" } else { "<" },
            100.0 * self.savings_fraction(),
            100.0 * self.disruption_fraction()
        )
    }
}

/// What commands save together.
#[must_use]
pub fn savings(commands: &[Command]) -> f64 {
    commands.iter().map(|c| c.savings).sum()
}

fn disruption_of(commands: &[Command]) -> f64 {
    commands.iter().flat_map(|c| &c.candidates).map(|c| c.disruption_cost).sum()
}

/// What each pool costs, and what disrupting all of it would.
#[derive(Debug, Default)]
pub struct Balance {
    totals: HashMap<String, (f64, f64)>,
}

impl Balance {
    /// Adds up all nodes of each pool, also those that cannot be disrupted now.
    #[must_use]
    pub fn new(input: &Input<'_>, pools: &Pools<'_>) -> Self {
        let mut totals: HashMap<String, (f64, f64)> = HashMap::new();
        for node in &input.snapshot.nodes {
            let Some(name) = node.node_pool() else { continue };
            let price = pools.price_of(node).unwrap_or(0.0);
            let total = totals.entry(name.to_owned()).or_default();
            total.0 += price;
            total.1 += candidate::disruption_cost(&node.pods);
        }
        Self { totals }
    }

    /// What the savings are worth to each pool among the candidates, by the pool's name; a pool's
    /// part of the savings is its part of what the candidates cost.
    #[must_use]
    pub fn scores(&self, candidates: &[&Candidate], savings: f64) -> Vec<Score> {
        let all: f64 = candidates.iter().map(|c| c.price).sum();
        let mut pools: BTreeMap<&str, (ConsolidationPolicy, f64, f64)> = BTreeMap::new();
        for c in candidates {
            let entry = pools.entry(c.pool_name()).or_insert((c.policy(), 0.0, 0.0));
            entry.1 += c.price;
            entry.2 += c.disruption_cost;
        }
        pools
            .into_iter()
            .map(|(pool, (policy, price, disruption))| {
                let (pool_cost, pool_disruption) =
                    self.totals.get(pool).copied().unwrap_or_default();
                let savings = if all > 0.0 { savings * price / all } else { 0.0 };
                let mut score = Score {
                    pool: pool.to_owned(),
                    policy,
                    value: 0.0,
                    savings,
                    disruption,
                    pool_cost,
                    pool_disruption,
                };
                if savings > 0.0 && pool_cost > 0.0 && pool_disruption > 0.0 {
                    score.value = if disruption > 0.0 {
                        score.savings_fraction() / score.disruption_fraction()
                    } else {
                        f64::INFINITY
                    };
                }
                score
            })
            .collect()
    }

    /// Whether commands are worth more than others, or than none, by the measure of the policy
    /// Balanced: what they save more must be at least half of what their further disruption is worth,
    /// both as shares of the pools that are left after the smaller of the two.
    #[must_use]
    pub fn pays_more(&self, than: &[Command], commands: &[Command]) -> bool {
        let pools: BTreeSet<&str> = commands.iter().flat_map(Command::pool_names).collect();
        let (cost, disruption) = pools
            .iter()
            .filter_map(|pool| self.totals.get(*pool))
            .fold((0.0, 0.0), |sum, total| (sum.0 + total.0, sum.1 + total.1));
        let (before, after) = (savings(than), savings(commands));
        let left = (cost - after.min(before)).max(0.0);
        let disrupted = disruption_of(commands) - disruption_of(than);
        (after - before) * disruption > disrupted * left / K
    }

    /// The scores of a command, or the one of the pool that does not agree.
    ///
    /// # Errors
    /// With the first pool's score that is too low.
    pub fn judge(&self, candidates: &[&Candidate], savings: f64) -> Result<Vec<Score>, Score> {
        let scores = self.scores(candidates, savings);
        match scores.iter().find(|s| !s.approved()) {
            Some(low) => Err(low.clone()),
            None => Ok(scores),
        }
    }
}
