//! The solver against a slow, obviously right reading of the rules, on random scenarios.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests may")]

mod properties;
#[path = "reference.rs"]
mod reference;
mod weights;
