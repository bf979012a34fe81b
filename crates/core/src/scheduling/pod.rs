//! Pods as the solver sees them: parsed once when they are read from the API, and compact enough to
//! keep hundreds of thousands of them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodSpec};

use super::dra::claim::{PodClaim, pod_claims};
use super::resources::{ResourceList, pod_limits, pod_requests};
use crate::api::annotations;

mod constraints;
mod sharing;

pub use constraints::Constraints;
pub use sharing::Sharing;

/// Namespace and name of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodKey {
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// The pod's name.
    pub name: Arc<str>,
}

impl PodKey {
    /// The key of that pod.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: Arc::from(namespace), name: Arc::from(name) }
    }
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A port of the node that a pod takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Address; unspecified means all.
    pub ip: String,
    /// Port number.
    pub port: i32,
}

impl HostPort {
    /// A port as a container asks for it. One address can be written in several ways, so that it is
    /// kept in its canonical form: an IPv4 address inside IPv6 as IPv4.
    #[must_use]
    pub fn new(protocol: &str, ip: &str, port: i32) -> Self {
        let ip = match ip.parse::<IpAddr>() {
            Ok(address) => address.to_canonical().to_string(),
            Err(_) => ip.to_owned(),
        };
        Self { protocol: protocol.to_owned(), ip, port }
    }

    /// Two ports conflict when protocol and number agree and the addresses overlap.
    #[must_use]
    pub fn conflicts(&self, other: &Self) -> bool {
        // As in kube-scheduler, no address means all of them.
        let open = |ip: &str| matches!(ip, "" | "0.0.0.0" | "::");
        self.protocol == other.protocol
            && self.port == other.port
            && (open(&self.ip) || open(&other.ip) || self.ip == other.ip)
    }
}

/// The kinds of owner that change how a pod is treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// A DaemonSet.
    pub daemon_set: bool,
    /// A StatefulSet.
    pub stateful_set: bool,
    /// A Node: a static pod.
    pub node: bool,
}

/// The pod's controller, or the first of its owners when none is marked as the controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Group and version, such as `apps/v1`.
    pub api_version: Arc<str>,
    /// Kind, such as `ReplicaSet`.
    pub kind: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Whether it is the pod's controller.
    pub controller: bool,
}

impl Owner {
    fn of(pod: &Pod) -> Option<Self> {
        let list = pod.metadata.owner_references.as_deref().unwrap_or_default();
        let controller = list.iter().find(|o| o.controller == Some(true));
        controller.or(list.first()).map(|owner| Self {
            api_version: Arc::from(owner.api_version.as_str()),
            kind: Arc::from(owner.kind.as_str()),
            name: Arc::from(owner.name.as_str()),
            controller: owner.controller == Some(true),
        })
    }
}

/// The pod's phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
    Unknown,
}

impl Phase {
    /// The phase as Kubernetes writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Unknown => "Unknown",
        }
    }

    fn parse(text: &str) -> Self {
        match text {
            "Pending" => Self::Pending,
            "Running" => Self::Running,
            "Succeeded" => Self::Succeeded,
            "Failed" => Self::Failed,
            _ => Self::Unknown,
        }
    }
}

/// Why Karpenter launches no node for a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotWaiting {
    /// It has a node.
    #[error("the pod has a node")]
    Bound,
    /// The pod is bound to its node by name: a DaemonSet follows nodes, and never calls for one.
    #[error("a pod of a DaemonSet does not call for new nodes")]
    OfDaemonSet,
    /// A static pod.
    #[error("a static pod runs on its own node only")]
    OfNode,
    /// kube-scheduler is evicting other pods to make room for it.
    #[error("kube-scheduler makes room for it by preemption (status.nominatedNodeName)")]
    Preempting,
    /// It has a scheduling gate, or kube-scheduler has not tried it yet.
    #[error("kube-scheduler has not found it unschedulable")]
    NotUnschedulable,
}

