//! Commands in flight: marks, then replacements, then the nodes go.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;

use super::super::nodeclaim::deletion;
use super::super::nodeclaim::termination::tighten_deadline;
use super::super::{Context, Error, observability, provisioning};
use super::{InFlight, Seen, events, marks, reboots, record};
use crate::api::v1::NodeClaim;
use crate::api::{annotations, conditions, labels};
use crate::cluster::Change;
use crate::disruption::command::Repair;
use crate::disruption::progress::{
    self, CandidateState, Progress, ReplacementState, Step, timeout,
};
use crate::disruption::static_drift::node_limit;
use crate::disruption::{self, Abandoned, Candidate, Command, Method};
use crate::operator::events::{Report, reference};
use crate::operator::logging;
use crate::scheduling::pod::PodInfo;
use crate::scheduling::results::PlannedClaim;

const POLL: Duration = Duration::from_secs(1);

/// What a command under way needs to know of where it came from.
pub(super) struct Running {
    pub(super) progress: Progress,
    /// The reason, as on the NodeClaims.
    pub(super) reason: String,
    /// How it was found; unknown for one that an older release began.
    pub(super) method: Option<Method>,
    pub(super) decision: &'static str,
    /// One line for the logs.
    pub(super) describe: String,
    /// Pools of the replacements.
    pub(super) pools: Vec<String>,
    pub(super) repair: Option<Repair>,
}

/// A command that was begun.
pub(super) enum Started {
    /// There was nothing to carry out any more.
    Nothing,
    /// Its reboots were asked for; that is all there is to it.
    Rebooting,
    /// Marks and replacements are there, and nothing is deleted yet. With the nodes' provider ids.
    Marked(Box<Running>, Vec<String>),
}

/// Begins to carry a command out: its marks and replacements are there when this returns. The rest is
/// [`follow_to_end`].
pub(super) async fn start(
    ctx: &Arc<Context>,
    in_flight: &Arc<InFlight>,
    mut command: Command,
) -> Result<Started, Error> {
    let id = uuid::Uuid::new_v4().to_string();
    if command.reboots() {
        let any = reboots::commit(ctx, &in_flight.reboots, &command, &id).await?;
        return Ok(if any { Started::Rebooting } else { Started::Nothing });
    }
    log(&command, &id);
    let failed = marks::mark_all(ctx, &command.candidates, command.reason().as_str()).await;
    if let Some((_, error)) = failed.first()
        && (!command.replacements.is_empty() || failed.len() == command.candidates.len())
    {
        return Err(Error::Other(format!("marking disrupted, {error}")));
    }
    command.candidates.retain(|c| failed.iter().all(|(name, _)| name != c.claim_name()));
    if !settle(ctx, in_flight, &mut command).await {
        return Ok(Started::Nothing);
    }
    let names = command.claim_names();
    if command.candidates.iter().any(Candidate::is_static) {
        // A replacement beside a node that still counts would be one node too many.
        ctx.cluster.mark_for_deletion(&names);
    }
    let replacements = launch(ctx, in_flight, &command).await?;
    // Not before the replacements are there: provisioning would launch the same capacity again.
    ctx.cluster.mark_for_deletion(&names);
    nominate(ctx, &command);
    record::started(&command);
    record::saved(ctx, &command);
    let ids: Vec<String> =
        command.candidates.iter().filter_map(|c| c.node.provider_id().map(str::to_owned)).collect();
    let queued = {
        let mut queued = in_flight.queued.lock();
        queued.extend(ids.iter().cloned());
        queued.len()
    };
    let running = Running {
        progress: Progress {
            candidates: names,
            wanted: replacements.len(),
            replacements,
            since: ctx.clock.now(),
            timeout: timeout(queued),
        },
        reason: command.reason().as_str().to_owned(),
        method: Some(command.method),
        decision: command.decision(),
        describe: command.describe(&id),
        pools: command
            .replacements
            .iter()
            .filter_map(|r| r.node_pool.metadata.name.clone())
            .collect(),
        repair: command.repair.clone(),
    };
    Ok(Started::Marked(Box::new(running), ids))
}

/// Carries the rest of a command out in the background.
pub(super) fn follow_to_end(
    ctx: &Arc<Context>,
    in_flight: &Arc<InFlight>,
    started: Started,
    tasks: &mut JoinSet<()>,
) {
    if let Started::Marked(running, ids) = started {
        spawn(ctx, in_flight, *running, ids, tasks);
    }
}

