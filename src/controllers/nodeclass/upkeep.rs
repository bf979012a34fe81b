//! What is looked at by the clock rather than by the objects.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::super::Context;
use super::super::aws::every;
use super::profile;
use crate::cloud::aws::AwsProvider;

const VERSION_PERIOD: Duration = Duration::from_secs(5 * 60);
const PARAMETER_PERIOD: Duration = Duration::from_secs(30 * 60);
const PROFILE_PERIOD: Duration = Duration::from_secs(30 * 60);

/// Starts all of it.
pub(super) fn start(ctx: &Arc<Context>, aws: &Arc<AwsProvider>, tasks: &mut JoinSet<()>) {
    let provider = Arc::clone(aws);
    every(tasks, "providers.version", VERSION_PERIOD, move || {
        let aws = Arc::clone(&provider);
        async move { Ok(aws.version.update().await?) }
    });
    let provider = Arc::clone(aws);
    every(tasks, "providers.ssm.invalidation", PARAMETER_PERIOD, move || {
        let aws = Arc::clone(&provider);
        async move { Ok(aws.amis.forget_deprecated().await?) }
    });
    // In an isolated network IAM cannot be reached.
    if ctx.settings.isolated_vpc {
        return;
    }
    let (ctx, provider) = (Arc::clone(ctx), Arc::clone(aws));
    every(tasks, "instanceprofile.garbagecollection", PROFILE_PERIOD, move || {
        let (ctx, aws) = (Arc::clone(&ctx), Arc::clone(&provider));
        async move { profile::collect(&ctx, &aws).await }
    });
}
