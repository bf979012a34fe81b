//! Tags that are known only once the Node is: `nodeclaim.tagging`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::Api;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::api::v1::NodeClaim;
use crate::api::{annotations, labels};
use crate::cloud::aws::instance::{TagError, parse_provider_id};
use crate::cloud::aws::permissions::Feature;
use crate::cloud::aws::{AwsProvider, tags};
use crate::controllers::patch;
use crate::controllers::runner::{self, Identity};
use crate::controllers::{Context, Outcome};

/// Several at once, so that the calls about them can be made together.
const TAGGING: Identity =
    Identity { name: "nodeclaim.tagging", group: labels::GROUP, kind: "NodeClaim", workers: 50 };
/// Every instance's tags are its own, so that each is a call: a storm of them would keep EC2 from
/// answering about launches. So many at once, ...
const GROUP: u32 = 20;
/// ... and the next ones after this long.
const PAUSE: Duration = Duration::from_secs(10);
/// EC2 takes a little over a second to show new tags.
const VISIBLE: Duration = Duration::from_secs(1);
/// Where tagging is not allowed, it is tried again after this long.
const REFUSED: Duration = Duration::from_secs(3600);

pub(in crate::controllers) fn start(
    ctx: &Arc<Context>,
    aws: &Arc<AwsProvider>,
    tasks: &mut JoinSet<()>,
) {
    let provider = Arc::clone(aws);
    let pace = Arc::new(Pace::default());
    tasks.spawn(runner::run(
        TAGGING,
        Arc::clone(ctx),
        super::all_claims,
        runner::changed_claim,
        move |ctx, name| {
            let (aws, pace) = (Arc::clone(&provider), Arc::clone(&pace));
            async move { reconcile(&ctx, &aws, &pace, &name).await }
        },
    ));
}

/// Tags the claim's instance once its Node is known, and says so on the claim.
async fn reconcile(ctx: &Context, aws: &AwsProvider, pace: &Pace, name: &str) -> Outcome {
    let claim = || ctx.cluster.claim(name).filter(|c| taggable(c).is_some());
    if claim().is_none() {
        return Ok(None);
    }
    // Whole groups go on together, so that one call describes their instances.
    sleep(pace.take(Instant::now())).await;
    let Some(before) = claim() else { return Ok(None) };
    let Some((provider_id, node)) = taggable(&before) else { return Ok(None) };
    let Some(id) = parse_provider_id(&provider_id) else {
        tracing::error!("provider-id" = provider_id, "failed parsing instance id");
        return Ok(None);
    };
    if aws.permissions.is_off(Feature::Tagging) {
        return Ok(Some(REFUSED));
    }
    let instance = match aws.instances.get_fresh(id).await {
        Err(error) if error.is_not_found() => return Ok(None),
        other => other?,
    };
    let wanted = missing(&node, name, &ctx.settings.cluster_name, &instance.tags);
    if !wanted.is_empty() {
        match aws.instances.tag(id, &wanted).await {
            Ok(()) => sleep(VISIBLE).await,
            Err(TagError::Cloud(error)) if error.is_not_found() => return Ok(None),
            Err(TagError::Cloud(error)) => return Err(error.into()),
            Err(TagError::Aws(error)) => {
                if aws.permissions.settle(Feature::Tagging, Err::<(), _>(error))?.is_none() {
                    return Ok(Some(REFUSED));
                }
            }
        }
    }
    let mut claim = (*before).clone();
    let marks = claim.metadata.annotations.get_or_insert_default();
    for key in [annotations::INSTANCE_TAGGED, annotations::CLUSTER_NAME_TAGGED] {
        marks.insert(key.to_owned(), "true".to_owned());
    }
    patch::merge(&Api::<NodeClaim>::all(ctx.client.clone()), &*before, &claim).await?;
    Ok(None)
}

