//! What is counted rather than watched: claims of static pools, and the pods of capacity buffers.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::{Change, State, forward, is_older};
use crate::api::autoscaling::CapacityBuffer;
use crate::api::v1alpha1::NodeOverlay;
use crate::scheduling::overlay::{InForce, Store};
use crate::scheduling::pod::{PodInfo, PodKey};

/// NodeClaims of a pool, by how long they will stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCount {
    /// They stay.
    pub active: i64,
    /// A disruption command has chosen them.
    pub pending_disruption: i64,
    /// They are on their way out.
    pub deleting: i64,
}

impl State {
    /// Counts a pool's NodeClaims.
    #[must_use]
    pub fn count_claims(&self, pool: &str) -> PoolCount {
        self.inner.read().count_claims(pool)
    }

    /// Reserves up to `wanted` nodes of a pool that may have `limit` nodes in all; returns how
    /// many. Counting and reserving under one lock keeps two controllers from both taking the last
    /// one.
    pub fn reserve_nodes(&self, pool: &str, limit: i64, wanted: i64) -> i64 {
        let mut inner = self.write();
        let count = inner.count_claims(pool);
        let reserved = inner.reserved.entry(pool.to_owned()).or_default();
        // Nodes that are on their way out still run, and the limit is one on what runs.
        let taken = count.active + count.deleting + count.pending_disruption + *reserved;
        let granted = wanted.min(limit.saturating_sub(taken)).max(0);
        *reserved += granted;
        granted
    }

    /// Reserves one node of a pool that may have `limit` nodes, those that are on their way out
    /// apart: they make room for what takes their place. Returns whether there was room.
    pub fn reserve_node(&self, pool: &str, limit: i64) -> bool {
        let mut inner = self.write();
        let active = inner.count_claims(pool).active;
        let reserved = inner.reserved.entry(pool.to_owned()).or_default();
        let room = active + *reserved < limit;
        *reserved += i64::from(room);
        room
    }

    /// Gives reserved nodes back, once their claims were made or could not be.
    pub fn release_nodes(&self, pool: &str, count: i64) {
        let mut inner = self.write();
        if let Some(reserved) = inner.reserved.get_mut(pool) {
            *reserved = (*reserved - count).max(0);
        }
    }

