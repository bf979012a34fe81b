//! Provisioning: pods that fit nowhere are collected, scheduled, and given NodeClaims.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use prometheus::Gauge;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Context, cost, runner};
use crate::assemble::Assembly;
use crate::operator::{logging, metrics};
use crate::scheduling::pod::PodInfo;
use crate::scheduling::results::{PodError, Results};
use crate::scheduling::solver::solve_holding;

pub mod batcher;
mod create;
pub mod decisions;
mod events;
mod record;
mod schedule;
mod triggers;
mod waiting;

use batcher::Batcher;
pub(super) use create::{launch, launch_with};
use decisions::Decisions;
pub(super) use schedule::{all_pools, snapshot};

/// A scheduling round stops after this long with what it has.
const SOLVE_LIMIT: Duration = Duration::from_secs(60);
/// The state is asked again after this long whether it is complete.
const SYNC_POLL: Duration = Duration::from_millis(100);
/// An incomplete state is logged after this long, and as often as the second figure says.
const SYNC_PATIENCE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
const CONTROLLER: &str = "provisioner";

/// What the parts of provisioning share.
#[derive(Clone)]
pub struct Shared {
    /// Collects triggers.
    pub batcher: Arc<Batcher>,
    /// What was decided for waiting pods.
    pub decisions: Arc<Decisions>,
}

impl Shared {
    /// For a controller with these settings.
    #[must_use]
    pub fn new(ctx: &Context) -> Self {
        let settings = &ctx.settings;
        let batcher = Batcher::new(settings.batch_idle_duration, settings.batch_max_duration);
        Self { batcher: Arc::new(batcher), decisions: Arc::default() }
    }
}

/// Starts the provisioner and its triggers.
pub fn start(ctx: &Arc<Context>, shared: &Shared, tasks: &mut JoinSet<()>) {
    triggers::start(ctx, shared, tasks);
    let (ctx, shared) = (Arc::clone(ctx), shared.clone());
    let warnings = Arc::new(waiting::Warnings::default());
    runner::repeat(tasks, CONTROLLER, move || {
        let (ctx, shared, warnings) = (Arc::clone(&ctx), shared.clone(), Arc::clone(&warnings));
        async move {
            round(&ctx, &shared, &warnings).await;
            Ok(Some(Duration::ZERO))
        }
    });
}

/// Waits for a batch and schedules it.
async fn round(ctx: &Context, shared: &Shared, warnings: &waiting::Warnings) {
    if !shared.batcher.wait().await {
        return;
    }
    // A batch that finds the state incomplete is kept until it is complete: what comes meanwhile is
    // part of the round, as pods are listed when it begins.
    let mut patience = Patience::default();
    while !ctx.cluster.synced(ctx.clock.now()) {
        patience.waiting();
        tokio::time::sleep(SYNC_POLL).await;
    }
    patience.done();
    provision(ctx, shared, warnings).await;
}

/// Reports a state that stays incomplete.
#[derive(Default)]
struct Patience {
    since: Option<Instant>,
    logged: Option<Instant>,
}

impl Patience {
    fn waiting(&mut self) {
        let since = *self.since.get_or_insert_with(Instant::now);
        let waited = since.elapsed();
        metrics::CLUSTER_STATE_SYNCED.with_label_values::<&str>(&[]).set(0.0);
        metrics::CLUSTER_STATE_UNSYNCED.with_label_values::<&str>(&[]).set(waited.as_secs_f64());
        let (first, every) = SYNC_PATIENCE;
        if waited > first && self.logged.is_none_or(|t| t.elapsed() >= every) {
            self.logged = Some(Instant::now());
            tracing::error!(
                "duration" = logging::go_duration(waited),
                "error" = "waiting on cluster sync",
                "cluster is waiting on sync for extended duration"
            );
        }
    }

    fn done(&mut self) {
        *self = Self::default();
        metrics::CLUSTER_STATE_SYNCED.with_label_values::<&str>(&[]).set(1.0);
        metrics::CLUSTER_STATE_UNSYNCED.with_label_values::<&str>(&[]).set(0.0);
    }
}

