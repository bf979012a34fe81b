//! The scheduler: where waiting pods go, and which nodes have to be launched for them.
//!
//! The snapshot is turned into numbers once ([`prepare`]): label keys and values, requirements,
//! instance types by column, pods by class. Then pods are placed one by one ([`round`]) on nodes that
//! exist, on nodes planned in this round, and on new ones; what was worked out for one pod of a
//! class, or for one planned node of a shape, is not worked out again. At the end numbers become
//! NodeClaims ([`finish`]) and reasons ([`explain`]).

mod amounts;
mod catalog;
mod classes;
mod devices;
mod existing;
mod explain;
mod finish;
mod intern;
mod prepare;
mod relax;
mod repack;
mod round;
mod selector;
mod stock;
mod tolerance;
mod topology;
mod worth;
mod zones;

pub use stock::pool_requirements;

use std::collections::BTreeMap;

use super::results::Results;
use super::snapshot::Snapshot;
use prepare::{Prepared, Ties};
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
    let again = world.topology.clone_counts();
    let mut best = run(&mut world, go_on);
    let new = !best.new_claims.is_empty() || !best.errors.is_empty();
    let all_reached = placed(&best) + best.errors.len() >= snapshot.pods.len();
    let small = snapshot.pods.len() <= FEW_PODS
        || (snapshot.pods.len() <= SOME_PODS && best.new_claims.len() <= FEW_CLAIMS);
    if new && all_reached && snapshot.options.pack_by_price && small {
        let chances = if snapshot.pods.len() <= FEW_PODS { CHANCES } else { 0 };
        let named = [Ties::ByPrice, Ties::ByName, Ties::ByNameReversed].into_iter();
        for (at, ties) in named.chain((0..chances).map(Ties::Shuffled)).enumerate() {
            world.ties = ties;
            world.careful = at % 3 != 1;
            world.recount = at % 4 == 3;
            world.topology.counts.clone_from(&again);
            let other = run(&mut world, go_on);
            if outcome(&other) < outcome(&best) {
                best = other;
            }
        }
    }
    best.skipped_pools = std::mem::take(&mut world.skipped);
    best.zones = zones;
    best
}

fn run(world: &mut Prepared<'_>, go_on: &dyn Fn(usize) -> bool) -> Results {
    let mut round = Round::new(world);
    round.run(go_on);
    round.finish()
}

fn placed(results: &Results) -> usize {
    results.existing.iter().map(|(_, pods)| pods.len()).sum::<usize>()
        + results.new_claims.iter().map(|c| c.pods.len()).sum::<usize>()
}

/// Pods left over, and the price an hour in billionths: the less, the better.
fn outcome(results: &Results) -> (usize, u64) {
    let price: f64 = results.new_claims.iter().filter_map(|c| Some(c.cheapest()?.1.price)).sum();
    (usize::MAX - placed(results), (price * 1e9).round() as u64)
}

/// Up to this many pods, other choices among equally good domains are tried as well.
const FEW_PODS: usize = 500;
/// Orders of domains by chance that are tried for few pods.
const CHANCES: u32 = 45;
/// Up to this many pods too, when few nodes are planned for them.
const SOME_PODS: usize = 2500;
const FEW_CLAIMS: usize = 64;

#[cfg(test)]
mod tests;
