//! The provider trait over the cloud in process, with the two controllers that are a provider's own
//! business: instances without NodeClaim are removed, announced interruptions are acted upon.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use karpenter_model::cloud::{Cloud, CloudError, Instance, Life};
use kube::Api;
use kube::api::{DeleteParams, ObjectMeta};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::api::conditions;
use crate::api::v1::{EC2NodeClass, NodeClaim, NodeClaimSpec, NodeClaimStatus, NodePool};
use crate::cloud::{CloudProvider, Error, Policies, RepairPolicy};
use crate::controllers::Context;
use crate::disruption::repair::Action;
use crate::scheduling::instance_type::InstanceType;

/// Instances without a NodeClaim are left alone while they are younger than this.
const ORPHAN_AGE: Duration = Duration::from_secs(30);
/// Time between looks for instances without a NodeClaim.
const ORPHAN_PERIOD: Duration = Duration::from_secs(120);
/// Time between looks for announced interruptions.
const NOTICE_PERIOD: Duration = Duration::from_secs(2);

const TOLERATION: Duration = Duration::from_secs(30 * 60);

/// A Node that is not ready.
const NOT_READY: RepairPolicy = RepairPolicy {
    condition: "Ready",
    status: "False",
    reason: "",
    toleration: TOLERATION,
    drain: Some(TOLERATION),
    priority: 0,
    action: Action::Replace,
};

/// What is repaired in the model: nodes that are not ready or not heard of are replaced, nodes with a
/// fault of their accelerators whose reason is an Xid are rebooted.
const REPAIR_POLICIES: &[RepairPolicy] = &[
    NOT_READY,
    RepairPolicy { status: "Unknown", reason: ".*", ..NOT_READY },
    RepairPolicy {
        condition: "AcceleratedHardwareReady",
        reason: "^Xid",
        toleration: Duration::from_secs(10 * 60),
        drain: Some(Duration::from_secs(5 * 60)),
        action: Action::Reboot,
        ..NOT_READY
    },
];

/// A provider of the cloud in process.
pub struct ModelProvider {
    cloud: Arc<Cloud>,
    repair: Policies,
}

impl ModelProvider {
    /// A provider over a cloud.
    #[must_use]
    pub fn new(cloud: Arc<Cloud>) -> Self {
        Self { cloud, repair: Policies::new(REPAIR_POLICIES).unwrap_or_default() }
    }

    /// Starts the provider's own controllers.
    pub fn start(&self, ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
        let (context, cloud) = (Arc::clone(ctx), Arc::clone(&self.cloud));
        tasks.spawn(async move {
            context.cluster.until_listed().await;
            loop {
                // What cannot be looked up now is looked up in the next round.
                let _ = collect(&context, &cloud).await;
                sleep(ORPHAN_PERIOD).await;
            }
        });
        let (context, cloud) = (Arc::clone(ctx), Arc::clone(&self.cloud));
        tasks.spawn(async move {
            context.cluster.until_listed().await;
            loop {
                interruptions(&context, &cloud).await;
                sleep(NOTICE_PERIOD).await;
            }
        });
    }
}

async fn collect(ctx: &Context, cloud: &Cloud) -> Result<(), Error> {
    // Instances first: a claim that is made meanwhile must not look missing.
    let instances = cloud.list().await.map_err(convert)?;
    let claims = Api::<NodeClaim>::all(ctx.client.clone());
    let claims = claims.list(&Default::default()).await;
    let claims = claims.map_err(|e| Error::Other(e.to_string()))?.items;
    let known: BTreeSet<&str> =
        claims.iter().filter_map(|c| c.status.as_ref()?.provider_id.as_deref()).collect();
    // A launch that was cut short finds its instance by its token.
    let awaited: BTreeSet<&str> = claims.iter().filter_map(|c| c.metadata.uid.as_deref()).collect();
    for instance in &instances {
        let young = ctx.clock.since(instance.launched) <= ORPHAN_AGE;
        let owned = known.contains(instance.provider_id.as_str())
            || awaited.contains(instance.token.as_str());
        if !young && !owned && !matches!(instance.life, Life::Ending(_)) {
            let _ = cloud.terminate(&instance.provider_id).await;
        }
    }
    Ok(())
}

