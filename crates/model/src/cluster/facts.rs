//! What the cluster's parts need to know of pods and nodes, parsed once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    NodeSelectorTerm, Pod, PodAffinityTerm, Taint, Toleration, TopologySpreadConstraint,
};
use karpenter_core::scheduling::pod::PodInfo;
use karpenter_core::scheduling::resources::{Name, ResourceList};
use serde_json::Value;

use crate::api::Key;

/// Who made a pod.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub(super) plural: &'static str,
    pub(super) name: String,
    pub(super) uid: String,
}

#[derive(Clone, Debug)]
pub(super) struct PodFacts {
    pub(super) uid: String,
    pub(super) created: Timestamp,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) owner: Option<Owner>,
    pub(super) node: Option<String>,
    pub(super) phase: String,
    pub(super) finished: bool,
    pub(super) deleting: bool,
    pub(super) ready: bool,
    pub(super) priority: i32,
    pub(super) requests: ResourceList,
    pub(super) tolerations: Vec<Toleration>,
    pub(super) selector: BTreeMap<String, String>,
    /// Node affinity that is required; any of the terms.
    pub(super) terms: Option<Vec<NodeSelectorTerm>>,
    pub(super) near: Vec<PodAffinityTerm>,
    pub(super) apart: Vec<PodAffinityTerm>,
    pub(super) spread: Vec<TopologySpreadConstraint>,
    pub(super) ports: BTreeSet<(String, i32)>,
    pub(super) volume_claims: Vec<String>,
    pub(super) object: Arc<Value>,
}

impl PodFacts {
    pub(super) fn of(object: &Arc<Value>) -> Self {
        let pod: Pod = serde_json::from_value((**object).clone()).unwrap_or_default();
        // The only thing that is taken from the code under test: sums of requests have tests of
        // their own.
        let requests = PodInfo::from_pod(&pod).requests;
        let spec = pod.spec.unwrap_or_default();
        let affinity = spec.affinity.unwrap_or_default();
        let required = |node: k8s_openapi::api::core::v1::NodeAffinity| {
            Some(node.required_during_scheduling_ignored_during_execution?.node_selector_terms)
        };
        let near = affinity.pod_affinity.unwrap_or_default();
        let apart = affinity.pod_anti_affinity.unwrap_or_default();
        let hard = |c: &TopologySpreadConstraint| c.when_unsatisfiable == "DoNotSchedule";
        let ports = spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
        let volumes = spec.volumes.iter().flatten();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let phase = text(&object["status"]["phase"]);
        Self {
            uid: text(&object["metadata"]["uid"]),
            created: pod.metadata.creation_timestamp.map_or(Timestamp::UNIX_EPOCH, |t| t.0),
            labels: pod.metadata.labels.unwrap_or_default(),
            owner: owner_of(object),
            node: spec.node_name.filter(|n| !n.is_empty()),
            finished: matches!(phase.as_str(), "Succeeded" | "Failed"),
            phase,
            deleting: object["metadata"]["deletionTimestamp"].is_string(),
            ready: crate::api::condition(object, "Ready") == Some("True"),
            priority: spec.priority.unwrap_or(0),
            requests,
            tolerations: spec.tolerations.unwrap_or_default(),
            selector: spec.node_selector.unwrap_or_default(),
            terms: affinity.node_affinity.and_then(required),
            near: near.required_during_scheduling_ignored_during_execution.unwrap_or_default(),
            apart: apart.required_during_scheduling_ignored_during_execution.unwrap_or_default(),
            spread: spec
                .topology_spread_constraints
                .unwrap_or_default()
                .into_iter()
                .filter(hard)
                .collect(),
            ports: ports
                .filter_map(|p| Some((p.protocol.clone().unwrap_or_default(), p.host_port?)))
                .filter(|(_, port)| *port != 0)
                .collect(),
            volume_claims: volumes
                .filter_map(|v| Some(v.persistent_volume_claim.as_ref()?.claim_name.clone()))
                .collect(),
            object: Arc::clone(object),
        }
    }

    /// Seconds that an annotation names.
    pub(super) fn seconds(&self, annotation: &str) -> Option<u64> {
        self.object["metadata"]["annotations"][annotation].as_str()?.parse().ok()
    }
}

/// The controller of an object.
pub(super) fn owner_of(object: &Value) -> Option<Owner> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    let owner = owners.iter().find(|o| o["controller"] == true)?;
    let plural = match owner["kind"].as_str()? {
        "ReplicaSet" => "replicasets",
        "StatefulSet" => "statefulsets",
        "Deployment" => "deployments",
        "DaemonSet" => "daemonsets",
        "Job" => "jobs",
        _ => return None,
    };
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    Some(Owner { plural, name: text(&owner["name"]), uid: text(&owner["uid"]) })
}

#[derive(Clone, Debug, Default)]
pub(super) struct NodeFacts {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) taints: Vec<Taint>,
    pub(super) unschedulable: bool,
    pub(super) allocatable: ResourceList,
    pub(super) provider_id: String,
    pub(super) ready: bool,
    /// Pods on it that have not finished.
    pub(super) pods: BTreeSet<Key>,
    used: BTreeMap<Key, ResourceList>,
    /// What is left for more pods.
    pub(super) free: ResourceList,
}

impl NodeFacts {
    pub(super) fn of(object: &Value) -> Self {
        let node: k8s_openapi::api::core::v1::Node =
            serde_json::from_value(object.clone()).unwrap_or_default();
        let spec = node.spec.unwrap_or_default();
        let status = node.status.unwrap_or_default();
        let allocatable = ResourceList::from_quantities_lossy(status.allocatable.as_ref());
        Self {
            labels: node.metadata.labels.unwrap_or_default(),
            taints: spec.taints.unwrap_or_default(),
            unschedulable: spec.unschedulable.unwrap_or(false),
            free: allocatable.clone(),
            allocatable,
            provider_id: spec.provider_id.unwrap_or_default(),
            ready: crate::api::condition(object, "Ready") == Some("True"),
            pods: BTreeSet::new(),
            used: BTreeMap::new(),
        }
    }

    pub(super) fn add(&mut self, key: &Key, pod: &PodFacts) {
        self.remove(key);
        self.pods.insert(key.clone());
        self.free.sub(&pod.requests);
        self.used.insert(key.clone(), pod.requests.clone());
    }

    pub(super) fn remove(&mut self, key: &Key) {
        self.pods.remove(key);
        if let Some(used) = self.used.remove(key) {
            self.free.add(&used);
        }
    }

    /// Takes over the pods of what the node was before it changed.
    pub(super) fn inherit(&mut self, before: Self) {
        self.pods = before.pods;
        self.used = before.used;
        for used in self.used.values() {
            self.free.sub(used);
        }
    }

    /// Share of the cpu that is requested.
    pub(super) fn load(&self) -> f64 {
        let of = |list: &ResourceList| {
            i32::try_from(list.get(&Name::Cpu)).map_or(f64::from(i32::MAX), f64::from)
        };
        let all = of(&self.allocatable).max(1.0);
        1.0 - of(&self.free) / all
    }
}
