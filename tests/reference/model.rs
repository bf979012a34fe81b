//! A scenario file as the reference checker reads it: plain, unshared, and by its own reading of
//! Kubernetes' rules. Nothing of the solver's is used here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use k8s_openapi::api::core::v1::{
    Container, Node, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim, Pod, Taint,
    Toleration,
};
use k8s_openapi::api::storage::v1::{CSINode, StorageClass};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use karpenter::api::v1::NodePool;
use serde::Deserialize;
use serde_json::Value;

pub const ZONE: &str = "topology.kubernetes.io/zone";
pub const HOSTNAME: &str = "kubernetes.io/hostname";
pub const CAPACITY_TYPE: &str = "karpenter.sh/capacity-type";
pub const INSTANCE_TYPE: &str = "node.kubernetes.io/instance-type";
pub const NODEPOOL: &str = "karpenter.sh/nodepool";
const WELL_KNOWN: [&str; 8] = [
    NODEPOOL,
    ZONE,
    "topology.kubernetes.io/region",
    INSTANCE_TYPE,
    "kubernetes.io/arch",
    "kubernetes.io/os",
    CAPACITY_TYPE,
    "node.kubernetes.io/windows-build",
];

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Options {
    pub preference_policy: String,
    pub min_values_policy: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
pub struct Expression {
    pub key: String,
    pub operator: String,
    #[serde(default)]
    pub values: Vec<String>,
}

impl Expression {
    pub fn is(key: &str, value: &str) -> Self {
        Self { key: key.to_owned(), operator: "In".to_owned(), values: vec![value.to_owned()] }
    }

    /// Whether a label value (nothing: no such label) meets the expression.
    pub fn met_by(&self, value: Option<&str>) -> bool {
        let named = |v: &str| self.values.iter().any(|w| w == v);
        let bound = || self.values.first().and_then(|v| v.parse::<i64>().ok()).unwrap_or(0);
        let number = value.and_then(|v| v.parse::<i64>().ok());
        match self.operator.as_str() {
            "In" => value.is_some_and(named),
            "NotIn" => !value.is_some_and(named),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            "Gt" => number.is_some_and(|n| n > bound()),
            "Lt" => number.is_some_and(|n| n < bound()),
            "Gte" => number.is_some_and(|n| n >= bound()),
            "Lte" => number.is_some_and(|n| n <= bound()),
            other => panic!("unknown operator {other}"),
        }
    }

    pub fn negative(&self) -> bool {
        matches!(self.operator.as_str(), "NotIn" | "DoesNotExist")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeDoc {
    pub name: String,
    #[serde(default)]
    pub requirements: Vec<Expression>,
    pub capacity: BTreeMap<String, String>,
    #[serde(default)]
    pub overhead: BTreeMap<String, String>,
    pub offerings: Vec<OfferingDoc>,
    #[serde(default)]
    pub node_pools: Option<Vec<String>>,
    #[serde(skip)]
    by_key: OnceLock<BTreeMap<String, Vec<Expression>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OfferingDoc {
    pub zone: String,
    pub capacity_type: String,
    pub price: f64,
    #[serde(default = "yes")]
    pub available: bool,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub requirements: Vec<Expression>,
}

fn yes() -> bool {
    true
}

impl OfferingDoc {
    /// Everything that the offering says of a node's labels.
    pub fn expressions(&self) -> Vec<Expression> {
        let mut all = vec![
            Expression::is(ZONE, &self.zone),
            Expression::is(CAPACITY_TYPE, &self.capacity_type),
        ];
        all.extend(self.labels.iter().map(|(k, v)| Expression::is(k, v)));
        all.extend(self.requirements.iter().cloned());
        all
    }
}

impl TypeDoc {
    /// Everything that the type says of a node's labels.
    pub fn expressions(&self) -> Vec<Expression> {
        let of = |key: &str, value: fn(&OfferingDoc) -> &String| Expression {
            key: key.to_owned(),
            operator: "In".to_owned(),
            values: self.offerings.iter().filter(|o| o.available).map(value).cloned().collect(),
        };
        let mut all = vec![
            Expression::is(INSTANCE_TYPE, &self.name),
            of(ZONE, |o| &o.zone),
            of(CAPACITY_TYPE, |o| &o.capacity_type),
        ];
        all.extend(self.requirements.iter().cloned());
        all
    }

    /// What the type says of one label.
    pub fn of_key(&self, key: &str) -> &[Expression] {
        let all = self.by_key.get_or_init(|| {
            let mut all: BTreeMap<String, Vec<Expression>> = BTreeMap::new();
            for expression in self.expressions() {
                all.entry(expression.key.clone()).or_default().push(expression);
            }
            all
        });
        all.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    pub fn allocatable(&self) -> Amounts {
        let overhead = amounts(&self.overhead);
        let mut left = amounts(&self.capacity);
        for (name, amount) in &mut left {
            *amount -= overhead.get(name).copied().unwrap_or(0);
        }
        left
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeDoc {
    pub node: Node,
    #[serde(default)]
    pub pods: Vec<Pod>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    #[serde(default)]
    pub options: Options,
    #[serde(default)]
    pub well_known_labels: Vec<String>,
    pub node_pools: Vec<NodePool>,
    pub instance_types: Vec<TypeDoc>,
    #[serde(default)]
    pub daemon_set_pods: Vec<Pod>,
    #[serde(default)]
    pub nodes: Vec<NodeDoc>,
    #[serde(default)]
    pub pods: Vec<Pod>,
    #[serde(default)]
    pub objects: Vec<Value>,
}

/// Volumes and namespaces, by name.
#[derive(Default)]
pub struct Objects {
    pub claims: BTreeMap<String, PersistentVolumeClaim>,
    pub volumes: BTreeMap<String, PersistentVolume>,
    pub classes: BTreeMap<String, StorageClass>,
    pub csi_nodes: BTreeMap<String, CSINode>,
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

impl Document {
    pub fn read(value: Value) -> Self {
        serde_json::from_value(value).expect("a scenario")
    }

    pub fn objects(&self) -> Objects {
        let mut all = Objects::default();
        for object in &self.objects {
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let space = object["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
            let copy = object.clone();
            match object["kind"].as_str() {
                Some("PersistentVolumeClaim") => {
                    let key = format!("{space}/{name}");
                    all.claims.insert(key, serde_json::from_value(copy).expect("a claim"));
                }
                Some("PersistentVolume") => {
                    all.volumes.insert(name, serde_json::from_value(copy).expect("a volume"));
                }
                Some("StorageClass") => {
                    all.classes.insert(name, serde_json::from_value(copy).expect("a class"));
                }
                Some("CSINode") => {
                    all.csi_nodes.insert(name, serde_json::from_value(copy).expect("a CSINode"));
                }
                Some("Namespace") => {
                    let labels = serde_json::from_value(object["metadata"]["labels"].clone());
                    all.namespaces.insert(name, labels.unwrap_or_default());
                }
                _ => {}
            }
        }
        all
    }

    pub fn well_known(&self, key: &str) -> bool {
        WELL_KNOWN.contains(&key) || self.well_known_labels.iter().any(|k| k == key)
    }

    /// The types that a pool may launch.
    pub fn types_of(&self, pool: &str) -> Vec<&TypeDoc> {
        let allowed = |t: &&TypeDoc| {
            t.node_pools.as_ref().is_none_or(|list| list.iter().any(|name| name == pool))
        };
        self.instance_types.iter().filter(allowed).collect()
    }
}

/// Amounts in billionths of a unit, so that nothing is ever rounded.
pub type Amounts = BTreeMap<String, i128>;

/// Reads a Kubernetes quantity into billionths.
pub fn quantity(text: &str) -> i128 {
    let units: [(&str, i128); 12] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("Pi", 1 << 50),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("m", -1_000),
        ("u", -1_000_000),
        ("n", -1_000_000_000),
    ];
    let unit = units.iter().find_map(|(suffix, f)| Some((text.strip_suffix(suffix)?, *f)));
    let (digits, factor) = unit.unwrap_or((text, 1));
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let mut billionths = whole.parse::<i128>().expect("digits") * 1_000_000_000;
    if !part.is_empty() {
        let scale = 10_i128.pow(u32::try_from(part.len()).expect("few digits"));
        billionths += part.parse::<i128>().expect("digits") * 1_000_000_000 / scale;
    }
    if factor < 0 { billionths / -factor } else { billionths * factor }
}

pub fn amounts(map: &BTreeMap<String, String>) -> Amounts {
    map.iter().map(|(name, text)| (name.clone(), quantity(text))).collect()
}

pub fn add(total: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *total.entry(name.clone()).or_default() += amount;
    }
}

fn raise(total: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let known = total.entry(name.clone()).or_default();
        *known = (*known).max(*amount);
    }
}

/// The first resource of which more is wanted than there is.
pub fn short_of(wanted: &Amounts, room: &Amounts) -> Option<String> {
    let over = |(name, amount): &(&String, &i128)| **amount > room.get(*name).copied().unwrap_or(0);
    wanted.iter().find(over).map(|(name, _)| name.clone())
}

fn container_requests(container: &Container) -> Amounts {
    let listed = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    listed.into_iter().flatten().map(|(k, v)| (k.clone(), quantity(&v.0))).collect()
}

/// What a pod takes of a node: its containers together, or the heaviest moment of its start.
pub fn requests(pod: &Pod) -> Amounts {
    let spec = pod.spec.as_ref().expect("a pod spec");
    let mut running = Amounts::new();
    for container in &spec.containers {
        add(&mut running, &container_requests(container));
    }
    let (mut sidecars, mut heaviest) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let mut moment = container_requests(container);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &moment);
            moment = sidecars.clone();
        } else {
            add(&mut moment, &sidecars);
        }
        raise(&mut heaviest, &moment);
    }
    add(&mut running, &sidecars);
    raise(&mut running, &heaviest);
    for (name, amount) in spec.overhead.iter().flatten() {
        *running.entry(name.clone()).or_default() += quantity(&amount.0);
    }
    running.insert("pods".to_owned(), 1_000_000_000);
    running
}

pub fn name(pod: &Pod) -> String {
    let meta = &pod.metadata;
    let space = meta.namespace.as_deref().unwrap_or("default");
    format!("{space}/{}", meta.name.as_deref().unwrap_or_default())
}

pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

pub fn labels(pod: &Pod) -> BTreeMap<String, String> {
    pod.metadata.labels.clone().unwrap_or_default()
}

/// The sets of expressions of which a node must meet one: the selector with each required term.
pub fn node_terms(pod: &Pod) -> Vec<Vec<Expression>> {
    let spec = pod.spec.as_ref().expect("a pod spec");
    let selector: Vec<Expression> =
        spec.node_selector.iter().flatten().map(|(k, v)| Expression::is(k, v)).collect();
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|n| n.required_during_scheduling_ignored_during_execution.as_ref());
    let Some(required) = required else { return vec![selector] };
    required
        .node_selector_terms
        .iter()
        .map(|term| {
            let mut all = selector.clone();
            all.extend(expressions(term));
            all
        })
        .collect()
}

/// The expressions of the terms that a pod would rather have its node meet.
pub fn preferred_terms(pod: &Pod) -> Vec<Vec<Expression>> {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    let preferred = affinity
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|n| n.preferred_during_scheduling_ignored_during_execution.as_ref());
    preferred.into_iter().flatten().map(|term| expressions(&term.preference).collect()).collect()
}

fn expressions(term: &NodeSelectorTerm) -> impl Iterator<Item = Expression> {
    term.match_expressions.iter().flatten().map(|e| Expression {
        key: e.key.clone(),
        operator: e.operator.clone(),
        values: e.values.clone().unwrap_or_default(),
    })
}

pub fn has_preferences(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref().expect("a pod spec");
    let affinity = spec.affinity.clone().unwrap_or_default();
    let some = |list: Option<usize>| list.unwrap_or(0) > 0;
    some(
        affinity
            .node_affinity
            .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.map(|l| l.len())),
    ) || some(
        affinity
            .pod_affinity
            .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.map(|l| l.len())),
    ) || some(
        affinity
            .pod_anti_affinity
            .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.map(|l| l.len())),
    ) || spec
        .topology_spread_constraints
        .iter()
        .flatten()
        .any(|c| c.when_unsatisfiable == "ScheduleAnyway")
}

