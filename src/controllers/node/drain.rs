//! Which pods a draining node still waits for, and which of them leave next. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::api::taints;
use crate::scheduling::pod::PodInfo;
use crate::scheduling::taints::tolerate_all;

/// A pod that is still there this long after its deletion time is not waited for: its kubelet is
/// gone.
const STUCK: Duration = Duration::from_secs(60);

/// What a draining node does next.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Pods that the node waits for, those that are already leaving included.
    pub waiting: usize,
    /// Pods to be evicted or, where their time is up, deleted.
    pub leaving: Vec<Arc<PodInfo>>,
}

/// Plans the drain of a node that runs `pods` and has to be drained by `deadline`: every pod whose
/// time is up, and of the others those of the first tier that has any.
pub(super) fn plan(pods: &[Arc<PodInfo>], deadline: Option<Timestamp>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut tiers: BTreeMap<u8, Vec<Arc<PodInfo>>> = BTreeMap::new();
    for pod in pods.iter().filter(|p| is_drainable(p, now)) {
        plan.waiting += 1;
        if is_due(pod, deadline, now) {
            plan.leaving.push(Arc::clone(pod));
        } else {
            tiers.entry(tier(pod)).or_default().push(Arc::clone(pod));
        }
    }
    let first = tiers.into_values().next().unwrap_or_default();
    plan.leaving.extend(first.into_iter().filter(|p| p.is_active()));
    plan
}

/// Waited for while draining. A pod that tolerates the taint of a disrupted node stays by its own
/// wish, a static pod goes with its node.
pub(super) fn is_drainable(pod: &PodInfo, now: Timestamp) -> bool {
    let stuck = pod
        .deletion
        .is_some_and(|t| Duration::try_from(now.duration_since(t)).is_ok_and(|d| d > STUCK));
    !pod.terminal && !stuck && !pod.owners.node && !tolerates(pod)
}

/// May be evicted now.
pub(super) fn is_evictable(pod: &PodInfo, now: Timestamp) -> bool {
    pod.is_active() && !pod.owners.node && !tolerates(pod) && !pod.do_not_disrupt_active(now)
}

fn tolerates(pod: &PodInfo) -> bool {
    tolerate_all([&taints::disrupted()], &pod.constraints.tolerations).is_ok()
}

/// Ordinary pods first, then daemons, then critical ones.
fn tier(pod: &PodInfo) -> u8 {
    u8::from(pod.critical) * 2 + u8::from(pod.owners.daemon_set)
}

/// From when on the pod has to be deleted so that it is gone by the deadline and has its whole grace
/// period before. A pod that is being deleted but may take longer than that is due at once.
pub(super) fn due_at(pod: &PodInfo, deadline: Option<Timestamp>) -> Option<Timestamp> {
    let deadline = deadline?;
    match pod.deletion {
        Some(gone) => (gone > deadline).then_some(Timestamp::MIN),
        None => Some(deadline - SignedDuration::from_secs(i64::from(pod.grace?))),
    }
}

/// Whether the pod has to be deleted now.
pub(super) fn is_due(pod: &PodInfo, deadline: Option<Timestamp>, now: Timestamp) -> bool {
    due_at(pod, deadline).is_some_and(|at| now > at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(value: Value) -> Arc<PodInfo> {
        Arc::new(PodInfo::from_pod(&serde_json::from_value(value).unwrap()))
    }

    fn named(name: &str, spec: Value) -> Arc<PodInfo> {
        pod(json!({"metadata": {"name": name}, "spec": spec}))
    }

    fn leaving(plan: &Plan) -> Vec<&str> {
        plan.leaving.iter().map(|p| &*p.key.name).collect()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn pods_leave_tier_by_tier() {
        let daemon =
            json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u"}]);
        let critical = json!({"priorityClassName": "system-node-critical"});
        let pods = [
            pod(json!({"metadata": {"name": "cd", "ownerReferences": daemon}, "spec": critical})),
            pod(json!({"metadata": {"name": "c"}, "spec": critical})),
            pod(json!({"metadata": {"name": "d", "ownerReferences": daemon}})),
            pod(json!({"metadata": {"name": "p"}})),
        ];
        let now = Timestamp::UNIX_EPOCH;
        let order: Vec<Vec<String>> = (0..4)
            .map(|left| {
                let plan = plan(&pods[..4 - left], None, now);
                assert_eq!(plan.waiting, 4 - left);
                leaving(&plan).into_iter().map(str::to_owned).collect()
            })
            .collect();
        assert_eq!(order, [["p"], ["d"], ["c"], ["cd"]]);
    }

    #[test]
    fn a_pod_is_deleted_in_time_for_its_grace_period() {
        let pods = [
            named("long", json!({"terminationGracePeriodSeconds": 300})),
            named("short", json!({"terminationGracePeriodSeconds": 30})),
        ];
        let deadline = Some(at("2026-01-01T01:00:00Z"));
        assert_eq!(due_at(&pods[0], deadline), Some(at("2026-01-01T00:55:00Z")));
        assert!(!is_due(&pods[0], deadline, at("2026-01-01T00:54:59Z")));
        assert!(is_due(&pods[0], deadline, at("2026-01-01T00:55:01Z")));
        assert!(!is_due(&pods[1], deadline, at("2026-01-01T00:55:01Z")));
        assert!(!is_due(&pods[0], None, at("2026-01-01T00:55:01Z")));
    }

    #[test]
    fn a_pod_that_takes_longer_than_the_deadline_is_cut_short() {
        let going = pod(json!({"metadata": {"deletionTimestamp": "2026-01-01T02:00:00Z"}}));
        let now = at("2026-01-01T00:00:00Z");
        assert!(is_due(&going, Some(at("2026-01-01T01:00:00Z")), now));
        assert!(!is_due(&going, Some(at("2026-01-01T03:00:00Z")), now));
        // Otherwise it is waited for, and nothing is done to it.
        let plan = plan(&[going], None, now);
        assert_eq!((plan.waiting, plan.leaving.len()), (1, 0));
    }

    #[test]
    fn who_stays_by_right_is_not_waited_for() {
        let now = at("2026-01-01T00:00:00Z");
        let node = json!([{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u"}]);
        let tolerates = json!({"tolerations": [{"operator": "Exists"}]});
        let stuck = json!({"metadata": {"deletionTimestamp": "2025-12-31T23:58:59Z"}});
        let pods = [
            pod(json!({"metadata": {"ownerReferences": node}})),
            named("t", tolerates),
            pod(stuck),
            pod(json!({"metadata": {}, "status": {"phase": "Succeeded"}})),
        ];
        assert_eq!(plan(&pods, None, now).waiting, 0);
    }

    #[test]
    fn a_protected_pod_is_waited_for_but_not_evicted() {
        let held =
            pod(json!({"metadata": {"annotations": {"karpenter.sh/do-not-disrupt": "true"}}}));
        let now = Timestamp::UNIX_EPOCH;
        assert!(is_drainable(&held, now) && !is_evictable(&held, now));
        assert_eq!(plan(&[held], None, now).waiting, 1);
    }
}
