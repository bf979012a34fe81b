//! Commands that an earlier process began: found by the annotation on their replacements, and carried
//! on from what the objects show. Marks without replacements are taken back by the loop, so that
//! what has to go is decided again.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::Api;
use kube::api::ListParams;
use tokio::task::JoinSet;

use super::super::{Context, Error};
use super::queue::{self, Running};
use super::{InFlight, marks};
use crate::api::v1::NodeClaim;
use crate::api::{annotations, conditions, labels};
use crate::disruption::Method;
use crate::disruption::command::Repair;
use crate::disruption::progress::{
    self, CandidateState, Progress, ReplacementState, Seen, Step, timeout,
};
use crate::disruption::repair::Policies;
use crate::operator::logging;

/// Picks up what an earlier process left.
pub(super) async fn commands(
    ctx: &Arc<Context>,
    in_flight: &Arc<InFlight>,
    tasks: &mut JoinSet<()>,
) -> Result<(), Error> {
    // Once, at the start, and from the API server: the marks decide what is deleted.
    let all = Api::<NodeClaim>::all(ctx.client.clone()).list(&ListParams::default()).await?;
    for found in unfinished(&all.items) {
        let now = ctx.clock.now();
        match progress::next(&found.progress, &found.seen, now) {
            Step::Done => {}
            Step::RollBack { candidates, orphans, why } => {
                tracing::info!(
                    "error" = %why,
                    "nodeclaims" = %logging::json(&candidates),
                    "taking back a disruption command that cannot be resumed"
                );
                marks::unmark_claims(ctx, &candidates).await;
                queue::remove(ctx, &orphans).await;
            }
            Step::Wait(_) | Step::Delete(_) => {
                tracing::info!(
                    "nodeclaims" = %logging::json(&found.progress.candidates),
                    "replacements" = %logging::json(&found.progress.replacements),
                    "resuming a disruption command"
                );
                ctx.cluster.mark_for_deletion(&found.progress.candidates);
                in_flight.queued.lock().extend(found.provider_ids.iter().cloned());
                let ids = found.provider_ids.clone();
                let running = found.running(ctx.cloud.repair_policies());
                queue::spawn(ctx, in_flight, running, ids, tasks);
            }
        }
    }
    Ok(())
}

/// A command as its objects tell it.
struct Unfinished {
    progress: Progress,
    seen: Seen,
    reason: String,
    method: Option<Method>,
    /// What a repair is about, as its text.
    repairs: Option<String>,
    provider_ids: Vec<String>,
    pools: Vec<String>,
}

impl Unfinished {
    fn running(self, policies: &Policies) -> Running {
        let describe =
            format!("{}/resumed: replace: [{}]", self.reason, self.progress.candidates.join(", "));
        Running {
            progress: self.progress,
            reason: self.reason,
            method: self.method,
            decision: "replace",
            describe,
            pools: self.pools,
            repair: self.repairs.and_then(|text| Repair::parse(&text, policies)),
        }
    }
}

/// Commands whose replacements are still there.
fn unfinished(claims: &[NodeClaim]) -> Vec<Unfinished> {
    let by_name: BTreeMap<&str, &NodeClaim> = claims.iter().map(|c| (name(c), c)).collect();
    let mut groups: BTreeMap<&str, Vec<&NodeClaim>> = BTreeMap::new();
    for claim in claims {
        if let Some(replaces) = annotation(claim, annotations::REPLACES) {
            groups.entry(replaces).or_default().push(claim);
        }
    }
    groups.into_iter().filter_map(|(replaces, made)| one(replaces, &made, &by_name)).collect()
}

