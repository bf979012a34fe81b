//! What EC2 says of an instance type, as far as it matters, in the API's own shape.
//!
//! The SDK's type is not kept: it has ten times the fields and cannot be read from a file.

use aws_sdk_ec2::types::InstanceTypeInfo;
use serde::Deserialize;

/// One instance type of DescribeInstanceTypes.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Info {
    pub instance_type: String,
    pub bare_metal: bool,
    /// Nothing on bare metal.
    pub hypervisor: Option<String>,
    pub supported_usage_classes: Vec<String>,
    #[serde(rename = "VCpuInfo")]
    pub v_cpu_info: VCpus,
    pub memory_info: Memory,
    pub processor_info: Option<Processor>,
    pub ebs_info: Option<Ebs>,
    pub instance_storage_info: Option<Storage>,
    pub gpu_info: Option<Gpus>,
    pub inference_accelerator_info: Option<Accelerators>,
    pub neuron_info: Option<Neuron>,
    pub nitro_enclaves_support: Option<String>,
    pub placement_group_info: PlacementGroups,
    pub network_info: Option<Network>,
}

/// Cores.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct VCpus {
    #[serde(rename = "DefaultVCpus")]
    pub default: i64,
}

/// An amount of memory.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Memory {
    #[serde(rename = "SizeInMiB")]
    pub mib: i64,
}

/// The processor.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Processor {
    pub manufacturer: String,
    pub supported_architectures: Vec<String>,
    pub sustained_clock_speed_in_ghz: f64,
    pub supported_features: Vec<String>,
}

/// What EBS volumes it goes with.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ebs {
    pub ebs_optimized_support: String,
    pub ebs_optimized_info: Option<EbsOptimized>,
    /// How many volumes can be attached; EC2 gives it for some types only.
    pub maximum_ebs_attachments: Option<i64>,
    /// `dedicated`, or `shared` with network interfaces and local disks.
    pub attachment_limit_type: String,
}

/// How fast EBS volumes are.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EbsOptimized {
    pub maximum_bandwidth_in_mbps: Option<i64>,
}

/// Local disks.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Storage {
    #[serde(rename = "TotalSizeInGB")]
    pub total_size_in_gb: Option<i64>,
    pub nvme_support: String,
    pub disks: Vec<Disks>,
}

/// Local disks of one kind.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Disks {
    pub count: i64,
}

/// All GPUs.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Gpus {
    pub gpus: Vec<Device>,
}

/// All inference accelerators.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Accelerators {
    pub accelerators: Vec<Device>,
}

/// All Neuron devices.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Neuron {
    pub neuron_devices: Vec<Device>,
}

/// GPUs or accelerators of one kind.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Device {
    pub name: String,
    pub manufacturer: String,
    pub count: i64,
    /// Of each.
    pub memory_info: Memory,
    /// Of each.
    pub core_info: Cores,
}

/// Cores of an accelerator.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Cores {
    pub count: i64,
}

/// Placement groups that it can be in.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PlacementGroups {
    pub supported_strategies: Vec<String>,
}

/// Network interfaces.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Network {
    pub default_network_card_index: i64,
    pub ipv4_addresses_per_interface: i64,
    pub encryption_in_transit_supported: bool,
    pub ena_support: String,
    pub network_performance: String,
    pub efa_info: Option<Efa>,
    pub network_cards: Vec<Card>,
}

/// Elastic fabric adapters.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Efa {
    pub maximum_efa_interfaces: i64,
}

/// A network card.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Card {
    pub network_card_index: i64,
    pub maximum_network_interfaces: i64,
    pub baseline_bandwidth_in_gbps: f64,
}

impl Info {
    /// The first architecture that it runs, as EC2 writes it.
    #[must_use]
    pub fn first_architecture(&self) -> &str {
        self.processor_info
            .as_ref()
            .and_then(|p| p.supported_architectures.first())
            .map_or("", String::as_str)
    }

    /// The part of the name before its dot.
    #[must_use]
    pub fn family(&self) -> &str {
        self.instance_type.split('.').next().unwrap_or_default()
    }

    /// The network card with the primary interface.
    #[must_use]
    pub fn default_card(&self) -> Option<&Card> {
        let network = self.network_info.as_ref()?;
        // By position, as Karpenter reads it: EC2 lists cards by their index.
        network.network_cards.get(usize::try_from(network.default_network_card_index).ok()?)
    }
}

/// An answer of DescribeInstanceTypes: the whole, or its list alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Whole {
        #[serde(rename = "InstanceTypes")]
        types: Vec<Info>,
    },
    List(Vec<Info>),
}

/// Reads what `aws ec2 describe-instance-types --output json` prints.
///
/// # Errors
/// When the text is not such an answer, or names no type.
pub fn parse(json: &str) -> Result<Vec<Info>, String> {
    let expected = "expected the output of `aws ec2 describe-instance-types`";
    let answer: Answer = serde_json::from_str(json).map_err(|e| format!("{e}; {expected}"))?;
    let (Answer::Whole { types } | Answer::List(types)) = answer;
    if types.is_empty() || types.iter().any(|t| t.instance_type.is_empty()) {
        return Err(format!("a type without InstanceType, or no type; {expected}"));
    }
    Ok(types)
}

fn text(value: Option<&str>) -> String {
    value.unwrap_or_default().to_owned()
}

