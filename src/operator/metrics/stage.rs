//! How stable Karpenter 1.15 says that its metrics are.

use std::fmt;

/// A stage of stability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// May change or go in any release.
    Alpha,
    /// May change, with a notice.
    Beta,
    /// Stays as it is.
    Ga,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alpha => "alpha",
            Self::Beta => "beta",
            Self::Ga => "GA",
        })
    }
}

impl Stage {
    /// The stage of a metric; nothing for those of the frameworks, and for those that only this
    /// project has.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        // Metrics of conditions and terminations, one set per kind.
        if GA.contains(&name) || name.starts_with("operator_") {
            return Some(Self::Ga);
        }
        let beta = BETA.contains(&name).then_some(Self::Beta);
        beta.or_else(|| ALPHA.contains(&name).then_some(Self::Alpha))
    }
}

const GA: &[&str] = &[
    "karpenter_build_info",
    "karpenter_cluster_state_node_count",
    "karpenter_cluster_state_synced",
    "karpenter_cluster_state_unsynced_time_seconds",
    "karpenter_interruption_deleted_messages_total",
    "karpenter_interruption_instance_status_unhealthy_total",
    "karpenter_interruption_message_queue_duration_seconds",
    "karpenter_interruption_received_messages_total",
    "karpenter_nodeclaims_created_total",
    "karpenter_nodeclaims_terminated_total",
    "karpenter_nodepools_allowed_disruptions",
    "karpenter_nodepools_limit",
    "karpenter_nodepools_usage",
    "karpenter_nodes_created_total",
    "karpenter_nodes_terminated_total",
    "karpenter_pods_startup_duration_seconds",
    "karpenter_scheduler_scheduling_duration_seconds",
    "karpenter_voluntary_disruption_decisions_total",
];

const BETA: &[&str] = &[
    "karpenter_cloudprovider_duration_seconds",
    "karpenter_cloudprovider_errors_total",
    "karpenter_cloudprovider_instance_launch_failures_total",
    "karpenter_cloudprovider_instance_termination_failures_total",
    "karpenter_cloudprovider_instance_type_cpu_cores",
    "karpenter_cloudprovider_instance_type_memory_bytes",
    "karpenter_cloudprovider_instance_type_offering_available",
    "karpenter_cloudprovider_instance_type_offering_price_estimate",
    "karpenter_nodeclaims_instance_termination_duration_seconds",
    "karpenter_nodeclaims_termination_duration_seconds",
    "karpenter_nodes_allocatable",
    "karpenter_nodes_reboot_duration_seconds",
    "karpenter_nodes_reboot_recovery_duration_seconds",
    "karpenter_nodes_reboots_total",
    "karpenter_nodes_system_overhead",
    "karpenter_nodes_termination_duration_seconds",
    "karpenter_nodes_total_daemon_limits",
    "karpenter_nodes_total_daemon_requests",
    "karpenter_nodes_total_pod_limits",
    "karpenter_nodes_total_pod_requests",
    "karpenter_pods_state",
    "karpenter_scheduler_queue_depth",
    "karpenter_voluntary_disruption_consolidation_timeouts_total",
    "karpenter_voluntary_disruption_decision_evaluation_duration_seconds",
    "karpenter_voluntary_disruption_eligible_nodes",
    "karpenter_voluntary_disruption_queue_failures_total",
];

const ALPHA: &[&str] = &[
    "karpenter_cluster_utilization_percent",
    "karpenter_consolidation_moves_total",
    "karpenter_consolidation_score",
    "karpenter_ec2nodeclasses_userdata_bytes",
    "karpenter_nodeclaims_disrupted_total",
    "karpenter_nodeclaims_unhealthy_disrupted_total",
    "karpenter_nodepools_cost_total",
    "karpenter_nodepools_cost_tracker_errors_total",
    "karpenter_nodepools_nodes_consuming_budgets",
    "karpenter_nodes_current_lifetime_seconds",
    "karpenter_nodes_drained_total",
    "karpenter_nodes_lifetime_duration_seconds",
    "karpenter_pod_deletion_cost_nodes_with_pending_annotation_writes",
    "karpenter_pod_deletion_cost_pod_annotation_writes_total",
    "karpenter_pods_bound_duration_seconds",
    "karpenter_pods_disruption_initiated_total",
    "karpenter_pods_drained_total",
    "karpenter_pods_eviction_requests_total",
    "karpenter_pods_provisioning_bound_duration_seconds",
    "karpenter_pods_provisioning_scheduling_undecided_time_seconds",
    "karpenter_pods_provisioning_startup_duration_seconds",
    "karpenter_pods_provisioning_unbound_time_seconds",
    "karpenter_pods_provisioning_unstarted_time_seconds",
    "karpenter_pods_scheduling_decision_duration_seconds",
    "karpenter_pods_unbound_time_seconds",
    "karpenter_pods_unstarted_time_seconds",
    "karpenter_scheduler_ignored_pods_count",
    "karpenter_scheduler_pending_pods_by_effective_zone_count",
    "karpenter_scheduler_unfinished_work_seconds",
    "karpenter_scheduler_unschedulable_pods_count",
    "karpenter_voluntary_disruption_decisions_by_nodepool_total",
    "karpenter_voluntary_disruption_failed_validations_total",
    "karpenter_voluntary_disruption_terminate_first_decisions_total",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::metrics::catalog;

    #[test]
    fn every_metric_with_a_stage_is_there_and_has_one_stage() {
        let all = [GA, BETA, ALPHA].concat();
        let known: Vec<String> = catalog().into_iter().map(|d| d.name).collect();
        for name in &all {
            assert!(known.iter().any(|k| k == name), "{name}");
            assert_eq!(all.iter().filter(|other| *other == name).count(), 1, "{name}");
        }
    }

    #[test]
    fn metrics_of_karpenter_without_a_stage_are_those_of_its_batcher() {
        let without: Vec<String> = catalog()
            .into_iter()
            .map(|d| d.name)
            .filter(|n| n.starts_with("karpenter_") && Stage::of(n).is_none())
            .filter(|n| !crate::operator::metrics::tests::OWN.contains(&n.as_str()))
            .collect();
        assert_eq!(
            without,
            [
                "karpenter_cloudprovider_batcher_batch_size",
                "karpenter_cloudprovider_batcher_batch_time_seconds"
            ]
        );
    }
}
