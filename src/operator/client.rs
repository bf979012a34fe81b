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
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};
use tower::{Layer, Service};

use super::metrics;

/// Requests under way at once: an API server that is slow answers none of them in time when it has
/// many more to work at. A watch counts until it has begun.
const AT_ONCE: usize = 50;

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
    let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let mut config = if in_pod && !named { Config::incluster()? } else { Config::infer().await? };
    let agent = concat!("karpenter/", env!("CARGO_PKG_VERSION"));
    config.headers.push((header::USER_AGENT, HeaderValue::from_static(agent)));
    Ok(config)
}

/// A client that asks for `qps` answers a second on average and for `burst` at once.
///
/// # Errors
/// When the configuration cannot be used.
pub fn limited(config: &Config, qps: u32, burst: u32) -> Result<Client, ClientError> {
    let bucket = Arc::new(Mutex::new(Bucket::new(qps, burst, Instant::now())));
    build(config, Some(Limits { bucket, slots: Arc::new(Semaphore::new(AT_ONCE)) }))
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
    Ok(ClientBuilder::try_from(config.clone())?.with_layer(&layer).build())
}

/// When requests may start: `burst` at once, then `qps` a second.
#[derive(Debug)]
struct Bucket {
    /// Time that one request takes of the bucket.
    each: Duration,
    /// Time that the whole bucket holds.
    all: Duration,
    /// Until when the bucket is used up, if nothing more comes.
    used: Instant,
}

impl Bucket {
    fn new(qps: u32, burst: u32, now: Instant) -> Self {
        let each = Duration::from_secs(1) / qps.max(1);
        Self { each, all: each * burst.max(1), used: now }
    }

    /// Takes one request's share; gives the time at which it may start.
    fn take(&mut self, now: Instant) -> Instant {
        self.used = self.used.max(now) + self.each;
        now.max(self.used.checked_sub(self.all).unwrap_or(now))
    }
}

/// How much a client asks for.
#[derive(Clone)]
struct Limits {
    bucket: Arc<Mutex<Bucket>>,
    slots: Arc<Semaphore>,
}

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
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let limits = self.watched.limits.clone();
        let start = limits.as_ref().map(|l| l.bucket.lock().take(Instant::now()));
        let (method, host) = (request.method().to_string(), Arc::clone(&self.watched.host));
        // The request is sent when its future is first polled.
        let answer = self.inner.call(request);
        Box::pin(async move {
            if let Some(start) = start {
                sleep_until(start).await;
            }
            let slot = match &limits {
                Some(limits) => limits.slots.acquire().await.ok(),
                None => None,
            };
            let answer = answer.await;
            drop(slot);
            let code =
                answer.as_ref().map_or("<error>".to_owned(), |r| r.status().as_str().to_owned());
            metrics::KUBE_REQUESTS.with_label_values(&[&code, &method, &*host]).inc();
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;

    use super::*;

    /// Takes a moment for each request, and knows how many it had at once.
    #[derive(Default)]
    struct Slow {
        now: Arc<AtomicUsize>,
        most: Arc<AtomicUsize>,
    }

    impl Service<Request<Body>> for Slow {
        type Response = Response<()>;
        type Error = std::convert::Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Response<()>, Self::Error>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            let (now, most) = (Arc::clone(&self.now), Arc::clone(&self.most));
            Box::pin(async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(Response::new(()))
            })
        }
    }

    #[tokio::test]
    async fn a_slow_server_is_asked_for_so_much_at_once() {
        let server = Slow::default();
        let most = Arc::clone(&server.most);
        let bucket = Arc::new(Mutex::new(Bucket::new(1000, 1000, Instant::now())));
        let slots = Arc::new(Semaphore::new(AT_ONCE));
        let mut service =
            Watched { limits: Some(Limits { bucket, slots }), host: "h".into() }.layer(server);
        let requests = (0..3 * AT_ONCE).map(|_| service.call(Request::new(Body::empty())));
        let answers = join_all(requests.collect::<Vec<_>>()).await;
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(most.load(Ordering::SeqCst), AT_ONCE);
    }

    #[test]
    fn a_burst_goes_at_once_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, 3, start);
        let waits: Vec<u128> = (0..6).map(|_| (bucket.take(start) - start).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 100, 200, 300]);
        // After a pause the whole burst is there again, and no more.
        let later = start + Duration::from_secs(60);
        let waits: Vec<u128> = (0..4).map(|_| (bucket.take(later) - later).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 100]);
    }
}
