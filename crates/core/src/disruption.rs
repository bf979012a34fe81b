//! Which nodes may go, and what should take their place: a pure function of a snapshot.
//!
//! Methods are tried in a fixed order ([`Method::ALL`]); the first that finds a command decides. Each
//! is a file with one [`Search`], and all of them return values: commands, and for each node the
//! verdict with its facts. Texts, events, metrics and log fields are made from those values.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::scheduling::snapshot::{NodePoolInput, Snapshot};

pub mod budget;
pub mod candidate;
pub mod command;
pub mod consolidation;
pub mod decision;
pub mod deletion_cost;
mod drift;
mod emptiness;
mod methods;
mod multi_node;
pub mod on_paper;
pub mod pdb;
pub mod progress;
pub mod rejection;
pub mod repair;
pub mod score;
mod simulation;
mod single_node;
pub mod static_drift;
#[cfg(test)]
mod tests;
mod validation;

pub use candidate::Candidate;
pub use command::Command;
pub use decision::{Decision, Figures, Verdict};
pub use drift::drifted_by_pool;
pub use methods::{Prepared, decide};
pub use rejection::{Abandoned, EventKind, Rejection};
pub use simulation::quiet_until;
pub use validation::{all_still_valid, still_valid, undisturbed};

/// Why nodes are disrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The node is broken and does not recover.
    Unhealthy,
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
            Self::Unhealthy => "Unhealthy",
            Self::Empty => "Empty",
            Self::Drifted => "Drifted",
            Self::Underutilized => "Underutilized",
        }
    }

    /// The name in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Unhealthy => "unhealthy",
            Self::Empty => "empty",
            Self::Drifted => "drifted",
            Self::Underutilized => "underutilized",
        }
    }
}

/// A way of finding nodes to disrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Method {
    /// Nodes that are broken.
    Repair,
    /// Nodes without pods.
    Emptiness,
    /// Drifted nodes of pools with a fixed number of nodes.
    StaticDrift,
    /// Drifted nodes of the other pools.
    Drift,
    /// Several nodes that are not needed, or become one cheaper node.
    MultiNode,
    /// One node that is not needed, or becomes a cheaper one.
    SingleNode,
}

impl Method {
    /// All methods in the order in which they are tried.
    pub const ALL: [Self; 6] = [
        Self::Repair,
        Self::Emptiness,
        Self::StaticDrift,
        Self::Drift,
        Self::MultiNode,
        Self::SingleNode,
    ];

    /// The method's name in logs and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Repair => "Repair",
            Self::Emptiness => "Emptiness",
            Self::StaticDrift => "StaticDrift",
            Self::Drift => "Drift",
            Self::MultiNode => "MultiNodeConsolidation",
            Self::SingleNode => "SingleNodeConsolidation",
        }
    }

    /// The method of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }

    /// The reason that the method's commands carry.
    #[must_use]
    pub fn reason(self) -> Reason {
        match self {
            Self::Repair => Reason::Unhealthy,
            Self::Emptiness => Reason::Empty,
            Self::StaticDrift | Self::Drift => Reason::Drifted,
            Self::MultiNode | Self::SingleNode => Reason::Underutilized,
        }
    }

    /// The `consolidation_type` of metrics.
    #[must_use]
    pub fn consolidation_type(self) -> &'static str {
        match self {
            Self::Emptiness => "empty",
            Self::Repair | Self::StaticDrift | Self::Drift => "",
            Self::MultiNode => "multi",
            Self::SingleNode => "single",
        }
    }

    /// What the method is called in the line about a command that no longer holds; none for those
    /// whose commands are not looked at again.
    #[must_use]
    pub fn validated(self) -> Option<&'static str> {
        match self {
            Self::Emptiness => Some("empty node consolidation"),
            Self::MultiNode => Some("multi-node consolidation"),
            Self::SingleNode => Some("single-node consolidation"),
            Self::Repair | Self::StaticDrift | Self::Drift => None,
        }
    }

    /// Graceful methods wait for pods that must not be disrupted; eventual ones only where no
    /// grace period bounds the wait.
    #[must_use]
    pub fn is_eventual(self) -> bool {
        matches!(self, Self::Drift | Self::StaticDrift)
    }
}

/// Everything that a decision depends on.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// Nodes, waiting pods, and the pools in which nodes may be launched.
    pub snapshot: &'a Snapshot,
    /// All pools whose nodes may be disrupted: also those that are not ready, and static ones.
    pub pools: &'a [NodePoolInput],
    /// Every PodDisruptionBudget.
    pub pdbs: &'a [Arc<PodDisruptionBudget>],
    /// The moment of the decision.
    pub now: Timestamp,
    /// Provider ids of nodes that a command works on already.
    pub queued: &'a HashSet<String>,
    /// Names of pools for which a replacement failed lately: drift leaves them for a while.
    pub backed_off: &'a BTreeSet<String>,
    /// Conditions that repair is about; none where it is off.
    pub repair: &'a repair::Policies,
    /// UIDs of NodeClaims that were rebooted so often that the next repair replaces them.
    pub rebooted: &'a HashSet<String>,
    /// Feature gates that change decisions.
    pub gates: Gates,
}

/// Feature gates that change decisions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gates {
    /// Spot nodes may be replaced with cheaper spot nodes.
    pub spot_to_spot: bool,
    /// Drifted nodes for which no replacement can be launched first are terminated first.
    pub terminate_first_drift: bool,
    /// The same for unhealthy nodes.
    pub terminate_first_repair: bool,
}
