//! Small random scenarios, the same for the same seed: a bit of everything that bears on a decision.

use serde_json::{Map, Value, json};

use super::model::{CAPACITY_TYPE, HOSTNAME, INSTANCE_TYPE, NODEPOOL, ZONE};

const ARCH: &str = "kubernetes.io/arch";
const OS: &str = "kubernetes.io/os";
const FAMILY: &str = "example.com/family";
const ZONES: [&str; 3] = ["zone-a", "zone-b", "zone-c"];

/// SplitMix64: enough chance for tests, in four lines.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % sides
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.roll(100) < percent
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let sides = u64::try_from(from.len()).expect("short lists");
        &from[usize::try_from(self.roll(sides)).expect("an index")]
    }

    fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.roll(most - least + 1)
    }
}

/// One scenario.
pub fn scenario(seed: u64) -> Value {
    let mut dice = Dice(seed.wrapping_mul(0x2545_F491_4F6C_DD1D) ^ 0xA076_1D64_78BD_642F);
    let pools = node_pools(&mut dice);
    let types = instance_types(&mut dice, &pools);
    let mut made = Pods::default();
    let daemons = daemon_pods(&mut dice);
    let shapes: Vec<Shape> = (0..dice.between(1, 7)).map(|i| shape(&mut dice, i)).collect();
    let nodes = existing_nodes(&mut dice, &types, &pools, &daemons, &shapes, &mut made);
    let pending = pending_pods(&mut dice, &shapes, &mut made);
    let mut options = Map::new();
    if dice.chance(15) {
        options.insert("preferencePolicy".into(), "Ignore".into());
    }
    if dice.chance(15) {
        options.insert("minValuesPolicy".into(), "BestEffort".into());
    }
    json!({
        "name": format!("random-{seed}"), "seed": seed, "options": options,
        "description": format!("a random scenario: {} pods", pending.len()),
        "wellKnownLabels": [FAMILY], "nodePools": pools, "instanceTypes": types,
        "daemonSetPods": daemons, "nodes": nodes, "pods": pending, "objects": made.objects,
    })
}

fn requirement(key: &str, operator: &str, values: &[&str]) -> Value {
    if values.is_empty() {
        json!({"key": key, "operator": operator})
    } else {
        json!({"key": key, "operator": operator, "values": values})
    }
}

fn instance_types(dice: &mut Dice, pools: &[Value]) -> Vec<Value> {
    let families: [(&str, u64, &str); 5] = [
        ("c", 2, "amd64"),
        ("m", 4, "amd64"),
        ("r", 8, "amd64"),
        ("cg", 2, "arm64"),
        ("mg", 4, "arm64"),
    ];
    let linear = dice.chance(25);
    let mut types = Vec::new();
    for (family, ratio, arch) in families {
        if types.len() > 2 && dice.chance(35) {
            continue;
        }
        for cpu in [1_u64, 2, 4, 8, 16, 32] {
            if dice.chance(45) {
                continue;
            }
            let fair = 0.04 * cpu as f64 + 0.005 * (cpu * ratio) as f64;
            let base = if linear { fair } else { fair * (0.8 + dice.roll(40) as f64 / 100.0) };
            let arch_factor = if arch == "arm64" { 0.8 } else { 1.0 };
            let price = (base * arch_factor * 1e5).round() / 1e5;
            types.push(instance_type(dice, family, cpu, ratio, arch, price, pools));
        }
    }
    if types.is_empty() {
        types.push(instance_type(dice, "m", 8, 4, "amd64", 0.4, pools));
    }
    types
}

fn instance_type(
    dice: &mut Dice,
    family: &str,
    cpu: u64,
    ratio: u64,
    arch: &str,
    price: f64,
    pools: &[Value],
) -> Value {
    let mut offerings = Vec::new();
    for zone in ZONES {
        for capacity_type in ["on-demand", "spot"] {
            if dice.chance(12) {
                continue;
            }
            let factor =
                if capacity_type == "spot" { 0.3 + dice.roll(25) as f64 / 100.0 } else { 1.0 };
            offerings.push(json!({"zone": zone, "capacityType": capacity_type,
                "price": (price * factor * 1e5).round() / 1e5, "available": !dice.chance(7)}));
        }
    }
    let name = format!("{family}.{cpu}");
    let size = cpu.to_string();
    let mut all = json!({
        "name": name,
        "requirements": [requirement(ARCH, "In", &[arch]), requirement(OS, "In", &["linux"]),
            requirement(FAMILY, "In", &[family]), requirement("example.com/cpu", "In", &[&size])],
        "capacity": {"cpu": size, "memory": format!("{}Gi", cpu * ratio), "pods": (8 + cpu * 4).min(110).to_string()},
        "overhead": {"cpu": format!("{}m", 60 + cpu * 5), "memory": "300Mi"},
        "offerings": offerings,
    });
    if dice.chance(4) {
        let pool = dice.pick(pools);
        all["nodePools"] = json!([pool["metadata"]["name"]]);
    }
    all
}

