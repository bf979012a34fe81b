//! Launch templates: one for each distinct way of launching, removed when it is no longer used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_ec2::types::{
    CapacityReservationPreference, DefaultTargetCapacityType,
    LaunchTemplateBlockDeviceMappingRequest, LaunchTemplateCapacityReservationSpecificationRequest,
    LaunchTemplateEbsBlockDeviceRequest, LaunchTemplateEnclaveOptionsRequest,
    LaunchTemplateHttpTokensState, LaunchTemplateIamInstanceProfileSpecificationRequest,
    LaunchTemplateInstanceMetadataEndpointState, LaunchTemplateInstanceMetadataOptionsRequest,
    LaunchTemplateInstanceMetadataProtocolIpv6, LaunchTemplateInstanceMetadataTagsState,
    LaunchTemplateInstanceNetworkInterfaceSpecificationRequest, LaunchTemplatePlacementRequest,
    LaunchTemplateTagSpecificationRequest, LaunchTemplatesMonitoringRequest,
    RequestLaunchTemplateData, ResourceType, Tenancy, VolumeType,
};
use k8s_openapi::api::core::v1::Taint;
use parking_lot::Mutex;
use serde_json::{Map, Value};

use super::ami::AmiFamily;
use super::clients::Clients;
use super::errors::AwsError;
use super::select::filter;
use super::tags::{self, CLUSTER_NAME, to_ec2};
use super::userdata::{self, Bootstrap, UserDataError};
use crate::api::v1::{Ami, EC2NodeClass, NodeClaim};
use crate::api::{labels, taints};
use crate::clock::Clock;
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::quantity;
use crate::scheduling::requirements::{Allow, Requirement, Requirements};
use crate::scheduling::resources::Name;

/// How long a launch template is kept after its last use.
const TTL: Duration = Duration::from_secs(60);
/// Names begin so.
const PREFIX: &str = "karpenter.k8s.aws/";

/// What every node of the cluster is told.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    pub name: String,
    pub endpoint: String,
    /// Service CIDR, once known.
    pub cidr: Option<String>,
    /// Base64 CA of the API server.
    pub ca_bundle: String,
    /// Address of the DNS Service, once known.
    pub dns_ip: Option<String>,
    /// Reserved capacity is in use.
    pub reserved_capacity: bool,
}

/// A launch template that exists in EC2, and the types that may use it.
#[derive(Clone, Debug)]
pub struct LaunchTemplate {
    pub name: String,
    pub id: String,
    pub image_id: String,
    pub instance_types: Vec<Arc<InstanceType>>,
}

/// Why there is no launch template.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TemplateError {
    /// The node class is not ready for it.
    #[error("{0}")]
    NotReady(String),
    /// User data cannot be made.
    #[error(transparent)]
    UserData(#[from] UserDataError),
    /// EC2 refused.
    #[error("creating launch template, {0}")]
    Aws(#[from] AwsError),
}

/// Everything that goes into one launch template.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: String,
    pub image_id: String,
    pub user_data: String,
    pub data: RequestLaunchTemplateData,
    pub instance_types: Vec<Arc<InstanceType>>,
}

#[derive(Clone, Debug)]
struct Known {
    id: String,
    until: jiff::Timestamp,
}

/// Makes and removes launch templates.
#[derive(Debug)]
pub struct Provider {
    clients: Clients,
    clock: Clock,
    cluster: parking_lot::RwLock<Cluster>,
    known: Mutex<BTreeMap<String, Known>>,
    making: tokio::sync::Mutex<()>,
}

impl Provider {
    /// A provider that knows no template yet.
    #[must_use]
    pub fn new(clients: Clients, clock: &Clock, cluster: Cluster) -> Self {
        Self {
            clients,
            clock: clock.clone(),
            cluster: parking_lot::RwLock::new(cluster),
            known: Mutex::default(),
            making: tokio::sync::Mutex::new(()),
        }
    }

    /// What nodes are told.
    #[must_use]
    pub fn cluster(&self) -> Cluster {
        self.cluster.read().clone()
    }

