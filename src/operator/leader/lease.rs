//! What a candidate does about a Lease: pure.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use tokio::time::Instant;

/// A lease that this process holds is free for others when it was not renewed for this long;
/// client-go's default.
pub(super) const DURATION: Duration = Duration::from_secs(15);

/// A lease as it was when it last changed, and when this process saw that.
///
/// The clocks of two machines differ: what counts is for how long this process has seen no renewal,
/// not the time that the holder wrote.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    holder: String,
    renewed: Option<MicroTime>,
    at: Instant,
}

impl Seen {
    /// Takes in what was read now.
    pub(super) fn update(seen: Option<Self>, lease: &LeaseSpec, now: Instant) -> Self {
        let holder = lease.holder_identity.clone().unwrap_or_default();
        match seen {
            Some(seen) if seen.holder == holder && seen.renewed == lease.renew_time => seen,
            _ => Self { holder, renewed: lease.renew_time.clone(), at: now },
        }
    }
}

/// What to do about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It is somebody else's: wait.
    Wait,
    /// It is free, or has run out: take it.
    Take,
    /// It is this process's: renew it.
    Renew,
}

/// Decides about a lease that reads so, and that last changed when `seen` says.
pub(super) fn decide(lease: &LeaseSpec, seen: &Seen, me: &str, now: Instant) -> Decision {
    match lease.holder_identity.as_deref().unwrap_or_default() {
        "" => Decision::Take,
        holder if holder == me => Decision::Renew,
        _ if now.saturating_duration_since(seen.at) > duration(lease) => Decision::Take,
        _ => Decision::Wait,
    }
}

/// How long the holder may go without a renewal: it is the holder who says so, since it is the one
/// who counts on it.
fn duration(lease: &LeaseSpec) -> Duration {
    let own = lease.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
    own.filter(|seconds| *seconds > 0).map_or(DURATION, Duration::from_secs)
}

/// The lease as `me` writes it at `now`.
pub(super) fn held(old: Option<&LeaseSpec>, me: &str, now: MicroTime) -> LeaseSpec {
    let mine = old.is_some_and(|o| o.holder_identity.as_deref() == Some(me));
    let acquired = old.filter(|_| mine).and_then(|o| o.acquire_time.clone());
    let transitions = old.and_then(|o| o.lease_transitions).unwrap_or(0);
    LeaseSpec {
        acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        // As client-go counts: a lease that is created has no transition yet.
        lease_transitions: Some(transitions + i32::from(!mine && old.is_some())),
        renew_time: Some(now),
        ..LeaseSpec::default()
    }
}

/// The lease as its holder leaves it for others: anybody may take it at once.
pub(super) fn released(old: &LeaseSpec) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(String::new()),
        // As client-go leaves it, whose candidates may run beside this one during a migration.
        lease_duration_seconds: Some(1),
        ..old.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn at(second: i64) -> MicroTime {
        MicroTime(Timestamp::from_second(second).unwrap())
    }

    fn lease(holder: &str, renewed: i64, seconds: Option<i32>) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            renew_time: Some(at(renewed)),
            lease_duration_seconds: seconds,
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_standby_waits_as_long_as_the_lease_itself_says() {
        let start = Instant::now();
        for (own, waits) in
            [(Some(60), 60), (Some(5), 5), (None, 15), (Some(0), 15), (Some(-1), 15)]
        {
            let lease = lease("other", 1, own);
            let seen = Seen::update(None, &lease, start);
            let after = |seconds| start + Duration::from_secs(seconds);
            assert_eq!(decide(&lease, &seen, "me", after(waits)), Decision::Wait, "{own:?}");
            assert_eq!(decide(&lease, &seen, "me", after(waits + 1)), Decision::Take, "{own:?}");
        }
    }

    #[test]
    fn a_renewal_that_is_seen_restarts_the_wait() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let seen = Seen::update(None, &lease("other", 1, Some(15)), start);
        let same = Seen::update(Some(seen.clone()), &lease("other", 1, Some(15)), after(14));
        assert_eq!(same, seen);
        let renewed = lease("other", 2, Some(15));
        let seen = Seen::update(Some(seen), &renewed, after(14));
        assert_eq!(decide(&renewed, &seen, "me", after(29)), Decision::Wait);
        assert_eq!(decide(&renewed, &seen, "me", after(30)), Decision::Take);
    }

    #[test]
    fn a_lease_without_holder_is_taken_at_once_and_ones_own_is_renewed() {
        let now = Instant::now();
        let of = |holder| {
            let lease = lease(holder, 1, Some(15));
            decide(&lease, &Seen::update(None, &lease, now), "me", now)
        };
        assert_eq!(of(""), Decision::Take);
        assert_eq!(of("me"), Decision::Renew);
        let old = lease("me", 1, Some(15));
        assert_eq!(released(&old).holder_identity.as_deref(), Some(""));
    }

    #[test]
    fn a_renewal_keeps_the_time_of_acquisition_and_a_change_of_holder_is_counted() {
        let first = held(None, "a", at(10));
        assert_eq!((first.acquire_time.clone(), first.lease_transitions), (Some(at(10)), Some(0)));
        let second = held(Some(&first), "a", at(12));
        assert_eq!((second.acquire_time, second.renew_time), (Some(at(10)), Some(at(12))));
        let third = held(Some(&first), "b", at(40));
        assert_eq!((third.acquire_time, third.lease_transitions), (Some(at(40)), Some(1)));
    }
}
