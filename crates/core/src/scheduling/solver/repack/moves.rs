//! Moving pods from one planned node to others, where the whole costs less.
//!
//! Packing anew leaves nodes alone that have host ports, volumes or near limits, and settles for the
//! first good fill. For few nodes every node is tried here: its pods go one by one to where they add
//! least to the price, and the moves are kept as far as they save something. As with packing anew, a
//! pod stays in its pool and in every domain in which it counts.

use rustc_hash::FxHashMap;

use super::Pins;
use super::items::pins;
use crate::scheduling::resources::ResourceList;
use crate::scheduling::solver::amounts::add;
use crate::scheduling::solver::intern::NONE;
use crate::scheduling::solver::round::{Claim, Round, merge_class, merge_volumes};
use crate::scheduling::solver::stock::MaskId;
use crate::scheduling::solver::topology::{GroupId, Kind};

/// Up to this many nodes, and pods times nodes, moves are tried.
const MOST_CLAIMS: usize = 48;
const MOST_PAIRS: usize = 6000;
/// Times that each node is tried.
const ROUNDS: usize = 4;
/// What moves must save at least.
const SAVING: f64 = 1e-7;

/// A node with its price.
type Priced = (Claim, f64);

/// What becomes of the nodes of one pool when one of them gives pods to others.
struct Plan {
    /// The node that gives, unless nothing is left on it.
    from: Option<Priced>,
    changed: Vec<(usize, Priced)>,
    new: Vec<Priced>,
    saved: f64,
}

impl Round<'_, '_> {
    /// Moves pods between planned nodes where that is cheaper.
    pub(in crate::scheduling::solver) fn move_pods(&mut self) {
        let pods: usize = self.claims.iter().map(|c| c.pods.len()).sum();
        if self.claims.len() > MOST_CLAIMS || pods * self.claims.len() > MOST_PAIRS {
            return;
        }
        let mut kept: FxHashMap<u32, Pins> = FxHashMap::default();
        for claim in &self.claims {
            let set = self.world.stock.shapes[claim.shape as usize].set;
            for pod in &claim.pods {
                kept.insert(*pod, pins(self.world, self.placed_as[*pod as usize], set));
            }
        }
        let limits = self.world.limits.clone();
        for _ in 0..ROUNDS {
            let mut better = false;
            let mut at = 0;
            while at < self.claims.len() {
                match self.plan_of(at, &kept) {
                    Some(plan) if self.is_within(at, &plan, &limits) => {
                        better = true;
                        self.follow(at, plan);
                    }
                    _ => at += 1,
                }
            }
            if !better {
                break;
            }
        }
        self.renumber();
    }

    /// The best way found to take pods off a node, if one saves something.
    fn plan_of(&mut self, from: usize, kept: &FxHashMap<u32, Pins>) -> Option<Plan> {
        if !self.may_change(from) {
            return None;
        }
        let mut order: Vec<u32> =
            self.claims[from].pods.iter().copied().filter(|pod| !self.must_stay(*pod)).collect();
        order.sort_unstable_by_key(|pod| self.rank[*pod as usize]);
        let large_first = self.plan_in(from, &order, kept);
        order.reverse();
        let small_first = self.plan_in(from, &order, kept);
        [large_first, small_first]
            .into_iter()
            .flatten()
            .reduce(|a, b| if b.saved > a.saved + SAVING { b } else { a })
    }