fn one(
    replaces: &str,
    made: &[&NodeClaim],
    by_name: &BTreeMap<&str, &NodeClaim>,
) -> Option<Unfinished> {
    let candidates: Vec<&str> = replaces.split(',').collect();
    let there: Vec<Option<&NodeClaim>> =
        candidates.iter().map(|c| by_name.get(c).copied()).collect();
    let marked = there.iter().flatten().find_map(|c| condition(c, conditions::DISRUPTION_REASON));
    let wanted = made
        .iter()
        .filter_map(|c| annotation(c, annotations::REPLACEMENTS)?.parse().ok())
        .max()
        .unwrap_or(1);
    let state = |claim: &Option<&NodeClaim>| match claim {
        Some(c) if c.metadata.deletion_timestamp.is_some() => CandidateState::Going,
        Some(c) if condition(c, conditions::DISRUPTION_REASON).is_some() => CandidateState::Marked,
        Some(_) => CandidateState::Unmarked,
        None => CandidateState::Going,
    };
    let replacement = |claim: &&NodeClaim| {
        if condition(claim, conditions::INITIALIZED).is_some() {
            ReplacementState::Ready
        } else if claim.metadata.deletion_timestamp.is_some() {
            ReplacementState::Gone
        } else {
            ReplacementState::Waiting
        }
    };
    let ready = made.iter().all(|c| replacement(c) == ReplacementState::Ready);
    if marked.is_none() && ready {
        // Taken back long ago, and the replacements serve pods by now: no orphans.
        return None;
    }
    let written = |key| made.iter().find_map(|c| annotation(c, key));
    let since =
        made.iter().filter_map(|c| c.metadata.creation_timestamp.as_ref()).map(|t| t.0).min();
    Some(Unfinished {
        seen: Seen {
            candidates: there.iter().map(state).collect(),
            replacements: made.iter().map(replacement).collect(),
        },
        progress: Progress {
            candidates: candidates.iter().map(|c| (*c).to_owned()).collect(),
            replacements: made.iter().map(|c| name(c).to_owned()).collect(),
            wanted,
            since: since?,
            timeout: timeout(candidates.len()),
        },
        reason: marked.unwrap_or_default().to_owned(),
        method: written(annotations::DISRUPTION_METHOD).and_then(Method::named),
        repairs: written(annotations::REPAIRS).map(str::to_owned),
        provider_ids: there
            .iter()
            .flatten()
            .filter_map(|c| c.status.as_ref()?.provider_id.clone())
            .collect(),
        pools: made
            .iter()
            .filter_map(|c| c.metadata.labels.as_ref()?.get(labels::NODEPOOL).cloned())
            .collect(),
    })
}

fn name(claim: &NodeClaim) -> &str {
    claim.metadata.name.as_deref().unwrap_or_default()
}

fn annotation<'a>(claim: &'a NodeClaim, key: &str) -> Option<&'a str> {
    claim.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The reason of a condition that is True.
