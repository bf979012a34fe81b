//! Instances: launched through CreateFleet, found again by token and tag, terminated.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aws_sdk_ec2::operation::create_fleet::CreateFleetOutput;
use aws_sdk_ec2::types::{
    DefaultTargetCapacityType, Filter, FleetLaunchTemplateConfigRequest,
    FleetLaunchTemplateOverridesRequest, FleetLaunchTemplateSpecificationRequest,
    FleetOnDemandAllocationStrategy, FleetType, Instance as Ec2Instance, InstanceType as Ec2Type,
    OnDemandOptionsRequest, ResourceType, SpotAllocationStrategy, SpotOptionsRequest,
    TargetCapacitySpecificationRequest,
};
use jiff::Timestamp;

use super::clients::Clients;
use super::errors::{self, AwsError};
use super::filters;
use super::launchtemplate::{self, LaunchTemplate, TemplateError, tenancy};
use super::placementgroup;
use super::select::filter;
use super::subnet::{self, Chosen};
use super::tags::{self, CLUSTER_NAME, NODECLAIM, to_ec2};
use super::unavailable::UnavailableOfferings;
use crate::api::v1::{EC2NodeClass, NodeClaim};
use crate::api::{annotations, labels};
use crate::cloud::Error;
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::requirements::{Requirement, Requirements};

/// An instance as far as Karpenter cares.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Instance {
    pub id: String,
    pub instance_type: String,
    pub zone: String,
    pub capacity_type: String,
    pub image_id: String,
    pub state: String,
    pub launched: Option<Timestamp>,
    pub subnet_id: String,
    /// The capacity reservation that it was launched into, for reserved capacity.
    pub reservation_id: Option<String>,
    pub security_groups: BTreeSet<String>,
    pub tags: BTreeMap<String, String>,
}

impl Instance {
    /// `aws:///zone/id`.
    #[must_use]
    pub fn provider_id(&self) -> String {
        format!("aws:///{}/{}", self.zone, self.id)
    }

    /// True when it is on its way out.
    #[must_use]
    pub fn terminating(&self) -> bool {
        matches!(self.state.as_str(), "shutting-down" | "terminated")
    }

    fn of_ec2(instance: &Ec2Instance) -> Self {
        let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
        Self {
            id: text(instance.instance_id()),
            instance_type: instance.instance_type().map_or("", Ec2Type::as_str).to_owned(),
            zone: text(instance.placement().and_then(|p| p.availability_zone())),
            capacity_type: if instance.spot_instance_request_id().is_some_and(|s| !s.is_empty()) {
                labels::CAPACITY_SPOT
            } else {
                labels::CAPACITY_ON_DEMAND
            }
            .to_owned(),
            image_id: text(instance.image_id()),
            state: instance
                .state()
                .and_then(|s| s.name())
                .map_or("", aws_sdk_ec2::types::InstanceStateName::as_str)
                .to_owned(),
            launched: instance.launch_time().and_then(|t| Timestamp::from_second(t.secs()).ok()),
            subnet_id: text(instance.subnet_id()),
            reservation_id: reservation_of(instance),
            security_groups: instance
                .security_groups()
                .iter()
                .filter_map(|g| g.group_id().map(str::to_owned))
                .collect(),
            tags: instance
                .tags()
                .iter()
                .map(|t| {
                    (
                        t.key().unwrap_or_default().to_owned(),
                        t.value().unwrap_or_default().to_owned(),
                    )
                })
                .collect(),
        }
    }
}

/// The reservation that an instance was launched into, rather than happened to match.
fn reservation_of(instance: &Ec2Instance) -> Option<String> {
    let id = instance.capacity_reservation_id().filter(|id| !id.is_empty())?;
    let preference =
        instance.capacity_reservation_specification()?.capacity_reservation_preference()?;
    (preference.as_str() == "capacity-reservations-only").then(|| id.to_owned())
}

/// The instance id at the end of a provider id.
#[must_use]
pub fn parse_provider_id(provider_id: &str) -> Option<&str> {
    let rest = provider_id.strip_prefix("aws:///")?;
    let (_, id) = rest.rsplit_once('/')?;
    (!id.is_empty()).then_some(id)
}

/// Launches, lists and terminates instances.
#[derive(Debug)]
pub struct Provider {
    clients: Clients,
    cluster: String,
    unavailable: Arc<UnavailableOfferings>,
    subnets: Arc<subnet::Provider>,
    templates: Arc<launchtemplate::Provider>,
    placement_groups: Arc<placementgroup::Provider>,
}

