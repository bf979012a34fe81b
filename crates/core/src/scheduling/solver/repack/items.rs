//! What is packed: pods by what they need, and what nodes become with them.

use std::cmp::Reverse;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::{HostRule, Item, Packing, Pins, State, dot};
use crate::scheduling::solver::amounts::Amounts;
use crate::scheduling::solver::ids::{
    ClassId, GroupId, ItemId, KeyId, NeedId, PodId, ReqId, SetId, ShapeId, StateId,
};
use crate::scheduling::solver::intern::Interner;
use crate::scheduling::solver::prepare::Prepared;
use crate::scheduling::solver::round::merge_class;
use crate::scheduling::solver::stock::ALL;
use crate::scheduling::solver::topology::Kind;
use crate::scheduling::solver::worth::{Machine, worth};

impl Packing<'_, '_> {
    /// Adds a pod that is on a claim with these requirements; nothing when it may not move.
    pub(super) fn add_pod(
        &mut self,
        pod: PodId,
        class: ClassId,
        set: SetId,
        index: &mut FxHashMap<(NeedId, ClassId, StateId), ItemId>,
    ) -> Option<()> {
        let world = &mut *self.world;
        let kind = world.waiting[pod].kind;
        let need = world.classes.kinds[kind].need;
        let pins = pins(world, class, set);
        let base =
            merge_class(world, class, self.template, world.stock.templates[self.template].set)?;
        let mut own = base;
        for (_, req) in pins.iter().filter(|(_, r)| !r.is_none()) {
            own = world.interner.narrow(own, *req);
        }
        let state = self.states.insert(State { set: own, pins });
        let at = match index.get(&(need, class, state)) {
            Some(at) => *at,
            None => {
                let item = self.new_item(need, class, state);
                let id = self.items.push(item);
                index.insert((need, class, state), id);
                id
            }
        };
        self.items[at].pods.push(pod);
        Some(())
    }

    fn new_item(&self, need: NeedId, class: ClassId, state: StateId) -> Item {
        let world = &*self.world;
        let of = &world.classes.classes[class];
        let hostname = world.interner.hostname;
        let rules = of
            .rules
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
    pub(super) fn value_items(&mut self) -> Option<()> {
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
            let amounts = &self.world.classes.needs[item.need];
            let set = self.states[item.state].set;
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
        for item in self.items.iter_mut() {
            let value = &values[&self.states[item.state].set];
            let amounts = &self.world.classes.needs[item.need];
            item.worth = dot(value, amounts).max(1e-12);
            item.spread = item.rules.iter().map(|r| by_group[&r.group]).max().unwrap_or(0);
        }
        self.weights = self.worth_of(self.world.stock.templates[self.template].set, &total);
        let (settled_first, interner) = (self.world.choices.settled_first, &self.world.interner);
        let key = |item: &Item| {
            let pod = item.pods.iter().map(|p| &self.world.waiting[*p].pod.key).min();
            let pins = &self.states[item.state].pins;
            let settled = |req: ReqId| {
                !req.is_none()
                    && !interner.req(req).complement
                    && interner.req(req).values.len() == 1
            };
            let open = settled_first && !pins.iter().any(|(_, req)| settled(*req));
            let (spread, worth) = (Reverse(item.spread), Reverse(item.worth.to_bits()));
            (open, spread, worth, pod.cloned())
        };
        self.items.sort_by_cached_key(key);
        for at in self.items.ids() {
            let (state, need) = (self.items[at].state, self.items[at].need);
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
        let shape = world.stock.shape(self.template, set, ALL, &mut world.interner);
        let mould = &world.stock.templates[self.template];
        let catalog = mould.catalog;
        let prices = world.stock.catalogs[catalog].prices(set, &mut world.interner);
        let width = demand.len();
        let machines: Vec<Machine<'_>> = world.stock.shapes[shape]
            .rows
            .ones()
            .map(|row| Machine {
                amounts: &mould.net[row * width..(row + 1) * width],
                price: prices[row],
            })
            .collect();
        worth(demand, &machines)
    }

    pub(super) fn shape(&mut self, state: StateId) -> ShapeId {
        if let Some(shape) = self.shapes.get(&state) {
            return *shape;
        }
        let set = self.states[state].set;
        let shape = self.world.stock.shape(self.template, set, ALL, &mut self.world.interner);
        self.shapes.insert(state, shape);
        shape
    }

    /// What a node becomes with an item, unless their requirements do not go together.
    pub(super) fn join(&mut self, bin: StateId, item: StateId) -> Option<StateId> {
        if bin == item {
            return Some(bin);
        }
        if let Some(known) = self.joined.get(&(bin, item)) {
            return *known;
        }
        let (a, b) = (self.states[bin].clone(), self.states[item].clone());
        let joined =
            joined(&mut self.world.interner, &a, &b).map(|state| self.states.insert(state));
        self.joined.insert((bin, item), joined);
        joined
    }
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
    let held = pins.iter().all(|(key, req)| interner.get(set, *key).unwrap_or(ReqId::NONE) == *req);
    held.then_some(State { set, pins })
}

/// What a pod's node must keep: its requirement on every topology key that matters to the pod, and
/// on every key that decides whether the node counts for a group that counts the pod.
pub(super) fn pins(world: &Prepared<'_>, class: ClassId, set: SetId) -> Pins {
    let of = &world.classes.classes[class];
    let hostname = world.interner.hostname;
    let mut keys: SmallVec<[KeyId; 4]> = SmallVec::new();
    let groups = of.rules.iter().map(|s| s.group).chain(of.counted.iter().copied());
    for id in groups.chain(of.inverse.iter().copied()) {
        let group = world.topology.get(id);
        if group.key != hostname {
            keys.push(group.key);
        }
        let filter = world.topology.filters.get(group.filter);
        for (term, _) in filter.iter().flat_map(|f| &f.terms) {
            keys.extend(world.interner.set(*term).iter().map(|(key, _)| *key));
        }
    }
    keys.sort_unstable();
    keys.dedup();
    keys.iter().map(|key| (*key, world.interner.get(set, *key).unwrap_or(ReqId::NONE))).collect()
}
