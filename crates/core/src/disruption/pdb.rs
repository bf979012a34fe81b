//! PodDisruptionBudgets, as far as they decide whether a pod could be evicted now.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::{Selector, SelectorExt as _};

use crate::api::taints;
use crate::scheduling::pod::PodInfo;
use crate::scheduling::taints::tolerate_all;

/// Parsed once for a whole decision.
pub struct Limits {
    items: Vec<Item>,
}

struct Item {
    key: String,
    namespace: String,
    selector: Option<Selector>,
    always_allow: bool,
    used_up: bool,
    fully_blocking: bool,
}

/// Why a pod cannot be evicted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Blocked {
    /// One budget allows no disruption now.
    #[error("pdb prevents pod evictions (PodDisruptionBudget={0})")]
    UsedUp(String),
    /// The eviction API refuses pods with several budgets.
    #[error("eviction does not support multiple PDBs (PodDisruptionBudgets={0})")]
    Several(String),
}

impl Limits {
    /// Parses the budgets.
    #[must_use]
    pub fn new(pdbs: &[Arc<PodDisruptionBudget>]) -> Self {
        Self { items: pdbs.iter().map(|p| Item::new(p)).collect() }
    }

    /// Why the pod cannot be evicted now, if so.
    ///
    /// # Errors
    /// When a budget stands against it.
    pub fn check(&self, pod: &PodInfo) -> Result<(), Blocked> {
        self.judge(pod, |item| item.used_up)
    }

    /// Whether the pod needs another node when its own goes, and nothing keeps it where it is for
    /// good: neither its annotation nor a budget that forbids every eviction.
    #[must_use]
    pub fn moves(&self, pod: &PodInfo, now: Timestamp) -> bool {
        if !pod.is_reschedulable() || (pod.is_active() && pod.do_not_disrupt_active(now)) {
            return false;
        }
        !is_evictable(pod) || self.check_forever(pod).is_ok()
    }

    /// Why the pod can never be evicted, if so.
    ///
    /// # Errors
    /// When a budget forbids every eviction.
    pub fn check_forever(&self, pod: &PodInfo) -> Result<(), Blocked> {
        self.judge(pod, |item| item.fully_blocking)
    }

    fn judge(&self, pod: &PodInfo, blocks: impl Fn(&Item) -> bool) -> Result<(), Blocked> {
        let mut matching = self.items.iter().filter(|i| {
            i.namespace == *pod.key.namespace
                && i.selector.as_ref().is_some_and(|s| s.matches(&*pod.labels))
        });
        let Some(first) = matching.next() else { return Ok(()) };
        let others: Vec<&str> = matching.map(|i| i.key.as_str()).collect();
        if !others.is_empty() {
            let mut keys = vec![first.key.as_str()];
            keys.extend(others);
            return Err(Blocked::Several(keys.join(", ")));
        }
        if first.always_allow && pod.unready {
            return Ok(());
        }
        if blocks(first) { Err(Blocked::UsedUp(first.key.clone())) } else { Ok(()) }
    }
}

/// Whether draining asks the eviction API for the pod: budgets bear on no other pods.
#[must_use]
pub fn is_evictable(pod: &PodInfo) -> bool {
    pod.is_active()
        && !pod.owners.node
        && tolerate_all([&taints::disrupted()], &pod.constraints.tolerations).is_err()
}

