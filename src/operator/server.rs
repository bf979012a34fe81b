//! HTTP servers: metrics, health, and the conversion webhook.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State as Shared};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum_server::tls_rustls::RustlsConfig;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::certs::Certificate;
use super::metrics;
use crate::api::conversion;

/// Something that must hold for the process to be ready.
pub type Check = Arc<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>;

/// A check that is answered at once.
pub fn check(holds: impl Fn() -> bool + Send + Sync + 'static) -> Check {
    Arc::new(move || std::future::ready(holds()).boxed())
}

/// Holds once the API server knows the kinds without which nothing can be done.
#[must_use]
pub fn crds_are_served(client: kube::Client) -> Check {
    let seen = Arc::new(AtomicBool::new(false));
    Arc::new(move || {
        let (client, seen) = (client.clone(), Arc::clone(&seen));
        let ask = async move {
            if seen.load(Ordering::Relaxed) {
                return true;
            }
            let group = format!("{}/v1", crate::api::labels::GROUP);
            let asked = tokio::time::timeout(DISCOVERY, client.list_api_group_resources(&group));
            let Ok(Ok(list)) = asked.await else { return false };
            let known = |kind: &str| list.resources.iter().any(|r| r.kind == kind);
            let all = known("NodePool") && known("NodeClaim");
            seen.store(all, Ordering::Relaxed);
            all
        };
        ask.boxed()
    })
}

/// Time limit for asking which kinds the API server has.
const DISCOVERY: Duration = Duration::from_secs(10);

/// Takes a port of all addresses. Pods of a cluster have addresses of IPv4 or of IPv6, and a socket of
/// IPv6 takes both; only where the kernel has no IPv6 one of IPv4 is left.
pub(super) async fn everywhere(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
            TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await
        }
        bound => bound,
    }
}

/// Takes a port of this machine; `setting` is the flag that names it.
async fn bind(port: u16, setting: &str) -> std::io::Result<TcpListener> {
    everywhere(port).await.map_err(|error| {
        let text = format!("listening on port {port} (--{setting}), {error}");
        std::io::Error::new(error.kind(), text)
    })
}

/// Scrapes that are answered at once; more are refused. Each takes a thread, and a scraper that
/// times out tries again while its first scrape still runs.
const SCRAPES: usize = 4;
/// How long a scraper may take to accept a piece of the answer; then its slot is given to others.
const PATIENCE: Duration = Duration::from_secs(30);

/// Answers a scrape piece by piece, so that it takes little memory however much there is to show.
async fn scrape() -> Response {
    static SLOTS: Semaphore = Semaphore::const_new(SCRAPES);
    let Ok(slot) = SLOTS.try_acquire() else {
        let text = "too many scrapes are under way";
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    let (pieces, answer) = mpsc::channel::<String>(2);
    // Rendering reads the state under its lock and takes CPU time: not on the threads that
    // reconcile.
    tokio::task::spawn_blocking(move || {
        let _slot = slot;
        let runtime = tokio::runtime::Handle::current();
        let mut pass_on = |piece| {
            let sent = tokio::time::timeout(PATIENCE, pieces.send(piece));
            matches!(runtime.block_on(sent), Ok(Ok(())))
        };
        metrics::render_into(&mut pass_on);
    });
    let body = futures::stream::unfold(answer, |mut answer| async move {
        let piece = answer.recv().await?;
        Some((Ok::<_, Infallible>(Bytes::from(piece)), answer))
    });
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], Body::from_stream(body)).into_response()
}

/// The paths of profiles; this build has none, and says so where one is asked for.
#[cfg(not(all(feature = "profiling", target_os = "linux")))]
fn profiles() -> Router {
    const WHY: &str = "this binary is built without the feature profiling, which serves profiles\n";
    Router::new()
        .route("/debug/pprof/{*path}", get(|| async { (StatusCode::NOT_IMPLEMENTED, WHY) }))
}

#[cfg(all(feature = "profiling", target_os = "linux"))]
use karpenter_profiling::router as profiles;

