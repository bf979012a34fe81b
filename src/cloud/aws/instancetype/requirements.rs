//! Labels of an instance type.

use std::collections::BTreeSet;

use super::info::{Device, Info};
use super::zones::Zones;
use super::{Options, network};
use crate::api::labels;
use crate::api::v1::{EC2NodeClass, Operator};
use crate::cloud::aws::ami::AmiFamily;
use crate::scheduling::requirements::{Requirement, Requirements};

fn kebab(text: &str) -> String {
    text.to_lowercase().replace(' ', "-")
}

/// All labels that the type settles or leaves open.
pub(super) fn of(
    info: &Info,
    class: &EC2NodeClass,
    options: &Options,
    zones: &Zones,
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
    // Every type can be launched either way; the launch decides.
    all.add(Requirement::new(labels::INSTANCE_TENANCY, Operator::In, ["default", "dedicated"]));
    all
}

fn set(all: &mut Requirements, key: &str, value: Option<String>) {
    all.add(match value {
        Some(value) => Requirement::is(key, &value),
        // Stated, so that `DoesNotExist` and `NotIn` match the type and `In` does not.
        None => Requirement::new::<&str>(key, Operator::DoesNotExist, []),
    });
}

fn identity(all: &mut Requirements, info: &Info, family: AmiFamily) {
    let name = info.instance_type.as_str();
    all.add(Requirement::is(labels::INSTANCE_TYPE, name));
    let none = Vec::new();
    let archs = info.processor_info.as_ref().map_or(&none, |p| &p.supported_architectures);
    let arch = archs.iter().find_map(|a| match a.as_str() {
        "x86_64" => Some(labels::ARCH_AMD64),
        "arm64" => Some(labels::ARCH_ARM64),
        _ => None,
    });
    all.add(match arch {
        Some(arch) => Requirement::is(labels::ARCH, arch),
        // Shown as EC2 has it; no image is for it.
        None => Requirement::new(labels::ARCH, Operator::In, archs),
    });
    all.add(match family.windows_build() {
        None => Requirement::is(labels::OS, "linux"),
        Some(_) if arch == Some(labels::ARCH_AMD64) => Requirement::is(labels::OS, "windows"),
        Some(_) => Requirement::new::<&str>(labels::OS, Operator::In, []),
    });
    set(all, labels::WINDOWS_BUILD, family.windows_build().map(str::to_owned));
    let parts = name.split_once('.').filter(|(_, size)| !size.contains('.'));
    let (category, generation) = category_and_generation(name);
    set(all, labels::INSTANCE_CATEGORY, category);
    set(all, labels::INSTANCE_GENERATION, generation);
    set(all, labels::INSTANCE_FAMILY, parts.map(|(family, _)| family.to_owned()));
    set(all, labels::INSTANCE_SIZE, parts.map(|(_, size)| size.to_owned()));
    let flex = info.family().contains("-flex");
    set(all, labels::INSTANCE_CAPABILITY_FLEX, Some(flex.to_string()));
}

