//! Subnets: finding those of a node class, and choosing one per zone for a launch.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::cache::TtlCache;
use super::clients::Clients;
use super::errors::AwsError;
use super::select::{cache_key, filter, tag_filters};
use crate::api::labels;
use crate::api::v1::{EC2NodeClass, Subnet};
use crate::clock::Clock;
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::requirements::{Allow, Requirement, Requirements};
use crate::scheduling::resources::Name;

/// Finds subnets and keeps count of their free addresses.
#[derive(Debug)]
pub struct Provider {
    clients: Clients,
    subnets: TtlCache<String, Vec<Subnet>>,
    addresses: TtlCache<String, i64>,
    in_flight: Mutex<HashMap<String, i64>>,
}

/// A subnet chosen for a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The subnet.
    pub subnet: Subnet,
    /// Free addresses as counted before the launch.
    counted: i64,
    /// Addresses that the launch is expected to take.
    predicted: i64,
}

impl Provider {
    /// A provider with empty caches.
    #[must_use]
    pub fn new(clients: Clients, clock: &Clock, refresh: Duration) -> Self {
        // A count must outlive the refresh interval: a subnet without one counts as full.
        let addresses = Duration::from_secs(300).max(refresh + Duration::from_secs(240));
        Self {
            clients,
            subnets: TtlCache::new(clock.clone(), refresh),
            addresses: TtlCache::new(clock.clone(), addresses),
            in_flight: Mutex::new(HashMap::new()),
        }
    }

    /// The subnets that a node class selects, those with most free addresses first.
    ///
    /// # Errors
    /// When EC2 cannot be asked.
    pub async fn list(&self, class: &EC2NodeClass) -> Result<Vec<Subnet>, AwsError> {
        let key = cache_key(&class.metadata);
        if let Some(cached) = self.subnets.get(&key) {
            return Ok(cached);
        }
        let terms = &class.spec.subnet_selector_terms;
        let mut queries: Vec<_> = terms
            .iter()
            .filter(|t| t.id.is_none() && t.tags.is_some())
            .map(|t| tag_filters(t.tags.as_ref()))
            .collect();
        let ids: Vec<String> = terms.iter().filter_map(|t| t.id.clone()).collect();
        if !ids.is_empty() {
            queries.push(vec![filter("subnet-id", ids)]);
        }
        let mut found: BTreeMap<String, (i64, Subnet)> = BTreeMap::new();
        for filters in queries {
            let mut pages = self
                .clients
                .ec2
                .describe_subnets()
                .set_filters(Some(filters))
                .into_paginator()
                .page_size(500)
                .send();
            while let Some(page) = pages.next().await {
                let page = page.map_err(|e| AwsError::new("DescribeSubnets", &e))?;
                for subnet in page.subnets() {
                    let id = subnet.subnet_id().unwrap_or_default().to_owned();
                    let free = i64::from(subnet.available_ip_address_count().unwrap_or(0));
                    let entry = Subnet {
                        id: id.clone(),
                        zone: subnet.availability_zone().unwrap_or_default().to_owned(),
                        zone_id: subnet.availability_zone_id().map(str::to_owned),
                    };
                    self.addresses.set(id.clone(), free);
                    // EC2's figure contains what launches have taken by now.
                    self.in_flight.lock().remove(&id);
                    found.insert(id, (free, entry));
                }
            }
        }
        let mut list: Vec<(i64, Subnet)> = found.into_values().collect();
        // The order is part of the status; the id decides between equals, so that it does not flap.
        list.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.id.cmp(&b.1.id)));
        let list: Vec<Subnet> = list.into_iter().map(|(_, s)| s).collect();
        self.subnets.set(key, list.clone());
        Ok(list)
    }

    /// One subnet a zone, that with most free addresses; what the launch will take is booked.
    #[must_use]
    pub fn zonal_subnets_for_launch(
        &self,
        class: &EC2NodeClass,
        types: &[Arc<InstanceType>],
        capacity_type: &str,
    ) -> BTreeMap<String, Chosen> {
        let mut in_flight = self.in_flight.lock();
        let mut best: BTreeMap<String, (i64, Subnet)> = BTreeMap::new();
        for subnet in class.status.iter().flat_map(|s| &s.subnets) {
            let counted = self.addresses.get(&subnet.id).unwrap_or(0);
            let free = in_flight.get(&subnet.id).copied().unwrap_or(counted);
            let better = best.get(&subnet.zone).is_none_or(|(known, _)| free > *known);
            if better {
                best.insert(subnet.zone.clone(), (free, subnet.clone()));
            }
        }
        best.into_iter()
            .map(|(zone, (free, subnet))| {
                // The VPC CNI takes an address for each pod. Which type EC2 chooses is not known
                // yet: the smallest is booked, so that no subnet looks full too early.
                let predicted = min_pods(types, &zone, capacity_type);
                in_flight.insert(subnet.id.clone(), free - predicted);
                let counted = self.addresses.get(&subnet.id).unwrap_or(0);
                (zone, Chosen { subnet, counted, predicted })
            })
            .collect()
    }

    /// Gives back what a launch booked in subnets that it did not use.
    pub fn release_unused<'a>(&self, chosen: impl Iterator<Item = &'a Chosen>, used: &[String]) {
        let mut in_flight = self.in_flight.lock();
        for choice in chosen.filter(|c| !used.contains(&c.subnet.id)) {
            // Another count means that EC2 was asked since; the booking is gone with the old one.
            if self.addresses.get(&choice.subnet.id) == Some(choice.counted)
                && let Some(count) = in_flight.get_mut(&choice.subnet.id)
            {
                *count += choice.predicted;
            }
        }
    }

    /// Notes that a subnet has no address left.
    pub fn mark_exhausted(&self, id: &str) {
        self.addresses.set(id.to_owned(), 0);
        self.in_flight.lock().remove(id);
    }
}

fn min_pods(types: &[Arc<InstanceType>], zone: &str, capacity_type: &str) -> i64 {
    let wanted: Requirements = [
        Requirement::is(labels::ZONE, zone),
        Requirement::is(labels::CAPACITY_TYPE, capacity_type),
    ]
    .into_iter()
    .collect();
    types
        .iter()
        .filter(|t| {
            t.offerings.iter().any(|o| {
                o.available && wanted.compatible(&o.requirements, Allow::WellKnown).is_ok()
            })
        })
        .map(|t| t.capacity.get(&Name::Pods))
        .min()
        .unwrap_or(0)
}
