//! A world put together: cluster, cloud and controllers, and what tests and replays ask of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use karpenter_model::api::{ApiServer, Deletion, Journal, KINDS, Key, Kind, Now, Store, kind};
use karpenter_model::cloud::{Behaviour, Cloud, Instance};
use karpenter_model::cluster::{Cluster, Pace, Waits};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::ModelProvider;
use crate::clock::Clock;
use crate::cloud::metered::Metered;
use crate::cluster::State;
use crate::cluster::informers::{self, Wanted};
use crate::controllers::{self, Context};
use crate::operator::events::Recorder;
use crate::operator::leader::Election;
use crate::operator::settings::Settings;
use crate::scheduling::instance_type::InstanceType;

/// Stack of the thread that a world runs on: async state is large in debug builds.
const STACK: usize = 64 << 20;

/// What a world is made of.
pub struct Options {
    pub seed: u64,
    /// When it begins.
    pub start: Timestamp,
    pub types: Vec<Arc<InstanceType>>,
    pub pace: Pace,
    pub behaviour: Behaviour,
    /// Time that each request to the API server takes.
    pub latency: Duration,
    /// Flags of the controller.
    pub flags: Vec<String>,
}

impl Options {
    /// A world with these types, on a Monday.
    #[must_use]
    pub fn new(seed: u64, types: Vec<Arc<InstanceType>>) -> Self {
        Self {
            seed,
            // 2026-01-05T00:00:00Z
            start: Timestamp::UNIX_EPOCH + Duration::from_secs(1_767_571_200),
            types,
            pace: Pace::default(),
            behaviour: Behaviour::default(),
            latency: Duration::from_millis(2),
            flags: Vec::new(),
        }
    }
}

/// Runs a world's code on a paused clock, on a thread of its own.
///
/// # Panics
/// When the code does, or there is no thread to be had.
pub fn in_runtime<T: Send>(seed: u64, body: impl AsyncFnOnce() -> T + Send) -> T {
    let run = move || {
        // What draws from the thread's generator, such as the back-off of watches, follows the seed.
        fastrand::seed(seed);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        match runtime {
            Ok(runtime) => runtime.block_on(body()),
            Err(error) => panic!("no runtime: {error}"),
        }
    };
    std::thread::scope(|scope| {
        let spawned = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, run);
        match spawned.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(value)) => value,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(error) => panic!("no thread: {error}"),
        }
    })
}

/// What a process of the controllers is made from.
struct Process {
    client: kube::Client,
    settings: Arc<Settings>,
    cloud: Arc<Cloud>,
    clock: Clock,
}

impl Process {
    /// Starts the watches that feed a state.
    fn watch(&self, tasks: &mut JoinSet<()>) -> Arc<State> {
        let state = Arc::new(State::default());
        let wanted = Wanted {
            buffers: self.settings.gates.capacity_buffer,
            overlays: self.settings.gates.node_overlay,
            selectors: !self.settings.scheduler_config.default_constraints.is_empty(),
            devices: !self.settings.ignore_dra_requests,
            replica_costs_are_ours: self.settings.gates.pod_deletion_cost_management,
        };
        informers::start(&self.client, &state, wanted, tasks);
        state
    }

    /// Starts the controllers.
    fn act(self, state: &Arc<State>, tasks: &mut JoinSet<()>) {
        let provider = Arc::new(ModelProvider::new(self.cloud));
        let ctx = Arc::new(Context {
            recorder: Recorder::new(self.client.clone(), self.clock.clone()),
            client: self.client,
            cluster: Arc::clone(state),
            cloud: Arc::new(Metered::new(Arc::clone(&provider))),
            settings: self.settings,
            clock: self.clock,
            registration_health: controllers::nodepool::health::Tracker::default(),
            savings: controllers::cost::Ledger::default(),
            verdicts: controllers::disruption::Verdicts::default(),
            launches: controllers::nodeclaim::Launches::default(),
        });
        provider.start(&ctx, tasks);
        controllers::start(&ctx, tasks);
    }

    /// Watches at once, acts once the Lease is held, and ends when it is lost.
    async fn elected(self, user: &'static str) {
        let mut tasks = JoinSet::new();
        let state = self.watch(&mut tasks);
        let recorder = Recorder::new(self.client.clone(), self.clock.clone());
        let election =
            Election::named(user, self.client.clone(), recorder, "kube-system", "karpenter");
        election.campaign().await;
        self.act(&state, &mut tasks);
        election.keep().await;
        tasks.shutdown().await;
    }
}

