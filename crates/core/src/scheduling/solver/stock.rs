//! What can be launched: templates of the NodePools, and the shapes that a planned node can have.

use std::sync::Arc;

use fixedbitset::FixedBitSet;
use k8s_openapi::api::core::v1::Taint;
use rustc_hash::FxHashMap;

use super::amounts::{Amounts, Resources, add, fits, sum_fits};
use super::attach::Attachable;
use super::catalog::Catalog;
use super::intern::Interner;
use super::ladder::Ladder;
use crate::api::labels;
use crate::api::v1::NodePool;
use crate::scheduling::pod::{HostPort, PodInfo};
use crate::scheduling::requirements::{Requirement, Requirements};
use crate::scheduling::resources::{Name, ResourceList};
use crate::scheduling::results::SkippedPool;
use crate::scheduling::snapshot::NodePoolInput;
use crate::scheduling::solver::ids::{
    CatalogId, DaemonId, Id, Interned, KeyId, List, MaskId, ReqId, SetId, ShapeId, TemplateId,
};
use crate::scheduling::taints::{prefer_no_schedule, tolerate_all};

/// The mask that leaves all rows.
pub(super) const ALL: MaskId = MaskId::FIRST;

/// The limit on the number of nodes.
pub(super) const NODES: &str = "nodes";

/// The DaemonSets that run on some of a template's instance types.
pub(super) struct DaemonGroup {
    pub(super) rows: FixedBitSet,
    pub(super) members: Vec<DaemonId>,
    pub(super) overhead: Amounts,
    pub(super) list: ResourceList,
    pub(super) ports: Vec<HostPort>,
}

/// The mould of a NodePool's new nodes.
pub(super) struct Template {
    pub(super) node_pool: Arc<NodePool>,
    pub(super) name: Arc<str>,
    /// The pool's weight; heavier pools come first.
    pub(super) weight: i32,
    pub(super) set: SetId,
    pub(super) taints: Vec<Taint>,
    pub(super) catalog: CatalogId,
    /// Rows that the pool's own requirements leave.
    pub(super) base: FixedBitSet,
    pub(super) groups: Vec<DaemonGroup>,
    /// Allocatable less daemons, by row.
    pub(super) net: Vec<i64>,
    pub(super) min_values_relaxed: bool,
    /// The pool's limits, if it has some.
    pub(super) limits: Option<ResourceList>,
    /// The most that any of its types has, by resource, as far as it was asked for.
    most: Vec<(Name, i64)>,
}

/// A template narrowed by requirements and by rows left out: all that a planned node's instance
/// types depend on, but for the size of its pods.
pub(super) struct Shape {
    pub(super) template: TemplateId,
    pub(super) set: SetId,
    pub(super) mask: MaskId,
    /// Rows that meet the requirements and have an offering.
    pub(super) rows: FixedBitSet,
    /// Amounts of the rows that no other row exceeds in everything.
    front: Vec<i64>,
    /// Keys whose values must stay various, and how many.
    pub(super) min_values: Vec<(KeyId, i64)>,
}

impl Shape {
    /// True when some type holds both amounts together.
    #[inline]
    pub(super) fn holds(&self, requests: &[i64], more: &[i64]) -> bool {
        !requests.is_empty()
            && self.front.chunks_exact(requests.len()).any(|room| sum_fits(requests, more, room))
    }
}

/// Catalogs, templates and shapes.
pub(super) struct Stock {
    pub(super) catalogs: List<CatalogId, Catalog>,
    pub(super) templates: List<TemplateId, Template>,
    pub(super) shapes: List<ShapeId, Shape>,
    index: FxHashMap<(TemplateId, SetId, MaskId), ShapeId>,
    /// Rows left by each mask.
    masks: Interned<MaskId, FixedBitSet>,
    unit_prices: FxHashMap<ShapeId, f64>,
    /// How often each shape's price was asked for, and its ladder once that was often.
    ladders: FxHashMap<ShapeId, (u32, Option<Ladder>)>,
    width: usize,
}

/// Requirements that a NodePool puts on its nodes, its own labels included.
#[must_use]
pub fn pool_requirements(pool: &NodePool) -> Requirements {
    let template = &pool.spec.template;
    let mut requirements = Requirements::from_api(&template.spec.requirements);
    for (key, value) in template.metadata.labels.iter().flatten() {
        requirements.add(Requirement::is(key, value));
    }
    let name = pool.metadata.name.as_deref().unwrap_or("");
    requirements.add(Requirement::is(labels::NODEPOOL, name));
    let class = &template.spec.node_class_ref;
    let class_key = format!("{}/{}", class.group, class.kind.to_lowercase());
    requirements.add(Requirement::is(&class_key, &class.name));
    requirements
}

