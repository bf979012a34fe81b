//! Which metrics are served, how detailed they are, and which release's labels they have.

use std::sync::OnceLock;

/// How much is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The metrics that alerts need. No series depends on the number of objects.
    Minimal,
    /// Everything but what has series per pod, per node or per instance type. Gauges of pods and
    /// nodes are added up by NodePool, zone, architecture and capacity type.
    Standard,
    /// Everything, as Karpenter has it.
    #[default]
    Full,
}

impl Level {
    /// The words of the setting.
    pub const WORDS: &'static [&'static str] = &["full", "standard", "minimal"];

    /// Reads the setting; `None` for an unknown word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "full" => Some(Self::Full),
            "standard" => Some(Self::Standard),
            "minimal" => Some(Self::Minimal),
            _ => None,
        }
    }
}

/// The release of Karpenter whose labels are served, where releases differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Release {
    #[default]
    V1_14,
    V1_15,
}

impl Release {
    /// The words of the setting.
    pub const WORDS: &'static [&'static str] = &["1.14", "1.15"];

    /// Reads the setting; `None` for an unknown word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "1.14" => Some(Self::V1_14),
            "1.15" => Some(Self::V1_15),
            _ => None,
        }
    }

    /// The labels of a metric that 1.15 gave one more.
    pub(super) fn labels(
        self,
        common: &[&'static str],
        since_1_15: &'static str,
    ) -> Vec<&'static str> {
        let added = (self == Self::V1_15).then_some(since_1_15);
        common.iter().copied().chain(added).collect()
    }

    /// The label `consolidation_type` of `karpenter_voluntary_disruption_queue_failures_total`: up to
    /// 1.14 it has the decision.
    #[must_use]
    pub fn failure_type<'a>(self, decision: &'a str, kind: &'a str) -> &'a str {
        match self {
            Self::V1_14 => decision,
            Self::V1_15 => kind,
        }
    }

    /// A disruption reason as `karpenter_nodepools_allowed_disruptions` and
    /// `karpenter_nodepools_nodes_consuming_budgets` show it.
    #[must_use]
    pub fn budget_reason(self, reason: &str) -> String {
        match self {
            Self::V1_14 => reason.to_owned(),
            Self::V1_15 => reason.to_lowercase(),
        }
    }
}

/// The settings of the metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// How much is served.
    pub level: Level,
    /// Names that are not served; `*` stands for any characters.
    pub drop: Vec<String>,
    /// Whose labels are served.
    pub release: Release,
}

static OPTIONS: OnceLock<Options> = OnceLock::new();

/// Sets the options of this process. Only the first call counts, and only before the first metric
/// is written: the labels of a metric cannot change.
pub(super) fn set(options: Options) {
    let _ = OPTIONS.set(options);
}

/// The options of this process; the defaults until they are set.
pub(super) fn current() -> &'static Options {
    // All metrics with Karpenter 1.14's labels: dashboards made for Karpenter work without any
    // setting.
    static DEFAULT: Options =
        Options { level: Level::Full, drop: Vec::new(), release: Release::V1_14 };
    OPTIONS.get().unwrap_or(&DEFAULT)
}

impl Options {
    /// Whether a metric of that name is served.
    #[must_use]
    pub fn serves(&self, name: &str) -> bool {
        least(name) <= self.level && !self.drop.iter().any(|pattern| matches(pattern, name))
    }

    /// Patterns of names to drop that match none of these names.
    pub(super) fn idle_patterns<'a>(&'a self, names: &[&str]) -> Vec<&'a str> {
        let idle = |pattern: &&String| !names.iter().any(|name| matches(pattern, name));
        self.drop.iter().filter(idle).map(String::as_str).collect()
    }
}

/// Whether a name matches a pattern in which `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(start) else { return false };
    // The last `*` stands for the longest part, so only the end has to match.
    if !rest.contains('*') {
        return left.ends_with(rest);
    }
    loop {
        if matches(rest, left) {
            return true;
        }
        let mut letters = left.chars();
        if letters.next().is_none() {
            return false;
        }
        left = letters.as_str();
    }
}

/// The lowest level at which a metric is served.
fn least(name: &str) -> Level {
    if MINIMAL.contains(&name) {
        Level::Minimal
    } else if FULL.contains(&name) {
        Level::Full
    } else {
        Level::Standard
    }
}

