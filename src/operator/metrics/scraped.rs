//! The gauges that are written from the state when they are asked for: those that have a series per
//! pod, node, condition or offering, and those of the process.

use std::sync::LazyLock;

use super::list::node_labels;
use super::options::current;
use super::page::Family;
use super::{scraped, scraped_counter};

/// Labels of a pod that waits.
const POD: &[&str] = &["name", "namespace"];
/// Labels of what an instance type offers.
const OFFERING: &[&str] = &["instance_type", "capacity_type", "zone"];

/// Labels of what nodes cost.
const COST: &[&str] = &["nodepool", "capacity_type", "zone"];
/// Labels of savings.
const SAVED: &[&str] = &["nodepool", "reason"];

/// Labels of a pod that has no node yet: 1.15 shows whether it asks for dynamic resources.
fn unbound() -> Vec<&'static str> {
    current().release.labels(POD, "dynamic_resources")
}

metrics! {
    /// What nodes offer to pods.
    NODES_ALLOCATABLE: Family = scraped("karpenter_nodes_allocatable", "Resources that nodes offer to pods.", &node_labels(&["resource_type"]));
    /// What pods request, daemons left out.
    NODES_POD_REQUESTS: Family = scraped("karpenter_nodes_total_pod_requests", "Requests of the pods on nodes, daemons left out.", &node_labels(&["resource_type"]));
    /// Limits of pods, daemons left out.
    NODES_POD_LIMITS: Family = scraped("karpenter_nodes_total_pod_limits", "Limits of the pods on nodes, daemons left out.", &node_labels(&["resource_type"]));
    /// What daemons request.
    NODES_DAEMON_REQUESTS: Family = scraped("karpenter_nodes_total_daemon_requests", "Requests of the daemons on nodes.", &node_labels(&["resource_type"]));
    /// Limits of daemons.
    NODES_DAEMON_LIMITS: Family = scraped("karpenter_nodes_total_daemon_limits", "Limits of the daemons on nodes.", &node_labels(&["resource_type"]));
    /// What the system keeps.
    NODES_SYSTEM_OVERHEAD: Family = scraped("karpenter_nodes_system_overhead", "Capacity of nodes that is not allocatable.", &node_labels(&["resource_type"]));
    /// How old nodes are.
    NODES_CURRENT_LIFETIME: Family = scraped("karpenter_nodes_current_lifetime_seconds", "Age of nodes in seconds.", &node_labels(&[]));
    /// Requests over allocatable of the whole cluster.
    CLUSTER_UTILIZATION: Family = scraped("karpenter_cluster_utilization_percent", "Requests of all pods as a share of what all nodes offer.", &["resource_type"]);
    /// Nodes and NodeClaims in the state.
    CLUSTER_STATE_NODES: Family = scraped("karpenter_cluster_state_node_count", "Nodes in the cluster state.", &[]);

    /// 1 for each pod as it is.
    PODS_STATE: Family = scraped("karpenter_pods_state", "1 for each pod, by its owner, node, phase and readiness, and by its node's NodePool, zone, architecture, capacity type and instance type.", PODS);
    /// For how long pods have had no node.
    PODS_UNBOUND: Family = scraped("karpenter_pods_unbound_time_seconds", "Time since the creation of pods that have no node, in seconds.", &unbound());
    /// For how long pods have not been running.
    PODS_UNSTARTED: Family = scraped("karpenter_pods_unstarted_time_seconds", "Time since the creation of pods that do not run yet, in seconds.", POD);
    /// The same from the first decision on.
    PODS_PROVISIONING_UNBOUND: Family = scraped("karpenter_pods_provisioning_unbound_time_seconds", "Time since pods that have no node were first found schedulable, in seconds.", &unbound());
    /// The same from the first decision on.
    PODS_PROVISIONING_UNSTARTED: Family = scraped("karpenter_pods_provisioning_unstarted_time_seconds", "Time since pods that do not run yet were first found schedulable, in seconds.", POD);
    /// For how long no decision has been made about pods.
    PODS_UNDECIDED: Family = scraped("karpenter_pods_provisioning_scheduling_undecided_time_seconds", "Time since pods were first seen about which no decision has been made, in seconds.", POD);

    /// What can be launched.
    OFFERING_AVAILABLE: Family = scraped("karpenter_cloudprovider_instance_type_offering_available", "1 for offerings that can be launched, else 0.", OFFERING);
    /// What it costs.
    OFFERING_PRICE: Family = scraped("karpenter_cloudprovider_instance_type_offering_price_estimate", "Prices of offerings, in dollars an hour.", OFFERING);

    // What only this project has: nothing of it is served unless it is asked for.
    /// What nodes cost.
    COST_NODES: Family = scraped("karpenter_cost_nodes_dollars_per_hour", "Prices of nodes, in dollars an hour.", COST);
    /// What pods take of it.
    COST_PODS: Family = scraped("karpenter_cost_pods_dollars_per_hour", "Shares of pods in the prices of their nodes, by what they request, in dollars an hour.", &["namespace"]);
    /// What no pod takes.
    COST_UNUSED: Family = scraped("karpenter_cost_unused_dollars_per_hour", "Shares of the prices of nodes that no pod requests, in dollars an hour.", COST);
    /// What was saved.
    COST_SAVED: Family = scraped_counter("karpenter_cost_saved_dollars_total", "Estimate of what disruption and packing have saved, in dollars.", SAVED);
    /// What is being saved.
    COST_SAVING: Family = scraped("karpenter_cost_saving_dollars_per_hour", "Estimate of what the disruption and packing of the last day save, in dollars an hour.", SAVED);

    /// Processor time.
    PROCESS_CPU: Family = scraped_counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", &[]);
    /// Open files.
    PROCESS_OPEN_FDS: Family = scraped("process_open_fds", "Number of open file descriptors.", &[]);
    /// Files that may be open.
    PROCESS_MAX_FDS: Family = scraped("process_max_fds", "Maximum number of open file descriptors.", &[]);
    /// Address space.
    PROCESS_VIRTUAL_MEMORY: Family = scraped("process_virtual_memory_bytes", "Virtual memory size in bytes.", &[]);
    /// Limit of the address space.
    PROCESS_VIRTUAL_MEMORY_MAX: Family = scraped("process_virtual_memory_max_bytes", "Maximum amount of virtual memory available in bytes.", &[]);
    /// Memory in use.
    PROCESS_RESIDENT_MEMORY: Family = scraped("process_resident_memory_bytes", "Resident memory size in bytes.", &[]);
    /// When the process began.
    PROCESS_START: Family = scraped("process_start_time_seconds", "Start time of the process since unix epoch in seconds.", &[]);
    /// Bytes that came over the network.
    PROCESS_NETWORK_RECEIVE: Family = scraped_counter("process_network_receive_bytes_total", "Number of bytes received by the process over the network.", &[]);
    /// Bytes that went over the network.
    PROCESS_NETWORK_TRANSMIT: Family = scraped_counter("process_network_transmit_bytes_total", "Number of bytes sent by the process over the network.", &[]);
}

/// Labels of a pod's state.
const PODS: &[&str] = &[
    "name",
    "namespace",
    "owner",
    "node",
    "scheduled",
    "nodepool",
    "zone",
    "arch",
    "capacity_type",
    "instance_type",
    "phase",
    "ready",
    "managed",
];
