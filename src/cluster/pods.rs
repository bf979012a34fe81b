//! Pods and DaemonSets: kept parsed, and shared between pods that were made alike.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use rustc_hash::FxHashMap;

use super::{Change, Inner, State};
use crate::scheduling::buffer::effective_spec;
use crate::scheduling::pod::{Constraints, CostError, PodInfo, PodKey, disruption_cost};

/// Namespace and name of a DaemonSet.
type SetKey = (Arc<str>, Arc<str>);

/// Namespace and name of a PersistentVolumeClaim.
type ClaimKey = (Arc<str>, Arc<str>);

#[derive(Default)]
pub(super) struct Pods {
    all: FxHashMap<PodKey, Arc<PodInfo>>,
    /// Pods that wait for a node that Karpenter may launch.
    waiting: BTreeMap<PodKey, Arc<PodInfo>>,
    /// Unfinished pods by the Node that they are bound to, in order.
    on: FxHashMap<Arc<str>, Vec<Arc<PodInfo>>>,
    /// The Nodes of unfinished pods by the volume claims that they use: one entry for each pod.
    claim_nodes: FxHashMap<ClaimKey, Vec<Arc<str>>>,
    /// What each DaemonSet would make.
    sets: BTreeMap<SetKey, Arc<PodInfo>>,
    /// The newest pod of each DaemonSet.
    newest: FxHashMap<SetKey, Arc<PodInfo>>,
    /// The pod that stands for each DaemonSet.
    samples: BTreeMap<SetKey, Arc<PodInfo>>,
}

impl Pods {
    fn unbind(&mut self, key: &PodKey) {
        let Some(pod) = self.all.get(key) else { return };
        let Some(node) = pod.node_name.clone().filter(|_| !pod.terminal) else { return };
        for claim in &pod.claims {
            let id = (Arc::clone(&key.namespace), Arc::clone(claim));
            let Some(nodes) = self.claim_nodes.get_mut(&id) else { continue };
            if let Some(at) = nodes.iter().position(|n| *n == node) {
                nodes.swap_remove(at);
            }
            if nodes.is_empty() {
                self.claim_nodes.remove(&id);
            }
        }
        if let Some(pods) = self.on.get_mut(&node) {
            if let Ok(at) = pods.binary_search_by(|p| p.key.cmp(key)) {
                pods.remove(at);
            }
            if pods.is_empty() {
                self.on.remove(&node);
            }
        }
    }

    fn insert(&mut self, info: &Arc<PodInfo>) -> Option<Arc<PodInfo>> {
        // First, from the node and claims that the index has: the pod may have finished since, or
        // be another of the same name.
        self.unbind(&info.key);
        if info.is_provisionable() {
            self.waiting.insert(info.key.clone(), Arc::clone(info));
        } else {
            self.waiting.remove(&info.key);
        }
        if let Some(node) = info.node_name.clone().filter(|_| !info.terminal) {
            for claim in &info.claims {
                let id = (Arc::clone(&info.key.namespace), Arc::clone(claim));
                self.claim_nodes.entry(id).or_default().push(Arc::clone(&node));
            }
            let pods = self.on.entry(node).or_default();
            match pods.binary_search_by(|p| p.key.cmp(&info.key)) {
                Ok(at) => pods[at] = Arc::clone(info),
                Err(at) => pods.insert(at, Arc::clone(info)),
            }
        }
        if let Some(set) = set_of(info)
            && self.newest.get(&set).is_none_or(|known| known.created <= info.created)
        {
            self.newest.insert(set.clone(), Arc::clone(info));
            self.refresh(&set);
        }
        self.all.insert(info.key.clone(), Arc::clone(info))
    }

