//! Capacity reservations that node classes select, and how much of each is left.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_ec2::types::{CapacityReservation as Found, Filter};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::cache::TtlCache;
use super::clients::Clients;
use super::errors::AwsError;
use super::permissions::{Feature, Permissions};
use super::select::{filter, tag_filters};
use crate::api::v1::{CapacityReservation, CapacityReservationSelectorTerm};
use crate::clock::Clock;

// Karpenter's default for answers of EC2: reservations change at any time.
const QUERY_TTL: Duration = Duration::from_secs(60);
// Counts are written again with each query; this only drops those of reservations that are no
// longer selected.
const AVAILABILITY_TTL: Duration = Duration::from_secs(24 * 3600);
/// A capacity block's instances are ended 30 minutes before the block; ten more are kept for draining.
const EXPIRING: Duration = Duration::from_secs(40 * 60);

#[derive(Clone, Copy, Debug)]
struct Availability {
    count: i64,
    synced: Timestamp,
}

/// Finds reservations and keeps count of what is left.
#[derive(Debug)]
pub struct Provider {
    clients: Clients,
    clock: Clock,
    permissions: Arc<Permissions>,
    queries: TtlCache<Query, Vec<Found>>,
    left: TtlCache<String, Availability>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Query {
    Id(String),
    /// Names and values of filters.
    Filters(Vec<(String, Vec<String>)>),
}

impl Query {
    fn of(term: &CapacityReservationSelectorTerm) -> Self {
        if let Some(id) = &term.id {
            return Self::Id(id.clone());
        }
        let named = [
            ("owner-id", &term.owner_id),
            ("instance-match-criteria", &term.instance_match_criteria),
        ];
        let mut list: Vec<(String, Vec<String>)> = named
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), vec![value.clone()?])))
            .collect();
        list.extend(
            tag_filters(term.tags.as_ref())
                .iter()
                .map(|f| (f.name().unwrap_or_default().to_owned(), f.values().to_vec())),
        );
        Self::Filters(list)
    }
}

impl Provider {
    /// A provider with empty caches.
    #[must_use]
    pub fn new(clients: Clients, clock: &Clock, permissions: &Arc<Permissions>) -> Self {
        Self {
            clients,
            clock: clock.clone(),
            permissions: Arc::clone(permissions),
            queries: TtlCache::new(clock.clone(), QUERY_TTL),
            left: TtlCache::new(clock.clone(), AVAILABILITY_TTL),
        }
    }

    /// The active reservations that the terms select, by id; those that have ended are left out.
    /// Nothing where the IAM policy does not allow to ask: reservations may exist all the same.
    ///
    /// # Errors
    /// When EC2 cannot be asked; an id that does not exist is no error.
    pub async fn list(
        &self,
        terms: &[CapacityReservationSelectorTerm],
    ) -> Result<Option<Vec<Found>>, AwsError> {
        let mut all: BTreeMap<String, Found> = BTreeMap::new();
        for term in terms {
            let query = Query::of(term);
            let found = match self.queries.get(&query) {
                Some(found) => found,
                None => {
                    let call = self.describe(&query);
                    let found = self.permissions.ask(Feature::CapacityReservations, call).await?;
                    let Some(found) = found else { return Ok(None) };
                    // Only a fresh answer sets the counts: a cached one would undo launches counted
                    // since.
                    self.sync(&found);
                    self.queries.set(query, found.clone());
                    found
                }
            };
            for reservation in found {
                let id = reservation.capacity_reservation_id().unwrap_or_default().to_owned();
                all.insert(id, reservation);
            }
        }
        let now = self.clock.now();
        Ok(Some(all.into_values().filter(|r| end_of(r).is_none_or(|end| end > now)).collect()))
    }

    async fn describe(&self, query: &Query) -> Result<Vec<Found>, AwsError> {
        let request = self
            .clients
            .ec2
            .describe_capacity_reservations()
            .filters(filter("state", vec!["active".to_owned()]));
        let mut pages = match query {
            Query::Id(id) => request.capacity_reservation_ids(id).into_paginator().send(),
            Query::Filters(filters) => {
                let filters: Vec<Filter> =
                    filters.iter().map(|(n, v)| filter(n, v.clone())).collect();
                filters
                    .into_iter()
                    .fold(request, aws_sdk_ec2::operation::describe_capacity_reservations::builders::DescribeCapacityReservationsFluentBuilder::filters)
                    .into_paginator()
                    .page_size(1000)
                    .send()
            }
        };
        let mut list = Vec::new();
        while let Some(page) = pages.next().await {
            match page.map_err(|e| AwsError::new("DescribeCapacityReservations", &e)) {
                Ok(page) => list.extend(page.capacity_reservations.unwrap_or_default()),
                // EC2 answers a call for an id that does not exist with an error. This is also why
                // each id has a call of its own.
                Err(error) if error.is_not_found() => return Ok(Vec::new()),
                Err(error) => return Err(error),
            }
        }
        Ok(list)
    }

    fn sync(&self, found: &[Found]) {
        let synced = self.clock.now();
        for reservation in found {
            let id = reservation.capacity_reservation_id().unwrap_or_default().to_owned();
            let count = i64::from(reservation.available_instance_count().unwrap_or(0));
            self.left.set(id, Availability { count, synced });
        }
    }

