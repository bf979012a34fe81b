//! Offerings as metrics: `cloudprovider.metrics`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::every;
use crate::api::labels;
use crate::api::v1::NodePool;
use crate::controllers::{Context, Error};
use crate::operator::metrics::{
    self,
    page::{Family, Page},
};
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::requirements::Requirements;

const PERIOD: Duration = Duration::from_secs(60);

/// By instance type, capacity type and zone: whether it can be had, and its price.
type Offered = BTreeMap<(Arc<str>, String, String), (bool, f64)>;

pub(super) fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let shown = Arc::new(Mutex::new(Arc::new(Offered::new())));
    let written = Arc::clone(&shown);
    metrics::add_source(ctx, move |_, page| {
        let offered = Arc::clone(&written.lock());
        write(&offered, page);
    });
    let ctx = Arc::clone(ctx);
    every(tasks, "cloudprovider.metrics", PERIOD, move || {
        let (ctx, shown) = (Arc::clone(&ctx), Arc::clone(&shown));
        async move { publish(&ctx, &shown).await }
    });
}

/// Publishes what any NodePool can have; a pool that fails does not keep the others from it.
async fn publish(ctx: &Context, shown: &Mutex<Arc<Offered>>) -> Result<(), Error> {
    let mut offered = Offered::new();
    let mut failure = None;
    for pool in ctx.cluster.pools() {
        match ctx.instance_types(&pool).await {
            Ok(types) => add(&mut offered, &types, &requirements_of(&pool)),
            Err(error) => failure = Some(error),
        }
    }
    if ctx.settings.gates.reserved_capacity {
        add_missing_reserved(&mut offered);
    }
    *shown.lock() = Arc::new(offered);
    failure.map_or(Ok(()), |error| Err(error.into()))
}

/// What a NodePool asks of its nodes.
fn requirements_of(pool: &NodePool) -> Requirements {
    let template = &pool.spec.template;
    let mut all = Requirements::from_api(&template.spec.requirements);
    let labels = template.metadata.labels.as_ref();
    all.merge(&Requirements::from_labels(labels.into_iter().flatten()));
    all
}

/// Adds the types that a pool admits: a series of each type that nobody can use would only cost.
fn add(offered: &mut Offered, types: &[Arc<InstanceType>], pool: &Requirements) {
    for kind in types.iter().filter(|t| pool.intersects(&t.requirements).is_ok()) {
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

fn write(offered: &Offered, page: &mut Page<'_>) {
    let mut series = |family: &Family, value: fn(&(bool, f64)) -> f64| {
        let Some(mut lines) = page.family(family) else { return };
        for ((kind, capacity_type, zone), offering) in offered {
            lines.add(&[kind, capacity_type, zone], value(offering));
        }
    };
    series(&metrics::OFFERING_AVAILABLE, |(available, _)| f64::from(u8::from(*available)));
    series(&metrics::OFFERING_PRICE, |(_, price)| *price);
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
        let any = Requirements::new();
        add(&mut offered, &[kind(true, 0.1)], &any);
        add(&mut offered, &[kind(false, 0.2)], &any);
        add_missing_reserved(&mut offered);
        let key = |c: &str| (Arc::from("m5.large"), c.to_owned(), "a".to_owned());
        assert_eq!(offered[&key("spot")], (true, 0.2));
        assert_eq!(offered[&key("reserved")], (false, 0.0));
        assert_eq!(offered.len(), 2);
    }

    #[test]
    fn types_that_no_pool_admits_have_no_series() {
        let mut offered = Offered::new();
        let named = |name: &str| {
            let requirements = [Requirement::is(labels::INSTANCE_TYPE, name)];
            let own = InstanceType {
                requirements: requirements.into_iter().collect(),
                ..(*kind(true, 0.1)).clone()
            };
            Arc::new(InstanceType { name: Arc::from(name), ..own })
        };
        let pool: Requirements =
            [Requirement::is(labels::INSTANCE_TYPE, "m5.large")].into_iter().collect();
        add(&mut offered, &[named("m5.large"), named("x2.large")], &pool);
        let text = metrics::page_of(&metrics::Options::default(), |page| write(&offered, page));
        let series: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(
            series,
            [
                r#"karpenter_cloudprovider_instance_type_offering_available{instance_type="m5.large",capacity_type="spot",zone="a"} 1"#,
                r#"karpenter_cloudprovider_instance_type_offering_price_estimate{instance_type="m5.large",capacity_type="spot",zone="a"} 0.1"#,
            ]
        );
        let standard = metrics::Options { level: metrics::Level::Standard, ..Default::default() };
        assert_eq!(metrics::page_of(&standard, |page| write(&offered, page)), "");
    }
}