fn node_pools(dice: &mut Dice) -> Vec<Value> {
    let mut pools = Vec::new();
    for index in 0..dice.between(1, 4) {
        let mut requirements = Vec::new();
        if dice.chance(40) {
            requirements.push(requirement(ARCH, "In", &[*dice.pick(&["amd64", "amd64", "arm64"])]));
        }
        match dice.roll(5) {
            0 => requirements.push(requirement(CAPACITY_TYPE, "In", &["on-demand"])),
            1 => requirements.push(requirement(CAPACITY_TYPE, "In", &["spot", "on-demand"])),
            2 => requirements.push(requirement(CAPACITY_TYPE, "Exists", &[])),
            _ => {}
        }
        if dice.chance(15) {
            requirements.push(requirement(ZONE, "NotIn", &[*dice.pick(&ZONES)]));
        }
        if dice.chance(20) {
            requirements.push(requirement(FAMILY, "NotIn", &[*dice.pick(&["c", "m", "r"])]));
        }
        if dice.chance(10) {
            let mut varied = requirement(INSTANCE_TYPE, "Exists", &[]);
            varied["minValues"] = dice.between(2, 4).into();
            requirements.push(varied);
        }
        let mut spec = json!({"template": {"metadata": {"labels": {}}, "spec": {
            "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"},
            "requirements": requirements}}});
        if dice.chance(50) {
            spec["weight"] = dice.between(1, 5).into();
        }
        if dice.chance(30) {
            let team = *dice.pick(&["red", "blue"]);
            spec["template"]["metadata"]["labels"] = json!({"team": team});
            if dice.chance(60) {
                spec["template"]["spec"]["taints"] =
                    json!([{"key": "team", "value": team, "effect": "NoSchedule"}]);
            }
        } else if dice.chance(10) {
            spec["template"]["spec"]["taints"] =
                json!([{"key": "soft", "value": "yes", "effect": "PreferNoSchedule"}]);
        }
        if dice.chance(15) {
            spec["limits"] = json!({"cpu": (dice.between(1, 12) * 8).to_string()});
        }
        pools.push(json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool",
            "metadata": {"name": format!("pool-{index}")}, "spec": spec}));
    }
    pools
}

fn daemon_pods(dice: &mut Dice) -> Vec<Value> {
    let mut daemons = Vec::new();
    for index in 0..dice.roll(3) {
        let mut spec = json!({"containers": [container(dice.between(1, 4) * 50, 64)],
            "tolerations": [{"operator": "Exists"}]});
        if dice.chance(25) {
            spec["nodeSelector"] = json!({ARCH: "amd64"});
        }
        if dice.chance(15) {
            spec["containers"][0]["ports"] =
                json!([{"containerPort": 9100, "hostPort": 9100, "protocol": "TCP"}]);
        }
        daemons.push(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("daemon-{index}"), "namespace": "kube-system",
                "labels": {"app": format!("daemon-{index}")},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet",
                    "name": format!("daemon-{index}"), "uid": format!("ds-{index}")}]},
            "spec": spec}));
    }
    daemons
}

fn container(cpu: u64, memory: u64) -> Value {
    json!({"name": "app", "image": "app", "resources": {"requests":
        {"cpu": format!("{cpu}m"), "memory": format!("{memory}Mi")}}})
}