/// One launch, worked out.
struct Launch<'a> {
    claim: &'a NodeClaim,
    capacity_type: &'static str,
    requirements: Requirements,
    templates: Vec<LaunchTemplate>,
    subnets: BTreeMap<String, Chosen>,
    tags: BTreeMap<String, String>,
}

const LIVE: &[&str] = &["pending", "running", "stopping", "stopped", "shutting-down"];

impl Provider {
    /// A provider over the given parts.
    #[must_use]
    pub fn new(
        clients: Clients,
        cluster: &str,
        unavailable: Arc<UnavailableOfferings>,
        subnets: Arc<subnet::Provider>,
        templates: Arc<launchtemplate::Provider>,
        placement_groups: Arc<placementgroup::Provider>,
    ) -> Self {
        let cluster = cluster.to_owned();
        Self { clients, cluster, unavailable, subnets, templates, placement_groups }
    }

    /// Launches the claim's instance, or returns the one that an earlier attempt launched.
    ///
    /// The tag with the claim's name is written by the launch itself and the fleet's client token
    /// comes from the claim's UID, so a launch whose answer was lost is found, not repeated.
    ///
    /// # Errors
    /// By class: no capacity, node class not ready, launch failed.
    pub async fn launch(
        &self,
        class: &EC2NodeClass,
        claim: &NodeClaim,
        types: &[Arc<InstanceType>],
    ) -> Result<Instance, Error> {
        if let Some(found) = self.find_by_claim(claim).await? {
            return Ok(found);
        }
        let mut tags = tags::of(class, claim, &self.cluster)
            .map_err(|e| Error::NodeClassNotReady(e.to_string()))?;
        tags.insert(NODECLAIM.to_owned(), claim.metadata.name.clone().unwrap_or_default());
        match self.launch_once(class, claim, types, &tags).await {
            Err(LaunchError::TemplateGone) => {
                self.launch_once(class, claim, types, &tags).await.map_err(Into::into)
            }
            other => other.map_err(Into::into),
        }
    }

    /// The instance that carries the claim's name, if one lives.
    async fn find_by_claim(&self, claim: &NodeClaim) -> Result<Option<Instance>, Error> {
        let name = claim.metadata.name.clone().unwrap_or_default();
        let found = self
            .describe(vec![
                filter(&format!("tag:{NODECLAIM}"), vec![name]),
                filter(&format!("tag:{CLUSTER_NAME}"), vec![self.cluster.clone()]),
            ])
            .await
            .map_err(|e| create_error("Error creating fleet request", &e))?;
        Ok(found.into_iter().find(|i| !i.terminating()))
    }

    async fn launch_once(
        &self,
        class: &EC2NodeClass,
        claim: &NodeClaim,
        types: &[Arc<InstanceType>],
        tags: &BTreeMap<String, String>,
    ) -> Result<Instance, LaunchError> {
        let requirements = Requirements::from_api(&claim.spec.requirements);
        let types = filters::for_launch(types, claim);
        if types.is_empty() {
            return Err(Error::InsufficientCapacity(
                "all requested instance types were unavailable during launch".to_owned(),
            )
            .into());
        }
        let capacity_type = filters::capacity_type(&types, &requirements);
        let subnets = self.subnets.zonal_subnets_for_launch(class, &types, capacity_type);
        if subnets.is_empty() {
            return Err(Error::Create {
                reason: "SubnetResolutionFailed".to_owned(),
                condition: "Error getting subnets".to_owned(),
                message: "getting subnets, no subnets matched selector".to_owned(),
            }
            .into());
        }
        // Templates must not differ from claim to claim, or each launch would make its own.
        let mut shared_tags = tags.clone();
        shared_tags.remove(NODECLAIM);
        // While EC2 cannot be asked, what was known before has to do.
        let placement = match self.placement_groups.get(class).await {
            Ok(group) => group,
            Err(_) => self.placement_groups.known(class),
        };
        let templates = self
            .templates
            .ensure_all(&launchtemplate::Launch {
                class,
                claim,
                types: &types,
                capacity_type,
                tenancy: tenancy(&requirements),
                tags: &shared_tags,
                placement: placement.as_ref(),
            })
            .await
            .map_err(template_error)?;
        let mut narrowed = requirements;
        narrowed.add(Requirement::is(labels::CAPACITY_TYPE, capacity_type));
        let launch = Launch {
            claim,
            capacity_type,
            requirements: narrowed,
            templates,
            subnets,
            tags: tags.clone(),
        };
        let answer = self.create_fleet(&launch, class).await;
        let used: Vec<String> = answer.as_ref().map(|a| subnets_of(a)).unwrap_or_default();
        self.subnets.release_unused(launch.subnets.values(), &used);
        match answer {
            Ok(answer) => self.read_answer(&launch, &answer).map_err(LaunchError::Failed),
            Err(error) if error.is_launch_template_not_found() => {
                self.templates.invalidate(&launch.templates);
                Err(LaunchError::TemplateGone)
            }
            Err(error) if error.is_token_mismatch() => match self.find_by_claim(claim).await? {
                Some(found) => Ok(found),
                None => Err(create_error("Error creating fleet request", &error).into()),
            },
            Err(error) => Err(create_error("Error creating fleet request", &error).into()),
        }
    }

