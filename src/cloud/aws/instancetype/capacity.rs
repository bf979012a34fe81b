//! Capacity and overhead of an instance type.

use aws_sdk_ec2::types::{InstanceTypeInfo, NetworkInfo};
use serde_json::Value;

use super::Options;
use crate::api::v1::EC2NodeClass;
use crate::cloud::aws::ami::AmiFamily;
use crate::scheduling::instance_type::Overhead;
use crate::scheduling::quantity;
use crate::scheduling::resources::{Name, ResourceList};

const MIB: i64 = 1 << 20;
const GIB: i64 = 1 << 30;
/// Ephemeral storage of an image whose volumes nobody tells.
const DEFAULT_STORAGE: i64 = 20 * GIB;

fn kubelet<'a>(class: &'a EC2NodeClass, key: &str) -> Option<&'a Value> {
    class.spec.kubelet.as_ref()?.get(key)
}

/// All that a machine of this type has.
pub(super) fn capacity(
    info: &InstanceTypeInfo,
    class: &EC2NodeClass,
    options: &Options,
) -> ResourceList {
    let vcpus = i64::from(info.v_cpu_info().and_then(|v| v.default_v_cpus()).unwrap_or(0));
    let mut list: ResourceList = [
        (Name::Cpu, vcpus * 1000),
        (Name::Memory, memory(info, options)),
        (Name::EphemeralStorage, ephemeral_storage(info, class)),
        (Name::Pods, pods(info, class, options)),
    ]
    .into_iter()
    .collect();
    let gpus = |manufacturer: &str| -> i64 {
        info.gpu_info()
            .map(|g| g.gpus())
            .unwrap_or_default()
            .iter()
            .filter(|g| g.manufacturer() == Some(manufacturer))
            .map(|g| i64::from(g.count().unwrap_or(0)))
            .sum()
    };
    let neuron = info.neuron_info().map(|n| n.neuron_devices()).unwrap_or_default();
    let devices: i64 = neuron.iter().map(|d| i64::from(d.count().unwrap_or(0))).sum();
    let cores = neuron.first().map_or(0, |d| {
        i64::from(d.count().unwrap_or(0))
            * i64::from(d.core_info().and_then(|c| c.count()).unwrap_or(0))
    });
    for (name, amount) in [
        ("nvidia.com/gpu", gpus("NVIDIA")),
        ("amd.com/gpu", gpus("AMD")),
        ("habana.ai/gaudi", gpus("Habana")),
        ("aws.amazon.com/neuron", devices),
        ("aws.amazon.com/neuroncore", cores),
        ("vpc.amazonaws.com/efa", efa(info, class)),
        ("vpc.amazonaws.com/pod-eni", 0),
    ] {
        list.set(Name::from(name), amount);
    }
    list
}

fn efa(info: &InstanceTypeInfo, class: &EC2NodeClass) -> i64 {
    if let Some(interfaces) = class.spec.network_interfaces.as_ref().filter(|l| !l.is_empty()) {
        let count = interfaces.iter().filter(|i| i.interface_type == "efa-only").count();
        return i64::try_from(count).unwrap_or(0);
    }
    info.network_info()
        .and_then(|n| n.efa_info())
        .and_then(|e| e.maximum_efa_interfaces())
        .map_or(0, i64::from)
}

/// Memory in bytes, less what the hypervisor keeps.
fn memory(info: &InstanceTypeInfo, options: &Options) -> i64 {
    let mut mib = info.memory_info().and_then(|m| m.size_in_mib()).unwrap_or(0);
    let first = info.processor_info().and_then(|p| p.supported_architectures().first());
    if first.is_some_and(|a| a.as_str() == "arm64") {
        mib -= 64;
    }
    let kept = ((mib * MIB) as f64 * options.vm_memory_overhead / MIB as f64).ceil() as i64;
    (mib - kept) * MIB
}

fn ephemeral_storage(info: &InstanceTypeInfo, class: &EC2NodeClass) -> i64 {
    if class.spec.instance_store_policy.as_deref() == Some("RAID0")
        && let Some(gb) = info.instance_storage_info().and_then(|s| s.total_size_in_gb())
    {
        return gb * 1_000_000_000;
    }
    let size = |mapping: &crate::api::v1::BlockDeviceMapping| {
        let text = mapping.ebs.as_ref()?.volume_size.as_deref()?;
        quantity::parse(text).ok().map(quantity::Quantity::value)
    };
    let family = AmiFamily::of(class);
    let mappings = class.spec.block_device_mappings.as_deref().unwrap_or_default();
    if let Some(root) = mappings.iter().find(|m| m.root_volume == Some(true))
        && let Some(bytes) = size(root)
    {
        return bytes;
    }
    if family == AmiFamily::Custom {
        return mappings.last().and_then(size).unwrap_or(DEFAULT_STORAGE);
    }
    let defaults = family.default_block_devices();
    mappings
        .iter()
        .chain(&defaults)
        .filter(|m| m.device_name.as_deref() == family.ephemeral_device())
        .find_map(size)
        .unwrap_or(DEFAULT_STORAGE)
}

