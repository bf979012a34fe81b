//! The result of `karpenter simulate --output json`, as far as it is checked.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::model::Expression;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    pub node_claims: Vec<Claim>,
    pub existing_nodes: Vec<Existing>,
    pub unschedulable: Vec<Left>,
    pub total_price: f64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    pub node_pool: String,
    pub requirements: Vec<Wanted>,
    pub requests: BTreeMap<String, String>,
    pub pods: Vec<String>,
    pub instance_types: Vec<String>,
    pub cheapest: Option<Launch>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    #[serde(flatten)]
    pub expression: Expression,
    #[serde(default)]
    pub min_values: Option<usize>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Launch {
    pub instance_type: String,
    pub zone: String,
    pub capacity_type: String,
    pub price: f64,
}

#[derive(Deserialize)]
pub struct Existing {
    pub name: String,
    pub pods: Vec<String>,
}

#[derive(Deserialize)]
pub struct Left {
    pub pod: String,
    pub error: String,
}

impl Outcome {
    pub fn read(value: Value) -> Self {
        serde_json::from_value(value).expect("a result")
    }
}
