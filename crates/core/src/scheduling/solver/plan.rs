//! What a try changes, and how it is taken back.
//!
//! A try marks the plan, changes it, is read, and is undone: what it costs depends on the pods that
//! it places and the nodes that it takes out, not on the cluster. Whatever changes while pods are
//! placed and matters afterwards is here, and nothing else: how the nodes of a snapshot were found
//! never changes, and answers that hold for every try are kept apart (`super::world::Memo`).

use std::sync::Arc;

use fixedbitset::FixedBitSet;
use rustc_hash::FxHashMap;

use super::amounts::{Amounts, subtract};
use super::devices::Devices;
use super::existing::{Existing, TakenPort, Volumes};
use super::round::Claim;
use super::tally::Tally;
use super::topology::Topology;
use crate::scheduling::pod::{HostPort, PodKey};
use crate::scheduling::resources::ResourceList;
use crate::scheduling::solver::ids::{GroupId, List, PodId, SortId, TemplateId, ValueId};

/// One change, with what is needed to take it back.
enum Step {
    /// A pod came to a node that exists; what was free there before.
    Pod { node: usize, room: Amounts },
    /// So many host ports were taken on such a node.
    Ports { node: usize, count: usize },
    /// Volumes were attached to such a node.
    Volumes { node: usize, added: Vec<(Arc<str>, Arc<str>)> },
    /// A node that was planned before the mark got a pod.
    Grew { claim: usize, before: Box<Claim> },
    /// The planned nodes were packed again, some of them planned before the mark.
    Exchanged { before: Vec<Claim> },
    /// What a pool may still use became less, or more.
    Limit { template: TemplateId, before: Option<ResourceList> },
    /// So many instances of a reservation were given back; fewer than none were taken.
    Reservation { id: Arc<str>, given: i64 },
    /// A node that exists was taken out.
    Out { node: usize },
    /// One node less of a sort.
    Left { sort: SortId },
    /// One sort less from which a group knows a domain.
    Known { group: GroupId, domain: ValueId },
}

/// A state of the plan that it can go back to.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    steps: usize,
    tally: usize,
    claims: usize,
    /// How many planned nodes the mark before this one keeps.
    kept: usize,
}

/// What a try changes.
#[derive(Default)]
pub(super) struct Plan {
    /// What is free on each node that exists, flat.
    room: Vec<i64>,
    width: usize,
    /// Pods that were placed on each of these.
    pods: Vec<Vec<PodId>>,
    ports: FxHashMap<usize, Vec<TakenPort>>,
    volumes: FxHashMap<usize, Volumes>,
    /// Nodes that are taken out.
    pub(super) away: FixedBitSet,
    /// Nodes with a Node of each sort.
    joined: List<SortId, u32>,
    /// Groups that know a domain from nodes alone, and from how many sorts of node.
    by_nodes: FxHashMap<(GroupId, ValueId), u32>,
    /// Nodes to launch.
    pub(super) claims: Vec<Claim>,
    /// What the pool of each template may still use: its limits less what its nodes have.
    limits: List<TemplateId, Option<ResourceList>>,
    /// What is left of each reservation.
    reservations: FxHashMap<Arc<str>, i64>,
    /// How many pods of each topology group are where.
    pub(super) tally: Tally,
    /// What is decided about devices, when pods have claims on some. A mark is only set while
    /// nothing is.
    pub(super) devices: Option<Box<Devices>>,
    log: Vec<Step>,
    /// How many planned nodes the latest mark keeps: only changes of these are put down.
    kept: usize,
}

impl Plan {
    /// Fills in where every try begins.
    pub(super) fn begin(
        &mut self,
        existing: &Existing,
        width: usize,
        limits: List<TemplateId, Option<ResourceList>>,
        reservations: FxHashMap<Arc<str>, i64>,
    ) {
        self.room = existing.nodes.iter().flat_map(|node| node.room.iter().copied()).collect();
        self.width = width;
        self.pods = vec![Vec::new(); existing.nodes.len()];
        self.away = FixedBitSet::with_capacity(existing.nodes.len());
        self.limits = limits;
        self.reservations = reservations;
        self.tally.start_log();
    }

