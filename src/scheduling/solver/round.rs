//! One round of placing pods: existing nodes first, then nodes planned in this round, then new ones.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use fixedbitset::FixedBitSet;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::amounts::{Amounts, add, fits, subtract};
use super::classes::{ClassId, KindId, NeedId};
use super::devices::Devices;
use super::existing::{TakenPort, Volumes};
use super::intern::{NONE, SetId, ValueId};
use super::prepare::Prepared;
use super::stock::{MaskId, ShapeId, Template, lower};
use super::tolerance::TaintsId;
use super::topology::{Question, Topology};
use crate::scheduling::dra::ledger::Booked;
use crate::scheduling::pod::HostPort;
use crate::scheduling::resources::{Name, ResourceList};

const WORD: usize = usize::BITS as usize;

/// A node planned in this round.
pub(super) struct Claim {
    pub(super) shape: ShapeId,
    pub(super) requests: Amounts,
    /// Pods by their place among those that wait.
    pub(super) pods: Vec<u32>,
    pub(super) ports: Vec<HostPort>,
    pub(super) min_values_relaxed: bool,
    /// Reservations that it holds.
    pub(super) reserved: Vec<Arc<str>>,
    /// Devices that it holds, once all is decided.
    pub(super) devices: Option<Arc<Booked>>,
}

/// What became of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Nowhere,
    Node(u32),
    Claim(u32),
}

/// How an attempt at a new node ended.
pub(super) enum Opened {
    Claim(Box<Claim>),
    Refused,
    /// Reserved capacity would do but is taken; wait rather than take something else.
    Reserved,
}

/// Where a pod is, as far as topology cares.
#[derive(Clone, Copy)]
struct Spot {
    set: SetId,
    taints: TaintsId,
    host: u32,
    /// The name of a node that exists.
    name: Option<ValueId>,
}

/// What a claim would become with one more pod.
pub(super) struct Fit {
    pub(super) shape: ShapeId,
    pub(super) set: SetId,
    pub(super) reserved: Vec<Arc<str>>,
    pub(super) relaxed: bool,
}

/// Why a claim cannot take a pod.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// For as long as it exists.
    Lasting,
    /// Perhaps not later.
    Passing,
    /// For want of a reservation.
    Reserved,
}

/// The changing state of a round.
pub(super) struct Round<'p, 'a> {
    pub(super) world: &'p mut Prepared<'a>,
    /// What is free on each existing node, flat.
    room: Vec<i64>,
    pub(super) node_pods: Vec<Vec<u32>>,
    new_ports: FxHashMap<usize, Vec<TakenPort>>,
    volumes: FxHashMap<usize, Volumes>,
    pub(super) claims: Vec<Claim>,
    /// Claims by number of pods.
    pub(super) by_count: BTreeMap<u32, FixedBitSet>,
    /// Claims by shape.
    of_shape: Vec<FixedBitSet>,
    live: Vec<ShapeId>,
    /// Nodes whose taints and labels suit a class.
    class_nodes: Vec<Option<FixedBitSet>>,
    /// Nodes that may have room for a need.
    need_nodes: Vec<Option<FixedBitSet>>,
    /// Claims that will never take a need.
    need_out: Vec<FixedBitSet>,
    /// Claims that will never take a class.
    class_out: Vec<FixedBitSet>,
    /// Claims that will never take a kind at a stage.
    kind_out: FxHashMap<(KindId, ClassId), FixedBitSet>,
    /// What a shape's requirements become with a class, before topology.
    merged: Vec<Vec<SetId>>,
    pub(super) remaining: Vec<Option<ResourceList>>,
    limit_masks: Vec<Option<MaskId>>,
    charges: FxHashMap<(ShapeId, NeedId), ResourceList>,
    pub(super) reservations: FxHashMap<Arc<str>, i64>,
    /// Grows with every placement.
    version: u64,
    failed_at: Vec<u64>,
    pub(super) places: Vec<Place>,
    /// The stage at which each pod was placed.
    pub(super) placed_as: Vec<ClassId>,
    pub(super) failed: Vec<u32>,
    /// Each pod's place in the queue.
    pub(super) rank: Vec<u32>,
    mask: Vec<usize>,
    /// What shapes become with the pod at hand, with the attempt for which that holds.
    outcomes: Vec<(u64, SmallVec<[SetId; 1]>)>,
    attempt: u64,
    /// What is decided about devices, when pods have claims on some.
    pub(super) devices: Option<Box<Devices>>,
    /// Types that limits left out when they were looked at last, and all types, by template.
    pub(super) limited: BTreeMap<u32, (usize, usize)>,
}