/// A pod, parsed.
///
/// Every round goes through the pods of all nodes. The fields that it reads come first and
/// `repr(C)` keeps their order, so that they share few cache lines.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct PodInfo {
    /// Namespace and name.
    pub key: PodKey,
    /// Labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Its scheduling constraints.
    pub constraints: Arc<Constraints>,
    /// What owns it.
    pub owners: Owners,
    /// Phase Failed or Succeeded.
    pub terminal: bool,
    /// A deletion is under way.
    pub terminating: bool,
    /// Its effective requests, one of the resource `pods` included.
    pub requests: ResourceList,
    /// Its effective limits, one of the resource `pods` included; shared between pods of one
    /// template.
    pub limits: Arc<ResourceList>,
    /// Node it is bound to.
    pub node_name: Option<Arc<str>>,
    /// Unique id.
    pub uid: Arc<str>,
    /// When it was created, in seconds.
    pub created: i64,
    /// When its containers started.
    pub started: Option<Timestamp>,
    /// Names of its PersistentVolumeClaims.
    pub claims: Vec<Arc<str>>,
    /// The value of `karpenter.sh/do-not-disrupt`.
    pub do_not_disrupt: Option<Arc<str>>,
    /// The claims for dynamic resources that it refers to; `None` for most pods.
    pub device_claims: Option<Box<[PodClaim]>>,
    /// The object that it belongs to.
    pub owner: Option<Arc<Owner>>,
    /// Why its node selector or node affinity cannot be used, if so.
    pub invalid: Option<Arc<str>>,
    /// The CapacityBuffer for which it keeps room; such a pod exists in memory only.
    pub buffer: Option<Arc<PodKey>>,
    /// When `PodScheduled` became True, in seconds.
    pub bound_at: Option<i64>,
    /// When `Ready` became True, in seconds.
    pub ready_at: Option<i64>,
    /// Priority.
    pub priority: i32,
    /// What an eviction costs beside the usual: `karpenter.sh/disruption-cost`, else
    /// `controller.kubernetes.io/pod-deletion-cost`.
    pub deletion_cost: i32,
    /// `controller.kubernetes.io/pod-deletion-cost`, by which a ReplicaSet chooses the pods to
    /// remove when it scales down.
    pub replica_cost: Option<i32>,
    /// `metadata.deletionTimestamp`. The API server sets it to the end of the grace period, not its
    /// start.
    pub deletion: Option<Timestamp>,
    /// `spec.terminationGracePeriodSeconds`.
    pub grace: Option<u32>,
    /// Its priority class is `system-cluster-critical` or `system-node-critical`.
    pub critical: bool,
    /// Phase Pending.
    pub pending: bool,
    /// kube-scheduler has said that it fits on no node.
    pub unschedulable: bool,
    /// kube-scheduler is making room for it by preemption.
    pub preempting: bool,
    /// It asks for dynamic resources.
    pub dynamic_resources: bool,
    /// `Ready` is True.
    pub ready: bool,
    /// `Ready` is False; a pod may have no such condition yet.
    pub unready: bool,
    /// Its phase.
    pub phase: Phase,
}

