//! Node overlays: judged together whenever they, the pools or the node classes change
//! (feature gate NodeOverlay).

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use kube::Api;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::patch;
use super::{Context, Error, runner};
use crate::api::conditions;
use crate::api::v1alpha1::NodeOverlay;
use crate::cluster::Change;
use crate::scheduling::overlay::{self, PoolTypes, Verdict};

/// Overlays are evaluated again after this long, whatever happens.
const PERIOD: Duration = Duration::from_secs(6 * 3600);

/// Starts the controller, if the gate is on.
pub fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    if !ctx.settings.gates.node_overlay {
        return;
    }
    let (context, judged) = (Arc::clone(ctx), Arc::new(Mutex::default()));
    let before: Arc<Mutex<Generations>> = Arc::clone(&judged);
    let concerns = move |ctx: &Context, change: &Change| {
        matches!(change, Change::NodeOverlay(_) | Change::NodePool(_) | Change::NodeClass(_))
            && generations(ctx) != *before.lock()
    };
    runner::singleton(tasks, "nodeoverlay.controller", ctx, concerns, move || {
        let (ctx, judged) = (Arc::clone(&context), Arc::clone(&judged));
        async move {
            // Taken before the reading: what changes meanwhile is another generation, and evaluated
            // again.
            *judged.lock() = generations(&ctx);
            judge(&ctx).await.map(|()| Some(PERIOD))
        }
    });
}

/// Name, UID and generation of each object.
type Generations = Vec<(Option<String>, Option<String>, Option<i64>)>;

/// What is judged, so far that a change of it changes the judgement.
fn generations(ctx: &Context) -> Generations {
    let of = |meta: &kube::api::ObjectMeta| (meta.name.clone(), meta.uid.clone(), meta.generation);
    let overlays = ctx.cluster.overlays();
    let (pools, classes) = (ctx.cluster.pools(), ctx.cluster.classes());
    let mut list: Vec<_> = overlays.iter().map(|o| of(&o.metadata)).collect();
    list.extend(pools.iter().map(|p| of(&p.metadata)));
    list.extend(classes.iter().map(|c| of(&c.metadata)));
    list
}

/// Judges all overlays, writes the verdicts, and puts what holds in force.
async fn judge(ctx: &Context) -> Result<(), Error> {
    let mut pools = Vec::new();
    let mut errors = Vec::new();
    for pool in ctx.cluster.pools() {
        if pool.metadata.deletion_timestamp.is_some() {
            continue;
        }
        match ctx.instance_types(&pool).await {
            Ok(types) => pools.push(PoolTypes { pool, types }),
            Err(error) => errors.push(Error::from(error)),
        }
    }
    let overlays: Vec<Arc<NodeOverlay>> = ctx
        .cluster
        .overlays()
        .into_iter()
        .filter(|o| o.metadata.deletion_timestamp.is_none())
        .collect();
    let (store, verdicts) = overlay::evaluate(&overlays, &pools);
    let written = join_all(overlays.iter().map(|overlay| {
        let name = overlay.metadata.name.as_deref().unwrap_or_default();
        write(ctx, overlay, verdicts.get(name))
    }))
    .await;
    // After the conditions: prices that apply can be seen on their overlays.
    ctx.cluster.set_overlay_store(store);
    errors.extend(written.into_iter().filter_map(Result::err).map(Error::from));
    Error::all(errors)
}

async fn write(
    ctx: &Context,
    before: &NodeOverlay,
    verdict: Option<&Verdict>,
) -> Result<(), kube::Error> {
    let Some(verdict) = verdict else { return Ok(()) };
    let mut overlay = before.clone();
    let (generation, now) = (before.metadata.generation, ctx.clock.now());
    let list = &mut overlay.status.get_or_insert_default().conditions;
    let kind = conditions::VALIDATION_SUCCEEDED;
    let failed = |list: &mut _, reason: &str, text: &str| {
        conditions::set(list, kind, conditions::FALSE, reason, text, generation, now)
    };
    match verdict {
        Verdict::Applied => conditions::set_true(list, kind, generation, now),
        Verdict::Invalid(text) => failed(list, "RuntimeValidation", text),
        Verdict::Conflict => failed(list, "Conflict", "conflict with another overlay"),
    };
    conditions::set_ready(list, &[kind], generation, now);
    patch::merge(&Api::all(ctx.client.clone()), before, &overlay).await.map(drop)
}
