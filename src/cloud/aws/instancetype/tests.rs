//! The whole EC2 catalog, under every family, against the formulas and a second opinion.

use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::api::labels;
use crate::scheduling::requirements::Requirement;
use crate::scheduling::resources::Name;

mod offerings;

const MIB: i64 = 1 << 20;
const FAMILIES: &[&str] =
    &["AL2", "AL2023", "Bottlerocket", "Windows2019", "Windows2022", "Windows2025", "Custom"];

/// The catalog that `tests/data` has; `data/README.md` names where it comes from.
pub(super) fn catalog() -> Vec<Info> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/instance-types.json.gz");
    let unpacked = std::process::Command::new("gzip").args(["-dc", file]).output().unwrap();
    assert!(unpacked.status.success(), "{unpacked:?}");
    info::parse(&String::from_utf8(unpacked.stdout).unwrap()).unwrap()
}

/// Default card's interfaces, addresses of each, branch interfaces: what the VPC's own controller
/// says.
fn limits() -> BTreeMap<String, (i64, i64, i64)> {
    let text = include_str!("../../../../tests/data/network-limits.csv");
    text.lines()
        .skip(1)
        .map(|line| {
            let cells: Vec<&str> = line.split(',').collect();
            let number = |i: usize| cells[i].parse().unwrap();
            (cells[0].to_owned(), (number(1), number(2), number(3)))
        })
        .collect()
}

fn options() -> Options {
    Options {
        region: "us-east-1".into(),
        vm_memory_overhead: 0.075,
        reserved_enis: 0,
        reserved_capacity: true,
        kubelet_expressions: false,
        devices: AwsFeatureGates::default(),
        volume_limits: false,
    }
}

fn class(spec: serde_json::Value) -> EC2NodeClass {
    let mut class = EC2NodeClass::new("default", serde_json::from_value(spec).unwrap());
    let status = json!({
        "subnets": [
            {"id": "subnet-a", "zone": "us-east-1a", "zoneID": "use1-az1"},
            {"id": "subnet-b", "zone": "us-east-1b", "zoneID": "use1-az2"},
        ],
        "amis": [{"id": "ami-1"}, {"id": "ami-2"}],
    });
    class.status = Some(serde_json::from_value(status).unwrap());
    class
}

fn family(name: &str) -> EC2NodeClass {
    class(json!({ "amiFamily": name }))
}

fn provider_with(options: Options, clock: &Clock) -> Provider {
    let config = aws_config::SdkConfig::builder()
        .behavior_version(aws_config::BehaviorVersion::latest())
        .region(aws_config::Region::new("us-east-1"))
        .build();
    let clients = Clients::new(&config);
    let parts = Parts {
        shifts: Arc::new(zonalshift::Provider::new(clients.clone(), clock, true)),
        ..Parts::of_prices(
            &clients,
            clock,
            &Arc::new(pricing::Provider::new(clients.clone(), true)),
        )
    };
    let provider = Provider::new(parts, options);
    let types = catalog();
    let zones: BTreeSet<String> =
        ["us-east-1a", "us-east-1b", "us-east-1c"].map(str::to_owned).into();
    // One type is offered in one zone only.
    let zones_of = types
        .iter()
        .map(|t| match t.instance_type.as_str() {
            "c5.large" => (t.instance_type.clone(), ["us-east-1b".to_owned()].into()),
            name => (name.to_owned(), zones.clone()),
        })
        .collect();
    provider.set_catalog(types, zones_of);
    provider
}

fn provider() -> Provider {
    provider_with(options(), &Clock::manual(Timestamp::UNIX_EPOCH))
}

fn by_name(types: &[Arc<InstanceType>]) -> BTreeMap<&str, &InstanceType> {
    types.iter().map(|t| (&*t.name, t.as_ref())).collect()
}

/// Retired types that the catalog lacks: (name, vCPU, MiB, interfaces, addresses, GPUs).
fn retired() -> Vec<Info> {
    vec![
        serde_json::from_value(json!({
            "InstanceType": "p3.8xlarge",
            "Hypervisor": "xen",
            "VCpuInfo": {"DefaultVCpus": 32},
            "MemoryInfo": {"SizeInMiB": 249_856},
            "ProcessorInfo": {"Manufacturer": "Intel", "SupportedArchitectures": ["x86_64"]},
            "SupportedUsageClasses": ["on-demand", "spot"],
            "GpuInfo": {"Gpus": [{"Name": "V100", "Manufacturer": "NVIDIA", "Count": 4,
                "MemoryInfo": {"SizeInMiB": 16384}}]},
            "NetworkInfo": {"Ipv4AddressesPerInterface": 30, "NetworkPerformance": "10 Gigabit",
                "NetworkCards": [{"MaximumNetworkInterfaces": 8, "BaselineBandwidthInGbps": 10.0}]},
        }))
        .unwrap(),
    ]
}