impl PodInfo {
    /// Parses a pod.
    #[must_use]
    pub fn from_pod(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let status = pod.status.as_ref();
        let phase = status.and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
        let annotation =
            |key: &str| meta.annotations.as_ref().and_then(|a| a.get(key)).map(String::as_str);
        let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        Self {
            key: PodKey::new(
                meta.namespace.as_deref().unwrap_or("default"),
                meta.name.as_deref().unwrap_or(""),
            ),
            uid: Arc::from(meta.uid.as_deref().unwrap_or("")),
            created: meta.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second()),
            started: status.and_then(|s| s.start_time.as_ref()).map(|t| t.0),
            labels: Arc::new(meta.labels.clone().unwrap_or_default()),
            node_name: spec.node_name.as_deref().filter(|n| !n.is_empty()).map(Arc::from),
            requests: pod_requests(spec, status),
            limits: Arc::new(pod_limits(spec)),
            constraints: Arc::new(Constraints::from_spec(spec)),
            claims: claim_names(meta.name.as_deref().unwrap_or(""), spec),
            owners: owners(pod),
            priority: spec.priority.unwrap_or(0),
            deletion_cost: disruption_cost(pod, true).unwrap_or(0),
            replica_cost: annotation(annotations::POD_DELETION_COST).and_then(|c| c.parse().ok()),
            do_not_disrupt: annotation(annotations::DO_NOT_DISRUPT).map(Arc::from),
            terminal: matches!(phase, "Failed" | "Succeeded"),
            terminating: meta.deletion_timestamp.is_some(),
            deletion: meta.deletion_timestamp.as_ref().map(|t| t.0),
            grace: spec
                .termination_grace_period_seconds
                .map(|seconds| u32::try_from(seconds).unwrap_or_default()),
            critical: matches!(
                spec.priority_class_name.as_deref(),
                Some("system-cluster-critical" | "system-node-critical")
            ),
            pending: phase == "Pending",
            unschedulable: conditions
                .iter()
                // A pod with scheduling gates has the reason `SchedulingGated` instead, and one
                // that kube-scheduler has not tried has no condition at all. Neither may cause a
                // launch.
                .any(|c| c.type_ == "PodScheduled" && c.reason.as_deref() == Some("Unschedulable")),
            // A pod with a nominated node is about to get the room of pods that are being evicted:
            // a new node would come too late and stay empty.
            preempting: status
                .and_then(|s| s.nominated_node_name.as_deref())
                .is_some_and(|n| !n.is_empty()),
            dynamic_resources: spec.resource_claims.as_ref().is_some_and(|c| !c.is_empty())
                || spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(|c| {
                    c.resources
                        .as_ref()
                        .is_some_and(|r| r.claims.as_ref().is_some_and(|claims| !claims.is_empty()))
                }),
            device_claims: Some(pod_claims(spec, status))
                .filter(|c| !c.is_empty())
                .map(Vec::into_boxed_slice),
            ready: conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"),
            unready: conditions.iter().any(|c| c.type_ == "Ready" && c.status == "False"),
            phase: Phase::parse(phase),
            owner: Owner::of(pod).map(Arc::new),
            invalid: super::validation::node_selection(spec).map(Arc::from),
            buffer: None,
            bound_at: true_since(conditions, "PodScheduled"),
            ready_at: true_since(conditions, "Ready"),
        }
    }

    /// The claims for dynamic resources that it refers to.
    #[must_use]
    pub fn device_claims(&self) -> &[PodClaim] {
        self.device_claims.as_deref().unwrap_or_default()
    }

    /// Waits for a node that Karpenter may have to launch.
    #[must_use]
    pub fn is_provisionable(&self) -> bool {
        self.waits().is_ok()
    }

    /// Whether the pod waits for a node that Karpenter may have to launch.
    ///
    /// # Errors
    /// Why it does not.
    pub fn waits(&self) -> Result<(), NotWaiting> {
        if self.node_name.is_some() {
            return Err(NotWaiting::Bound);
        }
        if self.owners.daemon_set {
            return Err(NotWaiting::OfDaemonSet);
        }
        if self.owners.node {
            return Err(NotWaiting::OfNode);
        }
        if self.preempting {
            return Err(NotWaiting::Preempting);
        }
        if self.unschedulable { Ok(()) } else { Err(NotWaiting::NotUnschedulable) }
    }

    /// Neither finished nor being deleted.
    #[must_use]
    pub fn is_active(&self) -> bool {
        !self.terminal && !self.terminating
    }

    /// Will need another node when its own goes away.
    #[must_use]
    pub fn is_reschedulable(&self) -> bool {
        // A StatefulSet creates the replacement of a pod only after the pod is gone, under the same
        // name. Without counting the terminating pod, nothing would hold room for its successor.
        (self.is_active() || (self.owners.stateful_set && self.terminating))
            && !self.owners.daemon_set
            && !self.owners.node
    }

    /// What is wrong with the do-not-disrupt annotation, which then has no effect.
    #[must_use]
    pub fn do_not_disrupt_problem(&self) -> Option<String> {
        let text = self.do_not_disrupt.as_deref().filter(|t| *t != "true")?;
        match crate::api::duration::parse_go(text) {
            Ok(limit) if limit.is_zero() => Some(format!("duration {text:?} is not positive")),
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        }
    }

    /// When the protection by a do-not-disrupt annotation with a duration ends: that long after the
    /// pod started. `None` for a pod that is protected for good, or not yet started.
    #[must_use]
    pub fn do_not_disrupt_until(&self) -> Option<Timestamp> {
        let text = self.do_not_disrupt.as_deref().filter(|t| *t != "true")?;
        let limit = crate::api::duration::parse_go(text).ok().filter(|l| !l.is_zero())?;
        self.started?.checked_add(limit).ok()
    }

    /// Whether the do-not-disrupt annotation protects the pod now.
    #[must_use]
    pub fn do_not_disrupt_active(&self, now: Timestamp) -> bool {
        match self.do_not_disrupt.as_deref() {
            None => false,
            Some("true") => true,
            Some(text) => crate::api::duration::parse_go(text).is_ok_and(|limit| {
                !limit.is_zero()
                    // A pod that has not started is protected: its time runs from the start.
                    && self.started.is_none_or(|started| {
                        std::time::Duration::try_from(now.duration_since(started))
                            .unwrap_or_default()
                            < limit
                    })
            }),
        }
    }
}

