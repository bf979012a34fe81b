//! Controllers of Nodes.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::Context;

mod drain;
mod eviction;
pub(super) mod health;
mod hydration;
pub(super) mod reboot;
mod termination;
mod volumes;

/// Names of all Nodes.
pub(super) fn all_nodes(ctx: &Context) -> Vec<String> {
    ctx.cluster.node_names()
}

/// Starts the controllers.
pub fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let evictions = eviction::Evictions::start(ctx, tasks);
    termination::start(ctx, &evictions, tasks);
    reboot::start(ctx, &evictions, tasks);
    health::start(ctx, tasks);
    hydration::start(ctx, tasks);
}
