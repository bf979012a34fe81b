//! Devices and the ResourceSlices that publish them, parsed.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorTerm, Taint};
use k8s_openapi::api::resource::v1::{
    CapacityRequestPolicy, CounterSet, Device as ApiDevice, DeviceAttribute, DeviceCapacity,
    ResourceSlice,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::api::quantity;
use crate::scheduling::requirements::{Requirement, Requirements};

/// An amount in billionths of its unit, the finest that a Kubernetes quantity can express. 128 bits
/// hold any quantity at that scale.
pub type Amount = i128;

/// Reads a quantity; one that cannot be read counts as zero.
pub(super) fn amount(quantity: &ApiQuantity) -> Amount {
    quantity::parse(&quantity.0).map_or(0, |q| q.nanos)
}

/// One alternative of a node selector.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Term {
    /// On the node's labels.
    pub labels: Requirements,
    /// On the node's name.
    pub name: Option<Requirement>,
    /// An empty term. In Kubernetes it selects no node.
    pub empty: bool,
}

/// The only field that a node selector may match.
const NAME_FIELD: &str = "metadata.name";

impl Term {
    fn new(term: &NodeSelectorTerm) -> Self {
        let fields = Requirements::from_expressions(term.match_fields.iter().flatten());
        Self {
            labels: Requirements::from_term(term),
            name: fields.get(NAME_FIELD).cloned(),
            empty: term.match_expressions.iter().flatten().next().is_none()
                && term.match_fields.iter().flatten().next().is_none(),
        }
    }

    /// The alternatives of a selector.
    #[must_use]
    pub fn list(selector: &NodeSelector) -> Vec<Self> {
        selector.node_selector_terms.iter().map(Self::new).collect()
    }
}

/// Which nodes can reach devices.
#[derive(Clone, Debug, PartialEq)]
pub enum Placement {
    /// From every node.
    Everywhere,
    /// From the node of that name.
    Node(Arc<str>),
    /// From nodes that one of these selects.
    Selected(Arc<[Term]>),
    /// Each device has its own placement (`perDeviceNodeSelection`). A slice that only has counters
    /// has none.
    Unsaid,
}

impl Placement {
    fn new(all: Option<bool>, node: Option<&String>, selector: Option<&NodeSelector>) -> Self {
        match (node.filter(|n| !n.is_empty()), selector) {
            _ if all == Some(true) => Self::Everywhere,
            (Some(node), _) => Self::Node(Arc::from(node.as_str())),
            (None, Some(selector)) => Self::Selected(Term::list(selector).into()),
            (None, None) => Self::Unsaid,
        }
    }
}

/// The value of an attribute. The flag distinguishes a list from a single value: selectors see the two as
/// different types.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Attribute {
    /// Numbers.
    Ints(Vec<i64>, bool),
    /// Flags.
    Bools(Vec<bool>, bool),
    /// Texts.
    Strings(Vec<Arc<str>>, bool),
    /// Semantic versions.
    Versions(Vec<Arc<str>>, bool),
}

impl Attribute {
    fn new(value: &DeviceAttribute) -> Option<Self> {
        let texts = |list: &[String]| list.iter().map(|s| Arc::from(s.as_str())).collect();
        Some(if let Some(v) = value.int {
            Self::Ints(vec![v], false)
        } else if let Some(v) = value.bool {
            Self::Bools(vec![v], false)
        } else if let Some(v) = &value.string {
            Self::Strings(vec![Arc::from(v.as_str())], false)
        } else if let Some(v) = &value.version {
            Self::Versions(vec![Arc::from(v.as_str())], false)
        } else if let Some(v) = &value.ints {
            Self::Ints(v.clone(), true)
        } else if let Some(v) = &value.bools {
            Self::Bools(v.clone(), true)
        } else if let Some(v) = &value.strings {
            Self::Strings(texts(v), true)
        } else if let Some(v) = &value.versions {
            Self::Versions(texts(v), true)
        } else {
            return None;
        })
    }