fn with_retired() -> Provider {
    let provider = provider();
    let (mut types, mut zones_of) = (catalog(), HashMap::new());
    types.extend(retired());
    for info in &types {
        let zones = ["us-east-1a".to_owned(), "us-east-1b".to_owned()];
        zones_of.insert(info.instance_type.clone(), BTreeSet::from(zones));
    }
    provider.set_catalog(types, zones_of);
    provider
}

/// (type, cores, memory MiB, pods, kube-reserved cpu and MiB, allocatable cpu and MiB, Mbit/s)
type Example = (&'static str, i64, i64, i64, (i64, i64), (i64, i64), &'static str);

const EXAMPLES: &[Example] = &[
    ("t3.medium", 2, 3788, 17, (70, 442), (1930, 3246), "256"),
    ("m5.large", 2, 7577, 29, (70, 574), (1930, 6903), "750"),
    ("c5.4xlarge", 16, 30310, 234, (110, 2829), (15890, 27381), "5000"),
    ("m7g.metal", 64, 242_424, 737, (230, 8362), (63770, 233_962), "30000"),
    ("p3.8xlarge", 32, 231_116, 234, (150, 2829), (31850, 228_187), "10000"),
    ("inf1.6xlarge", 24, 45465, 234, (130, 2829), (23870, 42536), "25000"),
];

#[test]
fn worked_examples() {
    let provider = with_retired();
    for name in ["AL2", "AL2023", "Bottlerocket"] {
        let types = provider.list(&family(name)).unwrap();
        let types = by_name(&types);
        for (kind, cores, memory, pods, reserved, left, bandwidth) in EXAMPLES {
            let kind = types[kind];
            let (allocatable, kube) = (kind.allocatable(), &kind.overhead.kube_reserved);
            let of = |list: &crate::scheduling::resources::ResourceList| {
                (list.get(&Name::Cpu), list.get(&Name::Memory) / MIB)
            };
            assert_eq!(of(&kind.capacity), (cores * 1000, *memory), "{name} {}", kind.name);
            assert_eq!(kind.capacity.get(&Name::Pods), *pods, "{name} {}", kind.name);
            assert_eq!(of(kube), *reserved, "{name} {}", kind.name);
            assert_eq!(of(&allocatable), *left, "{name} {}", kind.name);
            assert_eq!(allocatable.get(&Name::EphemeralStorage), 17 << 30, "{name}");
            let label = kind.requirements.get(labels::INSTANCE_NETWORK_BANDWIDTH);
            assert_eq!(label.and_then(Requirement::single), Some(*bandwidth), "{}", kind.name);
        }
    }
}

#[test]
fn worked_examples_of_devices() {
    let types = with_retired().list(&family("AL2023")).unwrap();
    let types = by_name(&types);
    for (kind, resource, amount) in [
        ("p3.8xlarge", "nvidia.com/gpu", 4),
        ("p3.8xlarge", "vpc.amazonaws.com/pod-eni", 0),
        ("inf1.6xlarge", "aws.amazon.com/neuron", 4),
        ("inf1.6xlarge", "aws.amazon.com/neuroncore", 16),
        ("inf1.6xlarge", "vpc.amazonaws.com/pod-eni", 54),
        ("m7g.metal", "vpc.amazonaws.com/pod-eni", 107),
        ("m5.large", "vpc.amazonaws.com/pod-eni", 9),
        ("c5.4xlarge", "vpc.amazonaws.com/pod-eni", 54),
        ("t3.medium", "vpc.amazonaws.com/pod-eni", 0),
        ("m5.large", "nvidia.com/gpu", 0),
    ] {
        assert_eq!(types[kind].capacity.find(&Name::from(resource)), Some(amount), "{kind}");
    }
    let hypervisor = types["m7g.metal"].requirements.get(labels::INSTANCE_HYPERVISOR).unwrap();
    assert_eq!(hypervisor.single(), Some(""));
}

