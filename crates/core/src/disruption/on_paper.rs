//! Nodes and pods as they will be once a command is carried out: what further commands of a pass are
//! looked for in, and what `simulate` shows.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeSpec, NodeStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::Candidate;
use crate::api::v1::{NodeClaim, NodeClaimSpec};
use crate::api::{conditions, labels};
use crate::scheduling::node::{NodeView, StateNode};
use crate::scheduling::pod::{PodInfo, PodKey};
use crate::scheduling::results::{PlannedClaim, Results};

/// The nodes once candidates have gone and their pods are where a simulation put them. Nodes that are
/// launched for them count for topology and limits, and have no room: nothing may rely on them before they
/// are there. False where something about the pods is not known well enough for that.
pub(super) fn without(
    nodes: &mut Vec<StateNode>,
    candidates: &[&Candidate],
    results: &Results,
) -> bool {
    let pods = candidates.iter().flat_map(|c| c.pods.iter());
    let pods: HashMap<&PodKey, &Arc<PodInfo>> = pods.map(|p| (&p.key, p)).collect();
    let first = candidates.first().map_or("", |c| c.node.name());
    let claims = results.new_claims.iter().enumerate();
    let launched: Option<Vec<StateNode>> =
        claims.map(|(at, claim)| launched(claim, &format!("{at}-for-{first}"), &pods)).collect();
    let Some(launched) = launched else { return false };
    let gone: HashSet<&str> = candidates.iter().map(|c| c.node.name()).collect();
    nodes.retain(|n| !gone.contains(n.name()));
    for (name, keys) in &results.existing {
        let Some(node) = nodes.iter_mut().find(|n| n.name() == name) else { return false };
        let here = keys.iter().filter_map(|k| pods.get(k)).map(|p| bound(p, name, false));
        node.pods.extend(here);
    }
    nodes.extend(launched);
    true
}

/// A pod as it is on a node. Pending: it is still to be started there.
#[must_use]
pub fn bound(pod: &PodInfo, node: &str, pending: bool) -> Arc<PodInfo> {
    Arc::new(PodInfo { node_name: Some(Arc::from(node)), pending, ..pod.clone() })
}

/// A planned node as if it had joined, with room for just its own pods.
fn launched(
    planned: &PlannedClaim,
    name: &str,
    pods: &HashMap<&PodKey, &Arc<PodInfo>>,
) -> Option<StateNode> {
    // Whose devices these are is not known before the node is there.
    let mut node = node_of(planned, name, true).filter(|_| planned.devices.is_none())?;
    let own = planned.pods.iter().filter_map(|k| pods.get(k));
    let own: Vec<Arc<PodInfo>> = own.map(|p| bound(p, name, false)).collect();
    if let Some(status) = &mut node.status {
        let places = Quantity(own.len().to_string());
        status.allocatable.get_or_insert_default().insert("pods".to_owned(), places);
    }
    let metadata = node.metadata.clone();
    let view = NodeView {
        node: Some(Arc::new(node)),
        node_claim: Some(Arc::new(NodeClaim {
            metadata,
            ..NodeClaim::new("", NodeClaimSpec::default())
        })),
        pods: own,
        ..NodeView::default()
    };
    Some(view.into())
}

/// The node that a launch comes to: of the cheapest type and offering that were planned. Nothing where
/// none is left.
#[must_use]
pub fn node_of(planned: &PlannedClaim, name: &str, initialized: bool) -> Option<Node> {
    let (kind, offering) = planned.cheapest()?;
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    let sources = [&planned.requirements, &kind.requirements, &offering.requirements];
    for requirement in sources.into_iter().flat_map(|r| r.iter()) {
        let mut values = requirement.values();
        if let (Some(value), None) = (values.next(), values.next()) {
            all.insert(requirement.key().to_string(), value.to_owned());
        }
    }
    all.insert(labels::HOSTNAME.to_owned(), name.to_owned());
    if initialized {
        all.insert(labels::REGISTERED.to_owned(), "true".to_owned());
        all.insert(labels::INITIALIZED.to_owned(), "true".to_owned());
    }
    let ready = NodeCondition {
        type_: "Ready".to_owned(),
        status: conditions::TRUE.to_owned(),
        ..NodeCondition::default()
    };
    Some(Node {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(all),
            // Any fixed time: no decision of the following passes may depend on when this runs.
            creation_timestamp: Some(Time(Timestamp::UNIX_EPOCH)),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            provider_id: Some(format!("simulated:///{name}")),
            taints: (!planned.taints.is_empty()).then(|| planned.taints.clone()),
            ..NodeSpec::default()
        }),
        status: Some(NodeStatus {
            capacity: Some(kind.capacity.to_quantities()),
            allocatable: Some(kind.allocatable_of(offering).to_quantities()),
            conditions: Some(vec![ready]),
            ..NodeStatus::default()
        }),
    })
}
