//! Packing planned nodes anew, by price.
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
//! they are, and so do those of pools whose limits are near.

use fixedbitset::FixedBitSet;
use rustc_hash::{FxBuildHasher, FxHashMap};
use smallvec::SmallVec;

use super::amounts::{Amounts, add, fits};
use super::classes::{ClassId, NeedId};
use super::intern::{Interner, KeyId, NONE, ReqId, SetId};
use super::prepare::Prepared;
use super::round::{Claim, Place, Round, merge_class};
use super::stock::ShapeId;
use super::topology::{GroupId, Kind};
use super::worth::{Machine, worth};
use crate::scheduling::resources::ResourceList;

/// Types that are tried for each new node.
const TRIES: usize = 8;
/// A new packing must cost less than this share of the old one to be worth the change.
const WORTHWHILE: f64 = 0.9999;
/// How much a pod that must spread over hosts is preferred over one that need not.
const PREFER_SPREAD: f64 = 1.5;
/// How much a pod that asks for what the node asks for already is preferred over any other.
const PREFER_ALIKE: f64 = 1.25;

/// Requirements on topology keys that must stay as they are; [`NONE`] where there is none.
type Pins = SmallVec<[(KeyId, ReqId); 2]>;
type StateId = u32;

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
    pods: Vec<u32>,
    /// How many nodes its strictest group of host names needs at least.
    spread: u32,
    worth: f64,
}

/// A node being filled.
struct Bin {
    state: StateId,
    requests: Amounts,
    /// Items by number of pods.
    content: Vec<(u32, u32)>,
    counts: SmallVec<[(GroupId, u32); 8]>,
    /// What pods on the node allow of a group: the most, counted.
    caps: SmallVec<[(GroupId, u32); 4]>,
    worth: f64,
}

/// The packing of one template's pods.
struct Packing<'w, 'a> {
    world: &'w mut Prepared<'a>,
    template: u32,
    states: indexmap::IndexSet<State, FxBuildHasher>,
    joined: FxHashMap<(StateId, StateId), Option<StateId>>,
    shapes: FxHashMap<StateId, ShapeId>,
    items: Vec<Item>,
    /// Items with pods left, by state and need.
    open: Vec<(StateId, Vec<(NeedId, Vec<u32>)>)>,
    weights: Vec<f64>,
}

impl Round<'_, '_> {
    /// Packs the planned nodes anew where that is cheaper.
    pub(super) fn improve(&mut self) {
        if self.claims.len() < 2 && self.claims.iter().all(|c| c.pods.len() < 2) {
            return;
        }
        let started = self.limits();
        for template in 0..self.world.stock.templates.len() as u32 {
            if self.limit_mask(template) != Some(0) {
                continue;
            }
            let (free, kept): (Vec<usize>, Vec<usize>) = (0..self.claims.len())
                .filter(|c| self.template_of(*c) == template)
                .partition(|c| self.movable(*c));
            if free.is_empty() {
                continue;
            }
            let old: f64 = free.iter().map(|c| self.price_of(*c)).sum();
            let Some(new) = self.pack(template, &free, old) else { continue };
            if self.within_limits(template, &kept, &new, started[template as usize].as_ref()) {
                self.exchange(&free, new);
            }
        }
    }

    fn template_of(&self, claim: usize) -> u32 {
        self.world.stock.shapes[self.claims[claim].shape as usize].template
    }

    pub(super) fn price_of(&mut self, claim: usize) -> f64 {
        let of = &self.claims[claim];
        self.world.stock.cheapest(of.shape, &of.requests, &mut self.world.interner)
    }

    /// Whether every pod of a claim may move.
    fn movable(&self, claim: usize) -> bool {
        let of = &self.claims[claim];
        let shape = &self.world.stock.shapes[of.shape as usize];
        of.ports.is_empty()
            && of.reserved.is_empty()
            && of.devices.is_none()
            && !of.min_values_relaxed
            && shape.min_values.is_empty()
            && shape.mask == 0
            && of.pods.iter().all(|pod| {
                let class = &self.world.classes.classes[self.placed_as[*pod as usize] as usize];
                let near = |group: GroupId| {
                    let group = self.world.topology.get(group);
                    group.kind == Kind::Affinity && group.key == self.world.interner.hostname
                };
                class.volumes.is_empty()
                    && class.host == NONE
                    && !class.says.iter().any(|s| near(s.group))
                    && !class.counted.iter().any(|g| near(*g))
            })
    }

