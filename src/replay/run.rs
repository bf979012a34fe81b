//! Playing a workload against one set of NodePools.

use std::collections::BTreeSet;
use std::time::Duration;

use karpenter_model::api::{Deletion, kind};
use karpenter_model::cloud::Life;
use serde_json::json;

use super::workload::{Workload, Workloads};
use super::{Outcome, Sample, Variant};
use crate::api::labels;
use crate::model::{Options, World, in_runtime};

/// Time between updates of replicas, Jobs and interruptions: a minute is as fine as workload files
/// are.
const TICK: Duration = Duration::from_secs(60);
/// Samples of a whole replay: one every half hour of a week.
const SAMPLES: u32 = 336;

/// Plays a workload; the same input gives the same outcome.
#[must_use]
pub fn play(workloads: &Workloads, variant: &Variant) -> Outcome {
    in_runtime(workloads.seed, async || Player::new(workloads, variant).run().await)
}

struct Player<'a> {
    workloads: &'a Workloads,
    variant: &'a Variant,
    world: World,
    random: fastrand::Rng,
    /// Time of the start since a Monday's midnight.
    since_monday: Duration,
    jobs: Vec<usize>,
    outcome: Outcome,
}

impl<'a> Player<'a> {
    fn new(workloads: &'a Workloads, variant: &'a Variant) -> Self {
        let mut options = Options::new(workloads.seed, variant.types.clone());
        // Nobody reads the metrics.
        options.flags = vec!["--disable-cluster-state-observability=true".to_owned()];
        options.flags.extend(variant.flags.iter().cloned());
        // Watches that show several changes together cost less; nobody sees the difference.
        options.pace.settle = Duration::from_millis(250);
        if let Some(start) = workloads.start {
            options.start = start;
        }
        // The first of January 1970 was a Thursday.
        let since = (options.start.as_second() + 3 * 86_400).rem_euclid(7 * 86_400);
        let since_monday = Duration::from_secs(since.unsigned_abs());
        Self {
            workloads,
            variant,
            world: World::new(options),
            random: fastrand::Rng::with_seed(workloads.seed),
            since_monday,
            jobs: vec![0; workloads.workloads.len()],
            outcome: Outcome { name: variant.name.clone(), ..Outcome::default() },
        }
    }

    async fn run(mut self) -> Outcome {
        for pool in &self.variant.pools {
            self.world.apply(pool.clone());
        }
        let mut namespaces: BTreeSet<&str> =
            self.workloads.workloads.iter().map(|w| w.namespace.as_str()).collect();
        // These two are there from the start.
        for known in ["default", "kube-system"] {
            namespaces.remove(known);
        }
        for name in namespaces {
            self.world.apply(json!({ "kind": "Namespace", "metadata": { "name": name } }));
        }
        for daemon in &self.workloads.daemon_sets {
            self.world.apply(daemon.object());
        }
        for workload in &self.workloads.workloads {
            for object in workload.objects(self.since_monday) {
                self.world.apply(object);
            }
        }
        self.world.start();
        let end = self.workloads.duration.0;
        // No more samples than ticks: nothing changes in between.
        let every = (end / SAMPLES).max(TICK);
        let (mut time, mut sampled) = (Duration::ZERO, Duration::ZERO);
        while time < end {
            for at in 0..self.workloads.workloads.len() {
                self.follow(at, time);
            }
            self.interrupt();
            if time >= sampled {
                self.sample(time);
                sampled += every;
            }
            self.world.pass(TICK).await;
            time += TICK;
        }
        self.sample(time);
        self.finish()
    }

    fn follow(&mut self, at: usize, time: Duration) {
        let workload: &Workload = &self.workloads.workloads[at];
        if let Some(curve) = &workload.replicas {
            let wanted = curve.at(time, self.since_monday);
            let (namespace, name) = (&workload.namespace, &workload.name);
            let known = self.world.store.get(kind("deployments"), namespace, name);
            if known.is_some_and(|d| d["spec"]["replicas"] != wanted) {
                self.world.change("deployments", namespace, name, "", |deployment| {
                    deployment["spec"]["replicas"] = json!(wanted);
                });
            }
        }
        let Some(runs) = &workload.runs else { return };
        let due = match runs.every {
            Some(every) => runs.at.0 + every.0 * u32::try_from(self.jobs[at]).unwrap_or(u32::MAX),
            None if self.jobs[at] == 0 => runs.at.0,
            None => return,
        };
        if time >= due {
            self.jobs[at] += 1;
            let number = self.jobs[at];
            // One run at a time is kept, so that days of Jobs do not fill the model's API server.
            if number > 1 {
                let (store, past) = (&self.world.store, workload.job_name(number - 1));
                let how = Deletion::default();
                let _ = store.delete(kind("jobs"), &workload.namespace, &past, &how);
            }
            self.world.apply(workload.job(runs, number));
        }
    }

    /// Spot instances are taken away by chance.
    fn interrupt(&mut self) {
        // The chance within one tick, for a rate that is small per tick.
        let rate = self.workloads.spot_interruptions_per_day * TICK.as_secs_f64() / 86_400.0;
        if rate <= 0.0 {
            return;
        }
        for instance in self.world.cloud.instances() {
            let spot = instance.capacity_type == labels::CAPACITY_SPOT;
            if spot && instance.life == Life::Running && self.random.f64() < rate {
                self.world.cloud.interrupt(&instance.provider_id);
            }
        }
    }

    fn sample(&mut self, time: Duration) {
        let pods = self.world.all("pods");
        let phase = |p: &str| pods.iter().filter(|pod| pod["status"]["phase"] == p).count();
        let waits = |pod: &&std::sync::Arc<serde_json::Value>| {
            pod["status"]["phase"] == "Pending"
                && pod["spec"]["nodeName"].as_str().is_none_or(str::is_empty)
        };
        let nodes = self.world.cloud.instances().len();
        self.outcome.most_nodes = self.outcome.most_nodes.max(nodes);
        self.outcome.samples.push(Sample {
            hour: time.as_secs_f64() / 3600.0,
            nodes,
            price_per_hour: self.world.cloud.hourly(),
            pods: phase("Running"),
            pending: pods.iter().filter(waits).count(),
        });
    }

    fn finish(mut self) -> Outcome {
        let bill = self.world.cloud.bill();
        let mut waits = self.world.waits();
        waits.seconds.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let last = waits.seconds.len().saturating_sub(1);
            #[allow(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "an index into a list that fits memory"
            )]
            let index = (last as f64 * share).round() as usize;
            waits.seconds.get(index).copied().unwrap_or(0.0)
        };
        let outcome = &mut self.outcome;
        outcome.money = bill.money;
        outcome.node_hours = bill.node_hours;
        outcome.launches = bill.launches;
        outcome.interruptions = bill.interruptions;
        outcome.evictions = waits.evictions;
        outcome.pods_bound = waits.seconds.len();
        outcome.wait_median = at(0.5);
        outcome.wait99th = at(0.99);
        outcome.pending_at_end = outcome.samples.last().map_or(0, |s| s.pending);
        self.outcome
    }
}
