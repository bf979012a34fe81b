//! `nodeclaim.reboot`: a node whose repair is a reboot is drained, rebooted and waited for.
//!
//! Repair requests it by the condition `Rebooting`. Each step is on the objects before the next one
//! begins, so that a controller that restarts goes on where the last one stopped. Pods are only
//! evicted: what no eviction may move goes through the reboot with its node.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::Api;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::drain;
use super::eviction::Evictions;
use crate::api::duration::parse_go;
use crate::api::v1::NodeClaim;
use crate::api::{annotations, conditions, labels, taints};
use crate::cloud;
use crate::cluster::Change;
use crate::controllers::nodeclaim::deletion;
use crate::controllers::nodeclaim::termination::tighten_deadline;
use crate::controllers::patch;
use crate::controllers::runner::{self, Identity};
use crate::controllers::{Context, Error, Outcome as Reconciled};
use crate::operator::events::{Report, reference};
use crate::operator::metrics;
use crate::scheduling::node::is_ready;

mod step;

use self::step::{Bound, Outcome, Seen, SeenNode, Step};

const REBOOT: Identity =
    Identity { name: "nodeclaim.reboot", group: labels::GROUP, kind: "NodeClaim", workers: 10 };
/// Time between looks at a node that drains, and until a write that met a conflict is tried again.
const DRAIN_POLL: Duration = Duration::from_secs(1);
/// Reasons of the condition.
pub(in crate::controllers) const REQUESTED: &str = "RebootRequested";
const ISSUED: &str = "RebootIssued";
const SUCCEEDED: &str = "RebootSucceeded";
const FAILED: &str = "RebootFailed";
/// Reason of `Initialized` meanwhile.
const REBOOTING: &str = "Rebooting";

struct Controller {
    evictions: Evictions,
    /// Since when the cloud has been asked for the reboot of a claim, by its name; only of claims that
    /// are rebooting.
    asked: Mutex<HashMap<String, Timestamp>>,
}

/// Starts the controller.
pub(super) fn start(ctx: &Arc<Context>, evictions: &Evictions, tasks: &mut JoinSet<()>) {
    let controller = Arc::new(Controller { evictions: evictions.clone(), asked: Mutex::default() });
    tasks.spawn(runner::run(REBOOT, Arc::clone(ctx), all, concerned, move |ctx, name| {
        let controller = Arc::clone(&controller);
        async move { controller.reconcile(&ctx, &name).await }
    }));
}

fn all(ctx: &Context) -> Vec<String> {
    let claims = ctx.cluster.claims();
    claims.iter().filter(|c| is_rebooting(c)).filter_map(|c| c.metadata.name.clone()).collect()
}

fn concerned(ctx: &Context, change: &Change) -> Vec<String> {
    let claim = match change {
        // Also one that is not rebooting any more, so that what is known of its reboot is forgotten.
        Change::NodeClaim(name) => ctx.cluster.claim(name).filter(|c| condition(c).is_some()),
        Change::Node(name) | Change::Bound(name) => ctx
            .cluster
            .node(name)
            .and_then(|n| n.spec.as_ref()?.provider_id.clone())
            .and_then(|id| ctx.cluster.claim_by_provider_id(&id))
            .filter(|c| is_rebooting(c)),
        _ => None,
    };
    claim.and_then(|c| c.metadata.name.clone()).into_iter().collect()
}

fn condition(claim: &NodeClaim) -> Option<&Condition> {
    conditions::get(&claim.status.as_ref()?.conditions, conditions::REBOOTING)
}

/// A claim that is being deleted is the affair of termination.
fn is_rebooting(claim: &NodeClaim) -> bool {
    claim.metadata.deletion_timestamp.is_none()
        && condition(claim).is_some_and(|c| c.status == conditions::TRUE)
}

fn mark<'a>(claim: &'a NodeClaim, key: &str) -> Option<&'a str> {
    claim.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The bound of the drain, as the request has it.
fn bound(claim: &NodeClaim) -> Bound {
    match mark(claim, annotations::REBOOT_TERMINATION_GRACE_PERIOD) {
        None => Bound::None,
        Some(text) => parse_go(text).map_or(Bound::Unreadable, Bound::Of),
    }
}