    /// What taking nodes out needs to know of those that stay.
    pub(super) fn know_nodes(
        &mut self,
        joined: List<SortId, u32>,
        by_nodes: FxHashMap<(GroupId, ValueId), u32>,
    ) {
        self.joined = joined;
        self.by_nodes = by_nodes;
    }

    /// The state as it is now.
    pub(super) fn mark(&mut self) -> Mark {
        let (steps, claims) = (self.log.len(), self.claims.len());
        let kept = std::mem::replace(&mut self.kept, claims);
        Mark { steps, tally: self.tally.mark(), claims, kept }
    }

    /// Takes back every change since a mark.
    pub(super) fn undo(&mut self, mark: Mark, topology: &Topology) {
        self.tally.undo(topology, mark.tally);
        while self.log.len() > mark.steps {
            if let Some(step) = self.log.pop() {
                self.take_back(step);
            }
        }
        self.claims.truncate(mark.claims);
        self.kept = mark.kept;
        if let Some(devices) = &mut self.devices {
            devices.forget();
        }
    }

    fn take_back(&mut self, step: Step) {
        match step {
            Step::Pod { node, room } => {
                self.room[node * self.width..(node + 1) * self.width].copy_from_slice(&room);
                self.pods[node].pop();
            }
            Step::Ports { node, count } => {
                if let Some(taken) = self.ports.get_mut(&node) {
                    taken.truncate(taken.len().saturating_sub(count));
                }
            }
            Step::Volumes { node, added } => {
                if let Some(volumes) = self.volumes.get_mut(&node) {
                    volumes.remove(&added);
                }
            }
            Step::Grew { claim, before } => self.claims[claim] = *before,
            Step::Exchanged { before } => self.claims = before,
            Step::Limit { template, before } => self.limits[template] = before,
            Step::Reservation { id, given } => {
                if let Some(left) = self.reservations.get_mut(&id) {
                    *left -= given;
                }
            }
            Step::Out { node } => self.away.set(node, false),
            Step::Left { sort } => self.joined[sort] += 1,
            Step::Known { group, domain } => {
                *self.by_nodes.entry((group, domain)).or_insert(0) += 1;
            }
        }
    }

    // ---- nodes that exist

    /// What is free on a node.
    pub(super) fn room(&self, node: usize) -> &[i64] {
        &self.room[node * self.width..(node + 1) * self.width]
    }

    /// Puts a pod with these requests on a node.
    pub(super) fn place(&mut self, node: usize, pod: PodId, amounts: &[i64]) {
        let room = &mut self.room[node * self.width..(node + 1) * self.width];
        self.log.push(Step::Pod { node, room: Amounts::from_slice(room) });
        subtract(room, amounts);
        self.pods[node].push(pod);
    }

    /// Nodes that got pods since a mark, one entry for each pod.
    pub(super) fn placed_since(&self, mark: Mark) -> impl Iterator<Item = usize> {
        self.log[mark.steps..].iter().filter_map(|step| match step {
            Step::Pod { node, .. } => Some(*node),
            _ => None,
        })
    }

    /// Pods that were placed on a node.
    pub(super) fn pods_on(&self, node: usize) -> &[PodId] {
        &self.pods[node]
    }

    /// Host ports that pods which were placed on a node have.
    pub(super) fn ports_on(&self, node: usize) -> &[TakenPort] {
        self.ports.get(&node).map_or(&[], Vec::as_slice)
    }

    /// Takes host ports on a node.
    pub(super) fn take_ports(&mut self, node: usize, pod: &PodKey, ports: &[HostPort]) {
        if !ports.is_empty() {
            let taken = self.ports.entry(node).or_default();
            taken.extend(ports.iter().map(|port| (pod.clone(), port.clone())));
            self.log.push(Step::Ports { node, count: ports.len() });
        }
    }

    /// The volumes of a node, which `known` returns at first.
    pub(super) fn volumes_on(
        &mut self,
        node: usize,
        known: impl FnOnce() -> Volumes,
    ) -> &mut Volumes {
        self.volumes.entry(node).or_insert_with(known)
    }

