//! A ledger of savings that outlives the process.
//!
//! Each decision saves an amount per hour: the price of the nodes that go less that of the nodes
//! that come. Nobody knows how long the old nodes would have stayed, so a saving counts for a day
//! and no longer: after that the cluster would be another one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::Instrument as _;

use super::super::Context;
use crate::operator::config_map::Store;
use crate::operator::logging;

/// How long a saving counts.
const HORIZON: Duration = Duration::from_secs(24 * 3600);
/// Savings that begin within this time are kept as one.
const STEP: i64 = 3600;
/// The ledger is written this often, when it changed.
const PERIOD: Duration = Duration::from_secs(300);
/// How long the last write may take.
const LAST_WRITE: Duration = Duration::from_secs(2);
const KEY: &str = "savings.json";

/// What a saving is counted under.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// The NodePool.
    pub nodepool: String,
    /// The disruption reason in small letters, or `packing`.
    pub reason: String,
}

/// What was saved, and what is being saved.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Total {
    /// Dollars in all.
    pub dollars: f64,
    /// Dollars an hour by the savings that still count.
    pub per_hour: f64,
}

/// Savings of one key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Account {
    /// Dollars of savings that have ended.
    settled: f64,
    /// Dollars an hour, by the second since which they are saved.
    running: BTreeMap<i64, f64>,
}

impl Account {
    fn settle(&mut self, now: i64) {
        let horizon = i64::try_from(HORIZON.as_secs()).unwrap_or(i64::MAX);
        let ended = self.running.extract_if(..=now - horizon, |_, _| true);
        self.settled += ended.map(|(_, rate)| rate * HORIZON.as_secs_f64() / 3600.0).sum::<f64>();
    }

    #[allow(clippy::cast_precision_loss, reason = "seconds of a day")]
    fn total(&self, now: i64) -> Total {
        let hours = |since: i64| (now - since).max(0) as f64 / 3600.0;
        let dollars: f64 = self.running.iter().map(|(since, rate)| rate * hours(*since)).sum();
        Total { dollars: self.settled + dollars, per_hour: self.running.values().sum() }
    }
}

/// All savings.
#[derive(Debug, Default)]
pub struct Ledger {
    accounts: Mutex<BTreeMap<Key, Account>>,
}

impl Ledger {
    /// Enters a saving, in dollars an hour. Nothing is entered that saves nothing.
    pub fn record(&self, nodepool: &str, reason: &str, per_hour: f64, now: Timestamp) {
        if !(per_hour.is_finite() && per_hour > 0.0) {
            return;
        }
        let key = Key { nodepool: nodepool.to_owned(), reason: reason.to_owned() };
        let now = now.as_second();
        let mut accounts = self.accounts.lock();
        let account = accounts.entry(key).or_default();
        account.settle(now);
        let last = account.running.keys().next_back().copied().filter(|last| now - last < STEP);
        *account.running.entry(last.unwrap_or(now)).or_default() += per_hour;
    }

    /// What was saved until now, by key.
    #[must_use]
    pub fn totals(&self, now: Timestamp) -> BTreeMap<Key, Total> {
        let now = now.as_second();
        let mut accounts = self.accounts.lock();
        accounts
            .iter_mut()
            .map(|(key, account)| {
                account.settle(now);
                (key.clone(), account.total(now))
            })
            .collect()
    }

    fn to_json(&self) -> String {
        let accounts = self.accounts.lock();
        let rows: Vec<(&Key, &Account)> = accounts.iter().collect();
        // Maps of numbers and texts always serialize.
        serde_json::to_string(&rows).unwrap_or_default()
    }

    /// Takes in what an earlier process wrote, besides what was entered since.
    fn restore(&self, text: &str) -> Result<(), serde_json::Error> {
        let rows: Vec<(Key, Account)> = serde_json::from_str(text)?;
        let mut accounts = self.accounts.lock();
        for (key, kept) in rows {
            let account = accounts.entry(key).or_default();
            account.settled += kept.settled;
            for (since, rate) in kept.running {
                *account.running.entry(since).or_default() += rate;
            }
        }
        Ok(())
    }
}

/// Keeps the ledger in a ConfigMap.
pub struct Keeper {
    store: Store,
    /// What was last read or written. Nothing is written before it was read: what an earlier process
    /// saved would be lost.
    kept: Mutex<Option<String>>,
}

