//! `karpenter replay --record`: a live cluster's workloads over time, as a workload file.
//!
//! What a replay needs is written down and nothing else: how many replicas each workload wanted and
//! when, what its pods request, and what bears on where they may run. No Secret is read, and no
//! environment value, command or image is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use karpenter_model::api::selects;
use kube::Client;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::api::annotations;
use crate::scheduling::pod::PodInfo;
use crate::simulate::record::{RecordError, kept_annotation, lean_spec, list};

/// What a cluster runs at one time.
#[derive(Default)]
pub struct Workloads {
    pub deployments: Vec<Deployment>,
    pub stateful_sets: Vec<StatefulSet>,
    pub replica_sets: Vec<ReplicaSet>,
    pub daemon_sets: Vec<DaemonSet>,
    pub jobs: Vec<Job>,
    pub budgets: Vec<PodDisruptionBudget>,
}

impl Workloads {
    /// Reads them.
    ///
    /// # Errors
    /// When one of the lists is refused.
    pub async fn of(client: &Client) -> Result<Self, RecordError> {
        Ok(Self {
            deployments: list(client).await?,
            stateful_sets: list(client).await?,
            replica_sets: list(client).await?,
            daemon_sets: list(client).await?,
            jobs: list(client).await?,
            budgets: list(client).await?,
        })
    }
}

