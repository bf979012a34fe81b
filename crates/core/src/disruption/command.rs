//! Commands: nodes to remove, and what has to be there first.

use std::fmt;
use std::time::Duration;

use super::repair::{Action, Due, Policies};
use super::score::Score;
use super::{Candidate, Method, Reason};
use crate::api::v1::NodeClaim;
use crate::scheduling::results::PlannedClaim;

/// Nodes to remove, and what has to be there first.
#[derive(Clone, Debug)]
pub struct Command {
    /// How it was found.
    pub method: Method,
    /// Nodes to remove.
    pub candidates: Vec<Candidate>,
    /// Nodes to launch first.
    pub replacements: Vec<PlannedClaim>,
    /// Existing nodes on which pods are expected.
    pub nominated: Vec<String>,
    /// Price an hour that is saved.
    pub savings: f64,
    /// What it is worth to each pool; consolidation only.
    pub scores: Vec<Score>,
    /// Why nothing is launched first although something is needed afterwards.
    pub terminate_first: Option<TerminateFirst>,
    /// What repair is about.
    pub repair: Option<Repair>,
}

/// Why a node goes before its replacement is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TerminateFirst {
    /// Its reservation has no slot left but its own.
    NoReservedCapacity,
    /// Its static pool is at `limits.nodes`.
    StaticAtLimit,
}

impl TerminateFirst {
    /// The name in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::NoReservedCapacity => "no-reserved-capacity",
            Self::StaticAtLimit => "static-at-limit",
        }
    }
}

/// What is wrong with a node that is repaired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// What is done about it.
    pub action: Action,
    /// Type of the Node's condition.
    pub condition: &'static str,
    /// Reason of the Node's condition.
    pub reason: String,
    /// How long draining may take, the NodeClaim's own bound minded; none leaves it to the NodeClaim.
    pub drain: Option<Duration>,
}

impl Repair {
    /// The repair of a claim's node. Draining is bounded by the claim's own bound, too.
    #[must_use]
    pub fn new(due: &Due, claim: &NodeClaim) -> Self {
        let own = claim.grace_period();
        Self {
            action: due.policy.action,
            condition: due.policy.condition,
            reason: due.reason.clone(),
            drain: due.policy.drain.map(|bound| own.map_or(bound, |own| own.min(bound))),
        }
    }

    /// The replacement that was written as its text; nothing where no policy is about the condition
    /// any more.
    #[must_use]
    pub fn parse(text: &str, policies: &Policies) -> Option<Self> {
        let mut parts = text.splitn(3, '/');
        let condition = policies.condition(parts.next()?)?;
        let reason = parts.next().unwrap_or_default().to_owned();
        let drain = match parts.next() {
            Some(seconds) => Some(Duration::from_secs(seconds.parse().ok()?)),
            None => None,
        };
        Some(Self { action: Action::Replace, condition, reason, drain })
    }
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.condition, self.reason)?;
        self.drain.map_or(Ok(()), |drain| write!(f, "/{}", drain.as_secs()))
    }
}

impl Command {
    /// A command without replacements.
    #[must_use]
    pub fn delete(method: Method, candidates: Vec<Candidate>) -> Self {
        Self {
            method,
            savings: candidates.iter().map(|c| c.price).sum(),
            candidates,
            replacements: Vec::new(),
            nominated: Vec::new(),
            scores: Vec::new(),
            terminate_first: None,
            repair: None,
        }
    }

    /// The same with nodes to launch first, which are paid for with a part of what is saved.
    #[must_use]
    pub fn with_replacements(mut self, replacements: Vec<PlannedClaim>) -> Self {
        let paid: f64 =
            replacements.iter().filter_map(|r| r.cheapest().map(|(_, o)| o.price)).sum();
        self.savings -= paid;
        self.replacements = replacements;
        self
    }

    /// Why.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.method.reason()
    }

    /// Whether the nodes stay, and only their instances are rebooted.
    #[must_use]
    pub fn reboots(&self) -> bool {
        self.repair.as_ref().is_some_and(|r| r.action == Action::Reboot)
    }

    /// `reboot`, `delete`, `replace` or `terminate-first`.
    #[must_use]
    pub fn decision(&self) -> &'static str {
        if self.reboots() {
            "reboot"
        } else if self.terminate_first.is_some() {
            "terminate-first"
        } else if self.replacements.is_empty() {
            "delete"
        } else {
            "replace"
        }
    }

    /// Names of the candidates' NodeClaims.
    #[must_use]
    pub fn claim_names(&self) -> Vec<String> {
        self.candidates.iter().map(|c| c.claim_name().to_owned()).collect()
    }

    /// Names of the candidates' pools, each once.
    #[must_use]
    pub fn pool_names(&self) -> Vec<&str> {
        let mut pools: Vec<&str> = self.candidates.iter().map(|c| c.pool_name()).collect();
        pools.sort_unstable();
        pools.dedup();
        pools
    }

    /// How many pods have to move.
    #[must_use]
    pub fn pod_count(&self) -> usize {
        self.candidates.iter().map(|c| c.pods.len()).sum()
    }

    /// One line for people, as in the logs.
    #[must_use]
    pub fn describe(&self, id: &str) -> String {
        let nodes: Vec<&str> = self.candidates.iter().map(|c| c.node.name()).collect();
        format!(
            "{}/{id}: {}: nodepools=[{}]: [{}]{} (savings: ${:.2})",
            self.reason().as_str(),
            self.decision(),
            self.pool_names().join(","),
            nodes.join(", "),
            self.arrow(),
            self.savings
        )
    }

    /// One line about one of the candidates, as in its events.
    #[must_use]
    pub fn describe_for(&self, node: &str) -> String {
        match self.candidates.len() {
            0 | 1 => format!("{}: [{node}]{}", self.decision(), self.arrow()),
            n => format!("{}: [{node}] (part of {n}-node consolidation)", self.decision()),
        }
    }

    fn arrow(&self) -> String {
        match self.replacements.len() {
            0 => String::new(),
            1 => " -> [1 replacement]".to_owned(),
            n => format!(" -> [{n} replacements]"),
        }
    }
}
