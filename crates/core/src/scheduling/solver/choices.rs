//! Choices that the rules leave open, and the search among them for few pods.
//!
//! Karpenter makes these choices by chance or by an order that has no meaning: Go's maps come in
//! another order every time. Each answer is right; some are cheaper, and where limits are near some
//! place more pods. So for few pods the round is played with several, the same ones every time, and
//! the best outcome is kept.

use std::cmp::Reverse;

use super::prepare::Prepared;
use super::round::Round;

/// How a round decides what the rules leave open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choices {
    pub(super) ties: Ties,
    pub(super) turns: Turns,
    /// A pod stays off a planned node whose price it would raise by more than a node of its own costs.
    pub(super) careful: bool,
    /// Pods are counted again when a later pod settles their node's zone; upstream does not.
    pub(super) recount: bool,
    /// The first of pods that must share a host looks for one with room for all of them.
    pub(super) roomy: bool,
    /// Pods that must be spread over hosts, or keep to or from others there, come before the rest.
    pub(super) owners_first: bool,
    /// Nodes are packed again beginning with pods whose zone (or other domain) is settled.
    pub(super) settled_first: bool,
    /// How one of several pools of equal weight is chosen.
    pub(super) pools: Pools,
}

/// Which of several pools of equal weight launches a node. Upstream takes the last by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pools {
    /// The one whose node costs least for the pod at hand.
    ByNode,
    /// The one whose nodes cost least for what they hold.
    ByUnit,
}

/// Which of several equally good domains is taken. Upstream takes any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ties {
    /// The one where nodes are cheapest.
    ByPrice,
    /// The first by name.
    ByName,
    /// The last by name.
    ByNameReversed,
    /// Some order of the names, a different one for each number.
    Shuffled(u32),
    /// Some order of the names, a different one for each number and each pod.
    ByChance(u32),
}

/// Which of several planned nodes with equally many pods is tried first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turns {
    /// The one that was planned first.
    Oldest,
    /// The one that was last to get as many pods, as in upstream's list, which is sorted in place:
    /// a node that gets a pod comes before those that have as many already, a new one after them.
    Latest,
    /// Some order, a different one for each number and each pod.
    ByChance(u32),
}

impl Default for Choices {
    fn default() -> Self {
        Self {
            ties: Ties::ByPrice,
            turns: Turns::Oldest,
            careful: false,
            recount: false,
            roomy: false,
            owners_first: false,
            settled_first: false,
            pools: Pools::ByNode,
        }
    }
}

impl Choices {
    /// The choices of the try with a number.
    ///
    /// One in four is as upstream, but for what is left to chance; the others mix all there is.
    fn of_try(number: u32) -> Self {
        let plain = Self::default();
        let mixed = mix(number, 0x51ED);
        let bit = |at: u32| mixed >> at & 1 == 1;
        match number {
            0 => Self { careful: true, pools: Pools::ByUnit, ..plain },
            1 => Self { ties: Ties::ByName, turns: Turns::Latest, ..plain },
            2 => Self { ties: Ties::ByNameReversed, careful: true, roomy: true, ..plain },
            3 => Self { turns: Turns::Latest, careful: true, settled_first: true, ..plain },
            4 => Self { owners_first: true, careful: true, roomy: true, ..plain },
            n if n % 4 == 0 => Self {
                ties: Ties::ByChance(n),
                turns: Turns::Latest,
                settled_first: bit(4),
                ..plain
            },
            n => Self {
                ties: if bit(0) { Ties::Shuffled(n) } else { Ties::ByChance(n) },
                turns: match mixed >> 16 & 3 {
                    0 => Turns::Oldest,
                    1 => Turns::ByChance(n),
                    _ => Turns::Latest,
                },
                careful: mixed >> 12 & 3 != 0,
                recount: bit(1) && bit(2),
                roomy: bit(3),
                owners_first: bit(6) && bit(7),
                settled_first: bit(4),
                pools: if bit(5) { Pools::ByUnit } else { Pools::ByNode },
            },
        }
    }
}

