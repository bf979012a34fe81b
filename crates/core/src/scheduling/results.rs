//! What the solver decided, and why a pod could not be placed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;
use kube::core::ObjectMeta;

use super::dra::ledger::Booked;
use super::instance_type::{InstanceType, Offering};
use super::pod::PodKey;
use super::requirements::{Incompatible, Requirement, Requirements};
use super::resources::ResourceList;
use super::taints::TaintError;
use crate::api::conversion::KUBELET;
use crate::api::v1::{NodeClaim, NodeClaimSpec, NodePool, Operator, ResourceRequirements};
use crate::api::{annotations, hash, labels};

/// Most instance types that a NodeClaim lists, as in Karpenter: the cheapest are kept. It bounds
/// the object's size; the AWS provider launches from far fewer.
pub const MAX_INSTANCE_TYPES: usize = 600;

/// The outcome of one scheduling round.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// NodeClaims to create.
    pub new_claims: Vec<PlannedClaim>,
    /// Pods that go to nodes that exist: node name and pods.
    pub existing: Vec<(String, Vec<PodKey>)>,
    /// Pods that fit nowhere, by name.
    pub errors: Vec<(PodKey, PodError)>,
    /// Pools whose own requirements leave no instance type.
    pub skipped_pools: Vec<SkippedPool>,
    /// Pools whose limits leave out some of their instance types.
    pub limited_pools: Vec<LimitedPool>,
    /// The preferences that were dropped for each pod, step by step; only where `report_relaxations`
    /// asks for it.
    pub relaxed: Vec<(PodKey, Arc<[String]>)>,
    /// How many waiting pods are left with which one zone, `flexible` for several and `none` for
    /// none; only where `count_zones` asks for it.
    pub zones: BTreeMap<String, u32>,
}

/// A pool whose limits leave out some of its instance types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitedPool {
    /// The pool's name.
    pub name: String,
    /// How many of its types are too large for what is left.
    pub excluded: usize,
    /// How many types it has.
    pub total: usize,
}

/// A pool from which nothing can be launched.
#[derive(Clone, Debug)]
pub struct SkippedPool {
    /// The pool.
    pub node_pool: Arc<NodePool>,
    /// Which minValues are not met, when types are left but too few kinds of them.
    pub min_values: Option<String>,
}

/// Instance types to choose from, shared between the claims that have the same.
#[derive(Clone, Debug, Default)]
pub struct TypeList(Arc<Vec<Arc<InstanceType>>>);

impl From<Vec<Arc<InstanceType>>> for TypeList {
    fn from(list: Vec<Arc<InstanceType>>) -> Self {
        Self(Arc::new(list))
    }
}

impl std::ops::Deref for TypeList {
    type Target = Vec<Arc<InstanceType>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl std::ops::DerefMut for TypeList {
    fn deref_mut(&mut self) -> &mut Self::Target {
        Arc::make_mut(&mut self.0)
    }
}

/// A NodeClaim to create.
#[derive(Clone, Debug)]
pub struct PlannedClaim {
    /// The pool it comes from.
    pub node_pool: Arc<NodePool>,
    /// Constraints on the node.
    pub requirements: Requirements,
    /// Taints of the node.
    pub taints: Vec<Taint>,
    /// What its pods and daemons request.
    pub requests: ResourceList,
    /// Types to choose from, cheapest first.
    pub instance_types: TypeList,
    /// Pods meant for it.
    pub pods: Vec<PodKey>,
    /// Whether minValues were lowered.
    pub min_values_relaxed: bool,
    /// Devices for dynamic resources that its pods were given.
    pub devices: Option<Arc<Booked>>,
}

impl PlannedClaim {
    /// The cheapest type and offering.
    #[must_use]
    pub fn cheapest(&self) -> Option<(&Arc<InstanceType>, &Offering)> {
        let first = self.instance_types.first()?;
        Some((first, first.cheapest(&self.requirements)?))
    }

