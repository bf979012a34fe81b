//! The custom resources, their versions, defaults, conversion and validation.
//!
//! Types are named and shaped as users know them from Karpenter: `karpenter.sh` (NodePool,
//! NodeClaim) and `karpenter.k8s.aws` (EC2NodeClass). `v1` is stored; `v1beta1` is served.

pub mod annotations;
pub mod conditions;
pub mod duration;
pub mod finalizers;
pub mod hash;
pub mod labels;
pub mod schema;
pub mod taints;
pub mod v1;
pub mod validation;
