//! The in-memory cluster state fed by watches, and its cheap snapshots.
//!
//! Pods are kept in their parsed, compact form; nodes and NodeClaims as shared objects. A snapshot
//! clones handles, not objects.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use parking_lot::RwLock;
use tokio::sync::broadcast;

use crate::api::v1::{EC2NodeClass, NodeClaim, NodePool};
use crate::scheduling::node::StateNode;
use crate::scheduling::pod::{PodInfo, PodKey};

pub mod informers;

/// Changes that wait for a slow listener; older ones are lost to it.
const CHANGES: usize = 4096;

/// Something that moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A pod appeared, changed or went.
    Pod(PodKey),
    /// A pod came to, or left, the Node of that name; daemons do not count.
    Bound(String),
    /// A Node, by name.
    Node(String),
    /// A NodeClaim, by name.
    NodeClaim(String),
    /// A NodePool, by name.
    NodePool(String),
    /// A node class, by name.
    NodeClass(String),
}

#[derive(Default)]
struct Inner {
    pods: HashMap<PodKey, Arc<PodInfo>>,
    pods_on: HashMap<Arc<str>, HashSet<PodKey>>,
    nodes: BTreeMap<String, Arc<Node>>,
    claims: BTreeMap<String, Arc<NodeClaim>>,
    pools: BTreeMap<String, Arc<NodePool>>,
    classes: BTreeMap<String, Arc<EC2NodeClass>>,
    daemon_sets: BTreeMap<(String, String), Arc<PodInfo>>,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pdbs: BTreeMap<(String, String), Arc<PodDisruptionBudget>>,
    nominated: HashMap<String, Timestamp>,
    marked: HashSet<String>,
    synced: HashSet<&'static str>,
}

/// The cluster as the watches show it.
pub struct State {
    inner: RwLock<Inner>,
    changes: broadcast::Sender<Change>,
}

impl Default for State {
    fn default() -> Self {
        Self { inner: RwLock::default(), changes: broadcast::channel(CHANGES).0 }
    }
}

/// The watches that must have listed everything before anyone decides.
const SOURCES: &[&str] = &[
    "pods",
    "nodes",
    "nodeclaims",
    "nodepools",
    "ec2nodeclasses",
    "daemonsets",
    "namespaces",
    "poddisruptionbudgets",
];

