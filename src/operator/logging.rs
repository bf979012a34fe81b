//! Structured logs: one JSON object per line, in the keys and key order that Karpenter's users parse.
//!
//! `level`, `time`, `logger`, `message`, `commit` come first, then what the surrounding spans say
//! (`controller`, `NodeClaim`, `reconcileID`, ...), then the event's own fields.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Dispatch, Event, Level, Span, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Registry};

use super::traces::Traces;

/// Marks a displayed value that is JSON already: `tracing` passes only text. No log text contains
/// this control character.
pub(super) const JSON_MARK: char = '\u{1}';

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

/// The context of a controller without an object. Spans have the highest level, so that no setting
/// takes them from the lines within.
#[must_use]
pub fn controller_span(name: &str) -> Span {
    tracing::error_span!("controller", "controller" = name)
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
    tracing::error_span!(
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

/// Logs every panic as the other lines are, with its place and the context that it happened in.
pub fn report_panics() {
    std::panic::set_hook(Box::new(|info| {
        let text = info.payload_as_str().unwrap_or("unknown");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let trace = std::backtrace::Backtrace::force_capture().to_string();
        tracing::error!(
            "panic" = text,
            "location" = place,
            "stacktrace" = trace,
            "Observed a panic"
        );
    }));
}

/// The controller whose context this is called in, if any.
#[must_use]
pub fn current_controller() -> Option<String> {
    let find = |(id, dispatch): (&Id, &Dispatch)| {
        let span = dispatch.downcast_ref::<Registry>()?.span(id)?;
        span.scope().find_map(|span| {
            let extensions = span.extensions();
            let value = extensions.get::<Fields>()?.values.get("controller")?;
            value.as_str().map(str::to_owned)
        })
    };
    Span::current().with_subscriber(find).flatten()
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
            // The key of the object is its kind, and names of span fields are fixed at compile
            // time.
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
    commit: Option<&'static str>,
    /// Lines also say where in the source they come from.
    callers: bool,
    now: Box<dyn Fn() -> Timestamp + Send + Sync>,
    sampler: Sampler,
    sink: Sink,
}

impl JsonLayer {
    /// A layer that writes to `sink` and dates lines with `now`.
    #[must_use]
    pub fn new(
        callers: bool,
        now: impl Fn() -> Timestamp + Send + Sync + 'static,
        sink: impl Fn(&str) + Send + Sync + 'static,
    ) -> Self {
        Self {
            commit: COMMIT,
            callers,
            now: Box::new(now),
            sampler: Sampler::default(),
            sink: Box::new(sink),
        }
    }
}

/// The revision that this binary was built from, as the logs name it.
pub const COMMIT: Option<&str> = option_env!("KARPENTER_COMMIT");

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
        let level = match *event.metadata().level() {
            Level::ERROR => "ERROR",
            Level::WARN => "WARN",
            Level::INFO => "INFO",
            _ => "DEBUG",
        };
        let now = (self.now)();
        if !self.sampler.admits(now, level, &fields.message) {
            return;
        }
        let mut line = Map::new();
        line.insert("level".to_owned(), level.into());
        line.insert("time".to_owned(), format!("{now:.3}").into());
        line.insert("logger".to_owned(), "controller".into());
        if self.callers
            && let Some(caller) = caller(event.metadata())
        {
            line.insert("caller".to_owned(), caller.into());
        }
        line.insert("message".to_owned(), std::mem::take(&mut fields.message).into());
        if let Some(commit) = self.commit {
            line.insert("commit".to_owned(), commit.into());
        }
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                line.extend(of_span.values.clone());
            }
        }
        line.extend(fields.values);
        // Readers look for what went wrong at the end of the line.
        if let Some(error) = line.shift_remove("error") {
            line.insert("error".to_owned(), error);
        }
        if let Ok(mut text) = serde_json::to_string(&line) {
            text.push('\n');
            (self.sink)(&text);
        }
    }
}

