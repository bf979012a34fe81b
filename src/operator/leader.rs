//! Leader election by a Lease: only one replica decides.
//!
//! A leader that cannot renew has stopped acting ten seconds after it sent its last renewal, whatever
//! hangs; others take over no earlier than fifteen seconds after they saw it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::events::{Recorder, Report, reference};
use super::metrics;

mod lease;

use lease::{Decision, Seen};

/// A leader that cannot renew for this long gives up. These times are client-go's defaults: 15 s
/// lease, 10 s deadline, 2 s between attempts.
const DEADLINE: Duration = Duration::from_secs(10);
/// The process ends this long after the last renewal if it is still there: something has kept it from
/// giving up. Others may take over after 15 s.
const LAST_RESORT: Duration = Duration::from_secs(12);
const RETRY: Duration = Duration::from_secs(2);
/// Limit of one request: half the deadline.
const REQUEST: Duration = Duration::from_secs(5);

/// Where the Lease is kept.
trait Store: Send + Sync {
    fn get(&self) -> impl Future<Output = Result<Option<Lease>, kube::Error>> + Send;
    fn create(&self, lease: &Lease) -> impl Future<Output = Result<Lease, kube::Error>> + Send;
    /// Replaces the Lease if nobody changed it since it was read.
    fn replace(&self, lease: &Lease) -> impl Future<Output = Result<Lease, kube::Error>> + Send;
}

/// The Lease of a name in the API server.
struct Live {
    api: Api<Lease>,
    name: String,
}

impl Store for Live {
    async fn get(&self) -> Result<Option<Lease>, kube::Error> {
        self.api.get_opt(&self.name).await
    }

    async fn create(&self, lease: &Lease) -> Result<Lease, kube::Error> {
        self.api.create(&PostParams::default(), lease).await
    }

    async fn replace(&self, lease: &Lease) -> Result<Lease, kube::Error> {
        self.api.replace(&self.name, &PostParams::default(), lease).await
    }
}

/// A candidate.
pub struct Election {
    candidate: Candidate<Live>,
    recorder: Recorder,
}

impl Election {
    /// A candidate for a Lease.
    #[must_use]
    pub fn new(client: kube::Client, recorder: Recorder, namespace: &str, name: &str) -> Self {
        let host = std::env::var("HOSTNAME")
            .ok()
            .or_else(|| std::fs::read_to_string("/etc/hostname").ok())
            .unwrap_or_default();
        let identity = format!("{}_{}", host.trim(), uuid::Uuid::new_v4());
        Self::named(&identity, client, recorder, namespace, name)
    }

    /// The same with an identity of one's own choice.
    pub(crate) fn named(
        identity: &str,
        client: kube::Client,
        recorder: Recorder,
        namespace: &str,
        name: &str,
    ) -> Self {
        let identity = identity.to_owned();
        let store = Live { api: Api::namespaced(client, namespace), name: name.to_owned() };
        Self { candidate: Candidate::new(store, name, identity), recorder }
    }

    /// Waits until this process leads.
    pub async fn acquire(&self) {
        self.campaign().await;
        let renewed = Arc::clone(&self.candidate.renewed);
        std::thread::spawn(move || {
            watch(&renewed, || {
                // Nothing that may hang stands between here and the end.
                eprintln!("leader election lost, and the process did not stop");
                std::process::exit(1);
            });
        });
    }

    /// The same without a watchdog: the caller answers for it that nothing acts after the end.
    pub(crate) async fn campaign(&self) {
        let name = &self.candidate.name;
        let gauge = metrics::LEADER.with_label_values(&[name]);
        gauge.set(0.0);
        metrics::LEADER_SLOWPATH.with_label_values(&[name]);
        tracing::info!("attempting to acquire leader lease {name}");
        self.candidate.acquire().await;
        gauge.set(1.0);
        tracing::info!("successfully acquired lease {name}");
        self.report("became leader");
    }

    /// Keeps the lease; returns once this process must not act any more.
    pub async fn keep(&self) {
        self.candidate.keep().await;
        metrics::LEADER.with_label_values(&[&self.candidate.name]).set(0.0);
        self.report("stopped leading");
    }

    /// Publishes an event on the Lease.
    fn report(&self, what: &str) {
        if let Some(lease) = &*self.candidate.held.lock() {
            let report = Report::LeaderElection { identity: &self.candidate.identity, what: &what };
            self.recorder.publish(report.on(reference(lease)));
        }
    }

    /// Gives the lease up, so that another replica need not wait.
    pub async fn release(&self) {
        self.candidate.release().await;
    }
}

/// The time for a lease, which other processes read: the system's.
#[expect(clippy::disallowed_methods, reason = "no controller acts by it")]
fn written_at() -> MicroTime {
    MicroTime(Timestamp::now())
}