    fn remove(&mut self, key: &PodKey) -> Option<Arc<PodInfo>> {
        self.unbind(key);
        self.waiting.remove(key);
        let gone = self.all.remove(key)?;
        if let Some(set) = set_of(&gone)
            && self.newest.get(&set).is_some_and(|known| known.key == *key)
        {
            // All pods are searched only when the newest of a set goes, which is rare; an index
            // would cost memory for each pod.
            let left = self.all.values().filter(|p| set_of(p).as_ref() == Some(&set));
            match left.max_by_key(|p| p.created).cloned() {
                Some(pod) => self.newest.insert(set.clone(), pod),
                None => self.newest.remove(&set),
            };
            self.refresh(&set);
        }
        Some(gone)
    }

    /// Chooses the pod that stands for a DaemonSet: its newest pod, with the node affinity that the
    /// template asks for instead of the single node that the pod was made for; else the template.
    fn refresh(&mut self, set: &SetKey) {
        let Some(template) = self.sets.get(set) else {
            self.samples.remove(set);
            return;
        };
        let sample = match self.newest.get(set) {
            None => Arc::clone(template),
            Some(pod) if template.constraints.required_terms.is_empty() => Arc::clone(pod),
            Some(pod) => Arc::new(PodInfo {
                constraints: Arc::new(Constraints {
                    required_terms: template.constraints.required_terms.clone(),
                    ..(*pod.constraints).clone()
                }),
                ..(**pod).clone()
            }),
        };
        self.samples.insert(set.clone(), sample);
    }

    /// Pods bound to a node, finished ones left out, in order.
    pub(super) fn on(&self, node: &str) -> &[Arc<PodInfo>] {
        self.on.get(node).map(Vec::as_slice).unwrap_or_default()
    }

    /// Nodes with a pod that uses the volume claim.
    pub(super) fn nodes_of_claim(&self, namespace: &str, name: &str) -> Vec<Arc<str>> {
        let key = (Arc::from(namespace), Arc::from(name));
        self.claim_nodes.get(&key).cloned().unwrap_or_default()
    }

    /// Nodes with a pod that uses any volume claim.
    pub(super) fn nodes_with_claims(&self) -> BTreeSet<Arc<str>> {
        self.claim_nodes.values().flatten().cloned().collect()
    }
}

/// The DaemonSet that a pod belongs to.
fn set_of(pod: &PodInfo) -> Option<SetKey> {
    let owner = pod.owner.as_ref().filter(|_| pod.owners.daemon_set)?;
    Some((Arc::clone(&pod.key.namespace), Arc::clone(&owner.name)))
}

impl Inner {
    /// Brings the views of the Nodes up to date that a pod was on, or is.
    fn show_pod(&mut self, before: Option<&PodInfo>, after: Option<&PodInfo>) {
        let node = |pod: Option<&PodInfo>| pod.and_then(|p| p.node_name.clone());
        let (from, to) = (node(before), node(after));
        let from = from.filter(|from| Some(from) != to.as_ref());
        for node in from.into_iter().chain(to) {
            match &mut self.behind {
                Some(behind) => drop(behind.insert(node)),
                None => self.show_pods_of(&node),
            }
        }
    }

    /// Brings the views up to date that waited for the end of the first lists.
    pub(super) fn catch_up(&mut self) {
        for node in self.behind.take().into_iter().flatten() {
            self.show_pods_of(&node);
        }
    }
}

impl State {
    /// Takes in a pod.
    pub fn apply_pod(&self, pod: &Pod) {
        let mut info = PodInfo::from_pod(pod);
        let cost = disruption_cost(pod, !self.writes_replica_costs.load(Ordering::Relaxed));
        info.deletion_cost = *cost.as_ref().unwrap_or(&0);
        // Before the state's lock is taken, so that readers do not wait for the parsing.
        let info = Arc::new(self.sharing.lock().share(info));
        let key = info.key.clone();
        self.warn_of_cost(&key, cost.err());
        let before = {
            let mut inner = self.write();
            let before = inner.pods.insert(&info);
            inner.show_pod(before.as_deref(), Some(&info));
            before
        };
        self.publish_moves(before.as_deref(), Some(&info));
        self.publish(Change::Pod(key));
    }

