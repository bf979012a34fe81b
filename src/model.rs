//! The model world: the real controllers against an API server, a cloud and a small cluster in
//! process (`karpenter_model`), on a paused clock.
//!
//! The same seed gives the same journal. Tests of whole controllers use it, and `karpenter replay`.

mod provider;
mod world;

pub use karpenter_model::{api, cloud, cluster};
pub use provider::ModelProvider;
pub use world::{Options, World, in_runtime};
