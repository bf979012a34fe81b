//! The conversion webhook's certificate: made once, kept in a Secret, renewed in time, and written
//! into the CRDs.

use axum_server::tls_rustls::RustlsConfig;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};

use crate::api::conversion;

/// CRDs that have more than one version.
const CONVERTED: &[&str] =
    &["nodepools.karpenter.sh", "nodeclaims.karpenter.sh", "ec2nodeclasses.karpenter.k8s.aws"];

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    #[error("generating a certificate, {0}")]
    Generate(#[from] rcgen::Error),
    #[error("storing the webhook certificate, {0}")]
    Kube(#[from] kube::Error),
    #[error("storing the webhook certificate, secret {0} keeps being changed")]
    Contended(String),
}

/// How long a certificate is valid.
const VALIDITY: SignedDuration = SignedDuration::from_hours(365 * 24);
/// One with less than this left is replaced: early enough that several failed attempts, even months
/// without a running controller, do not end in an expired one.
const RENEWAL: SignedDuration = SignedDuration::from_hours(120 * 24);
/// How far back a new one is valid: the API server's clock may be behind.
const SKEW: SignedDuration = SignedDuration::from_hours(24);

/// The names that a Secret's certificate is for.
const NAMES: &str = "karpenter.sh/webhook-names";
/// When a Secret's certificate ends, RFC 3339.
const EXPIRES: &str = "karpenter.sh/webhook-expires";
const CA: &str = "ca-cert.pem";
const CHAIN: &str = "server-cert.pem";
const KEY: &str = "server-key.pem";

/// A serving certificate in PEM form.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Whom to trust: the certificate's own authority, then the one before it, whose certificate
    /// other replicas may still be serving.
    pub ca: Vec<u8>,
    pub chain: Vec<u8>,
    pub key: Vec<u8>,
}

/// Makes an authority and a serving certificate for the names; the authority's key is not kept.
fn generate(names: &[String], now: Timestamp) -> Result<Certificate, rcgen::Error> {
    let moment = |at: Timestamp| time::OffsetDateTime::from(std::time::SystemTime::from(at));
    let (from, until) = (moment(now - SKEW), moment(now + VALIDITY));
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.distinguished_name.push(DnType::CommonName, "karpenter-webhook-ca");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    (ca.not_before, ca.not_after) = (from, until);
    let ca_key = KeyPair::generate()?;
    let ca_pem = ca.self_signed(&ca_key)?.pem();
    let issuer = Issuer::new(ca, ca_key);
    let mut leaf = CertificateParams::new(names.to_vec())?;
    let name = names.first().cloned().unwrap_or_default();
    leaf.distinguished_name.push(DnType::CommonName, name);
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    (leaf.not_before, leaf.not_after) = (from, until);
    let key = KeyPair::generate()?;
    let signed = leaf.signed_by(&key, &issuer)?;
    Ok(Certificate {
        ca: ca_pem.into_bytes(),
        chain: signed.pem().into_bytes(),
        key: key.serialize_pem().into_bytes(),
    })
}

/// The certificate in its Secret, which all replicas share.
pub struct Store {
    api: Api<Secret>,
    secret: String,
    names: Vec<String>,
}

impl Store {
    /// The certificate for the names, in the Secret of that name.
    #[must_use]
    pub fn new(client: &Client, namespace: &str, secret: &str, names: Vec<String>) -> Self {
        let api = Api::namespaced(client.clone(), namespace);
        Self { api, secret: secret.to_owned(), names }
    }

