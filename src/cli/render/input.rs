//! The files that `karpenter render` reads, and placeholders for what they lack.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use serde::Deserialize;

use crate::api::v1::{Ami, AmiRequirement, EC2NodeClass, Operator, SecurityGroup};
use crate::api::yaml;
use crate::cloud::aws::ami::AmiFamily;
use crate::cloud::aws::launchtemplate::Cluster;
use crate::cloud::aws::placementgroup::PlacementGroup;

pub(super) use crate::cli::object::{InputError, object};

/// What is known of the cluster.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Info {
    pub cluster_name: Option<String>,
    pub cluster_endpoint: Option<String>,
    #[serde(rename = "clusterCABundle")]
    pub cluster_ca_bundle: Option<String>,
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: Option<String>,
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: Option<String>,
    pub region: Option<String>,
    pub instance_profile: Option<String>,
    pub amis: Vec<Ami>,
    pub security_groups: Vec<SecurityGroup>,
    pub placement_group: Option<Placement>,
    pub feature_gates: BTreeMap<String, bool>,
}

/// The placement group that the node class selects.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Placement {
    pub id: String,
    #[serde(default = "cluster_strategy")]
    pub strategy: String,
}

fn cluster_strategy() -> String {
    "cluster".to_owned()
}

impl Info {
    /// A feature gate, where the file sets it.
    pub(super) fn gate(&self, name: &str) -> Option<bool> {
        self.feature_gates.get(name).copied()
    }
}

fn read(path: &Path) -> Result<String, InputError> {
    let error = |e: std::io::Error| InputError::new(path.display(), e);
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(error)?;
        return Ok(text);
    }
    std::fs::read_to_string(path).map_err(error)
}

/// The file of `--cluster-info`.
pub(super) fn info(path: &Path) -> Result<Info, InputError> {
    yaml::read(&read(path)?).map_err(|e| InputError::new(path.display(), e))
}

/// The cluster as far as it is known.
pub(super) fn cluster(info: &Info, family: AmiFamily, notes: &mut Vec<String>) -> Cluster {
    // Custom user data is rendered as it is, without endpoint and CA.
    let passed = family != AmiFamily::Custom;
    let mut or = |value: &Option<String>, field: &str, needed: bool, placeholder: &str| {
        value.clone().unwrap_or_else(|| {
            if needed {
                notes.push(format!("{field} is not given; a placeholder stands for it"));
            }
            placeholder.to_owned()
        })
    };
    let ca = base64::engine::general_purpose::STANDARD.encode("CLUSTER_CA_BUNDLE");
    Cluster {
        name: or(&info.cluster_name, "clusterName", true, "CLUSTER_NAME"),
        region: or(&info.region, "region", false, ""),
        endpoint: or(&info.cluster_endpoint, "clusterEndpoint", passed, "https://CLUSTER_ENDPOINT"),
        ca_bundle: or(&info.cluster_ca_bundle, "clusterCABundle", passed, &ca),
        cidr: Some(or(
            &info.cluster_cidr,
            "clusterCIDR",
            family == AmiFamily::Al2023,
            "10.100.0.0/16",
        )),
        dns_ip: info.cluster_dns.clone(),
        reserved_capacity: info.gate("ReservedCapacity").unwrap_or(true),
        kubelet_expressions: info.gate("NodeClassCEL").unwrap_or(false),
    }
}

/// The placement group of the class, from the file, the selector, or a placeholder.
pub(super) fn placement(
    class: &EC2NodeClass,
    info: &Info,
    notes: &mut Vec<String>,
) -> Option<PlacementGroup> {
    let selector = class.spec.placement_group_selector.as_ref()?;
    if let Some(known) = info.placement_group.clone() {
        let (id, strategy) = (known.id, known.strategy);
        return Some(PlacementGroup { id, strategy, ..PlacementGroup::default() });
    }
    notes.push(
        "placementGroup is not known; the selector or a placeholder stands for it".to_owned(),
    );
    let id = selector.id.clone().unwrap_or_else(|| "pg-SELECTED".to_owned());
    Some(PlacementGroup { id, strategy: cluster_strategy(), ..PlacementGroup::default() })
}

/// Fills in what the class's status would have, from the file, the selectors, or placeholders.
pub(super) fn complete(class: &mut EC2NodeClass, info: &Info, notes: &mut Vec<String>) {
    let spec = class.spec.clone();
    let status = class.status.get_or_insert_default();
    if !info.amis.is_empty() {
        status.amis.clone_from(&info.amis);
    }
    if status.amis.is_empty() {
        notes.push("amis are not known; the selectors or placeholders stand for them".to_owned());
        let named: Vec<&String> =
            spec.ami_selector_terms.iter().filter_map(|t| t.id.as_ref()).collect();
        status.amis = if named.is_empty() {
            vec![ami("ami-AMD64", Some("amd64")), ami("ami-ARM64", Some("arm64"))]
        } else {
            named.into_iter().map(|id| ami(id, None)).collect()
        };
    }
    if !info.security_groups.is_empty() {
        status.security_groups.clone_from(&info.security_groups);
    }
    if status.security_groups.is_empty() {
        notes.push(
            "securityGroups are not known; the selectors or a placeholder stand for them"
                .to_owned(),
        );
        let ids = spec.security_group_selector_terms.iter().filter_map(|t| t.id.clone());
        status.security_groups = ids.map(|id| SecurityGroup { id, name: None }).collect();
        if status.security_groups.is_empty() {
            status.security_groups =
                vec![SecurityGroup { id: "sg-SELECTED".to_owned(), name: None }];
        }
    }
    let profile = info.instance_profile.clone().or(spec.instance_profile);
    if profile.is_some() {
        status.instance_profile = profile;
    }
    if status.instance_profile.is_none() {
        notes.push("instanceProfile is not known; a placeholder stands for it".to_owned());
        status.instance_profile = Some("INSTANCE_PROFILE".to_owned());
    }
}

fn ami(id: &str, arch: Option<&str>) -> Ami {
    let requirement = |arch: &str| AmiRequirement {
        key: crate::api::labels::ARCH.to_owned(),
        operator: Operator::In,
        values: vec![arch.to_owned()],
    };
    Ami {
        id: id.to_owned(),
        requirements: arch.map(requirement).into_iter().collect(),
        ..Ami::default()
    }
}
