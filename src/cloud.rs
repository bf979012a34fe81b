//! The cloud provider: the trait that controllers use, its error classes, and the implementations.

pub mod aws;
