//! What must hold at any time, looked at every ten seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use karpenter::model::World;
use karpenter::model::cloud::{Instance, Life};
use parking_lot::Mutex;
use serde_json::Value;

use super::weather::Seen;
use crate::support::*;

/// An instance without a NodeClaim is removed within this time.
const ORPHANED: Duration = Duration::from_secs(15 * 60);
/// Marks that one of the two objects lacks are put in order within this time.
const HALF_MARKED: Duration = Duration::from_secs(10 * 60);
/// A node that registers has all that belongs to that within this time.
const REGISTERING: Duration = Duration::from_secs(3 * 60);
/// How much earlier than `consolidateAfter` a node may be chosen, as seconds are cut off and watches
/// lag behind.
const EARLY: Duration = Duration::from_secs(60);
/// A pod's coming or going is known to the controllers after this long at the latest: a delayed request
/// takes so long. What they choose before that may be chosen without it.
const UNSEEN: Duration = Duration::from_secs(20);
/// How late an expired claim may be deleted.
const LATE: Duration = Duration::from_secs(10 * 60);

/// The workloads' controllers have their pods made or deleted within this time.
const SCALING: Duration = Duration::from_secs(30);
/// Pods of a machine that is gone are removed within this time.
pub const LOST: Duration = Duration::from_secs(15 * 60);

/// Pods that a schedule ever asks for at once.
pub const MOST_PODS: usize = 4 * 8;
/// Each pod may have a node of its own, and each node a replacement on its way.
const MOST_CLAIMS: usize = 2 * MOST_PODS;

/// What a schedule asks of its pools; the checks hold the controllers to it.
#[derive(Clone, Debug)]
pub struct Terms {
    pub limit: i64,
    /// `1`, `30%`.
    pub budget: &'static str,
    pub consolidate_after: Duration,
    pub expire_after: Option<Duration>,
    /// The nodes have a grace period, after which pods are deleted without asking.
    pub grace: bool,
    /// Apps with a PodDisruptionBudget of one.
    pub bounded: BTreeSet<&'static str>,
    /// The app whose pods must not be disrupted.
    pub protected: Option<&'static str>,
}

/// What is known of a NodeClaim.
#[derive(Clone, Debug, Default)]
struct Known {
    uid: String,
    provider_id: Option<String>,
    price: f64,
    /// The instance ends by itself: it vanished, was interrupted, never joined, or is sick.
    excused: bool,
    deleting: bool,
    marked: bool,
}

/// Checks a world, step after step.
pub struct Checks {
    pub terms: Terms,
    pub seen: Arc<Mutex<Seen>>,
    /// Claims that may be deleted: by hand, as their pool or their drift asks for it.
    pub excused: BTreeSet<String>,
    time: Duration,
    claims: BTreeMap<String, Known>,
    /// Since when something is not as it should be for long.
    since: BTreeMap<String, Duration>,
    marked: usize,
    nodes: usize,
    /// Pods that each app should have.
    wanted: BTreeMap<&'static str, usize>,
    /// Pods that go because they were evicted, by app.
    evicted: BTreeMap<&'static str, BTreeSet<String>>,
    /// From then on pods go by evictions alone.
    calm_from: Duration,
    /// What was looked at last: the version of the objects, and the instances.
    looked: (u64, Vec<Arc<Instance>>),
}

type Held = Result<(), String>;

impl Checks {
    pub fn new(terms: Terms, seen: Arc<Mutex<Seen>>) -> Self {
        Self {
            terms,
            seen,
            excused: BTreeSet::new(),
            time: Duration::ZERO,
            claims: BTreeMap::new(),
            since: BTreeMap::new(),
            marked: 0,
            nodes: 0,
            wanted: BTreeMap::new(),
            evicted: BTreeMap::new(),
            calm_from: Duration::ZERO,
            looked: (0, Vec::new()),
        }
    }

    /// What must hold now, after another step.
    pub fn look(&mut self, world: &World, step: Duration) -> Held {
        self.time += step;
        if self.nothing_changed(world) {
            return self.one_acts();
        }
        let view = View::of(world);
        self.remember(&view);
        Self::no_flood(&view)?;
        self.nothing_doubled(&view)?;
        self.nothing_leaked(&view)?;
        self.within_limits(&view)?;
        self.within_budgets(&view)?;
        self.protected_pods_stay(&view)?;
        self.pod_budgets_hold(&view)?;
        self.replaced_well(&view)?;
        self.registered_well(&view)?;
        self.marked_well(&view)?;
        self.drained_before_the_end(&view)?;
        self.gone_for_a_reason(&view)?;
        self.launched_as_asked(&view)?;
        self.one_acts()
    }

