//! Packing planned nodes again, by price.
//!
//! The loop fills each planned node for as long as any type holds it, whatever that costs, as
//! upstream does. Afterwards the pods of a pool's planned nodes are packed again: nodes are made one
//! by one, each of the type whose fill is worth most for its price, the worth of a pod being what
//! the resources that it needs cost in the best mix of types. A pool's new packing is taken only
//! when it costs less; so the outcome never costs more than the loop's.
//!
//! Nothing that a pod was promised changes. It stays in its pool. For every topology key on which a
//! group counts it or has a say about it, its new node has the very requirement that its old one
//! had, so that all counts stay what they are. Groups of host names are checked node by node, and
//! for the pods that are on it already as well as for the one that comes. Planned nodes for which
//! that is not enough (host ports, volumes, reservations, minValues, affinity to a host) stay as
//! they are, and so do those of pools whose limits are near; [`moves`] looks at these too, one pod
//! after the other.

mod fill;
mod items;
mod moves;

use std::cmp::Reverse;

use fixedbitset::FixedBitSet;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::amounts::Amounts;
use super::choices::Worth;
use super::prepare::Prepared;
use super::round::{Claim, Place, Round};
use super::stock::{ALL, NODES};
use super::topology::Kind;
use crate::scheduling::resources::ResourceList;
use crate::scheduling::solver::ids::{
    ClassId, GroupId, Interned, ItemId, KeyId, List, NeedId, PodId, ReqId, SetId, ShapeId, StateId,
    TemplateId,
};

/// Types that are tried for each new node.
const TRIES: usize = 8;
/// A new packing must cost less than this share of the old one to be worth the change.
const WORTHWHILE: f64 = 0.9999;
/// How much a pod that must spread over hosts is preferred over one that need not.
const PREFER_SPREAD: f64 = 1.5;
/// How much a pod that asks for what the node asks for already is preferred over any other.
const PREFER_ALIKE: f64 = 1.25;

/// Requirements on topology keys that must stay as they are; [`ReqId::NONE`] where there is none.
type Pins = SmallVec<[(KeyId, ReqId); 2]>;

/// Items by what each of their pods needs.
type ByNeed = Vec<(NeedId, Vec<ItemId>)>;

/// What a new node is so far, or what an item asks of it.
#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    set: SetId,
    pins: Pins,
}

/// A group of host names that has a say about an item.
#[derive(Clone, Copy)]
struct HostRule {
    group: GroupId,
    /// How many counted pods a host may have with this one, or none at all before it.
    most: u32,
    anti: bool,
}

/// Pods that may be exchanged for each other.
struct Item {
    need: NeedId,
    state: StateId,
    rules: SmallVec<[HostRule; 2]>,
    /// Groups of host names that count it, inverse ones that it owns included.
    counted: SmallVec<[GroupId; 4]>,
    pods: Vec<PodId>,
    /// How many nodes its strictest group of host names needs at least.
    spread: u32,
    worth: f64,
}

/// A node being filled.
struct Bin {
    state: StateId,
    requests: Amounts,
    /// Items by number of pods.
    content: Vec<(ItemId, u32)>,
    counts: SmallVec<[(GroupId, u32); 8]>,
    /// What pods on the node allow of a group: the most, counted.
    caps: SmallVec<[(GroupId, u32); 4]>,
    worth: f64,
}

/// The packing of one template's pods.
struct Packing<'w, 'a> {
    world: &'w mut Prepared<'a>,
    template: TemplateId,
    states: Interned<StateId, State>,
    joined: FxHashMap<(StateId, StateId), Option<StateId>>,
    shapes: FxHashMap<StateId, ShapeId>,
    items: List<ItemId, Item>,
    /// Items with pods left, by state and need.
    open: Vec<(StateId, ByNeed)>,
    weights: Vec<f64>,
}

