//! AMI families: what the operating system of an image decides.

use crate::api::v1::{BlockDevice, BlockDeviceMapping, EC2NodeClass};

/// An operating system family: decides user data, block devices and overheads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AmiFamily {
    Al2,
    Al2023,
    Bottlerocket,
    Windows2019,
    Windows2022,
    Windows2025,
    Custom,
}

/// How a family counts pods and overheads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Memory overhead follows the ENI limit rather than the pod limit.
    pub eni_limited_memory_overhead: bool,
    /// `podsPerCore` lowers the pod limit.
    pub pods_per_core: bool,
    /// The number of pods follows the network interfaces.
    pub eni_limited_pod_density: bool,
}

impl AmiFamily {
    /// The family of a node class: its own setting, else its alias', else Custom.
    #[must_use]
    pub fn of(class: &EC2NodeClass) -> Self {
        let alias = class.spec.ami_selector_terms.iter().find_map(|t| t.alias.as_deref());
        let name =
            class.spec.ami_family.as_deref().or_else(|| alias.and_then(|a| a.split('@').next()));
        name.and_then(Self::parse).unwrap_or(Self::Custom)
    }

    /// The family of that name, in either spelling.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "al2" => Self::Al2,
            "al2023" => Self::Al2023,
            "bottlerocket" => Self::Bottlerocket,
            "windows2019" => Self::Windows2019,
            "windows2022" => Self::Windows2022,
            "windows2025" => Self::Windows2025,
            "custom" => Self::Custom,
            _ => return None,
        })
    }

    /// The family's name as manifests write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Al2 => "AL2",
            Self::Al2023 => "AL2023",
            Self::Bottlerocket => "Bottlerocket",
            Self::Windows2019 => "Windows2019",
            Self::Windows2022 => "Windows2022",
            Self::Windows2025 => "Windows2025",
            Self::Custom => "Custom",
        }
    }

    /// Build number of a Windows family.
    #[must_use]
    pub fn windows_build(self) -> Option<&'static str> {
        match self {
            Self::Windows2019 => Some("10.0.17763"),
            Self::Windows2022 => Some("10.0.20348"),
            Self::Windows2025 => Some("10.0.26100"),
            _ => None,
        }
    }

    /// How the family counts.
    #[must_use]
    pub fn features(self) -> Features {
        match self {
            Self::Al2 | Self::Al2023 | Self::Custom => Features {
                eni_limited_memory_overhead: true,
                pods_per_core: true,
                eni_limited_pod_density: true,
            },
            Self::Bottlerocket => Features {
                eni_limited_memory_overhead: false,
                pods_per_core: false,
                eni_limited_pod_density: true,
            },
            Self::Windows2019 | Self::Windows2022 | Self::Windows2025 => Features {
                eni_limited_memory_overhead: false,
                pods_per_core: true,
                eni_limited_pod_density: false,
            },
        }
    }

    /// True for the Windows families.
    #[must_use]
    pub fn is_windows(self) -> bool {
        self.windows_build().is_some()
    }

    /// The device that holds the node's ephemeral storage.
    #[must_use]
    pub fn ephemeral_device(self) -> Option<&'static str> {
        match self {
            Self::Al2 | Self::Al2023 => Some("/dev/xvda"),
            Self::Bottlerocket => Some("/dev/xvdb"),
            Self::Windows2019 | Self::Windows2022 | Self::Windows2025 => Some("/dev/sda1"),
            Self::Custom => None,
        }
    }

    /// Volumes of a node class that names none.
    #[must_use]
    pub fn default_block_devices(self) -> Vec<BlockDeviceMapping> {
        let volume = |device: &str, size: &str| BlockDeviceMapping {
            device_name: Some(device.to_owned()),
            ebs: Some(BlockDevice {
                encrypted: Some(true),
                volume_type: Some("gp3".to_owned()),
                volume_size: Some(size.to_owned()),
                ..BlockDevice::default()
            }),
            root_volume: None,
        };
        match self {
            Self::Al2 | Self::Al2023 => vec![volume("/dev/xvda", "20Gi")],
            Self::Bottlerocket => vec![volume("/dev/xvda", "4Gi"), volume("/dev/xvdb", "20Gi")],
            Self::Windows2019 | Self::Windows2022 | Self::Windows2025 => {
                vec![volume("/dev/sda1", "50Gi")]
            }
            Self::Custom => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_come_from_the_setting_or_the_alias() {
        let class =
            |v: serde_json::Value| EC2NodeClass::new("x", serde_json::from_value(v).unwrap());
        let alias = serde_json::json!([{"alias": "al2023@latest"}]);
        assert_eq!(
            AmiFamily::of(&class(serde_json::json!({"amiSelectorTerms": alias}))),
            AmiFamily::Al2023
        );
        assert_eq!(
            AmiFamily::of(&class(
                serde_json::json!({"amiFamily": "Custom", "amiSelectorTerms": alias})
            )),
            AmiFamily::Custom
        );
        assert_eq!(
            AmiFamily::of(&class(serde_json::json!({"amiSelectorTerms": [{"id": "ami-1"}]}))),
            AmiFamily::Custom
        );
    }
}
