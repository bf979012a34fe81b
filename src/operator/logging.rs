//! Structured logs: one JSON object a line, in the keys and key order that Karpenter's users parse.
//!
//! `level`, `time`, `logger`, `message`, `commit` come first, then what the surrounding spans say
//! (`controller`, `NodeClaim`, `reconcileID`, ...), then the event's own fields.

use std::fmt::{self, Write as _};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Span, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// Marks a displayed value that is JSON already.
const JSON_MARK: char = '\u{1}';

/// A value that the log shows as JSON rather than as text.
#[derive(Clone, Debug)]
pub struct Json(String);

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char(JSON_MARK)?;
        f.write_str(&self.0)
    }
}

/// Any value as JSON: `"requests" = %json(&requests)`.
pub fn json(value: &impl Serialize) -> Json {
    Json(serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned()))
}

/// A reference to a cluster-scoped object: `{"name":"x"}`.
#[must_use]
pub fn obj(name: &str) -> Json {
    json(&serde_json::json!({ "name": name }))
}

/// A reference to a namespaced object: `{"name":"x","namespace":"y"}`.
#[must_use]
pub fn obj_ns(namespace: &str, name: &str) -> Json {
    json(&serde_json::json!({ "name": name, "namespace": namespace }))
}

/// A duration in Go's notation.
#[must_use]
pub fn go_duration(duration: Duration) -> String {
    crate::api::duration::format_go(duration)
}

/// The context of a controller without an object.
#[must_use]
pub fn controller_span(name: &str) -> Span {
    tracing::info_span!("controller", "controller" = name)
}

/// The context of one reconcile of an object.
#[must_use]
pub fn reconcile_span(
    controller: &str,
    group: &str,
    kind: &str,
    namespace: &str,
    name: &str,
) -> Span {
    let mut reference = serde_json::json!({ "name": name });
    if !namespace.is_empty() {
        reference["namespace"] = namespace.into();
    }
    let mut object = Map::new();
    object.insert(kind.to_owned(), reference);
    let object = json(&object);
    tracing::info_span!(
        "reconcile",
        "controller" = controller,
        "controllerGroup" = group,
        "controllerKind" = kind,
         "__object" = %object,
        "namespace" = namespace,
        "name" = name,
        "reconcileID" = %uuid::Uuid::new_v4(),
    )
}

/// The fields of a span or event, in the order they were written.
#[derive(Clone, Debug, Default)]
struct Fields {
    message: String,
    values: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match field.name() {
            "message" => self.message = value.as_str().unwrap_or_default().to_owned(),
            "__object" => {
                for (key, value) in value.as_object().into_iter().flatten() {
                    self.values.insert(key.clone(), value.clone());
                }
            }
            name => {
                self.values.insert(name.to_owned(), value);
            }
        }
    }

    fn text(&mut self, field: &Field, text: String) {
        let value = match text.strip_prefix(JSON_MARK) {
            Some(json) => serde_json::from_str(json).unwrap_or(Value::Null),
            None => Value::String(text),
        };
        self.put(field, value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value.to_owned());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, Value::String(value.to_string()));
    }
}

/// Where lines go.
type Sink = Box<dyn Fn(&str) + Send + Sync>;

/// Writes the lines.
pub struct JsonLayer {
    commit: &'static str,
    now: Box<dyn Fn() -> Timestamp + Send + Sync>,
    sink: Sink,
}

impl JsonLayer {
    /// A layer that writes to `sink` and dates lines with `now`.
    #[must_use]
    pub fn new(
        now: impl Fn() -> Timestamp + Send + Sync + 'static,
        sink: impl Fn(&str) + Send + Sync + 'static,
    ) -> Self {
        Self { commit: COMMIT, now: Box::new(now), sink: Box::new(sink) }
    }
}

/// The revision that this binary was built from, as the logs name it.
pub const COMMIT: &str = match option_env!("KARPENTER_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

impl<S> Layer<S> for JsonLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut line = Map::new();
        let level = match *event.metadata().level() {
            Level::ERROR => "ERROR",
            Level::WARN => "WARN",
            Level::INFO => "INFO",
            _ => "DEBUG",
        };
        line.insert("level".to_owned(), level.into());
        line.insert("time".to_owned(), format!("{:.3}", (self.now)()).into());
        line.insert("logger".to_owned(), "controller".into());
        line.insert("message".to_owned(), std::mem::take(&mut fields.message).into());
        line.insert("commit".to_owned(), self.commit.into());
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                line.extend(of_span.values.clone());
            }
        }
        line.extend(fields.values);
        if let Ok(mut text) = serde_json::to_string(&line) {
            text.push('\n');
            (self.sink)(&text);
        }
    }
}

/// Starts logging to standard output at a level (`debug`, `info`, `error`).
pub fn init(level: &str) {
    let filter = EnvFilter::new(format!(
        "error,karpenter={}",
        if level.is_empty() { "info" } else { level }
    ));
    let layer = JsonLayer::new(Timestamp::now, |line| {
        use std::io::Write as _;
        let _ = std::io::stdout().lock().write_all(line.as_bytes());
    });
    let _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::Arc;

    fn capture(run: impl FnOnce()) -> Vec<String> {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&lines);
        let now: Timestamp = "2024-08-07T19:23:10.043Z".parse().unwrap();
        let layer = JsonLayer::new(move || now, move |line| sink.lock().push(line.to_owned()));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), run);
        lines.lock().clone()
    }

    #[test]
    fn lines_have_karpenters_keys_in_karpenters_order() {
        let lines = capture(|| {
            let span = controller_span("provisioner");
            let _guard = span.enter();
            tracing::info!(
                "NodePool" = %obj("default"),
                "NodeClaim" = %obj("default-gqq5d"),
                "requests" = %json(&serde_json::json!({"cpu": "430m"})),
                "instance-types" = "t3.medium",
                "created nodeclaim"
            );
        });
        let want = format!(
            "{}{COMMIT}{}\n",
            r#"{"level":"INFO","time":"2024-08-07T19:23:10.043Z","logger":"controller","message":"created nodeclaim","commit":""#,
            r#"","controller":"provisioner","NodePool":{"name":"default"},"NodeClaim":{"name":"default-gqq5d"},"requests":{"cpu":"430m"},"instance-types":"t3.medium"}"#
        );
        assert_eq!(lines, [want]);
    }

    #[test]
    fn a_reconcile_names_its_object() {
        let lines = capture(|| {
            let span = reconcile_span(
                "nodeclaim.lifecycle",
                "karpenter.sh",
                "NodeClaim",
                "",
                "default-gqq5d",
            );
            let _guard = span.enter();
            tracing::info!("provider-id" = "aws:///us-east-1b/i-0", "launched nodeclaim");
        });
        let value: Map<String, Value> = serde_json::from_str(&lines[0]).unwrap();
        let keys: Vec<&str> = value.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            [
                "level",
                "time",
                "logger",
                "message",
                "commit",
                "controller",
                "controllerGroup",
                "controllerKind",
                "NodeClaim",
                "namespace",
                "name",
                "reconcileID",
                "provider-id"
            ]
        );
    }
}
