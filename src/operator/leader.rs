//! Leader election by a Lease: only one replica decides.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use tokio::time::{Instant, sleep, timeout};

use super::events::{Event, Recorder, reference};
use super::metrics;

/// A lease that was not renewed for this long is free.
const DURATION: Duration = Duration::from_secs(15);
/// A leader that cannot renew for this long gives up.
const DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);
/// Limit of one request: half the deadline.
const REQUEST: Duration = Duration::from_secs(5);

/// A candidate.
pub struct Election {
    api: Api<Lease>,
    recorder: Recorder,
    name: String,
    identity: String,
}

/// The lease as this process last saw it change.
struct Seen {
    holder: String,
    renewed: Option<MicroTime>,
    at: Instant,
}

impl Election {
    /// A candidate for a Lease.
    #[must_use]
    pub fn new(client: kube::Client, recorder: Recorder, namespace: &str, name: &str) -> Self {
        let host = std::env::var("HOSTNAME")
            .ok()
            .or_else(|| std::fs::read_to_string("/etc/hostname").ok())
            .unwrap_or_default();
        Self {
            api: Api::namespaced(client, namespace),
            recorder,
            name: name.to_owned(),
            identity: format!("{}_{}", host.trim(), uuid::Uuid::new_v4()),
        }
    }

    /// Waits until this process leads.
    pub async fn acquire(&self) {
        let gauge = metrics::LEADER.with_label_values(&[&self.name]);
        gauge.set(0.0);
        tracing::info!("attempting to acquire leader lease {}", self.name);
        let mut seen: Option<Seen> = None;
        while !self.try_acquire(&mut seen).await {
            sleep(RETRY).await;
        }
        gauge.set(1.0);
        tracing::info!("successfully acquired lease {}", self.name);
        self.tell("became leader").await;
    }

    /// Keeps the lease; returns once it is lost.
    pub async fn keep(&self) {
        let mut last = Instant::now();
        loop {
            sleep(RETRY).await;
            let mut seen = None;
            if self.try_acquire(&mut seen).await {
                last = Instant::now();
            } else if last.elapsed() > DEADLINE {
                metrics::LEADER.with_label_values(&[&self.name]).set(0.0);
                self.tell("stopped leading").await;
                return;
            }
        }
    }

    /// An event on the Lease.
    async fn tell(&self, what: &str) {
        if let Ok(Ok(Some(lease))) = timeout(REQUEST, self.api.get_opt(&self.name)).await {
            let message = format!("{} {what}", self.identity);
            let event = Event::new(reference(&lease), false, "LeaderElection", message);
            self.recorder.publish(event.by_message());
        }
    }

    /// Gives the lease up, so that another replica need not wait.
    pub async fn release(&self) {
        if let Ok(Ok(Some(mut lease))) = timeout(REQUEST, self.api.get_opt(&self.name)).await
            && let Some(spec) = &mut lease.spec
            && spec.holder_identity.as_deref() == Some(&self.identity)
        {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            let _ = timeout(REQUEST, self.api.replace(&self.name, &PostParams::default(), &lease))
                .await;
        }
    }

    async fn try_acquire(&self, seen: &mut Option<Seen>) -> bool {
        match timeout(REQUEST, self.step(seen)).await {
            Ok(Ok(leads)) => leads,
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => false,
            Ok(Err(error)) => {
                tracing::error!("error" = %error, "error retrieving resource lock {}", self.name);
                false
            }
            Err(_) => false,
        }
    }

    async fn step(&self, seen: &mut Option<Seen>) -> Result<bool, kube::Error> {
        let now = MicroTime(Timestamp::now());
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                spec: Some(self.claimed(None, now)),
            };
            self.api.create(&PostParams::default(), &lease).await?;
            return Ok(true);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let changed =
            seen.as_ref().is_none_or(|s| s.holder != holder || s.renewed != spec.renew_time);
        if changed {
            let renewed = spec.renew_time.clone();
            *seen = Some(Seen { holder: holder.clone(), renewed, at: Instant::now() });
        }
        // Clocks differ: what counts is how long this process has seen no renewal.
        let expired = seen.as_ref().is_none_or(|s| s.at.elapsed() > DURATION);
        if !holder.is_empty() && holder != self.identity && !expired {
            return Ok(false);
        }
        lease.spec = Some(self.claimed(Some(spec), now));
        self.api.replace(&self.name, &PostParams::default(), &lease).await?;
        Ok(true)
    }

    fn claimed(&self, old: Option<LeaseSpec>, now: MicroTime) -> LeaseSpec {
        let old = old.unwrap_or_default();
        let mine = old.holder_identity.as_deref() == Some(&self.identity);
        LeaseSpec {
            acquire_time: if mine { old.acquire_time } else { Some(now.clone()) },
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(old.lease_transitions.unwrap_or(0) + i32::from(!mine)),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }
    }
}
