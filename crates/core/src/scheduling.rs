//! Pure scheduling decisions: requirements, resources, topology, and the solver.
//!
//! Nothing here reads a clock, does I/O or draws random numbers: the same snapshot always gives
//! the same answer, in the controller, in `karpenter simulate`, in tests and in benchmarks.

pub mod buffer;
pub mod default_spread;
pub mod dra;
mod ids;
pub mod instance_type;
pub mod node;
pub mod overlay;
pub mod pod;
pub mod requirements;
pub mod resources;
pub mod results;
mod sharing;
pub mod snapshot;
pub mod solver;
pub mod taints;
pub mod validation;
pub mod volumes;

pub use crate::api::quantity;
pub use results::Results;
pub use snapshot::Snapshot;
pub use solver::solve;
