//! Commands carried out on paper: nodes come and go, and pods find their places by the same solver.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::super::World;
use super::super::build::claim_for;
use crate::disruption::Command;
use crate::disruption::candidate::Pools;
use crate::disruption::on_paper::{self, bound};
use crate::scheduling::node::{NodeView, StateNode};
use crate::scheduling::pod::{PodInfo, PodKey};
use crate::scheduling::results::{PlannedClaim, Results};
use crate::scheduling::{self};

/// Price an hour of all nodes whose type is known.
pub(super) fn price(world: &World) -> f64 {
    let pools = Pools::new(&world.pools);
    let of = |node: &StateNode| pools.price_of(node).unwrap_or(0.0);
    world.snapshot.nodes.iter().map(of).sum()
}

/// Gives waiting pods the places that were found: on nodes that are there, which are then expecting
/// pods, and on nodes that are being launched. `arrived`: they run there since that moment, and the
/// nodes have joined.
pub(super) fn place(world: &mut World, results: &Results, arrived: Option<Timestamp>) {
    let pods = take(&mut world.snapshot.pods, results);
    let mut by_node: BTreeMap<&str, Vec<PodKey>> = BTreeMap::new();
    for (name, keys) in &results.existing {
        by_node.entry(name).or_default().extend(keys.iter().cloned());
    }
    // The scenario's clock stands still.
    let soon = Timestamp::MAX;
    let pending = arrived.is_none();
    for node in &mut world.snapshot.nodes {
        let Some(keys) = by_node.remove(node.name()) else { continue };
        let (virtual_pods, real): (Vec<_>, Vec<_>) =
            keys.iter().filter_map(|k| pods.get(k)).partition(|p| p.buffer.is_some());
        node.buffer_pods += virtual_pods.len();
        if pending && !real.is_empty() {
            node.nominated_until = Some(soon);
        }
        let name = node.name().to_owned();
        node.pods.extend(real.into_iter().map(|p| bound(p, &name, pending)));
    }
    for (at, planned) in results.new_claims.iter().enumerate() {
        let Some(mut node) = launched(planned, &format!("launched-{at}"), arrived) else {
            continue;
        };
        let name = node.name().to_owned();
        let real = planned.pods.iter().filter_map(|k| pods.get(k)).filter(|p| p.buffer.is_none());
        node.pods = real.map(|p| bound(p, &name, pending)).collect();
        world.snapshot.nodes.push(node);
    }
}

/// Takes the pods that have a place out of those that wait. Buffers' pods wait on: they keep their
/// room in every decision.
fn take(waiting: &mut Vec<Arc<PodInfo>>, results: &Results) -> HashMap<PodKey, Arc<PodInfo>> {
    let lost: HashSet<&PodKey> = results.errors.iter().map(|(key, _)| key).collect();
    let placed = waiting.iter().filter(|p| !lost.contains(&p.key));
    let placed: HashMap<PodKey, Arc<PodInfo>> =
        placed.map(|p| (p.key.clone(), Arc::clone(p))).collect();
    waiting.retain(|p| lost.contains(&p.key) || p.buffer.is_some());
    placed
}

/// The cluster as commands change it.
pub(super) struct Cluster {
    now: Timestamp,
    made: usize,
}

impl Cluster {
    pub(super) fn new(now: Timestamp) -> Self {
        Self { now, made: 0 }
    }

    /// Launches the replacements of commands, removes their candidates, and gives the pods of all of
    /// them new places.
    pub(super) fn carry_out(&mut self, world: &mut World, commands: &[Command]) {
        let candidates = || commands.iter().flat_map(|c| &c.candidates);
        let gone: HashSet<&str> = candidates().map(|c| c.node.name()).collect();
        let moving: Vec<Arc<PodInfo>> = candidates().flat_map(|c| c.pods.iter().cloned()).collect();
        let nodes = &mut world.snapshot.nodes;
        nodes.retain(|n| !gone.contains(n.name()));
        for planned in commands.iter().flat_map(|c| &c.replacements) {
            nodes.extend(self.up(planned));
        }
        let mut round = world.snapshot.clone();
        let buffers: Vec<Arc<PodInfo>> =
            round.pods.iter().filter(|p| p.buffer.is_some()).cloned().collect();
        round.pods = moving;
        // Buffers' pods take part in each round, since their room moves with the nodes.
        round.pods.extend(buffers.iter().cloned());
        let results = scheduling::solve(&round);
        let pods = take(&mut round.pods, &results);
        let mut by_node: HashMap<&str, &[PodKey]> = HashMap::new();
        for (name, keys) in &results.existing {
            by_node.insert(name, keys);
        }
        for node in &mut world.snapshot.nodes {
            let name = node.name().to_owned();
            let keys = by_node.get(name.as_str()).copied().unwrap_or_default();
            let here: Vec<&Arc<PodInfo>> = keys.iter().filter_map(|k| pods.get(k)).collect();
            node.buffer_pods = here.iter().filter(|p| p.buffer.is_some()).count();
            let real = here.into_iter().filter(|p| p.buffer.is_none());
            node.pods.extend(real.map(|p| bound(p, &name, false)));
        }
        for planned in &results.new_claims {
            let Some(mut node) = self.up(planned) else { continue };
            let name = node.name().to_owned();
            let real = planned.pods.iter().filter_map(|k| pods.get(k));
            let real = real.filter(|p| p.buffer.is_none());
            node.pods = real.map(|p| bound(p, &name, false)).collect();
            world.snapshot.nodes.push(node);
        }
        let lost: HashSet<&PodKey> = results.errors.iter().map(|(key, _)| key).collect();
        let stay = round.pods.into_iter().filter(|p| lost.contains(&p.key) && p.buffer.is_none());
        world.snapshot.pods.extend(stay);
    }

    fn up(&mut self, planned: &PlannedClaim) -> Option<StateNode> {
        let node = launched(planned, &format!("replacement-{}", self.made), Some(self.now));
        self.made += 1;
        node
    }
}

/// The node that a launch comes to: the cheapest that was planned, or the cheapest of a static pool.
/// Initialized since a moment, or still on its way up.
fn launched(planned: &PlannedClaim, name: &str, since: Option<Timestamp>) -> Option<StateNode> {
    let node = on_paper::node_of(planned, name, since.is_some())?;
    let claim = claim_for(&node, Some(&planned.node_pool), since);
    let view = NodeView {
        node: since.is_some().then(|| Arc::new(node)),
        node_claim: Some(Arc::new(claim)),
        ..NodeView::default()
    };
    Some(view.into())
}
