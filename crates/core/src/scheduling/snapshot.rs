//! Everything a scheduling decision depends on, in one value.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::dra;
use super::instance_type::InstanceType;
use super::node::StateNode;
use super::pod::{PodInfo, PodKey};
use super::volumes::PodVolumes;
use crate::api::v1::NodePool;

/// The cluster at one moment, as the solver reads it.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Settings that change decisions.
    pub options: Options,
    /// NodePools with what they may launch.
    pub node_pools: Vec<NodePoolInput>,
    /// One representative pod per DaemonSet.
    pub daemonset_pods: Vec<Arc<PodInfo>>,
    /// Nodes that exist or are being launched.
    pub nodes: Vec<StateNode>,
    /// Nodes that are left out of scheduling. How many volumes their CSINode says they attach still
    /// shows what other nodes of their type will.
    pub left_out: Vec<StateNode>,
    /// Pods to place.
    pub pods: Vec<Arc<PodInfo>>,
    /// What the volumes of those pods ask for; pods without such volumes are absent.
    pub pod_volumes: HashMap<PodKey, Arc<PodVolumes>>,
    /// Devices, their classes and the claims on them; read only where pods have such claims.
    pub dynamic: Arc<dra::Objects>,
    /// Labels of namespaces, for namespace selectors.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Label keys that a new node may lack and still satisfy, besides those of Kubernetes and the
    /// provider.
    pub well_known: BTreeSet<String>,
}

/// A NodePool and the instance types that its provider offers it.
#[derive(Clone, Debug)]
pub struct NodePoolInput {
    /// The NodePool.
    pub node_pool: Arc<NodePool>,
    /// Its instance types.
    pub instance_types: Arc<[Arc<InstanceType>]>,
}

/// Settings that change decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Preferences count as required until they cannot be met (`PREFERENCE_POLICY=Respect`).
    pub respect_preferences: bool,
    /// minValues may be lowered when they cannot be met (`MIN_VALUES_POLICY=BestEffort`).
    pub best_effort_min_values: bool,
    /// Reserved capacity is booked.
    pub reserved_capacity: bool,
    /// Pods for which reserved capacity is taken go elsewhere instead of waiting for it.
    pub reserved_fallback: bool,
    /// Planned nodes are packed again where that is cheaper, even if it takes more of them.
    pub pack_by_price: bool,
    /// Pods that ask for dynamic resources are not scheduled (`IGNORE_DRA_REQUESTS`).
    pub ignore_dynamic_resources: bool,
    /// The results list the preferences that were dropped for each pod. Off by default: it serves a
    /// debug log only, and formatting every step is slow.
    pub report_relaxations: bool,
    /// The results count the waiting pods by the zone that is left to them.
    pub count_zones: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            respect_preferences: true,
            best_effort_min_values: false,
            reserved_capacity: true,
            reserved_fallback: false,
            pack_by_price: true,
            ignore_dynamic_resources: true,
            report_relaxations: false,
            count_zones: false,
        }
    }
}