    /// True when everything is as it was at the last look, and nothing is true for only so long.
    fn nothing_changed(&mut self, world: &World) -> bool {
        let (version, instances) = (world.store.followed_version(), world.cloud.instances());
        let same = self.looked.0 == version
            && self.looked.1.len() == instances.len()
            && self.looked.1.iter().zip(&instances).all(|(a, b)| Arc::ptr_eq(a, b));
        self.looked = (version, instances);
        same && self.since.is_empty() && self.terms.expire_after.is_none()
    }

    /// True once something has been so for longer than a while.
    fn lasts(&mut self, what: &str, is: bool, limit: Duration) -> bool {
        if !is {
            self.since.remove(what);
            return false;
        }
        let since = *self.since.entry(what.to_owned()).or_insert(self.time);
        self.time.saturating_sub(since) > limit
    }

    fn remember(&mut self, view: &View) {
        for claim in &view.claims {
            let name = text(&claim["metadata"]["name"]);
            let known = self.claims.entry(name.to_owned()).or_default();
            known.uid = text(&claim["metadata"]["uid"]).to_owned();
            let id = claim["status"]["providerID"].as_str();
            known.provider_id = id.filter(|id| !id.is_empty()).map(str::to_owned);
        }
        for instance in &view.instances {
            if let Some(known) = self.claims.get_mut(&instance.claim) {
                known.price = instance.price;
                known.excused |= instance.sick
                    || instance.joins.is_none()
                    || matches!(instance.life, Life::Interrupted(_));
            }
        }
    }

    /// No more NodeClaims than a few per pod.
    fn no_flood(view: &View) -> Held {
        let count = view.claims.iter().filter(|c| !deleting(c)).count();
        if count > MOST_CLAIMS {
            return Err(format!("{count} claims for at most {MOST_PODS} pods"));
        }
        Ok(())
    }

    fn nothing_doubled(&self, view: &View) -> Held {
        let mut launched = BTreeMap::new();
        for instance in view.instances.iter().filter(|i| !matches!(i.life, Life::Ending(_))) {
            if let Some(other) = launched.insert(&instance.claim, &instance.provider_id) {
                return Err(format!("{} and {other} are one launch", instance.provider_id));
            }
        }
        let mut owned = BTreeMap::new();
        for claim in &view.claims {
            let id = text(&claim["status"]["providerID"]);
            if !id.is_empty() && owned.insert(id, ()).is_some() {
                return Err(format!("two claims have the instance {id}"));
            }
        }
        Ok(())
    }

    fn nothing_leaked(&mut self, view: &View) -> Held {
        for instance in view.instances.iter().filter(|i| !matches!(i.life, Life::Ending(_))) {
            let claimed =
                view.claims.iter().any(|c| c["metadata"]["uid"] == instance.token.as_str());
            let what = format!("{} has no claim", instance.provider_id);
            if self.lasts(&what, !claimed, ORPHANED) {
                return Err(format!("{what} for long"));
            }
            // A claim that knows its instance goes no earlier than that.
            let known = self.claims.get(&instance.claim);
            let knew = known.is_some_and(|k| {
                k.provider_id.as_ref() == Some(&instance.provider_id) && k.uid == instance.token
            });
            if !claimed && knew {
                return Err(format!("{what}, which went before it"));
            }
        }
        Ok(())
    }

    fn within_limits(&self, view: &View) -> Held {
        let counts = |c: &&Arc<Value>| !deleting(c) && reason(c).is_none();
        let cores: i64 = view
            .claims
            .iter()
            .filter(counts)
            .filter_map(|c| c["status"]["capacity"]["cpu"].as_str()?.parse::<i64>().ok())
            .sum();
        if cores > self.terms.limit {
            return Err(format!("{cores} cores, the limit is {}", self.terms.limit));
        }
        Ok(())
    }

