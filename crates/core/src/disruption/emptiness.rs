//! Emptiness: all nodes on which nothing runs, at once.

use super::methods::{Pass, Search};
use super::{Candidate, Command, Input, Method, Rejection};
use crate::api::conditions;

pub(super) struct Emptiness;

impl Search for Emptiness {
    fn fit(&self, _: &Input<'_>, candidate: &Candidate) -> Result<(), Rejection> {
        if candidate.is_static() {
            return Err(Rejection::Static);
        }
        if !candidate.is_empty() {
            return Err(Rejection::NotEmpty);
        }
        if candidate.pool.spec.disruption.consolidate_after.duration().is_none() {
            return Err(Rejection::ConsolidationDisabled(candidate.pool_name().to_owned()));
        }
        if candidate.node.buffer_pods > 0 {
            return Err(Rejection::BufferPods(candidate.node.name().to_owned()));
        }
        if !candidate.condition(conditions::CONSOLIDATABLE) {
            return Err(Rejection::NotConsolidatable);
        }
        Ok(())
    }

    fn search(&self, pass: &mut Pass<'_>, candidates: Vec<Candidate>) {
        let mut chosen = Vec::new();
        for candidate in candidates {
            if pass.budgets.take(candidate.pool_name()) {
                chosen.push(candidate);
            } else {
                pass.over_budget(&candidate);
            }
        }
        if !chosen.is_empty() {
            pass.decision.take(Command::delete(Method::Emptiness, chosen));
        }
    }
}
