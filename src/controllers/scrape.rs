//! What a scrape shows of the cluster's objects: the part of it that grows with the cluster.

use jiff::Timestamp;

use super::{observability, pod_metrics, state_metrics};
use crate::cluster::State;
use crate::operator::metrics::{Options, page_of};

/// Every series that is written from the state when it is asked for. `cargo bench --bench scrape` measures it.
#[must_use]
pub fn of_state(state: &State, options: &Options, now: Timestamp) -> String {
    let kinds = observability::known_now(state);
    page_of(options, |page| {
        let nodes = state.state_nodes();
        state_metrics::write_nodes(&nodes, now, page);
        pod_metrics::write_states(&state.pods(), &nodes, page);
        observability::write_conditions(&kinds, now, page);
    })
}

#[cfg(test)]
mod cluster;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::metrics::Level;

    fn scrape(nodes: usize, pods: usize, level: Level) -> String {
        let state = cluster::state(nodes, pods);
        let now = Timestamp::from_second(1_770_000_000).unwrap();
        of_state(&state, &Options { level, ..Options::default() }, now)
    }

    #[test]
    fn below_the_full_level_a_scrape_does_not_grow_with_the_cluster() {
        for level in [Level::Standard, Level::Minimal] {
            let small = scrape(300, 900, level);
            let large = scrape(600, 1800, level);
            assert_eq!(small.lines().count(), large.lines().count(), "{level:?}");
            assert!(large.len() < 1_000_000, "{}", large.len());
        }
    }

    #[test]
    fn at_the_full_level_each_pod_and_node_has_its_series() {
        let lines = |nodes, pods| scrape(nodes, pods, Level::Full).lines().count();
        let (few, many) = (lines(30, 90), lines(60, 180));
        assert!(many - few >= 30 + 90, "{few} and {many} lines");
    }
}
