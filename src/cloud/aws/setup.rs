//! How the provider is put together from settings, clients and what is known of the cluster.

use std::sync::{Arc, OnceLock};

use aws_config::SdkConfig;
use base64::Engine as _;
use k8s_openapi::api::core::v1::Service;
use kube::Api;

use super::clients::Clients;
use super::errors::AwsError;
use super::permissions::Permissions;
use super::unavailable::UnavailableOfferings;
use super::{
    AwsProvider, ami, capacityreservation, instance, instanceprofile, instancetype, launchtemplate,
    placementgroup, pricing, repair, securitygroup, ssm, subnet, version, zonalshift,
};
use crate::clock::Clock;
use crate::cloud::{Error, Policies};
use crate::operator::settings::Settings;
use crate::scheduling::overlay::InForce;

impl AwsProvider {
    /// Builds the provider; asks EKS for the endpoint and the API server for its DNS Service.
    /// `overlays` are applied where their feature gate is on.
    ///
    /// # Errors
    /// When there is no region, or the cluster's endpoint is neither set nor known to EKS.
    pub async fn new(
        settings: Arc<Settings>,
        kube: kube::Client,
        ca: Option<Vec<u8>>,
        clock: Clock,
        config: &SdkConfig,
        overlays: InForce,
    ) -> Result<Self, Error> {
        // Without the gate nobody evaluates overlays, and a launch would wait for it forever.
        let overlays = Some(overlays).filter(|_| settings.gates.node_overlay);
        if config.region().is_none_or(|r| r.as_ref().is_empty()) {
            return Err(Error::Other(
                "no region: expected AWS_REGION, a region in the AWS profile, or the instance metadata service to tell it"
                    .to_owned(),
            ));
        }
        let clients = Clients::new(config);
        tracing::debug!("region" = clients.region, "discovered region");
        let cluster = cluster(&settings, &clients, &kube, ca).await?;
        let parts = Parts::new(&settings, &clients, &clock, cluster);
        Ok(Self {
            instance_types: Arc::new(parts.instance_types(
                &settings,
                &clients,
                &clock,
                overlays.as_ref(),
            )),
            instances: Arc::new(parts.instances(&settings, &clients, &clock, &kube)),
            security_groups: Arc::new(securitygroup::Provider::new(
                clients.clone(),
                &clock,
                settings.security_group_refresh_interval,
            )),
            amis: Arc::new(ami::Provider::new(
                clients.clone(),
                &clock,
                settings.ami_refresh_interval,
                Arc::new(ssm::Provider::new(clients.clone(), &clock)),
            )),
            instance_profiles: Arc::new(instanceprofile::Provider::new(
                clients.clone(),
                &clock,
                &parts.permissions,
                &settings.cluster_name,
            )),
            repair: policies(&settings)?,
            price_keeper: pricing::Keeper::new(
                kube.clone(),
                &crate::operator::namespace(),
                &settings.price_config_map,
            ),
            version: version::Provider::new(
                clients.clone(),
                kube.clone(),
                &settings.cluster_name,
                settings.eks_control_plane,
            ),
            recorder: OnceLock::new(),
            permissions: parts.permissions,
            placement_groups: parts.placement_groups,
            capacity_reservations: parts.reservations,
            shifts: parts.shifts,
            pricing: parts.pricing,
            unavailable_offerings: parts.unavailable,
            subnets: parts.subnets,
            launch_templates: parts.launch_templates,
            overlays,
            clients,
            kube,
            clock,
            settings,
        })
    }
}

/// The parts that others of the provider's parts use.
struct Parts {
    pricing: Arc<pricing::Provider>,
    unavailable: Arc<UnavailableOfferings>,
    subnets: Arc<subnet::Provider>,
    launch_templates: Arc<launchtemplate::Provider>,
    permissions: Arc<Permissions>,
    placement_groups: Arc<placementgroup::Provider>,
    reservations: Arc<capacityreservation::Provider>,
    shifts: Arc<zonalshift::Provider>,
}

impl Parts {
    fn new(
        settings: &Settings,
        clients: &Clients,
        clock: &Clock,
        cluster: launchtemplate::Cluster,
    ) -> Self {
        let permissions = Arc::new(Permissions::new(clock));
        Self {
            pricing: Arc::new(pricing::Provider::new(clients.clone(), settings.isolated_vpc)),
            unavailable: Arc::new(UnavailableOfferings::new(clock)),
            subnets: Arc::new(subnet::Provider::new(
                clients.clone(),
                clock,
                settings.subnet_refresh_interval,
            )),
            launch_templates: Arc::new(launchtemplate::Provider::new(
                clients.clone(),
                clock,
                cluster,
            )),
            placement_groups: Arc::new(placementgroup::Provider::new(
                clients.clone(),
                clock,
                &permissions,
            )),
            reservations: Arc::new(capacityreservation::Provider::new(
                clients.clone(),
                clock,
                &permissions,
            )),
            shifts: Arc::new(zonalshift::Provider::new(
                clients.clone(),
                clock,
                settings.enable_zonal_shift,
            )),
            permissions,
        }
    }

