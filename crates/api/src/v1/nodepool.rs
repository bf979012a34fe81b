//! NodePool: a template for nodes, with limits and the rules of their disruption.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::nodeclaim::{NodeClassReference, NodeSelectorRequirementWithMinValues};
use crate::duration::NillableDuration;
use crate::schema;

/// Which nodes may be launched, how many, and when they may be disrupted.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "karpenter.sh",
    version = "v1",
    kind = "NodePool",
    plural = "nodepools",
    category = "karpenter",
    status = "NodePoolStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A template for nodes, with limits and the rules of their disruption."
)]
#[serde(rename_all = "camelCase")]
pub struct NodePoolSpec {
    /// When and how fast nodes of this pool may be disrupted.
    #[serde(default)]
    pub disruption: Disruption,
    /// The most that the pool's nodes may have together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantities")]
    pub limits: Option<BTreeMap<String, Quantity>>,
    /// A fixed number of nodes, kept whatever the pods need (feature gate StaticCapacity).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub replicas: Option<i64>,
    /// What the nodes look like.
    #[serde(default)]
    pub template: NodeClaimTemplate,
    /// Pools of higher weight are tried first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub weight: Option<i32>,
}

impl NodePool {
    /// True when the NodePool is this provider's, by its class.
    #[must_use]
    pub fn is_managed(&self) -> bool {
        self.spec.template.spec.node_class_ref.is_managed()
    }
}

/// When and how fast nodes may be disrupted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disruption {
    /// How many nodes may be disrupted at once.
    #[serde(default = "default_budgets")]
    pub budgets: Vec<Budget>,
    /// How long a node must be left alone by pods before it may be consolidated.
    #[serde(default = "default_consolidate_after")]
    #[schemars(schema_with = "schema::duration_or_never")]
    pub consolidate_after: NillableDuration,
    /// Which nodes may be consolidated.
    #[serde(default)]
    pub consolidation_policy: ConsolidationPolicy,
}

// The schema's defaults once more, for objects that no API server has filled in.
fn default_budgets() -> Vec<Budget> {
    vec![Budget::default()]
}

fn default_consolidate_after() -> NillableDuration {
    NillableDuration::After("0s".to_owned(), std::time::Duration::ZERO)
}

impl Default for Disruption {
    fn default() -> Self {
        Self {
            budgets: default_budgets(),
            consolidate_after: default_consolidate_after(),
            consolidation_policy: ConsolidationPolicy::default(),
        }
    }
}

/// Which nodes may be consolidated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ConsolidationPolicy {
    /// Only nodes without pods.
    WhenEmpty,
    /// Also nodes whose pods fit elsewhere or on something cheaper.
    #[default]
    WhenEmptyOrUnderutilized,
    /// As before, when the savings outweigh the disruption.
    Balanced,
}

/// A limit on simultaneous disruption, all the time or in a window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// Length of the window that `schedule` opens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// A number or a percentage of the pool's nodes.
    #[serde(default = "default_budget_nodes")]
    pub nodes: String,
    /// The reasons that this budget speaks of; all when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasons: Option<Vec<String>>,
    /// Cron expression (UTC) of the window's beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
}

fn default_budget_nodes() -> String {
    "10%".to_owned()
}

impl Default for Budget {
    fn default() -> Self {
        Self { duration: None, nodes: default_budget_nodes(), reasons: None, schedule: None }
    }
}

/// What the nodes of a pool look like.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeClaimTemplate {
    /// Labels and annotations of the nodes.
    #[serde(default)]
    pub metadata: TemplateMetadata,
    /// The rest of the template.
    #[serde(default)]
    pub spec: NodeClaimTemplateSpec,
}

/// Labels and annotations of a pool's nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TemplateMetadata {
    /// Annotations of the nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// Labels of the nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
}

/// Constraints, taints and lifetime of a pool's nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeClaimTemplateSpec {
    /// How long a node may live before it is replaced; `Never` for as long as it is useful.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration_or_never")]
    pub expire_after: Option<NillableDuration>,
    /// The cloud's side of the nodes.
    #[serde(default)]
    pub node_class_ref: NodeClassReference,
    /// Constraints on the nodes' labels.
    #[serde(default)]
    pub requirements: Vec<NodeSelectorRequirementWithMinValues>,
    /// Taints that the node's own set-up removes again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::taints")]
    pub startup_taints: Option<Vec<Taint>>,
    /// Taints that the nodes keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::taints")]
    pub taints: Option<Vec<Taint>>,
    /// How long draining may take before the rest of the pods are removed by force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub termination_grace_period: Option<NillableDuration>,
}

/// What is known of the pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodePoolStatus {
    /// Whether the pool can be used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// Generation of the node class when registration health was last judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_class_observed_generation: Option<i64>,
    /// Number of nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<i64>,
    /// What the pool's nodes have together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantities")]
    pub resources: Option<BTreeMap<String, Quantity>>,
}
