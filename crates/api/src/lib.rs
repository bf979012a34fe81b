//! The custom resources, their versions, defaults, conversion and validation.
//!
//! Types are named and shaped as users know them from Karpenter: `karpenter.sh` (NodePool,
//! NodeClaim, NodeOverlay), `karpenter.k8s.aws` (EC2NodeClass) and `autoscaling.x-k8s.io`
//! (CapacityBuffer). `v1` is stored; `v1beta1`, which has no types of its own, is served and
//! converted as JSON.

pub mod admission;
pub mod annotations;
pub mod autoscaling;
pub mod checks;
pub mod conditions;
pub mod conversion;
pub mod crds;
pub mod duration;
pub mod finalizers;
pub mod hash;
pub mod labels;
pub mod pod_defaults;
pub mod quantity;
pub mod schedule;
pub mod scheduler_config;
pub mod schema;
pub mod taints;
pub mod v1;
pub mod v1alpha1;
pub mod yaml;
