//! New nodes, and what they take from the limits of their pools.

use super::{Claim, Opened, Refusal, Round};
use crate::scheduling::dra::ClaimPlan;
use crate::scheduling::resources::{Name, ResourceList};
use crate::scheduling::solver::amounts::add;
use crate::scheduling::solver::choices::Pools;
use crate::scheduling::solver::ids::{ClassId, Id, MaskId, NeedId, PodId, TemplateId};
use crate::scheduling::solver::stock::{ALL, NODES, Template};

impl Round<'_, '_> {
    /// Tries the templates, heaviest pool first; of pools of equal weight the cheapest.
    ///
    /// [Q] Upstream takes equal pools by their names; that order is free by its documentation.
    pub(super) fn open(&mut self, class: ClassId, need: NeedId) -> Opened {
        self.open_cheapest(need, |round, template| round.open_from(template, class, need))
    }

    /// The same with `open_one`, which says what a node of a template becomes. The devices that it
    /// plans to give belong to the claim that is taken.
    pub(in crate::scheduling::solver) fn open_cheapest(
        &mut self,
        need: NeedId,
        mut open_one: impl FnMut(&mut Self, TemplateId) -> Result<Claim, Refusal>,
    ) -> Opened {
        let mut best: Option<(f64, Claim, Option<ClaimPlan>)> = None;
        let mut reserved = false;
        for template in self.world.stock.templates.ids() {
            // Templates are sorted by weight: a lighter pool is asked only when no heavier one can.
            let last = !self.next_is_equal(template);
            match open_one(self, template) {
                Ok(claim) => {
                    // The usual case, one pool of a weight, needs no price.
                    if last && best.is_none() {
                        return Opened::Claim(Box::new(claim));
                    }
                    // The next template plans devices of its own, and must not see these as taken.
                    let plan = self.replace_device_plan(None);
                    let price = self.price_to_open(&claim, need);
                    if best.as_ref().is_none_or(|(least, ..)| price < *least) {
                        best = Some((price, claim, plan));
                    }
                }
                Err(refusal) => reserved |= refusal == Refusal::Reserved,
            }
            if last {
                if let Some((_, claim, plan)) = best {
                    self.replace_device_plan(plan);
                    return Opened::Claim(Box::new(claim));
                }
                // A heavier pool has what the pod asks for, only not now: a lighter pool would be
                // the wrong one.
                if reserved {
                    return Opened::Reserved;
                }
            }
        }
        Opened::Refused
    }

    /// Whether a template is followed by one of equal weight.
    fn next_is_equal(&self, template: TemplateId) -> bool {
        let templates = &self.world.stock.templates;
        let next = templates.get(TemplateId::new(template.at() + 1));
        next.is_some_and(|next| next.weight == templates[template].weight)
    }

    /// What a new node costs, as far as pools are compared by it.
    fn price_to_open(&mut self, claim: &Claim, need: NeedId) -> f64 {
        let world = &mut *self.world;
        match world.choices.pools {
            Pools::ByNode => {
                let mut requests = claim.requests.clone();
                add(&mut requests, &world.classes.needs[need]);
                world.stock.cheapest(claim.shape, &requests, &mut world.interner)
            }
            Pools::ByUnit => world.stock.unit_price(claim.shape, &mut world.interner),
        }
    }

    /// Rows of a template that its pool's limits leave; nothing when no node may be added.
    pub(in crate::scheduling::solver) fn limit_mask(
        &mut self,
        template: TemplateId,
    ) -> Option<MaskId> {
        let Some(left) = self.world.plan.limit(template) else { return Some(ALL) };
        if Template::node_limit_reached(left) {
            return None;
        }
        self.limited_rows(template)
    }

    /// Rows of a template that its pool's limits leave, the number of nodes apart; nothing when
    /// there are none.
    pub(in crate::scheduling::solver) fn limited_rows(
        &mut self,
        template: TemplateId,
    ) -> Option<MaskId> {
        let Some(left) = self.world.plan.limit(template) else { return Some(ALL) };
        if let Some(mask) = self.limit_masks[template] {
            return mask;
        }
        let stock = &mut self.world.stock;
        let left: ResourceList =
            left.iter().filter(|(n, _)| n.as_str() != NODES).map(|(n, l)| (n.clone(), l)).collect();
        // Most limits are far away: then no row needs to be looked at.
        if left.iter().all(|(name, limit)| stock.most(template, name) <= limit) {
            return Some(ALL);
        }
        let mut rows = stock.templates[template].base.clone();
        let whole = rows.count_ones(..);
        for (name, limit) in left.iter() {
            let capacity = stock.catalog(template).capacity(name);
            for row in stock.templates[template].base.ones() {
                if capacity[row] > limit {
                    rows.set(row, false);
                }
            }
        }
        self.note_limited(template, &rows);
        let stock = &mut self.world.stock;
        let mask = match rows.count_ones(..) {
            0 => None,
            n if n == whole => Some(ALL),
            _ => Some(stock.mask(rows)),
        };
        self.limit_masks[template] = Some(mask);
        mask
    }