    /// Attaches volumes to a node whose volumes are known.
    pub(super) fn attach(&mut self, node: usize, more: &[(Arc<str>, Arc<str>)]) {
        if let Some(volumes) = self.volumes.get_mut(&node) {
            let added = volumes.add(more);
            self.log.push(Step::Volumes { node, added });
        }
    }

    /// Takes a node out; false where it is out already.
    pub(super) fn take_out(&mut self, node: usize) -> bool {
        let new = !self.away.put(node);
        if new {
            self.log.push(Step::Out { node });
        }
        new
    }

    /// Notes that a node of a sort left; true when it was the last.
    pub(super) fn leave(&mut self, sort: SortId) -> bool {
        self.joined[sort] -= 1;
        self.log.push(Step::Left { sort });
        self.joined[sort] == 0
    }

    /// Notes that a sort of node is gone from which a group knew a domain; forgets the domain when
    /// no other sort is left.
    pub(super) fn unknow(&mut self, group: GroupId, domain: ValueId) {
        if let Some(sorts) = self.by_nodes.get_mut(&(group, domain)) {
            *sorts -= 1;
            let last = *sorts == 0;
            self.log.push(Step::Known { group, domain });
            if last {
                self.tally.forget(group, domain);
            }
        }
    }

    // ---- nodes to launch

    /// A planned node, to change.
    pub(super) fn claim_mut(&mut self, claim: usize) -> &mut Claim {
        if claim < self.kept {
            let before = Box::new(self.claims[claim].clone());
            self.log.push(Step::Grew { claim, before });
        }
        &mut self.claims[claim]
    }

    /// All planned nodes, to be packed again.
    pub(super) fn claims_mut(&mut self) -> &mut Vec<Claim> {
        if self.kept > 0 {
            self.log.push(Step::Exchanged { before: self.claims.clone() });
        }
        &mut self.claims
    }

    /// What the pool of a template may still use; nothing where it has no limits.
    pub(super) fn limit(&self, template: TemplateId) -> Option<&ResourceList> {
        self.limits[template].as_ref()
    }

    /// What all pools may still use.
    pub(super) fn limits(&self) -> &List<TemplateId, Option<ResourceList>> {
        &self.limits
    }

    /// What the pool of a template may still use, to change.
    pub(super) fn limit_mut(&mut self, template: TemplateId) -> Option<&mut ResourceList> {
        let limit = &mut self.limits[template];
        if limit.is_some() {
            self.log.push(Step::Limit { template, before: limit.clone() });
        }
        limit.as_mut()
    }

    /// What is left of a reservation.
    pub(super) fn reservation(&self, id: &str) -> i64 {
        self.reservations.get(id).copied().unwrap_or(0)
    }

    /// Whether there are reservations at all.
    pub(super) fn reserves(&self) -> bool {
        !self.reservations.is_empty()
    }

