//! AMI families and the images that a node class selects.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_ec2::types::{Filter, Image};
use jiff::Timestamp;

use super::cache::TtlCache;
use super::clients::Clients;
use super::errors::AwsError;
use super::select::{filter, tag_filters};
use crate::api::labels;
use crate::api::v1::{
    Ami, AmiRequirement, AmiSelectorTerm, BlockDevice, BlockDeviceMapping, EC2NodeClass, Operator,
};
use crate::clock::Clock;

/// An operating system family: decides user data, block devices and overheads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AmiFamily {
    Al2,
    Al2023,
    Bottlerocket,
    Windows2019,
    Windows2022,
    Windows2025,
    Custom,
}

/// How a family counts pods and overheads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Memory overhead follows the ENI limit rather than the pod limit.
    pub eni_limited_memory_overhead: bool,
    /// `podsPerCore` lowers the pod limit.
    pub pods_per_core: bool,
    /// The number of pods follows the network interfaces.
    pub eni_limited_pod_density: bool,
}

impl AmiFamily {
    /// The family of a node class: its own setting, else its alias', else Custom.
    #[must_use]
    pub fn of(class: &EC2NodeClass) -> Self {
        let alias = class.spec.ami_selector_terms.iter().find_map(|t| t.alias.as_deref());
        let name =
            class.spec.ami_family.as_deref().or_else(|| alias.and_then(|a| a.split('@').next()));
        name.and_then(Self::parse).unwrap_or(Self::Custom)
    }

    /// The family of that name, in either spelling.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "al2" => Self::Al2,
            "al2023" => Self::Al2023,
            "bottlerocket" => Self::Bottlerocket,
            "windows2019" => Self::Windows2019,
            "windows2022" => Self::Windows2022,
            "windows2025" => Self::Windows2025,
            "custom" => Self::Custom,
            _ => return None,
        })
    }

    /// The family's name as manifests write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Al2 => "AL2",
            Self::Al2023 => "AL2023",
            Self::Bottlerocket => "Bottlerocket",
            Self::Windows2019 => "Windows2019",
            Self::Windows2022 => "Windows2022",
            Self::Windows2025 => "Windows2025",
            Self::Custom => "Custom",
        }
    }

    /// Build number of a Windows family.
    #[must_use]
    pub fn windows_build(self) -> Option<&'static str> {
        match self {
            Self::Windows2019 => Some("10.0.17763"),
            Self::Windows2022 => Some("10.0.20348"),
            Self::Windows2025 => Some("10.0.26100"),
            _ => None,
        }
    }

    /// How the family counts.
    #[must_use]
    pub fn features(self) -> Features {
        match self {
            Self::Al2 | Self::Al2023 | Self::Custom => Features {
                eni_limited_memory_overhead: true,
                pods_per_core: true,
                eni_limited_pod_density: true,
            },
            Self::Bottlerocket => Features {
                eni_limited_memory_overhead: false,
                pods_per_core: false,
                eni_limited_pod_density: true,
            },
            Self::Windows2019 | Self::Windows2022 | Self::Windows2025 => Features {
                eni_limited_memory_overhead: false,
                pods_per_core: true,
                eni_limited_pod_density: false,
            },
        }
    }

    /// The device that holds the node's ephemeral storage.
    #[must_use]
    pub fn ephemeral_device(self) -> Option<&'static str> {
        match self {
            Self::Al2 | Self::Al2023 => Some("/dev/xvda"),
            Self::Bottlerocket => Some("/dev/xvdb"),
            Self::Windows2019 | Self::Windows2022 | Self::Windows2025 => Some("/dev/sda1"),
            Self::Custom => None,
        }
    }

    /// Volumes of a node class that names none.
    #[must_use]
    pub fn default_block_devices(self) -> Vec<BlockDeviceMapping> {
        let volume = |device: &str, size: &str| BlockDeviceMapping {
            device_name: Some(device.to_owned()),
            ebs: Some(BlockDevice {
                encrypted: Some(true),
                volume_type: Some("gp3".to_owned()),
                volume_size: Some(size.to_owned()),
                ..BlockDevice::default()
            }),
            root_volume: None,
        };
        match self {
            Self::Al2 | Self::Al2023 => vec![volume("/dev/xvda", "20Gi")],
            Self::Bottlerocket => vec![volume("/dev/xvda", "4Gi"), volume("/dev/xvdb", "20Gi")],
            Self::Windows2019 | Self::Windows2022 | Self::Windows2025 => {
                vec![volume("/dev/sda1", "50Gi")]
            }
            Self::Custom => Vec::new(),
        }
    }
}