impl Ties {
    /// Where a domain comes whose name has this position, the lower, the better; nothing where
    /// names do not matter. `moment` grows with every pod that is placed.
    pub(super) fn order(self, moment: u64, position: impl FnOnce() -> usize) -> Option<f64> {
        let position = || position() as u32;
        Some(match self {
            Self::ByPrice => return None,
            Self::ByName => f64::from(position()),
            Self::ByNameReversed => -f64::from(position()),
            Self::Shuffled(number) => f64::from(mix(position(), number)),
            Self::ByChance(number) => f64::from(mix(position(), mix(number, moment as u32))),
        })
    }
}

/// A number that depends on two others without any pattern that matters (Fibonacci hashing).
pub(super) fn mix(one: u32, other: u32) -> u32 {
    let mixed = (one.wrapping_add(1).wrapping_mul(0x9E37_79B1)
        ^ other.wrapping_add(1).wrapping_mul(0x85EB_CA6B))
    .wrapping_mul(0xC2B2_AE35);
    (mixed ^ mixed >> 15).wrapping_mul(0x9E37_79B1) ^ mixed >> 13
}

/// What a round came to: of two, the lesser is the better one.
///
/// The fields are compared in their order, so that a price never beats a rule or a wish.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Worth {
    /// Pods without a place.
    pub(super) failed: usize,
    /// Pods by the weight of their node's pool, heaviest first; nodes that exist come with these.
    pub(super) by_weight: Vec<Reverse<usize>>,
    /// Preferences that pods with a place were asked to give up.
    pub(super) given_up: u32,
    /// The price of the planned nodes per hour, in billionths.
    pub(super) price: u64,
}

/// Whether there may be anything to try.
pub(super) fn worth_a_search(world: &Prepared<'_>) -> bool {
    world.snapshot.options.pack_by_price && world.waiting.len() <= FEW_PODS
}

/// How many choices are tried, given what came of the plain ones.
pub(super) fn tries(plain: &Round<'_, '_>) -> u32 {
    let pods = plain.places.len();
    let new = !plain.world.plan.claims.is_empty() || !plain.failed.is_empty();
    if new && plain.reached_all() {
        (MOST_WORK / pods.max(1)).clamp(LEAST_TRIES, MOST_TRIES) as u32
    } else {
        0
    }
}

/// The choices to begin with: of many pods the first says little about the node that it opens.
pub(super) fn plain(pods: usize) -> Choices {
    let pools = if pods > FEW_PODS { Pools::ByUnit } else { Pools::ByNode };
    Choices { pools, ..Choices::default() }
}

/// The choices with the best outcome, given what came of the plain ones.
pub(super) fn search(
    world: &mut Prepared<'_>,
    tries: u32,
    plain: Worth,
    go_on: &dyn Fn(usize) -> bool,
) -> Choices {
    let mut best = (plain, world.choices);
    let mut last = 0;
    let pods = world.waiting.len().max(1);
    let patience = (PATIENT_WORK / pods).clamp(LEAST_PATIENCE, MOST_PATIENCE) as u32;
    for number in 0..tries {
        if number > patience + 2 * last {
            break;
        }
        let choices = Choices::of_try(number);
        let worth = play(world, choices, go_on).worth();
        if worth < best.0 {
            best = (worth, choices);
            last = number;
        }
    }
    best.1
}

/// A round that is played to its end.
pub(super) fn play<'p, 'a>(
    world: &'p mut Prepared<'a>,
    choices: Choices,
    go_on: &dyn Fn(usize) -> bool,
) -> Round<'p, 'a> {
    world.choices = choices;
    let mut round = Round::new(world);
    round.run(go_on);
    round
}

/// Up to this many pods, choices are tried.
const FEW_PODS: usize = 500;
/// How many: so many that this many pods are placed in all, within these bounds.
const MOST_WORK: usize = 20_000;
const LEAST_TRIES: usize = 48;
const MOST_TRIES: usize = 400;
/// Tries in a row without a better outcome that are the end, besides twice as many as the best one
/// so far took: so many that this many pods are placed by them, within these bounds.
const PATIENT_WORK: usize = 4_500;
const LEAST_PATIENCE: usize = 24;
const MOST_PATIENCE: usize = 96;
