//! The EC2 provider.

pub mod ami;
pub mod cache;
pub mod clients;
pub mod errors;
pub mod securitygroup;
pub mod select;
pub mod subnet;
pub mod tags;
pub mod unavailable;
pub mod userdata;
