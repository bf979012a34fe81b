//! Whole controllers in the model world: each test a sentence about behaviour, on a paused clock.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests may")]

mod consolidation;
mod drift;
mod lifecycle;
mod provisioning;
mod repair;
mod replay;
mod restart;
mod storm;
mod support;
mod termination;
