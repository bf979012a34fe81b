//! Upkeep of the EC2 provider: what it knows, and what it left lying about.

use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use kube::Api;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::Instrument as _;

use super::patch::{self, Lock};
use super::runner::{self, Identity};
use super::{Context, Error, Outcome};
use crate::api::v1::NodeClaim;
use crate::api::{annotations, labels};
use crate::cloud::CloudProvider as _;
use crate::cloud::aws::instance::parse_provider_id;
use crate::cloud::aws::{AwsProvider, tags};
use crate::cluster::Change;
use crate::operator::logging;

const TAGGING: Identity =
    Identity { name: "nodeclaim.tagging", group: labels::GROUP, kind: "NodeClaim", workers: 10 };
/// Instance types and prices are read again after this long.
const CATALOG_PERIOD: Duration = Duration::from_secs(12 * 3600);
/// Unused launch templates are looked for this often.
const TEMPLATE_PERIOD: Duration = Duration::from_secs(10);
/// Instances without a NodeClaim are left alone while they are younger than this.
const ORPHAN_AGE: Duration = Duration::from_secs(30);

/// Starts all of it.
pub fn start(ctx: &Arc<Context>, aws: &Arc<AwsProvider>, tasks: &mut JoinSet<()>) {
    let provider = Arc::clone(aws);
    every(tasks, "providers.instancetype", CATALOG_PERIOD, move || {
        let aws = Arc::clone(&provider);
        async move { Ok(aws.instance_types.update().await?) }
    });
    let (provider, isolated) = (Arc::clone(aws), ctx.settings.isolated_vpc);
    every(tasks, "providers.pricing", CATALOG_PERIOD, move || {
        let aws = Arc::clone(&provider);
        async move {
            let spot = aws.pricing.update_spot(aws.clock.now()).await;
            if !isolated {
                aws.pricing.update_on_demand().await?;
            }
            Ok(spot?)
        }
    });
    let provider = Arc::clone(aws);
    tasks.spawn(
        async move {
            if let Err(error) = provider.launch_templates.hydrate().await {
                tracing::error!("error" = %error, "unable to hydrate the AWS launch template cache");
            }
            loop {
                sleep(TEMPLATE_PERIOD).await;
                provider.launch_templates.delete_expired().await;
            }
        }
        .instrument(logging::controller_span("launchtemplate")),
    );
    let (collector, provider) = (Arc::clone(ctx), Arc::clone(aws));
    tasks.spawn(
        async move { collect(&collector, &provider).await }
            .instrument(logging::controller_span("instance.garbagecollection")),
    );
    let provider = Arc::clone(aws);
    tasks.spawn(runner::run(
        TAGGING,
        Arc::clone(ctx),
        super::nodeclaim::all_claims,
        |_, change| match change {
            Change::NodeClaim(name) => vec![name.clone()],
            _ => Vec::new(),
        },
        move |ctx, name| {
            let aws = Arc::clone(&provider);
            async move { tag(&ctx, &aws, &name).await }
        },
    ));
}

