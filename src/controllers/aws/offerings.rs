//! Offerings as metrics: `cloudprovider.metrics`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::every;
use crate::api::labels;
use crate::controllers::{Context, Error};
use crate::operator::metrics;
use crate::scheduling::instance_type::InstanceType;

const PERIOD: Duration = Duration::from_secs(60);

/// By instance type, capacity type and zone: whether it can be had, and its price.
type Offered = BTreeMap<(Arc<str>, String, String), (bool, f64)>;

pub(super) fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let ctx = Arc::clone(ctx);
    every(tasks, "cloudprovider.metrics", PERIOD, move || {
        let ctx = Arc::clone(&ctx);
        async move { publish(&ctx).await }
    });
}

/// Publishes what any NodePool can have; a pool that fails does not keep the others from it.
async fn publish(ctx: &Context) -> Result<(), Error> {
    let mut offered = Offered::new();
    let mut failure = None;
    for pool in ctx.cluster.pools() {
        match ctx.instance_types(&pool).await {
            Ok(types) => add(&mut offered, &types),
            Err(error) => failure = Some(error),
        }
    }
    if ctx.settings.gates.reserved_capacity {
        add_missing_reserved(&mut offered);
    }
    for ((kind, capacity_type, zone), (available, price)) in offered {
        let labels = [&*kind, capacity_type.as_str(), zone.as_str()];
        metrics::OFFERING_AVAILABLE.with_label_values(&labels).set(f64::from(u8::from(available)));
        metrics::OFFERING_PRICE.with_label_values(&labels).set(price);
    }
    failure.map_or(Ok(()), |error| Err(error.into()))
}

fn add(offered: &mut Offered, types: &[Arc<InstanceType>]) {
    for kind in types {
        for offering in &kind.offerings {
            let key = (
                Arc::clone(&kind.name),
                offering.capacity_type().to_owned(),
                offering.zone().to_owned(),
            );
            let known = offered.entry(key).or_insert((false, 0.0));
            *known = (known.0 || offering.available, offering.price);
        }
    }
}

/// A type without a reservation in a zone has none to offer there.
fn add_missing_reserved(offered: &mut Offered) {
    let places: BTreeSet<(Arc<str>, String)> =
        offered.keys().map(|(kind, _, zone)| (Arc::clone(kind), zone.clone())).collect();
    for (kind, zone) in places {
        offered.entry((kind, labels::CAPACITY_RESERVED.to_owned(), zone)).or_insert((false, 0.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::instance_type::Offering;
    use crate::scheduling::requirements::Requirement;

    fn kind(available: bool, price: f64) -> Arc<InstanceType> {
        Arc::new(InstanceType {
            name: Arc::from("m5.large"),
            offerings: vec![Offering {
                requirements: [
                    Requirement::is(labels::CAPACITY_TYPE, "spot"),
                    Requirement::is(labels::ZONE, "a"),
                ]
                .into_iter()
                .collect(),
                price,
                available,
                ..Offering::default()
            }],
            ..InstanceType::default()
        })
    }

    #[test]
    fn what_one_pool_can_have_is_available() {
        let mut offered = Offered::new();
        add(&mut offered, &[kind(true, 0.1)]);
        add(&mut offered, &[kind(false, 0.2)]);
        add_missing_reserved(&mut offered);
        let key = |c: &str| (Arc::from("m5.large"), c.to_owned(), "a".to_owned());
        assert_eq!(offered[&key("spot")], (true, 0.2));
        assert_eq!(offered[&key("reserved")], (false, 0.0));
        assert_eq!(offered.len(), 2);
    }
}
