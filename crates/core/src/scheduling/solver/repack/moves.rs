//! Moving pods from one planned node to others, where the whole costs less.
//!
//! Packing again leaves nodes alone that have host ports, volumes or near limits, and settles for the
//! first good fill. For few nodes every node is tried here: its pods go one by one to where they add
//! least to the price, and the moves are kept as far as they save something. As with packing again, a
//! pod stays in its pool and in every domain in which it counts.

use rustc_hash::FxHashMap;

use super::Pins;
use super::items::pins;
use crate::scheduling::resources::ResourceList;
use crate::scheduling::solver::amounts::add;
use crate::scheduling::solver::ids::{GroupId, List, MaskId, PodId, ReqId, TemplateId};
use crate::scheduling::solver::round::{Claim, Round, merge_class, merge_volumes};
use crate::scheduling::solver::topology::Kind;

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
struct Move {
    /// The node that gives, unless nothing is left on it.
    from: Option<Priced>,
    changed: Vec<(usize, Priced)>,
    new: Vec<Priced>,
    saved: f64,
}

impl Round<'_, '_> {
    /// Moves pods between planned nodes where that is cheaper.
    pub(in crate::scheduling::solver) fn move_pods(&mut self) {
        let pods: usize = self.world.plan.claims.iter().map(|c| c.pods.len()).sum();
        if self.world.plan.claims.len() > MOST_CLAIMS
            || pods * self.world.plan.claims.len() > MOST_PAIRS
        {
            return;
        }
        let mut kept: FxHashMap<PodId, Pins> = FxHashMap::default();
        for claim in &self.world.plan.claims {
            let set = self.world.stock.shapes[claim.shape].set;
            for pod in &claim.pods {
                kept.insert(*pod, pins(self.world, self.placed_as[*pod], set));
            }
        }
        let limits = self.limits.clone();
        for _ in 0..ROUNDS {
            let mut better = false;
            let mut at = 0;
            while at < self.world.plan.claims.len() {
                match self.best_move(at, &kept) {
                    Some(found) if self.is_within(at, &found, &limits) => {
                        better = true;
                        self.follow(at, found);
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
    fn best_move(&mut self, from: usize, kept: &FxHashMap<PodId, Pins>) -> Option<Move> {
        if !self.may_change(from) {
            return None;
        }
        let mut order: Vec<PodId> = self.world.plan.claims[from]
            .pods
            .iter()
            .copied()
            .filter(|pod| !self.must_stay(*pod))
            .collect();
        order.sort_unstable_by_key(|pod| self.rank[*pod]);
        let large_first = self.move_in(from, &order, kept);
        order.reverse();
        let small_first = self.move_in(from, &order, kept);
        [large_first, small_first]
            .into_iter()
            .flatten()
            .reduce(|a, b| if b.saved > a.saved + SAVING { b } else { a })
    }

    /// Takes pods off a node in this order, each to where it adds least to the price.
    fn move_in(
        &mut self,
        from: usize,
        order: &[PodId],
        kept: &FxHashMap<PodId, Pins>,
    ) -> Option<Move> {
        let before = self.price_of(from);
        let template = self.template_of(from);
        let mask = self.world.stock.shapes[self.world.plan.claims[from].shape].mask;
        let mut left = self.world.plan.claims[from].pods.clone();
        let (mut changed, mut new) = (FxHashMap::<usize, Priced>::default(), Vec::new());
        let mut added = 0.0;
        let mut best: Option<Move> = None;
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
                Some(to) if to < self.world.plan.claims.len() => {
                    changed.insert(to, priced);
                }
                Some(to) => new[to - self.world.plan.claims.len()] = priced,
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
                best = Some(Move { from: rest, changed, new: new.clone(), saved });
            }
        }
        best
    }

    /// Where a pod adds least to the price: a node with its number, new ones counted after the
    /// others, or one of its own.
    fn cheapest_place(
        &mut self,
        pod: PodId,
        from: usize,
        changed: &FxHashMap<usize, Priced>,
        new: &[Priced],
        kept: &FxHashMap<PodId, Pins>,
    ) -> Option<(Option<usize>, Priced, f64)> {
        let template = self.template_of(from);
        let mut best: Option<(Option<usize>, Priced, f64)> = None;
        let number = self.world.plan.claims.len();
        for to in (0..number + new.len()).filter(|to| *to != from) {
            let planned = if to < number { changed.get(&to) } else { new.get(to - number) };
            if to < number && (self.template_of(to) != template || !self.may_change(to)) {
                continue;
            }
            let of = planned.map_or_else(|| &self.world.plan.claims[to], |(claim, _)| claim);
            let kind = self.world.waiting[pod].kind;
            let need = &self.world.classes.needs[self.world.classes.kinds[kind].need];
            let shape = &self.world.stock.shapes[of.shape];
            if !shape.holds(&of.requests, need) || !self.hosts_let_in(&of.pods, pod) {
                continue;
            }
            let mask = shape.mask;
            let mut pods = of.pods.clone();
            pods.push(pod);
            pods.sort_unstable_by_key(|pod| self.rank[*pod]);
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
        template: TemplateId,
        mask: MaskId,
        pods: &[PodId],
        kept: &FxHashMap<PodId, Pins>,
    ) -> Option<Priced> {
        let world = &mut *self.world;
        let mut set = world.stock.templates[template].set;
        let mut mask = mask;
        let mut requests = world.resources.zero();
        let mut ports = Vec::new();
        for pod in pods {
            let class = self.placed_as[*pod];
            set = merge_class(world, class, template, set)?;
            for (_, req) in kept[pod].iter().filter(|(_, req)| !req.is_none()) {
                set = world.interner.narrow(set, *req);
            }
            let of = &world.classes.classes[class];
            let own = &of.constraints.host_ports;
            if own.iter().any(|p| ports.iter().any(|q| p.conflicts(q))) {
                return None;
            }
            if !own.is_empty() {
                ports.extend(own.iter().cloned());
                mask = world.stock.mask_ports(template, mask, own);
            }
            mask = world.mask_of_daemons_alone(class, template, mask);
            let of = &world.classes.classes[class];
            if !of.volumes.is_empty() {
                let volumes = of.volumes.clone();
                set = *merge_volumes(&volumes, set, world).first()?;
            }
            let kind = world.waiting[*pod].kind;
            add(&mut requests, &world.classes.needs[world.classes.kinds[kind].need]);
        }
        let stays = |pod: &PodId| {
            kept[pod]
                .iter()
                .all(|(key, req)| world.interner.get(set, *key).unwrap_or(ReqId::NONE) == *req)
        };
        if !pods.iter().all(stays) {
            return None;
        }
        let shape = world.stock.shape(template, set, mask, &mut world.interner);
        if !world.stock.shapes[shape].min_values.is_empty() {
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
    fn hosts_let_in(&self, pods: &[PodId], pod: PodId) -> bool {
        let class = |pod: PodId| &self.world.classes.classes[self.placed_as[pod]];
        let counts = |pod: PodId, group: GroupId| {
            class(pod).counted.contains(&group) || class(pod).inverse.contains(&group)
        };
        let here = |group: GroupId| pods.iter().filter(|p| counts(**p, group)).count() as i64;
        let own = class(pod).rules.iter().filter(|s| s.host).all(|rule| {
            let group = self.world.topology.get(rule.group);
            match group.kind {
                Kind::Spread => here(rule.group) + i64::from(rule.own) <= group.max_skew,
                Kind::AntiAffinity | Kind::Inverse => here(rule.group) == 0,
                Kind::Affinity => false,
            }
        });
        own && pods.iter().all(|other| {
            class(*other).rules.iter().filter(|s| s.host).all(|rule| {
                let group = self.world.topology.get(rule.group);
                group.kind != Kind::Spread
                    || !counts(pod, rule.group)
                    || here(rule.group) < group.max_skew
            })
        })
    }

    /// Whether the pool's limits allow a move.
    fn is_within(
        &mut self,
        from: usize,
        found: &Move,
        limits: &List<TemplateId, Option<ResourceList>>,
    ) -> bool {
        let template = self.template_of(from);
        let Some(limits) = &limits[template] else { return true };
        let kept: Vec<usize> = (0..self.world.plan.claims.len())
            .filter(|at| *at != from && !found.changed.iter().any(|(to, _)| to == at))
            .filter(|at| self.template_of(*at) == template)
            .collect();
        let changed = found.changed.iter().map(|(_, priced)| priced);
        let new: Vec<Claim> =
            found.from.iter().chain(changed).chain(&found.new).map(|(c, _)| c.clone()).collect();
        self.within_limits(template, &kept, &new, Some(limits))
    }

    /// Puts a move into effect.
    fn follow(&mut self, from: usize, found: Move) {
        let claims = self.world.plan.claims_mut();
        for (to, (claim, _)) in found.changed {
            claims[to] = claim;
        }
        claims.extend(found.new.into_iter().map(|(claim, _)| claim));
        match found.from {
            Some((claim, _)) => claims[from] = claim,
            None => {
                claims.remove(from);
            }
        }
    }
}
