//! The eviction queue: each pod of a draining node has its own attempts and waits, so that one that
//! a PodDisruptionBudget protects holds up neither its neighbours nor anything else.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{DeleteParams, EvictParams, ListParams, Preconditions};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::super::provisioning::pod_reference;
use super::super::runner::{self, Identity};
use super::super::{Context, Outcome, patch};
use super::drain;
use crate::api::{conditions, v1::NodeClaim};
use crate::operator::events::{Report, reference};
use crate::operator::metrics;
use crate::operator::rate::Backoff;
use crate::operator::readable::Readable;
use crate::scheduling::pod::{PodInfo, PodKey};

const QUEUE: Identity = Identity { name: "eviction-queue", group: "", kind: "Pod", workers: 100 };
/// Waits between attempts for one pod.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
/// The watch shows within this time that an evicted pod is leaving.
const SHOWN: Duration = Duration::from_secs(1);
/// The reason of an eviction that no disruption has asked for.
const FORCEFUL: &str = "Forceful Termination";

/// A pod that is to leave its node.
#[derive(Clone, Debug)]
struct Entry {
    uid: Arc<str>,
    /// The node that the pod is to leave.
    node: Option<Arc<str>>,
    /// The pod must be gone by then.
    deadline: Option<Timestamp>,
    /// Attempts so far.
    attempts: u32,
    /// The API server has agreed; what is left is to see it happen.
    evicted: bool,
}

/// Pods that are to leave their nodes.
#[derive(Clone)]
pub(super) struct Evictions {
    entries: Arc<Mutex<HashMap<PodKey, Entry>>>,
    wake: mpsc::UnboundedSender<String>,
}

impl Evictions {
    /// Starts the queue.
    pub(super) fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) -> Self {
        let (wake, woken) = mpsc::unbounded_channel();
        let queue = Self { entries: Arc::default(), wake };
        let identity = QUEUE.scaled(&ctx.settings, 5000);
        let (ctx, own) = (Arc::clone(ctx), queue.clone());
        runner::fed(tasks, identity, BACKOFF, woken, move |name| {
            let (ctx, own) = (Arc::clone(&ctx), own.clone());
            async move { own.reconcile(&ctx, &name).await }
        });
        queue
    }

    /// Wants a pod gone, by the deadline if there is one. A deadline only ever gets earlier.
    pub(super) fn add(&self, pod: &PodInfo, deadline: Option<Timestamp>) {
        if add(&mut self.entries.lock(), pod, deadline) {
            // The receiver lives as long as the controllers do.
            let _ = self.wake.send(pod.key.to_string());
        }
    }

    /// Leaves the pods of a node alone that are only to be evicted.
    pub(super) fn withdraw(&self, node: &str) {
        let on = |e: &Entry| e.node.as_deref() == Some(node);
        self.entries.lock().retain(|_, e| e.deadline.is_some() || !on(e));
    }

    async fn reconcile(&self, ctx: &Context, name: &str) -> Outcome {
        let Some((namespace, name)) = name.split_once('/') else { return Ok(None) };
        let key = PodKey::new(namespace, name);
        let Some(entry) = self.entries.lock().get(&key).cloned() else { return Ok(None) };
        let pod = ctx.cluster.pod(&key).filter(|p| p.uid == entry.uid);
        let Some((pod, step)) = pod.map(|p| (Arc::clone(&p), step(&p, &entry, ctx.clock.now())))
        else {
            self.drop(&key, &entry);
            return Ok(None);
        };
        let answer = match step {
            Step::Leave => Answer::Gone,
            Step::Wait => Answer::Wait,
            Step::Evict => evict(ctx, &pod).await,
            Step::Delete(deadline) => delete(ctx, &pod, deadline).await,
        };
        let wait = match answer {
            Answer::Gone => {
                self.drop(&key, &entry);
                return Ok(None);
            }
            Answer::Leaving => {
                self.update(&key, &entry, |e| e.evicted = true);
                SHOWN
            }
            Answer::Wait => {
                self.update(&key, &entry, |e| e.attempts = e.attempts.saturating_add(1));
                BACKOFF.delay(entry.attempts + 1)
            }
        };
        Ok(Some(until_due(wait, &pod, &entry, ctx.clock.now())))
    }

    fn drop(&self, key: &PodKey, entry: &Entry) {
        let mut entries = self.entries.lock();
        if entries.get(key).is_some_and(|e| e.uid == entry.uid) {
            entries.remove(key);
        }
    }

    fn update(&self, key: &PodKey, entry: &Entry, change: impl FnOnce(&mut Entry)) {
        if let Some(found) = self.entries.lock().get_mut(key).filter(|e| e.uid == entry.uid) {
            change(found);
        }
    }
}