pub fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|t| {
        let effect = t.effect.as_deref().unwrap_or_default();
        let key = t.key.as_deref().unwrap_or_default();
        let exists = t.operator.as_deref() == Some("Exists");
        (effect.is_empty() || effect == taint.effect)
            && (key == taint.key || (key.is_empty() && exists))
            && (exists
                || t.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default())
    })
}

pub fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default()
}

/// Whether a selector selects labels; no selector selects nothing.
pub fn selects(selector: Option<&LabelSelector>, labels: &BTreeMap<String, String>) -> bool {
    let Some(selector) = selector else { return false };
    let exact = selector.match_labels.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    let expressions = selector.match_expressions.iter().flatten().all(|e| {
        let expression = Expression {
            key: e.key.clone(),
            operator: e.operator.clone(),
            values: e.values.clone().unwrap_or_default(),
        };
        expression.met_by(labels.get(&e.key).map(String::as_str))
    });
    exact && expressions
}

/// Ports of the node that a pod takes: protocol, address, number.
pub fn host_ports(pod: &Pod) -> Vec<(String, String, i32)> {
    let spec = pod.spec.as_ref().expect("a pod spec");
    let ports = spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
    ports
        .filter(|p| p.host_port.unwrap_or(0) != 0)
        .map(|p| {
            let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            (protocol, p.host_ip.clone().unwrap_or_default(), p.host_port.unwrap_or(0))
        })
        .collect()
}

