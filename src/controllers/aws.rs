//! Upkeep of the EC2 provider: what it knows, and what it left lying about.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::Instrument as _;

use super::{Context, Error};
use crate::cloud::aws::AwsProvider;
use crate::operator::logging;

mod capacity;
mod catalog;
mod garbage;
mod offerings;
mod reservations;
mod tagging;
mod zonalshift;

/// Unused launch templates are looked for this often.
const TEMPLATE_PERIOD: Duration = Duration::from_secs(10);

/// Starts all of it.
pub fn start(ctx: &Arc<Context>, aws: &Arc<AwsProvider>, tasks: &mut JoinSet<()>) {
    catalog::start(aws, tasks);
    garbage::start(ctx, aws, tasks);
    tagging::start(ctx, aws, tasks);
    capacity::start(ctx, aws, tasks);
    offerings::start(ctx, tasks);
    reservations::start(ctx, aws, tasks);
    zonalshift::start(ctx, aws, tasks);
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
                    tell_failure!(error, "Reconciler error");
                    sleep(Duration::from_secs(1 << failures.min(6))).await;
                    failures += 1;
                }
            }
        }
    };
    tasks.spawn(run.instrument(logging::controller_span(name)));
}
