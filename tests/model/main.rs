//! Whole controllers in the model world: each test a sentence about behaviour, on a paused clock.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests may")]

mod buffers;
mod consolidation;
mod drift;
mod drift_order;
mod expiry;
mod garbage;
mod interruption;
mod lifecycle;
mod limits;
mod overlays;
mod pod_budgets;
mod provisioning;
mod reboots;
mod repair;
mod replacement;
mod replay;
mod replicas;
mod requests;
mod restart;
mod rollback;
mod scheduler;
mod signals;
mod static_pools;
mod storm;
mod support;
mod termination;
mod volumes;
