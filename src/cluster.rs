//! The in-memory cluster state fed by watches, and its cheap snapshots.
//!
//! Pods are kept in their parsed, compact form; nodes and NodeClaims as shared objects. A snapshot
//! clones handles, not objects.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use parking_lot::{Mutex, RwLock};
use tokio::sync::broadcast;

use crate::api::autoscaling::CapacityBuffer;
use crate::api::labels;
use crate::api::v1::{EC2NodeClass, NodeClaim, NodePool};
use crate::api::v1alpha1::NodeOverlay;
use crate::scheduling::default_spread::Selectors;
use crate::scheduling::dra;
use crate::scheduling::node::StateNode;
use crate::scheduling::overlay::InForce;
use crate::scheduling::pod::{PodInfo, PodKey, Sharing};
use crate::scheduling::volumes::VolumeObjects;

mod capacity;
mod devices;
pub mod informers;
mod pods;
mod volumes;

pub use capacity::PoolCount;
use pods::Pods;

/// Time between looks at whether everything is listed.
const LISTED_POLL: Duration = Duration::from_millis(50);
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
    /// A NodeOverlay, by name.
    NodeOverlay(String),
    /// A CapacityBuffer.
    Buffer(PodKey),
    /// A PodTemplate.
    PodTemplate(PodKey),
    /// A ResourceClaim.
    ResourceClaim(PodKey),
    /// A ResourceSlice that is about the Node of that name.
    ResourceSlice(String),
}

#[derive(Default)]
struct Inner {
    pods: Pods,
    nodes: BTreeMap<String, Arc<Node>>,
    nodes_by_id: HashMap<String, BTreeSet<String>>,
    claims: BTreeMap<String, Arc<NodeClaim>>,
    claims_by_id: HashMap<String, BTreeSet<String>>,
    pools: BTreeMap<String, Arc<NodePool>>,
    classes: BTreeMap<String, Arc<EC2NodeClass>>,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pdbs: BTreeMap<(String, String), Arc<PodDisruptionBudget>>,
    volumes: Arc<VolumeObjects>,
    attachments: volumes::Attachments,
    dynamic: Arc<dra::Objects>,
    selectors: Arc<Selectors>,
    overlays: BTreeMap<String, Arc<NodeOverlay>>,
    buffers: BTreeMap<PodKey, Arc<CapacityBuffer>>,
    buffer_pods: BTreeMap<PodKey, Vec<Arc<PodInfo>>>,
    buffer_nodes: HashMap<String, usize>,
    /// Nodes of static pools that are about to be created.
    reserved: HashMap<String, i64>,
    nominated: HashMap<String, Timestamp>,
    marked: HashSet<String>,
    synced: HashSet<&'static str>,
    /// Watches that run besides those that always do.
    optional: BTreeSet<&'static str>,
}