    /// Takes pods off a node in this order, each to where it adds least to the price.
    fn plan_in(&mut self, from: usize, order: &[u32], kept: &FxHashMap<u32, Pins>) -> Option<Plan> {
        let before = self.price_of(from);
        let template = self.template_of(from);
        let mask = self.world.stock.shapes[self.claims[from].shape as usize].mask;
        let mut left = self.claims[from].pods.clone();
        let (mut changed, mut new) = (FxHashMap::<usize, Priced>::default(), Vec::new());
        let mut added = 0.0;
        let mut best: Option<Plan> = None;
        for pod in order {
            let Some((to, priced, more)) = self.cheapest_place(*pod, from, &changed, &new, kept)
            else {
                continue;
            };
            added += more;
            if added > before {
                break;
            }
            match to {
                Some(to) if to < self.claims.len() => {
                    changed.insert(to, priced);
                }
                Some(to) => new[to - self.claims.len()] = priced,
                None => new.push(priced),
            }
            left.retain(|p| p != pod);
            let rest = if left.is_empty() {
                None
            } else {
                let Some(rest) = self.node_with(template, mask, &left, kept) else { continue };
                Some(rest)
            };
            let saved = before - added - rest.as_ref().map_or(0.0, |(_, price)| *price);
            if saved > best.as_ref().map_or(SAVING, |b| b.saved + SAVING) {
                let mut changed: Vec<(usize, Priced)> =
                    changed.iter().map(|(at, priced)| (*at, priced.clone())).collect();
                changed.sort_unstable_by_key(|(at, _)| *at);
                best = Some(Plan { from: rest, changed, new: new.clone(), saved });
            }
        }
        best
    }

    /// Where a pod adds least to the price: a node with its number, new ones counted after the
    /// others, or one of its own.
    fn cheapest_place(
        &mut self,
        pod: u32,
        from: usize,
        changed: &FxHashMap<usize, Priced>,
        new: &[Priced],
        kept: &FxHashMap<u32, Pins>,
    ) -> Option<(Option<usize>, Priced, f64)> {
        let template = self.template_of(from);
        let mut best: Option<(Option<usize>, Priced, f64)> = None;
        let number = self.claims.len();
        for to in (0..number + new.len()).filter(|to| *to != from) {
            let planned = if to < number { changed.get(&to) } else { new.get(to - number) };
            if to < number && (self.template_of(to) != template || !self.may_change(to)) {
                continue;
            }
            let of = planned.map_or_else(|| &self.claims[to], |(claim, _)| claim);
            let kind = self.world.waiting[pod as usize].kind as usize;
            let need = &self.world.classes.needs[self.world.classes.kinds[kind].need as usize];
            let shape = &self.world.stock.shapes[of.shape as usize];
            if !shape.holds(&of.requests, need) || !self.hosts_let_in(&of.pods, pod) {
                continue;
            }
            let mask = shape.mask;
            let mut pods = of.pods.clone();
            pods.push(pod);
            pods.sort_unstable_by_key(|pod| self.rank[*pod as usize]);
            let before = match planned {
                Some((_, price)) => *price,
                None => self.price_of(to),
            };
            let Some(priced) = self.node_with(template, mask, &pods, kept) else { continue };
            let more = priced.1 - before;
            if best.as_ref().is_none_or(|(_, _, least)| more < least - SAVING) {
                best = Some((Some(to), priced, more));
            }
        }
        if let Some(mask) = self.limit_mask(template)
            && let Some(priced) = self.node_with(template, mask, &[pod], kept)
            && best.as_ref().is_none_or(|(_, _, least)| priced.1 < least - SAVING)
        {
            let more = priced.1;
            best = Some((None, priced, more));
        }
        best
    }