    /// A new packing of these claims' pods that costs less than `old`, if one is found.
    fn pack(&mut self, template: u32, free: &[usize], old: f64) -> Option<Vec<Claim>> {
        let mut packing = Packing {
            template,
            states: indexmap::IndexSet::default(),
            joined: FxHashMap::default(),
            shapes: FxHashMap::default(),
            items: Vec::new(),
            open: Vec::new(),
            weights: Vec::new(),
            world: self.world,
        };
        let mut index: FxHashMap<(NeedId, ClassId, StateId), usize> = FxHashMap::default();
        for claim in free {
            let claim = &self.claims[*claim];
            let set = packing.world.stock.shapes[claim.shape as usize].set;
            for pod in &claim.pods {
                packing.add_pod(*pod, self.placed_as[*pod as usize], set, &mut index)?;
            }
        }
        packing.value_items()?;
        let bins = packing.fill_all(old)?;
        let price: f64 = bins.iter().map(|(_, price)| price).sum();
        if price >= old * WORTHWHILE {
            return None;
        }
        Some(bins.into_iter().map(|(bin, _)| packing.to_claim(bin, &self.rank)).collect())
    }

    /// Whether a pool's limits allow its claims, each charged with the largest type that it lists.
    fn within_limits(
        &mut self,
        template: u32,
        kept: &[usize],
        new: &[Claim],
        limits: Option<&ResourceList>,
    ) -> bool {
        let Some(limits) = limits else { return true };
        let shapes: Vec<(ShapeId, Amounts)> = kept
            .iter()
            .map(|c| &self.claims[*c])
            .chain(new)
            .map(|c| (c.shape, c.requests.clone()))
            .collect();
        let stock = &mut self.world.stock;
        limits.iter().all(|(name, limit)| {
            if name.as_str() == "nodes" {
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
        let mut gone = FixedBitSet::with_capacity(self.claims.len());
        free.iter().for_each(|c| gone.insert(*c));
        let claims = std::mem::take(&mut self.claims);
        self.claims = claims
            .into_iter()
            .enumerate()
            .filter(|(at, _)| !gone.contains(*at))
            .map(|(_, claim)| claim)
            .chain(new)
            .collect();
        for (at, claim) in self.claims.iter().enumerate() {
            for pod in &claim.pods {
                self.places[*pod as usize] = Place::Claim(at as u32);
            }
        }
    }
}

impl Packing<'_, '_> {
    /// Adds a pod that is on a claim with these requirements; nothing when it may not move.
    fn add_pod(
        &mut self,
        pod: u32,
        class: ClassId,
        set: SetId,
        index: &mut FxHashMap<(NeedId, ClassId, StateId), usize>,
    ) -> Option<()> {
        let world = &mut *self.world;
        let kind = world.waiting[pod as usize].kind;
        let need = world.classes.kinds[kind as usize].need;
        let pins = pins(world, class, set);
        let base = merge_class(
            world,
            class,
            self.template,
            world.stock.templates[self.template as usize].set,
        )?;
        let mut own = base;
        for (_, req) in pins.iter().filter(|(_, r)| *r != NONE) {
            own = world.interner.narrow(own, *req);
        }
        let state = self.states.insert_full(State { set: own, pins }).0 as StateId;
        let at = match index.get(&(need, class, state)) {
            Some(at) => *at,
            None => {
                let item = self.new_item(need, class, state);
                self.items.push(item);
                index.insert((need, class, state), self.items.len() - 1);
                self.items.len() - 1
            }
        };
        self.items[at].pods.push(pod);
        Some(())
    }

    fn new_item(&self, need: NeedId, class: ClassId, state: StateId) -> Item {
        let world = &*self.world;
        let of = &world.classes.classes[class as usize];
        let hostname = world.interner.hostname;
        let rules = of
            .says
            .iter()
            .filter(|s| s.host)
            .map(|s| {
                let group = world.topology.get(s.group);
                let anti = group.kind != Kind::Spread;
                let most = u32::try_from(group.max_skew).unwrap_or(u32::MAX);
                HostRule { group: s.group, most, anti }
            })
            .collect();
        let counted = of
            .counted
            .iter()
            .chain(&of.inverse)
            .copied()
            .filter(|g| world.topology.get(*g).key == hostname)
            .collect();
        Item { need, state, rules, counted, pods: Vec::new(), spread: 0, worth: 0.0 }
    }

    /// Works out what each item is worth and how many nodes it must spread over, and sorts items
    /// so that the hardest to place come first.
    fn value_items(&mut self) -> Option<()> {
        let mut by_group: FxHashMap<GroupId, u32> = FxHashMap::default();
        for item in &self.items {
            for rule in &item.rules {
                let share = (item.pods.len() as u32).div_ceil(rule.most.max(1));
                let nodes = if rule.anti { item.pods.len() as u32 } else { share };
                *by_group.entry(rule.group).or_insert(0) += nodes;
            }
        }
        let width = self.world.resources.len();
        let mut demand: FxHashMap<SetId, Amounts> = FxHashMap::default();
        let mut total = self.world.resources.zero();
        for item in &self.items {
            let amounts = &self.world.classes.needs[item.need as usize];
            let set = self.states[item.state as usize].set;
            let of_set = demand.entry(set).or_insert_with(|| self.world.resources.zero());
            for at in 0..width {
                of_set[at] += amounts[at] * item.pods.len() as i64;
                total[at] += amounts[at] * item.pods.len() as i64;
            }
        }
        let mut values: FxHashMap<SetId, Vec<f64>> = FxHashMap::default();
        for set in demand.keys().copied().collect::<Vec<_>>() {
            let prices = self.worth_of(set, &total);
            values.insert(set, prices);
        }
        for item in &mut self.items {
            let value = &values[&self.states[item.state as usize].set];
            let amounts = &self.world.classes.needs[item.need as usize];
            item.worth = dot(value, amounts).max(1e-12);
            item.spread = item.rules.iter().map(|r| by_group[&r.group]).max().unwrap_or(0);
        }
        self.weights =
            self.worth_of(self.world.stock.templates[self.template as usize].set, &total);
        let key = |item: &Item| {
            let pod = item.pods.iter().map(|p| &self.world.waiting[*p as usize].pod.key).min();
            (std::cmp::Reverse(item.spread), std::cmp::Reverse(item.worth.to_bits()), pod.cloned())
        };
        self.items.sort_by_cached_key(key);
        for at in 0..self.items.len() as u32 {
            let (state, need) = (self.items[at as usize].state, self.items[at as usize].need);
            let place = match self.open.iter().position(|(s, _)| *s == state) {
                Some(place) => place,
                None => {
                    self.open.push((state, Vec::new()));
                    self.open.len() - 1
                }
            };
            let needs = &mut self.open[place].1;
            match needs.iter_mut().find(|(n, _)| *n == need) {
                Some((_, items)) => items.push(at),
                None => needs.push((need, vec![at])),
            }
        }
        Some(())
    }

    /// What resources are worth to pods with these requirements.
    fn worth_of(&mut self, set: SetId, demand: &[i64]) -> Vec<f64> {
        let world = &mut *self.world;
        let shape = world.stock.shape(self.template, set, 0, &mut world.interner);
        let mould = &world.stock.templates[self.template as usize];
        let catalog = mould.catalog;
        let prices = world.stock.catalogs[catalog].prices(set, &mut world.interner);
        let width = demand.len();
        let machines: Vec<Machine<'_>> = world.stock.shapes[shape as usize]
            .rows
            .ones()
            .map(|row| Machine {
                amounts: &mould.net[row * width..(row + 1) * width],
                price: prices[row],
            })
            .collect();
        worth(demand, &machines)
    }

    fn shape(&mut self, state: StateId) -> ShapeId {
        if let Some(shape) = self.shapes.get(&state) {
            return *shape;
        }
        let set = self.states[state as usize].set;
        let shape = self.world.stock.shape(self.template, set, 0, &mut self.world.interner);
        self.shapes.insert(state, shape);
        shape
    }

    /// What a node becomes with an item, unless their requirements do not go together.
    fn join(&mut self, bin: StateId, item: StateId) -> Option<StateId> {
        if bin == item {
            return Some(bin);
        }
        if let Some(known) = self.joined.get(&(bin, item)) {
            return *known;
        }
        let (a, b) = (self.states[bin as usize].clone(), self.states[item as usize].clone());
        let joined = joined(&mut self.world.interner, &a, &b)
            .map(|state| self.states.insert_full(state).0 as StateId);
        self.joined.insert((bin, item), joined);
        joined
    }

    /// Fills nodes until no item is left; nothing when that cannot become cheaper than `limit`.
    fn fill_all(&mut self, limit: f64) -> Option<Vec<(Bin, f64)>> {
        let total: f64 = self.items.iter().map(|i| i.worth * i.pods.len() as f64).sum();
        let spread = self.items.first().map_or(0, |i| i.spread).max(1);
        // When pods must spread over many nodes, the others are spread over these nodes as well.
        let share = total / f64::from(spread);
        let mut left: Vec<u32> = self.items.iter().map(|i| i.pods.len() as u32).collect();
        let mut bins = Vec::new();
        let mut price = 0.0;
        let mut seed = 0;
        while seed < self.items.len() {
            if left[seed] == 0 {
                seed += 1;
                continue;
            }
            let most = if self.items[seed].spread > 1 { share * 1.3 } else { f64::INFINITY };
            let (bin, cost) = self.best_bin(seed, &mut left, most)?;
            for (item, count) in &bin.content {
                left[*item as usize] -= count;
            }
            self.forget_empty(&bin, &left);
            price += cost;
            if price > limit {
                return None;
            }
            bins.push((bin, cost));
        }
        Some(bins)
    }

    /// Takes items without pods left out of the lists that are searched.
    fn forget_empty(&mut self, bin: &Bin, left: &[u32]) {
        for (item, _) in &bin.content {
            if left[*item as usize] > 0 {
                continue;
            }
            let (state, need) = (self.items[*item as usize].state, self.items[*item as usize].need);
            if let Some((_, needs)) = self.open.iter_mut().find(|(s, _)| *s == state) {
                if let Some((_, items)) = needs.iter_mut().find(|(n, _)| *n == need) {
                    items.retain(|i| i != item);
                }
                needs.retain(|(_, items)| !items.is_empty());
            }
        }
        self.open.retain(|(_, needs)| !needs.is_empty());
    }

    /// The best filled node for a seed: the type whose fill is worth most for its price.
    fn best_bin(&mut self, seed: usize, left: &mut [u32], most: f64) -> Option<(Bin, f64)> {
        let state = self.items[seed].state;
        let shape = self.shape(state);
        let set = self.states[state as usize].set;
        let catalog = self.world.stock.templates[self.template as usize].catalog;
        let prices = self.world.stock.catalogs[catalog].prices(set, &mut self.world.interner);
        let rows = self.candidates(seed, shape, &prices, most);
        let mut best: Option<(f64, Bin, f64)> = None;
        for row in rows {
            let bin = self.fill(seed, row, prices[row], left);
            let shape = self.shape(bin.state);
            let cost = self.world.stock.cheapest(shape, &bin.requests, &mut self.world.interner);
            // Fewer, larger nodes are taken when they cost about the same.
            let score = bin.worth / cost * (1.0 + 0.002 * (1.0 + bin.worth).ln());
            if best.as_ref().is_none_or(|(b, _, _)| score > *b) {
                best = Some((score, bin, cost));
            }
        }
        best.map(|(_, bin, cost)| (bin, cost))
    }

    /// Rows to try for a seed: those that cost least for what they hold, of several sizes.
    fn candidates(&self, seed: usize, shape: ShapeId, prices: &[f64], most: f64) -> Vec<usize> {
        let world = &*self.world;
        let width = world.resources.len();
        let need = &world.classes.needs[self.items[seed].need as usize];
        let net = &world.stock.templates[self.template as usize].net;
        let mut list: Vec<(f64, f64, usize)> = world.stock.shapes[shape as usize]
            .rows
            .ones()
            .filter_map(|row| {
                let amounts = &net[row * width..(row + 1) * width];
                let size = dot(&self.weights, amounts).max(1e-12);
                fits(need, amounts).then_some((prices[row] / size, size, row))
            })
            .collect();
        list.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)).then(a.2.cmp(&b.2)));
        let mut rows: Vec<usize> = Vec::with_capacity(TRIES);
        let mut take = |limit: f64, count: usize| {
            let more = list.iter().filter(|(_, size, _)| *size <= limit).map(|(_, _, row)| *row);
            let new: Vec<usize> = more.filter(|r| !rows.contains(r)).take(count).collect();
            rows.extend(new);
        };
        take(most, TRIES / 2);
        take(most.min(list.first().map_or(most, |l| l.1)) / 2.0, TRIES / 4);
        take(most.min(list.first().map_or(most, |l| l.1)) / 6.0, TRIES / 4);
        if rows.is_empty() {
            let smallest = list.iter().min_by(|a, b| a.1.total_cmp(&b.1));
            rows.extend(smallest.map(|(_, _, row)| *row));
        }
        rows
    }