#[test]
fn a_list_publishes_how_large_each_type_is() {
    with_retired().list(&family("AL2023")).unwrap();
    let text = crate::operator::metrics::render();
    for line in [
        "karpenter_cloudprovider_instance_type_cpu_cores{instance_type=\"t3.medium\"} 2\n",
        "karpenter_cloudprovider_instance_type_memory_bytes{instance_type=\"t3.medium\"} 4294967296\n",
    ] {
        assert!(text.contains(line), "{line}");
    }
}

#[test]
fn a_pod_limit_changes_what_is_kept() {
    let provider = with_retired();
    let limited = |name: &str| class(json!({"amiFamily": name, "kubelet": {"maxPods": 110}}));
    for (name, want) in [
        ("AL2", [6903, 3246, 27381, 233_962, 228_187, 42536]),
        ("AL2023", [6903, 3246, 27381, 233_962, 228_187, 42536]),
        ("Bottlerocket", [6012, 2223, 28745, 240_859, 229_551, 43900]),
    ] {
        let types = provider.list(&limited(name)).unwrap();
        let types = by_name(&types);
        let kinds =
            ["m5.large", "t3.medium", "c5.4xlarge", "m7g.metal", "p3.8xlarge", "inf1.6xlarge"];
        for (kind, left) in kinds.into_iter().zip(want) {
            assert_eq!(types[kind].capacity.get(&Name::Pods), 110);
            let memory = types[kind].allocatable().get(&Name::Memory) / MIB;
            assert_eq!(memory, left, "{name} {kind}");
        }
    }
}

#[test]
fn reserved_interfaces_change_what_is_kept() {
    let clock = Clock::manual(Timestamp::UNIX_EPOCH);
    let provider = provider_with(Options { reserved_enis: 1, ..options() }, &clock);
    for (name, pods, kept) in [
        ("AL2", 24, 640),
        ("AL2023", 24, 640),
        ("Custom", 24, 640),
        ("Bottlerocket", 24, 519),
        ("Windows2022", 110, 1465),
    ] {
        let types = provider.list(&family(name)).unwrap();
        let kind = by_name(&types)["t3.large"];
        assert_eq!(kind.capacity.get(&Name::Pods), pods, "{name}");
        let memory = kind.overhead.kube_reserved.get(&Name::Memory) / MIB;
        assert_eq!(memory, kept, "{name}");
    }
}

/// Every formula again, written down another way, over every type and family.
#[test]
fn the_whole_catalog_follows_the_formulas() {
    let provider = provider();
    let infos: BTreeMap<String, Info> =
        catalog().into_iter().map(|i| (i.instance_type.clone(), i)).collect();
    assert_eq!(infos.len(), 1395);
    let limits = limits();
    for name in FAMILIES {
        let types = provider.list(&family(name)).unwrap();
        assert_eq!(types.len(), infos.len());
        let windows = name.starts_with("Windows");
        for kind in types.iter() {
            let info = &infos[&*kind.name];
            let arm = info.first_architecture() == "arm64";
            let mib = info.memory_info.mib - if arm { 64 } else { 0 };
            // 7.5 % rounded up, in whole numbers.
            let memory = mib - (mib * 75 + 999) / 1000;
            let capacity = |n: &str| kind.capacity.get(&Name::from(n));
            assert_eq!(capacity("memory"), memory * MIB, "{name} {}", kind.name);
            assert_eq!(capacity("cpu"), info.v_cpu_info.default * 1000);
            let network = info.network_info.as_ref().unwrap();
            let card = &network.network_cards[network.default_network_card_index as usize];
            let addresses = network.ipv4_addresses_per_interface;
            let by_addresses = card.maximum_network_interfaces * (addresses - 1) + 2;
            let pods = if windows { 110 } else { by_addresses };
            assert_eq!(capacity("pods"), pods, "{name} {}", kind.name);
            let counted = if windows { 110 } else { by_addresses };
            let kept = kind.overhead.kube_reserved.get(&Name::Memory);
            assert_eq!(kept, (11 * counted + 255) * MIB, "{name} {}", kind.name);
            let storage = if windows { 50_i64 << 30 } else { 20 << 30 };
            assert_eq!(capacity("ephemeral-storage"), storage);
            let left = kind.allocatable();
            assert_eq!(left.get(&Name::Memory), memory * MIB - kept - 100 * MIB);
            let private = kind.capacity.find(&Name::from(capacity::PRIVATE_IPV4));
            let known = limits.get(&*kind.name).map_or(0, |l| l.1 - 1);
            assert_eq!(private, windows.then_some(known), "{name} {}", kind.name);
        }
    }
}

