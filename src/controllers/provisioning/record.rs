//! Reports what a round decided: logs, events, nominations, metrics.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::Context;
use super::decisions::Decisions;
use super::events;
use super::waiting::LeftAlone;
use crate::operator::{logging, metrics};
use crate::scheduling::pod::{PodInfo, PodKey};
use crate::scheduling::results::{PodError, Results, SkippedPool};

/// Notes in memory what was decided on each pod.
pub(super) fn remember(
    ctx: &Context,
    decisions: &Decisions,
    results: &Results,
    ignored: &LeftAlone,
    pods: &Pods<'_>,
) {
    let now = ctx.clock.now();
    let timed = |seconds: Option<f64>| {
        if let Some(seconds) = seconds {
            metrics::SCHEDULING_DECISION.with_label_values::<&str>(&[]).observe(seconds);
        }
    };
    for (pod, why) in ignored {
        timed(decisions.failed(&pod.key, format!("ignoring pod, {why}"), now));
    }
    for (key, error) in results.errors.iter().filter(|(key, _)| pods.real(key).is_some()) {
        timed(decisions.failed(key, error.to_string(), now));
    }
    let existing = results.existing.iter().flat_map(|(_, keys)| keys);
    for key in results.new_claims.iter().flat_map(|c| &c.pods).chain(existing) {
        if pods.real(key).is_some() {
            timed(decisions.placed(key, now));
        }
    }
}

/// The pods of a round by their key.
pub(super) struct Pods<'a>(HashMap<&'a PodKey, &'a Arc<PodInfo>>);

impl<'a> Pods<'a> {
    pub(super) fn new(pods: &'a [Arc<PodInfo>]) -> Self {
        Self(pods.iter().map(|p| (&p.key, p)).collect())
    }

    fn find(&self, key: &PodKey) -> Option<&'a Arc<PodInfo>> {
        self.0.get(key).copied()
    }

    /// The pod, unless it stands for a buffer's room.
    pub(super) fn real(&self, key: &PodKey) -> Option<&'a Arc<PodInfo>> {
        self.find(key).filter(|p| p.buffer.is_none())
    }
}

/// Reports what was decided.
pub(super) fn report(ctx: &Context, results: &Results, pods: &Pods<'_>) {
    for skipped in &results.skipped_pools {
        skipped_pool(ctx, skipped);
    }
    for pool in &results.limited_pools {
        tracing::debug!(
            "NodePool" = %logging::obj(&pool.name),
            "excluded" = pool.excluded,
            "total" = pool.total,
            "instance types were excluded because they would breach limits"
        );
    }
    for (key, steps) in &results.relaxed {
        for reason in steps.iter() {
            tracing::debug!(
                "Pod" = %logging::obj_ns(&key.namespace, &key.name),
                "reason" = reason.as_str(),
                "relaxing soft constraints for pod since it previously failed to schedule"
            );
        }
    }
    for (key, error) in &results.errors {
        failed(ctx, key, error, pods.find(key));
    }
    let window = (2 * ctx.settings.batch_max_duration).max(Duration::from_secs(10));
    for (name, keys) in &results.existing {
        let real: Vec<_> = keys.iter().filter_map(|key| pods.real(key)).collect();
        if real.is_empty() {
            continue;
        }
        let node = ctx.cluster.state_node(name);
        let claim = node.and_then(|n| n.node_claim.as_ref().and_then(|c| c.metadata.name.clone()));
        if let Some(claim) = &claim {
            ctx.cluster.nominate(claim, ctx.clock.now() + window);
        }
        let on = match &claim {
            Some(claim) if claim == name => format!("nodeclaim/{claim}"),
            Some(claim) => format!("nodeclaim/{claim}, node/{name}"),
            None => format!("node/{name}"),
        };
        for pod in real {
            nominated(ctx, pod, &on);
        }
    }
    for devices in results.new_claims.iter().filter_map(|c| c.devices.as_ref()) {
        tracing::debug!(
            "nodeClaimID" = devices.id.as_str(),
            "devicesByResourceClaim" = %logging::json(&devices.by_claim),
            "allocated devices"
        );
        if !devices.released.is_empty() {
            tracing::debug!(
                "nodeClaimID" = devices.id.as_str(),
                "devicesByInstanceType" = %logging::json(&devices.released),
                "releasing allocations"
            );
        }
    }
    let claimed: usize = results.new_claims.iter().map(|c| c.pods.len()).sum();
    if claimed > 0 {
        tracing::info!(
            "nodeclaims" = results.new_claims.len(),
            "pods" = claimed,
            "computed new nodeclaim(s) to fit pod(s)"
        );
        let reused: usize = results.existing.iter().map(|(_, p)| p.len()).sum();
        if reused > 0 {
            tracing::info!(
                "nodes" = results.existing.len(),
                "pods" = reused,
                "computed unready node(s) will fit pod(s)"
            );
        }
    }
}

/// Reports a pool whose own requirements leave no instance type.
fn skipped_pool(ctx: &Context, skipped: &SkippedPool) {
    let pool = &skipped.node_pool;
    let name = logging::obj(pool.metadata.name.as_deref().unwrap_or_default());
    let text = "skipping, nodepool requirements filtered out all instance types";
    match &skipped.min_values {
        Some(why) => {
            tracing::info!("NodePool" = %name, "minValuesIncompatibleErr" = why.as_str(), "{text}");
        }
        None => tracing::info!("NodePool" = %name, "{text}"),
    }
    let by_min_values = skipped.min_values.is_some();
    ctx.recorder.publish(events::no_compatible_instance_types(pool, by_min_values));
}

fn failed(ctx: &Context, key: &PodKey, error: &PodError, pod: Option<&Arc<PodInfo>>) {
    let name = logging::obj_ns(&key.namespace, &key.name);
    match error {
        PodError::Reserved(_) => return,
        PodError::DynamicResources => {
            tracing::info!("Pod" = %name, "skipping pod with Dynamic Resource Allocation requirements, not yet supported by Karpenter");
        }
        _ => tracing::error!("Pod" = %name, "error" = %error, "could not schedule pod"),
    }
    let Some(pod) = pod else { return };
    ctx.recorder.publish(events::failed_scheduling(pod, error));
}

/// Reports on a pod where it is expected to run.
pub(super) fn nominated(ctx: &Context, pod: &PodInfo, on: &str) {
    ctx.recorder.publish(events::nominated(pod, on));
}
