//! Amounts of named resources, and what a pod requests.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, PodSpec, PodStatus};
pub use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use smallvec::SmallVec;

use super::quantity::{self, QuantityError};

/// The name of a resource. The common ones need no text and compare without one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    Cpu,
    EphemeralStorage,
    Memory,
    Pods,
    Other(Arc<str>),
}

impl Name {
    /// The name as Kubernetes writes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Cpu => "cpu",
            Self::EphemeralStorage => "ephemeral-storage",
            Self::Memory => "memory",
            Self::Pods => "pods",
            Self::Other(name) => name,
        }
    }

    /// True for resources that are counted in bytes.
    #[must_use]
    pub fn is_bytes(&self) -> bool {
        match self {
            Self::Memory | Self::EphemeralStorage => true,
            Self::Other(name) => name.starts_with("hugepages-"),
            _ => false,
        }
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        match text {
            "cpu" => Self::Cpu,
            "ephemeral-storage" => Self::EphemeralStorage,
            "memory" => Self::Memory,
            "pods" => Self::Pods,
            other => Self::Other(Arc::from(other)),
        }
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

/// A resource amount that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {source}")]
pub struct ResourceError {
    /// The resource.
    pub name: String,
    /// What is wrong with its amount.
    pub source: QuantityError,
}

/// Amounts by resource name, sorted: cpu in thousandths, everything else in whole units (bytes).
/// Whole numbers, since sums over thousands of pods must be exact; four entries inline are enough
/// for most pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ResourceList(SmallVec<[(Name, i64); 4]>);

impl ResourceList {
    /// No resources.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads API quantities.
    ///
    /// # Errors
    /// When an amount is no quantity.
    pub fn from_quantities(map: &BTreeMap<String, ApiQuantity>) -> Result<Self, ResourceError> {
        let mut list = Self::new();
        for (name, amount) in map {
            let parsed = quantity::parse(&amount.0)
                .map_err(|source| ResourceError { name: name.clone(), source })?;
            list.set_parsed(name, parsed);
        }
        Ok(list)
    }

    /// Reads API quantities, leaving out those that cannot be read. The API server validates
    /// quantities, and one bad amount must not hide an object.
    #[must_use]
    pub fn from_quantities_lossy(map: Option<&BTreeMap<String, ApiQuantity>>) -> Self {
        let mut list = Self::new();
        for (name, amount) in map.into_iter().flatten() {
            if let Ok(parsed) = quantity::parse(&amount.0) {
                list.set_parsed(name, parsed);
            }
        }
        list
    }

    fn set_parsed(&mut self, name: &str, amount: quantity::Quantity) {
        let name = Name::from(name);
        // Both round up, as Kubernetes' `Value` and `MilliValue` do.
        let value = if name == Name::Cpu { amount.milli() } else { amount.value() };
        self.set(name, value);
    }

    /// The amounts as API quantities in canonical form.
    #[must_use]
    pub fn to_quantities(&self) -> BTreeMap<String, ApiQuantity> {
        self.iter()
            .map(|(name, value)| (name.as_str().to_owned(), ApiQuantity(Self::text(name, value))))
            .collect()
    }

    fn text(name: &Name, value: i64) -> String {
        if *name == Name::Cpu {
            quantity::format_milli(value)
        } else if name.is_bytes() {
            quantity::format_bytes(value)
        } else {
            quantity::format_count(value)
        }
    }

    /// The amount of a resource, zero when absent.
    #[must_use]
    pub fn get(&self, name: &Name) -> i64 {
        self.find(name).unwrap_or(0)
    }

    /// The amount of a resource, if present.
    #[must_use]
    pub fn find(&self, name: &Name) -> Option<i64> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| *v)
    }

    /// Sets the amount of a resource.
    pub fn set(&mut self, name: Name, value: i64) {
        match self.0.binary_search_by(|(n, _)| n.cmp(&name)) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (name, value)),
        }
    }

    /// Removes a resource.
    pub fn remove(&mut self, name: &Name) {
        self.0.retain(|(n, _)| n != name);
    }

    /// Names and amounts in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, i64)> {
        self.0.iter().map(|(n, v)| (n, *v))
    }

    /// True when nothing is named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds every amount of `other`.
    pub fn add(&mut self, other: &Self) {
        // An absurd request must not wrap around to a small one.
        self.merge(other, i64::saturating_add);
    }

    /// Raises every amount to that of `other`, adding what is missing.
    pub fn max(&mut self, other: &Self) {
        self.merge(other, Ord::max);
    }

    fn merge(&mut self, other: &Self, combine: impl Fn(i64, i64) -> i64) {
        for (name, value) in other.iter() {
            match self.0.binary_search_by(|(n, _)| n.cmp(name)) {
                Ok(at) => self.0[at].1 = combine(self.0[at].1, value),
                Err(at) => self.0.insert(at, (name.clone(), value)),
            }
        }
    }

    /// Subtracts `other` from the resources named here, and ignores others, as Karpenter does: a
    /// pod's request for what a node does not have makes nothing negative. Results may be negative.
    pub fn sub(&mut self, other: &Self) {
        for (name, value) in &mut self.0 {
            *value = value.saturating_sub(other.get(name));
        }
    }

    /// True when all of this fits into `total`. Nothing fits into a total with a negative amount,
    /// even of a resource that is not asked for: such a node is already overcommitted. As in
    /// Karpenter.
    #[must_use]
    pub fn fits(&self, total: &Self) -> bool {
        total.0.iter().all(|(_, v)| *v >= 0) && self.0.iter().all(|(n, v)| *v <= total.get(n))
    }
}

