//! The conversion webhook's certificate: made once, kept in a Secret, told to the CRDs.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
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
    #[error("secret {0} has no {1}")]
    Incomplete(String, &'static str),
}

/// A certificate in PEM form.
#[derive(Clone)]
pub struct Certificate {
    pub ca: Vec<u8>,
    pub chain: Vec<u8>,
    pub key: Vec<u8>,
}

/// Makes a CA and a serving certificate for the names.
fn generate(names: &[String]) -> Result<Certificate, rcgen::Error> {
    let now = time_now();
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.distinguished_name.push(DnType::CommonName, "karpenter-webhook-ca");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    (ca.not_before, ca.not_after) = now;
    let ca_key = KeyPair::generate()?;
    let ca_pem = ca.self_signed(&ca_key)?.pem();
    let issuer = Issuer::new(ca, ca_key);
    let mut leaf = CertificateParams::new(names.to_vec())?;
    leaf.distinguished_name.push(DnType::CommonName, names[0].clone());
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    (leaf.not_before, leaf.not_after) = now;
    let key = KeyPair::generate()?;
    let signed = leaf.signed_by(&key, &issuer)?;
    Ok(Certificate {
        ca: ca_pem.into_bytes(),
        chain: signed.pem().into_bytes(),
        key: key.serialize_pem().into_bytes(),
    })
}

/// From yesterday, ten years long: the Secret can be deleted to get a new one.
fn time_now() -> (time::OffsetDateTime, time::OffsetDateTime) {
    let now = time::OffsetDateTime::from(std::time::SystemTime::now());
    let day = Duration::from_secs(24 * 3600);
    (now - day, now + 3650 * day)
}

/// Reads the certificate from its Secret, or makes it there.
///
/// # Errors
/// When it can neither be read nor written.
pub async fn ensure(
    client: &Client,
    namespace: &str,
    secret: &str,
    names: &[String],
) -> Result<Certificate, CertError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    for _ in 0..3 {
        if let Some(found) = api.get_opt(secret).await?
            && let Some(certificate) = read(&found, names)
        {
            return Ok(certificate);
        }
        let made = generate(names)?;
        let object = Secret {
            metadata: ObjectMeta {
                name: Some(secret.to_owned()),
                labels: Some(
                    [("app.kubernetes.io/name".to_owned(), "karpenter".to_owned())].into(),
                ),
                annotations: Some([(NAMES.to_owned(), names.join(","))].into()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([
                ("ca-cert.pem".to_owned(), ByteString(made.ca.clone())),
                ("server-cert.pem".to_owned(), ByteString(made.chain.clone())),
                ("server-key.pem".to_owned(), ByteString(made.key.clone())),
            ])),
            ..Secret::default()
        };
        let written = match api.get_opt(secret).await? {
            None => api.create(&PostParams::default(), &object).await,
            Some(old) => {
                let mut object = object;
                object.metadata.resource_version = old.metadata.resource_version;
                api.replace(secret, &PostParams::default(), &object).await
            }
        };
        match written {
            Ok(_) => return Ok(made),
            // Another replica was faster: read what it wrote.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(CertError::Incomplete(secret.to_owned(), "certificate"))
}

/// The names that a Secret's certificate is for.
const NAMES: &str = "karpenter.sh/webhook-names";

fn read(secret: &Secret, names: &[String]) -> Option<Certificate> {
    let made_for = secret.metadata.annotations.as_ref()?.get(NAMES)?;
    if *made_for != names.join(",") {
        return None;
    }
    let data = secret.data.as_ref()?;
    let get = |key: &str| data.get(key).map(|b| b.0.clone());
    Some(Certificate {
        ca: get("ca-cert.pem")?,
        chain: get("server-cert.pem")?,
        key: get("server-key.pem")?,
    })
}

/// Where the API server finds the webhook.
pub enum Target<'a> {
    /// By URL: the controller runs outside the cluster.
    Url(&'a str),
    /// By Service: namespace, name, port.
    Service(&'a str, &'a str, u16),
}

/// Tells the CRDs where the webhook is and whom to trust; CRDs that are missing are skipped.
///
/// # Errors
/// When the API server refuses.
pub async fn inject(client: &Client, target: &Target<'_>, ca: &[u8]) -> Result<(), kube::Error> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let bundle = ByteString(ca.to_vec());
    for name in CONVERTED {
        let Some(current) = api.get_opt(name).await? else { continue };
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

    #[test]
    fn a_certificate_is_a_chain_to_its_ca() {
        let made = generate(&["karpenter.kube-system.svc".to_owned(), "127.0.0.1".to_owned()]);
        let made = made.unwrap();
        for pem in [&made.ca, &made.chain] {
            assert!(pem.starts_with(b"-----BEGIN CERTIFICATE-----"));
        }
        assert!(String::from_utf8_lossy(&made.key).contains("PRIVATE KEY"));
    }
}
