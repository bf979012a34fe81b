//! Capacity and overhead of an instance type.

use super::Options;
use super::expressions::{self, Variables};
use super::info::{Device, Info};
use super::kubelet::{MaxPods, Settings, eviction_amount};
use super::network::{branch_interfaces, eni_limited_pods, windows_addresses};
use crate::api::v1::EC2NodeClass;
use crate::cloud::aws::ami::AmiFamily;
use crate::scheduling::instance_type::Overhead;
use crate::scheduling::quantity;
use crate::scheduling::resources::{Name, ResourceList};

const MIB: i64 = 1 << 20;
const GIB: i64 = 1 << 30;
/// Ephemeral storage where neither the node class nor its AMI family names a volume.
const DEFAULT_STORAGE: i64 = 20 * GIB;
/// Pods on families that do not count network addresses; the kubelet's own default.
const DEFAULT_PODS: i64 = 110;
/// Interface of a node class that carries fabric traffic alone.
const EFA_ONLY: &str = "efa-only";

/// Elastic fabric adapters.
pub const EFA: &str = "vpc.amazonaws.com/efa";
/// Branch interfaces for pods with security groups of their own.
pub const POD_ENI: &str = "vpc.amazonaws.com/pod-eni";
/// Addresses of Windows pods.
pub const PRIVATE_IPV4: &str = "vpc.amazonaws.com/PrivateIPv4Address";
/// GPUs and accelerators, which a launch does not take unasked.
pub const DEVICES: &[&str] = &[
    "nvidia.com/gpu",
    "amd.com/gpu",
    "habana.ai/gaudi",
    "aws.amazon.com/neuron",
    "aws.amazon.com/neuroncore",
];

/// One type under one node class, with what both are made from.
pub(super) struct Subject<'a> {
    pub info: &'a Info,
    pub class: &'a EC2NodeClass,
    pub family: AmiFamily,
    pub kubelet: &'a Settings,
    pub options: &'a Options,
}

/// Capacity and overhead.
///
/// # Errors
/// When the pod limit is an expression that cannot be evaluated.
pub(super) fn of(
    subject: &Subject<'_>,
    discovered_memory: Option<i64>,
) -> Result<(ResourceList, Overhead), String> {
    let pods = subject.pods()?;
    let mut capacity = subject.capacity(pods);
    let overhead = subject.overhead(&capacity, pods);
    // After the overhead, as in Karpenter: eviction thresholds stay shares of the published memory.
    if let Some(memory) = discovered_memory {
        capacity.set(Name::Memory, memory);
    }
    Ok((capacity, overhead))
}

/// Evaluates every expression of the kubelet settings for a type.
///
/// # Errors
/// The first that fails, with its field.
pub(super) fn check_expressions(subject: &Subject<'_>) -> Result<(), String> {
    let name = &subject.info.instance_type;
    let failed =
        |field: &str, error: String| Err(format!("{error} (field={field}, instance-type={name})"));
    let pods = match subject.pods() {
        Ok(pods) => pods,
        Err(error) => return failed("spec.kubelet.maxPods", error),
    };
    let variables = subject.variables(pods);
    let kubelet = subject.kubelet;
    for (key, map) in
        [("kubeReserved", &kubelet.kube_reserved), ("systemReserved", &kubelet.system_reserved)]
    {
        for (resource, text) in map.iter().filter(|(_, text)| quantity::parse(text).is_err()) {
            if let Err(error) = expressions::reserved(resource, text, &variables) {
                return failed(&format!("spec.kubelet.{key}[{resource}]"), error);
            }
        }
    }
    Ok(())
}