impl FromIterator<(Name, i64)> for ResourceList {
    fn from_iter<I: IntoIterator<Item = (Name, i64)>>(iter: I) -> Self {
        let mut list = Self::new();
        for (name, value) in iter {
            list.set(name, value);
        }
        list
    }
}

impl fmt::Display for ResourceList {
    /// JSON, as error messages show it: `{"cpu":"1","memory":"1Gi"}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (i, (name, value)) in self.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}\"{}\":\"{}\"", name.as_str(), Self::text(name, value))?;
        }
        f.write_str("}")
    }
}

impl serde::Serialize for ResourceList {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(n, v)| (n.as_str().to_owned(), Self::text(n, v))))
    }
}

fn is_sidecar(container: &Container) -> bool {
    // KEP-753: an init container that is always restarted runs beside the containers for as long as
    // the pod.
    container.restart_policy.as_deref() == Some("Always")
}

/// What one container requests: the greater of its spec and what the kubelet has granted it. During
/// an in-place resize (KEP-1287) the two differ, and the containers may be using either.
fn container_requests(
    container: &Container,
    status: Option<&PodStatus>,
    init: bool,
) -> ResourceList {
    let wanted = ResourceList::from_quantities_lossy(
        container.resources.as_ref().and_then(|r| r.requests.as_ref()),
    );
    let statuses = status.and_then(|s| {
        if init { s.init_container_statuses.as_ref() } else { s.container_statuses.as_ref() }
    });
    let Some(actual) = statuses
        .and_then(|list| list.iter().find(|s| s.name == container.name))
        .filter(|s| s.resources.is_some())
    else {
        return wanted;
    };
    let mut total = ResourceList::from_quantities_lossy(
        actual.resources.as_ref().and_then(|r| r.requests.as_ref()),
    );
    total.max(&ResourceList::from_quantities_lossy(actual.allocated_resources.as_ref()));
    let infeasible = status.and_then(|s| s.conditions.as_ref()).is_some_and(|conditions| {
        conditions
            .iter()
            .any(|c| c.type_ == "PodResizePending" && c.reason.as_deref() == Some("Infeasible"))
    });
    // The kubelet has refused the resize for good, so that this node will never grant what the spec
    // asks for.
    if !infeasible {
        total.max(&wanted);
    }
    total
}

