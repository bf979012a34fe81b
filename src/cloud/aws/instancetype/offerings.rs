//! Where a type is offered, for what price, and whether it is available now.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::compatibility::compatible;
use super::info::Info;
use super::zones::{Zone, Zones};
use super::{Options, Parts};
use crate::api::labels;
use crate::api::v1::{CapacityReservation, EC2NodeClass, Operator};
use crate::cloud::aws::placementgroup::PlacementGroup;
use crate::cloud::aws::unavailable::Scope;
use crate::scheduling::instance_type::{InstanceType, Offering};
use crate::scheduling::overlay::InForce;
use crate::scheduling::requirements::{Requirement, Requirements};

/// A reserved offering is cheaper than any other, in the order of on-demand prices.
const RESERVED_DISCOUNT: f64 = 10_000_000.0;

/// What decides about offerings, at one moment.
pub(super) struct Market<'a> {
    parts: &'a Parts,
    class: &'a EC2NodeClass,
    zones: Zones,
    group: Option<PlacementGroup>,
    shifted: BTreeSet<String>,
    /// Reservations and how many instances each has left.
    reservations: Vec<(&'a CapacityReservation, i64)>,
    /// Prices that overlays set for types that have none.
    overlaid: Arc<BTreeMap<String, f64>>,
    /// Requirements of offerings by zone and capacity type, made once.
    spot: Vec<Requirements>,
    on_demand: Vec<Requirements>,
}

/// What changes without the node class.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Versions {
    prices: u64,
    overlaid: Arc<BTreeMap<String, f64>>,
    reservations: Vec<(String, i64)>,
}

impl<'a> Market<'a> {
    pub(super) fn new(
        parts: &'a Parts,
        options: &Options,
        class: &'a EC2NodeClass,
        zones: Zones,
    ) -> Self {
        let status = class.status.as_ref().filter(|_| options.reserved_capacity);
        let reservations = status
            .iter()
            .flat_map(|s| &s.capacity_reservations)
            .map(|r| (r, parts.reservations.available(&r.id)))
            .collect();
        let shifted = zones
            .iter()
            .filter(|z| z.id.as_deref().is_some_and(|id| parts.shifts.is_shifted(id)))
            .map(|z| z.name.clone())
            .collect();
        let of = |kind: &str| zones.iter().map(|z| place(kind, z)).collect();
        Self {
            parts,
            class,
            group: parts.placement_groups.known(class),
            shifted,
            reservations,
            overlaid: parts.overlays.as_ref().map(InForce::prices).unwrap_or_default(),
            spot: of(labels::CAPACITY_SPOT),
            on_demand: of(labels::CAPACITY_ON_DEMAND),
            zones,
        }
    }

    /// What of the node class and its surroundings offerings depend on, beside the types' shapes.
    pub(super) fn key(&self) -> String {
        let spec = &self.class.spec;
        let subnets: BTreeSet<&String> = self.zones.iter().flat_map(|z| &z.subnets).collect();
        let states: Vec<_> = self.reservations.iter().map(|(r, _)| (&r.id, &r.state)).collect();
        let group = self.group.as_ref().map(|g| (&g.id, &g.strategy, g.partition_count));
        let parts = (
            (subnets, &self.shifted, spec.connection_tracking.is_some(), &spec.cpu_options),
            (spec.ip_prefix_count, group, states, self.class.wants_enclaves()),
        );
        serde_json::to_string(&parts).unwrap_or_default()
    }

    pub(super) fn versions(&self) -> Versions {
        Versions {
            prices: self.parts.pricing.version(),
            overlaid: Arc::clone(&self.overlaid),
            reservations: self.reservations.iter().map(|(r, n)| (r.id.clone(), *n)).collect(),
        }
    }

    /// The type with its offerings.
    pub(super) fn offer(
        &self,
        info: &Info,
        kind: &InstanceType,
        offered: Option<&BTreeSet<String>>,
    ) -> InstanceType {
        let mut kind = kind.clone();
        let usable = compatible(info, self.class, self.group.as_ref());
        let in_zone = |zone: &str| {
            usable
                && offered.is_some_and(|o| o.contains(zone))
                && !self.shifted.contains(zone)
                && self.zones.get(zone).is_some_and(|z| !z.subnets.is_empty())
        };
        let mut list = self.ordinary(info, &kind, &in_zone);
        list.extend(self.reserved(info, &in_zone));
        kind.offerings = match &self.group {
            Some(group) => self.in_group(group, &mut kind.requirements, list),
            None => list,
        };
        kind
    }

