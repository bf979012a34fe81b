//! The process around the controllers: settings, logging, metrics, events, leadership, servers.

pub mod certs;
pub mod client;
pub mod events;
pub mod leader;
pub mod logging;
pub mod metrics;
pub mod server;
pub mod settings;
pub mod webhook;
