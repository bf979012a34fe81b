//! A slow, obviously right reading of the rules, and random scenarios to try it on.
//!
//! The tests beside this file and `make compare` both use it.

pub mod check;
pub mod fits;
pub mod label;
pub mod model;
pub mod outcome;
pub mod place;
pub mod random;
pub mod standing;
pub mod topology;

/// Left-over pods that would fit somewhere.
///
/// Pods that wait for reserved capacity are left out, and so are those with a rule by zone (or
/// another domain that several nodes share) about pods of this very round: where a planned node
/// will be is settled step by step, and what a step leaves open is taken up in the next round.
pub fn fitting(world: &check::World<'_>) -> Vec<String> {
    let left = world.outcome.unschedulable.iter().filter(|l| !l.error.contains("reserved"));
    left.filter_map(|left| {
        let pod = world.pods.get(&left.pod)?;
        if fits::depends_on_this_round(world, pod) {
            return None;
        }
        let place = fits::somewhere(world, pod)?;
        Some(format!("{} fits on {place}; the solver says: {}", left.pod, left.error))
    })
    .collect()
}
