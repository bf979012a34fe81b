//! Offerings that EC2 has just refused: left out for three minutes.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::clock::Clock;

/// How long an offering counts as unavailable; Karpenter's value.
pub const TTL: Duration = Duration::from_secs(180);

/// The placement group that a refusal is about, and the partition, if it names one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope<'a> {
    pub group: &'a str,
    pub partition: Option<&'a str>,
}

/// A refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal<'a> {
    /// EC2's error code, or the kind of interruption.
    pub reason: &'a str,
    pub capacity_type: &'a str,
    pub instance_type: &'a str,
    pub zone: &'a str,
    pub scope: Option<Scope<'a>>,
    /// The fleet that was refused, if one was.
    pub fleet: Option<&'a str>,
}

/// Offerings, capacity types and subnets that were lately not available.
#[derive(Debug)]
pub struct UnavailableOfferings {
    clock: Clock,
    marks: Mutex<Marks>,
}

#[derive(Debug, Default)]
struct Marks {
    /// By capacity type, instance type, zone and scope; the instance type is kept for its counter.
    offerings: HashMap<String, (Timestamp, Box<str>)>,
    capacity_types: HashMap<String, Timestamp>,
    subnets: HashMap<String, Timestamp>,
    /// Changes that concern one instance type.
    changes: HashMap<Box<str>, u64>,
    /// Changes that concern all.
    common: u64,
    /// All changes.
    version: u64,
    /// Before this, nothing expires.
    next_expiry: Option<Timestamp>,
}

impl UnavailableOfferings {
    /// Nothing is known to be unavailable.
    #[must_use]
    pub fn new(clock: &Clock) -> Self {
        Self { clock: clock.clone(), marks: Mutex::default() }
    }

    /// Marks (capacity type, instance type, zone).
    pub fn mark(&self, reason: &str, capacity_type: &str, instance_type: &str, zone: &str) {
        let (scope, fleet) = (None, None);
        self.note(&Refusal { reason, capacity_type, instance_type, zone, scope, fleet });
    }

    /// Marks what a refusal is about; marking again extends the time.
    pub fn note(&self, refusal: &Refusal<'_>) {
        tracing::debug!(
            "reason" = refusal.reason,
            "instance-type" = refusal.instance_type,
            "zone" = refusal.zone,
            "capacity-type" = refusal.capacity_type,
            "ttl" = crate::api::duration::format_go(TTL),
            "placement-group-id" = refusal.scope.map(|s| s.group),
            "placement-group-partition" = refusal.scope.and_then(|s| s.partition),
            "fleet-id" = refusal.fleet,
            "removing offering from offerings"
        );
        let kind = refusal.instance_type;
        let key = key(refusal.capacity_type, kind, refusal.zone, refusal.scope);
        self.change(|marks, until| {
            marks.offerings.insert(key, (until, kind.into()));
            // Counters are never removed: one that started at 0 again could repeat an old sequence.
            *marks.changes.entry(kind.into()).or_default() += 1;
        });
    }

    /// Marks a whole capacity type.
    pub fn mark_capacity_type(&self, capacity_type: &str) {
        self.change(|marks, until| {
            marks.capacity_types.insert(capacity_type.to_owned(), until);
            marks.common += 1;
        });
    }

    /// Marks a subnet whose addresses are used up.
    pub fn mark_subnet(&self, subnet: &str) {
        self.change(|marks, until| {
            marks.subnets.insert(subnet.to_owned(), until);
            marks.common += 1;
        });
    }

    fn change(&self, apply: impl FnOnce(&mut Marks, Timestamp)) {
        let now = self.clock.now();
        let mut marks = self.marks.lock();
        marks.expire(now);
        apply(&mut marks, now + TTL);
        marks.version += 1;
        // All marks live equally long, so one that is already set is earlier.
        marks.next_expiry.get_or_insert(now + TTL);
    }

    /// Whether an offering is to be left out; `subnets` are all those of the zone.
    #[must_use]
    pub fn is_unavailable(
        &self,
        capacity_type: &str,
        instance_type: &str,
        zone: &str,
        subnets: &[String],
        scope: Option<Scope<'_>>,
    ) -> bool {
        let mut marks = self.marks.lock();
        marks.expire(self.clock.now());
        if marks.is_empty() {
            return false;
        }
        let has = |scope| {
            !marks.offerings.is_empty()
                && marks.offerings.contains_key(&key(capacity_type, instance_type, zone, scope))
        };
        has(None)
            || scope.is_some_and(|s| has(Some(Scope { partition: None, ..s })))
            || scope.is_some_and(|s| s.partition.is_some() && has(Some(s)))
            || marks.capacity_types.contains_key(capacity_type)
            || (!subnets.is_empty() && subnets.iter().all(|s| marks.subnets.contains_key(s)))
    }

    /// A number that changes whenever anything is marked or expires.
    #[must_use]
    pub fn version(&self) -> u64 {
        let mut marks = self.marks.lock();
        marks.expire(self.clock.now());
        marks.version
    }

