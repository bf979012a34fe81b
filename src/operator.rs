//! What every controller needs around it: settings, logs, metrics, events, leadership, servers.
