//! From numbers back to NodeClaims to create and reasons to report.

use std::collections::BTreeSet;
use std::sync::Arc;

use fixedbitset::FixedBitSet;
use rustc_hash::{FxHashMap, FxHashSet};

use super::relax::reasons;
use super::round::{Place, Round};
use super::stock::min_values_text;
use crate::api::labels;
use crate::api::v1::Operator;
use crate::scheduling::pod::PodKey;
use crate::scheduling::requirements::{Requirement, Requirements};
use crate::scheduling::resources::ResourceList;
use crate::scheduling::results::{
    LimitedPool, MAX_INSTANCE_TYPES, PlannedClaim, PodError, Results, TypeList,
};
use crate::scheduling::solver::ids::{ClassId, KindId, PodId, SetId, TemplateId};

/// What claims have in common once they are written out.
#[derive(Default)]
pub(super) struct Written {
    /// Rows of a template with these requirements, cheapest first.
    order: FxHashMap<(TemplateId, SetId), Arc<[u32]>>,
    lists: FxHashMap<(TemplateId, SetId, FixedBitSet), TypeList>,
    requirements: FxHashMap<SetId, Requirements>,
}

impl Round<'_, '_> {
    /// The outcome of the round.
    pub(super) fn finish(mut self) -> Results {
        let mut results = Results::default();
        let key_of = |round: &Self, pod: PodId| round.world.waiting[pod].pod.key.clone();
        let touched: BTreeSet<usize> = self.world.plan.placed_since(self.mark).collect();
        for node in touched {
            let keys = self.world.plan.pods_on(node).iter().map(|p| key_of(&self, *p)).collect();
            results.existing.push((self.world.existing.nodes[node].name.clone(), keys));
        }
        if self.world.snapshot.options.report_relaxations {
            results.relaxed = self.relaxed();
        }
        let mut errors = self.explain();
        self.record_devices();
        if self.world.snapshot.options.pack_by_price {
            self.improve();
            self.move_pods();
        }
        let mut shared = std::mem::take(&mut self.world.memo.written);
        for index in 0..self.world.plan.claims.len() {
            let (mut planned, unmet) = self.render(index, &mut shared);
            planned.devices = self.world.plan.claims[index].devices.take();
            match unmet {
                None => results.new_claims.push(planned),
                Some(text) => {
                    let pool = planned.node_pool.metadata.name.clone().unwrap_or_default();
                    let error = PodError::MinValues { pool, text };
                    errors.extend(planned.pods.into_iter().map(|key| (key, error.clone())));
                }
            }
        }
        self.world.memo.written = shared;
        errors.sort_by(|a, b| a.0.cmp(&b.0));
        results.errors = errors;
        results.limited_pools = self.limited_pools();
        results
    }

    /// Pools whose limits left out types at the last look.
    fn limited_pools(&self) -> Vec<LimitedPool> {
        let name = |t: &TemplateId| self.world.stock.templates[*t].name.to_string();
        let limited = self.limited.iter().filter(|(_, (excluded, _))| *excluded > 0);
        limited
            .map(|(t, (excluded, total))| LimitedPool {
                name: name(t),
                excluded: *excluded,
                total: *total,
            })
            .collect()
    }

    /// Notes how many of a template's types these rows leave out.
    pub(super) fn note_limited(&mut self, template: TemplateId, rows: &FixedBitSet) {
        let base = &self.world.stock.templates[template].base;
        let catalog = &self.world.stock.catalogs[self.world.stock.templates[template].catalog];
        let types = |rows: &FixedBitSet| -> usize {
            let mut seen = FixedBitSet::with_capacity(catalog.types.len());
            rows.ones().for_each(|row| seen.insert(catalog.row_type[row] as usize));
            seen.count_ones(..)
        };
        let (total, left) = (types(base), types(rows));
        self.limited.insert(template, (total - left, total));
    }

    /// What was asked of pods no longer when they were placed, or given up.
    fn relaxed(&self) -> Vec<(PodKey, Arc<[String]>)> {
        let mut known: FxHashMap<(KindId, ClassId), Arc<[String]>> = FxHashMap::default();
        let mut list = Vec::new();
        let failed: FxHashSet<PodId> = self.failed.iter().copied().collect();
        for (at, waiting) in self.world.waiting.pairs() {
            let stages = &self.world.classes.kinds[waiting.kind].stages;
            let last = if failed.contains(&at) {
                stages.last().copied()
            } else if self.places[at] == Place::Nowhere {
                None
            } else {
                Some(self.placed_as[at])
            };
            let (Some(first), Some(last)) = (stages.first().copied(), last) else { continue };
            if first == last {
                continue;
            }
            let of = |class: ClassId| &*self.world.classes.classes[class].constraints;
            let steps = known
                .entry((waiting.kind, last))
                .or_insert_with(|| reasons(of(first), of(last), self.world.tolerate_prefer).into());
            list.push((waiting.pod.key.clone(), Arc::clone(steps)));
        }
        list
    }

