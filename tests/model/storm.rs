//! Fault schedules: a seed draws a cluster, a workload, what goes wrong and when the controllers
//! are killed; what must always hold is checked all the time, and what must hold in the end at the
//! end.
//!
//! The tests play the first `STORM_SEEDS`, `make storm` as many as there is time for
//! (`STORM_MINUTES`), on all cores, and `STORM_SEED` names one of them. They begin at `STORM_FROM`, and end
//! with the first that fails, or after `STORM_FAILURES` of them. `STORM_LOG` names a file for what was asked
//! in one that fails.
//! `make storm-check` plants defects and shows that the checks find each of them.

#![allow(clippy::disallowed_methods, reason = "a storm lasts for so long in real time")]

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use karpenter::model::api::Lens;
use karpenter::model::cloud::{Behaviour, Defect};
use karpenter::model::{Options, World, in_runtime};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::support::*;

mod check;
mod invariants;
mod weather;

use invariants::{Checks, Terms};
use weather::{CloudWeather, Seen, Weather};

/// Seeds that are played where nothing else is asked for: few, as a build without optimisation is slow.
const SEEDS: u64 = 4;
/// Time after which nothing is left to do, whatever happened.
const LONG: Duration = Duration::from_secs(2 * 3600);
const STEP: Duration = Duration::from_secs(10);
/// A cluster in which all is well and nothing changed for so long is at rest: what consolidation
/// would still do, it would have begun.
const QUIET: Duration = Duration::from_secs(2 * 60);
/// How old nodes get where they expire.
const EXPIRY: Duration = Duration::from_secs(20 * 60);
/// How long draining may take where it is bounded, and how much later a node is gone at the latest.
const GRACE: Duration = Duration::from_secs(20 * 60);
const EXCESS: Duration = Duration::from_secs(10 * 60);
const TYPES: [&str; 4] = ["c2", "c4", "c8", "c16"];
const REPLICAS: [&str; 2] = ["karpenter-one", "karpenter-two"];

/// One schedule, as its seed draws it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Schedule {
    seed: u64,
    steps: u32,
    /// Requests and cloud calls that go wrong, of a thousand.
    api: u32,
    cloud: u32,
    kills: bool,
    /// Two replicas, of which the one that leads is cut off or killed.
    replicas: bool,
    /// Nodes turn sick: repair takes the better part of an hour.
    sick: bool,
    /// The longest time between two steps, in seconds.
    pause: u64,
    /// The longest time until the cluster rests; longer where nodes are sick.
    rest: Duration,
}

impl Schedule {
    /// Most schedules are dense: one thing happens before the controllers are done with the last.
    /// Some leave them time to come far with what they do.
    fn draw(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed ^ 0x5eed);
        Self {
            seed,
            steps: random.u32(4..10),
            api: [0, 5, 20, 60][random.usize(0..4)],
            cloud: [0, 20, 100][random.usize(0..3)],
            kills: random.bool(),
            replicas: random.u32(0..4) == 0,
            sick: random.u32(0..16) == 0,
            pause: [20, 60, 60, 120, 400][random.usize(0..5)],
            rest: LONG,
        }
    }

    /// Plays it; the error says what did not hold.
    fn play(&self) -> Result<(), String> {
        self.play_with(None)
    }

    /// The same, where a panic is a failure like others.
    fn play_or_panic(&self) -> Result<(), String> {
        let played = catch_unwind(AssertUnwindSafe(|| self.play()));
        played.unwrap_or_else(|_| Err("it panics".to_owned()))
    }

    fn play_with(&self, plant: Option<&check::Plant>) -> Result<(), String> {
        in_runtime(self.seed, async || {
            let mut storm = Storm::new(self);
            if let Some(plant) = plant {
                plant.set(&storm.world);
            }
            let played = storm.play(self).await;
            if let (Err(why), Ok(file)) = (&played, std::env::var("STORM_LOG")) {
                storm.log(why, &file);
            }
            played
        })
    }
}