/// The same table that the cluster's own network controllers go by.
#[test]
fn pods_and_branch_interfaces_agree_with_the_vpc_controller() {
    let provider = provider();
    let types = provider.list(&family("AL2023")).unwrap();
    let types = by_name(&types);
    let limits = limits();
    assert!(limits.len() > 1350);
    for (name, (interfaces, addresses, branches)) in &limits {
        let kind = types[name.as_str()];
        assert_eq!(kind.capacity.get(&Name::Pods), interfaces * (addresses - 1) + 2, "{name}");
        let pod_eni = kind.capacity.get(&Name::from(capacity::POD_ENI));
        assert_eq!(pod_eni, *branches, "{name}");
    }
}

#[test]
fn every_label_is_there_on_every_type() {
    let optional = [
        labels::PLACEMENT_GROUP_ID,
        labels::PLACEMENT_GROUP_PARTITION,
        // Not a label of types.
        labels::NODEPOOL,
    ];
    let provider = provider();
    for name in FAMILIES {
        for kind in provider.list(&family(name)).unwrap().iter() {
            for key in labels::WELL_KNOWN_CORE.iter().chain(labels::WELL_KNOWN_AWS) {
                let there = kind.requirements.has(key);
                assert_eq!(there, !optional.contains(key), "{name} {} {key}", kind.name);
            }
        }
    }
}

fn label<'a>(types: &BTreeMap<&str, &'a InstanceType>, kind: &str, key: &str) -> Option<&'a str> {
    types[kind].requirements.get(key).and_then(Requirement::single)
}

#[test]
fn labels_of_chosen_types() {
    let types = provider().list(&family("AL2023")).unwrap();
    let types = by_name(&types);
    for (kind, key, want) in [
        ("m5.large", labels::ARCH, Some("amd64")),
        ("m7g.large", labels::ARCH, Some("arm64")),
        ("m5.large", labels::OS, Some("linux")),
        ("m5.large", labels::REGION, Some("us-east-1")),
        ("m5.large", labels::WINDOWS_BUILD, None),
        ("m5.large", labels::INSTANCE_CATEGORY, Some("m")),
        ("m5.large", labels::INSTANCE_GENERATION, Some("5")),
        ("m5.large", labels::INSTANCE_FAMILY, Some("m5")),
        ("m5.large", labels::INSTANCE_SIZE, Some("large")),
        ("m5.large", labels::INSTANCE_CPU, Some("2")),
        ("m5.large", labels::INSTANCE_CPU_MANUFACTURER, Some("intel")),
        ("m5.large", labels::INSTANCE_CPU_CLOCK_SPEED, Some("3100")),
        ("m5.large", labels::INSTANCE_MEMORY, Some("8192")),
        ("m5.large", labels::INSTANCE_HYPERVISOR, Some("nitro")),
        ("m5.large", labels::INSTANCE_EBS_BANDWIDTH, Some("4750")),
        ("m5.large", labels::INSTANCE_ENCRYPTION_IN_TRANSIT, Some("false")),
        ("m6i.large", labels::INSTANCE_ENCRYPTION_IN_TRANSIT, Some("true")),
        ("m5.xlarge", labels::NITRO_SANDBOX, Some("true")),
        ("m5.large", labels::NITRO_SANDBOX, Some("false")),
        ("m5.large", labels::INSTANCE_LOCAL_NVME, None),
        ("m5d.large", labels::INSTANCE_LOCAL_NVME, Some("75")),
        ("m7i-flex.large", labels::INSTANCE_CAPABILITY_FLEX, Some("true")),
        ("m7i.large", labels::INSTANCE_CAPABILITY_FLEX, Some("false")),
        ("m5.large", labels::INSTANCE_TENANCY, None),
        ("g4dn.12xlarge", labels::INSTANCE_GPU_NAME, Some("t4")),
        ("g4dn.12xlarge", labels::INSTANCE_GPU_MANUFACTURER, Some("nvidia")),
        ("g4dn.12xlarge", labels::INSTANCE_GPU_COUNT, Some("4")),
        ("g4dn.12xlarge", labels::INSTANCE_GPU_MEMORY, Some("16384")),
        ("inf2.xlarge", labels::INSTANCE_ACCELERATOR_MANUFACTURER, Some("aws")),
        ("inf2.xlarge", labels::INSTANCE_ACCELERATOR_COUNT, Some("1")),
        ("m4.large", labels::INSTANCE_NETWORK_BANDWIDTH, None),
        ("p5.48xlarge", labels::INSTANCE_NETWORK_BANDWIDTH, Some("3200000")),
        ("m5.metal", labels::INSTANCE_HYPERVISOR, Some("")),
        ("mac2-m2pro.metal", labels::INSTANCE_CATEGORY, Some("mac")),
        ("mac2-m2pro.metal", labels::INSTANCE_GENERATION, Some("2")),
        ("mac2-m2pro.metal", labels::INSTANCE_CPU_MANUFACTURER, Some("apple")),
        ("c5.large", labels::ZONE, Some("us-east-1b")),
        ("c5.large", labels::ZONE_ID, Some("use1-az2")),
        ("m5.large", labels::ZONE, None),
    ] {
        assert_eq!(label(&types, kind, key), want, "{kind} {key}");
    }
    let tenancy = types["m5.large"].requirements.get(labels::INSTANCE_TENANCY).unwrap();
    assert!(tenancy.has("default") && tenancy.has("dedicated") && !tenancy.has("host"));
}

