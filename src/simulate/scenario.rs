//! The form of a scenario file.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};

use crate::api::v1::{NodeClaim, Operator};
use crate::scheduling::pod::{PodInfo, Sharing};
use crate::scheduling::resources::ApiQuantity;

/// One situation to decide on.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Scenario {
    /// A short name.
    pub name: String,
    /// What it shows, for the reader.
    pub description: String,
    /// The seed that made it, for the reader.
    pub seed: Option<i64>,
    /// Settings.
    pub options: ScenarioOptions,
    /// Label keys that a node may lack and still satisfy, besides the provider's own.
    pub well_known_labels: Vec<String>,
    /// NodePool objects, v1 or v1beta1.
    pub node_pools: Vec<serde_json::Value>,
    /// What can be launched.
    pub instance_types: Vec<InstanceTypeSpec>,
    /// One pod a DaemonSet.
    pub daemon_set_pods: PodList,
    /// Nodes with the pods on them.
    pub nodes: NodeList,
    /// Pods that wait.
    pub pods: PodList,
    /// Whatever else bears on the decision.
    pub objects: Vec<serde_json::Value>,
}

/// Settings of the controller that change decisions.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ScenarioOptions {
    /// `Respect` (the default) or `Ignore`.
    pub preference_policy: String,
    /// `Strict` (the default) or `BestEffort`.
    pub min_values_policy: String,
    /// Feature gates by name.
    pub feature_gates: BTreeMap<String, bool>,
    /// The time at which to decide, RFC 3339.
    pub now: Option<jiff::Timestamp>,
}

/// A requirement on a label.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequirementSpec {
    pub key: String,
    pub operator: Operator,
    #[serde(default)]
    pub values: Vec<String>,
}

/// An instance type.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstanceTypeSpec {
    pub name: String,
    /// What nodes of the type are; name, zones and capacity types follow from the rest.
    #[serde(default)]
    pub requirements: Vec<RequirementSpec>,
    pub capacity: BTreeMap<String, ApiQuantity>,
    /// What the system keeps of it.
    #[serde(default)]
    pub overhead: BTreeMap<String, ApiQuantity>,
    pub offerings: Vec<OfferingSpec>,
    /// NodePools that may use it; all when missing.
    #[serde(default)]
    pub node_pools: Option<Vec<String>>,
}

/// A way to get an instance type.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OfferingSpec {
    pub zone: String,
    pub capacity_type: String,
    pub price: f64,
    #[serde(default = "yes")]
    pub available: bool,
    /// More labels of nodes from this offering.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub requirements: Vec<RequirementSpec>,
    /// Instances left in the reservation behind a `reserved` offering.
    #[serde(default)]
    pub reservation_capacity: i64,
}

fn yes() -> bool {
    true
}

/// A node with its pods.
#[derive(Clone, Debug)]
pub struct NodeEntry {
    pub node: Option<Arc<Node>>,
    pub node_claim: Option<Arc<NodeClaim>>,
    pub pods: Vec<Arc<PodInfo>>,
}

/// Pods, kept in the compact form from the start.
#[derive(Clone, Debug, Default)]
pub struct PodList(pub Vec<Arc<PodInfo>>);

/// Nodes, their pods kept in the compact form from the start.
#[derive(Clone, Debug, Default)]
pub struct NodeList(pub Vec<NodeEntry>);

struct PodsVisitor;

impl<'de> Visitor<'de> for PodsVisitor {
    type Value = PodList;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of Pod objects")
    }

    fn visit_unit<E>(self) -> Result<PodList, E> {
        Ok(PodList::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<PodList, A::Error> {
        let mut sharing = Sharing::default();
        let mut list = Vec::new();
        while let Some(pod) = seq.next_element::<Pod>()? {
            list.push(Arc::new(sharing.share(PodInfo::from_pod(&pod))));
        }
        list.shrink_to_fit();
        Ok(PodList(list))
    }
}

impl<'de> Deserialize<'de> for PodList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PodsVisitor)
    }
}

struct NodesVisitor;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawNode {
    #[serde(default)]
    node: Option<Node>,
    #[serde(default)]
    node_claim: Option<NodeClaim>,
    #[serde(default)]
    pods: PodList,
}

impl<'de> Visitor<'de> for NodesVisitor {
    type Value = NodeList;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of nodes, each {node, nodeClaim, pods}")
    }

    fn visit_unit<E>(self) -> Result<NodeList, E> {
        Ok(NodeList::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<NodeList, A::Error> {
        let mut sharing = Sharing::default();
        let mut list = Vec::new();
        while let Some(raw) = seq.next_element::<RawNode>()? {
            let name = raw.node.as_ref().and_then(|n| n.metadata.name.clone());
            let mut pods: Vec<Arc<PodInfo>> = Vec::with_capacity(raw.pods.0.len());
            for pod in raw.pods.0 {
                let mut pod = sharing.share(Arc::unwrap_or_clone(pod));
                pod.node_name = name.as_deref().map(|n| sharing.text(n));
                pods.push(Arc::new(pod));
            }
            let node = raw.node.map(Arc::new);
            list.push(NodeEntry { node, node_claim: raw.node_claim.map(Arc::new), pods });
        }
        Ok(NodeList(list))
    }
}

impl<'de> Deserialize<'de> for NodeList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodesVisitor)
    }
}