/// Not worked out yet.
const UNKNOWN: SetId = NONE - 1;

impl<'p, 'a> Round<'p, 'a> {
    pub(super) fn new(world: &'p mut Prepared<'a>) -> Self {
        let nodes = world.existing.nodes.len();
        let classes = world.classes.classes.len();
        let needs = world.classes.needs.len();
        let mut room = Vec::with_capacity(nodes * world.resources.len());
        for node in &world.existing.nodes {
            room.extend_from_slice(&node.room);
        }
        let mut reservations: FxHashMap<Arc<str>, i64> = FxHashMap::default();
        if world.snapshot.options.reserved_capacity {
            for catalog in &world.stock.catalogs {
                for (id, left) in &catalog.reservations {
                    reservations
                        .entry(Arc::clone(id))
                        .and_modify(|c| *c = (*c).min(*left))
                        .or_insert(*left);
                }
            }
        }
        let mut round = Self {
            room,
            node_pods: vec![Vec::new(); nodes],
            new_ports: FxHashMap::default(),
            volumes: FxHashMap::default(),
            claims: Vec::new(),
            by_count: BTreeMap::new(),
            of_shape: Vec::new(),
            live: Vec::new(),
            class_nodes: vec![None; classes],
            need_nodes: vec![None; needs],
            need_out: vec![FixedBitSet::new(); needs],
            class_out: vec![FixedBitSet::new(); classes],
            kind_out: FxHashMap::default(),
            merged: vec![Vec::new(); classes],
            remaining: Vec::new(),
            limit_masks: vec![None; world.stock.templates.len()],
            charges: FxHashMap::default(),
            reservations,
            version: 1,
            failed_at: vec![0; world.classes.kinds.len()],
            places: vec![Place::Nowhere; world.waiting.len()],
            placed_as: vec![0; world.waiting.len()],
            failed: Vec::new(),
            rank: vec![0; world.waiting.len()],
            mask: Vec::new(),
            outcomes: Vec::new(),
            attempt: 0,
            limited: BTreeMap::new(),
            devices: world.devices.as_ref().map(|d| Box::new(Devices::new(d))),
            world,
        };
        round.remaining = round.limits();
        round
    }

    /// What each pool may still use: its limits less the capacity of its nodes.
    pub(super) fn limits(&self) -> Vec<Option<ResourceList>> {
        let mut by_pool: FxHashMap<&str, ResourceList> = FxHashMap::default();
        let limited = self.world.stock.templates.iter().any(|t| t.limits.is_some());
        for state in self.world.snapshot.nodes.iter().filter(|n| limited && !n.deleting()) {
            if let Some(pool) = state.node_pool() {
                by_pool.entry(pool).or_default().add(&state.capacity());
            }
        }
        let left = |t: &Template| {
            let mut left = t.limits.clone()?;
            if let Some(used) = by_pool.get(&*t.name) {
                left.sub(used);
            }
            Some(left)
        };
        self.world.stock.templates.iter().map(left).collect()
    }

