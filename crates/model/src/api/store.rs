//! The objects, their versions, and the log of changes that watches read.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::kinds::{KINDS, Kind};

/// Changes per kind that a watch can still start from; older ones answer 410, as after a
/// compaction.
const LOG: usize = 20_000;

/// Returns the time.
pub type Now = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Namespace (empty without one) and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    /// The key of an object.
    #[must_use]
    pub fn of(object: &Value) -> Self {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let meta = &object["metadata"];
        Self { namespace: text(&meta["namespace"]), name: text(&meta["name"]) }
    }

    /// A key by its parts.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Added,
    Modified,
    Deleted,
}

impl EventKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// One change of one object.
#[derive(Debug)]
pub struct Event {
    pub version: u64,
    pub kind: EventKind,
    pub key: Key,
    /// As it is afterwards; of a deletion, as it was last.
    pub object: Arc<Value>,
    /// As it was before; `None` when it is new.
    pub before: Option<Arc<Value>>,
    line: OnceLock<Bytes>,
}

impl Event {
    /// The line of a watch without selectors, made once for all watches.
    pub(crate) fn line(&self) -> Bytes {
        self.line.get_or_init(|| line(self.kind, &self.object)).clone()
    }
}

pub(crate) fn line(kind: EventKind, object: &Value) -> Bytes {
    let mut text = format!("{{\"type\":\"{}\",\"object\":{object}}}", kind.as_str());
    text.push('\n');
    Bytes::from(text)
}

#[derive(Default)]
pub(crate) struct Table {
    pub(crate) objects: BTreeMap<Key, Arc<Value>>,
    log: VecDeque<Arc<Event>>,
    /// Changes up to this version are no longer in the log.
    compacted: u64,
}

impl Table {
    /// Changes after a version; `None` when some of them are no longer known.
    pub(crate) fn since(&self, version: u64) -> Option<Vec<Arc<Event>>> {
        if version < self.compacted {
            return None;
        }
        let start = self.log.partition_point(|e| e.version <= version);
        Some(self.log.range(start..).cloned().collect())
    }

    /// The objects as they were at a version; `None` when that is no longer known.
    pub(crate) fn at(&self, version: u64) -> Option<BTreeMap<Key, Arc<Value>>> {
        let later = self.since(version)?;
        let mut objects = self.objects.clone();
        for event in later.iter().rev() {
            match &event.before {
                Some(before) => objects.insert(event.key.clone(), Arc::clone(before)),
                None => objects.remove(&event.key),
            };
        }
        Some(objects)
    }
}

pub(crate) struct Inner {
    pub(crate) version: u64,
    /// The version of the last change of anything but events and leases.
    followed: u64,
    pub(crate) tables: Vec<Table>,
    pub(crate) random: fastrand::Rng,
}

/// All objects of a cluster.
pub struct Store {
    pub(crate) inner: Mutex<Inner>,
    wakes: Vec<Notify>,
    /// Wakes on changes of every kind but events and leases, which nothing here follows.
    any: Notify,
    now: Now,
    pub(crate) ignores_budgets: AtomicBool,
}

impl Store {
    /// An empty store; names and UIDs follow from the seed.
    #[must_use]
    pub fn new(seed: u64, now: Now) -> Self {
        let tables = KINDS.iter().map(|_| Table::default()).collect();
        let random = fastrand::Rng::with_seed(seed);
        Self {
            inner: Mutex::new(Inner { version: 1, followed: 1, tables, random }),
            wakes: KINDS.iter().map(|_| Notify::new()).collect(),
            any: Notify::new(),
            now,
            ignores_budgets: AtomicBool::new(false),
        }
    }

    /// The cluster's time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.now)()
    }

    /// The version of the last change of anything.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.inner.lock().version
    }

    /// The version of the last change of anything but events and leases.
    #[must_use]
    pub fn followed_version(&self) -> u64 {
        self.inner.lock().followed
    }

    /// An object.
    #[must_use]
    pub fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let key = Key::new(namespace, name);
        self.inner.lock().tables[kind.index()].objects.get(&key).cloned()
    }

    /// Every object of a kind, by key.
    #[must_use]
    pub fn all(&self, kind: &Kind) -> Vec<Arc<Value>> {
        self.inner.lock().tables[kind.index()].objects.values().cloned().collect()
    }

    /// Changes of a kind after a version; `None` when some of them are no longer known.
    #[must_use]
    pub fn since(&self, kind: &Kind, version: u64) -> Option<Vec<Arc<Event>>> {
        self.inner.lock().tables[kind.index()].since(version)
    }

    /// Forgets every change up to now, as a compaction of etcd does: watches from before it end.
    pub fn compact(&self) {
        let mut inner = self.inner.lock();
        let version = inner.version;
        for table in &mut inner.tables {
            table.log.clear();
            table.compacted = version;
        }
    }

    /// Wakes on the next change of a kind. Create the future before looking, await it after.
    pub fn changed(&self, kind: &Kind) -> tokio::sync::futures::Notified<'_> {
        self.wakes[kind.index()].notified()
    }

    /// Wakes on the next change of anything but events and leases.
    pub fn any_change(&self) -> tokio::sync::futures::Notified<'_> {
        self.any.notified()
    }

    /// Wakes everyone who waits for changes, so that they look at whatever else they depend on.
    pub(crate) fn wake_all(&self) {
        for wake in &self.wakes {
            wake.notify_waiters();
        }
    }

    /// Stores an object in its next version; gives it as it is stored.
    pub(crate) fn put(&self, inner: &mut Inner, kind: &Kind, mut object: Value) -> Arc<Value> {
        inner.version += 1;
        let version = inner.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let key = Key::of(&object);
        let object = Arc::new(object);
        let table = &mut inner.tables[kind.index()];
        let before = table.objects.insert(key.clone(), Arc::clone(&object));
        let happened = if before.is_some() { EventKind::Modified } else { EventKind::Added };
        self.log(inner, kind, happened, key, &object, before);
        object
    }

    /// Removes an object; gives it as it was last, with the version of its removal.
    pub(crate) fn remove(&self, inner: &mut Inner, kind: &Kind, key: &Key) -> Option<Arc<Value>> {
        let before = inner.tables[kind.index()].objects.remove(key)?;
        inner.version += 1;
        let mut object = (*before).clone();
        object["metadata"]["resourceVersion"] = json!(inner.version.to_string());
        let object = Arc::new(object);
        self.log(inner, kind, EventKind::Deleted, key.clone(), &object, Some(before));
        Some(object)
    }

    fn log(
        &self,
        inner: &mut Inner,
        kind: &Kind,
        happened: EventKind,
        key: Key,
        object: &Arc<Value>,
        before: Option<Arc<Value>>,
    ) {
        let version = inner.version;
        let table = &mut inner.tables[kind.index()];
        let line = OnceLock::new();
        let object = Arc::clone(object);
        table.log.push_back(Arc::new(Event { version, kind: happened, key, object, before, line }));
        if table.log.len() > LOG
            && let Some(oldest) = table.log.pop_front()
        {
            table.compacted = oldest.version;
        }
        self.wakes[kind.index()].notify_waiters();
        if !matches!(kind.plural, "events" | "leases") {
            inner.followed = version;
            self.any.notify_waiters();
        }
    }
}