    /// The certificate; a new one is made when it is missing, for other names, damaged, or near its
    /// end.
    ///
    /// `serving` is what this replica serves now: it stays trusted when it is replaced.
    ///
    /// # Errors
    /// When it can neither be read nor written.
    pub async fn ensure(
        &self,
        serving: Option<&Certificate>,
        now: Timestamp,
    ) -> Result<Certificate, CertError> {
        // Each turn lost means that another replica wrote one; three in a row mean that something
        // else is wrong.
        for _ in 0..3 {
            let found = self.api.get_opt(&self.secret).await?;
            let stored = found.as_ref().and_then(read);
            if let (Some(secret), Some(stored)) = (&found, &stored)
                && is_current(secret, &self.names, now)
                && is_usable(stored).await
            {
                return Ok(stored.clone());
            }
            let mut made = generate(&self.names, now)?;
            if let Some(old) = stored.as_ref().or(serving) {
                made.ca.extend(first_certificate(&old.ca));
            }
            match self.write(found, &made, now).await {
                Ok(()) => return Ok(made),
                // Another replica was faster: read what it wrote.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(CertError::Contended(self.secret.clone()))
    }

    async fn write(
        &self,
        old: Option<Secret>,
        made: &Certificate,
        now: Timestamp,
    ) -> Result<(), kube::Error> {
        let mut secret = old.unwrap_or_default();
        // With the version that was read, so that two replicas cannot overwrite each other's.
        let exists = secret.metadata.resource_version.is_some();
        secret.metadata.name = Some(self.secret.clone());
        let labels = secret.metadata.labels.get_or_insert_default();
        labels.insert("app.kubernetes.io/name".to_owned(), "karpenter".to_owned());
        let annotations = secret.metadata.annotations.get_or_insert_default();
        annotations.insert(NAMES.to_owned(), self.names.join(","));
        annotations.insert(EXPIRES.to_owned(), (now + VALIDITY).to_string());
        let data = secret.data.get_or_insert_default();
        for (key, pem) in [(CA, &made.ca), (CHAIN, &made.chain), (KEY, &made.key)] {
            data.insert(key.to_owned(), ByteString(pem.clone()));
        }
        if exists {
            self.api.replace(&self.secret, &PostParams::default(), &secret).await?;
        } else {
            self.api.create(&PostParams::default(), &secret).await?;
        }
        Ok(())
    }
}

/// True when the certificate is for the names and far enough from its end.
fn is_current(secret: &Secret, names: &[String], now: Timestamp) -> bool {
    let mark = |key: &str| secret.metadata.annotations.as_ref()?.get(key);
    let expires = mark(EXPIRES).and_then(|t| t.parse::<Timestamp>().ok());
    mark(NAMES).is_some_and(|made_for| *made_for == names.join(","))
        && expires.is_some_and(|t| now + RENEWAL < t)
}

fn read(secret: &Secret) -> Option<Certificate> {
    let data = secret.data.as_ref()?;
    let get = |key: &str| data.get(key).map(|b| b.0.clone());
    Some(Certificate { ca: get(CA)?, chain: get(CHAIN)?, key: get(KEY)? })
}

/// True when a server can be made of it.
async fn is_usable(certificate: &Certificate) -> bool {
    let made = RustlsConfig::from_pem(certificate.chain.clone(), certificate.key.clone()).await;
    made.is_ok() && !first_certificate(&certificate.ca).is_empty()
}

/// The first certificate of a bundle.
fn first_certificate(bundle: &[u8]) -> Vec<u8> {
    const END: &str = "-----END CERTIFICATE-----";
    let text = String::from_utf8_lossy(bundle);
    match text.find(END) {
        Some(at) => format!("{}\n", text[..at + END.len()].trim_start()).into_bytes(),
        None => Vec::new(),
    }
}

/// Where the API server finds the webhook.
pub enum Target<'a> {
    /// By URL: the controller runs outside the cluster.
    Url(&'a str),
    /// By Service: namespace, name, port.
    Service(&'a str, &'a str, u16),
}

/// Writes into the CRDs where the webhook is and whom to trust; CRDs that are missing are skipped.
///
/// # Errors
/// When the API server refuses.
pub async fn inject(client: &Client, target: &Target<'_>, ca: &[u8]) -> Result<(), kube::Error> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let bundle = ByteString(ca.to_vec());
    for name in CONVERTED {
        let Some(current) = api.get_opt(name).await? else { continue };
        // Nothing to convert: a webhook would only be one more thing that can fail.
        if current.spec.versions.len() < 2 {
            continue;
        }
        let config = client_config(target, conversion::path_of(&current.spec.group), &bundle);
        let patch = json!({"spec": {"conversion": {"strategy": "Webhook", "webhook": {
            "clientConfig": config,
            "conversionReviewVersions": conversion::REVIEW_VERSIONS}}}});
        let before = current.metadata.resource_version.clone();
        let after = api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        if after.metadata.resource_version != before {
            tracing::debug!("name" = *name, "updated the conversion webhook of the CRD");
        }
    }
    Ok(())
}

fn client_config(target: &Target<'_>, path: &str, ca: &ByteString) -> Value {
    let mut config = match target {
        Target::Url(url) => json!({
            // Null removes the other form: the API server allows only one of them.
            "service": null,
            "url": format!("{}{path}", url.trim_end_matches('/'))
        }),
        Target::Service(namespace, name, port) => json!({
            "url": null,
            "service": {"namespace": namespace, "name": name, "port": port, "path": path}
        }),
    };
    config["caBundle"] = json!(ca);
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Secret;

    fn names() -> Vec<String> {
        vec!["karpenter.kube-system.svc".to_owned(), "127.0.0.1".to_owned()]
    }

    fn secret(names: &[String], expires: Timestamp) -> Secret {
        let mut secret = Secret::default();
        let marks = secret.metadata.annotations.get_or_insert_default();
        marks.insert(NAMES.to_owned(), names.join(","));
        marks.insert(EXPIRES.to_owned(), expires.to_string());
        secret
    }

    #[tokio::test]
    async fn a_made_certificate_can_be_served() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let made = generate(&names(), crate::clock::Clock::system().now()).unwrap();
        assert!(is_usable(&made).await);
        let mut damaged = made.clone();
        damaged.chain.truncate(100);
        assert!(!is_usable(&damaged).await);
        let other = generate(&names(), crate::clock::Clock::system().now()).unwrap();
        assert!(!is_usable(&Certificate { key: other.key, ..made.clone() }).await, "wrong key");
        let bundle = [made.ca.clone(), other.ca].concat();
        assert_eq!(first_certificate(&bundle), made.ca);
    }

    #[test]
    fn a_certificate_is_renewed_before_its_end_and_for_other_names() {
        let now = Timestamp::UNIX_EPOCH;
        let fresh = secret(&names(), now + VALIDITY);
        assert!(is_current(&fresh, &names(), now));
        assert!(is_current(&fresh, &names(), now + VALIDITY - RENEWAL - SKEW));
        assert!(!is_current(&fresh, &names(), now + VALIDITY - RENEWAL));
        assert!(!is_current(&fresh, &names()[..1], now));
        assert!(!is_current(&Secret::default(), &names(), now), "someone else's");
    }
}