    /// Places pods in their order for as long as `go_on` says so.
    pub(super) fn run(&mut self, go_on: &dyn Fn(usize) -> bool) {
        let order = self.order();
        for (at, pod) in order.iter().enumerate() {
            self.rank[*pod as usize] = at as u32;
        }
        let mut queue: VecDeque<(u32, usize)> =
            order.into_iter().map(|p| (p, usize::MAX)).collect();
        while let Some((pod, last_length)) = queue.pop_front() {
            if last_length == queue.len() || !go_on(queue.len() + 1) {
                queue.push_front((pod, last_length));
                break;
            }
            match self.place(pod) {
                Ok(place) => {
                    self.places[pod as usize] = place;
                    self.version += 1;
                }
                Err(()) => queue.push_back((pod, queue.len())),
            }
        }
        // Pods that were never tried, because time ran out, are in no list.
        self.failed = queue.iter().filter(|(_, l)| *l != usize::MAX).map(|(p, _)| *p).collect();
    }

    /// The queue's order: most cpu first, then most memory, then the oldest.
    fn order(&self) -> Vec<u32> {
        let waiting = &self.world.waiting;
        let amounts = |name: Name| -> Vec<i64> {
            waiting.iter().map(|w| w.pod.requests.get(&name)).collect()
        };
        let (cpu, memory) = (amounts(Name::Cpu), amounts(Name::Memory));
        let mut order: Vec<u32> = (0..waiting.len() as u32).collect();
        order.sort_unstable_by(|a, b| {
            let (i, j) = (*a as usize, *b as usize);
            let (x, y) = (&waiting[i].pod, &waiting[j].pod);
            (cpu[j], memory[j])
                .cmp(&(cpu[i], memory[i]))
                .then_with(|| x.created.cmp(&y.created))
                .then_with(|| x.uid.cmp(&y.uid))
                .then_with(|| x.key.cmp(&y.key))
        });
        order
    }

    /// Tries a pod as it is, then with one preference less each time.
    fn place(&mut self, pod: u32) -> Result<Place, ()> {
        let kind = self.world.waiting[pod as usize].kind;
        if self.failed_at[kind as usize] == self.version {
            return Err(());
        }
        let (dynamic, need, stages) = {
            let kind = &self.world.classes.kinds[kind as usize];
            (kind.dynamic, kind.need, kind.stages.clone())
        };
        let devices = dynamic && self.has_device_claims(pod);
        let hopeless = dynamic && self.cannot_have_devices(pod);
        if !hopeless {
            for class in stages {
                if let Some(node) = self.try_nodes(pod, class, need) {
                    self.placed_as[pod as usize] = class;
                    return Ok(Place::Node(node));
                }
                if let Some(claim) = self.try_claims(pod, kind, class, need) {
                    self.placed_as[pod as usize] = class;
                    return Ok(Place::Claim(claim));
                }
                let opened = if devices {
                    self.open_with_devices(pod, class, need)
                } else {
                    self.open(class, need)
                };
                match opened {
                    Opened::Claim(claim) => {
                        self.placed_as[pod as usize] = class;
                        return Ok(Place::Claim(self.add_claim(*claim, pod, class, need)));
                    }
                    Opened::Refused => {}
                    Opened::Reserved => return Err(()),
                }
            }
        }
        // Volumes are a pod's own, so that another of its kind may still be placed.
        if self.world.snapshot.pod_volumes.is_empty() {
            self.failed_at[kind as usize] = self.version;
        }
        Err(())
    }

    // ---- nodes that exist

    /// Nodes whose taints, labels and name suit a class.
    fn suitable_nodes(&mut self, class: ClassId) {
        if self.class_nodes[class as usize].is_some() {
            return;
        }
        let world = &mut *self.world;
        let wanted = &world.classes.classes[class as usize];
        let mut nodes = FixedBitSet::with_capacity(world.existing.nodes.len());
        for alike in &world.existing.alike {
            if world.tolerance.tolerates(wanted.tolerations, alike.taints)
                && world.interner.compatible(alike.set, wanted.set, false)
            {
                nodes.union_with(&alike.nodes);
            }
        }
        for (at, node) in world.existing.nodes.iter().enumerate() {
            let named = wanted.host == NONE || world.interner.has(wanted.host, node.host);
            if node.full || !named {
                nodes.set(at, false);
            }
        }
        self.class_nodes[class as usize] = Some(nodes);
    }

