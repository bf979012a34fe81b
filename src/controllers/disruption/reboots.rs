//! Repairs that are reboots: the request on the NodeClaim, which `nodeclaim.reboot` carries out, and how
//! often each NodeClaim was rebooted.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use kube::Api;
use parking_lot::Mutex;

use super::super::node::reboot::REQUESTED;
use super::super::patch;
use super::super::{Context, Error};
use super::record;
use crate::api::v1::NodeClaim;
use crate::api::{annotations, conditions, duration};
use crate::disruption::command::Repair;
use crate::disruption::{Candidate, Command};
use crate::operator::logging;

/// Reboots are remembered for this long.
const WINDOW: Duration = Duration::from_secs(24 * 3600);
/// After this many, the next repair replaces the node.
const MOST: usize = 2;

/// When NodeClaims were rebooted, by their UIDs.
#[derive(Default)]
pub(super) struct History(Mutex<HashMap<String, Vec<Timestamp>>>);

impl History {
    fn add(&self, uid: &str, now: Timestamp) {
        self.0.lock().entry(uid.to_owned()).or_default().push(now);
    }

    /// UIDs of the NodeClaims that no reboot is tried for any more.
    pub(super) fn spent(&self, now: Timestamp) -> HashSet<String> {
        let mut known = self.0.lock();
        known.retain(|_, times| {
            times.retain(|at| now.duration_since(*at) < WINDOW.try_into().unwrap_or_default());
            !times.is_empty()
        });
        known.iter().filter(|(_, t)| t.len() >= MOST).map(|(uid, _)| uid.clone()).collect()
    }
}

/// Requests the reboot of a command's node; false when its claim is being rebooted or deleted already.
pub(super) async fn commit(
    ctx: &Context,
    history: &History,
    command: &Command,
    id: &str,
) -> Result<bool, Error> {
    let (Some(candidate), Some(repair)) = (command.candidates.first(), &command.repair) else {
        return Ok(false);
    };
    let Some(claim) = request(ctx, candidate, repair, command.reason().as_str()).await? else {
        return Ok(false);
    };
    history.add(claim.metadata.uid.as_deref().unwrap_or_default(), ctx.clock.now());
    ctx.cluster.announce_claim(claim);
    record::started(command);
    tracing::info!(
        "command" = command.describe(id),
        "NodeClaim" = %logging::obj(candidate.claim_name()),
        "condition" = repair.condition,
        "reason" = repair.reason,
        "committed node reboot"
    );
    Ok(true)
}

/// Writes the request on the claim as the API server has it.
async fn request(
    ctx: &Context,
    candidate: &Candidate,
    repair: &Repair,
    reason: &str,
) -> Result<Option<NodeClaim>, Error> {
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    let Some(claim) = api.get_opt(candidate.claim_name()).await? else { return Ok(None) };
    let list = claim.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let going = claim.metadata.deletion_timestamp.is_some();
    if going || conditions::is_true(list, conditions::REBOOTING) {
        return Ok(None);
    }
    let own = claim.grace_period();
    let mut changed = claim.clone();
    let marks = changed.metadata.annotations.get_or_insert_default();
    let key = annotations::REBOOT_TERMINATION_GRACE_PERIOD;
    match repair.drain.or(own) {
        Some(bound) => marks.insert(key.to_owned(), duration::format_go(bound)),
        // A reboot before this one may have left its bound.
        None => marks.remove(key),
    };
    let (generation, now) = (claim.metadata.generation, ctx.clock.now());
    let list = &mut changed.status.get_or_insert_default().conditions;
    let (kind, yes) = (conditions::DISRUPTION_REASON, conditions::TRUE);
    conditions::set(list, kind, yes, reason, reason, generation, now);
    let text = format!("rebooting for {}/{}", repair.condition, repair.reason);
    conditions::set(list, conditions::REBOOTING, yes, REQUESTED, &text, generation, now);
    Ok(patch::exact(&api, &claim, &changed).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_two_reboots_within_a_day_the_next_repair_replaces() {
        let history = History::default();
        let at = |hour: u64| Timestamp::UNIX_EPOCH + Duration::from_secs(3600 * hour);
        history.add("a", at(0));
        history.add("b", at(0));
        assert!(history.spent(at(1)).is_empty());
        history.add("a", at(2));
        assert_eq!(history.spent(at(3)), HashSet::from(["a".to_owned()]));
        assert!(history.spent(at(24)).is_empty(), "the first is a day ago");
    }
}
