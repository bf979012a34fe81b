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
use tokio::time::{Instant, sleep_until};
use tower::{Layer, Service};

use super::metrics;

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
    build(config, Some(bucket))
}

/// A client without limit: a busy one must not cost the lease.
///
/// # Errors
/// When the configuration cannot be used.
pub fn unlimited(config: &Config) -> Result<Client, ClientError> {
    build(config, None)
}

fn build(config: &Config, bucket: Option<Arc<Mutex<Bucket>>>) -> Result<Client, ClientError> {
    let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
    let layer = Watched { bucket, host: host.into() };
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

/// Holds requests back, and counts their answers.
#[derive(Clone)]
struct Watched {
    bucket: Option<Arc<Mutex<Bucket>>>,
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
        let start = self.watched.bucket.as_ref().map(|b| b.lock().take(Instant::now()));
        let (method, host) = (request.method().to_string(), Arc::clone(&self.watched.host));
        // The request is sent when its future is first polled.
        let answer = self.inner.call(request);
        Box::pin(async move {
            if let Some(start) = start {
                sleep_until(start).await;
            }
            let answer = answer.await;
            let code =
                answer.as_ref().map_or("<error>".to_owned(), |r| r.status().as_str().to_owned());
            metrics::KUBE_REQUESTS.with_label_values(&[&code, &method, &*host]).inc();
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
