//! Kubernetes events: written in the background, repeated ones left out.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event as ApiEvent, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, ObjectMeta, PostParams, Resource};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::mpsc;

use crate::clock::Clock;

mod report;

pub use report::{CATALOG, Report, Row};

/// How long an equal event is left out, unless the event says otherwise; Karpenter's window.
const DEDUPE: Duration = Duration::from_secs(120);
/// Limited events per second, and at once: Karpenter's rate for nominations, of which a large round
/// makes one per pod.
const LIMITED_RATE: f64 = 5.0;
const LIMITED_BURST: f64 = 10.0;
/// Events waiting to be written; more are dropped.
const QUEUE: usize = 1000;

/// An event about an object.
#[derive(Clone, Debug)]
pub struct Event {
    /// The object.
    pub involved: ObjectReference,
    /// True for `Warning`, false for `Normal`.
    pub warning: bool,
    /// CamelCase reason.
    pub reason: Cow<'static, str>,
    /// Message for people.
    pub message: String,
    /// What makes two events the same, beside the reason.
    pub dedupe: String,
    /// How long an equal event is left out.
    pub dedupe_for: Duration,
    /// Dropped when too many of the kind come at once.
    pub limited: bool,
}

impl Event {
    /// An event that is the same as others of its reason on the same object.
    #[must_use]
    fn new(
        involved: ObjectReference,
        warning: bool,
        reason: impl Into<Cow<'static, str>>,
        message: String,
    ) -> Self {
        let dedupe = involved.uid.clone().or_else(|| involved.name.clone()).unwrap_or_default();
        Self {
            involved,
            warning,
            reason: reason.into(),
            message,
            dedupe,
            dedupe_for: DEDUPE,
            limited: false,
        }
    }

    /// Shares a small rate with all events that are limited.
    fn limited(mut self) -> Self {
        self.limited = true;
        self
    }

    /// Also distinguishes by message.
    fn by_message(mut self) -> Self {
        self.dedupe.push_str(&self.message);
        self
    }

    /// Also distinguishes by a word of the message.
    fn by(mut self, word: &dyn std::fmt::Display) -> Self {
        self.dedupe.push_str(&word.to_string());
        self
    }
}

/// A reference to an object.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    object.object_ref(&())
}

/// Publishes events without waiting for the API server.
#[derive(Clone)]
pub struct Recorder {
    clock: Clock,
    seen: Arc<Mutex<Seen>>,
    queue: mpsc::Sender<Event>,
}

/// What was published lately, and how much of what is limited may be.
#[derive(Debug, Default)]
struct Seen {
    until: HashMap<String, Timestamp>,
    /// Number of entries at which outdated ones are dropped.
    prune_at: usize,
    tokens: f64,
    filled: Option<Timestamp>,
}

impl Seen {
    /// True when an event of that key may be published now.
    fn admit(&mut self, key: String, event: &Event, now: Timestamp) -> bool {
        if self.until.get(&key).is_some_and(|until| *until > now) {
            return false;
        }
        if event.limited && !self.take_token(now) {
            return false;
        }
        // Doubling the threshold keeps the cost of pruning constant per event, however many keys
        // are alive.
        if self.until.len() >= self.prune_at.max(1024) {
            self.until.retain(|_, until| *until > now);
            self.prune_at = 2 * self.until.len();
        }
        self.until.insert(key, now + event.dedupe_for);
        true
    }

    fn take_token(&mut self, now: Timestamp) -> bool {
        self.tokens = match self.filled {
            Some(then) => {
                let passed = now.duration_since(then).as_secs_f64().max(0.0);
                (self.tokens + passed * LIMITED_RATE).min(LIMITED_BURST)
            }
            None => LIMITED_BURST,
        };
        self.filled = Some(now);
        let there = self.tokens >= 1.0;
        if there {
            self.tokens -= 1.0;
        }
        there
    }
}

impl Recorder {
    /// A recorder that writes through a client until the last clone is dropped.
    #[must_use]
    pub fn new(client: kube::Client, clock: Clock) -> Self {
        let (queue, mut events) = mpsc::channel::<Event>(QUEUE);
        let writer_clock = clock.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                write(&client, &writer_clock, event).await;
            }
        });
        Self { clock, seen: Arc::default(), queue }
    }

    /// A recorder whose events are read instead of written.
    #[cfg(test)]
    pub fn captured(clock: Clock) -> (Self, mpsc::Receiver<Event>) {
        let (queue, events) = mpsc::channel(QUEUE);
        (Self { clock, seen: Arc::default(), queue }, events)
    }

    /// Publishes an event unless an equal one was published lately.
    pub fn publish(&self, event: Event) {
        let key = format!("{}-{}", event.reason.to_lowercase(), event.dedupe);
        if !self.seen.lock().admit(key.clone(), &event, self.clock.now()) {
            return;
        }
        // Never waits: a reconcile must not be held up by an API server that is slow to take
        // events.
        if self.queue.try_send(event).is_err() {
            tracing::debug!("dropped an event, too many are waiting");
            // Nobody saw it: an equal one may be published at once.
            self.seen.lock().until.remove(&key);
        }
    }
}

async fn write(client: &kube::Client, clock: &Clock, event: Event) {
    // Events are namespaced; those of cluster-scoped objects go to `default` by convention.
    let namespace = event.involved.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let api: Api<ApiEvent> = Api::namespaced(client.clone(), &namespace);
    let now = Time(clock.now());
    let object = ApiEvent {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}.", event.involved.name.clone().unwrap_or_default())),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        involved_object: event.involved,
        type_: Some(if event.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(event.reason.into_owned()),
        // Kubernetes limits the note of an event to 1 kB.
        message: Some(event.message.chars().take(1024).collect()),
        source: Some(EventSource { component: Some("karpenter".to_owned()), host: None }),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        count: Some(1),
        ..ApiEvent::default()
    };
    if let Err(error) = api.create(&PostParams::default(), &object).await {
        tracing::debug!("error" = %error, "failed to write an event");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str) -> Event {
        let involved = ObjectReference { name: Some(name.to_owned()), ..Default::default() };
        Event::new(involved, false, "Nominated", "m".to_owned())
    }

    #[test]
    fn an_equal_event_waits_for_its_window() {
        let mut seen = Seen::default();
        let now = Timestamp::UNIX_EPOCH;
        let one = event("a");
        assert!(seen.admit("k".to_owned(), &one, now));
        assert!(!seen.admit("k".to_owned(), &one, now + DEDUPE / 2));
        assert!(seen.admit("k".to_owned(), &one, now + DEDUPE));
    }

    #[test]
    fn limited_events_share_a_rate() {
        let mut seen = Seen::default();
        let now = Timestamp::UNIX_EPOCH;
        let mut count = |at: Timestamp, tag: &str| {
            (0..100).filter(|i| seen.admit(format!("{tag}{i}"), &event("a").limited(), at)).count()
        };
        assert_eq!(count(now, "a"), 10);
        assert_eq!(count(now + Duration::from_secs(1), "b"), 5);
    }
}