    async fn create_fleet(
        &self,
        launch: &Launch<'_>,
        class: &EC2NodeClass,
    ) -> Result<CreateFleetOutput, AwsError> {
        let configs = fleet_configs(launch);
        if configs.is_empty() {
            return Err(AwsError {
                operation: "CreateFleet",
                code: "NoOfferings".to_owned(),
                message: "no capacity offerings are currently available given the constraints"
                    .to_owned(),
            });
        }
        let spot = launch.capacity_type == labels::CAPACITY_SPOT;
        let marks = launch.claim.metadata.annotations.as_ref();
        let marked = |key: &str| marks.is_some_and(|a| a.contains_key(key));
        let prioritized = marked(annotations::PRICE_OVERLAY_APPLIED);
        let relaxed =
            marks.and_then(|a| a.get(annotations::MIN_VALUES_RELAXED)).is_some_and(|v| v == "true");
        let mut request = self
            .clients
            .ec2
            .create_fleet()
            .r#type(FleetType::Instant)
            .client_token(client_token(launch))
            .set_context(class.spec.context.clone().filter(|_| !relaxed))
            .set_launch_template_configs(Some(configs))
            .target_capacity_specification(
                TargetCapacitySpecificationRequest::builder()
                    .total_target_capacity(1)
                    .default_target_capacity_type(if spot {
                        DefaultTargetCapacityType::Spot
                    } else {
                        DefaultTargetCapacityType::OnDemand
                    })
                    .build(),
            );
        for kind in [ResourceType::Instance, ResourceType::Volume, ResourceType::Fleet] {
            request = request.tag_specifications(tags::specification(kind, &launch.tags));
        }
        request = if spot {
            request.spot_options(
                SpotOptionsRequest::builder()
                    .allocation_strategy(if prioritized {
                        SpotAllocationStrategy::CapacityOptimizedPrioritized
                    } else {
                        SpotAllocationStrategy::PriceCapacityOptimized
                    })
                    .build(),
            )
        } else {
            request.on_demand_options(
                OnDemandOptionsRequest::builder()
                    .allocation_strategy(if prioritized {
                        FleetOnDemandAllocationStrategy::Prioritized
                    } else {
                        FleetOnDemandAllocationStrategy::LowestPrice
                    })
                    .build(),
            )
        };
        request.send().await.map_err(|e| AwsError::new("CreateFleet", &e))
    }

    fn read_answer(
        &self,
        launch: &Launch<'_>,
        answer: &CreateFleetOutput,
    ) -> Result<Instance, Error> {
        let mut texts = BTreeSet::new();
        let mut all_unfulfillable = !answer.errors().is_empty();
        for error in answer.errors() {
            let code = error.error_code().unwrap_or_default();
            texts.insert(format!("{code}: {}", error.error_message().unwrap_or_default()));
            let spot_role = code == errors::SPOT_ROLE_MISSING;
            all_unfulfillable &= spot_role || errors::is_unfulfillable(code);
            if spot_role {
                self.unavailable.mark_capacity_type(labels::CAPACITY_SPOT);
            }
            let place = error.launch_template_and_overrides().and_then(|l| l.overrides());
            let (Some(place), true) = (place, errors::is_unfulfillable(code)) else { continue };
            let kind = place.instance_type().map_or("", Ec2Type::as_str);
            let zone = place.availability_zone().unwrap_or_default();
            self.unavailable.mark(code, launch.capacity_type, kind, zone);
            if code == "InsufficientFreeAddressesInSubnet"
                && let Some(subnet) = place.subnet_id()
            {
                self.unavailable.mark_subnet(subnet);
                self.subnets.mark_exhausted(subnet);
            }
        }
        if let Some(instance) = instance_of(launch, answer) {
            return Ok(instance);
        }
        let text = texts.into_iter().collect::<Vec<_>>().join("; ");
        let message = format!("with fleet error(s), {text}");
        if all_unfulfillable {
            return Err(Error::InsufficientCapacity(message));
        }
        let (reason, condition) = errors::launch_failure(&text);
        Err(Error::Create {
            reason: reason.to_owned(),
            condition: condition.to_owned(),
            message: format!("creating instance, {message}"),
        })
    }

