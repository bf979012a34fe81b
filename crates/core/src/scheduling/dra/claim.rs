//! ResourceClaims and DeviceClasses, parsed, and the claims that pods refer to.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PodSpec, PodStatus, Toleration};
use k8s_openapi::api::resource::v1::{
    AllocationResult, CapacityRequirements, DeviceClass, DeviceConstraint, DeviceRequest,
    DeviceSelector, DeviceToleration, ResourceClaim, ResourceClaimConsumerReference,
    ResourceClaimSpec,
};

use super::device::{Amount, Qualified, Term, amount, qualified};
use super::{ClaimKey, DeviceId};

/// An entry of a pod's `resourceClaims`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodClaim {
    /// The entry's name.
    pub name: Arc<str>,
    /// The claim that it stands for.
    pub source: ClaimSource,
}

/// Which claim an entry stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ClaimSource {
    /// The claim of that name.
    Claim(Arc<str>),
    /// A claim that is still to be made from a template of that name.
    Template(Arc<str>),
    /// None: the claim controller decided that the entry needs no claim.
    Nothing,
}

/// The claims that a pod refers to.
#[must_use]
pub fn pod_claims(spec: &PodSpec, status: Option<&PodStatus>) -> Vec<PodClaim> {
    let made = status.and_then(|s| s.resource_claim_statuses.as_deref()).unwrap_or_default();
    let source = |entry: &k8s_openapi::api::core::v1::PodResourceClaim| {
        if let Some(name) = &entry.resource_claim_name {
            return ClaimSource::Claim(Arc::from(name.as_str()));
        }
        match made.iter().find(|m| m.name == entry.name) {
            Some(made) => match &made.resource_claim_name {
                Some(name) => ClaimSource::Claim(Arc::from(name.as_str())),
                None => ClaimSource::Nothing,
            },
            None => ClaimSource::Template(Arc::from(
                entry.resource_claim_template_name.as_deref().unwrap_or_default(),
            )),
        }
    };
    let entries = spec.resource_claims.iter().flatten();
    entries.map(|e| PodClaim { name: Arc::from(e.name.as_str()), source: source(e) }).collect()
}

/// The name used here for a claim that is still to be created from a template. The real name ends
/// in a random suffix, and so is not known yet.
#[must_use]
pub fn generated_name(pod: &str, entry: &str) -> String {
    format!("{pod}-{entry}")
}

/// How many devices a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// So many.
    Count(usize),
    /// All that match, at least one.
    All,
}

/// One way to satisfy a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// `request` or `request/subrequest`.
    pub name: Arc<str>,
    /// The class of the devices.
    pub class: Arc<str>,
    /// CEL expressions, all of which must hold.
    pub selectors: Vec<Arc<str>>,
    /// How many devices.
    pub mode: Mode,
    /// `adminAccess`: devices in use are allowed, and taking them does not make them unavailable to
    /// others.
    pub admin: bool,
    /// Device taints that do not matter.
    pub tolerations: Vec<Toleration>,
    /// Capacities that are asked for.
    pub capacity: Vec<(Arc<str>, Amount)>,
}

/// A request of a claim: the first choice that can be satisfied is taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Its name.
    pub name: Arc<str>,
    /// The ways to satisfy it, best first.
    pub choices: Vec<Choice>,
}

/// Devices that must have a value in common.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    /// The attribute.
    pub attribute: Qualified,
    /// `request` or `request/subrequest`; empty for all requests.
    pub requests: Vec<Arc<str>>,
}

impl Match {
    /// Whether the constraint is about a request's choice.
    #[must_use]
    pub fn concerns(&self, request: &str, choice: &str) -> bool {
        self.requests.is_empty() || self.requests.iter().any(|r| **r == *request || **r == *choice)
    }
}

/// A device that a claim holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// Which one.
    pub device: DeviceId,
    /// The capacity that the claim consumes, when the device is shared.
    pub consumed: Vec<(Arc<str>, Amount)>,
    /// The share's id, when it is shared.
    pub share: Option<Arc<str>>,
    /// Held with `adminAccess`, which leaves the device to others.
    pub admin: bool,
}

