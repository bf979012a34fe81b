//! Instance types by column: for each requirement the types that meet it, for each kind of offering
//! the types that have it and at what price.

use std::sync::Arc;

use fixedbitset::FixedBitSet;
use rustc_hash::{FxHashMap, FxHashSet};

use super::amounts::Resources;
use super::intern::Interner;
use crate::api::labels;
use crate::scheduling::instance_type::{InstanceType, Offering};
use crate::scheduling::resources::{Name, ResourceList};
use crate::scheduling::solver::ids::{Id, KeyId, ReqId, SetId, ValueId};

/// Offerings that differ only in price and type.
pub(super) struct Offers {
    pub(super) set: SetId,
    /// Rows that have such an offering available.
    pub(super) rows: FixedBitSet,
    /// Price by row; infinite where there is none.
    pub(super) price: Vec<f64>,
    /// The reservation behind it, when it is reserved.
    pub(super) reservation: Option<Arc<str>>,
}

/// The values that types have for one key.
struct Column {
    absent: FixedBitSet,
    values: Vec<(ReqId, FixedBitSet)>,
}

/// A list of instance types. A row is a type, or a type with offerings of another capacity.
pub(super) struct Catalog {
    pub(super) types: Arc<[Arc<InstanceType>]>,
    /// The type of each row.
    pub(super) row_type: Vec<u32>,
    /// Amounts for pods, by row.
    pub(super) allocatable: Vec<i64>,
    /// Rows on which nothing fits: some amount is negative.
    pub(super) broken: FixedBitSet,
    pub(super) offers: Vec<Offers>,
    /// Rows by what a reserved offering asks for whose reservation is full.
    full: Vec<(SetId, FixedBitSet)>,
    columns: FxHashMap<KeyId, Column>,
    req_masks: FxHashMap<ReqId, FixedBitSet>,
    matching: FxHashMap<SetId, FixedBitSet>,
    offered: FxHashMap<SetId, FixedBitSet>,
    prices: FxHashMap<SetId, Arc<[f64]>>,
    capacity: FxHashMap<Name, Arc<[i64]>>,
    /// Least capacity of each reservation, by id.
    pub(super) reservations: FxHashMap<Arc<str>, i64>,
}

impl Catalog {
    pub(super) fn new(
        types: &Arc<[Arc<InstanceType>]>,
        resources: &Resources,
        interner: &mut Interner,
    ) -> Self {
        let mut catalog = Self {
            types: Arc::clone(types),
            row_type: Vec::with_capacity(types.len()),
            allocatable: Vec::with_capacity(types.len() * resources.len()),
            broken: FixedBitSet::new(),
            offers: Vec::new(),
            full: Vec::new(),
            columns: FxHashMap::default(),
            req_masks: FxHashMap::default(),
            matching: FxHashMap::default(),
            offered: FxHashMap::default(),
            prices: FxHashMap::default(),
            capacity: FxHashMap::default(),
            reservations: FxHashMap::default(),
        };
        let row_of_offer = catalog.add_rows(resources);
        catalog.add_offers(&row_of_offer, interner);
        catalog
    }

    /// Makes the rows; returns the row of each offering in order.
    fn add_rows(&mut self, resources: &Resources) -> Vec<u32> {
        let types = Arc::clone(&self.types);
        let mut row_of_offer = Vec::new();
        for (index, kind) in types.iter().enumerate() {
            let base = self.add_row(index, &kind.allocatable(), resources);
            let mut others: Vec<(&Offering, u32)> = Vec::new();
            for offering in &kind.offerings {
                let row = if offering.overrides_nothing() || !offering.available {
                    base
                } else if let Some((_, row)) = others.iter().find(|(o, _)| o.same_size(offering)) {
                    *row
                } else {
                    let row = self.add_row(index, &kind.allocatable_of(offering), resources);
                    others.push((offering, row));
                    row
                };
                row_of_offer.push(row);
            }
        }
        row_of_offer
    }

    fn add_row(&mut self, index: usize, allocatable: &ResourceList, resources: &Resources) -> u32 {
        let row = self.row_type.len();
        self.row_type.push(index as u32);
        self.broken.grow(row + 1);
        self.broken.set(row, allocatable.iter().any(|(_, value)| value < 0));
        self.allocatable.extend_from_slice(&resources.vector(allocatable));
        row as u32
    }