impl Subject<'_> {
    fn cores(&self) -> i64 {
        self.info.v_cpu_info.default
    }

    /// All that a machine of this type has.
    fn capacity(&self, pods: i64) -> ResourceList {
        let info = self.info;
        let mut list: ResourceList = [
            (Name::Cpu, self.cores() * 1000),
            (Name::Memory, self.memory()),
            (Name::EphemeralStorage, self.ephemeral_storage()),
            (Name::Pods, pods),
        ]
        .into_iter()
        .collect();
        let gpus = |manufacturer: &str| -> i64 {
            let all = info.gpu_info.iter().flat_map(|g| &g.gpus);
            all.filter(|g| g.manufacturer == manufacturer).map(|g| g.count).sum()
        };
        // The resources have the names under which the vendors' device plugins, and for interfaces
        // the VPC resource controller, register them.
        let neuron: &[Device] = info.neuron_info.as_ref().map_or(&[], |n| &n.neuron_devices);
        for (name, amount) in [
            ("nvidia.com/gpu", gpus("NVIDIA")),
            ("amd.com/gpu", gpus("AMD")),
            ("habana.ai/gaudi", gpus("Habana")),
            ("aws.amazon.com/neuron", neuron.iter().map(|d| d.count).sum()),
            (
                "aws.amazon.com/neuroncore",
                neuron.first().map_or(0, |d| d.count * d.core_info.count),
            ),
            (EFA, self.efa()),
            (POD_ENI, branch_interfaces(info)),
        ] {
            list.set(Name::from(name), amount);
        }
        if self.family.windows_build().is_some() {
            list.set(Name::from(PRIVATE_IPV4), windows_addresses(info));
        }
        list
    }

    fn efa(&self) -> i64 {
        match self.class.spec.network_interfaces.as_ref().filter(|l| !l.is_empty()) {
            Some(own) => count(own.iter().filter(|i| i.interface_type == EFA_ONLY).count()),
            None => {
                let network = self.info.network_info.as_ref();
                network.and_then(|n| n.efa_info.as_ref()).map_or(0, |e| e.maximum_efa_interfaces)
            }
        }
    }

    /// Memory in bytes, less what the hypervisor keeps. Graviton's kernel reserves 64 MiB more
    /// (CMA). In whole MiB, as Karpenter rounds.
    fn memory(&self) -> i64 {
        let mut mib = self.info.memory_info.mib;
        if self.info.first_architecture() == "arm64" {
            mib -= 64;
        }
        let share = self.options.vm_memory_overhead;
        let kept = ((mib * MIB) as f64 * share / MIB as f64).ceil() as i64;
        (mib - kept) * MIB
    }

    fn ephemeral_storage(&self) -> i64 {
        let spec = &self.class.spec;
        if spec.instance_store_policy.as_deref() == Some("RAID0")
            && let Some(gb) =
                self.info.instance_storage_info.as_ref().and_then(|s| s.total_size_in_gb)
        {
            // EC2 gives disks in decimal gigabytes.
            return gb * 1_000_000_000;
        }
        let size = |mapping: &crate::api::v1::BlockDeviceMapping| {
            let text = mapping.ebs.as_ref()?.volume_size.as_deref()?;
            quantity::parse(text).ok().map(quantity::Quantity::value)
        };
        let mappings = spec.block_device_mappings.as_deref().unwrap_or_default();
        let root = mappings.iter().find(|m| m.root_volume == Some(true));
        if let Some(bytes) = root.and_then(size) {
            return bytes;
        }
        if self.family == AmiFamily::Custom {
            // Which device a custom image keeps pods on is unknown; Karpenter takes the last one.
            return mappings.last().and_then(size).unwrap_or(DEFAULT_STORAGE);
        }
        let defaults = self.family.default_block_devices();
        mappings
            .iter()
            .chain(&defaults)
            .filter(|m| m.device_name.as_deref() == self.family.ephemeral_device())
            .find_map(size)
            .unwrap_or(DEFAULT_STORAGE)
    }

    /// Pods by network addresses, with `reserved` interfaces for other uses.
    fn pods_by_addresses(&self, reserved: i64) -> i64 {
        let own = self.class.spec.network_interfaces.iter().flatten();
        let fabric = own.filter(|i| i.network_card_index == 0 && i.interface_type == EFA_ONLY);
        eni_limited_pods(self.info, reserved + count(fabric.count()))
    }

    fn pods(&self) -> Result<i64, String> {
        let features = self.family.features();
        let by_default = || {
            if features.eni_limited_pod_density {
                self.pods_by_addresses(self.options.reserved_enis)
            } else {
                DEFAULT_PODS
            }
        };
        let per_core = |pods: i64| match self.kubelet.pods_per_core {
            Some(limit) if limit > 0 && features.pods_per_core => pods.min(limit * self.cores()),
            _ => pods,
        };
        let limit = match &self.kubelet.max_pods {
            Some(MaxPods::Count(limit)) => *limit,
            Some(MaxPods::Expression(text)) if self.options.kubelet_expressions => {
                expressions::max_pods(text, &self.variables(per_core(by_default())))?
            }
            _ => by_default(),
        };
        Ok(per_core(limit))
    }

    fn variables(&self, max_pods: i64) -> Variables<'_> {
        Variables {
            instance_type: &self.info.instance_type,
            vcpus: self.cores(),
            memory_mib: self.info.memory_info.mib,
            default_enis: self.info.default_card().map_or(0, |c| c.maximum_network_interfaces),
            ips_per_eni: self
                .info
                .network_info
                .as_ref()
                .map_or(0, |n| n.ipv4_addresses_per_interface),
            max_pods,
        }
    }

    /// What the system keeps.
    fn overhead(&self, capacity: &ResourceList, pods: i64) -> Overhead {
        let counted = if self.family.features().eni_limited_memory_overhead {
            self.pods_by_addresses(0)
        } else {
            pods
        };
        let variables = self.options.kubelet_expressions.then(|| self.variables(pods));
        let mut kube_reserved: ResourceList = [
            // The formula of the EKS optimized AMIs' bootstrap script: 255 MiB and 11 MiB for each
            // pod that the network interfaces allow.
            (Name::Memory, (11 * counted + 255) * MIB),
            (Name::EphemeralStorage, GIB),
            (Name::Cpu, reserved_cpu(capacity.get(&Name::Cpu))),
        ]
        .into_iter()
        .collect();
        let kubelet = self.kubelet;
        for (name, amount) in kubelet.reserved(&kubelet.kube_reserved, variables.as_ref()).iter() {
            kube_reserved.set(name.clone(), amount);
        }
        let threshold = |signal: &str, total: i64, default: i64| {
            let set = kubelet.eviction_hard.get(signal);
            set.and_then(|text| eviction_amount(text, total)).unwrap_or(default)
        };
        let memory = capacity.get(&Name::Memory);
        let storage = capacity.get(&Name::EphemeralStorage);
        Overhead {
            kube_reserved,
            system_reserved: kubelet.reserved(&kubelet.system_reserved, variables.as_ref()),
            eviction_threshold: [
                (Name::Memory, threshold("memory.available", memory, 100 * MIB)),
                (
                    Name::EphemeralStorage,
                    threshold("nodefs.available", storage, (storage + 9) / 10),
                ),
            ]
            .into_iter()
            .collect(),
        }
    }
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Shares of each band of cores that the kubelet keeps, in millionths.
// 6 % of the first core, 1 % of the second, 0.5 % of the next two, 0.25 % of the rest: what the EKS
// optimized AMIs reserve.
const CPU_BANDS: &[(i64, i64, i64)] =
    &[(0, 1000, 60_000), (1000, 2000, 10_000), (2000, 4000, 5_000), (4000, i64::MAX, 2_500)];

fn reserved_cpu(milli: i64) -> i64 {
    CPU_BANDS
        .iter()
        .map(|(from, to, share)| (milli.min(*to) - from).max(0) * share / 1_000_000)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelet_keeps_a_falling_share_of_cores() {
        for (cores, want) in [
            (1, 60),
            (2, 70),
            (4, 80),
            (8, 90),
            (16, 110),
            (24, 130),
            (32, 150),
            (48, 190),
            (64, 230),
            (96, 310),
        ] {
            assert_eq!(reserved_cpu(cores * 1000), want, "{cores}");
        }
    }
}
