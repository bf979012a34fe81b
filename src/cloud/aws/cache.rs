//! A map whose entries expire, on the product's own clock.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::clock::Clock;

/// Entries live for a fixed time from when they were written.
#[derive(Debug)]
pub struct TtlCache<K, V> {
    clock: Clock,
    ttl: Duration,
    entries: Mutex<HashMap<K, (Timestamp, V)>>,
}

impl<K: Hash + Eq + Clone, V: Clone> TtlCache<K, V> {
    /// An empty cache.
    #[must_use]
    pub fn new(clock: Clock, ttl: Duration) -> Self {
        Self { clock, ttl, entries: Mutex::new(HashMap::new()) }
    }

    /// The live entry of a key.
    pub fn get(&self, key: &K) -> Option<V> {
        let now = self.clock.now();
        self.entries.lock().get(key).filter(|(until, _)| *until > now).map(|(_, v)| v.clone())
    }

    /// Writes an entry; expired ones are dropped on the way.
    pub fn set(&self, key: K, value: V) {
        let now = self.clock.now();
        let mut entries = self.entries.lock();
        // Nothing else removes expired entries, and no task has to run for it.
        entries.retain(|_, (until, _)| *until > now);
        entries.insert(key, (now + self.ttl, value));
    }

    /// Changes the live entry of a key, if there is one, and keeps it as long as a new one.
    pub fn update(&self, key: &K, change: impl FnOnce(&mut V)) {
        let now = self.clock.now();
        if let Some((until, value)) = self.entries.lock().get_mut(key).filter(|(u, _)| *u > now) {
            change(value);
            *until = now + self.ttl;
        }
    }

    /// Drops an entry.
    pub fn remove(&self, key: &K) -> Option<V> {
        self.entries.lock().remove(key).map(|(_, v)| v)
    }

    /// Drops everything.
    pub fn clear(&self) {
        self.entries.lock().clear();
    }

    /// Live entries.
    pub fn entries(&self) -> Vec<(K, V)> {
        let now = self.clock.now();
        self.entries
            .lock()
            .iter()
            .filter(|(_, (until, _))| *until > now)
            .map(|(k, (_, v))| (k.clone(), v.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_expire() {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        let cache = TtlCache::new(clock.clone(), Duration::from_secs(60));
        cache.set("a", 1);
        clock.advance(Duration::from_secs(59));
        assert_eq!(cache.get(&"a"), Some(1));
        clock.advance(Duration::from_secs(1));
        assert_eq!(cache.get(&"a"), None);
        assert!(cache.entries().is_empty());
    }

    #[test]
    fn a_changed_entry_lives_on_and_an_expired_one_stays_gone() {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        let cache = TtlCache::new(clock.clone(), Duration::from_secs(60));
        cache.set("a", 1);
        clock.advance(Duration::from_secs(59));
        cache.update(&"a", |value| *value += 1);
        clock.advance(Duration::from_secs(59));
        assert_eq!(cache.get(&"a"), Some(2));
        clock.advance(Duration::from_secs(1));
        cache.update(&"a", |value| *value += 1);
        assert_eq!(cache.get(&"a"), None);
    }
}
