//! Label keys and their well-known values.

use std::collections::BTreeMap;

/// API group of NodePool and NodeClaim, and the domain of the core labels.
pub const GROUP: &str = "karpenter.sh";
/// API group of EC2NodeClass, and the domain of the instance labels.
pub const AWS_GROUP: &str = "karpenter.k8s.aws";

/// Name of the NodePool that a node or NodeClaim belongs to.
pub const NODEPOOL: &str = "karpenter.sh/nodepool";
/// `true` once Karpenter has matched the Node with its NodeClaim.
pub const REGISTERED: &str = "karpenter.sh/registered";
/// `true` once the node is ready for use and may be disrupted.
pub const INITIALIZED: &str = "karpenter.sh/initialized";
/// `on-demand`, `spot` or `reserved`.
pub const CAPACITY_TYPE: &str = "karpenter.sh/capacity-type";
/// `true` keeps registration from copying taints onto the Node.
pub const DO_NOT_SYNC_TAINTS: &str = "karpenter.sh/do-not-sync-taints";
/// EC2NodeClass that a node was launched from.
pub const EC2NODECLASS: &str = "karpenter.k8s.aws/ec2nodeclass";

/// The instance type, such as `c5.large`.
pub const INSTANCE_TYPE: &str = "node.kubernetes.io/instance-type";
/// The processor architecture: `amd64` or `arm64`.
pub const ARCH: &str = "kubernetes.io/arch";
/// The operating system: `linux` or `windows`.
pub const OS: &str = "kubernetes.io/os";
/// The zone's name, such as `us-east-1a`.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// The region's name.
pub const REGION: &str = "topology.kubernetes.io/region";
/// Build number of a Windows node.
pub const WINDOWS_BUILD: &str = "node.kubernetes.io/windows-build";
/// The node's own name; pods may select it, pools may not.
pub const HOSTNAME: &str = "kubernetes.io/hostname";
/// Zone id such as `use1-az1`.
pub const ZONE_ID: &str = "topology.k8s.aws/zone-id";
/// Zone key that the EBS CSI driver puts into volume topologies.
pub const EBS_ZONE: &str = "topology.ebs.csi.aws.com/zone";

/// Capacity type that is paid by the hour.
pub const CAPACITY_ON_DEMAND: &str = "on-demand";
/// Capacity type that EC2 may take back.
pub const CAPACITY_SPOT: &str = "spot";
/// Capacity type of capacity reservations.
pub const CAPACITY_RESERVED: &str = "reserved";
/// 64-bit x86.
pub const ARCH_AMD64: &str = "amd64";
/// 64-bit ARM.
pub const ARCH_ARM64: &str = "arm64";

/// The capacity reservation that a node runs in.
pub const CAPACITY_RESERVATION_ID: &str = "karpenter.k8s.aws/capacity-reservation-id";
/// `default` or `capacity-block`.
pub const CAPACITY_RESERVATION_TYPE: &str = "karpenter.k8s.aws/capacity-reservation-type";
/// Whether EC2 may take the reservation's capacity back.
pub const CAPACITY_RESERVATION_INTERRUPTIBLE: &str =
    "karpenter.k8s.aws/capacity-reservation-interruptible";
/// The hypervisor: `nitro`, `xen`; empty for metal.
pub const INSTANCE_HYPERVISOR: &str = "karpenter.k8s.aws/instance-hypervisor";
/// Whether traffic between instances is encrypted.
pub const INSTANCE_ENCRYPTION_IN_TRANSIT: &str =
    "karpenter.k8s.aws/instance-encryption-in-transit-supported";
/// Whether the type can run Nitro sandboxes.
pub const NITRO_SANDBOX: &str = "karpenter.k8s.aws/nitro-sandbox";
/// The letters before the generation: `c` of `c5.large`.
pub const INSTANCE_CATEGORY: &str = "karpenter.k8s.aws/instance-category";
/// Whether the type is a flex type.
pub const INSTANCE_CAPABILITY_FLEX: &str = "karpenter.k8s.aws/instance-capability-flex";
/// The family: `c5` of `c5.large`.
pub const INSTANCE_FAMILY: &str = "karpenter.k8s.aws/instance-family";
/// The generation: `5` of `c5.large`.
pub const INSTANCE_GENERATION: &str = "karpenter.k8s.aws/instance-generation";
/// The size: `large` of `c5.large`.
pub const INSTANCE_SIZE: &str = "karpenter.k8s.aws/instance-size";
/// Local NVMe storage in GB.
pub const INSTANCE_LOCAL_NVME: &str = "karpenter.k8s.aws/instance-local-nvme";
/// Number of vCPUs.
pub const INSTANCE_CPU: &str = "karpenter.k8s.aws/instance-cpu";
/// `intel`, `amd` or `aws`.
pub const INSTANCE_CPU_MANUFACTURER: &str = "karpenter.k8s.aws/instance-cpu-manufacturer";
/// Sustained clock speed in MHz.
pub const INSTANCE_CPU_CLOCK_SPEED: &str =
    "karpenter.k8s.aws/instance-cpu-sustained-clock-speed-mhz";