    fn within_budgets(&mut self, view: &View) -> Held {
        // A node whose instance is ending counts no more, neither as one nor as a disrupted one.
        let counts = |c: &&Arc<Value>| condition(c, "InstanceTerminating") != Some("True");
        let marked = view.claims.iter().filter(counts).filter(|c| reason(c).is_some()).count();
        let most = allowance(self.terms.budget, self.nodes.max(view.nodes.len()));
        let grown = marked > self.marked;
        (self.marked, self.nodes) = (marked, view.nodes.len());
        if grown && marked > most {
            return Err(format!(
                "{marked} nodes are disrupted, the budget is {}",
                self.terms.budget
            ));
        }
        Ok(())
    }

    fn protected_pods_stay(&self, view: &View) -> Held {
        let Some(app) = self.terms.protected.filter(|_| !self.terms.grace) else { return Ok(()) };
        for claim in view.claims.iter().filter(|c| deleting(c) && reason(c).is_some()) {
            let node = text(&claim["status"]["nodeName"]);
            let at = marked_at(claim);
            let stood = |p: &&Arc<Value>| {
                let started: Option<jiff::Timestamp> =
                    p["status"]["startTime"].as_str().and_then(|t| t.parse().ok());
                p["metadata"]["labels"]["app"] == app
                    && p["spec"]["nodeName"] == node
                    && p["status"]["phase"] == "Running"
                    && !deleting(p)
                    && started
                        .is_some_and(|s| at.is_some_and(|at| s + Duration::from_secs(30) < at))
            };
            if let Some(pod) = view.pods.iter().find(stood) {
                return Err(format!("{node} goes, and has {}", pod["metadata"]["name"]));
            }
        }
        Ok(())
    }

    fn pod_budgets_hold(&mut self, view: &View) -> Held {
        for app in &self.terms.bounded {
            let own = view.pods.iter().filter(|p| p["metadata"]["labels"]["app"] == *app);
            let name = |p: &&Arc<Value>| text(&p["metadata"]["name"]).to_owned();
            let going = |p: &&Arc<Value>| deleting(p) && is_evicted(p);
            let evicted: BTreeSet<String> = own.clone().filter(going).map(|p| name(&p)).collect();
            let known = self.evicted.insert(app, evicted.clone()).unwrap_or_default();
            let healthy = |p: &&Arc<Value>| {
                p["status"]["phase"] == "Running"
                    && !deleting(p)
                    && condition(p, "Ready") == Some("True")
            };
            let (left, wanted) = (own.filter(healthy).count(), self.wanted.get(app).copied());
            // Only an eviction asks the budget; what else takes pods away does not.
            let fresh = evicted.difference(&known).next().is_some() && self.time >= self.calm_from;
            if fresh && !self.terms.grace && left + 1 < wanted.unwrap_or(0) {
                return Err(format!("evictions leave {left} pods of {wanted:?} of {app}"));
            }
        }
        let seen = self.seen.lock();
        if let Some(pod) = seen.deleted.first().filter(|_| !self.terms.grace) {
            return Err(format!("the pod {pod} was deleted without asking"));
        }
        Ok(())
    }

    /// A replacement is up before a node goes for it, and costs less where that is the point.
    fn replaced_well(&self, view: &View) -> Held {
        for claim in &view.claims {
            let Some(replaces) = claim["metadata"]["annotations"]["karpenter.rs/replaces"].as_str()
            else {
                continue;
            };
            let old: Vec<&Arc<Value>> = replaces
                .split(',')
                .filter_map(|n| view.claims.iter().find(|c| c["metadata"]["name"] == n))
                .collect();
            let name = text(&claim["metadata"]["name"]);
            let going = old.iter().any(|c| deleting(c) && reason(c).is_some());
            let excused = self.claims.get(name).is_some_and(|k| k.excused)
                || replaces.split(',').any(|n| {
                    self.excused.contains(n) || self.claims.get(n).is_some_and(|k| k.excused)
                });
            if going
                && !excused
                && !deleting(claim)
                && condition(claim, "Initialized") != Some("True")
            {
                return Err(format!("{replaces} goes before {name} is up"));
            }
            let for_money = old.iter().any(|c| reason(c) == Some("Underutilized"));
            let price = |name: &str| self.claims.get(name).map_or(0.0, |k| k.price);
            let before: f64 = replaces.split(',').map(price).sum();
            if for_money && before > 0.0 && price(name) >= before {
                return Err(format!("{name} costs {}, {replaces} cost {before}", price(name)));
            }
        }
        Ok(())
    }

