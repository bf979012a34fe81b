//! Fault schedules: a seed draws a cluster, a workload, what goes wrong and when the controllers
//! are killed; what must always hold is checked all the time, and what must hold in the end at the
//! end.
//!
//! `make storm` runs them: `STORM_MINUTES` says for how long, on all cores, `STORM_SEED` plays one.

#![allow(clippy::disallowed_methods, reason = "a storm lasts for so long in real time")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use karpenter::model::api::{Call, Fault, FaultPlan};
use karpenter::model::cloud::{Behaviour, CloudFault, Life, Plan};
use karpenter::model::{Options, World, in_runtime};
use serde_json::{Value, json};

use crate::support::*;

/// Seeds that are played unless one is named.
const SEEDS: u64 = 4;

/// Requests to the API server that go wrong.
struct Weather {
    random: fastrand::Rng,
    /// Of a thousand.
    bad: u32,
}

impl FaultPlan for Weather {
    fn fault(&mut self, call: &Call) -> Option<Fault> {
        if call.user != "karpenter" || self.random.u32(0..1000) >= self.bad {
            return None;
        }
        Some(match self.random.u32(0..7) {
            0 => Fault::Delay(Duration::from_millis(self.random.u64(10..20_000))),
            1 if call.writes() => Fault::Lost,
            2 if call.writes() && call.verb != "create" => Fault::Refuse(409),
            3 => Fault::Refuse(429),
            4 => Fault::Refuse(500),
            5 => Fault::Refuse(503),
            _ => Fault::Unreachable,
        })
    }

    fn staleness(&mut self, _call: &Call) -> u64 {
        if self.bad > 0 { self.random.u64(0..20) } else { 0 }
    }

    fn lag(&mut self, call: &Call) -> Duration {
        if call.user == "karpenter" && self.bad > 0 && self.random.u32(0..20) == 0 {
            return Duration::from_millis(self.random.u64(0..5000));
        }
        Duration::ZERO
    }
}

struct CloudWeather {
    random: fastrand::Rng,
    bad: u32,
}

impl Plan for CloudWeather {
    fn fault(&mut self, _call: &'static str) -> Option<CloudFault> {
        if self.random.u32(0..1000) >= self.bad {
            return None;
        }
        Some(match self.random.u32(0..4) {
            0 => CloudFault::Throttle,
            1 => CloudFault::Fail,
            2 => CloudFault::Lost,
            _ => CloudFault::Delay(Duration::from_secs(self.random.u64(1..60))),
        })
    }
}

/// One schedule, as its seed draws it.
struct Schedule {
    seed: u64,
    steps: u32,
    api: u32,
    cloud: u32,
    kills: bool,
}

impl Schedule {
    fn draw(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed ^ 0x5eed);
        Self {
            seed,
            steps: random.u32(4..14),
            api: [0, 5, 20, 60][random.usize(0..4)],
            cloud: [0, 20, 100][random.usize(0..3)],
            kills: random.bool(),
        }
    }

    /// Plays it; the error says what did not hold.
    fn play(&self) -> Result<(), String> {
        in_runtime(self.seed, async || Storm::new(self).play(self).await)
    }
}

struct Storm {
    world: World,
    random: fastrand::Rng,
    replicas: BTreeMap<&'static str, u32>,
    orphans: BTreeMap<String, Duration>,
    time: Duration,
    limit: i64,
}

const APPS: [(&str, &str); 3] = [("small", "300m"), ("middle", "1200m"), ("large", "3")];

impl Storm {
    fn new(schedule: &Schedule) -> Self {
        let mut random = fastrand::Rng::with_seed(schedule.seed);
        let mut options = Options::new(schedule.seed, catalog());
        options.behaviour = Behaviour {
            consistency: Duration::from_secs(random.u64(0..60)),
            ..Behaviour::default()
        };
        let world = World::new(options);
        let limit = [16, 40, 1000][random.usize(0..3)];
        world.apply(pool("default", |spec| {
            spec["limits"] = json!({ "cpu": limit.to_string() });
            spec["disruption"]["consolidateAfter"] =
                json!((["0s", "30s", "5m"][random.usize(0..3)]));
            spec["disruption"]["budgets"] =
                json!([{ "nodes": (["1", "30%", "100%"][random.usize(0..3)]) }]);
            let spot = json!(["spot", "on-demand"]);
            if random.bool() {
                spec["template"]["spec"]["requirements"][0]["values"] = spot;
            }
            if random.bool() {
                spec["template"]["spec"]["expireAfter"] = json!("3h");
                spec["template"]["spec"]["terminationGracePeriod"] = json!("20m");
            }
        }));
        let mut replicas = BTreeMap::new();
        for (name, cpu) in APPS {
            let spread = random.bool();
            world.apply(deployment(name, 0, cpu, |template| {
                if spread {
                    template["spec"]["topologySpreadConstraints"] = json!([{ "maxSkew": 1,
                        "topologyKey": "topology.kubernetes.io/zone",
                        "whenUnsatisfiable": "DoNotSchedule",
                        "labelSelector": { "matchLabels": { "app": name } } }]);
                }
            }));
            if random.bool() {
                world.apply(budget(name, "maxUnavailable", json!(1)));
            }
            replicas.insert(name, 0);
        }
        Self { world, random, replicas, orphans: BTreeMap::new(), time: Duration::ZERO, limit }
    }

