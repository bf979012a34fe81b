//! Runs controllers: each has a work queue of object names, fed by the changes of the state, and
//! workers that reconcile them.
//!
//! Every controller runs here, those without an object (singletons) too, so that all of them retry,
//! report and survive a panic in the same way.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{Instrument as _, Span};

use super::{Context, Error, Outcome};
use crate::cluster::Change;
use crate::operator::logging;
use crate::operator::metrics::{ControllerMetrics, Reconciled};
use crate::operator::rate::Backoff;
use crate::operator::settings::Settings;

mod queue;

use queue::Queue;

/// Waits after failures of one object.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(60));
/// Gauges of the work under way are brought up to date this often.
const MEASURE: Duration = Duration::from_secs(1);
/// The one object of a singleton.
const ONLY: &str = "";

/// Who reconciles what, for the logs.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Controller name.
    pub name: &'static str,
    /// Group of the kind.
    pub group: &'static str,
    /// Kind; empty for a controller without objects.
    pub kind: &'static str,
    /// Reconciles that may run side by side.
    pub workers: usize,
}

impl Identity {
    /// A controller without objects, of which one reconcile runs at a time.
    const fn singleton(name: &'static str) -> Self {
        Self { name, group: "", kind: "", workers: 1 }
    }

    /// The same with workers that grow with the cpu request, up to so many.
    pub(super) fn scaled(self, settings: &Settings, most: usize) -> Self {
        Self { workers: settings.workers(self.workers, most), ..self }
    }

    /// The context of a reconcile in the logs.
    fn span(&self, name: &str) -> Span {
        if self.kind.is_empty() {
            return logging::controller_span(self.name);
        }
        // Namespaced objects are named `namespace/name`.
        let (namespace, object) = name.split_once('/').unwrap_or(("", name));
        logging::reconcile_span(self.name, self.group, self.kind, namespace, object)
    }
}

/// Selects the NodeClaim that changed.
pub fn changed_claim(_: &Context, change: &Change) -> Vec<String> {
    match change {
        Change::NodeClaim(name) => vec![name.clone()],
        _ => Vec::new(),
    }
}

/// Selects the Node that changed.
pub fn changed_node(_: &Context, change: &Change) -> Vec<String> {
    match change {
        Change::Node(name) => vec![name.clone()],
        _ => Vec::new(),
    }
}

/// Reconciles names that `select` picks from the state's changes, those of `initial` first.
pub async fn run<F, R>(
    identity: Identity,
    ctx: Arc<Context>,
    initial: impl Fn(&Context) -> Vec<String> + Send + 'static,
    select: impl Fn(&Context, &Change) -> Vec<String> + Send + 'static,
    reconcile: F,
) where
    F: Fn(Arc<Context>, String) -> R + Send + Sync + 'static,
    R: Future<Output = Outcome> + Send + 'static,
{
    run_with(identity, BACKOFF, ctx, initial, select, reconcile).await;
}

/// The same with other waits after failures.
pub async fn run_with<F, R>(
    identity: Identity,
    backoff: Backoff,
    ctx: Arc<Context>,
    initial: impl Fn(&Context) -> Vec<String> + Send + 'static,
    select: impl Fn(&Context, &Change) -> Vec<String> + Send + 'static,
    reconcile: F,
) where
    F: Fn(Arc<Context>, String) -> R + Send + Sync + 'static,
    R: Future<Output = Outcome> + Send + 'static,
{
    let changes = ctx.cluster.subscribe();
    ctx.cluster.until_listed().await;
    let source = Changes { changes, ctx: Arc::clone(&ctx), initial, select };
    work(identity, backoff, source, move |name| reconcile(Arc::clone(&ctx), name)).await;
}