    fn registered_well(&mut self, view: &View) -> Held {
        for claim in view.claims.iter().filter(|c| !deleting(c)) {
            if condition(claim, "Registered") != Some("True") {
                continue;
            }
            let name = text(&claim["status"]["nodeName"]);
            let Some(node) = view.nodes.iter().find(|n| n["metadata"]["name"] == name) else {
                continue;
            };
            let whole = registered(node);
            if self.lasts(&format!("{name} is registered by half"), !whole, REGISTERING) {
                return Err(format!("{name} is registered, and lacks something of it"));
            }
        }
        Ok(())
    }

    fn marked_well(&mut self, view: &View) -> Held {
        for claim in &view.claims {
            let name = text(&claim["status"]["nodeName"]);
            let Some(node) = view.nodes.iter().find(|n| n["metadata"]["name"] == name) else {
                continue;
            };
            let (reason, taint) = (reason(claim), tainted(node, "karpenter.sh/disrupted"));
            if deleting(claim) && reason.is_some() && !taint {
                return Err(format!("{name} goes, and has no taint"));
            }
            let half = !deleting(claim) && reason.is_some() != taint;
            if self.lasts(&format!("{name} is marked by half"), half, HALF_MARKED) {
                return Err(format!("{name} is marked by half for long"));
            }
            let known = self.claims.entry(text(&claim["metadata"]["name"]).to_owned()).or_default();
            let first = reason.is_some() && !known.marked;
            known.marked = reason.is_some();
            if first && matches!(reason, Some("Empty" | "Underutilized")) {
                early(claim, self.terms.consolidate_after)?;
            }
        }
        Ok(())
    }

    /// No instance is ended with pods on it that could have been asked to go.
    fn drained_before_the_end(&self, view: &View) -> Held {
        for instance in view.instances.iter().filter(|i| matches!(i.life, Life::Ending(_))) {
            let excused = self.claims.get(&instance.claim).is_none_or(|k| k.excused);
            if excused || self.terms.grace {
                continue;
            }
            let left = view.pods.iter().find(|p| {
                p["spec"]["nodeName"] == instance.node_name.as_str()
                    && p["status"]["phase"] == "Running"
                    && !deleting(p)
            });
            if let Some(pod) = left {
                let name = &pod["metadata"]["name"];
                return Err(format!("{} ends with {name} on it", instance.provider_id));
            }
        }
        Ok(())
    }

    /// A claim is deleted because of something that happened to it.
    fn gone_for_a_reason(&mut self, view: &View) -> Held {
        for claim in &view.claims {
            let name = text(&claim["metadata"]["name"]);
            let age = world_age(view, claim);
            if let Some(limit) = self.terms.expire_after
                && !deleting(claim)
                && age > limit + LATE
            {
                return Err(format!("{name} is {age:?} old, and expires after {limit:?}"));
            }
            let Some(known) = self.claims.get_mut(name) else { continue };
            let first = deleting(claim) && !known.deleting;
            known.deleting |= first;
            let registered = condition(claim, "Registered") == Some("True");
            let runs = view
                .instances
                .iter()
                .any(|i| i.claim == name && i.token == known.uid && i.life.end().is_none());
            let expires = self.terms.expire_after.is_some_and(|limit| age + EARLY >= limit);
            let replaces = claim["metadata"]["annotations"]["karpenter.rs/replaces"].is_string();
            let explained = known.excused
                || self.excused.contains(name)
                || reason(claim).is_some()
                || expires
                || replaces;
            if first && registered && runs && !explained {
                return Err(format!("{name} is deleted, and nothing is wrong with it"));
            }
        }
        Ok(())
    }

    fn launched_as_asked(&self, view: &View) -> Held {
        for instance in &view.instances {
            let own = |c: &&Arc<Value>| c["metadata"]["uid"] == instance.token.as_str();
            let Some(claim) = view.claims.iter().find(own) else { continue };
            for requirement in claim["spec"]["requirements"].as_array().into_iter().flatten() {
                let have = match text(&requirement["key"]) {
                    "node.kubernetes.io/instance-type" => &*instance.instance_type,
                    "topology.kubernetes.io/zone" => instance.zone.as_str(),
                    "karpenter.sh/capacity-type" => instance.capacity_type.as_str(),
                    _ => continue,
                };
                let values = requirement["values"].as_array();
                let within = values.is_some_and(|v| v.iter().any(|v| v == have));
                if requirement["operator"] == "In" && !within {
                    return Err(format!("{} is {have}, which was not asked for", instance.claim));
                }
            }
        }
        Ok(())
    }