struct Storm {
    world: World,
    random: fastrand::Rng,
    replicas: BTreeMap<&'static str, u32>,
    checks: Checks,
    seen: Arc<Mutex<Seen>>,
}

const APPS: [(&str, &str); 4] =
    [("small", "300m"), ("middle", "1200m"), ("large", "3"), ("kept", "700m")];

impl Storm {
    fn new(schedule: &Schedule) -> Self {
        let mut random = fastrand::Rng::with_seed(schedule.seed);
        let mut options = Options::new(schedule.seed, catalog());
        options.behaviour = Behaviour {
            consistency: Duration::from_secs(random.u64(0..60)),
            ..Behaviour::default()
        };
        options.flags.push("--feature-gates=NodeRepair=true".to_owned());
        let world = World::new(options);
        let mut terms = Terms {
            limit: [16, 40, 1000][random.usize(0..3)],
            budget: ["1", "30%", "100%"][random.usize(0..3)],
            consolidate_after: Duration::from_secs([0, 30, 300][random.usize(0..3)]),
            expire_after: (random.u32(0..4) == 0).then_some(EXPIRY),
            grace: random.bool(),
            bounded: BTreeSet::new(),
            protected: random.bool().then_some("kept"),
        };
        let mixed = random.bool();
        world.apply(pool("default", |spec| {
            spec["limits"] = json!({ "cpu": terms.limit.to_string() });
            let after = format!("{}s", terms.consolidate_after.as_secs());
            spec["disruption"]["consolidateAfter"] = json!(after);
            spec["disruption"]["budgets"] = json!([{ "nodes": terms.budget }]);
            if mixed {
                spec["template"]["spec"]["requirements"][0]["values"] =
                    json!(["spot", "on-demand"]);
            }
            if terms.expire_after.is_some() {
                spec["template"]["spec"]["expireAfter"] = json!(format!("{}s", EXPIRY.as_secs()));
            }
            if terms.grace {
                spec["template"]["spec"]["terminationGracePeriod"] =
                    json!(format!("{}s", GRACE.as_secs()));
            }
        }));
        let mut replicas = BTreeMap::new();
        for (name, cpu) in APPS {
            let (spread, slow) = (random.bool(), random.u32(0..40));
            world.apply(deployment(name, 0, cpu, |template| {
                if spread {
                    template["spec"]["topologySpreadConstraints"] = json!([{ "maxSkew": 1,
                        "topologyKey": "topology.kubernetes.io/zone",
                        "whenUnsatisfiable": "DoNotSchedule",
                        "labelSelector": { "matchLabels": { "app": name } } }]);
                }
                if terms.protected == Some(name) {
                    protected(template);
                }
                template["metadata"]["annotations"]["model.karpenter.sh/ends-in"] =
                    json!(slow.to_string());
                template["spec"]["terminationGracePeriodSeconds"] = json!(60);
            }));
            if random.bool() {
                world.apply(budget(name, "maxUnavailable", json!(1)));
                terms.bounded.insert(name);
            }
            replicas.insert(name, 0);
        }
        let seen = Arc::new(Mutex::new(Seen::default()));
        let checks = Checks::new(terms, Arc::clone(&seen));
        Self { world, random, replicas, checks, seen }
    }

    /// Writes what was asked of the API server and the cloud to a file, and what there is in the end.
    fn log(&self, why: &str, file: &str) {
        let mut lines = self.world.journal.tail(usize::MAX);
        lines.push(format!("{} {why}; {:?}", self.world.clock.now(), self.checks.terms));
        for kind in ["nodepools", "nodeclaims", "nodes", "pods", "poddisruptionbudgets"] {
            lines.extend(self.world.all(kind).iter().map(|object| format!("{kind} {object}")));
        }
        let instances = self.world.cloud.instances();
        lines.extend(instances.iter().map(|instance| format!("{instance:?}")));
        std::fs::write(file, lines.join("\n")).unwrap();
    }

