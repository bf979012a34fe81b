//! Requests of many callers collected for a moment and made as one.
//!
//! The first request opens a window; each further one keeps it open a little longer; it closes
//! when nothing comes, when it has been open for long, or when it is full. What was collected is
//! split by what can go together, and every part is one call.
//!
//! The busier EC2 is, the longer is collected: while several calls of a kind are under way, or
//! there were many lately, those that would make a small call wait for one that ends, or for a
//! moment. A call that is full waits for nothing.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

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

/// Calls that run at once, over all keys; Karpenter's number of workers per batcher.
const WORKERS: usize = 100;
/// While this many calls of one key are running, its requests wait until one of them ends.
const BUSY: usize = 4;
/// After this many calls at once, further ones are kept apart by the longest time of a window.
const BURST: u32 = 10;

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
        // The collector is spawned here and not in `new`, which may run outside the runtime.
        let queue = self.queue.get_or_init(|| {
            let (sender, receiver) = mpsc::unbounded_channel();
            let collector = Collector {
                window: self.window,
                key: self.key,
                execute: Arc::clone(&self.execute),
                workers: Arc::new(Semaphore::new(WORKERS)),
                ended: Arc::default(),
                open: None,
                kinds: HashMap::new(),
            };
            tokio::spawn(collector.run(receiver));
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

/// A window that is open.
struct Open {
    start: Instant,
    last: Instant,
    items: usize,
}

/// Requests of one key, and its calls.
struct Kind<Q, A> {
    waiting: Vec<Waiting<Q, A>>,
    /// When the first of those that wait came.
    since: Instant,
    /// Their window has closed.
    due: bool,
    under_way: Arc<AtomicUsize>,
    /// When a call would be one of an even sequence; it is ahead of now while there are many.
    even: Instant,
}

impl<Q, A> Kind<Q, A> {
    fn new(now: Instant) -> Self {
        let under_way = Arc::default();
        Self { waiting: Vec::new(), since: now, due: false, under_way, even: now }
    }

    /// When a small call may be made, as far as the calls so far are concerned.
    fn rested(&self, every: Duration) -> Instant {
        self.even.checked_sub(every * (BURST - 1)).unwrap_or(self.even)
    }

    /// The next call, if it may be made now.
    fn take(&mut self, now: Instant, window: &Window) -> Option<Vec<Waiting<Q, A>>> {
        let full = self.waiting.len() >= window.per_call;
        let idle = self.under_way.load(Ordering::Acquire) < BUSY;
        let at_rest = self.due && idle && self.rested(window.max) <= now;
        if !full && !at_rest {
            return None;
        }
        let rest = self.waiting.split_off(self.waiting.len().min(window.per_call));
        let call = std::mem::replace(&mut self.waiting, rest);
        // Full calls in a row make a small one wait for no longer than one window.
        self.even = (self.even.max(now) + window.max).min(now + window.max * BURST);
        self.due &= !self.waiting.is_empty();
        Some(call).filter(|c| !c.is_empty())
    }

    /// Nothing is left to remember.
    fn at_rest(&self, now: Instant) -> bool {
        self.waiting.is_empty() && self.even <= now && self.under_way.load(Ordering::Acquire) == 0
    }
}

/// Counts a call as under way for as long as it lives.
struct UnderWay {
    count: Arc<AtomicUsize>,
    ended: Arc<Notify>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::AcqRel);
        self.ended.notify_one();
    }
}

/// Makes calls of what comes through the queue.
struct Collector<Q, A, K> {
    window: Window,
    key: fn(&Q) -> K,
    execute: Execute<Q, A>,
    workers: Arc<Semaphore>,
    ended: Arc<Notify>,
    open: Option<Open>,
    kinds: HashMap<K, Kind<Q, A>>,
}

