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
use super::plan::Mark;
use super::prepare::Prepared;
use super::topology::Kind;
use crate::scheduling::dra::ledger::Booked;
use crate::scheduling::pod::HostPort;
use crate::scheduling::resources::{Name, ResourceList};
use crate::scheduling::solver::ids::{
    ClassId, HostId, KindId, List, MaskId, NeedId, PodId, SetId, ShapeId, TaintsId, TemplateId,
    ValueId,
};

const WORD: usize = usize::BITS as usize;

/// A node planned in this round.
#[derive(Clone)]
pub(super) struct Claim {
    pub(super) shape: ShapeId,
    pub(super) requests: Amounts,
    /// Pods by their place among those that wait.
    pub(super) pods: Vec<PodId>,
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
    host: HostId,
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
    /// The plan as the round found it, and will leave it.
    pub(super) mark: Mark,
    /// What the pools might use when the round began.
    pub(super) limits: List<TemplateId, Option<ResourceList>>,
    /// Whose turn it is; away only while it is gone through.
    pub(super) by_count: Option<ByCount>,
    /// Claims by shape.
    of_shape: List<ShapeId, FixedBitSet>,
    live: Vec<ShapeId>,
    /// Nodes that may have room for a need.
    need_nodes: FxHashMap<NeedId, FixedBitSet>,
    /// Claims that will never take a need.
    need_out: FxHashMap<NeedId, FixedBitSet>,
    /// Claims that will never take a class.
    class_out: FxHashMap<ClassId, FixedBitSet>,
    /// Claims that will never take a kind at a stage.
    kind_out: FxHashMap<(KindId, ClassId), FixedBitSet>,
    /// Rows that limits leave, where that was looked at; nothing within when there are none.
    limit_masks: List<TemplateId, Option<Option<MaskId>>>,
    charges: FxHashMap<(ShapeId, NeedId), ResourceList>,
    /// Grows with every placement.
    pub(super) version: u64,
    failed_at: FxHashMap<KindId, u64>,
    pub(super) places: List<PodId, Place>,
    /// The stage at which each pod was placed.
    pub(super) placed_as: List<PodId, ClassId>,
    pub(super) failed: Vec<PodId>,
    /// Each pod's place in the queue.
    pub(super) rank: List<PodId, u32>,
    mask: Vec<usize>,
    /// What shapes become with the pod at hand, with the attempt for which that holds.
    outcomes: List<ShapeId, (u64, SmallVec<[SetId; 1]>)>,
    attempt: u64,
    /// Types that limits left out when they were looked at last, and all types, by template.
    pub(super) limited: BTreeMap<TemplateId, (usize, usize)>,
}

/// Leaves the nodes of a set out of a mask.
fn take_out(mask: &mut [usize], set: &FixedBitSet) {
    mask.iter_mut().zip(set.as_slice()).for_each(|(m, o)| *m &= !o);
}

/// A round leaves the plan as it found it.
impl Drop for Round<'_, '_> {
    fn drop(&mut self) {
        self.world.undo(self.mark);
    }
}

impl<'p, 'a> Round<'p, 'a> {
    pub(super) fn new(world: &'p mut Prepared<'a>) -> Self {
        let mark = world.plan.mark();
        Self {
            mark,
            limits: world.plan.limits().clone(),
            by_count: Some(ByCount::new(world.choices.turns)),
            of_shape: List::default(),
            live: Vec::new(),
            need_nodes: FxHashMap::default(),
            need_out: FxHashMap::default(),
            class_out: FxHashMap::default(),
            kind_out: FxHashMap::default(),
            limit_masks: List::of(None, world.stock.templates.len()),
            charges: FxHashMap::default(),
            version: 1,
            failed_at: FxHashMap::default(),
            places: List::of(Place::Nowhere, world.waiting.len()),
            placed_as: List::of(ClassId::NONE, world.waiting.len()),
            failed: Vec::new(),
            rank: List::of(0, world.waiting.len()),
            mask: Vec::new(),
            outcomes: List::default(),
            attempt: 0,
            limited: BTreeMap::new(),
            world,
        }
    }

