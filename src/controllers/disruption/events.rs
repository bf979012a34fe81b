//! Events about decisions: on nodes that stay and go, on pools whose budgets let nothing go, and on
//! pods whose annotation protects them or does not.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::ObjectReference;

use super::super::{Context, provisioning};
use super::Seen;
use crate::api::v1::ConsolidationPolicy;
use crate::disruption::{Abandoned, Command, Decision, EventKind, Method, Rejection};
use crate::operator::events::{Event, Report, reference};
use crate::scheduling::node::StateNode;
use crate::scheduling::pod::PodInfo;

fn objects(node: &StateNode) -> impl Iterator<Item = ObjectReference> {
    let of_node = node.node.iter().map(|n| reference(n.as_ref()));
    of_node.chain(node.node_claim.iter().map(|c| reference(c.as_ref())))
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect()
}

/// Why nodes are left alone, on Node and NodeClaim.
pub(super) fn stay(ctx: &Context, seen: &Seen, method: Method, decision: &Decision) {
    let by_name: HashMap<&str, &StateNode> =
        seen.snapshot.nodes.iter().map(|n| (n.name(), n)).collect();
    for (name, rejection) in decision.rejected() {
        let Some(kind) = rejection.event(method) else { continue };
        let Some(node) = by_name.get(name).filter(|n| n.managed()) else { continue };
        let message = capitalized(&rejection.to_string());
        let pool = match rejection {
            Rejection::ManyUnhealthy(pool) => ctx.cluster.pool(pool),
            _ => None,
        };
        let report = match kind {
            EventKind::DisruptionBlocked => Report::DisruptionBlocked { why: &message },
            EventKind::Unconsolidatable => Report::Unconsolidatable { why: &message },
            EventKind::NodeRepairBlocked => Report::NodeRepairBlocked { why: &message },
        };
        for object in objects(node).chain(pool.iter().map(|p| reference(p.as_ref()))) {
            ctx.recorder.publish(report.on(object));
        }
    }
}

/// Pools whose budgets let nothing go, and budgets that cannot be read.
pub(super) fn budgets(ctx: &Context, method: Method, decision: &Decision) {
    for (name, allowance) in decision.budgets.iter() {
        if allowance.total == 0 || allowance.allowed > 0 {
            continue;
        }
        let Some(pool) = ctx.cluster.pool(name) else { continue };
        let reason = method.reason().as_str();
        let report = match &allowance.error {
            Some(error) => Report::InvalidBudgets { error },
            None => Report::NoAllowedDisruptions { reason: &reason },
        };
        ctx.recorder.publish(report.on(reference(pool.as_ref())));
    }
}

/// Nodes that a replacement was found for; deletions are not announced.
pub(super) fn candidates(ctx: &Context, command: &Command) {
    if command.method.consolidation_type().is_empty() || command.replacements.is_empty() {
        return;
    }
    for candidate in &command.candidates {
        let what = command.describe_for(candidate.node.name());
        let savings = format!("{:.2}", command.savings);
        let report = Report::ConsolidationCandidate { command: &what, savings: &savings };
        for object in objects(&candidate.node) {
            ctx.recorder.publish(report.on(object));
        }
    }
}

/// Nodes whose command no longer holds.
pub(super) fn abandoned(ctx: &Context, command: &Command, why: &Abandoned) {
    if command.method.consolidation_type().is_empty() {
        return;
    }
    for candidate in &command.candidates {
        let what = command.describe_for(candidate.node.name());
        let (reason, savings) = (why.reason(), format!("{:.2}", command.savings));
        let report =
            Report::ConsolidationRejected { command: &what, reason: &reason, savings: &savings };
        for object in objects(&candidate.node) {
            ctx.recorder.publish(report.on(object));
        }
    }
}

/// What the policy Balanced agreed to: on the node, or for several nodes on their pools.
pub(super) fn approved(ctx: &Context, command: &Command) {
    for score in command.scores.iter().filter(|s| s.policy == ConsolidationPolicy::Balanced) {
        let text = score.comparison();
        let on: Vec<ObjectReference> = match command.candidates.as_slice() {
            [only] if command.method == Method::SingleNode => objects(&only.node).collect(),
            _ => ctx.cluster.pool(&score.pool).iter().map(|p| reference(p.as_ref())).collect(),
        };
        for object in on {
            ctx.recorder.publish(Report::ConsolidationApproved { comparison: &text }.on(object));
        }
    }
}

/// What the do-not-disrupt annotation of pods means now.
pub(super) fn pods(ctx: &Context) {
    for node in ctx.cluster.state_nodes().iter().filter(|n| n.managed()) {
        for pod in &node.pods {
            if let Some(event) = annotation(ctx, pod) {
                ctx.recorder.publish(event);
            }
        }
    }
}

fn annotation(ctx: &Context, pod: &PodInfo) -> Option<Event> {
    pod.do_not_disrupt.as_deref().filter(|t| *t != "true")?;
    let object = provisioning::pod_reference(pod);
    if let Some(problem) = pod.do_not_disrupt_problem() {
        return Some(Report::InvalidDoNotDisrupt { problem: &problem }.on(object));
    }
    let until = pod.do_not_disrupt_until()?;
    if until > ctx.clock.now() {
        return Some(Report::DoNotDisruptUntil { until: &until }.on(object));
    }
    Some(Report::DoNotDisruptElapsed.on(object))
}