    /// Forgets a pod.
    pub fn delete_pod(&self, key: &PodKey) {
        let before = {
            let mut inner = self.write();
            let before = inner.pods.remove(key);
            inner.show_pod(before.as_deref(), None);
            before
        };
        self.warn_of_cost(key, None);
        self.publish_moves(before.as_deref(), None);
        self.publish(Change::Pod(key.clone()));
    }

    /// Logs a cost that cannot be read, once until it changes.
    fn warn_of_cost(&self, key: &PodKey, error: Option<CostError>) {
        let mut known = self.unreadable_costs.lock();
        match error {
            None => drop(known.remove(key)),
            Some(error) => {
                if known.get(key) != Some(&error) {
                    tracing::error!("Pod" = %key, "error" = %error, "disruption cost has no effect");
                    known.insert(key.clone(), error);
                }
            }
        }
    }

    /// The costs by which ReplicaSets choose are written by this process, and say nothing about
    /// evictions.
    pub fn leave_replica_costs(&self) {
        self.writes_replica_costs.store(true, Ordering::Relaxed);
    }

    /// Publishes that a pod was bound, finished, began to terminate, or went: what consolidation
    /// waits for on a node.
    fn publish_moves(&self, before: Option<&PodInfo>, after: Option<&PodInfo>) {
        let pod = after.or(before);
        let Some(node) = pod.filter(|p| !p.owners.daemon_set).and_then(|p| p.node_name.clone())
        else {
            return;
        };
        let moved = match (before, after) {
            (Some(a), Some(b)) => {
                a.node_name != b.node_name
                    || a.terminal != b.terminal
                    || a.terminating != b.terminating
            }
            _ => true,
        };
        if moved {
            // A pod of the same name on another node: its predecessor went while no watch ran.
            if let Some(left) = before.and_then(|b| b.node_name.as_ref()).filter(|n| **n != node) {
                self.publish(Change::Bound(left.to_string()));
            }
            self.publish(Change::Bound(node.to_string()));
        }
    }

    /// The key of a pod as the state holds it: its parts are shared.
    pub(super) fn pod_key(&self, key: PodKey) -> PodKey {
        let inner = self.inner.read();
        inner.pods.all.get_key_value(&key).map_or(key, |(known, _)| known.clone())
    }

    /// The pod of that key.
    #[must_use]
    pub fn pod(&self, key: &PodKey) -> Option<Arc<PodInfo>> {
        self.inner.read().pods.all.get(key).cloned()
    }

    /// Every pod, in no order.
    #[must_use]
    pub fn pods(&self) -> Vec<Arc<PodInfo>> {
        self.inner.read().pods.all.values().cloned().collect()
    }

    /// Pods that wait for a node that Karpenter may launch, in order.
    #[must_use]
    pub fn provisionable_pods(&self) -> Vec<Arc<PodInfo>> {
        self.inner.read().pods.waiting.values().cloned().collect()
    }

    /// Pods bound to a node, finished ones left out.
    #[must_use]
    pub fn pods_on(&self, node: &str) -> Vec<Arc<PodInfo>> {
        self.inner.read().pods.on(node).to_vec()
    }

    /// Takes in a DaemonSet.
    pub fn apply_daemon_set(&self, set: &DaemonSet) {
        let template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
        let mut meta = template.metadata.clone().unwrap_or_default();
        meta.namespace.clone_from(&set.metadata.namespace);
        // The template has no name of its own; the DaemonSet's makes it identifiable.
        meta.name.clone_from(&set.metadata.name);
        let pod = Pod { metadata: meta, spec: Some(effective_spec(&template)), status: None };
        let info = Arc::new(self.sharing.lock().share(PodInfo::from_pod(&pod)));
        let key = (Arc::clone(&info.key.namespace), Arc::clone(&info.key.name));
        let mut inner = self.write();
        inner.pods.sets.insert(key.clone(), info);
        inner.pods.refresh(&key);
    }

    /// Forgets a DaemonSet.
    pub fn delete_daemon_set(&self, namespace: &str, name: &str) {
        let key = (Arc::from(namespace), Arc::from(name));
        let mut inner = self.write();
        inner.pods.sets.remove(&key);
        inner.pods.refresh(&key);
    }