/// When the reboot was requested and, once it was, when the cloud accepted it.
fn times(claim: &NodeClaim) -> Option<(Timestamp, Option<Timestamp>)> {
    let asked = condition(claim)?;
    let list = &claim.status.as_ref()?.conditions;
    let initialized = conditions::get(list, conditions::INITIALIZED);
    let issued = initialized.map(|c| c.last_transition_time.0);
    Some((asked.last_transition_time.0, issued.filter(|_| asked.reason == ISSUED)))
}

fn is_tainted(node: &Node) -> bool {
    let list = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    list.iter().any(|t| taints::matches(t, &taints::rebooting()))
}

fn seen_node(node: &Node) -> SeenNode<'_> {
    let info = node.status.as_ref().and_then(|s| s.node_info.as_ref());
    SeenNode {
        boot_id: info.map_or("", |i| i.boot_id.as_str()),
        ready: is_ready(node),
        tainted: is_tainted(node),
    }
}

impl Controller {
    async fn reconcile(&self, ctx: &Context, name: &str) -> Reconciled {
        let Some(claim) = ctx.cluster.claim(name).filter(|c| is_rebooting(c)) else {
            self.asked.lock().remove(name);
            return Ok(None);
        };
        let Some((requested, issued)) = times(&claim) else { return Ok(None) };
        let id = claim.status.as_ref().and_then(|s| s.provider_id.clone()).unwrap_or_default();
        let node = ctx.cluster.nodes_by_provider_id(&id).into_iter().next();
        let now = ctx.clock.now();
        let node_name = node.as_ref().and_then(|n| n.metadata.name.clone()).unwrap_or_default();
        let plan = drain::plan(&ctx.cluster.pods_on(&node_name), None, now);
        let seen = Seen {
            requested,
            issued,
            asked: self.asked.lock().get(name).copied(),
            bound: bound(&claim),
            pods: plan.waiting,
            boot_id_before: mark(&claim, annotations::REBOOT_PRE_BOOT_ID),
            node: node.as_deref().map(seen_node),
        };
        match (step::next(&seen, now), &node) {
            (Step::Taint, Some(node)) => {
                taint(ctx, node, true).await?;
                Ok(Some(DRAIN_POLL))
            }
            (Step::Drain(wait), _) => {
                plan.leaving.iter().for_each(|pod| self.evictions.add(pod, None));
                Ok(Some(wait.min(DRAIN_POLL)))
            }
            (Step::Remember, Some(node)) => {
                // What is left rides along.
                self.evictions.withdraw(&node_name);
                let id = seen_node(node).boot_id;
                let mut changed = (*claim).clone();
                let marks = changed.metadata.annotations.get_or_insert_default();
                marks.insert(annotations::REBOOT_PRE_BOOT_ID.to_owned(), id.to_owned());
                write(ctx, &claim, &changed).await?;
                Ok(Some(DRAIN_POLL))
            }
            (Step::Ask, _) => self.ask(ctx, &claim, node.as_deref(), &seen).await,
            (Step::Issued, _) => issue(ctx, &claim).await,
            (Step::Observed, Some(node)) => {
                taint(ctx, node, false).await?;
                let since = attempt(&claim);
                ctx.recorder
                    .publish(Report::RebootObserved { since: &since }.on(reference(&*claim)));
                Ok(Some(DRAIN_POLL))
            }
            (Step::Wait(wait), _) => Ok(Some(wait)),
            (Step::End(outcome), _) => {
                self.end(ctx, &claim, node.as_deref(), &seen, outcome, outcome.message()).await
            }
            // Without a Node there is nothing to write to.
            (Step::Taint | Step::Remember | Step::Observed, None) => Ok(Some(step::POLL)),
        }
    }

