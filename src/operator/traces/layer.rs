//! From the spans that this program enters to those that a collector is sent.
//!
//! The bridge that OpenTelemetry's project publishes would do the same; it would also rebuild every crate that logs,
//! for a default feature of `tracing-core`, and has no way to name a span by one of its fields.

use std::borrow::Cow;
use std::fmt::Debug;

use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context as Parents, KeyValue, Value};
use opentelemetry_sdk::trace::{SdkTracer, Span};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::operator::logging::JSON_MARK;

/// Opens and closes the spans.
pub(super) struct Bridge(pub(super) SdkTracer);

/// What fields say of a span or an event.
#[derive(Default)]
struct Fields {
    name: Option<String>,
    client: bool,
    failed: bool,
    message: String,
    attributes: Vec<KeyValue>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.attributes.push(KeyValue::new(field.name(), value.into()));
    }

    fn text(&mut self, field: &Field, text: &str) {
        match field.name() {
            // The object is there by kind, namespace and name already.
            "__object" => {}
            "message" => text.clone_into(&mut self.message),
            "otel.name" => self.name = Some(text.to_owned()),
            "otel.kind" => self.client = text == "client",
            "otel.status_code" => self.failed = text == "ERROR",
            _ => {
                let text = text.strip_prefix(JSON_MARK).unwrap_or(text);
                self.put(field, text.to_owned());
            }
        }
    }

    /// A reconcile is named by its controller, anything else as it is called in the code.
    fn name(&self, called: &'static str) -> Cow<'static, str> {
        let controller = self.attributes.iter().find(|a| a.key.as_str() == "controller");
        let controller = controller.map(|a| a.value.as_str().into_owned());
        self.name.clone().or(controller).map_or(Cow::Borrowed(called), Cow::Owned)
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.text(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, i64::try_from(value).unwrap_or(i64::MAX));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.text(field, &value.to_string());
    }
}

impl<S> Layer<S> for Bridge
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let above = span.parent().and_then(|parent| {
            parent.extensions().get::<Span>().map(|open| open.span_context().clone())
        });
        let parents = match above {
            Some(above) => Parents::new().with_remote_span_context(above),
            None => Parents::new(),
        };
        let kind = if fields.client { SpanKind::Client } else { SpanKind::Internal };
        let builder = self.0.span_builder(fields.name(span.name())).with_kind(kind);
        let open = builder.with_attributes(fields.attributes).start_with_context(&self.0, &parents);
        span.extensions_mut().insert(open);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut extensions = span.extensions_mut();
        let Some(open) = extensions.get_mut::<Span>() else { return };
        let mut fields = Fields::default();
        values.record(&mut fields);
        open.set_attributes(fields.attributes);
        if fields.failed {
            open.set_status(Status::error(""));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let Some(span) = context.event_span(event) else { return };
        let mut extensions = span.extensions_mut();
        let Some(open) = extensions.get_mut::<Span>() else { return };
        let mut fields = Fields::default();
        event.record(&mut fields);
        if *event.metadata().level() == Level::ERROR {
            open.set_status(Status::error(fields.message.clone()));
        }
        open.add_event(fields.message, fields.attributes);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        if let Some(mut open) = span.extensions_mut().remove::<Span>() {
            open.end();
        }
    }
}
