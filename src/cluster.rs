//! The state of the cluster, kept up to date by watches, for all controllers that decide by it.
//!
//! Watches ([`informers`]) write; everybody else reads. Pods are kept parsed, Nodes and NodeClaims
//! as shared objects, and each node's view ([`StateNode`](crate::scheduling::node::StateNode): Node, NodeClaim, pods, volumes, marks) is
//! brought up to date by the event that changes it. A snapshot shares these views: it allocates one
//! list, nothing per pod.
//!
//! Two rules hold for all that comes in:
//!
//! - An object only moves forward: what carries an older resourceVersion than what is known is
//!   passed over, so that a slow watch cannot take back what this process wrote and read.
//! - NodePools and NodeClaims whose class is of another provider (EKS Auto Mode, say) never enter:
//!   no controller can write, launch, count or delete them. Their Nodes come in as any others, and
//!   count as capacity that exists.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Resource;
use kube::api::ObjectMeta;
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use rustc_hash::FxHashSet;
use tokio::sync::broadcast;

use crate::api::autoscaling::CapacityBuffer;
use crate::api::v1::{EC2NodeClass, NodeClaim, NodeClassReference, NodePool};
use crate::api::v1alpha1::NodeOverlay;
use crate::scheduling::default_spread::Selectors;
use crate::scheduling::dra;
use crate::scheduling::overlay::InForce;
use crate::scheduling::pod::{CostError, PodInfo, PodKey, Sharing};
use crate::scheduling::volumes::VolumeObjects;

mod capacity;
mod devices;
pub mod informers;
mod launching;
mod nodes;
mod pods;
mod unreadable;
mod volumes;

pub use capacity::PoolCount;
use launching::Launching;
use nodes::Views;
use pods::Pods;
pub use unreadable::LeftOut;
use unreadable::UnreadableObjects;

/// Time between checks whether everything is listed; short beside the seconds that a first list takes.
const LISTED_POLL: Duration = Duration::from_millis(50);
/// Changes that wait for a slow listener. One that falls further behind loses the oldest, learns
/// that it did, and looks at everything again.
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
    /// A Deployment, ReplicaSet or StatefulSet: its kind, namespace and name.
    Workload(&'static str, PodKey),
    /// An object that cannot be understood came or went.
    Unreadable,
}

#[derive(Default)]
struct Inner {
    pods: Pods,
    nodes: BTreeMap<String, Arc<Node>>,
    nodes_by_id: HashMap<String, BTreeSet<String>>,
    claims: BTreeMap<String, Arc<NodeClaim>>,
    claims_by_id: HashMap<String, BTreeSet<String>>,
    claims_by_pool: HashMap<String, BTreeSet<String>>,
    claims_by_class: HashMap<String, BTreeSet<String>>,
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
    /// While the first lists are read: the Nodes whose views lack pods. A view that is made anew for each
    /// pod of its Node costs as much as reading the pod.
    behind: Option<FxHashSet<Arc<str>>>,
    /// Nodes of static pools that are about to be created.
    reserved: HashMap<String, i64>,
    nominated: HashMap<String, Timestamp>,
    marked: HashSet<String>,
    /// NodeClaims that this process has deleted, and the API server still has.
    deleted: HashSet<String>,
    launching: Launching,
    views: Views,
    unreadable: UnreadableObjects,
    synced: HashSet<&'static str>,
    /// Watches that run besides those that always do.
    optional: BTreeSet<&'static str>,
}

/// The cluster as the watches show it.
pub struct State {
    inner: RwLock<Inner>,
    /// How often anything was written.
    revision: AtomicU64,
    overlays_in_force: InForce,
    sharing: Mutex<Sharing>,
    /// Costs of pods that cannot be read.
    unreadable_costs: Mutex<HashMap<PodKey, CostError>>,
    writes_replica_costs: AtomicBool,
    /// Everything was listed once. Until then nobody has looked at anything, and hears of no change.
    complete: AtomicBool,
    changes: broadcast::Sender<Change>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            inner: RwLock::default(),
            revision: AtomicU64::default(),
            overlays_in_force: InForce::default(),
            sharing: Mutex::default(),
            unreadable_costs: Mutex::default(),
            writes_replica_costs: AtomicBool::default(),
            complete: AtomicBool::default(),
            changes: broadcast::channel(CHANGES).0,
        }
    }
}

