//! A cloud: instance types whose capacity runs out, and instances that join late, never, or turn
//! sick. It knows nothing of the provider trait; calls go wrong as a [`Plan`] says.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Taint;
use karpenter_api::taints;
use karpenter_api::v1::NodeClaim;
use karpenter_core::scheduling::instance_type::{InstanceType, Offering, sort_by_price};
use karpenter_core::scheduling::requirements::{Allow, Requirements};
use karpenter_core::scheduling::resources::ResourceList;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::api::{Journal, Now};

mod fault;
mod offered;

use fault::NoFaults;
pub use fault::{Behaviour, CloudError, CloudFault, Defect, Plan};
pub use offered::node_labels;
use offered::{key_of, with_wrong_price, without};

/// How long an offering that had no capacity counts as unavailable; as the EC2 provider has it.
const UNAVAILABLE: Duration = Duration::from_secs(180);
/// Time after which a defect shows that needs a cluster to be there first.
const PLANTED: Duration = Duration::from_secs(600);
/// Time between the notice of a spot interruption and the end of the instance: EC2 gives two
/// minutes.
const NOTICE: Duration = Duration::from_secs(120);

/// How far an instance's life has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Running,
    /// It was asked to end, and does so at that time.
    Ending(Timestamp),
    /// Its end is announced for that time; until then it runs.
    Interrupted(Timestamp),
}

impl Life {
    /// When it ends, as far as that is known.
    #[must_use]
    pub fn end(self) -> Option<Timestamp> {
        match self {
            Self::Running => None,
            Self::Ending(at) | Self::Interrupted(at) => Some(at),
        }
    }
}

/// One instance.
#[derive(Clone, Debug)]
pub struct Instance {
    pub provider_id: String,
    /// The NodeClaim that it was launched for.
    pub claim: String,
    /// The NodeClaim's UID; launches with the same one are the same launch.
    pub token: String,
    pub node_name: String,
    pub instance_type: Arc<str>,
    pub zone: String,
    pub capacity_type: String,
    /// Price per hour.
    pub price: f64,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub capacity: ResourceList,
    pub allocatable: ResourceList,
    pub launched: Timestamp,
    /// When its kubelet joins the cluster; `None` when it never does.
    pub joins: Option<Timestamp>,
    pub life: Life,
    /// The kubelet's condition `Ready` is False, and stays so.
    pub sick: bool,
    /// How often it was rebooted.
    pub boots: u32,
    /// The name of the last reboot.
    pub rebooted_by: String,
}

/// What was paid for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bill {
    pub money: f64,
    pub node_hours: f64,
    pub launches: u64,
    pub interruptions: u64,
}

struct Inner {
    types: Vec<Arc<InstanceType>>,
    /// The types as they are offered now, and until when that is so.
    offered: Option<(Arc<[Arc<InstanceType>]>, Timestamp)>,
    instances: BTreeMap<String, Arc<Instance>>,
    /// Instances left per (type, zone, capacity type); no entry for as many as one wants.
    left: BTreeMap<(String, String, String), u32>,
    unavailable: BTreeMap<(String, String, String), Timestamp>,
    drifted: BTreeMap<String, String>,
    forced: VecDeque<CloudError>,
    never_join: u32,
    random: fastrand::Rng,
    bill: Bill,
    billed: Timestamp,
    count: u64,
    known_claims: BTreeSet<String>,
    notices: VecDeque<String>,
    defect: Option<Defect>,
    planted: Timestamp,
}

/// A cloud in process.
pub struct Cloud {
    inner: Mutex<Inner>,
    plan: Mutex<Box<dyn Plan>>,
    behaviour: Behaviour,
    now: Now,
    journal: Journal,
    changed: Notify,
}

impl Cloud {
    /// A cloud that has these types.
    #[must_use]
    pub fn new(
        types: Vec<Arc<InstanceType>>,
        seed: u64,
        now: Now,
        journal: Journal,
        behaviour: Behaviour,
    ) -> Self {
        let billed = now();
        let inner = Inner {
            types,
            offered: None,
            instances: BTreeMap::new(),
            left: BTreeMap::new(),
            unavailable: BTreeMap::new(),
            drifted: BTreeMap::new(),
            forced: VecDeque::new(),
            never_join: 0,
            random: fastrand::Rng::with_seed(seed),
            bill: Bill::default(),
            billed,
            count: 0,
            known_claims: BTreeSet::new(),
            notices: VecDeque::new(),
            defect: None,
            planted: billed,
        };
        Self {
            inner: Mutex::new(inner),
            plan: Mutex::new(Box::new(NoFaults)),
            behaviour,
            now,
            journal,
            changed: Notify::new(),
        }
    }

