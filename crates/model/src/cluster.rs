//! What else a cluster has, in one task: a scheduler, kubelets, the controllers of workloads, of
//! disruption budgets and of volumes, and the collection of what nobody owns.
//!
//! It reads the store's log of changes, keeps what it needs parsed, and writes to the store.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;
use tokio::time::sleep;

use crate::api::{Event, EventKind, Key, Kind, Store, kind};
use crate::cloud::Cloud;

mod budgets;
mod facts;
mod kubelet;
mod scheduler;
mod volumes;
mod workloads;

use facts::{NodeFacts, PodFacts};

/// Annotation on pods: seconds that they run before they succeed.
pub const RUN_FOR: &str = "model.karpenter.sh/run-for";
/// Annotation on pods: seconds that they take to end once they are being deleted.
pub const ENDS_IN: &str = "model.karpenter.sh/ends-in";

/// How quick the parts of the cluster are.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Changes are looked at together after this long.
    pub settle: Duration,
    /// Time from binding until a pod runs.
    pub start: Duration,
    /// Time that a pod takes to end unless it says otherwise.
    pub end: Duration,
    /// Time from joining until a Node is ready.
    pub ready: Duration,
    /// Time until a Node without a kubelet counts as unknown.
    pub lost: Duration,
    /// Time until a volume is detached from a node that no pod uses it on.
    pub detach: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            settle: Duration::from_millis(50),
            start: Duration::from_secs(2),
            end: Duration::from_secs(1),
            ready: Duration::from_secs(5),
            lost: Duration::from_secs(40),
            detach: Duration::from_secs(5),
        }
    }
}

/// Something that is due at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    StartPod(Key, String),
    FinishPod(Key, String),
    EndPod(Key, String),
    Ready(String),
    Lost(String),
    EvictFrom(String),
    CollectPods(String),
    Detach(String),
    Look,
}

/// How long pods wait from being made until they are bound: what users see.
#[derive(Clone, Debug, Default)]
pub struct Waits {
    /// Seconds per pod that was bound.
    pub seconds: Vec<f64>,
    /// Pods that were evicted or lost their node, by no doing of their workload's.
    pub evictions: u64,
}

/// The cluster beside the API server and Karpenter.
pub struct Cluster {
    store: Arc<Store>,
    cloud: Arc<Cloud>,
    pace: Pace,
    cursors: BTreeMap<&'static str, u64>,
    due: BinaryHeap<Reverse<(Timestamp, u64, Due)>>,
    sequence: u64,
    pods: BTreeMap<Key, PodFacts>,
    by_owner: BTreeMap<String, BTreeSet<Key>>,
    nodes: BTreeMap<String, NodeFacts>,
    pending: BTreeSet<Key>,
    /// Pods that keep others away from them.
    averse: BTreeSet<Key>,
    /// Something changed that may let a pending pod fit.
    retry: bool,
    dirty_workloads: BTreeSet<(&'static str, Key)>,
    budgets: BTreeMap<Key, LabelSelector>,
    dirty_budgets: BTreeSet<Key>,
    look_at_daemons: bool,
    joined: BTreeSet<String>,
    /// How often the machine behind a Node has been rebooted, as far as the Node shows it.
    boots: BTreeMap<String, u32>,
    /// Nodes whose machine is gone and that are not yet known to be lost.
    losing: BTreeSet<String>,
    /// Pods that their workload does not want any more.
    unwanted: BTreeSet<String>,
    waits: Arc<parking_lot::Mutex<Waits>>,
}

/// The kinds whose changes matter here.
// Nodes come first: a pod that was bound in the same moment then finds its node.
const WATCHED: [&str; 12] = [
    "nodes",
    "pods",
    "deployments",
    "replicasets",
    "statefulsets",
    "jobs",
    "daemonsets",
    "poddisruptionbudgets",
    "nodeclaims",
    "nodepools",
    "persistentvolumeclaims",
    "persistentvolumes",
];

impl Cluster {
    /// A cluster over a store, with the machines of a cloud.
    #[must_use]
    pub fn new(store: Arc<Store>, cloud: Arc<Cloud>, pace: Pace) -> Self {
        Self {
            store,
            cloud,
            pace,
            cursors: WATCHED.iter().map(|name| (*name, 0)).collect(),
            due: BinaryHeap::new(),
            sequence: 0,
            pods: BTreeMap::new(),
            by_owner: BTreeMap::new(),
            nodes: BTreeMap::new(),
            pending: BTreeSet::new(),
            averse: BTreeSet::new(),
            retry: false,
            dirty_workloads: BTreeSet::new(),
            budgets: BTreeMap::new(),
            dirty_budgets: BTreeSet::new(),
            look_at_daemons: false,
            joined: BTreeSet::new(),
            boots: BTreeMap::new(),
            losing: BTreeSet::new(),
            unwanted: BTreeSet::new(),
            waits: Arc::default(),
        }
    }