pub fn ports_clash(a: &Pod, b: &Pod) -> bool {
    // Addresses are compared as such: one may be written in several ways.
    let address = |ip: &str| ip.parse::<std::net::IpAddr>().ok().map(|a| a.to_canonical());
    let open = |ip: &str| ip.is_empty() || address(ip).is_some_and(|a| a.is_unspecified());
    let same = |a: &str, b: &str| a == b || (address(a).is_some() && address(a) == address(b));
    host_ports(a).iter().any(|(protocol, ip, port)| {
        host_ports(b).iter().any(|(other, at, number)| {
            protocol == other && port == number && (same(ip, at) || open(ip) || open(at))
        })
    })
}

impl Objects {
    fn claims_of<'a>(&'a self, pod: &Pod) -> Vec<(String, &'a PersistentVolumeClaim)> {
        let spec = pod.spec.as_ref().expect("a pod spec");
        let keys = spec.volumes.iter().flatten().filter_map(|volume| {
            let claim = match (&volume.persistent_volume_claim, &volume.ephemeral) {
                (Some(source), _) => source.claim_name.clone(),
                (None, Some(_)) => {
                    let owner = pod.metadata.name.as_deref().unwrap_or_default();
                    format!("{owner}-{}", volume.name)
                }
                (None, None) => return None,
            };
            Some(format!("{}/{claim}", namespace(pod)))
        });
        keys.filter_map(|key| self.claims.get(&key).map(|claim| (key, claim))).collect()
    }

    /// Sets of expressions of which a pod's node must meet one, for its volumes to be reachable.
    pub fn volume_terms(&self, pod: &Pod) -> Vec<Vec<Expression>> {
        let mut combined: Vec<Vec<Expression>> = vec![Vec::new()];
        for (_, claim) in self.claims_of(pod) {
            let terms = self.claim_terms(claim);
            if terms.is_empty() {
                continue;
            }
            combined = combined
                .iter()
                .flat_map(|one| {
                    terms.iter().map(|more| one.iter().chain(more).cloned().collect::<Vec<_>>())
                })
                .collect();
        }
        combined
    }

    fn claim_terms(&self, claim: &PersistentVolumeClaim) -> Vec<Vec<Expression>> {
        let spec = claim.spec.as_ref().expect("a claim spec");
        if let Some(volume) = spec.volume_name.as_deref().filter(|n| !n.is_empty()) {
            let Some(volume) = self.volumes.get(volume).and_then(|v| v.spec.as_ref()) else {
                return Vec::new();
            };
            let local = volume.local.is_some() || volume.host_path.is_some();
            let required = volume.node_affinity.as_ref().and_then(|a| a.required.as_ref());
            return required
                .into_iter()
                .flat_map(|r| &r.node_selector_terms)
                .map(|term| {
                    let kept = term
                        .match_expressions
                        .iter()
                        .flatten()
                        .filter(|e| !local || e.key != HOSTNAME);
                    kept.map(|e| Expression {
                        key: e.key.clone(),
                        operator: e.operator.clone(),
                        values: e.values.clone().unwrap_or_default(),
                    })
                    .collect()
                })
                .collect();
        }
        let class = spec.storage_class_name.as_ref().and_then(|name| self.classes.get(name));
        class
            .and_then(|c| c.allowed_topologies.as_ref())
            .into_iter()
            .flatten()
            .map(|term| {
                let expressions = term.match_label_expressions.iter().flatten();
                expressions
                    .map(|e| Expression {
                        key: e.key.clone(),
                        operator: "In".to_owned(),
                        values: e.values.clone(),
                    })
                    .collect()
            })
            .collect()
    }

    /// Volumes that count against a CSI driver's limit: driver and claim.
    pub fn attached(&self, pod: &Pod) -> BTreeSet<(String, String)> {
        self.claims_of(pod)
            .into_iter()
            .filter_map(|(key, claim)| {
                let spec = claim.spec.as_ref()?;
                let driver = match spec.volume_name.as_deref().filter(|n| !n.is_empty()) {
                    Some(volume) => {
                        let csi = self.volumes.get(volume)?.spec.as_ref()?.csi.as_ref()?;
                        csi.driver.clone()
                    }
                    None => {
                        self.classes.get(spec.storage_class_name.as_ref()?)?.provisioner.clone()
                    }
                };
                Some((driver, key))
            })
            .collect()
    }
}
