//! What a launch template is made of: images times groups of instance types that boot alike.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;
use serde_json::{Map, Value};

use super::super::ami::AmiFamily;
use super::super::placementgroup::PlacementGroup;
use super::super::userdata::{Bootstrap, bottlerocket};
use super::{Cluster, TemplateError};
use crate::api::v1::{Ami, EC2NodeClass, NodeClaim};
use crate::api::{annotations, labels, taints};
use crate::cloud::aws::instancetype::devices;
use crate::cloud::aws::kubelet;
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::requirements::{Allow, Requirement, Requirements};
use crate::scheduling::resources::Name;

/// Extended resource of a Nitro enclave.
pub const NITRO_SANDBOX: &str = "eks.amazonaws.com/nitro-sandbox";
/// Extended resource of an elastic fabric adapter.
pub const EFA: &str = "vpc.amazonaws.com/efa";

/// One launch: what is asked for beside the node class.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    pub class: &'a EC2NodeClass,
    pub claim: &'a NodeClaim,
    /// Types that the launch may use.
    pub types: &'a [Arc<InstanceType>],
    pub capacity_type: &'a str,
    /// `default` or `dedicated`.
    pub tenancy: &'a str,
    /// Tags of everything that the launch makes.
    pub tags: &'a BTreeMap<String, String>,
    /// The placement group of the node class, where it has one.
    pub placement: Option<&'a PlacementGroup>,
}

impl Launch<'_> {
    fn requests(&self, resource: &str) -> bool {
        let requests = self.claim.spec.resources.as_ref().and_then(|r| r.requests.as_ref());
        requests.is_some_and(|r| r.contains_key(resource))
    }

    /// True when the pods or the node class want a Nitro enclave.
    pub(super) fn enclave(&self) -> bool {
        self.class.wants_enclaves() || self.requests(NITRO_SANDBOX)
    }

    /// The partition that the claim asks for: the first by its text, as EC2 counts them; 0 for none.
    #[must_use]
    pub fn partition(&self) -> i32 {
        if self.placement.is_none_or(|p| p.strategy != "partition") {
            return 0;
        }
        let requirements = Requirements::from_api(&self.claim.spec.requirements);
        let Some(wanted) = requirements.get(labels::PLACEMENT_GROUP_PARTITION) else { return 0 };
        let mut values: Vec<&str> = wanted.values().collect();
        values.sort_unstable();
        values.first().and_then(|v| v.parse().ok()).unwrap_or(0)
    }
}

/// True when the claim's pods were promised devices of the network driver: without their interfaces
/// the driver has none to publish.
#[must_use]
pub fn wants_network_devices(claim: &NodeClaim) -> bool {
    let marks = claim.metadata.annotations.as_ref();
    let drivers = marks.and_then(|m| m.get(annotations::REQUESTED_DRA_DRIVERS));
    drivers.is_some_and(|d| d.split(',').any(|d| d.trim() == devices::NETWORK))
}

/// The tenancy that a claim's requirements ask for.
#[must_use]
pub fn tenancy(requirements: &Requirements) -> &'static str {
    match requirements.get(labels::INSTANCE_TENANCY) {
        Some(wanted) if !wanted.has("default") => "dedicated",
        _ => "default",
    }
}

/// A capacity reservation that a template launches into.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reservation {
    pub id: String,
    /// `default` or `capacity-block`.
    pub kind: String,
    pub interruptible: bool,
}

/// Instance types that boot from one template.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    pub ami: &'a Ami,
    pub efa: i64,
    /// Kubelet settings with everything filled in.
    pub kubelet: Map<String, Value>,
    pub reservation: Option<Reservation>,
    pub types: Vec<Arc<InstanceType>>,
}

