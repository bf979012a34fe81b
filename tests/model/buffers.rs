//! Capacity buffers keep room free for pods that have not come yet.

use karpenter::model::World;
use serde_json::{Value, json};

use crate::support::*;

const GATE: &str = "CapacityBuffer";

fn template(name: &str, cpu: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "PodTemplate", "metadata": { "name": name },
        "template": { "metadata": { "labels": { "app": name } },
            "spec": { "containers": [{ "name": "c", "image": "image",
                "resources": { "requests": { "cpu": cpu } } }] } } })
}

fn buffer(name: &str, fields: Value) -> Value {
    let mut buffer = json!({ "apiVersion": "autoscaling.x-k8s.io/v1beta1", "kind": "CapacityBuffer",
        "metadata": { "name": name }, "spec": {} });
    for (key, value) in fields.as_object().unwrap() {
        buffer["spec"][key] = value.clone();
    }
    buffer
}

fn by_template(name: &str, replicas: u32) -> Value {
    buffer(name, json!({ "podTemplateRef": { "name": name }, "replicas": replicas }))
}

/// Starts with a pool, and a buffer of so many pods of one core.
fn spare(w: &mut World, pool: Value, replicas: u32) {
    w.apply(pool);
    w.start();
    w.apply(template("spare", "1"));
    w.apply(by_template("spare", replicas));
}

async fn room_for(w: &World, count: i64) {
    until(w, 10 * MINUTE, "there is room", |w| cores(w) >= count && usable(w) > 0).await;
}

#[test]
fn a_buffer_launches_room_without_pods() {
    gated(GATE, async |w| {
        spare(w, pool("default", |_| ()), 6);
        room_for(w, 6).await;
        assert_eq!(w.names("pods").len(), 0);
    });
}

#[test]
fn without_the_gate_a_buffer_launches_nothing() {
    scenario(async |w| {
        spare(w, pool("default", |_| ()), 6);
        always(w, 10 * MINUTE, "nothing", |w| w.instances().is_empty()).await;
    });
}

#[test]
fn the_room_of_a_buffer_is_not_consolidated_away() {
    gated(GATE, async |w| {
        spare(w, pool("default", |_| ()), 3);
        room_for(w, 4).await;
        always(w, 30 * MINUTE, "it stays", |w| cores(w) >= 4).await;
    });
}

#[test]
fn pods_run_at_once_where_a_buffer_kept_room() {
    gated(GATE, async |w| {
        spare(w, calm("default", |_| ()), 3);
        room_for(w, 4).await;
        w.apply(deployment("web", 3, "1", |_| ()));
        until(w, std::time::Duration::from_secs(5), "they run", |w| w.running("web") == 3).await;
        // The room that they took is made again.
        until(w, 10 * MINUTE, "new room", |w| cores(w) >= 6).await;
    });
}

#[test]
fn the_room_of_a_buffer_that_is_gone_is_given_back() {
    gated(GATE, async |w| {
        spare(w, pool("default", |_| ()), 3);
        room_for(w, 4).await;
        w.delete("capacitybuffers", "spare");
        until(w, 20 * MINUTE, "nothing is left", |w| w.instances().is_empty()).await;
    });
}

#[test]
fn a_buffer_follows_its_replicas() {
    gated(GATE, async |w| {
        spare(w, pool("default", |_| ()), 1);
        room_for(w, 2).await;
        w.change("capacitybuffers", "default", "spare", "", |b| b["spec"]["replicas"] = json!(9));
        room_for(w, 9).await;
        w.change("capacitybuffers", "default", "spare", "", |b| b["spec"]["replicas"] = json!(1));
        until(w, 30 * MINUTE, "less again", |w| cores(w) == 2).await;
    });
}

#[test]
fn a_buffer_is_a_share_of_a_deployment() {
    gated(GATE, async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 4, "1", |_| ()));
        runs(w, "web", 4).await;
        let before = cores(w);
        w.apply(buffer(
            "half",
            json!({ "percentage": 200,
            "scalableRef": { "apiGroup": "apps", "kind": "Deployment", "name": "web" } }),
        ));
        room_for(w, before + 4).await;
    });
}

#[test]
fn a_buffer_whose_template_is_missing_launches_nothing_until_it_comes() {
    gated(GATE, async |w| {
        w.apply(pool("default", |_| ()));
        w.start();
        w.apply(by_template("spare", 2));
        always(w, 5 * MINUTE, "nothing", |w| w.instances().is_empty()).await;
        w.apply(template("spare", "1"));
        room_for(w, 2).await;
    });
}

#[test]
fn a_buffer_stays_within_its_own_limits() {
    gated(GATE, async |w| {
        w.apply(pool("default", |_| ()));
        w.start();
        w.apply(template("spare", "1"));
        w.apply(buffer(
            "spare",
            json!({ "podTemplateRef": { "name": "spare" },
            "limits": { "cpu": "3" } }),
        ));
        room_for(w, 3).await;
        always(w, 10 * MINUTE, "no more", |w| cores(w) <= 4).await;
    });
}

#[test]
fn a_buffer_stays_within_the_limits_of_the_pool() {
    gated(GATE, async |w| {
        w.apply(pool("default", |spec| spec["limits"] = json!({ "cpu": "4" })));
        w.start();
        w.apply(template("spare", "1"));
        w.apply(by_template("spare", 20));
        until(w, 10 * MINUTE, "some room", |w| cores(w) > 0).await;
        always(w, 10 * MINUTE, "within the limit", |w| cores(w) <= 4).await;
    });
}

#[test]
fn a_buffer_follows_its_workload_at_once() {
    let half = buffer(
        "half",
        json!({ "percentage": 100,
        "scalableRef": { "apiGroup": "apps", "kind": "Deployment", "name": "web" } }),
    );
    gated(GATE, async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("web", 2, "1", |_| ()));
        runs(w, "web", 2).await;
        w.apply(half);
        let replicas = |w: &World| w.all("capacitybuffers")[0]["status"]["replicas"].as_i64();
        until(w, MINUTE, "a buffer of two", |w| replicas(w) == Some(2)).await;
        // It would be looked at again after half a minute anyway.
        w.pass(std::time::Duration::from_secs(5)).await;
        w.scale("web", 5);
        let soon = std::time::Duration::from_secs(3);
        until(w, soon, "a buffer of five", |w| replicas(w) == Some(5)).await;
    });
}