/// What a pool's new nodes will be once they take pods.
pub(super) fn template_requirements(pool: &NodePool) -> Requirements {
    let mut requirements = pool_requirements(pool);
    requirements.add(Requirement::is(labels::REGISTERED, "true"));
    requirements.add(Requirement::is(labels::INITIALIZED, "true"));
    requirements
}

impl Stock {
    pub(super) fn new(width: usize) -> Self {
        let mut masks = Interned::default();
        masks.insert(FixedBitSet::new());
        Self {
            catalogs: List::default(),
            templates: List::default(),
            shapes: List::default(),
            index: FxHashMap::default(),
            masks,
            unit_prices: FxHashMap::default(),
            ladders: FxHashMap::default(),
            width,
        }
    }

    /// Adds the template of a pool, unless nothing is left to launch for it.
    pub(super) fn add_pool(
        &mut self,
        input: &NodePoolInput,
        daemons: &[Arc<PodInfo>],
        (resources, attachable): (&Resources, &Attachable),
        best_effort: bool,
        interner: &mut Interner,
    ) -> Result<(), SkippedPool> {
        // Pools of one node class share their list of types, and so its columns, which are dear to
        // make.
        let catalog = match self.catalogs.position(|c| Arc::ptr_eq(&c.types, &input.instance_types))
        {
            Some(id) => id,
            None => self.catalogs.push(Catalog::new(&input.instance_types, resources, interner)),
        };
        let pool = &input.node_pool;
        let (set, _) = interner.intern_once(&template_requirements(pool));
        let columns = &mut self.catalogs[catalog];
        let mut base = columns.matching(set, interner).clone();
        // Where only reservations are left and all of them are full, pods wait for one of them.
        let mut had = columns.offered(set, interner).clone();
        if had.is_clear() {
            had = columns.reserved_elsewhere(set, interner);
        }
        base.intersect_with(&had);
        // A type whose own overhead is larger than it: nothing can run there, and its room would be
        // negative.
        base.difference_with(&columns.broken);
        let mut template = Template {
            node_pool: Arc::clone(pool),
            name: Arc::from(pool.metadata.name.as_deref().unwrap_or("")),
            weight: pool.spec.weight.unwrap_or(0),
            set,
            taints: pool.spec.template.spec.taints.clone().unwrap_or_default(),
            catalog,
            base,
            groups: Vec::new(),
            net: Vec::new(),
            min_values_relaxed: false,
            limits: pool
                .spec
                .limits
                .as_ref()
                .map(|l| ResourceList::from_quantities_lossy(Some(l)))
                .filter(|l| !l.is_empty()),
            most: Vec::new(),
        };
        template.group_daemons(daemons, resources, columns, interner);
        if attachable.is_used() {
            template.limit_volumes(attachable, resources, columns);
        }
        // A node that its DaemonSets overfill would be launched for pods that never start on it.
        template.keep_rows_that_hold_daemons(self.width);
        let skipped =
            |min_values| SkippedPool { node_pool: Arc::clone(&input.node_pool), min_values };
        if template.base.is_clear() {
            return Err(skipped(None));
        }
        let unmet = unmet(&mut self.catalogs[catalog], set, &template.base, interner);
        if !unmet.is_empty() {
            if !best_effort {
                let keys: Vec<_> = unmet.iter().map(|(k, _)| interner.key_name(*k)).collect();
                return Err(skipped(Some(min_values_text(keys.into_iter().map(|k| &**k)))));
            }
            template.set = lower(set, &unmet, interner);
            template.min_values_relaxed = true;
        }
        self.templates.push(template);
        Ok(())
    }