/// What the pods of one deployment look like.
struct Shape {
    name: String,
    namespace: String,
    labels: Value,
    spec: Value,
    volume: Volume,
    replicas: u64,
    steady: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Volume {
    None,
    /// One that exists, in one zone.
    Bound,
    /// One to be made, where its class allows.
    Waiting,
}

fn term(key: &str, labels: &Value) -> Value {
    json!({"topologyKey": key, "labelSelector": {"matchLabels": labels}})
}

fn spread(dice: &mut Dice, key: &str, labels: &Value, when: &str) -> Value {
    let mut constraint = json!({"topologyKey": key, "maxSkew": dice.between(1, 3),
        "whenUnsatisfiable": when, "labelSelector": {"matchLabels": labels}});
    if key == ZONE && when == "DoNotSchedule" && dice.chance(15) {
        constraint["minDomains"] = dice.between(2, 4).into();
    }
    if dice.chance(10) {
        constraint["nodeAffinityPolicy"] = (*dice.pick(&["Ignore", "Honor"])).into();
    }
    if dice.chance(10) {
        constraint["nodeTaintsPolicy"] = (*dice.pick(&["Ignore", "Honor"])).into();
    }
    constraint
}

fn shape(dice: &mut Dice, index: u64) -> Shape {
    let name = format!("app-{index}");
    let own = json!({"app": name});
    let tier = *dice.pick(&["web", "back"]);
    let labels = json!({"app": name, "tier": tier});
    let cpu = *dice.pick(&[50, 100, 200, 250, 500, 1000, 1500, 3000, 6000]);
    let memory = (cpu * *dice.pick(&[1, 2, 4, 8]) / 2).max(32);
    let mut spec = json!({"containers": [container(cpu, memory)]});
    if dice.chance(8) {
        spec["initContainers"] = json!([container(cpu * 2, memory)]);
        spec["initContainers"][0]["name"] = "start".into();
    }
    between_pods(dice, &mut spec, &own, tier);
    to_nodes(dice, &mut spec);
    if dice.chance(6) {
        spec["containers"][0]["ports"] = json!([{"containerPort": 80,
            "hostPort": *dice.pick(&[8080, 9100]), "protocol": "TCP"}]);
    }
    let volume = match dice.roll(20) {
        0 => Volume::Bound,
        1 => Volume::Waiting,
        _ => Volume::None,
    };
    let replicas = *dice.pick(&[1, 1, 2, 3, 4, 6, 8, 12, 20]);
    let namespace = (*dice.pick(&["default", "default", "other"])).to_owned();
    Shape { name, namespace, labels, spec, volume, replicas, steady: dice.chance(35) }
}

/// Rules between pods; seldom several at once.
fn between_pods(dice: &mut Dice, spec: &mut Value, own: &Value, tier: &str) {
    let tier = json!({"tier": tier});
    let whose = if dice.chance(80) { own.clone() } else { tier };
    let required = |list: Value| json!({"requiredDuringSchedulingIgnoredDuringExecution": list});
    let preferred = |term: Value| {
        json!({"preferredDuringSchedulingIgnoredDuringExecution":
            [{"weight": 10, "podAffinityTerm": term}]})
    };
    match dice.roll(24) {
        0 | 1 => {
            spec["topologySpreadConstraints"] = json!([spread(dice, ZONE, &whose, "DoNotSchedule")])
        }
        2 | 3 => {
            spec["topologySpreadConstraints"] =
                json!([spread(dice, HOSTNAME, &whose, "DoNotSchedule")]);
        }
        4 => {
            spec["topologySpreadConstraints"] = json!([
                spread(dice, ZONE, own, "DoNotSchedule"),
                spread(dice, HOSTNAME, own, "DoNotSchedule")
            ]);
        }
        5 => {
            spec["topologySpreadConstraints"] =
                json!([spread(dice, ZONE, &whose, "ScheduleAnyway")])
        }
        6 => {
            spec["topologySpreadConstraints"] =
                json!([spread(dice, CAPACITY_TYPE, own, "DoNotSchedule")]);
        }
        7 | 8 => spec["affinity"]["podAntiAffinity"] = required(json!([term(HOSTNAME, &whose)])),
        9 => spec["affinity"]["podAntiAffinity"] = required(json!([term(ZONE, own)])),
        10 => spec["affinity"]["podAntiAffinity"] = preferred(term(HOSTNAME, own)),
        11 => spec["affinity"]["podAffinity"] = required(json!([term(ZONE, &whose)])),
        12 => spec["affinity"]["podAffinity"] = required(json!([term(HOSTNAME, own)])),
        13 => spec["affinity"]["podAffinity"] = preferred(term(ZONE, own)),
        14 => {
            spec["affinity"]["podAffinity"] =
                required(json!([term(ZONE, &json!({"app": "app-0"}))]))
        }
        _ => {}
    }
}

/// Rules about nodes.
fn to_nodes(dice: &mut Dice, spec: &mut Value) {
    let team = *dice.pick(&["red", "blue"]);
    match dice.roll(20) {
        0 | 1 => {
            spec["nodeSelector"] = json!({"team": team});
            spec["tolerations"] = json!([{"key": "team", "operator": "Equal", "value": team, "effect": "NoSchedule"}]);
        }
        2 => spec["nodeSelector"] = json!({ARCH: *dice.pick(&["amd64", "arm64"])}),
        3 => spec["nodeSelector"] = json!({CAPACITY_TYPE: *dice.pick(&["spot", "on-demand"])}),
        4 => spec["nodeSelector"] = json!({ZONE: *dice.pick(&ZONES)}),
        5 => spec["tolerations"] = json!([{"key": "team", "operator": "Exists"}]),
        6 => {
            let expression = requirement(FAMILY, "NotIn", &[*dice.pick(&["c", "m", "r"])]);
            spec["affinity"]["nodeAffinity"] = node_affinity(&[expression]);
        }
        7 => {
            let expression = requirement("example.com/cpu", "Gt", &["3"]);
            spec["affinity"]["nodeAffinity"] = node_affinity(&[expression]);
        }
        8 => {
            spec["affinity"]["nodeAffinity"] = node_affinity(&[
                requirement(ZONE, "In", &["zone-a"]),
                requirement(ZONE, "In", &["zone-b", "zone-c"]),
            ]);
        }
        9 => {
            spec["affinity"]["nodeAffinity"] = json!({"preferredDuringSchedulingIgnoredDuringExecution":
                [{"weight": 5, "preference": {"matchExpressions": [
                    requirement(ZONE, "In", &[*dice.pick(&["zone-a", "zone-z"])])]}}]});
        }
        10 => spec["nodeSelector"] = json!({"no-such-label": "x"}),
        _ => {}
    }
}

/// Required node affinity with one term for each expression.
fn node_affinity(expressions: &[Value]) -> Value {
    let terms: Vec<Value> = expressions.iter().map(|e| json!({"matchExpressions": [e]})).collect();
    json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}})
}

