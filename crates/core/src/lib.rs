//! What Karpenter decides: where pods go, which nodes to make, which nodes may go.
//!
//! Everything here is a function of its arguments. There is no I/O, no clock and no randomness, and
//! no runtime, client or SDK among the dependencies: the controllers, `karpenter simulate`, the
//! benchmarks and the tests call the same functions and get the same answers.

pub mod assemble;
pub mod disruption;
pub mod fleet;
pub mod scheduling;

pub use karpenter_api as api;
