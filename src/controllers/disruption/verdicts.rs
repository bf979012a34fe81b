//! The last verdict of each method on each node, for whoever asks why a node is still there.

use std::collections::BTreeMap;

use jiff::Timestamp;
use parking_lot::RwLock;

use crate::disruption::{Decision, Method, Verdict};

/// At most so many nodes are kept for each method.
const MOST_NODES: usize = 20_000;

/// What one method made of each node, by name, and when.
type Said = (Timestamp, BTreeMap<String, Verdict>);

/// The last verdicts.
#[derive(Debug, Default)]
pub struct Verdicts(RwLock<BTreeMap<Method, Said>>);

impl Verdicts {
    /// Keeps what a method made of the nodes, instead of what it made of them before.
    pub fn keep(&self, method: Method, at: Timestamp, decision: &Decision) {
        let kept = decision.verdicts.iter().take(MOST_NODES);
        let kept = kept.map(|(node, verdict)| (node.clone(), verdict.clone())).collect();
        self.0.write().insert(method, (at, kept));
    }

    /// What each method last made of a node, and when, in the order of the methods.
    #[must_use]
    pub fn of(&self, node: &str) -> Vec<(Method, Timestamp, Verdict)> {
        let all = self.0.read();
        let one = |(method, (at, verdicts)): (&Method, &(Timestamp, BTreeMap<String, Verdict>))| {
            Some((*method, *at, verdicts.get(node)?.clone()))
        };
        all.iter().filter_map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disruption::Rejection;

    #[test]
    fn the_last_verdict_of_each_method_is_kept() {
        let verdicts = Verdicts::default();
        let decided = |rejection| {
            let mut decision = Decision::default();
            decision.reject("n", rejection);
            decision
        };
        let at = Timestamp::UNIX_EPOCH;
        verdicts.keep(Method::Drift, at, &decided(Rejection::Nominated));
        verdicts.keep(Method::SingleNode, at, &decided(Rejection::NotCheaper));
        verdicts.keep(Method::Drift, at, &decided(Rejection::NotDrifted));
        let found: Vec<_> =
            verdicts.of("n").into_iter().map(|(m, _, v)| (m, v.rejection.unwrap())).collect();
        let wanted =
            [(Method::Drift, Rejection::NotDrifted), (Method::SingleNode, Rejection::NotCheaper)];
        assert_eq!(found, wanted);
        assert!(verdicts.of("other").is_empty());
    }
}