/// Adds a pod; true when its entry is new or its deadline got earlier.
fn add(entries: &mut HashMap<PodKey, Entry>, pod: &PodInfo, deadline: Option<Timestamp>) -> bool {
    match entries.get_mut(&pod.key).filter(|e| e.uid == pod.uid) {
        None => {
            let uid = Arc::clone(&pod.uid);
            let node = pod.node_name.clone();
            let entry = Entry { uid, node, deadline, attempts: 0, evicted: false };
            entries.insert(pod.key.clone(), entry);
            true
        }
        Some(known) => match deadline {
            Some(new) if known.deadline.is_none_or(|old| new < old) => {
                known.deadline = Some(new);
                true
            }
            _ => false,
        },
    }
}

/// What is done about a pod.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Nothing any more.
    Leave,
    /// Nothing yet.
    Wait,
    /// Ask the eviction API.
    Evict,
    /// Delete it, whatever protects it: it must be gone by then.
    Delete(Timestamp),
}

fn step(pod: &PodInfo, entry: &Entry, now: Timestamp) -> Step {
    match entry.deadline {
        _ if pod.terminal => Step::Leave,
        Some(deadline) if drain::is_due(pod, Some(deadline), now) => Step::Delete(deadline),
        _ if pod.terminating => Step::Leave,
        _ if entry.evicted || !drain::is_evictable(pod, now) => Step::Wait,
        _ => Step::Evict,
    }
}

/// A wait that ends, at the latest, when the pod has to be deleted.
fn until_due(wait: Duration, pod: &PodInfo, entry: &Entry, now: Timestamp) -> Duration {
    let Some(due) = drain::due_at(pod, entry.deadline) else { return wait };
    // A pod is due after that time, not at it.
    let left = Duration::try_from(due.duration_since(now)).unwrap_or_default();
    let left = left + Duration::from_millis(1);
    if due > now { wait.min(left) } else { wait }
}

/// What came of an attempt.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// There is nothing left to do about the pod.
    Gone,
    /// The pod is leaving.
    Leaving,
    /// Not now.
    Wait,
}

fn same(pod: &PodInfo) -> Option<Preconditions> {
    Some(Preconditions { uid: Some(pod.uid.to_string()), resource_version: None })
}

async fn evict(ctx: &Context, pod: &PodInfo) -> Answer {
    let (namespace, name) = (&*pod.key.namespace, &*pod.key.name);
    let delete = DeleteParams { preconditions: same(pod), ..DeleteParams::default() };
    let params = EvictParams { delete_options: Some(delete), ..EvictParams::default() };
    let count = |code: &str| metrics::EVICTION_REQUESTS.with_label_values(&[code]).inc();
    let status = match patch::namespaced::<Pod>(&ctx.client, namespace).evict(name, &params).await {
        Ok(_) => {
            count("200");
            let reason = reason(ctx, pod);
            ctx.recorder.publish(Report::Evicted { reason: &reason }.on(pod_reference(pod)));
            metrics::PODS_DRAINED.with_label_values(&[&reason]).inc();
            return Answer::Leaving;
        }
        Err(kube::Error::Api(status)) => status,
        Err(error) => {
            tracing::error!("error" = %error, "failed evicting pod");
            return Answer::Wait;
        }
    };
    count(&status.code.to_string());
    match status.code {
        404 | 409 => return Answer::Gone,
        429 => refused(ctx, pod, "evicting pod violates a PDB"),
        500 if status.message.contains("more than one PodDisruptionBudget") => {
            refused(ctx, pod, "eviction does not support multiple PDBs");
        }
        _ => tracing::error!("error" = %kube::Error::Api(status), "failed evicting pod"),
    }
    Answer::Wait
}

