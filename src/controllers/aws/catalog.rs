//! Instance types, where they are offered, and what they cost: read again twice a day.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::every;
use crate::cloud::aws::AwsProvider;
use crate::cloud::aws::permissions::Feature;
use crate::controllers::Error;

/// Instance types and prices are read again after this long.
const PERIOD: Duration = Duration::from_secs(12 * 3600);

pub(super) fn start(aws: &Arc<AwsProvider>, tasks: &mut JoinSet<()>) {
    let provider = Arc::clone(aws);
    every(tasks, "providers.instancetype", PERIOD, move || {
        let aws = Arc::clone(&provider);
        async move { Ok(aws.instance_types.update().await?) }
    });
    let provider = Arc::clone(aws);
    every(tasks, "providers.pricing", PERIOD, move || {
        let aws = Arc::clone(&provider);
        async move { refresh_prices(&aws).await }
    });
}

/// Reads both kinds of prices; one that is refused or fails does not keep the other from being
/// learnt and kept.
async fn refresh_prices(aws: &AwsProvider) -> Result<(), Error> {
    let now = aws.clock.now();
    let (on_demand, spot) =
        tokio::join!(aws.pricing.update_on_demand(), aws.pricing.update_spot(now));
    let on_demand = aws.permissions.settle(Feature::OnDemandPrices, on_demand);
    let spot = aws.permissions.settle(Feature::SpotPrices, spot);
    if (on_demand.is_ok() || spot.is_ok())
        && let Some(keeper) = &aws.price_keeper
    {
        keeper.keep(&aws.pricing).await;
    }
    on_demand?;
    spot?;
    Ok(())
}