/// Splits the launch's types by image and by what their user data or interfaces differ in.
///
/// # Errors
/// When the node class has no image yet, or none suits any of the types.
pub(super) fn groups<'a>(
    cluster: &Cluster,
    launch: &Launch<'a>,
) -> Result<Vec<Group<'a>>, TemplateError> {
    let amis = launch.class.status.as_ref().map(|s| s.amis.as_slice()).unwrap_or_default();
    if amis.is_empty() {
        return Err(TemplateError::Unsuited("no amis exist given constraints".to_owned()));
    }
    let wants_efa = launch.requests(EFA) || wants_network_devices(launch.claim);
    let mut list = Vec::new();
    for (ami, types) in types_by_ami(amis, launch.types) {
        let mut groups: BTreeMap<_, Group<'a>> = BTreeMap::new();
        for kind in types {
            let efa = if wants_efa { kind.capacity.get(&Name::from(EFA)) } else { 0 };
            let pods = kind.capacity.get(&Name::Pods);
            let settings = kubelet::resolve(cluster, launch.class, &kind);
            let text = serde_json::to_string(&settings).unwrap_or_default();
            for reservation in reservations(launch, &kind) {
                // Everything that differs between the launch templates of one image.
                let key = (efa, pods, text.clone(), reservation.clone());
                let group = groups.entry(key).or_insert_with(|| Group {
                    ami,
                    efa,
                    kubelet: settings.clone(),
                    reservation,
                    types: Vec::new(),
                });
                group.types.push(Arc::clone(&kind));
            }
        }
        list.extend(groups.into_values());
    }
    if list.is_empty() {
        let ids: Vec<&str> = amis.iter().map(|a| a.id.as_str()).collect();
        return Err(TemplateError::Unsuited(format!(
            "no instance types satisfy requirements of amis [{}]",
            ids.join(" ")
        )));
    }
    Ok(list)
}

/// The reservations to launch a type into: one nothing unless capacity is reserved.
fn reservations(launch: &Launch<'_>, kind: &InstanceType) -> Vec<Option<Reservation>> {
    if launch.capacity_type != labels::CAPACITY_RESERVED {
        return vec![None];
    }
    let wanted = Requirements::from_api(&launch.claim.spec.requirements);
    let mut found: Vec<Option<Reservation>> = kind
        .compatible_offerings(&wanted)
        .filter(|o| o.capacity_type() == labels::CAPACITY_RESERVED)
        .map(|offering| {
            let value = |key: &str| offering.requirements.get(key).and_then(Requirement::single);
            Some(Reservation {
                id: offering.reservation_id().to_owned(),
                kind: value(labels::CAPACITY_RESERVATION_TYPE).unwrap_or("default").to_owned(),
                interruptible: value(labels::CAPACITY_RESERVATION_INTERRUPTIBLE) == Some("true"),
            })
        })
        .collect();
    found.sort();
    found.dedup();
    found
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

/// What the user data of a group passes to the node.
pub(super) fn bootstrap(cluster: &Cluster, launch: &Launch<'_>, group: &Group<'_>) -> Bootstrap {
    let (class, claim) = (launch.class, launch.claim);
    let family = AmiFamily::of(class);
    let mut node_labels = claim.metadata.labels.clone().unwrap_or_default();
    node_labels.insert(labels::CAPACITY_TYPE.to_owned(), launch.capacity_type.to_owned());
    // The user data below registers the node with its taints, so Karpenter need not add them. What
    // custom user data does is unknown.
    if family != AmiFamily::Custom {
        node_labels.insert(labels::DO_NOT_SYNC_TAINTS.to_owned(), "true".to_owned());
    }
    Bootstrap {
        cluster_name: cluster.name.clone(),
        cluster_endpoint: cluster.endpoint.clone(),
        cluster_cidr: cluster.cidr.clone(),
        ca_bundle: cluster.ca_bundle.clone(),
        labels: node_labels,
        taints: node_taints(claim),
        kubelet: group.kubelet.clone(),
        raid0: class.spec.instance_store_policy.as_deref() == Some("RAID0"),
        binds_by_itself: family == AmiFamily::Bottlerocket && bottlerocket::binds_by_itself(class),
        custom: class.spec.user_data.clone().unwrap_or_default(),
    }
}

/// The claim's taints, its startup taints, and the one that waits for registration.
fn node_taints(claim: &NodeClaim) -> Vec<Taint> {
    let mut list: Vec<Taint> = claim.spec.taints.clone().unwrap_or_default();
    list.extend(claim.spec.startup_taints.clone().unwrap_or_default());
    let unregistered = taints::unregistered();
    if !list.iter().any(|t| taints::matches(t, &unregistered)) {
        list.push(unregistered);
    }
    list
}
