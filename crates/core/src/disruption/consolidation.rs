//! Consolidation: whether nodes can go, with cheaper nodes in their place where some are needed.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::methods::{Pass, placed};
use super::simulation::{Launching, Simulated};
use super::{Candidate, Command, Input, Method, Rejection};
use crate::api::v1::{ConsolidationPolicy, Operator};
use crate::api::{annotations, conditions, labels};
use crate::scheduling::instance_type::{InstanceType, Offering, sort_by_price};
use crate::scheduling::pod::PodKey;
use crate::scheduling::requirements::{Requirement, Requirements};
use crate::scheduling::results::PlannedClaim;
use crate::scheduling::snapshot::NodePoolInput;

/// Spot nodes are replaced only when at least this many cheaper types remain, so that the next
/// replacement is not the most interruptible one.
pub(super) const SPOT_OPTIONS: usize = 15;
/// Several replacements at once must save at least this share of what the candidates cost: they are
/// more launches that can fail, and a bound keeps two divisions of the same pods from alternating.
const SEVERAL_SAVE: f64 = 0.15;

/// Why candidates cannot go together.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The replacement would be as good as this node among them, which may stay instead.
    Keep(String),
    Other(Rejection),
}

impl From<Rejection> for Refusal {
    fn from(why: Rejection) -> Self {
        Self::Other(why)
    }
}

impl From<Refusal> for Rejection {
    fn from(why: Refusal) -> Self {
        match why {
            Refusal::Keep(_) => Self::NotCheaper,
            Refusal::Other(why) => why,
        }
    }
}

/// A command for the candidates, or why there is none.
pub(super) fn compute(
    pass: &mut Pass<'_>,
    candidates: &[&Candidate],
    method: Method,
) -> Result<Command, Rejection> {
    let simulated = placed(pass.simulate(candidates, true))?;
    let rejection = match command(pass.input, candidates, simulated, method) {
        Ok(found) => return Ok(found),
        Err(refusal) => Rejection::from(refusal),
    };
    // A pool of a higher weight takes what it can, and the rest goes elsewhere. One pool by itself
    // may hold all with one node.
    let mut found = match rejection {
        Rejection::SeveralReplacements(_) => alone(pass, candidates, method),
        _ => None,
    };
    let several = matches!(rejection, Rejection::SeveralReplacements(_) | Rejection::NotCheaper);
    if found.is_none() && several && most_replacements(candidates) > 1 {
        let pools = &pass.input.snapshot.node_pools;
        let simulated = placed(
            pass.simulate_in(candidates, Launching { pools, several: true, strict: false }),
        )?;
        found = command(pass.input, candidates, simulated, method).ok();
    }
    found.ok_or(rejection)
}

/// The command that saves most with replacements of only one of the candidates' pools.
fn alone(pass: &mut Pass<'_>, candidates: &[&Candidate], method: Method) -> Option<Command> {
    let input = pass.input;
    if input.snapshot.node_pools.len() < 2 {
        return None;
    }
    let own: BTreeSet<&str> = candidates.iter().map(|c| c.pool_name()).collect();
    let mut best: Option<Command> = None;
    for pool in &input.snapshot.node_pools {
        let name = pool.node_pool.metadata.name.as_deref().unwrap_or_default();
        if !own.contains(name) {
            continue;
        }
        let only: [NodePoolInput; 1] = [pool.clone()];
        let launching = Launching { pools: &only, several: false, strict: false };
        let found = placed(pass.simulate_in(candidates, launching))
            .map_err(Refusal::from)
            .and_then(|simulated| command(input, candidates, simulated, method));
        if let Ok(found) = found
            && best.as_ref().is_none_or(|b| b.savings < found.savings)
        {
            best = Some(found);
        }
    }
    best
}

/// What a simulation makes of the candidates.
fn command(
    input: &Input<'_>,
    candidates: &[&Candidate],
    simulated: Simulated,
    method: Method,
) -> Result<Command, Refusal> {
    let nominated = simulated.nominated();
    let mut claims = simulated.results.new_claims;
    known_prices(candidates, &claims)?;
    let total: f64 = candidates.iter().map(|c| c.price).sum();
    let replacements = match claims.len() {
        0 => Vec::new(),
        1 => vec![cheaper(input, candidates, claims.remove(0), total, method)?],
        count if count <= most_replacements(candidates) => several(claims, total)?,
        count => return Err(Rejection::SeveralReplacements(count).into()),
    };
    let chosen = candidates.iter().map(|c| (*c).clone()).collect();
    let command = Command::delete(method, chosen).with_replacements(replacements);
    Ok(Command { nominated, ..command })
}

