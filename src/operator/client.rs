//! Clients of the API server: who they say they are, how much they ask for, and what is counted.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::{HeaderValue, Request, Response, header};
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until, timeout};
use tower::{BoxError, Layer, Service};

use super::metrics;
use super::rate::RateLimit;

mod calls;
mod lanes;
mod protobuf;

use calls::Call;
use lanes::{Lane, Lanes};
pub use protobuf::in_protobuf;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Neither a kubeconfig nor a pod's service account can be used.
    #[error("finding the API server, {0}")]
    Config(#[from] kube::config::InferConfigError),
    /// The service account of the pod that this runs in cannot be used.
    #[error("finding the API server, {0}")]
    InCluster(#[from] kube::config::InClusterError),
    /// What was found cannot be used.
    #[error("reaching the API server, {0}")]
    Client(#[from] kube::Error),
}

/// Where the API server is: `KUBECONFIG`, else the pod's service account, else `~/.kube/config`.
///
/// # Errors
/// When none of them can be used.
pub async fn config() -> Result<Config, ClientError> {
    let named = std::env::var_os("KUBECONFIG").is_some_and(|path| !path.is_empty());
    // In a pod, errors about its service account are reported as such; inference would go on to a
    // kubeconfig and complain about that.
    let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let mut config = if in_pod && !named { Config::incluster()? } else { Config::infer().await? };
    let agent = concat!("karpenter/", env!("CARGO_PKG_VERSION"));
    config.headers.push((header::USER_AGENT, HeaderValue::from_static(agent)));
    Ok(config)
}

/// A client that asks for `qps` answers a second on average and for `burst` at once, whose classes
/// of calls do not starve each other.
///
/// # Errors
/// When the configuration cannot be used.
pub fn limited(config: &Config, qps: u32, burst: u32) -> Result<Client, ClientError> {
    let rate = Arc::new(Mutex::new(RateLimit::new(qps, burst, Instant::now())));
    build(config, Some(Limits { rate, lanes: Lanes::new() }))
}

/// A client without limit: a busy one must not cost the lease.
///
/// # Errors
/// When the configuration cannot be used.
pub fn unlimited(config: &Config) -> Result<Client, ClientError> {
    build(config, None)
}

fn build(config: &Config, limits: Option<Limits>) -> Result<Client, ClientError> {
    let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
    let layer = Watched { limits, host: host.into() };
    let mut config = config.clone();
    // The client would repeat a call that is answered by 429 up to 15 times within, for minutes, and
    // hold its slot meanwhile. An answer goes to the caller, who knows what to do about it.
    config.default_retry = false;
    Ok(ClientBuilder::try_from(config)?.with_layer(&layer).build())
}

/// How much a client asks for.
#[derive(Clone)]
struct Limits {
    rate: Arc<Mutex<RateLimit>>,
    lanes: Lanes,
}

/// The API server did not begin to answer in time.
#[derive(Debug, thiserror::Error)]
#[error("the API server did not answer within {0:?}")]
struct NoAnswer(Duration);

/// Holds requests back, and counts their answers.
#[derive(Clone)]
struct Watched {
    limits: Option<Limits>,
    host: Arc<str>,
}

impl<S> Layer<S> for Watched {
    type Service = WatchedService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        WatchedService { inner, watched: self.clone() }
    }
}

struct WatchedService<S> {
    inner: S,
    watched: Watched,
}

impl<S, B> Service<Request<Body>> for WatchedService<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
    B: 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        ask_for_latest(&mut request);
        let limits = self.watched.limits.clone();
        let lane = Lane::of(&request);
        let (method, host) = (request.method().to_string(), Arc::clone(&self.watched.host));
        let (call, begun) = (Call::of(&request), Instant::now());
        // The request is sent when its future is first polled.
        let answer = self.inner.call(request);
        Box::pin(async move {
            let slot = match &limits {
                Some(limits) => limits.lanes.slots(lane).acquire().await.ok(),
                None => None,
            };
            // The rate after the slot: a class of which thousands wait has taken no more of the rate
            // than its slots can use.
            let start = limits.as_ref().map(|l| l.rate.lock().take(Instant::now()));
            if let Some(start) = start {
                sleep_until(start).await;
            }
            let answer = match lane.patience() {
                Some(patience) => match timeout(patience, answer).await {
                    Ok(answer) => answer,
                    Err(_) => Err(BoxError::from(NoAnswer(patience))),
                },
                None => answer.await,
            };
            drop(slot);
            let code =
                answer.as_ref().map_or("<error>".to_owned(), |r| r.status().as_str().to_owned());
            metrics::KUBE_REQUESTS.with_label_values(&[&code, &method, &*host]).inc();
            metrics::CLIENT_GO_REQUESTS.with_label_values(&[&code, &method]).inc();
            if let Some(call) = call {
                call.took(begun.elapsed());
            }
            answer
        })
    }
}

