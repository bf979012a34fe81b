//! Disruption: nodes that are not needed, or not as they should be, are replaced and removed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::patch::{self, Lock};
use super::{Context, Error, provisioning, runner};
use crate::api::v1::NodeClaim;
use crate::api::{annotations, conditions, taints};
use crate::cluster::Change;
use crate::disruption::{self, Command, Decision, Input, Method};
use crate::operator::events::{Event, reference};
use crate::scheduling::node::StateNode;
use crate::scheduling::snapshot::Snapshot;

mod queue;

/// The cluster is looked at again after this long when there is nothing to do.
const PERIOD: Duration = Duration::from_secs(10);
/// A NodeClaim that became consolidatable is looked at at once, others that do within this time when
/// the loop comes by again.
const WAKE: Duration = Duration::from_secs(3);
/// An incomplete state is looked at again after this long.
const UNSYNCED: Duration = Duration::from_secs(1);
/// A consolidation must still hold after this long before it is carried out.
const VALIDATION: Duration = Duration::from_secs(15);
/// Time that each kind of consolidation may take.
const MULTI_LIMIT: Duration = Duration::from_secs(60);
const SINGLE_LIMIT: Duration = Duration::from_secs(180);

/// What the loop and the commands in flight share.
#[derive(Default)]
pub(super) struct InFlight {
    /// Provider ids of nodes that a command works on.
    queued: Mutex<HashSet<String>>,
}

/// Starts the loop.
pub fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let (ctx, in_flight) = (Arc::clone(ctx), Arc::new(InFlight::default()));
    // Ends with the controller, and with it the commands that are being carried out.
    let commands = Arc::new(tokio::sync::Mutex::new(JoinSet::new()));
    let context = Arc::clone(&ctx);
    runner::singleton(tasks, "disruption", &context, ripe(), move || {
        let (ctx, in_flight) = (Arc::clone(&ctx), Arc::clone(&in_flight));
        let commands = Arc::clone(&commands);
        async move {
            let mut commands = commands.lock().await;
            while commands.try_join_next().is_some() {}
            if !ctx.cluster.synced(ctx.clock.now()) {
                return Ok(Some(UNSYNCED));
            }
            let started = pass(&ctx, &in_flight, &mut commands).await?;
            Ok(Some(if started { Duration::ZERO } else { PERIOD }))
        }
    });
}

/// Wakes the loop when a NodeClaim becomes consolidatable, so that `consolidateAfter` and the time
/// for validation are all that a command waits for; in a storm of them not too often.
fn ripe() -> impl Fn(&Context, &Change) -> bool + Send + 'static {
    let last = Mutex::new(Instant::now());
    move |ctx, change| {
        let Change::NodeClaim(name) = change else { return false };
        let Some(claim) = ctx.cluster.claim(name) else { return false };
        let list = claim.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        let since = conditions::get(list, conditions::CONSOLIDATABLE)
            .filter(|c| c.status == conditions::TRUE)
            .map(|c| ctx.clock.since(c.last_transition_time.0));
        let mut last = last.lock();
        if since.is_none_or(|since| since > WAKE) || last.elapsed() < WAKE {
            return false;
        }
        *last = Instant::now();
        true
    }
}

/// Tries every method once; tells whether a command was started.
async fn pass(
    ctx: &Arc<Context>,
    in_flight: &Arc<InFlight>,
    commands: &mut JoinSet<()>,
) -> Result<bool, Error> {
    clean_up(ctx, in_flight).await?;
    warn_of_annotations(ctx);
    for method in Method::ALL {
        let decision = decide(ctx, in_flight, method).await;
        publish_rejections(ctx, &decision, method);
        let Some(command) = decision.command else { continue };
        let command = if method == Method::Drift {
            command
        } else {
            match validate(ctx, in_flight, command).await {
                Some(command) => command,
                None => continue,
            }
        };
        queue::start(ctx, in_flight, command, commands).await?;
        return Ok(true);
    }
    Ok(false)
}

async fn decide(ctx: &Arc<Context>, in_flight: &Arc<InFlight>, method: Method) -> Decision {
    let snapshot = provisioning::snapshot(ctx).await;
    let (ctx, in_flight) = (Arc::clone(ctx), Arc::clone(in_flight));
    let limit = if method == Method::MultiNode { MULTI_LIMIT } else { SINGLE_LIMIT };
    let decided = super::compute(move || {
        let (pdbs, queued) = (ctx.cluster.pdbs(), in_flight.queued.lock().clone());
        let input = input(&ctx, &snapshot, &pdbs, &queued);
        let end = Instant::now() + limit;
        disruption::decide(&input, method, &|| Instant::now() < end)
    })
    .await;
    decided.unwrap_or_default()
}

fn input<'a>(
    ctx: &Context,
    snapshot: &'a Snapshot,
    pdbs: &'a [Arc<k8s_openapi::api::policy::v1::PodDisruptionBudget>],
    queued: &'a HashSet<String>,
) -> Input<'a> {
    let spot_to_spot = ctx.settings.gates.spot_to_spot_consolidation;
    Input { snapshot, pdbs, now: ctx.clock.now(), queued, spot_to_spot }
}

