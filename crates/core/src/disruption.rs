//! Which nodes may go, and what should take their place: a pure function of a snapshot.
//!
//! Methods are tried in a fixed order, Emptiness, Drift, multi-node and single-node consolidation;
//! the first that finds a command decides.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::scheduling::results::PlannedClaim;
use crate::scheduling::snapshot::Snapshot;

pub mod budget;
pub mod candidate;
pub mod consolidation;
mod methods;
pub mod pdb;
mod simulation;
#[cfg(test)]
mod tests;

pub use candidate::Candidate;
pub use methods::{decide, still_valid};

/// Why nodes are disrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// Nothing runs on the node.
    Empty,
    /// The node is not what its pool or class asks for any more.
    Drifted,
    /// The node's pods fit elsewhere or on something cheaper.
    Underutilized,
}

impl Reason {
    /// The name in budgets, conditions and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::Drifted => "Drifted",
            Self::Underutilized => "Underutilized",
        }
    }
}

/// A way of finding nodes to disrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    Emptiness,
    Drift,
    MultiNode,
    SingleNode,
}

impl Method {
    /// All methods in the order in which they are tried.
    pub const ALL: [Self; 4] = [Self::Emptiness, Self::Drift, Self::MultiNode, Self::SingleNode];

    /// The reason that the method's commands carry.
    #[must_use]
    pub fn reason(self) -> Reason {
        match self {
            Self::Emptiness => Reason::Empty,
            Self::Drift => Reason::Drifted,
            Self::MultiNode | Self::SingleNode => Reason::Underutilized,
        }
    }

    /// The `consolidation_type` of metrics.
    #[must_use]
    pub fn consolidation_type(self) -> &'static str {
        match self {
            Self::Emptiness => "empty",
            Self::Drift => "",
            Self::MultiNode => "multi",
            Self::SingleNode => "single",
        }
    }

    /// Graceful methods wait for pods that must not be disrupted; eventual ones only where no
    /// grace period bounds the wait.
    #[must_use]
    pub fn is_eventual(self) -> bool {
        self == Self::Drift
    }
}

/// Everything that a decision depends on.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// Pools, nodes and waiting pods.
    pub snapshot: &'a Snapshot,
    /// Every PodDisruptionBudget.
    pub pdbs: &'a [Arc<PodDisruptionBudget>],
    /// The moment of the decision.
    pub now: Timestamp,
    /// Provider ids of nodes that a command works on already.
    pub queued: &'a HashSet<String>,
    /// Whether spot nodes may be replaced with cheaper spot nodes.
    pub spot_to_spot: bool,
}

/// Nodes to remove, and what has to be there first.
#[derive(Clone, Debug)]
pub struct Command {
    /// Why.
    pub reason: Reason,
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
}

impl Command {
    /// `delete` or `replace`.
    #[must_use]
    pub fn decision(&self) -> &'static str {
        if self.replacements.is_empty() { "delete" } else { "replace" }
    }

    /// One line for people, as in the logs.
    #[must_use]
    pub fn describe(&self, id: &str) -> String {
        let mut pools: Vec<&str> = self.candidates.iter().map(|c| c.pool_name()).collect();
        pools.sort_unstable();
        pools.dedup();
        let nodes: Vec<&str> = self.candidates.iter().map(|c| c.node.name()).collect();
        let arrow = match self.replacements.len() {
            0 => String::new(),
            1 => " -> [1 replacement]".to_owned(),
            n => format!(" -> [{n} replacements]"),
        };
        format!(
            "{}/{id}: {}: nodepools=[{}]: [{}]{arrow} (savings: ${:.2})",
            self.reason.as_str(),
            self.decision(),
            pools.join(","),
            nodes.join(", "),
            self.savings
        )
    }
}

/// What a method found.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    /// What to do, if anything.
    pub command: Option<Command>,
    /// Nodes that stay, and why.
    pub rejected: BTreeMap<String, String>,
    /// Candidates were left out because a budget was used up.
    pub constrained: bool,
    /// How many candidates the method looked at.
    pub eligible: usize,
}