/// Follows a command to its end in the background.
pub(super) fn spawn(
    ctx: &Arc<Context>,
    in_flight: &Arc<InFlight>,
    running: Running,
    ids: Vec<String>,
    tasks: &mut JoinSet<()>,
) {
    let (ctx, in_flight) = (Arc::clone(ctx), Arc::clone(in_flight));
    let work = async move {
        follow(&ctx, &in_flight, &running).await;
        in_flight.queued.lock().retain(|id| !ids.contains(id));
    };
    tasks.spawn(work.instrument(logging::controller_span("disruption.queue")));
}

/// Looks once more at the candidates, now that the taint keeps new pods away. What changed on a node
/// since the decision keeps it; returns whether the command goes on.
async fn settle(ctx: &Context, in_flight: &InFlight, command: &mut Command) -> bool {
    if command.method.validated().is_none() {
        return true;
    }
    let seen = Seen::now(ctx, in_flight).await;
    let checks = command.candidates.iter().map(|c| undisturbed(ctx, &seen, c, command.method));
    let outcomes = join_all(checks).await;
    let Some(why) = outcomes.iter().find_map(Option::as_ref).cloned() else { return true };
    let mut kept = outcomes.into_iter();
    let mut stay = Vec::new();
    let whole = command.replacements.is_empty();
    command.candidates.retain(|c| {
        let goes = matches!(kept.next(), Some(None)) && whole;
        if !goes {
            stay.push(c.clone());
        }
        goes
    });
    let mut left = command.clone();
    left.candidates = stay;
    tracing::debug!(
        "reason" = why.reason(),
        "error" = %why,
        "command" = left.describe(""),
        "abandoning disruption of nodes that changed before they were marked"
    );
    record::failed_validation(&left);
    events::abandoned(ctx, &left, &why);
    marks::unmark_claims(ctx, &left.claim_names()).await;
    command.savings = command.candidates.iter().map(|c| c.price).sum();
    !command.candidates.is_empty()
}

/// Why a candidate must stay after all, by its pods as the API server has them.
async fn undisturbed(
    ctx: &Context,
    seen: &Seen,
    candidate: &Candidate,
    method: Method,
) -> Option<Abandoned> {
    let on_node = ListParams::default().fields(&format!("spec.nodeName={}", candidate.node.name()));
    let mut node = candidate.node.clone();
    match Api::<Pod>::all(ctx.client.clone()).list(&on_node).await {
        Ok(pods) => {
            let pods = pods.items.iter().map(|p| Arc::new(PodInfo::from_pod(p)));
            node.pods = pods.filter(|p| !p.terminal).collect();
        }
        // The watch is nearly as fresh.
        Err(_) => node.pods = ctx.cluster.pods_on(candidate.node.name()),
    }
    disruption::undisturbed(&seen.input(ctx), candidate, method, &node).err()
}

/// Launches what a command needs first; takes everything back when not all of it can be.
async fn launch(
    ctx: &Context,
    in_flight: &InFlight,
    command: &Command,
) -> Result<Vec<String>, Error> {
    let names = command.claim_names();
    let replaces = names.join(",");
    let reason = command.reason();
    let mut made = Vec::new();
    for planned in &command.replacements {
        let pool = planned.node_pool.metadata.name.clone().unwrap_or_default();
        match launch_one(ctx, planned, &pool, command, &replaces).await {
            Ok(claim) => {
                let report = Report::DisruptionLaunching { reason: &reason.as_str() };
                ctx.recorder.publish(report.on(reference(&claim)));
                made.push(claim.metadata.name.clone().unwrap_or_default());
            }
            Err(error) => {
                in_flight.replacement_failed(&pool, ctx.clock.now());
                record::failed(
                    command.decision(),
                    reason.label(),
                    command.method.consolidation_type(),
                    command.replacements.len() - made.len(),
                );
                remove(ctx, &made).await;
                marks::unmark_claims(ctx, &names).await;
                return Err(error);
            }
        }
    }
    Ok(made)
}

