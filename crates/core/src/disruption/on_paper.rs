//! What a command leaves behind: further commands of the pass are looked for on the cluster as it will
//! be then.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Candidate;
use crate::api::labels;
use crate::api::v1::NodeClaim;
use crate::scheduling::node::{NodeView, StateNode};
use crate::scheduling::pod::{PodInfo, PodKey};
use crate::scheduling::resources::Name;
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
        claims.map(|(at, claim)| launched(claim, format!("{at}-for-{first}"), &pods)).collect();
    let Some(launched) = launched else { return false };
    let gone: HashSet<&str> = candidates.iter().map(|c| c.node.name()).collect();
    nodes.retain(|n| !gone.contains(n.name()));
    for (name, keys) in &results.existing {
        let Some(node) = nodes.iter_mut().find(|n| n.name() == name) else { return false };
        let here = keys.iter().filter_map(|k| pods.get(k)).map(|p| bound(p, name));
        node.pods.extend(here);
    }
    nodes.extend(launched);
    true
}

fn bound(pod: &PodInfo, node: &str) -> Arc<PodInfo> {
    Arc::new(PodInfo { node_name: Some(Arc::from(node)), ..pod.clone() })
}

/// A planned node as if it had joined, with just so many places as its pods take.
fn launched(
    planned: &PlannedClaim,
    name: String,
    pods: &HashMap<&PodKey, &Arc<PodInfo>>,
) -> Option<StateNode> {
    let (kind, offering) = planned.cheapest().filter(|_| planned.devices.is_none())?;
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    let sources = [&planned.requirements, &kind.requirements, &offering.requirements];
    for requirement in sources.into_iter().flat_map(|r| r.iter()) {
        let mut values = requirement.values();
        if let (Some(value), None) = (values.next(), values.next()) {
            all.insert(requirement.key().to_string(), value.to_owned());
        }
    }
    for (key, value) in [
        (labels::HOSTNAME, name.as_str()),
        (labels::REGISTERED, "true"),
        (labels::INITIALIZED, "true"),
        (labels::NODEPOOL, planned.node_pool.metadata.name.as_deref().unwrap_or_default()),
    ] {
        all.insert(key.to_owned(), value.to_owned());
    }
    let here: Vec<Arc<PodInfo>> =
        planned.pods.iter().filter_map(|k| pods.get(k)).map(|p| bound(p, &name)).collect();
    let mut allocatable = kind.allocatable_of(offering);
    allocatable.set(Name::Pods, i64::try_from(here.len()).unwrap_or(i64::MAX));
    let metadata = ObjectMeta { name: Some(name), labels: Some(all), ..ObjectMeta::default() };
    let claim = NodeClaim { metadata: metadata.clone(), ..NodeClaim::new("", Default::default()) };
    let node = Node {
        metadata,
        status: Some(NodeStatus {
            capacity: Some(kind.capacity.to_quantities()),
            allocatable: Some(allocatable.to_quantities()),
            ..NodeStatus::default()
        }),
        ..Node::default()
    };
    let view = NodeView {
        node: Some(Arc::new(node)),
        node_claim: Some(Arc::new(claim)),
        pods: here,
        ..NodeView::default()
    };
    Some(view.into())
}