    /// The values that both have; `None` when there is none. Single values count as lists of one,
    /// so that a constraint can compare the two.
    #[must_use]
    pub fn common(&self, other: &Self) -> Option<Self> {
        fn both<T: PartialEq + Clone>(a: &[T], b: &[T]) -> Option<Vec<T>> {
            let found: Vec<T> = a.iter().filter(|v| b.contains(v)).cloned().collect();
            (!found.is_empty()).then_some(found)
        }
        match (self, other) {
            (Self::Ints(a, l), Self::Ints(b, _)) => both(a, b).map(|v| Self::Ints(v, *l)),
            (Self::Bools(a, l), Self::Bools(b, _)) => both(a, b).map(|v| Self::Bools(v, *l)),
            (Self::Strings(a, l), Self::Strings(b, _)) => both(a, b).map(|v| Self::Strings(v, *l)),
            (Self::Versions(a, l), Self::Versions(b, _)) => {
                both(a, b).map(|v| Self::Versions(v, *l))
            }
            _ => None,
        }
    }
}

/// The amounts of a shared capacity that a request may consume.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// What is taken when nothing is asked for.
    pub default: Option<Amount>,
    /// The amounts that can be taken, ascending; empty for any.
    pub values: Vec<Amount>,
    /// The least, the most and the step of what can be taken.
    pub range: Option<(Amount, Option<Amount>, Option<Amount>)>,
}

impl Policy {
    fn new(policy: &CapacityRequestPolicy) -> Self {
        let mut values: Vec<Amount> = policy.valid_values.iter().flatten().map(amount).collect();
        // Sorted, so that the first one that is large enough is the smallest.
        values.sort_unstable();
        Self {
            default: policy.default.as_ref().map(amount),
            values,
            range: policy
                .valid_range
                .as_ref()
                .map(|r| (amount(&r.min), r.max.as_ref().map(amount), r.step.as_ref().map(amount))),
        }
    }
}

/// A capacity of a device.
#[derive(Clone, Debug, PartialEq)]
pub struct Capacity {
    /// All of it.
    pub value: Amount,
    /// Its canonical form, for selectors.
    pub text: Arc<str>,
    /// How requests are rounded.
    pub policy: Option<Policy>,
}

impl Capacity {
    fn new(capacity: &DeviceCapacity) -> Self {
        Self {
            value: amount(&capacity.value),
            text: Arc::from(capacity.value.0.as_str()),
            policy: capacity.request_policy.as_ref().map(Policy::new),
        }
    }

    /// What a request consumes, rounded up as the policy says; `None` when the device cannot
    /// provide it.
    #[must_use]
    pub fn consumed(&self, asked: Option<Amount>) -> Option<Amount> {
        let Some(policy) = &self.policy else {
            return Some(asked.unwrap_or(self.value)).filter(|v| *v <= self.value);
        };
        let wanted = asked.or(policy.default).unwrap_or(self.value);
        let taken = if let Some((least, most, step)) = policy.range {
            let mut taken = wanted.max(least);
            if let Some(step) = step.filter(|s| *s > 0) {
                let steps = (taken - least + step - 1) / step;
                taken = least + steps * step;
            }
            Some(taken).filter(|t| most.is_none_or(|m| *t <= m))?
        } else if policy.values.is_empty() {
            wanted
        } else {
            *policy.values.iter().find(|v| **v >= wanted)?
        };
        (taken <= self.value).then_some(taken)
    }
}

/// A name with its domain.
pub type Qualified = (Arc<str>, Arc<str>);

/// Splits `domain/name`; a bare name belongs to the driver.
#[must_use]
pub fn qualified(name: &str, driver: &str) -> Qualified {
    match name.split_once('/') {
        Some((domain, name)) => (Arc::from(domain), Arc::from(name)),
        None => (Arc::from(driver), Arc::from(name)),
    }
}

/// A device.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// Its name within the pool.
    pub name: Arc<str>,
    /// Attributes by domain and name.
    pub attributes: BTreeMap<Qualified, Attribute>,
    /// Capacities by domain and name.
    pub capacity: BTreeMap<Qualified, Capacity>,
    /// Several claims may share it, each with a part of its capacity.
    pub shared: bool,
    /// Counters that its use draws on: set, counter, amount.
    pub consumes: Vec<(Arc<str>, Arc<str>, Amount)>,
    /// Taints that keep requests off.
    pub taints: Vec<Taint>,
    /// Which nodes can reach it, when its slice leaves that to the device.
    pub place: Placement,
}

