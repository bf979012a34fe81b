//! What a planned node becomes with one more pod: requirements, types, reservations.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Fit, Refusal, Round, UNKNOWN};
use crate::scheduling::solver::amounts::{Amounts, add};
use crate::scheduling::solver::classes::{ClassId, NeedId};
use crate::scheduling::solver::intern::{NONE, SetId};
use crate::scheduling::solver::prepare::Prepared;
use crate::scheduling::solver::stock::{ShapeId, lower};

impl Round<'_, '_> {
    /// What a shape's requirements become with a class, or [`NONE`].
    pub(super) fn merge_shape(&mut self, class: ClassId, shape: ShapeId) -> SetId {
        let world = &mut *self.world;
        if world.memo.merged.len() <= class as usize {
            world.memo.merged.resize(world.classes.classes.len(), Vec::new());
        }
        let known = &mut world.memo.merged[class as usize];
        if known.len() <= shape as usize {
            known.resize(shape as usize + 1, UNKNOWN);
        }
        if known[shape as usize] != UNKNOWN {
            return known[shape as usize];
        }
        let of = &world.stock.shapes[shape as usize];
        let (template, set) = (of.template, of.set);
        let merged = merge_class(world, class, template, set).unwrap_or(NONE);
        world.memo.merged[class as usize][shape as usize] = merged;
        merged
    }

    /// The same with the volumes: one entry for each place of these.
    pub(in crate::scheduling::solver) fn merged_sets(
        &mut self,
        class: ClassId,
        shape: ShapeId,
    ) -> SmallVec<[SetId; 1]> {
        let base = self.merge_shape(class, shape);
        if base == NONE {
            return SmallVec::new();
        }
        let world = &mut *self.world;
        let volumes = &world.classes.classes[class as usize].volumes;
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
            let of = &world.stock.shapes[shape as usize];
            (of.template, of.mask)
        };
        let ports = &world.classes.classes[class as usize].constraints.host_ports;
        if !ports.is_empty() {
            mask = world.stock.mask_ports(template, mask, ports);
        }
        let mut set = set;
        let mut next = world.stock.shape(template, set, mask, &mut world.interner);
        let amounts = &world.classes.needs[need as usize];
        if !world.stock.shapes[next as usize].holds(requests, amounts) {
            return Err(Refusal::Lasting);
        }
        let mut relaxed = false;
        if !world.stock.shapes[next as usize].min_values.is_empty() {
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
        let reserved = if self.reservations.is_empty() {
            Vec::new()
        } else {
            self.reserve(next, requests, need, held)?
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
        add(&mut total, &world.classes.needs[need as usize]);
        let of = &world.stock.shapes[shape as usize];
        let (template, set) = (of.template, of.set);
        let catalog = world.stock.templates[template as usize].catalog;
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
            let left = self.reservations.get(id).copied().unwrap_or(0);
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

    pub(super) fn hold(&mut self, before: &[Arc<str>], after: &[Arc<str>]) {
        for id in before.iter().filter(|id| !after.contains(id)) {
            if let Some(left) = self.reservations.get_mut(id) {
                *left += 1;
            }
        }
        for id in after.iter().filter(|id| !before.contains(id)) {
            if let Some(left) = self.reservations.get_mut(id) {
                *left -= 1;
            }
        }
    }
}

/// A class's requirements on top of a template's or claim's, unless they do not go together.
pub(in crate::scheduling::solver) fn merge_class(
    world: &mut Prepared<'_>,
    class: ClassId,
    template: u32,
    set: SetId,
) -> Option<SetId> {
    let wanted = &world.classes.classes[class as usize];
    let taints = world.template_taints[template as usize];
    // A new node's name is not known: it can only be asked not to be some other.
    let elsewhere = wanted.host != NONE && !world.interner.req(wanted.host).complement;
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
    volumes: &[(SetId, u32)],
    base: SetId,
    world: &mut Prepared<'_>,
) -> SmallVec<[SetId; 1]> {
    let mut sets = SmallVec::new();
    for (place, host) in volumes {
        let elsewhere = *host != NONE && !world.interner.req(*host).complement;
        if !elsewhere && world.interner.compatible(base, *place, true) {
            sets.push(world.interner.merge(base, *place));
        }
    }
    sets
}
