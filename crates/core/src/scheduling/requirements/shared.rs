//! Equal requirements, kept once.

use std::sync::Arc;

use rustc_hash::FxHashSet;

use super::{Requirement, Requirements};
use crate::scheduling::sharing::once;

/// Finds what requirements have in common. Thousands of offerings differ in price alone, and
/// instance types share most of their keys and values.
#[derive(Debug, Default)]
pub struct Sharing {
    whole: FxHashSet<Requirements>,
    single: FxHashSet<Requirement>,
}

impl Sharing {
    /// The same requirements, holding what was seen before where it is equal.
    #[must_use]
    pub fn share(&mut self, requirements: Requirements) -> Requirements {
        if let Some(known) = self.whole.get(&requirements) {
            return known.clone();
        }
        let parts = requirements.0.iter().map(|r| once(&mut self.single, r.clone()));
        let shared = Requirements(Arc::new(parts.collect()));
        self.whole.insert(shared.clone());
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_requirements_are_one() {
        let zone =
            |value| -> Requirements { [Requirement::is("zone", value)].into_iter().collect() };
        let mut sharing = Sharing::default();
        let (a, b, c) =
            (sharing.share(zone("a")), sharing.share(zone("a")), sharing.share(zone("b")));
        assert!(Arc::ptr_eq(&a.0, &b.0) && a != c && c == zone("b"));
    }
}
