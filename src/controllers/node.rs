//! Node termination: tainted, drained tier by tier, released once its instance is gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::Api;
use kube::api::{DeleteParams, EvictParams, ListParams, Preconditions};
use tokio::task::JoinSet;

use super::patch::{self, Lock};
use super::runner::{self, Identity};
use super::{Context, Error, Outcome};
use crate::api::v1::NodeClaim;
use crate::api::{annotations, conditions, finalizers, taints};
use crate::operator::events::{Event, reference};
use crate::operator::logging;
use crate::scheduling::node::is_ready;

const TERMINATION: Identity =
    Identity { name: "node.termination", group: "", kind: "Node", workers: 100 };
/// Time between looks at a node that drains.
const DRAIN_POLL: Duration = Duration::from_secs(1);
/// Time between looks at an instance that is shutting down.
const INSTANCE_POLL: Duration = Duration::from_secs(5);
/// Pods may still be bound by a scheduler that has not seen the taint.
const MIN_DRAIN: Duration = Duration::from_secs(5);
/// A pod that is still there this long after its deletion time is not waited for.
const STUCK: Duration = Duration::from_secs(60);
/// Keeps load balancers from sending new traffic.
const EXCLUDE_BALANCERS: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Names of all Nodes.
pub(super) fn all_nodes(ctx: &Context) -> Vec<String> {
    let nodes = ctx.cluster.state_nodes();
    nodes.iter().filter_map(|n| n.node.as_ref()?.metadata.name.clone()).collect()
}

/// Starts the controller.
pub fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let termination = TERMINATION.scaled(&ctx.settings, 5000);
    tasks.spawn(runner::run(
        termination,
        Arc::clone(ctx),
        all_nodes,
        runner::changed_node,
        reconcile,
    ));
}

async fn reconcile(ctx: Arc<Context>, name: String) -> Outcome {
    let Some(node) = ctx.cluster.node(&name) else { return Ok(None) };
    let held = node.metadata.finalizers.iter().flatten().any(|f| f == finalizers::TERMINATION);
    if node.metadata.deletion_timestamp.is_none() || !held {
        return Ok(None);
    }
    let provider_id = node.spec.as_ref().and_then(|s| s.provider_id.clone()).unwrap_or_default();
    let claim_api = Api::<NodeClaim>::all(ctx.client.clone());
    let known = ctx.cluster.claim_by_provider_id(&provider_id);
    let claim = match known.as_ref().and_then(|c| c.metadata.name.clone()) {
        Some(name) => claim_api.get_opt(&name).await?,
        None => None,
    };
    if let Some(claim) = claim.as_ref().filter(|c| c.metadata.deletion_timestamp.is_none()) {
        patch::delete(&claim_api, claim.metadata.name.as_deref().unwrap_or("")).await?;
    }
    if !is_ready(&node) {
        match ctx.cloud.get(&provider_id).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => return release(&ctx, &node).await,
            Err(error) => return Err(Error::Other(format!("getting nodeclaim, {error}"))),
        }
    }
    if !taint(&ctx, &node).await? {
        return Ok(Some(DRAIN_POLL));
    }
    let step = Step { ctx: &ctx, node: &node, deadline: deadline(claim.as_ref())? };
    let Some(before) = claim else {
        return match step.drain().await? {
            0 => release(&ctx, &node).await,
            _ => Ok(Some(DRAIN_POLL)),
        };
    };
    let mut claim = before.clone();
    let outcome = step.with_claim(&mut claim).await;
    match patch::apply(&claim_api, &before, &claim, Lock::Optimistic).await {
        Err(error) if patch::is_conflict(&error) => return Ok(Some(DRAIN_POLL)),
        other => other?,
    }
    match outcome? {
        None => release(&ctx, &node).await,
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

/// Taints the node; false when it has to be read again.
async fn taint(ctx: &Context, node: &Node) -> Result<bool, Error> {
    let disrupted = taints::disrupted();
    let mut wanted = node.clone();
    let list = wanted.spec.get_or_insert_default().taints.get_or_insert_default();
    let tainted = list.iter().any(|t| taints::matches(t, &disrupted));
    if !tainted {
        list.retain(|t| t.key != disrupted.key);
        list.push(disrupted.clone());
    }
    let labels = wanted.metadata.labels.get_or_insert_default();
    labels.insert(EXCLUDE_BALANCERS.to_owned(), "karpenter".to_owned());
    let api = Api::<Node>::all(ctx.client.clone());
    match patch::apply(&api, node, &wanted, Lock::Optimistic).await {
        Err(error) if patch::is_conflict(&error) => return Ok(false),
        other => other?,
    }
    if !tainted {
        tracing::info!(
            "taint.Key" = disrupted.key,
            "taint.Value" = "",
            "taint.Effect" = disrupted.effect,
            "tainted node"
        );
    }
    Ok(true)
}

async fn release(ctx: &Context, node: &Node) -> Outcome {
    let mut wanted = node.clone();
    wanted.metadata.finalizers.get_or_insert_default().retain(|f| f != finalizers::TERMINATION);
    let api = Api::<Node>::all(ctx.client.clone());
    match patch::apply(&api, node, &wanted, Lock::Optimistic).await {
        Err(error) if patch::is_conflict(&error) => return Ok(Some(DRAIN_POLL)),
        other => other?,
    }
    tracing::info!("deleted node");
    Ok(None)
}

struct Step<'a> {
    ctx: &'a Context,
    node: &'a Node,
    deadline: Option<Timestamp>,
}

