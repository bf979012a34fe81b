//! A provider whose calls are measured.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{CloudProvider, Error, Policies};
use crate::api::labels;
use crate::api::v1::{EC2NodeClass, NodeClaim, NodePool};
use crate::operator::{logging, metrics};
use crate::scheduling::instance_type::InstanceType;

/// Counts and times what is asked of the provider within.
pub struct Metered<P>(Arc<P>);

impl<P: CloudProvider> Metered<P> {
    /// Measures a provider.
    #[must_use]
    pub fn new(provider: Arc<P>) -> Self {
        Self(provider)
    }

    /// Measures a call that is about a NodePool; `pool` is empty for one that is not.
    async fn measure<T>(
        &self,
        method: &str,
        pool: &str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let controller = logging::current_controller().unwrap_or_default();
        let start = Instant::now();
        let outcome = call.await;
        let labels = [controller.as_str(), method, self.0.name()];
        let time = start.elapsed().as_secs_f64();
        metrics::CLOUDPROVIDER_DURATION.with_label_values(&labels).observe(time);
        if let Err(error) = &outcome {
            metrics::provider_failed(labels, error.class(), pool);
        }
        outcome
    }
}

#[async_trait]
impl<P: CloudProvider> CloudProvider for Metered<P> {
    async fn create(
        &self,
        claim: &NodeClaim,
        class: Option<&EC2NodeClass>,
    ) -> Result<NodeClaim, Error> {
        self.measure("Create", pool_of(claim), self.0.create(claim, class)).await
    }

    async fn delete(&self, claim: &NodeClaim) -> Result<(), Error> {
        self.measure("Delete", pool_of(claim), self.0.delete(claim)).await
    }

    async fn get(&self, provider_id: &str) -> Result<NodeClaim, Error> {
        self.measure("Get", "", self.0.get(provider_id)).await
    }

    async fn list(&self) -> Result<Vec<NodeClaim>, Error> {
        self.measure("List", "", self.0.list()).await
    }

    async fn instance_types(
        &self,
        pool: &NodePool,
        class: Option<&EC2NodeClass>,
    ) -> Result<Arc<[Arc<InstanceType>]>, Error> {
        let types = self.0.instance_types(pool, class);
        self.measure("GetInstanceTypes", name_of(pool), types).await
    }

    async fn reboot(&self, claim: &NodeClaim, request: &str) -> Result<(), Error> {
        self.measure("Reboot", pool_of(claim), self.0.reboot(claim, request)).await
    }

    async fn is_drifted(
        &self,
        claim: &NodeClaim,
        pool: &NodePool,
        class: Option<&EC2NodeClass>,
    ) -> Result<Option<String>, Error> {
        let drifted = self.0.is_drifted(claim, pool, class);
        self.measure("IsDrifted", pool_of(claim), drifted).await
    }

    async fn registration_labels(
        &self,
        claim: &NodeClaim,
    ) -> Result<Option<BTreeMap<String, String>>, Error> {
        // Not measured: Karpenter's cloud provider has no such method, and the metric has only its
        // methods.
        self.0.registration_labels(claim).await
    }

    fn repair_policies(&self) -> &Policies {
        self.0.repair_policies()
    }

    fn name(&self) -> &'static str {
        self.0.name()
    }
}

/// The NodePool of a claim.
fn pool_of(claim: &NodeClaim) -> &str {
    let labels = claim.metadata.labels.as_ref();
    labels.and_then(|l| l.get(labels::NODEPOOL)).map_or("", String::as_str)
}

fn name_of(pool: &NodePool) -> &str {
    pool.metadata.name.as_deref().unwrap_or_default()
}