    /// Fills a node of a row, the seed first, then what uses best what is left.
    fn fill(&mut self, seed: usize, row: usize, price: f64, left: &mut [u32]) -> Bin {
        let width = self.world.resources.len();
        let total: Amounts = self.world.stock.templates[self.template as usize].net
            [row * width..(row + 1) * width]
            .into();
        let scale: SmallVec<[f64; 6]> =
            total.iter().map(|t| if *t > 0 { 1.0 / *t as f64 } else { 0.0 }).collect();
        let mut bin = Bin {
            state: self.items[seed].state,
            requests: self.world.resources.zero(),
            content: Vec::new(),
            counts: SmallVec::new(),
            caps: SmallVec::new(),
            worth: 0.0,
        };
        self.put(&mut bin, seed, left);
        while let Some(next) = self.next_item(&bin, row, price, &total, &scale, left) {
            let (item, state) = next;
            bin.state = state;
            self.put(&mut bin, item, left);
        }
        for (item, count) in &bin.content {
            left[*item as usize] += count;
        }
        bin
    }

    fn put(&self, bin: &mut Bin, item: usize, left: &mut [u32]) {
        left[item] -= 1;
        let of = &self.items[item];
        add(&mut bin.requests, &self.world.classes.needs[of.need as usize]);
        bin.worth += of.worth;
        match bin.content.iter_mut().find(|(i, _)| *i == item as u32) {
            Some((_, count)) => *count += 1,
            None => bin.content.push((item as u32, 1)),
        }
        for group in &of.counted {
            match bin.counts.iter_mut().find(|(g, _)| g == group) {
                Some((_, count)) => *count += 1,
                None => bin.counts.push((*group, 1)),
            }
        }
        for rule in of.rules.iter().filter(|r| !r.anti) {
            if !bin.caps.iter().any(|(g, _)| *g == rule.group) {
                bin.caps.push((rule.group, rule.most));
            }
        }
    }

