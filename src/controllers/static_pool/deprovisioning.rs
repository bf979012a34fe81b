//! Removes the nodes that a static pool has too many, the least missed first.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;

use super::super::nodeclaim::deletion;
use super::super::{Context, Error, Outcome};
use crate::disruption::candidate::eviction_cost;
use crate::operator::logging;
use crate::scheduling::node::StateNode;

/// A pool is looked at again after this long.
const PERIOD: Duration = Duration::from_secs(60);
/// How often a deletion is tried.
const ATTEMPTS: u32 = 4;

pub(super) async fn reconcile(ctx: Arc<Context>, name: String) -> Outcome {
    let Some((_, replicas)) = super::kept(&ctx, &name) else { return Ok(None) };
    let count = ctx.cluster.count_claims(&name);
    let surplus = count.active - replicas;
    if surplus <= 0 {
        return Ok(Some(PERIOD));
    }
    tracing::info!(
        "current" = count.active,
        "desired" = replicas,
        "deprovision-count" = surplus,
        "deprovisioning nodeclaims to satisfy replica count"
    );
    let nodes: Vec<StateNode> = ctx
        .cluster
        .state_nodes_of(&name)
        .into_iter()
        .filter(|n| !n.deleting() && n.managed())
        .collect();
    let chosen = least_missed(&nodes, ctx.clock.now());
    let chosen = chosen.into_iter().take(usize::try_from(surplus).unwrap_or(0));
    let ctx = &*ctx;
    let gone = join_all(chosen.map(|claim| async move { delete(ctx, claim).await })).await;
    let errors: Vec<String> =
        gone.into_iter().filter_map(Result::err).map(|e| e.to_string()).collect();
    if errors.is_empty() {
        return Ok(Some(PERIOD));
    }
    Err(Error::Other(format!("failed to deprovision nodeclaims, {}", errors.join("; "))))
}

async fn delete(ctx: &Context, claim: String) -> Result<(), kube::Error> {
    tracing::debug!("NodeClaim" = %logging::obj(&claim), "deleting nodeclaim");
    let mut wait = Duration::from_millis(10);
    for attempt in 1.. {
        match deletion::delete(ctx, &claim).await {
            Ok(_) => break,
            Err(error) if attempt >= ATTEMPTS => return Err(error),
            Err(_) => tokio::time::sleep(wait).await,
        }
        wait *= 5;
    }
    // Before the watch shows it, so that the next look does not choose another one instead.
    ctx.cluster.mark_for_deletion(&[claim]);
    Ok(())
}

/// How much a node would be missed; the order of the variants' fields is that of their weight.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Missed {
    /// Not launched, empty, or with pods.
    stage: u8,
    /// Some pod must not be disturbed.
    protected: bool,
    cost: f64,
}

impl Missed {
    fn of(node: &StateNode, now: Timestamp) -> Self {
        // Nothing runs on what has not been launched.
        if node.provider_id().is_none() {
            return Self { stage: 0, protected: false, cost: 0.0 };
        }
        let protected = node.pods.iter().any(|p| p.do_not_disrupt_active(now));
        let only_daemons = node.pods.iter().all(|p| p.owners.daemon_set);
        if only_daemons && !protected {
            return Self { stage: 1, protected: false, cost: 0.0 };
        }
        let eviction: f64 = node.pods.iter().map(|p| eviction_cost(p)).sum();
        Self { stage: 2, protected, cost: eviction * lifetime_left(node, now) }
    }

    fn cmp(&self, other: &Self) -> Ordering {
        self.stage
            .cmp(&other.stage)
            .then(self.protected.cmp(&other.protected))
            .then(self.cost.total_cmp(&other.cost))
    }
}

/// The share of its life that a node has before it, between 0 and 1.
fn lifetime_left(node: &StateNode, now: Timestamp) -> f64 {
    let Some(claim) = &node.node_claim else { return 1.0 };
    let life = claim.spec.expire_after.as_ref().and_then(|e| e.duration());
    let created = claim.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let (Some(life), Some(created)) = (life.filter(|l| !l.is_zero()), created) else { return 1.0 };
    let age = now.duration_since(created).as_secs_f64();
    ((life.as_secs_f64() - age) / life.as_secs_f64()).clamp(0.0, 1.0)
}

/// Names of the nodes' claims, the least missed first.
fn least_missed(nodes: &[StateNode], now: Timestamp) -> Vec<String> {
    let mut order: Vec<(Missed, String)> = nodes
        .iter()
        .filter_map(|n| {
            let name = n.node_claim.as_ref()?.metadata.name.clone()?;
            Some((Missed::of(n, now), name))
        })
        .collect();
    // The name decides between equal nodes: a second try chooses the same ones.
    order.sort_by(|(a, x), (b, y)| a.cmp(b).then_with(|| x.cmp(y)));
    order.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::node::NodeView;
    use crate::scheduling::pod::{Owners, PodInfo};
    use serde_json::json;

    fn node(name: &str, id: Option<&str>, pods: Vec<PodInfo>) -> StateNode {
        let claim = json!({"metadata": {"name": name}, "spec": {},
            "status": {"providerID": id}});
        let view = NodeView {
            node_claim: Some(Arc::new(serde_json::from_value(claim).unwrap())),
            pods: pods.into_iter().map(Arc::new).collect(),
            ..NodeView::default()
        };
        view.into()
    }

    #[test]
    fn the_least_missed_node_goes_first() {
        let pod = |priority: i32| PodInfo { priority, ..PodInfo::default() };
        let daemon = || PodInfo {
            owners: Owners { daemon_set: true, ..Owners::default() },
            ..PodInfo::default()
        };
        let protected = PodInfo { do_not_disrupt: Some("true".into()), ..PodInfo::default() };
        let nodes = [
            node("protected", Some("a"), vec![protected]),
            node("dear", Some("b"), vec![pod(1 << 28)]),
            node("cheap", Some("c"), vec![pod(0)]),
            node("empty", Some("d"), vec![daemon()]),
            node("unlaunched", None, vec![]),
        ];
        assert_eq!(
            least_missed(&nodes, Timestamp::UNIX_EPOCH),
            ["unlaunched", "empty", "cheap", "dear", "protected"]
        );
    }
}
