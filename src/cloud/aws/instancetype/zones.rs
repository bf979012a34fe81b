//! Zones as a node class sees them: those that its subnets are in.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::v1::{EC2NodeClass, Subnet};

/// A zone of the region.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Zone {
    /// Name, such as `us-east-1a`.
    pub name: String,
    /// Id, such as `use1-az1`, where a subnet shows it.
    pub id: Option<String>,
    /// The node class's subnets in it.
    pub subnets: Vec<String>,
}

/// All zones of a region, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zones(Vec<Zone>);

impl Zones {
    /// The region's zones, with the subnets that the class's status has.
    #[must_use]
    pub fn new(region: &BTreeSet<String>, class: &EC2NodeClass) -> Self {
        let subnets: &[Subnet] =
            class.status.as_ref().map(|s| s.subnets.as_slice()).unwrap_or_default();
        let mut zones: BTreeMap<&str, Zone> = region
            .iter()
            .map(|name| (name.as_str(), Zone { name: name.clone(), ..Zone::default() }))
            .collect();
        for subnet in subnets {
            if let Some(zone) = zones.get_mut(subnet.zone.as_str()) {
                zone.id = zone.id.take().or_else(|| subnet.zone_id.clone());
                zone.subnets.push(subnet.id.clone());
            }
        }
        Self(zones.into_values().collect())
    }

    /// Every zone of the region.
    pub fn iter(&self) -> impl Iterator<Item = &Zone> {
        self.0.iter()
    }

    /// The zone of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Zone> {
        self.0.iter().find(|z| z.name == name)
    }

    /// Zones where a type is offered and the class has a subnet.
    #[must_use]
    pub fn available<'a>(&'a self, offered: Option<&BTreeSet<String>>) -> BTreeSet<&'a str> {
        self.0
            .iter()
            .filter(|z| !z.subnets.is_empty() && offered.is_some_and(|o| o.contains(&z.name)))
            .map(|z| z.name.as_str())
            .collect()
    }

    /// Ids of zones, where they are known.
    pub fn ids_of<'a>(&'a self, names: &'a BTreeSet<&str>) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(|z| names.contains(z.name.as_str())).filter_map(|z| z.id.as_deref())
    }
}
