//! The read-only API of the fleet, and its page.
//!
//! | path | answer |
//! |---|---|
//! | `/` | the page |
//! | `/v1/fleet` | the whole fleet as JSON ([`crate::fleet::Fleet`]) |
//! | `/v1/pods/NAMESPACE/NAME`, `/v1/nodes/NAME`, `/v1/nodepools/NAME` | one row of it |
//! | `/v1/timeline` | decisions and cost over the last day, and what was saved |
//! | `/v1/schema` | JSON Schema of these documents |
//! | `/v1/stream` | server-sent events: `fleet` first, then `change` with the rows that changed |
//!
//! Nothing is written, no cookie is set, and neither user data nor environment variables are part of any answer.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State as Shared};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use futures::future::BoxFuture;
use futures::{Stream, stream};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::server::everywhere;
use crate::fleet::{Fleet, NodeRow};

mod schema;
mod timeline;

pub use timeline::{Decision, Saving, Timeline};

/// Where the figures come from.
pub trait Source: Send + Sync + 'static {
    /// The fleet now, or why it is not known yet.
    fn fleet(&self) -> BoxFuture<'_, Result<Arc<Fleet>, String>>;
    /// What happened lately.
    fn timeline(&self) -> Timeline;
}

/// Time between checks for changes, for each listener of the stream.
const STREAM_PERIOD: Duration = Duration::from_secs(2);
/// The page; `NONCE` stands for a random word that lets its own style and script run, and nothing
/// else.
const PAGE: &str = include_str!("fleet_api/page.html");

/// Serves the API; port 0 serves nothing. `0.0.0.0` and `::` stand for all addresses, of IPv4 and IPv6.
///
/// # Errors
/// When the address cannot be bound; the error names the port and the setting.
pub async fn serve(address: SocketAddr, source: Arc<dyn Source>) -> std::io::Result<()> {
    if address.port() == 0 {
        return Ok(());
    }
    let bound = if address.ip().is_unspecified() {
        everywhere(address.port()).await
    } else {
        TcpListener::bind(address).await
    };
    let listener = bound.map_err(|error| {
        let text = format!("serving the API on {address} (--api-port): {error}");
        std::io::Error::new(error.kind(), text)
    })?;
    tracing::info!("bindAddress" = %address, "Serving fleet API");
    tokio::spawn(async move { axum::serve(listener, router(source)).await });
    Ok(())
}

fn router(source: Arc<dyn Source>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/v1/fleet", get(fleet))
        .route("/v1/pods/{namespace}/{name}", get(pod))
        .route("/v1/nodes/{name}", get(node))
        .route("/v1/nodepools/{name}", get(node_pool))
        .route("/v1/timeline", get(timeline_of))
        .route("/v1/schema", get(schema_of))
        .route("/v1/stream", get(stream_of))
        .with_state(source)
}

type Handle = Shared<Arc<dyn Source>>;

