//! The scheduler: where waiting pods go, and which nodes have to be launched for them.
//!
//! The snapshot is turned into numbers once ([`prepare`]): label keys and values, requirements,
//! instance types by column, pods by class. Numbers of each kind are a type of their own ([`ids`]).
//! Then pods are placed one by one ([`round`]) on nodes that exist, on nodes planned in this round,
//! and on new ones; what was worked out for one pod of a class, or for one planned node of a shape,
//! is not worked out again. At the end numbers become NodeClaims ([`finish`]) and reasons
//! ([`explain`]).
//!
//! What placing pods changes is the [`plan`], and nothing else: a try marks it, changes it, is read,
//! and is undone. That is how several choices are compared ([`choices`]), and how disruption asks
//! what would become of a cluster without some of its nodes ([`world`]): a question costs by the pods
//! that have to move, not by the cluster.

mod amounts;
mod attach;
mod bound;
mod catalog;
mod choices;
mod classes;
mod daemons;
mod devices;
mod existing;
mod explain;
mod finish;
mod ids;
mod intern;
mod ladder;
mod plan;
mod prepare;
mod relax;
mod repack;
mod round;
mod selector;
mod stock;
mod tally;
mod tolerance;
mod topology;
mod world;
mod worth;
mod zones;

pub use stock::pool_requirements;
pub use world::World;

use std::collections::{BTreeMap, HashSet};

use super::pod::PodKey;
use super::results::Results;
use super::snapshot::Snapshot;
use choices::{play, search};
use prepare::Prepared;
use round::Round;

/// Places the snapshot's pods.
#[must_use]
pub fn solve(snapshot: &Snapshot) -> Results {
    solve_while(snapshot, &|_| true)
}

/// Places the snapshot's pods for as long as `go_on` allows, which is called with the number of
/// pods in the queue. Pods that were not reached are in no list of the results.
#[must_use]
pub fn solve_while(snapshot: &Snapshot, go_on: &dyn Fn(usize) -> bool) -> Results {
    let mut world = Prepared::new(snapshot);
    let zones = if snapshot.options.count_zones { zones::count(&world) } else { BTreeMap::new() };
    let mut results = outcome(&mut world, go_on);
    results.skipped_pools = std::mem::take(&mut world.skipped);
    results.zones = zones;
    results
}

/// Places the snapshot's pods as [`solve_while`] does, but plans no node for held pods: they take
/// room where there is some, so that no other pod does, and otherwise are in no list.
#[must_use]
pub fn solve_holding(
    snapshot: &Snapshot,
    held: &HashSet<PodKey>,
    go_on: &dyn Fn(usize) -> bool,
) -> Results {
    let first = solve_while(snapshot, go_on);
    let left = without_room(&first, held);
    if left.is_empty() {
        return first;
    }
    let mut own = snapshot.clone();
    // Solved again rather than cut from the results: a planned node that a held pod shared with
    // others may be too large without it.
    own.pods.retain(|pod| !left.contains(&pod.key));
    let second = solve_while(&own, go_on);
    if without_room(&second, held).is_empty() {
        return second;
    }
    // Without the held pods that found no room, others may take the room of those that had some.
    // Rather than try on and on, room is kept for none of them.
    own.pods.retain(|pod| !held.contains(&pod.key));
    solve_while(&own, go_on)
}

/// Held pods for which a node would be launched, or that fit nowhere.
fn without_room<'a>(results: &'a Results, held: &HashSet<PodKey>) -> HashSet<&'a PodKey> {
    let planned = results.new_claims.iter().flat_map(|claim| &claim.pods);
    let failed = results.errors.iter().map(|(key, _)| key);
    planned.chain(failed).filter(|key| held.contains(*key)).collect()
}

/// The best outcome for the pods that wait.
fn outcome(world: &mut Prepared<'_>, go_on: &dyn Fn(usize) -> bool) -> Results {
    let searched = choices::worth_a_search(world);
    let mut round = Round::new(world);
    round.run(go_on);
    let tries = if searched { choices::tries(&round) } else { 0 };
    if tries == 0 {
        return round.finish();
    }
    let plain = round.worth();
    let choices = search(world, tries, plain, go_on);
    play(world, choices, go_on).finish()
}

#[cfg(test)]
mod tests;