impl Round<'_, '_> {
    /// What the round comes to once its planned nodes are packed again.
    pub(super) fn worth(mut self) -> Worth {
        self.record_devices();
        self.improve();
        let price: f64 = (0..self.world.plan.claims.len()).map(|claim| self.price_of(claim)).sum();
        Worth {
            failed: self.failed.len(),
            by_weight: self.pods_by_weight(),
            given_up: self.given_up(),
            // Whole numbers, so that sums in another order compare equal.
            price: (price * 1e9).round() as u64,
        }
    }

    /// Pods with a place by the weight of their node's pool, heaviest first.
    fn pods_by_weight(&self) -> Vec<Reverse<usize>> {
        // Templates are sorted by weight.
        let mut weights: Vec<i32> = self.world.stock.templates.iter().map(|t| t.weight).collect();
        weights.dedup();
        let mut counts = vec![Reverse(0); weights.len().max(1)];
        // A node that exists is better than any that is launched, as the loop has it.
        counts[0].0 += self.world.plan.placed_since(self.mark).count();
        for (at, claim) in self.world.plan.claims.iter().enumerate() {
            let weight = self.world.stock.templates[self.template_of(at)].weight;
            if let Some(level) = weights.iter().position(|w| *w == weight) {
                counts[level].0 += claim.pods.len();
            }
        }
        counts
    }

    /// How many preferences the pods with a place were asked to give up.
    fn given_up(&self) -> u32 {
        let placed = self.places.iter().zip(&self.placed_as).filter(|(p, _)| **p != Place::Nowhere);
        placed.map(|(_, class)| self.world.classes.classes[*class].given_up).sum()
    }

    /// Packs the planned nodes again where that is cheaper.
    pub(super) fn improve(&mut self) {
        if self.world.plan.claims.len() < 2
            && self.world.plan.claims.iter().all(|c| c.pods.len() < 2)
        {
            return;
        }
        let started = self.limits.clone();
        for template in self.world.stock.templates.ids() {
            // Close to a limit the order of the pods decides which of them get a place; that is not
            // changed for a price.
            if self.limited_rows(template) != Some(ALL) {
                continue;
            }
            let (free, kept): (Vec<usize>, Vec<usize>) = (0..self.world.plan.claims.len())
                .filter(|c| self.template_of(*c) == template)
                .partition(|c| self.movable(*c));
            if free.is_empty() {
                continue;
            }
            let old: f64 = free.iter().map(|c| self.price_of(*c)).sum();
            let Some(new) = self.pack(template, &free, old) else { continue };
            if self.within_limits(template, &kept, &new, started[template].as_ref()) {
                self.exchange(&free, new);
            }
        }
    }

    fn template_of(&self, claim: usize) -> TemplateId {
        self.world.stock.shapes[self.world.plan.claims[claim].shape].template
    }

    pub(super) fn price_of(&mut self, claim: usize) -> f64 {
        let of = &self.world.plan.claims[claim];
        self.world.stock.cheapest(of.shape, &of.requests, &mut self.world.interner)
    }

    /// Whether every pod of a claim may move.
    fn movable(&self, claim: usize) -> bool {
        let of = &self.world.plan.claims[claim];
        let shape = &self.world.stock.shapes[of.shape];
        let bound = |pod: &PodId| {
            let class = &self.world.classes.classes[self.placed_as[*pod]];
            !class.volumes.is_empty() || self.must_stay(*pod)
        };
        self.may_change(claim)
            && of.ports.is_empty()
            && shape.min_values.is_empty()
            // A mask is what limits or devices left when the node was planned, and may not hold for
            // other pods.
            && shape.mask == ALL
            && !of.pods.iter().any(bound)
    }

    /// Whether pods may come to a node and go.
    fn may_change(&self, claim: usize) -> bool {
        let of = &self.world.plan.claims[claim];
        // What is held was granted for these pods, and would have to be granted again.
        of.reserved.is_empty() && of.devices.is_none() && !of.min_values_relaxed
    }

