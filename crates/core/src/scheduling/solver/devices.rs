//! Dynamic resources in the round: pods with claims on devices only go where these can be had.
//!
//! Nothing of this runs in a round without such pods. What devices a place has is asked of the
//! ledger ([`crate::scheduling::dra`]) after every cheaper question, and booked with the placement.

use std::ops::ControlFlow;
use std::sync::Arc;

use fixedbitset::FixedBitSet;
use smallvec::SmallVec;

use super::amounts::{Amounts, add};
use super::round::{Claim, Fit, Opened, Refusal, Round};
use crate::api::labels;
use crate::scheduling::dra::ledger::{Booked, ClaimSite, NodeSite};
use crate::scheduling::dra::{
    ClaimPlan, DeviceSetId, Error, Inventory, Ledger, NodePlan, TypeGroup,
};
use crate::scheduling::node::StateNode;
use crate::scheduling::pod::PodInfo;
use crate::scheduling::requirements::{Allow, Requirement, Requirements};
use crate::scheduling::snapshot::Snapshot;
use crate::scheduling::solver::ids::{ClassId, MaskId, NeedId, PodId, SetId, ShapeId, TemplateId};

/// What a round has decided about devices.
pub(super) struct Devices {
    ledger: Ledger,
    /// What the existing node at hand would give.
    on_node: Option<NodePlan>,
    /// What the planned node at hand would become.
    on_claim: Option<ClaimPlan>,
}

impl Devices {
    pub(super) fn new(inventory: &Arc<Inventory>) -> Self {
        Self { ledger: Ledger::new(Arc::clone(inventory)), on_node: None, on_claim: None }
    }

    /// Forgets what was decided.
    pub(super) fn forget(&mut self) {
        *self = Self::new(self.ledger.inventory());
    }
}

/// The devices that matter to a snapshot's pods; nothing when no pod has claims on any.
pub(super) fn inventory(snapshot: &Snapshot, pods: &[&Arc<PodInfo>]) -> Option<Arc<Inventory>> {
    if snapshot.options.ignore_dynamic_resources || !pods.iter().any(|p| p.dynamic_resources) {
        return None;
    }
    let types = snapshot.node_pools.iter().flat_map(|p| p.instance_types.iter());
    let types = types.map(|t| &t.devices);
    Some(Arc::new(Inventory::new(&snapshot.dynamic, &snapshot.pods, &snapshot.nodes, types)))
}

/// What a planned node with a pod on it would be, and the rows that have devices for it.
struct Narrowed {
    plan: ClaimPlan,
    set: SetId,
    mask: MaskId,
}

impl Round<'_, '_> {
    /// Whether devices have a say about where a pod goes.
    pub(super) fn has_device_claims(&self, pod: PodId) -> bool {
        let Some(devices) = &self.world.plan.devices else { return false };
        devices.ledger.inventory().concerns(&self.world.waiting[pod].pod.key)
    }

    /// Whether a pod with claims on devices fits nowhere from the start.
    pub(super) fn cannot_have_devices(&self, pod: PodId) -> bool {
        self.world.snapshot.options.ignore_dynamic_resources || self.unresolved(pod).is_some()
    }

    /// Why a pod's claims cannot be looked at, if so.
    pub(super) fn unresolved(&self, pod: PodId) -> Option<&Error> {
        let inventory = self.world.plan.devices.as_ref()?.ledger.inventory();
        inventory.unresolved(&self.world.waiting[pod].pod.key)
    }

    // ---- nodes that exist

