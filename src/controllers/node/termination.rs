//! Node termination: the node is tainted, drained, rid of its volumes, and released once its instance
//! is gone.
//!
//! Reads the state, which the watches feed, each second. Two reads are live, each made once: that the
//! node is really empty before its instance ends, and the Node itself where a write met a conflict.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use tokio::task::JoinSet;

use super::eviction::{Evictions, live_pods};
use super::{all_nodes, drain, volumes};
use crate::api::v1::NodeClaim;
use crate::api::{annotations, conditions, finalizers, taints};
use crate::cluster::Change;
use crate::controllers::nodeclaim::deletion;
use crate::controllers::patch;
use crate::controllers::runner::{self, Identity};
use crate::controllers::{Context, Error, Outcome};
use crate::operator::events::{Report, reference};
use crate::operator::rate::Backoff;
use crate::scheduling::node::is_ready;

const TERMINATION: Identity =
    Identity { name: "node.termination", group: "", kind: "Node", workers: 100 };
/// Waits after failures of one node.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
/// Time between looks at a node that drains.
const DRAIN_POLL: Duration = Duration::from_secs(1);
/// Time between looks at an instance that is shutting down.
const INSTANCE_POLL: Duration = Duration::from_secs(5);
/// Pods may still be bound by a scheduler that has not seen the taint.
const MIN_DRAIN: Duration = Duration::from_secs(5);
/// Keeps load balancers from sending new traffic.
const EXCLUDE_BALANCERS: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Starts the controller, which fills the eviction queue.
pub(super) fn start(ctx: &Arc<Context>, evictions: &Evictions, tasks: &mut JoinSet<()>) {
    let evictions = evictions.clone();
    tasks.spawn(runner::run_with(
        TERMINATION.scaled(&ctx.settings, 5000),
        BACKOFF,
        Arc::clone(ctx),
        all_nodes,
        concerned,
        move |ctx, name| {
            let evictions = evictions.clone();
            async move { reconcile(&ctx, &evictions, &name).await }
        },
    ));
}

/// Nodes on their way out that changed, or that a pod has left.
fn concerned(ctx: &Context, change: &Change) -> Vec<String> {
    match change {
        Change::Node(name) | Change::Bound(name)
            if ctx.cluster.managed_node(name).is_some_and(|n| is_leaving(&n)) =>
        {
            vec![name.clone()]
        }
        _ => Vec::new(),
    }
}

/// Deleting, and held back by our finalizer.
fn is_leaving(node: &Node) -> bool {
    node.metadata.deletion_timestamp.is_some()
        && node.metadata.finalizers.iter().flatten().any(|f| f == finalizers::TERMINATION)
}

async fn reconcile(ctx: &Context, evictions: &Evictions, name: &str) -> Outcome {
    let Some(node) = ctx.cluster.managed_node(name).filter(|n| is_leaving(n)) else {
        return Ok(None);
    };
    let provider_id = node.spec.as_ref().and_then(|s| s.provider_id.clone()).unwrap_or_default();
    let claim = ctx.cluster.claim_by_provider_id(&provider_id);
    // A Node that somebody deletes takes its NodeClaim and its instance along.
    if let Some(claim) = claim.as_ref().filter(|c| c.metadata.deletion_timestamp.is_none()) {
        deletion::delete(ctx, claim.metadata.name.as_deref().unwrap_or("")).await?;
    }
    // A kubelet that is gone cannot end pods: without its instance nothing is left to drain.
    if !is_ready(&node) {
        match ctx.cloud.get(&provider_id).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => return release(ctx, &node).await,
            Err(error) => return Err(Error::Other(format!("getting nodeclaim, {error}"))),
        }
    }
    let deadline = deadline(claim.as_deref())?;
    if let Some(deadline) = deadline {
        let report = Report::TerminationGracePeriodExpiring { deadline: &deadline };
        ctx.recorder.publish(report.on(reference(&*node)));
    }
    // Before any pod is evicted: its successor must not come to the same node.
    taint(ctx, &node).await?;
    let step = Step { ctx, evictions, node: &node, name, deadline };
    let Some(before) = claim else {
        return match step.is_drained().await? {
            true => release(ctx, &node).await,
            false => Ok(Some(DRAIN_POLL)),
        };
    };
    let mut claim = (*before).clone();
    // The conditions are written even where the step failed: they say how far it came.
    let outcome = step.with_claim(&mut claim).await;
    let claims = Api::<NodeClaim>::all(ctx.client.clone());
    patch::merge(&claims, &before, &claim).await?;
    match outcome? {
        None => release(ctx, &node).await,
        again => Ok(again),
    }
}

/// When draining has to be over.
fn deadline(claim: Option<&NodeClaim>) -> Result<Option<Timestamp>, Error> {
    let text = claim
        .and_then(|c| c.metadata.annotations.as_ref())
        .and_then(|a| a.get(annotations::TERMINATION_TIMESTAMP));
    text.map(|t| {
        t.parse().map_err(|e| {
            Error::Other(format!(
                "parsing annotation {}={t:?}, expected an RFC 3339 time, {e}",
                annotations::TERMINATION_TIMESTAMP
            ))
        })
    })
    .transpose()
}