    /// The API object, without a name: the API server appends a random suffix to `<nodepool>-`, so
    /// that names cannot collide.
    #[must_use]
    pub fn to_node_claim(&self) -> NodeClaim {
        let pool = &self.node_pool;
        let name = pool.metadata.name.clone().unwrap_or_default();
        let template = &pool.spec.template;
        let mut requirements = self.requirements.clone();
        // These exist for the simulation only: a stand-in for the host name, and two labels that
        // every node has in the end, so that DaemonSets which select on them count.
        for key in [labels::HOSTNAME, labels::REGISTERED, labels::INITIALIZED] {
            requirements.remove(key);
        }
        // A static pool's claim names no types: the provider chooses among all of the pool's.
        if !self.instance_types.is_empty() {
            let wanted = requirements.get(labels::INSTANCE_TYPE);
            let min_values = wanted.and_then(Requirement::min_values);
            let names = self.instance_types.iter().map(|t| t.name.as_ref());
            requirements.replace(
                Requirement::new(labels::INSTANCE_TYPE, Operator::In, names)
                    .with_min_values(min_values),
            );
        }
        // Karpenter narrows the capacity type to those that the chosen instance types are offered
        // with, but does not narrow the zone.
        let capacity_types: Vec<&str> = self
            .instance_types
            .iter()
            .flat_map(|t| t.compatible_offerings(&self.requirements))
            .map(Offering::capacity_type)
            .filter(|c| !c.is_empty())
            .collect();
        if !capacity_types.is_empty() {
            requirements.replace(Requirement::new(
                labels::CAPACITY_TYPE,
                Operator::In,
                capacity_types,
            ));
        }
        let mut claim_labels: BTreeMap<String, String> =
            template.metadata.labels.clone().unwrap_or_default();
        claim_labels.extend(requirements.labels());
        claim_labels.insert(labels::NODEPOOL.to_owned(), name.clone());
        let class = &template.spec.node_class_ref;
        claim_labels
            // A label of Karpenter's, by which nodes can be listed by their NodeClass.
            .insert(format!("{}/{}", class.group, class.kind.to_lowercase()), class.name.clone());
        let mut claim_annotations = template.metadata.annotations.clone().unwrap_or_default();
        claim_annotations.extend([
            (annotations::NODEPOOL_HASH.to_owned(), hash::node_pool_hash(pool)),
            (
                annotations::NODEPOOL_HASH_VERSION.to_owned(),
                annotations::NODEPOOL_HASH_VERSION_VALUE.to_owned(),
            ),
        ]);
        // A NodePool that was converted from v1beta1 keeps its kubelet configuration in this
        // annotation, and the claim needs it at launch.
        let kubelet = pool.metadata.annotations.as_ref().and_then(|a| a.get(KUBELET));
        claim_annotations.extend(kubelet.map(|text| (KUBELET.to_owned(), text.clone())));
        // The claims of a static pool are made without scheduling, so that no minValues can have
        // been relaxed.
        if pool.spec.replicas.is_none() {
            let relaxed = self.min_values_relaxed.to_string();
            claim_annotations.insert(annotations::MIN_VALUES_RELAXED.to_owned(), relaxed);
        }
        // The node counts as initialized only once these drivers have published its devices.
        if let Some(devices) = self.devices.as_ref().filter(|d| !d.drivers.is_empty()) {
            let drivers = devices.drivers.join(",");
            claim_annotations.insert(annotations::REQUESTED_DRA_DRIVERS.to_owned(), drivers);
        }
        let overlays = [
            (
                annotations::PRICE_OVERLAY_APPLIED,
                self.instance_types.iter().flat_map(|t| &t.offerings).any(|o| o.price_overlay),
            ),
            (
                annotations::CAPACITY_OVERLAY_APPLIED,
                self.instance_types.iter().any(|t| t.capacity_overlay),
            ),
        ];
        for (key, _) in overlays.into_iter().filter(|(_, applied)| *applied) {
            claim_annotations.insert(key.to_owned(), "true".to_owned());
        }
        let mut claim = NodeClaim::new(
            "",
            NodeClaimSpec {
                expire_after: template.spec.expire_after.clone(),
                node_class_ref: class.clone(),
                requirements: requirements.to_api(),
                resources: (!self.requests.is_empty()).then(|| ResourceRequirements {
                    requests: Some(self.requests.to_quantities()),
                }),
                startup_taints: template.spec.startup_taints.clone(),
                taints: template.spec.taints.clone(),
                termination_grace_period: template.spec.termination_grace_period.clone(),
            },
        );
        claim.metadata = ObjectMeta {
            generate_name: Some(format!("{name}-")),
            labels: Some(claim_labels),
            annotations: Some(claim_annotations),
            owner_references: Some(vec![OwnerReference {
                api_version: NodePool::api_version(&()).into_owned(),
                kind: NodePool::kind(&()).into_owned(),
                name,
                uid: pool.metadata.uid.clone().unwrap_or_default(),
                // Deleting the NodePool deletes its claims; with foreground deletion it waits for
                // them.
                block_owner_deletion: Some(true),
                controller: None,
            }]),
            ..ObjectMeta::default()
        };
        claim
    }
}

/// Why a pod could not be placed.
#[derive(Clone, Debug, PartialEq)]
pub enum PodError {
    /// The pod asks for dynamic resources, which the settings ignore.
    DynamicResources,
    /// A ResourceClaim that the pod refers to does not exist or cannot be read.
    Claims(String),
    /// There is no NodePool that serves waiting pods.
    NoPools,
    /// No template is left to launch from.
    NoTemplates,
    /// Reserved capacity would do, but is taken for now. The pod waits for the next round rather
    /// than pay for other capacity.
    Reserved(&'static str),
    /// The list of types that a NodeClaim may hold is too short for minValues.
    MinValues { pool: String, text: String },
    /// Each NodePool's reason, in the order they were tried.
    Pools(Vec<(String, Reason)>),
}

impl fmt::Display for PodError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DynamicResources => f.write_str(
                "pod has Dynamic Resource Allocation requirements that are not yet supported by Karpenter",
            ),
            Self::Claims(text) => f.write_str(text),
            Self::NoPools => f.write_str("no dynamic nodepools found"),
            Self::NoTemplates => {
                f.write_str("nodepool requirements filtered out all available instance types")
            }
            Self::Reserved(text) => f.write_str(text),
            Self::MinValues { pool, text } => write!(
                f,
                "pod didn’t schedule because NodePool couldn’t meet minValues requirements, validating minValues, {text} (NodePool={pool})"
            ),
            Self::Pools(pools) => {
                for (i, (_, reason)) in pools.iter().enumerate() {
                    let separator = if i == 0 { "" } else { "; " };
                    write!(f, "{separator}{reason}")?;
                }
                Ok(())
            }
        }
    }
}

