//! The EC2 provider: its parts, and how they answer the controllers.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;

use self::ami::AmiFamily;
use self::clients::Clients;
use self::permissions::{Feature, Permissions};
use self::unavailable::UnavailableOfferings;
use crate::api::v1::{EC2NodeClass, NodeClaim, NodePool};
use crate::api::{annotations, conditions, conversion, hash, labels};
use crate::clock::Clock;
use crate::cloud::{CloudProvider, Detail, Error, Policies};
use crate::operator::events::{Recorder, Report, reference};
use crate::operator::settings::Settings;
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::overlay::InForce;

pub mod ami;
pub mod batcher;
pub mod cache;
pub mod capacityreservation;
mod claim;
pub mod clients;
mod drift;
pub mod errors;
pub mod filters;
pub mod flight;
pub mod instance;
pub mod instanceprofile;
pub mod instancetype;
pub mod kubelet;
pub mod launchtemplate;
pub mod nodeclass;
pub mod offered;
pub mod permissions;
pub mod placementgroup;
pub mod pricing;
pub mod repair;
pub mod securitygroup;
pub mod select;
mod setup;
pub mod ssm;
pub mod subnet;
pub mod tags;
pub mod unavailable;
pub mod userdata;
pub mod version;
pub mod zonalshift;

/// Everything that talks to AWS.
pub struct AwsProvider {
    pub clients: Clients,
    pub kube: kube::Client,
    pub clock: Clock,
    pub settings: Arc<Settings>,
    pub pricing: Arc<pricing::Provider>,
    pub unavailable_offerings: Arc<UnavailableOfferings>,
    pub instance_types: Arc<instancetype::Provider>,
    pub subnets: Arc<subnet::Provider>,
    pub security_groups: Arc<securitygroup::Provider>,
    pub amis: Arc<ami::Provider>,
    pub capacity_reservations: Arc<capacityreservation::Provider>,
    pub placement_groups: Arc<placementgroup::Provider>,
    pub instance_profiles: Arc<instanceprofile::Provider>,
    pub launch_templates: Arc<launchtemplate::Provider>,
    pub instances: Arc<instance::Provider>,
    pub version: version::Provider,
    pub permissions: Arc<Permissions>,
    pub shifts: Arc<zonalshift::Provider>,
    pub price_keeper: Option<pricing::Keeper>,
    /// Where events go, once there is a place.
    recorder: OnceLock<Recorder>,
    /// Corrections of prices and capacities; `None` where the feature gate is off.
    overlays: Option<InForce>,
    repair: Policies,
}

impl AwsProvider {
    /// Events go there from now on.
    pub fn set_recorder(&self, recorder: Recorder) {
        self.instances.set_recorder(recorder.clone());
        // A second recorder is ignored: the first one lives as long as the process.
        let _ = self.recorder.set(recorder);
    }

    /// Publishes an event on an object whose node class does not exist or is being deleted.
    fn report_class_missing<K: kube::Resource<DynamicType = ()>>(&self, object: &K) {
        if let Some(recorder) = self.recorder.get() {
            recorder.publish(Report::NodeClassMissing.on(reference(object)));
        }
    }

    /// The hash of a node class as this cluster's nodes see it.
    #[must_use]
    pub fn class_hash(&self, class: &EC2NodeClass) -> String {
        let ca = self.launch_templates.cluster().ca_bundle;
        hash::ec2_node_class_hash(class, AmiFamily::of(class).as_str(), &ca)
    }

    /// The hash that a claim is stamped with. One that brings the kubelet's settings along from
    /// v1beta1 does not depend on those of the class: what it was launched with is kept apart.
    #[must_use]
    pub fn claim_hash(&self, class: &EC2NodeClass, claim: &NodeClaim) -> String {
        let marks = claim.metadata.annotations.as_ref();
        if marks.is_some_and(|m| m.contains_key(conversion::KUBELET)) {
            let mut class = class.clone();
            class.spec.kubelet = None;
            return self.class_hash(&class);
        }
        self.class_hash(class)
    }

