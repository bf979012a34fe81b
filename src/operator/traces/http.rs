//! How traces are sent: by the HTTP client and TLS that everything else uses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_http::{HttpClient, HttpError};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::{ClientConfig, RootCertStore};
use tokio::runtime::Runtime;

/// How long the collector may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// An answer is a few bytes.
const ANSWER: usize = 1 << 20;

/// The client. The exporter calls it from a thread of its own that has no runtime, so it brings one.
#[derive(Debug)]
pub(super) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: Runtime,
    /// The last attempt failed: an outage is reported once.
    failing: AtomicBool,
}

impl Http {
    /// A client for a URL.
    pub(super) fn new(url: &str) -> anyhow::Result<Self> {
        let builder = HttpsConnectorBuilder::new();
        let builder = if url.starts_with("https://") {
            builder.with_provider_and_native_roots(default_provider())?
        } else {
            // Nobody has to be trusted without TLS.
            let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
                .with_safe_default_protocol_versions()?
                .with_root_certificates(RootCertStore::empty());
            builder.with_tls_config(config.with_no_client_auth())
        };
        let connector = builder.https_or_http().enable_http1().build();
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
            failing: AtomicBool::new(false),
        })
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.client.request(request.map(Full::new)).await?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER).collect().await?.to_bytes();
        Ok(Response::from_parts(parts, body))
    }

    /// Logs the first failure of several, and the end of them.
    fn report(&self, problem: Option<&str>) {
        match (self.failing.swap(problem.is_some(), Ordering::Relaxed), problem) {
            (false, Some(error)) => {
                tracing::error!("error" = error, "sending traces failed, trying on");
            }
            (true, None) => tracing::info!("sending traces again"),
            _ => {}
        }
    }
}

#[async_trait::async_trait]
impl HttpClient for Http {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = self.runtime.block_on(async {
            let sent = tokio::time::timeout(PATIENCE, self.send(request)).await;
            sent.unwrap_or_else(
                |_| Err(format!("no answer within {} s", PATIENCE.as_secs()).into()),
            )
        });
        match &sent {
            Ok(answer) if answer.status().is_success() => self.report(None),
            Ok(answer) => self.report(Some(&format!("the collector answered {}", answer.status()))),
            Err(error) => self.report(Some(&error.to_string())),
        }
        sent
    }
}
