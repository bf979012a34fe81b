//! The solver against a slow, obviously right reading of the rules, on random scenarios.

mod properties;
#[path = "reference.rs"]
mod reference;
