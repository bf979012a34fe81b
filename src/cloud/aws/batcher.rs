//! Requests of many callers collected for a moment and made as one.
//!
//! The first request opens a window; each further one keeps it open a little longer; it closes
//! when nothing comes, when it has been open for long, or when it is full. What was collected is
//! split by what can go together, and every part is one call.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::errors::AwsError;
use crate::operator::metrics;

/// How a batcher collects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Label of the metrics.
    pub name: &'static str,
    /// Quiet time that ends the window.
    pub idle: Duration,
    /// Longest time that the window is open.
    pub max: Duration,
    /// Requests that fill the window.
    pub items: usize,
    /// Requests in one call.
    pub per_call: usize,
}

/// Calls under way at once.
const WORKERS: usize = 100;

type Answers<A> = Pin<Box<dyn Future<Output = Vec<Result<A, AwsError>>> + Send>>;
type Execute<Q, A> = Arc<dyn Fn(Vec<Q>) -> Answers<A> + Send + Sync>;
type Waiting<Q, A> = (Q, oneshot::Sender<Result<A, AwsError>>);

/// Collects requests of type `Q`; requests of equal key `K` go together.
pub struct Batcher<Q, A, K> {
    window: Window,
    key: fn(&Q) -> K,
    execute: Execute<Q, A>,
    queue: OnceLock<mpsc::UnboundedSender<Waiting<Q, A>>>,
}

impl<Q, A, K> std::fmt::Debug for Batcher<Q, A, K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batcher").field("window", &self.window).finish_non_exhaustive()
    }
}

impl<Q, A, K> Batcher<Q, A, K>
where
    Q: Send + 'static,
    A: Send + 'static,
    K: Eq + Hash + Send + 'static,
{
    /// A batcher that makes a call by `execute`, which answers the requests in their order.
    pub fn new<F, R>(window: Window, key: fn(&Q) -> K, execute: F) -> Self
    where
        F: Fn(Vec<Q>) -> R + Send + Sync + 'static,
        R: Future<Output = Vec<Result<A, AwsError>>> + Send + 'static,
    {
        let execute: Execute<Q, A> = Arc::new(move |batch| Box::pin(execute(batch)));
        Self { window, key, execute, queue: OnceLock::new() }
    }

    /// Makes a request with whatever others are made now.
    ///
    /// # Errors
    /// That of the call, or that the call had no answer for this request.
    pub async fn request(&self, request: Q) -> Result<A, AwsError> {
        let queue = self.queue.get_or_init(|| {
            let (sender, receiver) = mpsc::unbounded_channel();
            tokio::spawn(collect(self.window, self.key, Arc::clone(&self.execute), receiver));
            sender
        });
        let (sender, answer) = oneshot::channel();
        if queue.send((request, sender)).is_err() {
            return Err(no_answer(self.window.name));
        }
        answer.await.unwrap_or_else(|_| Err(no_answer(self.window.name)))
    }
}

fn no_answer(operation: &'static str) -> AwsError {
    AwsError::local(operation, "NoAnswer", "error making call")
}

/// Opens a window for each first request, until the batcher is gone.
async fn collect<Q, A, K>(
    window: Window,
    key: fn(&Q) -> K,
    execute: Execute<Q, A>,
    mut queue: mpsc::UnboundedReceiver<Waiting<Q, A>>,
) where
    Q: Send + 'static,
    A: Send + 'static,
    K: Eq + Hash + Send + 'static,
{
    let workers = Arc::new(Semaphore::new(WORKERS));
    while let Some(first) = queue.recv().await {
        let start = Instant::now();
        let mut batch = vec![first];
        while batch.len() < window.items {
            let until = (Instant::now() + window.idle).min(start + window.max);
            match timeout_at(until, queue.recv()).await {
                Ok(Some(next)) => batch.push(next),
                Ok(None) | Err(_) => break,
            }
        }
        metrics::BATCH_TIME
            .with_label_values(&[window.name])
            .observe(start.elapsed().as_secs_f64());
        let mut buckets: HashMap<K, Vec<Waiting<Q, A>>> = HashMap::new();
        for waiting in batch {
            buckets.entry(key(&waiting.0)).or_default().push(waiting);
        }
        for mut bucket in buckets.into_values() {
            while !bucket.is_empty() {
                let rest = bucket.split_off(bucket.len().min(window.per_call));
                let part = std::mem::replace(&mut bucket, rest);
                let (execute, workers) = (Arc::clone(&execute), Arc::clone(&workers));
                tokio::spawn(async move {
                    let _slot = workers.acquire().await;
                    run(window.name, &execute, part).await;
                });
            }
        }
    }
}

