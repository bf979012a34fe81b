//! Objects that cannot be understood: an event on each says which field is to blame.

use std::sync::Arc;

use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::Context;
use crate::cluster::Change;
use crate::operator::events::Report;
use crate::operator::logging;

/// Starts what reports them.
pub fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let ctx = Arc::clone(ctx);
    tasks.spawn(async move { run(&ctx).await }.instrument(logging::controller_span("unreadable")));
}

async fn run(ctx: &Context) {
    let mut changes = ctx.cluster.subscribe();
    ctx.cluster.until_listed().await;
    report(ctx);
    loop {
        match changes.recv().await {
            Ok(Change::Unreadable) | Err(RecvError::Lagged(_)) => report(ctx),
            Ok(_) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// The recorder leaves out what it said lately.
fn report(ctx: &Context) {
    for object in ctx.cluster.left_out() {
        let report = Report::Unreadable { problem: &object.problem };
        ctx.recorder.publish(report.on(object.reference));
    }
}
