//! Zonal shifts are heeded: `zonalshift`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::every;
use crate::api::v1::NodePool;
use crate::cloud::aws::AwsProvider;
use crate::controllers::{Context, Error};
use crate::operator::events::{Event, Report, reference};

const PERIOD: Duration = Duration::from_secs(30);

pub(super) fn start(ctx: &Arc<Context>, aws: &Arc<AwsProvider>, tasks: &mut JoinSet<()>) {
    if !aws.shifts.is_enabled() {
        return;
    }
    let (ctx, aws) = (Arc::clone(ctx), Arc::clone(aws));
    let before: Arc<Mutex<BTreeMap<String, Timestamp>>> = Arc::default();
    every(tasks, "zonalshift", PERIOD, move || {
        let (ctx, aws, before) = (Arc::clone(&ctx), Arc::clone(&aws), Arc::clone(&before));
        async move { update(&ctx, &aws, &before).await }
    });
}

async fn update(
    ctx: &Context,
    aws: &AwsProvider,
    before: &Mutex<BTreeMap<String, Timestamp>>,
) -> Result<(), Error> {
    aws.update_zonal_shifts().await?;
    let now = aws.shifts.active();
    let was = std::mem::replace(&mut *before.lock(), now.clone());
    for zone in now.keys().filter(|z| !was.contains_key(*z)) {
        tracing::info!("zone-id" = zone, "zonal shift is active, keeping away from the zone");
        publish(ctx, zone, true).await?;
    }
    for zone in was.keys().filter(|z| !now.contains_key(*z)) {
        tracing::info!("zone-id" = zone, "zonal shift is over, using the zone again");
        publish(ctx, zone, false).await?;
    }
    Ok(())
}

/// An event on every NodePool whose subnets reach the zone.
async fn publish(ctx: &Context, zone: &str, active: bool) -> Result<(), Error> {
    let classes = ctx.cluster.classes();
    let reaching: BTreeSet<&str> = classes
        .iter()
        .filter(|c| {
            let mut subnets = c.status.iter().flat_map(|s| &s.subnets);
            subnets.any(|s| s.zone_id.as_deref() == Some(zone))
        })
        .filter_map(|c| c.metadata.name.as_deref())
        .collect();
    for pool in ctx.cluster.pools() {
        if reaching.contains(pool.spec.template.spec.node_class_ref.name.as_str()) {
            ctx.recorder.publish(event(&pool, zone, active));
        }
    }
    Ok(())
}

fn event(pool: &NodePool, zone: &str, active: bool) -> Event {
    let report = if active {
        Report::ZonalShiftActive { zone: &zone }
    } else {
        Report::ZonalShiftCleared { zone: &zone }
    };
    report.on(reference(pool))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::controllers::tests::{Asked, api_server, context};
    use crate::operator::events::Recorder;

    #[tokio::test(start_paused = true)]
    async fn a_shift_and_its_end_are_published_on_the_pools_that_reach_the_zone() {
        let ctx = context(&api_server(Vec::new(), &Asked::default()));
        let mut ctx = Arc::into_inner(ctx).unwrap();
        let (recorder, mut events) = Recorder::captured(ctx.clock.clone());
        ctx.recorder = recorder;
        for (class, zone) in [("near", "use1-az1"), ("far", "use1-az2")] {
            let object = json!({"metadata": {"name": class, "uid": class}, "spec": {},
                "status": {"subnets": [{"id": "s", "zone": "a", "zoneID": zone}]}});
            ctx.cluster.apply_class(serde_json::from_value(object).unwrap());
            let object = json!({"metadata": {"name": class, "uid": class},
                "spec": {"template": {"spec": {"nodeClassRef": {"group": "karpenter.k8s.aws",
                    "kind": "EC2NodeClass", "name": class}}}}});
            ctx.cluster.apply_pool(serde_json::from_value(object).unwrap());
        }
        for (active, reason) in [(true, "ZonalShiftActive"), (false, "ZonalShiftCleared")] {
            publish(&ctx, "use1-az1", active).await.unwrap();
            let event = events.try_recv().unwrap();
            assert_eq!((&*event.reason, event.warning), (reason, active));
            assert_eq!(event.involved.name.as_deref(), Some("near"));
            assert!(event.message.contains("use1-az1"), "{}", event.message);
            assert!(events.try_recv().is_err());
        }
    }
}