/// Why a candidate refused a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Reason {
    /// A taint that the pod does not tolerate.
    Taint(TaintError),
    /// Requirements without a common value.
    Requirements(Incompatible),
    /// The pod's volumes are elsewhere.
    Volumes(Incompatible),
    /// Reserved capacity would do, but is taken.
    Reserved(&'static str),
    /// No instance type has devices for the pod's claims.
    Devices(String),
    /// Some types have devices for the pod's claims and others suit the pod, but no type does both.
    DevicesApart,
    /// The pool's node limit is reached.
    NodeLimit(String),
    /// Every type would exceed the pool's limits.
    Limits(String),
    /// No instance type is left.
    NoInstanceType(Box<FilterError>),
    /// A topology rule leaves no domain.
    Topology(String),
    /// No type can attach as many volumes.
    VolumeLimits,
    /// A host port is taken.
    HostPort,
    /// Too little room.
    Resources,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Taint(e) => e.fmt(f),
            Self::Requirements(e) => write!(f, "incompatible requirements, {e}"),
            Self::Volumes(e) => write!(f, "incompatible volume requirements, {e}"),
            Self::Reserved(text) => f.write_str(text),
            Self::Devices(text) => write!(f, "allocating dynamic resources, {text}"),
            Self::DevicesApart => f.write_str(
                "no instance type satisfies both scheduling and dynamic resource requirements",
            ),
            Self::NodeLimit(pool) => {
                write!(f, "node limits have been exhausted for nodepool (NodePool={pool})")
            }
            Self::Limits(pool) => write!(
                f,
                "all available instance types exceed limits for nodepool (NodePool={pool})"
            ),
            Self::NoInstanceType(e) => e.fmt(f),
            Self::Topology(text) => f.write_str(text),
            Self::VolumeLimits => {
                f.write_str("would exceed volume limit for all instance type options")
            }
            Self::HostPort => {
                f.write_str("pod hostport conflicts with existing hostport configuration")
            }
            Self::Resources => f.write_str("exceeds node resources"),
        }
    }
}

/// Why no instance type was left: which checks some type passed, one by one and in pairs. The
/// messages are Karpenter's word for word, so that alerts which match them go on working.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FilterError {
    /// minValues that are not met: the message.
    pub min_values: Option<String>,
    pub requirements_met: bool,
    pub fits: bool,
    pub has_offering: bool,
    pub requirements_and_fits: bool,
    pub requirements_and_offering: bool,
    pub fits_and_offering: bool,
    /// What was asked for.
    pub requirements: Requirements,
    /// Requests with the least and the most daemon overhead.
    pub requests: (ResourceList, ResourceList),
    /// The pod asks for a million cores or more, most likely because of `M` (mega) written for `m`
    /// (milli).
    pub absurd_cpu: bool,
}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (r, fits, o) = (self.requirements_met, self.fits, self.has_offering);
        // Single checks come before pairs: a check that no type passed is the cause by itself.
        let text = if let Some(text) = &self.min_values {
            text
        } else if !r && !fits && !o {
            "no instance type met the scheduling requirements or had enough resources or had a required offering"
        } else if !r && !fits {
            "no instance type met the scheduling requirements or had enough resources"
        } else if !r && !o {
            "no instance type met the scheduling requirements or had a required offering"
        } else if !fits && !o {
            "no instance type had enough resources or had a required offering"
        } else if !r {
            "no instance type met all requirements"
        } else if !fits {
            "no instance type has enough resources"
        } else if !o {
            "no instance type has the required offering"
        } else if self.requirements_and_fits {
            "no instance type which met the scheduling requirements and had enough resources, had a required offering"
        } else if self.fits_and_offering {
            "no instance type which had enough resources and the required offering met the scheduling requirements"
        } else if self.requirements_and_offering {
            "no instance type which met the scheduling requirements and the required offering had the required resources"
        } else {
            "no instance type met the requirements/resources/offering tuple"
        };
        write!(f, "{text}, requirements={}", self.requirements)?;
        if self.requests.0 == self.requests.1 {
            write!(f, ", resources={}", self.requests.0)?;
        } else {
            write!(f, ", resources=min={}, max={}", self.requests.0, self.requests.1)?;
        }
        if self.min_values.is_none() && r && o && !fits && self.absurd_cpu {
            f.write_str(" (CPU request >= 1 Million, m vs M typo?)")?;
        }
        Ok(())
    }
}