    /// Asks the cloud, by a name that stays the same however often this is tried.
    async fn ask(
        &self,
        ctx: &Context,
        claim: &NodeClaim,
        node: Option<&Node>,
        seen: &Seen<'_>,
    ) -> Reconciled {
        let name = claim.metadata.name.clone().unwrap_or_default();
        let uid = claim.metadata.uid.as_deref().unwrap_or_default();
        self.asked.lock().entry(name).or_insert_with(|| ctx.clock.now());
        let before = seen.boot_id_before.unwrap_or_default();
        let request = format!("{uid}-{}-{before}", seen.requested.as_nanosecond());
        match ctx.cloud.reboot(claim, &request).await {
            Ok(()) => issue(ctx, claim).await,
            // Trying again cannot help.
            Err(error @ (cloud::Error::NodeClaimNotFound(_) | cloud::Error::RebootRefused(_))) => {
                let text = error.to_string();
                self.end(ctx, claim, node, seen, Outcome::ProviderError, &text).await
            }
            Err(error) => Err(Error::Other(format!("issuing reboot, {error}"))),
        }
    }

    /// Ends a reboot. A node that did not come back, or could not be rebooted, is replaced: its claim
    /// is deleted, with a deadline that the reboot's bound tightens.
    async fn end(
        &self,
        ctx: &Context,
        claim: &NodeClaim,
        node: Option<&Node>,
        seen: &Seen<'_>,
        outcome: Outcome,
        message: &str,
    ) -> Reconciled {
        if let Some(node) = node {
            taint(ctx, node, false).await?;
        }
        let good = outcome == Outcome::Succeeded;
        if good || outcome == Outcome::InvalidRequest {
            if !finish(ctx, claim, if good { SUCCEEDED } else { FAILED }, message).await? {
                return Ok(Some(DRAIN_POLL));
            }
        } else {
            replace(ctx, claim, seen.bound).await?;
        }
        self.asked.lock().remove(claim.metadata.name.as_deref().unwrap_or_default());
        tracing::info!("result" = outcome.label(), "message" = message, "reboot ended");
        if !good {
            let since = attempt(claim);
            let report = Report::RebootFailed { since: &since, why: &message };
            ctx.recorder.publish(report.on(reference(claim)));
        }
        count(ctx, seen, outcome);
        Ok(None)
    }
}

/// Deletes the claim of a node that a reboot did not help.
async fn replace(ctx: &Context, claim: &NodeClaim, bound: Bound) -> Result<(), Error> {
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    if let Bound::Of(limit) = bound {
        tighten_deadline(&api, claim, ctx.clock.now() + limit).await?;
    }
    deletion::delete(ctx, claim.metadata.name.as_deref().unwrap_or_default()).await?;
    Ok(())
}

/// Keeps new pods away from the node, or no longer.
async fn taint(ctx: &Context, node: &Node, on: bool) -> Result<(), Error> {
    let rebooting = taints::rebooting();
    let api = Api::<Node>::all(ctx.client.clone());
    patch::edit(&api, node, |wanted| {
        let list = wanted.spec.get_or_insert_default().taints.get_or_insert_default();
        list.retain(|t| !taints::matches(t, &rebooting));
        if on {
            list.push(rebooting.clone());
        }
    })
    .await?;
    Ok(())
}

/// Writes the claim as it is to be; false when somebody else wrote it meanwhile.
async fn write(ctx: &Context, claim: &NodeClaim, changed: &NodeClaim) -> Result<bool, Error> {
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    match patch::exact(&api, claim, changed).await {
        Err(error) if patch::is_conflict(&error) => Ok(false),
        written => {
            if let Some(claim) = written? {
                ctx.cluster.announce_claim(claim);
            }
            Ok(true)
        }
    }
}