    /// The first existing node that takes the pod.
    fn try_nodes(&mut self, pod: u32, class: ClassId, need: NeedId) -> Option<u32> {
        if self.world.existing.nodes.is_empty() {
            return None;
        }
        let volumes = if self.world.snapshot.pod_volumes.is_empty() {
            None
        } else {
            let key = &self.world.waiting[pod as usize].pod.key;
            self.world.snapshot.pod_volumes.get(key).cloned()
        };
        if volumes.as_ref().is_some_and(|v| v.tracking_failed) {
            return None;
        }
        self.suitable_nodes(class);
        let nodes = self.world.existing.nodes.len();
        let mut mask = std::mem::take(&mut self.mask);
        mask.clear();
        mask.extend_from_slice(self.class_nodes[class as usize].as_ref()?.as_slice());
        let roomy = self.need_nodes[need as usize].get_or_insert_with(|| {
            let mut all = FixedBitSet::with_capacity(nodes);
            all.insert_range(..);
            all
        });
        mask.iter_mut().zip(roomy.as_slice()).for_each(|(m, r)| *m &= r);
        if mask.iter().any(|w| *w != 0) {
            self.rule_out(class, 0, &mut mask);
        }
        let mut found = None;
        if mask.iter().any(|w| *w != 0) {
            self.rule_out_zones(class, &mut mask);
            found = self.first_node(pod, class, need, volumes.as_deref(), &mask);
        }
        self.mask = mask;
        if let Some(node) = found {
            self.put_on_node(pod, class, need, node, volumes.as_deref());
        }
        found.map(|n| n as u32)
    }

    /// Takes hosts out of a mask that groups of host names rule out.
    fn rule_out(&mut self, class: ClassId, first: usize, mask: &mut [usize]) {
        let world = &*self.world;
        let wanted = &world.classes.classes[class as usize];
        let strict = wanted.strict_host;
        let name_of = |host: u32| -> Option<ValueId> {
            world.existing.nodes.get(host as usize).map(|n| n.host)
        };
        let admits = |host: u32| match name_of(host) {
            Some(name) => world.interner.has(strict, name),
            None => world.interner.req(strict).complement,
        };
        for say in wanted.says.iter().filter(|s| s.host) {
            let names: Option<&dyn Fn(u32) -> bool> =
                if strict == NONE { None } else { Some(&admits) };
            world.topology.rule_out_hosts(say.group, say.own, names, first, mask);
        }
    }

    /// Takes nodes out of a mask whose zones (or other domains) topology rules out.
    fn rule_out_zones(&mut self, class: ClassId, mask: &mut [usize]) {
        let wanted = &self.world.classes.classes[class as usize];
        if !wanted.zonal || !wanted.volumes.is_empty() {
            return;
        }
        for at in 0..self.world.existing.alike.len() {
            let alike = &self.world.existing.alike[at];
            let any = alike.nodes.as_slice().iter().zip(&*mask).any(|(a, m)| a & m != 0);
            let set = alike.set;
            if any && self.zones(class, set, None).is_none() {
                let out = self.world.existing.alike[at].nodes.as_slice();
                mask.iter_mut().zip(out).for_each(|(m, o)| *m &= !o);
            }
        }
    }

    fn first_node(
        &mut self,
        pod: u32,
        class: ClassId,
        need: NeedId,
        volumes: Option<&crate::scheduling::volumes::PodVolumes>,
        mask: &[usize],
    ) -> Option<usize> {
        let width = self.world.resources.len();
        for (at, word) in mask.iter().enumerate() {
            let mut word = *word;
            while word != 0 {
                let node = at * WORD + word.trailing_zeros() as usize;
                word &= word - 1;
                let room = &self.room[node * width..(node + 1) * width];
                if !fits(&self.world.classes.needs[need as usize], room) {
                    if let Some(nodes) = &mut self.need_nodes[need as usize] {
                        nodes.set(node, false);
                    }
                    continue;
                }
                if self.ports_conflict(pod, class, node) {
                    continue;
                }
                if volumes.is_some_and(|v| !v.attached.is_empty() && !self.attaches(node, v)) {
                    continue;
                }
                if self.volumes_suit_node(class, node) && self.devices_suit_node(pod, node) {
                    return Some(node);
                }
            }
        }
        None
    }