/// The effective requests of a pod, as kube-scheduler computes them: containers and sidecars
/// together, or the highest peak while init containers run; pod-level requests override; overhead
/// and one of the resource `pods` are added.
#[must_use]
pub fn pod_requests(spec: &PodSpec, status: Option<&PodStatus>) -> ResourceList {
    let mut total = ResourceList::new();
    for container in &spec.containers {
        total.add(&container_requests(container, status, false));
    }
    let mut sidecars = ResourceList::new();
    let mut start = ResourceList::new();
    for container in spec.init_containers.iter().flatten() {
        if is_sidecar(container) {
            sidecars.add(&container_requests(container, status, true));
            start.max(&sidecars);
        } else {
            // Init containers run one after the other, each beside the sidecars that were started
            // before it. Their status does not count: only sidecars can be resized.
            let mut phase = container_requests(container, None, true);
            phase.add(&sidecars);
            start.max(&phase);
        }
    }
    total.add(&sidecars);
    total.max(&start);
    let pod_level = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    for (name, value) in ResourceList::from_quantities_lossy(pod_level).iter() {
        if is_pod_level(name) {
            total.set(name.clone(), value);
        }
    }
    total.add(&ResourceList::from_quantities_lossy(spec.overhead.as_ref()));
    total.set(Name::Pods, 1);
    total
}

/// The effective limits of a pod, summed in the same way as its requests.
#[must_use]
pub fn pod_limits(spec: &PodSpec) -> ResourceList {
    let of = |container: &Container| {
        let resources = container.resources.as_ref();
        ResourceList::from_quantities_lossy(resources.and_then(|r| r.limits.as_ref()))
    };
    let mut total = ResourceList::new();
    spec.containers.iter().for_each(|container| total.add(&of(container)));
    let mut sidecars = ResourceList::new();
    let mut start = ResourceList::new();
    for container in spec.init_containers.iter().flatten() {
        if is_sidecar(container) {
            sidecars.add(&of(container));
            start.max(&sidecars);
        } else {
            let mut phase = of(container);
            phase.add(&sidecars);
            start.max(&phase);
        }
    }
    total.add(&sidecars);
    total.max(&start);
    let pod_level = spec.resources.as_ref().and_then(|r| r.limits.as_ref());
    for (name, value) in ResourceList::from_quantities_lossy(pod_level).iter() {
        if is_pod_level(name) {
            total.set(name.clone(), value);
        }
    }
    let mut overhead = ResourceList::from_quantities_lossy(spec.overhead.as_ref());
    // Without a limit the pod is unlimited, and the overhead must not turn into its limit.
    overhead.0.retain(|(name, _)| total.find(name).is_some());
    total.add(&overhead);
    total.set(Name::Pods, 1);
    total
}