/// What is served at every level: metrics that Karpenter calls stable and that have no series per
/// object, and those that alerts on the controller's health need.
const MINIMAL: &[&str] = &[
    "aws_sdk_go_request_total",
    "controller_runtime_reconcile_errors_total",
    "controller_runtime_reconcile_panics_total",
    "controller_runtime_reconcile_total",
    "karpenter_build_info",
    "karpenter_cloudprovider_errors_total",
    "karpenter_cloudprovider_feature_disabled",
    "karpenter_cloudprovider_instance_launch_failures_total",
    "karpenter_cluster_state_node_count",
    "karpenter_cluster_state_synced",
    "karpenter_cluster_state_unsynced_time_seconds",
    "karpenter_interruption_received_messages_total",
    "karpenter_nodeclaims_created_total",
    "karpenter_nodeclaims_disrupted_total",
    "karpenter_nodeclaims_terminated_total",
    "karpenter_nodepools_allowed_disruptions",
    "karpenter_nodepools_cost_total",
    "karpenter_nodepools_limit",
    "karpenter_nodepools_usage",
    "karpenter_nodes_created_total",
    "karpenter_nodes_terminated_total",
    "karpenter_pods_startup_duration_seconds",
    "karpenter_scheduler_unschedulable_pods_count",
    "karpenter_voluntary_disruption_decisions_total",
    "leader_election_master_status",
    "operator_ec2nodeclass_status_condition_count",
    "operator_nodepool_status_condition_count",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "workqueue_depth",
];

/// What has series per instance type, or values per object that cannot be added up.
const FULL: &[&str] = &[
    "karpenter_cloudprovider_instance_type_cpu_cores",
    "karpenter_cloudprovider_instance_type_memory_bytes",
    "karpenter_cloudprovider_instance_type_offering_available",
    "karpenter_cloudprovider_instance_type_offering_price_estimate",
    "karpenter_nodes_current_lifetime_seconds",
    "karpenter_pods_provisioning_scheduling_undecided_time_seconds",
    "karpenter_pods_provisioning_unbound_time_seconds",
    "karpenter_pods_provisioning_unstarted_time_seconds",
    "karpenter_pods_unbound_time_seconds",
    "karpenter_pods_unstarted_time_seconds",
    "operator_node_status_condition_current_status_seconds",
    "operator_node_termination_current_time_seconds",
    "operator_nodeclaim_status_condition_current_status_seconds",
    "operator_nodeclaim_termination_current_time_seconds",
    "operator_status_condition_count",
    "operator_status_condition_current_status_seconds",
    "operator_termination_current_time_seconds",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_page_lists_the_metrics_of_each_level() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/src/reference/metrics.md");
        let text = std::fs::read_to_string(page).unwrap();
        for (start, names) in
            [("\nServed at every level:\n", MINIMAL), ("\nServed at `full` only:\n", FULL)]
        {
            let paragraph = text.split(start).nth(1).unwrap().split("\n\n").next().unwrap();
            let listed: Vec<&str> = paragraph.split('`').skip(1).step_by(2).collect();
            assert_eq!(listed, names, "{start}");
        }
    }

    #[test]
    fn every_metric_that_a_level_names_is_there() {
        let catalog = super::super::catalog();
        for name in MINIMAL.iter().chain(FULL) {
            assert!(catalog.iter().any(|d| d.name == *name), "no metric {name}");
        }
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        assert!(matches("karpenter_pods_state", "karpenter_pods_state"));
        assert!(!matches("karpenter_pods", "karpenter_pods_state"));
        assert!(matches("karpenter_pods_*", "karpenter_pods_state"));
        assert!(matches("*_seconds", "workqueue_queue_duration_seconds"));
        assert!(matches("operator_*_condition_*", "operator_node_status_condition_count"));
        assert!(!matches("operator_*_condition_*x", "operator_node_status_condition_count"));
        assert!(matches("*", "anything"));
        assert!(!matches("a*a", "a"));
    }

    #[test]
    fn a_dropped_name_and_a_name_above_the_level_are_not_served() {
        let drop = vec!["workqueue_*".to_owned(), "karpenter_build_inf".to_owned()];
        let options = Options { level: Level::Standard, drop, ..Options::default() };
        assert!(!options.serves("workqueue_depth"));
        assert!(options.serves("karpenter_pods_state"));
        assert!(!options.serves("karpenter_pods_unbound_time_seconds"));
        assert!(options.serves("karpenter_build_info"));
        assert_eq!(
            options.idle_patterns(&["workqueue_depth", "karpenter_build_info"]),
            ["karpenter_build_inf"]
        );
        let minimal = Options { level: Level::Minimal, ..Options::default() };
        assert!(minimal.serves("karpenter_nodes_created_total"));
        assert!(!minimal.serves("karpenter_pods_state"));
    }

    #[test]
    fn a_release_has_its_labels() {
        assert_eq!(Release::V1_14.labels(&["error"], "nodepool"), ["error"]);
        assert_eq!(Release::V1_15.labels(&["error"], "nodepool"), ["error", "nodepool"]);
        assert_eq!(Release::V1_14.budget_reason("Drifted"), "Drifted");
        assert_eq!(Release::V1_15.budget_reason("Drifted"), "drifted");
        assert_eq!(Release::V1_14.failure_type("replace", "single"), "replace");
        assert_eq!(Release::V1_15.failure_type("replace", "single"), "single");
    }
}