    fn ports_conflict(&self, pod: u32, class: ClassId, node: usize) -> bool {
        let ports = &self.world.classes.classes[class as usize].constraints.host_ports;
        let own = &self.world.waiting[pod as usize].pod.key;
        !ports.is_empty()
            && self.world.existing.nodes[node]
                .ports
                .iter()
                .chain(self.new_ports.get(&node).into_iter().flatten())
                .any(|(key, taken)| key != own && ports.iter().any(|p| p.conflicts(taken)))
    }

    fn attaches(&mut self, node: usize, volumes: &crate::scheduling::volumes::PodVolumes) -> bool {
        let state = &self.world.snapshot.nodes[self.world.existing.nodes[node].index];
        state.volume_limits.is_empty()
            || self
                .volumes
                .entry(node)
                .or_insert_with(|| Volumes::new(state))
                .has_room(&volumes.attached, &state.volume_limits)
    }

    /// Whether one of the places of the pod's volumes, and topology with it, suits the node.
    fn volumes_suit_node(&mut self, class: ClassId, node: usize) -> bool {
        let places = self.world.classes.classes[class as usize].volumes.clone();
        if places.is_empty() {
            return true;
        }
        let host = self.world.existing.nodes[node].host;
        let set = self.world.existing.alike[self.world.existing.nodes[node].alike as usize].set;
        places.into_iter().any(|(place, name)| {
            self.world.interner.compatible(set, place, false)
                && (name == NONE || self.world.interner.has(name, host))
                && (!self.world.classes.classes[class as usize].zonal
                    || self.zones(class, set, None).is_some())
        })
    }

    fn put_on_node(
        &mut self,
        pod: u32,
        class: ClassId,
        need: NeedId,
        node: usize,
        volumes: Option<&crate::scheduling::volumes::PodVolumes>,
    ) {
        let width = self.world.resources.len();
        let room = &mut self.room[node * width..(node + 1) * width];
        subtract(room, &self.world.classes.needs[need as usize]);
        self.node_pods[node].push(pod);
        let ports = &self.world.classes.classes[class as usize].constraints.host_ports;
        if !ports.is_empty() {
            let key = &self.world.waiting[pod as usize].pod.key;
            let taken = self.new_ports.entry(node).or_default();
            taken.extend(ports.iter().map(|p| (key.clone(), p.clone())));
        }
        if let Some(volumes) = volumes.filter(|v| !v.attached.is_empty()) {
            let state = &self.world.snapshot.nodes[self.world.existing.nodes[node].index];
            let attached = self.volumes.entry(node).or_insert_with(|| Volumes::new(state));
            attached.add(&volumes.attached);
        }
        self.take_devices_of_node(node);
        let entry = &self.world.existing.nodes[node];
        let alike = &self.world.existing.alike[entry.alike as usize];
        let (set, taints, name) = (alike.set, alike.taints, Some(entry.host));
        self.record(class, Spot { set, taints, host: node as u32, name }, false);
    }

    /// Counts a placed pod in every group that it belongs to, or with `back` takes that back.
    fn record(&mut self, class: ClassId, at: Spot, back: bool) {
        let world = &mut *self.world;
        let wanted = &world.classes.classes[class as usize];
        let (topology, interner) = (&mut world.topology, &mut world.interner);
        let Spot { set, taints, host, name } = at;
        let change = if back { Topology::withdraw } else { Topology::record };
        for group in wanted.counted.iter() {
            let filter = topology.get(*group).filter;
            if topology.passes(filter, set, taints, name, interner, &mut world.tolerance) {
                change(topology, *group, set, host, interner);
            }
        }
        for group in &wanted.inverse {
            change(topology, *group, set, host, interner);
        }
    }

