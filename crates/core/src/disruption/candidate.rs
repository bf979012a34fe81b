//! Nodes that could be disrupted, with what that would cost and save.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::pdb::Limits;
use super::{Input, Method};
use crate::api::v1::{ConsolidationPolicy, NodePool};
use crate::api::{annotations, conditions, labels, taints};
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::node::StateNode;
use crate::scheduling::pod::PodInfo;
use crate::scheduling::taints::tolerate_all;

/// A node that may be disrupted.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The node.
    pub node: StateNode,
    /// Its pool.
    pub pool: Arc<NodePool>,
    /// Its type, when the provider still knows it.
    pub instance_type: Option<Arc<InstanceType>>,
    /// Price an hour; zero when unknown.
    pub price: f64,
    /// The price is an estimate, which justifies no replacement.
    pub price_estimated: bool,
    /// One, and what evicting its pods costs on top.
    pub disruption_cost: f64,
    /// Pods that need another node.
    pub pods: Vec<Arc<PodInfo>>,
}

impl Candidate {
    /// The pool's name.
    #[must_use]
    pub fn pool_name(&self) -> &str {
        self.pool.metadata.name.as_deref().unwrap_or_default()
    }

    /// The NodeClaim's name.
    #[must_use]
    pub fn claim_name(&self) -> &str {
        self.node.node_claim.as_ref().and_then(|c| c.metadata.name.as_deref()).unwrap_or_default()
    }

    /// A label of the node.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.node.labels().get(key).map(String::as_str)
    }

    /// Nothing on the node would need another one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.disruption_cost <= 1.0
    }

    /// What is saved an hour for each unit of disruption.
    #[must_use]
    pub fn savings_ratio(&self) -> f64 {
        self.price / self.disruption_cost
    }

    /// True when the claim's condition is.
    #[must_use]
    pub fn condition(&self, kind: &str) -> bool {
        self.node
            .node_claim
            .as_ref()
            .and_then(|c| c.status.as_ref())
            .is_some_and(|s| conditions::is_true(&s.conditions, kind))
    }

    /// The pool's consolidation policy.
    #[must_use]
    pub fn policy(&self) -> ConsolidationPolicy {
        self.pool.spec.disruption.consolidation_policy
    }
}

/// What evicting a pod costs, between -10 and 10.
#[must_use]
pub fn eviction_cost(pod: &PodInfo) -> f64 {
    let cost = 1.0
        + f64::from(pod.deletion_cost) / f64::from(1 << 27)
        + f64::from(pod.priority) / f64::from(1 << 25);
    cost.clamp(-10.0, 10.0)
}

/// One, and the positive eviction costs of pods that need another node.
#[must_use]
pub fn disruption_cost(pods: &[Arc<PodInfo>]) -> f64 {
    1.0 + pods
        .iter()
        .filter(|p| p.is_reschedulable())
        .map(|p| eviction_cost(p).max(0.0))
        .sum::<f64>()
}

/// What is not a node for disruption: silent, or worth telling.
enum Unfit {
    Silent,
    Because(String),
}

impl From<&str> for Unfit {
    fn from(text: &str) -> Self {
        Self::Because(text.to_owned())
    }
}

/// Nodes that a method may look at; the others' reasons go to `rejected`.
pub fn collect(
    input: &Input<'_>,
    limits: &Limits,
    method: Method,
    rejected: &mut BTreeMap<String, String>,
) -> Vec<Candidate> {
    let mut list = Vec::new();
    for node in &input.snapshot.nodes {
        match build(input, limits, method, node) {
            Ok(candidate) => list.push(candidate),
            Err(Unfit::Silent) => {}
            Err(Unfit::Because(text)) => {
                rejected.insert(node.name().to_owned(), text);
            }
        }
    }
    list
}

fn build(
    input: &Input<'_>,
    limits: &Limits,
    method: Method,
    node: &StateNode,
) -> Result<Candidate, Unfit> {
    if node.provider_id().is_some_and(|id| input.queued.contains(id)) {
        return Err(Unfit::Silent);
    }
    let Some(claim) = &node.node_claim else { return Err(Unfit::Silent) };
    if node.node.is_none() {
        return Err("nodeclaim does not have an associated node".into());
    }
    if !node.initialized() {
        return Err("node isn't initialized".into());
    }
    if node.deleting() {
        return Err("node is deleting or marked for deletion".into());
    }
    if node.nominated_until.is_some_and(|t| t > input.now) {
        return Err("node is nominated for a pending pod".into());
    }
    if node.do_not_disrupt() {
        return Err(Unfit::Because(format!(
            "disruption is blocked through the {:?} annotation",
            annotations::DO_NOT_DISRUPT
        )));
    }
    let Some(pool_name) = node.node_pool() else {
        return Err(Unfit::Because(format!(
            "node doesn't have required label (label={})",
            labels::NODEPOOL
        )));
    };
    let pool = input
        .snapshot
        .node_pools
        .iter()
        .find(|p| p.node_pool.metadata.name.as_deref() == Some(pool_name))
        .filter(|p| !p.instance_types.is_empty())
        .ok_or_else(|| Unfit::Because(format!("NodePool not found (NodePool={pool_name})")))?;
    let bounded = claim.spec.termination_grace_period.is_some();
    if !(bounded && method.is_eventual()) {
        pods_allow(input, limits, node)?;
    }
    let of = |key: &str| node.labels().get(key).map(String::as_str).unwrap_or_default();
    let instance_type =
        pool.instance_types.iter().find(|t| *t.name == *of(labels::INSTANCE_TYPE)).cloned();
    let offering = instance_type.as_ref().and_then(|t| {
        t.offerings.iter().find(|o| {
            o.zone() == of(labels::ZONE) && o.capacity_type() == of(labels::CAPACITY_TYPE)
        })
    });
    let price = offering.map(|o| o.price).filter(|p| p.is_finite()).unwrap_or(0.0);
    let price_estimated = offering.is_some_and(|o| o.price_estimated);
    Ok(Candidate {
        pool: Arc::clone(&pool.node_pool),
        instance_type,
        price,
        price_estimated,
        disruption_cost: disruption_cost(&node.pods),
        pods: node.pods.iter().filter(|p| p.is_reschedulable()).cloned().collect(),
        node: node.clone(),
    })
}

/// Refuses when a pod on the node may not be disturbed.
fn pods_allow(input: &Input<'_>, limits: &Limits, node: &StateNode) -> Result<(), Unfit> {
    for pod in node.pods.iter().filter(|p| p.is_active()) {
        if pod.do_not_disrupt_active(input.now) {
            return Err(Unfit::Because(format!(
                "pod has {:?} annotation (Pod={})",
                annotations::DO_NOT_DISRUPT,
                pod.key
            )));
        }
    }
    for pod in node.pods.iter().filter(|p| p.is_active() && !p.owners.node) {
        let tolerates_disruption =
            tolerate_all([&taints::disrupted()], &pod.constraints.tolerations).is_ok();
        if tolerates_disruption {
            continue;
        }
        limits.check(pod).map_err(|e| Unfit::Because(format!("{e} (Pod={})", pod.key)))?;
    }
    Ok(())
}
