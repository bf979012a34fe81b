//! Instance types: EC2's descriptions turned into labels, capacity, overhead and offerings.
//!
//! What does not change from minute to minute is worked out once per node class and kept five
//! minutes. Offerings are rebuilt only for types about which something changed since: as long as
//! nothing did, every caller gets the same list.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};

use self::capacity::Subject;
use self::info::Info;
use self::offerings::Market;
use self::sharing::Sharing;
use self::zones::Zones;
use super::ami::AmiFamily;
use super::cache::TtlCache;
use super::capacityreservation;
use super::clients::Clients;
use super::errors::AwsError;
use super::permissions::Permissions;
use super::placementgroup;
use super::pricing;
use super::unavailable::UnavailableOfferings;
use super::zonalshift;
use crate::api::annotations;
use crate::api::v1::EC2NodeClass;
use crate::clock::Clock;
use crate::operator::metrics;
use crate::operator::settings::AwsFeatureGates;
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::overlay::InForce;

pub mod capacity;
mod compatibility;
mod describe;
pub mod devices;
pub mod expressions;
pub mod info;
pub mod kubelet;
mod network;
mod offerings;
pub mod requirements;
pub mod sharing;
mod volumes;
pub mod zones;

/// How long a node class's types and their offerings are kept at most.
const TTL: Duration = Duration::from_secs(300);
/// How long the memory that nodes of a type really have is remembered.
const DISCOVERED_TTL: Duration = Duration::from_secs(60 * 24 * 3600);

/// What does not depend on the node class.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub region: String,
    /// Share of the memory that the hypervisor keeps.
    pub vm_memory_overhead: f64,
    /// Network interfaces that are not for pods.
    pub reserved_enis: i64,
    /// Reserved capacity is offered.
    pub reserved_capacity: bool,
    /// Expressions in `spec.kubelet` are in use.
    pub kubelet_expressions: bool,
    /// Which drivers' devices are known before a node publishes them.
    pub devices: AwsFeatureGates,
    /// How many volumes can be attached is known before a node says it.
    pub volume_limits: bool,
}

/// All types of the region, and the zones that they are offered in.
#[derive(Debug, Default)]
pub struct Catalog {
    pub types: Vec<Arc<Info>>,
    pub zones_of: HashMap<String, BTreeSet<String>>,
    /// Every zone of the region.
    pub zones: BTreeSet<String>,
}

/// What instance types are worked out from, beside EC2's description of them.
#[derive(Clone, Debug)]
pub struct Parts {
    pub clients: Clients,
    pub clock: Clock,
    pub pricing: Arc<pricing::Provider>,
    pub unavailable: Arc<UnavailableOfferings>,
    pub reservations: Arc<capacityreservation::Provider>,
    pub placement_groups: Arc<placementgroup::Provider>,
    pub shifts: Arc<zonalshift::Provider>,
    /// Overlays that set prices, where they are in use.
    pub overlays: Option<InForce>,
}

impl Parts {
    /// Parts that know of prices and nothing else: no refusals, reservations, groups or shifts.
    #[must_use]
    pub fn of_prices(clients: &Clients, clock: &Clock, pricing: &Arc<pricing::Provider>) -> Self {
        let permissions = Arc::new(Permissions::new(clock));
        let clients = || clients.clone();
        Self {
            clients: clients(),
            clock: clock.clone(),
            pricing: Arc::clone(pricing),
            unavailable: Arc::new(UnavailableOfferings::new(clock)),
            reservations: Arc::new(capacityreservation::Provider::new(
                clients(),
                clock,
                &permissions,
            )),
            placement_groups: Arc::new(placementgroup::Provider::new(
                clients(),
                clock,
                &permissions,
            )),
            shifts: Arc::new(zonalshift::Provider::new(clients(), clock, false)),
            overlays: None,
        }
    }
}

/// Describes instance types.
#[derive(Debug)]
pub struct Provider {
    parts: Parts,
    options: Options,
    catalog: RwLock<Arc<Catalog>>,
    shapes: TtlCache<String, Arc<[Shape]>>,
    listings: Mutex<HashMap<String, Listing>>,
    /// Memory in bytes by type and images.
    discovered: TtlCache<(String, String), i64>,
}

/// A type under a node class, without offerings.
#[derive(Debug)]
struct Shape {
    info: Arc<Info>,
    kind: InstanceType,
}

/// A finished list, and what it was made from.
#[derive(Debug)]
struct Listing {
    until: Timestamp,
    shapes: Arc<[Shape]>,
    market: offerings::Versions,
    /// The unavailable offerings' version, and their sequence by type.
    version: u64,
    sequences: Vec<u64>,
    types: Arc<[Arc<InstanceType>]>,
}

/// Instance types that cannot be listed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ListError(pub String);

impl Provider {
    /// A provider that knows no type yet.
    #[must_use]
    pub fn new(parts: Parts, options: Options) -> Self {
        Self {
            shapes: TtlCache::new(parts.clock.clone(), TTL),
            discovered: TtlCache::new(parts.clock.clone(), DISCOVERED_TTL),
            parts,
            options,
            catalog: RwLock::default(),
            listings: Mutex::default(),
        }
    }

