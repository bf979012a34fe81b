//! What every controller needs around it: settings, logs, metrics, events, leadership, servers.

pub mod events;
pub mod logging;
pub mod settings;