impl From<&InstanceTypeInfo> for Info {
    fn from(info: &InstanceTypeInfo) -> Self {
        let list = |names: &mut dyn Iterator<Item = &str>| names.map(str::to_owned).collect();
        Self {
            instance_type: text(info.instance_type().map(|t| t.as_str())),
            bare_metal: info.bare_metal().unwrap_or(false),
            hypervisor: info.hypervisor().map(|h| h.as_str().to_owned()),
            supported_usage_classes: list(
                &mut info.supported_usage_classes().iter().map(|c| c.as_str()),
            ),
            v_cpu_info: VCpus {
                default: i64::from(info.v_cpu_info().and_then(|v| v.default_v_cpus()).unwrap_or(0)),
            },
            memory_info: Memory {
                mib: info.memory_info().and_then(|m| m.size_in_mib()).unwrap_or(0),
            },
            processor_info: info.processor_info().map(|p| Processor {
                manufacturer: text(p.manufacturer()),
                supported_architectures: list(
                    &mut p.supported_architectures().iter().map(|a| a.as_str()),
                ),
                sustained_clock_speed_in_ghz: p.sustained_clock_speed_in_ghz().unwrap_or(0.0),
                supported_features: list(&mut p.supported_features().iter().map(|f| f.as_str())),
            }),
            ebs_info: info.ebs_info().map(|e| Ebs {
                ebs_optimized_support: text(e.ebs_optimized_support().map(|s| s.as_str())),
                ebs_optimized_info: e.ebs_optimized_info().map(|o| EbsOptimized {
                    maximum_bandwidth_in_mbps: o.maximum_bandwidth_in_mbps().map(i64::from),
                }),
                maximum_ebs_attachments: e.maximum_ebs_attachments().map(i64::from),
                attachment_limit_type: text(e.attachment_limit_type().map(|t| t.as_str())),
            }),
            instance_storage_info: info.instance_storage_info().map(|s| Storage {
                total_size_in_gb: s.total_size_in_gb(),
                nvme_support: text(s.nvme_support().map(|n| n.as_str())),
                disks: s
                    .disks()
                    .iter()
                    .map(|d| Disks { count: d.count().map_or(0, i64::from) })
                    .collect(),
            }),
            nitro_enclaves_support: info.nitro_enclaves_support().map(|s| s.as_str().to_owned()),
            placement_group_info: PlacementGroups {
                supported_strategies: info
                    .placement_group_info()
                    .map(|p| p.supported_strategies())
                    .unwrap_or_default()
                    .iter()
                    .map(|s| s.as_str().to_owned())
                    .collect(),
            },
            network_info: info.network_info().map(network),
            ..devices(info)
        }
    }
}

/// The fields about GPUs and accelerators.
fn devices(info: &InstanceTypeInfo) -> Info {
    let count = |n: Option<i32>| i64::from(n.unwrap_or(0));
    Info {
        gpu_info: info.gpu_info().map(|g| Gpus {
            gpus: g
                .gpus()
                .iter()
                .map(|d| Device {
                    name: text(d.name()),
                    manufacturer: text(d.manufacturer()),
                    count: count(d.count()),
                    memory_info: Memory {
                        mib: count(d.memory_info().and_then(|m| m.size_in_mib())),
                    },
                    ..Device::default()
                })
                .collect(),
        }),
        inference_accelerator_info: info.inference_accelerator_info().map(|a| Accelerators {
            accelerators: a
                .accelerators()
                .iter()
                .map(|d| Device {
                    name: text(d.name()),
                    manufacturer: text(d.manufacturer()),
                    count: count(d.count()),
                    ..Device::default()
                })
                .collect(),
        }),
        neuron_info: info.neuron_info().map(|n| Neuron {
            neuron_devices: n
                .neuron_devices()
                .iter()
                .map(|d| Device {
                    name: text(d.name()),
                    count: count(d.count()),
                    core_info: Cores { count: count(d.core_info().and_then(|c| c.count())) },
                    ..Device::default()
                })
                .collect(),
        }),
        ..Info::default()
    }
}

fn network(network: &aws_sdk_ec2::types::NetworkInfo) -> Network {
    let number = |n: Option<i32>| i64::from(n.unwrap_or(0));
    Network {
        default_network_card_index: number(network.default_network_card_index()),
        ipv4_addresses_per_interface: number(network.ipv4_addresses_per_interface()),
        encryption_in_transit_supported: network.encryption_in_transit_supported().unwrap_or(false),
        ena_support: text(network.ena_support().map(|s| s.as_str())),
        network_performance: text(network.network_performance()),
        efa_info: network
            .efa_info()
            .map(|e| Efa { maximum_efa_interfaces: number(e.maximum_efa_interfaces()) }),
        network_cards: network
            .network_cards()
            .iter()
            .map(|c| Card {
                network_card_index: number(c.network_card_index()),
                maximum_network_interfaces: number(c.maximum_network_interfaces()),
                baseline_bandwidth_in_gbps: c.baseline_bandwidth_in_gbps().unwrap_or(0.0),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_bare_lists_are_read() {
        let one = r#"{"InstanceType":"a1.large","VCpuInfo":{"DefaultVCpus":2},"Unknown":1}"#;
        for text in [format!("[{one}]"), format!(r#"{{"InstanceTypes":[{one}]}}"#)] {
            let types = parse(&text).unwrap();
            assert_eq!(
                (types[0].instance_type.as_str(), types[0].v_cpu_info.default),
                ("a1.large", 2)
            );
        }
        for bad in ["", "{}", "[]", r#"{"InstanceTypes":[{}]}"#] {
            assert!(parse(bad).unwrap_err().contains("describe-instance-types"), "{bad}");
        }
    }
}
