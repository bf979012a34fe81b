//! Zonal shifts: zones that an operator, or AWS itself, moved work away from.

use std::collections::BTreeMap;

use jiff::Timestamp;
use parking_lot::Mutex;

use super::clients::Clients;
use super::errors::AwsError;
use crate::clock::Clock;

/// Knows which zones are shifted away from, by zone id.
#[derive(Debug)]
pub struct Provider {
    clients: Clients,
    clock: Clock,
    enabled: bool,
    /// When each zone's shift ends.
    shifts: Mutex<BTreeMap<String, Timestamp>>,
}

impl Provider {
    /// A provider that knows of no shift; it never does unless `enabled`.
    #[must_use]
    pub fn new(clients: Clients, clock: &Clock, enabled: bool) -> Self {
        Self { clients, clock: clock.clone(), enabled, shifts: Mutex::default() }
    }

    /// Whether zonal shifts are followed.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Whether work is to stay away from a zone.
    #[must_use]
    pub fn is_shifted(&self, zone_id: &str) -> bool {
        self.enabled && self.shifts.lock().get(zone_id).is_some_and(|end| *end > self.clock.now())
    }

    /// Zones that are shifted away from now, with the ends of their shifts.
    #[must_use]
    pub fn active(&self) -> BTreeMap<String, Timestamp> {
        let now = self.clock.now();
        self.shifts.lock().iter().filter(|(_, e)| **e > now).map(|(z, e)| (z.clone(), *e)).collect()
    }

    /// Asks for the shifts of a cluster.
    ///
    /// # Errors
    /// When ARC cannot be asked; known shifts stay until they end.
    pub async fn update(&self, cluster_arn: &str) -> Result<(), AwsError> {
        let answer = self
            .clients
            .zonal_shift
            .get_managed_resource()
            .resource_identifier(cluster_arn)
            .send()
            .await
            .map_err(|e| AwsError::new("GetManagedResource", &e))?;
        let applied =
            answer.zonal_shifts().iter().filter(|s| s.applied_status().as_str() == "APPLIED");
        let found: BTreeMap<String, Timestamp> = applied
            .filter_map(|s| {
                let end = Timestamp::from_second(s.expiry_time().secs()).ok()?;
                Some((s.away_from().to_owned(), end))
            })
            .collect();
        self.note(answer.zonal_shifts().is_empty(), found);
        Ok(())
    }

    /// An answer without any shift ends them all; otherwise what it says is added.
    pub(super) fn note(&self, none: bool, found: BTreeMap<String, Timestamp>) {
        let mut shifts = self.shifts.lock();
        if none {
            shifts.clear();
        }
        shifts.extend(found);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn shifts_end_by_themselves_or_when_none_is_listed() {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        let config = aws_config::SdkConfig::builder()
            .behavior_version(aws_config::BehaviorVersion::latest())
            .build();
        let provider = Provider::new(Clients::new(&config), &clock, true);
        let end = Timestamp::UNIX_EPOCH + Duration::from_secs(60);
        let found = BTreeMap::from([("use1-az1".to_owned(), end)]);
        provider.note(false, found.clone());
        assert!(provider.is_shifted("use1-az1"));
        assert!(!provider.is_shifted("use1-az2"));
        provider.note(false, BTreeMap::new());
        assert!(provider.is_shifted("use1-az1"));
        provider.note(true, BTreeMap::new());
        assert!(provider.active().is_empty());
        provider.note(false, found);
        clock.advance(Duration::from_secs(60));
        assert!(!provider.is_shifted("use1-az1"));
    }
}
