//! A Kubernetes node autoscaler for EKS, drop-in compatible with Karpenter.
//!
//! Layers, each using only the ones before it: [`api`] (the custom resources), [`scheduling`] and
//! [`disruption`] (pure decisions), [`cluster`] (state fed by watches), [`cloud`] (the provider),
//! [`operator`] (settings, logs, metrics, leadership), [`controllers`] (thin reconcilers), [`app`] (the wiring), [`cli`].

#![cfg_attr(
    not(feature = "aws"),
    allow(dead_code, unused_imports, reason = "some of it serves the provider alone")
)]

#[cfg(feature = "aws")]
pub mod app;
#[cfg(feature = "aws")]
pub mod cli;
pub mod clock;
pub mod cloud;
pub mod cluster;
pub mod controllers;
pub mod model;
pub mod operator;
pub mod replay;
pub mod simulate;

pub use karpenter_api as api;
pub use karpenter_core::{assemble, disruption, fleet, scheduling};
