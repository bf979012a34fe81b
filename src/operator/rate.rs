//! How often something may happen: growing waits after failures, and a rate with a burst.

use std::time::Duration;

use tokio::time::Instant;

/// The largest part of a wait by which chance shortens it.
const SPREAD: f64 = 0.25;

/// Waits between attempts: doubled with each failure in a row, up to the longest.
///
/// Chance shortens each wait by up to a quarter: objects that failed together, because one
/// dependency was down, must not all come back in the same instant.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    jitter: fn() -> f64,
}

impl Backoff {
    /// Waits from `first` to `longest`.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, jitter: fastrand::f64 }
    }

    /// The same with another source of chance, which returns values from 0 to 1; 0 keeps the whole
    /// wait.
    #[must_use]
    pub const fn with_jitter(self, jitter: fn() -> f64) -> Self {
        Self { jitter, ..self }
    }

    /// The wait after this many failures in a row; zero counts as one.
    #[must_use]
    pub fn delay(&self, failures: u32) -> Duration {
        // The shift below would overflow at 32.
        let doublings = failures.saturating_sub(1).min(30);
        let whole = self.first.saturating_mul(1 << doublings).min(self.longest);
        whole - whole.mul_f64(SPREAD * (self.jitter)().clamp(0.0, 1.0))
    }
}

/// A rate: `burst` at once, then `rate` per second.
#[derive(Debug)]
pub struct RateLimit {
    /// The time that one use takes.
    each: Duration,
    /// The time that the whole burst takes.
    all: Duration,
    /// Until when the limit is used up, if nothing more comes.
    used: Instant,
}

impl RateLimit {
    /// A limit of which nothing is used yet.
    #[must_use]
    pub fn new(rate: u32, burst: u32, now: Instant) -> Self {
        let each = Duration::from_secs(1) / rate.max(1);
        Self { each, all: each * burst.max(1), used: now }
    }

    /// Takes one use; returns the time from which it may be made.
    pub fn take(&mut self, now: Instant) -> Instant {
        // The generic cell rate algorithm: one point in time says how much of the burst is used.
        self.used = self.used.max(now) + self.each;
        now.max(self.used.checked_sub(self.all).unwrap_or(now))
    }

    /// Takes one use if it may be made now.
    pub fn try_take(&mut self, now: Instant) -> bool {
        let used = self.used.max(now) + self.each;
        let there = used.saturating_duration_since(now) <= self.all;
        if there {
            self.used = used;
        }
        there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(60));
        let whole = backoff.with_jitter(|| 0.0);
        let waits: Vec<u128> = (1..=11).map(|n| whole.delay(n).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000]);
        assert_eq!(whole.delay(u32::MAX), Duration::from_secs(60));
        assert_eq!(backoff.with_jitter(|| 1.0).delay(1), Duration::from_millis(75));
        for failures in 0..40 {
            let (chance, most) = (backoff.delay(failures), whole.delay(failures));
            assert!(chance <= most && chance >= most.mul_f64(0.75), "{failures}: {chance:?}");
        }
    }

    #[test]
    fn a_burst_goes_at_once_and_then_the_rate() {
        let start = Instant::now();
        let mut limit = RateLimit::new(10, 3, start);
        let waits: Vec<u128> = (0..6).map(|_| (limit.take(start) - start).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 100, 200, 300]);
        // After a pause the whole burst is there again, and no more.
        let later = start + Duration::from_secs(60);
        let waits: Vec<u128> = (0..4).map(|_| (limit.take(later) - later).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 100]);
    }

    #[test]
    fn what_may_not_be_used_now_is_not_taken() {
        let start = Instant::now();
        let mut limit = RateLimit::new(5, 2, start);
        let taken = |limit: &mut RateLimit, at| (0..4).filter(|_| limit.try_take(at)).count();
        assert_eq!(taken(&mut limit, start), 2);
        assert_eq!(taken(&mut limit, start + Duration::from_millis(200)), 1);
        assert_eq!(taken(&mut limit, start + Duration::from_secs(9)), 2);
    }
}
