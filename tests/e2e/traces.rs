//! Traces: what a collector gets of a node's launch.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

use crate::chain::one_initialized;
use crate::support::{Controller, World, until};

type Spans = Arc<Mutex<Vec<Span>>>;

async fn take(State(spans): State<Spans>, body: Bytes) {
    let sent = ExportTraceServiceRequest::decode(body).unwrap();
    let scopes = sent.resource_spans.into_iter().flat_map(|r| r.scope_spans);
    spans.lock().unwrap().extend(scopes.flat_map(|s| s.spans));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_the_reconciles_and_aws_calls_of_a_launch() {
    let spans = Spans::default();
    let app = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&spans));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });

    let world = World::up().await;
    let mut controller = Controller::with(&world, &[("OTLP_ENDPOINT", &url)]);
    world.apply_file("examples/weasel-eks/manifests.yaml").await;
    world.deploy("web", 1, "1", "1Gi").await;
    one_initialized(&world).await;
    let names =
        || -> BTreeSet<String> { spans.lock().unwrap().iter().map(|s| s.name.clone()).collect() };
    until("spans of the launch", || async {
        let names = names();
        let wanted = ["EC2/CreateFleet", "nodeclaim.lifecycle", "provisioner", "nodeclass"];
        wanted.iter().all(|name| names.contains(*name)).then_some(())
    })
    .await;
    // What is left is sent when the process stops.
    assert_eq!(controller.stop(), Some(0));
}