    /// The node class of a claim, if it is ready for launching.
    fn ready_class<'a>(
        &self,
        claim: &NodeClaim,
        class: Option<&'a EC2NodeClass>,
    ) -> Result<&'a EC2NodeClass, Error> {
        let name = &claim.spec.node_class_ref.name;
        let kind = "ec2nodeclasses.karpenter.k8s.aws";
        let Some(class) = class else {
            // As in Karpenter, a missing class counts as missing capacity: the NodeClaim is deleted
            // and its pods are scheduled again, perhaps into a pool that has a class.
            return Err(self.unresolved(claim, format!("{kind} {name:?} not found")));
        };
        if class.metadata.deletion_timestamp.is_some() {
            let why = format!("{kind} {name:?} is terminating, treating as not found");
            return Err(self.unresolved(claim, why));
        }
        let list = class.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        match conditions::get(list, conditions::READY) {
            Some(ready) if ready.status == conditions::TRUE => {
                // Ready may still speak of the spec before the last edit, so its subnets and images
                // may be those of the old spec.
                if ready.observed_generation != class.metadata.generation {
                    return Err(Error::NodeClassNotReady(
                        "nodeclass status has not been reconciled against the latest spec"
                            .to_owned(),
                    ));
                }
                Ok(class)
            }
            Some(ready) if ready.status == conditions::FALSE => {
                Err(Error::NodeClassNotReady(ready.message.clone()))
            }
            _ => Err(Error::Create {
                reason: "NodeClassReadinessUnknown".to_owned(),
                condition: "NodeClass is in Ready=Unknown".to_owned(),
                message: "resolving NodeClass readiness, NodeClass is in Ready=Unknown".into(),
            }),
        }
    }

    /// Types as the overlays have them for the claim's NodePool.
    fn overlaid(
        &self,
        claim: &NodeClaim,
        types: Arc<[Arc<InstanceType>]>,
    ) -> Result<Arc<[Arc<InstanceType>]>, Error> {
        let pool = claim.metadata.labels.as_ref().and_then(|l| l.get(labels::NODEPOOL));
        let (Some(overlays), Some(pool)) = (&self.overlays, pool) else { return Ok(types) };
        // A launch before the overlays of the pool are evaluated would choose by the wrong prices,
        // so it fails and is retried.
        let changed = overlays.store().and_then(|s| s.apply(pool, &types));
        changed.ok_or_else(|| Error::Create {
            reason: "InstanceTypeResolutionFailed".to_owned(),
            condition: "Error resolving instance types".to_owned(),
            message: format!(
                "resolving instance types, overlays of nodepool {pool:?} are not judged yet"
            )
            .into(),
        })
    }

    /// The error of a claim whose node class is not there; the claim's event says so, too.
    fn unresolved(&self, claim: &NodeClaim, why: String) -> Error {
        self.report_class_missing(claim);
        Error::InsufficientCapacity(format!("resolving ec2nodeclass, {why}").into())
    }

    /// The cluster's ARN, by which zonal shifts are looked up.
    ///
    /// # Errors
    /// When EKS cannot be asked.
    pub async fn cluster_arn(&self) -> Result<String, errors::AwsError> {
        let answer = self
            .clients
            .eks
            .describe_cluster()
            .name(&self.settings.cluster_name)
            .send()
            .await
            .map_err(|e| errors::AwsError::new("DescribeCluster", &e))?;
        let arn = answer.cluster().and_then(|c| c.arn()).unwrap_or_default();
        Ok(arn.to_owned())
    }

    /// Reads the zonal shifts of the cluster, where the settings ask for that.
    ///
    /// # Errors
    /// When zonal shifts do not apply to the cluster, or cannot be read.
    pub async fn update_zonal_shifts(&self) -> Result<(), errors::AwsError> {
        if !self.shifts.is_enabled() || self.permissions.is_off(Feature::ZonalShift) {
            return Ok(());
        }
        let arn = self.cluster_arn().await?;
        self.permissions.settle(Feature::ZonalShift, self.shifts.update(&arn).await)?;
        Ok(())
    }

    /// Checks that EC2 answers and that the credentials are good, with a dry run.
    ///
    /// # Errors
    /// Any other error of EC2, or why no answer came.
    pub async fn check_connectivity(&self) -> Result<(), errors::AwsError> {
        // EC2 answers a dry run that is allowed with the error DryRunOperation.
        let request = self.clients.ec2.describe_instance_types().dry_run(true);
        match request.send().await.map_err(|e| errors::AwsError::new("DescribeInstanceTypes", &e)) {
            Err(error) if !error.is_dry_run_success() => Err(error),
            _ => Ok(()),
        }
    }
}