fn condition<'a>(claim: &'a NodeClaim, kind: &str) -> Option<&'a str> {
    let list = &claim.status.as_ref()?.conditions;
    let found = conditions::get(list, kind).filter(|c| c.status == conditions::TRUE)?;
    Some(found.reason.as_str())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::disruption::Abandoned;
    use crate::disruption::repair::{Action, RepairPolicy};

    fn claim(name: &str, is: &[&str], replaces: Option<&str>, extra: Value) -> NodeClaim {
        let list: Vec<Value> = is
            .iter()
            .map(|kind| {
                let reason = if *kind == "DisruptionReason" { "Drifted" } else { *kind };
                json!({"type": kind, "status": "True", "reason": reason, "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"})
            })
            .collect();
        let mut value = json!({"metadata": {"name": name, "labels": {"karpenter.sh/nodepool": "p"},
                "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {}, "status": {"providerID": name, "conditions": list}});
        if let Some(replaces) = replaces {
            value["metadata"]["annotations"] = json!({annotations::REPLACES: replaces});
        }
        for (key, part) in extra.as_object().into_iter().flatten() {
            value["metadata"][key] = part.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    fn step(claims: &[NodeClaim]) -> Option<Step> {
        let found = unfinished(claims);
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        found.first().map(|f| progress::next(&f.progress, &f.seen, now))
    }

    const MARK: &[&str] = &["Initialized", "DisruptionReason"];
    const UP: &[&str] = &["Initialized"];

    #[test]
    fn a_command_goes_on_where_the_process_was_killed() {
        let old = || claim("old", MARK, None, json!({}));
        let waiting = claim("new", &[], Some("old"), json!({}));
        assert_eq!(step(&[old(), waiting]), Some(Step::Wait(vec!["new".to_owned()])));
        let up = || claim("new", UP, Some("old"), json!({}));
        assert_eq!(step(&[old(), up()]), Some(Step::Delete(vec!["old".to_owned()])));
        assert_eq!(unfinished(&[old(), up()])[0].reason, "Drifted");
        let going = claim(
            "old",
            MARK,
            None,
            json!({"deletionTimestamp": "2026-01-01T00:00:30Z", "finalizers": ["f"]}),
        );
        assert_eq!(step(&[going, up()]), Some(Step::Done));
        assert_eq!(step(&[up()]), None, "done long ago");
    }

    #[test]
    fn a_command_that_goes_on_knows_how_it_was_found_and_how_long_the_drain_may_take() {
        let minute = Duration::from_secs(60);
        let policies = Policies::new(&[RepairPolicy {
            condition: "Ready",
            status: "False",
            reason: "",
            toleration: minute,
            drain: Some(minute),
            priority: 0,
            action: Action::Replace,
        }])
        .unwrap();
        let running = |extra: Value| {
            let new = claim("new", &[], Some("old"), json!({}));
            let mut new = serde_json::to_value(new).unwrap();
            for (key, value) in extra.as_object().unwrap() {
                new["metadata"]["annotations"][key] = value.clone();
            }
            let claims =
                [claim("old", MARK, None, json!({})), serde_json::from_value(new).unwrap()];
            unfinished(&claims).remove(0).running(&policies)
        };
        let repair = |drain: Option<Duration>| Repair {
            action: Action::Replace,
            condition: "Ready",
            reason: "KubeletDown".to_owned(),
            drain,
        };
        let bounded = repair(Some(2 * minute));
        let found = running(json!({annotations::DISRUPTION_METHOD: Method::Repair.name(),
            annotations::REPAIRS: bounded.to_string()}));
        assert_eq!((found.method, found.repair), (Some(Method::Repair), Some(bounded)));
        let unbounded = repair(None);
        let found = running(json!({annotations::REPAIRS: unbounded.to_string()}));
        assert_eq!((found.method, found.repair), (None, Some(unbounded)));
        let found = running(json!({annotations::REPAIRS: "Gone/Reason/60"}));
        assert_eq!(found.repair, None, "no policy is about it any more");
    }

    #[test]
    fn a_replacement_whose_command_was_taken_back_is_removed() {
        let old = claim("old", UP, None, json!({}));
        let orphan = claim("new", &[], Some("old"), json!({}));
        let Some(Step::RollBack { orphans, why, .. }) = step(&[old, orphan]) else { panic!() };
        assert_eq!(orphans, ["new"]);
        assert_eq!(why, Abandoned::Unmarked { name: "old".to_owned() });
    }

    #[test]
    fn a_command_of_which_not_all_replacements_were_made_is_taken_back() {
        let extra = json!({"annotations": {annotations::REPLACES: "a,b",
            annotations::REPLACEMENTS: "2"}});
        let claims = [
            claim("a", MARK, None, json!({})),
            claim("b", MARK, None, json!({})),
            claim("new", &[], None, extra),
        ];
        let Some(Step::RollBack { candidates, orphans, why }) = step(&claims) else { panic!() };
        assert_eq!((candidates.len(), orphans.len()), (2, 1));
        assert_eq!(why, Abandoned::Incomplete { made: 1, wanted: 2 });
    }
}
