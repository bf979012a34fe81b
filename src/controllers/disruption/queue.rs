//! Commands in flight: replacements first, then the nodes go.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::Instrument as _;

use super::super::{Context, Error, observability, patch, provisioning};
use super::{InFlight, mark, unmark};
use crate::api::v1::NodeClaim;
use crate::api::{conditions, labels};
use crate::disruption::{Candidate, Command};
use crate::operator::events::{Event, reference};
use crate::operator::logging;

/// A command that is not done after this long is given up.
const TIMEOUT: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_secs(1);

/// Carries a command out: what must be there before this returns is marks and replacements; the
/// rest goes on in the background.
pub(super) async fn start(
    ctx: &Arc<Context>,
    in_flight: &Arc<InFlight>,
    mut command: Command,
    tasks: &mut JoinSet<()>,
) -> Result<(), Error> {
    let id = uuid::Uuid::new_v4().to_string();
    log(&command, &id);
    let mut failed = Vec::new();
    for candidate in &command.candidates {
        if let Err(error) = mark_one(ctx, candidate, command.reason.as_str()).await {
            failed.push((candidate.claim_name().to_owned(), error));
        }
    }
    if let Some((_, error)) = failed.first()
        && (!command.replacements.is_empty() || failed.len() == command.candidates.len())
    {
        return Err(Error::Other(format!("marking disrupted, {error}")));
    }
    command.candidates.retain(|c| failed.iter().all(|(name, _)| name != c.claim_name()));
    let mut replacements = Vec::new();
    for planned in &command.replacements {
        let pool = planned.node_pool.metadata.name.clone().unwrap_or_default();
        let claim = provisioning::create_claim(ctx, planned, &pool).await?;
        let name = claim.metadata.name.clone().unwrap_or_default();
        tracing::info!(
            "NodePool" = %logging::obj(&pool),
            "NodeClaim" = %logging::obj(&name),
            "requests" = %logging::json(&planned.requests),
            "instance-types" = provisioning::listed(planned.instance_types.iter().map(|t| &t.name)),
            "created nodeclaim"
        );
        let text = format!("Launching NodeClaim: {}", command.reason.as_str());
        ctx.recorder.publish(Event::new(reference(&claim), false, "DisruptionLaunching", text));
        replacements.push(name);
    }
    let names: Vec<String> = command.candidates.iter().map(|c| c.claim_name().to_owned()).collect();
    ctx.cluster.mark_for_deletion(&names);
    nominate(ctx, &command);
    let ids: Vec<String> =
        command.candidates.iter().filter_map(|c| c.node.provider_id().map(str::to_owned)).collect();
    in_flight.queued.lock().extend(ids.iter().cloned());
    let (ctx, in_flight) = (Arc::clone(ctx), Arc::clone(in_flight));
    let work = async move {
        match carry_out(&ctx, &command, &replacements).await {
            Ok(()) => tracing::debug!("command" = command.describe(&id), "command succeeded"),
            Err(error) => {
                tracing::error!(
                    "command" = command.describe(&id),
                    "error" = %error,
                    "failed terminating nodes while executing a disruption command"
                );
                give_up(&ctx, &command, &names).await;
            }
        }
        in_flight.queued.lock().retain(|id| !ids.contains(id));
    };
    tasks.spawn(work.instrument(logging::controller_span("disruption.queue")));
    Ok(())
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

async fn mark_one(ctx: &Context, candidate: &Candidate, reason: &str) -> Result<(), Error> {
    let mut last = Error::Other("node is gone".to_owned());
    for attempt in 0..4 {
        let claims = Api::<NodeClaim>::all(ctx.client.clone());
        let claim = claims.get(candidate.claim_name()).await?;
        let node = Api::<Node>::all(ctx.client.clone()).get(candidate.node.name()).await?;
        match mark(ctx, &node, &claim, reason).await {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
        sleep(Duration::from_millis(10 * 5_u64.pow(attempt))).await;
    }
    Err(last)
}

/// Waits for the replacements, then deletes the candidates' claims.
async fn carry_out(ctx: &Context, command: &Command, replacements: &[String]) -> Result<(), Error> {
    let deadline = Instant::now() + TIMEOUT;
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    for name in replacements {
        loop {
            let claim = api.get_opt(name).await.unwrap_or(None);
            match claim {
                Some(claim) => {
                    let list = claim.status.as_ref().map(|s| s.conditions.as_slice());
                    if conditions::is_true(list.unwrap_or_default(), conditions::INITIALIZED) {
                        break;
                    }
                    ctx.recorder.publish(Event::new(
                        reference(&claim),
                        false,
                        "DisruptionWaitingReadiness",
                        "Waiting on readiness to continue disruption".to_owned(),
                    ));
                }
                None if ctx.cluster.claim(name).is_none() => {
                    return Err(Error::Other("replacement was deleted".to_owned()));
                }
                None => {}
            }
            if Instant::now() >= deadline {
                return Err(Error::Other("command reached timeout".to_owned()));
            }
            sleep(POLL).await;
        }
    }
    for candidate in &command.candidates {
        let deleted = loop {
            match patch::delete(&api, candidate.claim_name()).await {
                Ok(deleted) => break deleted,
                Err(error) if Instant::now() >= deadline => return Err(error.into()),
                Err(_) => sleep(POLL).await,
            }
        };
        let reason = command.reason.as_str();
        if let Some(claim) = candidate.node.node_claim.as_ref().filter(|_| deleted) {
            observability::queued(ctx, claim, reason);
        }
        let tell = |object, kind: &str| {
            let text = format!("Disrupting {kind}: {reason}");
            ctx.recorder.publish(Event::new(object, false, "DisruptionTerminating", text));
        };
        if let Some(node) = &candidate.node.node {
            tell(reference(node.as_ref()), "Node");
        }
        if let Some(claim) = &candidate.node.node_claim {
            tell(reference(claim.as_ref()), "NodeClaim");
        }
    }
    Ok(())
}

/// Leaves the candidates as they were.
async fn give_up(ctx: &Context, command: &Command, names: &[String]) {
    ctx.cluster.unmark_for_deletion(names);
    for candidate in &command.candidates {
        let claim = ctx.cluster.claim(candidate.claim_name());
        let node = ctx.cluster.node(candidate.node.name());
        if let (Some(claim), Some(node)) = (claim, node)
            && let Err(error) = unmark(ctx, &node, &claim).await
        {
            tracing::error!("error" = %error, "Reconciler error");
        }
    }
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
        "pod-count" = command.candidates.iter().map(|c| c.pods.len()).sum::<usize>(),
        "disrupted-nodes" = %logging::json(&disrupted),
        "replacement-nodes" = %logging::json(&replacements),
        "disrupting node(s)"
    );
}
