//! Every metric by its name, help and labels. The names are Karpenter's, those of the controller
//! framework that it is built on, and those of its AWS client.

use std::sync::LazyLock;

use prometheus::{CounterVec, GaugeVec, HistogramVec};

use super::options::current;
use super::{
    DURATIONS, NODE_LABELS, SummaryVec, counter, exponential, gauge, histogram, histogram_of,
    summary,
};

/// Labels of what happens to a NodeClaim that is disrupted.
const DISRUPTED: &[&str] =
    &["reason", "nodepool", "capacity_type", "consolidation_policy", "termination_mode"];
/// Labels of a work queue.
const QUEUE: &[&str] = &["controller", "name"];

metrics! {
    /// Version and commit of this build.
    BUILD_INFO: GaugeVec = gauge("karpenter_build_info", "A metric with a constant '1' value labeled by version, goversion, goarch and commit.", &["version", "goversion", "goarch", "commit"]);

    /// Objects that cannot be understood.
    UNREADABLE_OBJECTS: GaugeVec = gauge("karpenter_cluster_state_unreadable_objects", "Objects that cannot be read and are left out of all decisions, by resource.", &["resource"]);

    // NodeClaims.
    /// NodeClaims created.
    NODECLAIMS_CREATED: CounterVec = counter("karpenter_nodeclaims_created_total", "NodeClaims created, by why and for which NodePool.", &["reason", "nodepool", "min_values_relaxed"]);
    /// NodeClaims gone.
    NODECLAIMS_TERMINATED: CounterVec = counter("karpenter_nodeclaims_terminated_total", "NodeClaims whose finalizer was removed.", &["nodepool", "capacity_type", "zone"]);
    /// NodeClaims whose deletion Karpenter began.
    NODECLAIMS_DISRUPTED: CounterVec = counter("karpenter_nodeclaims_disrupted_total", "NodeClaims that were deleted, by why and how.", DISRUPTED);
    /// Pods that have to move because of that.
    PODS_DISRUPTION_INITIATED: CounterVec = counter("karpenter_pods_disruption_initiated_total", "Pods on NodeClaims that were deleted and that have to move.", DISRUPTED);
    /// Time from the termination call to the instance being gone.
    INSTANCE_TERMINATION_DURATION: HistogramVec = histogram_of("karpenter_nodeclaims_instance_termination_duration_seconds", "Time from the call that terminates an instance until it is gone, in seconds.", &["nodepool"], exponential(1.0, 2.0, 11));
    /// Time from a NodeClaim's deletion to its finalizer's removal.
    NODECLAIM_TERMINATION_DURATION: HistogramVec = histogram_of("karpenter_nodeclaims_termination_duration_seconds", "Time from a NodeClaim's deletion until its finalizer is removed, in seconds.", &["nodepool"], exponential(1.0, 2.0, 12));
    /// NodeClaims replaced by node repair.
    NODECLAIMS_UNHEALTHY: CounterVec = counter("karpenter_nodeclaims_unhealthy_disrupted_total", "NodeClaims that were deleted because their nodes were unhealthy.", &current().release.labels(&["condition", "nodepool", "capacity_type", "image_id"], "termination_mode"));

    // Nodes.
    /// Reboots by how they ended.
    NODE_REBOOTS: CounterVec = counter("karpenter_nodes_reboots_total", "Reboots of nodes, by how they ended.", &["result"]);
    /// Time from a reboot's request to its end.
    NODE_REBOOT_DURATION: HistogramVec = histogram_of("karpenter_nodes_reboot_duration_seconds", "Time from the request of a reboot until its end, in seconds.", &["result"], exponential(10.0, 2.0, 8));
    /// Time from a reboot to the node being ready again.
    NODE_REBOOT_RECOVERY: HistogramVec = histogram_of("karpenter_nodes_reboot_recovery_duration_seconds", "Time from a reboot until the node is ready again, in seconds.", &[], exponential(10.0, 2.0, 8));
    /// Nodes that registered.
    NODES_CREATED: CounterVec = counter("karpenter_nodes_created_total", "Nodes that joined the cluster.", &["nodepool", "zone"]);
    /// Nodes gone.
    NODES_TERMINATED: CounterVec = counter("karpenter_nodes_terminated_total", "Nodes whose finalizer was removed.", &["nodepool", "zone"]);
    /// Nodes drained.
    NODES_DRAINED: CounterVec = counter("karpenter_nodes_drained_total", "Nodes that were drained.", &["nodepool"]);
    /// Time from a Node's deletion to its finalizer's removal.
    NODE_TERMINATION_DURATION: SummaryVec = summary("karpenter_nodes_termination_duration_seconds", "Time from a Node's deletion until its finalizer is removed, in seconds.", &["nodepool"]);
    /// How old Nodes became.
    NODE_LIFETIME: HistogramVec = histogram("karpenter_nodes_lifetime_duration_seconds", "Age of Nodes when they were removed, in seconds.", &["nodepool"], LIFETIMES);

    // NodePools.
    /// Limits of NodePools.
    NODEPOOLS_LIMIT: GaugeVec = gauge("karpenter_nodepools_limit", "Limits of NodePools.", &["resource_type", "nodepool"]);
    /// What NodePools use.
    NODEPOOLS_USAGE: GaugeVec = gauge("karpenter_nodepools_usage", "Resources that NodePools have provisioned.", &["resource_type", "nodepool"]);
    /// What a NodePool's nodes cost per hour.
    NODEPOOLS_COST: GaugeVec = gauge("karpenter_nodepools_cost_total", "Price of all nodes of NodePools, in dollars an hour.", &["nodepool"]);
    /// Failures in adding that up.
    NODEPOOLS_COST_ERRORS: CounterVec = counter("karpenter_nodepools_cost_tracker_errors_total", "NodeClaims whose price was unknown.", &["nodepool"]);
    /// How many nodes of a pool may be disrupted.
    NODEPOOLS_ALLOWED_DISRUPTIONS: GaugeVec = gauge("karpenter_nodepools_allowed_disruptions", "Nodes of NodePools that may be disrupted now.", &["nodepool", "reason"]);
    /// How many nodes count against the budget.
    NODEPOOLS_CONSUMING_BUDGETS: GaugeVec = gauge("karpenter_nodepools_nodes_consuming_budgets", "Nodes of NodePools that use up their disruption budgets.", &["nodepool", "reason"]);

    // Pods.
    /// From creation to readiness.
    PODS_STARTUP: SummaryVec = summary("karpenter_pods_startup_duration_seconds", "Time from pods' creation until they are ready, in seconds.", &[]);
    /// From creation to a node.
    PODS_BOUND: HistogramVec = histogram("karpenter_pods_bound_duration_seconds", "Time from pods' creation until they have a node, in seconds.", &current().release.labels(&[], "dynamic_resources"), DURATIONS);
    /// From the first decision to readiness.
    PODS_PROVISIONING_STARTUP: HistogramVec = histogram("karpenter_pods_provisioning_startup_duration_seconds", "Time from pods' first being found schedulable until they are ready, in seconds.", &[], DURATIONS);
    /// From the first decision to a node.
    PODS_PROVISIONING_BOUND: HistogramVec = histogram("karpenter_pods_provisioning_bound_duration_seconds", "Time from pods' first being found schedulable until they have a node, in seconds.", &current().release.labels(&[], "dynamic_resources"), DURATIONS);
    /// From first seen to the first decision.
    SCHEDULING_DECISION: HistogramVec = histogram("karpenter_pods_scheduling_decision_duration_seconds", "Time from pods' first being seen until a decision was made about them, in seconds.", &[], DURATIONS);
    /// Calls of the eviction API.
    EVICTION_REQUESTS: CounterVec = counter("karpenter_pods_eviction_requests_total", "Answers of the eviction API.", &["code"]);
    /// Pods drained.
    PODS_DRAINED: CounterVec = counter("karpenter_pods_drained_total", "Pods that were evicted or deleted.", &["reason"]);

    // Disruption.
    /// Time of one disruption method.
    DISRUPTION_EVALUATION: HistogramVec = histogram("karpenter_voluntary_disruption_decision_evaluation_duration_seconds", "Time that a disruption method takes to decide, in seconds.", &["reason", "consolidation_type"], DURATIONS);
    /// Disruption commands started.
    DISRUPTION_DECISIONS: CounterVec = counter("karpenter_voluntary_disruption_decisions_total", "Disruption commands that were started.", &["decision", "reason", "consolidation_type"]);
    /// The same by pool.
    DISRUPTION_DECISIONS_BY_NODEPOOL: CounterVec = counter("karpenter_voluntary_disruption_decisions_by_nodepool_total", "Disruption commands that were started, by each NodePool concerned.", &["nodepool", "decision", "reason", "consolidation_type"]);
    /// Nodes that a method could disrupt.
    DISRUPTION_ELIGIBLE: GaugeVec = gauge("karpenter_voluntary_disruption_eligible_nodes", "Nodes that a disruption method could disrupt.", &["reason"]);
    /// Methods that ran out of time.
    CONSOLIDATION_TIMEOUTS: CounterVec = counter("karpenter_voluntary_disruption_consolidation_timeouts_total", "Consolidations that ran out of time.", &["consolidation_type"]);
    /// Commands that did not hold.
    DISRUPTION_FAILED_VALIDATIONS: CounterVec = counter("karpenter_voluntary_disruption_failed_validations_total", "Candidates that did not hold when they were looked at again.", &["consolidation_type"]);
    /// Commands that failed on the way.
    DISRUPTION_QUEUE_FAILURES: CounterVec = counter("karpenter_voluntary_disruption_queue_failures_total", "Disruption commands that failed after they were started.", &["decision", "reason", "consolidation_type"]);
    /// Nodes whose pods' deletion cost is being written.
    DELETION_COST_NODES: GaugeVec = gauge("karpenter_pod_deletion_cost_nodes_with_pending_annotation_writes", "Nodes with pods whose deletion cost was to be written in the last pass.", &["nodepool"]);
    /// Deletion costs written.
    DELETION_COST_WRITES: CounterVec = counter("karpenter_pod_deletion_cost_pod_annotation_writes_total", "Attempts to write pods' deletion cost, by their outcome.", &["result"]);
    /// Nodes terminated before their replacements.
    TERMINATE_FIRST: CounterVec = counter("karpenter_voluntary_disruption_terminate_first_decisions_total", "Disruption commands that terminate a node before its replacement is launched.", &["nodepool", "reason", "terminate_first_reason"]);
    /// Scores of the Balanced policy.
    CONSOLIDATION_SCORE: HistogramVec = histogram("karpenter_consolidation_score", "Scores of consolidation moves under the policy Balanced.", &["decision", "nodepool", "policy"], &[0.1, 0.25, 0.33, 0.5, 1.0, 2.0, 5.0, 10.0]);
    /// Moves that were scored.
    CONSOLIDATION_MOVES: CounterVec = counter("karpenter_consolidation_moves_total", "Consolidation moves that were judged.", &["decision", "nodepool", "policy"]);

    // The scheduler and the state.
    /// Time of one scheduling round.
    SCHEDULING_DURATION: HistogramVec = histogram("karpenter_scheduler_scheduling_duration_seconds", "Time of one scheduling round, in seconds.", &["controller"], DURATIONS);
    /// Pods still to be scheduled.
    SCHEDULER_QUEUE_DEPTH: GaugeVec = gauge("karpenter_scheduler_queue_depth", "Pods that a scheduling round has still to place.", &["controller", "scheduling_id"]);
    /// Time that the round under way has taken so far.
    SCHEDULER_UNFINISHED: GaugeVec = gauge("karpenter_scheduler_unfinished_work_seconds", "Time since the scheduling round under way began, in seconds.", &["controller", "scheduling_id"]);
    /// Pending pods that are not valid.
    IGNORED_PODS: GaugeVec = gauge("karpenter_scheduler_ignored_pods_count", "Pending pods that are left alone because they are not valid.", &[]);
    /// Pods that fit nowhere.
    UNSCHEDULABLE_PODS: GaugeVec = gauge("karpenter_scheduler_unschedulable_pods_count", "Pods that fit nowhere.", &["controller"]);
    /// Pending pods by the zone they can go to.
    PENDING_PODS_BY_ZONE: GaugeVec = gauge("karpenter_scheduler_pending_pods_by_effective_zone_count", "Pending pods by the one zone they can go to, flexible or none.", &["controller", "zone"]);
    /// 1 when the state holds everything.
    CLUSTER_STATE_SYNCED: GaugeVec = gauge("karpenter_cluster_state_synced", "1 while the cluster state holds everything, else 0.", &[]);
    /// For how long it has not.
    CLUSTER_STATE_UNSYNCED: GaugeVec = gauge("karpenter_cluster_state_unsynced_time_seconds", "Time for which the cluster state has not held everything, in seconds.", &[]);

    // The provider.
    /// Calls of the provider.
    CLOUDPROVIDER_DURATION: HistogramVec = histogram("karpenter_cloudprovider_duration_seconds", "Time of the provider's methods, in seconds.", &["controller", "method", "provider"], prometheus::DEFAULT_BUCKETS);
    /// Failed calls of the provider.
    CLOUDPROVIDER_ERRORS: CounterVec = counter("karpenter_cloudprovider_errors_total", "Errors of the provider's methods.", &current().release.labels(&["controller", "method", "provider", "error"], "nodepool"));
    /// Cores of instance types.
    INSTANCE_TYPE_CPU: GaugeVec = gauge("karpenter_cloudprovider_instance_type_cpu_cores", "Cores of instance types.", &["instance_type"]);
    /// Memory of instance types.
    INSTANCE_TYPE_MEMORY: GaugeVec = gauge("karpenter_cloudprovider_instance_type_memory_bytes", "Memory of instance types, in bytes.", &["instance_type"]);
    /// Launches that EC2 refused.
    INSTANCE_LAUNCH_FAILURES: CounterVec = counter("karpenter_cloudprovider_instance_launch_failures_total", "Offerings that EC2 did not launch.", &["zone", "zone_id", "capacity_type", "reason"]);
    /// Terminations that EC2 refused.
    INSTANCE_TERMINATION_FAILURES: CounterVec = counter("karpenter_cloudprovider_instance_termination_failures_total", "Instances that EC2 did not terminate.", &["zone", "zone_id"]);
    /// How long requests wait for others to go with them.
    BATCH_TIME: HistogramVec = histogram("karpenter_cloudprovider_batcher_batch_time_seconds", "Time for which calls were collected, in seconds.", &["batcher"], DURATIONS);
    /// How many go together.
    BATCH_SIZE: HistogramVec = histogram_of("karpenter_cloudprovider_batcher_batch_size", "Calls that were made as one.", &["batcher"], batch_sizes());
    /// 1 for features that the IAM policy does not allow.
    FEATURE_DISABLED: GaugeVec = gauge("karpenter_cloudprovider_feature_disabled", "1 when a feature is off because the IAM policy does not allow what it needs, 0 once it is allowed.", &["feature", "permission"]);
    /// Messages of the interruption queue.
    INTERRUPTION_RECEIVED: CounterVec = counter("karpenter_interruption_received_messages_total", "Messages received from the interruption queue.", &["message_type"]);
    /// Messages done with.
    INTERRUPTION_DELETED: CounterVec = counter("karpenter_interruption_deleted_messages_total", "Messages deleted from the interruption queue.", &[]);
    /// How long messages were under way.
    INTERRUPTION_LATENCY: HistogramVec = histogram("karpenter_interruption_message_queue_duration_seconds", "Time from an interruption message's making until it is handled, in seconds.", &[], DURATIONS);
    /// Instances that EC2's status checks found unhealthy.
    INTERRUPTION_UNHEALTHY: CounterVec = counter("karpenter_interruption_instance_status_unhealthy_total", "Instances that EC2's status checks found unhealthy.", &["category"]);
    /// How long user data is.
    USERDATA_BYTES: GaugeVec = gauge("karpenter_ec2nodeclasses_userdata_bytes", "Size of the user data of node classes, in bytes.", &["nodeclass"]);
    /// Requests to AWS.
    AWS_REQUESTS: CounterVec = counter("aws_sdk_go_request_total", "Requests to AWS.", &["service", "action", "code"]);
    /// Time of requests to AWS, retries included.
    AWS_REQUEST_DURATION: HistogramVec = histogram_of("aws_sdk_go_request_duration_seconds", "Time of requests to AWS with their retries, in seconds.", &["service", "action", "code"], exponential(0.01, 1.5, 20));
    /// Retries of requests to AWS.
    AWS_REQUEST_RETRIES: HistogramVec = histogram("aws_sdk_go_request_retry_count", "Retries of requests to AWS.", &["service", "action", "code"], RETRIES);
    /// Attempts of requests to AWS.
    AWS_ATTEMPTS: CounterVec = counter("aws_sdk_go_request_attempt_total", "Attempts of requests to AWS.", &["service", "action", "code"]);
    /// Time of attempts.
    AWS_ATTEMPT_DURATION: HistogramVec = histogram_of("aws_sdk_go_request_attempt_duration_seconds", "Time of attempts of requests to AWS, in seconds.", &["service", "action", "code"], exponential(0.01, 1.5, 20));

    // The framework.
    /// Requests to the API server, as Karpenter's libraries name them.
    CLIENT_GO_REQUESTS: CounterVec = counter("client_go_request_total", "Number of HTTP requests, partitioned by status code and method.", &["code", "method"]);
    /// Time of requests to the API server; watches are left out.
    CLIENT_GO_DURATION: HistogramVec = histogram_of("client_go_request_duration_seconds", "Request latency in seconds. Broken down by verb, group, version, kind, and subresource.", &["verb", "group", "version", "kind", "subresource"], exponential(0.001, 1.5, 20));
    /// Reconciles.
    RECONCILES: CounterVec = counter("controller_runtime_reconcile_total", "Total number of reconciliations per controller.", &["controller", "result"]);
    /// Failed reconciles.
    RECONCILE_ERRORS: CounterVec = counter("controller_runtime_reconcile_errors_total", "Total number of reconciliation errors per controller.", &["controller"]);
    /// Failed reconciles that are not tried again before something changes.
    TERMINAL_ERRORS: CounterVec = counter("controller_runtime_terminal_reconcile_errors_total", "Total number of terminal reconciliation errors per controller.", &["controller"]);
    /// Reconciles that panicked.
    RECONCILE_PANICS: CounterVec = counter("controller_runtime_reconcile_panics_total", "Total number of reconciliation panics per controller.", &["controller"]);
    /// Reconciles that took longer than they may; none here has such a limit.
    RECONCILE_TIMEOUTS: CounterVec = counter("controller_runtime_reconcile_timeouts_total", "Total number of reconciliation timeouts per controller.", &["controller"]);
    /// Conversions that panicked.
    CONVERSION_PANICS: CounterVec = counter("controller_runtime_conversion_webhook_panics_total", "Total number of conversion webhook panics.", &[]);
    /// Time of reconciles.
    RECONCILE_TIME: HistogramVec = histogram("controller_runtime_reconcile_time_seconds", "Length of time per reconciliation per controller.", &["controller"], RECONCILE_TIMES);
    /// Reconciles that may run side by side.
    MAX_CONCURRENT: GaugeVec = gauge("controller_runtime_max_concurrent_reconciles", "Maximum number of concurrent reconciles per controller.", &["controller"]);
    /// Reconciles that run now.
    ACTIVE_WORKERS: GaugeVec = gauge("controller_runtime_active_workers", "Number of currently used workers per controller.", &["controller"]);
    /// Names that wait.
    QUEUE_DEPTH: GaugeVec = gauge("workqueue_depth", "Current depth of workqueue by workqueue and priority.", &["controller", "name", "priority"]);
    /// Names that came.
    QUEUE_ADDS: CounterVec = counter("workqueue_adds_total", "Total number of adds handled by workqueue.", QUEUE);
    /// How long names wait.
    QUEUE_DURATION: HistogramVec = histogram("workqueue_queue_duration_seconds", "How long in seconds an item stays in workqueue before being requested.", QUEUE, QUEUE_TIMES);
    /// How long names are worked on.
    QUEUE_WORK: HistogramVec = histogram("workqueue_work_duration_seconds", "How long in seconds processing an item from workqueue takes.", QUEUE, QUEUE_TIMES);
    /// Names that are tried again.
    QUEUE_RETRIES: CounterVec = counter("workqueue_retries_total", "Total number of retries handled by workqueue.", QUEUE);
    /// For how long the names being worked on have been, together.
    QUEUE_UNFINISHED: GaugeVec = gauge("workqueue_unfinished_work_seconds", "How many seconds of work has been done that is in progress and hasn't been observed by work_duration.", QUEUE);
    /// For how long the oldest of them has been.
    QUEUE_LONGEST: GaugeVec = gauge("workqueue_longest_running_processor_seconds", "How many seconds has the longest running processor for workqueue been running.", QUEUE);
    /// Requests to the API server.
    KUBE_REQUESTS: CounterVec = counter("rest_client_requests_total", "Number of HTTP requests, partitioned by status code, method, and host.", &["code", "method", "host"]);
    /// Renewals of the lease that did not succeed at the first attempt.
    LEADER_SLOWPATH: CounterVec = counter("leader_election_slowpath_total", "Total number of slow path exercised in renewing leader leases. 'name' is the string used to identify the lease.", &["name"]);
    /// 1 while this process leads.
    LEADER: GaugeVec = gauge("leader_election_master_status", "Gauge of if the reporting system is master of the relevant lease, 0 indicates backup, 1 indicates master. 'name' is the string used to identify the lease.", &["name"]);
}

