//! Consolidation: whether nodes can go, with at most one cheaper node in their place.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::{Candidate, Command, Input, Method, Reason, simulation};
use crate::api::labels;
use crate::api::v1::{ConsolidationPolicy, Operator};
use crate::scheduling::instance_type::{InstanceType, Offering, sort_by_price};
use crate::scheduling::requirements::{Requirement, Requirements};
use crate::scheduling::results::PlannedClaim;

/// Spot nodes are replaced only when at least this many cheaper types remain, so that the next
/// replacement is not the most interruptible one.
const SPOT_OPTIONS: usize = 15;

/// A command for the candidates, or why there is none.
///
/// # Errors
/// With a text for the candidates' events.
pub fn compute(
    input: &Input<'_>,
    candidates: &[&Candidate],
    method: Method,
) -> Result<Command, String> {
    let simulated = simulation::without(input, candidates, true);
    if !simulated.stranded.is_empty() {
        let (pod, error) = &simulated.stranded[0];
        let more = match simulated.stranded.len() - 1 {
            0 => String::new(),
            n => format!(" and {n} other(s)"),
        };
        return Err(format!("Not all pods would schedule, {pod} => {error}{more}"));
    }
    let nominated = simulated.results.existing.iter().map(|(n, _)| n.clone()).collect();
    let total: f64 = candidates.iter().map(|c| c.price).sum();
    let command = |replacements: Vec<PlannedClaim>| {
        let paid: f64 =
            replacements.iter().filter_map(|r| r.cheapest().map(|(_, o)| o.price)).sum();
        Command {
            reason: Reason::Underutilized,
            method,
            candidates: candidates.iter().map(|c| (*c).clone()).collect(),
            replacements,
            nominated,
            savings: total - paid,
        }
    };
    match simulated.results.new_claims.len() {
        0 => Ok(command(Vec::new())),
        1 => {
            let mut claims = simulated.results.new_claims;
            let claim = cheaper(input, candidates, claims.remove(0), total, method)?;
            Ok(command(vec![claim]))
        }
        n => Err(format!("Can't remove without creating {n} candidates")),
    }
}

/// Narrows a replacement to what is cheaper than the candidates.
fn cheaper(
    input: &Input<'_>,
    candidates: &[&Candidate],
    mut claim: PlannedClaim,
    total: f64,
    method: Method,
) -> Result<PlannedClaim, String> {
    if let Some(candidate) = candidates.iter().find(|c| c.price_estimated) {
        let kind = candidate.label(labels::INSTANCE_TYPE).unwrap_or_default();
        return Err(format!("Can't replace with a cheaper node, the price of {kind} is estimated"));
    }
    let capacity = |requirements: &Requirements, value: &str| {
        requirements.get(labels::CAPACITY_TYPE).is_none_or(|r| r.has(value))
    };
    let may_be_spot = capacity(&claim.requirements, labels::CAPACITY_SPOT);
    let spot_to_spot = may_be_spot
        && candidates.iter().all(|c| c.label(labels::CAPACITY_TYPE) == Some(labels::CAPACITY_SPOT));
    if spot_to_spot {
        if !input.spot_to_spot {
            return Err(
                "SpotToSpotConsolidation is disabled, can't replace a spot node with a spot node"
                    .to_owned(),
            );
        }
        pin_spot(&mut claim);
    }
    claim.instance_types.retain(|t| t.cheapest(&claim.requirements).is_some());
    sort_by_price(&mut claim.instance_types, &claim.requirements);
    below(&mut claim, total)?;
    if method == Method::MultiNode {
        let limit = same_type_limit(candidates, &claim.instance_types);
        below(&mut claim, limit)?;
    }
    if spot_to_spot && candidates.len() == 1 {
        let found = claim.instance_types.len();
        if found < SPOT_OPTIONS {
            return Err(format!(
                "SpotToSpotConsolidation requires {SPOT_OPTIONS} cheaper instance type options than the current candidate to consolidate, got {found}"
            ));
        }
        let needed = (SPOT_OPTIONS..=found)
            .find(|n| min_values_reached(&claim.requirements, &claim.instance_types[..*n]))
            .unwrap_or(found);
        claim.instance_types.truncate(needed);
    } else if may_be_spot && capacity(&claim.requirements, labels::CAPACITY_ON_DEMAND) {
        // If spot runs out, the nodes stay rather than be replaced with dearer on-demand ones.
        let spot_left = claim.instance_types.iter().any(|t| {
            t.compatible_offerings(&claim.requirements)
                .any(|o| o.capacity_type() == labels::CAPACITY_SPOT)
        });
        if spot_left {
            pin_spot(&mut claim);
            let requirements = claim.requirements.clone();
            claim.instance_types.retain(|t| t.cheapest(&requirements).is_some());
        }
    }
    Ok(claim)
}

/// True when the types have as many different values as each `minValues` asks for.
fn min_values_reached(requirements: &Requirements, types: &[Arc<InstanceType>]) -> bool {
    requirements.iter().filter_map(|r| Some((r.key(), r.min_values()?))).all(|(key, wanted)| {
        let values: BTreeSet<&str> = types
            .iter()
            .filter_map(|t| t.requirements.get(key))
            .flat_map(Requirement::values)
            .filter(|value| requirements.get(key).is_none_or(|r| r.has(value)))
            .collect();
        i64::try_from(values.len()).unwrap_or(i64::MAX) >= wanted
    })
}

