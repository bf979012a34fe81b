//! Keeps equal values once.

use std::hash::Hash;

use rustc_hash::FxHashSet;

/// The known value that equals this one; else this one, which is known from now on.
pub(super) fn once<T: Clone + Eq + Hash>(known: &mut FxHashSet<T>, item: T) -> T {
    if let Some(equal) = known.get(&item) {
        return equal.clone();
    }
    known.insert(item.clone());
    item
}
