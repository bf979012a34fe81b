//! Metrics and log lines about decisions.

use std::time::Duration;

use crate::api::v1::ConsolidationPolicy;
use crate::controllers::Context;
use crate::disruption::repair::Action;
use crate::disruption::score::{K, Score, THRESHOLD};
use crate::disruption::{Candidate, Command, Decision, Method};
use crate::operator::{logging, metrics};

/// The policy's name as in the API.
fn policy_name(policy: ConsolidationPolicy) -> &'static str {
    match policy {
        ConsolidationPolicy::WhenEmpty => "WhenEmpty",
        ConsolidationPolicy::WhenEmptyOrUnderutilized => "WhenEmptyOrUnderutilized",
        ConsolidationPolicy::Balanced => "Balanced",
    }
}

/// The label `consolidation_policy` of what a method disrupts: empty where no policy decides.
pub(super) fn policy_label(method: Method, policy: ConsolidationPolicy) -> &'static str {
    if method.consolidation_type().is_empty() {
        return "";
    }
    match policy {
        ConsolidationPolicy::WhenEmpty => "when_empty",
        ConsolidationPolicy::WhenEmptyOrUnderutilized => "when_empty_or_underutilized",
        ConsolidationPolicy::Balanced => "balanced",
    }
}

/// Counters that are there before anything happens.
pub(super) fn preset() {
    for kind in [Method::MultiNode, Method::SingleNode] {
        metrics::CONSOLIDATION_TIMEOUTS.with_label_values(&[kind.consolidation_type()]).inc_by(0.0);
    }
}

/// What a method did.
pub(super) fn decision(method: Method, decision: &Decision, took: Duration) {
    let (reason, kind) = (method.reason().label(), method.consolidation_type());
    metrics::DISRUPTION_EVALUATION.with_label_values(&[reason, kind]).observe(took.as_secs_f64());
    metrics::DISRUPTION_ELIGIBLE.with_label_values(&[reason]).set(number(decision.eligible));
    for (pool, allowance) in decision.budgets.iter() {
        let reason = metrics::release().budget_reason(method.reason().as_str());
        let labels = [pool, reason.as_str()];
        #[allow(clippy::cast_precision_loss, reason = "at most 2147483647")]
        let (allowed, consuming) = (allowance.allowed as f64, allowance.disrupting as f64);
        metrics::NODEPOOLS_ALLOWED_DISRUPTIONS.with_label_values(&labels).set(allowed);
        metrics::NODEPOOLS_CONSUMING_BUDGETS.with_label_values(&labels).set(consuming);
        if let Some(error) = &allowance.error {
            tracing::error!(
                "error" = format!("invalid disruption budgets in nodepool {pool}, {error}"),
                "detected disruption budget errors"
            );
        }
    }
    for score in &decision.judged {
        judged(score);
    }
    if decision.timed_out {
        timed_out(method, decision);
    }
}

fn judged(score: &Score) {
    let labels = [score.decision(), score.pool.as_str(), policy_name(score.policy)];
    metrics::CONSOLIDATION_MOVES.with_label_values(&labels).inc();
    if score.policy != ConsolidationPolicy::Balanced {
        return;
    }
    metrics::CONSOLIDATION_SCORE.with_label_values(&labels).observe(score.value);
    tracing::debug!(
        "nodepool" = score.pool,
        "score" = score.value,
        "savings_fraction" = score.savings_fraction(),
        "disruption_fraction" = score.disruption_fraction(),
        "savings" = score.savings,
        "disruption_cost" = score.disruption,
        "nodepool_total_cost" = score.pool_cost,
        "nodepool_total_disruption_cost" = score.pool_disruption,
        "threshold" = THRESHOLD,
        "k" = K,
        "approved" = score.approved(),
        "decision" = score.decision(),
        "consolidation score"
    );
}

fn timed_out(method: Method, decision: &Decision) {
    metrics::CONSOLIDATION_TIMEOUTS.with_label_values(&[method.consolidation_type()]).inc();
    match (method, decision.commands.first()) {
        (Method::MultiNode, Some(command)) => tracing::debug!(
            "last_batch_size" = command.candidates.len(),
            "stopping multi-node consolidation after timeout, returning last valid command"
        ),
        (Method::MultiNode, None) => tracing::debug!(
            "last_batch_size" = 0,
            "failed to find a multi-node consolidation after timeout"
        ),
        _ => tracing::debug!(
            "candidates_evaluated" = decision.simulations,
            "abandoning single-node consolidation due to timeout"
        ),
    }
}