    /// Reads the cluster's service CIDR from EKS once.
    ///
    /// # Errors
    /// When EKS cannot be asked or tells none.
    pub async fn resolve_cidr(&self) -> Result<(), AwsError> {
        if self.cluster.read().cidr.is_some() {
            return Ok(());
        }
        let name = self.cluster.read().name.clone();
        let answer = self
            .clients
            .eks
            .describe_cluster()
            .name(name)
            .send()
            .await
            .map_err(|e| AwsError::new("DescribeCluster", &e))?;
        let network = answer.cluster().and_then(|c| c.kubernetes_network_config());
        let cidr = network
            .and_then(|n| n.service_ipv4_cidr().or(n.service_ipv6_cidr()))
            .filter(|c| !c.is_empty())
            .ok_or_else(|| AwsError {
                operation: "DescribeCluster",
                code: "NoCIDR".to_owned(),
                message: "no CIDR found in DescribeCluster response".to_owned(),
            })?;
        tracing::debug!("cluster-cidr" = cidr, "discovered cluster CIDR");
        self.cluster.write().cidr = Some(cidr.to_owned());
        Ok(())
    }

    /// Makes sure that a template exists for every image and pod density among the types.
    ///
    /// # Errors
    /// When the node class lacks something, or EC2 refuses.
    pub async fn ensure_all(
        &self,
        class: &EC2NodeClass,
        claim: &NodeClaim,
        types: &[Arc<InstanceType>],
        capacity_type: &str,
        tags: &BTreeMap<String, String>,
    ) -> Result<Vec<LaunchTemplate>, TemplateError> {
        let _one_at_a_time = self.making.lock().await;
        if AmiFamily::of(class) == AmiFamily::Al2023 {
            self.resolve_cidr()
                .await
                .map_err(|e| TemplateError::NotReady(format!("resolving cluster CIDR, {e}")))?;
        }
        let specs = specs(&self.cluster(), class, claim, types, capacity_type, tags)?;
        let mut templates = Vec::new();
        for spec in specs {
            let id = self.ensure(&spec, tags).await?;
            templates.push(LaunchTemplate {
                name: spec.name,
                id,
                image_id: spec.image_id,
                instance_types: spec.instance_types,
            });
        }
        Ok(templates)
    }

    async fn ensure(
        &self,
        spec: &Spec,
        tags: &BTreeMap<String, String>,
    ) -> Result<String, AwsError> {
        let until = self.clock.now() + TTL;
        if let Some(known) = self.known.lock().get_mut(&spec.name) {
            known.until = until;
            return Ok(known.id.clone());
        }
        let id = match self.find(&spec.name).await? {
            Some(id) => id,
            None => self.create(spec, tags).await?,
        };
        self.known.lock().insert(spec.name.clone(), Known { id: id.clone(), until });
        Ok(id)
    }

    async fn find(&self, name: &str) -> Result<Option<String>, AwsError> {
        let answer =
            self.clients.ec2.describe_launch_templates().launch_template_names(name).send().await;
        match answer {
            Ok(answer) => Ok(answer
                .launch_templates()
                .first()
                .and_then(|t| t.launch_template_id())
                .map(str::to_owned)),
            Err(error) => {
                let error = AwsError::new("DescribeLaunchTemplates", &error);
                if error.is_not_found() { Ok(None) } else { Err(error) }
            }
        }
    }

    async fn create(
        &self,
        spec: &Spec,
        tags: &BTreeMap<String, String>,
    ) -> Result<String, AwsError> {
        let answer = self
            .clients
            .ec2
            .create_launch_template()
            .launch_template_name(&spec.name)
            .launch_template_data(spec.data.clone())
            .tag_specifications(tags::specification(ResourceType::LaunchTemplate, tags))
            .send()
            .await;
        match answer {
            Ok(answer) => {
                let id = answer.launch_template().and_then(|t| t.launch_template_id());
                let id = id.unwrap_or_default().to_owned();
                tracing::debug!(
                    "launch-template-name" = spec.name,
                    "id" = id,
                    "created launch template"
                );
                Ok(id)
            }
            Err(error) => {
                let error = AwsError::new("CreateLaunchTemplate", &error);
                if error.is_already_exists()
                    && let Some(id) = self.find(&spec.name).await?
                {
                    return Ok(id);
                }
                Err(error)
            }
        }
    }