impl Step<'_> {
    /// Drains, waits for volumes, ends the instance; nothing when all is done.
    async fn with_claim(&self, claim: &mut NodeClaim) -> Outcome {
        let now = self.ctx.clock.now();
        let generation = claim.metadata.generation;
        let list = &mut claim.status.get_or_insert_default().conditions;
        let (drained, detached) = (conditions::DRAINED, conditions::VOLUMES_DETACHED);
        if conditions::get(list, drained).is_none() {
            let unknown = conditions::UNKNOWN;
            conditions::set(list, drained, unknown, "Draining", "Draining", generation, now);
        }
        if self.drain().await? > 0 {
            return Ok(Some(DRAIN_POLL));
        }
        let waited = conditions::get(list, drained)
            .filter(|c| c.status == conditions::UNKNOWN)
            .is_none_or(|c| self.ctx.clock.since(c.last_transition_time.0) >= MIN_DRAIN);
        if !waited {
            return Ok(Some(DRAIN_POLL));
        }
        conditions::set_true(list, drained, generation, now);
        if self.volumes_pending().await? {
            let over = self.deadline.is_some_and(|d| now >= d);
            let (status, reason) = if over {
                (conditions::FALSE, "TerminationGracePeriodElapsed")
            } else {
                (conditions::UNKNOWN, "AwaitingVolumeDetachment")
            };
            conditions::set(list, detached, status, reason, reason, generation, now);
            if !over {
                return Ok(Some(DRAIN_POLL));
            }
        } else {
            conditions::set_true(list, detached, generation, now);
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

    /// Evicts the first tier that has pods; tells how many pods are waited for in all.
    async fn drain(&self) -> Result<usize, Error> {
        let name = self.node.metadata.name.clone().unwrap_or_default();
        let params = ListParams::default().fields(&format!("spec.nodeName={name}"));
        let pods = Api::<Pod>::all(self.ctx.client.clone()).list(&params).await?.items;
        let now = self.ctx.clock.now();
        let waiting: Vec<&Pod> = pods.iter().filter(|p| is_drainable(p, now)).collect();
        let mut tiers: BTreeMap<u8, Vec<&Pod>> = BTreeMap::new();
        for pod in &waiting {
            if must_be_forced(pod, self.deadline, now) {
                self.force(pod, now).await?;
            } else {
                tiers.entry(tier(pod)).or_default().push(pod);
            }
        }
        if let Some(first) = tiers.into_values().next() {
            for pod in first.into_iter().filter(|p| is_evictable(p, now)) {
                self.evict(pod).await?;
            }
        }
        if !waiting.is_empty() {
            let message =
                format!("Failed to drain node, {} pods are waiting to be evicted", waiting.len());
            let event = Event::new(reference(self.node), true, "FailedDraining", message);
            self.ctx.recorder.publish(event);
        }
        Ok(waiting.len())
    }

    async fn evict(&self, pod: &Pod) -> Result<(), Error> {
        let (namespace, name) = names(pod);
        let params = EvictParams {
            delete_options: Some(DeleteParams {
                preconditions: Some(Preconditions {
                    uid: pod.metadata.uid.clone(),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            }),
            ..EvictParams::default()
        };
        let api = patch::namespaced::<Pod>(&self.ctx.client, namespace);
        match api.evict(name, &params).await {
            Ok(_) => {
                let message = "Evicted pod: Forceful Termination".to_owned();
                let event = Event::new(reference(pod), false, "Evicted", message);
                self.ctx.recorder.publish(event);
                Ok(())
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(kube::Error::Api(status)) if matches!(status.code, 429 | 500) => {
                let message = format!(
                    "Failed to drain node, evicting pod violates a PDB (Pod={namespace}/{name})"
                );
                let event = Event::new(reference(self.node), true, "FailedDraining", message);
                self.ctx.recorder.publish(event.by_message());
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn force(&self, pod: &Pod, now: Timestamp) -> Result<(), Error> {
        let (namespace, name) = names(pod);
        let left = self.deadline.map_or(1, |d| d.duration_since(now).as_secs()).max(1);
        let params = DeleteParams {
            grace_period_seconds: u32::try_from(left).ok(),
            preconditions: Some(Preconditions {
                uid: pod.metadata.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        tracing::debug!(
            "Pod" = %logging::obj_ns(namespace, name),
            "delete.gracePeriodSeconds" = left,
            "deleting pod"
        );
        match patch::namespaced::<Pod>(&self.ctx.client, namespace).delete(name, &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether volumes are still attached that no undrainable pod uses.
    async fn volumes_pending(&self) -> Result<bool, Error> {
        let name = self.node.metadata.name.as_deref();
        let api = Api::<VolumeAttachment>::all(self.ctx.client.clone());
        let attachments = api.list(&ListParams::default()).await?.items;
        Ok(attachments.iter().any(|a| {
            Some(a.spec.node_name.as_str()) == name
                && a.spec.source.persistent_volume_name.is_some()
        }))
    }
}

fn names(pod: &Pod) -> (&str, &str) {
    (pod.metadata.namespace.as_deref().unwrap_or(""), pod.metadata.name.as_deref().unwrap_or(""))
}

fn owned_by(pod: &Pod, api_version: &str, kind: &str) -> bool {
    let owners = pod.metadata.owner_references.iter().flatten();
    owners.into_iter().any(|o| o.api_version == api_version && o.kind == kind)
}

fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Failed" | "Succeeded"))
}

/// Waited for while draining.
fn is_drainable(pod: &Pod, now: Timestamp) -> bool {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.clone()).unwrap_or_default();
    let disrupted = taints::disrupted();
    let tolerates = crate::scheduling::taints::tolerate_all([&disrupted], &tolerations).is_ok();
    let stuck = pod
        .metadata
        .deletion_timestamp
        .as_ref()
        .is_some_and(|t| Duration::try_from(now.duration_since(t.0)).is_ok_and(|d| d > STUCK));
    !is_finished(pod) && !tolerates && !stuck && !owned_by(pod, "v1", "Node")
}

/// May be evicted now.
fn is_evictable(pod: &Pod, now: Timestamp) -> bool {
    let info = crate::scheduling::pod::PodInfo::from_pod(pod);
    pod.metadata.deletion_timestamp.is_none() && !info.do_not_disrupt_active(now)
}

/// Ordinary pods first, then daemons, then critical ones.
fn tier(pod: &Pod) -> u8 {
    let class = pod.spec.as_ref().and_then(|s| s.priority_class_name.as_deref());
    let critical = matches!(class, Some("system-cluster-critical" | "system-node-critical"));
    u8::from(critical) * 2 + u8::from(owned_by(pod, "apps/v1", "DaemonSet"))
}

/// Must be deleted now to have its whole grace period before the deadline.
fn must_be_forced(pod: &Pod, deadline: Option<Timestamp>, now: Timestamp) -> bool {
    let Some(deadline) = deadline else { return false };
    if let Some(deleted) = &pod.metadata.deletion_timestamp {
        return deleted.0 > deadline;
    }
    let grace = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
    grace.is_some_and(|seconds| now > deadline - jiff::SignedDuration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn pods_leave_tier_by_tier() {
        let daemon =
            json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u"}]);
        let critical = json!({"containers": [], "priorityClassName": "system-node-critical"});
        assert_eq!(tier(&pod(json!({"metadata": {}}))), 0);
        assert_eq!(tier(&pod(json!({"metadata": {"ownerReferences": daemon}}))), 1);
        assert_eq!(tier(&pod(json!({"metadata": {}, "spec": critical}))), 2);
        assert_eq!(
            tier(&pod(json!({"metadata": {"ownerReferences": daemon}, "spec": critical}))),
            3
        );
    }

    #[test]
    fn a_deadline_forces_pods_in_time_for_their_grace() {
        let now = Timestamp::UNIX_EPOCH + Duration::from_secs(100);
        let at = |s| Some(Timestamp::UNIX_EPOCH + Duration::from_secs(s));
        let slow = pod(json!({"metadata": {},
            "spec": {"containers": [], "terminationGracePeriodSeconds": 30}}));
        assert!(!must_be_forced(&slow, None, now));
        assert!(!must_be_forced(&slow, at(131), now));
        assert!(must_be_forced(&slow, at(129), now));
        assert!(is_drainable(&slow, now) && is_evictable(&slow, now));
        let kept =
            pod(json!({"metadata": {"annotations": {"karpenter.sh/do-not-disrupt": "true"}}}));
        assert!(is_drainable(&kept, now) && !is_evictable(&kept, now));
    }
}