/// What kind of machine an image is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Neither GPU nor accelerator.
    Standard,
    /// With an NVIDIA GPU.
    Nvidia,
    /// With a Neuron accelerator.
    Neuron,
    /// Windows of a family.
    Windows(AmiFamily),
}

impl Variant {
    fn requirements(self) -> Vec<AmiRequirement> {
        let entry = |key: &str, operator, values: &[&str]| AmiRequirement {
            key: key.to_owned(),
            operator,
            values: values.iter().map(|v| (*v).to_owned()).collect(),
        };
        match self {
            Self::Standard => vec![
                entry(labels::INSTANCE_ACCELERATOR_COUNT, Operator::DoesNotExist, &[]),
                entry(labels::INSTANCE_GPU_COUNT, Operator::DoesNotExist, &[]),
            ],
            Self::Nvidia => vec![entry(labels::INSTANCE_GPU_COUNT, Operator::Exists, &[])],
            Self::Neuron => vec![entry(labels::INSTANCE_ACCELERATOR_COUNT, Operator::Exists, &[])],
            Self::Windows(family) => vec![
                entry(labels::OS, Operator::In, &["windows"]),
                entry(
                    labels::WINDOWS_BUILD,
                    Operator::In,
                    &[family.windows_build().unwrap_or_default()],
                ),
            ],
        }
    }
}

/// SSM parameters that name a family's images, with what each image is for.
#[must_use]
pub fn ssm_parameters(
    family: AmiFamily,
    kubernetes: &str,
    version: &str,
) -> Vec<(String, Vec<Variant>)> {
    use Variant::{Neuron, Nvidia, Standard, Windows};
    let latest = version == "latest";
    let eks = format!("/aws/service/eks/optimized-ami/{kubernetes}");
    match family {
        AmiFamily::Al2 => [
            ("amazon-linux-2", "node", vec![Standard]),
            ("amazon-linux-2-arm64", "arm64-node", vec![Standard]),
            ("amazon-linux-2-gpu", "gpu-node", vec![Neuron, Nvidia]),
        ]
        .into_iter()
        .map(|(folder, infix, variants)| {
            let image = if latest {
                "recommended".to_owned()
            } else {
                format!("amazon-eks-{infix}-{kubernetes}-{version}")
            };
            (format!("{eks}/{folder}/{image}/image_id"), variants)
        })
        .collect(),
        AmiFamily::Al2023 => [
            ("x86_64", "standard", Standard),
            ("x86_64", "nvidia", Nvidia),
            ("x86_64", "neuron", Neuron),
            ("arm64", "standard", Standard),
            ("arm64", "nvidia", Nvidia),
        ]
        .into_iter()
        .map(|(arch, name, variant)| {
            let image = if latest {
                "recommended".to_owned()
            } else {
                format!("amazon-eks-node-al2023-{arch}-{name}-{kubernetes}-{version}")
            };
            (format!("{eks}/amazon-linux-2023/{arch}/{name}/{image}/image_id"), vec![variant])
        })
        .collect(),
        AmiFamily::Bottlerocket => {
            let release = version.trim_start_matches('v');
            [
                ("", "x86_64", vec![Standard, Neuron]),
                ("", "arm64", vec![Standard]),
                ("-nvidia", "x86_64", vec![Nvidia]),
                ("-nvidia", "arm64", vec![Nvidia]),
            ]
            .into_iter()
            .map(|(flavour, arch, variants)| {
                let base = format!("/aws/service/bottlerocket/aws-k8s-{kubernetes}{flavour}");
                (format!("{base}/{arch}/{release}/image_id"), variants)
            })
            .collect()
        }
        AmiFamily::Windows2019 | AmiFamily::Windows2022 | AmiFamily::Windows2025 => {
            let year = &family.as_str()["Windows".len()..];
            vec![(
                format!(
                    "/aws/service/ami-windows-latest/Windows_Server-{year}-English-Core-EKS_Optimized-{kubernetes}/image_id"
                ),
                vec![Windows(family)],
            )]
        }
        AmiFamily::Custom => Vec::new(),
    }
}