    /// Places pods in their order for as long as `go_on` says so.
    pub(super) fn run(&mut self, go_on: &dyn Fn(usize) -> bool) {
        let order = self.order();
        for (at, pod) in order.iter().enumerate() {
            self.rank[*pod] = at as u32;
        }
        let mut queue: VecDeque<(PodId, usize)> =
            order.into_iter().map(|p| (p, usize::MAX)).collect();
        while let Some((pod, last_length)) = queue.pop_front() {
            // The queue is as long as when this pod failed last: nothing was placed since, so
            // nothing will be.
            if last_length == queue.len() || !go_on(queue.len() + 1) {
                queue.push_front((pod, last_length));
                break;
            }
            match self.place(pod) {
                Ok(place) => {
                    self.places[pod] = place;
                    self.version += 1;
                }
                // Another pod may make room for it: one that it must be near, or a node that it may
                // join.
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
    fn order(&self) -> Vec<PodId> {
        let waiting = &self.world.waiting;
        let amounts = |name: Name| -> List<PodId, i64> {
            waiting.iter().map(|w| w.pod.requests.get(&name)).collect()
        };
        let (cpu, memory) = (amounts(Name::Cpu), amounts(Name::Memory));
        let owns = |pod: PodId| {
            let classes = &self.world.classes;
            let last = classes.kinds[waiting[pod].kind].stages.last();
            last.is_some_and(|class| classes.classes[*class].rules.iter().any(|s| s.host))
        };
        let mut order: Vec<PodId> = waiting.ids().collect();
        order.sort_unstable_by(|a, b| {
            let (i, j) = (*a, *b);
            let (x, y) = (&waiting[i].pod, &waiting[j].pod);
            (cpu[j], memory[j])
                .cmp(&(cpu[i], memory[i]))
                .then_with(|| x.created.cmp(&y.created))
                // Creation times are whole seconds, so that most pods of a burst are equally old.
                .then_with(|| x.uid.cmp(&y.uid))
                .then_with(|| x.key.cmp(&y.key))
        });
        if self.world.choices.owners_first {
            order.sort_by_key(|pod| !owns(*pod));
        }
        order
    }

    /// Tries a pod as it is, then with one preference less each time.
    fn place(&mut self, pod: PodId) -> Result<Place, ()> {
        let kind = self.world.waiting[pod].kind;
        // Pods of a kind are interchangeable: what failed for one fails for all until something is
        // placed.
        if self.failed_at.get(&kind) == Some(&self.version) {
            return Err(());
        }
        let (dynamic, need, stages) = {
            let kind = &self.world.classes.kinds[kind];
            (kind.dynamic, kind.need, kind.stages.clone())
        };
        let hopeless = dynamic && self.cannot_have_devices(pod);
        if !hopeless {
            for class in stages {
                let room = self.room_for_all(kind, class, need).filter(|_| !dynamic);
                // Room for all first: the first of pods that must share a host decides for the rest
                // of them.
                for room in room.into_iter().chain([need]) {
                    if let Some(place) = self.place_as(pod, kind, class, need, room)? {
                        self.placed_as[pod] = class;
                        return Ok(place);
                    }
                }
            }
        }
        // Volumes are a pod's own, so that another of its kind may still be placed.
        if self.world.snapshot.pod_volumes.is_empty() {
            self.failed_at.insert(kind, self.version);
        }
        Err(())
    }

    /// Places a pod at one stage where there is room for it, or for more if that is asked for.
    fn place_as(
        &mut self,
        pod: PodId,
        kind: KindId,
        class: ClassId,
        need: NeedId,
        room: NeedId,
    ) -> Result<Option<Place>, ()> {
        // Karpenter's order: what runs already costs nothing more, what is planned little.
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
            // Without a look at the next preference: a pod that waits for its reservation must not
            // take another.
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
        let rules = &self.world.classes.classes[class].rules;
        let starts = rules.iter().any(|rule| {
            rule.host
                && rule.own
                && topology.get(rule.group).kind == Kind::Affinity
                && self.world.plan.tally.takes_new_host(topology, rule.group, true, false)
        });
        if !starts {
            return None;
        }
        let waits =
            |at: &PodId| self.world.waiting[*at].kind == kind && self.places[*at] == Place::Nowhere;
        let count = self.places.ids().filter(waits).count() as i64;
        let needs = &mut self.world.classes.needs;
        let all: Amounts = needs[need].iter().map(|n| n.saturating_mul(count)).collect();
        // Needs are interned, and equal numbers share all that is cached for them.
        let found = needs.position(|n| *n == all).unwrap_or_else(|| needs.push(all));
        Some(found)
    }
}
