//! Drift: the node that has been drifted for the longest, those without pods first. One command at
//! a time; the loop comes back at once, so that many may be under way within the budgets.

use super::command::TerminateFirst;
use super::methods::{Pass, Search, placed};
use super::{Candidate, Command, Input, Method, Rejection, simulation};
use crate::api::v1::{NodeClaim, NodePool};
use crate::api::{annotations, conditions};
use crate::scheduling::requirements::{Allow, Requirements};

/// Drift that the objects alone show: the reason of the condition, where the claim is not what its
/// pool asks for any more.
#[must_use]
pub fn drifted_by_pool(claim: &NodeClaim, pool: &NodePool) -> Option<&'static str> {
    let of_claim = |key: &str| claim.metadata.annotations.as_ref()?.get(key);
    let of_pool = |key: &str| pool.metadata.annotations.as_ref()?.get(key);
    let version = annotations::NODEPOOL_HASH_VERSION;
    if let (Some(a), Some(b), Some(x), Some(y)) = (
        of_claim(version),
        of_pool(version),
        of_claim(annotations::NODEPOOL_HASH),
        of_pool(annotations::NODEPOOL_HASH),
    ) && a == b
        && x != y
    {
        return Some("NodePoolDrifted");
    }
    let has = Requirements::from_labels(claim.metadata.labels.iter().flatten());
    let wanted = Requirements::from_api(&pool.spec.template.spec.requirements);
    has.compatible(&wanted, Allow::Nothing).is_err().then_some("RequirementsDrifted")
}

pub(super) struct Drift;

impl Search for Drift {
    fn fit(&self, _: &Input<'_>, candidate: &Candidate) -> Result<(), Rejection> {
        if candidate.is_static() {
            return Err(Rejection::Static);
        }
        if !candidate.condition(conditions::DRIFTED) {
            return Err(Rejection::NotDrifted);
        }
        Ok(())
    }

    fn search(&self, pass: &mut Pass<'_>, mut candidates: Vec<Candidate>) {
        by_age(&mut candidates);
        for candidate in candidates {
            if !has_turn(pass, &candidate) {
                continue;
            }
            let terminate_first = pass.input.gates.terminate_first_drift;
            match replace(pass, Method::Drift, &candidate, terminate_first) {
                Ok(command) => {
                    pass.decision.take(command);
                    return;
                }
                Err(rejection) => pass.reject(&candidate, rejection),
            }
        }
    }
}

/// Whether a drifted node's pool lets it go now; what keeps it is put down.
pub(super) fn has_turn(pass: &mut Pass<'_>, candidate: &Candidate) -> bool {
    let pool = candidate.pool_name();
    if pass.budgets.remaining(pool) <= 0 {
        pass.over_budget(candidate);
        return false;
    }
    // A pool whose replacement just failed would try the same again, and nothing else would get its
    // turn.
    if pass.input.backed_off.contains(pool) {
        pass.reject(candidate, Rejection::BackedOff(pool.to_owned()));
        return false;
    }
    true
}

/// Those without pods first, then by the time since when they are drifted.
pub(super) fn by_age(candidates: &mut [Candidate]) {
    candidates.sort_by_cached_key(|c| {
        let since = c.condition_since(conditions::DRIFTED);
        (!c.pods.is_empty(), since, c.node.name().to_owned())
    });
}

/// Replaces one node, whatever that costs, with as many nodes as its pods need.
pub(super) fn replace(
    pass: &mut Pass<'_>,
    method: Method,
    candidate: &Candidate,
    terminate_first: bool,
) -> Result<Command, Rejection> {
    let rejection = match placed(pass.simulate(&[candidate], false)) {
        Ok(simulated) => {
            let nominated = simulated.nominated();
            let command = Command::delete(method, vec![candidate.clone()])
                .with_replacements(simulated.results.new_claims);
            return Ok(Command { nominated, ..command });
        }
        Err(rejection) => rejection,
    };
    let input = pass.input;
    if !terminate_first {
        return Err(rejection);
    }
    pass.decision.simulations += 1;
    let Some(freed) = simulation::in_own_reservation(input, pass.ground(), candidate) else {
        return Err(rejection);
    };
    let mut command = Command::delete(method, vec![candidate.clone()]);
    command.terminate_first = Some(TerminateFirst::NoReservedCapacity);
    command.nominated = freed.nominated();
    Ok(command)
}
