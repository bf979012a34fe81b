//! What a method found: commands, and for each node why it stays.

use std::collections::{BTreeMap, BTreeSet};

use super::budget::Budgets;
use super::score::Score;
use super::{Candidate, Command, Rejection};

/// What a method found.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    /// What to do, if anything.
    pub commands: Vec<Command>,
    /// The verdict on each node, by name.
    pub verdicts: BTreeMap<String, Verdict>,
    /// The budgets that the method began with.
    pub budgets: Budgets,
    /// Candidates were left out because a budget was used up.
    pub constrained: bool,
    /// How many candidates the method looked at.
    pub eligible: usize,
    /// How often scheduling was simulated.
    pub simulations: usize,
    /// Time ran out.
    pub timed_out: bool,
    /// The scores of moves that were judged, as metrics count them.
    pub judged: Vec<Score>,
}

impl Decision {
    /// True when nothing is to be done, and nothing will be unless the cluster changes.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let lasts = |verdict: &Verdict| {
            verdict.rejection.as_ref().is_some_and(|rejection| !rejection.ends_by_itself())
        };
        self.commands.is_empty()
            && !self.constrained
            && !self.timed_out
            && self.verdicts.values().all(lasts)
    }
}

/// What a method makes of one node.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Why it stays; none for a node that goes.
    pub rejection: Option<Rejection>,
    /// What it costs, where it is a candidate.
    pub figures: Option<Figures>,
}

/// What a candidate costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Price an hour; zero when unknown.
    pub price: f64,
    /// One, and what evicting its pods costs on top.
    pub disruption_cost: f64,
    /// What its going away entirely would be worth to its pool, by the policy Balanced.
    pub score: Option<f64>,
    /// Pods that have to move.
    pub pods: usize,
}

impl Decision {
    /// Notes why a node stays.
    pub fn reject(&mut self, node: &str, rejection: Rejection) {
        match self.verdicts.get_mut(node) {
            Some(verdict) => verdict.rejection = Some(rejection),
            None => {
                let verdict = Verdict { rejection: Some(rejection), figures: None };
                self.verdicts.insert(node.to_owned(), verdict);
            }
        }
    }

    /// Notes what a candidate costs.
    pub fn figures(&mut self, candidate: &Candidate, score: Option<f64>) {
        self.verdicts.entry(candidate.node.name().to_owned()).or_default().figures =
            Some(Figures {
                price: candidate.price,
                disruption_cost: candidate.disruption_cost,
                score,
                pods: candidate.pods.len(),
            });
    }

    /// Takes a command: its candidates go.
    pub fn take(&mut self, command: Command) {
        for candidate in &command.candidates {
            if let Some(verdict) = self.verdicts.get_mut(candidate.node.name()) {
                verdict.rejection = None;
            }
        }
        self.commands.push(command);
    }

    /// Gives the candidates that no command takes, and that nothing was found against, a reason.
    pub(super) fn close(&mut self, left: Rejection) {
        let going: BTreeSet<&str> =
            self.commands.iter().flat_map(|c| &c.candidates).map(|c| c.node.name()).collect();
        for (node, verdict) in &mut self.verdicts {
            if verdict.rejection.is_none() && !going.contains(node.as_str()) {
                verdict.rejection = Some(left.clone());
            }
        }
    }

    /// Nodes that stay, and why.
    pub fn rejected(&self) -> impl Iterator<Item = (&str, &Rejection)> {
        self.verdicts
            .iter()
            .filter_map(|(node, verdict)| Some((node.as_str(), verdict.rejection.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_lasts_unless_a_node_stays_for_a_reason_that_ends_by_itself() {
        let mut decision = Decision::default();
        assert!(decision.is_settled());
        decision.reject("a", Rejection::NotCheaper);
        assert!(decision.is_settled());
        decision.reject("b", Rejection::Nominated);
        assert!(!decision.is_settled());
        decision.reject("b", Rejection::NotEmpty);
        assert!(decision.is_settled());
        decision.constrained = true;
        assert!(!decision.is_settled());
        let late = Decision { timed_out: true, ..Decision::default() };
        assert!(!late.is_settled());
    }
}