    /// An instance by id.
    ///
    /// # Errors
    /// [`Error::NodeClaimNotFound`] when it does not exist or is terminated.
    pub async fn get(&self, id: &str) -> Result<Instance, Error> {
        let answer = self
            .clients
            .ec2
            .describe_instances()
            .instance_ids(id)
            .filters(live_filter())
            .send()
            .await
            .map_err(|e| AwsError::new("DescribeInstances", &e));
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if error.is_not_found() => {
                return Err(Error::NodeClaimNotFound(error.to_string()));
            }
            Err(error) => {
                return Err(Error::Other(format!("failed to describe ec2 instances, {error}")));
            }
        };
        answer
            .reservations()
            .iter()
            .flat_map(|r| r.instances())
            .next()
            .map(Instance::of_ec2)
            .ok_or_else(|| Error::NodeClaimNotFound("instance not found".to_owned()))
    }

    /// Every instance of this cluster that Karpenter launched.
    ///
    /// # Errors
    /// When EC2 cannot be asked.
    pub async fn list(&self) -> Result<Vec<Instance>, Error> {
        self.describe(vec![
            filter("tag-key", vec![labels::NODEPOOL.to_owned()]),
            filter("tag-key", vec![labels::EC2NODECLASS.to_owned()]),
            filter(&format!("tag:{CLUSTER_NAME}"), vec![self.cluster.clone()]),
        ])
        .await
        .map_err(|e| Error::Other(format!("describing ec2 instances, {e}")))
    }

    async fn describe(&self, filters: Vec<Filter>) -> Result<Vec<Instance>, AwsError> {
        let mut pages = self
            .clients
            .ec2
            .describe_instances()
            .set_filters(Some(filters))
            .filters(live_filter())
            .into_paginator()
            .page_size(1000)
            .send();
        let mut list = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| AwsError::new("DescribeInstances", &e))?;
            list.extend(
                page.reservations().iter().flat_map(|r| r.instances()).map(Instance::of_ec2),
            );
        }
        Ok(list)
    }

    /// Asks for an instance's termination.
    ///
    /// # Errors
    /// [`Error::NodeClaimNotFound`] once it is gone.
    pub async fn delete(&self, id: &str) -> Result<(), Error> {
        let instance = self.get(id).await?;
        if instance.terminating() {
            return Ok(());
        }
        let answer = self.clients.ec2.terminate_instances().instance_ids(id).send().await;
        match answer.map_err(|e| AwsError::new("TerminateInstances", &e)) {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Err(Error::NodeClaimNotFound(error.to_string())),
            Err(error) => Err(Error::Other(format!("terminating instance, {error}"))),
        }
    }

    /// Adds tags to an instance.
    ///
    /// # Errors
    /// [`Error::NodeClaimNotFound`] when it is gone.
    pub async fn tag(&self, id: &str, tags: &BTreeMap<String, String>) -> Result<(), Error> {
        let answer =
            self.clients.ec2.create_tags().resources(id).set_tags(Some(to_ec2(tags))).send().await;
        match answer.map_err(|e| AwsError::new("CreateTags", &e)) {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Err(Error::NodeClaimNotFound(error.to_string())),
            Err(error) => Err(Error::Other(format!("tagging instance, {error}"))),
        }
    }
}

enum LaunchError {
    TemplateGone,
    Failed(Error),
}

impl From<Error> for LaunchError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<LaunchError> for Error {
    fn from(error: LaunchError) -> Self {
        match error {
            LaunchError::Failed(error) => error,
            LaunchError::TemplateGone => Self::Create {
                reason: "LaunchTemplateNotFound".to_owned(),
                condition: "Launch template used for instance launch wasn't found".to_owned(),
                message: "launch template not found".to_owned(),
            },
        }
    }
}

fn live_filter() -> Filter {
    filter("instance-state-name", LIVE.iter().map(|s| (*s).to_owned()).collect())
}

fn create_error(prefix: &str, error: &AwsError) -> Error {
    let (reason, condition) = errors::launch_failure(&error.to_string());
    Error::Create {
        reason: reason.to_owned(),
        condition: format!("{prefix}: {condition}"),
        message: format!("creating instance, {error}"),
    }
}