    /// Whether groups of host names let an item onto a node, and those on it let it in.
    fn hosts_allow(&self, bin: &Bin, item: &Item) -> bool {
        let count = |group: GroupId| {
            bin.counts.iter().find(|(g, _)| *g == group).map_or(0, |(_, count)| *count)
        };
        item.rules.iter().all(|rule| {
            let here = count(rule.group);
            if rule.anti {
                here == 0
            } else {
                here + u32::from(item.counted.contains(&rule.group)) <= rule.most
            }
        }) && bin
            .caps
            .iter()
            .all(|(group, most)| !item.counted.contains(group) || count(*group) < *most)
    }

    /// The item that uses best what is left of a node without changing its price.
    fn next_item(
        &mut self,
        bin: &Bin,
        row: usize,
        price: f64,
        total: &[i64],
        scale: &[f64],
        left: &[u32],
    ) -> Option<(usize, StateId)> {
        let slack: SmallVec<[f64; 6]> = total
            .iter()
            .zip(&bin.requests)
            .zip(scale)
            .map(|((t, r), s)| (t - r) as f64 * s)
            .collect();
        let room: Amounts = total.iter().zip(&bin.requests).map(|(t, r)| t - r).collect();
        let mut best: Option<(f64, usize, StateId)> = None;
        for place in 0..self.open.len() {
            let state = self.open[place].0;
            let Some(joined) = self.join(bin.state, state) else { continue };
            if joined != bin.state && !self.keeps_price(joined, row, price) {
                continue;
            }
            let alike = if state == bin.state { PREFER_ALIKE } else { 1.0 };
            for (need, items) in &self.open[place].1 {
                let amounts = &self.world.classes.needs[*need as usize];
                if !fits(amounts, &room) {
                    continue;
                }
                let use_of: f64 = amounts
                    .iter()
                    .zip(scale)
                    .zip(&slack)
                    .zip(&self.weights)
                    .map(|(((n, s), l), w)| if *w > 0.0 { *n as f64 * s * l } else { 0.0 })
                    .sum();
                let score = use_of * alike;
                if best.as_ref().is_some_and(|(b, _, _)| score * PREFER_SPREAD <= *b) {
                    continue;
                }
                let found = items
                    .iter()
                    .map(|i| *i as usize)
                    .find(|item| left[*item] > 0 && self.hosts_allow(bin, &self.items[*item]));
                let Some(item) = found else { continue };
                let must_spread = self.items[item].spread > 1;
                let score = if must_spread { score * PREFER_SPREAD } else { score };
                if best.as_ref().is_none_or(|(b, _, _)| score > *b) {
                    best = Some((score, item, joined));
                }
            }
        }
        best.map(|(_, item, state)| (item, state))
    }