    /// Reads types and where they are offered.
    ///
    /// # Errors
    /// When EC2 cannot be asked; what was known stays.
    pub async fn update(&self) -> Result<(), AwsError> {
        let clients = &self.parts.clients;
        let (types, zones_of) =
            tokio::try_join!(describe::types(clients), describe::offerings(clients))?;
        self.set_catalog(types, zones_of);
        Ok(())
    }

    /// Takes types and where they are offered for known; says what is new about them.
    pub fn set_catalog(&self, mut types: Vec<Info>, zones_of: HashMap<String, BTreeSet<String>>) {
        // EC2's order changes from call to call; only a real change may discard what is cached.
        types.sort_by(|a, b| a.instance_type.cmp(&b.instance_type));
        let types: Vec<Arc<Info>> = types.into_iter().map(Arc::new).collect();
        let zones: BTreeSet<String> = zones_of.values().flatten().cloned().collect();
        let mut catalog = self.catalog.write();
        let changed = (types != catalog.types, zones_of != catalog.zones_of);
        if changed.0 {
            tracing::debug!("count" = types.len(), "discovered instance types");
        }
        if changed.1 {
            tracing::debug!(
                "instance-type-count" = zones_of.len(),
                "discovered offerings for instance types"
            );
        }
        if zones != catalog.zones {
            tracing::debug!("zones" = %crate::operator::logging::json(&zones), "discovered zones");
        }
        if changed != (false, false) {
            *catalog = Arc::new(Catalog { types, zones_of, zones });
            drop(catalog);
            self.shapes.clear();
            self.listings.lock().clear();
        }
    }

    /// Every zone of the region.
    #[must_use]
    pub fn zones(&self) -> BTreeSet<String> {
        self.catalog.read().zones.clone()
    }

    /// The types that nodes of a class may have, with today's offerings.
    ///
    /// # Errors
    /// When types, offerings or subnets are not known yet, or the class's kubelet settings cannot
    /// be understood.
    pub fn list(&self, class: &EC2NodeClass) -> Result<Arc<[Arc<InstanceType>]>, ListError> {
        let catalog = Arc::clone(&self.catalog.read());
        let problem = |text: &str| Err(ListError(text.to_owned()));
        if catalog.types.is_empty() {
            return problem("no instance types found");
        }
        if catalog.zones_of.is_empty() {
            return problem("no instance types offerings found");
        }
        if class.status.as_ref().is_none_or(|s| s.subnets.is_empty()) {
            return problem("no subnets found");
        }
        let zones = Zones::new(&catalog.zones, class);
        let key = shape_key(class, &zones);
        let shapes = self.shapes(&catalog, class, &zones, &key)?;
        let market = Market::new(&self.parts, &self.options, class, zones);
        Ok(self.listing(&catalog, shapes, &market, &key))
    }

    /// What fails when the class's kubelet expressions are evaluated for every known type, if
    /// anything does.
    ///
    /// # Errors
    /// When no types are known yet, or the class's kubelet settings cannot be understood.
    pub fn failing_expression(&self, class: &EC2NodeClass) -> Result<Option<String>, ListError> {
        let catalog = Arc::clone(&self.catalog.read());
        if catalog.types.is_empty() {
            return Err(ListError("no instance types found".to_owned()));
        }
        let settings = kubelet::Settings::of(class).map_err(ListError)?;
        let family = AmiFamily::of(class);
        let failure = catalog.types.iter().find_map(|info| {
            let (kubelet, options) = (&settings, &self.options);
            capacity::check_expressions(&Subject { info, class, family, kubelet, options }).err()
        });
        Ok(failure)
    }

    fn listing(
        &self,
        catalog: &Catalog,
        shapes: Arc<[Shape]>,
        market: &Market<'_>,
        key: &str,
    ) -> Arc<[Arc<InstanceType>]> {
        let now = self.parts.clock.now();
        let versions = market.versions();
        let key = format!("{key}|{}", market.key());
        let unavailable = &self.parts.unavailable;
        // Held to the end, so that callers who arrive together do not build the same list twice.
        let mut listings = self.listings.lock();
        let known = listings
            .get(&key)
            .filter(|l| l.until > now && Arc::ptr_eq(&l.shapes, &shapes) && l.market == versions);
        // Read before the sequences, and these before the offerings: a mark that comes in between
        // is seen by the next call, which finds another version.
        let version = unavailable.version();
        if let Some(known) = known.filter(|l| l.version == version) {
            return Arc::clone(&known.types);
        }
        let sequences: Vec<u64> =
            shapes.iter().map(|s| unavailable.sequence(&s.info.instance_type)).collect();
        let types: Arc<[Arc<InstanceType>]> = shapes
            .iter()
            .enumerate()
            .map(|(i, shape)| match known {
                Some(known) if known.sequences[i] == sequences[i] => Arc::clone(&known.types[i]),
                _ => {
                    let offered = catalog.zones_of.get(&shape.info.instance_type);
                    Arc::new(market.offer(&shape.info, &shape.kind, offered))
                }
            })
            .collect();
        let listing = Listing {
            // One that is brought up to date keeps its end.
            until: known.map_or(now + TTL, |k| k.until),
            shapes,
            market: versions,
            version,
            sequences,
            types: Arc::clone(&types),
        };
        listings.retain(|_, l| l.until > now);
        listings.insert(key, listing);
        types
    }

