//! Kubernetes events: written in the background, repeated ones left out.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event as ApiEvent, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, ObjectMeta, PostParams, Resource};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::mpsc;

use crate::clock::Clock;

/// How long an equal event is left out, unless the event says otherwise.
const DEDUPE: Duration = Duration::from_secs(120);
/// Events waiting to be written; more are dropped.
const QUEUE: usize = 1000;

/// Something worth telling about an object.
#[derive(Clone, Debug)]
pub struct Event {
    /// The object.
    pub involved: ObjectReference,
    /// True for `Warning`, false for `Normal`.
    pub warning: bool,
    /// CamelCase reason.
    pub reason: &'static str,
    /// Message for people.
    pub message: String,
    /// What makes two events the same, beside the reason.
    pub dedupe: String,
    /// How long an equal event is left out.
    pub dedupe_for: Duration,
}

impl Event {
    /// An event that is the same as others of its reason on the same object.
    #[must_use]
    pub fn new(
        involved: ObjectReference,
        warning: bool,
        reason: &'static str,
        message: String,
    ) -> Self {
        let dedupe = involved.uid.clone().or_else(|| involved.name.clone()).unwrap_or_default();
        Self { involved, warning, reason, message, dedupe, dedupe_for: DEDUPE }
    }

    /// Also distinguishes by message.
    #[must_use]
    pub fn by_message(mut self) -> Self {
        self.dedupe.push_str(&self.message);
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
    seen: Arc<Mutex<BTreeMap<String, jiff::Timestamp>>>,
    queue: mpsc::Sender<Event>,
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

    /// Publishes an event unless an equal one was published lately.
    pub fn publish(&self, event: Event) {
        let key = format!("{}-{}", event.reason.to_lowercase(), event.dedupe);
        let now = self.clock.now();
        {
            let mut seen = self.seen.lock();
            seen.retain(|_, until| *until > now);
            if seen.contains_key(&key) {
                return;
            }
            seen.insert(key, now + event.dedupe_for);
        }
        if self.queue.try_send(event).is_err() {
            tracing::debug!("dropped an event, too many are waiting");
        }
    }
}

async fn write(client: &kube::Client, clock: &Clock, event: Event) {
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
        reason: Some(event.reason.to_owned()),
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