/// Reports on the node that a pod may not be evicted.
fn refused(ctx: &Context, pod: &PodInfo, why: &str) {
    let Some(node) = node_of(ctx, pod) else { return };
    let report = Report::EvictionRefused { why: &why, pod: &pod.key };
    ctx.recorder.publish(report.on(reference(&*node)));
}

async fn delete(ctx: &Context, pod: &PodInfo, deadline: Timestamp) -> Answer {
    let (namespace, name) = (&*pod.key.namespace, &*pod.key.name);
    let left = deadline.duration_since(ctx.clock.now()).as_secs().max(1);
    let params = DeleteParams {
        grace_period_seconds: u32::try_from(left).ok(),
        preconditions: same(pod),
        ..DeleteParams::default()
    };
    let grace = pod.grace.map_or_else(String::new, |g| format!(" of its {g} seconds"));
    let report = Report::Disrupted { deadline: &deadline, seconds: &left, grace: &grace };
    ctx.recorder.publish(report.on(pod_reference(pod)));
    let reason = reason(ctx, pod);
    match patch::namespaced::<Pod>(&ctx.client, namespace).delete(name, &params).await {
        Ok(_) => {
            tracing::debug!(
                "pod.terminationGracePeriodSeconds" = pod.grace,
                "delete.gracePeriodSeconds" = left,
                "nodeclaim.terminationTime" = %deadline,
                "deleting pod"
            );
            metrics::PODS_DRAINED.with_label_values(&[&reason]).inc();
            Answer::Gone
        }
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Answer::Gone,
        Err(error) => {
            tracing::error!("error" = %error, "failed deleting pod");
            Answer::Wait
        }
    }
}

fn node_of(ctx: &Context, pod: &PodInfo) -> Option<Arc<Node>> {
    ctx.cluster.node(pod.node_name.as_deref()?)
}

/// Why the pod leaves: what its node is disrupted for; empty when its node is not known.
fn reason(ctx: &Context, pod: &PodInfo) -> String {
    let node = node_of(ctx, pod);
    let id = node.as_ref().and_then(|n| n.spec.as_ref()?.provider_id.as_deref());
    let claim = id.and_then(|id| ctx.cluster.claim_by_provider_id(id));
    claim.map_or_else(String::new, |claim| disruption_reason(&claim))
}

fn disruption_reason(claim: &NodeClaim) -> String {
    let list = claim.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    conditions::get(list, conditions::DISRUPTION_REASON)
        .filter(|c| c.status == conditions::TRUE)
        .map_or_else(|| FORCEFUL.to_owned(), |c| c.reason.clone())
}