/// What a claim was given.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// Its devices.
    pub devices: Vec<Held>,
    /// The nodes that can reach them; `None` for all.
    pub nodes: Option<Arc<[Term]>>,
}

/// A pod that uses a claim of its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The pod's unique id.
    pub uid: Arc<str>,
    /// The pod's name.
    pub name: Arc<str>,
}

impl User {
    fn new(reference: &ResourceClaimConsumerReference) -> Self {
        Self { uid: Arc::from(reference.uid.as_str()), name: Arc::from(reference.name.as_str()) }
    }
}

/// A claim.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// Namespace and name.
    pub key: ClaimKey,
    /// What it asks for.
    pub requests: Vec<Request>,
    /// What its devices must have in common.
    pub matches: Vec<Match>,
    /// What it was given.
    pub allocation: Option<Allocation>,
    /// The pods that use it.
    pub pods: Vec<User>,
    /// Something other than a pod uses it.
    pub other_users: bool,
    /// Why it cannot be served, if so.
    pub invalid: Option<String>,
}

impl Claim {
    /// Parses a claim.
    #[must_use]
    pub fn new(object: &ResourceClaim) -> Self {
        let meta = &object.metadata;
        let key = ClaimKey::new(
            meta.namespace.as_deref().unwrap_or("default"),
            meta.name.as_deref().unwrap_or_default(),
        );
        let status = object.status.as_ref();
        let users = status.and_then(|s| s.reserved_for.as_deref()).unwrap_or_default();
        let is_pod = |u: &&ResourceClaimConsumerReference| {
            u.resource == "pods" && u.api_group.as_deref().unwrap_or_default().is_empty()
        };
        Self {
            allocation: status.and_then(|s| s.allocation.as_ref()).map(allocation),
            pods: users.iter().filter(is_pod).map(User::new).collect(),
            // The API allows users other than pods. Nothing is known of them, so that their claim's
            // devices are never considered free.
            other_users: users.iter().any(|u| !is_pod(&u)),
            ..Self::from_spec(key, &object.spec)
        }
    }

    /// A claim of that name that asks for this and holds nothing.
    #[must_use]
    pub fn from_spec(key: ClaimKey, spec: &ResourceClaimSpec) -> Self {
        let devices = spec.devices.clone().unwrap_or_default();
        let mut invalid = None;
        let requests = devices
            .requests
            .iter()
            .flatten()
            .filter_map(|r| match request(r) {
                Ok(request) => Some(request),
                Err(why) => {
                    invalid.get_or_insert(why);
                    None
                }
            })
            .collect();
        let matches = devices
            .constraints
            .iter()
            .flatten()
            .filter_map(|c| match constraint(c) {
                Ok(found) => Some(found),
                Err(why) => {
                    invalid.get_or_insert(why);
                    None
                }
            })
            .collect();
        Self {
            key,
            requests,
            matches,
            allocation: None,
            pods: Vec::new(),
            other_users: false,
            invalid,
        }
    }
}

fn allocation(result: &AllocationResult) -> Allocation {
    let held = result.devices.as_ref().and_then(|d| d.results.as_deref()).unwrap_or_default();
    Allocation {
        devices: held
            .iter()
            .map(|r| Held {
                device: DeviceId {
                    driver: Arc::from(r.driver.as_str()),
                    pool: Arc::from(r.pool.as_str()),
                    device: Arc::from(r.device.as_str()),
                },
                consumed: r
                    .consumed_capacity
                    .iter()
                    .flatten()
                    .map(|(name, value)| (Arc::from(name.as_str()), amount(value)))
                    .collect(),
                share: r.share_id.as_deref().map(Arc::from),
                admin: r.admin_access == Some(true),
            })
            .collect(),
        nodes: result.node_selector.as_ref().map(|s| Term::list(s).into()),
    }
}

fn constraint(constraint: &DeviceConstraint) -> Result<Match, String> {
    let Some(attribute) = &constraint.match_attribute else {
        return Err("only matchAttribute constraints are supported".to_owned());
    };
    Ok(Match {
        attribute: qualified(attribute, ""),
        requests: constraint.requests.iter().flatten().map(|r| Arc::from(r.as_str())).collect(),
    })
}