    fn weather(&self, schedule: &Schedule, api: u32, cloud: u32) {
        let (seed, seen) = (schedule.seed, Arc::clone(&self.seen));
        let random = fastrand::Rng::with_seed(seed + 1);
        self.world.server.set_faults(Weather { random, bad: api, seen: Arc::clone(&seen) });
        let random = fastrand::Rng::with_seed(seed + 2);
        self.world.cloud.set_faults(CloudWeather { random, bad: cloud, seen });
    }

    async fn play(&mut self, schedule: &Schedule) -> Result<(), String> {
        self.weather(schedule, schedule.api, schedule.cloud);
        if schedule.replicas {
            REPLICAS.iter().for_each(|name| self.world.start_replica(name));
        } else {
            self.world.start();
        }
        for _ in 0..schedule.steps {
            self.act(schedule);
            if schedule.kills && self.random.u32(0..3) == 0 {
                self.kill_somewhere(schedule).await?;
            }
            let pause = self.random.u64(1..=schedule.pause);
            self.watch(Duration::from_secs(pause)).await?;
        }
        // The weather clears: what can run does, and then nothing moves any more.
        self.weather(schedule, 0, 0);
        sell_out(&self.world, &TYPES, None);
        self.world.cloud.never_join(0);
        self.rest(schedule.rest).await
    }

    /// Waits until all is as it should be and stays so.
    async fn rest(&mut self, longest: Duration) -> Result<(), String> {
        let (mut past, mut quiet) = (Duration::ZERO, Duration::ZERO);
        let mut shape = self.shape();
        // Where nodes expire, some of them always go.
        let expires = self.checks.terms.expire_after.is_some();
        while past < longest {
            self.watch(STEP).await?;
            past += STEP;
            let now = self.shape();
            let same = now == shape || expires;
            quiet =
                if same && self.settled(expires).is_ok() { quiet + STEP } else { Duration::ZERO };
            shape = now;
            if quiet >= QUIET {
                return Ok(());
            }
        }
        self.settled(true)?;
        if self.settled(false).is_err() {
            return Ok(());
        }
        Err("the cluster does not come to rest".to_owned())
    }

    /// Which objects there are that somebody pays for or waits for.
    fn shape(&self) -> Vec<String> {
        let all = ["nodeclaims", "nodes", "pods"].into_iter().flat_map(|k| self.world.names(k));
        all.collect()
    }

    /// Lets something happen.
    fn act(&mut self, schedule: &Schedule) {
        let (world, random) = (&self.world, &mut self.random);
        let instances = world.instances();
        let one = (!instances.is_empty()).then(|| &instances[random.usize(0..instances.len())]);
        match random.u32(0..9 + u32::from(schedule.sick)) {
            0..=2 => {
                let (name, _) = APPS[random.usize(0..APPS.len())];
                let count = random.u32(0..9);
                self.replicas.insert(name, count);
                self.checks.scaled(name, count);
                world.scale(name, count);
            }
            3 => {
                if let Some(instance) = one {
                    self.checks.excuse_instance(&instance.provider_id);
                    self.checks.disturbed(invariants::LOST);
                    world.cloud.vanish(&instance.provider_id);
                }
            }
            4 => {
                if let Some(spot) = one.filter(|i| i.capacity_type == "spot") {
                    self.checks.disturbed(invariants::LOST);
                    world.cloud.interrupt(&spot.provider_id);
                }
            }
            5 => {
                let kind = TYPES[random.usize(0..4)];
                let zone = ZONES[random.usize(0..3)];
                let capacity = ["spot", "on-demand"][random.usize(0..2)];
                world.cloud.set_left(kind, zone, capacity, Some(random.u32(0..2)));
                world.cloud.never_join(random.u32(0..2));
            }
            6 => {
                let claims = world.names("nodeclaims");
                if !claims.is_empty() {
                    world.cloud.drift(&claims[random.usize(0..claims.len())], "AMIDrift");
                }
            }
            9 => {
                if let Some(instance) = one {
                    self.checks.disturbed(invariants::LOST);
                    world.cloud.sicken(&instance.provider_id);
                }
            }
            _ => {
                for user in ["karpenter", REPLICAS[0], REPLICAS[1]] {
                    world.server.cut_watches(user);
                }
            }
        }
    }

