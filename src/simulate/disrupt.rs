//! One pass of every disruption method over a scenario.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use serde::Serialize;

use super::World;
use super::build::adopt;
use super::report::{ClaimReport, tidy};
use crate::disruption::{self, Input, Method};

/// What would be disrupted.
#[derive(Clone, Debug, Serialize)]
pub struct DisruptReport {
    /// Commands in the order of the methods that found them.
    pub commands: Vec<CommandReport>,
    /// Nodes that stay, and why.
    pub rejected: Vec<Rejected>,
}

/// Nodes to remove, and what comes first.
#[derive(Clone, Debug, Serialize)]
pub struct CommandReport {
    pub reason: String,
    pub decision: String,
    pub candidates: Vec<String>,
    pub replacements: Vec<ClaimReport>,
    pub savings: f64,
}

/// A node that stays.
#[derive(Clone, Debug, Serialize)]
pub struct Rejected {
    pub node: String,
    pub reason: String,
}

/// Lets every method find one command; nodes that a command takes are out of the next one's reach.
#[must_use]
pub fn disrupt(mut world: World, now: Timestamp) -> DisruptReport {
    adopt(&mut world.snapshot.nodes, &world.snapshot.node_pools);
    let mut queued: HashSet<String> = HashSet::new();
    let mut taken: HashSet<String> = HashSet::new();
    let mut commands = Vec::new();
    let mut rejected: BTreeMap<String, String> = BTreeMap::new();
    for method in Method::ALL {
        let input = Input {
            snapshot: &world.snapshot,
            pdbs: &world.pdbs,
            now,
            queued: &queued,
            spot_to_spot: world.spot_to_spot,
        };
        let decision = disruption::decide(&input, method, &|| true);
        rejected.extend(decision.rejected);
        let Some(command) = decision.command else { continue };
        commands.push(CommandReport {
            reason: command.reason.as_str().to_owned(),
            decision: command.decision().to_owned(),
            candidates: command.candidates.iter().map(|c| c.node.name().to_owned()).collect(),
            replacements: command.replacements.iter().map(ClaimReport::new).collect(),
            savings: tidy(command.savings),
        });
        for candidate in &command.candidates {
            taken.insert(candidate.node.name().to_owned());
            queued.extend(candidate.node.provider_id().map(str::to_owned));
        }
        for node in &mut world.snapshot.nodes {
            node.marked_for_deletion |= taken.contains(node.name());
        }
    }
    let rejected = rejected
        .into_iter()
        .filter(|(node, _)| !taken.contains(node))
        .map(|(node, reason)| Rejected { node, reason })
        .collect();
    DisruptReport { commands, rejected }
}