fn pin_spot(claim: &mut PlannedClaim) {
    claim.requirements.add(Requirement::new(
        labels::CAPACITY_TYPE,
        Operator::In,
        [labels::CAPACITY_SPOT],
    ));
}

/// Keeps the types whose dearest possible launch costs less than a limit.
fn below(claim: &mut PlannedClaim, limit: f64) -> Result<(), String> {
    let requirements = claim.requirements.clone();
    claim.instance_types.retain(|t| worst_launch_price(t, &requirements) < limit);
    if claim.instance_types.is_empty() {
        return Err("Can't replace with a cheaper node".to_owned());
    }
    if !min_values_reached(&requirements, &claim.instance_types) {
        return Err("Filtering by price: minValues requirement is not met".to_owned());
    }
    Ok(())
}

/// The dearest price that a launch can come to: of the capacity type that a launch would choose.
/// An estimated price may be any.
#[must_use]
pub fn worst_launch_price(kind: &InstanceType, requirements: &Requirements) -> f64 {
    let price = |o: &Offering| if o.price_estimated { f64::MAX } else { o.price };
    [labels::CAPACITY_RESERVED, labels::CAPACITY_SPOT, labels::CAPACITY_ON_DEMAND]
        .iter()
        .find_map(|capacity_type| {
            kind.compatible_offerings(requirements)
                .filter(|o| o.capacity_type() == *capacity_type)
                .map(price)
                .max_by(f64::total_cmp)
        })
        .unwrap_or(f64::MAX)
}

/// When the replacement may be of a candidate's own type, it must cost less than that candidate:
/// otherwise keeping the candidate would be as good.
fn same_type_limit(candidates: &[&Candidate], options: &[Arc<InstanceType>]) -> f64 {
    let mut cheapest: HashMap<&str, f64> = HashMap::new();
    for candidate in candidates {
        if let Some(kind) = &candidate.instance_type {
            let price = cheapest.entry(&kind.name).or_insert(f64::MAX);
            *price = price.min(candidate.price);
        }
    }
    options
        .iter()
        .filter_map(|t| cheapest.get(&*t.name).copied())
        .min_by(f64::total_cmp)
        .unwrap_or(f64::MAX)
}

/// Why a candidate is not for consolidation: `Ok` says fit, an empty text says nothing is told.
///
/// # Errors
/// With a text for the candidate's event.
pub fn fit(candidate: &Candidate) -> Result<(), String> {
    let pool = candidate.pool_name();
    if candidate.pool.spec.replicas.is_some() {
        return Err(String::new());
    }
    if candidate.instance_type.is_none() {
        let kind = candidate.label(labels::INSTANCE_TYPE).unwrap_or_default();
        return Err(format!("Instance Type {kind:?} not found"));
    }
    for key in [labels::CAPACITY_TYPE, labels::ZONE] {
        if candidate.label(key).is_none() {
            return Err(format!("Node does not have label {key:?}"));
        }
    }
    if candidate.pool.spec.disruption.consolidate_after.duration().is_none() {
        return Err(format!("NodePool {pool:?} has consolidation disabled"));
    }
    if candidate.is_empty() {
        return Err(String::new());
    }
    if candidate.policy() == ConsolidationPolicy::WhenEmpty {
        return Err(format!(
            "NodePool {pool:?} has consolidation policy WhenEmpty, but node is not empty"
        ));
    }
    if !candidate.condition(crate::api::conditions::CONSOLIDATABLE) {
        return Err(String::new());
    }
    Ok(())
}

/// The Balanced policy: a command must save a share of the pool's cost that is worth its share of
/// the pool's disruption.
pub struct Balance {
    /// Price and disruption cost of each pool.
    totals: HashMap<String, (f64, f64)>,
}

/// Savings share over disruption share that a command must reach: 1/k with k = 2.
const BALANCED_THRESHOLD: f64 = 0.5;

impl Balance {
    /// Adds up pools: prices of all candidates, disruption of all nodes.
    #[must_use]
    pub fn new(input: &Input<'_>, candidates: &[Candidate]) -> Self {
        let mut totals: HashMap<String, (f64, f64)> = HashMap::new();
        for candidate in candidates {
            totals.entry(candidate.pool_name().to_owned()).or_default().0 += candidate.price;
        }
        for node in &input.snapshot.nodes {
            if let Some(pool) = node.node_pool() {
                totals.entry(pool.to_owned()).or_default().1 +=
                    super::candidate::disruption_cost(&node.pods);
            }
        }
        Self { totals }
    }

    /// Whether every Balanced pool among the candidates approves of the savings.
    #[must_use]
    pub fn approves(&self, candidates: &[&Candidate], savings: f64) -> bool {
        let all: f64 = candidates.iter().map(|c| c.price).sum();
        let mut pools: HashMap<&str, (f64, f64)> = HashMap::new();
        for c in candidates.iter().filter(|c| c.policy() == ConsolidationPolicy::Balanced) {
            let entry = pools.entry(c.pool_name()).or_default();
            entry.0 += c.price;
            entry.1 += c.disruption_cost;
        }
        pools.iter().all(|(pool, (price, disruption))| {
            let (cost, total) = self.totals.get(*pool).copied().unwrap_or_default();
            let share = if all > 0.0 { savings * price / all } else { 0.0 };
            cost > 0.0
                && total > 0.0
                && share > 0.0
                && (share / cost) / (disruption / total) >= BALANCED_THRESHOLD
        })
    }
}
