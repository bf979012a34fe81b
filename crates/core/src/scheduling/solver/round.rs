//! One round of placing pods: existing nodes first, then nodes planned in this round, then new ones.

mod claims;
mod counting;
mod fit;
mod nodes;
mod open;
mod turns;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use fixedbitset::FixedBitSet;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

pub(super) use fit::{merge_class, merge_volumes};
use turns::ByCount;

use super::amounts::Amounts;
use super::classes::{ClassId, KindId, NeedId};
use super::devices::Devices;
use super::existing::{TakenPort, Volumes};
use super::intern::{NONE, SetId, ValueId};
use super::prepare::Prepared;
use super::stock::{MaskId, ShapeId};
use super::tolerance::TaintsId;
use super::topology::Kind;
use crate::scheduling::dra::ledger::Booked;
use crate::scheduling::pod::HostPort;
use crate::scheduling::resources::{Name, ResourceList};

const WORD: usize = usize::BITS as usize;

/// A node planned in this round.
#[derive(Clone)]
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
    /// Whose turn it is; away only while it is gone through.
    pub(super) by_count: Option<ByCount>,
    /// Claims by shape.
    of_shape: Vec<FixedBitSet>,
    live: Vec<ShapeId>,
    /// Nodes that got pods.
    pub(super) touched: Vec<u32>,
    /// The topology's log when the round began.
    mark: usize,
    /// Nodes that may have room for a need.
    need_nodes: Vec<Option<FixedBitSet>>,
    /// Claims that will never take a need.
    need_out: Vec<FixedBitSet>,
    /// Claims that will never take a class.
    class_out: Vec<FixedBitSet>,
    /// Claims that will never take a kind at a stage.
    kind_out: FxHashMap<(KindId, ClassId), FixedBitSet>,
    pub(super) remaining: Vec<Option<ResourceList>>,
    limit_masks: Vec<Option<MaskId>>,
    charges: FxHashMap<(ShapeId, NeedId), ResourceList>,
    pub(super) reservations: FxHashMap<Arc<str>, i64>,
    /// Grows with every placement.
    pub(super) version: u64,
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

/// Leaves the nodes of a set out of a mask.
fn take_out(mask: &mut [usize], set: &FixedBitSet) {
    mask.iter_mut().zip(set.as_slice()).for_each(|(m, o)| *m &= !o);
}

/// Not worked out yet.
const UNKNOWN: SetId = NONE - 1;

/// A round leaves its world as it found it.
impl Drop for Round<'_, '_> {
    fn drop(&mut self) {
        let (mut room, mut pods) =
            (std::mem::take(&mut self.room), std::mem::take(&mut self.node_pods));
        let width = self.world.resources.len();
        for node in &self.touched {
            let at = *node as usize;
            let before = &self.world.existing.nodes[at].room;
            room[at * width..(at + 1) * width].copy_from_slice(before);
            pods[at].clear();
        }
        self.world.buffers = Some((room, pods));
        self.world.topology.undo(self.mark);
    }
}

