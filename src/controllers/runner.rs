//! A queue of object names fed by the state's changes: each name is reconciled by one worker at a time.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::{Context, Outcome};
use crate::cluster::Change;
use crate::operator::logging;
use crate::operator::metrics::{self, Reconciled};
use crate::operator::settings::Settings;

/// Names waiting to be reconciled; a full queue holds back whoever adds to it.
const QUEUE: usize = 4096;

/// Who reconciles what, for the logs.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Controller name.
    pub name: &'static str,
    /// Group of the kind.
    pub group: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Reconciles that may run side by side.
    pub workers: usize,
}

impl Identity {
    /// The same with workers that grow with the cpu request, up to so many.
    pub(super) fn scaled(self, settings: &Settings, most: usize) -> Self {
        Self { workers: settings.workers(self.workers, most), ..self }
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

/// Delays of repeated failures of one object.
pub(super) fn backoff(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.min(6)).min(Duration::from_secs(60))
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
    let mut changes = ctx.cluster.subscribe();
    ctx.cluster.until_listed().await;
    let (queue, mut names) = mpsc::channel::<Wake>(QUEUE);
    let reconcile = Arc::new(reconcile);
    let slots = Arc::new(Semaphore::new(identity.workers));
    let mut board = Board { pending: initial(&ctx).into_iter().collect(), ..Board::default() };
    let mut tasks = JoinSet::new();
    let name = identity.name;
    #[allow(clippy::cast_precision_loss, reason = "there are never so many workers")]
    metrics::MAX_CONCURRENT.with_label_values(&[name]).set(identity.workers as f64);
    let depth = metrics::QUEUE_DEPTH.with_label_values(&[name, name]);
    let adds = metrics::QUEUE_ADDS.with_label_values(&[name, name]);
    loop {
        let ready = board.ready();
        #[allow(clippy::cast_precision_loss, reason = "a gauge needs no more than a float holds")]
        {
            adds.inc_by(ready.len() as f64);
            depth.set(
                (board.pending.len() + board.running.len().saturating_sub(identity.workers)) as f64,
            );
        }
        for name in ready {
            let (ctx, reconcile, queue, slots) =
                (Arc::clone(&ctx), Arc::clone(&reconcile), queue.clone(), Arc::clone(&slots));
            tasks.spawn(async move {
                let Ok(_slot) = slots.acquire().await else { return };
                // Namespaced objects go by `namespace/name`.
                let (namespace, object) = name.split_once('/').unwrap_or(("", &name));
                let span = logging::reconcile_span(
                    identity.name,
                    identity.group,
                    identity.kind,
                    namespace,
                    object,
                );
                let timer = Timer::start(identity);
                let outcome = reconcile(ctx, name.clone()).instrument(span.clone()).await;
                timer.stop(&outcome);
                if let Err(error) = &outcome {
                    span.in_scope(|| tell_failure!(*error, "Reconciler error"));
                }
                let _ = queue.send(Wake::Done(name, outcome.map_err(|_| ()))).await;
            });
        }
        tokio::select! {
            change = changes.recv() => match change {
                Ok(change) => board.pending.extend(select(&ctx, &change)),
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {
                    board.pending.extend(initial(&ctx));
                }
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
            },
            Some(wake) = names.recv() => match wake {
                Wake::Now(name) => {
                    board.timers.remove(&name);
                    board.pending.insert(name);
                }
                Wake::Done(name, outcome) => {
                    if let Some(delay) = board.done(&name, outcome) {
                        let queue = queue.clone();
                        let timer = tasks.spawn(async move {
                            tokio::time::sleep(delay).await;
                            let _ = queue.send(Wake::Now(name)).await;
                        });
                        let _ = timer;
                    }
                }
            },
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
        }
    }
}

enum Wake {
    Now(String),
    Done(String, Result<Option<Duration>, ()>),
}

/// Measures one reconcile.
struct Timer(&'static str, Instant);

impl Timer {
    fn start(identity: Identity) -> Self {
        metrics::ACTIVE_WORKERS.with_label_values(&[identity.name]).inc();
        Self(identity.name, Instant::now())
    }

    fn stop(self, outcome: &Outcome) {
        let how = match outcome {
            Ok(None) => Reconciled::Success,
            Ok(Some(_)) => Reconciled::RequeueAfter,
            Err(_) => Reconciled::Error,
        };
        metrics::ACTIVE_WORKERS.with_label_values(&[self.0]).dec();
        metrics::reconciled(self.0, self.1.elapsed(), how);
    }
}

/// What is waiting, running and failing.
#[derive(Default)]
struct Board {
    pending: HashSet<String>,
    running: HashSet<String>,
    failures: HashMap<String, u32>,
    timers: HashSet<String>,
}

impl Board {
    /// Names that may start now.
    fn ready(&mut self) -> Vec<String> {
        let names: Vec<String> =
            self.pending.iter().filter(|n| !self.running.contains(*n)).cloned().collect();
        for name in &names {
            self.pending.remove(name);
            self.running.insert(name.clone());
        }
        names
    }

    /// Notes a finished reconcile; tells when to look again.
    fn done(&mut self, name: &str, outcome: Result<Option<Duration>, ()>) -> Option<Duration> {
        self.running.remove(name);
        let delay = match outcome {
            Ok(delay) => {
                self.failures.remove(name);
                delay?
            }
            Err(()) => {
                let failures = self.failures.entry(name.to_owned()).or_default();
                *failures += 1;
                backoff(*failures - 1)
            }
        };
        // One timer a name is enough: an earlier one reconciles and sets the next.
        let short = delay <= Duration::from_secs(10);
        (self.timers.insert(name.to_owned()) || short).then_some(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_runs_once_at_a_time() {
        let mut board = Board::default();
        board.pending.insert("a".into());
        assert_eq!(board.ready(), ["a"]);
        board.pending.insert("a".into());
        assert!(board.ready().is_empty());
        assert_eq!(board.done("a", Ok(None)), None);
        assert_eq!(board.ready(), ["a"]);
    }

    #[test]
    fn failures_wait_longer_each_time() {
        let mut board = Board::default();
        assert_eq!(board.done("a", Err(())), Some(Duration::from_secs(1)));
        assert_eq!(board.done("a", Err(())), Some(Duration::from_secs(2)));
        assert_eq!(backoff(20), Duration::from_secs(60));
    }
}
