//! What is reported of the pods of a round: those that are left alone, and preferences that cost.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;

use super::super::Context;
use super::{events, listed_up_to};
use crate::operator::{logging, metrics};
use crate::scheduling::pod::PodInfo;
use crate::scheduling::validation::{self, Ignored};

/// Equal warnings about a pod are left out for this long.
const WARN_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Waiting pods that are left alone, and why.
pub(super) type LeftAlone = Vec<(Arc<PodInfo>, Ignored)>;

/// Logs values in pods' choice of nodes that their labels cannot have.
pub(super) fn log_unknown_values<'a>(pods: impl Iterator<Item = &'a Arc<PodInfo>>) {
    let mut seen = HashSet::new();
    // Pods of one template share what they ask for: one line for all of them.
    for pod in pods.filter(|pod| seen.insert(Arc::as_ptr(&pod.constraints))) {
        for found in validation::unknown_values(&pod.constraints) {
            tracing::error!(
                "key" = found.key,
                "valid-values" = %logging::json(&found.valid),
                "invalid-values" = %logging::json(&found.invalid),
                "please correct found invalid values, proceeding with valid values"
            );
        }
    }
}

/// Reports the pods that are left alone.
pub(super) fn report_ignored(ctx: &Context, ignored: &LeftAlone) {
    let count = u32::try_from(ignored.len()).unwrap_or(u32::MAX);
    metrics::IGNORED_PODS.with_label_values::<&str>(&[]).set(f64::from(count));
    for (pod, why) in ignored {
        tracing::debug!(
            "Pod" = %logging::obj_ns(&pod.key.namespace, &pod.key.name),
            "error" = %why,
            "ignoring pod"
        );
        if !why.opted_out {
            ctx.recorder.publish(events::failed_scheduling(pod, why));
        }
    }
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
    pub(super) fn log(&self, pods: &[Arc<PodInfo>], now: Timestamp) {
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
