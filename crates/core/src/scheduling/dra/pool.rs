//! Checks whether the pools that drivers publish are complete and consistent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::device::{Counters, Device, Slice};

/// What is wrong with a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Slices are missing.
    Incomplete,
    /// Devices contradict each other.
    Invalid,
}

impl Flaw {
    /// As messages name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Incomplete => "incomplete",
            Self::Invalid => "invalid",
        }
    }
}

/// Pools by driver and name: the slices of the highest generation, in order.
pub type Pools<'a> = BTreeMap<(Arc<str>, Arc<str>), Vec<&'a Arc<Slice>>>;

/// Slices by pool. A driver raises the generation when it replaces a pool's slices, so that those
/// of older ones are on their way out.
#[must_use]
pub fn pools<'a>(slices: impl IntoIterator<Item = &'a Arc<Slice>>) -> Pools<'a> {
    let mut pools: Pools<'a> = BTreeMap::new();
    for slice in slices {
        let key = (Arc::clone(&slice.driver), Arc::clone(&slice.pool));
        let found = pools.entry(key).or_default();
        let newest = found.first().map_or(i64::MIN, |s| s.generation);
        if slice.generation > newest {
            found.clear();
        }
        if slice.generation >= newest {
            found.push(slice);
        }
    }
    pools
}

/// What is wrong with the slices of one pool, if anything.
#[must_use]
pub fn flaw(slices: &[&Arc<Slice>]) -> Option<Flaw> {
    let wanted = slices.first().map_or(0, |s| s.count);
    if i64::try_from(slices.len()).is_ok_and(|n| n < wanted) {
        return Some(Flaw::Incomplete);
    }
    let mut counters = Counters::new();
    for slice in slices {
        counters.extend(slice.counters.iter().map(|(k, v)| (k.clone(), *v)));
    }
    contradiction(slices.iter().flat_map(|s| &s.devices), &counters).then_some(Flaw::Invalid)
}

/// Whether device names occur twice, or devices draw on counters that do not exist.
pub(super) fn contradiction<'a>(
    devices: impl IntoIterator<Item = &'a Arc<Device>>,
    counters: &Counters,
) -> bool {
    let mut names = BTreeSet::new();
    devices.into_iter().any(|device| {
        !names.insert(&device.name)
            || device
                .consumes
                .iter()
                .any(|(set, name, _)| !counters.contains_key(&(Arc::clone(set), Arc::clone(name))))
    })
}

/// The first of these drivers that has not published a whole pool for a node.
///
/// A driver of network devices publishes none per node, so that nothing is missing for this one.
#[must_use]
pub fn unpublished<'d>(
    drivers: impl IntoIterator<Item = &'d str>,
    node: &str,
    slices: &BTreeMap<String, Arc<Slice>>,
) -> Option<&'d str> {
    let whole = |slices: &Vec<&Arc<Slice>>| {
        let count = slices.first().map_or(0, |s| s.count);
        count > 0 && usize::try_from(count).is_ok_and(|n| n == slices.len())
    };
    let has_whole_pool = |driver: &str, of: &dyn Fn(&Slice) -> bool| {
        let own = slices.values().filter(|s| *s.driver == *driver && of(s));
        pools(own).values().any(whole)
    };
    let of_nodes =
        |driver: &str| slices.values().any(|s| *s.driver == *driver && s.node().is_some());
    drivers.into_iter().find(|driver| {
        let published = has_whole_pool(driver, &|s| s.node() == Some(node))
            || (!of_nodes(driver) && has_whole_pool(driver, &|_| true));
        !published
    })
}
