//! Nodes planned in this round: the first that takes a pod.

use std::ops::ControlFlow;

use fixedbitset::FixedBitSet;
use smallvec::SmallVec;

use super::{Fit, Opened, Refusal, Round, WORD, take_out};
use crate::scheduling::solver::amounts::{Amounts, add};
use crate::scheduling::solver::ids::{ClassId, Id, KindId, NeedId, PodId, SetId, ShapeId};

impl Round<'_, '_> {
    /// The first planned node that takes the pod, those with the fewest pods first.
    pub(super) fn try_claims(
        &mut self,
        pod: PodId,
        kind: KindId,
        class: ClassId,
        need: NeedId,
        room: NeedId,
    ) -> Option<u32> {
        if self.world.plan.claims.is_empty() {
            return None;
        }
        let words = self.world.plan.claims.len().div_ceil(WORD);
        let mut mask = std::mem::take(&mut self.mask);
        mask.clear();
        mask.resize(words, 0);
        self.shapes_that_suit(class, &mut mask);
        let out = [
            self.need_out.get(&room),
            self.class_out.get(&class),
            self.kind_out.get(&(kind, class)),
        ];
        out.into_iter().flatten().for_each(|out| take_out(&mut mask, out));
        if mask.iter().any(|w| *w != 0) {
            let first = self.world.first_claim_host;
            self.rule_out(class, first, &mut mask);
        }
        let mut found = None;
        if mask.iter().any(|w| *w != 0) {
            found = if self.has_device_claims(pod) {
                self.first_claim_with_devices(pod, class, room, &mask)
            } else {
                self.first_claim(kind, class, room, &mut mask)
            };
        }
        self.mask = mask;
        let (claim, fit) = found?;
        self.put_on_claim(claim, fit, pod, class, need);
        Some(claim as u32)
    }

    /// Marks the claims whose shape suits a class, topology apart.
    fn shapes_that_suit(&mut self, class: ClassId, mask: &mut [usize]) {
        for at in 0..self.live.len() {
            let shape = self.live[at];
            if self.merge_shape(class, shape).is_some() {
                let of = self.of_shape[shape].as_slice();
                mask.iter_mut().zip(of).for_each(|(m, o)| *m |= o);
            }
        }
    }

    /// What a shape that suits a class becomes with it; worked out once an attempt.
    fn outcome(&mut self, class: ClassId, shape: ShapeId) -> &SmallVec<[SetId; 1]> {
        self.outcomes.grow(shape.at() + 1, (0, SmallVec::new()));
        if self.outcomes[shape].0 != self.attempt {
            let mut sets = self.merged_sets(class, shape);
            if self.world.classes.classes[class].zonal {
                let of = &self.world.stock.shapes[shape];
                let new = Some((of.template, of.mask));
                sets = sets.into_iter().filter_map(|set| self.zones(class, set, new)).collect();
            }
            self.outcomes[shape] = (self.attempt, sets);
        }
        &self.outcomes[shape].1
    }

