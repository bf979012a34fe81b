//! A cluster in process, for tests of whole controllers and for replays of a workload.
//!
//! [`api`] is an API server under [`kube::Client`]; [`cloud`] has instances; [`cluster`] is what
//! else a cluster has: a scheduler, kubelets, and the controllers of workloads. Time is tokio's,
//! which may be paused; randomness comes from a seed. The same seed gives the same journal.

pub mod api;
pub mod cloud;
pub mod cluster;