/// Pods of the node as the API server has them; the state may be behind it.
pub(super) async fn live_pods(ctx: &Context, node: &str) -> Result<Vec<Arc<PodInfo>>, kube::Error> {
    let params = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let found = Api::<Readable<Pod>>::all(ctx.client.clone()).list(&params).await?;
    let pods = found.items.into_iter().filter_map(|pod| match pod {
        Readable::Object(pod) => Some(Arc::new(PodInfo::from_pod(&pod))),
        // What cannot be read cannot be drained either; it is reported where the watch shows it.
        Readable::Unreadable(_) => None,
    });
    Ok(pods.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(uid: &str, extra: Value) -> PodInfo {
        let mut value = json!({"metadata": {"name": "p", "namespace": "n", "uid": uid},
            "spec": {"terminationGracePeriodSeconds": 30}});
        value["metadata"].as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        PodInfo::from_pod(&serde_json::from_value(value).unwrap())
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn entry(deadline: Option<i64>) -> Entry {
        let deadline = deadline.map(at);
        Entry { uid: "u".into(), node: None, deadline, attempts: 0, evicted: false }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_eviction_of_a_pod_without_a_node_waits_quietly() {
        let asked = crate::controllers::tests::Asked::default();
        let client = {
            let asked = Arc::clone(&asked);
            let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
                asked.lock().push(request.uri().path().to_owned());
                let refusal = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                    "reason": "TooManyRequests", "code": 429, "message": "a budget"});
                let body = kube::client::Body::from(refusal.to_string().into_bytes());
                let answer = http::Response::builder().status(429).body(body).unwrap();
                async move { Ok::<_, std::convert::Infallible>(answer) }
            });
            kube::Client::new(service, "default")
        };
        let ctx = crate::controllers::tests::context(&client);
        assert!(matches!(evict(&ctx, &pod("u", json!({}))).await, Answer::Wait));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(*asked.lock(), ["/api/v1/namespaces/n/pods/p/eviction"], "and no event");
    }

    #[test]
    fn a_deadline_is_never_loosened() {
        let mut entries = HashMap::new();
        let pod = pod("u", json!({}));
        assert!(add(&mut entries, &pod, None));
        assert!(!add(&mut entries, &pod, None));
        assert!(add(&mut entries, &pod, Some(at(100))));
        assert!(!add(&mut entries, &pod, Some(at(200))));
        assert!(!add(&mut entries, &pod, None));
        assert!(add(&mut entries, &pod, Some(at(50))));
        assert_eq!(entries[&pod.key].deadline, Some(at(50)));
    }

    #[test]
    fn a_new_pod_of_the_same_name_begins_anew() {
        let mut entries = HashMap::new();
        add(&mut entries, &pod("u", json!({})), Some(at(50)));
        let next = pod("v", json!({}));
        assert!(add(&mut entries, &next, None));
        assert_eq!((&*entries[&next.key].uid, entries[&next.key].deadline), ("v", None));
    }

    #[test]
    fn a_pod_is_evicted_until_its_time_is_up_and_then_deleted() {
        let pod = pod("u", json!({}));
        assert_eq!(step(&pod, &entry(None), at(0)), Step::Evict);
        assert_eq!(step(&pod, &entry(Some(100)), at(69)), Step::Evict);
        assert_eq!(step(&pod, &entry(Some(100)), at(71)), Step::Delete(at(100)));
        let agreed = Entry { evicted: true, ..entry(Some(100)) };
        assert_eq!(step(&pod, &agreed, at(0)), Step::Wait);
        assert_eq!(step(&pod, &agreed, at(71)), Step::Delete(at(100)));
    }

    #[test]
    fn a_protected_pod_waits_for_its_deadline() {
        let held = pod("u", json!({"annotations": {"karpenter.sh/do-not-disrupt": "true"}}));
        assert_eq!(step(&held, &entry(None), at(0)), Step::Wait);
        assert_eq!(step(&held, &entry(Some(100)), at(71)), Step::Delete(at(100)));
    }

    #[test]
    fn a_pod_that_leaves_in_time_is_left_alone() {
        let going = pod("u", json!({"deletionTimestamp": "1970-01-01T00:01:30Z"}));
        assert_eq!(step(&going, &entry(None), at(0)), Step::Leave);
        assert_eq!(step(&going, &entry(Some(100)), at(0)), Step::Leave);
        assert_eq!(step(&going, &entry(Some(60)), at(0)), Step::Delete(at(60)));
    }

    #[test]
    fn no_wait_outlasts_the_deadline() {
        let pod = pod("u", json!({}));
        let wait = Duration::from_secs(10);
        assert_eq!(until_due(wait, &pod, &entry(None), at(0)), wait);
        assert_eq!(until_due(wait, &pod, &entry(Some(100)), at(0)), wait);
        let left = until_due(wait, &pod, &entry(Some(100)), at(67));
        assert_eq!(left, Duration::from_millis(3001));
        assert!(drain::is_due(&pod, Some(at(100)), at(67) + left));
        assert_eq!(until_due(wait, &pod, &entry(Some(100)), at(80)), wait);
    }

    #[test]
    fn an_eviction_names_what_the_node_is_disrupted_for() {
        let claim = |conditions: Value| -> NodeClaim {
            serde_json::from_value(json!({"metadata": {}, "spec": {},
                "status": {"conditions": conditions}}))
            .unwrap()
        };
        let reason = |status: &str| {
            disruption_reason(&claim(json!([{"type": "DisruptionReason", "status": status,
                "reason": "Drifted", "message": "", "lastTransitionTime": "1970-01-01T00:00:00Z"}])))
        };
        assert_eq!(reason("True"), "Drifted");
        assert_eq!(reason("False"), "Forceful Termination");
        assert_eq!(disruption_reason(&claim(json!([]))), "Forceful Termination");
    }
}