    async fn play(mut self, schedule: &Schedule) -> Result<(), String> {
        let weather = |bad| Weather { random: fastrand::Rng::with_seed(schedule.seed + 1), bad };
        self.world.server.set_faults(weather(schedule.api));
        self.world.cloud.set_faults(CloudWeather {
            random: fastrand::Rng::with_seed(schedule.seed + 2),
            bad: schedule.cloud,
        });
        self.world.start();
        for _ in 0..schedule.steps {
            self.act(schedule).await;
            let minutes = self.random.u32(1..25);
            self.watch(minutes).await?;
        }
        // The weather clears: what can run does, and then nothing moves any more.
        self.world.server.set_faults(weather(0));
        self.world.cloud.set_faults(CloudWeather { random: fastrand::Rng::new(), bad: 0 });
        for zone in ZONES {
            for kind in ["c2", "c4", "c8", "c16"] {
                for capacity in ["spot", "on-demand"] {
                    self.world.cloud.set_left(kind, zone, capacity, None);
                }
            }
        }
        self.watch(120).await?;
        self.settled()
    }

    async fn act(&mut self, schedule: &Schedule) {
        let (world, random) = (&mut self.world, &mut self.random);
        match random.u32(0..8) {
            0..=2 => {
                let (name, _) = APPS[random.usize(0..3)];
                let count = random.u32(0..9);
                self.replicas.insert(name, count);
                world.scale(name, count);
            }
            3 => {
                let all = world.instances();
                if !all.is_empty() {
                    world.cloud.vanish(&all[random.usize(0..all.len())].provider_id);
                }
            }
            4 => {
                let all = world.instances();
                let spot: Vec<_> = all.iter().filter(|i| i.capacity_type == "spot").collect();
                if !spot.is_empty() {
                    world.cloud.interrupt(&spot[random.usize(0..spot.len())].provider_id);
                }
            }
            5 => {
                let kind = ["c2", "c4", "c8", "c16"][random.usize(0..4)];
                let zone = ZONES[random.usize(0..3)];
                let capacity = ["spot", "on-demand"][random.usize(0..2)];
                world.cloud.set_left(kind, zone, capacity, Some(random.u32(0..2)));
                world.cloud.never_join(random.u32(0..2));
            }
            6 => {
                let claims = world.names("nodeclaims");
                if !claims.is_empty() {
                    let claim = &claims[random.usize(0..claims.len())];
                    world.cloud.drift(claim, "AMIDrift");
                }
            }
            _ => world.server.cut_watches("karpenter"),
        }
        if schedule.kills && random.u32(0..3) == 0 {
            // Some time into whatever follows, wherever the controllers are then.
            let into = random.u64(0..30_000);
            world.pass(Duration::from_millis(into)).await;
            world.kill().await;
            world.pass(Duration::from_secs(random.u64(0..60))).await;
            world.start();
        }
    }

    async fn watch(&mut self, minutes: u32) -> Result<(), String> {
        for _ in 0..minutes * 6 {
            let step = Duration::from_secs(10);
            self.world.pass(step).await;
            self.time += step;
            self.holds()?;
        }
        Ok(())
    }