    /// A number that changes whenever something about the instance type is marked or expires.
    #[must_use]
    pub fn sequence(&self, instance_type: &str) -> u64 {
        let marks = self.marks.lock();
        // Both only rise, so their sum changes when either does.
        marks.changes.get(instance_type).copied().unwrap_or(0) + marks.common
    }
}

impl Marks {
    fn is_empty(&self) -> bool {
        self.offerings.is_empty() && self.capacity_types.is_empty() && self.subnets.is_empty()
    }

    /// Drops what has expired, as a change like any other.
    fn expire(&mut self, now: Timestamp) {
        if self.next_expiry.is_none_or(|at| now < at) {
            return;
        }
        let changes = &mut self.changes;
        self.offerings.retain(|_, (until, kind)| {
            let keep = *until > now;
            if !keep {
                *changes.entry(kind.clone()).or_default() += 1;
            }
            keep
        });
        let others = self.capacity_types.len() + self.subnets.len();
        self.capacity_types.retain(|_, until| *until > now);
        self.subnets.retain(|_, until| *until > now);
        if self.capacity_types.len() + self.subnets.len() < others {
            self.common += 1;
        }
        self.version += 1;
        let left = self.offerings.values().map(|(until, _)| *until);
        let left = left.chain(self.capacity_types.values().copied());
        self.next_expiry = left.chain(self.subnets.values().copied()).min();
    }
}

fn key(capacity_type: &str, instance_type: &str, zone: &str, scope: Option<Scope<'_>>) -> String {
    let mut key = format!("{capacity_type}:{instance_type}:{zone}");
    if let Some(scope) = scope {
        key.push(':');
        key.push_str(scope.group);
        if let Some(partition) = scope.partition {
            key.push(':');
            key.push_str(partition);
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (Clock, UnavailableOfferings) {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        let cache = UnavailableOfferings::new(&clock);
        (clock, cache)
    }

    #[test]
    fn marks_hold_for_three_minutes_and_marking_again_extends_them() {
        let (clock, cache) = cache();
        let is = || cache.is_unavailable("spot", "m5.large", "a", &[], None);
        assert!(!is());
        cache.mark("InsufficientInstanceCapacity", "spot", "m5.large", "a");
        assert!(is());
        assert!(!cache.is_unavailable("on-demand", "m5.large", "a", &[], None));
        assert!(!cache.is_unavailable("spot", "m5.large", "b", &[], None));
        assert!(!cache.is_unavailable("spot", "m5.xlarge", "a", &[], None));
        clock.advance(Duration::from_secs(120));
        cache.mark("InsufficientInstanceCapacity", "spot", "m5.large", "a");
        clock.advance(Duration::from_secs(179));
        assert!(is());
        clock.advance(Duration::from_secs(1));
        assert!(!is());
    }

    #[test]
    fn a_zone_is_out_when_all_its_subnets_are() {
        let (clock, cache) = cache();
        let subnets = ["s1".to_owned(), "s2".to_owned()];
        let is = |subnets: &[String]| cache.is_unavailable("spot", "t", "a", subnets, None);
        cache.mark_subnet("s1");
        assert!(!is(&subnets));
        cache.mark_subnet("s2");
        assert!(is(&subnets));
        assert!(!is(&[]));
        clock.advance(TTL);
        assert!(!is(&subnets));
        cache.mark_capacity_type("spot");
        assert!(is(&[]));
        assert!(!cache.is_unavailable("on-demand", "t", "a", &[], None));
    }

    #[test]
    fn refusals_of_a_placement_group_concern_it_alone() {
        let (_, cache) = cache();
        let scope = Some(Scope { group: "pg-1", partition: None });
        let refusal = |scope| Refusal {
            reason: "x",
            capacity_type: "spot",
            instance_type: "t",
            zone: "a",
            scope,
            fleet: None,
        };
        cache.note(&refusal(Some(Scope { group: "pg-1", partition: Some("2") })));
        assert!(!cache.is_unavailable("spot", "t", "a", &[], scope));
        let second = Some(Scope { group: "pg-1", partition: Some("2") });
        assert!(cache.is_unavailable("spot", "t", "a", &[], second));
        cache.note(&refusal(scope));
        assert!(cache.is_unavailable("spot", "t", "a", &[], scope));
        assert!(!cache.is_unavailable("spot", "t", "a", &[], None));
        let other = Some(Scope { group: "pg-2", partition: None });
        assert!(!cache.is_unavailable("spot", "t", "a", &[], other));
    }

    #[test]
    fn sequences_show_whose_offerings_changed() {
        let (clock, cache) = cache();
        let of = |kind: &str| (cache.version(), cache.sequence(kind));
        let (m5, c5) = (of("m5.large"), of("c5.large"));
        cache.mark("x", "spot", "m5.large", "a");
        assert!(of("m5.large").1 > m5.1);
        assert_eq!(of("c5.large").1, c5.1);
        let before = of("m5.large");
        clock.advance(TTL);
        assert!(of("m5.large").0 > before.0);
        assert!(of("m5.large").1 > before.1);
        cache.mark_capacity_type("spot");
        assert!(of("c5.large").1 > c5.1);
    }
}