/// Buckets of Nodes' ages: 15, 30, 45 minutes; hours; days.
const LIFETIMES: &[f64] = &[
    900.0,
    1800.0,
    2700.0,
    3600.0,
    7200.0,
    14400.0,
    21600.0,
    28800.0,
    36000.0,
    43200.0,
    57600.0,
    72000.0,
    86400.0,
    172_800.0,
    259_200.0,
    432_000.0,
    864_000.0,
    1_296_000.0,
    1_728_000.0,
    2_160_000.0,
    2_592_000.0,
];
/// The framework's buckets of reconciles.
const RECONCILE_TIMES: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9,
    1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 15.0, 20.0,
    25.0, 30.0, 40.0, 50.0, 60.0,
];
/// The framework's buckets of work queues: powers of ten.
const QUEUE_TIMES: &[f64] =
    &[1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0];

/// The bounds of the AWS client's metrics of retries.
const RETRIES: &[f64] = &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0];

/// 1, 2, 4, 5, then by 5 to 30, by 10 to 100, by 25 to 300, by 50 to 600, by 100 to 1000.
fn batch_sizes() -> Vec<f64> {
    let steps = |from: u32, to: u32, by: usize| (from..=to).step_by(by).map(f64::from);
    let mut sizes = vec![1.0, 2.0, 4.0, 5.0];
    sizes.extend(steps(10, 30, 5));
    sizes.extend(steps(40, 100, 10));
    sizes.extend(steps(125, 300, 25));
    sizes.extend(steps(350, 600, 50));
    sizes.extend(steps(700, 1000, 100));
    sizes
}

/// Labels of a node's series.
pub(super) fn node_labels(more: &[&'static str]) -> Vec<&'static str> {
    let own = ["node_name", "phase", "managed"];
    NODE_LABELS
        .iter()
        .map(|(_, label)| label.as_str())
        .chain(own)
        .chain(more.iter().copied())
        .collect()
}
