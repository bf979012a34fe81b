//! Nodes that exist: the first that takes a pod.

use std::collections::hash_map::Entry;

use fixedbitset::FixedBitSet;

use super::{Round, Spot, WORD, take_out};
use crate::scheduling::solver::amounts::fits;
use crate::scheduling::solver::existing::Volumes;
use crate::scheduling::solver::ids::{ClassId, HostId, Id, NeedId, PodId};
use crate::scheduling::volumes::PodVolumes;

impl Round<'_, '_> {
    /// Nodes whose taints, labels and name suit a class.
    fn suitable_nodes(&mut self, class: ClassId) {
        let world = &mut *self.world;
        world.memo.class_nodes.grow(world.classes.classes.len(), None);
        if world.memo.class_nodes[class].is_some() {
            return;
        }
        let wanted = &world.classes.classes[class];
        let mut nodes = FixedBitSet::with_capacity(world.existing.nodes.len());
        for alike in &world.existing.alike {
            if world.tolerance.tolerates(wanted.tolerations, alike.taints)
                && world.interner.compatible(alike.set, wanted.set, false)
            {
                nodes.union_with(&alike.nodes);
            }
        }
        for (at, node) in world.existing.nodes.iter().enumerate() {
            let named = wanted.host.is_none() || world.interner.has(wanted.host, node.host);
            let closed = world.shared.is_none() && world.snapshot.nodes[node.index].closed;
            if node.full || closed || !named {
                nodes.set(at, false);
            }
        }
        world.memo.class_nodes[class] = Some(nodes);
    }

    /// The first existing node that takes the pod.
    pub(super) fn try_nodes(
        &mut self,
        pod: PodId,
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
            let key = &self.world.waiting[pod].pod.key;
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
        mask.extend_from_slice(world.memo.class_nodes[class].as_ref()?.as_slice());
        let roomy = match self.need_nodes.entry(room) {
            Entry::Occupied(left) => left.into_mut(),
            Entry::Vacant(place) => {
                let all = if world.shared.is_some() {
                    world.nodes_with_room(room).clone()
                } else {
                    let mut all = FixedBitSet::with_capacity(nodes);
                    all.insert_range(..);
                    all
                };
                place.insert(all)
            }
        };
        mask.iter_mut().zip(roomy.as_slice()).for_each(|(m, r)| *m &= r);
        if let Some(shared) = &world.shared {
            take_out(&mut mask, &world.plan.away);
            if shared.closing {
                take_out(&mut mask, &shared.closed);
            }
        }
        if mask.iter().any(|w| *w != 0) {
            self.rule_out(class, HostId::FIRST, &mut mask);
        }
        let mut found = None;
        if mask.iter().any(|w| *w != 0) {
            // Last of the masks, as it is the dearest: it asks topology once for each kind of node.
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
        let wanted = &self.world.classes.classes[class];
        // Volumes may settle the zone; then each node is looked at by itself.
        if !wanted.zonal || !wanted.volumes.is_empty() {
            return;
        }
        for at in self.world.existing.alike.ids() {
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
        pod: PodId,
        class: ClassId,
        need: NeedId,
        volumes: Option<&PodVolumes>,
        mask: &[usize],
    ) -> Option<usize> {
        for (at, word) in mask.iter().enumerate() {
            let mut word = *word;
            while word != 0 {
                let node = at * WORD + word.trailing_zeros() as usize;
                word &= word - 1;
                let room = self.world.plan.room(node);
                if !fits(&self.world.classes.needs[need], room) {
                    if let Some(nodes) = self.need_nodes.get_mut(&need) {
                        // Room only shrinks within a round: the node is not looked at again for
                        // this need.
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

    fn ports_conflict(&self, pod: PodId, class: ClassId, node: usize) -> bool {
        let ports = &self.world.classes.classes[class].constraints.host_ports;
        let own = &self.world.waiting[pod].pod.key;
        !ports.is_empty()
            && self.world.existing.nodes[node]
                .ports
                .iter()
                .chain(self.world.plan.ports_on(node))
                // A pod that is moved still stands on its node with its own ports.
                .any(|(key, taken)| key != own && ports.iter().any(|p| p.conflicts(taken)))
    }

    fn attaches(&mut self, node: usize, volumes: &PodVolumes) -> bool {
        self.know_volumes(node).has_room(&volumes.attached)
    }

    fn know_volumes(&mut self, node: usize) -> &mut Volumes {
        let world = &mut *self.world;
        let state = &world.snapshot.nodes[world.existing.nodes[node].index];
        let known = || world.attachable.volumes(state, &world.snapshot);
        world.plan.volumes_on(node, known)
    }

    /// Whether one of the places of the pod's volumes, and topology with it, suits the node.
    fn volumes_suit_node(&mut self, class: ClassId, node: usize) -> bool {
        let places = self.world.classes.classes[class].volumes.clone();
        if places.is_empty() {
            return true;
        }
        let host = self.world.existing.nodes[node].host;
        let set = self.world.existing.alike[self.world.existing.nodes[node].alike].set;
        places.into_iter().any(|(place, name)| {
            self.world.interner.compatible(set, place, false)
                && (name.is_none() || self.world.interner.has(name, host))
                && (!self.world.classes.classes[class].zonal
                    || self.zones(class, set, None).is_some())
        })
    }

    fn put_on_node(
        &mut self,
        pod: PodId,
        class: ClassId,
        need: NeedId,
        node: usize,
        volumes: Option<&PodVolumes>,
    ) {
        let world = &mut *self.world;
        world.plan.place(node, pod, &world.classes.needs[need]);
        let ports = &world.classes.classes[class].constraints.host_ports;
        world.plan.take_ports(node, &world.waiting[pod].pod.key, ports);
        if let Some(volumes) = volumes.filter(|v| !v.attached.is_empty()) {
            // The plan must hold what is attached already before it can count one more.
            self.know_volumes(node);
            self.world.plan.attach(node, &volumes.attached);
        }
        self.take_devices_of_node(node);
        let entry = &self.world.existing.nodes[node];
        let alike = &self.world.existing.alike[entry.alike];
        let (set, taints, name) = (alike.set, alike.taints, Some(entry.host));
        self.record(class, Spot { set, taints, host: HostId::new(node), name }, false);
    }
}