    fn shapes(
        &self,
        catalog: &Catalog,
        class: &EC2NodeClass,
        zones: &Zones,
        key: &String,
    ) -> Result<Arc<[Shape]>, ListError> {
        if let Some(known) = self.shapes.get(key) {
            return Ok(known);
        }
        let settings = kubelet::Settings::of(class).map_err(ListError)?;
        let images = images_key(class);
        let shapes: Arc<[Shape]> = catalog
            .types
            .iter()
            .map(|info| self.shape(catalog, info, class, zones, &settings, &images))
            .collect::<Result<Vec<_>, _>>()?
            .into();
        self.shapes.set(key.clone(), Arc::clone(&shapes));
        Ok(shapes)
    }

    fn shape(
        &self,
        catalog: &Catalog,
        info: &Arc<Info>,
        class: &EC2NodeClass,
        zones: &Zones,
        settings: &kubelet::Settings,
        images: &str,
    ) -> Result<Shape, ListError> {
        let name = info.instance_type.as_str();
        let subject = Subject {
            info,
            class,
            family: AmiFamily::of(class),
            kubelet: settings,
            options: &self.options,
        };
        let discovered = self.discovered.get(&(name.to_owned(), images.to_owned()));
        let (capacity, overhead) = capacity::of(&subject, discovered)
            .map_err(|e| ListError(format!("resolving instance type {name}, {e}")))?;
        let available = zones.available(catalog.zones_of.get(name));
        metrics::INSTANCE_TYPE_CPU.with_label_values(&[name]).set(info.v_cpu_info.default as f64);
        metrics::INSTANCE_TYPE_MEMORY
            .with_label_values(&[name])
            .set((info.memory_info.mib << 20) as f64);
        let kind = InstanceType {
            name: Arc::from(name),
            requirements: requirements::of(info, class, &self.options, zones, &available),
            capacity,
            overhead,
            volume_limits: if self.options.volume_limits {
                volumes::limits(info, class)
            } else {
                BTreeMap::new()
            },
            // One that cannot be read is on the class's condition, and nothing is launched of it.
            devices: devices::of(
                name,
                self.options.devices,
                Sharing::of(class).unwrap_or_default(),
            ),
            ..InstanceType::default()
        };
        Ok(Shape { info: Arc::clone(info), kind })
    }

    /// Notes the memory that a node of a type and image really has, if it is less than known.
    pub fn note_memory(&self, class: &EC2NodeClass, instance_type: &str, bytes: i64) {
        let key = (instance_type.to_owned(), images_key(class));
        let known = self.discovered.get(&key);
        // The smallest value counts: a node that turns out smaller than expected cannot run its
        // pods, and gets replaced again and again.
        if known.is_some_and(|k| bytes > k) {
            return;
        }
        if known != Some(bytes) {
            tracing::debug!(
                "memory-capacity" = crate::scheduling::quantity::format_bytes(bytes),
                "instance-type" = instance_type,
                "updating discovered capacity cache"
            );
        }
        self.discovered.set(key, bytes);
    }
}

/// The images of a class, in an order of their own.
fn images_key(class: &EC2NodeClass) -> String {
    let amis = class.status.as_ref().map(|s| s.amis.as_slice()).unwrap_or_default();
    let mut ids: Vec<&str> = amis.iter().map(|a| a.id.as_str()).collect();
    ids.sort_unstable();
    ids.join(",")
}

/// Everything that a type's labels, capacity and overhead depend on.
fn shape_key(class: &EC2NodeClass, zones: &Zones) -> String {
    let status = class.status.as_ref();
    let spec = &class.spec;
    let in_use: Vec<_> = zones
        .iter()
        .filter(|z| !z.subnets.is_empty())
        .map(|z| (z.name.as_str(), z.id.as_deref()))
        .collect();
    let reservations: Vec<_> = status
        .iter()
        .flat_map(|s| &s.capacity_reservations)
        .map(|r| (&r.id, &r.instance_type, &r.reservation_type, r.interruptible))
        .collect();
    let family = AmiFamily::of(class).as_str();
    let annotated = class.metadata.annotations.as_ref();
    let sharing = annotated.and_then(|all| all.get(annotations::NVIDIA_CONSUMABLE_CAPACITY));
    let parts = (
        (images_key(class), in_use, &spec.kubelet, &spec.block_device_mappings),
        (reservations, &spec.network_interfaces, &spec.instance_store_policy, family, sharing),
    );
    serde_json::to_string(&parts).unwrap_or_default()
}

#[cfg(test)]
mod tests;
