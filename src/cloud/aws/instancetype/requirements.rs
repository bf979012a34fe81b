//! Labels of an instance type.

use std::collections::BTreeSet;

use aws_sdk_ec2::types::{
    EbsOptimizedSupport, EphemeralNvmeSupport, InstanceTypeInfo, NitroEnclavesSupport,
};

use super::{Options, Zones, name_of};
use crate::api::labels;
use crate::api::v1::{EC2NodeClass, Operator};
use crate::cloud::aws::ami::AmiFamily;
use crate::scheduling::requirements::{Requirement, Requirements};

fn kebab(text: &str) -> String {
    text.to_lowercase().replace(' ', "-")
}

/// All labels that the type settles or leaves open.
pub(super) fn of(
    info: &InstanceTypeInfo,
    class: &EC2NodeClass,
    options: &Options,
    zones: &Zones<'_>,
    available: &BTreeSet<&str>,
) -> Requirements {
    let mut all = Requirements::new();
    let family = AmiFamily::of(class);
    identity(&mut all, info, family);
    all.add(Requirement::new(labels::ZONE, Operator::In, available));
    all.add(Requirement::is(labels::REGION, &options.region));
    let ids: Vec<&str> = zones.ids_of(available).collect();
    if !ids.is_empty() {
        all.add(Requirement::new(labels::ZONE_ID, Operator::In, ids));
    }
    capacity_types(&mut all, info, class);
    processor(&mut all, info);
    devices(&mut all, info);
    all.add(Requirement::new(labels::INSTANCE_TENANCY, Operator::In, ["default", "dedicated"]));
    all
}

fn set(all: &mut Requirements, key: &str, value: Option<String>) {
    all.add(match value {
        Some(value) => Requirement::is(key, &value),
        None => Requirement::new::<&str>(key, Operator::DoesNotExist, []),
    });
}

fn identity(all: &mut Requirements, info: &InstanceTypeInfo, family: AmiFamily) {
    let name = name_of(info);
    all.add(Requirement::is(labels::INSTANCE_TYPE, name));
    let archs = info.processor_info().map(|p| p.supported_architectures()).unwrap_or_default();
    let arch = archs.iter().find_map(|a| match a.as_str() {
        "x86_64" => Some(labels::ARCH_AMD64),
        "arm64" => Some(labels::ARCH_ARM64),
        _ => None,
    });
    all.add(match arch {
        Some(arch) => Requirement::is(labels::ARCH, arch),
        None => Requirement::new(labels::ARCH, Operator::In, archs.iter().map(|a| a.as_str())),
    });
    all.add(match family.windows_build() {
        None => Requirement::is(labels::OS, "linux"),
        Some(_) if arch == Some(labels::ARCH_AMD64) => Requirement::is(labels::OS, "windows"),
        Some(_) => Requirement::new::<&str>(labels::OS, Operator::In, []),
    });
    set(all, labels::WINDOWS_BUILD, family.windows_build().map(str::to_owned));
    let (family_part, size) = name.split_once('.').unwrap_or(("", ""));
    let (category, generation) = category_and_generation(name);
    set(all, labels::INSTANCE_CATEGORY, category);
    set(all, labels::INSTANCE_GENERATION, generation);
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    set(all, labels::INSTANCE_FAMILY, some(family_part));
    set(all, labels::INSTANCE_SIZE, some(size));
    set(all, labels::INSTANCE_CAPABILITY_FLEX, Some(family_part.contains("-flex").to_string()));
}

/// The letters and the number that a name such as `m7i-flex.large` or `u-6tb1.metal` begins with.
fn category_and_generation(name: &str) -> (Option<String>, Option<String>) {
    let none = (None, None);
    let letters = name.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(name.len());
    if letters == 0 || !name.contains('.') {
        return none;
    }
    let (category, mut rest) = name.split_at(letters);
    if let Some(after) = rest.strip_prefix('-') {
        let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        match after[digits..].strip_prefix("tb") {
            Some(after) if digits > 0 => rest = after,
            _ => return none,
        }
    }
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    if digits == 0 {
        return none;
    }
    (Some(category.to_owned()), Some(rest[..digits].to_owned()))
}

fn capacity_types(all: &mut Requirements, info: &InstanceTypeInfo, class: &EC2NodeClass) {
    let name = name_of(info);
    let reservations: Vec<_> = class
        .status
        .iter()
        .flat_map(|s| &s.capacity_reservations)
        .filter(|r| r.instance_type == name)
        .collect();
    let mut kinds: Vec<&str> = info
        .supported_usage_classes()
        .iter()
        .map(|c| c.as_str())
        .filter(|c| matches!(*c, labels::CAPACITY_ON_DEMAND | labels::CAPACITY_SPOT))
        .collect();
    if !reservations.is_empty() {
        kinds.push(labels::CAPACITY_RESERVED);
    }
    all.add(Requirement::new(labels::CAPACITY_TYPE, Operator::In, kinds));
    all.add(Requirement::new(
        labels::CAPACITY_RESERVATION_ID,
        Operator::In,
        reservations.iter().map(|r| r.id.as_str()),
    ));
    all.add(Requirement::new(
        labels::CAPACITY_RESERVATION_TYPE,
        Operator::In,
        reservations.iter().map(|r| r.reservation_type.as_str()),
    ));
    all.add(Requirement::new(
        labels::CAPACITY_RESERVATION_INTERRUPTIBLE,
        Operator::In,
        reservations.iter().map(|r| if r.interruptible == Some(true) { "true" } else { "false" }),
    ));
}