/// Memory in MiB.
pub const INSTANCE_MEMORY: &str = "karpenter.k8s.aws/instance-memory";
/// Baseline EBS bandwidth in Mbit/s.
pub const INSTANCE_EBS_BANDWIDTH: &str = "karpenter.k8s.aws/instance-ebs-bandwidth";
/// Baseline network bandwidth in Mbit/s.
pub const INSTANCE_NETWORK_BANDWIDTH: &str = "karpenter.k8s.aws/instance-network-bandwidth";
/// Model of the GPUs.
pub const INSTANCE_GPU_NAME: &str = "karpenter.k8s.aws/instance-gpu-name";
/// Maker of the GPUs.
pub const INSTANCE_GPU_MANUFACTURER: &str = "karpenter.k8s.aws/instance-gpu-manufacturer";
/// Number of GPUs.
pub const INSTANCE_GPU_COUNT: &str = "karpenter.k8s.aws/instance-gpu-count";
/// Memory of a GPU in MiB.
pub const INSTANCE_GPU_MEMORY: &str = "karpenter.k8s.aws/instance-gpu-memory";
/// Model of the accelerators.
pub const INSTANCE_ACCELERATOR_NAME: &str = "karpenter.k8s.aws/instance-accelerator-name";
/// Maker of the accelerators.
pub const INSTANCE_ACCELERATOR_MANUFACTURER: &str =
    "karpenter.k8s.aws/instance-accelerator-manufacturer";
/// Number of accelerators.
pub const INSTANCE_ACCELERATOR_COUNT: &str = "karpenter.k8s.aws/instance-accelerator-count";
/// `default` or `dedicated`.
pub const INSTANCE_TENANCY: &str = "karpenter.k8s.aws/instance-tenancy";
/// The placement group that a node runs in.
pub const PLACEMENT_GROUP_ID: &str = "karpenter.k8s.aws/placement-group-id";
/// Number of the partition in the placement group.
pub const PLACEMENT_GROUP_PARTITION: &str = "karpenter.k8s.aws/placement-group-partition";

/// Labels that any provider's nodes carry: a requirement on them is always allowed.
pub const WELL_KNOWN_CORE: &[&str] =
    &[NODEPOOL, ZONE, REGION, INSTANCE_TYPE, ARCH, OS, CAPACITY_TYPE, WINDOWS_BUILD];

/// Labels that the EC2 provider adds to the well-known ones.
pub const WELL_KNOWN_AWS: &[&str] = &[
    CAPACITY_RESERVATION_ID,
    CAPACITY_RESERVATION_TYPE,
    CAPACITY_RESERVATION_INTERRUPTIBLE,
    INSTANCE_HYPERVISOR,
    INSTANCE_ENCRYPTION_IN_TRANSIT,
    NITRO_SANDBOX,
    INSTANCE_CATEGORY,
    INSTANCE_CAPABILITY_FLEX,
    INSTANCE_FAMILY,
    INSTANCE_GENERATION,
    INSTANCE_SIZE,
    INSTANCE_LOCAL_NVME,
    INSTANCE_CPU,
    INSTANCE_CPU_MANUFACTURER,
    INSTANCE_CPU_CLOCK_SPEED,
    INSTANCE_MEMORY,
    INSTANCE_EBS_BANDWIDTH,
    INSTANCE_NETWORK_BANDWIDTH,
    INSTANCE_GPU_NAME,
    INSTANCE_GPU_MANUFACTURER,
    INSTANCE_GPU_COUNT,
    INSTANCE_GPU_MEMORY,
    INSTANCE_ACCELERATOR_NAME,
    INSTANCE_ACCELERATOR_MANUFACTURER,
    INSTANCE_ACCELERATOR_COUNT,
    INSTANCE_TENANCY,
    PLACEMENT_GROUP_ID,
    PLACEMENT_GROUP_PARTITION,
    ZONE_ID,
];

/// Domains whose labels users may not set, except the well-known ones.
pub const RESTRICTED_DOMAINS: &[&str] = &[GROUP, AWS_GROUP];

/// True for a label that is well known to the core or to the EC2 provider.
#[must_use]
pub fn is_well_known(key: &str) -> bool {
    WELL_KNOWN_CORE.contains(&key) || WELL_KNOWN_AWS.contains(&key)
}

