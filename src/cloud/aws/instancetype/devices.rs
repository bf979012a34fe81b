//! Devices that drivers for dynamic resources publish on an instance type: NVIDIA's GPUs, and elastic
//! fabric adapters by dranet. A node's own slices say more once it is there.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use k8s_openapi::api::resource::v1::{Device as ApiDevice, DeviceAttribute, DeviceCapacity};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::sharing::Sharing;
use crate::operator::settings::AwsFeatureGates;
use crate::scheduling::dra::TypePool;
use crate::scheduling::dra::device::{Binding, Device, qualified};

/// NVIDIA's driver.
const GPU: &str = "gpu.nvidia.com";
/// The driver of network interfaces.
pub const NETWORK: &str = "dra.net";
// The standard attribute that matches devices of different drivers on one PCIe root.
const PCIE_ROOT: &str = "resource.kubernetes.io/pcieRoot";
/// Attributes that are the same on all GPUs of a node, and known only once it runs: the image
/// decides which driver is installed.
const BOUND: [&str; 2] = ["driverVersion", "cudaDriverVersion"];
const TABLE: &str = include_str!("../../../../data/devices.tsv");

/// Pools by instance type and driver.
static POOLS: LazyLock<BTreeMap<(&'static str, &'static str), TypePool>> = LazyLock::new(read);

/// The devices of a type, of the drivers whose gates are on; GPUs as NVIDIA's driver shares them.
pub(super) fn of(name: &str, gates: AwsFeatureGates, sharing: Option<Sharing>) -> Arc<[TypePool]> {
    let drivers = [(GPU, gates.dra_nvidia_gpu), (NETWORK, gates.dra_efa)];
    let on = drivers.into_iter().filter(|(_, on)| *on);
    let pool = |driver| {
        let mut pool = POOLS.get(&(name, driver))?.clone();
        if let Some(sharing) = sharing.filter(|_| driver == GPU) {
            pool.devices = pool.devices.iter().map(|d| sharing.apply(d, driver)).collect();
        }
        Some(pool)
    };
    on.filter_map(|(driver, _)| pool(driver)).collect()
}

fn read() -> BTreeMap<(&'static str, &'static str), TypePool> {
    let mut all: BTreeMap<(&str, &str), TypePool> = BTreeMap::new();
    for line in TABLE.lines().filter(|l| !l.starts_with('#')) {
        let mut fields = line.split('\t');
        let mut next = || fields.next().unwrap_or_default();
        let (driver, kind, roots, memory, attributes) = (next(), next(), next(), next(), next());
        let (prefix, word) = if driver == GPU { ("gpus", "gpu") } else { ("network", "efa") };
        let pool = all.entry((kind, driver)).or_insert_with(|| TypePool {
            driver: Arc::from(driver),
            // Another name for each type: the search for devices knows pools by their names.
            pool: Arc::from(format!("{prefix}-{kind}")),
            ..TypePool::default()
        });
        for root in roots.split(' ') {
            let device = ApiDevice {
                name: format!("{word}-{}", pool.devices.len()),
                attributes: Some(read_attributes(attributes, root)),
                capacity: (!memory.is_empty()).then(|| {
                    let value = Quantity(memory.to_owned());
                    let capacity = DeviceCapacity { value, ..DeviceCapacity::default() };
                    BTreeMap::from([("memory".to_owned(), capacity)])
                }),
                ..ApiDevice::default()
            };
            pool.devices.push(Arc::new(Device::new(&device, driver)));
        }
    }
    for pool in all.values_mut().filter(|p| &*p.driver == GPU) {
        let devices: Vec<Arc<str>> = pool.devices.iter().map(|d| Arc::clone(&d.name)).collect();
        let bind = |attribute: &&str| Binding {
            attribute: qualified(attribute, GPU),
            devices: devices.clone(),
        };
        pool.bindings = BOUND.iter().map(bind).collect();
    }
    all
}

/// `key=type:value` for each attribute, and the root beside them.
fn read_attributes(text: &str, root: &str) -> BTreeMap<String, DeviceAttribute> {
    let own = text.split('|').filter_map(|one| one.split_once('='));
    let own = own.filter_map(|(key, value)| Some((key.to_owned(), attribute(value)?)));
    let string = |v: &str| DeviceAttribute { string: Some(v.to_owned()), ..Default::default() };
    let root = (root != "-").then(|| (PCIE_ROOT.to_owned(), string(root)));
    own.chain(root).collect()
}

fn attribute(text: &str) -> Option<DeviceAttribute> {
    let (kind, value) = text.split_once(':')?;
    let mut attribute = DeviceAttribute::default();
    match kind {
        "string" => attribute.string = Some(value.to_owned()),
        "version" => attribute.version = Some(value.to_owned()),
        "int" => attribute.int = value.parse().ok(),
        "bool" => attribute.bool = value.parse().ok(),
        _ => return None,
    }
    Some(attribute)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_known_only_behind_their_gates() {
        let gates = |dra_nvidia_gpu, dra_efa| AwsFeatureGates {
            dra_nvidia_gpu,
            dra_efa,
            ..AwsFeatureGates::default()
        };
        assert!(of("p5.48xlarge", gates(false, false), None).is_empty());
        assert!(of("m5.large", gates(true, true), None).is_empty());
        let all = of("p5.48xlarge", gates(true, true), None);
        let [gpus, fabric] = &all[..] else { panic!("{all:?}") };
        assert_eq!((&*gpus.driver, gpus.devices.len()), ("gpu.nvidia.com", 8));
        assert_eq!((gpus.bindings.len(), gpus.bindings[0].devices.len()), (2, 8));
        assert_eq!((&*fabric.driver, fabric.bindings.len()), ("dra.net", 0));
        assert_ne!(of("g4dn.xlarge", gates(true, false), None)[0].pool, gpus.pool);
    }

    #[test]
    fn every_row_of_the_table_can_be_read() {
        for line in TABLE.lines().filter(|l| !l.starts_with('#')) {
            let fields: Vec<&str> = line.split('\t').collect();
            assert_eq!(fields.len(), 5, "{line}");
            let wanted = fields[4].split('|').count() + usize::from(!fields[2].starts_with('-'));
            let root = fields[2].split(' ').next().unwrap();
            assert_eq!(read_attributes(fields[4], root).len(), wanted, "{line}");
        }
        assert!(POOLS.len() > 80, "{}", POOLS.len());
        assert!(POOLS.values().flat_map(|p| &p.devices).all(|d| !d.attributes.is_empty()));
    }
}
