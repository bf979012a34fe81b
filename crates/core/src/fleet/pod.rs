//! Why a pending pod waits, and what would help.

use std::collections::{BTreeMap, HashMap};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::pod::{PodInfo, PodKey};
use crate::scheduling::requirements::Requirements;
use crate::scheduling::resources::{ApiQuantity, ResourceList};
use crate::scheduling::results::{PodError, Reason, Results};
use crate::scheduling::snapshot::{NodePoolInput, Snapshot};

/// Most instance types that are named as nearest.
const NEAREST: usize = 3;

/// One pending pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodRow {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// What it requests.
    #[schemars(with = "BTreeMap<String, String>")]
    pub requests: BTreeMap<String, ApiQuantity>,
    /// What it waits for.
    #[serde(flatten)]
    pub waiting: Waiting,
}

/// What a pending pod waits for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "waitsFor", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Waiting {
    /// It fits on a node that exists or is being launched.
    Node {
        /// That node.
        node: String,
    },
    /// A NodeClaim will be created for it.
    NodeClaim {
        /// The NodePool.
        node_pool: String,
        /// The cheapest instance type of the new node.
        #[serde(skip_serializing_if = "Option::is_none")]
        instance_type: Option<String>,
    },
    /// No NodePool can create a node for it.
    Nothing {
        /// The whole reason in one line, as in the event `FailedScheduling`.
        message: String,
        /// Each NodePool's reason.
        node_pools: Vec<PoolVerdict>,
    },
}

/// Why one NodePool has no node for a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolVerdict {
    /// The NodePool.
    pub node_pool: String,
    /// The first check that failed: `taints`, `requirements`, `volumes`, `reservations`, `devices`, `limits`, `instanceTypes`,
    /// `topology`, `volumeLimits`, `hostPorts` or `resources`.
    pub stage: String,
    /// The reason.
    pub message: String,
    /// What would let the pod run here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The instance types that come nearest, with what each of them lacks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nearest: Vec<NearestType>,
}

/// An instance type that almost fits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NearestType {
    /// Its name.
    pub instance_type: String,
    /// The requirement that it does not meet, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unmet: Option<String>,
    /// Resources that it has too little of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Missing>,
    /// It has no available offering.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unavailable: bool,
}

/// A resource of which there is too little.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Missing {
    /// The resource.
    pub resource: String,
    /// What the pod requests, the smallest DaemonSet overhead included.
    #[schemars(with = "String")]
    pub requested: ApiQuantity,
    /// What an empty node of the type has.
    #[schemars(with = "String")]
    pub allocatable: ApiQuantity,
}

impl PodRow {
    /// True when the pod waits for a node of that NodePool.
    pub(super) fn waits_for(&self, pool: &str) -> bool {
        matches!(&self.waiting, Waiting::NodeClaim { node_pool, .. } if node_pool == pool)
    }
}

/// One row per pending pod.
pub(super) fn rows(snapshot: &Snapshot, results: &Results) -> Vec<PodRow> {
    let mut waiting: HashMap<&PodKey, Waiting> = HashMap::new();
    for (node, pods) in &results.existing {
        for pod in pods {
            waiting.insert(pod, Waiting::Node { node: node.clone() });
        }
    }
    for claim in &results.new_claims {
        let node_pool = claim.node_pool.metadata.name.clone().unwrap_or_default();
        let instance_type = claim.cheapest().map(|(kind, _)| kind.name.to_string());
        for pod in &claim.pods {
            let (node_pool, instance_type) = (node_pool.clone(), instance_type.clone());
            waiting.insert(pod, Waiting::NodeClaim { node_pool, instance_type });
        }
    }
    let by_key: HashMap<&PodKey, &PodInfo> =
        snapshot.pods.iter().map(|p| (&p.key, p.as_ref())).collect();
    for (key, error) in &results.errors {
        let Some(pod) = by_key.get(key) else { continue };
        waiting.insert(key, nothing(pod, error, snapshot));
    }
    snapshot
        .pods
        .iter()
        .filter(|pod| pod.buffer.is_none())
        .filter_map(|pod| {
            Some(PodRow {
                namespace: pod.key.namespace.to_string(),
                name: pod.key.name.to_string(),
                requests: pod.requests.to_quantities(),
                waiting: waiting.remove(&pod.key)?,
            })
        })
        .collect()
}

fn nothing(pod: &PodInfo, error: &PodError, snapshot: &Snapshot) -> Waiting {
    let pools = match error {
        PodError::Pools(pools) => pools.as_slice(),
        _ => &[],
    };
    let node_pools = pools.iter().map(|(name, reason)| verdict(pod, name, reason, snapshot));
    Waiting::Nothing { message: error.to_string(), node_pools: node_pools.collect() }
}

