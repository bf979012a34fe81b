//! Launches the nodes that a static pool lacks.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use parking_lot::Mutex;

use super::super::{Context, Error, Outcome, provisioning};
use crate::api::conditions;
use crate::api::v1::NodeClaim;
use crate::disruption::static_drift::{node_limit, replacement};

/// A pool is looked at again after this long.
const PERIOD: Duration = Duration::from_secs(60);
/// A pool at its limit is looked at again after this long.
const AT_LIMIT: Duration = Duration::from_secs(30);

/// A pool whose launches fail waits this long, twice as long each time, up to the second figure:
/// EC2 is not asked for an offering that was sold out for three minutes.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(180));

/// How the launches of each pool go.
#[derive(Debug, Default)]
pub(super) struct Paces(Mutex<HashMap<String, Pace>>);

#[derive(Debug, Default)]
struct Pace {
    /// NodeClaims that were made and have no instance yet.
    open: Vec<String>,
    failures: u32,
    not_before: Option<Timestamp>,
}

impl Paces {
    /// How long a pool must wait before it may grow. A NodeClaim that went before it was launched
    /// had no capacity: `launched` says whether one has an instance, or nothing when it is gone.
    fn wait(
        &self,
        pool: &str,
        now: Timestamp,
        launched: impl Fn(&str) -> Option<bool>,
    ) -> Option<Duration> {
        let mut paces = self.0.lock();
        let pace = paces.get_mut(pool)?;
        let (mut succeeded, mut failed) = (false, false);
        pace.open.retain(|claim| match launched(claim) {
            Some(true) => {
                succeeded = true;
                false
            }
            Some(false) => true,
            None => {
                failed = true;
                false
            }
        });
        if failed {
            // The exponent is bounded so that the product cannot overflow; the time is bounded
            // below.
            let wait = RETRY.0 * 2_u32.pow(pace.failures.min(10));
            pace.failures += 1;
            pace.not_before = Some(now + wait.min(RETRY.1));
        } else if succeeded {
            pace.failures = 0;
            pace.not_before = None;
        }
        let left = Duration::try_from(pace.not_before?.duration_since(now)).ok()?;
        (!left.is_zero()).then_some(left)
    }

    fn made(&self, pool: &str, claims: impl Iterator<Item = String>) {
        self.0.lock().entry(pool.to_owned()).or_default().open.extend(claims);
    }

    fn forget(&self, pool: &str) {
        self.0.lock().remove(pool);
    }
}

fn provider_id(claim: &NodeClaim) -> Option<&str> {
    claim.status.as_ref()?.provider_id.as_deref()
}

pub(super) async fn reconcile(ctx: Arc<Context>, paces: Arc<Paces>, name: String) -> Outcome {
    let Some((pool, replicas)) = super::kept(&ctx, &name) else {
        paces.forget(&name);
        return Ok(None);
    };
    let status = pool.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    if !conditions::is_true(status, conditions::READY) {
        return Ok(None);
    }
    let count = ctx.cluster.count_claims(&name);
    // Nodes that are being replaced count until they are gone: their replacements exist already.
    if count.active + count.pending_disruption >= replicas {
        return Ok(Some(PERIOD));
    }
    let now = ctx.clock.now();
    let launched = |claim: &str| ctx.cluster.claim(claim).map(|c| provider_id(&c).is_some());
    // Without it a pool without capacity would make NodeClaims as fast as they fail.
    if let Some(wait) = paces.wait(&name, now, launched) {
        return Ok(Some(wait));
    }
    // Taken before the claims exist: disruption of the same pool counts at the same time.
    let granted = ctx.cluster.reserve_nodes(&name, node_limit(&pool), replicas - count.active);
    if granted <= 0 {
        tracing::info!("nodepool node limit reached");
        return Ok(Some(AT_LIMIT));
    }
    tracing::info!(
        "current" = count.active,
        "desired" = replicas,
        "provision-count" = granted,
        "provisioning nodeclaims to satisfy replica count"
    );
    let planned = replacement(&pool);
    let (ctx, name, planned) = (&*ctx, name.as_str(), &planned);
    let made = join_all((0..granted).map(|_| async move {
        let outcome = provisioning::launch(ctx, planned, "provisioned").await;
        // Released one by one: a claim that was made counts by itself from now on.
        ctx.cluster.release_nodes(name, 1);
        outcome
    }))
    .await;
    let (made, errors): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
    paces.made(name, made.into_iter().flatten().filter_map(|claim| claim.metadata.name));
    let errors: Vec<String> = errors
        .into_iter()
        .filter_map(Result::err)
        .map(|error| format!("creating node claim, {error}"))
        .collect();
    if errors.is_empty() { Ok(Some(PERIOD)) } else { Err(Error::Other(errors.join("; "))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_without_capacity_is_tried_with_growing_waits() {
        let paces = Paces::default();
        let at = |seconds: u64| Timestamp::UNIX_EPOCH + Duration::from_secs(seconds);
        let seconds = |wait: Option<Duration>| wait.map(|w| w.as_secs());
        let gone = |_: &str| None;
        let made = |name: &str| paces.made("p", [name.to_owned()].into_iter());
        assert_eq!(paces.wait("p", at(0), gone), None);
        made("a");
        assert_eq!(paces.wait("p", at(0), |_| Some(false)), None, "its launch is under way");
        assert_eq!(seconds(paces.wait("p", at(1), gone)), Some(5));
        assert_eq!(seconds(paces.wait("p", at(3), gone)), Some(3));
        assert_eq!(paces.wait("p", at(6), gone), None);
        made("b");
        assert_eq!(seconds(paces.wait("p", at(6), gone)), Some(10));
        for round in 0..9 {
            made(&round.to_string());
            paces.wait("p", at(100), gone);
        }
        assert_eq!(seconds(paces.wait("p", at(100), gone)), Some(180));
        assert_eq!(paces.wait("q", at(100), gone), None, "other pools do not wait");
        made("c");
        assert_eq!(paces.wait("p", at(100), |_| Some(true)), None, "there is capacity again");
    }
}