/// Lets a streamed list hold everything that was written before it was asked for.
// kube asks for version 0, which any cache may answer, however old. A list from a stale cache lacks
// what was just made, and what it lacks counts as gone. Without a version the API server waits until
// its cache has caught up with etcd.
fn ask_for_latest(request: &mut Request<Body>) {
    let uri = request.uri();
    let query = uri.query().unwrap_or_default();
    let has = |wanted: &str| query.split('&').any(|part| part == wanted);
    if !has("sendInitialEvents=true") || !has("resourceVersion=0") {
        return;
    }
    let kept: Vec<&str> =
        query.split('&').filter(|p| !p.is_empty() && *p != "resourceVersion=0").collect();
    // What was a URI is one without a parameter too.
    if let Ok(uri) = format!("{}?{}", uri.path(), kept.join("&")).parse() {
        *request.uri_mut() = uri;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt as _;
    use futures::future::join_all;

    use super::*;

    /// Takes a while for each request, and knows how many it had at once.
    #[derive(Default)]
    struct Slow {
        time: Duration,
        now: Arc<AtomicUsize>,
        most: Arc<AtomicUsize>,
    }

    impl Service<Request<Body>> for Slow {
        type Response = Response<()>;
        type Error = BoxError;
        type Future = Pin<Box<dyn Future<Output = Result<Response<()>, Self::Error>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            let (now, most, time) = (Arc::clone(&self.now), Arc::clone(&self.most), self.time);
            Box::pin(async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(time).await;
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(Response::new(()))
            })
        }
    }

    fn service(time: Duration) -> (WatchedService<Slow>, Arc<AtomicUsize>) {
        let server = Slow { time, ..Slow::default() };
        let most = Arc::clone(&server.most);
        let rate = Arc::new(Mutex::new(RateLimit::new(1000, 1000, Instant::now())));
        let limits = Some(Limits { rate, lanes: Lanes::new() });
        (Watched { limits, host: "h".into() }.layer(server), most)
    }

    fn request(method: &str, uri: &str) -> Request<Body> {
        Request::builder().method(method).uri(uri).body(Body::empty()).unwrap()
    }

    const EVICTION: &str = "/api/v1/namespaces/n/pods/p/eviction";
    const CLAIM: &str = "/apis/karpenter.sh/v1/nodeclaims";

    #[tokio::test(start_paused = true)]
    async fn a_slow_server_is_asked_for_so_much_at_once() {
        let (mut service, most) = service(Duration::from_millis(20));
        let requests = (0..200).map(|_| service.call(request("POST", CLAIM)));
        let answers = join_all(requests.collect::<Vec<_>>()).await;
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(most.load(Ordering::SeqCst), Lane::ALL[0].1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_launch_does_not_wait_for_thousands_of_evictions() {
        let (mut service, _) = service(Duration::from_secs(1));
        let evictions: Vec<_> =
            (0..3000).map(|_| tokio::spawn(service.call(request("POST", EVICTION)))).collect();
        tokio::time::sleep(Duration::from_millis(10)).await;
        let begun = Instant::now();
        service.call(request("POST", CLAIM)).await.unwrap();
        let time = begun.elapsed();
        assert!(time < Duration::from_millis(1100), "{time:?}");
        evictions.iter().for_each(|e| e.abort());
    }

    #[tokio::test]
    async fn an_eviction_that_is_refused_is_one_request() {
        use axum::http::StatusCode;
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let app = axum::Router::new().fallback(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            let status = r#"{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 429,
                "reason": "TooManyRequests", "message": "no"}"#;
            std::future::ready((StatusCode::TOO_MANY_REQUESTS, [("retry-after", "0")], status))
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let client = limited(&Config::new(url.parse().unwrap()), 100, 100).unwrap();
        let pods = kube::Api::<k8s_openapi::api::core::v1::Pod>::namespaced(client, "n");
        let error = pods.evict("p", &Default::default()).await.unwrap_err();
        assert!(matches!(error, kube::Error::Api(status) if status.code == 429));
        assert_eq!(count.load(Ordering::SeqCst), 1);
        let text = metrics::render();
        assert!(text.contains(r#"client_go_request_total{code="429",method="POST"}"#));
        let timed = r#"client_go_request_duration_seconds_count{group="",kind="pods",subresource="eviction",verb="CREATE",version="v1"}"#;
        assert!(text.contains(timed));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_never_answers_does_not_hold_a_slot_for_ever() {
        let (mut service, _) = service(Duration::from_secs(3600));
        let error = service.call(request("POST", CLAIM)).await.err().unwrap();
        assert_eq!(error.to_string(), "the API server did not answer within 70s");
        // A watch has to wait until something happens.
        let watch = service.call(request("GET", "/api/v1/pods?watch=true"));
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert!(watch.now_or_never().is_none());
    }

    #[test]
    fn a_streamed_list_holds_all_that_was_written_before() {
        let sent = |uri: &str| {
            let mut request = request("GET", uri);
            ask_for_latest(&mut request);
            request.uri().to_string()
        };
        // As kube writes it.
        let streamed = "/api/v1/pods?&watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=0";
        assert_eq!(
            sent(streamed),
            "/api/v1/pods?watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
        );
        for other in [
            "/api/v1/pods?&watch=true&resourceVersion=0",
            "/api/v1/pods?&watch=true&sendInitialEvents=true&resourceVersion=7",
            "/api/v1/pods?&limit=500",
            "/api/v1/pods",
        ] {
            assert_eq!(sent(other), other);
        }
    }
}