    fn add_offers(&mut self, row_of_offer: &[u32], interner: &mut Interner) {
        let rows = self.rows();
        let mut index: FxHashMap<SetId, usize> = FxHashMap::default();
        let mut reserved: FxHashMap<SetId, bool> = FxHashMap::default();
        let types = Arc::clone(&self.types);
        let mut row_of_offer = row_of_offer.iter();
        for offering in types.iter().flat_map(|t| &t.offerings) {
            let Some(row) = row_of_offer.next().map(|r| *r as usize) else { break };
            let (set, _) = interner.intern_all(&offering.requirements);
            let reserved = *reserved
                .entry(set)
                .or_insert_with(|| offering.capacity_type() == labels::CAPACITY_RESERVED);
            if reserved {
                let left = offering.reservation_capacity;
                self.reservations
                    .entry(Arc::from(offering.reservation_id()))
                    .and_modify(|c| *c = (*c).min(left))
                    .or_insert(left);
            }
            // A full reservation is known, and is no way to launch anything.
            if reserved && offering.reservation_capacity <= 0 {
                let at = self.full.iter().position(|(s, _)| *s == set).unwrap_or_else(|| {
                    self.full.push((set, FixedBitSet::with_capacity(rows)));
                    self.full.len() - 1
                });
                self.full[at].1.insert(row);
                continue;
            }
            if !offering.available {
                continue;
            }
            let at = *index.entry(set).or_insert_with(|| {
                self.offers.push(Offers {
                    set,
                    rows: FixedBitSet::with_capacity(rows),
                    price: vec![f64::INFINITY; rows],
                    reservation: reserved.then(|| Arc::from(offering.reservation_id())),
                });
                self.offers.len() - 1
            });
            self.offers[at].rows.insert(row);
            let price = &mut self.offers[at].price[row];
            *price = price.min(offering.price);
        }
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.row_type.len()
    }

    fn column(&mut self, key: KeyId, interner: &mut Interner) -> &Column {
        if !self.columns.contains_key(&key) {
            let rows = self.rows();
            let name = Arc::clone(interner.key_name(key));
            let mut column =
                Column { absent: FixedBitSet::with_capacity(rows), values: Vec::new() };
            let mut index: FxHashMap<ReqId, usize> = FxHashMap::default();
            let mut place = 0;
            for row in 0..rows {
                let kind = &self.types[self.row_type[row] as usize];
                let Some(requirement) = kind.requirements.get_near(&name, &mut place) else {
                    column.absent.insert(row);
                    continue;
                };
                let req = interner.intern(requirement);
                let at = *index.entry(req).or_insert_with(|| {
                    column.values.push((req, FixedBitSet::with_capacity(rows)));
                    column.values.len() - 1
                });
                column.values[at].1.insert(row);
            }
            self.columns.insert(key, column);
        }
        &self.columns[&key]
    }

    /// Rows whose types go together with a requirement.
    fn req_mask(&mut self, req: ReqId, interner: &mut Interner) -> &FixedBitSet {
        if !self.req_masks.contains_key(&req) {
            let key = interner.req(req).key;
            let column = self.column(key, interner);
            let mut mask = column.absent.clone();
            for (value, rows) in &column.values {
                if interner.agree(*value, req) {
                    mask.union_with(rows);
                }
            }
            self.req_masks.insert(req, mask);
        }
        &self.req_masks[&req]
    }

    /// Rows whose types go together with all requirements of a set.
    pub(super) fn matching(&mut self, set: SetId, interner: &mut Interner) -> &FixedBitSet {
        if !self.matching.contains_key(&set) {
            let mut mask = FixedBitSet::with_capacity(self.rows());
            mask.insert_range(..);
            let reqs: Vec<ReqId> = interner.set(set).iter().map(|(_, r)| *r).collect();
            for req in reqs {
                mask.intersect_with(self.req_mask(req, interner));
            }
            self.matching.insert(set, mask);
        }
        &self.matching[&set]
    }