/// The instance of a claim in a placement group whose partition is not known yet.
fn awaits_partition(claim: &NodeClaim) -> Option<&str> {
    let label = |key: &str| claim.metadata.labels.as_ref().and_then(|l| l.get(key));
    label(labels::PLACEMENT_GROUP_ID)?;
    label(labels::PLACEMENT_GROUP_PARTITION).filter(|p| p.is_empty())?;
    instance::parse_provider_id(claim.status.as_ref()?.provider_id.as_deref()?)
}

#[async_trait]
impl CloudProvider for AwsProvider {
    async fn create(
        &self,
        claim: &NodeClaim,
        class: Option<&EC2NodeClass>,
    ) -> Result<NodeClaim, Error> {
        // The NodeClaim's annotation may replace the kubelet settings of its class (pools that come
        // from v1beta1), but the hash below is that of the class itself.
        let own = self.ready_class(claim, class)?;
        let class = own
            .with_kubelet_of(claim.metadata.annotations.as_ref())
            .map_err(|e| Error::Other(format!("resolving the kubelet configuration, {e}")))?;
        let types = self.instance_types.list(&class).map_err(|e| Error::Create {
            reason: "InstanceTypeResolutionFailed".to_owned(),
            condition: "Error resolving instance types".to_owned(),
            message: format!("resolving instance types, {e}").into(),
        })?;
        let types = self.overlaid(claim, types)?;
        let sent = self.clock.now();
        let instance = self.instances.launch(&class, claim, &types).await?;
        if let Some(id) = &instance.reservation_id {
            self.capacity_reservations.mark_launched(id, sent);
        }
        let mut created = self.claim_of(&instance, Some(&class));
        created.metadata.annotations = Some(
            [
                (annotations::EC2NODECLASS_HASH, self.claim_hash(own, claim)),
                (
                    annotations::EC2NODECLASS_HASH_VERSION,
                    annotations::EC2NODECLASS_HASH_VERSION_VALUE.to_owned(),
                ),
                (annotations::KUBELET_DRIFT_HASH, hash::kubelet_hash(class.spec.kubelet.as_ref())),
                (
                    annotations::INSTANCE_PROFILE_NAME,
                    class
                        .status
                        .as_ref()
                        .and_then(|s| s.instance_profile.clone())
                        .unwrap_or_default(),
                ),
            ]
            .map(|(k, v)| (k.to_owned(), v))
            .into(),
        );
        Ok(created)
    }

    async fn delete(&self, claim: &NodeClaim) -> Result<(), Error> {
        let provider_id =
            claim.status.as_ref().and_then(|s| s.provider_id.as_deref()).unwrap_or_default();
        let id = instance::parse_provider_id(provider_id).ok_or_else(|| {
            Error::Other(format!(
                "provider id does not match known format (provider-id={provider_id})"
            ))
        })?;
        let outcome = self.instances.delete(id).await;
        let reservation =
            claim.metadata.labels.as_ref().and_then(|l| l.get(labels::CAPACITY_RESERVATION_ID));
        if let (Some(reservation), Err(error)) = (reservation, &outcome)
            // EC2 gives capacity back to a reservation once the instance is gone, not when its
            // termination is requested.
            && error.is_not_found()
        {
            self.capacity_reservations.mark_terminated(reservation);
        }
        outcome
    }

    async fn get(&self, provider_id: &str) -> Result<NodeClaim, Error> {
        let id = instance::parse_provider_id(provider_id).ok_or_else(|| {
            Error::Other(format!(
                "provider id does not match known format (provider-id={provider_id})"
            ))
        })?;
        let instance = self.instances.get(id).await?;
        Ok(self.claim_of(&instance, None))
    }

