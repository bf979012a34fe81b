//! What need not be decided again: as Karpenter does, a method that found nothing to do is not asked again
//! for a while, unless something changed.

use std::collections::HashMap;
use std::sync::Arc;

use super::*;

/// A method is asked again after this long whatever happened, as in Karpenter (`cluster.Consolidated`):
/// prices, and what is left of a node's lifetime, change without a change of the cluster.
const FORGOTTEN: Duration = Duration::from_secs(300);

/// The methods that found nothing to do, and what they decided from.
#[derive(Default)]
pub(super) struct Settled(HashMap<&'static str, Arc<Seen>>);

impl Settled {
    /// True when the method would find nothing again.
    pub(super) fn covers(&self, method: Method, seen: &Seen) -> bool {
        self.0.get(method.name()).is_some_and(|known| {
            let age = Duration::try_from(seen.now.duration_since(known.now)).unwrap_or_default();
            age < FORGOTTEN && seen.is_like(known)
        })
    }

    pub(super) fn note(&mut self, method: Method, seen: &Arc<Seen>, decision: &Decision) {
        if decision.is_settled() {
            self.0.insert(method.name(), Arc::clone(seen));
        } else {
            self.0.remove(method.name());
        }
    }
}

impl Seen {
    /// True when the same follows from both, but for the time.
    fn is_like(&self, other: &Self) -> bool {
        let same_pool = |(a, b): (&NodePoolInput, &NodePoolInput)| {
            Arc::ptr_eq(&a.node_pool, &b.node_pool)
                && Arc::ptr_eq(&a.instance_types, &b.instance_types)
        };
        self.revision == other.revision
            && self.pools.len() == other.pools.len()
            && self.pools.iter().zip(&other.pools).all(same_pool)
            && self.queued == other.queued
            && self.backed_off == other.backed_off
            && self.rebooted == other.rebooted
    }
}