    /// One pod a DaemonSet.
    #[must_use]
    pub fn daemon_set_pods(&self) -> Vec<Arc<PodInfo>> {
        self.inner.read().pods.samples.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, node: Option<&str>, phase: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n"},
            "spec": {"containers": [], "nodeName": node}, "status": {"phase": phase}}))
        .unwrap()
    }

    #[test]
    fn pods_follow_their_node() {
        let state = State::default();
        state.apply_pod(&pod("a", None, "Pending"));
        assert!(state.pods_on("x").is_empty());
        state.apply_pod(&pod("a", Some("x"), "Running"));
        assert_eq!(state.pods_on("x").len(), 1);
        state.apply_pod(&pod("a", Some("x"), "Succeeded"));
        assert!(state.pods_on("x").is_empty());
        let mut waits = pod("b", None, "Pending");
        waits.status.as_mut().unwrap().conditions = serde_json::from_value(json!([
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]))
        .unwrap();
        state.apply_pod(&waits);
        assert_eq!(state.provisionable_pods().len(), 1);
        state.apply_pod(&pod("b", Some("x"), "Running"));
        assert!(state.provisionable_pods().is_empty());
        state.delete_pod(&PodKey::new("n", "a"));
        assert!(state.pod(&PodKey::new("n", "a")).is_none());
    }

    fn daemon(name: &str, created: &str, cpu: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n",
            "creationTimestamp": created, "ownerReferences": [{"apiVersion": "apps/v1",
                "kind": "DaemonSet", "name": "d", "uid": "u", "controller": true}]},
            "spec": {"nodeName": name,
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name",
                        "operator": "In", "values": [name]}]}]}}},
                "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}}))
        .unwrap()
    }

    #[test]
    fn a_daemon_set_is_its_newest_pod() {
        use crate::scheduling::resources::Name;
        let state = State::default();
        let cpu = |state: &State| state.daemon_set_pods()[0].requests.get(&Name::Cpu);
        state.apply_pod(&daemon("old", "2024-01-01T00:00:00Z", "1"));
        let set: DaemonSet = serde_json::from_value(json!({"metadata": {"name": "d",
            "namespace": "n"}, "spec": {"selector": {}, "template": {"spec": {
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [
                        {"key": "team", "operator": "In", "values": ["a"]}]}]}}},
                "containers": [{"name": "c", "resources": {"limits": {"cpu": "7"}}}]}}}}))
        .unwrap();
        state.apply_daemon_set(&set);
        assert_eq!(cpu(&state), 1000);
        assert!(state.daemon_set_pods()[0].constraints.strict_requirements().has("team"));
        state.apply_pod(&daemon("new", "2024-01-02T00:00:00Z", "2"));
        assert_eq!(cpu(&state), 2000);
        state.delete_pod(&PodKey::new("n", "new"));
        assert_eq!(cpu(&state), 1000);
        state.delete_pod(&PodKey::new("n", "old"));
        assert_eq!(cpu(&state), 7000);
        state.delete_daemon_set("n", "d");
        assert!(state.daemon_set_pods().is_empty());
    }

    #[test]
    fn pods_made_alike_share_what_they_ask_for() {
        let state = State::default();
        let of = |name: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n",
                "labels": {"app": "a"}, "ownerReferences": [{"apiVersion": "apps/v1",
                    "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true}]},
                "spec": {"containers": [], "nodeSelector": {"team": "a"}}}))
            .unwrap()
        };
        state.apply_pod(&of("a"));
        state.apply_pod(&of("b"));
        let at = |name: &str| state.pod(&PodKey::new("n", name)).unwrap();
        assert!(Arc::ptr_eq(&at("a").constraints, &at("b").constraints));
        assert!(Arc::ptr_eq(&at("a").labels, &at("b").labels));
        assert!(Arc::ptr_eq(at("a").owner.as_ref().unwrap(), at("b").owner.as_ref().unwrap()));
    }
}