    // ---- topology

    /// A candidate's requirements narrowed to the domains that topology leaves, if it leaves some.
    /// `new` is the template and mask of a planned node.
    pub(super) fn zones(
        &mut self,
        class: ClassId,
        set: SetId,
        new: Option<(u32, MaskId)>,
    ) -> Option<SetId> {
        let says = self.world.classes.classes[class as usize].says.clone();
        let strict = self.world.classes.classes[class as usize].strict;
        let world = &mut *self.world;
        let (interner, topology, stock) = (&mut world.interner, &world.topology, &mut world.stock);
        let ties = world.ties;
        let mut result = set;
        for say in says.iter().filter(|s| !s.host) {
            let key = topology.get(say.group).key;
            let node = interner.get(set, key);
            let mut rank = |interner: &mut super::intern::Interner, domain: ValueId| -> f64 {
                let Some((template, mask)) = new else { return 0.0 };
                if let Some(order) = ties.order(|| interner.rank_of_value(key, domain)) {
                    return order;
                }
                let one = interner.one_of(key, &[domain]);
                let narrowed = interner.narrow(set, one);
                let shape = stock.shape(template, narrowed, mask, interner);
                stock.unit_price(shape, interner)
            };
            let mut question =
                Question { pod: interner.get(strict, key), node, own: say.own, rank: &mut rank };
            let domains = topology.domains(say.group, &mut question, interner)?;
            if node.is_none() && !(new.is_some() && interner.well_known(key)) {
                return None;
            }
            let req = interner.one_of(key, &domains);
            result = interner.narrow(result, req);
            let left = interner.get(result, key).map(|r| interner.req(r));
            if left.is_some_and(|r| !r.complement && r.values.is_empty()) {
                return None;
            }
        }
        Some(result)
    }

    // ---- nodes planned in this round

    /// What a shape's requirements become with a class, or [`NONE`].
    fn merge_shape(&mut self, class: ClassId, shape: ShapeId) -> SetId {
        let known = &mut self.merged[class as usize];
        if known.len() <= shape as usize {
            known.resize(shape as usize + 1, UNKNOWN);
        }
        if known[shape as usize] == UNKNOWN {
            let world = &mut *self.world;
            let of = &world.stock.shapes[shape as usize];
            let (template, set) = (of.template, of.set);
            known[shape as usize] = merge_class(world, class, template, set).unwrap_or(NONE);
        }
        known[shape as usize]
    }