    /// Kills the controllers between two effects of whatever follows, and starts others.
    async fn kill_somewhere(&mut self, schedule: &Schedule) -> Result<(), String> {
        self.seen.lock().fuse = Some(self.random.u32(0..40));
        for _ in 0..60 {
            if self.seen.lock().hangs {
                break;
            }
            self.watch(Duration::from_secs(1)).await?;
        }
        {
            let mut seen = self.seen.lock();
            (seen.fuse, seen.hangs) = (None, false);
        }
        if schedule.replicas {
            let gone = REPLICAS[self.random.usize(0..2)];
            self.world.kill_replica(gone).await;
            self.world.pass(Duration::from_secs(self.random.u64(0..60))).await;
            self.world.start_replica(gone);
            return Ok(());
        }
        self.world.kill().await;
        self.world.pass(Duration::from_secs(self.random.u64(0..60))).await;
        self.world.start();
        Ok(())
    }

    async fn watch(&mut self, time: Duration) -> Result<(), String> {
        let mut left = time;
        while !left.is_zero() {
            let step = left.min(STEP);
            self.world.pass(step).await;
            self.checks.look(&self.world, step)?;
            left -= step;
        }
        Ok(())
    }

    /// True for a NodeClaim that is deleted and whose pods stay for a reason: they must not be disrupted until
    /// the grace period is over, or a PodDisruptionBudget keeps them, as the limit keeps their app from having
    /// all its pods.
    fn may_wait(&self, claim: &Value) -> bool {
        let terms = &self.checks.terms;
        let deleted: Option<jiff::Timestamp> =
            claim["metadata"]["deletionTimestamp"].as_str().and_then(|t| t.parse().ok());
        if terms.grace && deleted.is_none_or(|at| self.world.clock.now() > at + GRACE + EXCESS) {
            return false;
        }
        let node = &claim["status"]["nodeName"];
        let pods = self.world.all("pods");
        let mut here = pods.iter().filter(|p| p["spec"]["nodeName"] == *node);
        here.any(|pod| {
            let app = pod["metadata"]["labels"]["app"].as_str().unwrap_or_default();
            let wanted = self.replicas.get(app).map_or(0, |count| *count as usize);
            let budget = self.world.get("poddisruptionbudgets", app);
            let kept = budget.is_some_and(|b| b["status"]["disruptionsAllowed"] == 0);
            let limited = terms.limit < 1000 && self.world.running(app) < wanted;
            terms.grace && terms.protected == Some(app) || kept && limited
        })
    }

    /// What must hold in the end; one that is patient accepts that nodes wait for pods that have to stay.
    fn settled(&self, patient: bool) -> Result<(), String> {
        let world = &self.world;
        let free = self.checks.terms.limit >= 1000;
        for (name, count) in &self.replicas {
            let running = world.running(name);
            if free && running != *count as usize {
                return Err(format!("{running} of {count} pods of {name} run in the end"));
            }
        }
        let blocked = self.checks.terms.protected.is_some() && !self.checks.terms.grace;
        let claims = world.all("nodeclaims");
        for claim in claims.iter().filter(|_| !blocked) {
            if claim["metadata"]["deletionTimestamp"].is_string()
                && !(patient && self.may_wait(claim))
            {
                return Err(format!("{} is still being deleted", claim["metadata"]["name"]));
            }
        }
        let nodes = world.all("nodes");
        let marked = |n: &Value| {
            n["spec"]["taints"]
                .as_array()
                .is_some_and(|t| t.iter().any(|t| t["key"] == "karpenter.sh/disrupted"))
        };
        let going = |n: &Value| n["metadata"]["deletionTimestamp"].is_string();
        if let Some(node) = nodes.iter().find(|n| marked(n) && !going(n)) {
            return Err(format!("{} is still marked", node["metadata"]["name"]));
        }
        let whole = |n: &Value| going(n) || invariants::registered(n);
        if let Some(node) = nodes.iter().find(|n| !whole(n)) {
            return Err(format!("{} is registered by half", node["metadata"]["name"]));
        }
        let (instances, claims) = (world.cloud.instances().len(), claims.len());
        if instances != claims || nodes.len() != claims {
            return Err(format!("{instances} instances, {claims} claims, {} nodes", nodes.len()));
        }
        Ok(())
    }
}

