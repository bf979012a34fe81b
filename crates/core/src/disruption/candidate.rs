//! Nodes that could be disrupted, with what that would cost and save.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::pdb::{self, Limits};
use super::rejection::Rejection;
use super::repair::{self, Due};
use super::{Decision, Input, Method};
use crate::api::v1::{ConsolidationPolicy, NodePool};
use crate::api::{annotations, conditions, labels};
use crate::scheduling::instance_type::{InstanceType, Offering};
use crate::scheduling::node::StateNode;
use crate::scheduling::pod::PodInfo;
use crate::scheduling::snapshot::NodePoolInput;

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
    /// Pods that need another node; those that will not move are not among them.
    pub pods: Arc<[Arc<PodInfo>]>,
    /// What is done about an unhealthy node; repair only.
    pub repair: Option<Due>,
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

    /// Whether its pool keeps a fixed number of nodes.
    #[must_use]
    pub fn is_static(&self) -> bool {
        self.pool.spec.replicas.is_some()
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

    /// Since when the claim's condition is True.
    #[must_use]
    pub fn condition_since(&self, kind: &str) -> Option<Timestamp> {
        let status = self.node.node_claim.as_ref()?.status.as_ref()?;
        conditions::get(&status.conditions, kind)
            .filter(|c| c.status == conditions::TRUE)
            .map(|c| c.last_transition_time.0)
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

/// Price per hour of a node of that type: of the first offering in its zone and of its capacity
/// type. Whether the offering is available now does not matter: the node exists.
fn price(node: &StateNode, instance_type: &InstanceType) -> Option<f64> {
    offering(node, instance_type).map(|o| o.price).filter(|p| p.is_finite())
}

/// The offering that a node of that type came from, as far as its labels say.
fn offering<'a>(node: &StateNode, instance_type: &'a InstanceType) -> Option<&'a Offering> {
    let of = |key: &str| node.labels().get(key).map(String::as_str).unwrap_or_default();
    let (zone, capacity_type) = (of(labels::ZONE), of(labels::CAPACITY_TYPE));
    let mut all = instance_type.offerings.iter();
    all.find(|o| o.zone() == zone && o.capacity_type() == capacity_type)
}

/// NodePools and their instance types by name.
pub struct Pools<'a> {
    by_name: HashMap<&'a str, (&'a NodePoolInput, HashMap<&'a str, &'a Arc<InstanceType>>)>,
}

impl<'a> Pools<'a> {
    /// Indexes the pools.
    #[must_use]
    pub fn new(pools: &'a [NodePoolInput]) -> Self {
        let entry = |pool: &'a NodePoolInput| {
            let name = pool.node_pool.metadata.name.as_deref().unwrap_or_default();
            let types = pool.instance_types.iter().map(|t| (&*t.name, t)).collect();
            (name, (pool, types))
        };
        Self { by_name: pools.iter().map(entry).collect() }
    }

    /// The type of a node, as its pool knows it.
    #[must_use]
    pub fn type_of(&self, node: &StateNode) -> Option<&'a Arc<InstanceType>> {
        let (_, types) = self.by_name.get(node.node_pool()?)?;
        types.get(node.labels().get(labels::INSTANCE_TYPE)?.as_str()).copied()
    }

    /// The price of a node per hour, looked up among what its NodePool may launch.
    #[must_use]
    pub fn price_of(&self, node: &StateNode) -> Option<f64> {
        price(node, self.type_of(node)?)
    }

    /// The pool of that name.
    #[must_use]
    pub fn of(&self, name: &str) -> Option<&'a NodePoolInput> {
        self.by_name.get(name).map(|(pool, _)| *pool)
    }

    /// A pool whose instance types are known.
    fn usable(&self, name: &str) -> Option<&'a NodePoolInput> {
        self.of(name).filter(|p| !p.instance_types.is_empty())
    }
}