    /// A claim as it is to be created, and whether cutting its list of types broke minValues.
    fn render(&mut self, index: usize, shared: &mut Written) -> (PlannedClaim, Option<String>) {
        let world = &mut *self.world;
        let claim = &world.plan.claims[index];
        let shape = &world.stock.shapes[claim.shape];
        let (template, set) = (shape.template, shape.set);
        let rows = world.stock.rows_for(claim.shape, &claim.requests);
        let mut requests = ResourceList::new();
        for pod in &claim.pods {
            requests.add(&world.waiting[*pod].pod.requests);
        }
        let mould = &world.stock.templates[template];
        requests.add(&mould.overhead(&rows));
        let requirements = shared
            .requirements
            .entry(set)
            .or_insert_with(|| world.interner.requirements(set))
            .clone();
        let node_pool = Arc::clone(&mould.node_pool);
        let taints = mould.taints.clone();
        let mut planned = PlannedClaim {
            node_pool,
            requirements,
            taints,
            requests,
            instance_types: TypeList::default(),
            pods: claim.pods.iter().map(|p| world.waiting[*p].pod.key.clone()).collect(),
            min_values_relaxed: claim.min_values_relaxed,
            devices: None,
        };
        if !claim.reserved.is_empty() {
            pin_reservations(&mut planned.requirements, &claim.reserved);
        }
        let (types, unmet) = self.types(index, template, set, rows, shared);
        planned.instance_types = types;
        (planned, unmet)
    }

    /// The claim's instance types, cheapest first, as many as a NodeClaim may list.
    fn types(
        &mut self,
        index: usize,
        template: TemplateId,
        set: SetId,
        rows: FixedBitSet,
        shared: &mut Written,
    ) -> (TypeList, Option<String>) {
        let world = &mut *self.world;
        let claim = &world.plan.claims[index];
        let order = match shared.order.get(&(template, set)) {
            Some(order) => Arc::clone(order),
            None => {
                let prices = world.stock.catalog(template).prices(set, &mut world.interner);
                let catalog = world.stock.catalog(template);
                let mut order: Vec<u32> = (0..catalog.rows() as u32)
                    .filter(|row| prices[*row as usize].is_finite())
                    .collect();
                let name =
                    |row: &u32| &catalog.types[catalog.row_type[*row as usize] as usize].name;
                order.sort_by(|a, b| {
                    prices[*a as usize]
                        .total_cmp(&prices[*b as usize])
                        .then_with(|| name(a).cmp(name(b)))
                });
                let order: Arc<[u32]> = order.into();
                shared.order.insert((template, set), Arc::clone(&order));
                order
            }
        };
        let mut kept = rows.clone();
        let mut unmet = None;
        let strict = !world.snapshot.options.best_effort_min_values;
        let wanted = !world.stock.shapes[claim.shape].min_values.is_empty();
        let list = if let Some(list) = shared.lists.get(&(template, set, rows.clone())) {
            list.clone()
        } else {
            let catalog = world.stock.catalog(template);
            let mut types = Vec::new();
            let mut seen = FixedBitSet::with_capacity(catalog.types.len());
            for row in order.iter().map(|r| *r as usize).filter(|r| rows.contains(*r)) {
                let at = catalog.row_type[row] as usize;
                if types.len() < MAX_INSTANCE_TYPES && !seen.put(at) {
                    types.push(Arc::clone(&catalog.types[at]));
                }
            }
            types.shrink_to_fit();
            let list = TypeList::from(types);
            shared.lists.insert((template, set, rows.clone()), list.clone());
            list
        };
        if wanted && strict {
            let catalog = world.stock.catalog(template);
            for row in rows.ones() {
                let kind = &catalog.types[catalog.row_type[row] as usize];
                kept.set(row, list.iter().any(|t| Arc::ptr_eq(t, kind)));
            }
            let keys = world.stock.unmet(claim.shape, &kept, &mut world.interner);
            if !keys.is_empty() {
                let names = keys.iter().map(|(k, _)| &**world.interner.key_name(*k));
                unmet = Some(min_values_text(names));
            }
        }
        (list, unmet)
    }
}

/// A claim that holds reservations may take nothing else.
fn pin_reservations(requirements: &mut Requirements, ids: &[Arc<str>]) {
    requirements.replace(Requirement::is(labels::CAPACITY_TYPE, labels::CAPACITY_RESERVED));
    requirements.replace(Requirement::new(labels::CAPACITY_RESERVATION_ID, Operator::In, ids));
}