#[derive(Default)]
struct Pods {
    made: u64,
    objects: Vec<Value>,
}

impl Pods {
    fn pod(&mut self, dice: &mut Dice, shape: &Shape, node: Option<&str>) -> Value {
        self.made += 1;
        let name = format!("{}-{}", shape.name, self.made);
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": shape.namespace, "uid": format!("uid-{:04}", self.made),
                "labels": shape.labels, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": shape.spec.clone()});
        match node {
            Some(node) => {
                pod["spec"]["nodeName"] = node.into();
                pod["status"] = json!({"phase": "Running"});
            }
            None => {
                pod["status"] = json!({"phase": "Pending", "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]});
                if shape.volume != Volume::None {
                    pod["spec"]["volumes"] = json!([
                        {"name": "data", "persistentVolumeClaim": {"claimName": name}}]);
                    self.volume(dice, shape, &name);
                }
            }
        }
        pod
    }

    fn volume(&mut self, dice: &mut Dice, shape: &Shape, name: &str) {
        let zone = *dice.pick(&ZONES);
        let class = format!("class-{zone}");
        let mut claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": shape.namespace},
            "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}}},
            "status": {"phase": "Pending"}});
        if shape.volume == Volume::Bound {
            claim["metadata"]["annotations"] = json!({"pv.kubernetes.io/bind-completed": "yes"});
            claim["spec"]["volumeName"] = format!("pv-{name}").into();
            claim["status"]["phase"] = "Bound".into();
            self.objects.push(json!({"apiVersion": "v1", "kind": "PersistentVolume",
                "metadata": {"name": format!("pv-{name}")},
                "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                    "csi": {"driver": "ebs.csi.aws.com", "volumeHandle": name},
                    "nodeAffinity": {"required": {"nodeSelectorTerms": [
                        {"matchExpressions": [requirement(ZONE, "In", &[zone])]}]}}}}));
        }
        self.objects.push(claim);
        if !self.objects.iter().any(|o| o["metadata"]["name"] == class.as_str()) {
            self.objects.push(json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
                "metadata": {"name": class}, "provisioner": "ebs.csi.aws.com",
                "volumeBindingMode": "WaitForFirstConsumer",
                "allowedTopologies": [{"matchLabelExpressions": [{"key": ZONE, "values": [zone]}]}]}));
        }
    }
}