    /// The shape of a template with these requirements and without these rows.
    pub(super) fn shape(
        &mut self,
        template: TemplateId,
        set: SetId,
        mask: MaskId,
        interner: &mut Interner,
    ) -> ShapeId {
        // The same few shapes are asked for by thousands of pods.
        if let Some(id) = self.index.get(&(template, set, mask)) {
            return *id;
        }
        let mould = &self.templates[template];
        let catalog = &mut self.catalogs[mould.catalog];
        let mut rows = mould.base.clone();
        rows.intersect_with(catalog.matching(set, interner));
        rows.intersect_with(catalog.offered(set, interner));
        if mask != ALL {
            rows.intersect_with(&self.masks[mask]);
        }
        // Whether anything fits is asked most often: only rows that no other one exceeds need to be
        // compared.
        let front = front(&rows, &mould.net, self.width);
        let min_values = interner
            .set(set)
            .iter()
            .filter_map(|(key, req)| Some((*key, interner.req(*req).min_values?)))
            .collect();
        let id = self.shapes.push(Shape { template, set, mask, rows, front, min_values });
        self.index.insert((template, set, mask), id);
        id
    }

    /// The mask that leaves these rows.
    pub(super) fn mask(&mut self, rows: FixedBitSet) -> MaskId {
        self.masks.insert(rows)
    }

    /// The mask without the rows whose daemons use these ports.
    pub(super) fn mask_ports(
        &mut self,
        template: TemplateId,
        mask: MaskId,
        ports: &[HostPort],
    ) -> MaskId {
        let mould = &self.templates[template];
        let taken: Vec<&FixedBitSet> = mould
            .groups
            .iter()
            .filter(|g| g.ports.iter().any(|a| ports.iter().any(|b| a.conflicts(b))))
            .map(|g| &g.rows)
            .collect();
        if taken.is_empty() {
            return mask;
        }
        let mut rows = self.mask_rows(template, mask);
        for gone in taken {
            rows.difference_with(gone);
        }
        self.mask(rows)
    }

    /// The rows that a mask leaves of a template.
    pub(super) fn mask_rows(&self, template: TemplateId, mask: MaskId) -> FixedBitSet {
        let mut rows = self.templates[template].base.clone();
        if mask != ALL {
            rows.intersect_with(&self.masks[mask]);
        }
        rows
    }

    /// Rows of a shape that hold these amounts.
    pub(super) fn rows_for(&self, shape: ShapeId, requests: &[i64]) -> FixedBitSet {
        let shape = &self.shapes[shape];
        let net = &self.templates[shape.template].net;
        let mut rows = FixedBitSet::with_capacity(shape.rows.len());
        for row in shape.rows.ones() {
            if fits(requests, &net[row * self.width..(row + 1) * self.width]) {
                rows.insert(row);
            }
        }
        rows
    }

    /// Keys of a shape whose values are too few among these rows, and how many there are.
    pub(super) fn unmet(
        &mut self,
        shape: ShapeId,
        rows: &FixedBitSet,
        interner: &mut Interner,
    ) -> Vec<(KeyId, i64)> {
        let shape = &self.shapes[shape];
        let catalog = self.templates[shape.template].catalog;
        unmet(&mut self.catalogs[catalog], shape.set, rows, interner)
    }

    /// The catalog of a template.
    pub(super) fn catalog(&mut self, template: TemplateId) -> &mut Catalog {
        &mut self.catalogs[self.templates[template].catalog]
    }

    /// The most that any type of a template has of a resource.
    pub(super) fn most(&mut self, template: TemplateId, name: &Name) -> i64 {
        if let Some((_, most)) = self.templates[template].most.iter().find(|(n, _)| n == name) {
            return *most;
        }
        let capacity = self.catalog(template).capacity(name);
        let mould = &mut self.templates[template];
        let most = mould.base.ones().map(|row| capacity[row]).max().unwrap_or(0);
        mould.most.push((name.clone(), most));
        most
    }

    /// The lowest price for what a core and four gibibytes are worth, to distinguish good domains from bad
    /// ones; infinite when nothing can be launched.
    pub(super) fn unit_price(&mut self, shape: ShapeId, interner: &mut Interner) -> f64 {
        if let Some(price) = self.unit_prices.get(&shape) {
            return *price;
        }
        let of = &self.shapes[shape];
        let catalog = self.templates[of.template].catalog;
        let columns = &mut self.catalogs[catalog];
        let prices = columns.prices(of.set, interner);
        let cpu = columns.capacity(&Name::Cpu);
        let memory = columns.capacity(&Name::Memory);
        let worth =
            |row: usize| cpu[row] as f64 / 1e3 + memory[row] as f64 / f64::from(1_u32 << 31) / 2.0;
        let price =
            of.rows.ones().map(|row| prices[row] / worth(row)).fold(f64::INFINITY, f64::min);
        self.unit_prices.insert(shape, price);
        price
    }

