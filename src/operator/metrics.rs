//! Prometheus metrics, by Karpenter's names.

use std::sync::LazyLock;
use std::time::Duration;

use prometheus::{
    CounterVec, Encoder as _, GaugeVec, HistogramOpts, HistogramVec, Opts, Registry, TextEncoder,
};

/// Buckets of durations, in seconds.
pub const DURATIONS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9,
    1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 15.0, 20.0,
    25.0, 30.0, 40.0, 50.0, 60.0, 120.0, 150.0, 300.0, 450.0, 600.0,
];

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::new);

fn counter(name: &str, help: &str, labels: &[&str]) -> CounterVec {
    let metric = CounterVec::new(Opts::new(name, help), labels);
    register(metric)
}

fn gauge(name: &str, help: &str, labels: &[&str]) -> GaugeVec {
    register(GaugeVec::new(Opts::new(name, help), labels))
}

fn histogram(name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    register(HistogramVec::new(options, labels))
}

#[allow(clippy::expect_used, reason = "names and labels are constants, checked by a test")]
fn register<M: prometheus::core::Collector + Clone + 'static>(
    metric: Result<M, prometheus::Error>,
) -> M {
    let metric = metric.expect("a metric's name and labels are well formed");
    REGISTRY.register(Box::new(metric.clone())).expect("a metric is registered once");
    metric
}

