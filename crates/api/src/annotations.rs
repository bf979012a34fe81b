//! Annotation keys and the versions of the hashes they hold.

/// On Pods, Nodes and NodeClaims: `true`, or on pods a Go duration, blocks voluntary disruption.
pub const DO_NOT_DISRUPT: &str = "karpenter.sh/do-not-disrupt";
/// On Nodes and NodeClaims: `true` keeps repair away (alpha).
pub const DO_NOT_REPAIR: &str = "karpenter.sh/do-not-repair";
/// On pods: an int32 that says how dear an eviction is (alpha).
pub const DISRUPTION_COST: &str = "karpenter.sh/disruption-cost";
/// On pods: which of a ReplicaSet's pods go first, an int32. Kubernetes' own.
pub const POD_DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// On NodeClaims: the Node's boot id before the reboot that was asked for.
pub const REBOOT_PRE_BOOT_ID: &str = "karpenter.sh/reboot-pre-boot-id";
/// On NodeClaims: how long a reboot waits for the drain, a Go duration.
pub const REBOOT_TERMINATION_GRACE_PERIOD: &str = "karpenter.sh/reboot-termination-grace-period";
/// On NodePools: how many nodes consolidation may launch in the place of others at once. Karpenter
/// launches one, and so does a pool without the annotation.
pub const MAX_REPLACEMENTS: &str = "karpenter.rs/consolidation-max-replacements";
/// On NodeClaims that were launched in the place of others: the names of those, joined by commas. A
/// controller that starts again finds by it what it had begun.
pub const REPLACES: &str = "karpenter.rs/replaces";
/// Beside [`REPLACES`]: how many NodeClaims were to be launched together, where it is not one.
pub const REPLACEMENTS: &str = "karpenter.rs/replacements";
/// Beside [`REPLACES`]: the method that found the command, by its name in logs.
pub const DISRUPTION_METHOD: &str = "karpenter.rs/disruption-method";
/// Beside [`REPLACES`], for a repair: the type of the Node's condition, and after a slash how many
/// seconds the drain may take, where that is bounded.
pub const REPAIRS: &str = "karpenter.rs/repairs";
/// On EC2NodeClasses: how NVIDIA's DRA driver lets claims share a GPU (`disabled`, `memory`,
/// `unlimited` or a number of shares).
pub const NVIDIA_CONSUMABLE_CAPACITY: &str = "karpenter.k8s.aws/nvidia-consumable-capacity";
/// Hash of a NodePool's static template fields.
pub const NODEPOOL_HASH: &str = "karpenter.sh/nodepool-hash";
/// Version of the algorithm behind [`NODEPOOL_HASH`].
pub const NODEPOOL_HASH_VERSION: &str = "karpenter.sh/nodepool-hash-version";
/// The version of the NodePool hash that this build computes: Karpenter 1.14's, so that an upgrade
/// from it drifts no node.
pub const NODEPOOL_HASH_VERSION_VALUE: &str = "v3";
/// Hash of an EC2NodeClass's static fields.
pub const EC2NODECLASS_HASH: &str = "karpenter.k8s.aws/ec2nodeclass-hash";
/// Version of the algorithm behind [`EC2NODECLASS_HASH`].
pub const EC2NODECLASS_HASH_VERSION: &str = "karpenter.k8s.aws/ec2nodeclass-hash-version";
/// The version of the EC2NodeClass hash that this build computes: that of Karpenter's AWS provider
/// 1.14, for the same reason.
pub const EC2NODECLASS_HASH_VERSION_VALUE: &str = "v6";
/// RFC 3339 deadline set from `terminationGracePeriod` when termination begins.
pub const TERMINATION_TIMESTAMP: &str = "karpenter.sh/nodeclaim-termination-timestamp";
/// Whether minValues were lowered for this NodeClaim.
pub const MIN_VALUES_RELAXED: &str = "karpenter.sh/nodeclaim-min-values-relaxed";
/// Comma-separated DRA drivers that a NodeClaim's pods asked for.
pub const REQUESTED_DRA_DRIVERS: &str = "karpenter.sh/requested-dra-drivers";
/// `true` when a NodeOverlay changed the price.
pub const PRICE_OVERLAY_APPLIED: &str = "karpenter.sh/price-overlay-applied";
/// `true` when a NodeOverlay changed the capacity.
pub const CAPACITY_OVERLAY_APPLIED: &str = "karpenter.sh/capacity-overlay-applied";
/// `true` on the in-memory pods of a CapacityBuffer.
pub const BUFFER_FAKE_POD: &str = "karpenter.sh/capacity-buffer-fake-pod";
/// Name of the CapacityBuffer that an in-memory pod stands for.
pub const BUFFER_NAME: &str = "karpenter.sh/capacity-buffer-name";
/// Namespace of that CapacityBuffer.
pub const BUFFER_NAMESPACE: &str = "karpenter.sh/capacity-buffer-namespace";
/// `true` once the instance carries its late tags (Name and so on).
pub const INSTANCE_TAGGED: &str = "karpenter.k8s.aws/tagged";
/// `true` once the instance carries the cluster name tag.
pub const CLUSTER_NAME_TAGGED: &str = "compatibility.karpenter.k8s.aws/cluster-name-tagged";
/// The instance profile that an instance was launched with.
pub const INSTANCE_PROFILE_NAME: &str = "karpenter.k8s.aws/instance-profile-name";
/// Hash of the kubelet settings that a NodeClaim's instance was launched with, wherever they stood:
/// in the EC2NodeClass, or in a NodePool of v1beta1.
pub const KUBELET_DRIFT_HASH: &str = "compatibility.karpenter.k8s.aws/kubelet-drift-hash";
/// Karpenter's own mark of a provider; nothing reads or writes it any more.
pub const PROVIDER_COMPATIBILITY: &str = "compatibility.karpenter.sh/provider";