    fn instance_types(
        &self,
        settings: &Settings,
        clients: &Clients,
        clock: &Clock,
        overlays: Option<&InForce>,
    ) -> instancetype::Provider {
        let parts = instancetype::Parts {
            clients: clients.clone(),
            clock: clock.clone(),
            pricing: Arc::clone(&self.pricing),
            unavailable: Arc::clone(&self.unavailable),
            reservations: Arc::clone(&self.reservations),
            placement_groups: Arc::clone(&self.placement_groups),
            shifts: Arc::clone(&self.shifts),
            overlays: overlays.cloned(),
        };
        let options = instancetype::Options {
            region: clients.region.clone(),
            vm_memory_overhead: settings.vm_memory_overhead_percent,
            reserved_enis: settings.reserved_enis,
            reserved_capacity: settings.gates.reserved_capacity,
            kubelet_expressions: settings.aws_gates.node_class_cel,
            devices: settings.aws_gates,
            volume_limits: settings.instance_type_volume_limits,
        };
        instancetype::Provider::new(parts, options)
    }

    fn instances(
        &self,
        settings: &Settings,
        clients: &Clients,
        clock: &Clock,
        kube: &kube::Client,
    ) -> instance::Provider {
        let parts = instance::Parts {
            clients: clients.clone(),
            kube: kube.clone(),
            clock: clock.clone(),
            unavailable: Arc::clone(&self.unavailable),
            subnets: Arc::clone(&self.subnets),
            templates: Arc::clone(&self.launch_templates),
            placement_groups: Arc::clone(&self.placement_groups),
            reservations: Arc::clone(&self.reservations),
            shifts: Arc::clone(&self.shifts),
        };
        let options = instance::Options {
            cluster: settings.cluster_name.clone(),
            reserved_capacity: settings.gates.reserved_capacity,
            best_effort_min_values: settings.best_effort_min_values,
        };
        instance::Provider::new(parts, options)
    }
}

/// What nodes have to know of the cluster.
async fn cluster(
    settings: &Settings,
    clients: &Clients,
    kube: &kube::Client,
    ca: Option<Vec<u8>>,
) -> Result<launchtemplate::Cluster, Error> {
    let endpoint = endpoint(settings, clients).await.inspect(|endpoint| {
        tracing::debug!("cluster-endpoint" = endpoint, "discovered cluster endpoint");
    })?;
    let ca_bundle = if settings.cluster_ca_bundle.is_empty() {
        ca.map(|pem| base64::engine::general_purpose::STANDARD.encode(pem)).unwrap_or_default()
    } else {
        settings.cluster_ca_bundle.clone()
    };
    Ok(launchtemplate::Cluster {
        name: settings.cluster_name.clone(),
        region: clients.region.clone(),
        endpoint,
        cidr: None,
        ca_bundle,
        dns_ip: dns_ip(kube).await,
        reserved_capacity: settings.gates.reserved_capacity,
        kubelet_expressions: settings.aws_gates.node_class_cel,
    })
}

/// The conditions that make a node unhealthy, and what to do about each.
fn policies(settings: &Settings) -> Result<Policies, Error> {
    let policies = if settings.legacy_node_repair {
        repair::legacy_repair_policies()
    } else {
        repair::repair_policies(settings.aws_gates.reboot_for_repair)
    };
    policies.map_err(|e| Error::Other(e.to_string()))
}

/// The API server's address for nodes: as set, else as EKS knows it.
async fn endpoint(settings: &Settings, clients: &Clients) -> Result<String, Error> {
    if !settings.cluster_endpoint.is_empty() {
        return Ok(settings.cluster_endpoint.clone());
    }
    let answer = clients
        .eks
        .describe_cluster()
        .name(&settings.cluster_name)
        .send()
        .await
        .map_err(|e| AwsError::new("DescribeCluster", &e))
        .map_err(|e| Error::Other(format!("failed detecting cluster endpoint, {e}")))?;
    let endpoint = answer.cluster().and_then(|c| c.endpoint()).ok_or_else(|| {
        Error::Other("failed detecting cluster endpoint, EKS returned none".to_owned())
    })?;
    Ok(endpoint.to_owned())
}

/// The address of the cluster's DNS Service, if there is one.
async fn dns_ip(kube: &kube::Client) -> Option<String> {
    // EKS names the Service kube-dns whatever serves DNS behind it. Without the IP, nodes work out
    // their cluster DNS themselves, so this is no error.
    match Api::<Service>::namespaced(kube.clone(), "kube-system").get("kube-dns").await {
        Ok(service) => {
            let ip = service.spec.and_then(|s| s.cluster_ip).filter(|ip| ip != "None")?;
            tracing::debug!("kube-dns-ip" = ip, "discovered kube dns");
            Some(ip)
        }
        Err(error) => {
            tracing::debug!("unable to detect the IP of the kube-dns service, {error}");
            None
        }
    }
}