    /// Forgets templates that EC2 says do not exist.
    pub fn invalidate(&self, templates: &[LaunchTemplate]) {
        let mut known = self.known.lock();
        for template in templates {
            known.remove(&template.name);
            tracing::debug!(
                "launch-template-name" = template.name,
                "launch-template-id" = template.id,
                "invalidating launch template in the cache because it no longer exists"
            );
        }
    }

    /// Learns of templates that an earlier process left, so that they expire too.
    ///
    /// # Errors
    /// When EC2 cannot be asked.
    pub async fn hydrate(&self) -> Result<(), AwsError> {
        let cluster = self.cluster.read().name.clone();
        let list = self.list(vec![filter(&format!("tag:{CLUSTER_NAME}"), vec![cluster])]).await?;
        let until = self.clock.now() + TTL;
        let mut known = self.known.lock();
        for (name, id) in list.into_iter().filter(|(name, _)| name.starts_with(PREFIX)) {
            known.entry(name).or_insert(Known { id, until });
        }
        let count = known.len();
        drop(known);
        tracing::debug!("count" = count, "hydrated launch template cache");
        Ok(())
    }

    async fn list(
        &self,
        filters: Vec<aws_sdk_ec2::types::Filter>,
    ) -> Result<Vec<(String, String)>, AwsError> {
        let mut pages = self
            .clients
            .ec2
            .describe_launch_templates()
            .set_filters(Some(filters))
            .into_paginator()
            .page_size(200)
            .send();
        let mut list = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| AwsError::new("DescribeLaunchTemplates", &e))?;
            list.extend(page.launch_templates().iter().filter_map(|t| {
                Some((t.launch_template_name()?.to_owned(), t.launch_template_id()?.to_owned()))
            }));
        }
        Ok(list)
    }

    /// Removes templates that have not been used for a minute.
    pub async fn delete_expired(&self) {
        let now = self.clock.now();
        let expired: Vec<(String, Known)> = {
            let mut known = self.known.lock();
            let names: Vec<String> =
                known.iter().filter(|(_, k)| k.until <= now).map(|(n, _)| n.clone()).collect();
            names.into_iter().filter_map(|n| known.remove(&n).map(|k| (n, k))).collect()
        };
        for (name, known) in expired {
            match self.delete(&known.id).await {
                Ok(()) => {
                    tracing::debug!("id" = known.id, "name" = name, "deleted launch template");
                }
                Err(error) => {
                    tracing::error!("launch-template" = name, "error" = %error, "failed to delete launch template");
                    self.known.lock().entry(name).or_insert(Known { until: now + TTL, ..known });
                }
            }
        }
    }

    async fn delete(&self, id: &str) -> Result<(), AwsError> {
        let answer = self.clients.ec2.delete_launch_template().launch_template_id(id).send().await;
        match answer.map_err(|e| AwsError::new("DeleteLaunchTemplate", &e)) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes every template of a node class.
    ///
    /// # Errors
    /// When EC2 refuses.
    pub async fn delete_all(&self, class: &EC2NodeClass) -> Result<(), AwsError> {
        let cluster = self.cluster.read().name.clone();
        let class_name = class.metadata.name.clone().unwrap_or_default();
        let list = self
            .list(vec![
                filter(&format!("tag:{CLUSTER_NAME}"), vec![cluster]),
                filter(&format!("tag:{}", labels::EC2NODECLASS), vec![class_name]),
            ])
            .await?;
        for (name, id) in list {
            self.delete(&id).await?;
            self.known.lock().remove(&name);
        }
        Ok(())
    }
}