async fn provision(ctx: &Context, shared: &Shared, warnings: &waiting::Warnings) {
    let started = Instant::now();
    let assembly = schedule::to_provision(ctx).await;
    let (pods, pending) = (assembly.snapshot.pods.clone(), assembly.pending);
    let ignored: waiting::LeftAlone = assembly.ignored.clone();
    waiting::log_unknown_values(pods[..pending].iter().chain(ignored.iter().map(|(p, _)| p)));
    waiting::report_ignored(ctx, &ignored);
    if ctx.settings.respect_preferences {
        warnings.log(&pods[..pending], ctx.clock.now());
    }
    let results: Results =
        solve(ctx, &shared.decisions, assembly, started).await.unwrap_or_default();
    let by_key = record::Pods::new(&pods);
    record::remember(ctx, &shared.decisions, &results, &ignored, &by_key);
    record::report(ctx, &results, &by_key);
    // Side by side: pods wait for the nodes, and nobody for the status of a buffer.
    let buffers = async {
        if ctx.settings.gates.capacity_buffer {
            super::capacity_buffer::placed(ctx, &results, &pods).await;
        }
    };
    tokio::join!(create::all(ctx, &shared.decisions, &results, &by_key), buffers);
    for (pool, per_hour) in cost::saved_by_packing(&results.new_claims) {
        ctx.savings.record(&pool, "packing", per_hour, ctx.clock.now());
    }
}

/// Schedules the pods; nothing when there is nothing to do or nothing to do it with.
async fn solve(
    ctx: &Context,
    decisions: &Decisions,
    assembly: Assembly,
    started: Instant,
) -> Option<Results> {
    let (pending, deleting) = (assembly.pending, assembly.leaving);
    let (mut snapshot, held) = (assembly.snapshot, assembly.held);
    let pods = snapshot.pods.clone();
    if pods.is_empty() {
        metrics::UNSCHEDULABLE_PODS.with_label_values(&[CONTROLLER]).set(0.0);
        return None;
    }
    tracing::debug!(
        "pending-pods" = pending,
        "deleting-pods" = deleting,
        "computing scheduling decision for provisionable pod(s)"
    );
    if snapshot.node_pools.is_empty() {
        tracing::info!("no dynamic nodepools found");
        for pod in pods.iter().filter(|p| p.buffer.is_none()) {
            decisions.failed(&pod.key, "no dynamic nodepools found".to_owned(), ctx.clock.now());
        }
        return None;
    }
    snapshot.options.count_zones = true;
    snapshot.options.report_relaxations = tracing::enabled!(tracing::Level::DEBUG);
    let limit = started + SOLVE_LIMIT;
    let timer = metrics::SCHEDULING_DURATION.with_label_values(&[CONTROLLER]).start_timer();
    let progress = Progress::new();
    let id = progress.id.clone();
    let solved = super::compute(move || {
        solve_holding(&snapshot, &held, &|left| {
            progress.update(left);
            Instant::now() < limit
        })
    })
    .await;
    timer.observe_duration();
    let results = match solved {
        Ok(results) => {
            for (zone, count) in &results.zones {
                let gauge = metrics::PENDING_PODS_BY_ZONE.with_label_values(&[CONTROLLER, zone]);
                gauge.set(f64::from(*count));
            }
            results
        }
        Err(error) => {
            tracing::error!("error" = %error, "scheduling failed");
            return None;
        }
    };
    if Instant::now() >= limit {
        tracing::debug!(
            "duration" = logging::go_duration(Duration::from_secs(started.elapsed().as_secs())),
            "scheduling-id" = id,
            "scheduling simulation timed out"
        );
    }
    let (reserved, failed): (Vec<_>, Vec<_>) =
        results.errors.iter().partition(|(_, e)| matches!(e, PodError::Reserved(_)));
    if !reserved.is_empty() {
        tracing::debug!(
            "Pods" = listed(reserved.iter().map(|(key, _)| key)),
            "deferring scheduling decision for provisionable pod(s) to future simulation due to limited reserved offering capacity"
        );
    }
    let failed = f64::from(u32::try_from(failed.len()).unwrap_or(u32::MAX));
    metrics::UNSCHEDULABLE_PODS.with_label_values(&[CONTROLLER]).set(failed);
    if !results.new_claims.is_empty() {
        tracing::info!(
            "Pods" = listed(pods.iter().map(|p| p.key.to_string())),
            "duration" = logging::go_duration(started.elapsed()),
            "found provisionable pod(s)"
        );
    }
    Some(results)
}

