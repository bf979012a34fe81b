use aws_sdk_ec2::types::{
    ArchitectureType, InstanceType as Ec2Type, MemoryInfo, NetworkCardInfo, NetworkInfo,
    ProcessorInfo, UsageClassType, VCpuInfo,
};

use super::*;
use crate::scheduling::resources::Name;

fn info(name: &str, vcpus: i32, mib: i64, enis: i32, ips: i32, arch: &str) -> InstanceTypeInfo {
    InstanceTypeInfo::builder()
        .instance_type(Ec2Type::from(name))
        .v_cpu_info(VCpuInfo::builder().default_v_cpus(vcpus).build())
        .memory_info(MemoryInfo::builder().size_in_mib(mib).build())
        .processor_info(
            ProcessorInfo::builder().supported_architectures(ArchitectureType::from(arch)).build(),
        )
        .network_info(
            NetworkInfo::builder()
                .default_network_card_index(0)
                .ipv4_addresses_per_interface(ips)
                .network_cards(NetworkCardInfo::builder().maximum_network_interfaces(enis).build())
                .build(),
        )
        .supported_usage_classes(UsageClassType::Spot)
        .supported_usage_classes(UsageClassType::OnDemand)
        .build()
}

fn options() -> Options {
    Options {
        region: "us-east-1".into(),
        vm_memory_overhead: 0.075,
        reserved_enis: 0,
        reserved_capacity: true,
    }
}

fn class(spec: serde_json::Value) -> EC2NodeClass {
    EC2NodeClass::new("default", serde_json::from_value(spec).unwrap())
}

/// (type, vCPU, MiB, ENIs, addresses, arch) and (memory MiB, pods, allocatable cpu, memory MiB).
#[test]
fn worked_examples() {
    let al2 = class(serde_json::json!({"amiFamily": "AL2"}));
    for ((name, vcpus, mib, enis, ips, arch), (memory, pods, cpu, left)) in [
        (("t3.medium", 2, 4096, 3, 6, "x86_64"), (3788, 17, 1930, 3246)),
        (("m5.large", 2, 8192, 3, 10, "x86_64"), (7577, 29, 1930, 6903)),
        (("c5.4xlarge", 16, 32768, 8, 30, "x86_64"), (30310, 234, 15890, 27381)),
        (("m7g.metal", 64, 262_144, 15, 50, "arm64"), (242_424, 737, 63770, 233_962)),
    ] {
        let info = info(name, vcpus, mib, enis, ips, arch);
        let capacity = capacity::capacity(&info, &al2, &options());
        let overhead = capacity::overhead(&info, &al2, &capacity);
        let instance_type =
            InstanceType { capacity: capacity.clone(), overhead, ..InstanceType::default() };
        let allocatable = instance_type.allocatable();
        assert_eq!(capacity.get(&Name::Memory) >> 20, memory, "{name}");
        assert_eq!(capacity.get(&Name::Pods), pods, "{name}");
        assert_eq!(allocatable.get(&Name::Cpu), cpu, "{name}");
        assert_eq!(allocatable.get(&Name::Memory) >> 20, left, "{name}");
        assert_eq!(allocatable.get(&Name::EphemeralStorage), 17 << 30, "{name}");
    }
}

#[test]
fn bottlerocket_counts_memory_overhead_by_max_pods() {
    let node_class =
        |family: &str| class(serde_json::json!({"amiFamily": family, "kubelet": {"maxPods": 110}}));
    let info = info("m5.large", 2, 8192, 3, 10, "x86_64");
    for (family, want) in [("AL2", 6903), ("Bottlerocket", 6012)] {
        let node_class = node_class(family);
        let capacity = capacity::capacity(&info, &node_class, &options());
        assert_eq!(capacity.get(&Name::Pods), 110);
        let overhead = capacity::overhead(&info, &node_class, &capacity);
        let left = InstanceType { capacity, overhead, ..InstanceType::default() }.allocatable();
        assert_eq!(left.get(&Name::Memory) >> 20, want, "{family}");
    }
}