/// The resources that `spec.resources` can set for a pod as a whole (KEP-2837).
fn is_pod_level(name: &Name) -> bool {
    matches!(name, Name::Cpu | Name::Memory) || name.as_str().starts_with("hugepages-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pairs: &[(&str, i64)]) -> ResourceList {
        pairs.iter().map(|(n, v)| (Name::from(*n), *v)).collect()
    }

    fn cpu_of(value: serde_json::Value) -> i64 {
        pod_requests(&serde_json::from_value(value).unwrap(), None).get(&Name::Cpu)
    }

    #[test]
    fn nothing_fits_a_negative_total() {
        assert!(list(&[("cpu", 1)]).fits(&list(&[("cpu", 1)])));
        assert!(!list(&[("cpu", 0)]).fits(&list(&[("cpu", 1), ("memory", -1)])));
        assert!(list(&[("gpu", 0)]).fits(&list(&[("cpu", 1)])));
        assert!(!list(&[("gpu", 1)]).fits(&list(&[("cpu", 1)])));
    }

    #[test]
    fn init_containers_count_with_the_sidecars_before_them() {
        use serde_json::json;
        let cpu = |n: &str| json!({"requests": {"cpu": n}});
        let container = |n: &str| json!({"name": "c", "resources": cpu(n)});
        let sidecar = json!({"name": "s", "restartPolicy": "Always", "resources": cpu("4")});
        assert_eq!(
            cpu_of(json!({"containers": [container("1")],
                "initContainers": [container("6"), sidecar]})),
            6000
        );
        assert_eq!(
            cpu_of(json!({"containers": [container("1")],
                "initContainers": [sidecar, container("6")]})),
            10_000
        );
        assert_eq!(cpu_of(json!({"containers": [container("1")], "overhead": {"cpu": "2"}})), 3000);
        assert_eq!(
            cpu_of(json!({"containers": [container("20")],
                "resources": {"requests": {"cpu": "9.9"}}})),
            9900
        );
    }

    #[test]
    fn limits_count_like_requests_and_overhead_only_where_there_is_one() {
        use serde_json::json;
        let limits = |cpu: &str| json!({"limits": {"cpu": cpu}});
        let spec = json!({
            "containers": [
                {"name": "a", "resources": limits("1")}, {"name": "b", "resources": limits("2")},
            ],
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": limits("500m")},
                {"name": "i", "resources": limits("4")},
            ],
            "overhead": {"cpu": "100m", "memory": "1Mi"},
        });
        let found = pod_limits(&serde_json::from_value(spec).unwrap());
        assert_eq!(found, list(&[("cpu", 4600), ("pods", 1)]));
        let spec = json!({"containers": [{"name": "a", "resources": limits("1")}],
            "resources": {"limits": {"cpu": "3"}}});
        let found = pod_limits(&serde_json::from_value(spec).unwrap());
        assert_eq!(found.get(&Name::Cpu), 3000);
    }

    #[test]
    fn what_the_kubelet_granted_counts_until_a_resize_is_found_impossible() {
        use serde_json::json;
        let of = |granted: serde_json::Value, reason: Option<&str>| {
            let spec = json!({"containers": [{"name": "c",
                "resources": {"requests": {"cpu": "2"}}}]});
            let conditions = reason
                .map(|r| json!([{"type": "PodResizePending", "status": "True", "reason": r}]));
            let status = json!({"containerStatuses": [granted], "conditions": conditions});
            let status = serde_json::from_value(status).unwrap();
            pod_requests(&serde_json::from_value(spec).unwrap(), Some(&status)).get(&Name::Cpu)
        };
        let granted = |cpu: &str, allocated: &str| {
            json!({"name": "c", "resources": {"requests": {"cpu": cpu}},
                "allocatedResources": {"cpu": allocated}})
        };
        assert_eq!(of(granted("1", "1"), None), 2000);
        assert_eq!(of(granted("3", "1"), None), 3000);
        assert_eq!(of(granted("1", "4"), None), 4000);
        assert_eq!(of(granted("1", "1"), Some("Infeasible")), 1000);
        assert_eq!(of(granted("1", "1"), Some("Deferred")), 2000);
        // A status without resources does not count.
        assert_eq!(of(json!({"name": "c", "allocatedResources": {"cpu": "4"}}), None), 2000);
    }

    #[test]
    fn amounts_print_in_canonical_form() {
        let all = list(&[("memory", 870 << 20), ("cpu", 430), ("pods", 8)]);
        assert_eq!(all.to_string(), r#"{"cpu":"430m","memory":"870Mi","pods":"8"}"#);
    }

    proptest::proptest! {
        #[test]
        fn adding_then_subtracting_is_nothing(a in 0_i64..1 << 40, b in 0_i64..1 << 40) {
            let (x, y) = (list(&[("cpu", a), ("memory", b)]), list(&[("cpu", b), ("memory", a)]));
            let mut sum = x.clone();
            sum.add(&y);
            proptest::prop_assert!(x.fits(&sum));
            sum.sub(&y);
            proptest::prop_assert_eq!(sum, x);
        }
    }
}