    /// Lets calls go wrong from now on.
    pub fn set_faults(&self, plan: impl Plan + 'static) {
        *self.plan.lock() = Box::new(plan);
    }

    /// Plants a defect.
    pub fn plant(&self, defect: Defect) {
        let mut inner = self.inner.lock();
        (inner.defect, inner.planted) = (Some(defect), (self.now)());
        inner.offered = None;
    }

    fn has(&self, defect: Defect) -> bool {
        self.inner.lock().defect == Some(defect)
    }

    /// The next launch fails so; several times, so do the next ones, in order.
    pub fn fail_next(&self, error: CloudError) {
        self.inner.lock().forced.push_back(error);
    }

    /// The next instances never join.
    pub fn never_join(&self, count: u32) {
        self.inner.lock().never_join = count;
    }

    /// So many instances of a type are left in a zone; nothing for as many as one wants.
    pub fn set_left(&self, kind: &str, zone: &str, capacity_type: &str, left: Option<u32>) {
        let key = (kind.to_owned(), zone.to_owned(), capacity_type.to_owned());
        let mut inner = self.inner.lock();
        match left {
            Some(left) => inner.left.insert(key, left),
            None => inner.left.remove(&key),
        };
    }

    /// Changes the price of every offering that the function knows a price for.
    pub fn set_prices(&self, price: impl Fn(&str, &Offering) -> Option<f64>) {
        let mut inner = self.inner.lock();
        let changed = |kind: &Arc<InstanceType>| {
            let mut kind = (**kind).clone();
            for offering in &mut kind.offerings {
                if let Some(price) = price(&kind.name, offering) {
                    offering.price = price;
                }
            }
            Arc::new(kind)
        };
        inner.types = inner.types.iter().map(changed).collect();
        inner.offered = None;
    }

    /// The instance of a NodeClaim counts as drifted.
    pub fn drift(&self, claim: &str, reason: &str) {
        self.inner.lock().drifted.insert(claim.to_owned(), reason.to_owned());
    }

    /// Why the instance of a NodeClaim counts as drifted.
    #[must_use]
    pub fn drift_of(&self, claim: &str) -> Option<String> {
        self.inner.lock().drifted.get(claim).cloned()
    }

    /// Takes an instance away.
    pub fn vanish(&self, provider_id: &str) {
        self.settle();
        self.inner.lock().instances.remove(provider_id);
        self.journal.write(format!("{} cloud: {provider_id} vanishes", (self.now)()));
        self.changed.notify_waiters();
    }

    /// The kubelet of an instance is no longer ready.
    pub fn sicken(&self, provider_id: &str) {
        if let Some(instance) = self.inner.lock().instances.get_mut(provider_id) {
            Arc::make_mut(instance).sick = true;
        }
        self.changed.notify_waiters();
    }

    /// Announces the end of a spot instance, which follows two minutes later.
    pub fn interrupt(&self, provider_id: &str) {
        self.settle();
        let end = (self.now)() + NOTICE;
        let mut inner = self.inner.lock();
        let Some(instance) = inner.instances.get_mut(provider_id) else { return };
        if instance.life == Life::Running {
            Arc::make_mut(instance).life = Life::Interrupted(end);
            inner.bill.interruptions += 1;
            inner.notices.push_back(provider_id.to_owned());
        }
        drop(inner);
        self.journal.write(format!("{} cloud: {provider_id} is interrupted", (self.now)()));
        self.changed.notify_waiters();
    }

    /// The announced interruptions that nobody has handled yet.
    #[must_use]
    pub fn notices(&self) -> Vec<String> {
        let inner = self.inner.lock();
        if inner.defect == Some(Defect::NoNotices) {
            return Vec::new();
        }
        inner.notices.iter().cloned().collect()
    }

    /// Takes an announcement off.
    pub fn handled(&self, provider_id: &str) {
        self.inner.lock().notices.retain(|id| id != provider_id);
    }

    /// Every instance, those that are ending included.
    #[must_use]
    pub fn instances(&self) -> Vec<Arc<Instance>> {
        self.settle();
        self.inner.lock().instances.values().cloned().collect()
    }

