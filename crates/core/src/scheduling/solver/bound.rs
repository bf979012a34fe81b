//! Pods that are on nodes already, read once: what they request, and what they are counted as.
//!
//! There are far more of them than of waiting pods, and each is somewhere else in memory: going
//! through them takes longer than anything that is worked out for them.

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::amounts::Resources;
use super::existing::TakenPort;
use crate::scheduling::pod::{PodInfo, PodKey};
use crate::scheduling::snapshot::Snapshot;

/// The pods on all nodes of a snapshot, by the node's place in it.
pub(super) struct Bound {
    width: usize,
    /// What the pods of each node request, finished ones apart; flat.
    requests: Vec<i64>,
    /// What those of DaemonSets among them request; flat.
    of_daemons: Vec<i64>,
    /// Nodes with pods that request what nobody who waits asks for.
    others: Vec<bool>,
    /// Host ports that pods on a node have.
    ports: FxHashMap<usize, Vec<TakenPort>>,
    /// One pod of all that have the same namespace and labels.
    pub(super) labelled: Vec<Arc<PodInfo>>,
    /// For each pod that topology counts, which of these it is like.
    like: Vec<u32>,
    /// Where each node's part of that list ends.
    ends: Vec<usize>,
    /// Pods that keep others away, with their node, until they are gone.
    pub(super) apart: Vec<(usize, Arc<PodInfo>)>,
    /// Pods that are being deleted, with their node: others may have to keep away from them.
    pub(super) ending: Vec<(usize, Arc<PodInfo>)>,
}

impl Bound {
    /// Reads the pods of all nodes.
    ///
    /// Topology counts those that run and are not themselves to be placed again. As for Kubernetes'
    /// scheduler, a pod that is being deleted counts for anti-affinity until it is gone.
    pub(super) fn new(snapshot: &Snapshot, resources: &Resources) -> Self {
        let (nodes, width) = (snapshot.nodes.len(), resources.len());
        let mut bound = Self {
            width,
            requests: vec![0; nodes * width],
            of_daemons: vec![0; nodes * width],
            others: vec![false; nodes],
            ports: FxHashMap::default(),
            labelled: Vec::new(),
            like: Vec::new(),
            ends: Vec::with_capacity(nodes),
            apart: Vec::new(),
            ending: Vec::new(),
        };
        let on_nodes = snapshot.pods.iter().filter(|p| p.node_name.is_some());
        let batch: FxHashSet<&PodKey> = on_nodes.map(|p| &p.key).collect();
        let mut seen: FxHashMap<(usize, usize), u32> = FxHashMap::default();
        for (node, state) in snapshot.nodes.iter().enumerate() {
            // A look at all of them first: the processor fetches many at once, and the loop after it
            // does not wait for each.
            let active = state.pods.iter().filter(|p| p.is_active()).count();
            bound.like.reserve(active);
            for pod in &state.pods {
                if !pod.terminal {
                    bound.add_requests(node, pod, resources);
                    bound.add_ports(node, pod);
                }
                let stays = !pod.terminal && (batch.is_empty() || !batch.contains(&pod.key));
                if stays && !pod.constraints.anti_affinity.is_empty() {
                    bound.apart.push((node, Arc::clone(pod)));
                }
                if stays && pod.terminating {
                    bound.ending.push((node, Arc::clone(pod)));
                } else if stays {
                    let labelled = &mut bound.labelled;
                    let like = *seen.entry(addresses(pod)).or_insert_with(|| {
                        labelled.push(Arc::clone(pod));
                        labelled.len() as u32 - 1
                    });
                    bound.like.push(like);
                }
            }
            bound.ends.push(bound.like.len());
        }
        bound
    }

    fn add_requests(&mut self, node: usize, pod: &PodInfo, resources: &Resources) {
        let part = node * self.width..(node + 1) * self.width;
        let known = resources.add_to(&mut self.requests[part.clone()], &pod.requests, 1);
        self.others[node] |= !known;
        if pod.owners.daemon_set {
            resources.add_to(&mut self.of_daemons[part], &pod.requests, 1);
        }
    }

