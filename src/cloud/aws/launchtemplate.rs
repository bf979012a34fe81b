//! Launch templates: one for each distinct way of launching, removed when it is no longer used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_ec2::types::{RequestLaunchTemplateData, ResourceType};
use base64::Engine as _;
use futures::StreamExt as _;
use parking_lot::Mutex;

use super::ami::AmiFamily;
use super::clients::Clients;
use super::errors::AwsError;
use super::flight::Flights;
use super::select::filter;
use super::tags::{self, CLUSTER_NAME};
use super::userdata::{self, UserDataError};
use crate::api::labels;
use crate::api::v1::EC2NodeClass;
use crate::clock::Clock;
use crate::operator::{logging, metrics};
use crate::scheduling::instance_type::InstanceType;

mod body;
mod network;
mod options;
mod request;

pub use self::body::body;
pub use self::options::{
    EFA, Launch, NITRO_SANDBOX, Reservation, tenancy, types_by_ami, wants_network_devices,
};

/// How long a launch template is kept after its last use.
const TTL: Duration = Duration::from_secs(60);
/// Removals of unused templates at once; EC2's rate limits for launch templates are low.
const REMOVALS: usize = 8;
/// Prefix of the names of Karpenter's launch templates; others with the cluster's tag are left
/// alone.
const PREFIX: &str = "karpenter.k8s.aws/";
pub use super::userdata::LIMIT as USER_DATA_LIMIT;
/// User data of this size, nine tenths of the limit, is logged.
const USER_DATA_WARNING: usize = 14_745;

/// What the user data of every node of the cluster contains.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    pub name: String,
    pub region: String,
    pub endpoint: String,
    /// Service CIDR, once known.
    pub cidr: Option<String>,
    /// Base64 CA of the API server.
    pub ca_bundle: String,
    /// Address of the DNS Service, once known.
    pub dns_ip: Option<String>,
    /// Reserved capacity is in use.
    pub reserved_capacity: bool,
    /// Expressions in `spec.kubelet` are in use.
    pub kubelet_expressions: bool,
}

impl Cluster {
    /// True for a cluster whose Services have IPv6 addresses.
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        self.dns_ip.as_deref().is_some_and(|ip| ip.contains(':'))
    }
}

/// A launch template that exists in EC2, and the types that may use it.
#[derive(Clone, Debug)]
pub struct LaunchTemplate {
    pub name: String,
    pub id: String,
    pub image_id: String,
    pub instance_types: Vec<Arc<InstanceType>>,
    /// The reservation that it launches into, for reserved capacity.
    pub reservation: Option<Reservation>,
}

/// Why there is no launch template.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TemplateError {
    /// The node class is not ready for it.
    #[error("{0}")]
    NotReady(String),
    /// The node class's status does not have what the launch needs.
    #[error("{0}")]
    Unsuited(String),
    /// User data cannot be made.
    #[error(transparent)]
    UserData(#[from] UserDataError),
    /// EC2 refused.
    #[error("{attempt}, {error}")]
    Aws { attempt: &'static str, error: AwsError },
}

/// Everything that goes into one launch template.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: String,
    pub image_id: String,
    /// In base64.
    pub user_data: String,
    pub data: RequestLaunchTemplateData,
    pub instance_types: Vec<Arc<InstanceType>>,
    pub reservation: Option<Reservation>,
}

#[derive(Clone, Debug)]
struct Known {
    id: String,
    until: jiff::Timestamp,
}

/// What became of a template.
#[derive(Clone, Debug)]
enum Change {
    /// It exists, by this id.
    Made(Result<String, TemplateError>),
    /// It is gone.
    Removed(Result<(), AwsError>),
}

