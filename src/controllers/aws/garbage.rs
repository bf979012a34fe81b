//! Instances that no NodeClaim stands for: `instance.garbagecollection`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use tokio::task::JoinSet;

use crate::api::v1::{NodeClaim, NodeClaimStatus};
use crate::cloud::aws::instance::{Instance, identity};
use crate::cloud::aws::{AwsProvider, tags};
use crate::controllers::{Context, Error, patch, read_live, runner};
use crate::operator::logging;
use crate::operator::readable::Unreadable;

/// Instances without a NodeClaim are left alone while they are younger than this.
const ORPHAN_AGE: Duration = Duration::from_secs(30);
/// Orphans that are removed at once.
const PARALLEL: usize = 100;

/// Often at first, since a crash leaves most; then rarely.
pub(super) fn start(ctx: &Arc<Context>, aws: &Arc<AwsProvider>, tasks: &mut JoinSet<()>) {
    let (context, aws, runs) = (Arc::clone(ctx), Arc::clone(aws), Arc::new(AtomicU32::new(0)));
    runner::singleton(
        tasks,
        "instance.garbagecollection",
        ctx,
        |_, _| false,
        move || {
            let (ctx, aws, runs) = (Arc::clone(&context), Arc::clone(&aws), Arc::clone(&runs));
            async move {
                collect(&ctx, &aws).await?;
                Ok(Some(pause(runs.fetch_add(1, Ordering::Relaxed).saturating_add(1))))
            }
        },
    );
}

/// How long to wait after so many runs.
fn pause(runs: u32) -> Duration {
    Duration::from_secs(if runs <= 20 { 10 } else { 120 })
}

async fn collect(ctx: &Context, aws: &AwsProvider) -> Result<(), Error> {
    // Instances first: a claim that is made meanwhile must not look missing.
    let instances = aws.instances.list().await?;
    let live = read_live::list::<NodeClaim>(&ctx.client).await?;
    // A NodeClaim that cannot be understood may have any instance that says so.
    let mut claims = live.objects;
    claims.extend(live.unreadable.into_iter().map(outline));
    let orphans = orphans(&instances, &claims, ctx.clock.now());
    let removals: Vec<_> = orphans.into_iter().map(|i| remove(ctx, aws, i)).collect();
    let outcomes: Vec<Result<(), Error>> =
        stream::iter(removals).buffer_unordered(PARALLEL).collect().await;
    outcomes.into_iter().collect()
}

/// Instances that belong to no claim, and that no claim may still find.
fn orphans<'a>(
    instances: &'a [Instance],
    claims: &[NodeClaim],
    now: Timestamp,
) -> Vec<&'a Instance> {
    let known: HashSet<&str> =
        claims.iter().filter_map(|c| c.status.as_ref()?.provider_id.as_deref()).collect();
    // Claims without an instance: a launch that was cut short finds its own by its tags.
    let waiting: HashMap<&str, String> = claims
        .iter()
        .filter(|c| c.status.as_ref().is_none_or(|s| s.provider_id.is_none()))
        .filter_map(|c| Some((c.metadata.name.as_deref()?, c.metadata.uid.as_deref()?)))
        .map(|(name, uid)| (name, identity::short(uid)))
        .collect();
    let shorts: HashSet<&str> = waiting.values().map(String::as_str).collect();
    let awaited = |instance: &Instance| match instance.tags.get(tags::NODECLAIM) {
        Some(name) => waiting.contains_key(name.as_str()),
        None => instance
            .tags
            .get(identity::LAUNCHED_FOR)
            .is_some_and(|v| identity::shorts(v).any(|s| shorts.contains(s))),
    };
    instances
        .iter()
        .filter(|i| {
            let age = |t: Timestamp| Duration::try_from(now.duration_since(t)).unwrap_or_default();
            !i.terminating()
                && i.launched.is_some_and(|t| age(t) > ORPHAN_AGE)
                && !known.contains(i.provider_id().as_str())
                && !awaited(i)
        })
        .collect()
}

async fn remove(ctx: &Context, aws: &AwsProvider, instance: &Instance) -> Result<(), Error> {
    let id = instance.provider_id();
    match aws.instances.delete(&instance.id).await {
        Err(error) if !error.is_not_found() => return Err(error.into()),
        _ => tracing::debug!("provider-id" = id, "garbage collected cloudprovider instance"),
    }
    for node in ctx.cluster.nodes_by_provider_id(&id) {
        let name = node.metadata.name.clone().unwrap_or_default();
        patch::delete(&Api::<Node>::all(ctx.client.clone()), &name).await?;
        tracing::debug!(
            "Node" = %logging::obj(&name),
            "provider-id" = id,
            "garbage collected node"
        );
    }
    Ok(())
}

/// As much of a NodeClaim as identifies which instance is its own.
fn outline(found: Unreadable) -> NodeClaim {
    let provider_id = found.raw["status"]["providerID"].as_str().map(str::to_owned);
    let status = NodeClaimStatus { provider_id, ..NodeClaimStatus::default() };
    NodeClaim { metadata: found.meta, status: Some(status), ..NodeClaim::default() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claim(name: &str, provider_id: Option<&str>) -> NodeClaim {
        serde_json::from_value(json!({
            "apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
            "metadata": {"name": name, "uid": format!("uid-{name}")},
            "spec": {"nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "n"}, "requirements": []},
            "status": {"providerID": provider_id},
        }))
        .unwrap()
    }

    fn instance(id: &str, tags: &[(&str, &str)]) -> Instance {
        Instance {
            id: id.to_owned(),
            zone: "a".to_owned(),
            state: "running".to_owned(),
            launched: Some(Timestamp::UNIX_EPOCH),
            tags: tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..Instance::default()
        }
    }

    #[test]
    fn the_first_minutes_are_watched_closely() {
        let pauses: Vec<u64> = (1..=22).map(|runs| pause(runs).as_secs()).collect();
        assert_eq!(pauses[..20], [10; 20]);
        assert_eq!(pauses[20..], [120; 2]);
    }

    #[test]
    fn only_what_nobody_can_want_is_removed() {
        let members = |names: &[&str]| -> String {
            names.iter().map(|n| identity::short(&format!("uid-{n}"))).collect()
        };
        let waited = members(&["waits", "has"]);
        let done = members(&["has", "gone"]);
        let claims = [claim("has", Some("aws:///a/i-known")), claim("waits", None)];
        let instances = [
            instance("i-known", &[]),
            instance("i-named", &[(tags::NODECLAIM, "waits")]),
            instance("i-awaited", &[(identity::LAUNCHED_FOR, &waited)]),
            instance("i-stray", &[(identity::LAUNCHED_FOR, &done)]),
            instance("i-second", &[(tags::NODECLAIM, "has")]),
            instance("i-unnamed", &[]),
        ];
        let later = Timestamp::UNIX_EPOCH + Duration::from_secs(31);
        let ids = |now| -> Vec<&str> {
            orphans(&instances, &claims, now).iter().map(|i| i.id.as_str()).collect()
        };
        assert_eq!(ids(later), ["i-stray", "i-second", "i-unnamed"]);
        assert!(ids(Timestamp::UNIX_EPOCH + ORPHAN_AGE).is_empty());
        let mut ending = instance("i-ending", &[]);
        ending.state = "shutting-down".to_owned();
        assert!(orphans(&[ending], &claims, later).is_empty());
    }
}
