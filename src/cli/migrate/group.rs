//! A group of nodes as both kinds of answers describe it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Taint;
use serde_json::{Map, Value, json};

use crate::api::{labels, taints};

/// What grows and shrinks the group today.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// An Auto Scaling group of one's own.
    #[default]
    AutoScalingGroup,
    /// A managed node group of EKS.
    NodeGroup,
}

/// How instances of the group are paid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Market {
    /// On demand.
    #[default]
    OnDemand,
    /// Spot.
    Spot,
    /// Capacity reservations.
    Reserved,
    /// The first `base` units on demand, of the others `percent`, and the rest spot.
    Mixed { base: i64, percent: i64 },
}

/// What the sizes of a group count.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Unit {
    /// Instances.
    #[default]
    Instances,
    /// vCPUs.
    Cpu,
    /// MiB of memory.
    Memory,
    /// Weights of instance types.
    Weights(BTreeMap<String, i64>),
}

/// A group with everything that its nodes depend on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    /// Its name in AWS.
    pub name: String,
    pub kind: Kind,
    /// Groups that this one stands for, when several became one; itself otherwise.
    pub sources: Vec<String>,
    pub cluster: Option<String>,
    /// `spec` of the EC2NodeClass, without subnets.
    pub class: Map<String, Value>,
    pub subnets: BTreeSet<String>,
    pub zones: BTreeSet<String>,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub startup_taints: Vec<Taint>,
    /// Requirements of the NodePool, without zones and capacity types.
    pub requirements: Vec<Value>,
    /// The instance types that it names; empty when it describes them by attributes.
    pub types: Vec<String>,
    /// Images of overrides, beside that of the launch template.
    pub images: Vec<String>,
    pub market: Market,
    pub unit: Unit,
    pub min: i64,
    pub max: i64,
    /// Seconds that an instance may live.
    pub lifetime: Option<i64>,
    /// How long Cluster Autoscaler leaves an unneeded node of this group.
    pub unneeded: Option<String>,
    /// Nodes of the group that may be replaced at once by an update.
    pub max_unavailable: Option<String>,
    /// What is not carried over, and what to do about it.
    pub notes: Vec<String>,
}

/// Prefixes of taints that Cluster Autoscaler takes for those of a node that is starting.
const STARTUP_PREFIXES: [&str; 2] = [
    "startup-taint.cluster-autoscaler.kubernetes.io/",
    "ignore-taint.cluster-autoscaler.kubernetes.io/",
];
/// Names of taints that agents remove once they run.
const STARTUP_NAMES: [&str; 2] = ["/agent-not-ready", "/uninitialized"];
/// Prefix of the labels that EKS sets on nodes of managed node groups.
const EKS_LABELS: &str = "eks.amazonaws.com/";

impl Group {
    /// Adds a requirement.
    pub fn require(&mut self, key: &str, operator: &str, values: &[String]) {
        let mut requirement = json!({"key": key, "operator": operator});
        if !values.is_empty() {
            requirement["values"] = json!(values);
        }
        self.requirements.push(requirement);
    }

    /// Adds a label, unless the instance itself brings it, or it may not be set.
    pub fn label(&mut self, key: &str, value: &str) {
        let key = labels::normalize(key);
        if labels::is_well_known(key) || key == labels::HOSTNAME {
            return;
        }
        if value.contains(['$', '`']) {
            let note = format!("label {key}: its value {value:?} is worked out at boot");
            self.note(note);
        } else if key.starts_with(EKS_LABELS) {
            let note = format!(
                "label {key}={value}: EKS sets it on its own nodes only; add a label of your own where pods select it"
            );
            self.note(note);
        } else if let Some(problem) = labels::restriction(key) {
            self.note(format!("label {key}={value}: {problem}"));
        } else {
            self.labels.insert(key.to_owned(), value.to_owned());
        }
    }

    /// Adds a taint, once.
    pub fn taint(&mut self, key: &str, value: &str, effect: &str) {
        let effect = match effect {
            "NO_SCHEDULE" => taints::NO_SCHEDULE,
            "NO_EXECUTE" => taints::NO_EXECUTE,
            "PREFER_NO_SCHEDULE" => taints::PREFER_NO_SCHEDULE,
            other => other,
        };
        let taint = taints::new(key, Some(value).filter(|v| !v.is_empty()), effect);
        let startup = STARTUP_PREFIXES.iter().any(|p| key.starts_with(p))
            || STARTUP_NAMES.iter().any(|n| key.ends_with(n));
        let list = if startup { &mut self.startup_taints } else { &mut self.taints };
        if !list.iter().any(|t| taints::matches(t, &taint)) {
            list.push(taint);
        }
    }

    /// Adds a note, once.
    pub fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    /// Sets a field of the node class's spec.
    pub fn set(&mut self, field: &str, value: impl Into<Value>) {
        self.class.insert(field.to_owned(), value.into());
    }

    /// Takes the cluster from the keys of a group's tags, and the hints for Cluster Autoscaler from
    /// them.
    pub fn read_tag(&mut self, key: &str, value: &str) -> bool {
        const TEMPLATE: &str = "k8s.io/cluster-autoscaler/node-template/";
        if let Some(cluster) = key.strip_prefix("kubernetes.io/cluster/") {
            self.cluster.get_or_insert_with(|| cluster.to_owned());
        } else if matches!(key, "eks:cluster-name" | "alpha.eksctl.io/cluster-name") {
            self.cluster.get_or_insert_with(|| value.to_owned());
        } else if let Some(hint) = key.strip_prefix(TEMPLATE) {
            self.read_hint(hint, value);
        } else if let Some(cluster) = key.strip_prefix("k8s.io/cluster-autoscaler/") {
            if cluster != "enabled" {
                self.cluster.get_or_insert_with(|| cluster.to_owned());
            }
        } else {
            return false;
        }
        true
    }

    fn read_hint(&mut self, hint: &str, value: &str) {
        if let Some(label) = hint.strip_prefix("label/") {
            self.label(label, value);
        } else if let Some(taint) = hint.strip_prefix("taint/") {
            let (value, effect) = value.rsplit_once(':').unwrap_or(("", value));
            self.taint(taint, value, effect);
        } else if let Some(resource) = hint.strip_prefix("resources/") {
            // Karpenter knows the node's storage from the volumes of its class.
            if resource != "ephemeral-storage" {
                self.note(format!(
                    "resource {resource}={value}: a NodePool promises no resources; a NodeOverlay adds them (feature gate NodeOverlay)"
                ));
            }
        } else if hint == "autoscaling-options/scaledownunneededtime" {
            self.unneeded = Some(value.to_owned());
        } else {
            self.note(format!("tag {hint}={value}: an option of Cluster Autoscaler"));
        }
    }
}
