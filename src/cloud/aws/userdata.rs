//! User data: what an instance of each family runs at boot to join the cluster.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Taint;
use serde_json::{Map, Value};

use super::ami::AmiFamily;
use crate::api::duration::{format_go, parse_go};

pub mod al2;
pub mod al2023;
pub mod bottlerocket;
pub mod mime;
pub mod windows;

/// Bytes of user data that EC2 takes, before they are encoded.
pub const LIMIT: usize = 16_384;

/// What the user data passes to the node.
#[derive(Clone, Debug, Default)]
pub struct Bootstrap {
    pub cluster_name: String,
    pub cluster_endpoint: String,
    /// Service CIDR; needed by AL2023.
    pub cluster_cidr: Option<String>,
    /// Base64 of the API server's CA.
    pub ca_bundle: String,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    /// Kubelet settings, `maxPods` and DNS filled in.
    pub kubelet: Map<String, Value>,
    /// Local disks become one array.
    pub raid0: bool,
    /// The image binds its directories to that array without a list of them.
    pub binds_by_itself: bool,
    /// The user's own user data.
    pub custom: String,
}

/// User data that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserDataError {
    /// `spec.userData` cannot be read.
    #[error("spec.userData: {0}")]
    Custom(String),
    /// Something about the cluster is not known yet.
    #[error("{0}")]
    NotReady(String),
}

/// Base64 user data of a family.
///
/// # Errors
/// When the user's own part cannot be merged, or the cluster is not known well enough.
pub fn render(family: AmiFamily, bootstrap: &Bootstrap) -> Result<String, UserDataError> {
    let text = match family {
        AmiFamily::Al2 => al2::render(bootstrap)?,
        AmiFamily::Al2023 => al2023::render(bootstrap)?,
        AmiFamily::Bottlerocket => bottlerocket::render(bootstrap)?,
        AmiFamily::Windows2019 | AmiFamily::Windows2022 | AmiFamily::Windows2025 => {
            windows::render(bootstrap)?
        }
        AmiFamily::Custom => bootstrap.custom.clone(),
    };
    Ok(STANDARD.encode(text))
}

/// Whether the user's own user data can be merged into that of a family.
///
/// # Errors
/// Why it cannot.
pub fn check(family: AmiFamily, custom: &str) -> Result<(), UserDataError> {
    if custom.is_empty() {
        return Ok(());
    }
    // The result does not depend on the cluster's facts; an empty CIDR only keeps AL2023 from
    // asking for it.
    let cluster_cidr = Some(String::new());
    let bootstrap = Bootstrap { custom: custom.to_owned(), cluster_cidr, ..Bootstrap::default() };
    // Warnings are logged when it is rendered for a launch, not each time the class is checked.
    let quiet = tracing::subscriber::NoSubscriber::default();
    let rendered = tracing::subscriber::with_default(quiet, || render(family, &bootstrap))?;
    let bytes = STANDARD.decode(rendered).map_or(0, |b| b.len());
    if bytes > LIMIT {
        return Err(UserDataError::Custom(format!(
            "makes user data of at least {bytes} bytes, expected at most {LIMIT}: EC2 takes no more"
        )));
    }
    Ok(())
}

/// What of the user's own user data the nodes of a family never see.
#[must_use]
pub fn dropped(family: AmiFamily, custom: &str) -> Vec<String> {
    if family == AmiFamily::Bottlerocket { bottlerocket::dropped(custom) } else { Vec::new() }
}

/// Domains of labels that the NodeRestriction admission plugin does not let a kubelet set on its
/// own Node. Karpenter sets them at registration instead.
const KUBERNETES_DOMAINS: &[&str] = &["node-restriction.kubernetes.io", "kubernetes.io", "k8s.io"];

/// Labels that the kubelet may set itself.
pub(super) fn kubelet_labels(labels: &BTreeMap<String, String>) -> BTreeMap<&str, &str> {
    labels
        .iter()
        .filter(|(key, _)| {
            let domain = key.split_once('/').map_or("", |(domain, _)| domain);
            !KUBERNETES_DOMAINS.iter().any(|d| {
                domain == *d || domain.strip_suffix(d).is_some_and(|rest| rest.ends_with('.'))
            })
        })
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect()
}

/// `key=value:Effect`, without the value when there is none.
fn taint_text(taint: &Taint) -> String {
    match taint.value.as_deref() {
        Some(value) if !value.is_empty() => format!("{}={value}:{}", taint.key, taint.effect),
        _ => format!("{}:{}", taint.key, taint.effect),
    }
}

fn scalar(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A duration as Go prints it; what is no duration stays as it is.
pub(super) fn go_duration(value: &Value) -> String {
    let text = scalar(value);
    parse_go(&text).map_or(text, format_go)
}

/// Kubelet command line arguments, as AL2 and Windows take them.
pub(super) fn kubelet_args(bootstrap: &Bootstrap) -> String {
    let mut args = Vec::new();
    let labels = node_labels(bootstrap);
    if !labels.is_empty() {
        args.push(format!("--node-labels={labels:?}"));
    }
    let taints: Vec<String> = bootstrap.taints.iter().map(taint_text).collect();
    args.push(format!("--register-with-taints={:?}", taints.join(",")));
    let kubelet = &bootstrap.kubelet;
    let number = |key: &str| kubelet.get(key).filter(|v| v.is_number()).map(scalar);
    let shown_pairs = |key: &str, separator: &str, show: fn(&Value) -> String| {
        let map = kubelet.get(key).and_then(Value::as_object).filter(|m| !m.is_empty())?;
        // The text goes into the name of the launch template: another order would be another
        // template.
        let sorted: BTreeMap<_, _> = map.iter().collect();
        let list: Vec<String> =
            sorted.into_iter().map(|(k, v)| format!("{k}{separator}{}", show(v))).collect();
        Some(format!("{:?}", list.join(",")))
    };
    let pairs = |key: &str, separator: &str| shown_pairs(key, separator, scalar);
    for (flag, value) in [
        ("max-pods", number("maxPods")),
        ("pods-per-core", number("podsPerCore").filter(|n| n != "0")),
        ("system-reserved", pairs("systemReserved", "=")),
        ("kube-reserved", pairs("kubeReserved", "=")),
        ("eviction-hard", pairs("evictionHard", "<")),
        ("eviction-soft", pairs("evictionSoft", "<")),
        ("eviction-soft-grace-period", shown_pairs("evictionSoftGracePeriod", "=", go_duration)),
        ("eviction-max-pod-grace-period", number("evictionMaxPodGracePeriod")),
        ("image-gc-high-threshold", number("imageGCHighThresholdPercent")),
        ("image-gc-low-threshold", number("imageGCLowThresholdPercent")),
        ("cpu-cfs-quota", kubelet.get("cpuCFSQuota").filter(|v| v.is_boolean()).map(scalar)),
    ] {
        if let Some(value) = value {
            args.push(format!("--{flag}={value}"));
        }
    }
    args.join(" ")
}

/// `k=v,k=v` of the labels that the kubelet may set.
pub(super) fn node_labels(bootstrap: &Bootstrap) -> String {
    let labels = kubelet_labels(&bootstrap.labels);
    labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
}

/// The first DNS address of the kubelet settings.
pub(super) fn dns_ip(bootstrap: &Bootstrap) -> Option<&str> {
    bootstrap.kubelet.get("clusterDNS")?.as_array()?.first()?.as_str()
}

#[cfg(test)]
mod tests;