/// Writes down that the cloud accepted the reboot: the node is not initialized until it is back. A
/// conflict asks the cloud again, which knows the request by its name.
async fn issue(ctx: &Context, claim: &NodeClaim) -> Reconciled {
    let now = ctx.clock.now();
    let id = claim.status.as_ref().and_then(|s| s.provider_id.clone()).unwrap_or_default();
    for node in ctx.cluster.nodes_by_provider_id(&id) {
        let api = Api::<Node>::all(ctx.client.clone());
        patch::edit(&api, &*node, |node| {
            if let Some(all) = node.metadata.labels.as_mut() {
                all.remove(labels::INITIALIZED);
            }
        })
        .await?;
    }
    let mut changed = claim.clone();
    let generation = claim.metadata.generation;
    let list = &mut changed.status.get_or_insert_default().conditions;
    let (kind, unknown) = (conditions::INITIALIZED, conditions::UNKNOWN);
    conditions::set(list, kind, unknown, REBOOTING, "node is rebooting", generation, now);
    // The time of the reboot, also for a node that was not initialized before.
    if let Some(found) = list.iter_mut().find(|c| c.type_ == kind) {
        found.last_transition_time = Time(now);
    }
    let message = condition(claim).map_or_else(String::new, |c| c.message.clone());
    let (kind, yes) = (conditions::REBOOTING, conditions::TRUE);
    conditions::set(list, kind, yes, ISSUED, &message, generation, now);
    let written = write(ctx, claim, &changed).await?;
    Ok(Some(if written { step::POLL } else { DRAIN_POLL }))
}

/// Ends the request on the claim; false when somebody else wrote it meanwhile.
async fn finish(
    ctx: &Context,
    claim: &NodeClaim,
    reason: &str,
    message: &str,
) -> Result<bool, Error> {
    let mut changed = claim.clone();
    if let Some(marks) = changed.metadata.annotations.as_mut() {
        marks.remove(annotations::REBOOT_PRE_BOOT_ID);
    }
    let (generation, now) = (claim.metadata.generation, ctx.clock.now());
    let list = &mut changed.status.get_or_insert_default().conditions;
    let (kind, no) = (conditions::REBOOTING, conditions::FALSE);
    conditions::set(list, kind, no, reason, message, generation, now);
    write(ctx, claim, &changed).await
}

/// What distinguishes one reboot of a claim from another: when its condition last changed.
fn attempt(claim: &NodeClaim) -> String {
    condition(claim).map(|c| c.last_transition_time.0.to_string()).unwrap_or_default()
}

fn count(ctx: &Context, seen: &Seen<'_>, outcome: Outcome) {
    metrics::NODE_REBOOTS.with_label_values(&[outcome.label()]).inc();
    let took = ctx.clock.since(seen.requested).as_secs_f64();
    metrics::NODE_REBOOT_DURATION.with_label_values(&[outcome.label()]).observe(took);
    if let Some(issued) = seen.issued.filter(|_| outcome == Outcome::Succeeded) {
        let took = ctx.clock.since(issued).as_secs_f64();
        metrics::NODE_REBOOT_RECOVERY.with_label_values::<&str>(&[]).observe(took);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::controllers::tests::{Asked, api_server, context};

    fn claim(version: &str, more: Value) -> NodeClaim {
        let mut claim = json!({"metadata": {"name": "c", "uid": "u", "resourceVersion": version},
            "spec": {"nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass",
                "name": "d"}},
            "status": {"conditions": [{"type": "Rebooting", "status": "True", "reason": REQUESTED,
                "message": "", "lastTransitionTime": "1970-01-01T00:00:00Z"}]}});
        claim["metadata"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(claim).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_that_goes_while_the_cloud_is_asked_is_forgotten() {
        let ctx = context(&api_server(Vec::new(), &Asked::default()));
        let mut tasks = JoinSet::new();
        let evictions = Evictions::start(&ctx, &mut tasks);
        let controller = Controller { evictions, asked: Mutex::default() };
        ctx.cluster.apply_claim(claim("1", json!({})));
        controller.asked.lock().insert("c".to_owned(), ctx.clock.now());
        assert_eq!(all(&ctx), ["c"]);
        let changed = Change::NodeClaim("c".to_owned());
        let going = json!({"deletionTimestamp": "1970-01-01T00:00:00Z", "finalizers": ["f"]});
        ctx.cluster.apply_claim(claim("2", going));
        assert!(all(&ctx).is_empty());
        assert_eq!(concerned(&ctx, &changed), ["c"], "to forget it");
        assert_eq!(controller.reconcile(&ctx, "c").await.unwrap(), None);
        assert!(controller.asked.lock().is_empty());
    }
}