    fn ordinary(
        &self,
        info: &Info,
        kind: &InstanceType,
        in_zone: &dyn Fn(&str) -> bool,
    ) -> Vec<Offering> {
        let name = info.instance_type.as_str();
        let allowed = kind.requirements.get(labels::CAPACITY_TYPE);
        let scope = self.group.as_ref().map(|g| Scope { group: &g.id, partition: None });
        let mut list = Vec::new();
        for (capacity_type, places) in
            [(labels::CAPACITY_ON_DEMAND, &self.on_demand), (labels::CAPACITY_SPOT, &self.spot)]
        {
            if !allowed.is_some_and(|r| r.has(capacity_type)) {
                continue;
            }
            for (zone, requirements) in self.zones.iter().zip(places) {
                let price = if capacity_type == labels::CAPACITY_SPOT {
                    self.parts.pricing.spot(name, &zone.name)
                } else {
                    self.parts.pricing.on_demand(name)
                };
                let price = price.map(|p| (p.amount, p.is_estimated()));
                let price = price.or_else(|| Some((*self.overlaid.get(name)?, false)));
                let refused = || {
                    let cache = &self.parts.unavailable;
                    cache.is_unavailable(capacity_type, name, &zone.name, &zone.subnets, scope)
                };
                list.push(Offering {
                    requirements: requirements.clone(),
                    // Offerings that are unavailable stay in the list, so that explanations and
                    // overlays see them.
                    price: price.map_or(0.0, |p| p.0),
                    price_estimated: price.is_some_and(|p| p.1),
                    available: price.is_some() && in_zone(&zone.name) && !refused(),
                    ..Offering::default()
                });
            }
        }
        list
    }

    /// One offering per reservation of this type; a full one is known by its count.
    fn reserved(&self, info: &Info, in_zone: &dyn Fn(&str) -> bool) -> Vec<Offering> {
        let name = info.instance_type.as_str();
        let own = self.reservations.iter().filter(|(r, _)| r.instance_type == name);
        own.map(|(reservation, left)| {
            let zone = &reservation.availability_zone;
            let unknown = Zone { name: zone.clone(), ..Zone::default() };
            let place_of = self.zones.get(zone).unwrap_or(&unknown);
            let mut requirements = place(labels::CAPACITY_RESERVED, place_of);
            for (key, value) in [
                (labels::CAPACITY_RESERVATION_ID, reservation.id.as_str()),
                (labels::CAPACITY_RESERVATION_TYPE, reservation.reservation_type.as_str()),
                (
                    labels::CAPACITY_RESERVATION_INTERRUPTIBLE,
                    if reservation.interruptible == Some(true) { "true" } else { "false" },
                ),
            ] {
                requirements.replace(Requirement::is(key, value));
            }
            let usable = reservation.state != "expiring" && in_zone(zone);
            Offering {
                requirements,
                // Paid for already: of its price only the order counts, estimated or not.
                price: self.parts.pricing.on_demand(name).map_or(0.0, |p| p.amount)
                    / RESERVED_DISCOUNT,
                available: usable && *left != 0,
                reservation_full: usable && *left == 0,
                reservation_capacity: *left,
                ..Offering::default()
            }
        })
        .collect()
    }

    /// The type's requirements and offerings in a placement group: one per partition, if it has
    /// any.
    fn in_group(
        &self,
        group: &PlacementGroup,
        requirements: &mut Requirements,
        list: Vec<Offering>,
    ) -> Vec<Offering> {
        requirements.replace(Requirement::is(labels::PLACEMENT_GROUP_ID, &group.id));
        if group.strategy != "partition" || group.partition_count <= 0 {
            return list;
        }
        // One offering per partition, so that pods can ask for a partition, or be spread over them,
        // by the label.
        let partitions: Vec<String> = (1..=group.partition_count).map(|n| n.to_string()).collect();
        requirements.replace(Requirement::new(
            labels::PLACEMENT_GROUP_PARTITION,
            Operator::In,
            &partitions,
        ));
        list.iter()
            .flat_map(|offering| {
                partitions.iter().map(|partition| {
                    let mut offering = offering.clone();
                    let key = labels::PLACEMENT_GROUP_PARTITION;
                    offering.requirements.replace(Requirement::is(key, partition));
                    offering.available &=
                        !self.partition_refused(group, &offering, requirements, partition);
                    offering
                })
            })
            .collect()
    }

    fn partition_refused(
        &self,
        group: &PlacementGroup,
        offering: &Offering,
        requirements: &Requirements,
        partition: &str,
    ) -> bool {
        let kind = requirements.get(labels::INSTANCE_TYPE).and_then(Requirement::single);
        offering.available
            && offering.capacity_type() != labels::CAPACITY_RESERVED
            && self.parts.unavailable.is_unavailable(
                offering.capacity_type(),
                kind.unwrap_or_default(),
                offering.zone(),
                &[],
                Some(Scope { group: &group.id, partition: Some(partition) }),
            )
    }
}

/// Requirements of offerings of a capacity type in a zone.
fn place(capacity_type: &str, zone: &Zone) -> Requirements {
    let absent = |key: &str| Requirement::new::<&str>(key, Operator::DoesNotExist, []);
    let mut requirements: Requirements = [
        Requirement::is(labels::CAPACITY_TYPE, capacity_type),
        Requirement::is(labels::ZONE, &zone.name),
        absent(labels::CAPACITY_RESERVATION_ID),
        absent(labels::CAPACITY_RESERVATION_TYPE),
        absent(labels::CAPACITY_RESERVATION_INTERRUPTIBLE),
    ]
    .into_iter()
    .collect();
    if let Some(id) = &zone.id {
        requirements.add(Requirement::is(labels::ZONE_ID, id));
    }
    requirements
}