/// Rewrites a deprecated label key to the one in use today.
#[must_use]
pub fn normalize(key: &str) -> &str {
    match key {
        // Volumes of the EBS CSI driver name their zone by its own label, with the same values.
        "failure-domain.beta.kubernetes.io/zone" | EBS_ZONE => ZONE,
        "failure-domain.beta.kubernetes.io/region" => REGION,
        "beta.kubernetes.io/arch" => ARCH,
        "beta.kubernetes.io/os" => OS,
        "beta.kubernetes.io/instance-type" => INSTANCE_TYPE,
        other => other,
    }
}

/// The deprecated keys that [`normalize`] turns into this one.
fn deprecated(key: &str) -> &'static [&'static str] {
    match key {
        ZONE => &["failure-domain.beta.kubernetes.io/zone", EBS_ZONE],
        REGION => &["failure-domain.beta.kubernetes.io/region"],
        ARCH => &["beta.kubernetes.io/arch"],
        OS => &["beta.kubernetes.io/os"],
        INSTANCE_TYPE => &["beta.kubernetes.io/instance-type"],
        _ => &[],
    }
}

/// The value of a label, also where an object has it under a deprecated key alone.
#[must_use]
pub fn value_of<'a>(labels: &'a BTreeMap<String, String>, key: &str) -> Option<&'a String> {
    labels.get(key).or_else(|| deprecated(key).iter().find_map(|old| labels.get(*old)))
}

/// Why a user may not set or require the label `key`, if so.
#[must_use]
pub fn restriction(key: &str) -> Option<String> {
    if is_well_known(key) {
        return None;
    }
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let within =
        |d: &str| domain == d || domain.strip_suffix(d).is_some_and(|rest| rest.ends_with('.'));
    (key == HOSTNAME || RESTRICTED_DOMAINS.iter().any(|d| within(d))).then(|| {
        let sorted = |lists: &[&[&str]]| {
            let mut all = lists.concat();
            all.sort_unstable();
            all.join(" ")
        };
        format!(
            "using label {key} is not allowed as it might interfere with the internal provisioning logic; specify a well known label: [{}], or a custom label that does not use a restricted domain: [{}]",
            sorted(&[WELL_KNOWN_CORE, WELL_KNOWN_AWS]),
            sorted(&[RESTRICTED_DOMAINS])
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_page_lists_every_key() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/reference/labels.md");
        let text = std::fs::read_to_string(page).unwrap();
        let files = [
            include_str!("labels.rs"),
            include_str!("annotations.rs"),
            include_str!("taints.rs"),
            include_str!("finalizers.rs"),
            include_str!("conversion.rs"),
        ];
        let constants = files.iter().flat_map(|file| file.split("\npub const ").skip(1));
        let values = constants.filter_map(|c| c.split(';').next()?.split('"').nth(1));
        // Paths of the webhook begin with the slash that keys have within.
        let keys: Vec<&str> = values.filter(|v| v.find('/').is_some_and(|at| at > 0)).collect();
        assert!(keys.len() > 75, "{}", keys.len());
        for key in keys {
            let named = [format!("`{key}`"), format!("`{key}:")];
            assert!(named.iter().any(|n| text.contains(n)), "{key} is not on the page");
        }
    }

    #[test]
    fn deprecated_keys_count_as_todays() {
        for key in [ZONE, REGION, ARCH, OS, INSTANCE_TYPE] {
            for old in deprecated(key) {
                assert_eq!(normalize(old), key);
                let labels = BTreeMap::from([((*old).to_owned(), "v".to_owned())]);
                assert_eq!(value_of(&labels, key).map(String::as_str), Some("v"));
                assert_eq!(value_of(&labels, NODEPOOL), None);
            }
        }
    }

    #[test]
    fn restricted_domains_need_a_dot_before_them() {
        assert!(restriction("karpenter.sh/x").is_some());
        assert!(restriction("a.karpenter.sh/x").is_some());
        assert!(restriction("mykarpenter.sh/x").is_none());
        assert!(restriction("karpenter.sh").is_none());
        assert!(restriction(CAPACITY_TYPE).is_none());
        assert!(restriction(EC2NODECLASS).is_some());
        let text = restriction(HOSTNAME).unwrap();
        assert!(
            text.starts_with("using label kubernetes.io/hostname is not allowed as it might interfere with the internal provisioning logic; specify a well known label: [karpenter.k8s.aws/capacity-reservation-id "),
            "{text}"
        );
        assert!(text.ends_with(" or a custom label that does not use a restricted domain: [karpenter.k8s.aws karpenter.sh]"));
    }

    #[test]
    fn aliases_are_normalized() {
        assert_eq!(normalize("beta.kubernetes.io/arch"), ARCH);
        assert_eq!(normalize(EBS_ZONE), ZONE);
        assert_eq!(normalize("team"), "team");
    }
}
