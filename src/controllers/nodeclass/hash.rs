//! The hash that drift detection compares, written on node classes and, after an upgrade, on their
//! NodeClaims.

use std::sync::Arc;

use kube::Api;
use tokio::task::JoinSet;

use super::super::patch;
use super::super::runner::{self, Identity};
use super::super::{Context, Error, Outcome};
use crate::api::v1::{EC2NodeClass, NodeClaim};
use crate::api::{annotations, conditions, labels};
use crate::cloud::aws::AwsProvider;
use crate::cluster::Change;

const HASH: Identity = Identity {
    name: "nodeclass.hash",
    group: labels::AWS_GROUP,
    kind: "EC2NodeClass",
    workers: 10,
};

/// Starts the controller.
pub(super) fn start(ctx: &Arc<Context>, aws: &Arc<AwsProvider>, tasks: &mut JoinSet<()>) {
    let aws = Arc::clone(aws);
    tasks.spawn(runner::run(
        HASH,
        Arc::clone(ctx),
        super::all_classes,
        |ctx, change| match change {
            Change::NodeClass(name) => vec![name.clone()],
            // A claim may be written with an old stamp after its class has got the new one.
            Change::NodeClaim(name) => ctx
                .cluster
                .claim(name)
                .filter(|claim| has_other_version(claim))
                .map(|claim| claim.spec.node_class_ref.name.clone())
                .into_iter()
                .collect(),
            _ => Vec::new(),
        },
        move |ctx, name| {
            let aws = Arc::clone(&aws);
            async move { reconcile(&ctx, &aws, &name).await }
        },
    ));
}

/// Claims first, their class last: whatever happens between, nothing is compared across versions.
async fn reconcile(ctx: &Context, aws: &AwsProvider, name: &str) -> Outcome {
    let api = Api::<EC2NodeClass>::all(ctx.client.clone());
    let Some(before) = ctx.cluster.class(name) else { return Ok(None) };
    let mut class = (*before).clone();
    let hash = aws.class_hash(&class);
    let marks = class.metadata.annotations.get_or_insert_default();
    let version = annotations::EC2NODECLASS_HASH_VERSION_VALUE;
    let outdated = marks.get(annotations::EC2NODECLASS_HASH_VERSION).is_none_or(|v| v != version);
    if outdated || ctx.cluster.claims().iter().any(|c| has_other_version(c)) {
        take_over(ctx, name, outdated, &|claim| aws.claim_hash(&before, claim)).await?;
    }
    marks.insert(annotations::EC2NODECLASS_HASH.to_owned(), hash);
    marks.insert(annotations::EC2NODECLASS_HASH_VERSION.to_owned(), version.to_owned());
    patch::merge(&api, &*before, &class).await?;
    Ok(None)
}

/// The hash that a claim of the class is stamped with today.
type HashFor<'a> = &'a (dyn Fn(&NodeClaim) -> String + Sync);

/// Whether a claim is stamped with the version of another release.
fn has_other_version(claim: &NodeClaim) -> bool {
    let stamp = claim.metadata.annotations.as_ref();
    let stamp = stamp.and_then(|a| a.get(annotations::EC2NODECLASS_HASH_VERSION));
    stamp.is_some_and(|v| v != annotations::EC2NODECLASS_HASH_VERSION_VALUE)
}

/// Claims stamped with another version get today's, so that an upgrade drifts nothing. Those
/// without a stamp are left to their launch unless `all` are asked for.
async fn take_over(
    ctx: &Context,
    class: &str,
    all: bool,
    hash_for: HashFor<'_>,
) -> Result<(), Error> {
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    let mut failures = Vec::new();
    for before in ctx.cluster.claims_of_class(class) {
        if !all && !has_other_version(&before) {
            continue;
        }
        let Some(claim) = restamped(&before, class, hash_for) else { continue };
        if let Err(error) = patch::merge(&api, &*before, &claim).await {
            failures.push(error.to_string());
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(Error::Other(failures.join("; "))) }
}

/// The claim with today's version; one that is known to have drifted keeps its hash.
fn restamped(claim: &NodeClaim, class: &str, hash_for: HashFor<'_>) -> Option<NodeClaim> {
    let version = annotations::EC2NODECLASS_HASH_VERSION;
    let today = annotations::EC2NODECLASS_HASH_VERSION_VALUE;
    let stamp = claim.metadata.annotations.as_ref().and_then(|a| a.get(version));
    let reference = &claim.spec.node_class_ref;
    let own = matches!(reference.group.as_str(), "" | labels::AWS_GROUP);
    if !own || reference.name != class || stamp.is_some_and(|v| v == today) {
        return None;
    }
    let hash = hash_for(claim);
    let mut claim = claim.clone();
    let drifted = claim
        .status
        .as_ref()
        .is_some_and(|s| conditions::get(&s.conditions, conditions::DRIFTED).is_some());
    let marks = claim.metadata.annotations.get_or_insert_default();
    marks.insert(version.to_owned(), today.to_owned());
    if !drifted {
        marks.insert(annotations::EC2NODECLASS_HASH.to_owned(), hash);
    }
    Some(claim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn claim(class: &str, version: &str, conditions: Value) -> NodeClaim {
        serde_json::from_value(json!({
            "metadata": {"annotations": {annotations::EC2NODECLASS_HASH_VERSION: version,
                annotations::EC2NODECLASS_HASH: "old"}},
            "spec": {"nodeClassRef": {"name": class, "kind": "EC2NodeClass", "group": "karpenter.k8s.aws"}},
            "status": {"conditions": conditions}}))
        .unwrap()
    }

    #[test]
    fn an_upgrade_restamps_claims_that_have_not_drifted() {
        let hash = |claim: &NodeClaim| {
            let marks = claim.metadata.annotations.clone().unwrap();
            assert_eq!(marks[annotations::EC2NODECLASS_HASH_VERSION], "v6");
            marks[annotations::EC2NODECLASS_HASH].clone()
        };
        let restamped = |claim: &NodeClaim| restamped(claim, "a", &|_| "new".to_owned());
        let plain = restamped(&claim("a", "v5", json!([]))).unwrap();
        assert_eq!(hash(&plain), "new");
        let drifted = json!([{"type": "Drifted", "status": "True", "reason": "x", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        assert_eq!(hash(&restamped(&claim("a", "v5", drifted)).unwrap()), "old");
        assert!(restamped(&claim("a", "v6", json!([]))).is_none());
        assert!(restamped(&claim("b", "v5", json!([]))).is_none());
        // A class of the same name may be another provider's.
        let mut foreign = claim("a", "v5", json!([]));
        foreign.spec.node_class_ref.group = "eks.amazonaws.com".to_owned();
        assert!(restamped(&foreign).is_none());
    }

    #[test]
    fn a_claim_with_an_old_stamp_is_found_whenever_it_was_written() {
        assert!(has_other_version(&claim("a", "v5", json!([]))));
        assert!(!has_other_version(&claim("a", "v6", json!([]))));
        let mut fresh = claim("a", "v6", json!([]));
        fresh.metadata.annotations = None;
        assert!(!has_other_version(&fresh), "its launch stamps it");
    }
}