fn pending_pods(dice: &mut Dice, shapes: &[Shape], made: &mut Pods) -> Vec<Value> {
    let mut pods = Vec::new();
    for shape in shapes {
        for _ in 0..shape.replicas {
            pods.push(made.pod(dice, shape, None));
        }
    }
    pods
}

fn existing_nodes(
    dice: &mut Dice,
    types: &[Value],
    pools: &[Value],
    daemons: &[Value],
    shapes: &[Shape],
    made: &mut Pods,
) -> Vec<Value> {
    let mut nodes = Vec::new();
    let count = if dice.chance(55) { dice.between(1, 5) } else { 0 };
    for index in 0..count {
        let of_type = dice.pick(types).clone();
        let pool = dice.pick(pools).clone();
        let cpu: u64 = of_type["capacity"]["cpu"].as_str().unwrap_or("1").parse().unwrap_or(1);
        let name = format!("node-{index}");
        let mut labels = json!({HOSTNAME: name, ZONE: *dice.pick(&ZONES), OS: "linux",
            CAPACITY_TYPE: *dice.pick(&["spot", "on-demand"]), NODEPOOL: pool["metadata"]["name"],
            INSTANCE_TYPE: of_type["name"], "karpenter.sh/registered": "true",
            "karpenter.sh/initialized": "true"});
        for entry in of_type["requirements"].as_array().into_iter().flatten() {
            labels[entry["key"].as_str().unwrap_or_default()] = entry["values"][0].clone();
        }
        for (key, value) in
            pool["spec"]["template"]["metadata"]["labels"].as_object().into_iter().flatten()
        {
            labels[key.as_str()] = value.clone();
        }
        let mut allocatable = of_type["capacity"].clone();
        allocatable["cpu"] = format!("{}m", cpu * 1000 - 60 - cpu * 5).into();
        let node = json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "uid": format!("node-uid-{index}"), "labels": labels,
                "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"providerID": format!("aws:///z/i-{index:017}"),
                "taints": pool["spec"]["template"]["spec"].get("taints").cloned().unwrap_or(json!([]))},
            "status": {"capacity": of_type["capacity"], "allocatable": allocatable,
                "conditions": [{"type": "Ready", "status": "True"}]}});
        nodes.push(
            json!({"node": node, "pods": bound_pods(dice, &name, cpu, daemons, shapes, made)}),
        );
    }
    nodes
}

/// Daemons that have started, and pods of deployments that have been there for long, as far as they fit.
fn bound_pods(
    dice: &mut Dice,
    node: &str,
    cpu: u64,
    daemons: &[Value],
    shapes: &[Shape],
    made: &mut Pods,
) -> Vec<Value> {
    let mut pods = Vec::new();
    let mut left = cpu * 900;
    for daemon in daemons {
        if dice.chance(70) {
            let mut pod = daemon.clone();
            pod["metadata"]["name"] =
                format!("{}-{node}", daemon["metadata"]["name"].as_str().unwrap_or_default())
                    .into();
            pod["spec"]["nodeName"] = node.into();
            pod["status"] = json!({"phase": "Running"});
            left = left.saturating_sub(200);
            pods.push(pod);
        }
    }
    for shape in shapes.iter().filter(|s| s.steady) {
        let text =
            shape.spec["containers"][0]["resources"]["requests"]["cpu"].as_str().unwrap_or("0m");
        let cpu: u64 = text.trim_end_matches('m').parse().unwrap_or(0);
        let apart = !shape.spec["affinity"]["podAntiAffinity"].is_null();
        let ports = !shape.spec["containers"][0]["ports"].is_null();
        if dice.chance(60) && cpu <= left && !apart && !ports {
            left -= cpu;
            pods.push(made.pod(dice, shape, Some(node)));
        }
    }
    pods
}