async fn run<Q, A>(name: &'static str, execute: &Execute<Q, A>, batch: Vec<Waiting<Q, A>>) {
    metrics::BATCH_SIZE.with_label_values(&[name]).observe(batch.len() as f64);
    let (requests, callers): (Vec<Q>, Vec<_>) = batch.into_iter().unzip();
    let mut answers = execute(requests).await.into_iter();
    for caller in callers {
        // A caller that went away needs no answer.
        let _ = caller.send(answers.next().unwrap_or_else(|| Err(no_answer(name))));
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use tokio::time::sleep;

    use super::*;

    const WINDOW: Window = Window {
        name: "test",
        idle: Duration::from_millis(100),
        max: Duration::from_secs(1),
        items: 500,
        per_call: 500,
    };

    type Calls = Arc<Mutex<Vec<Vec<u32>>>>;

    fn batcher(window: Window) -> (Arc<Batcher<u32, u32, u32>>, Calls) {
        let calls = Calls::default();
        let log = Arc::clone(&calls);
        let batcher = Batcher::new(
            window,
            |n: &u32| n % 2,
            move |batch: Vec<u32>| {
                log.lock().push(batch.clone());
                // The last of several gets no answer.
                let answered = batch.len().max(2) - 1;
                async move { batch.into_iter().take(answered).map(Ok).collect() }
            },
        );
        (Arc::new(batcher), calls)
    }

    fn ask(
        batcher: &Arc<Batcher<u32, u32, u32>>,
        n: u32,
    ) -> tokio::task::JoinHandle<Result<u32, AwsError>> {
        let batcher = Arc::clone(batcher);
        tokio::spawn(async move { batcher.request(n).await })
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_go_together_are_one_call() {
        let (batcher, calls) = batcher(WINDOW);
        let tasks: Vec<_> = [1, 3, 2, 5].map(|n| ask(&batcher, n)).into();
        let mut answers = Vec::new();
        for task in tasks {
            answers.push(task.await.unwrap());
        }
        let mut calls = calls.lock().clone();
        calls.sort();
        assert_eq!(calls, [vec![1, 3, 5], vec![2]]);
        assert_eq!(answers[0], Ok(1));
        assert_eq!(answers[2], Ok(2));
        assert_eq!(answers[3].as_ref().unwrap_err().code, "NoAnswer");
    }

    #[tokio::test(start_paused = true)]
    async fn each_request_keeps_the_window_open_but_not_for_ever() {
        let (batcher, calls) = batcher(WINDOW);
        let start = Instant::now();
        let first = ask(&batcher, 0);
        for n in 1..20 {
            sleep(Duration::from_millis(90)).await;
            let _ = ask(&batcher, 2 * n);
        }
        first.await.unwrap().unwrap();
        assert_eq!(calls.lock()[0].len(), 12, "11 more fit into a second, 90 ms apart");
        assert!(start.elapsed() >= Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_moment_or_a_full_window_ends_it() {
        let (quiet, calls) = batcher(WINDOW);
        let start = Instant::now();
        ask(&quiet, 2).await.unwrap().unwrap();
        assert_eq!(start.elapsed(), Duration::from_millis(100));
        assert_eq!(calls.lock().len(), 1);
        let (full, calls) = batcher(Window { items: 4, per_call: 3, ..WINDOW });
        let start = Instant::now();
        let tasks: Vec<_> = [0, 2, 4, 6].map(|n| ask(&full, n)).into();
        for task in tasks {
            let _ = task.await.unwrap();
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        let mut sizes: Vec<usize> = calls.lock().iter().map(Vec::len).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [1, 3]);
    }
}
