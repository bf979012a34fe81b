//! What the tests share: a catalog, objects, and questions about the world.

use std::sync::Arc;
use std::time::Duration;

use karpenter::api::labels;
use karpenter::model::api::{Call, Fault, FaultPlan};
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

/// A DaemonSet whose pods request so many cores; the function changes the pods' spec.
pub fn daemon_set(name: &str, cpu: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut set = deployment(name, 1, cpu, change);
    set["kind"] = json!("DaemonSet");
    set["spec"].as_object_mut().unwrap().remove("replicas");
    set
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

/// The same as [`scenario`] with feature gates switched on.
pub fn gated(gates: &str, body: impl AsyncFnOnce(&mut World) + Send) {
    with(gates_on(gates), body);
}

/// The option that switches feature gates on, which are separated by commas.
pub fn gates_on(gates: &str) -> impl FnOnce(&mut Options) + Send + use<> {
    let on: Vec<String> = gates.split(',').map(|gate| format!("{gate}=true")).collect();
    move |o| o.flags.push(format!("--feature-gates={}", on.join(",")))
}

/// Twenty types with 2 to 40 cores.
pub fn many_types() -> Vec<Arc<InstanceType>> {
    (1_i64..=20).map(|n| instance_type(&format!("m{:02}", 2 * n), 2 * n)).collect()
}

/// Keeps the pods of an app on nodes of their own.
pub fn apart(app: &str) -> impl FnOnce(&mut Value) {
    let rule = json!({ "podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{
            "topologyKey": "kubernetes.io/hostname",
            "labelSelector": { "matchLabels": { "app": app } } }] } });
    move |template| template["spec"]["affinity"] = rule
}

/// Marks pods as not to be disrupted.
pub fn protected(template: &mut Value) {
    template["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] = json!("true");
}

/// Gives a node a fault of its accelerators, which a reboot may clear.
pub fn hardware_fails(world: &World, node: &str, reason: &str) {
    let now = world.clock.now().to_string();
    world.change("nodes", "", node, "status", |node| {
        let list = node["status"]["conditions"].as_array_mut().unwrap();
        list.retain(|c| c["type"] != "AcceleratedHardwareReady");
        list.push(json!({ "type": "AcceleratedHardwareReady", "status": "False",
            "reason": reason, "lastTransitionTime": now, "lastHeartbeatTime": now }));
    });
}

/// Requires one of these instance types of a pool's nodes.
pub fn only_types(spec: &mut Value, names: &[&str]) {
    let wanted = json!({ "key": "node.kubernetes.io/instance-type", "operator": "In",
        "values": names });
    spec["template"]["spec"]["requirements"].as_array_mut().unwrap().push(wanted);
}

/// The nodes that carry the taint of a disruption command.
pub fn marked(world: &World) -> Vec<String> {
    let tainted = |node: &&Arc<Value>| {
        let taints = node["spec"]["taints"].as_array();
        taints.is_some_and(|t| t.iter().any(|t| t["key"] == "karpenter.sh/disrupted"))
    };
    let nodes = world.all("nodes");
    let names = nodes.iter().filter(tainted).filter_map(|n| n["metadata"]["name"].as_str());
    names.map(str::to_owned).collect()
}

/// The NodeClaims that were made in the place of others.
pub fn replacements(world: &World) -> Vec<String> {
    let made =
        |claim: &&Arc<Value>| claim["metadata"]["annotations"]["karpenter.rs/replaces"].is_string();
    let claims = world.all("nodeclaims");
    let names = claims.iter().filter(made).filter_map(|c| c["metadata"]["name"].as_str());
    names.map(str::to_owned).collect()
}

/// The NodeClaim of a Node.
pub fn claim_of(world: &World, node: &str) -> String {
    let claims = world.all("nodeclaims");
    let claim = claims.iter().find(|c| c["status"]["nodeName"] == node).unwrap();
    claim["metadata"]["name"].as_str().unwrap().to_owned()
}

/// The Nodes of a pool, by name.
pub fn nodes_of(world: &World, pool: &str) -> Vec<String> {
    let nodes = world.all("nodes");
    let own = nodes.iter().filter(|n| n["metadata"]["labels"]["karpenter.sh/nodepool"] == pool);
    own.filter_map(|n| n["metadata"]["name"].as_str().map(str::to_owned)).collect()
}

/// Leaves nothing of these types, in no zone, of no capacity type.
pub fn sell_out(world: &World, types: &[&str], left: Option<u32>) {
    for kind in types {
        for zone in ZONES {
            for capacity in [labels::CAPACITY_ON_DEMAND, labels::CAPACITY_SPOT] {
                world.cloud.set_left(kind, zone, capacity, left);
            }
        }
    }
}

/// Cores of all instances that run.
pub fn cores(world: &World) -> i64 {
    world.instances().iter().map(|i| i.capacity.get(&Name::Cpu)).sum::<i64>() / 1000
}

/// A StorageClass whose volumes are made where their first pod runs, and claims on it.
pub fn volume_claims(world: &World, names: &[&str]) {
    if world.get("storageclasses", "gp3").is_none() {
        world.apply(json!({ "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
            "metadata": { "name": "gp3" }, "provisioner": "ebs.csi.aws.com",
            "volumeBindingMode": "WaitForFirstConsumer" }));
    }
    for name in names {
        world.apply(json!({ "kind": "PersistentVolumeClaim", "metadata": { "name": name },
            "spec": { "storageClassName": "gp3", "accessModes": ["ReadWriteOnce"],
                "resources": { "requests": { "storage": "1Gi" } } } }));
    }
}

/// Mounts a claim.
pub fn mounts(claim: &str) -> impl FnOnce(&mut Value) {
    let volumes = json!([{ "name": "v", "persistentVolumeClaim": { "claimName": claim } }]);
    move |template| template["spec"]["volumes"] = volumes
}

/// One pod of `web` that is left on a node of sixteen cores.
pub async fn oversized(w: &mut World) {
    w.apply(pool("default", |_| ()));
    w.start();
    alone_on_a_large_node(w).await;
}

/// The same in a pool that is there, with controllers that run.
pub async fn alone_on_a_large_node(w: &World) {
    w.apply(deployment("big", 1, "12", |_| ()));
    w.apply(deployment("web", 1, "1", |_| ()));
    runs(w, "big", 1).await;
    runs(w, "web", 1).await;
    assert_eq!(types(w), ["c16"]);
    w.delete("deployments", "big");
}

/// Waits until a replacement is there, and returns its name.
pub async fn replacement_begins(w: &World) -> String {
    until(w, 30 * MINUTE, "a replacement is made", |w| !replacements(w).is_empty()).await;
    replacements(w).remove(0)
}

/// How many launches were refused for want of capacity, as far as the journal goes back.
pub fn refused(w: &World) -> usize {
    w.journal.tail(usize::MAX).iter().filter(|l| l.contains("InsufficientCapacity")).count()
}

/// The controller's watch of a kind, by its plural, is three seconds late.
pub struct LateWatch(pub &'static str);

impl FaultPlan for LateWatch {
    fn fault(&mut self, _: &Call) -> Option<Fault> {
        None
    }

    fn lag(&mut self, call: &Call) -> Duration {
        let late = call.user == "karpenter" && call.kind.plural == self.0;
        Duration::from_secs(if late { 3 } else { 0 })
    }
}