/// Serves `/metrics`, and profiles where `profiling` is set; port 0 serves nothing.
///
/// # Errors
/// When the port cannot be taken.
pub async fn serve_metrics(
    port: u16,
    profiling: bool,
    background: &mut JoinSet<()>,
) -> std::io::Result<()> {
    if port == 0 {
        return Ok(());
    }
    let app = Router::new().route("/metrics", get(scrape));
    let app = if profiling { app.merge(profiles()) } else { app };
    let listener = bind(port, "metrics-port").await?;
    tracing::info!("bindAddress" = format!(":{port}"), "secure" = false, "Serving metrics server");
    serve(listener, app, background);
    Ok(())
}

/// Serves `/healthz` and `/readyz` with the named checks; port 0 serves nothing.
///
/// # Errors
/// When the port cannot be taken.
pub async fn serve_health(
    port: u16,
    ready: Vec<(&'static str, Check)>,
    background: &mut JoinSet<()>,
) -> std::io::Result<()> {
    if port == 0 {
        return Ok(());
    }
    let always = check(|| true);
    let alive = Checks(vec![("healthz", Arc::clone(&always))]);
    // The names and texts are those of controller-runtime's health endpoint, which tools parse.
    let mut list = ready;
    list.push(("readyz", always));
    let app = Router::new().merge(probe("/healthz", alive)).merge(probe("/readyz", Checks(list)));
    let listener = bind(port, "health-probe-port").await?;
    tracing::info!("name" = "health probe", "addr" = format!("[::]:{port}"), "starting server");
    serve(listener, app, background);
    Ok(())
}

/// Serves for as long as the process lives.
fn serve(listener: TcpListener, app: Router, background: &mut JoinSet<()>) {
    background.spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::error!("error" = %error, "server stopped");
        }
    });
}

#[derive(Clone)]
struct Checks(Vec<(&'static str, Check)>);

fn probe(path: &str, checks: Checks) -> Router {
    let all = |Shared(checks): Shared<Checks>, RawQuery(query): RawQuery| async move {
        answer(&checks, query.as_deref().unwrap_or_default()).await
    };
    let one = |Shared(checks): Shared<Checks>, Path(name): Path<String>| async move {
        match checks.0.iter().find(|(n, _)| *n == name) {
            Some((_, check)) if check().await => (StatusCode::OK, "ok".to_owned()),
            Some(_) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{name} failed")),
            None => (StatusCode::NOT_FOUND, String::new()),
        }
    };
    Router::new()
        .route(path, get(all))
        .route(&format!("{path}/{{name}}"), get(one))
        .with_state(checks)
}

async fn answer(checks: &Checks, query: &str) -> (StatusCode, String) {
    // The parameters and the text are those of the API server's health endpoints
    // (k8s.io/apiserver), which controller-runtime serves too. The reason is withheld there because
    // anyone may ask.
    let mut excluded: HashMap<&str, ()> = HashMap::new();
    let mut verbose = false;
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some(("exclude", name)) => {
                excluded.insert(name, ());
            }
            _ => verbose |= pair == "verbose" || pair.starts_with("verbose="),
        }
    }
    let mut text = String::new();
    let mut ok = true;
    for (name, check) in &checks.0 {
        if excluded.contains_key(name) {
            text.push_str(&format!("[+]{name} excluded: ok\n"));
        } else if check().await {
            text.push_str(&format!("[+]{name} ok\n"));
        } else {
            ok = false;
            text.push_str(&format!("[-]{name} failed: reason withheld\n"));
        }
    }
    match (ok, verbose) {
        (true, false) => (StatusCode::OK, "ok".to_owned()),
        (true, true) => (StatusCode::OK, format!("{text}healthz check passed\n")),
        (false, _) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{text}healthz check failed\n")),
    }
}

/// The largest review that is read. The API server converts whole lists at once: thousands of
/// objects of some 50 KB at most.
const REVIEW_LIMIT: usize = 256 << 20;

