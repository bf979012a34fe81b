//! What a world without AWS, without a process of its own and without other replicas cannot show, and
//! the tests that show it.

use std::path::Path;

/// Metrics by their names' beginnings: the file of the test, and what it has to contain.
const METRICS: &[(&str, &str, &str)] = &[
    ("aws_sdk_go_request", "src/cloud/aws/instance/launch/tests.rs", "aws_sdk_go_request"),
    ("client_go_request", "src/operator/client.rs", "client_go_request"),
    (
        "controller_runtime_conversion_webhook_panics_total",
        "src/operator/server.rs",
        "CONVERSION_PANICS",
    ),
    ("controller_runtime_reconcile_panics_total", "src/controllers/runner.rs", "RECONCILE_PANICS"),
    (
        "controller_runtime_terminal_reconcile_errors_total",
        "src/controllers/nodeclass.rs",
        "TERMINAL_ERRORS",
    ),
    (
        "karpenter_cloudprovider_batcher_",
        "src/cloud/aws/batcher.rs",
        "karpenter_cloudprovider_batcher_",
    ),
    (
        "karpenter_cloudprovider_instance_launch_failures_total",
        "src/cloud/aws/instance/answer/tests.rs",
        "INSTANCE_LAUNCH_FAILURES",
    ),
    (
        "karpenter_cloudprovider_instance_termination_failures_total",
        "src/cloud/aws/instance/launch/tests.rs",
        "instance_termination_failures_total",
    ),
    (
        "karpenter_cloudprovider_instance_type_cpu_cores",
        "src/cloud/aws/instancetype/tests.rs",
        "instance_type_cpu_cores",
    ),
    (
        "karpenter_cloudprovider_instance_type_memory_bytes",
        "src/cloud/aws/instancetype/tests.rs",
        "instance_type_memory_bytes",
    ),
    (
        "karpenter_cloudprovider_instance_type_offering_",
        "src/controllers/aws/offerings.rs",
        "instance_type_offering_price_estimate",
    ),
    // The state of the model world is synced at once.
    (
        "karpenter_cluster_state_unsynced_time_seconds",
        "src/controllers/provisioning.rs",
        "the_time_without_a_synced_state_is_shown",
    ),
    (
        "karpenter_ec2nodeclasses_userdata_bytes",
        "src/cloud/aws/instance/launch/tests.rs",
        "userdata_bytes",
    ),
    ("karpenter_interruption_", "tests/e2e/ec2.rs", "karpenter_interruption_"),
    (
        "karpenter_voluntary_disruption_consolidation_timeouts_total",
        "src/controllers/disruption/record.rs",
        "CONSOLIDATION_TIMEOUTS",
    ),
    // All capacity of the model world's nodes is allocatable.
    (
        "karpenter_nodes_system_overhead",
        "src/controllers/state_metrics.rs",
        "karpenter_nodes_system_overhead",
    ),
    // A round of the model world takes no time.
    ("karpenter_scheduler_queue_depth", "src/controllers/provisioning.rs", "SCHEDULER_QUEUE_DEPTH"),
    (
        "karpenter_scheduler_unfinished_work_seconds",
        "src/controllers/provisioning.rs",
        "SCHEDULER_UNFINISHED",
    ),
    ("leader_election_", "src/operator/leader.rs", "LEADER_SLOWPATH"),
    ("workqueue_depth", "src/operator/metrics/controller.rs", "workqueue_depth"),
    ("process_", "src/operator/server.rs", "process_resident_memory_bytes"),
];

/// Metrics that never move: no reconcile here has a time limit of its own.
const STILL: &[&str] = &["controller_runtime_reconcile_timeouts_total"];

/// Values of the list of events: the file of the test, and what it has to contain.
const EVENTS: &[(&str, &str, &str)] = &[
    (
        "WaitingOnNodeClaimTermination",
        "tests/e2e/nodeclass/leftovers.rs",
        "WaitingOnNodeClaimTermination",
    ),
    ("NodeClassMissing", "tests/e2e/nodeclass/leftovers.rs", "Failed resolving NodeClass"),
    (
        "SpotRoleMissing",
        "src/cloud/aws/instance/answer/tests.rs",
        "Attempted to launch a spot instance",
    ),
    ("SpotInterrupted", "src/controllers/interruption/action.rs", "SpotInterrupted"),
    (
        "SpotRebalanceRecommendation",
        "src/controllers/interruption/action.rs",
        "SpotRebalanceRecommendation",
    ),
    (
        "CapacityReservationInterrupted",
        "src/controllers/interruption/action.rs",
        "CapacityReservationInstanceInterrupted",
    ),
    ("InstanceStopping", "src/controllers/interruption/action.rs", "InstanceStopping"),
    ("InstanceTerminating", "src/controllers/interruption/action.rs", "InstanceTerminating"),
    ("InstanceUnhealthy", "src/controllers/interruption/action.rs", "InstanceUnhealthy"),
    (
        "TerminatingOnInterruption",
        "src/controllers/interruption/action.rs",
        "TerminatingOnInterruption",
    ),
    ("ZonalShiftActive", "src/controllers/aws/zonalshift.rs", "ZonalShiftActive"),
    ("ZonalShiftCleared", "src/controllers/aws/zonalshift.rs", "ZonalShiftCleared"),
    ("LeaderElection", "tests/e2e/operator.rs", "LeaderElection"),
];

pub fn is_metric(name: &str) -> bool {
    STILL.contains(&name) || METRICS.iter().any(|(start, _, _)| name.starts_with(start))
}

pub fn is_event(name: &str) -> bool {
    EVENTS.iter().any(|(known, _, _)| *known == name)
}

/// Fails where a test does not name what it is to show.
pub fn check() {
    let missing: Vec<&str> = METRICS
        .iter()
        .chain(EVENTS)
        .filter(|(_, file, needle)| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
            let text = std::fs::read_to_string(path).unwrap();
            // Beside the code the tests come last.
            let tests = text.split_once("#[cfg(test)]").map_or(text.as_str(), |(_, tests)| tests);
            !tests.contains(needle)
        })
        .map(|(name, _, _)| *name)
        .collect();
    assert!(missing.is_empty(), "no test shows: {missing:#?}");
}