/// The commands that candidates come to together. Where several nodes have to be launched, each is the
/// replacement of those candidates whose pods need it, in a command of their own: whichever commands
/// fail, the pods of the others have their places. Candidates that need none are removed by one more.
///
/// # Errors
/// When a candidate's pods need more than one of the new nodes, or as for one command.
pub(super) fn together(
    pass: &mut Pass<'_>,
    candidates: &[&Candidate],
) -> Result<Vec<Command>, Refusal> {
    let mut simulated = placed(pass.simulate(candidates, true))?;
    let count = simulated.results.new_claims.len();
    if count < 2 {
        return Ok(vec![command(pass.input, candidates, simulated, method_of(candidates))?]);
    }
    let claims = std::mem::take(&mut simulated.results.new_claims);
    known_prices(candidates, &claims)?;
    let nominated = simulated.nominated();
    let mut left = candidates.to_vec();
    let mut all = Vec::with_capacity(count + 1);
    for claim in claims {
        let (own, others) = in_need_of(&left, &claim);
        let needed = candidates.iter().filter(|c| needs(c, &pods_of(&claim))).count();
        if own.is_empty() || own.len() < needed {
            return Err(Rejection::SeveralReplacements(count).into());
        }
        left = others;
        let (method, total) = (method_of(&own), own.iter().map(|c| c.price).sum());
        let replacement = cheaper(pass.input, &own, claim, total, method)?;
        let own = own.into_iter().cloned().collect();
        all.push(Command::delete(method, own).with_replacements(vec![replacement]));
    }
    if !left.is_empty() {
        let method = method_of(&left);
        all.push(Command::delete(method, left.into_iter().cloned().collect()));
    }
    for command in &mut all {
        command.nominated.clone_from(&nominated);
    }
    Ok(all)
}

fn method_of(candidates: &[&Candidate]) -> Method {
    if candidates.len() == 1 { Method::SingleNode } else { Method::MultiNode }
}

fn pods_of(claim: &PlannedClaim) -> HashSet<&PodKey> {
    claim.pods.iter().collect()
}

fn needs(candidate: &Candidate, pods: &HashSet<&PodKey>) -> bool {
    candidate.pods.iter().any(|p| pods.contains(&p.key))
}

/// Candidates with pods that a new node is for, and the others.
pub(super) fn in_need_of<'a>(
    candidates: &[&'a Candidate],
    claim: &PlannedClaim,
) -> (Vec<&'a Candidate>, Vec<&'a Candidate>) {
    let pods = pods_of(claim);
    candidates.iter().copied().partition(|c| needs(c, &pods))
}

/// An estimated price justifies no launch.
fn known_prices(candidates: &[&Candidate], claims: &[PlannedClaim]) -> Result<(), Rejection> {
    match candidates.iter().find(|c| c.price_estimated) {
        Some(candidate) if !claims.is_empty() => {
            let kind = candidate.label(labels::INSTANCE_TYPE).unwrap_or_default();
            Err(Rejection::EstimatedPrice(kind.to_owned()))
        }
        _ => Ok(()),
    }
}

/// How many replacements all of the candidates' pools allow.
fn most_replacements(candidates: &[&Candidate]) -> usize {
    let of = |c: &&Candidate| {
        let all = c.pool.metadata.annotations.as_ref();
        let text = all.and_then(|a| a.get(annotations::MAX_REPLACEMENTS));
        text.and_then(|t| t.parse().ok()).unwrap_or(1)
    };
    candidates.iter().map(of).min().unwrap_or(1).max(1)
}

/// Narrows several replacements so that together they cost less whatever each comes to: each gets
/// the part of the sum that its cheapest launch is of all of them.
fn several(mut claims: Vec<PlannedClaim>, total: f64) -> Result<Vec<PlannedClaim>, Rejection> {
    let price = |c: &PlannedClaim| c.cheapest().map_or(f64::INFINITY, |(_, o)| o.price);
    let cheapest: f64 = claims.iter().map(price).sum();
    let most = total * (1.0 - SEVERAL_SAVE);
    if cheapest.is_nan() || cheapest >= most {
        return Err(Rejection::NotCheaper);
    }
    for claim in &mut claims {
        let part = if cheapest > 0.0 { most * price(claim) / cheapest } else { most };
        below(claim, part)?;
    }
    Ok(claims)
}

