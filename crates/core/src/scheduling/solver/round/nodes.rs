//! Nodes that exist: the first that takes a pod.

use fixedbitset::FixedBitSet;

use super::{Round, Spot, WORD, take_out};
use crate::scheduling::solver::amounts::{fits, subtract};
use crate::scheduling::solver::classes::{ClassId, NeedId};
use crate::scheduling::solver::existing::Volumes;
use crate::scheduling::solver::intern::NONE;
use crate::scheduling::volumes::PodVolumes;

impl Round<'_, '_> {
    /// Nodes whose taints, labels and name suit a class.
    fn suitable_nodes(&mut self, class: ClassId) {
        let world = &mut *self.world;
        if world.memo.class_nodes.len() <= class as usize {
            world.memo.class_nodes.resize(world.classes.classes.len(), None);
        }
        if world.memo.class_nodes[class as usize].is_some() {
            return;
        }
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
            let closed = world.shared.is_none() && world.snapshot.nodes[node.index].closed;
            if node.full || closed || !named {
                nodes.set(at, false);
            }
        }
        world.memo.class_nodes[class as usize] = Some(nodes);
    }

    /// The first existing node that takes the pod.
    pub(super) fn try_nodes(
        &mut self,
        pod: u32,
        class: ClassId,
        need: NeedId,
        room: NeedId,
    ) -> Option<u32> {
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
        let world = &mut *self.world;
        mask.extend_from_slice(world.memo.class_nodes[class as usize].as_ref()?.as_slice());
        let roomy = match &self.need_nodes[room as usize] {
            Some(left) => left,
            None => {
                let all = if world.shared.is_some() {
                    world.nodes_with_room(room).clone()
                } else {
                    let mut all = FixedBitSet::with_capacity(nodes);
                    all.insert_range(..);
                    all
                };
                self.need_nodes[room as usize].insert(all)
            }
        };
        mask.iter_mut().zip(roomy.as_slice()).for_each(|(m, r)| *m &= r);
        if let Some(shared) = &world.shared {
            take_out(&mut mask, &shared.away);
            if shared.closing {
                take_out(&mut mask, &shared.closed);
            }
        }
        if mask.iter().any(|w| *w != 0) {
            self.rule_out(class, 0, &mut mask);
        }
        let mut found = None;
        if mask.iter().any(|w| *w != 0) {
            self.rule_out_zones(class, &mut mask);
            found = self.first_node(pod, class, room, volumes.as_deref(), &mask);
        }
        self.mask = mask;
        if let Some(node) = found {
            self.put_on_node(pod, class, need, node, volumes.as_deref());
        }
        found.map(|n| n as u32)
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
                take_out(mask, &self.world.existing.alike[at].nodes);
            }
        }
    }

    fn first_node(
        &mut self,
        pod: u32,
        class: ClassId,
        need: NeedId,
        volumes: Option<&PodVolumes>,
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

    fn attaches(&mut self, node: usize, volumes: &PodVolumes) -> bool {
        self.volumes_of(node).has_room(&volumes.attached)
    }

    fn volumes_of(&mut self, node: usize) -> &mut Volumes {
        let world = &*self.world;
        let state = &world.snapshot.nodes[world.existing.nodes[node].index];
        let known = || world.attachable.volumes(state, &world.snapshot);
        self.volumes.entry(node).or_insert_with(known)
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
        volumes: Option<&PodVolumes>,
    ) {
        let width = self.world.resources.len();
        let room = &mut self.room[node * width..(node + 1) * width];
        subtract(room, &self.world.classes.needs[need as usize]);
        self.node_pods[node].push(pod);
        self.touched.push(node as u32);
        let ports = &self.world.classes.classes[class as usize].constraints.host_ports;
        if !ports.is_empty() {
            let key = &self.world.waiting[pod as usize].pod.key;
            let taken = self.new_ports.entry(node).or_default();
            taken.extend(ports.iter().map(|p| (key.clone(), p.clone())));
        }
        if let Some(volumes) = volumes.filter(|v| !v.attached.is_empty()) {
            self.volumes_of(node).add(&volumes.attached);
        }
        self.take_devices_of_node(node);
        let entry = &self.world.existing.nodes[node];
        let alike = &self.world.existing.alike[entry.alike as usize];
        let (set, taints, name) = (alike.set, alike.taints, Some(entry.host));
        self.record(class, Spot { set, taints, host: node as u32, name }, false);
    }
}