/// The letters and the number that a name such as `m7i-flex.large` or `u-6tb1.metal` begins with.
pub(crate) fn category_and_generation(name: &str) -> (Option<String>, Option<String>) {
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

fn capacity_types(all: &mut Requirements, info: &Info, class: &EC2NodeClass) {
    let reservations: Vec<_> = class
        .status
        .iter()
        .flat_map(|s| &s.capacity_reservations)
        .filter(|r| r.instance_type == info.instance_type)
        .collect();
    let mut kinds: Vec<&str> = info
        .supported_usage_classes
        .iter()
        .map(String::as_str)
        .filter(|c| matches!(*c, labels::CAPACITY_ON_DEMAND | labels::CAPACITY_SPOT))
        .collect();
    if !reservations.is_empty() {
        kinds.push(labels::CAPACITY_RESERVED);
    }
    // Without reservations the lists below are empty, and `In` without values is the same as
    // `DoesNotExist`: a type without a reservation does not match pods that ask for one.
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

fn processor(all: &mut Requirements, info: &Info) {
    set(all, labels::INSTANCE_CPU, Some(info.v_cpu_info.default.to_string()));
    set(all, labels::INSTANCE_MEMORY, Some(info.memory_info.mib.to_string()));
    let processor = info.processor_info.as_ref();
    set(all, labels::INSTANCE_CPU_MANUFACTURER, processor.map(|p| kebab(&p.manufacturer)));
    set(
        all,
        labels::INSTANCE_CPU_CLOCK_SPEED,
        processor.map(|p| format!("{:.0}", (p.sustained_clock_speed_in_ghz * 1000.0).round())),
    );
    let ebs = info
        .ebs_info
        .as_ref()
        .filter(|e| e.ebs_optimized_support == "default")
        .and_then(|e| e.ebs_optimized_info.as_ref()?.maximum_bandwidth_in_mbps);
    set(all, labels::INSTANCE_EBS_BANDWIDTH, ebs.map(|b| b.to_string()));
    let hypervisor = info.hypervisor.clone().unwrap_or_default();
    set(all, labels::INSTANCE_HYPERVISOR, Some(hypervisor));
    let encrypted = info.network_info.as_ref().is_some_and(|n| n.encryption_in_transit_supported);
    set(all, labels::INSTANCE_ENCRYPTION_IN_TRANSIT, Some(encrypted.to_string()));
    let bandwidth = network::bandwidth(info);
    set(all, labels::INSTANCE_NETWORK_BANDWIDTH, bandwidth.map(|b| b.to_string()));
    let enclaves = info.nitro_enclaves_support.as_deref() == Some("supported");
    set(all, labels::NITRO_SANDBOX, Some(enclaves.to_string()));
}

fn devices(all: &mut Requirements, info: &Info) {
    let nvme = info
        .instance_storage_info
        .as_ref()
        .filter(|s| s.nvme_support != "unsupported")
        .and_then(|s| s.total_size_in_gb);
    set(all, labels::INSTANCE_LOCAL_NVME, nvme.map(|gb| gb.to_string()));
    let gpu = only(info.gpu_info.as_ref().map(|g| g.gpus.as_slice()));
    set(all, labels::INSTANCE_GPU_NAME, gpu.map(|g| kebab(&g.name)));
    set(all, labels::INSTANCE_GPU_MANUFACTURER, gpu.map(|g| kebab(&g.manufacturer)));
    set(all, labels::INSTANCE_GPU_COUNT, gpu.map(|g| g.count.to_string()));
    set(all, labels::INSTANCE_GPU_MEMORY, gpu.map(|g| g.memory_info.mib.to_string()));
    let (device, manufacturer) = accelerator(info);
    set(all, labels::INSTANCE_ACCELERATOR_NAME, device.map(|d| kebab(&d.name)));
    set(all, labels::INSTANCE_ACCELERATOR_MANUFACTURER, device.and(manufacturer));
    set(all, labels::INSTANCE_ACCELERATOR_COUNT, device.map(|d| d.count.to_string()));
}

/// The device, where there is exactly one kind.
fn only(devices: Option<&[Device]>) -> Option<&Device> {
    match devices? {
        [one] => Some(one),
        _ => None,
    }
}

/// The one kind of accelerator, and its manufacturer; EC2 does not name that of Neuron devices.
fn accelerator(info: &Info) -> (Option<&Device>, Option<String>) {
    if let Some(neuron) = &info.neuron_info {
        return (only(Some(neuron.neuron_devices.as_slice())), Some("aws".to_owned()));
    }
    let device = only(info.inference_accelerator_info.as_ref().map(|a| a.accelerators.as_slice()));
    (device, device.map(|d| kebab(&d.manufacturer)))
}

/// Whether instances of the class can be of this type, judging by its name.
#[must_use]
pub fn compatible_with_class(name: &str, class: &EC2NodeClass) -> bool {
    // AL2023 does not boot on the first Graviton.
    !(AmiFamily::of(class) == AmiFamily::Al2023 && name.starts_with("a1."))
}

#[cfg(test)]
mod tests {
    use super::category_and_generation;

    #[test]
    fn names_state_category_and_generation() {
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