/// Narrows a replacement to what is cheaper than the candidates.
fn cheaper(
    input: &Input<'_>,
    candidates: &[&Candidate],
    mut claim: PlannedClaim,
    total: f64,
    method: Method,
) -> Result<PlannedClaim, Refusal> {
    let capacity = |requirements: &Requirements, value: &str| {
        requirements.get(labels::CAPACITY_TYPE).is_none_or(|r| r.has(value))
    };
    // Types come cheapest first, but for reservations that the claim holds. Where not even the first
    // is cheaper, none is, and there is no need to look at each offering of each.
    let reserved = claim.requirements.get(labels::CAPACITY_RESERVATION_ID).is_some();
    let dear = !reserved && claim.cheapest().is_some_and(|(_, o)| o.price >= total);
    let may_be_spot = capacity(&claim.requirements, labels::CAPACITY_SPOT);
    let spot_to_spot = may_be_spot
        && candidates.iter().all(|c| c.label(labels::CAPACITY_TYPE) == Some(labels::CAPACITY_SPOT));
    if spot_to_spot {
        if !input.gates.spot_to_spot {
            return Err(Rejection::SpotToSpotDisabled.into());
        }
        pin_spot(&mut claim);
    }
    if dear {
        return Err(Rejection::NotCheaper.into());
    }
    claim.instance_types.retain(|t| t.cheapest(&claim.requirements).is_some());
    sort_by_price(&mut claim.instance_types, &claim.requirements);
    below(&mut claim, total)?;
    if method == Method::MultiNode
        && let Some(same) = same_type(candidates, &claim.instance_types)
    {
        let kept = same.node.name().to_owned();
        below(&mut claim, same.price).map_err(|why| match why {
            Rejection::NotCheaper => Refusal::Keep(kept),
            other => Refusal::Other(other),
        })?;
    }
    if spot_to_spot && candidates.len() == 1 {
        let found = claim.instance_types.len();
        if found < SPOT_OPTIONS {
            return Err(Rejection::SpotOptions(found).into());
        }
        let needed = (SPOT_OPTIONS..=found)
            .find(|n| {
                missed_min_values(&claim.requirements, &claim.instance_types[..*n]).is_empty()
            })
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

/// Labels of which the types have fewer different values than `minValues` asks for.
fn missed_min_values(requirements: &Requirements, types: &[Arc<InstanceType>]) -> Vec<String> {
    let missed = |key: &str, wanted: i64| {
        let values: BTreeSet<&str> = types
            .iter()
            .filter_map(|t| t.requirements.get(key))
            .flat_map(Requirement::values)
            .filter(|value| requirements.get(key).is_none_or(|r| r.has(value)))
            .collect();
        i64::try_from(values.len()).unwrap_or(i64::MAX) < wanted
    };
    requirements
        .iter()
        .filter_map(|r| Some((r.key(), r.min_values()?)))
        .filter(|(key, wanted)| missed(key, *wanted))
        .map(|(key, _)| key.to_string())
        .collect()
}

fn pin_spot(claim: &mut PlannedClaim) {
    claim.requirements.add(Requirement::new(
        labels::CAPACITY_TYPE,
        Operator::In,
        [labels::CAPACITY_SPOT],
    ));
}

/// Keeps the types whose dearest possible launch costs less than a limit.
fn below(claim: &mut PlannedClaim, limit: f64) -> Result<(), Rejection> {
    let requirements = claim.requirements.clone();
    claim.instance_types.retain(|t| worst_launch_price(t, &requirements) < limit);
    if claim.instance_types.is_empty() {
        return Err(Rejection::NotCheaper);
    }
    let missed = missed_min_values(&requirements, &claim.instance_types);
    if missed.is_empty() { Ok(()) } else { Err(Rejection::MinValues(missed)) }
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

/// The cheapest candidate of a type that the replacement may be of. The replacement must cost less:
/// otherwise keeping the candidate is as good.
fn same_type<'a>(
    candidates: &[&'a Candidate],
    options: &[Arc<InstanceType>],
) -> Option<&'a Candidate> {
    let names: HashSet<&str> = options.iter().map(|t| &*t.name).collect();
    let known =
        |c: &&&Candidate| c.instance_type.as_ref().is_some_and(|t| names.contains(&*t.name));
    candidates
        .iter()
        .filter(known)
        .copied()
        .min_by(|a, b| a.price.total_cmp(&b.price).then_with(|| a.node.name().cmp(b.node.name())))
}

/// Whether consolidation is about the node.
pub(super) fn fit(candidate: &Candidate) -> Result<(), Rejection> {
    let pool = || candidate.pool_name().to_owned();
    if candidate.is_static() {
        return Err(Rejection::Static);
    }
    if candidate.instance_type.is_none() {
        let kind = candidate.label(labels::INSTANCE_TYPE).unwrap_or_default();
        return Err(Rejection::UnknownType(kind.to_owned()));
    }
    for key in [labels::CAPACITY_TYPE, labels::ZONE] {
        if candidate.label(key).is_none() {
            return Err(Rejection::NoLabel(key));
        }
    }
    if candidate.pool.spec.disruption.consolidate_after.duration().is_none() {
        return Err(Rejection::ConsolidationDisabled(pool()));
    }
    if candidate.is_empty() {
        return Err(Rejection::Empty);
    }
    if candidate.policy() == ConsolidationPolicy::WhenEmpty {
        return Err(Rejection::OnlyWhenEmpty(pool()));
    }
    if !candidate.condition(conditions::CONSOLIDATABLE) {
        return Err(Rejection::NotConsolidatable);
    }
    Ok(())
}