    /// What must hold at any time.
    fn holds(&mut self) -> Result<(), String> {
        let instances = self.world.cloud.instances();
        let mut tokens = BTreeMap::new();
        for instance in &instances {
            if let Some(other) = tokens.insert(&instance.token, &instance.provider_id) {
                return Err(format!("{} and {other} are one launch", instance.provider_id));
            }
        }
        let claims = self.world.all("nodeclaims");
        let uids: Vec<&str> = claims.iter().filter_map(|c| c["metadata"]["uid"].as_str()).collect();
        for instance in instances.iter().filter(|i| !matches!(i.life, Life::Ending(_))) {
            if uids.contains(&instance.token.as_str()) {
                self.orphans.remove(&instance.provider_id);
                continue;
            }
            let since = *self.orphans.entry(instance.provider_id.clone()).or_insert(self.time);
            if self.time.saturating_sub(since) > Duration::from_secs(15 * 60) {
                return Err(format!("{} has had no claim for long", instance.provider_id));
            }
        }
        let cores: i64 = claims
            .iter()
            .filter(|c| c["metadata"]["deletionTimestamp"].is_null())
            .filter_map(|c| c["status"]["capacity"]["cpu"].as_str()?.parse::<i64>().ok())
            .sum();
        if cores > self.limit {
            return Err(format!("{cores} cores, the limit is {}", self.limit));
        }
        Ok(())
    }

    /// What must hold in the end.
    fn settled(&self) -> Result<(), String> {
        let world = &self.world;
        let free = self.limit >= 1000;
        for (name, count) in &self.replicas {
            let running = world.running(name);
            if free && running != *count as usize {
                return Err(format!("{running} of {count} pods of {name} run in the end"));
            }
        }
        let claims = world.all("nodeclaims");
        for claim in &claims {
            if claim["metadata"]["deletionTimestamp"].is_string() {
                return Err(format!("{} is still being deleted", claim["metadata"]["name"]));
            }
        }
        let nodes = world.all("nodes");
        let marked = |n: &Value| {
            n["spec"]["taints"]
                .as_array()
                .is_some_and(|t| t.iter().any(|t| t["key"] == "karpenter.sh/disrupted"))
        };
        if let Some(node) = nodes.iter().find(|n| marked(n)) {
            return Err(format!("{} is still marked", node["metadata"]["name"]));
        }
        let (instances, claims) = (world.cloud.instances().len(), claims.len());
        if instances != claims || nodes.len() != claims {
            return Err(format!("{instances} instances, {claims} claims, {} nodes", nodes.len()));
        }
        Ok(())
    }
}

/// The same schedule with less in it, as long as it still fails.
fn shortest(seed: u64) -> Schedule {
    let mut found = Schedule::draw(seed);
    let mut changed = true;
    while changed {
        changed = false;
        let (steps, api, cloud, kills) = (found.steps, found.api, found.cloud, found.kills);
        for (steps, api, cloud, kills) in [
            (steps / 2, api, cloud, kills),
            (steps - steps.min(1), api, cloud, kills),
            (steps, 0, cloud, kills),
            (steps, api, 0, kills),
            (steps, api, cloud, false),
        ] {
            let less = Schedule { seed, steps, api, cloud, kills };
            let same =
                (steps, api, cloud, kills) == (found.steps, found.api, found.cloud, found.kills);
            if !same && less.play().is_err() {
                found = less;
                changed = true;
                break;
            }
        }
    }
    found
}

fn report(seed: u64, why: &str) -> String {
    let short = shortest(seed);
    format!(
        "seed {seed}: {why}\nshortest: {} steps, {} of 1000 requests and {} of 1000 cloud calls bad, kills: {}",
        short.steps, short.api, short.cloud, short.kills
    )
}

/// Minutes in a debug build: `make storm` plays it in a release build.
#[test]
#[ignore = "takes minutes in a debug build"]
fn schedules_of_faults_break_nothing() {
    let first = std::env::var("STORM_SEED").ok().and_then(|s| s.parse::<u64>().ok());
    let seeds = first.map_or(0..SEEDS, |seed| seed..seed + 1);
    for seed in seeds {
        if let Err(why) = Schedule::draw(seed).play() {
            panic!("{}", report(seed, &why));
        }
    }
}

/// Runs only when it is asked for by name, with `STORM_MINUTES`.
#[test]
#[ignore = "runs for as long as STORM_MINUTES says"]
fn a_storm() {
    let minutes = std::env::var("STORM_MINUTES").ok().and_then(|m| m.parse().ok()).unwrap_or(1);
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let next = std::sync::atomic::AtomicU64::new(1000);
    let failed = parking_lot::Mutex::new(Vec::new());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while Instant::now() < end && failed.lock().is_empty() {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    if let Err(why) = Schedule::draw(seed).play() {
                        failed.lock().push((seed, why));
                    }
                }
            });
        }
    });
    let played = next.load(std::sync::atomic::Ordering::SeqCst) - 1000;
    println!("{played} schedules, {} per minute", played / minutes);
    if let Some((seed, why)) = failed.into_inner().first() {
        panic!("{}", report(*seed, why));
    }
}
