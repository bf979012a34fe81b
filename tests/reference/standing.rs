//! What a result keeps of what comes before the price: weights of NodePools, and preferences of pods.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::check::{World, normal};
use super::model::{self, Expression};
use super::place::{self, Kind, Place};
use super::topology;

/// Of two results, the lesser keeps more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Standing {
    /// Placed pods by the weight of their node's pool, heaviest first, after those on nodes that exist.
    by_weight: Vec<Reverse<usize>>,
    /// Preferences of placed pods that are not met.
    unmet: usize,
}

impl Standing {
    pub fn of(world: &World<'_>) -> Self {
        Self { by_weight: by_weight(world), unmet: unmet(world) }
    }
}

fn by_weight(world: &World<'_>) -> Vec<Reverse<usize>> {
    let weight = |pool: &str| place::pool(world.doc, pool).and_then(|p| p.spec.weight).unwrap_or(0);
    let claims = &world.outcome.node_claims;
    let existing = world.outcome.existing_nodes.iter().map(|node| node.pods.len()).sum();
    let weights: BTreeSet<i32> = world
        .doc
        .node_pools
        .iter()
        .map(|pool| weight(pool.metadata.name.as_deref().unwrap_or_default()))
        .collect();
    let on = |level: i32| {
        claims.iter().filter(|c| weight(&c.node_pool) == level).map(|c| c.pods.len()).sum()
    };
    std::iter::once(existing).chain(weights.into_iter().rev().map(on)).map(Reverse).collect()
}

fn unmet(world: &World<'_>) -> usize {
    let mut count = 0;
    for (at, node) in world.places.iter().enumerate() {
        for pod in &node.placed {
            count += model::preferred_terms(pod).iter().filter(|t| !surely(world, node, t)).count();
            let wishes = topology::wishes(pod, &world.objects);
            let missed = wishes.iter().filter(|wish| {
                topology::unmet(world.doc, &world.objects, &world.places, at, pod, wish)
            });
            count += missed.count();
            let soft = node.taints.iter().filter(|t| t.effect == "PreferNoSchedule");
            count += soft.filter(|t| !model::tolerates(model::tolerations(pod), t)).count();
        }
    }
    count
}

/// Whether a node meets a term, whichever of its types it becomes.
fn surely(world: &World<'_>, node: &Place<'_>, term: &[Expression]) -> bool {
    let types: Vec<_> = match &node.kind {
        Kind::Existing { .. } => vec![None],
        Kind::New { types, .. } => types.iter().copied().map(Some).collect(),
    };
    types.into_iter().all(|of_type| {
        term.iter().all(|e| {
            node.label(world.doc, normal(&e.key), of_type).is_some_and(|label| label.surely(e))
        })
    })
}