    fn first_claim(
        &mut self,
        kind: KindId,
        class: ClassId,
        need: NeedId,
        mask: &mut [usize],
    ) -> Option<(usize, Fit)> {
        self.attempt += 1;
        let by_count = self.by_count.take()?;
        let mut found = None;
        by_count.visit(self.version, mask, |claim, mask| {
            let shape = self.world.plan.claims[claim].shape;
            if self.outcome(class, shape).is_empty() {
                take_out(mask, &self.of_shape[shape]);
            } else if let Some(fit) = self.check_claim(claim, kind, class, need)
                && !(self.world.choices.careful && self.is_dear(claim, &fit, class, need))
            {
                found = Some((claim, fit));
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        self.by_count = Some(by_count);
        found
    }

    /// Whether a claim would cost more with a pod than it and a new one for the pod.
    fn is_dear(&mut self, claim: usize, fit: &Fit, class: ClassId, need: NeedId) -> bool {
        let before = self.price_of(claim);
        let after =
            self.price_with(fit.shape, self.world.plan.claims[claim].requests.clone(), need);
        if after <= before {
            return false;
        }
        let weight = |round: &Self, shape: ShapeId| {
            let stock = &round.world.stock;
            stock.templates[stock.shapes[shape].template].weight
        };
        match self.open(class, need) {
            // A lighter pool is no way out: weights come before prices.
            Opened::Claim(new)
                if weight(self, new.shape) < weight(self, self.world.plan.claims[claim].shape) =>
            {
                false
            }
            Opened::Claim(new) => after > before + self.price_with(new.shape, new.requests, need),
            Opened::Refused | Opened::Reserved => false,
        }
    }

    fn price_with(&mut self, shape: ShapeId, mut requests: Amounts, need: NeedId) -> f64 {
        add(&mut requests, &self.world.classes.needs[need]);
        self.world.stock.cheapest(shape, &requests, &mut self.world.interner)
    }

    /// Checks one claim, and remembers a refusal that lasts.
    fn check_claim(
        &mut self,
        claim: usize,
        kind: KindId,
        class: ClassId,
        need: NeedId,
    ) -> Option<Fit> {
        let of = &self.world.plan.claims[claim];
        let shape = of.shape;
        let amounts = &self.world.classes.needs[need];
        if !self.world.stock.shapes[shape].holds(&of.requests, amounts) {
            self.need_out.entry(need).or_default().grow_and_insert(claim);
            return None;
        }
        let wanted = &self.world.classes.classes[class];
        let ports = &wanted.constraints.host_ports;
        if !ports.is_empty() && of.ports.iter().any(|q| ports.iter().any(|p| p.conflicts(q))) {
            self.class_out.entry(class).or_default().grow_and_insert(claim);
            return None;
        }
        let fixed = !wanted.zonal && wanted.volumes.is_empty();
        let held = of.reserved.clone();
        let sets = self.outcomes[shape].1.clone();
        let shape = self.shape_with_daemons(claim, shape, class);
        let mut lasting = fixed;
        for set in sets {
            let requests = &self.world.plan.claims[claim].requests.clone();
            match self.fit(shape, set, requests, class, need, &held, false) {
                Ok(fit) => return Some(fit),
                Err(refusal) => lasting &= refusal == Refusal::Lasting,
            }
        }
        if lasting && self.world.classes.kinds[kind].need == need {
            self.kind_out.entry((kind, class)).or_default().grow_and_insert(claim);
        }
        None
    }

    /// The shape without the types whose DaemonSets and the class do not go together.
    fn shape_with_daemons(&mut self, claim: usize, shape: ShapeId, class: ClassId) -> ShapeId {
        let world = &mut *self.world;
        if !world.topology.counts_daemons() {
            return shape;
        }
        let of = &world.stock.shapes[shape];
        let (template, set, mask) = (of.template, of.set, of.mask);
        let host = world.host_of_claim(claim);
        let mask = world.mask_of_daemons(class, template, mask, &|world, group, own| {
            world.plan.tally.on_host(group, host) > 0
                || world.plan.tally.takes_new_host(&world.topology, group, own, false)
        });
        world.stock.shape(template, set, mask, &mut world.interner)
    }

    fn put_on_claim(&mut self, claim: usize, fit: Fit, pod: PodId, class: ClassId, need: NeedId) {
        let before = self.world.plan.claims[claim].reserved.clone();
        self.world.plan.hold(&before, &fit.reserved);
        let before = self.world.stock.shapes[self.world.plan.claims[claim].shape].set;
        self.recount(claim, before, fit.set);
        let of = self.world.plan.claim_mut(claim);
        of.reserved = fit.reserved;
        of.min_values_relaxed |= fit.relaxed;
        let count = of.pods.len() as u32;
        of.pods.push(pod);
        add(&mut of.requests, &self.world.classes.needs[need]);
        let ports = &self.world.classes.classes[class].constraints.host_ports;
        of.ports.extend(ports.iter().cloned());
        let old = std::mem::replace(&mut of.shape, fit.shape);
        if old != fit.shape {
            self.of_shape[old].set(claim, false);
            if self.of_shape[old].is_clear() {
                self.live.retain(|s| *s != old);
            }
            self.enter_shape(claim, fit.shape);
        }
        if let Some(by_count) = &mut self.by_count {
            by_count.grew(claim, count);
        }
        self.take_devices_of_claim(claim);
        self.record_on_claim(claim, class, fit.set);
    }

    pub(super) fn enter_shape(&mut self, claim: usize, shape: ShapeId) {
        self.of_shape.grow(shape.at() + 1, FixedBitSet::new());
        if self.of_shape[shape].is_clear() {
            self.live.push(shape);
        }
        self.of_shape[shape].grow_and_insert(claim);
    }
}