/// Why a node class's images could not be found.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AmiError {
    /// The alias cannot be used with this Kubernetes version.
    #[error("{0}")]
    UnsupportedAlias(String),
    /// Anything else.
    #[error("getting amis, {0}")]
    Other(String),
}

/// Finds images.
#[derive(Debug)]
pub struct Provider {
    clients: Clients,
    clock: Clock,
    /// Parameter values that may move; a `recommended` image changes rarely.
    parameters: TtlCache<String, String>,
    custom_parameters: TtlCache<String, String>,
    images: TtlCache<String, Vec<Ami>>,
}

impl Provider {
    /// A provider with empty caches.
    #[must_use]
    pub fn new(clients: Clients, clock: &Clock, refresh: Duration) -> Self {
        Self {
            clients,
            clock: clock.clone(),
            parameters: TtlCache::new(clock.clone(), Duration::from_secs(24 * 3600)),
            custom_parameters: TtlCache::new(clock.clone(), Duration::from_secs(300)),
            images: TtlCache::new(clock.clone(), refresh),
        }
    }

    /// The images of a node class, newest first.
    ///
    /// # Errors
    /// When the alias does not go with the Kubernetes version, or AWS cannot be asked.
    pub async fn list(&self, class: &EC2NodeClass, kubernetes: &str) -> Result<Vec<Ami>, AmiError> {
        let queries = self.queries(class, kubernetes).await?;
        let key = super::select::cache_key(&class.metadata);
        if let Some(cached) = self.images.get(&key) {
            return Ok(cached);
        }
        let mut known: BTreeMap<String, Vec<Variant>> = BTreeMap::new();
        let mut images: BTreeMap<String, Image> = BTreeMap::new();
        for query in queries {
            for (id, variants) in &query.known {
                known.insert(id.clone(), variants.clone());
            }
            for image in self.describe(&query).await.map_err(|e| AmiError::Other(e.to_string()))? {
                images.insert(image.image_id().unwrap_or_default().to_owned(), image);
            }
        }
        let chosen = choose(images.into_values(), &known, self.clock.now());
        self.images.set(key, chosen.clone());
        Ok(chosen)
    }

    async fn queries(
        &self,
        class: &EC2NodeClass,
        kubernetes: &str,
    ) -> Result<Vec<Query>, AmiError> {
        let terms = &class.spec.ami_selector_terms;
        if let Some(alias) = terms.iter().find_map(|t| t.alias.as_deref()) {
            return Ok(vec![self.alias_query(alias, kubernetes).await?]);
        }
        let mut queries = Vec::new();
        let mut ids: Vec<String> = Vec::new();
        for term in terms {
            if let Some(id) = &term.id {
                ids.push(id.clone());
            } else if let Some(parameter) = &term.ssm_parameter {
                ids.extend(self.custom_parameter(parameter).await?);
            } else {
                queries.push(Query::of_term(term));
            }
        }
        if !ids.is_empty() {
            queries.push(Query { filters: vec![filter("image-id", ids)], ..Query::default() });
        }
        Ok(queries)
    }

    async fn alias_query(&self, alias: &str, kubernetes: &str) -> Result<Query, AmiError> {
        let (name, version) = alias.split_once('@').unwrap_or((alias, "latest"));
        let family = AmiFamily::parse(name).unwrap_or(AmiFamily::Custom);
        check_alias(family, kubernetes)?;
        let mut known = BTreeMap::new();
        for (parameter, variants) in ssm_parameters(family, kubernetes, version) {
            if let Ok(id) = self.parameter(&parameter, &self.parameters).await {
                known.insert(id, variants);
            }
        }
        if known.is_empty() {
            return Err(AmiError::Other(format!(
                "failed to discover any AMIs for alias (alias={alias})"
            )));
        }
        let ids = known.keys().cloned().collect();
        Ok(Query { filters: vec![filter("image-id", ids)], known, ..Query::default() })
    }

