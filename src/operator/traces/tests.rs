//! What a collector gets, decoded as a collector decodes it, and that nothing is there without one.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue as Pair;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span as Sent;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as Outcome;
use parking_lot::Mutex;
use prost::Message as _;

use super::*;
use crate::operator::logging::{self, JsonLayer};

/// Requests that a collector got.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

impl Collector {
    /// Listens on a port of its own, whose URL is given back.
    async fn start(status: StatusCode) -> (Self, String) {
        let collector = Self::default();
        let take = move |State(all): State<Self>, headers: HeaderMap, body: Bytes| async move {
            assert_eq!(headers["content-type"], "application/x-protobuf");
            all.0.lock().push(ExportTraceServiceRequest::decode(body).unwrap());
            status
        };
        let app = Router::new().route("/v1/traces", post(take)).with_state(collector.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (collector, url)
    }

    fn spans(&self) -> Vec<Sent> {
        let all = self.0.lock();
        let scopes = all.iter().flat_map(|r| &r.resource_spans).flat_map(|r| &r.scope_spans);
        scopes.flat_map(|s| s.spans.clone()).collect()
    }
}

fn value(pairs: &[Pair], key: &str) -> Option<String> {
    let found = pairs.iter().find(|p| p.key == key)?.value.clone()?.value?;
    Some(match found {
        Any::StringValue(text) => text,
        Any::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    })
}

/// Runs work under the layers of a process that logs at `level`; gives the lines of its log.
fn under(traces: Option<&Traces>, level: &str, work: impl FnOnce()) -> Vec<String> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    let now = jiff::Timestamp::UNIX_EPOCH;
    let log = JsonLayer::new(false, move || now, move |line| sink.lock().push(line.to_owned()));
    logging::with_layers(level, log, traces, |dispatch| {
        tracing::dispatcher::with_default(&dispatch, work);
    });
    lines.lock().clone()
}

/// A reconcile that makes one call that works and one that fails, and fails itself.
fn reconcile() {
    let span = logging::reconcile_span(
        "nodeclaim.lifecycle",
        "karpenter.sh",
        "NodeClaim",
        "",
        "general-1",
    );
    let _within = span.enter();
    called(&call("EC2", "CreateFleet"), "200", 1, false);
    called(&call("EC2", "DescribeInstances"), "403", 0, true);
    tracing::debug!("a line that is no error");
    tracing::error!("error" = "no capacity", "Reconciler error");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_reconciles_with_their_aws_calls_and_errors() {
    let (collector, url) = Collector::start(StatusCode::OK).await;
    let (lines, plain) = tokio::task::spawn_blocking(move || {
        let traces = Traces::new(&url, "my-cluster").unwrap();
        let lines = under(Some(&traces), "debug", reconcile);
        traces.stop();
        (lines, under(None, "debug", reconcile))
    })
    .await
    .unwrap();

    let resource = collector.0.lock()[0].resource_spans[0].resource.clone().unwrap().attributes;
    assert_eq!(value(&resource, "service.name").as_deref(), Some("karpenter"));
    assert_eq!(value(&resource, "k8s.cluster.name").as_deref(), Some("my-cluster"));
    let spans = collector.spans();
    let span = |name: &str| {
        spans.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("{name}: {spans:?}"))
    };
    assert_eq!(spans.len(), 3, "{spans:?}");
    let reconciled = span("nodeclaim.lifecycle");
    for (key, expected) in [("controllerKind", "NodeClaim"), ("name", "general-1")] {
        assert_eq!(value(&reconciled.attributes, key).as_deref(), Some(expected));
    }
    assert!(value(&reconciled.attributes, "reconcileID").is_some_and(|id| id.len() == 36));
    assert_eq!(value(&reconciled.attributes, "__object"), None);
    assert_eq!(reconciled.status.as_ref().map(|s| s.code()), Some(Outcome::Error));
    assert_eq!(reconciled.events.len(), 1, "errors only: {:?}", reconciled.events);
    assert_eq!(reconciled.events[0].name, "Reconciler error");
    assert_eq!(value(&reconciled.events[0].attributes, "error").as_deref(), Some("no capacity"));

    let (fleet, refused) = (span("EC2/CreateFleet"), span("EC2/DescribeInstances"));
    for (call, status, outcome) in
        [(fleet, "200", Outcome::Unset), (refused, "403", Outcome::Error)]
    {
        assert_eq!(call.parent_span_id, reconciled.span_id);
        assert_eq!(call.trace_id, reconciled.trace_id);
        assert_eq!(call.kind(), opentelemetry_proto::tonic::trace::v1::span::SpanKind::Client);
        let code = value(&call.attributes, "http.response.status_code");
        assert_eq!(code.as_deref(), Some(status));
        let found = call.status.as_ref().map_or(Outcome::Unset, |s| s.code());
        assert_eq!(found, outcome, "{}", call.name);
        assert!(call.end_time_unix_nano >= call.start_time_unix_nano);
    }
    assert_eq!(value(&fleet.attributes, "retries").as_deref(), Some("1"));

    // The log is the same with and without: only the reconcile's id differs.
    let without_id = |lines: &[String]| -> Vec<serde_json::Value> {
        let read = |line: &String| {
            let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
            line.as_object_mut().unwrap().remove("reconcileID");
            line
        };
        lines.iter().map(read).collect()
    };
    assert_eq!(without_id(&lines), without_id(&plain));
    assert_eq!(lines.len(), 2, "{lines:?}");
}

#[test]
fn without_a_collector_the_span_of_a_call_is_never_made() {
    for level in ["debug", "info", "error"] {
        under(None, level, || {
            assert!(call("EC2", "CreateFleet").is_disabled(), "{level}");
            assert!(!tracing::enabled!(Level::TRACE), "{level}");
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_refuses_is_reported_once_and_delays_nothing() {
    let (collector, url) = Collector::start(StatusCode::BAD_REQUEST).await;
    let lines = tokio::task::spawn_blocking(move || {
        let client = http::Http::new(&url).unwrap();
        under(None, "info", || {
            use opentelemetry_http::HttpClient as _;
            for _ in 0..3 {
                let body = Bytes::from(ExportTraceServiceRequest::default().encode_to_vec());
                let request = axum::http::Request::post(format!("{url}/v1/traces"))
                    .header("content-type", "application/x-protobuf")
                    .body(body)
                    .unwrap();
                futures::executor::block_on(client.send_bytes(request)).unwrap();
            }
        })
    })
    .await
    .unwrap();
    assert_eq!(collector.0.lock().len(), 3);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("the collector answered 400"), "{lines:?}");
}