async fn page() -> Response {
    // New for each answer: names in the cluster are shown on the page, and a policy with a fixed
    // word would let injected script run.
    let nonce = uuid::Uuid::new_v4().simple().to_string();
    let policy = format!(
        "default-src 'none'; connect-src 'self'; img-src data:; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let mut headers = HeaderMap::new();
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    (headers, Html(PAGE.replace("NONCE", &nonce))).into_response()
}

async fn fleet(Shared(source): Handle) -> Response {
    match source.fleet().await {
        Ok(fleet) => document(&*fleet),
        Err(why) => unknown(&why),
    }
}

async fn pod(Shared(source): Handle, Path((namespace, name)): Path<(String, String)>) -> Response {
    let missing = format!("there is no pending pod {namespace}/{name}");
    row(&source, missing, |fleet| fleet.pod(&namespace, &name).cloned()).await
}

async fn node(Shared(source): Handle, Path(name): Path<String>) -> Response {
    let missing = format!("there is no node {name}");
    row(&source, missing, |fleet| fleet.node(&name).cloned()).await
}

async fn node_pool(Shared(source): Handle, Path(name): Path<String>) -> Response {
    let missing = format!("there is no NodePool {name}");
    row(&source, missing, |fleet| fleet.node_pool(&name).cloned()).await
}

async fn timeline_of(Shared(source): Handle) -> Response {
    document(&source.timeline())
}

async fn schema_of() -> Response {
    document(&schema::schema())
}

async fn row<T: Serialize>(
    source: &Arc<dyn Source>,
    missing: String,
    find: impl FnOnce(&Fleet) -> Option<T>,
) -> Response {
    match source.fleet().await.map(|fleet| find(&fleet)) {
        Ok(Some(row)) => document(&row),
        Ok(None) => (StatusCode::NOT_FOUND, axum::Json(json!({"error": missing}))).into_response(),
        Err(why) => unknown(&why),
    }
}

fn document<T: Serialize>(value: &T) -> Response {
    let mut response = axum::Json(value).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn unknown(why: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, axum::Json(json!({"error": why}))).into_response()
}

/// Sends the fleet once, then only what changed: a fleet of 5,000 nodes is megabytes.
async fn stream_of(Shared(source): Handle) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let first: Option<Arc<Fleet>> = None;
    let events = stream::unfold((source, first), |(source, mut before)| async move {
        loop {
            if before.is_some() {
                tokio::time::sleep(STREAM_PERIOD).await;
            }
            let Ok(now) = source.fleet().await else {
                tokio::time::sleep(STREAM_PERIOD).await;
                continue;
            };
            let event = match &before {
                None => Event::default().event("fleet").json_data(&*now).ok(),
                Some(before) => difference(before, &now)
                    .and_then(|change| Event::default().event("change").json_data(change).ok()),
            };
            before = Some(Arc::clone(&now));
            if let Some(event) = event {
                return Some((Ok(event), (source, before)));
            }
        }
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

/// The rows that changed; `None` where none did.
fn difference(before: &Fleet, now: &Fleet) -> Option<Value> {
    let old: HashMap<&str, &NodeRow> = before.nodes.iter().map(|n| (n.name.as_str(), n)).collect();
    let nodes: Vec<&NodeRow> =
        now.nodes.iter().filter(|n| old.get(n.name.as_str()) != Some(n)).collect();
    let new: std::collections::HashSet<&str> = now.nodes.iter().map(|n| n.name.as_str()).collect();
    let gone: Vec<&str> = old.keys().copied().filter(|name| !new.contains(name)).collect();
    let same = nodes.is_empty()
        && gone.is_empty()
        && before.pods == now.pods
        && before.node_pools == now.node_pools;
    (!same).then(|| {
        json!({"time": now.time, "nodes": nodes, "gone": gone, "pods": now.pods, "nodePools": now.node_pools,
               "cost": now.cost})
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet_of(names: &[&str]) -> Fleet {
        let nodes =
            names.iter().map(|name| NodeRow { name: (*name).to_owned(), ..NodeRow::default() });
        Fleet {
            schema: crate::fleet::SCHEMA.to_owned(),
            time: jiff::Timestamp::UNIX_EPOCH,
            nodes: nodes.collect(),
            node_pools: Vec::new(),
            pods: Vec::new(),
            cost: crate::fleet::Cost::default(),
        }
    }

    #[test]
    fn only_rows_that_changed_are_sent() {
        let before = fleet_of(&["a", "b"]);
        assert_eq!(difference(&before, &before), None);
        let mut now = fleet_of(&["b", "c"]);
        now.nodes[0].pods = 3;
        let change = difference(&before, &now).unwrap();
        let names: Vec<_> =
            change["nodes"].as_array().unwrap().iter().map(|n| &n["name"]).collect();
        assert_eq!(names, ["b", "c"]);
        assert_eq!(change["gone"], json!(["a"]));
    }

    struct Fixed(Fleet);

    impl Source for Fixed {
        fn fleet(&self) -> BoxFuture<'_, Result<Arc<Fleet>, String>> {
            Box::pin(std::future::ready(Ok(Arc::new(self.0.clone()))))
        }

        fn timeline(&self) -> Timeline {
            Timeline::default()
        }
    }

    async fn ask(path: &str) -> (StatusCode, HeaderMap, String) {
        use tower::ServiceExt as _;
        let app = router(Arc::new(Fixed(fleet_of(&["a"]))));
        let request = axum::http::Request::get(path).body(axum::body::Body::empty()).unwrap();
        let response = app.oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_row_is_found_by_name_and_a_missing_one_is_404() {
        let (status, _, body) = ask("/v1/nodes/a").await;
        assert_eq!(status, StatusCode::OK);
        assert!(body.contains("\"name\":\"a\""), "{body}");
        let (status, _, body) = ask("/v1/nodes/b").await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(body.contains("there is no node b"), "{body}");
    }

    #[tokio::test]
    async fn every_address_of_a_pod_is_served_be_it_ipv4_or_ipv6() {
        let free = |ip: &str| std::net::TcpListener::bind((ip, 0)).ok()?.local_addr().ok();
        let port = free("127.0.0.1").unwrap().port();
        let source: Arc<dyn Source> = Arc::new(Fixed(fleet_of(&["a"])));
        serve(format!("0.0.0.0:{port}").parse().unwrap(), source).await.unwrap();
        let mut addresses = vec!["127.0.0.1"];
        // A kernel may have no IPv6.
        addresses.extend(free("::1").map(|_| "::1"));
        for address in addresses {
            assert!(tokio::net::TcpStream::connect((address, port)).await.is_ok(), "{address}");
        }
    }

    #[tokio::test]
    async fn the_schema_is_served_beside_what_it_describes() {
        let (status, _, body) = ask("/v1/schema").await;
        assert_eq!(status, StatusCode::OK);
        assert!(body.contains("\"$id\":\"karpenter.fleet/v1\""), "{body}");
    }

    #[tokio::test]
    async fn the_page_allows_only_its_own_script() {
        let (status, headers, body) = ask("/").await;
        assert_eq!(status, StatusCode::OK);
        let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        let nonce = policy.split("script-src 'nonce-").nth(1).unwrap().split('\'').next().unwrap();
        assert!(body.contains(&format!("<script nonce=\"{nonce}\">")), "{policy}");
        assert!(!body.contains("http://") && !body.contains("https://"), "an outside asset");
        assert!(!headers.contains_key(header::SET_COOKIE));
    }
}
