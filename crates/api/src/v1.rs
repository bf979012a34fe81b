//! The stored version of every kind.

pub mod ec2nodeclass;
pub mod nodeclaim;
pub mod nodepool;

pub use ec2nodeclass::*;
pub use nodeclaim::*;
pub use nodepool::*;
