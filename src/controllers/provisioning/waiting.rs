//! The pods of a round: those that wait, those of buffers, and those whose node goes away.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;

use super::super::Context;
use super::{listed_up_to, pod_reference};
use crate::api::taints;
use crate::disruption::pdb::Limits;
use crate::operator::events::Event;
use crate::operator::{logging, metrics};
use crate::scheduling::node::StateNode;
use crate::scheduling::pod::PodInfo;
use crate::scheduling::taints::tolerate_all;
use crate::scheduling::validation::{self, Ignored};

/// Equal warnings about a pod are left out for this long.
const WARN_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Waiting pods that are left alone, and why.
pub(super) type LeftAlone = Vec<(Arc<PodInfo>, Ignored)>;

/// Waiting pods that can be placed, and those that are left alone.
pub(super) fn pending(ctx: &Context) -> (Vec<Arc<PodInfo>>, LeftAlone) {
    let volumes = ctx.cluster.volumes();
    let mut pods = Vec::new();
    let mut ignored = Vec::new();
    let mut told = HashSet::new();
    for pod in ctx.cluster.waiting_pods() {
        // Pods of one template share what they ask for: one line for all of them.
        if told.insert(Arc::as_ptr(&pod.constraints)) {
            tell_unknown_values(&pod);
        }
        match validation::waiting_pod(&pod, &volumes) {
            Ok(()) => pods.push(pod),
            Err(why) => ignored.push((pod, why)),
        }
    }
    (pods, ignored)
}

fn tell_unknown_values(pod: &PodInfo) {
    for found in validation::unknown_values(&pod.constraints) {
        tracing::error!(
            "key" = found.key,
            "valid-values" = %logging::json(&found.valid),
            "invalid-values" = %logging::json(&found.invalid),
            "please correct found invalid values, proceeding with valid values"
        );
    }
}

/// The pods that stand for the room of capacity buffers.
pub(super) fn buffers(ctx: &Context) -> Vec<Arc<PodInfo>> {
    if ctx.settings.gates.capacity_buffer { ctx.cluster.buffer_pods() } else { Vec::new() }
}

/// Tells of the pods that are left alone.
pub(super) fn tell_ignored(ctx: &Context, ignored: &LeftAlone) {
    let count = u32::try_from(ignored.len()).unwrap_or(u32::MAX);
    metrics::IGNORED_PODS.with_label_values::<&str>(&[]).set(f64::from(count));
    for (pod, why) in ignored {
        tracing::debug!(
            "Pod" = %logging::obj_ns(&pod.key.namespace, &pod.key.name),
            "error" = %why,
            "ignoring pod"
        );
        if !why.opted_out {
            let text = format!("Failed to schedule pod, {why}");
            let mut event = Event::new(pod_reference(pod), true, "FailedScheduling", text);
            event.dedupe_for = Duration::from_secs(300);
            ctx.recorder.publish(event);
        }
    }
}

/// Pods that will lose their node and can move now.
pub(super) fn leaving(ctx: &Context, nodes: &[StateNode]) -> Vec<Arc<PodInfo>> {
    let now = ctx.clock.now();
    let limits = Limits::new(&ctx.cluster.pdbs());
    nodes
        .iter()
        .filter(|n| n.deleting())
        .flat_map(|n| &n.pods)
        .filter(|p| moves_now(p, &limits, now) && !ctx.cluster.is_promised(&p.key))
        .cloned()
        .collect()
}

/// Needs another node, and neither annotation nor budgets keep it where it is for good.
fn moves_now(pod: &PodInfo, limits: &Limits, now: Timestamp) -> bool {
    if !pod.is_reschedulable() || (pod.is_active() && pod.do_not_disrupt_active(now)) {
        return false;
    }
    let evictable = pod.is_active()
        && !pod.owners.node
        && tolerate_all([&taints::disrupted()], &pod.constraints.tolerations).is_err();
    !evictable || limits.check_forever(pod).is_ok()
}

/// What was warned about a pod last.
#[derive(Clone, Copy, PartialEq)]
enum Warned {
    AntiAffinity,
    Spread,
}