    async fn custom_parameter(&self, name: &str) -> Result<Option<String>, AmiError> {
        match self.parameter(name, &self.custom_parameters).await {
            Ok(id) if id.starts_with("ami-") => Ok(Some(id)),
            Ok(id) => {
                tracing::debug!(
                    "ssmParameter" = name,
                    "id" = id,
                    "parameter value is an invalid AMI ID"
                );
                Ok(None)
            }
            Err(error) if error.is_not_found() => {
                tracing::debug!("ssmParameter" = name, "parameter not found");
                Ok(None)
            }
            Err(error) => Err(AmiError::Other(format!("resolving ssm parameter, {error}"))),
        }
    }

    async fn parameter(
        &self,
        name: &str,
        cache: &TtlCache<String, String>,
    ) -> Result<String, AwsError> {
        if let Some(value) = cache.get(&name.to_owned()) {
            return Ok(value);
        }
        let answer = self
            .clients
            .ssm
            .get_parameter()
            .name(name)
            .send()
            .await
            .map_err(|e| AwsError::new("GetParameter", &e))?;
        let value = answer.parameter().and_then(|p| p.value()).unwrap_or_default().to_owned();
        tracing::info!("parameter" = name, "value" = value, "discovered ssm parameter");
        cache.set(name.to_owned(), value.clone());
        Ok(value)
    }

    async fn describe(&self, query: &Query) -> Result<Vec<Image>, AwsError> {
        let mut pages = self
            .clients
            .ec2
            .describe_images()
            .set_owners((!query.owners.is_empty()).then(|| query.owners.clone()))
            .set_filters(Some(query.filters.clone()))
            .filters(filter("state", vec!["available".to_owned()]))
            .include_deprecated(true)
            .into_paginator()
            .page_size(1000)
            .send();
        let mut images = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| AwsError::new("DescribeImages", &e))?;
            images.extend(page.images.unwrap_or_default());
        }
        Ok(images)
    }
}

#[derive(Debug, Default)]
struct Query {
    owners: Vec<String>,
    filters: Vec<Filter>,
    /// What each image is for, where the query knows.
    known: BTreeMap<String, Vec<Variant>>,
}

impl Query {
    fn of_term(term: &AmiSelectorTerm) -> Self {
        let mut filters = Vec::new();
        let mut owners: Vec<String> = term.owner.iter().cloned().collect();
        if let Some(name) = &term.name {
            filters.push(filter("name", vec![name.clone()]));
            if owners.is_empty() {
                owners = vec!["self".to_owned(), "amazon".to_owned()];
            }
        }
        filters.extend(tag_filters(term.tags.as_ref()));
        Self { owners, filters, known: BTreeMap::new() }
    }
}

fn check_alias(family: AmiFamily, kubernetes: &str) -> Result<(), AmiError> {
    let minor: u32 = kubernetes.split('.').nth(1).and_then(|m| m.parse().ok()).unwrap_or(0);
    if family == AmiFamily::Al2 && minor >= 33 {
        return Err(AmiError::UnsupportedAlias(
            "AL2 aliases are no longer supported on EKS 1.33+ (see https://docs.aws.amazon.com/eks/latest/userguide/eks-ami-deprecation-faqs.html)".to_owned(),
        ));
    }
    if family == AmiFamily::Windows2025 && minor < 35 {
        return Err(AmiError::UnsupportedAlias(format!(
            "Windows Server 2025 requires EKS version 1.35 or higher, current version: {kubernetes}"
        )));
    }
    Ok(())
}