/// Works out the launch templates of a launch: one for each image and pod density.
///
/// # Errors
/// When the node class has no image or security group yet, or user data cannot be made.
pub fn specs(
    cluster: &Cluster,
    class: &EC2NodeClass,
    claim: &NodeClaim,
    types: &[Arc<InstanceType>],
    capacity_type: &str,
    tags: &BTreeMap<String, String>,
) -> Result<Vec<Spec>, TemplateError> {
    let status = class.status.clone().unwrap_or_default();
    if status.security_groups.is_empty() {
        return Err(TemplateError::NotReady(
            "no security groups are present in the status".to_owned(),
        ));
    }
    if status.amis.is_empty() {
        return Err(TemplateError::NotReady("no amis exist given constraints".to_owned()));
    }
    let mut specs = Vec::new();
    for (ami, types) in types_by_ami(&status.amis, types) {
        let mut by_pods: BTreeMap<i64, Vec<Arc<InstanceType>>> = BTreeMap::new();
        for instance_type in types {
            let pods = instance_type.capacity.get(&Name::Pods);
            by_pods.entry(pods).or_default().push(instance_type);
        }
        for (pods, instance_types) in by_pods {
            let bootstrap = bootstrap(cluster, class, claim, capacity_type, pods);
            let user_data = userdata::render(AmiFamily::of(class), &bootstrap)?;
            let data =
                template_data(cluster, class, claim, &ami.id, &user_data, capacity_type, tags);
            let name = template_name(cluster, class, &data, &user_data);
            let image_id = ami.id.clone();
            specs.push(Spec { name, image_id, user_data, data, instance_types });
        }
    }
    if specs.is_empty() {
        let ids: Vec<&str> = status.amis.iter().map(|a| a.id.as_str()).collect();
        return Err(TemplateError::NotReady(format!(
            "no instance types satisfy requirements of amis [{}]",
            ids.join(" ")
        )));
    }
    Ok(specs)
}

/// Gives each type the first image whose requirements it meets.
#[must_use]
pub fn types_by_ami<'a>(
    amis: &'a [Ami],
    types: &[Arc<InstanceType>],
) -> Vec<(&'a Ami, Vec<Arc<InstanceType>>)> {
    let mut list: Vec<(&Ami, Requirements, Vec<Arc<InstanceType>>)> =
        amis.iter().map(|a| (a, ami_requirements(a), Vec::new())).collect();
    for instance_type in types {
        let fits =
            |r: &Requirements| instance_type.requirements.compatible(r, Allow::WellKnown).is_ok();
        if let Some(entry) = list.iter_mut().find(|(_, r, _)| fits(r)) {
            entry.2.push(Arc::clone(instance_type));
        }
    }
    list.into_iter().filter(|(_, _, t)| !t.is_empty()).map(|(a, _, t)| (a, t)).collect()
}

fn ami_requirements(ami: &Ami) -> Requirements {
    ami.requirements.iter().map(|r| Requirement::new(&r.key, r.operator, &r.values)).collect()
}

fn bootstrap(
    cluster: &Cluster,
    class: &EC2NodeClass,
    claim: &NodeClaim,
    capacity_type: &str,
    pods: i64,
) -> Bootstrap {
    let mut node_labels = claim.metadata.labels.clone().unwrap_or_default();
    node_labels.insert(labels::CAPACITY_TYPE.to_owned(), capacity_type.to_owned());
    if AmiFamily::of(class) != AmiFamily::Custom {
        node_labels.insert(labels::DO_NOT_SYNC_TAINTS.to_owned(), "true".to_owned());
    }
    let mut node_taints: Vec<Taint> = claim.spec.taints.clone().unwrap_or_default();
    node_taints.extend(claim.spec.startup_taints.clone().unwrap_or_default());
    let unregistered = taints::unregistered();
    if !node_taints.iter().any(|t| taints::matches(t, &unregistered)) {
        node_taints.push(unregistered);
    }
    let mut kubelet: Map<String, Value> = class.spec.kubelet.clone().unwrap_or_default();
    if !kubelet.get("maxPods").is_some_and(Value::is_i64) {
        kubelet.insert("maxPods".to_owned(), pods.into());
    }
    if !kubelet.contains_key("clusterDNS")
        && let Some(ip) = &cluster.dns_ip
    {
        kubelet.insert("clusterDNS".to_owned(), serde_json::json!([ip]));
    }
    Bootstrap {
        cluster_name: cluster.name.clone(),
        cluster_endpoint: cluster.endpoint.clone(),
        cluster_cidr: cluster.cidr.clone(),
        ca_bundle: cluster.ca_bundle.clone(),
        labels: node_labels,
        taints: node_taints,
        kubelet,
        raid0: class.spec.instance_store_policy.as_deref() == Some("RAID0"),
        custom: class.spec.user_data.clone().unwrap_or_default(),
    }
}