async fn launch_one(
    ctx: &Context,
    planned: &PlannedClaim,
    pool: &str,
    command: &Command,
    replaces: &str,
) -> Result<NodeClaim, Error> {
    // Static provisioning fills the same room at the same time.
    let fixed = planned.node_pool.spec.replicas.is_some();
    if fixed && ctx.cluster.reserve_nodes(pool, node_limit(&planned.node_pool), 1) == 0 {
        return Err(Error::Other(format!("nodepool {pool} is at its node limit")));
    }
    let wanted = command.replacements.len();
    let claim = provisioning::launch_with(ctx, planned, command.reason().label(), |claim| {
        let marks = claim.metadata.annotations.get_or_insert_default();
        marks.insert(annotations::REPLACES.to_owned(), replaces.to_owned());
        let method = command.method.name().to_owned();
        marks.insert(annotations::DISRUPTION_METHOD.to_owned(), method);
        if let Some(repair) = &command.repair {
            marks.insert(annotations::REPAIRS.to_owned(), repair.to_string());
        }
        if wanted > 1 {
            marks.insert(annotations::REPLACEMENTS.to_owned(), wanted.to_string());
        }
    })
    .await;
    if fixed {
        ctx.cluster.release_nodes(pool, 1);
    }
    claim
}

/// Removes replacements that nobody waits for any more.
pub(super) async fn remove(ctx: &Context, claims: &[String]) {
    for name in claims {
        match deletion::delete(ctx, name).await {
            Ok(_) => tracing::info!(
                "NodeClaim" = %logging::obj(name),
                "deleting replacement that no disruption command needs any more"
            ),
            Err(error) => tracing::error!("error" = %error, "Reconciler error"),
        }
    }
}

/// Existing nodes that will take pods are left alone for a while.
fn nominate(ctx: &Context, command: &Command) {
    let until =
        ctx.clock.now() + (2 * ctx.settings.batch_max_duration).max(Duration::from_secs(10));
    for node in ctx.cluster.state_nodes() {
        if command.nominated.iter().any(|n| n == node.name())
            && let Some(name) = node.node_claim.as_ref().and_then(|c| c.metadata.name.as_deref())
        {
            ctx.cluster.nominate(name, until);
        }
    }
}

/// Takes one step after the other until the command is done or rolled back.
async fn follow(ctx: &Context, in_flight: &InFlight, running: &Running) {
    // Upstream waits for a replacement until it was initialized once: what happens to it later is
    // no longer the command's affair.
    let mut ready = vec![false; running.progress.replacements.len()];
    let mut changes = ctx.cluster.subscribe();
    loop {
        let seen = look(ctx, running, &mut ready).await;
        match progress::next(&running.progress, &seen, ctx.clock.now()) {
            Step::Wait(waiting) => {
                for name in &waiting {
                    announce_wait(ctx, name);
                }
            }
            Step::Delete(names) => {
                for pool in &running.pools {
                    in_flight.replacement_came_up(pool);
                }
                join_all(names.iter().map(|name| delete(ctx, running, name))).await;
            }
            Step::Done => {
                tracing::debug!("command" = running.describe, "command succeeded");
                return;
            }
            Step::RollBack { candidates, orphans, why } => {
                roll_back(ctx, in_flight, running, &candidates, &orphans, &why).await;
                return;
            }
        }
        // A replacement that fails ends the command at once; what is missed is seen a second later.
        let _ = timeout_at(Instant::now() + POLL, changed(&mut changes, &running.progress)).await;
    }
}

/// Waits until one of a command's replacements changes.
async fn changed(changes: &mut Receiver<Change>, command: &Progress) {
    loop {
        match changes.recv().await {
            Ok(Change::NodeClaim(name)) if command.replacements.contains(&name) => return,
            Ok(_) => {}
            Err(_) => std::future::pending().await,
        }
    }
}

async fn look(ctx: &Context, running: &Running, ready: &mut [bool]) -> progress::Seen {
    let mut seen = progress::Seen::default();
    for name in &running.progress.candidates {
        let going = ctx.cluster.claim(name).is_none_or(|c| c.metadata.deletion_timestamp.is_some());
        // The marks were just written, or read from the API server: the watch may lag behind.
        seen.candidates.push(if going { CandidateState::Going } else { CandidateState::Marked });
    }
    for (name, was_ready) in running.progress.replacements.iter().zip(ready) {
        let state = if *was_ready { ReplacementState::Ready } else { replacement(ctx, name).await };
        *was_ready = state == ReplacementState::Ready;
        seen.replacements.push(state);
    }
    seen
}

