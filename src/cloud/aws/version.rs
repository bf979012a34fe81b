//! The cluster's Kubernetes version.

use std::ops::RangeInclusive;

use parking_lot::RwLock;

use super::clients::Clients;
use super::errors::AwsError;
use crate::cloud::Error;

/// Minor versions of Kubernetes 1 that this release is made for.
const SUPPORTED: RangeInclusive<u32> = 26..=37;

/// Knows the version.
pub struct Provider {
    clients: Clients,
    kube: kube::Client,
    cluster: String,
    /// Ask EKS rather than the API server.
    ask_eks: bool,
    version: RwLock<Option<String>>,
}

impl Provider {
    /// A provider that has not asked yet.
    #[must_use]
    pub fn new(clients: Clients, kube: kube::Client, cluster: &str, ask_eks: bool) -> Self {
        let version = RwLock::new(None);
        Self { clients, kube, cluster: cluster.to_owned(), ask_eks, version }
    }

    /// The version as `major.minor`; asks if it is not known yet.
    ///
    /// # Errors
    /// When it is not known and cannot be asked for.
    pub async fn get(&self) -> Result<String, Error> {
        if let Some(version) = self.version.read().clone() {
            return Ok(version);
        }
        let version = self.ask().await?;
        // Not stored: `update` checks only a version that it has not seen yet.
        Ok(version)
    }

    /// Asks again; what was known stays when that fails.
    ///
    /// # Errors
    /// When the version cannot be read, or has just been found to be unsupported.
    pub async fn update(&self) -> Result<(), Error> {
        let version = self.ask().await?;
        if self.version.read().as_deref() == Some(version.as_str()) {
            return Ok(());
        }
        tracing::debug!("version" = version, "discovered kubernetes version");
        let supported = is_supported(&version);
        *self.version.write() = Some(version.clone());
        if supported {
            return Ok(());
        }
        Err(Error::Other(format!(
            "validating kubernetes version, karpenter is not compatible with kubernetes version (version={version})"
        )))
    }

    async fn ask(&self) -> Result<String, Error> {
        if self.ask_eks {
            let answer = self
                .clients
                .eks
                .describe_cluster()
                .name(&self.cluster)
                .send()
                .await
                .map_err(|e| AwsError::new("DescribeCluster", &e))
                .map_err(|e| Error::Other(format!("getting kubernetes version, {e}")))?;
            return answer.cluster().and_then(|c| c.version()).map(str::to_owned).ok_or_else(
                || Error::Other("getting kubernetes version, EKS returned none".to_owned()),
            );
        }
        let info = self
            .kube
            .apiserver_version()
            .await
            .map_err(|e| Error::Other(format!("getting kubernetes version, {e}")))?;
        // EKS has reported minor versions such as `29+`.
        Ok(format!("{}.{}", info.major, info.minor.trim_end_matches('+')))
    }
}

fn is_supported(version: &str) -> bool {
    version
        .strip_prefix("1.")
        .and_then(|minor| minor.parse().ok())
        .is_some_and(|minor: u32| SUPPORTED.contains(&minor))
}

#[cfg(test)]
mod tests {
    use super::is_supported;

    #[test]
    fn versions_have_a_range() {
        for (version, want) in
            [("1.25", false), ("1.26", true), ("1.37", true), ("1.38", false), ("2.30", false)]
        {
            assert_eq!(is_supported(version), want, "{version}");
        }
    }
}