    /// What pods waited, as it grows.
    #[must_use]
    pub fn waits(&self) -> Arc<parking_lot::Mutex<Waits>> {
        Arc::clone(&self.waits)
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        let store = Arc::clone(&self.store);
        let cloud = Arc::clone(&self.cloud);
        loop {
            let (written, machines) = (store.any_change(), cloud.changed());
            tokio::pin!(written, machines);
            // Enabled before the step: a change that happens during it must not be missed.
            written.as_mut().enable();
            machines.as_mut().enable();
            while self.step() {}
            let wait = self.next_due().map(|at| self.until(at));
            let timer = async {
                match wait {
                    Some(wait) => sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                // Real components see changes in batches too, and each step costs a look at
                // everything.
                () = written => sleep(self.pace.settle).await,
                () = machines => {}
                () = timer => {}
            }
        }
    }

    fn until(&self, at: Timestamp) -> Duration {
        let left = Duration::try_from(at.duration_since(self.store.now())).unwrap_or_default();
        // Timers fire in whole milliseconds: a wait of less would find nothing due.
        left + Duration::from_millis(1)
    }

    fn next_due(&self) -> Option<Timestamp> {
        let own = self.due.peek().map(|Reverse((at, _, _))| *at);
        [own, self.cloud.next_event()].into_iter().flatten().min()
    }

    fn at(&mut self, at: Timestamp, due: Due) {
        // Equal times keep the order in which they were set: a heap alone would not.
        self.sequence += 1;
        self.due.push(Reverse((at, self.sequence, due)));
    }

    fn after(&mut self, wait: Duration, due: Due) {
        self.at(self.store.now() + wait, due);
    }

    /// Takes in what changed and acts on it; true when that may have changed something.
    fn step(&mut self) -> bool {
        let before = self.store.version();
        for name in WATCHED {
            self.read(name);
        }
        self.machines();
        let now = self.store.now();
        while self.due.peek().is_some_and(|Reverse((at, _, _))| *at <= now) {
            if let Some(Reverse((_, _, due))) = self.due.pop() {
                self.fire(due);
            }
        }
        self.reconcile_workloads();
        self.update_budgets();
        self.schedule();
        self.store.version() != before
    }

    fn read(&mut self, name: &'static str) {
        let kind = kind(name);
        let cursor = self.cursors.get(name).copied().unwrap_or(0);
        let events = match self.store.since(kind, cursor) {
            Some(events) => events,
            None => {
                // The log was compacted: everything that is there is looked at again.
                let version = self.store.version();
                for object in self.store.all(kind) {
                    self.take(kind, EventKind::Modified, &object);
                }
                self.cursors.insert(name, version);
                return;
            }
        };
        for event in &events {
            self.observe(kind, event);
        }
        if let Some(last) = events.last() {
            self.cursors.insert(name, last.version);
        }
    }

    fn observe(&mut self, kind: &'static Kind, event: &Event) {
        self.take(kind, event.kind, &event.object);
    }

    fn take(&mut self, kind: &'static Kind, what: EventKind, object: &Arc<Value>) {
        let gone = what == EventKind::Deleted;
        match kind.plural {
            "pods" => self.pod_changed(object, gone),
            "nodes" => self.node_changed(object, gone),
            "poddisruptionbudgets" => self.budget_changed(object, gone),
            "persistentvolumeclaims" | "persistentvolumes" => self.retry = true,
            "nodeclaims" | "nodepools" => {
                if gone {
                    self.collect_owned(kind, object);
                }
            }
            name => {
                // What a budget expects is the scale of the workloads whose pods it selects.
                self.budgets_in(&Key::of(object).namespace);
                if gone {
                    self.collect_owned(kind, object);
                } else {
                    self.dirty_workloads.insert((name, Key::of(object)));
                }
            }
        }
    }

    fn pod_changed(&mut self, object: &Arc<Value>, gone: bool) {
        let key = Key::of(object);
        let known = self.pods.remove(&key);
        if let Some(known) = &known {
            self.forget_pod(&key, known);
            self.budgets_of(&key.namespace, &known.labels);
        }
        if gone {
            self.pod_gone(object);
            return;
        }
        let first = known.as_ref().is_none_or(|k| k.uid != object["metadata"]["uid"]);
        let was_bound = known.as_ref().is_some_and(|k| k.node.is_some());
        let facts = PodFacts::of(object);
        self.budgets_of(&key.namespace, &facts.labels);
        if !facts.apart.is_empty() {
            self.averse.insert(key.clone());
        }
        if let Some(owner) = &facts.owner {
            self.by_owner.entry(owner.uid.clone()).or_default().insert(key.clone());
            self.dirty_workloads.insert((owner.plural, Key::new(&key.namespace, &owner.name)));
        }
        match &facts.node {
            None if !facts.finished && !facts.deleting => {
                self.pending.insert(key.clone());
                if first {
                    self.retry = true;
                }
            }
            None => {}
            Some(node) => {
                if !facts.finished
                    && let Some(node) = self.nodes.get_mut(node)
                {
                    node.add(&key, &facts);
                }
                // Bound just now: its wait is over, and the kubelet starts it.
                if !was_bound && facts.phase == "Pending" {
                    self.waited(&facts);
                    self.after(self.pace.start, Due::StartPod(key.clone(), facts.uid.clone()));
                }
                if facts.deleting {
                    self.end_later(&key, &facts);
                }
            }
        }
        if facts.finished && known.as_ref().is_some_and(|k| !k.finished) {
            self.retry = true;
        }
        self.pods.insert(key, facts);
    }

    fn waited(&self, pod: &PodFacts) {
        let now = self.store.now();
        let seconds = now.duration_since(pod.created).as_secs_f64();
        if pod.owner.as_ref().is_none_or(|o| o.plural != "daemonsets") {
            self.waits.lock().seconds.push(seconds.max(0.0));
        }
    }

    fn forget_pod(&mut self, key: &Key, known: &PodFacts) {
        self.pending.remove(key);
        self.averse.remove(key);
        if let Some(node) = known.node.as_ref().and_then(|n| self.nodes.get_mut(n)) {
            node.remove(key);
        }
        if let Some(owner) = &known.owner
            && let Some(keys) = self.by_owner.get_mut(&owner.uid)
        {
            keys.remove(key);
        }
    }

    fn pod_gone(&mut self, object: &Arc<Value>) {
        self.retry = true;
        let facts = PodFacts::of(object);
        if let Some(owner) = &facts.owner {
            let key = Key::new(&Key::of(object).namespace, &owner.name);
            self.dirty_workloads.insert((owner.plural, key));
        }
        let wanted = !self.unwanted.remove(&facts.uid);
        let daemon = facts.owner.as_ref().is_some_and(|o| o.plural == "daemonsets");
        if wanted && !facts.finished && facts.node.is_some() && !daemon {
            self.waits.lock().evictions += 1;
        }
        self.pod_left(&facts);
    }

    fn node_changed(&mut self, object: &Arc<Value>, gone: bool) {
        let name = Key::of(object).name;
        self.retry = true;
        self.look_at_daemons = true;
        let known = self.nodes.remove(&name);
        if gone {
            if let Some(node) = known
                && !node.pods.is_empty()
            {
                // As kube-controller-manager's pod garbage collector, which waits in case the Node
                // comes back.
                self.after(self.pace.lost, Due::CollectPods(name));
            }
            return;
        }
        let mut facts = NodeFacts::of(object);
        if let Some(known) = known {
            facts.inherit(known);
        } else {
            for (key, pod) in &self.pods {
                if pod.node.as_deref() == Some(name.as_str()) && !pod.finished {
                    facts.add(key, pod);
                }
            }
        }
        self.nodes.insert(name, facts);
    }

    fn fire(&mut self, due: Due) {
        match due {
            Due::StartPod(key, uid) => self.start_pod(&key, &uid),
            Due::FinishPod(key, uid) => self.finish_pod(&key, &uid),
            Due::EndPod(key, uid) => self.end_pod(&key, &uid),
            Due::Ready(node) => self.node_ready(&node),
            Due::Lost(node) => self.node_lost(&node),
            Due::EvictFrom(node) => self.evict_from(&node),
            Due::CollectPods(node) => self.collect_pods(&node),
            Due::Detach(attachment) => self.detach(&attachment),
            Due::Look => {}
        }
    }
}
