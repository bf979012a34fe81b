//! One call for each key at a time, shared by all who need its answer.
//!
//! No lock is held while a call is under way: a key whose call fails or takes long delays those
//! who ask for that key, and no others.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::cache::TtlCache;
use crate::clock::Clock;

/// Calls under way, by key.
#[derive(Debug)]
pub struct Flights<K, T> {
    under_way: Mutex<HashMap<K, watch::Receiver<Option<T>>>>,
}

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self { under_way: Mutex::default() }
    }
}

/// Ends a flight, also when its future is dropped before it has an answer.
struct Landing<'a, K: Hash + Eq, T> {
    flights: &'a Flights<K, T>,
    key: &'a K,
}

impl<K: Hash + Eq, T> Drop for Landing<'_, K, T> {
    fn drop(&mut self) {
        self.flights.under_way.lock().remove(self.key);
    }
}

impl<K: Hash + Eq + Clone, T: Clone> Flights<K, T> {
    /// The answer of the key's call that is under way; makes `call` when there is none.
    ///
    /// The caller that started a call may be dropped before it ends: then one of those that wait
    /// makes it.
    pub async fn run<F>(&self, key: &K, call: impl FnOnce() -> F) -> T
    where
        F: Future<Output = T>,
    {
        loop {
            let (sender, mut answer) = {
                let mut under_way = self.under_way.lock();
                match under_way.get(key) {
                    Some(answer) => (None, answer.clone()),
                    None => {
                        let (sender, answer) = watch::channel(None);
                        under_way.insert(key.clone(), answer.clone());
                        (Some(sender), answer)
                    }
                }
            };
            if let Some(sender) = sender {
                let landing = Landing { flights: self, key };
                let value = call().await;
                // Removed first: a caller that arrives now sees what the call has written, or calls
                // again.
                drop(landing);
                sender.send_replace(Some(value.clone()));
                return value;
            }
            // The lock of the channel must not be held across an await, so the value is cloned.
            let value = answer.wait_for(Option::is_some).await.ok().and_then(|v| v.clone());
            if let Some(value) = value {
                return value;
            }
        }
    }
}

/// Answers that are kept for a while, and asked for by one caller at a time for each key.
#[derive(Debug)]
pub struct Memo<K, V, E> {
    kept: TtlCache<K, V>,
    flights: Flights<K, Result<V, E>>,
}

impl<K: Hash + Eq + Clone, V: Clone, E: Clone> Memo<K, V, E> {
    /// An empty memo whose answers live for `ttl`.
    #[must_use]
    pub fn new(clock: &Clock, ttl: Duration) -> Self {
        Self { kept: TtlCache::new(clock.clone(), ttl), flights: Flights::default() }
    }

    /// The kept answer, or that of `call`. Failures go to everybody who waits, and are not kept.
    ///
    /// # Errors
    /// That of the call.
    pub async fn get<F>(&self, key: &K, call: impl FnOnce() -> F) -> Result<V, E>
    where
        F: Future<Output = Result<V, E>>,
    {
        if let Some(kept) = self.kept.get(key) {
            return Ok(kept);
        }
        self.flights
            .run(key, || async {
                // A flight may have ended since the look above.
                if let Some(kept) = self.kept.get(key) {
                    return Ok(kept);
                }
                let answer = call().await;
                if let Ok(value) = &answer {
                    self.kept.set(key.clone(), value.clone());
                }
                answer
            })
            .await
    }

    /// Drops an answer.
    pub fn forget(&self, key: &K) {
        self.kept.remove(key);
    }

    /// Answers that are kept.
    pub fn entries(&self) -> Vec<(K, V)> {
        self.kept.entries()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use jiff::Timestamp;
    use tokio::time::{Instant, sleep};

    use super::*;

    type Numbers = Memo<&'static str, usize, String>;

    fn memo(ttl: u64) -> (Arc<Numbers>, Clock) {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        (Arc::new(Memo::new(&clock, Duration::from_secs(ttl))), clock)
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_whose_call_fails_slowly_delays_no_other_key() {
        let (memo, _) = memo(60);
        let slow = Arc::clone(&memo);
        let failing = tokio::spawn(async move {
            let call = || async {
                sleep(Duration::from_secs(60)).await;
                Err("InternalError".to_owned())
            };
            slow.get(&"broken", call).await
        });
        sleep(Duration::from_millis(1)).await;
        let start = Instant::now();
        assert_eq!(memo.get(&"fine", || async { Ok(1) }).await, Ok(1));
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(failing.await.unwrap(), Err("InternalError".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_ask_for_one_key_share_a_call_and_its_failure() {
        let (memo, clock) = memo(60);
        let calls = Arc::new(AtomicUsize::new(0));
        let ask = |answer: Result<usize, String>| {
            let (memo, calls) = (Arc::clone(&memo), Arc::clone(&calls));
            tokio::spawn(async move {
                let call = || async {
                    calls.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_secs(3)).await;
                    answer
                };
                memo.get(&"key", call).await
            })
        };
        let start = Instant::now();
        let failing: Vec<_> = (0..10).map(|_| ask(Err("no".to_owned()))).collect();
        for task in failing {
            assert_eq!(task.await.unwrap(), Err("no".to_owned()));
        }
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        assert_eq!(start.elapsed(), Duration::from_secs(3), "nobody calls again in turn");
        // A failure is not kept; an answer is, until it expires.
        assert_eq!(ask(Ok(7)).await.unwrap(), Ok(7));
        assert_eq!(ask(Ok(8)).await.unwrap(), Ok(7));
        clock.advance(Duration::from_secs(60));
        assert_eq!(ask(Ok(9)).await.unwrap(), Ok(9));
        assert_eq!(calls.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_goes_away_leaves_the_call_to_the_next() {
        let (memo, _) = memo(60);
        let first = Arc::clone(&memo);
        let gone = tokio::spawn(async move {
            first.get(&"key", || async { std::future::pending().await }).await
        });
        sleep(Duration::from_millis(1)).await;
        let second = Arc::clone(&memo);
        let waiting = tokio::spawn(async move { second.get(&"key", || async { Ok(2) }).await });
        sleep(Duration::from_millis(1)).await;
        gone.abort();
        assert_eq!(waiting.await.unwrap(), Ok(2));
    }
}