/// Lets callers through in groups.
#[derive(Debug, Default)]
struct Pace(Mutex<Option<(Instant, u32)>>);

impl Pace {
    /// How long the next caller has to wait for its group.
    fn take(&self, now: Instant) -> Duration {
        let mut group = self.0.lock();
        let (start, count) = match *group {
            Some((start, count)) if count < GROUP && now < start + PAUSE => (start, count),
            Some((start, _)) => ((start + PAUSE).max(now), 0),
            None => (now, 0),
        };
        *group = Some((start, count + 1));
        start.saturating_duration_since(now)
    }
}

/// Provider id and node name of a claim whose instance still lacks tags.
fn taggable(claim: &NodeClaim) -> Option<(String, String)> {
    let marks = claim.metadata.annotations.as_ref();
    let is_set = |key: &str| marks.and_then(|m| m.get(key)).is_some_and(|v| v == "true");
    if claim.metadata.deletion_timestamp.is_some()
        || (is_set(annotations::INSTANCE_TAGGED) && is_set(annotations::CLUSTER_NAME_TAGGED))
    {
        return None;
    }
    let status = claim.status.as_ref()?;
    Some((status.provider_id.clone()?, status.node_name.clone().filter(|n| !n.is_empty())?))
}

/// Tags that the instance lacks; one that it has, such as a Name of the user's, stays.
fn missing(
    node: &str,
    claim: &str,
    cluster: &str,
    present: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    [("Name", node), (tags::NODECLAIM, claim), (tags::CLUSTER_NAME, cluster)]
        .into_iter()
        .filter(|(key, _)| !present.contains_key(*key))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tags_that_are_there_stay() {
        let own = BTreeMap::from([("Name".to_owned(), "mine".to_owned())]);
        let wanted = missing("ip-1", "claim-1", "c", &own);
        let want = BTreeMap::from([
            (tags::NODECLAIM.to_owned(), "claim-1".to_owned()),
            (tags::CLUSTER_NAME.to_owned(), "c".to_owned()),
        ]);
        assert_eq!(wanted, want);
        assert_eq!(missing("n", "c", "k", &BTreeMap::new()).len(), 3);
    }

    #[test]
    fn a_storm_is_let_through_in_groups() {
        let (pace, start) = (Pace::default(), Instant::now());
        let waits: Vec<u64> = (0..45).map(|_| pace.take(start).as_secs()).collect();
        let want = |n: u64| {
            if n < 20 {
                0
            } else if n < 40 {
                10
            } else {
                20
            }
        };
        assert_eq!(waits, (0..45).map(want).collect::<Vec<_>>());
        assert_eq!(pace.take(start + Duration::from_secs(25)), Duration::ZERO);
        // After a quiet time nobody waits.
        let later = start + Duration::from_secs(60);
        assert!((0..20).all(|_| pace.take(later).is_zero()));
        assert_eq!(pace.take(later), PAUSE);
    }

    #[test]
    fn a_claim_is_tagged_once_its_node_is_known() {
        let claim = |status: serde_json::Value, marks: serde_json::Value| -> NodeClaim {
            serde_json::from_value(json!({
                "apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
                "metadata": {"name": "c", "annotations": marks},
                "spec": {"nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "n"}, "requirements": []},
                "status": status,
            }))
            .unwrap()
        };
        let known = json!({"providerID": "aws:///a/i-1", "nodeName": "ip-1"});
        let both = json!({annotations::INSTANCE_TAGGED: "true",
            annotations::CLUSTER_NAME_TAGGED: "true"});
        let half = json!({annotations::INSTANCE_TAGGED: "true"});
        assert!(taggable(&claim(known.clone(), json!({}))).is_some());
        assert!(taggable(&claim(known.clone(), half)).is_some());
        assert!(taggable(&claim(known, both)).is_none());
        assert!(taggable(&claim(json!({"providerID": "aws:///a/i-1"}), json!({}))).is_none());
    }
}