/// The cluster as the watches show it.
pub struct State {
    inner: RwLock<Inner>,
    overlays_in_force: InForce,
    sharing: Mutex<Sharing>,
    changes: broadcast::Sender<Change>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            inner: RwLock::default(),
            overlays_in_force: InForce::default(),
            sharing: Mutex::default(),
            changes: broadcast::channel(CHANGES).0,
        }
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
    "persistentvolumeclaims",
    "persistentvolumes",
    "storageclasses",
    "csinodes",
    "volumeattachments",
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

    /// Notes that a watch has listed everything.
    pub(crate) fn mark_listed(&self, source: &'static str) {
        self.inner.write().synced.insert(source);
    }

    /// Notes that a watch runs which must list everything, too, before anyone decides.
    pub(crate) fn expect_listing(&self, source: &'static str) {
        self.inner.write().optional.insert(source);
    }

    /// True when every watch has listed everything and every NodeClaim has its instance.
    #[must_use]
    pub fn synced(&self) -> bool {
        let inner = self.inner.read();
        inner.listed()
            && inner
                .claims
                .values()
                .all(|c| c.metadata.deletion_timestamp.is_some() || claim_id(c).is_some())
    }

    /// True when the watch of that name has listed everything.
    #[must_use]
    pub fn has_listed(&self, source: &str) -> bool {
        self.inner.read().synced.contains(source)
    }

    /// True when every watch has listed everything.
    #[must_use]
    pub fn listed(&self) -> bool {
        self.inner.read().listed()
    }

    /// Waits until every watch has listed everything: before that, what is missing means nothing.
    pub async fn until_listed(&self) {
        while !self.listed() {
            tokio::time::sleep(LISTED_POLL).await;
        }
    }

    /// Takes in a Node.
    pub fn apply_node(&self, node: Node) {
        let name = node.metadata.name.clone().unwrap_or_default();
        self.inner.write().put_node(&name, Some(Arc::new(node)));
        self.tell(Change::Node(name));
    }

    /// Forgets a Node.
    pub fn delete_node(&self, name: &str) {
        self.inner.write().put_node(name, None);
        self.tell(Change::Node(name.to_owned()));
    }

    /// Takes in a NodeClaim; also called right after one was created, before the watch shows it.
    pub fn apply_claim(&self, claim: NodeClaim) {
        let name = claim.metadata.name.clone().unwrap_or_default();
        self.inner.write().put_claim(&name, Some(Arc::new(claim)));
        self.tell(Change::NodeClaim(name));
    }

    /// Takes in what this process just wrote, if the claim is still known.
    pub fn apply_claim_if_known(&self, claim: &NodeClaim) {
        let name = claim.metadata.name.clone().unwrap_or_default();
        let mut inner = self.inner.write();
        if inner.claims.contains_key(&name) {
            inner.put_claim(&name, Some(Arc::new(claim.clone())));
        }
    }

    /// Forgets a NodeClaim.
    pub fn delete_claim(&self, name: &str) {
        {
            let mut inner = self.inner.write();
            inner.put_claim(name, None);
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

    /// Names of all Nodes.
    #[must_use]
    pub fn node_names(&self) -> Vec<String> {
        self.inner.read().nodes.keys().cloned().collect()
    }

    /// Nodes with a provider id.
    #[must_use]
    pub fn nodes_by_provider_id(&self, provider_id: &str) -> Vec<Arc<Node>> {
        let inner = self.inner.read();
        let names = inner.nodes_by_id.get(provider_id).into_iter().flatten();
        names.filter_map(|name| inner.nodes.get(name).cloned()).collect()
    }

    /// The NodeClaim with a provider id.
    #[must_use]
    pub fn claim_by_provider_id(&self, provider_id: &str) -> Option<Arc<NodeClaim>> {
        let inner = self.inner.read();
        let name = inner.claims_by_id.get(provider_id)?.first()?;
        inner.claims.get(name).cloned()
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
        let claims = inner.claims.keys().map(|name| inner.of_claim(name));
        let alone = inner.nodes.iter().filter(|(_, node)| {
            node_id(node).is_none_or(|id| !inner.claims_by_id.contains_key(id))
        });
        claims.chain(alone.filter_map(|(name, _)| inner.of_node(name))).collect()
    }

    /// The Node or NodeClaim of that name, joined with its counterpart.
    #[must_use]
    pub fn state_node(&self, name: &str) -> Option<StateNode> {
        let inner = self.inner.read();
        let claim = match inner.nodes.get(name) {
            Some(node) => node_id(node).and_then(|id| inner.claims_by_id.get(id)?.first()),
            None => inner.claims.get_key_value(name).map(|(name, _)| name),
        };
        match claim {
            Some(claim) => Some(inner.of_claim(claim)),
            None => inner.of_node(name),
        }
    }
}

fn claim_id(claim: &NodeClaim) -> Option<&str> {
    claim.status.as_ref()?.provider_id.as_deref().filter(|id| !id.is_empty())
}

fn node_id(node: &Node) -> Option<&str> {
    node.spec.as_ref()?.provider_id.as_deref().filter(|id| !id.is_empty())
}

/// Moves a name in an index of names by provider id.
fn reindex(
    index: &mut HashMap<String, BTreeSet<String>>,
    name: &str,
    before: Option<&str>,
    after: Option<&str>,
) {
    if before == after {
        return;
    }
    if let Some(id) = before
        && let Some(names) = index.get_mut(id)
    {
        names.remove(name);
        if names.is_empty() {
            index.remove(id);
        }
    }
    if let Some(id) = after {
        index.entry(id.to_owned()).or_default().insert(name.to_owned());
    }
}

impl Inner {
    fn listed(&self) -> bool {
        SOURCES.iter().chain(&self.optional).all(|s| self.synced.contains(s))
    }

    fn put_node(&mut self, name: &str, node: Option<Arc<Node>>) {
        let known = self.nodes.get(name).cloned();
        let (before, after) =
            (known.as_deref().and_then(node_id), node.as_deref().and_then(node_id));
        reindex(&mut self.nodes_by_id, name, before, after);
        match node {
            Some(node) => self.nodes.insert(name.to_owned(), node),
            None => self.nodes.remove(name),
        };
    }

    fn put_claim(&mut self, name: &str, claim: Option<Arc<NodeClaim>>) {
        let known = self.claims.get(name).cloned();
        let (before, after) =
            (known.as_deref().and_then(claim_id), claim.as_deref().and_then(claim_id));
        reindex(&mut self.claims_by_id, name, before, after);
        match claim {
            Some(claim) => self.claims.insert(name.to_owned(), claim),
            None => self.claims.remove(name),
        };
    }

    /// A NodeClaim with its Node, as far as that one counts already.
    fn of_claim(&self, name: &str) -> StateNode {
        let claim = self.claims.get(name);
        let node = claim
            .and_then(|c| self.nodes_by_id.get(claim_id(c)?)?.last())
            .filter(|node| self.counts(node));
        let mut state = StateNode {
            node_claim: claim.cloned(),
            marked_for_deletion: self.marked.contains(name),
            nominated_until: self.nominated.get(name).copied(),
            ..StateNode::default()
        };
        if let Some(id) = claim.and_then(|c| claim_id(c)) {
            state.buffer_pods = self.buffer_nodes.get(id).copied().unwrap_or(0);
        }
        self.add_node(&mut state, node);
        state
    }

    /// A Node without a NodeClaim, if it counts already.
    fn of_node(&self, name: &str) -> Option<StateNode> {
        let (name, _) = self.nodes.get_key_value(name).filter(|(name, _)| self.counts(name))?;
        let mut state = StateNode::default();
        self.add_node(&mut state, Some(name));
        Some(state)
    }

    fn add_node(&self, state: &mut StateNode, name: Option<&String>) {
        let Some(name) = name else { return };
        state.node = self.nodes.get(name).cloned();
        state.pods = self.pods.on(name);
        self.volumes.fill_in(state);
    }

    /// A Node of a pool does not count before it says which instance it is, and of which type.
    fn counts(&self, name: &str) -> bool {
        let Some(node) = self.nodes.get(name) else { return false };
        let label = |key: &str| node.metadata.labels.as_ref().and_then(|l| l.get(key));
        label(labels::NODEPOOL).is_none()
            || (node_id(node).is_some()
                && (label(labels::INITIALIZED).is_some() || label(labels::INSTANCE_TYPE).is_some()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
        assert_eq!(
            state.claim_by_provider_id("aws:///z/i-1").unwrap().metadata.name.as_deref(),
            Some("c")
        );
        assert_eq!(state.nodes_by_provider_id("aws:///z/i-1").len(), 1);
        assert!(state.state_node("n1").unwrap().managed() && state.state_node("c").is_some());
        state.delete_claim("c");
        assert_eq!(state.state_nodes().len(), 1);
        assert!(state.claim_by_provider_id("aws:///z/i-1").is_none());
    }

    #[test]
    fn a_node_of_a_pool_counts_once_it_is_known() {
        let state = State::default();
        let node = |labels: serde_json::Value, id: Option<&str>| {
            let value = json!({"metadata": {"name": "n", "labels": labels},
                "spec": {"providerID": id}});
            state.apply_node(serde_json::from_value(value).unwrap());
            state.state_nodes().len()
        };
        assert_eq!(node(json!({}), None), 1);
        assert_eq!(node(json!({"karpenter.sh/nodepool": "p"}), None), 0);
        assert_eq!(node(json!({"karpenter.sh/nodepool": "p"}), Some("i")), 0);
        let typed = json!({"karpenter.sh/nodepool": "p", "node.kubernetes.io/instance-type": "t"});
        assert_eq!(node(typed, Some("i")), 1);
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