/// A cluster with a cloud, and controllers that run or do not.
pub struct World {
    pub clock: Clock,
    pub store: Arc<Store>,
    pub server: ApiServer,
    pub cloud: Arc<Cloud>,
    pub journal: Journal,
    pub settings: Arc<Settings>,
    controllers: Option<JoinSet<()>>,
    replicas: BTreeMap<&'static str, JoinSet<()>>,
    /// The state of the controllers that run.
    pub state: Option<Arc<State>>,
    waits: Arc<Mutex<Waits>>,
    _cluster: JoinSet<()>,
}

impl World {
    /// A cluster that is empty but for its namespaces and a node class that is ready; the
    /// controllers do not run yet.
    ///
    /// # Panics
    /// When the flags cannot be used.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let clock = Clock::tokio(options.start);
        let now: Now = {
            let clock = clock.clone();
            Arc::new(move || clock.now())
        };
        let journal = Journal::default();
        let store = Arc::new(Store::new(options.seed, Arc::clone(&now)));
        let server = ApiServer::new(Arc::clone(&store), journal.clone(), options.latency);
        let cloud = Arc::new(Cloud::new(
            options.types,
            options.seed,
            now,
            journal.clone(),
            options.behaviour,
        ));
        let mut flags = vec!["--cluster-name=model".to_owned()];
        flags.extend(options.flags);
        let settings = match Settings::parse(&flags, |_| None) {
            Ok(settings) => Arc::new(settings),
            Err(error) => panic!("settings of the world: {error}"),
        };
        let cluster = Cluster::new(Arc::clone(&store), Arc::clone(&cloud), options.pace);
        let waits = cluster.waits();
        let mut tasks = JoinSet::new();
        tasks.spawn(cluster.run());
        let world = Self {
            clock,
            store,
            server,
            cloud,
            journal,
            settings,
            controllers: None,
            replicas: BTreeMap::new(),
            state: None,
            waits,
            _cluster: tasks,
        };
        for name in ["default", "kube-system"] {
            world.apply(json!({ "kind": "Namespace", "metadata": { "name": name } }));
        }
        world.node_class("default");
        world
    }

    /// A node class that can be used.
    fn node_class(&self, name: &str) {
        self.apply(json!({
            "apiVersion": "karpenter.k8s.aws/v1", "kind": "EC2NodeClass",
            "metadata": { "name": name },
            "spec": { "role": "role", "amiSelectorTerms": [{ "alias": "al2023@latest" }],
                "subnetSelectorTerms": [{ "tags": { "a": "b" } }],
                "securityGroupSelectorTerms": [{ "tags": { "a": "b" } }] },
        }));
        let now = karpenter_model::api::write_time(self.clock.now());
        let conditions: Vec<Value> = ["Ready", "ValidationSucceeded"]
            .iter()
            .map(|kind| {
                json!({ "type": kind, "status": "True", "reason": kind, "message": "",
                    "lastTransitionTime": now, "observedGeneration": 1 })
            })
            .collect();
        self.change("ec2nodeclasses", "", name, "status", |class| {
            class["status"] = json!({ "conditions": conditions });
        });
    }

    /// Starts the controllers as a new process would.
    pub fn start(&mut self) {
        self.start_as("karpenter");
    }

    /// Starts the controllers with a client in a user's name.
    pub fn start_as(&mut self, user: &str) {
        let process = self.process(user);
        let mut tasks = JoinSet::new();
        let state = process.watch(&mut tasks);
        process.act(&state, &mut tasks);
        self.state = Some(state);
        self.controllers = Some(tasks);
    }

    /// Starts one of several replicas, which acts for as long as it leads.
    pub fn start_replica(&mut self, user: &'static str) {
        let process = self.process(user);
        let mut tasks = JoinSet::new();
        tasks.spawn(process.elected(user));
        self.replicas.insert(user, tasks);
    }

    /// Ends a replica wherever it is.
    pub async fn kill_replica(&mut self, user: &str) {
        if let Some(mut tasks) = self.replicas.remove(user) {
            tasks.shutdown().await;
        }
        self.server.cut_watches(user);
    }

    fn process(&self, user: &str) -> Process {
        Process {
            client: self.server.client(user),
            settings: Arc::clone(&self.settings),
            cloud: Arc::clone(&self.cloud),
            clock: self.clock.clone(),
        }
    }

    /// Ends the controllers wherever they are, as a crash does.
    pub async fn kill(&mut self) {
        if let Some(mut tasks) = self.controllers.take() {
            tasks.shutdown().await;
        }
        self.state = None;
        self.server.cut_watches("karpenter");
    }

    /// Lets time pass.
    pub async fn pass(&self, time: Duration) {
        sleep(time).await;
    }

    /// Waits until something holds; true when it does in time.
    pub async fn within(&self, limit: Duration, holds: impl Fn(&Self) -> bool) -> bool {
        let end = self.clock.now() + limit;
        loop {
            if holds(self) {
                return true;
            }
            if self.clock.now() >= end {
                return false;
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// Stores an object; its kind says where.
    ///
    /// # Panics
    /// When the API server refuses it.
    pub fn apply(&self, object: Value) -> Arc<Value> {
        let kind = kind_of(&object);
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
        let namespace = if kind.namespaced { namespace } else { String::new() };
        match self.store.create(kind, &namespace, object) {
            Ok(stored) => stored,
            Err(failure) => panic!("{}", failure.message),
        }
    }

    /// Changes an object in place.
    ///
    /// # Panics
    /// When there is none, or the API server refuses the change.
    pub fn change(
        &self,
        plural: &str,
        namespace: &str,
        name: &str,
        subresource: &str,
        change: impl FnOnce(&mut Value),
    ) {
        let changed = self.store.modify(kind(plural), namespace, name, subresource, |object| {
            change(object);
            Ok(())
        });
        if let Err(failure) = changed {
            panic!("{}", failure.message);
        }
    }

    /// Deletes an object; one that is gone is fine.
    pub fn delete(&self, plural: &str, name: &str) {
        let kind = kind(plural);
        let namespace = if kind.namespaced { "default" } else { "" };
        let _ = self.store.delete(kind, namespace, name, &Deletion::default());
    }

    /// Every object of a kind.
    #[must_use]
    pub fn all(&self, plural: &str) -> Vec<Arc<Value>> {
        self.store.all(kind(plural))
    }

    /// Names of every object of a kind.
    #[must_use]
    pub fn names(&self, plural: &str) -> Vec<String> {
        self.all(plural).iter().map(|o| Key::of(o).name).collect()
    }

    /// An object.
    #[must_use]
    pub fn get(&self, plural: &str, name: &str) -> Option<Arc<Value>> {
        let kind = kind(plural);
        self.store.get(kind, if kind.namespaced { "default" } else { "" }, name)
    }

    /// Sets the replicas of a Deployment.
    pub fn scale(&self, deployment: &str, replicas: u32) {
        self.change("deployments", "default", deployment, "", |object| {
            object["spec"]["replicas"] = json!(replicas);
        });
    }

    /// Pods that have the label `app`.
    #[must_use]
    pub fn pods_of(&self, app: &str) -> Vec<Arc<Value>> {
        let mut pods = self.all("pods");
        pods.retain(|p| p["metadata"]["labels"]["app"] == app);
        pods
    }

    /// How many pods with the label `app` run and are not being deleted.
    #[must_use]
    pub fn running(&self, app: &str) -> usize {
        let runs = |p: &&Arc<Value>| {
            p["status"]["phase"] == "Running" && p["metadata"]["deletionTimestamp"].is_null()
        };
        self.pods_of(app).iter().filter(runs).count()
    }

    /// Instances that have not been asked to end.
    #[must_use]
    pub fn instances(&self) -> Vec<Arc<Instance>> {
        let mut all = self.cloud.instances();
        all.retain(|i| !matches!(i.life, karpenter_model::cloud::Life::Ending(_)));
        all
    }

    /// What pods waited so far.
    #[must_use]
    pub fn waits(&self) -> Waits {
        self.waits.lock().clone()
    }
}

fn kind_of(object: &Value) -> &'static Kind {
    let name = object["kind"].as_str().unwrap_or_default();
    match KINDS.iter().find(|k| k.kind == name) {
        Some(kind) => kind,
        None => panic!("no kind {name:?} is served"),
    }
}