/// The watches that must have listed everything before anyone decides.
// A decision without one of these could lose something for good: a node that seems empty is
// deleted, a pod whose volume is unknown gets a node in the wrong zone.
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
    /// Hears of every change from now on, but of none before everything is listed: who listens waits
    /// for that ([`Self::until_listed`]), looks at what is there, and then hears what changes.
    ///
    /// Each object of a first list would otherwise wake every controller, for nothing.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        let inner = self.inner.write();
        // Under the lock: who reads a revision and then the state sees at least what it counts.
        self.revision.fetch_add(1, Ordering::AcqRel);
        inner
    }

    /// Grows with everything that comes in: as long as it is the same, so is the state.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    fn publish(&self, change: Change) {
        // Sending fails only while nobody listens.
        if self.complete.load(Ordering::Acquire) {
            let _ = self.changes.send(change);
        }
    }

    /// Lets the views of Nodes wait for their pods until everything is listed: nobody decides before.
    pub(crate) fn begin_listing(&self) {
        self.write().behind.get_or_insert_default();
    }

    /// Notes that a watch has listed everything.
    pub(crate) fn mark_listed(&self, source: &'static str) {
        let mut inner = self.write();
        inner.synced.insert(source);
        if inner.listed() {
            inner.catch_up();
            // Under the lock: who takes it later sees what came in before, or is told.
            self.complete.store(true, Ordering::Release);
        }
    }

    /// Lets every watch have listed everything, for tests without watches.
    #[cfg(test)]
    pub(crate) fn list_everything(&self) {
        SOURCES.iter().for_each(|source| self.mark_listed(source));
    }

    /// Notes that a watch runs which must list everything, too, before anyone decides.
    pub(crate) fn expect_listing(&self, source: &'static str) {
        self.write().optional.insert(source);
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

    /// Takes in a NodePool; one of another provider is not kept.
    pub fn apply_pool(&self, pool: NodePool) {
        let name = pool.metadata.name.clone().unwrap_or_default();
        if !pool.is_managed() {
            return self.delete_pool(&name);
        }
        let taken = forward(&mut self.write().pools, &name, pool);
        if taken {
            self.publish(Change::NodePool(name));
        }
    }

    /// Forgets a NodePool.
    pub fn delete_pool(&self, name: &str) {
        let known = self.write().pools.remove(name).is_some();
        if known {
            self.publish(Change::NodePool(name.to_owned()));
        }
    }

    /// Takes in a node class.
    pub fn apply_class(&self, class: EC2NodeClass) {
        let name = class.metadata.name.clone().unwrap_or_default();
        let taken = forward(&mut self.write().classes, &name, class);
        if taken {
            self.publish(Change::NodeClass(name));
        }
    }

    /// Forgets a node class.
    pub fn delete_class(&self, name: &str) {
        self.write().classes.remove(name);
        self.publish(Change::NodeClass(name.to_owned()));
    }

    /// The node class of that name.
    #[must_use]
    pub fn class(&self, name: &str) -> Option<Arc<EC2NodeClass>> {
        self.inner.read().classes.get(name).cloned()
    }

    /// The node class that a reference names; `None` for one of another provider.
    #[must_use]
    pub fn class_of(&self, reference: &NodeClassReference) -> Option<Arc<EC2NodeClass>> {
        reference.is_managed().then(|| self.class(&reference.name)).flatten()
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
        self.write().namespaces.insert(name, labels);
    }

    /// Forgets a namespace.
    pub fn delete_namespace(&self, name: &str) {
        self.write().namespaces.remove(name);
    }

    /// Takes in a PodDisruptionBudget.
    pub fn apply_pdb(&self, pdb: PodDisruptionBudget) {
        let namespace = pdb.metadata.namespace.clone().unwrap_or_default();
        let name = pdb.metadata.name.clone().unwrap_or_default();
        self.write().pdbs.insert((namespace, name), Arc::new(pdb));
    }

    /// Forgets a PodDisruptionBudget.
    pub fn delete_pdb(&self, namespace: &str, name: &str) {
        self.write().pdbs.remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Every PodDisruptionBudget.
    #[must_use]
    pub fn pdbs(&self) -> Vec<Arc<PodDisruptionBudget>> {
        self.inner.read().pdbs.values().cloned().collect()
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

    /// Labels of all namespaces.
    #[must_use]
    pub fn namespaces(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        self.inner.read().namespaces.clone()
    }
}

fn version(meta: &ObjectMeta) -> Option<u64> {
    meta.resource_version.as_deref()?.parse().ok()
}

/// True when an object is not newer than the known one. Without versions the later one counts.
// Versions of one kind are numbers that only rise; Kubernetes declares them comparable since 1.35.
// Equal ones are the same object, so that a listener is not woken for nothing.
fn is_older(known: Option<&ObjectMeta>, new: &ObjectMeta) -> bool {
    match (known.and_then(version), version(new)) {
        (Some(known), Some(new)) => new <= known,
        _ => false,
    }
}

/// Keeps an object unless a newer one is known; true when it was kept.
fn forward<K: Resource>(map: &mut BTreeMap<String, Arc<K>>, name: &str, object: K) -> bool {
    if is_older(map.get(name).map(|known| known.meta()), object.meta()) {
        return false;
    }
    map.insert(name.to_owned(), Arc::new(object));
    true
}

impl Inner {
    fn listed(&self) -> bool {
        SOURCES.iter().chain(&self.optional).all(|s| self.synced.contains(s))
    }
}