/// Runs a controller without objects, again after the time that each run returns, and after each
/// change for which `concerns` holds.
pub(super) fn singleton<F, R>(
    tasks: &mut JoinSet<()>,
    name: &'static str,
    ctx: &Arc<Context>,
    concerns: impl Fn(&Context, &Change) -> bool + Send + 'static,
    reconcile: F,
) where
    F: Fn() -> R + Send + Sync + 'static,
    R: Future<Output = Outcome> + Send + 'static,
{
    tasks.spawn(run(
        Identity::singleton(name),
        Arc::clone(ctx),
        |_| vec![ONLY.to_owned()],
        move |ctx, change| if concerns(ctx, change) { vec![ONLY.to_owned()] } else { Vec::new() },
        move |_, _| reconcile(),
    ));
}

/// Runs a controller without objects that no change wakes, again after the time that each run
/// returns.
pub(super) fn repeat<F, R>(tasks: &mut JoinSet<()>, name: &'static str, reconcile: F)
where
    F: Fn() -> R + Send + Sync + 'static,
    R: Future<Output = Outcome> + Send + 'static,
{
    let only = Fixed(vec![ONLY.to_owned()]);
    tasks.spawn(work(Identity::singleton(name), BACKOFF, only, move |_| reconcile()));
}

/// Reconciles objects whose names are sent.
pub(super) fn fed<F, R>(
    tasks: &mut JoinSet<()>,
    identity: Identity,
    backoff: Backoff,
    names: UnboundedReceiver<String>,
    reconcile: F,
) where
    F: Fn(String) -> R + Send + Sync + 'static,
    R: Future<Output = Outcome> + Send + 'static,
{
    tasks.spawn(work(identity, backoff, Sent(names), reconcile));
}

/// Reconciles objects that are named from the start, each until it returns no time to look again.
pub(super) fn each<F, R>(
    tasks: &mut JoinSet<()>,
    identity: Identity,
    names: impl IntoIterator<Item = &'static str>,
    reconcile: F,
) where
    F: Fn(String) -> R + Send + Sync + 'static,
    R: Future<Output = Outcome> + Send + 'static,
{
    let names = Fixed(names.into_iter().map(str::to_owned).collect());
    tasks.spawn(work(identity, BACKOFF, names, reconcile));
}

/// Runs a refresh now and after each period, sooner after a failure.
pub(super) fn every<F, R>(tasks: &mut JoinSet<()>, name: &'static str, period: Duration, refresh: F)
where
    F: Fn() -> R + Send + Sync + 'static,
    R: Future<Output = Result<(), Error>> + Send + 'static,
{
    repeat(tasks, name, move || {
        let refresh = refresh();
        async move { refresh.await.map(|()| Some(period)) }
    });
}

/// Names of objects to reconcile, as they come.
trait Source: Send {
    /// The next names; nothing once no more can come. May be dropped and called again.
    fn next(&mut self) -> impl Future<Output = Option<Vec<String>>> + Send;

    /// The names to begin with.
    fn begin(&self) -> Vec<String>;
}

/// The changes of the state.
struct Changes<I, S> {
    changes: Receiver<Change>,
    ctx: Arc<Context>,
    initial: I,
    select: S,
}

impl<I, S> Source for Changes<I, S>
where
    I: Fn(&Context) -> Vec<String> + Send,
    S: Fn(&Context, &Change) -> Vec<String> + Send,
{
    async fn next(&mut self) -> Option<Vec<String>> {
        match self.changes.recv().await {
            Ok(change) => Some((self.select)(&self.ctx, &change)),
            // Changes were lost: any object may have changed.
            Err(RecvError::Lagged(_)) => Some(self.begin()),
            Err(RecvError::Closed) => None,
        }
    }

    fn begin(&self) -> Vec<String> {
        (self.initial)(&self.ctx)
    }
}

/// Objects that are known from the start, and that no change concerns.
struct Fixed(Vec<String>);

impl Source for Fixed {
    async fn next(&mut self) -> Option<Vec<String>> {
        std::future::pending().await
    }

    fn begin(&self) -> Vec<String> {
        self.0.clone()
    }
}

/// Names that others send.
struct Sent(UnboundedReceiver<String>);

impl Source for Sent {
    async fn next(&mut self) -> Option<Vec<String>> {
        self.0.recv().await.map(|name| vec![name])
    }

    fn begin(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A finished reconcile: the object, and how it ended.
type Finished = (Arc<str>, Result<Option<Duration>, ()>);

/// Feeds the queue, starts workers, and takes in what they return.
async fn work<F, R>(identity: Identity, backoff: Backoff, mut source: impl Source, reconcile: F)
where
    F: Fn(String) -> R + Send + Sync + 'static,
    R: Future<Output = Outcome> + Send + 'static,
{
    let measured = ControllerMetrics::new(identity.name, identity.workers);
    let mut queue = Queue::new(backoff);
    let mut workers: JoinSet<Finished> = JoinSet::new();
    let now = Instant::now();
    for name in source.begin() {
        queue.add(&name, now);
    }
    let (mut measure_at, mut busy) = (now, false);
    loop {
        let now = Instant::now();
        queue.advance(now);
        measured.added(queue.take_added());
        while queue.running() < identity.workers
            && let Some((name, waited)) = queue.next(now)
        {
            measured.waited(waited);
            let work = reconcile(name.to_string());
            workers.spawn(attempt(identity, measured.clone(), name, work));
        }
        measured.waiting(queue.depth());
        if now >= measure_at {
            let (unfinished, longest) = queue.unfinished(now);
            measured.unfinished(unfinished, longest);
            (measure_at, busy) = (now + MEASURE, !longest.is_zero());
        }
        let measure = (busy || queue.running() > 0).then_some(measure_at);
        let wake = [queue.next_due(), measure].into_iter().flatten().min();
        tokio::select! {
            // In this order always, so that runs with the same seed are the same.
            biased;
            Some(finished) = workers.join_next(), if !workers.is_empty() => match finished {
                Ok((name, outcome)) => queue.done(&name, outcome, Instant::now()),
                // Reconciles catch their panics, and are cancelled only together with this loop.
                Err(error) => tracing::error!("error" = %error, "a worker ended"),
            },
            names = source.next() => match names {
                Some(names) => {
                    let now = Instant::now();
                    for name in names {
                        queue.add(&name, now);
                    }
                }
                None => return,
            },
            () = until(wake) => {}
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Reconciles one object once.
async fn attempt(
    identity: Identity,
    measured: ControllerMetrics,
    name: Arc<str>,
    work: impl Future<Output = Outcome> + Send,
) -> Finished {
    let span = identity.span(&name);
    let started = Instant::now();
    measured.started();
    let caught = AssertUnwindSafe(work).catch_unwind().instrument(span.clone()).await;
    let outcome = caught.unwrap_or_else(|panic| {
        measured.panicked();
        Err(Error::Other(format!("panic: {} [recovered]", text_of(&*panic))))
    });
    let how = match &outcome {
        Ok(None) => Reconciled::Success,
        Ok(Some(_)) => Reconciled::RequeueAfter,
        Err(error) => {
            span.in_scope(|| log_failure!(*error, "Reconciler error"));
            Reconciled::Error
        }
    };
    measured.finished(started.elapsed(), how);
    (name, outcome.map_err(|_| ()))
}

/// The message of a panic.
fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use parking_lot::Mutex;
    use tokio::sync::mpsc;

    use super::*;
    use crate::operator::metrics;

    const IDENTITY: Identity = Identity { name: "test", group: "g", kind: "K", workers: 2 };

    type Seen = Arc<Mutex<Vec<(String, u64)>>>;

    /// Runs a controller that answers as `outcome` says; returns where names can be sent, and the
    /// milliseconds at which each was reconciled.
    fn start<R>(
        tasks: &mut JoinSet<()>,
        outcome: impl Fn(&str) -> R + Send + Sync + 'static,
    ) -> (mpsc::UnboundedSender<String>, Seen)
    where
        R: Future<Output = Outcome> + Send + 'static,
    {
        let (sender, receiver) = mpsc::unbounded_channel();
        let (seen, begun) = (Seen::default(), Instant::now());
        let kept = Arc::clone(&seen);
        let backoff = BACKOFF.with_jitter(|| 0.0);
        fed(tasks, IDENTITY, backoff, receiver, move |name| {
            let at = u64::try_from(begun.elapsed().as_millis()).unwrap();
            kept.lock().push((name.clone(), at));
            outcome(&name)
        });
        (sender, seen)
    }

    fn times(seen: &Seen, name: &str) -> Vec<u64> {
        seen.lock().iter().filter(|(n, _)| n == name).map(|(_, at)| *at).collect()
    }

    async fn pass(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_time_replaces_a_later_one() {
        let mut tasks = JoinSet::new();
        let runs = AtomicU32::new(0);
        let (sender, seen) = start(&mut tasks, move |_| {
            let wait = if runs.fetch_add(1, Ordering::SeqCst) == 0 { 300 } else { 30 };
            std::future::ready(Ok(Some(Duration::from_secs(wait))))
        });
        sender.send("a".to_owned()).unwrap();
        pass(1).await;
        sender.send("a".to_owned()).unwrap();
        pass(65).await;
        assert_eq!(times(&seen, "a"), [0, 1000, 31_000, 61_000]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reconcile_that_panics_is_counted_and_tried_again() {
        let mut tasks = JoinSet::new();
        let before = metrics::RECONCILE_PANICS.with_label_values(&["test"]).get();
        let (sender, seen) = start(&mut tasks, |name| {
            let bad = name == "bad";
            async move {
                assert!(!bad, "this object is odd");
                Ok(None)
            }
        });
        sender.send("bad".to_owned()).unwrap();
        sender.send("good".to_owned()).unwrap();
        pass(1).await;
        sender.send("good".to_owned()).unwrap();
        pass(1).await;
        assert_eq!(times(&seen, "bad"), [0, 100, 300, 700, 1500]);
        assert_eq!(times(&seen, "good"), [0, 1000]);
        let panics = metrics::RECONCILE_PANICS.with_label_values(&["test"]).get() - before;
        assert!(panics >= 5.0, "{panics}");
    }

    #[tokio::test(start_paused = true)]
    async fn workers_are_limited_and_the_rest_waits_in_the_queue() {
        let mut tasks = JoinSet::new();
        let (sender, seen) = start(&mut tasks, |_| async {
            pass(10).await;
            Ok(None)
        });
        for name in ["a", "b", "c"] {
            sender.send(name.to_owned()).unwrap();
        }
        pass(5).await;
        assert_eq!(seen.lock().len(), 2);
        pass(6).await;
        assert_eq!(times(&seen, "c"), [10_000]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reconcile_that_hangs_is_shown_and_its_end_is_too() {
        const HANGS: Identity = Identity { name: "test.hangs", ..IDENTITY };
        let mut tasks = JoinSet::new();
        each(&mut tasks, HANGS, ["a"], |_| async {
            pass(30).await;
            Ok(None)
        });
        let labels = ["test.hangs", "test.hangs"];
        let longest = || metrics::QUEUE_LONGEST.with_label_values(&labels).get();
        pass(20).await;
        assert!(longest() >= 18.0, "{}", longest());
        pass(15).await;
        assert_eq!(longest(), 0.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refresh_that_fails_is_tried_again_before_its_period_is_over() {
        let mut tasks = JoinSet::new();
        let (runs, begun) = (Arc::new(Mutex::new(Vec::new())), Instant::now());
        let kept = Arc::clone(&runs);
        every(&mut tasks, "test.every", Duration::from_secs(60), move || {
            let mut runs = kept.lock();
            runs.push(begun.elapsed().as_secs_f64());
            let failed = runs.len() == 1;
            async move { if failed { Err(Error::Other("no".into())) } else { Ok(()) } }
        });
        pass(61).await;
        let runs = runs.lock().clone();
        assert_eq!(runs.len(), 3, "{runs:?}");
        assert!(runs[1] > 0.0 && runs[1] <= 0.11 && runs[2] >= 60.0, "{runs:?}");
    }
}
