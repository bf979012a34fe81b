//! Replays: days of a workload against NodePools, in seconds, with the bill, the evictions and the
//! waiting times. The controllers are the real ones, in the model world.

use std::sync::Arc;

use serde::Serialize;

pub mod chart;
pub mod record;
pub mod report;
mod run;
pub mod workload;

pub use run::play;
pub use workload::Workloads;

use crate::scheduling::instance_type::InstanceType;

/// One set of NodePools to play against.
pub struct Variant {
    /// The file that it is from.
    pub name: String,
    /// NodePool objects.
    pub pools: Vec<serde_json::Value>,
    pub types: Vec<Arc<InstanceType>>,
    /// Flags of the controller.
    pub flags: Vec<String>,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    pub name: String,
    /// In the currency of the prices.
    pub money: f64,
    pub node_hours: f64,
    pub most_nodes: usize,
    pub launches: u64,
    /// Spot instances that were taken away.
    pub interruptions: u64,
    /// Pods that had to leave a node that went.
    pub evictions: u64,
    /// Pods that were bound.
    pub pods_bound: usize,
    /// Seconds from being made until being bound.
    pub wait_median: f64,
    pub wait99th: f64,
    /// Pods that wait when it is over.
    pub pending_at_end: usize,
    /// How things stood over time.
    pub samples: Vec<Sample>,
}

/// How things stood at one time.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// Hours since the start.
    pub hour: f64,
    pub nodes: usize,
    pub price_per_hour: f64,
    pub pods: usize,
    pub pending: usize,
}
