//! EC2NodeClasses, as far as they can be checked without knowing what their images run.

use super::Finding;
use crate::v1::EC2NodeClass;

/// Checks what of an EC2NodeClass can be checked without asking AWS, its kubelet settings aside,
/// which the provider knows.
#[must_use]
pub fn check(class: &EC2NodeClass) -> Vec<Finding> {
    let mut findings = Vec::new();
    let spec = &class.spec;
    for (i, term) in spec.ami_selector_terms.iter().enumerate() {
        let path = format!("spec.amiSelectorTerms[{i}]");
        if let Some(alias) = &term.alias {
            let parts: Vec<&str> = alias.split('@').collect();
            if parts.len() != 2 {
                findings.push(Finding::new(
                    format!("{path}.alias"),
                    format!("invalid alias {alias:?}, expected family@version"),
                ));
            }
        }
        if term.id.as_deref() == Some("ami-placeholder") {
            findings.push(Finding::new(
                path,
                "stands for the images of the Ubuntu family, which is not supported: expected terms that select images",
            ));
        }
    }
    for (i, device) in spec.block_device_mappings.iter().flatten().enumerate() {
        let size = device.ebs.as_ref().and_then(|e| e.volume_size.as_deref());
        if let Some(error) = size.and_then(|s| crate::quantity::parse(s).err()) {
            findings.push(Finding::new(
                format!("spec.blockDeviceMappings[{i}].ebs.volumeSize"),
                error.to_string(),
            ));
        }
    }
    findings
}