    /// The instance whose kubelet is that Node.
    #[must_use]
    pub fn of_node(&self, name: &str) -> Option<Arc<Instance>> {
        self.settle();
        self.inner.lock().instances.values().find(|i| i.node_name == name).cloned()
    }

    /// Names of all NodeClaims that something was ever launched for.
    #[must_use]
    pub fn ever_launched_for(&self) -> BTreeSet<String> {
        self.inner.lock().known_claims.clone()
    }

    /// Wakes when instances come or change.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// When the next instance ends or joins.
    #[must_use]
    pub fn next_event(&self) -> Option<Timestamp> {
        let now = (self.now)();
        let inner = self.inner.lock();
        let times =
            inner.instances.values().flat_map(|i| [i.life.end(), i.joins.filter(|at| *at > now)]);
        times.flatten().min()
    }

    /// What was paid until now.
    #[must_use]
    pub fn bill(&self) -> Bill {
        self.settle();
        self.inner.lock().bill
    }

    /// What all instances cost per hour.
    #[must_use]
    pub fn hourly(&self) -> f64 {
        self.settle();
        self.inner.lock().instances.values().map(|i| i.price).sum()
    }

    /// Ends what has to end by now, and counts what it cost.
    // Called before anything that reads or changes instances, so that the bill is exact without a
    // timer.
    fn settle(&self) {
        let now = (self.now)();
        let mut inner = self.inner.lock();
        let since = inner.billed;
        let hours = |from: Timestamp, to: Timestamp| {
            to.duration_since(from.max(since)).as_secs_f64().max(0.0) / 3600.0
        };
        let (mut money, mut node_hours) = (0.0, 0.0);
        for instance in inner.instances.values() {
            let end = instance.life.end().map_or(now, |at| at.min(now));
            let time = hours(instance.launched, end);
            money += time * instance.price;
            node_hours += time;
        }
        inner.bill.money += money;
        inner.bill.node_hours += node_hours;
        inner.billed = now;
        inner.instances.retain(|_, i| i.life.end().is_none_or(|at| at > now));
    }

    /// The types as they are offered now.
    #[must_use]
    pub fn instance_types(&self) -> Arc<[Arc<InstanceType>]> {
        let now = (self.now)();
        let mut inner = self.inner.lock();
        if let Some((types, until)) = &inner.offered
            && *until > now
        {
            return Arc::clone(types);
        }
        inner.unavailable.retain(|_, until| *until > now);
        let gone = &inner.unavailable;
        let mut types: Arc<[Arc<InstanceType>]> =
            inner.types.iter().map(|kind| without(kind, gone)).collect();
        if inner.defect == Some(Defect::WrongPrice) && now >= inner.planted + PLANTED {
            types = with_wrong_price(&types);
        }
        let until = gone.values().min().copied().unwrap_or(Timestamp::MAX);
        // What is shown may change while a defect is young.
        let until = if inner.defect.is_some() { now } else { until };
        inner.offered = Some((Arc::clone(&types), until));
        types
    }

    /// Launches an instance for a NodeClaim, or finds the one that was.
    ///
    /// # Errors
    /// When nothing that the NodeClaim asks for is left, or the call goes wrong.
    pub async fn launch(&self, claim: &NodeClaim) -> Result<Arc<Instance>, CloudError> {
        let name = claim.metadata.name.clone().unwrap_or_default();
        self.call("create", &name, || self.launch_now(claim)).await
    }

    /// Ends an instance; true when it was running.
    ///
    /// # Errors
    /// When there is none, or the call goes wrong.
    pub async fn terminate(&self, provider_id: &str) -> Result<bool, CloudError> {
        self.call("delete", provider_id, || {
            self.settle();
            if self.has(Defect::EndIgnored) {
                return Ok(true);
            }
            if self.has(Defect::NotFound) {
                return Err(not_found(provider_id));
            }
            let end = (self.now)() + self.behaviour.shutdown;
            let mut inner = self.inner.lock();
            let found = inner.instances.get_mut(provider_id);
            let instance = found.ok_or_else(|| not_found(provider_id))?;
            let running = !matches!(instance.life, Life::Ending(_));
            // A second request must not lengthen the instance's life.
            let end = instance.life.end().map_or(end, |at| at.min(end));
            Arc::make_mut(instance).life = Life::Ending(end);
            drop(inner);
            self.changed.notify_waiters();
            Ok(running)
        })
        .await
    }