    /// Takes an instance of each reservation after, gives back one of each before.
    pub(super) fn hold(&mut self, before: &[Arc<str>], after: &[Arc<str>]) {
        let given = before.iter().filter(|id| !after.contains(id)).map(|id| (id, 1));
        let taken = after.iter().filter(|id| !before.contains(id)).map(|id| (id, -1));
        for (id, given) in given.chain(taken) {
            if let Some(left) = self.reservations.get_mut(id) {
                *left += given;
                self.log.push(Step::Reservation { id: Arc::clone(id), given });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::existing::ExistingNode;
    use super::super::ids::{Id, ShapeId, ValueId};
    use super::*;
    use crate::scheduling::resources::Name;

    const NODES: usize = 3;

    fn planned() -> Claim {
        Claim {
            shape: ShapeId::FIRST,
            requests: Amounts::from_slice(&[0]),
            pods: Vec::new(),
            ports: Vec::new(),
            min_values_relaxed: false,
            reserved: Vec::new(),
            devices: None,
        }
    }

    fn plan() -> Plan {
        let node = |index: usize| ExistingNode {
            name: index.to_string(),
            index,
            alike: SortId::FIRST,
            host: ValueId::new(index),
            room: Amounts::from_slice(&[100]),
            full: false,
            ports: Vec::new(),
        };
        let existing = Existing { nodes: (0..NODES).map(node).collect(), ..Existing::default() };
        let limit: ResourceList = [(Name::Cpu, 50)].into_iter().collect();
        let mut plan = Plan::default();
        let reservations = [(Arc::from("r"), 4)].into_iter().collect();
        plan.begin(&existing, 1, vec![Some(limit), None].into(), reservations);
        plan.know_nodes(vec![NODES as u32].into(), FxHashMap::default());
        plan
    }

    /// One change of some kind; which it is follows from the numbers.
    fn change(plan: &mut Plan, (kind, at): (u8, usize), volumes: &mut dyn FnMut() -> Volumes) {
        let node = at % NODES;
        let driver: Arc<str> = Arc::from("driver");
        match kind {
            0 => plan.place(node, PodId::new(at), &[at as i64]),
            1 => {
                let port = HostPort { protocol: "TCP".into(), ip: String::new(), port: 80 };
                plan.take_ports(node, &PodKey::new("n", "p"), &[port]);
            }
            2 => {
                plan.volumes_on(node, volumes);
                plan.attach(node, &[(driver, Arc::from(at.to_string()))]);
            }
            3 => {
                if plan.take_out(node) {
                    plan.leave(SortId::FIRST);
                }
            }
            4 => plan.claims.push(planned()),
            5 if !plan.claims.is_empty() => {
                let claim = at % plan.claims.len();
                plan.claim_mut(claim).pods.push(PodId::new(at));
            }
            6 => {
                let claims = plan.claims_mut();
                claims.reverse();
                claims.pop();
            }
            7 => {
                let less: ResourceList = [(Name::Cpu, at as i64)].into_iter().collect();
                for template in 0..2 {
                    if let Some(limit) = plan.limit_mut(TemplateId::new(template)) {
                        limit.sub(&less);
                    }
                }
            }
            _ => plan.hold(&[], &[Arc::from("r")]),
        }
    }

    /// All that a plan holds, as text.
    fn shown(plan: &Plan) -> String {
        let claims: Vec<&[PodId]> = plan.claims.iter().map(|c| &c.pods[..]).collect();
        let nodes: Vec<String> = (0..NODES)
            .map(|at| {
                let attached = plan.volumes.get(&at).map_or(0, Volumes::count);
                let (room, pods) = (plan.room(at), plan.pods_on(at));
                format!("{room:?} {pods:?} {} {attached}", plan.ports_on(at).len())
            })
            .collect();
        let joined: Vec<u32> = plan.joined.iter().copied().collect();
        let limits: Vec<String> = plan.limits().iter().map(|l| format!("{l:?}")).collect();
        format!(
            "{nodes:?} {claims:?} {limits:?} {joined:?} {} {:?}",
            plan.reservation("r"),
            plan.away
        )
    }

    proptest! {
        #[test]
        fn undo_takes_back_every_change_since_its_mark_and_no_other(
            first in proptest::collection::vec((0_u8..9, 0_usize..20), 0..12),
            second in proptest::collection::vec((0_u8..9, 0_usize..20), 0..12),
            third in proptest::collection::vec((0_u8..9, 0_usize..20), 0..12),
        ) {
            let (mut plan, topology) = (plan(), Topology::default());
            let mut volumes = Volumes::default;
            let begun = shown(&plan);
            let outer = plan.mark();
            first.into_iter().for_each(|c| change(&mut plan, c, &mut volumes));
            let between = shown(&plan);
            let inner = plan.mark();
            second.into_iter().for_each(|c| change(&mut plan, c, &mut volumes));
            plan.undo(inner, &topology);
            prop_assert_eq!(shown(&plan), between.clone());
            let again = plan.mark();
            third.into_iter().for_each(|c| change(&mut plan, c, &mut volumes));
            plan.undo(again, &topology);
            prop_assert_eq!(shown(&plan), between);
            plan.undo(outer, &topology);
            prop_assert_eq!(shown(&plan), begun);
        }
    }
}