    /// Takes in a CapacityBuffer.
    pub fn apply_buffer(&self, buffer: CapacityBuffer) {
        let meta = &buffer.metadata;
        let key = PodKey::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        );
        let taken = {
            let mut inner = self.write();
            let older = is_older(inner.buffers.get(&key).map(|b| &b.metadata), meta);
            if !older {
                inner.buffers.insert(key.clone(), Arc::new(buffer));
            }
            !older
        };
        if taken {
            self.publish(Change::Buffer(key));
        }
    }

    /// Forgets a CapacityBuffer. Its pods stay until its controller has seen that it is gone, and has
    /// the nodes that hold room for them looked at again.
    pub fn delete_buffer(&self, key: &PodKey) {
        self.write().buffers.remove(key);
        self.publish(Change::Buffer(key.clone()));
    }

    /// The CapacityBuffer of that key.
    #[must_use]
    pub fn buffer(&self, key: &PodKey) -> Option<Arc<CapacityBuffer>> {
        self.inner.read().buffers.get(key).cloned()
    }

    /// Every CapacityBuffer.
    #[must_use]
    pub fn buffers(&self) -> Vec<Arc<CapacityBuffer>> {
        self.inner.read().buffers.values().cloned().collect()
    }

    /// Sets the pods that stand for a buffer.
    pub fn set_buffer_pods(&self, key: &PodKey, pods: Vec<Arc<PodInfo>>) {
        let mut inner = self.write();
        // A controller that worked on a buffer while it was deleted must not bring its pods back.
        if inner.buffers.contains_key(key) {
            inner.buffer_pods.insert(key.clone(), pods);
        }
    }

    /// Forgets the pods that stand for a buffer; true when there were any.
    pub fn drop_buffer_pods(&self, key: &PodKey) -> bool {
        self.write().buffer_pods.remove(key).is_some()
    }

    /// The pods that stand for all buffers, in order.
    #[must_use]
    pub fn buffer_pods(&self) -> Vec<Arc<PodInfo>> {
        self.inner.read().buffer_pods.values().flatten().cloned().collect()
    }

    /// Notes on which nodes, by provider id, a round placed buffers' pods, and how many.
    pub fn set_buffer_nodes(&self, nodes: HashMap<String, usize>) {
        let mut inner = self.write();
        let before = std::mem::replace(&mut inner.buffer_nodes, nodes);
        // The nodes of the previous round too: their views still show buffer pods.
        let ids: BTreeSet<String> =
            before.into_keys().chain(inner.buffer_nodes.keys().cloned()).collect();
        let named = |inner: &super::Inner, id: &String| inner.claims_by_id.get(id).cloned();
        for claim in ids.iter().filter_map(|id| named(&inner, id)).flatten().collect::<Vec<_>>() {
            inner.show_claim(&claim);
        }
    }

    /// Takes in a NodeOverlay.
    pub fn apply_overlay(&self, overlay: NodeOverlay) {
        let name = overlay.metadata.name.clone().unwrap_or_default();
        if forward(&mut self.write().overlays, &name, overlay) {
            self.publish(Change::NodeOverlay(name));
        }
    }

    /// Forgets a NodeOverlay.
    pub fn delete_overlay(&self, name: &str) {
        self.write().overlays.remove(name);
        self.publish(Change::NodeOverlay(name.to_owned()));
    }

    /// Every NodeOverlay.
    #[must_use]
    pub fn overlays(&self) -> Vec<Arc<NodeOverlay>> {
        self.inner.read().overlays.values().cloned().collect()
    }

    /// Puts the judged overlays in force.
    pub fn set_overlay_store(&self, store: Store) {
        self.overlays_in_force.set(store);
    }

    /// The overlays in force; `None` before they were judged for the first time.
    #[must_use]
    pub fn overlay_store(&self) -> Option<Arc<Store>> {
        self.overlays_in_force.store()
    }

    /// The same as a handle of its own, for the cloud provider, which does not know the state.
    #[must_use]
    pub fn overlays_in_force(&self) -> InForce {
        self.overlays_in_force.clone()
    }
}

impl super::Inner {
    fn count_claims(&self, pool: &str) -> PoolCount {
        let mut count = PoolCount::default();
        let names = self.claims_by_pool.get(pool).into_iter().flatten();
        for (name, claim) in names.filter_map(|name| self.claims.get_key_value(name)) {
            if claim.metadata.deletion_timestamp.is_some() {
                count.deleting += 1;
            } else if self.marked.contains(name) {
                count.pending_disruption += 1;
            } else {
                count.active += 1;
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reserved_nodes_count_towards_the_limit() {
        let state = State::default();
        let claim = |name: &str| {
            let value = json!({"metadata": {"name": name,
                "labels": {"karpenter.sh/nodepool": "p"}}, "spec": {}});
            state.apply_claim(serde_json::from_value(value).unwrap());
        };
        claim("a");
        claim("b");
        state.mark_for_deletion(&["b".to_owned()]);
        let count = PoolCount { active: 1, pending_disruption: 1, deleting: 0 };
        assert_eq!(state.count_claims("p"), count);
        assert_eq!(state.reserve_nodes("p", 5, 2), 2);
        assert_eq!(state.reserve_nodes("p", 5, 2), 1);
        assert_eq!(state.reserve_nodes("p", 5, 2), 0);
        state.release_nodes("p", 9);
        assert_eq!(state.reserve_nodes("p", i64::MAX, 4), 4);
        assert_eq!(state.reserve_nodes("q", 0, 4), 0);
    }

    #[test]
    fn a_node_on_its_way_out_makes_room_for_another() {
        let state = State::default();
        let value = json!({"metadata": {"name": "a", "labels": {"karpenter.sh/nodepool": "p"}},
            "spec": {}});
        state.apply_claim(serde_json::from_value(value).unwrap());
        assert!(!state.reserve_node("p", 1));
        assert!(state.reserve_node("p", 2) && !state.reserve_node("p", 2));
        state.release_nodes("p", 1);
        state.mark_for_deletion(&["a".to_owned()]);
        assert!(state.reserve_node("p", 1) && !state.reserve_node("p", 1));
    }
}