macro_rules! metrics {
    ($($(#[$doc:meta])* $id:ident: $type:ty = $make:expr;)*) => {
        $($(#[$doc])* pub static $id: LazyLock<$type> = LazyLock::new(|| $make);)*

        /// Makes every metric known, so that all are there from the start.
        fn touch_all() {
            $(LazyLock::force(&$id);)*
        }
    };
}

metrics! {
    /// Version and commit of this build.
    BUILD_INFO: GaugeVec = gauge("karpenter_build_info", "A metric with a constant '1' value labeled by version, goversion, goarch and commit.", &["version", "goversion", "goarch", "commit"]);
    /// NodeClaims created.
    NODECLAIMS_CREATED: CounterVec = counter("karpenter_nodeclaims_created_total", "Number of nodeclaims created in total by Karpenter.", &["reason", "nodepool", "min_values_relaxed"]);
    /// NodeClaims gone.
    NODECLAIMS_TERMINATED: CounterVec = counter("karpenter_nodeclaims_terminated_total", "Number of nodeclaims terminated in total by Karpenter.", &["nodepool", "capacity_type", "zone"]);
    /// NodeClaims whose deletion Karpenter began.
    NODECLAIMS_DISRUPTED: CounterVec = counter("karpenter_nodeclaims_disrupted_total", "Number of nodeclaims disrupted in total by Karpenter.", &["reason", "nodepool", "capacity_type", "consolidation_policy", "termination_mode"]);
    /// Nodes that registered.
    NODES_CREATED: CounterVec = counter("karpenter_nodes_created_total", "Number of nodes created in total by Karpenter.", &["nodepool", "zone"]);
    /// Nodes gone.
    NODES_TERMINATED: CounterVec = counter("karpenter_nodes_terminated_total", "Number of nodes terminated in total by Karpenter.", &["nodepool", "zone"]);
    /// Limits of NodePools.
    NODEPOOLS_LIMIT: GaugeVec = gauge("karpenter_nodepools_limit", "Limits specified on the nodepool.", &["resource_type", "nodepool"]);
    /// What NodePools use.
    NODEPOOLS_USAGE: GaugeVec = gauge("karpenter_nodepools_usage", "The amount of resources that have been provisioned for a nodepool.", &["resource_type", "nodepool"]);
    /// How many nodes of a pool may be disrupted.
    NODEPOOLS_ALLOWED_DISRUPTIONS: GaugeVec = gauge("karpenter_nodepools_allowed_disruptions", "The number of nodes for a given nodepool that can be concurrently disrupting at a point in time.", &["nodepool", "reason"]);
    /// Size of the last user data of node classes.
    USERDATA_BYTES: GaugeVec = gauge("karpenter_ec2nodeclasses_userdata_bytes", "Size in bytes of the rendered user data of the last launch template created for the EC2NodeClass.", &["nodeclass"]);
    /// Time of one scheduling round.
    SCHEDULING_DURATION: HistogramVec = histogram("karpenter_scheduler_scheduling_duration_seconds", "Duration of scheduling simulations used for deprovisioning and provisioning in seconds.", &["controller"], DURATIONS);
    /// Pods that fit nowhere.
    UNSCHEDULABLE_PODS: GaugeVec = gauge("karpenter_scheduler_unschedulable_pods_count", "The number of unschedulable Pods.", &["controller"]);
    /// Time of one disruption method.
    DISRUPTION_EVALUATION: HistogramVec = histogram("karpenter_voluntary_disruption_decision_evaluation_duration_seconds", "Duration of the disruption decision evaluation process in seconds.", &["reason", "consolidation_type"], DURATIONS);
    /// Disruption commands started.
    DISRUPTION_DECISIONS: CounterVec = counter("karpenter_voluntary_disruption_decisions_total", "Number of disruption decisions performed.", &["decision", "reason", "consolidation_type"]);
    /// Nodes that a method could disrupt.
    DISRUPTION_ELIGIBLE: GaugeVec = gauge("karpenter_voluntary_disruption_eligible_nodes", "Number of nodes eligible for disruption by Karpenter.", &["reason"]);
    /// Commands that did not hold.
    DISRUPTION_FAILED_VALIDATIONS: CounterVec = counter("karpenter_voluntary_disruption_failed_validations_total", "Number of candidates that were selected for disruption but failed validation.", &["consolidation_type"]);
    /// Commands that failed on the way.
    DISRUPTION_QUEUE_FAILURES: CounterVec = counter("karpenter_voluntary_disruption_queue_failures_total", "The number of times that an enqueued disruption decision failed.", &["decision", "reason", "consolidation_type"]);
    /// Nodes and NodeClaims in the state.
    CLUSTER_STATE_NODES: GaugeVec = gauge("karpenter_cluster_state_node_count", "Current count of nodes in cluster state.", &[]);
    /// 1 when the state holds everything.
    CLUSTER_STATE_SYNCED: GaugeVec = gauge("karpenter_cluster_state_synced", "Returns 1 if cluster state is synced and 0 otherwise.", &[]);
    /// Calls of the provider.
    CLOUDPROVIDER_DURATION: HistogramVec = histogram("karpenter_cloudprovider_duration_seconds", "Duration of cloud provider method calls.", &["controller", "method", "provider"], prometheus::DEFAULT_BUCKETS);
    /// Failed calls of the provider.
    CLOUDPROVIDER_ERRORS: CounterVec = counter("karpenter_cloudprovider_errors_total", "Total number of errors returned from CloudProvider calls.", &["controller", "method", "provider", "error"]);
    /// Reconciles.
    RECONCILES: CounterVec = counter("controller_runtime_reconcile_total", "Total number of reconciliations per controller.", &["controller", "result"]);
    /// Failed reconciles.
    RECONCILE_ERRORS: CounterVec = counter("controller_runtime_reconcile_errors_total", "Total number of reconciliation errors per controller.", &["controller"]);
    /// Time of reconciles.
    RECONCILE_TIME: HistogramVec = histogram("controller_runtime_reconcile_time_seconds", "Length of time per reconciliation per controller.", &["controller"], DURATIONS);
    /// 1 while this process leads.
    LEADER: GaugeVec = gauge("leader_election_master_status", "Gauge of if the reporting system is master of the relevant lease, 0 indicates backup, 1 indicates master. 'name' is the string used to identify the lease.", &["name"]);
}

/// Sets what is known at the start.
pub fn init(commit: &str) {
    touch_all();
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let version = env!("CARGO_PKG_VERSION");
    BUILD_INFO.with_label_values(&[version, "", arch, commit]).set(1.0);
}

/// Counts a finished reconcile.
pub fn reconciled(controller: &str, time: Duration, failed: bool, again: bool) {
    let result = match (failed, again) {
        (true, _) => "error",
        (false, true) => "requeue_after",
        (false, false) => "success",
    };
    RECONCILES.with_label_values(&[controller, result]).inc();
    if failed {
        RECONCILE_ERRORS.with_label_values(&[controller]).inc();
    }
    RECONCILE_TIME.with_label_values(&[controller]).observe(time.as_secs_f64());
}

/// All metrics in the text format.
#[must_use]
pub fn render() -> String {
    let mut buffer = Vec::new();
    let _ = TextEncoder::new().encode(&REGISTRY.gather(), &mut buffer);
    String::from_utf8(buffer).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_registers_and_shows() {
        init("abcdef0");
        reconciled("nodeclass", Duration::from_millis(20), true, false);
        let text = render();
        assert!(text.contains("karpenter_build_info{"));
        assert!(
            text.contains(r#"controller_runtime_reconcile_errors_total{controller="nodeclass"} 1"#)
        );
    }
}