/// Taints the node and keeps load balancers away from it.
///
/// A write replaces the whole list of taints, so it must find the one that it was made from. Kubelets
/// write their nodes all the time, though: a conflict is tried again at once on the live Node.
async fn taint(ctx: &Context, node: &Node) -> Result<(), Error> {
    let disrupted = taints::disrupted();
    let api = Api::<Node>::all(ctx.client.clone());
    let written = patch::edit(&api, node, |wanted| {
        let list = wanted.spec.get_or_insert_default().taints.get_or_insert_default();
        if !list.iter().any(|t| taints::matches(t, &disrupted)) {
            // A taint of the same key with another effect would stay beside it.
            list.retain(|t| t.key != disrupted.key);
            list.push(disrupted.clone());
        }
        let labels = wanted.metadata.labels.get_or_insert_default();
        labels.insert(EXCLUDE_BALANCERS.to_owned(), "karpenter".to_owned());
    })
    .await?;
    if written {
        tracing::info!(
            "taint.Key" = disrupted.key,
            "taint.Value" = "",
            "taint.Effect" = disrupted.effect,
            "tainted node"
        );
    }
    Ok(())
}

async fn release(ctx: &Context, node: &Node) -> Outcome {
    let api = Api::<Node>::all(ctx.client.clone());
    if patch::release(&api, node, finalizers::TERMINATION).await? {
        tracing::info!("deleted node");
    }
    Ok(None)
}

struct Step<'a> {
    ctx: &'a Context,
    evictions: &'a Evictions,
    node: &'a Node,
    name: &'a str,
    deadline: Option<Timestamp>,
}

impl Step<'_> {
    /// Drains, waits for volumes, ends the instance; nothing when all is done.
    async fn with_claim(&self, claim: &mut NodeClaim) -> Outcome {
        let now = self.ctx.clock.now();
        let generation = claim.metadata.generation;
        let list = &mut claim.status.get_or_insert_default().conditions;
        let drained = conditions::DRAINED;
        if conditions::get(list, drained).is_none() {
            let unknown = conditions::UNKNOWN;
            conditions::set(list, drained, unknown, "Draining", "Draining", generation, now);
        }
        if !conditions::is_true(list, drained) {
            let since = conditions::get(list, drained).map(|c| c.last_transition_time.0);
            // The scheduler may have bound a pod a moment before the taint, and the watch shows it
            // late.
            let young = since.is_none_or(|t| self.ctx.clock.since(t) < MIN_DRAIN);
            if self.leaving(&self.ctx.cluster.pods_on(self.name)) || young {
                return Ok(Some(DRAIN_POLL));
            }
            // Asked of the API server before the instance goes, as what is lost then is lost.
            if !self.is_drained().await? {
                return Ok(Some(DRAIN_POLL));
            }
            conditions::set_true(list, drained, generation, now);
        } else if self.leaving(&self.ctx.cluster.pods_on(self.name)) {
            return Ok(Some(DRAIN_POLL));
        }
        if !self.detached(claim, now) {
            return Ok(Some(DRAIN_POLL));
        }
        let gone = match self.ctx.cloud.delete(claim).await {
            Ok(()) => false,
            Err(error) if error.is_not_found() => true,
            Err(error) => return Err(error.into()),
        };
        let list = &mut claim.status.get_or_insert_default().conditions;
        conditions::set_true(list, conditions::INSTANCE_TERMINATING, generation, now);
        Ok((!gone).then_some(INSTANCE_POLL))
    }

    /// Whether no pod is waited for, as the API server has it.
    async fn is_drained(&self) -> Result<bool, Error> {
        if self.leaving(&self.ctx.cluster.pods_on(self.name)) {
            return Ok(false);
        }
        Ok(!self.leaving(&live_pods(self.ctx, self.name).await?))
    }

    /// Has the next pods evicted; true while any pod is waited for.
    fn leaving(&self, pods: &[Arc<crate::scheduling::pod::PodInfo>]) -> bool {
        let plan = drain::plan(pods, self.deadline, self.ctx.clock.now());
        for pod in &plan.leaving {
            self.evictions.add(pod, self.deadline);
        }
        if plan.waiting == 0 {
            return false;
        }
        let report = Report::Draining { count: &plan.waiting };
        self.ctx.recorder.publish(report.on(reference(self.node)));
        true
    }

    /// Whether nothing is attached any more that has to be detached first, or waiting is over.
    fn detached(&self, claim: &mut NodeClaim, now: Timestamp) -> bool {
        let generation = claim.metadata.generation;
        let list = &mut claim.status.get_or_insert_default().conditions;
        let kind = conditions::VOLUMES_DETACHED;
        let pending = volumes::pending(&self.ctx.cluster, self.name, now);
        if pending.is_empty() {
            conditions::set_true(list, kind, generation, now);
            return true;
        }
        let over = self.deadline.is_some_and(|d| now >= d);
        let (status, reason) = if over {
            (conditions::FALSE, "TerminationGracePeriodElapsed")
        } else {
            (conditions::UNKNOWN, "AwaitingVolumeDetachment")
        };
        conditions::set(list, kind, status, reason, reason, generation, now);
        if !over {
            let report = Report::AwaitingVolumeDetachment { volumes: &volumes::named(&pending) };
            self.ctx.recorder.publish(report.on(reference(self.node)));
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_deadline_that_cannot_be_read_names_the_annotation() {
        let claim = |time: &str| -> NodeClaim {
            serde_json::from_value(json!({"metadata": {"annotations":
                {annotations::TERMINATION_TIMESTAMP: time}}, "spec": {}}))
            .unwrap()
        };
        let at: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(deadline(Some(&claim("2026-01-01T00:00:00Z"))).unwrap(), Some(at));
        assert_eq!(deadline(None).unwrap(), None);
        let error = deadline(Some(&claim("soon"))).unwrap_err().to_string();
        assert!(error.contains(annotations::TERMINATION_TIMESTAMP), "{error}");
    }
}