fn processor(all: &mut Requirements, info: &InstanceTypeInfo) {
    let vcpus = info.v_cpu_info().and_then(|v| v.default_v_cpus()).unwrap_or(0);
    set(all, labels::INSTANCE_CPU, Some(vcpus.to_string()));
    let memory = info.memory_info().and_then(|m| m.size_in_mib()).unwrap_or(0);
    set(all, labels::INSTANCE_MEMORY, Some(memory.to_string()));
    let processor = info.processor_info();
    set(
        all,
        labels::INSTANCE_CPU_MANUFACTURER,
        processor.map(|p| kebab(p.manufacturer().unwrap_or_default())),
    );
    set(
        all,
        labels::INSTANCE_CPU_CLOCK_SPEED,
        processor
            .map(|p| format!("{:.0}", p.sustained_clock_speed_in_ghz().unwrap_or(0.0) * 1000.0)),
    );
    let ebs = info
        .ebs_info()
        .filter(|e| e.ebs_optimized_support() == Some(&EbsOptimizedSupport::Default))
        .and_then(|e| e.ebs_optimized_info())
        .and_then(|o| o.maximum_bandwidth_in_mbps());
    set(all, labels::INSTANCE_EBS_BANDWIDTH, ebs.map(|b| b.to_string()));
    let hypervisor = info.hypervisor().map_or("", |h| h.as_str());
    set(all, labels::INSTANCE_HYPERVISOR, Some(hypervisor.to_owned()));
    let network = info.network_info();
    let encrypted = network.and_then(|n| n.encryption_in_transit_supported()).unwrap_or(false);
    set(all, labels::INSTANCE_ENCRYPTION_IN_TRANSIT, Some(encrypted.to_string()));
    let bandwidth = network.and_then(baseline_bandwidth);
    set(all, labels::INSTANCE_NETWORK_BANDWIDTH, bandwidth);
    let enclaves = info.nitro_enclaves_support() == Some(&NitroEnclavesSupport::Supported);
    set(all, labels::NITRO_SANDBOX, Some(enclaves.to_string()));
}

/// Baseline network bandwidth of all cards together, in Mbit/s.
fn baseline_bandwidth(network: &aws_sdk_ec2::types::NetworkInfo) -> Option<String> {
    let gbps: f64 =
        network.network_cards().iter().filter_map(|c| c.baseline_bandwidth_in_gbps()).sum();
    (gbps > 0.0).then(|| format!("{:.0}", gbps * 1000.0))
}

fn devices(all: &mut Requirements, info: &InstanceTypeInfo) {
    let nvme = info
        .instance_storage_info()
        .filter(|s| s.nvme_support() != Some(&EphemeralNvmeSupport::Unsupported))
        .and_then(|s| s.total_size_in_gb());
    set(all, labels::INSTANCE_LOCAL_NVME, nvme.map(|gb| gb.to_string()));
    let gpu = match info.gpu_info().map(|g| g.gpus()).unwrap_or_default() {
        [one] => Some(one),
        _ => None,
    };
    set(all, labels::INSTANCE_GPU_NAME, gpu.map(|g| kebab(g.name().unwrap_or_default())));
    set(
        all,
        labels::INSTANCE_GPU_MANUFACTURER,
        gpu.map(|g| kebab(g.manufacturer().unwrap_or_default())),
    );
    set(all, labels::INSTANCE_GPU_COUNT, gpu.map(|g| g.count().unwrap_or(0).to_string()));
    set(
        all,
        labels::INSTANCE_GPU_MEMORY,
        gpu.map(|g| g.memory_info().and_then(|m| m.size_in_mib()).unwrap_or(0).to_string()),
    );
    let accelerator = accelerator(info);
    let part = |pick: fn(&(String, String, i32)) -> String| accelerator.as_ref().map(pick);
    set(all, labels::INSTANCE_ACCELERATOR_NAME, part(|a| a.0.clone()));
    set(all, labels::INSTANCE_ACCELERATOR_MANUFACTURER, part(|a| a.1.clone()));
    set(all, labels::INSTANCE_ACCELERATOR_COUNT, part(|a| a.2.to_string()));
}

/// Name, manufacturer and number of accelerators.
fn accelerator(info: &InstanceTypeInfo) -> Option<(String, String, i32)> {
    if let Some(neuron) = info.neuron_info() {
        return match neuron.neuron_devices() {
            [one] => Some((kebab(one.name()?), "aws".to_owned(), one.count().unwrap_or(0))),
            _ => None,
        };
    }
    match info.inference_accelerator_info()?.accelerators() {
        [one] => Some((
            kebab(one.name()?),
            kebab(one.manufacturer().unwrap_or_default()),
            one.count().unwrap_or(0),
        )),
        _ => None,
    }
}

/// Whether instances of the class can be of this type at all.
pub fn compatible_with_class(name: &str, class: &EC2NodeClass) -> bool {
    !(AmiFamily::of(class) == AmiFamily::Al2023 && name.starts_with("a1."))
}

#[cfg(test)]
mod tests {
    use super::category_and_generation;

    #[test]
    fn names_tell_category_and_generation() {
        for (name, category, generation) in [
            ("u-6tb1.metal", "u", "1"),
            ("m7i-flex.large", "m", "7"),
            ("c6g.large", "c", "6"),
            ("mac2-m2pro.metal", "mac", "2"),
        ] {
            let want = (Some(category.to_owned()), Some(generation.to_owned()));
            assert_eq!(category_and_generation(name), want, "{name}");
        }
        assert_eq!(category_and_generation("test"), (None, None));
    }
}