/// The fields that requests and sub-requests (`firstAvailable`) have in common.
struct Parts<'a> {
    name: String,
    class: &'a str,
    selectors: Option<&'a [DeviceSelector]>,
    mode: Option<&'a str>,
    count: Option<i64>,
    admin: bool,
    tolerations: Option<&'a [DeviceToleration]>,
    capacity: Option<&'a CapacityRequirements>,
}

fn request(request: &DeviceRequest) -> Result<Request, String> {
    let mut choices = Vec::new();
    if let Some(exact) = &request.exactly {
        choices.push(choice(&Parts {
            name: request.name.clone(),
            class: &exact.device_class_name,
            selectors: exact.selectors.as_deref(),
            mode: exact.allocation_mode.as_deref(),
            count: exact.count,
            admin: exact.admin_access == Some(true),
            tolerations: exact.tolerations.as_deref(),
            capacity: exact.capacity.as_ref(),
        })?);
    }
    for sub in request.first_available.iter().flatten() {
        choices.push(choice(&Parts {
            name: format!("{}/{}", request.name, sub.name),
            class: &sub.device_class_name,
            selectors: sub.selectors.as_deref(),
            mode: sub.allocation_mode.as_deref(),
            count: sub.count,
            // Sub-requests have no `adminAccess` in the API.
            admin: false,
            tolerations: sub.tolerations.as_deref(),
            capacity: sub.capacity.as_ref(),
        })?);
    }
    if choices.is_empty() {
        let name = &request.name;
        return Err(format!("request {name:?} has neither exactly nor firstAvailable"));
    }
    Ok(Request { name: Arc::from(request.name.as_str()), choices })
}

fn choice(parts: &Parts<'_>) -> Result<Choice, String> {
    let mode = match parts.mode.unwrap_or("ExactCount") {
        "ExactCount" | "" => {
            // The API server's default.
            let count = parts.count.unwrap_or(1);
            let count = usize::try_from(count).ok().filter(|c| *c > 0);
            Mode::Count(count.ok_or_else(|| {
                format!("request {:?} asks for {} devices", parts.name, parts.count.unwrap_or(0))
            })?)
        }
        "All" => Mode::All,
        other => {
            return Err(format!(
                "request {:?} has an unsupported allocation mode {other:?}",
                parts.name
            ));
        }
    };
    let toleration = |t: &DeviceToleration| Toleration {
        key: t.key.clone(),
        operator: t.operator.clone(),
        value: t.value.clone(),
        effect: t.effect.clone(),
        toleration_seconds: None,
    };
    Ok(Choice {
        name: Arc::from(parts.name.as_str()),
        class: Arc::from(parts.class),
        selectors: expressions(parts.selectors),
        mode,
        admin: parts.admin,
        tolerations: parts.tolerations.unwrap_or_default().iter().map(toleration).collect(),
        capacity: parts
            .capacity
            .and_then(|c| c.requests.as_ref())
            .into_iter()
            .flatten()
            .map(|(name, value)| (Arc::from(name.as_str()), amount(value)))
            .collect(),
    })
}

fn expressions(selectors: Option<&[DeviceSelector]>) -> Vec<Arc<str>> {
    let cel = selectors.unwrap_or_default().iter().filter_map(|s| s.cel.as_ref());
    cel.map(|c| Arc::from(c.expression.as_str())).collect()
}

/// A class of devices.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Class {
    /// CEL expressions, all of which must hold.
    pub selectors: Vec<Arc<str>>,
}

impl Class {
    /// Parses a class.
    #[must_use]
    pub fn new(object: &DeviceClass) -> Self {
        Self { selectors: expressions(object.spec.selectors.as_deref()) }
    }
}

/// Amounts by qualified name. A name without a domain belongs to the driver.
pub(super) fn by_name(list: &[(Arc<str>, Amount)], driver: &str) -> BTreeMap<Qualified, Amount> {
    list.iter().map(|(name, value)| (qualified(name, driver), *value)).collect()
}