    /// Price of the cheapest launch of a shape for these amounts; infinite when there is none.
    pub(super) fn cheapest(
        &mut self,
        shape: ShapeId,
        requests: &[i64],
        interner: &mut Interner,
    ) -> f64 {
        let width = self.width;
        let of = &self.shapes[shape];
        let mould = &self.templates[of.template];
        let (asked, ladder) = self.ladders.entry(shape).or_default();
        *asked += 1;
        // Most shapes are asked for a few times only; a price index for each of them would cost
        // more than it saves.
        if *asked > ASKED_OFTEN {
            let ladder = ladder.get_or_insert_with(|| {
                let prices = self.catalogs[mould.catalog].prices(of.set, interner);
                Ladder::new(&of.rows, &prices, &mould.net, width)
            });
            return ladder.cheapest(requests);
        }
        let prices = self.catalogs[mould.catalog].prices(of.set, interner);
        of.rows
            .ones()
            .filter(|row| fits(requests, &mould.net[row * width..(row + 1) * width]))
            .map(|row| prices[row])
            .fold(f64::INFINITY, f64::min)
    }
}

/// How often the price of a shape is worked out from all rows before its ladder is made.
const ASKED_OFTEN: u32 = 8;

/// Lowers minValues to what can be had.
pub(super) fn lower(set: SetId, unmet: &[(KeyId, i64)], interner: &mut Interner) -> SetId {
    let mut set = set;
    for (key, reached) in unmet {
        if let Some(req) = interner.get(set, *key) {
            let req = interner.with_min_values(req, *reached);
            set = interner.replace(set, req);
        }
    }
    set
}

/// Keys with too few values among these rows; an empty list of types lacks nothing.
fn unmet(
    catalog: &mut Catalog,
    set: SetId,
    rows: &FixedBitSet,
    interner: &mut Interner,
) -> Vec<(KeyId, i64)> {
    let wanted: Vec<(KeyId, ReqId, i64)> = interner
        .set(set)
        .iter()
        .filter_map(|(key, req)| Some((*key, *req, interner.req(*req).min_values?)))
        .collect();
    if wanted.is_empty() || rows.is_clear() {
        return Vec::new();
    }
    wanted
        .into_iter()
        .filter_map(|(key, req, least)| {
            let reached = catalog.variety(rows, key, req, interner);
            (reached < least).then_some((key, reached))
        })
        .collect()
}

/// The message for labels with too few values.
pub(super) fn min_values_text<'a>(keys: impl Iterator<Item = &'a str>) -> String {
    let mut keys: Vec<&str> = keys.collect();
    keys.sort_unstable();
    format!("minValues requirement is not met for label(s) (label(s)=[{}])", keys.join(" "))
}

/// The amounts that no other row exceeds in everything.
fn front(rows: &FixedBitSet, net: &[i64], width: usize) -> Vec<i64> {
    let mut order: Vec<usize> = rows.ones().collect();
    let row = |r: usize| &net[r * width..(r + 1) * width];
    // Large rows first, so that most others are dropped at the first comparison.
    order.sort_by_cached_key(|r| {
        std::cmp::Reverse(row(*r).iter().map(|v| 64 - v.leading_zeros()).sum::<u32>())
    });
    let mut front: Vec<i64> = Vec::new();
    for r in order {
        let amounts = row(r);
        if amounts.iter().any(|v| *v < 0)
            || front.chunks_exact(width).any(|other| fits(amounts, other))
        {
            continue;
        }
        let mut kept: Vec<i64> = Vec::with_capacity(front.len() + width);
        for other in front.chunks_exact(width).filter(|other| !fits(other, amounts)) {
            kept.extend_from_slice(other);
        }
        kept.extend_from_slice(amounts);
        front = kept;
    }
    front
}