    /// The same with the volumes: one entry for each place of these.
    pub(super) fn merged_sets(&mut self, class: ClassId, shape: ShapeId) -> SmallVec<[SetId; 1]> {
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

    /// The first planned node that takes the pod, those with the fewest pods first.
    fn try_claims(&mut self, pod: u32, kind: KindId, class: ClassId, need: NeedId) -> Option<u32> {
        if self.claims.is_empty() {
            return None;
        }
        let words = self.claims.len().div_ceil(WORD);
        let mut mask = std::mem::take(&mut self.mask);
        mask.clear();
        mask.resize(words, 0);
        self.shapes_that_suit(class, &mut mask);
        for out in [&self.need_out[need as usize], &self.class_out[class as usize]] {
            mask.iter_mut().zip(out.as_slice()).for_each(|(m, o)| *m &= !o);
        }
        if let Some(out) = self.kind_out.get(&(kind, class)) {
            mask.iter_mut().zip(out.as_slice()).for_each(|(m, o)| *m &= !o);
        }
        if mask.iter().any(|w| *w != 0) {
            let first = self.world.first_claim_host as usize;
            self.rule_out(class, first, &mut mask);
        }
        let mut found = None;
        if mask.iter().any(|w| *w != 0) {
            found = if self.has_device_claims(pod) {
                self.first_claim_with_devices(pod, class, need, &mask)
            } else {
                self.first_claim(kind, class, need, &mut mask)
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
            if self.merge_shape(class, shape) != NONE {
                let of = self.of_shape[shape as usize].as_slice();
                mask.iter_mut().zip(of).for_each(|(m, o)| *m |= o);
            }
        }
    }

    /// What a shape that suits a class becomes with it; worked out once an attempt.
    fn outcome(&mut self, class: ClassId, shape: ShapeId) -> &SmallVec<[SetId; 1]> {
        let at = shape as usize;
        if self.outcomes.len() <= at {
            self.outcomes.resize(at + 1, (0, SmallVec::new()));
        }
        if self.outcomes[at].0 != self.attempt {
            let mut sets = self.merged_sets(class, shape);
            if self.world.classes.classes[class as usize].zonal {
                let of = &self.world.stock.shapes[at];
                let new = Some((of.template, of.mask));
                sets = sets.into_iter().filter_map(|set| self.zones(class, set, new)).collect();
            }
            self.outcomes[at] = (self.attempt, sets);
        }
        &self.outcomes[at].1
    }

    fn first_claim(
        &mut self,
        kind: KindId,
        class: ClassId,
        need: NeedId,
        mask: &mut [usize],
    ) -> Option<(usize, Fit)> {
        self.attempt += 1;
        let by_count = std::mem::take(&mut self.by_count);
        let mut found = None;
        'all: for claims in by_count.values() {
            for (at, claims) in claims.as_slice().iter().enumerate().take(mask.len()) {
                let mut rest = usize::MAX;
                loop {
                    let word = claims & mask[at] & rest;
                    if word == 0 {
                        break;
                    }
                    let bit = word.trailing_zeros();
                    rest = usize::MAX.checked_shl(bit + 1).unwrap_or(0);
                    let claim = at * WORD + bit as usize;
                    let shape = self.claims[claim].shape;
                    if self.outcome(class, shape).is_empty() {
                        let of = self.of_shape[shape as usize].as_slice();
                        mask.iter_mut().zip(of).for_each(|(m, o)| *m &= !o);
                    } else if let Some(fit) = self.check_claim(claim, kind, class, need)
                        && !(self.world.careful && self.is_dear(claim, &fit, class, need))
                    {
                        found = Some((claim, fit));
                        break 'all;
                    }
                }
            }
        }
        self.by_count = by_count;
        found
    }

    /// Whether a claim would cost more with a pod than it and a new one for the pod.
    fn is_dear(&mut self, claim: usize, fit: &Fit, class: ClassId, need: NeedId) -> bool {
        let before = self.price_of(claim);
        let after = self.price_with(fit.shape, self.claims[claim].requests.clone(), need);
        if after <= before {
            return false;
        }
        match self.open(class, need) {
            Opened::Claim(new) => after > before + self.price_with(new.shape, new.requests, need),
            Opened::Refused | Opened::Reserved => false,
        }
    }

    fn price_with(&mut self, shape: ShapeId, mut requests: Amounts, need: NeedId) -> f64 {
        add(&mut requests, &self.world.classes.needs[need as usize]);
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
        let of = &self.claims[claim];
        let shape = of.shape;
        let amounts = &self.world.classes.needs[need as usize];
        if !self.world.stock.shapes[shape as usize].holds(&of.requests, amounts) {
            self.need_out[need as usize].grow_and_insert(claim);
            return None;
        }
        let wanted = &self.world.classes.classes[class as usize];
        let ports = &wanted.constraints.host_ports;
        if !ports.is_empty() && of.ports.iter().any(|q| ports.iter().any(|p| p.conflicts(q))) {
            self.class_out[class as usize].grow_and_insert(claim);
            return None;
        }
        let fixed = !wanted.zonal && wanted.volumes.is_empty();
        let held = of.reserved.clone();
        let sets = self.outcomes[shape as usize].1.clone();
        let mut lasting = fixed;
        for set in sets {
            let requests = &self.claims[claim].requests.clone();
            match self.fit(shape, set, requests, class, need, &held, false) {
                Ok(fit) => return Some(fit),
                Err(refusal) => lasting &= refusal == Refusal::Lasting,
            }
        }
        if lasting {
            self.kind_out.entry((kind, class)).or_default().grow_and_insert(claim);
        }
        None
    }

    /// What a node of a shape becomes with these requirements and one more pod.
    #[expect(clippy::too_many_arguments, reason = "each is a part of the one question")]
    pub(super) fn fit(
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

    fn hold(&mut self, before: &[Arc<str>], after: &[Arc<str>]) {
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

    fn put_on_claim(&mut self, claim: usize, fit: Fit, pod: u32, class: ClassId, need: NeedId) {
        let before = std::mem::take(&mut self.claims[claim].reserved);
        self.hold(&before, &fit.reserved);
        let before = self.world.stock.shapes[self.claims[claim].shape as usize].set;
        self.recount(claim, before, fit.set);
        let of = &mut self.claims[claim];
        of.reserved = fit.reserved;
        of.min_values_relaxed |= fit.relaxed;
        let count = of.pods.len() as u32;
        of.pods.push(pod);
        add(&mut of.requests, &self.world.classes.needs[need as usize]);
        let ports = &self.world.classes.classes[class as usize].constraints.host_ports;
        of.ports.extend(ports.iter().cloned());
        let old = std::mem::replace(&mut of.shape, fit.shape);
        if old != fit.shape {
            self.of_shape[old as usize].set(claim, false);
            if self.of_shape[old as usize].is_clear() {
                self.live.retain(|s| *s != old);
            }
            self.enter_shape(claim, fit.shape);
        }
        if let Some(claims) = self.by_count.get_mut(&count) {
            claims.set(claim, false);
            if claims.is_clear() {
                self.by_count.remove(&count);
            }
        }
        self.by_count.entry(count + 1).or_default().grow_and_insert(claim);
        self.take_devices_of_claim(claim);
        self.record_on_claim(claim, class, fit.set);
    }

    fn record_on_claim(&mut self, claim: usize, class: ClassId, set: SetId) {
        let at = self.spot(claim, set);
        self.record(class, at, false);
    }

    fn spot(&self, claim: usize, set: SetId) -> Spot {
        let shape = &self.world.stock.shapes[self.claims[claim].shape as usize];
        let taints = self.world.template_taints[shape.template as usize];
        Spot { set, taints, host: self.world.first_claim_host + claim as u32, name: None }
    }

    /// Counts the pods of a claim anew once it asks for more than before.
    ///
    /// A pod on a node that may be in any of several zones counts in none of them (and one that
    /// others keep away from, in all); when a later pod settles the zone, both come right.
    /// [Q] Upstream leaves the counts as they were when each pod came.
    fn recount(&mut self, claim: usize, before: SetId, after: SetId) {
        if !self.world.recount || before == after || !self.world.topology.is_used() {
            return;
        }
        let (old, new) = (self.spot(claim, before), self.spot(claim, after));
        for at in 0..self.claims[claim].pods.len() {
            let pod = self.claims[claim].pods[at] as usize;
            let class = self.placed_as[pod];
            self.record(class, old, true);
            self.record(class, new, false);
        }
    }

    fn enter_shape(&mut self, claim: usize, shape: ShapeId) {
        let at = shape as usize;
        if self.of_shape.len() <= at {
            self.of_shape.resize(at + 1, FixedBitSet::new());
        }
        if self.of_shape[at].is_clear() {
            self.live.push(shape);
        }
        self.of_shape[at].grow_and_insert(claim);
    }

    // ---- new nodes

    /// Tries the templates, heaviest pool first.
    fn open(&mut self, class: ClassId, need: NeedId) -> Opened {
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
    pub(super) fn limit_mask(&mut self, template: u32) -> Option<MaskId> {
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

    fn add_claim(&mut self, mut claim: Claim, pod: u32, class: ClassId, need: NeedId) -> u32 {
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
        self.by_count.entry(1).or_default().grow_and_insert(at);
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

/// A class's requirements on top of a template's or claim's, unless they do not go together.
pub(super) fn merge_class(
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
fn merge_volumes(
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