    /// Reboots an instance, which heals it; once for each `request`.
    ///
    /// # Errors
    /// When there is none, or the call goes wrong.
    pub async fn reboot(&self, provider_id: &str, request: &str) -> Result<(), CloudError> {
        self.call("reboot", provider_id, || {
            self.settle();
            let mut inner = self.inner.lock();
            let found = inner.instances.get_mut(provider_id);
            let instance = Arc::make_mut(found.ok_or_else(|| not_found(provider_id))?);
            if instance.rebooted_by != request {
                request.clone_into(&mut instance.rebooted_by);
                instance.boots += 1;
                instance.sick = false;
            }
            drop(inner);
            self.changed.notify_waiters();
            Ok(())
        })
        .await
    }

    /// An instance.
    ///
    /// # Errors
    /// When there is none, or the call goes wrong.
    pub async fn describe(&self, provider_id: &str) -> Result<Arc<Instance>, CloudError> {
        self.call("get", provider_id, || {
            self.settle();
            let hidden = self.has(Defect::NotFound);
            let found = self.inner.lock().instances.get(provider_id).filter(|_| !hidden).cloned();
            found.ok_or_else(|| not_found(provider_id))
        })
        .await
    }

    /// Every instance that lists show already.
    ///
    /// # Errors
    /// When the call goes wrong.
    pub async fn list(&self) -> Result<Vec<Arc<Instance>>, CloudError> {
        self.call("list", "", || {
            // EC2's lists are eventually consistent.
            let limit = (self.now)() - self.behaviour.consistency;
            Ok(self.instances().into_iter().filter(|i| i.launched <= limit).collect())
        })
        .await
    }

    async fn call<T>(
        &self,
        call: &'static str,
        about: &str,
        carry_out: impl FnOnce() -> Result<T, CloudError>,
    ) -> Result<T, CloudError> {
        // Before the fault is chosen: what happens is decided when the call arrives.
        sleep(self.behaviour.latency).await;
        let fault = self.plan.lock().fault(call);
        let note = |outcome: &str| {
            if matches!(call, "create" | "delete" | "reboot") {
                self.journal.write(format!("{} cloud {call} {about} -> {outcome}", (self.now)()));
            }
        };
        match fault {
            None => {}
            Some(CloudFault::Delay(by)) => sleep(by).await,
            Some(CloudFault::Throttle) => {
                note("throttled");
                return Err(CloudError::Throttled);
            }
            Some(CloudFault::Fail) => {
                note("fails");
                return Err(CloudError::Failed("planned fault".to_owned()));
            }
            Some(CloudFault::HangBefore) => {
                note("hangs");
                return std::future::pending().await;
            }
            Some(CloudFault::Lost | CloudFault::HangAfter) => {
                let outcome = carry_out();
                note(if outcome.is_ok() { "done, lost" } else { "failed, lost" });
                if fault == Some(CloudFault::HangAfter) {
                    return std::future::pending().await;
                }
                return Err(CloudError::Failed("planned fault: the answer was lost".to_owned()));
            }
        }
        let outcome = carry_out();
        match &outcome {
            Ok(_) => note("done"),
            Err(error) => note(&format!("{error:?}")),
        }
        outcome
    }