/// Upstream's rule: a replacement is gone once neither the API server nor the state has it.
async fn replacement(ctx: &Context, name: &str) -> ReplacementState {
    let claim = match ctx.cluster.claim(name) {
        Some(claim) => claim,
        None => match Api::<NodeClaim>::all(ctx.client.clone()).get_opt(name).await {
            Ok(None) => return ReplacementState::Gone,
            Ok(Some(claim)) => Arc::new(claim),
            Err(_) => return ReplacementState::Waiting,
        },
    };
    let list = claim.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    if conditions::is_true(list, conditions::INITIALIZED) {
        ReplacementState::Ready
    } else if claim.metadata.deletion_timestamp.is_some() {
        ReplacementState::Gone
    } else {
        ReplacementState::Waiting
    }
}

fn announce_wait(ctx: &Context, name: &str) {
    let Some(claim) = ctx.cluster.claim(name) else { return };
    ctx.recorder.publish(Report::DisruptionWaitingReadiness.on(reference(claim.as_ref())));
}

/// Deletes one candidate; what fails is tried again with the next look.
async fn delete(ctx: &Context, running: &Running, name: &str) {
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    let Some(claim) = ctx.cluster.claim(name) else { return };
    // Before the deletion: the drain begins with it, and its bound must be there by then.
    if let Some(bound) = running.repair.as_ref().and_then(|r| r.drain)
        && let Err(error) = tighten_deadline(&api, &claim, ctx.clock.now() + bound).await
    {
        tracing::error!("error" = %Error::from(error), "Reconciler error");
        return;
    }
    match deletion::delete(ctx, name).await {
        Ok(true) => {}
        Ok(false) => return,
        Err(error) => {
            tracing::error!("error" = %error, "Reconciler error");
            return;
        }
    }
    let pool = claim.metadata.labels.as_ref().and_then(|l| l.get(labels::NODEPOOL));
    let policy =
        pool.and_then(|p| ctx.cluster.pool(p)).zip(running.method).map(|(pool, method)| {
            record::policy_label(method, pool.spec.disruption.consolidation_policy)
        });
    let policy = policy.unwrap_or_default();
    observability::disrupted_with_pods(ctx, &claim, &running.reason.to_lowercase(), policy);
    if let Some(repair) = &running.repair {
        super::super::node::health::count(&claim, repair.condition, repair.drain);
    }
    let announce = |object, kind: &str| {
        let report = Report::DisruptionTerminating { kind: &kind, reason: &running.reason };
        ctx.recorder.publish(report.on(object));
    };
    if let Some(node) = ctx.cluster.state_node(name).and_then(|s| s.node.clone()) {
        announce(reference(node.as_ref()), "Node");
    }
    announce(reference(claim.as_ref()), "NodeClaim");
}

/// Leaves the candidates as they were, and removes replacements that are not up.
async fn roll_back(
    ctx: &Context,
    in_flight: &InFlight,
    running: &Running,
    candidates: &[String],
    orphans: &[String],
    why: &Abandoned,
) {
    tracing::error!(
        "command" = running.describe,
        "error" = %why,
        "failed terminating nodes while executing a disruption command"
    );
    let kind = running.method.map_or("", Method::consolidation_type);
    record::failed(running.decision, &running.reason.to_lowercase(), kind, orphans.len().max(1));
    for pool in &running.pools {
        in_flight.replacement_failed(pool, ctx.clock.now());
    }
    marks::unmark_claims(ctx, candidates).await;
    remove(ctx, orphans).await;
}

fn log(command: &Command, id: &str) {
    let disrupted: Vec<Value> = command
        .candidates
        .iter()
        .map(|c| {
            json!({
                "Node": {"name": c.node.name()},
                "NodeClaim": {"name": c.claim_name()},
                "capacity-type": c.label(labels::CAPACITY_TYPE).unwrap_or_default(),
                "instance-type": c.label(labels::INSTANCE_TYPE).unwrap_or_default(),
            })
        })
        .collect();
    let replacements: Vec<Value> = command
        .replacements
        .iter()
        .map(|r| {
            let names = provisioning::listed(r.instance_types.iter().map(|t| &t.name));
            let capacity_type =
                r.cheapest().map(|(_, o)| o.capacity_type().to_owned()).unwrap_or_default();
            json!({"capacity-type": capacity_type, "instance-types": names})
        })
        .collect();
    tracing::info!(
        "command" = command.describe(id),
        "decision" = command.decision(),
        "disrupted-node-count" = command.candidates.len(),
        "replacement-node-count" = replacements.len(),
        "pod-count" = command.pod_count(),
        "disrupted-nodes" = %logging::json(&disrupted),
        "replacement-nodes" = %logging::json(&replacements),
        "disrupting node(s)"
    );
}