impl Keeper {
    /// For a ConfigMap of a namespace; nothing for an empty name.
    #[must_use]
    pub fn new(client: kube::Client, namespace: &str, name: &str) -> Option<Self> {
        let store = Store::new(client, namespace, name)?;
        Some(Self { store, kept: Mutex::new(None) })
    }

    /// Reads what was kept, then writes what changes.
    pub fn start(self: Arc<Self>, ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
        let ctx = Arc::clone(ctx);
        let work = async move {
            while let Err(error) = self.read(&ctx.savings).await {
                tracing::error!(
                    "config-map" = self.store.name(),
                    "error" = error,
                    "reading savings failed"
                );
                sleep(PERIOD).await;
            }
            loop {
                self.write(&ctx.savings).await;
                sleep(PERIOD).await;
            }
        };
        tasks.spawn(work.instrument(logging::controller_span("savings")));
    }

    /// Writes what changed since the last time, before the process ends; gives up soon, because the
    /// process may end for the reason that the API server cannot be reached.
    pub async fn finish(&self, ledger: &Ledger) {
        let written = timeout(LAST_WRITE, self.write(ledger)).await;
        if written.is_err() {
            tracing::error!("config-map" = self.store.name(), "writing savings took too long");
        }
    }

    async fn write(&self, ledger: &Ledger) {
        let text = ledger.to_json();
        if self.kept.lock().as_ref().is_none_or(|kept| *kept == text) {
            return;
        }
        match self.store.write([(KEY.to_owned(), text.clone())].into()).await {
            Ok(()) => *self.kept.lock() = Some(text),
            Err(error) => tracing::error!(
                "config-map" = self.store.name(),
                "error" = %error,
                "writing savings failed"
            ),
        }
    }

    async fn read(&self, ledger: &Ledger) -> Result<(), String> {
        let map = self.store.read().await.map_err(|e| e.to_string())?;
        let text = map.and_then(|m| m.data).and_then(|mut data| data.remove(KEY));
        if let Some(text) = &text {
            ledger.restore(text).map_err(|e| format!("{KEY}, expected savings in JSON: {e}"))?;
        }
        *self.kept.lock() = Some(text.unwrap_or_default());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + hours * 3600).unwrap()
    }

    fn only(ledger: &Ledger, now: Timestamp) -> (f64, f64) {
        let totals = ledger.totals(now);
        let [total] = totals.values().copied().collect::<Vec<_>>()[..] else {
            panic!("{totals:?}")
        };
        (total.dollars, total.per_hour)
    }

    #[test]
    fn a_saving_grows_for_a_day_and_then_stays() {
        let ledger = Ledger::default();
        ledger.record("default", "empty", 0.5, at(0));
        assert_eq!(only(&ledger, at(2)), (1.0, 0.5));
        ledger.record("default", "empty", 1.0, at(2));
        assert_eq!(only(&ledger, at(3)), (2.5, 1.5));
        assert_eq!(only(&ledger, at(25)), (12.0 + 23.0, 1.0));
        assert_eq!(only(&ledger, at(100)), (12.0 + 24.0, 0.0));
        ledger.record("default", "drifted", -1.0, at(3));
        ledger.record("default", "drifted", f64::NAN, at(3));
        assert_eq!(ledger.totals(at(100)).len(), 1);
    }

    #[test]
    fn many_savings_take_little_room() {
        let ledger = Ledger::default();
        for minute in 0..60 * 48 {
            let now = Timestamp::from_second(1_000_000 + minute * 60).unwrap();
            ledger.record("default", "underutilized", 0.01, now);
        }
        let rows = ledger.accounts.lock().values().map(|a| a.running.len()).sum::<usize>();
        assert!(rows <= 25, "{rows}");
    }

    #[test]
    fn what_was_saved_outlives_the_process() {
        let before = Ledger::default();
        before.record("default", "empty", 0.5, at(0));
        assert_eq!(only(&before, at(30)), (12.0, 0.0));
        before.record("default", "empty", 2.0, at(30));
        let after = Ledger::default();
        after.record("default", "empty", 1.0, at(31));
        after.restore(&before.to_json()).unwrap();
        assert_eq!(only(&after, at(32)), (12.0 + 4.0 + 1.0, 3.0));
        assert!(after.restore("{").is_err());
    }
}