    fn open_from(
        &mut self,
        template: TemplateId,
        class: ClassId,
        need: NeedId,
    ) -> Result<Claim, Refusal> {
        let mask = self.limit_mask(template).ok_or(Refusal::Lasting)?;
        let world = &mut *self.world;
        // Types on which a DaemonSet runs that the pod keeps away from are out before anything is
        // counted.
        let mask = world.mask_of_daemons_alone(class, template, mask);
        let set = world.stock.templates[template].set;
        let shape = world.stock.shape(template, set, mask, &mut world.interner);
        let sets = self.merged_sets(class, shape);
        let wanted = &self.world.classes.classes[class];
        // A pod that must be on one host by name cannot be on a node that has no name yet.
        let named =
            wanted.strict_host.is_none() || self.world.interner.req(wanted.strict_host).complement;
        for rule in wanted.rules.iter().filter(|s| s.host) {
            let topology = &self.world.topology;
            let tally = &self.world.plan.tally;
            let takes = tally.takes_new_host(topology, rule.group, rule.own, false)
                || !topology.daemons(rule.group).is_empty();
            if !takes || !named {
                return Err(Refusal::Passing);
            }
        }
        let zonal = wanted.zonal;
        let nothing = self.world.resources.zero();
        let relax = self.world.snapshot.options.best_effort_min_values;
        let mut refusal = Refusal::Lasting;
        for set in sets {
            let set = if zonal {
                match self.zones(class, set, Some((template, mask))) {
                    Some(set) => set,
                    None => continue,
                }
            } else {
                set
            };
            match self.fit(shape, set, &nothing, class, need, &[], relax) {
                Ok(fit) => {
                    let relaxed = self.world.stock.templates[template].min_values_relaxed;
                    return Ok(Claim {
                        shape: fit.shape,
                        requests: nothing,
                        pods: Vec::new(),
                        ports: Vec::new(),
                        min_values_relaxed: fit.relaxed || relaxed,
                        reserved: fit.reserved,
                        devices: None,
                    });
                }
                Err(found) => refusal = found,
            }
        }
        Err(refusal)
    }

    pub(super) fn add_claim(
        &mut self,
        mut claim: Claim,
        pod: PodId,
        class: ClassId,
        need: NeedId,
    ) -> u32 {
        let at = self.world.plan.claims.len();
        let shape = claim.shape;
        // Before the pod is counted: the next pod must find the slot taken.
        self.world.plan.hold(&[], &claim.reserved);
        claim.pods.push(pod);
        add(&mut claim.requests, &self.world.classes.needs[need]);
        let ports = &self.world.classes.classes[class].constraints.host_ports;
        claim.ports.extend(ports.iter().cloned());
        self.charge(&claim, need);
        self.world.plan.claims.push(claim);
        self.enter_shape(at, shape);
        if let Some(by_count) = &mut self.by_count {
            by_count.opened(at);
        }
        self.take_devices_of_claim(at);
        let set = self.world.stock.shapes[shape].set;
        self.record_on_claim(at, class, set);
        at as u32
    }

    /// Limits are charged with the largest type that the claim may become, and with one node;
    /// narrowing it later gives nothing back.
    fn charge(&mut self, claim: &Claim, need: NeedId) {
        let template = self.world.stock.shapes[claim.shape].template;
        if self.world.plan.limit(template).is_none() {
            return;
        }
        let key = (claim.shape, need);
        if !self.charges.contains_key(&key) {
            let stock = &mut self.world.stock;
            let rows = stock.rows_for(claim.shape, &claim.requests);
            let limited: Vec<Name> = self
                .world
                .plan
                .limit(template)
                .iter()
                .flat_map(|l| l.iter().map(|(n, _)| n.clone()))
                .collect();
            let mut largest = ResourceList::new();
            for name in limited {
                if name.as_str() == NODES {
                    largest.set(name, 1);
                    continue;
                }
                let capacity = stock.catalog(template).capacity(&name);
                let most = rows.ones().map(|row| capacity[row]).max().unwrap_or(0);
                largest.set(name, most);
            }
            self.charges.insert(key, largest);
        }
        if let Some(left) = self.world.plan.limit_mut(template) {
            left.sub(&self.charges[&key]);
            // Less is left now, so that types may drop out.
            self.limit_masks[template] = None;
        }
    }
}
