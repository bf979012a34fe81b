//! What the tests share: a catalog, objects, and questions about the world.

use std::sync::Arc;
use std::time::Duration;

use karpenter::api::labels;
use karpenter::model::{Options, World, in_runtime};
use karpenter::scheduling::instance_type::{InstanceType, Offering};
use karpenter::scheduling::requirements::Requirement;
use karpenter::scheduling::resources::{Name, ResourceList};
use serde_json::{Value, json};

pub const MINUTE: Duration = Duration::from_secs(60);
pub const HOUR: Duration = Duration::from_secs(3600);
pub const ZONES: [&str; 3] = ["a", "b", "c"];

/// Types with 2 to 16 cores, in three zones, on demand and at 40 per cent of the price on spot.
pub fn catalog() -> Vec<Arc<InstanceType>> {
    [2_i64, 4, 8, 16].into_iter().map(|cores| instance_type(&format!("c{cores}"), cores)).collect()
}

pub fn instance_type(name: &str, cores: i64) -> Arc<InstanceType> {
    let is = Requirement::is;
    let price = 0.05 * f64::from(i32::try_from(cores).unwrap());
    let mut offerings = Vec::new();
    for zone in ZONES {
        for (kind, share) in [(labels::CAPACITY_ON_DEMAND, 1.0), (labels::CAPACITY_SPOT, 0.4)] {
            offerings.push(Offering {
                requirements: [is(labels::CAPACITY_TYPE, kind), is(labels::ZONE, zone)]
                    .into_iter()
                    .collect(),
                price: price * share,
                available: true,
                ..Offering::default()
            });
        }
    }
    let any = |key: &str, values: &[&str]| {
        Requirement::new(key, karpenter::api::v1::Operator::In, values.iter())
    };
    let capacity: ResourceList = [
        (Name::Cpu, cores * 1000),
        (Name::Memory, cores * (4 << 30)),
        (Name::Pods, 110),
        (Name::EphemeralStorage, 20 << 30),
    ]
    .into_iter()
    .collect();
    Arc::new(InstanceType {
        name: Arc::from(name),
        requirements: [
            is(labels::INSTANCE_TYPE, name),
            is(labels::ARCH, "amd64"),
            is(labels::OS, "linux"),
            any(labels::ZONE, &ZONES),
            any(labels::CAPACITY_TYPE, &[labels::CAPACITY_ON_DEMAND, labels::CAPACITY_SPOT]),
        ]
        .into_iter()
        .collect(),
        offerings,
        capacity,
        ..InstanceType::default()
    })
}

/// Plays a scenario in a world with the catalog.
pub fn scenario(body: impl AsyncFnOnce(&mut World) + Send) {
    with(|_| (), body);
}

/// The same, with other options.
pub fn with(change: impl FnOnce(&mut Options) + Send, body: impl AsyncFnOnce(&mut World) + Send) {
    in_runtime(1, async move || {
        let mut options = Options::new(1, catalog());
        change(&mut options);
        let mut world = World::new(options);
        body(&mut world).await;
    });
}

/// A NodePool for anything on demand; the function changes its spec.
pub fn pool(name: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut pool = json!({ "apiVersion": "karpenter.sh/v1", "kind": "NodePool",
        "metadata": { "name": name },
        "spec": {
            "disruption": { "consolidationPolicy": "WhenEmptyOrUnderutilized",
                "consolidateAfter": "30s", "budgets": [{ "nodes": "100%" }] },
            "template": { "spec": {
                "nodeClassRef": { "group": "karpenter.k8s.aws", "kind": "EC2NodeClass",
                    "name": "default" },
                "expireAfter": "Never",
                "requirements": [{ "key": "karpenter.sh/capacity-type", "operator": "In",
                    "values": ["on-demand"] }] } } } });
    change(&mut pool["spec"]);
    pool
}

