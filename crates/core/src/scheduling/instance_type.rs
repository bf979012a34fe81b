//! Instance types and their offerings, as a provider describes them to the solver.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::dra::TypePool;
use super::requirements::{Allow, Requirements};
use super::resources::{Name, ResourceList};
use crate::api::labels;

/// An instance type: its labels, its size, and where it can be launched for what price.
#[derive(Clone, Debug, Default)]
pub struct InstanceType {
    /// Name such as `m5.large`.
    pub name: Arc<str>,
    /// The labels of a node of this type. A label has several values where the launch decides, as
    /// with the zone.
    pub requirements: Requirements,
    /// Where it can be launched.
    pub offerings: Vec<Offering>,
    /// All that the machine has.
    pub capacity: ResourceList,
    /// What the system reserves.
    pub overhead: Overhead,
    /// True when a NodeOverlay changed the capacity.
    pub capacity_overlay: bool,
    /// Devices for dynamic resources that every instance will have.
    pub devices: Arc<[TypePool]>,
    /// How many volumes each CSI driver can attach to an instance, as far as the provider says.
    pub volume_limits: BTreeMap<String, u64>,
}

/// The part of an instance's capacity that pods cannot use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overhead {
    pub kube_reserved: ResourceList,
    pub system_reserved: ResourceList,
    pub eviction_threshold: ResourceList,
}

impl Overhead {
    /// All of it together.
    #[must_use]
    pub fn total(&self) -> ResourceList {
        let mut total = self.kube_reserved.clone();
        total.add(&self.system_reserved);
        total.add(&self.eviction_threshold);
        total
    }
}

/// One way to launch an instance type: zone, capacity type, price.
#[derive(Clone, Debug, Default)]
pub struct Offering {
    /// Zone, capacity type and whatever else identifies the offering.
    pub requirements: Requirements,
    /// Price per hour, in the provider's currency.
    pub price: f64,
    /// True for a price that was estimated because none is published. Good enough to order
    /// offerings by, but no reason to replace a node.
    pub price_estimated: bool,
    /// False while the provider knows that a launch would fail.
    pub available: bool,
    /// For reserved offerings: how many more instances the reservation holds.
    pub reservation_capacity: i64,
    /// For reserved offerings: all that keeps it from being available is that the reservation is
    /// full, which may pass.
    pub reservation_full: bool,
    /// True when a NodeOverlay set the price.
    pub price_overlay: bool,
    /// Amounts that replace or extend the type's capacity for instances from this offering.
    pub capacity_override: Option<Arc<ResourceList>>,
    /// Amounts that replace the type's overhead for instances from this offering.
    pub overhead_override: Option<Arc<ResourceList>>,
}

impl Offering {
    /// The offering's zone, or nothing.
    #[must_use]
    pub fn zone(&self) -> &str {
        self.single(labels::ZONE)
    }

    /// The offering's capacity type, or nothing.
    #[must_use]
    pub fn capacity_type(&self) -> &str {
        self.single(labels::CAPACITY_TYPE)
    }

    /// The reservation behind a reserved offering, or nothing.
    #[must_use]
    pub fn reservation_id(&self) -> &str {
        self.single(labels::CAPACITY_RESERVATION_ID)
    }

    /// True when its instances are as large as the type says.
    #[must_use]
    pub fn overrides_nothing(&self) -> bool {
        self.capacity_override.is_none() && self.overhead_override.is_none()
    }

    /// True when instances from both are of one size.
    #[must_use]
    pub fn same_size(&self, other: &Self) -> bool {
        self.capacity_override == other.capacity_override
            && self.overhead_override == other.overhead_override
    }

    fn single(&self, key: &str) -> &str {
        self.requirements.get(key).and_then(|r| r.values().next()).unwrap_or("")
    }
}

impl InstanceType {
    /// What is left for pods: capacity less overhead; huge pages come out of memory.
    #[must_use]
    pub fn allocatable(&self) -> ResourceList {
        left_for_pods(self.capacity.clone(), &self.overhead.total())
    }

    /// What is left for pods on an instance from that offering.
    #[must_use]
    pub fn allocatable_of(&self, offering: &Offering) -> ResourceList {
        let mut capacity = self.capacity.clone();
        for (name, value) in offering.capacity_override.iter().flat_map(|o| o.iter()) {
            capacity.set(name.clone(), value);
        }
        let mut overhead = self.overhead.total();
        // An override replaces the total of kube-reserved, system-reserved and eviction threshold,
        // and not one of the three.
        for (name, value) in offering.overhead_override.iter().flat_map(|o| o.iter()) {
            overhead.set(name.clone(), value);
        }
        left_for_pods(capacity, &overhead)
    }

    /// The cheapest available offering that meets the requirements.
    #[must_use]
    pub fn cheapest<'a>(&'a self, requirements: &'a Requirements) -> Option<&'a Offering> {
        self.compatible_offerings(requirements).min_by(|a, b| a.price.total_cmp(&b.price))
    }

    /// Available offerings that meet the requirements.
    pub fn compatible_offerings<'a>(
        &'a self,
        requirements: &'a Requirements,
    ) -> impl Iterator<Item = &'a Offering> {
        self.offerings.iter().filter(move |o| {
            o.available && requirements.compatible(&o.requirements, Allow::WellKnown).is_ok()
        })
    }
}

fn left_for_pods(capacity: ResourceList, overhead: &ResourceList) -> ResourceList {
    // The kernel sets huge pages aside from memory, and the kubelet likewise takes them off the
    // memory that it reports as allocatable.
    let huge: i64 = capacity
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("hugepages-"))
        .map(|(_, value)| value)
        .sum();
    let mut left = capacity;
    left.sub(overhead);
    if huge > 0 {
        left.set(Name::Memory, (left.get(&Name::Memory) - huge).max(0));
    }
    left
}

/// Sorts by the cheapest compatible offering, then by name; types without one come last.
pub fn sort_by_price(types: &mut [Arc<InstanceType>], requirements: &Requirements) {
    types.sort_by_cached_key(|t| {
        let price = t.cheapest(requirements).map_or(f64::MAX, |o| o.price);
        // `f64` has no total order to sort keys by, but prices are never negative, and for those
        // the bit patterns sort as the numbers do.
        (price.to_bits(), Arc::clone(&t.name))
    });
}
