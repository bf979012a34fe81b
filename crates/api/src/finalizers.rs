//! Finalizers.

/// On NodeClaims and Nodes: held until the instance is gone.
pub const TERMINATION: &str = "karpenter.sh/termination";
/// On EC2NodeClasses: held until nothing uses the class and its AWS resources are removed.
pub const NODECLASS_TERMINATION: &str = "karpenter.k8s.aws/termination";