impl<Q, A, K> Collector<Q, A, K>
where
    Q: Send + 'static,
    A: Send + 'static,
    K: Eq + Hash + Send + 'static,
{
    /// Works until the batcher is gone.
    async fn run(mut self, mut queue: mpsc::UnboundedReceiver<Waiting<Q, A>>) {
        loop {
            let next = self.next_moment();
            let ended = Arc::clone(&self.ended);
            tokio::select! {
                // Requests that have arrived come before the timer: they still join the call that
                // is due.
                biased;
                one = queue.recv() => match one {
                    Some(waiting) => self.add(waiting),
                    // Nobody waits for an answer any more.
                    None => return,
                },
                () = ended.notified() => {}
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
            self.close_window();
            self.make_calls();
        }
    }

    /// When something has to be done, if nothing comes before.
    fn next_moment(&self) -> Option<Instant> {
        let closing = self.open.as_ref().map(|o| self.closes(o));
        let rested = self
            .kinds
            .values()
            .filter(|k| k.due && k.under_way.load(Ordering::Acquire) < BUSY)
            .map(|k| k.rested(self.window.max));
        rested.chain(closing).min()
    }

    fn closes(&self, open: &Open) -> Instant {
        (open.last + self.window.idle).min(open.start + self.window.max)
    }

    fn add(&mut self, waiting: Waiting<Q, A>) {
        let now = Instant::now();
        let kind = self.kinds.entry((self.key)(&waiting.0)).or_insert_with(|| Kind::new(now));
        if kind.waiting.is_empty() {
            kind.since = now;
        }
        kind.waiting.push(waiting);
        // Where a call only waits for its turn, this one goes along.
        if !kind.due {
            let open = self.open.get_or_insert(Open { start: now, last: now, items: 0 });
            open.last = now;
            open.items += 1;
        }
    }

    fn close_window(&mut self) {
        let now = Instant::now();
        let over = |o: &Open| o.items >= self.window.items || self.closes(o) <= now;
        if self.open.as_ref().is_some_and(over) {
            self.open = None;
            self.kinds.retain(|_, kind| !kind.at_rest(now));
            for kind in self.kinds.values_mut() {
                kind.due = !kind.waiting.is_empty();
            }
        }
    }

    fn make_calls(&mut self) {
        let now = Instant::now();
        for kind in self.kinds.values_mut() {
            while let Some(batch) = kind.take(now, &self.window) {
                let since = std::mem::replace(&mut kind.since, now);
                metrics::BATCH_TIME
                    .with_label_values(&[self.window.name])
                    .observe((now - since).as_secs_f64());
                // Counted before the task starts: the next turn of this loop already depends on it.
                kind.under_way.fetch_add(1, Ordering::AcqRel);
                let under_way =
                    UnderWay { count: Arc::clone(&kind.under_way), ended: Arc::clone(&self.ended) };
                let (name, execute) = (self.window.name, Arc::clone(&self.execute));
                let workers = Arc::clone(&self.workers);
                tokio::spawn(async move {
                    let _under_way = under_way;
                    let _slot = workers.acquire().await;
                    run(name, &execute, batch).await;
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
        let text = metrics::render();
        for part in ["size", "time_seconds"] {
            let name = format!("karpenter_cloudprovider_batcher_batch_{part}_count");
            assert!(text.contains(&format!("{name}{{batcher=\"test\"}}")), "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_request_keeps_the_window_open_but_not_for_ever() {
        let (batcher, calls) = batcher(WINDOW);
        let start = Instant::now();
        let first = ask(&batcher, 0);
        for n in 1..20 {
            sleep(Duration::from_millis(90)).await;
            drop(ask(&batcher, 2 * n));
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

    /// When calls were made, in milliseconds, and of how many requests.
    type Log = Arc<Mutex<Vec<(u128, usize)>>>;

    /// A batcher whose calls take so long.
    fn slow(window: Window, each: Duration) -> (Arc<Batcher<u32, u32, u32>>, Log) {
        let log = Log::default();
        let (calls, start) = (Arc::clone(&log), Instant::now());
        let batcher = Batcher::new(
            window,
            |n: &u32| n % 2,
            move |batch: Vec<u32>| {
                calls.lock().push((start.elapsed().as_millis(), batch.len()));
                async move {
                    sleep(each).await;
                    batch.into_iter().map(Ok).collect()
                }
            },
        );
        (Arc::new(batcher), log)
    }

    #[tokio::test(start_paused = true)]
    async fn while_calls_are_under_way_the_next_one_grows() {
        let (batcher, log) = slow(WINDOW, Duration::from_secs(10));
        let mut tasks = Vec::new();
        for n in 0..100 {
            tasks.push(ask(&batcher, 2 * n));
            sleep(Duration::from_millis(200)).await;
        }
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        let log = log.lock().clone();
        assert_eq!(log[..4], [(100, 1), (300, 1), (500, 1), (700, 1)]);
        assert_eq!(log[4], (10_100, 47), "all that came since, once the first call has ended");
        assert_eq!(log.iter().map(|c| c.1).sum::<usize>(), 100);
        assert_eq!(log.len(), 9, "{log:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_key_holds_up_no_other() {
        let (batcher, log) = slow(WINDOW, Duration::from_secs(10));
        let mut tasks = Vec::new();
        for n in 0..6 {
            tasks.push(ask(&batcher, 2 * n));
            sleep(Duration::from_millis(200)).await;
        }
        let start = Instant::now();
        ask(&batcher, 1).await.unwrap().unwrap();
        assert_eq!(start.elapsed(), Duration::from_millis(10_100));
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert_eq!(log.lock().len(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_call_waits_for_nothing() {
        let (batcher, log) = slow(Window { per_call: 10, ..WINDOW }, Duration::from_secs(10));
        let tasks: Vec<_> = (0..65).map(|n| ask(&batcher, 2 * n)).collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        let mut want = vec![(0, 10); 6];
        want.push((10_000, 5));
        assert_eq!(*log.lock(), want);
    }

    #[tokio::test(start_paused = true)]
    async fn many_small_calls_keep_their_distance() {
        let (batcher, log) = slow(WINDOW, Duration::from_millis(20));
        let mut tasks = Vec::new();
        for n in 0..400 {
            let batcher = Arc::clone(&batcher);
            tasks.push(tokio::spawn(async move {
                let start = Instant::now();
                batcher.request(2 * n).await.unwrap();
                start.elapsed()
            }));
            sleep(Duration::from_millis(150)).await;
        }
        for task in tasks {
            let waited = task.await.unwrap();
            assert!(waited <= Duration::from_millis(1_150), "{waited:?}");
        }
        let log = log.lock().clone();
        assert!(log[..10].iter().all(|c| c.1 == 1), "the first ones are not held up: {log:?}");
        assert!(log.len() <= 72, "400 requests in a minute made {} calls", log.len());
    }
}