/// Nodes that a method may look at; why it may not look at the others goes to the decision.
pub fn collect(
    input: &Input<'_>,
    pools: &Pools<'_>,
    limits: &Limits,
    method: Method,
    decision: &mut Decision,
) -> Vec<Candidate> {
    let mut list = Vec::new();
    for node in &input.snapshot.nodes {
        match build(input, pools, limits, method, node) {
            Ok(candidate) => list.push(candidate),
            Err(rejection) => decision.reject(node.name(), rejection),
        }
    }
    list
}

/// A node as a candidate of a method.
///
/// # Errors
/// With the reason why the method may not look at the node.
pub fn build(
    input: &Input<'_>,
    pools: &Pools<'_>,
    limits: &Limits,
    method: Method,
    node: &StateNode,
) -> Result<Candidate, Rejection> {
    if node.provider_id().is_some_and(|id| input.queued.contains(id)) {
        return Err(Rejection::Queued);
    }
    let Some(claim) = &node.node_claim else { return Err(Rejection::NotManaged) };
    let due = match method {
        Method::Repair => Some(repair::eligible(input, node).ok_or(Rejection::Healthy)?),
        _ => None,
    };
    if node.node.is_none() {
        return Err(Rejection::NoNode);
    }
    if node.rebooting() {
        return Err(Rejection::Rebooting);
    }
    if node.deleting() {
        return Err(Rejection::Deleting);
    }
    // Repair is also about nodes that registered and never got further.
    let joined = node.initialized() || (method == Method::Repair && node.registered());
    if !joined {
        return Err(Rejection::NotInitialized { registered: node.registered() });
    }
    if node.nominated_until.is_some_and(|t| t > input.now) {
        return Err(Rejection::Nominated);
    }
    if method == Method::Repair {
        if node.annotation(annotations::DO_NOT_REPAIR) == Some("true") {
            return Err(Rejection::DoNotRepair);
        }
    } else if node.do_not_disrupt() {
        return Err(Rejection::DoNotDisrupt);
    }
    let pool_name = node.node_pool().ok_or(Rejection::NoPool)?;
    let pool =
        pools.usable(pool_name).ok_or_else(|| Rejection::UnknownPool(pool_name.to_owned()))?;
    let bounded = claim.spec.termination_grace_period.is_some();
    match &due {
        Some(found) if !bounded && found.policy.drain.is_none() => {
            pods_allow(input, limits, node).map_err(|_| Rejection::RepairUnbounded)?;
        }
        Some(_) => {}
        None if bounded && method.is_eventual() => {}
        None => pods_allow(input, limits, node)?,
    }
    let instance_type = pools.type_of(node).cloned();
    let moves = |p: &&Arc<PodInfo>| match method {
        // The drain of a repair may be cut short, so that all its pods come back elsewhere.
        Method::Repair => p.is_reschedulable(),
        _ => limits.moves(p, input.now),
    };
    Ok(Candidate {
        pool: Arc::clone(&pool.node_pool),
        price: instance_type.as_ref().and_then(|t| price(node, t)).unwrap_or(0.0),
        price_estimated: instance_type
            .as_ref()
            .and_then(|t| offering(node, t))
            .is_some_and(|o| o.price_estimated),
        instance_type,
        disruption_cost: disruption_cost(&node.pods),
        pods: node.pods.iter().filter(moves).cloned().collect(),
        node: node.clone(),
        repair: due,
    })
}

/// Refuses when a pod on the node may not be disturbed.
///
/// # Errors
/// With the first pod that stands against it.
pub fn pods_allow(input: &Input<'_>, limits: &Limits, node: &StateNode) -> Result<(), Rejection> {
    for pod in node.pods.iter().filter(|p| p.is_active()) {
        if pod.do_not_disrupt_active(input.now) {
            let until = pod.do_not_disrupt_until();
            return Err(Rejection::ProtectedPod { pod: pod.key.clone(), until });
        }
    }
    for pod in node.pods.iter().filter(|p| pdb::is_evictable(p)) {
        limits.check(pod).map_err(|by| Rejection::Blocked { pod: pod.key.clone(), by })?;
    }
    Ok(())
}