/// `folder/file.rs:line` of an event.
fn caller(metadata: &tracing::Metadata<'_>) -> Option<String> {
    let (file, line) = (metadata.file()?, metadata.line()?);
    let start = file.rmatch_indices('/').nth(1).map_or(0, |(at, _)| at + 1);
    Some(format!("{}:{line}", &file[start..]))
}

/// Of equal lines within a second, the first ones are written up to this number. Both numbers are
/// the defaults of zap's sampling, with which Karpenter logs.
const SAMPLE_FIRST: u64 = 100;
/// After the first ones, one in this many is written.
const SAMPLE_THEREAFTER: u64 = 100;

/// Thins out storms of equal lines.
#[derive(Default)]
struct Sampler(Mutex<Second>);

/// What was written within one second, by level and message.
#[derive(Default)]
struct Second {
    at: i64,
    seen: HashMap<(&'static str, String), u64>,
}

impl Sampler {
    fn admits(&self, now: Timestamp, level: &'static str, message: &str) -> bool {
        let mut second = self.0.lock();
        if second.at != now.as_second() {
            *second = Second { at: now.as_second(), seen: HashMap::new() };
        }
        let count = second.seen.entry((level, message.to_owned())).or_default();
        *count += 1;
        *count <= SAMPLE_FIRST || (*count - SAMPLE_FIRST).is_multiple_of(SAMPLE_THEREAFTER)
    }
}

/// One place that lines go to.
enum Output {
    Stdout,
    Stderr,
    File(Mutex<File>),
}

impl Output {
    /// Opens `stdout`, `stderr`, a path or a `file://` URL.
    fn open(path: &str) -> Result<Self, LogError> {
        match path {
            "stdout" => Ok(Self::Stdout),
            "stderr" => Ok(Self::Stderr),
            _ => {
                let file = path.strip_prefix("file://").unwrap_or(path);
                let file = File::options().create(true).append(true).open(file);
                let file = file.map_err(|cause| LogError { path: path.to_owned(), cause })?;
                Ok(Self::File(Mutex::new(file)))
            }
        }
    }