/// Warns of preferences that may keep nodes from being consolidated, once a pod.
#[derive(Default)]
pub(super) struct Warnings {
    seen: Mutex<HashMap<Arc<str>, (Warned, Timestamp)>>,
}

impl Warnings {
    pub(super) fn tell(&self, pods: &[Arc<PodInfo>], now: Timestamp) {
        let soft = |p: &PodInfo| {
            p.constraints.spread.iter().any(|s| s.when_unsatisfiable == "ScheduleAnyway")
        };
        let anti = self.new_ones(pods, Warned::AntiAffinity, now, |p| {
            !p.constraints.preferred_anti_affinity.is_empty()
        });
        if !anti.is_empty() {
            tracing::info!(
                "pods" = listed_up_to(10, anti.iter().map(|p| &p.key)),
                "pod(s) have a preferred Anti-Affinity which can prevent consolidation"
            );
        }
        let spread = self.new_ones(pods, Warned::Spread, now, soft);
        if !spread.is_empty() {
            tracing::info!(
                "pods" = listed_up_to(10, spread.iter().map(|p| &p.key)),
                "pod(s) have a preferred TopologySpreadConstraint which can prevent consolidation"
            );
        }
    }

    fn new_ones<'a>(
        &self,
        pods: &'a [Arc<PodInfo>],
        kind: Warned,
        now: Timestamp,
        concerned: impl Fn(&PodInfo) -> bool,
    ) -> Vec<&'a Arc<PodInfo>> {
        let mut seen = self.seen.lock();
        seen.retain(|_, (_, until)| *until > now);
        pods.iter()
            .filter(|p| p.buffer.is_none() && concerned(p))
            .filter(|p| {
                let known = seen.get(&p.uid).is_some_and(|(k, _)| *k == kind);
                if !known {
                    seen.insert(Arc::clone(&p.uid), (kind, now + WARN_EVERY));
                }
                !known
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(extra: Value) -> PodInfo {
        let mut value = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u",
            "labels": {"app": "a"}}, "spec": {"containers": [], "nodeName": "x"},
            "status": {"phase": "Running"}});
        for (part, fields) in extra.as_object().unwrap() {
            let fields = fields.as_object().unwrap().clone();
            value[part].as_object_mut().unwrap().extend(fields);
        }
        PodInfo::from_pod(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn pods_that_may_not_move_stay() {
        let now = Timestamp::UNIX_EPOCH;
        let none = Limits::new(&[]);
        assert!(moves_now(&pod(json!({})), &none, now));
        let kept = json!({"metadata": {"annotations": {"karpenter.sh/do-not-disrupt": "true"}}});
        assert!(!moves_now(&pod(kept), &none, now));
        let pdb = json!({"metadata": {"name": "b", "namespace": "n"},
            "spec": {"selector": {"matchLabels": {"app": "a"}}, "maxUnavailable": 0}});
        let blocked = Limits::new(&[Arc::new(serde_json::from_value(pdb).unwrap())]);
        assert!(!moves_now(&pod(json!({})), &blocked, now));
        let tolerant = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        assert!(moves_now(&pod(tolerant), &blocked, now));
        assert!(!moves_now(&pod(json!({"status": {"phase": "Succeeded"}})), &none, now));
    }

    #[test]
    fn a_pod_is_warned_about_once() {
        let warnings = Warnings::default();
        let spread = json!({"spec": {"topologySpreadConstraints": [{"maxSkew": 1,
            "topologyKey": "z", "whenUnsatisfiable": "ScheduleAnyway"}]}});
        let pods = [Arc::new(pod(spread))];
        let find = |at: Timestamp| {
            warnings.new_ones(&pods, Warned::Spread, at, |p| !p.constraints.spread.is_empty()).len()
        };
        assert_eq!(find(Timestamp::UNIX_EPOCH), 1);
        assert_eq!(find(Timestamp::UNIX_EPOCH), 0);
        assert_eq!(find(Timestamp::UNIX_EPOCH + WARN_EVERY), 1);
    }
}
