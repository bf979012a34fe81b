//! The scheduler: where waiting pods go, and which nodes have to be launched for them.
//!
//! The snapshot is turned into numbers once ([`prepare`]): label keys and values, requirements,
//! instance types by column, pods by class. Then pods are placed one by one ([`round`]) on nodes that
//! exist, on nodes planned in this round, and on new ones; what was worked out for one pod of a
//! class, or for one planned node of a shape, is not worked out again. At the end numbers become
//! NodeClaims ([`finish`]) and reasons ([`explain`]).

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
mod intern;
mod ladder;
mod prepare;
mod relax;
mod repack;
mod round;
mod selector;
mod stock;
mod tolerance;
mod topology;
mod world;
mod worth;
mod zones;

pub use stock::pool_requirements;
pub use world::World;

use std::collections::BTreeMap;

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

/// Places the snapshot's pods for as long as `go_on` says so, given how many wait in the queue;
/// pods not reached are in no list.
#[must_use]
pub fn solve_while(snapshot: &Snapshot, go_on: &dyn Fn(usize) -> bool) -> Results {
    let mut world = Prepared::new(snapshot);
    let zones = if snapshot.options.count_zones { zones::count(&world) } else { BTreeMap::new() };
    let mut results = outcome(&mut world, go_on);
    results.skipped_pools = std::mem::take(&mut world.skipped);
    results.zones = zones;
    results
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