    /// Whether an existing node has devices for a pod; what it would give is kept for
    /// [`Self::take_devices_of_node`].
    pub(super) fn devices_suit_node(&mut self, pod: PodId, node: usize) -> bool {
        let Some(devices) = &mut self.world.plan.devices else { return true };
        // What was planned for the node before belongs to an attempt that failed.
        devices.on_node = None;
        let key = &self.world.waiting[pod].pod.key;
        if !devices.ledger.inventory().concerns(key) {
            return true;
        }
        let state = &self.world.snapshot.nodes[self.world.existing.nodes[node].index];
        let mut own = Requirements::from_labels(state.labels());
        // Devices may be tied to a node by that label, also before the kubelet has set it.
        if !own.has(labels::HOSTNAME) {
            own.add(Requirement::is(labels::HOSTNAME, state.name()));
        }
        let site = NodeSite {
            node,
            name: state
                .node
                .as_ref()
                .and_then(|n| n.metadata.name.as_deref())
                .unwrap_or(state.name()),
            labels: own,
            set: expected_devices(&self.world.snapshot, state, devices.ledger.inventory()),
        };
        match devices.ledger.on_node(key, &site) {
            Ok(plan) => {
                devices.on_node = Some(plan);
                true
            }
            Err(_) => false,
        }
    }

    /// Books what the existing node at hand gives.
    pub(super) fn take_devices_of_node(&mut self, node: usize) {
        if let Some(devices) = &mut self.world.plan.devices
            && let Some(plan) = devices.on_node.take()
        {
            devices.ledger.commit_node(node, plan);
        }
    }

    // ---- nodes that are planned

    /// The first planned node of a mask that takes a pod with claims, those with the fewest pods first.
    pub(super) fn first_claim_with_devices(
        &mut self,
        pod: PodId,
        class: ClassId,
        need: NeedId,
        mask: &[usize],
    ) -> Option<(usize, Fit)> {
        let mut order: Vec<usize> = Vec::new();
        if let Some(by_count) = &self.by_count {
            by_count.visit(self.version, &mut mask.to_vec(), |claim, _| {
                order.push(claim);
                ControlFlow::Continue(())
            });
        }
        order.into_iter().find_map(|claim| {
            let of = &self.world.plan.claims[claim];
            let (shape, requests, held) = (of.shape, of.requests.clone(), of.reserved.clone());
            let ports = &self.world.classes.classes[class].constraints.host_ports;
            if ports.iter().any(|p| of.ports.iter().any(|q| p.conflicts(q))) {
                return None;
            }
            let fit =
                self.fit_with_devices(pod, Some(claim), shape, &requests, (class, need), &held);
            fit.ok().map(|fit| (claim, fit))
        })
    }

    /// Tries the templates for a pod with claims, heaviest pool first; of pools of equal weight the
    /// cheapest.
    pub(super) fn open_with_devices(&mut self, pod: PodId, class: ClassId, need: NeedId) -> Opened {
        self.open_cheapest(need, |round, template| {
            round.open_one_with_devices(pod, template, class, need)
        })
    }

    /// Puts down what the planned node at hand gives; returns what was there.
    pub(super) fn replace_device_plan(&mut self, plan: Option<ClaimPlan>) -> Option<ClaimPlan> {
        let devices = self.world.plan.devices.as_mut()?;
        std::mem::replace(&mut devices.on_claim, plan)
    }

    fn open_one_with_devices(
        &mut self,
        pod: PodId,
        template: TemplateId,
        class: ClassId,
        need: NeedId,
    ) -> Result<Claim, Refusal> {
        let mask = self.limit_mask(template).ok_or(Refusal::Lasting)?;
        let wanted = &self.world.classes.classes[class];
        let named =
            wanted.strict_host.is_none() || self.world.interner.req(wanted.strict_host).complement;
        let (topology, tally) = (&self.world.topology, &self.world.plan.tally);
        if wanted
            .rules
            .iter()
            .filter(|s| s.host)
            .any(|s| !named || !tally.takes_new_host(topology, s.group, s.own, false))
        {
            return Err(Refusal::Passing);
        }
        let world = &mut *self.world;
        let of = &world.stock.templates[template];
        let (set, lowered) = (of.set, of.min_values_relaxed);
        let shape = world.stock.shape(template, set, mask, &mut world.interner);
        let requests = world.resources.zero();
        let fit = self.fit_with_devices(pod, None, shape, &requests, (class, need), &[])?;
        Ok(Claim {
            shape: fit.shape,
            requests,
            pods: Vec::new(),
            ports: Vec::new(),
            min_values_relaxed: fit.relaxed || lowered,
            reserved: fit.reserved,
            devices: None,
        })
    }

