//! Traces of reconciles and AWS calls, sent as OTLP over HTTP to the collector that `--otlp-endpoint` names.
//!
//! Without the setting nothing of this is there: no layer, no thread, and the spans of AWS calls are disabled by the
//! level that tracing keeps in one atomic number. With it, each reconcile is a span, an AWS call that it makes is a
//! child of it, and an error that is logged within is an event and the span's status.

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Level, Span, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

mod http;
mod layer;

/// Where the collector takes traces, below its base URL.
const PATH: &str = "v1/traces";
/// The name of the tracer, as backends show it.
const SCOPE: &str = "karpenter";

/// The span of an AWS call. At a level that no log shows, so that it costs nothing without a collector.
#[must_use]
pub fn call(service: &str, action: &str) -> Span {
    tracing::trace_span!(
        "aws",
        "otel.name" = format!("{service}/{action}"),
        "otel.kind" = "client",
        "otel.status_code" = tracing::field::Empty,
        "rpc.system" = "aws-api",
        "rpc.service" = service,
        "rpc.method" = action,
        "http.response.status_code" = tracing::field::Empty,
        "retries" = tracing::field::Empty,
    )
}

/// What an AWS call came to: the status of the last answer (0 without one), and whether it failed.
pub fn called(span: &Span, status: &str, retries: u32, failed: bool) {
    if span.is_disabled() {
        return;
    }
    span.record("http.response.status_code", status.parse::<i64>().unwrap_or_default());
    span.record("retries", retries);
    if failed {
        span.record("otel.status_code", "ERROR");
    }
}

/// What is sent, until it is stopped.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Sends traces to the collector at a base URL.
    ///
    /// # Errors
    /// When the URL cannot be used, or no thread can be started.
    pub fn new(endpoint: &str, cluster: &str) -> anyhow::Result<Self> {
        let url = format!("{}/{PATH}", endpoint.trim_end_matches('/'));
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(http::Http::new(&url)?)
            .with_endpoint(url)
            .build()?;
        let mut resource = Resource::builder().with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("k8s.cluster.name", cluster.to_owned()),
        ]);
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("karpenter");
        }
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_batch_exporter(exporter)
            .build();
        Ok(Self(provider))
    }

    /// Takes in spans of this program, and errors within them.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let of_program = filter_fn(|data| {
            data.target().starts_with("karpenter")
                && (data.is_span() || *data.level() <= Level::WARN)
        });
        layer::Bridge(self.0.tracer(SCOPE)).with_filter(of_program)
    }

    /// Sends what is left.
    pub fn stop(self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!("error" = %error, "sending the last traces failed");
        }
    }
}

#[cfg(test)]
mod tests;