/// Ends when the last renewal is too long ago. Runs in a thread of its own: a runtime whose threads
/// are all busy runs no timer.
fn watch(renewed: &Mutex<Option<Instant>>, end: impl FnOnce()) {
    loop {
        let Some(last) = *renewed.lock() else { return };
        let left = LAST_RESORT.saturating_sub(last.elapsed());
        if left.is_zero() {
            return end();
        }
        #[expect(clippy::disallowed_methods, reason = "this thread runs no task")]
        std::thread::sleep(left.min(Duration::from_secs(1)));
    }
}

struct Candidate<S> {
    store: S,
    name: String,
    identity: String,
    /// The Lease as this process last wrote it.
    held: Mutex<Option<Lease>>,
    /// When the last renewal that succeeded was sent; nothing once the lease is given up.
    renewed: Arc<Mutex<Option<Instant>>>,
}

impl<S: Store> Candidate<S> {
    fn new(store: S, name: &str, identity: String) -> Self {
        let (held, renewed) = (Mutex::default(), Arc::default());
        Self { store, name: name.to_owned(), identity, held, renewed }
    }

    async fn acquire(&self) {
        let mut seen = None;
        while !self.attempt(self.slow(&mut seen)).await {
            sleep(RETRY).await;
        }
    }

    /// Renews until that has failed for too long. The deadline holds while a request hangs, too.
    async fn keep(&self) {
        loop {
            let last = self.renewed.lock().unwrap_or_else(Instant::now);
            // One deadline over all attempts, and over a request that hangs.
            let renewal = async {
                sleep(RETRY).await;
                while !self.attempt(self.renew()).await {
                    sleep(RETRY).await;
                }
            };
            if timeout_at(last + DEADLINE, renewal).await.is_err() {
                return;
            }
        }
    }

    async fn release(&self) {
        // First, so that the watchdog does not end a process that is shutting down in order.
        *self.renewed.lock() = None;
        if let Ok(Ok(Some(mut lease))) = timeout(REQUEST, self.store.get()).await
            && let Some(spec) = &lease.spec
            && spec.holder_identity.as_deref() == Some(&self.identity)
        {
            lease.spec = Some(lease::released(spec));
            let _ = timeout(REQUEST, self.store.replace(&lease)).await;
        }
    }

    /// One attempt to get or keep the lease, within its time; true when it is held now.
    async fn attempt(
        &self,
        write: impl Future<Output = Result<Option<Lease>, kube::Error>>,
    ) -> bool {
        // The holder's time runs from when the renewal was sent: its arrival is unknown.
        let sent = Instant::now();
        match timeout(REQUEST, write).await {
            Ok(Ok(Some(lease))) => {
                *self.held.lock() = Some(lease);
                *self.renewed.lock() = Some(sent);
                return true;
            }
            Ok(Ok(None)) => {}
            // Another candidate was faster, which is how an election goes.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {}
            Ok(Err(error)) => {
                tracing::error!("error" = %error, "error retrieving resource lock {}", self.name);
            }
            Err(_) => tracing::error!(
                "error" = "timed out",
                "error retrieving resource lock {}",
                self.name
            ),
        }
        false
    }

    /// Renews the lease as it was last written; if that fails, what is there now is read first.
    async fn renew(&self) -> Result<Option<Lease>, kube::Error> {
        let held = self.held.lock().clone();
        if let Some(mut lease) = held {
            let now = written_at();
            lease.spec = Some(lease::held(lease.spec.as_ref(), &self.identity, now));
            if let Ok(lease) = self.store.replace(&lease).await {
                return Ok(Some(lease));
            }
        }
        metrics::LEADER_SLOWPATH.with_label_values(&[&self.name]).inc();
        self.slow(&mut None).await
    }