    /// What a planned node, or a new one, becomes with a pod that has claims on devices.
    fn fit_with_devices(
        &mut self,
        pod: PodId,
        claim: Option<usize>,
        shape: ShapeId,
        requests: &[i64],
        (class, need): (ClassId, NeedId),
        held: &[Arc<str>],
    ) -> Result<Fit, Refusal> {
        let of = &self.world.stock.shapes[shape];
        let (template, mask) = (of.template, of.mask);
        if !of.holds(requests, &self.world.classes.needs[need]) {
            return Err(Refusal::Lasting);
        }
        let relax = claim.is_none() && self.world.snapshot.options.best_effort_min_values;
        let mut refusal = Refusal::Passing;
        let sets: SmallVec<[SetId; 1]> = self.merged_sets(class, shape);
        for set in sets {
            let Ok(narrowed) = self.narrow_to_devices(pod, claim, template, mask, set) else {
                continue;
            };
            let mut set = narrowed.set;
            if self.world.classes.classes[class].zonal {
                match self.zones(class, set, Some((template, narrowed.mask))) {
                    Some(left) => set = left,
                    None => continue,
                }
            }
            let world = &mut *self.world;
            let shape = world.stock.shape(template, set, narrowed.mask, &mut world.interner);
            match self.fit(shape, set, requests, class, need, held, relax) {
                Ok(fit) => {
                    if let Some(devices) = &mut self.world.plan.devices {
                        devices.on_claim = Some(narrowed.plan);
                    }
                    return Ok(fit);
                }
                Err(found) => refusal = found,
            }
        }
        Err(refusal)
    }

    /// What devices leave of a planned node.
    fn narrow_to_devices(
        &mut self,
        pod: PodId,
        claim: Option<usize>,
        template: TemplateId,
        mask: MaskId,
        set: SetId,
    ) -> Result<Narrowed, Error> {
        let world = &mut *self.world;
        let Some(devices) = &mut world.plan.devices else {
            return Ok(Narrowed { plan: ClaimPlan::default(), set, mask });
        };
        let shape = world.stock.shape(template, set, mask, &mut world.interner);
        let rows = world.stock.shapes[shape].rows.clone();
        let catalog = world.stock.catalog(template);
        let mut types = FixedBitSet::with_capacity(catalog.types.len());
        for row in rows.ones() {
            types.insert(catalog.row_type[row] as usize);
        }
        let booked = claim.and_then(|c| devices.ledger.groups(c));
        let groups: Vec<TypeGroup> = match booked {
            Some(groups) => groups
                .iter()
                .filter_map(|g| {
                    let mut group = g.clone();
                    group.types.intersect_with(&types);
                    (!group.types.is_clear()).then_some(group)
                })
                .collect(),
            None => {
                by_devices(&types, |t| devices.ledger.inventory().set_of(&catalog.types[t].devices))
            }
        };
        let number = claim.unwrap_or(world.plan.claims.len()) + 1;
        let host = format!("hostname-placeholder-{number:04}");
        let mut requirements = world.interner.requirements(set);
        requirements.add(Requirement::is(labels::HOSTNAME, &host));
        let site = ClaimSite {
            claim,
            requirements,
            allow: Allow::WellKnownAnd(&world.snapshot.well_known),
        };
        let key = &world.waiting[pod].pod.key;
        let plan = devices.ledger.on_claim(key, &site, &groups)?;
        let (set, _) = world.interner.intern_all(&plan.requirements);
        let left = plan.types();
        let catalog = world.stock.catalog(template);
        let mut rows = FixedBitSet::with_capacity(catalog.rows());
        for row in 0..catalog.rows() {
            rows.set(row, left.contains(catalog.row_type[row] as usize));
        }
        let before = world.stock.mask_rows(template, mask);
        rows.intersect_with(&before);
        // Rows that do not suit for other reasons need no mask of their own.
        let shape = world.stock.shape(template, set, mask, &mut world.interner);
        let mask = if world.stock.shapes[shape].rows.is_subset(&rows) {
            mask
        } else {
            world.stock.mask(rows)
        };
        Ok(Narrowed { plan, set, mask })
    }