impl Item {
    fn new(pdb: &PodDisruptionBudget) -> Self {
        let namespace = pdb.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let name = pdb.metadata.name.clone().unwrap_or_default();
        let spec = pdb.spec.clone().unwrap_or_default();
        let is = |value: &Option<IntOrString>, number: Option<i32>, text: &str| match value {
            Some(IntOrString::Int(n)) => Some(*n) == number,
            Some(IntOrString::String(s)) => s == text,
            None => false,
        };
        // With so many pods no eviction leaves enough of them, however healthy all are: an integer
        // `minAvailable` that equals the replicas, or a percentage that rounds up to all.
        let never_satisfied = spec.min_available.is_some()
            && pdb
                .status
                .as_ref()
                .is_some_and(|s| s.expected_pods > Some(0) && s.desired_healthy >= s.expected_pods);
        Self {
            key: format!("{namespace}/{name}"),
            selector: spec.selector.and_then(|s| Selector::try_from(s).ok()),
            always_allow: spec.unhealthy_pod_eviction_policy.as_deref() == Some("AlwaysAllow"),
            used_up: pdb.status.as_ref().is_none_or(|s| s.disruptions_allowed.unwrap_or(0) == 0),
            fully_blocking: is(&spec.max_unavailable, Some(0), "0%")
                || is(&spec.min_available, None, "100%")
                || never_satisfied,
            namespace,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pdb(name: &str, allowed: i32, extra: serde_json::Value) -> Arc<PodDisruptionBudget> {
        let mut spec = json!({"selector": {"matchLabels": {"app": "a"}}});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n"},
                "spec": spec, "status": {"disruptionsAllowed": allowed, "currentHealthy": 1,
                "desiredHealthy": 1, "expectedPods": 1}}))
            .unwrap(),
        )
    }

    fn pod(labels: serde_json::Value) -> PodInfo {
        PodInfo::from_pod(
            &serde_json::from_value(
                json!({"metadata": {"name": "p", "namespace": "n", "labels": labels}}),
            )
            .unwrap(),
        )
    }

    #[test]
    fn a_used_up_budget_blocks_its_pods() {
        let web = pod(json!({"app": "a"}));
        let limits = Limits::new(&[pdb("one", 0, json!({}))]);
        assert_eq!(limits.check(&web), Err(Blocked::UsedUp("n/one".into())));
        assert_eq!(limits.check(&pod(json!({"app": "b"}))), Ok(()));
        assert_eq!(limits.check_forever(&web), Ok(()));
        let open = Limits::new(&[pdb("one", 1, json!({}))]);
        assert_eq!(open.check(&web), Ok(()));
        let two = Limits::new(&[pdb("one", 1, json!({})), pdb("two", 1, json!({}))]);
        assert!(matches!(two.check(&web), Err(Blocked::Several(_))));
        let never = Limits::new(&[pdb("one", 1, json!({"maxUnavailable": 0}))]);
        assert!(never.check_forever(&web).is_err());
    }

    #[test]
    fn always_allow_frees_only_pods_that_say_that_they_are_not_ready() {
        let limits =
            Limits::new(&[pdb("one", 0, json!({"unhealthyPodEvictionPolicy": "AlwaysAllow"}))]);
        let with = |status: serde_json::Value| {
            let pod = json!({"metadata": {"name": "p", "namespace": "n", "labels": {"app": "a"}},
                "status": {"phase": "Running", "conditions": status}});
            limits.check(&PodInfo::from_pod(&serde_json::from_value(pod).unwrap()))
        };
        assert!(with(json!([{"type": "Ready", "status": "False"}])).is_ok());
        assert!(with(json!([{"type": "Ready", "status": "True"}])).is_err());
        assert!(with(json!([])).is_err(), "a pod without the condition stays");
    }

    #[test]
    fn a_budget_that_no_eviction_can_satisfy_blocks_for_good() {
        let web = pod(json!({"app": "a"}));
        let of = |spec: serde_json::Value, desired: i32, expected: i32| {
            let mut item = (*pdb("one", 0, spec)).clone();
            let status = item.status.as_mut().unwrap();
            (status.desired_healthy, status.expected_pods) = (Some(desired), Some(expected));
            Limits::new(&[Arc::new(item)]).check_forever(&web)
        };
        assert!(of(json!({"minAvailable": 1}), 1, 1).is_err());
        assert!(of(json!({"minAvailable": 3}), 3, 2).is_err());
        assert!(of(json!({"minAvailable": "60%"}), 2, 2).is_err(), "rounded up to all");
        assert_eq!(of(json!({"minAvailable": 1}), 1, 2), Ok(()));
        assert_eq!(of(json!({"minAvailable": 1}), 1, 0), Ok(()), "nobody has counted yet");
        assert_eq!(of(json!({"maxUnavailable": 1}), 1, 2), Ok(()));
    }
}