/// The same schedule with less in it, as long as it still fails.
fn shortest(from: &Schedule) -> Schedule {
    let mut found = from.clone();
    loop {
        let less = [
            Schedule { steps: found.steps / 2, ..found.clone() },
            Schedule { steps: found.steps.saturating_sub(1), ..found.clone() },
            Schedule { api: 0, ..found.clone() },
            Schedule { cloud: 0, ..found.clone() },
            Schedule { kills: false, ..found.clone() },
            Schedule { replicas: false, ..found.clone() },
            Schedule { sick: false, ..found.clone() },
            Schedule { pause: found.pause / 2 + 1, ..found.clone() },
        ];
        let fails = |less: &&Schedule| **less != found && less.play_or_panic().is_err();
        match less.iter().find(fails) {
            Some(less) => found = less.clone(),
            None => return found,
        }
    }
}

fn report(schedule: &Schedule, why: &str) -> String {
    format!("{schedule:?}: {why}\nshortest: {:?}", shortest(schedule))
}

/// Plays schedules on all cores for as long as there are some and not too many failed; those that
/// failed, and how many were played.
fn on_all_cores(
    next: impl Fn(u64) -> Option<Schedule> + Sync,
    most: usize,
) -> (Vec<(Schedule, String)>, u64) {
    let (next_seed, count) = (AtomicU64::new(0), AtomicU64::new(0));
    let failed = Mutex::new(Vec::new());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while failed.lock().len() < most
                    && let Some(schedule) = next(next_seed.fetch_add(1, Ordering::SeqCst))
                {
                    if let Err(why) = schedule.play_or_panic() {
                        println!("{schedule:?}: {why}");
                        failed.lock().push((schedule, why));
                    }
                    count.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    (failed.into_inner(), count.into_inner())
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().filter(|v| !v.is_empty())?.parse().ok()
}

/// Plays schedules; fails with the seed of one that breaks something, and the least of it.
fn play_all(next: impl Fn(u64) -> Option<Schedule> + Sync) {
    let begun = Instant::now();
    let most = number("STORM_FAILURES").and_then(|n| usize::try_from(n).ok()).unwrap_or(1);
    let (failed, played) = on_all_cores(next, most);
    let seconds = begun.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss, reason = "counts of schedules are small")]
    let rate = played as f64 * 60.0 / seconds;
    println!("{played} schedules in {seconds:.0} s, {rate:.0} per minute");
    if let Some((schedule, why)) = failed.first() {
        // To find the shortest takes a while.
        panic!("{} failed; {}", failed.len(), report(schedule, why));
    }
}

/// `STORM_SEEDS` schedules from `STORM_FROM` on, or the one that `STORM_SEED` names.
#[test]
fn schedules_of_faults_break_nothing() {
    match number("STORM_SEED") {
        Some(seed) => play_all(|n| (n == 0).then(|| Schedule::draw(seed))),
        None => {
            let seeds = number("STORM_SEEDS").unwrap_or(SEEDS);
            let from = number("STORM_FROM").unwrap_or(0);
            play_all(|n| (n < seeds).then(|| Schedule::draw(from + n)));
        }
    }
}

/// Runs only when it is asked for by name, with `STORM_MINUTES`; `STORM_FROM` is the first seed.
#[test]
#[ignore = "runs for as long as STORM_MINUTES says"]
fn a_storm() {
    let minutes = number("STORM_MINUTES").unwrap_or(1);
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let from = number("STORM_FROM").unwrap_or(1_000_000);
    play_all(|n| (Instant::now() < end).then(|| Schedule::draw(from + n)));
}
