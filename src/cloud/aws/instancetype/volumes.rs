//! How many EBS volumes pods can have on an instance.
//!
//! The figures are EC2's published ones ("Amazon EBS volume limits for Amazon EC2 instances"), and
//! what is taken off them is what the EBS CSI driver takes off before it reports a limit.

use std::collections::BTreeMap;

use super::info::{Device, Info};
use crate::api::v1::EC2NodeClass;
use crate::cloud::aws::ami::AmiFamily;

/// The CSI driver of EBS.
const DRIVER: &str = "ebs.csi.aws.com";
/// Attachments of a Nitro instance where EC2 names no number: volumes, network interfaces, local
/// disks and accelerators together.
const NITRO: i64 = 28;
/// Volumes of a Xen instance.
const XEN: i64 = 39;

/// What the driver will allow on instances of a type with a class's volumes of their own.
pub(super) fn limits(info: &Info, class: &EC2NodeClass) -> BTreeMap<String, u64> {
    let ebs = info.ebs_info.as_ref();
    let known = ebs.and_then(|e| e.maximum_ebs_attachments);
    let dedicated = ebs.is_some_and(|e| e.attachment_limit_type == "dedicated");
    let xen = info.hypervisor.as_deref() == Some("xen");
    let mut left = known.unwrap_or(if xen { XEN } else { NITRO });
    if !dedicated && !xen {
        // One for the primary interface. The CSI driver counts only what is attached when it
        // starts, so interfaces that come later take nothing off.
        left -= 1 + local_disks(info) + accelerators(info);
    }
    left -= own_volumes(class);
    BTreeMap::from([(DRIVER.to_owned(), u64::try_from(left).unwrap_or(0))])
}

fn local_disks(info: &Info) -> i64 {
    let nvme = info.instance_storage_info.iter().filter(|s| s.nvme_support != "unsupported");
    nvme.flat_map(|s| &s.disks).map(|d| d.count).sum()
}

fn accelerators(info: &Info) -> i64 {
    let gpus = info.gpu_info.iter().flat_map(|g| &g.gpus);
    let others = info.inference_accelerator_info.iter().flat_map(|a| &a.accelerators);
    gpus.chain(others).map(|d: &Device| d.count).sum()
}

/// The volumes that an instance is launched with, the root among them.
fn own_volumes(class: &EC2NodeClass) -> i64 {
    let mapped = class.spec.block_device_mappings.as_deref().unwrap_or_default();
    let mapped = mapped.iter().filter(|m| m.ebs.is_some()).count();
    let own = if mapped == 0 { AmiFamily::of(class).default_block_devices().len() } else { mapped };
    i64::try_from(own.max(1)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn allowed(info: serde_json::Value, spec: serde_json::Value) -> u64 {
        let class = EC2NodeClass::new("c", serde_json::from_value(spec).unwrap());
        limits(&serde_json::from_value(info).unwrap(), &class)[DRIVER]
    }

    #[test]
    fn what_else_is_attached_counts_on_nitro() {
        let plain = json!({"amiFamily": "AL2023"});
        let of = |info| allowed(info, plain.clone());
        assert_eq!(of(json!({"Hypervisor": "nitro"})), 26);
        let disks = json!({"Hypervisor": "nitro", "InstanceStorageInfo":
            {"NvmeSupport": "required", "Disks": [{"Count": 2}]}});
        assert_eq!(of(disks), 24);
        let gpus = json!({"Hypervisor": "nitro", "GpuInfo": {"Gpus": [{"Count": 4}]}});
        assert_eq!(of(gpus), 22);
        assert_eq!(of(json!({"Hypervisor": "xen"})), 38);
        let dedicated = json!({"Hypervisor": "nitro", "EbsInfo":
            {"MaximumEbsAttachments": 128, "AttachmentLimitType": "dedicated"}});
        assert_eq!(of(dedicated), 127);
    }

    #[test]
    fn volumes_of_the_class_take_their_place() {
        let nitro = json!({"Hypervisor": "nitro"});
        assert_eq!(allowed(nitro.clone(), json!({"amiFamily": "Bottlerocket"})), 25);
        let mapped = json!({"amiFamily": "AL2023", "blockDeviceMappings": [
            {"deviceName": "/dev/xvda", "ebs": {"volumeSize": "20Gi"}},
            {"deviceName": "/dev/xvdb", "ebs": {"volumeSize": "20Gi"}},
            {"deviceName": "/dev/xvdc", "ebs": {"volumeSize": "20Gi"}}]});
        assert_eq!(allowed(nitro, mapped), 24);
    }
}
