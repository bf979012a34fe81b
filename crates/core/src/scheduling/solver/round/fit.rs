//! What a planned node becomes with one more pod: requirements, types, reservations.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Fit, Refusal, Round};
use crate::scheduling::solver::amounts::{Amounts, add};
use crate::scheduling::solver::ids::{
    ClassId, Id, List, NeedId, ReqId, SetId, ShapeId, TemplateId,
};
use crate::scheduling::solver::prepare::Prepared;
use crate::scheduling::solver::stock::lower;

impl Round<'_, '_> {
    /// What a shape's requirements become with a class, unless they do not go together.
    pub(super) fn merge_shape(&mut self, class: ClassId, shape: ShapeId) -> Option<SetId> {
        let world = &mut *self.world;
        world.memo.merged.grow(world.classes.classes.len(), List::default());
        let known = &mut world.memo.merged[class];
        known.grow(shape.at() + 1, None);
        if let Some(merged) = known[shape] {
            return merged;
        }
        let of = &world.stock.shapes[shape];
        let (template, set) = (of.template, of.set);
        let merged = merge_class(world, class, template, set);
        world.memo.merged[class][shape] = Some(merged);
        merged
    }

    /// The same with the volumes: one entry for each place of these.
    pub(in crate::scheduling::solver) fn merged_sets(
        &mut self,
        class: ClassId,
        shape: ShapeId,
    ) -> SmallVec<[SetId; 1]> {
        let Some(base) = self.merge_shape(class, shape) else { return SmallVec::new() };
        let world = &mut *self.world;
        let volumes = &world.classes.classes[class].volumes;
        if volumes.is_empty() {
            return SmallVec::from_slice(&[base]);
        }
        merge_volumes(&volumes.clone(), base, world)
    }

    /// What a node of a shape becomes with these requirements and one more pod.
    #[expect(clippy::too_many_arguments, reason = "each is a part of the one question")]
    pub(in crate::scheduling::solver) fn fit(
        &mut self,
        shape: ShapeId,
        set: SetId,
        requests: &[i64],
        class: ClassId,
        need: NeedId,
        held: &[Arc<str>],
        relax: bool,
    ) -> Result<Fit, Refusal> {
        let world = &mut *self.world;
        let (template, mut mask) = {
            let of = &world.stock.shapes[shape];
            (of.template, of.mask)
        };
        let ports = &world.classes.classes[class].constraints.host_ports;
        if !ports.is_empty() {
            mask = world.stock.mask_ports(template, mask, ports);
        }
        let mut set = set;
        let mut next = world.stock.shape(template, set, mask, &mut world.interner);
        let amounts = &world.classes.needs[need];
        if !world.stock.shapes[next].holds(requests, amounts) {
            return Err(Refusal::Lasting);
        }
        let mut relaxed = false;
        if !world.stock.shapes[next].min_values.is_empty() {
            let mut total: Amounts = requests.into();
            add(&mut total, amounts);
            let rows = world.stock.rows_for(next, &total);
            let unmet = world.stock.unmet(next, &rows, &mut world.interner);
            if !unmet.is_empty() {
                if !relax {
                    return Err(Refusal::Lasting);
                }
                set = lower(set, &unmet, &mut world.interner);
                next = world.stock.shape(template, set, mask, &mut world.interner);
                relaxed = true;
            }
        }
        let reserved = if world.plan.reserves() {
            self.reserve(next, requests, need, held)?
        } else {
            Vec::new()
        };
        Ok(Fit { shape: next, set, reserved, relaxed })
    }

    /// The reservations that a node of a shape would hold.
    ///
    /// Being strict, a node for which reserved capacity exists takes nothing else; where falling
    /// back is allowed it just goes without.
    fn reserve(
        &mut self,
        shape: ShapeId,
        requests: &[i64],
        need: NeedId,
        held: &[Arc<str>],
    ) -> Result<Vec<Arc<str>>, Refusal> {
        let world = &mut *self.world;
        let mut total: Amounts = requests.into();
        add(&mut total, &world.classes.needs[need]);
        let of = &world.stock.shapes[shape];
        let (template, set) = (of.template, of.set);
        let catalog = world.stock.templates[template].catalog;
        if !world.stock.catalogs[catalog].offers.iter().any(|o| o.reservation.is_some()) {
            return Ok(Vec::new());
        }
        let rows = world.stock.rows_for(shape, &total);
        let mut found: Vec<Arc<str>> = Vec::new();
        let mut any = false;
        for offers in &world.stock.catalogs[catalog].offers {
            let Some(id) = &offers.reservation else { continue };
            if offers.rows.is_disjoint(&rows) || !world.interner.compatible(set, offers.set, true) {
                continue;
            }
            any = true;
            let left = world.plan.reservation(id);
            if (held.contains(id) || left > 0) && !found.contains(id) {
                found.push(Arc::clone(id));
            }
        }
        let strict = !world.snapshot.options.reserved_fallback;
        if strict && found.is_empty() && (any || !held.is_empty()) {
            return Err(Refusal::Reserved);
        }
        Ok(found)
    }
}

/// A class's requirements on top of a template's or claim's, unless they do not go together.
pub(in crate::scheduling::solver) fn merge_class(
    world: &mut Prepared<'_>,
    class: ClassId,
    template: TemplateId,
    set: SetId,
) -> Option<SetId> {
    let wanted = &world.classes.classes[class];
    let taints = world.template_taints[template];
    // A new node's name is not known: it can only be asked not to be some other.
    let elsewhere = !wanted.host.is_none() && !world.interner.req(wanted.host).complement;
    if elsewhere
        || !world.tolerance.tolerates(wanted.tolerations, taints)
        || !world.interner.compatible(set, wanted.set, true)
    {
        return None;
    }
    Some(world.interner.merge(set, wanted.set))
}

/// Requirements with each place where the volumes can be that goes together with them.
pub(in crate::scheduling::solver) fn merge_volumes(
    volumes: &[(SetId, ReqId)],
    base: SetId,
    world: &mut Prepared<'_>,
) -> SmallVec<[SetId; 1]> {
    let mut sets = SmallVec::new();
    for (place, host) in volumes {
        let elsewhere = !host.is_none() && !world.interner.req(*host).complement;
        if !elsewhere && world.interner.compatible(base, *place, true) {
            sets.push(world.interner.merge(base, *place));
        }
    }
    sets
}
