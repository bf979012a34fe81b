//! The one source of time: every component that reads the time is handed a [`Clock`].

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;

/// A handle that returns the time. Cheap to clone; all clones agree.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    source: Source,
}

#[derive(Clone, Debug, Default)]
enum Source {
    /// The machine's clock.
    #[default]
    System,
    /// A base instant advanced by tokio's clock, so that paused tests control it.
    Tokio { base: Timestamp, start: tokio::time::Instant },
    /// A value that tests set.
    Manual(Arc<Mutex<Timestamp>>),
}

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn system() -> Self {
        Self { source: Source::System }
    }

    /// Starts at `base` and advances with tokio's (possibly paused) clock.
    #[must_use]
    pub fn tokio(base: Timestamp) -> Self {
        Self { source: Source::Tokio { base, start: tokio::time::Instant::now() } }
    }

    /// Stands at `now` until [`Clock::advance`] moves it.
    #[must_use]
    pub fn manual(now: Timestamp) -> Self {
        Self { source: Source::Manual(Arc::new(Mutex::new(now))) }
    }

    /// The current time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.source {
            #[expect(clippy::disallowed_methods, reason = "the one reader of the system's time")]
            Source::System => Timestamp::now(),
            Source::Tokio { base, start } => *base + start.elapsed(),
            Source::Manual(now) => *now.lock(),
        }
    }

    /// Time passed since `then`; zero when `then` lies in the future.
    #[must_use]
    pub fn since(&self, then: Timestamp) -> Duration {
        Duration::try_from(self.now().duration_since(then)).unwrap_or_default()
    }

    /// Moves a manual clock forward; other clocks ignore the call.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(now) = &self.source {
            let mut now = now.lock();
            *now += by;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_set() {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        let other = clock.clone();
        clock.advance(Duration::from_secs(90));
        assert_eq!(other.now(), Timestamp::UNIX_EPOCH + Duration::from_secs(90));
        assert_eq!(clock.since(Timestamp::UNIX_EPOCH), Duration::from_secs(90));
        assert_eq!(clock.since(Timestamp::UNIX_EPOCH + Duration::from_secs(100)), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_tokio_clock_follows_paused_time() {
        let clock = Clock::tokio(Timestamp::UNIX_EPOCH);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(clock.now(), Timestamp::UNIX_EPOCH + Duration::from_secs(5));
    }
}
