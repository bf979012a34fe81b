//! Liveness: a claim that does not launch or register in time is given up.

use std::time::Duration;

use super::super::nodepool::health;
use super::super::observability;
use super::super::{Context, Outcome};
use super::{condition, deletion, is_true};
use crate::api::conditions;
use crate::api::v1::NodeClaim;
use crate::operator::logging;

/// Time for an instance to be launched.
const LAUNCH: Duration = Duration::from_secs(5 * 60);
/// Time for its Node to register.
const REGISTRATION: Duration = Duration::from_secs(15 * 60);

/// Deletes the claim when its time is over.
pub(super) async fn run(ctx: &Context, claim: &NodeClaim) -> Outcome {
    if is_true(claim, conditions::REGISTERED) {
        return Ok(None);
    }
    let (kind, limit, reason) = if is_true(claim, conditions::LAUNCHED) {
        (conditions::REGISTERED, REGISTRATION, "registration_timeout")
    } else {
        (conditions::LAUNCHED, LAUNCH, "launch_timeout")
    };
    let Some(since) = condition(claim, kind).map(|c| c.last_transition_time.0) else {
        return Ok(Some(Duration::from_secs(1)));
    };
    let passed = ctx.clock.since(since);
    if passed < limit {
        return Ok(Some(limit - passed));
    }
    health::note(ctx, claim, false).await?;
    if deletion::delete(ctx, claim.metadata.name.as_deref().unwrap_or("")).await? {
        observability::disrupted(claim, reason, "");
        tracing::debug!(
            "timeout" = logging::go_duration(limit),
            "reason" = reason,
            "terminating due to timeout"
        );
    }
    Ok(None)
}