    /// Rows with an available offering that a node with these requirements may take.
    pub(super) fn offered(&mut self, set: SetId, interner: &mut Interner) -> &FixedBitSet {
        if !self.offered.contains_key(&set) {
            let mut mask = FixedBitSet::with_capacity(self.rows());
            for offers in &self.offers {
                if interner.compatible(set, offers.set, true) {
                    mask.union_with(&offers.rows);
                }
            }
            self.offered.insert(set, mask);
        }
        &self.offered[&set]
    }

    /// Rows that a node with these requirements could be if only a reservation were not full.
    pub(super) fn reserved_elsewhere(&self, set: SetId, interner: &mut Interner) -> FixedBitSet {
        let mut rows = FixedBitSet::with_capacity(self.rows());
        for (place, of) in &self.full {
            if interner.compatible(set, *place, true) {
                rows.union_with(of);
            }
        }
        rows
    }

    /// The cheapest such offering of each row; infinite without one.
    pub(super) fn prices(&mut self, set: SetId, interner: &mut Interner) -> Arc<[f64]> {
        if let Some(prices) = self.prices.get(&set) {
            return Arc::clone(prices);
        }
        let mut prices = vec![f64::INFINITY; self.rows()];
        for offers in &self.offers {
            if interner.compatible(set, offers.set, true) {
                for (price, other) in prices.iter_mut().zip(&offers.price) {
                    *price = price.min(*other);
                }
            }
        }
        let prices: Arc<[f64]> = prices.into();
        self.prices.insert(set, Arc::clone(&prices));
        prices
    }

    /// All that each row's machine has of a resource.
    pub(super) fn capacity(&mut self, name: &Name) -> Arc<[i64]> {
        if let Some(column) = self.capacity.get(name) {
            return Arc::clone(column);
        }
        let column: Arc<[i64]> =
            self.row_type.iter().map(|t| self.types[*t as usize].capacity.get(name)).collect();
        self.capacity.insert(name.clone(), Arc::clone(&column));
        column
    }

    /// How many different values the types of these rows have for a key, of those that a requirement
    /// on the key still allows.
    pub(super) fn variety(
        &mut self,
        rows: &FixedBitSet,
        key: KeyId,
        allowed: ReqId,
        interner: &mut Interner,
    ) -> i64 {
        let column = self.column(key, interner);
        let mut seen = FixedBitSet::with_capacity(interner.value_count(key));
        for (req, with_value) in &column.values {
            if !with_value.is_disjoint(rows) {
                for value in interner.req(*req).values.iter().filter(|v| interner.has(allowed, **v))
                {
                    seen.grow_and_insert(value.at());
                }
            }
        }
        seen.count_ones(..) as i64
    }

    /// Every value that a key can have on a node with these requirements: of a type that meets them,
    /// from an available offering that does.
    pub(super) fn domains(
        &mut self,
        key: KeyId,
        set: SetId,
        interner: &mut Interner,
        add: &mut dyn FnMut(ValueId),
    ) {
        let mut rows = self.matching(set, interner).clone();
        rows.difference_with(&self.broken);
        let own = interner.get(set, key);
        // Rows whose offerings leave the key to the type.
        let mut left_open = FixedBitSet::with_capacity(self.rows());
        let mut reqs: FxHashSet<ReqId> = FxHashSet::default();
        for offers in &self.offers {
            if offers.rows.is_disjoint(&rows) || !interner.compatible(set, offers.set, true) {
                continue;
            }
            match interner.get(offers.set, key) {
                Some(req) => {
                    reqs.insert(req);
                }
                None => left_open.union_with(&offers.rows),
            }
        }
        left_open.intersect_with(&rows);
        if !left_open.is_clear() {
            let column = self.column(key, interner);
            let with_key = column.values.iter().filter(|(_, with)| !with.is_disjoint(&left_open));
            reqs.extend(with_key.map(|(req, _)| *req));
            if !column.absent.is_disjoint(&left_open) {
                reqs.extend(own);
            }
        }
        for req in reqs.into_iter().map(|r| interner.req(r)).filter(|r| !r.complement) {
            req.values.iter().copied().filter(|v| interner.admits(own, *v)).for_each(&mut *add);
        }
    }
}
