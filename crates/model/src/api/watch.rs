//! Watches.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};

use super::failure::Failure;
use super::fault::{Call, FaultPlan};
use super::kinds::Kind;
use super::selector::Selector;
use super::store::{Event, EventKind, Store, line};

/// Time between bookmarks; about what the API server keeps.
const BOOKMARK: Duration = Duration::from_secs(60);

/// What a watch is asked with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    pub(crate) namespace: String,
    pub(crate) selector: Selector,
    pub(crate) version: String,
    pub(crate) bookmarks: bool,
    /// All objects first, and a bookmark after them.
    pub(crate) initial_events: bool,
    pub(crate) timeout: Option<u64>,
}

/// One watch under way.
pub(crate) struct Watch {
    store: Arc<Store>,
    kind: &'static Kind,
    query: Query,
    cursor: u64,
    lines: VecDeque<Bytes>,
    end: Instant,
    bookmark: Instant,
    /// Watches of this client end when the count moves on.
    cuts: Arc<AtomicU64>,
    born: u64,
    ending: bool,
    plan: Arc<Mutex<Box<dyn FaultPlan>>>,
    call: Call,
}

impl Watch {
    pub(crate) fn new(
        store: &Arc<Store>,
        query: Query,
        cuts: &Arc<AtomicU64>,
        plan: &Arc<Mutex<Box<dyn FaultPlan>>>,
        call: &Call,
    ) -> Result<Self, Failure> {
        let now = Instant::now();
        // The lower bound of the API server's own limit (`--min-request-timeout`).
        let seconds = query.timeout.unwrap_or(1800);
        let mut watch = Self {
            store: Arc::clone(store),
            kind: call.kind,
            cursor: 0,
            lines: VecDeque::new(),
            end: now + Duration::from_secs(seconds),
            bookmark: now + BOOKMARK,
            cuts: Arc::clone(cuts),
            born: cuts.load(Ordering::SeqCst),
            ending: false,
            plan: Arc::clone(plan),
            call: call.clone(),
            query,
        };
        watch.begin()?;
        Ok(watch)
    }

    fn begin(&mut self) -> Result<(), Failure> {
        let text = self.query.version.as_str();
        if matches!(text, "" | "0") {
            self.cursor = self.store.version();
            for object in self.store.all(self.kind) {
                if self.within(&object) && self.query.selector.matches(&object) {
                    self.lines.push_back(line(EventKind::Added, &object));
                }
            }
            if self.query.initial_events {
                self.push_bookmark(true);
            }
            return Ok(());
        }
        self.cursor = text
            .parse()
            .map_err(|_| Failure::bad_request(format!("invalid resource version {text:?}")))?;
        Ok(())
    }

    fn within(&self, object: &serde_json::Value) -> bool {
        let wanted = &self.query.namespace;
        wanted.is_empty() || object["metadata"]["namespace"] == wanted.as_str()
    }

    /// The next line; `None` when the watch is over.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.cuts.load(Ordering::SeqCst) != self.born {
                return None;
            }
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if self.ending {
                return None;
            }
            let store = Arc::clone(&self.store);
            let changed = store.changed(self.kind);
            // Registered before the store is read: a change that comes between the two would
            // otherwise wake nobody.
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.store.since(self.kind, self.cursor) {
                None => {
                    let latest = self.store.version();
                    let text = format!("too old resource version: {} ({latest})", self.cursor);
                    let body = Failure::expired(text).body();
                    self.ending = true;
                    return Some(Bytes::from(format!(
                        "{{\"type\":\"ERROR\",\"object\":{body}}}\n"
                    )));
                }
                Some(events) if !events.is_empty() => {
                    for event in &events {
                        self.push(event);
                        self.cursor = event.version;
                    }
                    continue;
                }
                Some(_) => {}
            }
            let wake = self.end.min(self.bookmark);
            tokio::select! {
                biased;
                () = changed => {
                    let lag = self.plan.lock().lag(&self.call);
                    if !lag.is_zero() {
                        sleep(lag).await;
                    }
                }
                () = sleep_until(wake) => self.tick(),
            }
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if now >= self.bookmark || now >= self.end {
            self.bookmark = now + BOOKMARK;
            if self.query.bookmarks {
                // Nothing of this kind happened up to the latest version: resuming there is safe.
                self.cursor = self.store.version();
                self.push_bookmark(false);
            }
        }
        self.ending = now >= self.end;
    }

    fn push_bookmark(&mut self, initial_end: bool) {
        let mut meta = json!({ "resourceVersion": self.cursor.to_string() });
        if initial_end {
            meta["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let object = json!({ "kind": self.kind.kind, "apiVersion": self.kind.api_version(),
            "metadata": meta });
        let text = format!("{{\"type\":\"BOOKMARK\",\"object\":{object}}}\n");
        self.lines.push_back(Bytes::from(text));
    }

    /// What an event is for this watch: an object that comes to be selected is added, one that no
    /// longer is was deleted.
    fn push(&mut self, event: &Event) {
        if !self.within(&event.object) {
            return;
        }
        if self.query.selector.is_empty() {
            self.lines.push_back(event.line());
            return;
        }
        let selected = |object: &serde_json::Value| self.query.selector.matches(object);
        let before = event.before.as_ref().is_some_and(|b| selected(b));
        let after = event.kind != EventKind::Deleted && selected(&event.object);
        let kind = match (before, after) {
            (false, false) => return,
            (false, true) => EventKind::Added,
            (true, true) => EventKind::Modified,
            (true, false) => EventKind::Deleted,
        };
        self.lines.push_back(line(kind, &event.object));
    }
}