impl State {
    /// Hears of every change from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    fn tell(&self, change: Change) {
        let _ = self.changes.send(change);
    }

    /// Tells when a pod was bound, finished, began to go, or went.
    fn tell_moves(&self, before: Option<&PodInfo>, after: Option<&PodInfo>) {
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
            self.tell(Change::Bound(node.to_string()));
        }
    }

    /// Notes that a watch has listed everything.
    pub(crate) fn mark_listed(&self, source: &'static str) {
        self.inner.write().synced.insert(source);
    }

    /// True when every watch has listed everything and every NodeClaim has its instance.
    #[must_use]
    pub fn synced(&self) -> bool {
        let inner = self.inner.read();
        SOURCES.iter().all(|s| inner.synced.contains(s))
            && inner.claims.values().all(|c| {
                c.metadata.deletion_timestamp.is_some()
                    || c.status.as_ref().is_some_and(|s| s.provider_id.is_some())
            })
    }

    /// True when the watch of that name has listed everything.
    #[must_use]
    pub fn has_listed(&self, source: &str) -> bool {
        self.inner.read().synced.contains(source)
    }

    /// True when every watch has listed everything.
    #[must_use]
    pub fn listed(&self) -> bool {
        let inner = self.inner.read();
        SOURCES.iter().all(|s| inner.synced.contains(s))
    }

    /// Takes in a pod.
    pub fn apply_pod(&self, pod: &Pod) {
        let info = Arc::new(PodInfo::from_pod(pod));
        let key = info.key.clone();
        {
            let mut inner = self.inner.write();
            inner.unbind(&key);
            if let Some(node) = info.node_name.clone().filter(|_| !info.terminal) {
                inner.pods_on.entry(node).or_default().insert(key.clone());
            }
            let before = inner.pods.insert(key.clone(), Arc::clone(&info));
            drop(inner);
            self.tell_moves(before.as_deref(), Some(&info));
        }
        self.tell(Change::Pod(key));
    }

    /// Forgets a pod.
    pub fn delete_pod(&self, key: &PodKey) {
        {
            let mut inner = self.inner.write();
            inner.unbind(key);
            let before = inner.pods.remove(key);
            drop(inner);
            self.tell_moves(before.as_deref(), None);
        }
        self.tell(Change::Pod(key.clone()));
    }

    /// Takes in a Node.
    pub fn apply_node(&self, node: Node) {
        let name = node.metadata.name.clone().unwrap_or_default();
        self.inner.write().nodes.insert(name.clone(), Arc::new(node));
        self.tell(Change::Node(name));
    }

    /// Forgets a Node.
    pub fn delete_node(&self, name: &str) {
        self.inner.write().nodes.remove(name);
        self.tell(Change::Node(name.to_owned()));
    }

    /// Takes in a NodeClaim; also called right after one was created, before the watch shows it.
    pub fn apply_claim(&self, claim: NodeClaim) {
        let name = claim.metadata.name.clone().unwrap_or_default();
        self.inner.write().claims.insert(name.clone(), Arc::new(claim));
        self.tell(Change::NodeClaim(name));
    }

    /// Takes in what this process just wrote, if the claim is still known.
    pub fn apply_claim_if_known(&self, claim: &NodeClaim) {
        let name = claim.metadata.name.clone().unwrap_or_default();
        if let Some(known) = self.inner.write().claims.get_mut(&name) {
            *known = Arc::new(claim.clone());
        }
    }

    /// Forgets a NodeClaim.
    pub fn delete_claim(&self, name: &str) {
        {
            let mut inner = self.inner.write();
            inner.claims.remove(name);
            inner.nominated.remove(name);
            inner.marked.remove(name);
        }
        self.tell(Change::NodeClaim(name.to_owned()));
    }

    /// Takes in a NodePool.
    pub fn apply_pool(&self, pool: NodePool) {
        let name = pool.metadata.name.clone().unwrap_or_default();
        self.inner.write().pools.insert(name.clone(), Arc::new(pool));
        self.tell(Change::NodePool(name));
    }

    /// Forgets a NodePool.
    pub fn delete_pool(&self, name: &str) {
        self.inner.write().pools.remove(name);
        self.tell(Change::NodePool(name.to_owned()));
    }

    /// Takes in a node class.
    pub fn apply_class(&self, class: EC2NodeClass) {
        let name = class.metadata.name.clone().unwrap_or_default();
        self.inner.write().classes.insert(name.clone(), Arc::new(class));
        self.tell(Change::NodeClass(name));
    }

    /// Forgets a node class.
    pub fn delete_class(&self, name: &str) {
        self.inner.write().classes.remove(name);
        self.tell(Change::NodeClass(name.to_owned()));
    }

    /// The node class of that name.
    #[must_use]
    pub fn class(&self, name: &str) -> Option<Arc<EC2NodeClass>> {
        self.inner.read().classes.get(name).cloned()
    }

    /// Every node class.
    #[must_use]
    pub fn classes(&self) -> Vec<Arc<EC2NodeClass>> {
        self.inner.read().classes.values().cloned().collect()
    }

    /// Takes in a DaemonSet: the pod that it would make.
    pub fn apply_daemon_set(&self, set: &DaemonSet) {
        let namespace = set.metadata.namespace.clone().unwrap_or_default();
        let name = set.metadata.name.clone().unwrap_or_default();
        let template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
        let mut meta = template.metadata.unwrap_or_default();
        meta.namespace = Some(namespace.clone());
        meta.name = Some(name.clone());
        let mut spec = template.spec.unwrap_or_default();
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten())
        {
            let Some(resources) = &mut container.resources else { continue };
            let mut requests = resources.limits.clone().unwrap_or_default();
            requests.extend(resources.requests.clone().unwrap_or_default());
            resources.requests = Some(requests);
        }
        let pod = Pod { metadata: meta, spec: Some(spec), status: None };
        let info = Arc::new(PodInfo::from_pod(&pod));
        self.inner.write().daemon_sets.insert((namespace, name), info);
    }

    /// Forgets a DaemonSet.
    pub fn delete_daemon_set(&self, namespace: &str, name: &str) {
        self.inner.write().daemon_sets.remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Takes in a namespace's labels.
    pub fn apply_namespace(&self, namespace: &Namespace) {
        let name = namespace.metadata.name.clone().unwrap_or_default();
        let labels = namespace.metadata.labels.clone().unwrap_or_default();
        self.inner.write().namespaces.insert(name, labels);
    }

    /// Forgets a namespace.
    pub fn delete_namespace(&self, name: &str) {
        self.inner.write().namespaces.remove(name);
    }

    /// Takes in a PodDisruptionBudget.
    pub fn apply_pdb(&self, pdb: PodDisruptionBudget) {
        let namespace = pdb.metadata.namespace.clone().unwrap_or_default();
        let name = pdb.metadata.name.clone().unwrap_or_default();
        self.inner.write().pdbs.insert((namespace, name), Arc::new(pdb));
    }

    /// Forgets a PodDisruptionBudget.
    pub fn delete_pdb(&self, namespace: &str, name: &str) {
        self.inner.write().pdbs.remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Every PodDisruptionBudget.
    #[must_use]
    pub fn pdbs(&self) -> Vec<Arc<PodDisruptionBudget>> {
        self.inner.read().pdbs.values().cloned().collect()
    }

    /// Expects pods on a node until then, so that it is left alone.
    pub fn nominate(&self, name: &str, until: Timestamp) {
        self.inner.write().nominated.insert(name.to_owned(), until);
    }

    /// Marks NodeClaims that disruption has chosen.
    pub fn mark_for_deletion(&self, claims: &[String]) {
        self.inner.write().marked.extend(claims.iter().cloned());
    }

    /// Takes marks back.
    pub fn unmark_for_deletion(&self, claims: &[String]) {
        let mut inner = self.inner.write();
        for claim in claims {
            inner.marked.remove(claim);
        }
    }

    /// The pod of that key.
    #[must_use]
    pub fn pod(&self, key: &PodKey) -> Option<Arc<PodInfo>> {
        self.inner.read().pods.get(key).cloned()
    }

    /// Pods that wait for a node that Karpenter may launch.
    #[must_use]
    pub fn provisionable_pods(&self) -> Vec<Arc<PodInfo>> {
        let inner = self.inner.read();
        let mut pods: Vec<_> =
            inner.pods.values().filter(|p| p.is_provisionable()).cloned().collect();
        pods.sort_by(|a, b| a.key.cmp(&b.key));
        pods
    }

    /// Pods bound to a node, finished ones left out.
    #[must_use]
    pub fn pods_on(&self, node: &str) -> Vec<Arc<PodInfo>> {
        self.inner.read().pods_on(node)
    }

    /// The NodeClaim of that name.
    #[must_use]
    pub fn claim(&self, name: &str) -> Option<Arc<NodeClaim>> {
        self.inner.read().claims.get(name).cloned()
    }

    /// Every NodeClaim.
    #[must_use]
    pub fn claims(&self) -> Vec<Arc<NodeClaim>> {
        self.inner.read().claims.values().cloned().collect()
    }

    /// The NodePool of that name.
    #[must_use]
    pub fn pool(&self, name: &str) -> Option<Arc<NodePool>> {
        self.inner.read().pools.get(name).cloned()
    }

    /// Every NodePool.
    #[must_use]
    pub fn pools(&self) -> Vec<Arc<NodePool>> {
        self.inner.read().pools.values().cloned().collect()
    }

    /// The Node of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.inner.read().nodes.get(name).cloned()
    }

    /// Nodes with a provider id.
    #[must_use]
    pub fn nodes_by_provider_id(&self, provider_id: &str) -> Vec<Arc<Node>> {
        let of = |n: &Node| n.spec.as_ref().and_then(|s| s.provider_id.clone());
        let inner = self.inner.read();
        inner.nodes.values().filter(|n| of(n).as_deref() == Some(provider_id)).cloned().collect()
    }

    /// The NodeClaim with a provider id.
    #[must_use]
    pub fn claim_by_provider_id(&self, provider_id: &str) -> Option<Arc<NodeClaim>> {
        let of = |c: &NodeClaim| c.status.as_ref().and_then(|s| s.provider_id.clone());
        let inner = self.inner.read();
        inner.claims.values().find(|c| of(c).as_deref() == Some(provider_id)).cloned()
    }

    /// One pod a DaemonSet.
    #[must_use]
    pub fn daemon_set_pods(&self) -> Vec<Arc<PodInfo>> {
        self.inner.read().daemon_sets.values().cloned().collect()
    }

    /// Labels of all namespaces.
    #[must_use]
    pub fn namespaces(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        self.inner.read().namespaces.clone()
    }

    /// Nodes and NodeClaims joined by provider id, with their pods.
    #[must_use]
    pub fn state_nodes(&self) -> Vec<StateNode> {
        let inner = self.inner.read();
        let mut by_id: BTreeMap<String, StateNode> = BTreeMap::new();
        for (name, claim) in &inner.claims {
            let id = claim.status.as_ref().and_then(|s| s.provider_id.clone());
            let entry = by_id.entry(id.unwrap_or_else(|| format!("claim/{name}"))).or_default();
            entry.node_claim = Some(Arc::clone(claim));
            entry.marked_for_deletion = inner.marked.contains(name);
            entry.nominated_until = inner.nominated.get(name).copied();
        }
        for (name, node) in &inner.nodes {
            let id = node.spec.as_ref().and_then(|s| s.provider_id.clone());
            let entry = by_id.entry(id.unwrap_or_else(|| format!("node/{name}"))).or_default();
            entry.node = Some(Arc::clone(node));
            entry.pods = inner.pods_on(name);
        }
        by_id.into_values().collect()
    }
}

