//! Metrics and events about how things change: they follow what the watches show, and change nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::Context;
use crate::api::labels;
use crate::api::v1::NodeClaim;
use crate::operator::{logging, metrics};

mod conditions;
mod lifetimes;
mod view;

use conditions::Known;
use view::Kind;

/// Starts what publishes the state; settings can keep most of it off.
pub fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    spawn(tasks, "lifetimes", lifetimes::run(Arc::clone(ctx)));
    let mut kinds: Vec<&'static Kind> = vec![&view::EC2NODECLASS];
    if !ctx.settings.disable_cluster_state_observability {
        kinds.extend([&view::NODECLAIM, &view::NODEPOOL, &view::NODE]);
    }
    let known: Vec<(&'static Kind, Known)> =
        kinds.into_iter().map(|kind| (kind, Known::default())).collect();
    for (kind, known) in &known {
        let work = conditions::run(Arc::clone(ctx), kind, Arc::clone(known));
        spawn(tasks, kind.controller, work);
    }
    metrics::add_source(ctx, move |ctx, page| conditions::write(&known, ctx.clock.now(), page));
}

/// What is known of each kind when the state has just been listed.
pub(super) fn known_now(state: &crate::cluster::State) -> Vec<(&'static Kind, Known)> {
    [&view::EC2NODECLASS, &view::NODECLAIM, &view::NODEPOOL, &view::NODE]
        .map(|kind| (kind, conditions::known_of(kind, state)))
        .into()
}

pub(super) use conditions::write as write_conditions;

fn spawn(
    tasks: &mut JoinSet<()>,
    name: &'static str,
    work: impl Future<Output = ()> + Send + 'static,
) {
    tasks.spawn(work.instrument(logging::controller_span(name)));
}

/// Counts a NodeClaim whose deletion was begun, by why and by the policy that chose it.
pub fn disrupted(claim: &NodeClaim, reason: &str, policy: &str) {
    metrics::NODECLAIMS_DISRUPTED
        .with_label_values(&disruption_labels(claim, reason, policy))
        .inc();
}

/// The same, with the pods that have to move.
pub fn disrupted_with_pods(ctx: &Context, claim: &NodeClaim, reason: &str, policy: &str) {
    disrupted(claim, reason, policy);
    let node = claim.status.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default();
    let pods = ctx.cluster.pods_on(node);
    let moving = pods.iter().filter(|p| p.is_reschedulable()).count();
    #[allow(clippy::cast_precision_loss, reason = "a counter needs no more than a float holds")]
    metrics::PODS_DISRUPTION_INITIATED
        .with_label_values(&disruption_labels(claim, reason, policy))
        .inc_by(moving as f64);
}

/// The `termination_mode` of a drain with that bound.
pub fn termination_mode(bound: Option<Duration>) -> &'static str {
    match bound {
        None => "graceful",
        Some(limit) if limit.is_zero() => "forceful",
        Some(_) => "eventual",
    }
}

fn disruption_labels<'a>(claim: &'a NodeClaim, reason: &'a str, policy: &'a str) -> [&'a str; 5] {
    let own = claim.grace_period();
    let mode = termination_mode(own);
    [reason, label(claim, labels::NODEPOOL), label(claim, labels::CAPACITY_TYPE), policy, mode]
}

fn label<'a>(claim: &'a NodeClaim, key: &str) -> &'a str {
    claim.metadata.labels.as_ref().and_then(|l| l.get(key)).map_or("", String::as_str)
}