/// The name is made from everything that the template contains.
///
/// User data is added by hand: the request's own debug form hides it.
fn template_name(
    cluster: &Cluster,
    class: &EC2NodeClass,
    data: &RequestLaunchTemplateData,
    user_data: &str,
) -> String {
    let class = class.metadata.name.as_deref().unwrap_or("");
    let text = format!("{}|{class}|{user_data}|{data:?}", cluster.name);
    let id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, text.as_bytes());
    format!("{PREFIX}{}", id.as_u64_pair().0)
}

fn template_data(
    cluster: &Cluster,
    class: &EC2NodeClass,
    claim: &NodeClaim,
    image_id: &str,
    user_data: &str,
    capacity_type: &str,
    tags: &BTreeMap<String, String>,
) -> RequestLaunchTemplateData {
    let spec = &class.spec;
    let status = class.status.clone().unwrap_or_default();
    let tag_spec = |kind: ResourceType| {
        LaunchTemplateTagSpecificationRequest::builder()
            .resource_type(kind)
            .set_tags(Some(to_ec2(tags)))
            .build()
    };
    let enclave = claim
        .spec
        .resources
        .as_ref()
        .and_then(|r| r.requests.as_ref())
        .is_some_and(|r| r.contains_key("eks.amazonaws.com/nitro-sandbox"));
    let mut data = RequestLaunchTemplateData::builder()
        .image_id(image_id)
        .user_data(user_data)
        .set_block_device_mappings(block_devices(class))
        .set_iam_instance_profile(status.instance_profile.as_ref().map(|name| {
            LaunchTemplateIamInstanceProfileSpecificationRequest::builder().name(name).build()
        }))
        .monitoring(
            LaunchTemplatesMonitoringRequest::builder()
                .enabled(spec.detailed_monitoring.unwrap_or(false))
                .build(),
        )
        .metadata_options(metadata_options(cluster, class))
        .set_network_interfaces(Some(network_interfaces(class)))
        .placement(LaunchTemplatePlacementRequest::builder().tenancy(Tenancy::Default).build())
        .enclave_options(LaunchTemplateEnclaveOptionsRequest::builder().enabled(enclave).build())
        .tag_specifications(tag_spec(ResourceType::NetworkInterface));
    if capacity_type == DefaultTargetCapacityType::Spot.as_str() {
        data = data.tag_specifications(tag_spec(ResourceType::SpotInstancesRequest));
    }
    if cluster.reserved_capacity && capacity_type != labels::CAPACITY_RESERVED {
        data = data.capacity_reservation_specification(
            LaunchTemplateCapacityReservationSpecificationRequest::builder()
                .capacity_reservation_preference(CapacityReservationPreference::None)
                .build(),
        );
    }
    data.build()
}