/// Pods that the default network card's interfaces have addresses for.
fn eni_limited_pods(network: Option<&NetworkInfo>, reserved: i64, class: &EC2NodeClass) -> i64 {
    let Some(network) = network else { return 0 };
    let card = usize::try_from(network.default_network_card_index().unwrap_or(0)).unwrap_or(0);
    let interfaces = network
        .network_cards()
        .get(card)
        .and_then(|c| c.maximum_network_interfaces())
        .or(network.maximum_network_interfaces())
        .map_or(0, i64::from);
    let efa_only = class
        .spec
        .network_interfaces
        .iter()
        .flatten()
        .filter(|i| i.network_card_index == 0 && i.interface_type == "efa-only")
        .count();
    let usable = interfaces - reserved - i64::try_from(efa_only).unwrap_or(0);
    if usable <= 0 {
        return 0;
    }
    let addresses = network.ipv4_addresses_per_interface().map_or(0, i64::from);
    usable * (addresses - 1) + 2
}

fn pods(info: &InstanceTypeInfo, class: &EC2NodeClass, options: &Options) -> i64 {
    let features = AmiFamily::of(class).features();
    let max = kubelet(class, "maxPods").and_then(Value::as_i64);
    let mut count = match max {
        Some(max) => max,
        None if features.eni_limited_pod_density => {
            eni_limited_pods(info.network_info(), options.reserved_enis, class)
        }
        None => 110,
    };
    let per_core = kubelet(class, "podsPerCore").and_then(Value::as_i64).unwrap_or(0);
    if per_core > 0 && features.pods_per_core {
        let vcpus = i64::from(info.v_cpu_info().and_then(|v| v.default_v_cpus()).unwrap_or(0));
        count = count.min(per_core * vcpus);
    }
    count
}

/// Shares of each band of cores that the kubelet keeps, in millionths.
const CPU_BANDS: &[(i64, i64, i64)] =
    &[(0, 1000, 60_000), (1000, 2000, 10_000), (2000, 4000, 5_000), (4000, i64::MAX, 2_500)];

fn reserved_cpu(milli: i64) -> i64 {
    CPU_BANDS
        .iter()
        .map(|(from, to, share)| (milli.min(*to) - from).max(0) * share / 1_000_000)
        .sum()
}

/// What the system keeps.
pub(super) fn overhead(
    info: &InstanceTypeInfo,
    class: &EC2NodeClass,
    capacity: &ResourceList,
) -> Overhead {
    let features = AmiFamily::of(class).features();
    let pods = if features.eni_limited_memory_overhead {
        eni_limited_pods(info.network_info(), 0, class)
    } else {
        capacity.get(&Name::Pods)
    };
    let mut kube_reserved: ResourceList = [
        (Name::Memory, (11 * pods + 255) * MIB),
        (Name::EphemeralStorage, GIB),
        (Name::Cpu, reserved_cpu(capacity.get(&Name::Cpu))),
    ]
    .into_iter()
    .collect();
    for (name, amount) in set_by_user(class, "kubeReserved").iter() {
        kube_reserved.set(name.clone(), amount);
    }
    let storage = capacity.get(&Name::EphemeralStorage);
    let threshold = |signal: &str, total: i64, default: i64| {
        kubelet(class, "evictionHard")
            .and_then(|e| e.get(signal))
            .and_then(Value::as_str)
            .and_then(|text| eviction_amount(text, total))
            .unwrap_or(default)
    };
    let memory = capacity.get(&Name::Memory);
    let eviction_threshold = [
        (Name::Memory, threshold("memory.available", memory, 100 * MIB)),
        (Name::EphemeralStorage, threshold("nodefs.available", storage, (storage + 9) / 10)),
    ]
    .into_iter()
    .collect();
    Overhead {
        kube_reserved,
        system_reserved: set_by_user(class, "systemReserved"),
        eviction_threshold,
    }
}

/// A threshold as a quantity, or as a percentage of the capacity; `100%` turns it off.
fn eviction_amount(text: &str, total: i64) -> Option<i64> {
    let Some(percent) = text.strip_suffix('%') else {
        return quantity::parse(text).ok().map(quantity::Quantity::value);
    };
    let percent: f64 = percent.parse().ok()?;
    if percent >= 100.0 {
        return Some(0);
    }
    Some((total as f64 / 100.0 * percent).ceil() as i64)
}

fn set_by_user(class: &EC2NodeClass, key: &str) -> ResourceList {
    let map = kubelet(class, key).and_then(Value::as_object);
    map.into_iter()
        .flatten()
        .filter_map(|(name, amount)| {
            let parsed = quantity::parse(amount.as_str()?).ok()?;
            let name = Name::from(name.as_str());
            let value = if name == Name::Cpu { parsed.milli() } else { parsed.value() };
            Some((name, value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelet_keeps_a_falling_share_of_cores() {
        for (cores, want) in [(1, 60), (2, 70), (4, 80), (8, 90), (16, 110), (48, 190), (96, 310)] {
            assert_eq!(reserved_cpu(cores * 1000), want, "{cores}");
        }
    }

    #[test]
    fn eviction_thresholds_are_amounts_or_shares() {
        assert_eq!(eviction_amount("5%", 1000), Some(50));
        assert_eq!(eviction_amount("100%", 1000), Some(0));
        assert_eq!(eviction_amount("1Ki", 0), Some(1024));
        assert_eq!(eviction_amount("x", 0), None);
    }
}
