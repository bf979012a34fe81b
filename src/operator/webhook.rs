//! The conversion webhook as a whole: certificate, server, and the CRDs that point to it.

use std::time::Duration;

use axum_server::tls_rustls::RustlsConfig;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::certs::{self, Certificate, Store, Target};
use super::server;
use super::settings::Settings;
use crate::clock::Clock;

/// How often certificate and CRDs are checked: applying the CRDs again may remove the
/// webhook from them.
const PERIOD: Duration = Duration::from_secs(30);
/// How soon again after a failure.
const RETRY: Duration = Duration::from_secs(5);
/// How long the API server may take to hear of a new authority before its certificate is served.
const SETTLE: Duration = Duration::from_secs(5);

/// Where the webhook runs and how it is reached.
struct Webhook {
    client: kube::Client,
    clock: Clock,
    store: Store,
    namespace: String,
    service: String,
    port: u16,
    url: String,
}

/// Serves conversions, keeps the certificate valid, and keeps telling the CRDs where; port 0
/// serves nothing.
///
/// # Errors
/// When there can be no certificate.
pub async fn start(
    client: &kube::Client,
    settings: &Settings,
    namespace: &str,
    clock: &Clock,
    review: impl Fn(&Value) -> Value + Clone + Send + Sync + 'static,
    background: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    let port = settings.webhook_port;
    if port == 0 {
        return Ok(());
    }
    let service = settings.karpenter_service.clone();
    let url = settings.webhook_url.clone();
    let names = names(&url, &service, namespace);
    let webhook = Webhook {
        client: client.clone(),
        clock: clock.clone(),
        store: Store::new(client, namespace, &format!("{service}-cert"), names),
        namespace: namespace.to_owned(),
        service,
        port,
        url,
    };
    let certificate = webhook.store.ensure(None, clock.now()).await?;
    let server = server::serve_webhook(port, &certificate, review, background).await?;
    background.spawn(webhook.look_after(certificate, server));
    Ok(())
}

/// The names that the API server calls: those of the Service, or the host of the URL.
fn names(url: &str, service: &str, namespace: &str) -> Vec<String> {
    let host = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or_default();
    let host = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    if host.is_empty() {
        let name = format!("{service}.{namespace}.svc");
        vec![name.clone(), format!("{name}.cluster.local")]
    } else {
        vec![host.to_owned()]
    }
}

impl Webhook {
    async fn look_after(self, mut serving: Certificate, server: RustlsConfig) {
        loop {
            let wait = match self.refresh(&mut serving, &server).await {
                Ok(()) => PERIOD,
                Err(error) => {
                    tracing::error!("error" = %error, "looking after the conversion webhook");
                    RETRY
                }
            };
            sleep(wait).await;
        }
    }

    /// Reads the certificate, writes its CA bundle into the CRDs, and serves it.
    async fn refresh(
        &self,
        serving: &mut Certificate,
        server: &RustlsConfig,
    ) -> anyhow::Result<()> {
        let current = self.store.ensure(Some(serving), self.clock.now()).await?;
        let target = if self.url.is_empty() {
            Target::Service(&self.namespace, &self.service, self.port)
        } else {
            Target::Url(&self.url)
        };
        // Before the certificate is served: the API server trusts the new authority and the
        // previous one.
        certs::inject(&self.client, &target, &current.ca).await?;
        if current != *serving {
            // The API server must trust the new authority before it meets its certificate.
            sleep(SETTLE).await;
            server.reload_from_pem(current.chain.clone(), current.key.clone()).await?;
            tracing::info!("serving a new webhook certificate");
            *serving = current;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_for_the_name_that_is_called() {
        let of = |url| names(url, "karpenter", "ns");
        assert_eq!(of(""), ["karpenter.ns.svc", "karpenter.ns.svc.cluster.local"]);
        assert_eq!(of("https://127.0.0.1:8443"), ["127.0.0.1"]);
        assert_eq!(of("https://[::1]:8443/x"), ["::1"]);
        assert_eq!(of("https://host.example/x"), ["host.example"]);
    }
}