    /// Instances that a reservation has left; 0 for one that is not known.
    #[must_use]
    pub fn available(&self, id: &str) -> i64 {
        self.left.get(&id.to_owned()).map_or(0, |a| a.count)
    }

    /// Notes that an instance was launched into a reservation by a call that was sent at a time.
    pub fn mark_launched(&self, id: &str, sent: Timestamp) {
        // The count is an estimate until the next query. A figure of EC2 that was asked for after the
        // call has the instance already, or has it with the next query: it is not subtracted again.
        self.change(id, |a| if a.synced > sent { a.count } else { (a.count - 1).max(0) });
    }

    /// Notes that an instance of a reservation was terminated.
    pub fn mark_terminated(&self, id: &str) {
        self.change(id, |a| a.count + 1);
    }

    /// Notes that a reservation has nothing left.
    pub fn mark_unavailable(&self, id: &str) {
        self.change(id, |_| 0);
    }

    fn change(&self, id: &str, count: impl Fn(Availability) -> i64) {
        // In one step: launches run side by side, and none of their changes may be lost.
        self.left.update(&id.to_owned(), |left| left.count = count(*left));
    }
}

/// When a reservation ends, if it does.
#[must_use]
pub fn end_of(reservation: &Found) -> Option<Timestamp> {
    reservation.end_date().and_then(|t| Timestamp::from_second(t.secs()).ok())
}

/// A reservation as the node class's status shows it; the error names what cannot be understood.
///
/// # Errors
/// For match criteria or a reservation type that are not known.
pub fn to_status(found: &Found, now: Timestamp) -> Result<CapacityReservation, String> {
    let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
    let criteria = found.instance_match_criteria().map_or("", |c| c.as_str());
    if !matches!(criteria, "open" | "targeted") {
        return Err(format!("instanceMatchCriteria {criteria:?}, expected open or targeted"));
    }
    let kind = found.reservation_type().map_or("default", |t| t.as_str());
    if !matches!(kind, "default" | "capacity-block") {
        return Err(format!("reservationType {kind:?}, expected default or capacity-block"));
    }
    let end = end_of(found);
    let expiring = kind == "capacity-block" && end.is_some_and(|end| now >= end - EXPIRING);
    Ok(CapacityReservation {
        availability_zone: text(found.availability_zone()),
        end_time: end.map(Time),
        id: text(found.capacity_reservation_id()),
        instance_match_criteria: criteria.to_owned(),
        instance_type: text(found.instance_type()),
        interruptible: Some(found.interruptible().unwrap_or(false)),
        owner_id: text(found.owner_id()),
        reservation_type: kind.to_owned(),
        state: if expiring { "expiring" } else { "active" }.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_ec2::types::{CapacityReservationType, InstanceMatchCriteria};
    use aws_smithy_types::DateTime;

    fn block(end: i64) -> Found {
        Found::builder()
            .capacity_reservation_id("cr-1")
            .reservation_type(CapacityReservationType::CapacityBlock)
            .instance_match_criteria(InstanceMatchCriteria::Targeted)
            .end_date(DateTime::from_secs(end))
            .build()
    }

    #[test]
    fn blocks_expire_forty_minutes_early() {
        let now = Timestamp::from_second(10_000).unwrap();
        assert_eq!(to_status(&block(10_000 + 2401), now).unwrap().state, "active");
        assert_eq!(to_status(&block(10_000 + 2400), now).unwrap().state, "expiring");
        let mut plain = block(10_001);
        plain.reservation_type = None;
        let status = to_status(&plain, now).unwrap();
        assert_eq!(
            (status.state.as_str(), status.reservation_type.as_str()),
            ("active", "default")
        );
        assert_eq!(status.interruptible, Some(false));
        plain.instance_match_criteria = Some("closed".into());
        assert!(to_status(&plain, now).unwrap_err().contains("closed"));
    }

    #[test]
    fn what_is_left_is_counted() {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        let config = aws_config::SdkConfig::builder()
            .behavior_version(aws_config::BehaviorVersion::latest())
            .build();
        let permissions = Arc::new(Permissions::new(&clock));
        let provider = Provider::new(Clients::new(&config), &clock, &permissions);
        let sent = clock.now();
        provider.mark_launched("cr-1", sent);
        assert_eq!(provider.available("cr-1"), 0);
        let mut found = block(0);
        found.available_instance_count = Some(1);
        clock.advance(Duration::from_secs(1));
        provider.sync(&[found]);
        provider.mark_launched("cr-1", sent);
        assert_eq!(provider.available("cr-1"), 1);
        clock.advance(Duration::from_secs(1));
        provider.mark_launched("cr-1", clock.now());
        provider.mark_launched("cr-1", clock.now());
        assert_eq!(provider.available("cr-1"), 0);
        provider.mark_terminated("cr-1");
        provider.mark_terminated("cr-1");
        assert_eq!(provider.available("cr-1"), 2);
        provider.mark_unavailable("cr-1");
        assert_eq!(provider.available("cr-1"), 0);
    }
}