/// A cost that cannot be read, and so has no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("parsing annotation {key}, invalid value {value:?}, expected a whole number of 32 bits")]
pub struct CostError {
    key: &'static str,
    value: String,
}

/// What its annotations add to a pod's eviction cost; zero where they say nothing. The cost by
/// which a ReplicaSet chooses counts only where `replica_cost` says so.
///
/// # Errors
/// When the annotation that counts is no 32-bit number.
pub fn disruption_cost(pod: &Pod, replica_cost: bool) -> Result<i32, CostError> {
    let annotations = pod.metadata.annotations.as_ref();
    let keys = [annotations::DISRUPTION_COST, annotations::POD_DELETION_COST];
    let found = keys
        .into_iter()
        .take(1 + usize::from(replica_cost))
        .find_map(|key| Some((key, annotations?.get(key)?)));
    let Some((key, value)) = found else { return Ok(0) };
    value.parse().map_err(|_| CostError { key, value: value.clone() })
}

fn true_since(conditions: &[PodCondition], kind: &str) -> Option<i64> {
    let condition = conditions.iter().find(|c| c.type_ == kind && c.status == "True")?;
    Some(condition.last_transition_time.as_ref()?.0.as_second())
}

fn owners(pod: &Pod) -> Owners {
    let mut owners = Owners::default();
    for owner in pod.metadata.owner_references.iter().flatten() {
        match (owner.api_version.as_str(), owner.kind.as_str()) {
            // With the API version, as Karpenter compares them: other groups have kinds of the same
            // name, such as the DaemonSet of OpenKruise.
            ("apps/v1", "DaemonSet") => owners.daemon_set = true,
            ("apps/v1", "StatefulSet") => owners.stateful_set = true,
            ("v1", "Node") => owners.node = true,
            _ => {}
        }
    }
    owners
}

fn claim_names(pod_name: &str, spec: &PodSpec) -> Vec<Arc<str>> {
    spec.volumes
        .iter()
        .flatten()
        .filter_map(|volume| {
            if let Some(claim) = &volume.persistent_volume_claim {
                return Some(Arc::from(claim.claim_name.as_str()));
            }
            // The name that Kubernetes gives the claim of a generic ephemeral volume.
            volume.ephemeral.as_ref().map(|_| Arc::from(format!("{pod_name}-{}", volume.name)))
        })
        .collect()
}

#[cfg(test)]
mod tests;