    /// Whether a pod is bound to the host that it is on.
    fn must_stay(&self, pod: PodId) -> bool {
        let class = &self.world.classes.classes[self.placed_as[pod]];
        let near = |group: GroupId| {
            let group = self.world.topology.get(group);
            group.kind == Kind::Affinity && group.key == self.world.interner.hostname
        };
        !class.host.is_none()
            || class.rules.iter().any(|s| near(s.group))
            || class.counted.iter().any(|g| near(*g))
    }

    /// A new packing of these claims' pods that costs less than `old`, if one is found.
    fn pack(&mut self, template: TemplateId, free: &[usize], old: f64) -> Option<Vec<Claim>> {
        let mut packing = Packing {
            template,
            states: Interned::default(),
            joined: FxHashMap::default(),
            shapes: FxHashMap::default(),
            items: List::default(),
            open: Vec::new(),
            weights: Vec::new(),
            world: self.world,
        };
        let mut index: FxHashMap<(NeedId, ClassId, StateId), ItemId> = FxHashMap::default();
        for claim in free {
            let claim = &packing.world.plan.claims[*claim];
            let set = packing.world.stock.shapes[claim.shape].set;
            for pod in &claim.pods.clone() {
                packing.add_pod(*pod, self.placed_as[*pod], set, &mut index)?;
            }
        }
        packing.value_items()?;
        let bins = packing.fill_all(old)?;
        let price: f64 = bins.iter().map(|(_, price)| price).sum();
        // Prices are sums of floats: a saving below their noise would change plans for nothing.
        if price >= old * WORTHWHILE {
            return None;
        }
        Some(bins.into_iter().map(|(bin, _)| packing.take_out(bin, &self.rank)).collect())
    }

    /// Whether a pool's limits allow its claims, each charged with the largest type that it lists.
    fn within_limits(
        &mut self,
        template: TemplateId,
        kept: &[usize],
        new: &[Claim],
        limits: Option<&ResourceList>,
    ) -> bool {
        let Some(limits) = limits else { return true };
        let shapes: Vec<(ShapeId, Amounts)> = kept
            .iter()
            .map(|c| &self.world.plan.claims[*c])
            .chain(new)
            .map(|c| (c.shape, c.requests.clone()))
            .collect();
        let stock = &mut self.world.stock;
        limits.iter().all(|(name, limit)| {
            if name.as_str() == NODES {
                return i64::try_from(shapes.len()).is_ok_and(|n| n <= limit);
            }
            let most = stock.most(template, name);
            // The quick answer first: the largest type of all, as often as there are claims.
            if most.saturating_mul(shapes.len() as i64) <= limit {
                return true;
            }
            let capacity = stock.catalog(template).capacity(name);
            let charged: i64 = shapes
                .iter()
                .map(|(shape, requests)| {
                    let rows = stock.rows_for(*shape, requests);
                    rows.ones().map(|row| capacity[row]).max().unwrap_or(0)
                })
                .sum();
            charged <= limit
        })
    }

    /// Puts new claims in the place of old ones.
    fn exchange(&mut self, free: &[usize], new: Vec<Claim>) {
        let mut gone = FixedBitSet::with_capacity(self.world.plan.claims.len());
        free.iter().for_each(|c| gone.insert(*c));
        let claims = self.world.plan.claims_mut();
        *claims = std::mem::take(claims)
            .into_iter()
            .enumerate()
            .filter(|(at, _)| !gone.contains(*at))
            .map(|(_, claim)| claim)
            .chain(new)
            .collect();
        self.renumber();
    }

    /// Updates the pods to the numbers that their planned nodes have now.
    fn renumber(&mut self) {
        for (at, claim) in self.world.plan.claims.iter().enumerate() {
            for pod in &claim.pods {
                self.places[*pod] = Place::Claim(at as u32);
            }
        }
    }
}

fn dot(worth: &[f64], amounts: &[i64]) -> f64 {
    worth.iter().zip(amounts).map(|(w, a)| w * *a as f64).sum()
}
