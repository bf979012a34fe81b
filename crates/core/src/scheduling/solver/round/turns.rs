//! Whose turn it is: planned nodes by their number of pods, those with the fewest first.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;

use fixedbitset::FixedBitSet;

use super::WORD;
use crate::scheduling::solver::choices::{Turns, mix};

/// Planned nodes by number of pods.
pub(in crate::scheduling::solver) struct ByCount {
    sets: BTreeMap<u32, FixedBitSet>,
    /// The same, last come first; kept only where that order is asked for.
    lists: BTreeMap<u32, VecDeque<u32>>,
    turns: Turns,
}

impl ByCount {
    pub(super) fn new(turns: Turns) -> Self {
        Self { sets: BTreeMap::new(), lists: BTreeMap::new(), turns }
    }

    /// Adds a node with its first pod.
    pub(super) fn opened(&mut self, claim: usize) {
        self.sets.entry(1).or_default().grow_and_insert(claim);
        if self.turns == Turns::Latest {
            self.lists.entry(1).or_default().push_back(claim as u32);
        }
    }

    /// Notes that a node with so many pods got one more.
    pub(super) fn grew(&mut self, claim: usize, count: u32) {
        if let Some(claims) = self.sets.get_mut(&count) {
            claims.set(claim, false);
            if claims.is_clear() {
                self.sets.remove(&count);
            }
        }
        self.sets.entry(count + 1).or_default().grow_and_insert(claim);
        if self.turns == Turns::Latest {
            if let Some(list) = self.lists.get_mut(&count) {
                list.retain(|c| *c != claim as u32);
            }
            self.lists.entry(count + 1).or_default().push_front(claim as u32);
        }
    }

    /// Goes through the nodes of a mask, from which `visit` may take others that are hopeless.
    /// `moment` grows with every pod that is placed.
    pub(in crate::scheduling::solver) fn visit(
        &self,
        moment: u64,
        mask: &mut [usize],
        mut visit: impl FnMut(usize, &mut [usize]) -> ControlFlow<()>,
    ) {
        // These results carry only whether a visit asked to stop.
        let _ = match self.turns {
            Turns::Oldest => self.sets.values().try_for_each(|set| by_index(set, mask, &mut visit)),
            Turns::Latest => self
                .lists
                .values()
                .flatten()
                .try_for_each(|claim| if_in(mask, *claim as usize, &mut visit)),
            Turns::ByChance(number) => self.sets.values().try_for_each(|set| {
                let mut order: Vec<usize> = set.ones().collect();
                let chance = mix(number, moment as u32);
                order.sort_by_cached_key(|claim| mix(*claim as u32, chance));
                order.into_iter().try_for_each(|claim| if_in(mask, claim, &mut visit))
            }),
        };
    }
}

fn if_in(
    mask: &mut [usize],
    claim: usize,
    visit: &mut impl FnMut(usize, &mut [usize]) -> ControlFlow<()>,
) -> ControlFlow<()> {
    if mask.get(claim / WORD).is_some_and(|word| word >> (claim % WORD) & 1 == 1) {
        visit(claim, mask)
    } else {
        ControlFlow::Continue(())
    }
}

/// Visits the nodes that are in a set and in a mask, word by word.
fn by_index(
    set: &FixedBitSet,
    mask: &mut [usize],
    visit: &mut impl FnMut(usize, &mut [usize]) -> ControlFlow<()>,
) -> ControlFlow<()> {
    for (at, claims) in set.as_slice().iter().enumerate().take(mask.len()) {
        let mut rest = usize::MAX;
        loop {
            let word = claims & mask[at] & rest;
            if word == 0 {
                break;
            }
            let bit = word.trailing_zeros();
            rest = usize::MAX.checked_shl(bit + 1).unwrap_or(0);
            visit(at * WORD + bit as usize, mask)?;
        }
    }
    ControlFlow::Continue(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(by_count: &ByCount) -> Vec<usize> {
        let mut order = Vec::new();
        by_count.visit(0, &mut [usize::MAX], |claim, _| {
            order.push(claim);
            ControlFlow::Continue(())
        });
        order
    }

    #[test]
    fn fewest_pods_come_first_and_then_the_oldest_or_the_latest() {
        for (turns, expected) in [(Turns::Oldest, [3, 0, 1, 2]), (Turns::Latest, [3, 2, 0, 1])] {
            let mut by_count = ByCount::new(turns);
            (0..3).for_each(|claim| by_count.opened(claim));
            assert_eq!(order(&by_count), [0, 1, 2]);
            [1, 0, 2].into_iter().for_each(|claim| by_count.grew(claim, 1));
            by_count.opened(3);
            assert_eq!(order(&by_count), expected);
        }
    }

    #[test]
    fn chance_is_the_same_every_time() {
        let orders: Vec<Vec<usize>> = (0..20)
            .map(|number| {
                let mut by_count = ByCount::new(Turns::ByChance(number % 10));
                (0..8).for_each(|claim| by_count.opened(claim));
                order(&by_count)
            })
            .collect();
        assert_eq!(orders[..10], orders[10..]);
        assert_ne!(orders[0], orders[1]);
    }
}
