//! Upkeep of the EC2 provider: what it knows, and what it left lying about.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

pub(super) use super::runner::every;
use super::{Context, Outcome, nodeclaim, runner};
use crate::cloud::aws::AwsProvider;

mod capacity;
mod catalog;
mod garbage;
mod offerings;
mod reservations;
mod zonalshift;

/// Unused launch templates are looked for this often.
const TEMPLATE_PERIOD: Duration = Duration::from_secs(10);

/// Starts all of it.
pub fn start(ctx: &Arc<Context>, aws: &Arc<AwsProvider>, tasks: &mut JoinSet<()>) {
    catalog::start(aws, tasks);
    garbage::start(ctx, aws, tasks);
    nodeclaim::tagging::start(ctx, aws, tasks);
    capacity::start(ctx, aws, tasks);
    offerings::start(ctx, tasks);
    reservations::start(ctx, aws, tasks);
    zonalshift::start(ctx, aws, tasks);
    let (provider, hydrated) = (Arc::clone(aws), Arc::new(AtomicBool::new(false)));
    runner::repeat(tasks, "launchtemplate", move || {
        let (aws, hydrated) = (Arc::clone(&provider), Arc::clone(&hydrated));
        async move { launch_templates(&aws, &hydrated).await }
    });
}

/// Deletes unused launch templates, those of an earlier process too.
async fn launch_templates(aws: &AwsProvider, hydrated: &AtomicBool) -> Outcome {
    if hydrated.load(Ordering::Relaxed) {
        aws.launch_templates.delete_expired().await;
    } else {
        aws.launch_templates.hydrate().await?;
        hydrated.store(true, Ordering::Relaxed);
    }
    Ok(Some(TEMPLATE_PERIOD))
}