impl<'p, 'a> Round<'p, 'a> {
    pub(super) fn new(world: &'p mut Prepared<'a>) -> Self {
        let classes = world.classes.classes.len();
        let needs = world.classes.needs.len();
        let (room, node_pods) = world.free_buffers();
        let mark = world.topology.mark();
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
        Self {
            room,
            node_pods,
            touched: Vec::new(),
            mark,
            new_ports: FxHashMap::default(),
            volumes: FxHashMap::default(),
            claims: Vec::new(),
            by_count: Some(ByCount::new(world.choices.turns)),
            of_shape: Vec::new(),
            live: Vec::new(),
            need_nodes: vec![None; needs],
            need_out: vec![FixedBitSet::new(); needs],
            class_out: vec![FixedBitSet::new(); classes],
            kind_out: FxHashMap::default(),
            remaining: world.limits.clone(),
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
        }
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

    /// Whether each pod was placed, or tried until nothing more could be.
    pub(super) fn reached_all(&self) -> bool {
        let placed = self.places.iter().filter(|p| **p != Place::Nowhere).count();
        placed + self.failed.len() >= self.places.len()
    }

    /// The queue's order: most cpu first, then most memory, then the oldest; or pods with rules about
    /// hosts before the rest.
    fn order(&self) -> Vec<u32> {
        let waiting = &self.world.waiting;
        let amounts = |name: Name| -> Vec<i64> {
            waiting.iter().map(|w| w.pod.requests.get(&name)).collect()
        };
        let (cpu, memory) = (amounts(Name::Cpu), amounts(Name::Memory));
        let owns = |pod: u32| {
            let classes = &self.world.classes;
            let last = classes.kinds[waiting[pod as usize].kind as usize].stages.last();
            last.is_some_and(|class| classes.classes[*class as usize].says.iter().any(|s| s.host))
        };
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
        if self.world.choices.owners_first {
            order.sort_by_key(|pod| !owns(*pod));
        }
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
        let hopeless = dynamic && self.cannot_have_devices(pod);
        if !hopeless {
            for class in stages {
                let room = self.room_for_all(kind, class, need).filter(|_| !dynamic);
                for room in room.into_iter().chain([need]) {
                    if let Some(place) = self.place_as(pod, kind, class, need, room)? {
                        self.placed_as[pod as usize] = class;
                        return Ok(place);
                    }
                }
            }
        }
        // Volumes are a pod's own, so that another of its kind may still be placed.
        if self.world.snapshot.pod_volumes.is_empty() {
            self.failed_at[kind as usize] = self.version;
        }
        Err(())
    }

    /// Places a pod at one stage where there is room for it, or for more if that is asked for.
    fn place_as(
        &mut self,
        pod: u32,
        kind: KindId,
        class: ClassId,
        need: NeedId,
        room: NeedId,
    ) -> Result<Option<Place>, ()> {
        if let Some(node) = self.try_nodes(pod, class, need, room) {
            return Ok(Some(Place::Node(node)));
        }
        if let Some(claim) = self.try_claims(pod, kind, class, need, room) {
            return Ok(Some(Place::Claim(claim)));
        }
        let opened = if self.has_device_claims(pod) {
            self.open_with_devices(pod, class, room)
        } else {
            self.open(class, room)
        };
        match opened {
            Opened::Claim(claim) => {
                Ok(Some(Place::Claim(self.add_claim(*claim, pod, class, need))))
            }
            Opened::Refused => Ok(None),
            Opened::Reserved => Err(()),
        }
    }

    /// What all waiting pods of a kind need together, when they must share the host that the first
    /// of them is about to choose.
    fn room_for_all(&mut self, kind: KindId, class: ClassId, need: NeedId) -> Option<NeedId> {
        if !self.world.choices.roomy {
            return None;
        }
        let topology = &self.world.topology;
        let says = &self.world.classes.classes[class as usize].says;
        let starts = says.iter().any(|say| {
            say.host
                && say.own
                && topology.get(say.group).kind == Kind::Affinity
                && topology.takes_new_host(say.group, true, false)
        });
        if !starts {
            return None;
        }
        let waits =
            |at: &usize| self.world.waiting[*at].kind == kind && self.places[*at] == Place::Nowhere;
        let count = (0..self.places.len()).filter(waits).count() as i64;
        let needs = &mut self.world.classes.needs;
        let all: Amounts = needs[need as usize].iter().map(|n| n.saturating_mul(count)).collect();
        let at = needs.iter().position(|n| *n == all).unwrap_or_else(|| {
            needs.push(all);
            needs.len() - 1
        });
        self.need_nodes.resize(needs.len(), None);
        self.need_out.resize(needs.len(), FixedBitSet::new());
        Some(at as NeedId)
    }
}