    fn add_ports(&mut self, node: usize, pod: &PodInfo) {
        let ports = &pod.constraints.host_ports;
        if !ports.is_empty() {
            let taken = self.ports.entry(node).or_default();
            taken.extend(ports.iter().map(|port| (pod.key.clone(), port.clone())));
        }
    }

    /// Host ports that the pods on a node have.
    pub(super) fn ports(&self, node: usize) -> &[TakenPort] {
        self.ports.get(&node).map_or(&[], Vec::as_slice)
    }

    /// What the pods on a node request.
    pub(super) fn requests(&self, node: usize) -> &[i64] {
        &self.requests[node * self.width..(node + 1) * self.width]
    }

    /// What the pods of DaemonSets on a node request.
    pub(super) fn of_daemons(&self, node: usize) -> &[i64] {
        &self.of_daemons[node * self.width..(node + 1) * self.width]
    }

    /// Whether pods on a node request what nobody who waits asks for.
    pub(super) fn requests_others(&self, node: usize) -> bool {
        self.others[node]
    }

    /// For each pod on a node that topology counts, which of [`Bound::labelled`] it is like.
    pub(super) fn counted(&self, node: usize) -> &[u32] {
        let start = node.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.like[start..self.ends[node]]
    }
}

/// Where the pod's namespace and labels are in memory, which pods of one template share.
fn addresses(pod: &PodInfo) -> (usize, usize) {
    (Arc::as_ptr(&pod.key.namespace).addr(), Arc::as_ptr(&pod.labels).addr())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::scheduling::node::NodeView;
    use crate::scheduling::resources::Name;

    fn on_node(name: &str, phase: &str, more: &serde_json::Value) -> Arc<PodInfo> {
        let mut pod = json!({
            "metadata": {"name": name, "labels": {"app": "a"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i",
                "ports": [{"containerPort": 80, "hostPort": 80}],
                "resources": {"requests": {"cpu": "1", "example.com/disk": "2"}}}]},
            "status": {"phase": phase}});
        for (key, value) in more.as_object().into_iter().flatten() {
            pod["metadata"][key] = value.clone();
        }
        Arc::new(PodInfo::from_pod(&serde_json::from_value(pod).unwrap()))
    }

    #[test]
    fn each_pod_is_charged_and_counted_as_far_as_it_runs_and_stays() {
        let daemon = json!({"ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u"}]});
        let stays = on_node("stays", "Running", &json!({}));
        let again = PodKey { name: Arc::from("again"), ..stays.key.clone() };
        let again = PodInfo { key: again, ..(*stays).clone() };
        let moves = on_node("moves", "Running", &json!({}));
        let pods = vec![
            Arc::clone(&stays),
            Arc::new(again),
            Arc::clone(&moves),
            on_node("daemon", "Running", &daemon),
            on_node("done", "Succeeded", &json!({})),
            on_node("leaves", "Running", &json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})),
        ];
        let snapshot = Snapshot {
            nodes: vec![
                NodeView::default().into(),
                NodeView { pods, ..NodeView::default() }.into(),
            ],
            pods: vec![moves],
            ..Snapshot::default()
        };
        let mut resources = Resources::default();
        resources.note(&[(Name::Cpu, 1)].into_iter().collect());
        let bound = Bound::new(&snapshot, &resources);
        assert_eq!((bound.requests(0), bound.requests(1)), (&[0][..], &[5000][..]));
        assert_eq!(bound.of_daemons(1), [1000]);
        assert!(bound.requests_others(1) && !bound.requests_others(0));
        assert_eq!((bound.ports(0).len(), bound.ports(1).len()), (0, 5));
        // Those that stay: two of one template, and the daemon.
        assert_eq!((bound.counted(0), bound.counted(1)), (&[][..], &[0, 0, 1][..]));
        assert_eq!(bound.labelled.len(), 2);
    }
}