#[test]
fn windows_is_for_amd64_alone() {
    let types = provider().list(&family("Windows2025")).unwrap();
    let types = by_name(&types);
    assert_eq!(label(&types, "m5.large", labels::OS), Some("windows"));
    assert_eq!(label(&types, "m5.large", labels::WINDOWS_BUILD), Some("10.0.26100"));
    let os = types["m7g.large"].requirements.get(labels::OS).unwrap();
    assert_eq!(os.values().count(), 0);
    assert!(!os.is_complement());
}

#[test]
fn volumes_decide_ephemeral_storage() {
    let provider = provider();
    let storage = |spec: serde_json::Value, kind: &str| {
        let types = provider.list(&class(spec)).unwrap();
        by_name(&types)[kind].capacity.get(&Name::EphemeralStorage)
    };
    let volume =
        |device: &str, size: &str| json!({"deviceName": device, "ebs": {"volumeSize": size}});
    let gib = |n: i64| n << 30;
    for (spec, want) in [
        (json!({"amiFamily": "AL2023"}), gib(20)),
        (json!({"amiFamily": "Bottlerocket"}), gib(20)),
        (json!({"amiFamily": "Windows2022"}), gib(50)),
        (json!({"amiFamily": "Custom"}), gib(20)),
        (
            json!({"amiFamily": "AL2023", "blockDeviceMappings": [volume("/dev/xvda", "100Gi")]}),
            gib(100),
        ),
        (
            json!({"amiFamily": "AL2023", "blockDeviceMappings": [volume("/dev/sdb", "100Gi")]}),
            gib(20),
        ),
        (
            json!({"amiFamily": "Custom", "blockDeviceMappings": [volume("/dev/sda", "30Gi"), volume("/dev/sdb", "40Gi")]}),
            gib(40),
        ),
        (
            json!({"amiFamily": "AL2023", "blockDeviceMappings": [volume("/dev/xvda", "30Gi"),
            {"deviceName": "/dev/sdz", "rootVolume": true, "ebs": {"volumeSize": "70Gi"}}]}),
            gib(70),
        ),
        (json!({"amiFamily": "AL2023", "instanceStorePolicy": "RAID0"}), 75_000_000_000),
    ] {
        assert_eq!(storage(spec.clone(), "m5d.large"), want, "{spec}");
    }
    assert_eq!(
        storage(json!({"amiFamily": "AL2023", "instanceStorePolicy": "RAID0"}), "m5.large"),
        gib(20)
    );
}