/// Candidates that were none any more when a command was looked at again.
pub(super) fn failed_validation(command: &Command) {
    metrics::DISRUPTION_FAILED_VALIDATIONS
        .with_label_values(&[command.method.consolidation_type()])
        .inc_by(number(command.candidates.len()));
}

/// Logs by which policy a node is repaired.
fn selected(candidate: &Candidate) {
    let Some(due) = &candidate.repair else { return };
    let policy = &due.policy;
    tracing::info!(
        "Node" = %logging::obj(candidate.node.name()),
        "condition" = policy.condition,
        "status" = policy.status,
        "reason" = due.reason,
        "reason-regex" = policy.reason,
        "fallback" = policy.reason.is_empty(),
        "action" = match policy.action {
            Action::Reboot => "RebootNode",
            Action::Replace => "ReplaceNode",
        },
        "eligible-at" = %due.since,
        "termination-grace-period" = policy.drain.map(logging::go_duration),
        "selected repair policy"
    );
}

/// A command that was started.
pub(super) fn started(command: &Command) {
    command.candidates.iter().for_each(selected);
    let (reason, kind) = (command.reason().label(), command.method.consolidation_type());
    let decision = command.decision();
    metrics::DISRUPTION_DECISIONS.with_label_values(&[decision, reason, kind]).inc();
    for pool in command.pool_names() {
        metrics::DISRUPTION_DECISIONS_BY_NODEPOOL
            .with_label_values(&[pool, decision, reason, kind])
            .inc();
        if let Some(first) = command.terminate_first {
            metrics::TERMINATE_FIRST.with_label_values(&[pool, reason, first.label()]).inc();
        }
    }
}

/// Enters what a command saves an hour into the ledger, shared among its NodePools by the prices of
/// their nodes.
pub(super) fn saved(ctx: &Context, command: &Command) {
    let total: f64 = command.candidates.iter().map(|c| c.price).sum();
    if total <= 0.0 {
        return;
    }
    for candidate in &command.candidates {
        let share = command.savings * candidate.price / total;
        let (pool, reason) = (candidate.pool_name(), command.reason().label());
        ctx.savings.record(pool, reason, share, ctx.clock.now());
    }
}

/// A command that failed on the way, by the replacements that never came up.
pub(super) fn failed(decision: &str, reason: &str, kind: &str, missing: usize) {
    metrics::DISRUPTION_QUEUE_FAILURES
        .with_label_values(&[decision, reason, metrics::release().failure_type(decision, kind)])
        .inc_by(number(missing));
}

#[allow(clippy::cast_precision_loss, reason = "counts of nodes")]
fn number(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_consolidation_is_counted_by_policy() {
        let policy = ConsolidationPolicy::WhenEmptyOrUnderutilized;
        assert_eq!(policy_label(Method::Drift, policy), "");
        assert_eq!(policy_label(Method::StaticDrift, policy), "");
        assert_eq!(policy_label(Method::Emptiness, policy), "when_empty_or_underutilized");
        assert_eq!(policy_label(Method::SingleNode, ConsolidationPolicy::Balanced), "balanced");
    }

    #[test]
    fn a_decision_moves_its_metrics() {
        let mut found = Decision { eligible: 3, timed_out: true, ..Decision::default() };
        found.judged.push(Score {
            pool: "record-test".to_owned(),
            policy: ConsolidationPolicy::Balanced,
            value: 0.25,
            savings: 0.1,
            disruption: 2.0,
            pool_cost: 1.0,
            pool_disruption: 5.0,
        });
        let moves = metrics::CONSOLIDATION_MOVES.with_label_values(&[
            "rejected",
            "record-test",
            "Balanced",
        ]);
        let timeouts = metrics::CONSOLIDATION_TIMEOUTS.with_label_values(&["single"]);
        let before = timeouts.get();
        decision(Method::SingleNode, &found, Duration::from_millis(5));
        assert!((moves.get() - 1.0).abs() < f64::EPSILON);
        assert!(timeouts.get() > before);
        let eligible = metrics::DISRUPTION_ELIGIBLE.with_label_values(&["underutilized"]);
        assert!((eligible.get() - 3.0).abs() < f64::EPSILON);
    }
}
