//! New nodes, and what they take from the limits of their pools.

use super::{Claim, Opened, Refusal, Round};
use crate::scheduling::resources::{Name, ResourceList};
use crate::scheduling::solver::amounts::add;
use crate::scheduling::solver::classes::{ClassId, NeedId};
use crate::scheduling::solver::intern::NONE;
use crate::scheduling::solver::stock::{MaskId, Template};

impl Round<'_, '_> {
    /// Tries the templates, heaviest pool first.
    pub(super) fn open(&mut self, class: ClassId, need: NeedId) -> Opened {
        for template in 0..self.world.stock.templates.len() as u32 {
            match self.open_from(template, class, need) {
                Ok(claim) => return Opened::Claim(Box::new(claim)),
                Err(Refusal::Reserved) => return Opened::Reserved,
                Err(_) => {}
            }
        }
        Opened::Refused
    }

    /// Rows of a template that its pool's limits leave; nothing when no node may be added.
    pub(in crate::scheduling::solver) fn limit_mask(&mut self, template: u32) -> Option<MaskId> {
        let Some(left) = &self.remaining[template as usize] else { return Some(0) };
        if Template::node_limit_reached(left) {
            return None;
        }
        if let Some(mask) = self.limit_masks[template as usize] {
            return (mask != NONE).then_some(mask);
        }
        let stock = &mut self.world.stock;
        if left.iter().all(|(name, limit)| stock.most(template, name) <= limit) {
            return Some(0);
        }
        let left = left.clone();
        let mut rows = stock.templates[template as usize].base.clone();
        let whole = rows.count_ones(..);
        for (name, limit) in left.iter() {
            let capacity = stock.catalog(template).capacity(name);
            for row in stock.templates[template as usize].base.ones() {
                if capacity[row] > limit {
                    rows.set(row, false);
                }
            }
        }
        self.note_limited(template, &rows);
        let stock = &mut self.world.stock;
        let mask = match rows.count_ones(..) {
            0 => NONE,
            n if n == whole => 0,
            _ => stock.mask(rows),
        };
        self.limit_masks[template as usize] = Some(mask);
        (mask != NONE).then_some(mask)
    }

    fn open_from(&mut self, template: u32, class: ClassId, need: NeedId) -> Result<Claim, Refusal> {
        let mask = self.limit_mask(template).ok_or(Refusal::Lasting)?;
        let world = &mut *self.world;
        let set = world.stock.templates[template as usize].set;
        let shape = world.stock.shape(template, set, mask, &mut world.interner);
        let sets = self.merged_sets(class, shape);
        let wanted = &self.world.classes.classes[class as usize];
        let named =
            wanted.strict_host == NONE || self.world.interner.req(wanted.strict_host).complement;
        for say in wanted.says.iter().filter(|s| s.host) {
            if !self.world.topology.takes_new_host(say.group, say.own, false) || !named {
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
                    let relaxed = self.world.stock.templates[template as usize].min_values_relaxed;
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
        pod: u32,
        class: ClassId,
        need: NeedId,
    ) -> u32 {
        let at = self.claims.len();
        let shape = claim.shape;
        self.hold(&[], &claim.reserved.clone());
        claim.pods.push(pod);
        add(&mut claim.requests, &self.world.classes.needs[need as usize]);
        let ports = &self.world.classes.classes[class as usize].constraints.host_ports;
        claim.ports.extend(ports.iter().cloned());
        self.charge(&claim, need);
        self.claims.push(claim);
        self.enter_shape(at, shape);
        if let Some(by_count) = &mut self.by_count {
            by_count.opened(at);
        }
        self.take_devices_of_claim(at);
        let set = self.world.stock.shapes[shape as usize].set;
        self.record_on_claim(at, class, set);
        at as u32
    }

    /// Limits are charged with the largest type that the claim may become; narrowing it later
    /// gives nothing back. [Q] As upstream, the number of nodes is not charged.
    fn charge(&mut self, claim: &Claim, need: NeedId) {
        let template = self.world.stock.shapes[claim.shape as usize].template;
        if self.remaining[template as usize].is_none() {
            return;
        }
        let key = (claim.shape, need);
        if !self.charges.contains_key(&key) {
            let stock = &mut self.world.stock;
            let rows = stock.rows_for(claim.shape, &claim.requests);
            let limited: Vec<Name> = self.remaining[template as usize]
                .iter()
                .flat_map(|l| l.iter().map(|(n, _)| n.clone()))
                .collect();
            let mut largest = ResourceList::new();
            for name in limited {
                let capacity = stock.catalog(template).capacity(&name);
                let most = rows.ones().map(|row| capacity[row]).max().unwrap_or(0);
                largest.set(name, most);
            }
            self.charges.insert(key, largest);
        }
        if let Some(left) = &mut self.remaining[template as usize] {
            left.sub(&self.charges[&key]);
            self.limit_masks[template as usize] = None;
        }
    }
}