fn template_error(error: TemplateError) -> LaunchError {
    let text = error.to_string();
    match error {
        TemplateError::NotReady(_) => Error::NodeClassNotReady(text),
        TemplateError::UserData(_) | TemplateError::Aws { .. } => {
            let (reason, condition) = errors::launch_failure(&text);
            Error::Create {
                reason: reason.to_owned(),
                condition: format!("Error getting launch template configs: {condition}"),
                message: format!("getting launch template configs, {text}"),
            }
        }
    }
    .into()
}

/// The same launch asked for again has the same token; one with other offerings, another.
fn client_token(launch: &Launch<'_>) -> String {
    let uid = launch.claim.metadata.uid.as_deref().unwrap_or_default();
    let mut text = format!("{uid}/{}", launch.capacity_type);
    for template in &launch.templates {
        text.push_str(&template.name);
        for kind in &template.instance_types {
            text.push_str(&kind.name);
            for offering in kind.compatible_offerings(&launch.requirements) {
                text.push_str(offering.zone());
            }
        }
    }
    for choice in launch.subnets.values() {
        text.push_str(&choice.subnet.id);
    }
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, text.as_bytes()).to_string()
}

fn fleet_configs(launch: &Launch<'_>) -> Vec<FleetLaunchTemplateConfigRequest> {
    launch
        .templates
        .iter()
        .filter_map(|template| {
            let overrides = overrides(launch, template);
            (!overrides.is_empty()).then(|| {
                FleetLaunchTemplateConfigRequest::builder()
                    .launch_template_specification(
                        FleetLaunchTemplateSpecificationRequest::builder()
                            .launch_template_name(&template.name)
                            .version("$Latest")
                            .build(),
                    )
                    .set_overrides(Some(overrides))
                    .build()
            })
        })
        .collect()
}

fn overrides(
    launch: &Launch<'_>,
    template: &LaunchTemplate,
) -> Vec<FleetLaunchTemplateOverridesRequest> {
    let mut list = Vec::new();
    for instance_type in &template.instance_types {
        let mut seen = BTreeSet::new();
        for offering in instance_type.compatible_offerings(&launch.requirements) {
            let zone = offering.zone();
            let Some(choice) = launch.subnets.get(zone) else { continue };
            if !seen.insert(zone.to_owned()) {
                continue;
            }
            list.push(
                FleetLaunchTemplateOverridesRequest::builder()
                    .instance_type(Ec2Type::from(&*instance_type.name))
                    .subnet_id(&choice.subnet.id)
                    .image_id(&template.image_id)
                    .availability_zone(zone)
                    .priority(offering.price)
                    .build(),
            );
        }
    }
    list
}

fn subnets_of(answer: &CreateFleetOutput) -> Vec<String> {
    answer
        .instances()
        .iter()
        .filter_map(|i| i.launch_template_and_overrides()?.overrides()?.subnet_id())
        .map(str::to_owned)
        .collect()
}

fn instance_of(launch: &Launch<'_>, answer: &CreateFleetOutput) -> Option<Instance> {
    let instance = answer.instances().iter().find(|i| !i.instance_ids().is_empty())?;
    let place = instance.launch_template_and_overrides().and_then(|l| l.overrides());
    let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
    let kind = instance
        .instance_type()
        .or_else(|| place.and_then(|p| p.instance_type()))
        .map_or("", Ec2Type::as_str)
        .to_owned();
    let image = place.and_then(|p| p.image_id()).map(str::to_owned).or_else(|| {
        let holds = |t: &&LaunchTemplate| t.instance_types.iter().any(|i| *i.name == *kind);
        launch.templates.iter().find(holds).map(|t| t.image_id.clone())
    });
    Some(Instance {
        id: instance.instance_ids().first()?.clone(),
        instance_type: kind,
        zone: text(place.and_then(|p| p.availability_zone())),
        capacity_type: launch.capacity_type.to_owned(),
        image_id: image.unwrap_or_default(),
        state: "pending".to_owned(),
        subnet_id: text(place.and_then(|p| p.subnet_id())),
        tags: launch.tags.clone(),
        ..Instance::default()
    })
}

#[cfg(test)]
mod tests {
    use super::parse_provider_id;

    #[test]
    fn provider_ids_end_in_the_instance_id() {
        assert_eq!(parse_provider_id("aws:///us-east-1b/i-0cf1"), Some("i-0cf1"));
        for bad in ["", "aws:///", "gce:///a/b", "aws:///us-east-1b/"] {
            assert_eq!(parse_provider_id(bad), None, "{bad}");
        }
    }
}
