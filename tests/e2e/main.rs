//! End to end: the `karpenter` binary against a real API server and a real EC2 API.
//!
//! Each test brings a world of its own up (`tests/env`), so tests do not see each other.
//! `cargo test --test e2e NAME` runs one; `E2E_KEEP=1` leaves its folder with all logs.

#![allow(clippy::disallowed_methods, reason = "real time is what is measured")]
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests may")]

#[path = "../page/browser.rs"]
mod browser;
mod support;

mod api;
mod bad_input;
mod capacity;
mod chain;
mod charts;
mod dashboards;
mod devices;
mod disruption;
mod ec2;
mod fleet;
mod foreign;
mod instances;
mod migrate;
mod model;
mod nodeclass;
mod operator;
mod policy;
#[cfg(all(feature = "profiling", target_os = "linux"))]
mod profiles;
mod repair;
mod replay;
mod simulate;
mod timing;
mod traces;
mod trouble;
mod volumes;
