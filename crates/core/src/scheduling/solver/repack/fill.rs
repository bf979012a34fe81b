//! Filling nodes, one by one, each of the type whose fill is worth most for its price.

use smallvec::SmallVec;

use super::{Bin, Item, PREFER_ALIKE, PREFER_SPREAD, Packing, TRIES, dot};
use crate::scheduling::solver::amounts::{Amounts, add, fits};
use crate::scheduling::solver::ids::{GroupId, ItemId, List, PodId, ShapeId, StateId};
use crate::scheduling::solver::round::Claim;

impl Packing<'_, '_> {
    /// Fills nodes until no item is left; nothing when that cannot become cheaper than `limit`.
    pub(super) fn fill_all(&mut self, limit: f64) -> Option<Vec<(Bin, f64)>> {
        let total: f64 = self.items.iter().map(|i| i.worth * i.pods.len() as f64).sum();
        let spread = self.items.iter().next().map_or(0, |i| i.spread).max(1);
        // When pods must spread over many nodes, the others are spread over these nodes as well.
        let share = total / f64::from(spread);
        let mut left: List<ItemId, u32> = self.items.iter().map(|i| i.pods.len() as u32).collect();
        let mut bins = Vec::new();
        let mut price = 0.0;
        let mut seeds = self.items.ids().peekable();
        while let Some(seed) = seeds.peek().copied() {
            if left[seed] == 0 {
                seeds.next();
                continue;
            }
            let most = if self.items[seed].spread > 1 { share * 1.3 } else { f64::INFINITY };
            let (bin, cost) = self.best_bin(seed, &mut left, most)?;
            for (item, count) in &bin.content {
                left[*item] -= count;
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
    fn forget_empty(&mut self, bin: &Bin, left: &List<ItemId, u32>) {
        for (item, _) in &bin.content {
            if left[*item] > 0 {
                continue;
            }
            let (state, need) = (self.items[*item].state, self.items[*item].need);
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
    fn best_bin(
        &mut self,
        seed: ItemId,
        left: &mut List<ItemId, u32>,
        most: f64,
    ) -> Option<(Bin, f64)> {
        let state = self.items[seed].state;
        let shape = self.shape(state);
        let set = self.states[state].set;
        let catalog = self.world.stock.templates[self.template].catalog;
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
    fn candidates(&self, seed: ItemId, shape: ShapeId, prices: &[f64], most: f64) -> Vec<usize> {
        let world = &*self.world;
        let width = world.resources.len();
        let need = &world.classes.needs[self.items[seed].need];
        let net = &world.stock.templates[self.template].net;
        let mut list: Vec<(f64, f64, usize)> = world.stock.shapes[shape]
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
    fn fill(&mut self, seed: ItemId, row: usize, price: f64, left: &mut List<ItemId, u32>) -> Bin {
        let width = self.world.resources.len();
        let total: Amounts =
            self.world.stock.templates[self.template].net[row * width..(row + 1) * width].into();
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
            left[*item] += count;
        }
        bin
    }

    fn put(&self, bin: &mut Bin, item: ItemId, left: &mut List<ItemId, u32>) {
        left[item] -= 1;
        let of = &self.items[item];
        add(&mut bin.requests, &self.world.classes.needs[of.need]);
        bin.worth += of.worth;
        match bin.content.iter_mut().find(|(i, _)| *i == item) {
            Some((_, count)) => *count += 1,
            None => bin.content.push((item, 1)),
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
        left: &List<ItemId, u32>,
    ) -> Option<(ItemId, StateId)> {
        let slack: SmallVec<[f64; 6]> = total
            .iter()
            .zip(&bin.requests)
            .zip(scale)
            .map(|((t, r), s)| (t - r) as f64 * s)
            .collect();
        let room: Amounts = total.iter().zip(&bin.requests).map(|(t, r)| t - r).collect();
        let mut best: Option<(f64, ItemId, StateId)> = None;
        for place in 0..self.open.len() {
            let state = self.open[place].0;
            let Some(joined) = self.join(bin.state, state) else { continue };
            if joined != bin.state && !self.keeps_price(joined, row, price) {
                continue;
            }
            let alike = if state == bin.state { PREFER_ALIKE } else { 1.0 };
            for (need, items) in &self.open[place].1 {
                let amounts = &self.world.classes.needs[*need];
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
                    .copied()
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
        if !self.world.stock.shapes[shape].rows.contains(row) {
            return false;
        }
        let set = self.states[state].set;
        let catalog = self.world.stock.templates[self.template].catalog;
        let prices = self.world.stock.catalogs[catalog].prices(set, &mut self.world.interner);
        prices[row] <= price
    }

    pub(super) fn take_out(&mut self, bin: Bin, rank: &List<PodId, u32>) -> Claim {
        let shape = self.shape(bin.state);
        let mut pods = Vec::new();
        for (item, count) in &bin.content {
            let from = &mut self.items[*item].pods;
            pods.extend(from.split_off(from.len() - *count as usize));
        }
        pods.sort_unstable_by_key(|pod| rank[*pod]);
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