    /// A node of a template with just these pods, each in the domains that it is kept in.
    fn node_with(
        &mut self,
        template: u32,
        mask: MaskId,
        pods: &[u32],
        kept: &FxHashMap<u32, Pins>,
    ) -> Option<Priced> {
        let world = &mut *self.world;
        let mut set = world.stock.templates[template as usize].set;
        let mut mask = mask;
        let mut requests = world.resources.zero();
        let mut ports = Vec::new();
        for pod in pods {
            let class = self.placed_as[*pod as usize];
            set = merge_class(world, class, template, set)?;
            for (_, req) in kept[pod].iter().filter(|(_, req)| *req != NONE) {
                set = world.interner.narrow(set, *req);
            }
            let of = &world.classes.classes[class as usize];
            let own = &of.constraints.host_ports;
            if own.iter().any(|p| ports.iter().any(|q| p.conflicts(q))) {
                return None;
            }
            if !own.is_empty() {
                ports.extend(own.iter().cloned());
                mask = world.stock.mask_ports(template, mask, own);
            }
            mask = world.mask_of_daemons_alone(class, template, mask);
            let of = &world.classes.classes[class as usize];
            if !of.volumes.is_empty() {
                let volumes = of.volumes.clone();
                set = *merge_volumes(&volumes, set, world).first()?;
            }
            let kind = world.waiting[*pod as usize].kind as usize;
            add(&mut requests, &world.classes.needs[world.classes.kinds[kind].need as usize]);
        }
        let stays = |pod: &u32| {
            kept[pod].iter().all(|(key, req)| world.interner.get(set, *key).unwrap_or(NONE) == *req)
        };
        if !pods.iter().all(stays) {
            return None;
        }
        let shape = world.stock.shape(template, set, mask, &mut world.interner);
        if !world.stock.shapes[shape as usize].min_values.is_empty() {
            let rows = world.stock.rows_for(shape, &requests);
            if !world.stock.unmet(shape, &rows, &mut world.interner).is_empty() {
                return None;
            }
        }
        let price = world.stock.cheapest(shape, &requests, &mut world.interner);
        let claim = Claim {
            shape,
            requests,
            pods: pods.to_vec(),
            ports,
            min_values_relaxed: false,
            reserved: Vec::new(),
            devices: None,
        };
        price.is_finite().then_some((claim, price))
    }

    /// Whether groups of host names let a pod to these others, and these let it in.
    fn hosts_let_in(&self, pods: &[u32], pod: u32) -> bool {
        let class = |pod: u32| &self.world.classes.classes[self.placed_as[pod as usize] as usize];
        let counts = |pod: u32, group: GroupId| {
            class(pod).counted.contains(&group) || class(pod).inverse.contains(&group)
        };
        let here = |group: GroupId| pods.iter().filter(|p| counts(**p, group)).count() as i64;
        let own = class(pod).says.iter().filter(|s| s.host).all(|say| {
            let group = self.world.topology.get(say.group);
            match group.kind {
                Kind::Spread => here(say.group) + i64::from(say.own) <= group.max_skew,
                Kind::AntiAffinity | Kind::Inverse => here(say.group) == 0,
                Kind::Affinity => false,
            }
        });
        own && pods.iter().all(|other| {
            class(*other).says.iter().filter(|s| s.host).all(|say| {
                let group = self.world.topology.get(say.group);
                group.kind != Kind::Spread
                    || !counts(pod, say.group)
                    || here(say.group) < group.max_skew
            })
        })
    }

    /// Whether the pool's limits allow a plan.
    fn is_within(&mut self, from: usize, plan: &Plan, limits: &[Option<ResourceList>]) -> bool {
        let template = self.template_of(from);
        let Some(limits) = &limits[template as usize] else { return true };
        let kept: Vec<usize> = (0..self.claims.len())
            .filter(|at| *at != from && !plan.changed.iter().any(|(to, _)| to == at))
            .filter(|at| self.template_of(*at) == template)
            .collect();
        let changed = plan.changed.iter().map(|(_, priced)| priced);
        let new: Vec<Claim> =
            plan.from.iter().chain(changed).chain(&plan.new).map(|(c, _)| c.clone()).collect();
        self.within_limits(template, &kept, &new, Some(limits))
    }

    /// Puts a plan for a node into effect.
    fn follow(&mut self, from: usize, plan: Plan) {
        for (to, (claim, _)) in plan.changed {
            self.claims[to] = claim;
        }
        self.claims.extend(plan.new.into_iter().map(|(claim, _)| claim));
        match plan.from {
            Some((claim, _)) => self.claims[from] = claim,
            None => {
                self.claims.remove(from);
            }
        }
    }
}
