//! Instance types: EC2's descriptions turned into labels, capacity, overhead and offerings.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use aws_sdk_ec2::types::{InstanceTypeInfo, LocationType};
use parking_lot::RwLock;

use super::clients::Clients;
use super::errors::AwsError;
use super::pricing;
use super::select::filter;
use super::unavailable::UnavailableOfferings;
use crate::api::labels;
use crate::api::v1::{EC2NodeClass, Operator};
use crate::scheduling::instance_type::{InstanceType, Offering};
use crate::scheduling::requirements::{Requirement, Requirements};

pub mod capacity;
pub mod requirements;

/// What does not depend on the node class.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub region: String,
    /// Share of the memory that the hypervisor keeps.
    pub vm_memory_overhead: f64,
    /// Network interfaces that are not for pods.
    pub reserved_enis: i64,
    /// Reserved capacity is offered.
    pub reserved_capacity: bool,
}

#[derive(Debug, Default)]
struct Catalog {
    types: Vec<Arc<InstanceTypeInfo>>,
    zones_of: HashMap<String, BTreeSet<String>>,
    zones: BTreeSet<String>,
}

/// Describes instance types.
#[derive(Debug)]
pub struct Provider {
    clients: Clients,
    options: Options,
    pricing: Arc<pricing::Provider>,
    unavailable: Arc<UnavailableOfferings>,
    catalog: RwLock<Catalog>,
}

/// Instance types that cannot be listed yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ListError(pub &'static str);

impl Provider {
    /// A provider that knows no type yet.
    #[must_use]
    pub fn new(
        clients: Clients,
        options: Options,
        pricing: Arc<pricing::Provider>,
        unavailable: Arc<UnavailableOfferings>,
    ) -> Self {
        Self { clients, options, pricing, unavailable, catalog: RwLock::default() }
    }

    /// Reads types and where they are offered.
    ///
    /// # Errors
    /// When EC2 cannot be asked; what was known stays.
    pub async fn update(&self) -> Result<(), AwsError> {
        let (types, zones_of) = tokio::try_join!(self.describe_types(), self.describe_offerings())?;
        let zones: BTreeSet<String> = zones_of.values().flatten().cloned().collect();
        tracing::debug!("count" = types.len(), "discovered instance types");
        tracing::debug!(
            "instance-type-count" = zones_of.len(),
            "discovered offerings for instance types"
        );
        *self.catalog.write() = Catalog { types, zones_of, zones };
        Ok(())
    }