    /// Books what the planned node at hand gives, and lets go of what was booked for types that it
    /// no longer has.
    pub(super) fn take_devices_of_claim(&mut self, claim: usize) {
        let Some(devices) = &mut self.world.plan.devices else { return };
        if let Some(plan) = devices.on_claim.take() {
            devices.ledger.commit_claim(claim, plan);
        }
        if devices.ledger.groups(claim).is_none() {
            return;
        }
        let of = &self.world.plan.claims[claim];
        let stock = &mut self.world.stock;
        let rows = stock.rows_for(of.shape, &of.requests);
        let template = stock.shapes[of.shape].template;
        let catalog = stock.catalog(template);
        let mut types = FixedBitSet::with_capacity(catalog.types.len());
        for row in rows.ones() {
            types.insert(catalog.row_type[row] as usize);
        }
        devices.ledger.keep(claim, &types);
    }

    /// Records on each planned node the devices that its pods were given.
    pub(super) fn record_devices(&mut self) {
        let Some(devices) = &self.world.plan.devices else { return };
        for (at, claim) in self.world.plan.claims.iter_mut().enumerate() {
            let Some(mut booked) = devices.ledger.booked(at) else { continue };
            booked.id = format!("hostname-placeholder-{:04}", at + 1);
            let template = self.world.stock.shapes[claim.shape].template;
            let catalog = self.world.stock.templates[template].catalog;
            let types = &self.world.stock.catalogs[catalog].types;
            booked.name_types(|t| types[t].name.to_string());
            claim.devices = Some(Arc::<Booked>::new(booked));
        }
    }

    // ---- reasons

    /// What devices leave of a template for a pod: the requirements and the rows.
    ///
    /// # Errors
    /// Why they leave nothing.
    pub(super) fn device_reason(
        &mut self,
        pod: PodId,
        template: TemplateId,
        mask: MaskId,
        set: SetId,
    ) -> Result<(SetId, MaskId), Error> {
        let narrowed = self.narrow_to_devices(pod, None, template, mask, set)?;
        Ok((narrowed.set, narrowed.mask))
    }

    /// Whether any type of a template is large enough for a pod, devices apart.
    pub(super) fn fits_without_devices(
        &mut self,
        template: TemplateId,
        mask: MaskId,
        set: SetId,
        amounts: &Amounts,
    ) -> bool {
        let world = &mut *self.world;
        let shape = world.stock.shape(template, set, mask, &mut world.interner);
        let mut total = world.resources.zero();
        add(&mut total, amounts);
        !world.stock.rows_for(shape, &total).is_clear()
    }
}

/// Types in order of what the provider reports of their devices.
fn by_devices(types: &FixedBitSet, set_of: impl Fn(usize) -> DeviceSetId) -> Vec<TypeGroup> {
    let mut groups: Vec<TypeGroup> = Vec::new();
    for at in types.ones() {
        let set = set_of(at);
        match groups.iter_mut().find(|g| g.set == set) {
            Some(group) => group.types.insert(at),
            None => {
                let mut own = FixedBitSet::with_capacity(types.len());
                own.insert(at);
                groups.push(TypeGroup::new(own, set));
            }
        }
    }
    groups
}

/// What devices a node that is not ready yet will have, as its type declares; 0 for none.
fn expected_devices(snapshot: &Snapshot, state: &StateNode, inventory: &Inventory) -> DeviceSetId {
    if state.initialized() || !inventory.has_type_devices() {
        return DeviceSetId::FIRST;
    }
    let of = |key: &str| state.labels().get(key).map(String::as_str);
    let (Some(pool), Some(name)) = (of(labels::NODEPOOL), of(labels::INSTANCE_TYPE)) else {
        return DeviceSetId::FIRST;
    };
    let input =
        snapshot.node_pools.iter().find(|p| p.node_pool.metadata.name.as_deref() == Some(pool));
    let kind = input.and_then(|p| p.instance_types.iter().find(|t| &*t.name == name));
    kind.map_or(DeviceSetId::FIRST, |t| inventory.set_of(&t.devices))
}