async fn interruptions(ctx: &Context, cloud: &Cloud) {
    let claims = Api::<NodeClaim>::all(ctx.client.clone());
    for id in cloud.notices() {
        let claim = ctx.cluster.claim_by_provider_id(&id);
        let name = claim.and_then(|c| c.metadata.name.clone());
        let handled = match name {
            Some(name) => match claims.delete(&name, &DeleteParams::default()).await {
                Ok(_) => true,
                Err(kube::Error::Api(status)) => status.code == 404,
                Err(_) => false,
            },
            None => true,
        };
        if handled {
            cloud.handled(&id);
        }
    }
}

fn convert(error: CloudError) -> Error {
    match error {
        CloudError::NotFound(text) => Error::NodeClaimNotFound(text),
        CloudError::InsufficientCapacity(text) => Error::InsufficientCapacity(text.into()),
        CloudError::Throttled => Error::Call("RequestLimitExceeded".into()),
        CloudError::Failed(text) => Error::Call(text.into()),
    }
}

/// An instance as the provider shows it.
fn to_claim(instance: &Instance) -> NodeClaim {
    let ending = if let Life::Ending(at) = instance.life { Some(Time(at)) } else { None };
    NodeClaim {
        metadata: ObjectMeta {
            name: Some(instance.claim.clone()),
            labels: Some(instance.labels.clone()),
            annotations: Some(BTreeMap::new()),
            creation_timestamp: Some(Time(instance.launched)),
            deletion_timestamp: ending,
            ..ObjectMeta::default()
        },
        spec: NodeClaimSpec::default(),
        status: Some(NodeClaimStatus {
            provider_id: Some(instance.provider_id.clone()),
            image_id: Some("image".to_owned()),
            capacity: Some(instance.capacity.to_quantities()),
            allocatable: Some(instance.allocatable.to_quantities()),
            ..NodeClaimStatus::default()
        }),
    }
}

#[async_trait]
impl CloudProvider for ModelProvider {
    async fn create(
        &self,
        claim: &NodeClaim,
        class: Option<&EC2NodeClass>,
    ) -> Result<NodeClaim, Error> {
        let list = class.and_then(|c| c.status.as_ref()).map(|s| s.conditions.as_slice());
        let ready = list.and_then(|list| conditions::get(list, conditions::READY));
        if let Some(ready) = ready.filter(|r| r.status == conditions::FALSE) {
            return Err(Error::NodeClassNotReady(ready.message.clone()));
        }
        self.cloud.launch(claim).await.map(|i| to_claim(&i)).map_err(convert)
    }

    async fn delete(&self, claim: &NodeClaim) -> Result<(), Error> {
        let id = claim.status.as_ref().and_then(|s| s.provider_id.as_deref()).unwrap_or_default();
        self.cloud.terminate(id).await.map(|_| ()).map_err(convert)
    }

    async fn get(&self, provider_id: &str) -> Result<NodeClaim, Error> {
        self.cloud.describe(provider_id).await.map(|i| to_claim(&i)).map_err(convert)
    }

    async fn list(&self) -> Result<Vec<NodeClaim>, Error> {
        let found = self.cloud.list().await.map_err(convert)?;
        Ok(found.iter().map(|i| to_claim(i)).collect())
    }

    async fn instance_types(
        &self,
        _pool: &NodePool,
        _class: Option<&EC2NodeClass>,
    ) -> Result<Arc<[Arc<InstanceType>]>, Error> {
        Ok(self.cloud.instance_types())
    }

    async fn is_drifted(
        &self,
        claim: &NodeClaim,
        _pool: &NodePool,
        _class: Option<&EC2NodeClass>,
    ) -> Result<Option<String>, Error> {
        Ok(self.cloud.drift_of(claim.metadata.name.as_deref().unwrap_or_default()))
    }

    fn repair_policies(&self) -> &Policies {
        &self.repair
    }

    async fn reboot(&self, claim: &NodeClaim, request: &str) -> Result<(), Error> {
        let id = claim.status.as_ref().and_then(|s| s.provider_id.as_deref()).unwrap_or_default();
        self.cloud.reboot(id, request).await.map_err(convert)
    }

    fn name(&self) -> &'static str {
        "model"
    }
}
