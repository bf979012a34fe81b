//! NodeClaim: a request for one node, and what became of it.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::NillableDuration;
use crate::{labels, schema};

/// What a node must be.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "karpenter.sh",
    version = "v1",
    kind = "NodeClaim",
    plural = "nodeclaims",
    category = "karpenter",
    status = "NodeClaimStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A request for one node, and what became of it."
)]
#[serde(rename_all = "camelCase")]
pub struct NodeClaimSpec {
    /// How long the node may live before it is replaced; `Never` for as long as it is useful.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration_or_never")]
    pub expire_after: Option<NillableDuration>,
    /// The cloud's side of the node: which images, networks and so on it uses.
    #[serde(default)]
    pub node_class_ref: NodeClassReference,
    /// Constraints on the node's labels.
    #[serde(default)]
    #[schemars(length(max = 100), extend("x-kubernetes-list-type" = "atomic"))]
    pub requirements: Vec<NodeSelectorRequirementWithMinValues>,
    /// What the pods meant for this node need together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Taints that the node's own set-up removes again; pods need not tolerate them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::taints")]
    pub startup_taints: Option<Vec<Taint>>,
    /// Taints that the node keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::taints")]
    pub taints: Option<Vec<Taint>>,
    /// How long draining may take before the rest of the pods are removed by force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub termination_grace_period: Option<NillableDuration>,
}

/// Names the node class of a NodePool or NodeClaim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeClassReference {
    /// API group of the node class.
    #[serde(default)]
    pub group: String,
    /// Kind of the node class.
    #[serde(default)]
    pub kind: String,
    /// Name of the node class.
    #[serde(default)]
    pub name: String,
}

impl NodeClassReference {
    /// True when the class is this provider's. EKS Auto Mode and other providers keep their objects
    /// in the same kinds, and these are theirs alone. A reference without group or kind, as v1beta1
    /// allowed, can only mean ours.
    #[must_use]
    pub fn is_managed(&self) -> bool {
        matches!(self.group.as_str(), "" | labels::AWS_GROUP)
            && matches!(self.kind.as_str(), "" | "EC2NodeClass")
    }
}

impl NodeClaim {
    /// True when the NodeClaim is this provider's, by its class.
    #[must_use]
    pub fn is_managed(&self) -> bool {
        self.spec.node_class_ref.is_managed()
    }

    /// How long the node's drain may take; none when it has no bound.
    #[must_use]
    pub fn grace_period(&self) -> Option<Duration> {
        self.spec.termination_grace_period.as_ref().and_then(|d| d.duration())
    }
}

/// What the pods of a NodeClaim need.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ResourceRequirements {
    /// The least that the node must offer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantities")]
    pub requests: Option<BTreeMap<String, Quantity>>,
}

/// One constraint on a label of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeSelectorRequirementWithMinValues {
    /// The label's key.
    pub key: String,
    /// At least this many different values must stay possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 50))]
    pub min_values: Option<i64>,
    /// How the label relates to the values.
    pub operator: Operator,
    /// The values; one integer for Gt, Lt, Gte and Lte.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// How a label must relate to a requirement's values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Operator {
    Gte,
    Lte,
    #[default]
    In,
    NotIn,
    Exists,
    DoesNotExist,
    Gt,
    Lt,
}

impl Operator {
    /// The operator's name as manifests write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gte => "Gte",
            Self::Lte => "Lte",
            Self::In => "In",
            Self::NotIn => "NotIn",
            Self::Exists => "Exists",
            Self::DoesNotExist => "DoesNotExist",
            Self::Gt => "Gt",
            Self::Lt => "Lt",
        }
    }

    /// The operator of that name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [
            Self::Gte,
            Self::Lte,
            Self::In,
            Self::NotIn,
            Self::Exists,
            Self::DoesNotExist,
            Self::Gt,
            Self::Lt,
        ]
        .into_iter()
        .find(|op| op.as_str() == text)
    }
}

/// What is known of the node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeClaimStatus {
    /// What is left of the capacity for pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantities")]
    pub allocatable: Option<BTreeMap<String, Quantity>>,
    /// All that the instance has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantities")]
    pub capacity: Option<BTreeMap<String, Quantity>>,
    /// How far the node has come.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::claim_conditions")]
    pub conditions: Vec<Condition>,
    /// The image that the instance runs.
    #[serde(default, rename = "imageID", skip_serializing_if = "Option::is_none")]
    pub image_id: Option<String>,
    /// When a pod last came to or left the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub last_pod_event_time: Option<Time>,
    /// Name of the Node that registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// The instance's id, such as `aws:///us-east-1b/i-0123456789abcdef0`.
    #[serde(default, rename = "providerID", skip_serializing_if = "Option::is_none")]
    pub provider_id: Option<String>,
}