/// A workload with replicas. Names are not enough: one may be deleted, and another made.
type ScaledKey = (String, String, &'static str);

/// What is known of a workload with replicas.
struct Scaled {
    template: PodTemplateSpec,
    /// From these times on, so many replicas.
    steps: Vec<(Duration, u32)>,
    budget: Option<Value>,
}

/// What is known of one run of a Job.
struct Run {
    namespace: String,
    name: String,
    template: PodTemplateSpec,
    at: Duration,
    pods: u32,
    parallelism: u32,
    pod_runs_for: Duration,
}

/// A cluster's workloads as they were seen so far.
pub struct Recording {
    name: String,
    begun: Timestamp,
    scaled: BTreeMap<ScaledKey, Scaled>,
    /// By UID.
    runs: BTreeMap<String, Run>,
    daemons: BTreeMap<(String, String), PodTemplateSpec>,
}

impl Recording {
    /// A recording that begins now.
    #[must_use]
    pub fn new(name: &str, now: Timestamp) -> Self {
        Self {
            name: name.to_owned(),
            begun: now,
            scaled: BTreeMap::new(),
            runs: BTreeMap::new(),
            daemons: BTreeMap::new(),
        }
    }

    /// Takes in what the cluster runs now.
    pub fn note(&mut self, now: Timestamp, seen: Workloads) {
        let time = since(self.begun, now);
        let mut there = BTreeSet::new();
        for (key, wanted, template) in
            scaled(seen.deployments, seen.stateful_sets, seen.replica_sets)
        {
            let budget = budget_of(&seen.budgets, &key.0, &template);
            there.insert(key.clone());
            let known = self.scaled.entry(key).or_insert_with(|| Scaled {
                template: PodTemplateSpec::default(),
                steps: Vec::new(),
                budget: None,
            });
            (known.template, known.budget) = (template, budget);
            known.step(time, wanted);
        }
        for (key, known) in &mut self.scaled {
            if !there.contains(key) {
                known.step(time, 0);
            }
        }
        for job in seen.jobs {
            if let Some((uid, run)) = self.run_of(job, now) {
                self.runs.insert(uid, run);
            }
        }
        for set in seen.daemon_sets {
            let key = key_of(&set.metadata);
            self.daemons.insert(key, set.spec.map(|s| s.template).unwrap_or_default());
        }
    }

    /// A Job's run, if it is one of the time of the recording. How long pods run is known once the Job
    /// has ended; until then they run for as long as it does.
    fn run_of(&self, job: Job, now: Timestamp) -> Option<(String, Run)> {
        let (namespace, name) = key_of(&job.metadata);
        let (spec, status) = (job.spec?, job.status.unwrap_or_default());
        let begun = status.start_time.or(job.metadata.creation_timestamp)?.0;
        let failed = status.conditions.iter().flatten().find(|c| c.type_ == "Failed");
        let ended = status
            .completion_time
            .or_else(|| failed.and_then(|c| c.last_transition_time.clone()))
            .map(|Time(at)| at);
        if spec.suspend == Some(true) || ended.is_some_and(|at| at < self.begun) {
            return None;
        }
        let count = |n: Option<i32>| n.and_then(|n| u32::try_from(n).ok());
        let parallelism = count(spec.parallelism).unwrap_or(1).max(1);
        let pods = count(spec.completions).unwrap_or(parallelism).max(1);
        let parallelism = parallelism.min(pods);
        let waves = pods.div_ceil(parallelism);
        let lasted = since(begun, ended.unwrap_or(now)) / waves;
        let run = Run {
            namespace,
            name,
            template: spec.template,
            at: since(self.begun, begun),
            pods,
            parallelism,
            pod_runs_for: lasted.max(Duration::from_secs(1)),
        };
        Some((job.metadata.uid?, run))
    }

    /// The workload file as it is by now.
    #[must_use]
    pub fn document(&self, now: Timestamp) -> Value {
        let duration = since(self.begun, now).max(Duration::from_secs(60));
        let mut document = Map::new();
        document.insert("name".into(), self.name.clone().into());
        document.insert("duration".into(), span(duration).into());
        document.insert("start".into(), self.begun.to_string().into());
        let daemons = self.daemons.iter().map(|((namespace, name), template)| {
            let mut entry = base(namespace, name, template);
            // Two namespaces may have DaemonSets of one name.
            let same = self.daemons.keys().filter(|(_, n)| n == name).count() > 1;
            if same {
                entry.insert("name".into(), format!("{namespace}-{name}").into());
            }
            entry.remove("namespace");
            Value::Object(entry)
        });
        document.insert("daemonSets".into(), daemons.collect());
        let mut names = BTreeSet::new();
        let mut workloads: Vec<Value> = Vec::new();
        for ((namespace, name, kind), known) in &self.scaled {
            if known.steps.iter().all(|(_, replicas)| *replicas == 0) {
                continue;
            }
            let name = own_name(&mut names, namespace, name, kind);
            let mut entry = base(namespace, &name, &known.template);
            entry.insert("kind".into(), "Deployment".into());
            entry.insert("replicas".into(), known.curve());
            if let Some(budget) = &known.budget {
                entry.insert("disruptionBudget".into(), budget.clone());
            }
            workloads.push(Value::Object(entry));
        }
        let mut runs: Vec<&Run> = self.runs.values().collect();
        runs.sort_by_key(|run| (run.at, &run.namespace, &run.name));
        for run in runs {
            let name = own_name(&mut names, &run.namespace, &run.name, "job");
            let mut entry = base(&run.namespace, &name, &run.template);
            entry.insert("kind".into(), "Job".into());
            entry.insert(
                "runs".into(),
                json!({ "at": span(run.at), "pods": run.pods, "parallelism": run.parallelism,
                    "podRunsFor": span(run.pod_runs_for) }),
            );
            workloads.push(Value::Object(entry));
        }
        document.insert("workloads".into(), workloads.into());
        Value::Object(document)
    }
}

impl Scaled {
    fn step(&mut self, time: Duration, replicas: u32) {
        let last = self.steps.last().map_or(0, |(_, replicas)| *replicas);
        if last == replicas {
            return;
        }
        // Times in the file are whole seconds, and each step is later than the one before.
        match self.steps.last_mut().filter(|(at, _)| at.as_secs() == time.as_secs()) {
            Some(step) => step.1 = replicas,
            None => self.steps.push((time, replicas)),
        }
    }

    fn curve(&self) -> Value {
        if let [(Duration::ZERO, replicas)] = self.steps.as_slice() {
            return json!({ "constant": replicas });
        }
        let steps = self
            .steps
            .iter()
            .map(|(at, replicas)| json!({ "at": span(*at), "replicas": replicas }));
        json!({ "steps": steps.collect::<Vec<_>>() })
    }
}

/// The workloads with replicas; of ReplicaSets those that no Deployment has.
fn scaled(
    deployments: Vec<Deployment>,
    stateful_sets: Vec<StatefulSet>,
    replica_sets: Vec<ReplicaSet>,
) -> impl Iterator<Item = (ScaledKey, u32, PodTemplateSpec)> {
    let count = |n: Option<i32>| u32::try_from(n.unwrap_or(1)).unwrap_or(0);
    let deployments = deployments.into_iter().filter_map(move |d| {
        let ((namespace, name), spec) = (key_of(&d.metadata), d.spec?);
        Some(((namespace, name, "deployment"), count(spec.replicas), spec.template))
    });
    let stateful = stateful_sets.into_iter().filter_map(move |s| {
        let ((namespace, name), spec) = (key_of(&s.metadata), s.spec?);
        Some(((namespace, name, "statefulset"), count(spec.replicas), spec.template))
    });
    let of_deployment = |set: &ReplicaSet| {
        set.metadata.owner_references.iter().flatten().any(|o| o.kind == "Deployment")
    };
    let sets = replica_sets.into_iter().filter(move |s| !of_deployment(s));
    let sets = sets.filter_map(move |s| {
        let ((namespace, name), spec) = (key_of(&s.metadata), s.spec?);
        Some(((namespace, name, "replicaset"), count(spec.replicas), spec.template?))
    });
    deployments.chain(stateful).chain(sets)
}

fn key_of(meta: &ObjectMeta) -> (String, String) {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// The time from one moment to a later one; none when it is earlier.
fn since(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// A length of time as workload files have it, in whole seconds.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => "0s".to_owned(),
        s if s % 86_400 == 0 => format!("{}d", s / 86_400),
        s if s % 3600 == 0 => format!("{}h", s / 3600),
        s if s % 60 == 0 => format!("{}m", s / 60),
        s => format!("{s}s"),
    }
}

/// A name that no other workload of the namespace has in the file.
fn own_name(
    names: &mut BTreeSet<(String, String)>,
    namespace: &str,
    name: &str,
    kind: &str,
) -> String {
    let mut own = name.to_owned();
    let mut more = 1;
    while !names.insert((namespace.to_owned(), own.clone())) {
        own = if more == 1 { format!("{name}-{kind}") } else { format!("{name}-{kind}-{more}") };
        more += 1;
    }
    own
}

/// What the PodDisruptionBudget that selects the pods says.
fn budget_of(
    budgets: &[PodDisruptionBudget],
    namespace: &str,
    template: &PodTemplateSpec,
) -> Option<Value> {
    let pod = json!({ "metadata": { "labels": template.metadata.as_ref()?.labels } });
    let spec = budgets.iter().find_map(|budget| {
        let spec = budget.spec.as_ref()?;
        let here = budget.metadata.namespace.as_deref() == Some(namespace);
        // A budget without a selector selects nothing.
        let selector = spec.selector.as_ref().filter(|_| here)?;
        selects(&value(selector), &pod).then_some(spec)
    })?;
    match (&spec.min_available, &spec.max_unavailable) {
        (Some(least), _) => Some(json!({ "minAvailable": least })),
        (None, Some(most)) => Some(json!({ "maxUnavailable": most })),
        (None, None) => None,
    }
}

fn value<T: Serialize>(of: &T) -> Value {
    serde_json::to_value(of).unwrap_or_default()
}

/// What every entry has: whose it is, what its pods request, and what else decides where they run.
fn base(namespace: &str, name: &str, template: &PodTemplateSpec) -> Map<String, Value> {
    let pod = Pod { spec: template.spec.clone(), ..Pod::default() };
    let mut requests = PodInfo::from_pod(&pod).requests.to_quantities();
    requests.remove("pods");
    let mut entry = Map::new();
    entry.insert("name".into(), name.into());
    entry.insert("namespace".into(), namespace.into());
    entry.insert("requests".into(), value(&requests));
    if requests.is_empty() {
        entry.insert("requests".into(), json!({ "cpu": "0" }));
    }
    let mut lean = Map::new();
    let meta = template.metadata.as_ref();
    let marks = meta.and_then(|m| m.annotations.as_ref()).into_iter().flatten();
    let marks: BTreeMap<_, _> = marks
        .filter(|(key, _)| kept_annotation(key) && *key != annotations::POD_DELETION_COST)
        .collect();
    let mut metadata = Map::new();
    if let Some(labels) = meta.and_then(|m| m.labels.as_ref()).filter(|l| !l.is_empty()) {
        metadata.insert("labels".into(), value(labels));
    }
    if !marks.is_empty() {
        metadata.insert("annotations".into(), value(&marks));
    }
    if !metadata.is_empty() {
        lean.insert("metadata".into(), metadata.into());
    }
    if let Some(spec) = template.spec.clone() {
        let mut spec = value(&lean_spec(spec));
        if let Some(fields) = spec.as_object_mut() {
            // The requests are summed up above; volumes and claims stay with their cluster.
            for field in ["initContainers", "volumes", "resourceClaims", "resources", "overhead"] {
                fields.remove(field);
            }
            fields.retain(|_, value| !value.is_null());
            match host_ports(template) {
                Some(ports) => fields.insert("containers".into(), ports),
                None => fields.remove("containers"),
            };
            if !fields.is_empty() {
                lean.insert("spec".into(), spec);
            }
        }
    }
    if !lean.is_empty() {
        entry.insert("template".into(), lean.into());
    }
    entry
}

/// A container with the ports of the host that the pods take, if they take some.
fn host_ports(template: &PodTemplateSpec) -> Option<Value> {
    let containers = template.spec.iter().flat_map(|s| &s.containers);
    let ports: Vec<Value> = containers
        .flat_map(|c| c.ports.iter().flatten())
        .filter(|p| p.host_port.is_some_and(|port| port != 0))
        .map(|p| {
            json!({ "containerPort": p.container_port, "hostPort": p.host_port,
            "protocol": p.protocol.as_deref().unwrap_or("TCP") })
        })
        .collect();
    (!ports.is_empty()).then(|| json!([{ "name": "ports", "image": "image", "ports": ports }]))
}