    async fn describe_types(&self) -> Result<Vec<Arc<InstanceTypeInfo>>, AwsError> {
        let mut pages = self
            .clients
            .ec2
            .describe_instance_types()
            .filters(filter("supported-virtualization-type", vec!["hvm".to_owned()]))
            .filters(filter(
                "processor-info.supported-architecture",
                vec!["x86_64".to_owned(), "arm64".to_owned()],
            ))
            .into_paginator()
            .page_size(100)
            .send();
        let mut types = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| AwsError::new("DescribeInstanceTypes", &e))?;
            types.extend(page.instance_types.unwrap_or_default().into_iter().map(Arc::new));
        }
        types.sort_by(|a, b| name_of(a).cmp(name_of(b)));
        Ok(types)
    }

    async fn describe_offerings(&self) -> Result<HashMap<String, BTreeSet<String>>, AwsError> {
        let mut pages = self
            .clients
            .ec2
            .describe_instance_type_offerings()
            .location_type(LocationType::AvailabilityZone)
            .into_paginator()
            .page_size(1000)
            .send();
        let mut zones_of: HashMap<String, BTreeSet<String>> = HashMap::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| AwsError::new("DescribeInstanceTypeOfferings", &e))?;
            for offering in page.instance_type_offerings() {
                if let (Some(kind), Some(zone)) = (offering.instance_type(), offering.location()) {
                    zones_of.entry(kind.as_str().to_owned()).or_default().insert(zone.to_owned());
                }
            }
        }
        Ok(zones_of)
    }

    /// The types that nodes of a class may have, with today's offerings.
    ///
    /// # Errors
    /// When types, offerings or subnets are not known yet.
    pub fn list(&self, class: &EC2NodeClass) -> Result<Vec<Arc<InstanceType>>, ListError> {
        let catalog = self.catalog.read();
        if catalog.types.is_empty() {
            return Err(ListError("no instance types found"));
        }
        if catalog.zones_of.is_empty() {
            return Err(ListError("no instance types offerings found"));
        }
        let subnets = class.status.as_ref().map(|s| s.subnets.as_slice()).unwrap_or_default();
        if subnets.is_empty() {
            return Err(ListError("no subnets found"));
        }
        let zones = Zones::new(&catalog, subnets);
        Ok(catalog.types.iter().map(|info| Arc::new(self.resolve(info, class, &zones))).collect())
    }

    fn resolve(
        &self,
        info: &InstanceTypeInfo,
        class: &EC2NodeClass,
        zones: &Zones<'_>,
    ) -> InstanceType {
        let name = name_of(info);
        let empty = BTreeSet::new();
        let offered = zones.offered.get(name).unwrap_or(&empty);
        let available: BTreeSet<&str> = offered
            .iter()
            .map(String::as_str)
            .filter(|z| zones.subnets_of.contains_key(z))
            .collect();
        let capacity = capacity::capacity(info, class, &self.options);
        let overhead = capacity::overhead(info, class, &capacity);
        let requirements = requirements::of(info, class, &self.options, zones, &available);
        let mut instance_type = InstanceType {
            name: Arc::from(name),
            requirements,
            offerings: Vec::new(),
            capacity,
            overhead,
            ..InstanceType::default()
        };
        instance_type.offerings = self.offerings(&instance_type, class, zones, &available);
        instance_type
    }

    fn offerings(
        &self,
        instance_type: &InstanceType,
        class: &EC2NodeClass,
        zones: &Zones<'_>,
        available: &BTreeSet<&str>,
    ) -> Vec<Offering> {
        let name = &*instance_type.name;
        let usable = requirements::compatible_with_class(name, class);
        let mut offerings = Vec::new();
        let capacity_types = instance_type.requirements.get(labels::CAPACITY_TYPE);
        for kind in [labels::CAPACITY_SPOT, labels::CAPACITY_ON_DEMAND] {
            if !capacity_types.is_some_and(|r| r.has(kind)) {
                continue;
            }
            for zone in zones.all {
                let price = if kind == labels::CAPACITY_SPOT {
                    self.pricing.spot(name, zone)
                } else {
                    self.pricing.on_demand(name)
                };
                let subnets = zones.subnets_of.get(zone.as_str()).cloned().unwrap_or_default();
                let available = usable
                    && price.is_some()
                    && available.contains(zone.as_str())
                    && !self.unavailable.is_unavailable(kind, name, zone, &subnets);
                offerings.push(Offering {
                    requirements: zones.offering_requirements(kind, zone),
                    price: price.unwrap_or(0.0),
                    available,
                    ..Offering::default()
                });
            }
        }
        if self.options.reserved_capacity {
            offerings.extend(self.reserved(instance_type, class, zones, available, usable));
        }
        offerings
    }

    fn reserved(
        &self,
        instance_type: &InstanceType,
        class: &EC2NodeClass,
        zones: &Zones<'_>,
        available: &BTreeSet<&str>,
        usable: bool,
    ) -> Vec<Offering> {
        let name = &*instance_type.name;
        let price = self.pricing.on_demand(name).unwrap_or(0.0) / 10_000_000.0;
        class
            .status
            .iter()
            .flat_map(|s| &s.capacity_reservations)
            .filter(|r| r.instance_type == name)
            .map(|reservation| {
                let mut requirements = zones.offering_requirements(
                    labels::CAPACITY_RESERVED,
                    &reservation.availability_zone,
                );
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
                Offering {
                    requirements,
                    price,
                    available: usable
                        && reservation.state != "expiring"
                        && available.contains(reservation.availability_zone.as_str()),
                    reservation_capacity: 1,
                    ..Offering::default()
                }
            })
            .collect()
    }
}

/// The name of a described type.
#[must_use]
pub fn name_of(info: &InstanceTypeInfo) -> &str {
    info.instance_type().map_or("", aws_sdk_ec2::types::InstanceType::as_str)
}

/// Zones as a node class sees them.
pub struct Zones<'a> {
    all: &'a BTreeSet<String>,
    offered: &'a HashMap<String, BTreeSet<String>>,
    subnets_of: BTreeMap<&'a str, Vec<String>>,
    ids: BTreeMap<&'a str, &'a str>,
}

impl<'a> Zones<'a> {
    fn new(catalog: &'a Catalog, subnets: &'a [crate::api::v1::Subnet]) -> Self {
        let mut subnets_of: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let mut ids = BTreeMap::new();
        for subnet in subnets {
            subnets_of.entry(&subnet.zone).or_default().push(subnet.id.clone());
            if let Some(id) = &subnet.zone_id {
                ids.insert(subnet.zone.as_str(), id.as_str());
            }
        }
        Self { all: &catalog.zones, offered: &catalog.zones_of, subnets_of, ids }
    }

    /// Ids of zones, where the node class's subnets tell them.
    pub(super) fn ids_of<'b>(&'b self, zones: &'b BTreeSet<&str>) -> impl Iterator<Item = &'b str> {
        zones.iter().filter_map(|z| self.ids.get(z).copied())
    }

    fn offering_requirements(&self, capacity_type: &str, zone: &str) -> Requirements {
        let absent = |key: &str| Requirement::new::<&str>(key, Operator::DoesNotExist, []);
        let mut requirements: Requirements = [
            Requirement::is(labels::CAPACITY_TYPE, capacity_type),
            Requirement::is(labels::ZONE, zone),
            absent(labels::CAPACITY_RESERVATION_ID),
            absent(labels::CAPACITY_RESERVATION_TYPE),
            absent(labels::CAPACITY_RESERVATION_INTERRUPTIBLE),
        ]
        .into_iter()
        .collect();
        if let Some(id) = self.ids.get(zone) {
            requirements.add(Requirement::is(labels::ZONE_ID, id));
        }
        requirements
    }
}

#[cfg(test)]
mod tests;
