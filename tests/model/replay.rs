//! Replays: days of a workload in the model world, and workloads recorded from a cluster.

use std::path::Path;
use std::sync::Arc;

use karpenter::model::World;
use karpenter::replay::record::{self, Recording};
use karpenter::replay::{Outcome, Variant, Workloads, play};
use karpenter::simulate::load_file;
use serde_json::json;

use crate::support::*;

fn example(name: &str) -> String {
    format!("{}/examples/replay/{name}.yaml", env!("CARGO_MANIFEST_DIR"))
}

/// One of the examples of NodePools, with the example's instance types.
fn variant(name: &str) -> Variant {
    let text = std::fs::read_to_string(example(name)).unwrap();
    let types = load_file(Path::new(&example("instance-types"))).unwrap().take_types().unwrap();
    Variant {
        name: name.to_owned(),
        pools: vec![serde_saphyr::from_str(&text).unwrap()],
        types: types.iter().map(|t| Arc::clone(&t.instance_type)).collect(),
        flags: Vec::new(),
    }
}

const SHORT: &str = "
duration: 2h
workloads:
- name: web
  kind: Deployment
  requests: {cpu: 500m, memory: 1Gi}
  replicas: {steps: [{at: 0s, replicas: 20}, {at: 40m, replicas: 3}]}
- name: job
  kind: Job
  requests: {cpu: 1, memory: 1Gi}
  runs: {at: 15m, pods: 4, podRunsFor: 10m}
";

fn text(outcome: &Outcome) -> String {
    serde_json::to_string(outcome).unwrap()
}

#[test]
fn a_replay_compares_pools_and_is_the_same_every_time() {
    let workloads = Workloads::parse(SHORT).unwrap();
    let demand = play(&workloads, &variant("on-demand"));
    assert_eq!(text(&demand), text(&play(&workloads, &variant("on-demand"))));
    let spot = play(&workloads, &variant("spot"));
    assert!(spot.money < demand.money, "{} {}", spot.money, demand.money);
    assert!(demand.pods_bound >= 24, "{}", demand.pods_bound);
    assert_eq!(demand.pending_at_end, 0);
    assert!((20.0..180.0).contains(&demand.wait_median), "{}", demand.wait_median);
    // The second half of the time needs less.
    let price = |hour: f64| demand.samples.iter().find(|s| s.hour >= hour).unwrap().price_per_hour;
    assert!(price(1.9) < price(0.6) / 2.0, "{} {}", price(1.9), price(0.6));
}

/// What a recording that looks every minute has after a while.
async fn record(w: &World, minutes: u32, mut each: impl FnMut(&World, u32)) -> serde_json::Value {
    let client = w.server.client("somebody");
    let mut recording = Recording::new("model", w.clock.now());
    for minute in 0..=minutes {
        each(w, minute);
        w.pass(MINUTE).await;
        let seen = record::Workloads::of(&client).await.unwrap();
        recording.note(w.clock.now(), seen);
    }
    recording.document(w.clock.now())
}

#[test]
fn a_recording_has_each_change_of_replicas_and_each_job() {
    scenario(async |w| {
        w.apply(pool("default", |_| ()));
        w.apply(json!({ "kind": "Namespace", "metadata": { "name": "shop" } }));
        w.apply(daemon_set("agent", "100m", |_| ()));
        w.apply(budget("web", "maxUnavailable", json!("20%")));
        w.apply(deployment("web", 3, "500m", |template| {
            apart("web")(template);
            protected(template);
            template["metadata"]["annotations"]["note"] = json!("hunter2");
            template["spec"]["containers"][0]["env"] =
                json!([{ "name": "PASSWORD", "value": "hunter2" }]);
        }));
        let mut other = deployment("web", 1, "250m", |_| ());
        other["metadata"]["namespace"] = json!("shop");
        w.apply(other);
        w.start();
        let document = record(w, 30, |w, minute| match minute {
            4 => w.scale("web", 6),
            8 => {
                w.apply(json!({ "apiVersion": "batch/v1", "kind": "Job",
                    "metadata": { "name": "report" },
                    "spec": { "completions": 4, "parallelism": 2, "template": {
                        "metadata": { "annotations": { "model.karpenter.sh/run-for": "120" } },
                        "spec": { "restartPolicy": "Never", "containers": [{ "name": "c",
                            "resources": { "requests": { "cpu": "1" } } }] } } } }));
            }
            10 => w.delete("deployments", "web"),
            _ => {}
        })
        .await;
        assert!(!document.to_string().contains("hunter2"), "{document}");
        let all = document["workloads"].as_array().unwrap();
        let find = |namespace: &str, name: &str| {
            let one = all.iter().find(|w| w["namespace"] == namespace && w["name"] == name);
            one.unwrap_or_else(|| panic!("{namespace}/{name} in {document:#}"))
        };
        let web = find("default", "web");
        assert_eq!(web["requests"], json!({ "cpu": "500m", "memory": "64Mi" }));
        assert_eq!(web["disruptionBudget"], json!({ "maxUnavailable": "20%" }));
        assert!(web["template"]["spec"]["affinity"]["podAntiAffinity"].is_object(), "{web:#}");
        let marks = &web["template"]["metadata"]["annotations"];
        assert_eq!(marks["karpenter.sh/do-not-disrupt"], "true");
        let steps: Vec<u64> = web["replicas"]["steps"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| s["replicas"].as_u64().unwrap())
            .collect();
        assert_eq!(steps, [3, 6, 0], "{web:#}");
        assert_eq!(find("shop", "web")["replicas"]["steps"][0]["replicas"], 1);
        let job = &find("default", "report")["runs"];
        assert_eq!((&job["pods"], &job["parallelism"]), (&json!(4), &json!(2)), "{job}");
        assert_eq!(document["daemonSets"][0]["name"], "agent");
        // It can be played, and does what was recorded.
        let played = Workloads::parse(&serde_saphyr::to_string(&document).unwrap()).unwrap();
        let outcome = play(&played, &variant("on-demand"));
        assert!(outcome.pods_bound >= 3 + 3 + 1 + 4, "{}", text(&outcome));
        assert_eq!(outcome.pending_at_end, 0);
        assert!(outcome.samples.iter().any(|s| s.pods >= 6), "{}", text(&outcome));
    });
}