#[test]
fn the_kubelets_settings_count() {
    let provider = provider();
    let large = |kubelet: serde_json::Value| {
        let spec = json!({"amiFamily": "AL2023", "kubelet": kubelet});
        let types = provider.list(&class(spec)).unwrap();
        (*by_name(&types)["m5.large"]).clone()
    };
    let plain = large(json!({}));
    let memory = plain.capacity.get(&Name::Memory);
    assert_eq!(large(json!({"podsPerCore": 4})).capacity.get(&Name::Pods), 8);
    assert_eq!(large(json!({"podsPerCore": 0})).capacity.get(&Name::Pods), 29);
    assert_eq!(large(json!({"podsPerCore": 4, "maxPods": 6})).capacity.get(&Name::Pods), 6);
    let set = large(json!({"kubeReserved": {"cpu": "250m", "pid": "100"},
        "systemReserved": {"memory": "1Gi"}}));
    assert_eq!(set.overhead.kube_reserved.get(&Name::Cpu), 250);
    assert_eq!(set.overhead.kube_reserved.get(&Name::Memory), 574 * MIB);
    assert_eq!(set.overhead.kube_reserved.get(&Name::from("pid")), 100);
    assert_eq!(set.overhead.system_reserved.get(&Name::Memory), 1 << 30);
    for (evict, want) in [
        (json!({"evictionHard": {"memory.available": "500Mi"}}), 500 * MIB),
        (
            json!({"evictionHard": {"memory.available": "5%"}}),
            (memory as f64 / 100.0 * 5.0).ceil() as i64,
        ),
        (json!({"evictionHard": {"memory.available": "100%"}}), 0),
        (json!({"evictionSoft": {"memory.available": "10%"}}), 100 * MIB),
    ] {
        let threshold = large(evict.clone()).overhead.eviction_threshold;
        assert_eq!(threshold.get(&Name::Memory), want, "{evict}");
    }
    let disk = large(json!({"evictionHard": {"nodefs.available": "15%"}}));
    let want = (f64::from(20_u32) * 1_073_741_824.0 / 100.0 * 15.0).ceil() as i64;
    assert_eq!(disk.overhead.eviction_threshold.get(&Name::EphemeralStorage), want);
    let bottlerocket = class(json!({"amiFamily": "Bottlerocket", "kubelet": {"podsPerCore": 4}}));
    let types = provider.list(&bottlerocket).unwrap();
    assert_eq!(by_name(&types)["m5.large"].capacity.get(&Name::Pods), 29);
}

#[test]
fn expressions_count_where_they_are_in_use() {
    let clock = Clock::manual(Timestamp::UNIX_EPOCH);
    let spec = json!({"amiFamily": "AL2023", "kubelet": {
        "maxPods": "min(max_pods, vcpus * 8)",
        "kubeReserved": {"cpu": "vcpus * 55", "memory": "nonsense("}}});
    let on = provider_with(Options { kubelet_expressions: true, ..options() }, &clock);
    let types = on.list(&class(spec.clone())).unwrap();
    let large = by_name(&types)["m5.large"];
    assert_eq!(large.capacity.get(&Name::Pods), 16);
    assert_eq!(large.overhead.kube_reserved.get(&Name::Cpu), 110);
    assert_eq!(large.overhead.kube_reserved.get(&Name::Memory), 574 * MIB);
    let off = provider();
    let types = off.list(&class(spec)).unwrap();
    assert_eq!(by_name(&types)["m5.large"].capacity.get(&Name::Pods), 29);
    let bad = class(json!({"amiFamily": "AL2023", "kubelet": {"maxPods": "vcpus - 1000"}}));
    let error = on.list(&bad).unwrap_err().to_string();
    assert!(error.starts_with("resolving instance type "), "{error}");
    assert!(error.contains("resolving maxPods, "), "{error}");
    assert!(on.failing_expression(&bad).unwrap().unwrap().contains("spec.kubelet.maxPods"));
    let good = class(json!({"kubelet": {"maxPods": "vcpus", "systemReserved": {"pid": "vcpus"}}}));
    assert_eq!(on.failing_expression(&good).unwrap(), None);
    let negative = class(json!({"kubelet": {"systemReserved": {"cpu": "100 - vcpus * 60"}}}));
    let failure = on.failing_expression(&negative).unwrap().unwrap();
    assert!(
        failure.contains("field=spec.kubelet.systemReserved[cpu], instance-type="),
        "{failure}"
    );
    let wrong = class(json!({"kubelet": {"maxPods": [1]}}));
    assert!(off.list(&wrong).unwrap_err().to_string().starts_with("parsing spec.kubelet, "));
}

#[test]
fn what_is_not_known_yet_is_reported() {
    let clock = Clock::manual(Timestamp::UNIX_EPOCH);
    let provider = provider_with(options(), &clock);
    let mut bare = family("AL2023");
    bare.status = None;
    assert_eq!(provider.list(&bare).unwrap_err().to_string(), "no subnets found");
    provider.set_catalog(catalog(), HashMap::new());
    let error = provider.list(&family("AL2023")).unwrap_err();
    assert_eq!(error.to_string(), "no instance types offerings found");
    provider.set_catalog(Vec::new(), HashMap::new());
    let error = provider.list(&family("AL2023")).unwrap_err();
    assert_eq!(error.to_string(), "no instance types found");
}