    fn write(&self, text: &str) -> std::io::Result<()> {
        match self {
            Self::Stdout => std::io::stdout().lock().write_all(text.as_bytes()),
            Self::Stderr => std::io::stderr().lock().write_all(text.as_bytes()),
            Self::File(file) => file.lock().write_all(text.as_bytes()),
        }
    }
}

/// A place that logs cannot be written to.
#[derive(Debug, thiserror::Error)]
#[error("opening the log output {path:?}, {cause}")]
pub struct LogError {
    path: String,
    cause: std::io::Error,
}

fn open_all(paths: &str) -> Result<Vec<Output>, LogError> {
    paths.split(',').map(str::trim).filter(|p| !p.is_empty()).map(Output::open).collect()
}

/// Hands the layers of a process on: its log at a level, and its traces where there are any.
///
/// Without traces, what the log does not show is disabled for the whole process, and costs nothing.
pub(super) fn with_layers(
    level: &str,
    log: JsonLayer,
    traces: Option<&Traces>,
    install: impl FnOnce(Dispatch),
) {
    // Of libraries only errors are shown.
    let filter = EnvFilter::new(format!("error,karpenter={level}"));
    let registry = tracing_subscriber::registry();
    match traces {
        None => install(registry.with(filter).with(log).into()),
        Some(traces) => {
            install(registry.with(log.with_filter(filter)).with(traces.layer()).into());
        }
    }
}

/// Starts logging at a level (`debug`, `info`, `error`) to comma-separated outputs; what goes wrong
/// in writing goes to `error_paths`. Spans go to `traces` as well.
///
/// # Errors
/// When an output cannot be opened.
pub fn init(
    level: &str,
    paths: &str,
    error_paths: &str,
    traces: Option<&Traces>,
) -> Result<(), LogError> {
    let level = if level.is_empty() { "info" } else { level };
    let (outputs, errors) = (open_all(paths)?, open_all(error_paths)?);
    #[expect(clippy::disallowed_methods, reason = "lines bear the system's time")]
    let now = Timestamp::now;
    let layer = JsonLayer::new(level == "debug", now, move |line| {
        for output in &outputs {
            if let Err(error) = output.write(line) {
                for output in &errors {
                    let _ = output.write(&format!("write error: {error}\n"));
                }
            }
        }
    });
    with_layers(level, layer, traces, |dispatch| {
        let _ = tracing::dispatcher::set_global_default(dispatch);
    });
    if COMMIT.is_none() {
        tracing::info!("Unable to read vcs.revision from binary");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn capture(run: impl FnOnce()) -> Vec<String> {
        capture_with(false, run)
    }

    fn capture_with(callers: bool, run: impl FnOnce()) -> Vec<String> {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&lines);
        let now: Timestamp = "2024-08-07T19:23:10.043Z".parse().unwrap();
        let layer =
            JsonLayer::new(callers, move || now, move |line| sink.lock().push(line.to_owned()));
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
        let commit = COMMIT.map_or(String::new(), |commit| format!(r#""commit":"{commit}","#));
        let want = format!(
            "{}{commit}{}\n",
            r#"{"level":"INFO","time":"2024-08-07T19:23:10.043Z","logger":"controller","message":"created nodeclaim","#,
            r#""controller":"provisioner","NodePool":{"name":"default"},"NodeClaim":{"name":"default-gqq5d"},"requests":{"cpu":"430m"},"instance-types":"t3.medium"}"#
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
        let mut value: Map<String, Value> = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(value.shift_remove("commit").is_some(), COMMIT.is_some());
        let keys: Vec<&str> = value.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            [
                "level",
                "time",
                "logger",
                "message",
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

    #[test]
    fn what_is_called_knows_its_controller() {
        assert_eq!(current_controller(), None);
        capture(|| {
            let _outer = controller_span("provisioner").entered();
            let _inner = tracing::error_span!("inner").entered();
            assert_eq!(current_controller().as_deref(), Some("provisioner"));
        });
    }

    #[test]
    fn an_error_closes_its_line() {
        let lines = capture(|| tracing::error!("error" = "no", "reason" = "x", "Reconciler error"));
        assert!(lines[0].ends_with("\"reason\":\"x\",\"error\":\"no\"}\n"), "{}", lines[0]);
    }

    #[test]
    fn debugging_shows_where_a_line_comes_from() {
        let lines = capture_with(true, || tracing::debug!("here"));
        let value: Map<String, Value> = serde_json::from_str(&lines[0]).unwrap();
        let caller = value["caller"].as_str().unwrap();
        assert!(caller.starts_with("operator/logging.rs:"), "{caller}");
        assert_eq!(value.keys().nth(3).unwrap(), "caller");
    }

    #[test]
    fn storms_of_equal_lines_are_thinned_out() {
        let lines = capture(|| {
            for number in 0..350 {
                tracing::info!("number" = number, "again");
            }
            tracing::info!("something else");
        });
        assert_eq!(lines.len(), 103);
        let sampler = Sampler::default();
        let now = Timestamp::UNIX_EPOCH;
        assert!((0..100).all(|_| sampler.admits(now, "INFO", "a")));
        assert!(!sampler.admits(now, "INFO", "a") && sampler.admits(now, "ERROR", "a"));
        assert!(sampler.admits(now + Duration::from_secs(1), "INFO", "a"));
    }

    #[test]
    fn lines_can_go_to_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let outputs = open_all(&format!("stderr, file://{}", path.display())).unwrap();
        outputs[1].write("line\n").unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), "line\n");
        let error = open_all("/no/such/folder/log").err().unwrap();
        assert!(error.to_string().contains("/no/such/folder/log"), "{error}");
    }
}