/// Makes and removes launch templates.
#[derive(Debug)]
pub struct Provider {
    clients: Clients,
    clock: Clock,
    cluster: parking_lot::RwLock<Cluster>,
    known: Mutex<BTreeMap<String, Known>>,
    /// Templates that are being made or removed: those two exclude each other for each name.
    changes: Flights<String, Change>,
    /// The question for the service CIDR.
    resolving: Flights<(), Result<(), AwsError>>,
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
            changes: Flights::default(),
            resolving: Flights::default(),
        }
    }

    /// What the user data of nodes contains.
    #[must_use]
    pub fn cluster(&self) -> Cluster {
        self.cluster.read().clone()
    }

    /// Reads the cluster's service CIDR from EKS once.
    ///
    /// # Errors
    /// When EKS cannot be asked or has none.
    pub async fn resolve_cidr(&self) -> Result<(), AwsError> {
        // Launches that need it at the same time share one call.
        self.resolving
            .run(&(), || async {
                if self.cluster.read().cidr.is_some() { Ok(()) } else { self.read_cidr().await }
            })
            .await
    }

    async fn read_cidr(&self) -> Result<(), AwsError> {
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
            .ok_or_else(|| {
                let text = "no CIDR found in DescribeCluster response";
                AwsError::local("DescribeCluster", "NoCIDR", text)
            })?;
        tracing::debug!("cluster-cidr" = cidr, "discovered cluster CIDR");
        self.cluster.write().cidr = Some(cidr.to_owned());
        Ok(())
    }

    /// Makes sure that a template exists for every group of types that boot alike.
    ///
    /// # Errors
    /// When the node class lacks something, or EC2 refuses.
    pub async fn ensure_all(
        &self,
        launch: &Launch<'_>,
    ) -> Result<Vec<LaunchTemplate>, TemplateError> {
        // nodeadm's configuration must name the service CIDR; no other family needs it.
        if AmiFamily::of(launch.class) == AmiFamily::Al2023 {
            self.resolve_cidr()
                .await
                .map_err(|e| TemplateError::NotReady(format!("resolving cluster CIDR, {e}")))?;
        }
        let specs = specs(&self.cluster(), launch)?;
        let mut templates = Vec::new();
        for spec in specs {
            let id = self.ensure(launch, &spec).await?;
            templates.push(LaunchTemplate {
                name: spec.name,
                id,
                image_id: spec.image_id,
                instance_types: spec.instance_types,
                reservation: spec.reservation,
            });
        }
        Ok(templates)
    }

    async fn ensure(&self, launch: &Launch<'_>, spec: &Spec) -> Result<String, TemplateError> {
        loop {
            if let Some(id) = self.use_known(&spec.name) {
                return Ok(id);
            }
            let make = || async {
                // Another caller may have made it while this one waited for its turn.
                match self.use_known(&spec.name) {
                    Some(id) => Change::Made(Ok(id)),
                    None => Change::Made(self.find_or_create(launch, spec).await),
                }
            };
            // A removal that is under way ends first; then it is made again.
            if let Change::Made(outcome) = self.changes.run(&spec.name, make).await {
                return outcome;
            }
        }
    }

    /// The id of a template that is known to exist, which is kept for longer now.
    fn use_known(&self, name: &str) -> Option<String> {
        let mut known = self.known.lock();
        let known = known.get_mut(name)?;
        known.until = self.clock.now() + TTL;
        Some(known.id.clone())
    }

    async fn find_or_create(
        &self,
        launch: &Launch<'_>,
        spec: &Spec,
    ) -> Result<String, TemplateError> {
        let describing =
            |error| TemplateError::Aws { attempt: "describing launch templates", error };
        let id = match self.find(&spec.name).await.map_err(describing)? {
            Some(id) => {
                tracing::debug!("launch-template-name" = spec.name, "discovered launch template");
                id
            }
            None => self.create(launch, spec).await.map_err(|error| TemplateError::Aws {
                attempt: "creating launch template",
                error,
            })?,
        };
        let until = self.clock.now() + TTL;
        self.known.lock().insert(spec.name.clone(), Known { id: id.clone(), until });
        Ok(id)
    }

    async fn find(&self, name: &str) -> Result<Option<String>, AwsError> {
        let answer =
            self.clients.ec2.describe_launch_templates().launch_template_names(name).send().await;
        match answer.map_err(|e| AwsError::new("DescribeLaunchTemplates", &e)) {
            Ok(answer) => match answer.launch_templates() {
                [one] => Ok(one.launch_template_id().map(str::to_owned)),
                other => Err(AwsError::local(
                    "DescribeLaunchTemplates",
                    "UnreadableAnswer",
                    format!("expected to find one launch template, but found {}", other.len()),
                )),
            },
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn create(&self, launch: &Launch<'_>, spec: &Spec) -> Result<String, AwsError> {
        watch_size(launch.class, &spec.user_data);
        let answer = self
            .clients
            .ec2
            .create_launch_template()
            .launch_template_name(&spec.name)
            .launch_template_data(spec.data.clone())
            .tag_specifications(tags::specification(ResourceType::LaunchTemplate, launch.tags))
            .send()
            .await;
        match answer.map_err(|e| AwsError::new("CreateLaunchTemplate", &e)) {
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
            // The answer of an earlier attempt was lost.
            Err(error) if error.is_already_exists() => self.find(&spec.name).await?.ok_or(error),
            Err(error) => Err(error),
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
        let filters = vec![filter(&format!("tag:{CLUSTER_NAME}"), vec![cluster.clone()])];
        let list = self.list(filters).await?;
        let until = self.clock.now() + TTL;
        let mut known = self.known.lock();
        for (name, id) in list.into_iter().filter(|(name, _)| name.starts_with(PREFIX)) {
            // A launch may have used a template during the call: its later expiry stays.
            known.entry(name).or_insert(Known { id, until });
        }
        let count = known.len();
        drop(known);
        tracing::debug!(
            "tag-key" = CLUSTER_NAME,
            "tag-value" = cluster,
            "count" = count,
            "hydrated launch template cache"
        );
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
    ///
    /// A launch that needs one of them waits for its removal, and never gets one that is being
    /// removed.
    pub async fn delete_expired(&self) {
        let removals = self.expired().into_iter().map(|name| async move {
            self.changes.run(&name, || self.delete_if_expired(&name)).await
        });
        futures::stream::iter(removals).buffer_unordered(REMOVALS).collect::<Vec<_>>().await;
    }

    async fn delete_if_expired(&self, name: &str) -> Change {
        let now = self.clock.now();
        let Some(expired) = self.take_if(name, |known| known.until <= now) else {
            return Change::Removed(Ok(()));
        };
        let outcome = self.delete(&expired.id).await;
        match &outcome {
            Ok(()) => {
                tracing::debug!("id" = expired.id, "name" = name, "deleted launch template");
            }
            Err(error) => {
                tracing::error!("launch-template" = name, "error" = %error, "failed to delete launch template");
                // Remembered again, or nothing would try its removal before the next start.
                let until = now + TTL;
                self.known.lock().insert(name.to_owned(), Known { until, ..expired });
            }
        }
        Change::Removed(outcome)
    }

    /// Forgets a template if `wanted` holds for it. It is forgotten before its removal, so that no
    /// launch uses it meanwhile.
    fn take_if(&self, name: &str, wanted: impl Fn(&Known) -> bool) -> Option<Known> {
        let mut known = self.known.lock();
        known.get(name).filter(|k| wanted(k))?;
        known.remove(name)
    }

    fn expired(&self) -> Vec<String> {
        let now = self.clock.now();
        let known = self.known.lock();
        known.iter().filter(|(_, k)| k.until <= now).map(|(name, _)| name.clone()).collect()
    }

    async fn delete(&self, id: &str) -> Result<(), AwsError> {
        let answer = self.clients.ec2.delete_launch_template().launch_template_id(id).send().await;
        match answer.map_err(|e| AwsError::new("DeleteLaunchTemplate", &e)) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes a template, after whatever else is being done about it.
    async fn remove(&self, name: &String, id: &str) -> Result<(), AwsError> {
        loop {
            let remove = || async {
                self.take_if(name, |_| true);
                Change::Removed(self.delete(id).await)
            };
            if let Change::Removed(outcome) = self.changes.run(name, remove).await {
                return outcome;
            }
        }
    }

    /// Removes every template of a node class.
    ///
    /// # Errors
    /// When EC2 refuses; the others are removed all the same.
    pub async fn delete_all(&self, class: &EC2NodeClass) -> Result<(), AwsError> {
        let cluster = self.cluster.read().name.clone();
        let class_name = class.metadata.name.clone().unwrap_or_default();
        let list = self
            .list(vec![
                filter(&format!("tag:{CLUSTER_NAME}"), vec![cluster]),
                filter(&format!("tag:{}", labels::EC2NODECLASS), vec![class_name.clone()]),
            ])
            .await?;
        let (mut deleted, mut failure) = (Vec::new(), None);
        for (name, id) in list {
            match self.remove(&name, &id).await {
                Ok(()) => deleted.push(name),
                Err(error) => failure = Some(error),
            }
        }
        if !deleted.is_empty() {
            deleted.truncate(5);
            tracing::debug!("launchTemplates" = %logging::json(&deleted), "deleted launch templates");
        }
        let _ = metrics::USERDATA_BYTES.remove_label_values(&[&class_name]);
        failure.map_or(Ok(()), Err)
    }
}

/// Publishes how large user data is; EC2 is left to refuse what is too large.
fn watch_size(class: &EC2NodeClass, user_data: &str) {
    let name = class.metadata.name.as_deref().unwrap_or_default();
    let bytes = base64::engine::general_purpose::STANDARD.decode(user_data).map_or(0, |b| b.len());
    metrics::USERDATA_BYTES.with_label_values(&[name]).set(bytes as f64);
    if bytes >= USER_DATA_WARNING {
        tracing::info!(
            "userdata-bytes" = bytes,
            "warn-threshold" = USER_DATA_WARNING,
            "limit" = USER_DATA_LIMIT,
            "rendered user data is approaching the EC2 user data size limit"
        );
    }
}

/// Works out the launch templates of a launch: pure, nothing is asked or made.
///
/// # Errors
/// When the node class has no image or security group yet, or user data cannot be made.
pub fn specs(cluster: &Cluster, launch: &Launch<'_>) -> Result<Vec<Spec>, TemplateError> {
    let class = launch.class;
    if class.status.as_ref().is_none_or(|s| s.security_groups.is_empty()) {
        return Err(TemplateError::Unsuited(
            "no security groups are present in the status".to_owned(),
        ));
    }
    let mut specs = Vec::new();
    for group in options::groups(cluster, launch)? {
        let bootstrap = options::bootstrap(cluster, launch, &group);
        let user_data = userdata::render(AmiFamily::of(class), &bootstrap)?;
        let data = request::data(cluster, launch, &group, &user_data);
        specs.push(Spec {
            name: request::name(cluster, class, &data, &user_data),
            image_id: group.ami.id.clone(),
            user_data,
            data,
            instance_types: group.types,
            reservation: group.reservation,
        });
    }
    Ok(specs)
}

#[cfg(test)]
mod tests;