    async fn list(&self) -> Result<Vec<NodeClaim>, Error> {
        let instances = self.instances.list().await?;
        Ok(instances.iter().map(|i| self.claim_of(i, None)).collect())
    }

    async fn instance_types(
        &self,
        pool: &NodePool,
        class: Option<&EC2NodeClass>,
    ) -> Result<Arc<[Arc<InstanceType>]>, Error> {
        let name = &pool.spec.template.spec.node_class_ref.name;
        let usable = |c: &&EC2NodeClass| c.metadata.deletion_timestamp.is_none();
        let Some(class) = class.filter(usable) else {
            self.report_class_missing(pool);
            return Err(Error::Other(format!("resolving node class, {name:?} not found")));
        };
        let class = class
            .with_kubelet_of(pool.metadata.annotations.as_ref())
            .map_err(|e| Error::Other(format!("resolving the kubelet configuration, {e}")))?;
        self.instance_types.list(&class).map_err(|e| Error::Other(e.to_string()))
    }

    async fn is_drifted(
        &self,
        claim: &NodeClaim,
        pool: &NodePool,
        class: Option<&EC2NodeClass>,
    ) -> Result<Option<String>, Error> {
        Ok(self.drift_reason(claim, pool, class).await?.map(str::to_owned))
    }

    /// The partition of a placement group that EC2 chose for an instance is known once it runs.
    async fn registration_labels(
        &self,
        claim: &NodeClaim,
    ) -> Result<Option<BTreeMap<String, String>>, Error> {
        let Some(id) = awaits_partition(claim) else { return Ok(Some(BTreeMap::new())) };
        let partition = self.instances.get_fresh(id).await?.placement_partition;
        let label = |n: i32| (labels::PLACEMENT_GROUP_PARTITION.to_owned(), n.to_string());
        Ok(partition.map(|n| BTreeMap::from([label(n)])))
    }

    async fn reboot(&self, claim: &NodeClaim, request: &str) -> Result<(), Error> {
        let provider_id =
            claim.status.as_ref().and_then(|s| s.provider_id.as_deref()).unwrap_or_default();
        let id = instance::parse_provider_id(provider_id).ok_or_else(|| {
            Error::Other(format!(
                "provider id does not match known format (provider-id={provider_id})"
            ))
        })?;
        self.instances.may_reboot(id).await?;
        let call = self.instances.reboot(id, request);
        let failed = |error: errors::AwsError| {
            if error.is_not_found() {
                return Error::NodeClaimNotFound(error.to_string());
            }
            let text = format!("rebooting instance, {error}");
            Error::Call(Detail::from(text).of_call(error.call()))
        };
        match self.permissions.ask(Feature::Reboot, call).await {
            Ok(Some(())) => Ok(()),
            // A permission that is missing does not come by itself.
            Ok(None) => Err(Error::RebootRefused(Feature::Reboot.refusal().to_string())),
            Err(error) => Err(failed(error)),
        }
    }

    fn repair_policies(&self) -> &Policies {
        &self.repair
    }

    fn name(&self) -> &'static str {
        "aws"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_claims_without_their_partition_wait_for_it() {
        let claim = |labels: serde_json::Value| -> NodeClaim {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "c", "labels": labels}, "spec": {},
                "status": {"providerID": "aws:///us-east-1a/i-1"}}))
            .unwrap()
        };
        let (group, partition) = (labels::PLACEMENT_GROUP_ID, labels::PLACEMENT_GROUP_PARTITION);
        let wait = |labels| awaits_partition(&claim(labels)).map(str::to_owned);
        assert_eq!(wait(serde_json::json!({group: "pg-1", partition: ""})).as_deref(), Some("i-1"));
        assert_eq!(wait(serde_json::json!({group: "pg-1", partition: "2"})), None);
        assert_eq!(wait(serde_json::json!({group: "pg-1"})), None);
        assert_eq!(wait(serde_json::json!({partition: ""})), None);
    }
}