impl Inner {
    fn unbind(&mut self, key: &PodKey) {
        let node = self.pods.get(key).and_then(|p| p.node_name.clone());
        if let Some(node) = node
            && let Some(keys) = self.pods_on.get_mut(&node)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.pods_on.remove(&node);
            }
        }
    }

    fn pods_on(&self, node: &str) -> Vec<Arc<PodInfo>> {
        let mut pods: Vec<_> = self
            .pods_on
            .get(node)
            .into_iter()
            .flatten()
            .filter_map(|key| self.pods.get(key).cloned())
            .collect();
        pods.sort_by(|a, b| a.key.cmp(&b.key));
        pods
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
        state.delete_pod(&PodKey::new("n", "a"));
        assert!(state.pod(&PodKey::new("n", "a")).is_none());
    }

    #[test]
    fn nodes_and_claims_meet_by_provider_id() {
        let state = State::default();
        let claim = json!({"metadata": {"name": "c"}, "spec": {},
            "status": {"providerID": "aws:///z/i-1"}});
        state.apply_claim(serde_json::from_value(claim).unwrap());
        let node = json!({"metadata": {"name": "n1"}, "spec": {"providerID": "aws:///z/i-1"}});
        state.apply_node(serde_json::from_value(node).unwrap());
        let nodes = state.state_nodes();
        assert_eq!(nodes.len(), 1);
        assert!(nodes[0].managed() && nodes[0].node.is_some());
        assert!(!nodes[0].registered());
        state.delete_claim("c");
        assert_eq!(state.state_nodes().len(), 1);
    }

    #[test]
    fn an_unlaunched_claim_holds_decisions_back() {
        let state = State::default();
        for source in SOURCES {
            state.mark_listed(source);
        }
        assert!(state.synced());
        let claim = json!({"metadata": {"name": "c"}, "spec": {}});
        state.apply_claim(serde_json::from_value(claim).unwrap());
        assert!(!state.synced() && state.listed());
    }
}