/// The metrics of a round under way.
struct Progress {
    id: String,
    began: Instant,
    depth: Gauge,
    unfinished: Gauge,
}

impl Progress {
    /// For a round that begins now; the series of earlier ones go.
    fn new() -> Self {
        let id = uuid::Uuid::new_v4().to_string();
        metrics::SCHEDULER_QUEUE_DEPTH.reset();
        metrics::SCHEDULER_UNFINISHED.reset();
        metrics::PENDING_PODS_BY_ZONE.reset();
        Self {
            began: Instant::now(),
            depth: metrics::SCHEDULER_QUEUE_DEPTH.with_label_values(&[CONTROLLER, &id]),
            unfinished: metrics::SCHEDULER_UNFINISHED.with_label_values(&[CONTROLLER, &id]),
            id,
        }
    }

    fn update(&self, left: usize) {
        self.depth.set(f64::from(u32::try_from(left).unwrap_or(u32::MAX)));
        self.unfinished.set(self.began.elapsed().as_secs_f64());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // They fail only for series that are not there.
        let labels = [CONTROLLER, &self.id];
        let _ = metrics::SCHEDULER_QUEUE_DEPTH.remove_label_values(&labels);
        let _ = metrics::SCHEDULER_UNFINISHED.remove_label_values(&labels);
    }
}

/// First five, then how many more.
pub(super) fn listed<T: ToString>(items: impl ExactSizeIterator<Item = T>) -> String {
    listed_up_to(5, items)
}

/// The first ones, then how many more.
fn listed_up_to<T: ToString>(most: usize, items: impl ExactSizeIterator<Item = T>) -> String {
    let total = items.len();
    let shown: Vec<String> = items.take(most).map(|i| i.to_string()).collect();
    if total > shown.len() {
        return format!("{} and {} other(s)", shown.join(", "), total - shown.len());
    }
    shown.join(", ")
}

pub(super) fn pod_reference(pod: &PodInfo) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.key.namespace.to_string()),
        name: Some(pod.key.name.to_string()),
        uid: Some(pod.uid.to_string()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_under_way_shows_what_is_left_and_takes_it_back() {
        let progress = Progress::new();
        progress.update(7);
        let labels = [CONTROLLER, progress.id.as_str()];
        let depth = metrics::SCHEDULER_QUEUE_DEPTH.with_label_values(&labels).get();
        assert!((depth - 7.0).abs() < f64::EPSILON);
        assert!(metrics::SCHEDULER_UNFINISHED.with_label_values(&labels).get() > 0.0);
        let shown = format!("scheduling_id=\"{}\"", progress.id);
        drop(progress);
        assert!(!metrics::render().contains(&shown));
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_without_a_synced_state_is_shown() {
        let shown = || metrics::CLUSTER_STATE_UNSYNCED.with_label_values::<&str>(&[]).get();
        let mut patience = Patience::default();
        patience.waiting();
        tokio::time::advance(Duration::from_secs(90)).await;
        patience.waiting();
        assert!((shown() - 90.0).abs() < 0.1, "{}", shown());
        patience.done();
        assert!(shown() == 0.0, "{}", shown());
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(listed(["a", "b"].iter()), "a, b");
        assert_eq!(listed((0..7).collect::<Vec<i32>>().iter()), "0, 1, 2, 3, 4 and 2 other(s)");
    }
}