impl Device {
    /// Parses a device of a driver.
    #[must_use]
    pub fn new(device: &ApiDevice, driver: &str) -> Self {
        let taint = |t: &k8s_openapi::api::resource::v1::DeviceTaint| Taint {
            key: t.key.clone(),
            value: t.value.clone(),
            effect: t.effect.clone(),
            time_added: None,
        };
        let consumes = device
            .consumes_counters
            .iter()
            .flatten()
            .flat_map(|c| {
                let set: Arc<str> = Arc::from(c.counter_set.as_str());
                c.counters.iter().map(move |(name, counter)| {
                    (Arc::clone(&set), Arc::from(name.as_str()), amount(&counter.value))
                })
            })
            .collect();
        Self {
            name: Arc::from(device.name.as_str()),
            attributes: device
                .attributes
                .iter()
                .flatten()
                .filter_map(|(name, v)| Some((qualified(name, driver), Attribute::new(v)?)))
                .collect(),
            capacity: device
                .capacity
                .iter()
                .flatten()
                .map(|(name, c)| (qualified(name, driver), Capacity::new(c)))
                .collect(),
            shared: device.allow_multiple_allocations == Some(true),
            consumes,
            taints: device
                .taints
                .iter()
                .flatten()
                // The effect `None` is informational, and keeps nothing off.
                .filter(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute"))
                .map(taint)
                .collect(),
            place: Placement::new(
                device.all_nodes,
                device.node_name.as_ref(),
                device.node_selector.as_ref(),
            ),
        }
    }
}

/// Counters by set and name.
pub type Counters = BTreeMap<(Arc<str>, Arc<str>), Amount>;

/// The counters of some sets.
#[must_use]
pub fn counters<'a>(sets: impl IntoIterator<Item = &'a CounterSet>) -> Counters {
    let one = |set: &'a CounterSet| {
        let name: Arc<str> = Arc::from(set.name.as_str());
        set.counters
            .iter()
            .map(move |(c, v)| ((Arc::clone(&name), Arc::from(c.as_str())), amount(&v.value)))
    };
    sets.into_iter().flat_map(one).collect()
}

/// A ResourceSlice: a part of a pool of devices.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// The driver that publishes it.
    pub driver: Arc<str>,
    /// The pool's name.
    pub pool: Arc<str>,
    /// The pool's generation; only slices of the highest one count.
    pub generation: i64,
    /// How many slices the pool has.
    pub count: i64,
    /// The Node that owns it.
    pub owner: Option<Arc<str>>,
    /// From where its devices can be reached.
    pub place: Placement,
    /// Its devices.
    pub devices: Vec<Arc<Device>>,
    /// Counters that devices of the pool draw on.
    pub counters: Counters,
}

impl Slice {
    /// Parses a slice.
    #[must_use]
    pub fn new(object: &ResourceSlice) -> Self {
        let spec = &object.spec;
        let node_owner = object
            .metadata
            .owner_references
            .iter()
            .flatten()
            .find(|o| o.kind == "Node")
            .map(|o| Arc::from(o.name.as_str()));
        let place = if spec.per_device_node_selection == Some(true) {
            Placement::Unsaid
        } else {
            Placement::new(spec.all_nodes, spec.node_name.as_ref(), spec.node_selector.as_ref())
        };
        Self {
            driver: Arc::from(spec.driver.as_str()),
            pool: Arc::from(spec.pool.name.as_str()),
            generation: spec.pool.generation,
            count: spec.pool.resource_slice_count,
            owner: node_owner,
            place,
            devices: spec
                .devices
                .iter()
                .flatten()
                .map(|d| Arc::new(Device::new(d, &spec.driver)))
                .collect(),
            counters: counters(spec.shared_counters.iter().flatten()),
        }
    }

    /// The node whose devices the slice publishes, by name or by owner.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        match &self.place {
            Placement::Node(name) => Some(name),
            _ => self.owner.as_deref(),
        }
    }
}

/// Devices that every instance of a type will have, according to the provider. Nodes publish their
/// own once they run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TypePool {
    /// The driver that will publish them.
    pub driver: Arc<str>,
    /// The pool that they will be in.
    pub pool: Arc<str>,
    /// The devices.
    pub devices: Vec<Arc<Device>>,
    /// Counters that they draw on.
    pub counters: Counters,
    /// Devices that will have the same value of an attribute, while nobody knows the value yet.
    pub bindings: Vec<Binding>,
}

/// Devices that will agree in an attribute.
#[derive(Clone, Debug, PartialEq)]
pub struct Binding {
    /// The attribute.
    pub attribute: Qualified,
    /// Names of the devices.
    pub devices: Vec<Arc<str>>,
}