/// Serves the conversion webhook over TLS; the certificate can be changed while it serves.
///
/// A body that is no JSON is answered with a client error, anything else by `review`.
///
/// # Errors
/// When the certificate cannot be used or the port cannot be taken.
pub async fn serve_webhook(
    port: u16,
    certificate: &Certificate,
    review: impl Fn(&Value) -> Value + Clone + Send + Sync + 'static,
    background: &mut JoinSet<()>,
) -> std::io::Result<RustlsConfig> {
    let config = RustlsConfig::from_pem(certificate.chain.clone(), certificate.key.clone()).await?;
    let convert = move |body: Bytes| converted(body, review);
    let app = Router::new()
        .route(conversion::PATH, post(convert.clone()))
        .route(conversion::PATH_AWS, post(convert))
        .layer(axum::extract::DefaultBodyLimit::max(REVIEW_LIMIT));
    let listener = bind(port, "webhook-port").await?.into_std()?;
    tracing::info!("port" = port, "Serving webhook server");
    let server = axum_server::from_tcp_rustls(listener, config.clone())?;
    background.spawn(async move {
        let served = server.serve(app.into_make_service()).await;
        if let Err(error) = served {
            tracing::error!("error" = %error, "webhook server stopped");
        }
    });
    Ok(config)
}

async fn converted(
    body: Bytes,
    review: impl Fn(&Value) -> Value + Send + Sync + 'static,
) -> Response {
    // A list of thousands takes a while: not on the threads that everything else needs.
    let answer = tokio::task::spawn_blocking(move || conversion::review_body(&body, review)).await;
    match answer {
        Ok(Ok(answer)) => ([(header::CONTENT_TYPE, "application/json")], answer).into_response(),
        Ok(Err(error)) => {
            let text = format!("expected a ConversionReview in JSON: {error}");
            (StatusCode::BAD_REQUEST, text).into_response()
        }
        Err(error) => {
            metrics::CONVERSION_PANICS.with_label_values::<&str>(&[]).inc();
            tracing::error!("error" = %error, "conversion failed");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_named_with_its_setting() {
        let taken = everywhere(0).await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut background = JoinSet::new();
        let metrics = serve_metrics(port, false, &mut background).await.unwrap_err().to_string();
        let start = format!("listening on port {port} (--metrics-port), ");
        assert!(metrics.starts_with(&start), "{metrics}");
        let health = serve_health(port, Vec::new(), &mut background).await.unwrap_err();
        let health = health.to_string();
        assert!(health.contains("(--health-probe-port)"), "{health}");
    }

    #[tokio::test]
    async fn a_port_is_taken_of_both_families_of_addresses() {
        let port = everywhere(0).await.unwrap().local_addr().unwrap().port();
        let taken = everywhere(port).await.unwrap();
        let mut addresses = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))];
        // A machine may have no address of IPv6, then there is nothing to reach.
        if TcpListener::bind(SocketAddr::from((Ipv6Addr::LOCALHOST, 0))).await.is_ok() {
            addresses.push(SocketAddr::from((Ipv6Addr::LOCALHOST, port)));
        }
        for address in addresses {
            let (asked, taken) =
                tokio::join!(tokio::net::TcpStream::connect(address), taken.accept());
            assert!(asked.is_ok() && taken.is_ok(), "{address}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_scrape_is_answered_whole() {
        let answer = scrape().await;
        let body = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(text.contains("\nprocess_resident_memory_bytes "), "{text}");
        assert!(text.ends_with('\n'));
    }

    #[tokio::test]
    async fn a_conversion_that_panics_is_counted_and_answered() {
        let panics = || metrics::CONVERSION_PANICS.with_label_values::<&str>(&[]).get();
        let before = panics();
        let body = Bytes::from(r#"{"request": {"uid": "u", "objects": []}}"#);
        let answer = converted(body, |_| panic!("odd")).await;
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(panics() > before);
    }

    #[tokio::test]
    async fn a_failing_check_is_named() {
        let checks = Checks(vec![("manager", check(|| false)), ("readyz", check(|| true))]);
        let (status, text) = answer(&checks, "").await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(text.contains("[-]manager failed: reason withheld\n[+]readyz ok"));
        let without = answer(&checks, "exclude=manager").await;
        assert_eq!(without, (StatusCode::OK, "ok".to_owned()));
    }
}