/// Waits a while and asks whether the command still holds.
async fn validate(
    ctx: &Arc<Context>,
    in_flight: &Arc<InFlight>,
    command: Command,
) -> Option<Command> {
    tokio::time::sleep(VALIDATION).await;
    let snapshot = provisioning::snapshot(ctx).await;
    let (ctx, in_flight) = (Arc::clone(ctx), Arc::clone(in_flight));
    let checked = super::compute(move || {
        let (pdbs, queued) = (ctx.cluster.pdbs(), in_flight.queued.lock().clone());
        disruption::still_valid(&input(&ctx, &snapshot, &pdbs, &queued), &command)
            .map_err(|why| (why, command))
    })
    .await
    .ok()?;
    match checked {
        Ok(command) => Some(command),
        Err((why, command)) => {
            let what = match command.method {
                Method::Emptiness => "empty node consolidation",
                Method::MultiNode => "multi-node consolidation",
                _ => "single-node consolidation",
            };
            tracing::debug!(
                "reason" = why,
                "command" = command.describe(""),
                "abandoning {what} attempt due to pod churn, command is no longer valid"
            );
            None
        }
    }
}

/// Tells pods of annotations that were meant to protect them and do not.
fn warn_of_annotations(ctx: &Context) {
    for node in ctx.cluster.state_nodes().iter().filter(|n| n.managed()) {
        for pod in &node.pods {
            let Some(problem) = pod.do_not_disrupt_problem() else { continue };
            let text = format!(
                "Invalid {} annotation: {problem}, ignoring annotation",
                annotations::DO_NOT_DISRUPT
            );
            let object = provisioning::pod_reference(pod);
            let event = Event::new(object, true, "InvalidDoNotDisruptAnnotation", text);
            ctx.recorder.publish(event.by_message());
        }
    }
}

/// Tells on Node and NodeClaim why a node is left alone.
fn publish_rejections(ctx: &Context, decision: &Decision, method: Method) {
    let consolidating = matches!(method, Method::MultiNode | Method::SingleNode);
    if decision.rejected.is_empty() {
        return;
    }
    let nodes = ctx.cluster.state_nodes();
    let by_name: HashMap<&str, &StateNode> = nodes.iter().map(|n| (n.name(), n)).collect();
    for (name, text) in &decision.rejected {
        let Some(node) = by_name.get(name.as_str()) else { continue };
        let mut letters = text.chars();
        let message: String =
            letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect();
        let (reason, window) = if consolidating && !text.starts_with("node ") {
            ("Unconsolidatable", Duration::from_secs(900))
        } else {
            ("DisruptionBlocked", Duration::from_secs(120))
        };
        let objects = node
            .node
            .iter()
            .map(|n| reference(n.as_ref()))
            .chain(node.node_claim.iter().map(|c| reference(c.as_ref())));
        for object in objects {
            let mut event = Event::new(object, false, reason, message.clone());
            event.dedupe_for = window;
            ctx.recorder.publish(event);
        }
    }
}

/// Takes back the marks of commands that an earlier process did not finish.
async fn clean_up(ctx: &Context, in_flight: &InFlight) -> Result<(), Error> {
    for node in ctx.cluster.state_nodes() {
        let queued = node.provider_id().is_some_and(|id| in_flight.queued.lock().contains(id));
        if queued || node.deleting() {
            continue;
        }
        if let (Some(claim), Some(node)) = (&node.node_claim, &node.node) {
            unmark(ctx, node, claim).await?;
        }
    }
    Ok(())
}

/// Removes the taint and the condition that mark a node as being disrupted, also those that an older
/// release left behind.
async fn unmark(ctx: &Context, node: &Node, claim: &NodeClaim) -> Result<(), Error> {
    let mut changed = node.clone();
    if node.metadata.deletion_timestamp.is_none()
        && let Some(spec) = &mut changed.spec
        && let Some(list) = &mut spec.taints
    {
        list.retain(|t| !taints::marks_disruption(t));
    }
    patch::apply(&Api::<Node>::all(ctx.client.clone()), node, &changed, Lock::Optimistic).await?;
    let mut changed = claim.clone();
    let list = &mut changed.status.get_or_insert_default().conditions;
    if conditions::clear(list, conditions::DISRUPTION_REASON) {
        let api = Api::<NodeClaim>::all(ctx.client.clone());
        patch::apply(&api, claim, &changed, Lock::Optimistic).await?;
    }
    Ok(())
}

/// Marks a node as being disrupted: no new pods, and the reason on its claim.
async fn mark(ctx: &Context, node: &Node, claim: &NodeClaim, reason: &str) -> Result<(), Error> {
    let disrupted = taints::disrupted();
    let mut changed = node.clone();
    let list = changed.spec.get_or_insert_default().taints.get_or_insert_default();
    if !list.iter().any(|t| taints::matches(t, &disrupted)) {
        list.push(disrupted);
    }
    patch::apply(&Api::<Node>::all(ctx.client.clone()), node, &changed, Lock::Optimistic).await?;
    let mut changed = claim.clone();
    let generation = claim.metadata.generation;
    let now = ctx.clock.now();
    let list = &mut changed.status.get_or_insert_default().conditions;
    let kind = conditions::DISRUPTION_REASON;
    conditions::set(list, kind, conditions::TRUE, reason, reason, generation, now);
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    patch::apply(&api, claim, &changed, Lock::Optimistic).await?;
    Ok(())
}
