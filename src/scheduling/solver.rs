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

pub use stock::pool_requirements;

use super::results::Results;
use super::snapshot::Snapshot;
use prepare::Prepared;
use round::Round;

/// Places the snapshot's pods.
#[must_use]
pub fn solve(snapshot: &Snapshot) -> Results {
    solve_while(snapshot, &|| true)
}

/// Places the snapshot's pods for as long as `go_on` says so; pods not reached are in no list.
#[must_use]
pub fn solve_while(snapshot: &Snapshot, go_on: &dyn Fn() -> bool) -> Results {
    let mut world = Prepared::new(snapshot);
    let mut round = Round::new(&mut world);
    round.run(go_on);
    round.finish()
}

#[cfg(test)]
mod tests;