/// Runs a refresh again and again, sooner after a failure.
pub(super) fn every<F, R>(tasks: &mut JoinSet<()>, name: &'static str, period: Duration, refresh: F)
where
    F: Fn() -> R + Send + 'static,
    R: Future<Output = Result<(), Error>> + Send,
{
    let run = async move {
        let mut failures = 0_u32;
        loop {
            match refresh().await {
                Ok(()) => {
                    failures = 0;
                    sleep(period).await;
                }
                Err(error) => {
                    tracing::error!("error" = %error, "Reconciler error");
                    sleep(Duration::from_secs(1 << failures.min(6))).await;
                    failures += 1;
                }
            }
        }
    };
    tasks.spawn(run.instrument(logging::controller_span(name)));
}

/// Tags that are known only once the Node is.
async fn tag(ctx: &Context, aws: &AwsProvider, name: &str) -> Outcome {
    let Some(before) = ctx.cluster.claim(name) else { return Ok(None) };
    let status = before.status.clone().unwrap_or_default();
    let marks = before.metadata.annotations.clone().unwrap_or_default();
    let is_set = |key: &str| marks.get(key).is_some_and(|v| v == "true");
    let done = is_set(annotations::INSTANCE_TAGGED) && is_set(annotations::CLUSTER_NAME_TAGGED);
    let (Some(id), Some(node)) = (status.provider_id, status.node_name) else { return Ok(None) };
    if before.metadata.deletion_timestamp.is_some() || done {
        return Ok(None);
    }
    let id = parse_provider_id(&id)
        .ok_or_else(|| Error::Other(format!("parsing provider id {id:?}")))?;
    let instance = match aws.instances.get(id).await {
        Err(error) if error.is_not_found() => return Ok(None),
        other => other?,
    };
    let mut wanted: BTreeMap<String, String> = [
        ("Name", node.as_str()),
        (tags::NODECLAIM, name),
        (tags::CLUSTER_NAME, &ctx.settings.cluster_name),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    // A Name that the user chose stays.
    wanted.retain(|key, _| !instance.tags.contains_key(key));
    if !wanted.is_empty() {
        match aws.instances.tag(id, &wanted).await {
            Err(error) if error.is_not_found() => return Ok(None),
            other => other?,
        }
        // EC2 takes a little over a second to show new tags.
        sleep(Duration::from_secs(1)).await;
    }
    let mut claim = (*before).clone();
    let marks = claim.metadata.annotations.get_or_insert_default();
    for key in [annotations::INSTANCE_TAGGED, annotations::CLUSTER_NAME_TAGGED] {
        marks.insert(key.to_owned(), "true".to_owned());
    }
    patch::apply(&Api::<NodeClaim>::all(ctx.client.clone()), &before, &claim, Lock::None).await?;
    Ok(None)
}

/// Terminates instances that no NodeClaim stands for.
async fn collect(ctx: &Context, aws: &AwsProvider) {
    let mut runs = 0_u32;
    while !ctx.cluster.listed() {
        sleep(Duration::from_millis(100)).await;
    }
    loop {
        match collect_once(ctx, aws).await {
            Ok(()) => {
                runs += 1;
                sleep(Duration::from_secs(if runs <= 20 { 10 } else { 120 })).await;
            }
            Err(error) => {
                tracing::error!("error" = %error, "Reconciler error");
                sleep(Duration::from_secs(5)).await;
            }
        }
    }
}

async fn collect_once(ctx: &Context, aws: &AwsProvider) -> Result<(), Error> {
    // Instances first: a claim that is made meanwhile must not look missing.
    let instances = aws.instances.list().await?;
    let claims = Api::<NodeClaim>::all(ctx.client.clone()).list(&Default::default()).await?;
    let known: HashSet<String> =
        claims.iter().filter_map(|c| c.status.as_ref()?.provider_id.clone()).collect();
    // A claim whose launch was cut short finds its instance again by its tag.
    let names: HashSet<&str> = claims.iter().filter_map(|c| c.metadata.name.as_deref()).collect();
    for instance in instances {
        let id = instance.provider_id();
        let old = instance.launched.is_some_and(|t| ctx.clock.since(t) > ORPHAN_AGE);
        let claimed =
            instance.tags.get(tags::NODECLAIM).is_some_and(|n| names.contains(n.as_str()));
        if !old || instance.terminating() || known.contains(&id) || claimed {
            continue;
        }
        let claim = NodeClaim {
            status: Some(crate::api::v1::NodeClaimStatus {
                provider_id: Some(id.clone()),
                ..Default::default()
            }),
            ..NodeClaim::default()
        };
        match aws.delete(&claim).await {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => tracing::debug!("provider-id" = id, "garbage collected cloudprovider instance"),
        }
        for node in ctx.cluster.nodes_by_provider_id(&id) {
            let name = node.metadata.name.clone().unwrap_or_default();
            patch::delete(&Api::<k8s_openapi::api::core::v1::Node>::all(ctx.client.clone()), &name)
                .await?;
            tracing::debug!("Node" = %logging::obj(&name), "garbage collected node");
        }
    }
    Ok(())
}
