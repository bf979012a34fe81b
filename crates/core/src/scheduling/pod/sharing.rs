//! Parts that pods have in common, kept in memory once.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::FxHashSet;

use super::{Constraints, Owner, PodInfo};
use crate::scheduling::resources::ResourceList;
use crate::scheduling::sharing::once;

/// Finds what pods have in common, so that it is kept in memory once. Pods of one ReplicaSet differ
/// in little more than name and uid.
#[derive(Debug, Default)]
pub struct Sharing {
    constraints: FxHashSet<Arc<Constraints>>,
    labels: FxHashSet<Arc<BTreeMap<String, String>>>,
    texts: FxHashSet<Arc<str>>,
    owners: FxHashSet<Arc<Owner>>,
    limits: FxHashSet<Arc<ResourceList>>,
    /// Number of entries at which those without another user are dropped.
    prune_at: usize,
}

impl Sharing {
    /// The pod, with each part replaced by an equal one that was seen before. The solver then
    /// recognizes equal parts by their address.
    #[must_use]
    pub fn share(&mut self, mut pod: PodInfo) -> PodInfo {
        pod.constraints = once(&mut self.constraints, pod.constraints);
        pod.labels = once(&mut self.labels, pod.labels);
        pod.limits = once(&mut self.limits, pod.limits);
        pod.owner = pod.owner.map(|owner| once(&mut self.owners, owner));
        pod.key.namespace = self.text(&pod.key.namespace);
        pod.node_name = pod.node_name.map(|name| self.text(&name));
        pod.invalid = pod.invalid.map(|text| self.text(&text));
        pod.claims.shrink_to_fit();
        self.prune();
        pod
    }

    /// Drops what nobody else holds, whenever the number of entries has doubled: so the cost of
    /// going through all of them is spread over as many insertions.
    fn prune(&mut self) {
        let size = |s: &Self| {
            let small = s.texts.len() + s.owners.len() + s.limits.len();
            s.constraints.len() + s.labels.len() + small
        };
        if size(self) <= self.prune_at.max(1024) {
            return;
        }
        self.constraints.retain(|c| Arc::strong_count(c) > 1);
        self.labels.retain(|l| Arc::strong_count(l) > 1);
        self.texts.retain(|t| Arc::strong_count(t) > 1);
        self.owners.retain(|o| Arc::strong_count(o) > 1);
        self.limits.retain(|l| Arc::strong_count(l) > 1);
        self.prune_at = 2 * size(self);
    }

    /// The text, kept once.
    pub fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        let new: Arc<str> = Arc::from(text);
        self.texts.insert(Arc::clone(&new));
        new
    }
}
