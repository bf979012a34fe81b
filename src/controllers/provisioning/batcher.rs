//! Collects triggers that come close together, so that their pods are scheduled in one round.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

/// How long a wait goes on without any trigger.
const POLL: Duration = Duration::from_secs(1);

/// A window that opens with the first trigger and closes after a quiet time.
#[derive(Debug)]
pub struct Batcher {
    idle: Duration,
    max: Duration,
    /// What triggered since the last window closed.
    seen: Mutex<HashSet<Arc<str>>>,
    /// Holds at most one signal.
    signal: Notify,
}

impl Batcher {
    /// A window that closes `idle` after the last new trigger, but `max` after the first at the latest.
    #[must_use]
    pub fn new(idle: Duration, max: Duration) -> Self {
        Self { idle, max, seen: Mutex::default(), signal: Notify::new() }
    }

    /// Opens the window, or keeps it open; what triggered in this window already changes nothing.
    pub fn trigger(&self, id: &Arc<str>) {
        let mut seen = self.seen.lock();
        if !seen.contains(id) {
            self.signal.notify_one();
            seen.insert(Arc::clone(id));
        }
    }

    /// Waits for a window to open and to close; returns whether one did within a short while.
    pub async fn wait(&self) -> bool {
        let triggered = timeout(POLL, self.signal.notified()).await.is_ok();
        if triggered {
            let end = Instant::now() + self.max;
            let mut quiet = Instant::now() + self.idle;
            while timeout_at(quiet.min(end), self.signal.notified()).await.is_ok() {
                quiet = Instant::now() + self.idle;
            }
        }
        self.seen.lock().clear();
        triggered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds that a window stays open when triggers come at these times.
    async fn window_of(times: &'static [(u64, &str)]) -> u64 {
        let batcher = Arc::new(Batcher::new(Duration::from_secs(5), Duration::from_secs(10)));
        let feeder = Arc::clone(&batcher);
        let start = Instant::now();
        tokio::spawn(async move {
            for (at, name) in times {
                tokio::time::sleep_until(start + Duration::from_secs(*at)).await;
                feeder.trigger(&Arc::from(*name));
            }
        });
        assert!(batcher.wait().await);
        start.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn only_new_triggers_keep_a_window_open() {
        assert_eq!(window_of(&[(0, "a"), (3, "a")]).await, 5);
        assert_eq!(window_of(&[(0, "a"), (3, "b")]).await, 8);
        assert_eq!(window_of(&[(0, "a"), (4, "b"), (8, "c"), (9, "d")]).await, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_without_a_trigger_ends_soon() {
        let batcher = Batcher::new(Duration::from_secs(5), Duration::from_secs(10));
        let start = Instant::now();
        assert!(!batcher.wait().await);
        assert_eq!(start.elapsed(), POLL);
        // A trigger between two waits is not lost, and counts again in the next window.
        batcher.trigger(&Arc::from("a"));
        assert!(batcher.wait().await);
        batcher.trigger(&Arc::from("a"));
        assert!(batcher.wait().await);
    }
}