    /// Of several replicas one writes. Another may follow it, but not the first one again.
    fn one_acts(&mut self) -> Held {
        let writers = std::mem::take(&mut self.seen.lock().writers);
        if writers.len() > 2 {
            return Err(format!("{writers:?} act at the same time"));
        }
        Ok(())
    }

    /// An app is to have so many pods from now on.
    pub fn scaled(&mut self, app: &'static str, count: u32) {
        self.wanted.insert(app, count as usize);
        self.disturbed(SCALING);
    }

    /// For so long, pods may go by no doing of the controllers.
    pub fn disturbed(&mut self, time: Duration) {
        self.calm_from = self.calm_from.max(self.time + time);
    }

    /// What happened to instances by no doing of the controllers.
    pub fn excuse_instance(&mut self, provider_id: &str) {
        for known in self.claims.values_mut() {
            known.excused |= known.provider_id.as_deref() == Some(provider_id);
        }
    }
}

/// The world at one moment.
struct View {
    claims: Vec<Arc<Value>>,
    nodes: Vec<Arc<Value>>,
    pods: Vec<Arc<Value>>,
    instances: Vec<Arc<Instance>>,
    now: jiff::Timestamp,
}

impl View {
    fn of(world: &World) -> Self {
        Self {
            claims: world.all("nodeclaims"),
            nodes: world.all("nodes"),
            pods: world.all("pods"),
            instances: world.cloud.instances(),
            now: world.clock.now(),
        }
    }
}

/// A node has all that registration gives and takes.
pub fn registered(node: &Value) -> bool {
    let finalizers = node["metadata"]["finalizers"].as_array();
    let held = finalizers.is_some_and(|f| f.iter().any(|f| f == "karpenter.sh/termination"));
    let label = node["metadata"]["labels"]["karpenter.sh/registered"] == "true";
    held && label && !tainted(node, "karpenter.sh/unregistered")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn deleting(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

fn world_age(view: &View, claim: &Value) -> Duration {
    let created: Option<jiff::Timestamp> =
        claim["metadata"]["creationTimestamp"].as_str().and_then(|t| t.parse().ok());
    let age = created.map(|at| view.now.duration_since(at));
    age.and_then(|age| age.try_into().ok()).unwrap_or_default()
}

fn disruption(claim: &Value) -> Option<&Value> {
    let list = claim["status"]["conditions"].as_array()?;
    list.iter().find(|c| c["type"] == "DisruptionReason" && c["status"] == "True")
}

/// Why a node is being disrupted, if it is.
fn reason(claim: &Value) -> Option<&str> {
    disruption(claim)?["reason"].as_str()
}

fn marked_at(claim: &Value) -> Option<jiff::Timestamp> {
    disruption(claim)?["lastTransitionTime"].as_str()?.parse().ok()
}

/// An eviction was granted.
fn is_evicted(pod: &Value) -> bool {
    let list = pod["status"]["conditions"].as_array();
    list.is_some_and(|l| l.iter().any(|c| c["reason"] == "EvictionByEvictionAPI"))
}

fn tainted(node: &Value, key: &str) -> bool {
    node["spec"]["taints"].as_array().is_some_and(|t| t.iter().any(|t| t["key"] == key))
}

/// How many of so many nodes a budget lets go.
fn allowance(budget: &str, nodes: usize) -> usize {
    match budget.strip_suffix('%') {
        Some(share) => (share.parse::<usize>().unwrap_or(0) * nodes).div_ceil(100),
        None => budget.parse().unwrap_or(0),
    }
}

/// A node is chosen by consolidation no earlier than `consolidateAfter` says.
fn early(claim: &Value, after: Duration) -> Held {
    let event = claim["status"]["lastPodEventTime"].as_str().and_then(|t| t.parse().ok());
    let event: Option<jiff::Timestamp> = event;
    let (Some(event), Some(at)) = (event, marked_at(claim)) else { return Ok(()) };
    let waited: Duration = at.duration_since(event).try_into().unwrap_or_default();
    // An event after the mark says nothing about the decision, and one right before it little.
    if event + UNSEEN <= at && waited + EARLY < after {
        let name = &claim["metadata"]["name"];
        return Err(format!("{name} was chosen {waited:?} after its last pod, not {after:?}"));
    }
    Ok(())
}