/// One image a set of requirements: the newest that is not deprecated.
fn choose(
    images: impl Iterator<Item = Image>,
    known: &BTreeMap<String, Vec<Variant>>,
    now: Timestamp,
) -> Vec<Ami> {
    struct Candidate {
        ami: Ami,
        created: i64,
    }
    let mut winners: Vec<Candidate> = Vec::new();
    for image in images {
        let arch = match image.architecture().map(aws_sdk_ec2::types::ArchitectureValues::as_str) {
            Some("x86_64") => labels::ARCH_AMD64,
            Some("arm64") => labels::ARCH_ARM64,
            _ => continue,
        };
        let seconds = |text: Option<&str>| {
            text.and_then(|t| t.parse::<Timestamp>().ok()).map(Timestamp::as_second)
        };
        let id = image.image_id().unwrap_or_default().to_owned();
        let created = seconds(image.creation_date()).unwrap_or(i64::MIN);
        let deprecated = seconds(image.deprecation_time()).is_some_and(|at| at <= now.as_second());
        let variants = known.get(&id).map_or_else(
            || vec![Vec::new()],
            |list| list.iter().map(|v| v.requirements()).collect(),
        );
        for mut requirements in variants {
            requirements.push(AmiRequirement {
                key: labels::ARCH.to_owned(),
                operator: Operator::In,
                values: vec![arch.to_owned()],
            });
            requirements
                .sort_by(|a, b| a.key.len().cmp(&b.key.len()).then_with(|| a.key.cmp(&b.key)));
            let ami = Ami {
                deprecated: deprecated.then_some(true),
                id: id.clone(),
                name: image.name().map(str::to_owned),
                requirements,
            };
            let candidate = Candidate { ami, created };
            let rank = |c: &Candidate| {
                (c.ami.deprecated.is_none(), c.created, c.ami.name.clone().unwrap_or_default())
            };
            match winners.iter_mut().find(|w| w.ami.requirements == candidate.ami.requirements) {
                Some(winner) if rank(&candidate) > rank(winner) => *winner = candidate,
                Some(_) => {}
                None => winners.push(candidate),
            }
        }
    }
    winners.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.ami.id.cmp(&b.ami.id)));
    winners.into_iter().map(|c| c.ami).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_come_from_the_setting_or_the_alias() {
        let class =
            |v: serde_json::Value| EC2NodeClass::new("x", serde_json::from_value(v).unwrap());
        let alias = serde_json::json!([{"alias": "al2023@latest"}]);
        assert_eq!(
            AmiFamily::of(&class(serde_json::json!({"amiSelectorTerms": alias}))),
            AmiFamily::Al2023
        );
        assert_eq!(
            AmiFamily::of(&class(
                serde_json::json!({"amiFamily": "Custom", "amiSelectorTerms": alias})
            )),
            AmiFamily::Custom
        );
        assert_eq!(
            AmiFamily::of(&class(serde_json::json!({"amiSelectorTerms": [{"id": "ami-1"}]}))),
            AmiFamily::Custom
        );
    }

    #[test]
    fn parameters_follow_version_and_variant() {
        let list = ssm_parameters(AmiFamily::Al2023, "1.35", "latest");
        assert_eq!(
            list[0].0,
            "/aws/service/eks/optimized-ami/1.35/amazon-linux-2023/x86_64/standard/recommended/image_id"
        );
        let list = ssm_parameters(AmiFamily::Al2, "1.30", "v20240807");
        assert_eq!(
            list[1].0,
            "/aws/service/eks/optimized-ami/1.30/amazon-linux-2-arm64/amazon-eks-arm64-node-1.30-v20240807/image_id"
        );
        let list = ssm_parameters(AmiFamily::Bottlerocket, "1.35", "v1.20.3");
        assert_eq!(
            list[2].0,
            "/aws/service/bottlerocket/aws-k8s-1.35-nvidia/x86_64/1.20.3/image_id"
        );
    }

    #[test]
    fn the_newest_image_that_is_not_deprecated_wins() {
        let image = |id: &str, created: &str, deprecated: Option<&str>| {
            Image::builder()
                .image_id(id)
                .name(id)
                .architecture("x86_64".into())
                .creation_date(created)
                .set_deprecation_time(deprecated.map(str::to_owned))
                .build()
        };
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let list = choose(
            [
                image("ami-old", "2024-01-01T00:00:00Z", None),
                image("ami-new", "2025-01-01T00:00:00Z", None),
                image("ami-newest", "2025-06-01T00:00:00Z", Some("2025-12-01T00:00:00Z")),
            ]
            .into_iter(),
            &BTreeMap::new(),
            now,
        );
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].id, "ami-new");
    }

    #[test]
    fn al2_ends_with_kubernetes_1_32() {
        assert!(check_alias(AmiFamily::Al2, "1.32").is_ok());
        assert!(check_alias(AmiFamily::Al2, "1.33").is_err());
        assert!(check_alias(AmiFamily::Windows2025, "1.34").is_err());
    }
}
