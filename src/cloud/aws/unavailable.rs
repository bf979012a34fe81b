//! Offerings that EC2 has just refused: left out for three minutes.

use std::time::Duration;

use super::cache::TtlCache;
use crate::clock::Clock;

/// How long an offering counts as unavailable.
pub const TTL: Duration = Duration::from_secs(180);

/// Offerings, capacity types and subnets that could not be had lately.
#[derive(Debug)]
pub struct UnavailableOfferings {
    offerings: TtlCache<(String, String, String), ()>,
    capacity_types: TtlCache<String, ()>,
    subnets: TtlCache<String, ()>,
}

impl UnavailableOfferings {
    /// Nothing is known to be unavailable.
    #[must_use]
    pub fn new(clock: &Clock) -> Self {
        Self {
            offerings: TtlCache::new(clock.clone(), TTL),
            capacity_types: TtlCache::new(clock.clone(), TTL),
            subnets: TtlCache::new(clock.clone(), TTL),
        }
    }

    /// Marks (capacity type, instance type, zone).
    pub fn mark(&self, reason: &str, capacity_type: &str, instance_type: &str, zone: &str) {
        tracing::debug!(
            "reason" = reason,
            "instance-type" = instance_type,
            "zone" = zone,
            "capacity-type" = capacity_type,
            "ttl" = crate::api::duration::format_go(TTL),
            "removing offering from offerings"
        );
        let key = (capacity_type.to_owned(), instance_type.to_owned(), zone.to_owned());
        self.offerings.set(key, ());
    }

    /// Marks a whole capacity type.
    pub fn mark_capacity_type(&self, capacity_type: &str) {
        self.capacity_types.set(capacity_type.to_owned(), ());
    }

    /// Marks a subnet whose addresses are used up.
    pub fn mark_subnet(&self, subnet: &str) {
        self.subnets.set(subnet.to_owned(), ());
    }

    /// Whether an offering is to be left out; `subnets` are all those of the zone.
    #[must_use]
    pub fn is_unavailable(
        &self,
        capacity_type: &str,
        instance_type: &str,
        zone: &str,
        subnets: &[String],
    ) -> bool {
        let key = (capacity_type.to_owned(), instance_type.to_owned(), zone.to_owned());
        self.offerings.get(&key).is_some()
            || self.capacity_types.get(&key.0).is_some()
            || (!subnets.is_empty() && subnets.iter().all(|s| self.subnets.get(s).is_some()))
    }
}