    /// Reads the lease, and takes or renews it if that may be done.
    async fn slow(&self, seen: &mut Option<Seen>) -> Result<Option<Lease>, kube::Error> {
        let written = |old| lease::held(old, &self.identity, written_at());
        let Some(mut lease) = self.store.get().await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(written(None)) };
            return self.store.create(&lease).await.map(Some);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let now = Instant::now();
        let known = Seen::update(seen.take(), &spec, now);
        let known = seen.insert(known);
        match lease::decide(&spec, known, &self.identity, now) {
            Decision::Wait => Ok(None),
            Decision::Take | Decision::Renew => {
                lease.spec = Some(written(Some(&spec)));
                self.store.replace(&lease).await.map(Some)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    /// One Lease for all candidates; a candidate can be cut off from it.
    #[derive(Default)]
    struct Shared(Mutex<Option<Lease>>);

    struct Fake {
        shared: Arc<Shared>,
        hangs: Arc<AtomicBool>,
        calls: Arc<AtomicUsize>,
    }

    impl Fake {
        async fn reach(&self) {
            self.calls.fetch_add(1, Ordering::SeqCst);
            if self.hangs.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
        }
    }

    fn conflict() -> kube::Error {
        kube::Error::Api(Box::new(kube::core::Status {
            code: 409,
            ..kube::core::Status::failure("conflict", "Conflict")
        }))
    }

    impl Store for Fake {
        async fn get(&self) -> Result<Option<Lease>, kube::Error> {
            self.reach().await;
            Ok(self.shared.0.lock().clone())
        }

        async fn create(&self, lease: &Lease) -> Result<Lease, kube::Error> {
            self.reach().await;
            let mut kept = self.shared.0.lock();
            if kept.is_some() {
                return Err(conflict());
            }
            let mut lease = lease.clone();
            lease.metadata.resource_version = Some("1".into());
            Ok(kept.insert(lease).clone())
        }

        async fn replace(&self, lease: &Lease) -> Result<Lease, kube::Error> {
            self.reach().await;
            let mut kept = self.shared.0.lock();
            let version = kept.as_ref().and_then(|l| l.metadata.resource_version.clone());
            if version != lease.metadata.resource_version {
                return Err(conflict());
            }
            let mut lease = lease.clone();
            let next = version.map_or(1, |v| v.parse::<u64>().unwrap() + 1);
            lease.metadata.resource_version = Some(next.to_string());
            Ok(kept.insert(lease).clone())
        }
    }

    fn candidate(shared: &Arc<Shared>, name: &str) -> (Candidate<Fake>, Arc<AtomicBool>) {
        let hangs = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(shared);
        let fake = Fake { shared, hangs: Arc::clone(&hangs), calls: Arc::default() };
        (Candidate::new(fake, "test", name.to_owned()), hangs)
    }

    fn holder(shared: &Shared) -> Option<String> {
        shared.0.lock().as_ref()?.spec.as_ref()?.holder_identity.clone()
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_is_cut_off_stops_within_ten_seconds_of_its_last_renewal() {
        let shared = Arc::default();
        let (a, hangs) = candidate(&shared, "a");
        let (b, _) = candidate(&shared, "b");
        a.acquire().await;
        let start = Instant::now();
        let standby = async {
            b.acquire().await;
            start.elapsed()
        };
        let leader = async {
            let cut = async {
                sleep(Duration::from_secs(31)).await;
                // Every request hangs from now on.
                hangs.store(true, Ordering::SeqCst);
                std::future::pending::<()>().await;
            };
            tokio::select! { () = a.keep() => {} () = cut => {} }
            start.elapsed()
        };
        let (stopped, took_over) = tokio::join!(leader, standby);
        // The last renewal was sent at 30 s.
        assert_eq!(stopped.as_secs(), 40);
        assert!(took_over >= Duration::from_secs(45), "{took_over:?}");
        assert!(took_over <= Duration::from_secs(49), "{took_over:?}");
        assert_eq!(holder(&shared).as_deref(), Some("b"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_is_one_request_and_the_other_way_is_counted() {
        let shared: Arc<Shared> = Arc::default();
        let (a, _) = candidate(&shared, "a");
        a.acquire().await;
        let slow = metrics::LEADER_SLOWPATH.with_label_values(&["test"]);
        let (calls, before) = (a.store.calls.load(Ordering::SeqCst), slow.get());
        assert!(timeout(Duration::from_secs(21), a.keep()).await.is_err());
        assert_eq!(a.store.calls.load(Ordering::SeqCst) - calls, 10);
        // Somebody touches the Lease: the next renewal has to read it first.
        if let Some(lease) = &mut *shared.0.lock() {
            lease.metadata.resource_version = Some("1000".into());
        }
        assert!(timeout(Duration::from_secs(3), a.keep()).await.is_err());
        assert!(slow.get() > before);
        assert_eq!(holder(&shared).as_deref(), Some("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_outage_does_not_cost_the_lease() {
        let shared = Arc::default();
        let (a, hangs) = candidate(&shared, "a");
        a.acquire().await;
        let outage = async {
            sleep(Duration::from_secs(5)).await;
            hangs.store(true, Ordering::SeqCst);
            sleep(Duration::from_millis(2500)).await;
            hangs.store(false, Ordering::SeqCst);
            sleep(Duration::from_secs(60)).await;
        };
        tokio::select! {
            () = a.keep() => panic!("the lease was given up"),
            () = outage => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_given_up_is_taken_at_once() {
        let shared = Arc::default();
        let (a, _) = candidate(&shared, "a");
        let (b, _) = candidate(&shared, "b");
        a.acquire().await;
        let start = Instant::now();
        tokio::join!(b.acquire(), async {
            sleep(Duration::from_secs(3)).await;
            a.release().await;
        });
        assert!(start.elapsed() <= Duration::from_secs(5));
        assert_eq!(holder(&shared).as_deref(), Some("b"));
    }

    #[test]
    fn a_process_whose_runtime_hangs_is_ended() {
        let now = Instant::now();
        let long_ago = now.checked_sub(LAST_RESORT).unwrap_or(now);
        let ended = AtomicBool::new(false);
        watch(&Mutex::new(Some(long_ago)), || ended.store(true, Ordering::SeqCst));
        assert!(ended.load(Ordering::SeqCst));
        // One that has given its lease up is not.
        watch(&Mutex::new(None), || panic!("ended"));
    }
}