fn block_devices(class: &EC2NodeClass) -> Option<Vec<LaunchTemplateBlockDeviceMappingRequest>> {
    let own = class.spec.block_device_mappings.clone().filter(|l| !l.is_empty());
    let mappings = own.unwrap_or_else(|| AmiFamily::of(class).default_block_devices());
    let non_zero = |n: Option<i64>| n.filter(|n| *n != 0).and_then(|n| i32::try_from(n).ok());
    let list: Vec<_> = mappings
        .iter()
        .map(|m| {
            let ebs = m.ebs.as_ref().map(|e| {
                let gib = e
                    .volume_size
                    .as_deref()
                    .and_then(|s| quantity::parse(s).ok())
                    .map(|q| (q.value() + (1 << 30) - 1) >> 30)
                    .and_then(|n| i32::try_from(n).ok());
                LaunchTemplateEbsBlockDeviceRequest::builder()
                    .set_delete_on_termination(e.delete_on_termination)
                    .set_encrypted(e.encrypted)
                    .set_volume_type(e.volume_type.as_deref().map(VolumeType::from))
                    .set_iops(non_zero(e.iops))
                    .set_throughput(non_zero(e.throughput))
                    .set_kms_key_id(e.kms_key_id.clone())
                    .set_snapshot_id(e.snapshot_id.clone())
                    .set_volume_initialization_rate(e.volume_initialization_rate)
                    .set_volume_size(gib)
                    .build()
            });
            LaunchTemplateBlockDeviceMappingRequest::builder()
                .set_device_name(m.device_name.clone())
                .set_ebs(ebs)
                .build()
        })
        .collect();
    (!list.is_empty()).then_some(list)
}

fn metadata_options(
    cluster: &Cluster,
    class: &EC2NodeClass,
) -> LaunchTemplateInstanceMetadataOptionsRequest {
    let ipv6 = cluster.dns_ip.as_deref().is_some_and(|ip| ip.contains(':'));
    let defaults = crate::api::v1::MetadataOptions {
        http_endpoint: Some("disabled".to_owned()),
        http_protocol_ipv6: Some(if ipv6 { "enabled" } else { "disabled" }.to_owned()),
        http_put_response_hop_limit: Some(2),
        http_tokens: Some("required".to_owned()),
    };
    let options = class.spec.metadata_options.clone().unwrap_or(defaults);
    LaunchTemplateInstanceMetadataOptionsRequest::builder()
        .set_http_endpoint(
            options.http_endpoint.as_deref().map(LaunchTemplateInstanceMetadataEndpointState::from),
        )
        .set_http_protocol_ipv6(
            options
                .http_protocol_ipv6
                .as_deref()
                .map(LaunchTemplateInstanceMetadataProtocolIpv6::from),
        )
        .set_http_put_response_hop_limit(
            options.http_put_response_hop_limit.and_then(|n| i32::try_from(n).ok()),
        )
        .set_http_tokens(options.http_tokens.as_deref().map(LaunchTemplateHttpTokensState::from))
        .instance_metadata_tags(LaunchTemplateInstanceMetadataTagsState::Disabled)
        .build()
}

fn network_interfaces(
    class: &EC2NodeClass,
) -> Vec<LaunchTemplateInstanceNetworkInterfaceSpecificationRequest> {
    let spec = &class.spec;
    let groups: Vec<String> =
        class.status.iter().flat_map(|s| &s.security_groups).map(|g| g.id.clone()).collect();
    let base = || {
        LaunchTemplateInstanceNetworkInterfaceSpecificationRequest::builder()
            .set_groups(Some(groups.clone()))
    };
    let own = spec.network_interfaces.as_deref().unwrap_or_default();
    if own.is_empty() {
        return vec![
            base()
                .device_index(0)
                .set_associate_public_ip_address(spec.associate_public_ip_address)
                .set_ipv4_prefix_count(spec.ip_prefix_count)
                .build(),
        ];
    }
    own.iter()
        .map(|i| {
            let request = base()
                .network_card_index(i.network_card_index)
                .device_index(i.device_index)
                .interface_type(&i.interface_type);
            if i.interface_type == "efa-only" {
                return request.build();
            }
            request
                .set_associate_public_ip_address(spec.associate_public_ip_address)
                .set_ipv4_prefix_count(spec.ip_prefix_count)
                .build()
        })
        .collect()
}