    fn launch_now(&self, claim: &NodeClaim) -> Result<Arc<Instance>, CloudError> {
        self.settle();
        let now = (self.now)();
        let token = claim.metadata.uid.clone().unwrap_or_default();
        let types = self.instance_types();
        let mut inner = self.inner.lock();
        let defect = inner.defect;
        // As EC2 answers a repeated client token: with the first instance.
        if let Some(known) = inner.instances.values().find(|i| i.token == token)
            && defect != Some(Defect::UnstableToken)
        {
            return Ok(known.clone());
        }
        if let Some(error) = inner.forced.pop_front() {
            return Err(error);
        }
        let wanted = Requirements::from_api(&claim.spec.requirements);
        let requests = ResourceList::from_quantities_lossy(
            claim.spec.resources.as_ref().and_then(|r| r.requests.as_ref()),
        );
        let mut fitting: Vec<Arc<InstanceType>> = types
            .iter()
            .filter(|t| {
                defect == Some(Defect::AnyType)
                    || wanted.compatible(&t.requirements, Allow::WellKnown).is_ok()
            })
            .filter(|t| requests.fits(&t.allocatable()))
            .cloned()
            .collect();
        sort_by_price(&mut fitting, &wanted);
        if defect == Some(Defect::AnyType) {
            fitting.reverse();
        }
        for kind in fitting {
            let every = kind.offerings.iter().filter(|o| o.available).collect();
            let mut offerings: Vec<&Offering> = match defect {
                Some(Defect::AnyType) => every,
                _ => kind.compatible_offerings(&wanted).collect(),
            };
            // The zone decides between equal prices, so that one seed gives one outcome.
            offerings.sort_by(|a, b| a.price.total_cmp(&b.price).then(a.zone().cmp(b.zone())));
            for offering in offerings {
                if inner.take(&kind, offering, now) {
                    let launched = inner.start(claim, &kind, offering, now, &self.behaviour);
                    if defect == Some(Defect::DoubleLaunch) {
                        inner.start(claim, &kind, offering, now, &self.behaviour);
                    }
                    if defect == Some(Defect::PhantomLaunch) {
                        inner.instances.remove(&launched.provider_id);
                    }
                    drop(inner);
                    self.changed.notify_waiters();
                    return Ok(launched);
                }
            }
        }
        Err(CloudError::InsufficientCapacity("no offering that fits has capacity".to_owned()))
    }
}

fn not_found(provider_id: &str) -> CloudError {
    CloudError::NotFound(format!("no instance {provider_id:?}"))
}

impl Inner {
    fn price_of(&self, kind: &InstanceType, offering: &Offering) -> f64 {
        let same = |o: &&Offering| key_of(kind, o) == key_of(kind, offering);
        let own = self.types.iter().find(|t| t.name == kind.name);
        own.and_then(|t| t.offerings.iter().find(same)).map_or(offering.price, |o| o.price)
    }

    /// Takes one of what is left; false, and remembered for a while, when nothing is.
    fn take(&mut self, kind: &InstanceType, offering: &Offering, now: Timestamp) -> bool {
        let key = key_of(kind, offering);
        match self.left.get_mut(&key) {
            None => true,
            Some(0) => {
                self.unavailable.insert(key, now + UNAVAILABLE);
                self.offered = None;
                false
            }
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }

    fn start(
        &mut self,
        claim: &NodeClaim,
        kind: &Arc<InstanceType>,
        offering: &Offering,
        now: Timestamp,
        behaviour: &Behaviour,
    ) -> Arc<Instance> {
        self.count += 1;
        let id = format!("i-{:017x}", self.count);
        let provider_id = format!("aws:///{}/{id}", offering.zone());
        let node_name = format!("ip-10-0-{}-{}.internal", self.count / 250, self.count % 250 + 1);
        let mut all: BTreeMap<String, String> = BTreeMap::new();
        for requirement in kind.requirements.iter().chain(offering.requirements.iter()) {
            if let Some(value) = requirement.single() {
                all.insert(requirement.key().to_string(), value.to_owned());
            }
        }
        let (least, most) = behaviour.boot;
        let spread = u64::try_from((most.saturating_sub(least)).as_millis()).unwrap_or(0);
        let boot = least + Duration::from_millis(self.random.u64(0..=spread));
        let joins = if self.never_join > 0 {
            self.never_join -= 1;
            None
        } else {
            Some(now + boot)
        };
        let mut node_taints = claim.spec.taints.clone().unwrap_or_default();
        node_taints.extend(claim.spec.startup_taints.clone().unwrap_or_default());
        node_taints.push(taints::unregistered());
        let name = claim.metadata.name.clone().unwrap_or_default();
        self.known_claims.insert(name.clone());
        let instance = Arc::new(Instance {
            provider_id: provider_id.clone(),
            claim: name,
            token: claim.metadata.uid.clone().unwrap_or_default(),
            node_name,
            instance_type: Arc::clone(&kind.name),
            zone: offering.zone().to_owned(),
            capacity_type: offering.capacity_type().to_owned(),
            // By the true price, whatever was shown.
            price: self.price_of(kind, offering),
            labels: all,
            taints: node_taints,
            capacity: kind.capacity.clone(),
            allocatable: kind.allocatable_of(offering),
            launched: now,
            joins,
            life: Life::Running,
            sick: false,
            boots: 0,
            rebooted_by: String::new(),
        });
        self.bill.launches += 1;
        self.instances.insert(provider_id, Arc::clone(&instance));
        instance
    }
}