impl Template {
    /// Groups rows by the DaemonSets that run there.
    ///
    /// Every required term of a DaemonSet is tried afresh for every type. [Q] Upstream drops terms
    /// for good while it goes through templates and types, so that its answer depends on their order.
    fn group_daemons(
        &mut self,
        daemons: &[Arc<PodInfo>],
        resources: &Resources,
        catalog: &mut Catalog,
        interner: &mut Interner,
    ) {
        let mut runs: Vec<(DaemonId, FixedBitSet)> = Vec::new();
        for (index, daemon) in daemons.iter().enumerate() {
            let mut tolerations = daemon.constraints.tolerations.clone();
            // DaemonSets run in spite of a preference of the node, as in Karpenter.
            tolerations.push(prefer_no_schedule());
            if tolerate_all(&self.taints, &tolerations).is_err() {
                continue;
            }
            let mut rows = FixedBitSet::with_capacity(catalog.rows());
            for wanted in daemon.constraints.alternatives() {
                let (wanted, host) = interner.intern_once(&wanted);
                // A host name that is asked for by name is never that of a new node.
                let elsewhere = !host.is_none() && !interner.req(host).complement;
                if !elsewhere && interner.compatible(self.set, wanted, true) {
                    rows.union_with(catalog.matching(wanted, interner));
                }
            }
            rows.intersect_with(&self.base);
            if !rows.is_clear() {
                runs.push((DaemonId::new(index), rows));
            }
        }
        let mut parts: Vec<(Vec<DaemonId>, FixedBitSet)> = vec![(Vec::new(), self.base.clone())];
        for (index, rows) in &runs {
            let mut next = Vec::with_capacity(parts.len() + 1);
            for (members, part) in parts {
                let mut with = part.clone();
                with.intersect_with(rows);
                let mut without = part;
                without.difference_with(rows);
                if !with.is_clear() {
                    let mut more = members.clone();
                    more.push(*index);
                    next.push((more, with));
                }
                if !without.is_clear() {
                    next.push((members, without));
                }
            }
            parts = next;
        }
        self.groups = parts
            .into_iter()
            .map(|(members, rows)| DaemonGroup::new(rows, members, daemons, resources))
            .collect();
        self.net.clone_from(&catalog.allocatable);
        let width = resources.len();
        for group in self.groups.iter().filter(|g| !g.members.is_empty()) {
            for row in group.rows.ones() {
                super::amounts::subtract(
                    &mut self.net[row * width..(row + 1) * width],
                    &group.overhead,
                );
            }
        }
    }

    /// Notes how many volumes each row takes.
    fn limit_volumes(&mut self, attachable: &Attachable, resources: &Resources, of: &Catalog) {
        let width = resources.len();
        for (row, kind) in of.row_type.iter().enumerate() {
            let mut list = ResourceList::new();
            attachable.add_limits(&of.types[*kind as usize], &self.name, &mut list);
            resources.add_to(&mut self.net[row * width..(row + 1) * width], &list, 1);
        }
    }

    fn keep_rows_that_hold_daemons(&mut self, width: usize) {
        let mut base = self.base.clone();
        for row in self.base.ones() {
            if self.net[row * width..(row + 1) * width].iter().any(|v| *v < 0) {
                base.set(row, false);
            }
        }
        self.base = base;
    }

    /// The daemons' share of a node's requests: the least over the groups that still have a type.
    ///
    /// [Q] As upstream, groups without daemons do not lower the least.
    pub(super) fn overhead(&self, rows: &FixedBitSet) -> ResourceList {
        let mut least: Option<ResourceList> = None;
        for group in &self.groups {
            if group.members.is_empty() || group.rows.is_disjoint(rows) {
                continue;
            }
            least = Some(match least {
                None => group.list.clone(),
                Some(least) => least
                    .iter()
                    .filter_map(|(name, value)| {
                        // What a NodeClaim asks for must fit every type that it lists, so that the
                        // least counts.
                        Some((name.clone(), value.min(group.list.find(name)?)))
                    })
                    .collect(),
            });
        }
        least.unwrap_or_default()
    }

    /// Whether no node more may be added to a pool that may still use this.
    pub(super) fn node_limit_reached(left: &ResourceList) -> bool {
        left.iter().any(|(name, amount)| name.as_str() == NODES && amount <= 0)
    }
}

impl DaemonGroup {
    fn new(
        rows: FixedBitSet,
        members: Vec<DaemonId>,
        daemons: &[Arc<PodInfo>],
        resources: &Resources,
    ) -> Self {
        let mut group = Self {
            rows,
            overhead: resources.zero(),
            list: ResourceList::new(),
            ports: Vec::new(),
            members: Vec::new(),
        };
        for member in &members {
            let daemon = &daemons[member.at()];
            add(&mut group.overhead, &resources.vector(&daemon.requests));
            group.list.add(&daemon.requests);
            group.ports.extend(daemon.constraints.host_ports.iter().cloned());
        }
        group.members = members;
        group
    }
}