/// A NodePool that leaves its nodes alone unless they are empty for a day.
pub fn calm(name: &str, change: impl FnOnce(&mut Value)) -> Value {
    pool(name, |spec| {
        spec["disruption"]["consolidationPolicy"] = json!("WhenEmpty");
        spec["disruption"]["consolidateAfter"] = json!("24h");
        change(spec);
    })
}

/// A Deployment whose pods request so many cores; the function changes the pods' spec.
pub fn deployment(name: &str, replicas: u32, cpu: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut template = json!({
        "metadata": { "labels": { "app": name }, "annotations": {} },
        "spec": { "containers": [{ "name": "c", "image": "image",
            "resources": { "requests": { "cpu": cpu, "memory": "64Mi" } } }] } });
    change(&mut template);
    json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": { "replicas": replicas, "selector": { "matchLabels": { "app": name } },
            "template": template } })
}

pub fn budget(app: &str, field: &str, value: Value) -> Value {
    json!({ "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": { "name": app },
        "spec": { field: value, "selector": { "matchLabels": { "app": app } } } })
}

/// Waits until so many pods run.
pub async fn runs(world: &World, app: &str, count: usize) {
    let done = world.within(20 * MINUTE, |w| w.running(app) == count).await;
    assert!(done, "{} of {count} pods of {app} run\n{}", world.running(app), tail(world));
}

/// Waits until something holds.
pub async fn until(world: &World, limit: Duration, what: &str, holds: impl Fn(&World) -> bool) {
    assert!(world.within(limit, holds).await, "{what}: not within {limit:?}\n{}", tail(world));
}

/// Checks that something holds all the time.
pub async fn always(world: &World, time: Duration, what: &str, holds: impl Fn(&World) -> bool) {
    let broken = world.within(time, |w| !holds(w)).await;
    assert!(!broken, "{what}: not always within {time:?}\n{}", tail(world));
}

/// What happened last.
pub fn tail(world: &World) -> String {
    let shown = |line: &String| !line.contains(" events ") && !line.contains(" cluster ");
    let lines: Vec<String> = world.journal.tail(400).into_iter().filter(shown).collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// The types of the instances that run, sorted.
pub fn types(world: &World) -> Vec<String> {
    let mut all: Vec<String> =
        world.instances().iter().map(|i| i.instance_type.to_string()).collect();
    all.sort();
    all
}

pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let list = object["status"]["conditions"].as_array()?;
    list.iter().find(|c| c["type"] == kind)?["status"].as_str()
}

/// The nodes that are ready, not tainted as disrupted, and not being deleted.
pub fn usable(world: &World) -> usize {
    let good = |node: &&Arc<Value>| {
        let taints = node["spec"]["taints"].as_array();
        condition(node, "Ready") == Some("True")
            && node["metadata"]["deletionTimestamp"].is_null()
            && !taints.is_some_and(|t| t.iter().any(|t| t["key"] == "karpenter.sh/disrupted"))
    };
    world.all("nodes").iter().filter(good).count()
}

/// Reasons of the events about objects of a kind.
pub fn reasons(world: &World, kind: &str) -> Vec<String> {
    let about = |e: &&Arc<Value>| e["involvedObject"]["kind"] == kind;
    let events = world.all("events");
    let mut all: Vec<String> = events
        .iter()
        .filter(about)
        .filter_map(|e| e["reason"].as_str().map(str::to_owned))
        .collect();
    all.sort();
    all.dedup();
    all
}

/// The node of the first pod of an app.
pub fn node_of(world: &World, app: &str) -> String {
    let pods = world.pods_of(app);
    let on = pods.iter().find_map(|p| p["spec"]["nodeName"].as_str());
    on.unwrap().to_owned()
}

/// Deletes a NodeClaim as an operator would.
pub fn delete_claim_of(world: &World, node: &str) {
    let claims = world.all("nodeclaims");
    let claim = claims.iter().find(|c| c["status"]["nodeName"] == node).unwrap();
    world.delete("nodeclaims", claim["metadata"]["name"].as_str().unwrap());
}