fn verdict(pod: &PodInfo, name: &str, reason: &Reason, snapshot: &Snapshot) -> PoolVerdict {
    let pool =
        snapshot.node_pools.iter().find(|p| p.node_pool.metadata.name.as_deref() == Some(name));
    let mut verdict = PoolVerdict {
        node_pool: name.to_owned(),
        stage: stage(reason).to_owned(),
        message: reason.to_string(),
        hint: hint(reason),
        nearest: Vec::new(),
    };
    if let (Reason::NoInstanceType(failed), Some(pool)) = (reason, pool) {
        verdict.nearest = nearest(pod, &failed.requirements, &failed.requests.0, pool);
    }
    verdict
}

fn stage(reason: &Reason) -> &'static str {
    match reason {
        Reason::Taint(_) => "taints",
        Reason::Requirements(_) => "requirements",
        Reason::Volumes(_) => "volumes",
        Reason::Reserved(_) => "reservations",
        Reason::Devices(_) | Reason::DevicesApart => "devices",
        Reason::NodeLimit(_) | Reason::Limits(_) => "limits",
        Reason::NoInstanceType(_) => "instanceTypes",
        Reason::Topology(_) => "topology",
        Reason::VolumeLimits => "volumeLimits",
        Reason::HostPort => "hostPorts",
        Reason::Resources => "resources",
        #[allow(unreachable_patterns, reason = "reasons may be added")]
        _ => "other",
    }
}

fn hint(reason: &Reason) -> Option<String> {
    Some(match reason {
        Reason::Taint(_) => "add a toleration for the taint to the pod".to_owned(),
        Reason::Requirements(_) => {
            "change the pod's node selector or affinity, or the NodePool's requirements".to_owned()
        }
        Reason::Volumes(_) => {
            "allow the zone of the pod's volume in the NodePool's requirements".to_owned()
        }
        Reason::NodeLimit(pool) => format!("raise spec.limits.nodes of NodePool {pool}"),
        Reason::Limits(pool) => format!("raise spec.limits of NodePool {pool}"),
        Reason::NoInstanceType(failed) if failed.min_values.is_some() => {
            "lower minValues, or allow more values in the NodePool's requirements".to_owned()
        }
        Reason::NoInstanceType(failed) if !failed.fits => {
            "lower the pod's requests, or allow larger instance types".to_owned()
        }
        Reason::NoInstanceType(failed) if !failed.has_offering => {
            "allow more zones or capacity types, or wait until capacity is available".to_owned()
        }
        Reason::NoInstanceType(_) => {
            "widen the NodePool's requirements, or those of the pod".to_owned()
        }
        Reason::Topology(_) => {
            "allow more zones or nodes in the NodePool's requirements, or relax the pod's spread or affinity".to_owned()
        }
        Reason::VolumeLimits => {
            "allow instance types that attach more volumes, or use fewer in the pod".to_owned()
        }
        Reason::Devices(_) | Reason::DevicesApart => {
            "allow instance types that have the devices of the pod's claims".to_owned()
        }
        Reason::Reserved(_) => {
            "wait until reserved capacity is free, or allow another capacity type".to_owned()
        }
        _ => return None,
    })
}

/// The instance types that lack least, by the number of things that they lack, then by how much.
fn nearest(
    pod: &PodInfo,
    requirements: &Requirements,
    requests: &ResourceList,
    pool: &NodePoolInput,
) -> Vec<NearestType> {
    let requests = if requests.is_empty() { &pod.requests } else { requests };
    let mut ranked: Vec<(usize, f64, NearestType)> =
        pool.instance_types.iter().map(|kind| lacks(kind, requirements, requests)).collect();
    ranked.sort_by(|a, b| {
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.instance_type.cmp(&b.2.instance_type))
    });
    ranked.truncate(NEAREST);
    ranked.into_iter().map(|(_, _, kind)| kind).collect()
}

fn lacks(
    kind: &InstanceType,
    requirements: &Requirements,
    requests: &ResourceList,
) -> (usize, f64, NearestType) {
    // Only keys that both name can disagree: the pool's own labels are no labels of a type.
    let unmet = kind.requirements.intersects(requirements).err().map(|e| e.to_string());
    let allocatable = kind.allocatable();
    let mut short = 0.0;
    let mut missing = Vec::new();
    let (wanted, has) = (requests.to_quantities(), allocatable.to_quantities());
    for (name, amount) in requests.iter() {
        let there = allocatable.get(name);
        if amount <= there {
            continue;
        }
        #[allow(clippy::cast_precision_loss, reason = "a rank")]
        let ratio = (amount - there) as f64 / amount as f64;
        short += ratio;
        missing.push(Missing {
            resource: name.as_str().to_owned(),
            requested: wanted.get(name.as_str()).cloned().unwrap_or_default(),
            allocatable: has
                .get(name.as_str())
                .cloned()
                .unwrap_or_else(|| ApiQuantity("0".to_owned())),
        });
    }
    let unavailable = kind.cheapest(requirements).is_none();
    let count = usize::from(unmet.is_some()) + missing.len() + usize::from(unavailable);
    let instance_type = kind.name.to_string();
    (count, short, NearestType { instance_type, unmet, missing, unavailable })
}