    /// Whether a row still costs the same with other requirements.
    fn keeps_price(&mut self, state: StateId, row: usize, price: f64) -> bool {
        let shape = self.shape(state);
        if !self.world.stock.shapes[shape as usize].rows.contains(row) {
            return false;
        }
        let set = self.states[state as usize].set;
        let catalog = self.world.stock.templates[self.template as usize].catalog;
        let prices = self.world.stock.catalogs[catalog].prices(set, &mut self.world.interner);
        prices[row] <= price
    }

    fn to_claim(&mut self, bin: Bin, rank: &[u32]) -> Claim {
        let shape = self.shape(bin.state);
        let mut pods = Vec::new();
        for (item, count) in &bin.content {
            let from = &mut self.items[*item as usize].pods;
            pods.extend(from.split_off(from.len() - *count as usize));
        }
        pods.sort_unstable_by_key(|pod| rank[*pod as usize]);
        Claim {
            shape,
            requests: bin.requests,
            pods,
            ports: Vec::new(),
            min_values_relaxed: false,
            reserved: Vec::new(),
            devices: None,
        }
    }
}

fn dot(worth: &[f64], amounts: &[i64]) -> f64 {
    worth.iter().zip(amounts).map(|(w, a)| w * *a as f64).sum()
}

/// Both states together, unless a requirement is left without value or a pin would move.
fn joined(interner: &mut Interner, a: &State, b: &State) -> Option<State> {
    if !interner.compatible(a.set, b.set, true) {
        return None;
    }
    let set = interner.merge(a.set, b.set);
    let mut pins = a.pins.clone();
    for pin in &b.pins {
        if !pins.contains(pin) {
            pins.push(*pin);
        }
    }
    pins.sort_unstable();
    let held = pins.iter().all(|(key, req)| interner.get(set, *key).unwrap_or(NONE) == *req);
    held.then_some(State { set, pins })
}

/// What a pod's node must keep: its requirement on every topology key that matters to the pod, and
/// on every key that decides whether the node counts for a group that counts the pod.
fn pins(world: &Prepared<'_>, class: ClassId, set: SetId) -> Pins {
    let of = &world.classes.classes[class as usize];
    let hostname = world.interner.hostname;
    let mut keys: SmallVec<[KeyId; 4]> = SmallVec::new();
    let groups = of.says.iter().map(|s| s.group).chain(of.counted.iter().copied());
    for id in groups.chain(of.inverse.iter().copied()) {
        let group = world.topology.get(id);
        if group.key != hostname {
            keys.push(group.key);
        }
        let filter = world.topology.filters.get_index(group.filter as usize);
        for (term, _) in filter.iter().flat_map(|f| &f.terms) {
            keys.extend(world.interner.set(*term).iter().map(|(key, _)| *key));
        }
    }
    keys.sort_unstable();
    keys.dedup();
    keys.iter().map(|key| (*key, world.interner.get(set, *key).unwrap_or(NONE))).collect()
}
