//! The life of a NodeClaim: launched, registered, initialized, and in the end terminated.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use tokio::task::JoinSet;

use super::patch;
use super::provisioning::decisions::Decisions;
use super::runner::{self, Identity};
use super::{Context, Error, Outcome};
use crate::api::v1::{NodeClaim, NodeClaimStatus};
use crate::api::{conditions, finalizers, labels};
use crate::cluster::{Change, State};

mod consistency;
pub(super) mod deletion;
mod disruption;
mod events;
mod expiration;
mod garbagecollection;
pub(super) mod hydration;
mod initialization;
mod launch;
mod launches;
mod liveness;
mod podevents;
mod registration;
#[cfg(feature = "aws")]
pub(super) mod tagging;
pub(super) mod termination;

pub use launches::Launches;

/// Many at once, so that launches can be made together.
const LIFECYCLE: Identity = Identity {
    name: "nodeclaim.lifecycle",
    group: labels::GROUP,
    kind: "NodeClaim",
    workers: 1000,
};

/// Starts the controllers of NodeClaims.
pub fn start(ctx: &Arc<Context>, decisions: &Arc<Decisions>, tasks: &mut JoinSet<()>) {
    let lifecycle = LIFECYCLE.scaled(&ctx.settings, 5000);
    let decisions = Arc::clone(decisions);
    let reconcile = move |ctx, name| reconcile(ctx, Arc::clone(&decisions), name);
    tasks.spawn(runner::run(lifecycle, Arc::clone(ctx), all_claims, claims_of_change, reconcile));
    disruption::start(ctx, tasks);
    podevents::start(ctx, tasks);
    expiration::start(ctx, tasks);
    garbagecollection::start(ctx, tasks);
    hydration::start(ctx, tasks);
    consistency::start(ctx, tasks);
}

/// Names of all NodeClaims.
pub(super) fn all_claims(ctx: &Context) -> Vec<String> {
    ctx.cluster.claims().iter().filter_map(|c| c.metadata.name.clone()).collect()
}

fn claims_of_change(ctx: &Context, change: &Change) -> Vec<String> {
    concerned(&ctx.cluster, change)
}

fn concerned(state: &State, change: &Change) -> Vec<String> {
    match change {
        Change::NodeClaim(name) => vec![name.clone()],
        Change::Node(name) | Change::ResourceSlice(name) => {
            let node = state.node(name);
            let id = node.and_then(|n| n.spec.as_ref().and_then(|s| s.provider_id.clone()));
            match id {
                Some(id) => state
                    .claim_by_provider_id(&id)
                    .and_then(|c| c.metadata.name.clone())
                    .into_iter()
                    .collect(),
                // A Node that is gone no longer says which claim it belonged to: its name is on one,
                // and a claim that is being deleted waits for any of its Nodes.
                None => state
                    .claims()
                    .iter()
                    .filter(|c| {
                        c.metadata.deletion_timestamp.is_some()
                            || c.status.as_ref().and_then(|s| s.node_name.as_deref()) == Some(name)
                    })
                    .filter_map(|c| c.metadata.name.clone())
                    .collect(),
            }
        }
        _ => Vec::new(),
    }
}

async fn reconcile(ctx: Arc<Context>, decisions: Arc<Decisions>, name: String) -> Outcome {
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    let Some(before) = ctx.cluster.claim(&name).map(|c| (*c).clone()) else { return Ok(None) };
    if before.metadata.deletion_timestamp.is_some() {
        return termination::finalize(&ctx, &api, before).await;
    }
    let mut claim = before.clone();
    let held = claim.metadata.finalizers.get_or_insert_default();
    if !held.iter().any(|f| f == finalizers::TERMINATION) {
        held.push(finalizers::TERMINATION.to_owned());
        if let Some(written) = patch::merge(&api, &before, &claim).await? {
            ctx.cluster.announce_claim(written);
        }
        return Ok(Some(Duration::ZERO));
    }
    claim.status.get_or_insert_default();
    let mut errors = Vec::new();
    let mut again: Option<Duration> = None;
    let mut note = |outcome: Outcome| match outcome {
        Ok(delay) => again = [again, delay].into_iter().flatten().min(),
        Err(error) => errors.push(error),
    };
    note(launch::run(&ctx, &decisions, &mut claim).await);
    note(registration::run(&ctx, &mut claim).await);
    note(initialization::run(&ctx, &mut claim).await);
    note(liveness::run(&ctx, &claim).await);
    set_ready(&mut claim, ctx.clock.now());
    if let Some(written) = patch::merge(&api, &before, &claim).await? {
        ctx.cluster.announce_claim(written);
    }
    Error::all(errors)?;
    Ok(again)
}

fn set_ready(claim: &mut NodeClaim, now: Timestamp) {
    let generation = claim.metadata.generation;
    let list = &mut status_of(claim).conditions;
    conditions::set_ready(list, conditions::NODECLAIM_READY, generation, now);
}

fn status_of(claim: &mut NodeClaim) -> &mut NodeClaimStatus {
    claim.status.get_or_insert_default()
}

/// A condition of the claim.
fn condition<'a>(claim: &'a NodeClaim, kind: &str) -> Option<&'a Condition> {
    conditions::get(claim.status.as_ref().map(|s| s.conditions.as_slice())?, kind)
}

/// True or False, no longer to be worked on.
fn decided(claim: &NodeClaim, kind: &str) -> bool {
    condition(claim, kind).is_some_and(|c| c.status != conditions::UNKNOWN)
}

/// True when the condition is.
fn is_true(claim: &NodeClaim, kind: &str) -> bool {
    condition(claim, kind).is_some_and(|c| c.status == conditions::TRUE)
}

fn unknown(claim: &mut NodeClaim, kind: &str, reason: &str, message: &str, now: Timestamp) {
    let generation = claim.metadata.generation;
    let list = &mut status_of(claim).conditions;
    conditions::set(list, kind, conditions::UNKNOWN, reason, message, generation, now);
}

fn set_true(claim: &mut NodeClaim, kind: &str, now: Timestamp) {
    let generation = claim.metadata.generation;
    conditions::set_true(&mut status_of(claim).conditions, kind, generation, now);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_end_of_any_of_its_nodes_wakes_a_claim_that_is_being_deleted() {
        let state = State::default();
        let claim = |name: &str, node: &str, deleted: Option<&str>| {
            let claim = json!({"metadata": {"name": name, "deletionTimestamp": deleted}, "spec": {},
                "status": {"providerID": format!("aws:///z/{name}"), "nodeName": node}});
            state.apply_claim(serde_json::from_value(claim).unwrap());
        };
        claim("going", "n1", Some("2026-01-01T00:00:00Z"));
        claim("staying", "n2", None);
        claim("other", "n3", None);
        // `n4` was a second Node of some claim; it is gone from the state.
        let woken = |node: &str| concerned(&state, &Change::Node(node.to_owned()));
        assert_eq!(woken("n4"), ["going"]);
        assert_eq!(woken("n2"), ["going", "staying"]);
        let node = json!({"metadata": {"name": "n3"}, "spec": {"providerID": "aws:///z/other"}});
        state.apply_node(serde_json::from_value(node).unwrap());
        assert_eq!(woken("n3"), ["other"]);
    }
}
