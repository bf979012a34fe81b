//! Metrics of status conditions and of terminations, one set of them per kind of object.

use std::sync::LazyLock;

use prometheus::{CounterVec, HistogramVec};

use super::page::Family;
use super::{counter, exponential, histogram_of, scraped};

/// Metrics of one kind.
pub struct KindMetrics {
    /// Labels of objects that the series show too, as keys of the object's labels.
    pub extra: &'static [&'static str],
    /// 1 for each condition as it is.
    pub condition_count: Family,
    /// For how long it has been so.
    pub condition_seconds: Family,
    /// Changes of conditions.
    pub transitions: CounterVec,
    /// How long the status that was left had lasted.
    pub transition_seconds: HistogramVec,
    /// For how long an object has been going.
    pub termination_current: Family,
    /// How long going took.
    pub termination_seconds: HistogramVec,
}

impl KindMetrics {
    /// `kind` is the name's part, empty for the metrics of all kinds together.
    fn new(kind: &str, extra: &'static [&'static str], fixed: &[&'static str]) -> Self {
        let own: Vec<String> = extra.iter().map(|key| super::metric_label(key)).collect();
        let prefix =
            if kind.is_empty() { "operator".to_owned() } else { format!("operator_{kind}") };
        let with = |names: &[&'static str]| -> Vec<String> {
            let fixed = fixed.iter().chain(names).map(|n| (*n).to_owned());
            fixed.chain(own.iter().cloned()).collect()
        };
        let name = |suffix: &str| format!("{prefix}_{suffix}");
        // The metrics of all kinds together never named their bounds.
        let times = || match kind {
            "" => prometheus::DEFAULT_BUCKETS.to_vec(),
            _ => exponential(0.5, 2.0, 15),
        };
        let condition = with(&["namespace", "name", "type", "status", "reason"]);
        Self {
            extra,
            condition_count: scraped(
                &name("status_condition_count"),
                "Conditions of objects as they are.",
                &refs(&condition),
            ),
            condition_seconds: scraped(
                &name("status_condition_current_status_seconds"),
                "Time for which conditions have been as they are, in seconds.",
                &refs(&condition),
            ),
            transitions: counter(
                &name("status_condition_transitions_total"),
                "Changes of conditions.",
                &refs(&with(&["type", "status", "reason"])),
            ),
            transition_seconds: histogram_of(
                &name("status_condition_transition_seconds"),
                "Time for which conditions had been as they were before they changed, in seconds.",
                &refs(&with(&["type", "status"])),
                times(),
            ),
            termination_current: scraped(
                &name("termination_current_time_seconds"),
                "Time since objects' deletion was asked for, in seconds.",
                &refs(&with(&["namespace", "name"])),
            ),
            termination_seconds: histogram_of(
                &name("termination_duration_seconds"),
                "Time from objects' deletion being asked for until they were gone, in seconds.",
                &refs(&with(&[])),
                times(),
            ),
        }
    }
}

fn refs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

/// The label keys of the owner of a NodeClaim.
const CLAIM: &[&str] = &["karpenter.k8s.aws/ec2nodeclass", "karpenter.sh/nodepool"];
const NODE: &[&str] =
    &["karpenter.k8s.aws/ec2nodeclass", "karpenter.sh/nodepool", "karpenter.sh/initialized"];

/// Metrics of NodeClaims.
pub static NODECLAIM: LazyLock<KindMetrics> =
    LazyLock::new(|| KindMetrics::new("nodeclaim", CLAIM, &[]));
/// Metrics of Nodes.
pub static NODE_STATUS: LazyLock<KindMetrics> =
    LazyLock::new(|| KindMetrics::new("node", NODE, &[]));
/// Metrics of NodePools.
pub static NODEPOOL: LazyLock<KindMetrics> =
    LazyLock::new(|| KindMetrics::new("nodepool", &[], &[]));
/// Metrics of EC2NodeClasses.
pub static EC2NODECLASS: LazyLock<KindMetrics> =
    LazyLock::new(|| KindMetrics::new("ec2nodeclass", &[], &[]));
/// Metrics of NodeClaims, NodePools and EC2NodeClasses under one name, as older dashboards read them.
pub static ANY: LazyLock<KindMetrics> =
    LazyLock::new(|| KindMetrics::new("", &[], &["group", "kind"]));

pub(super) fn touch_all() {
    for metrics in [&NODECLAIM, &NODE_STATUS, &NODEPOOL, &EC2NODECLASS, &ANY] {
        LazyLock::force(metrics);
    }
}
