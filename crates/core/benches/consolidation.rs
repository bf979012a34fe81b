//! How long a pass of disruption takes in which nothing can be done, by the size of the cluster.
//!
//! ```text
//! cargo bench -p karpenter-core --bench consolidation [-- NODES...]
//! ```
//!
//! Nodes are well filled, so that every candidate is tried and none can go. The table shows the time
//! to prepare one world, the time for each question to it, and that of a whole pass of every method,
//! candidates, budgets and preparations included; with `--fresh` also what solving a snapshot made for
//! one question takes. With `--distinct` no two pods request the same, as where each was sized by
//! itself.
//!
//! With `--loose` nodes are 30 % full, so that most can go: what the pass takes that finds the best set.

#![allow(clippy::disallowed_methods, reason = "real time is what is measured")]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use karpenter_core::api::v1::{NodePool, Operator};
use karpenter_core::api::{conditions, labels};
use karpenter_core::disruption::repair::Policies;
use karpenter_core::disruption::{Command, Decision, Gates, Input, Method, Prepared};
use karpenter_core::scheduling::instance_type::{InstanceType, Offering};
use karpenter_core::scheduling::node::{NodeView, StateNode};
use karpenter_core::scheduling::pod::{PodInfo, PodKey, Sharing};
use karpenter_core::scheduling::requirements::{Requirement, Requirements};
use karpenter_core::scheduling::resources::Name;
use karpenter_core::scheduling::snapshot::{NodePoolInput, Options, Snapshot};
use karpenter_core::scheduling::solver::{World, solve};
use serde_json::json;

const ZONES: [&str; 3] = ["zone-a", "zone-b", "zone-c"];
const PODS_PER_NODE: usize = 23;
const APPS: usize = 200;
/// Families times sizes: as many types as EC2 has.
const FAMILIES: usize = 152;
const SIZES: [i64; 9] = [1, 2, 4, 8, 16, 32, 48, 64, 96];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|w| w != "--bench").collect();
    let fresh = words.iter().any(|w| w == "--fresh");
    let distinct = words.iter().any(|w| w == "--distinct");
    let mut sizes: Vec<usize> = words.iter().filter_map(|w| w.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![500, 1000, 2000, 5000, 10_000];
    }
    let types = instance_types();
    if words.iter().any(|w| w == "--loose") {
        return first_passes(&sizes, &types, distinct);
    }
    println!("| nodes | pods | prepare | per question | whole pass | per node | fresh |");
    println!("|---:|---:|---:|---:|---:|---:|---:|");
    for nodes in sizes {
        let snapshot = Arc::new(cluster(nodes, PODS_PER_NODE, &types, distinct));
        let pods: usize = snapshot.nodes.iter().map(|n| n.pods.len()).sum();
        let start = Instant::now();
        let mut world = World::new(Arc::clone(&snapshot), PodInfo::is_reschedulable);
        let prepared = start.elapsed();
        let mut claims = 0;
        let start = Instant::now();
        for node in &snapshot.nodes {
            let results = world.without(&[node.name()], &node.pods, true);
            assert!(results.errors.is_empty(), "{:?}", results.errors);
            claims += results.new_claims.len();
        }
        let asked = start.elapsed();
        assert!(claims >= nodes, "some node could go");
        let each = asked / u32::try_from(nodes).unwrap_or(u32::MAX);
        let whole = whole_pass(&snapshot);
        let own = if fresh { format!("{:?}", one_by_itself(&snapshot)) } else { String::new() };
        println!(
            "| {nodes} | {pods} | {} | {} | {} | {} | {own} |",
            shown(prepared),
            shown(each),
            shown(whole),
            shown(whole / u32::try_from(nodes).unwrap_or(u32::MAX)),
        );
    }
}

/// Every method after the other, as the controller goes through them when none finds anything.
fn whole_pass(snapshot: &Snapshot) -> Duration {
    let start = Instant::now();
    let (decisions, worlds) = pass(snapshot);
    let taken = start.elapsed();
    assert!(decisions.iter().all(|d| d.commands.is_empty()), "something was found");
    let tried: usize = decisions.iter().map(|d| d.simulations).sum();
    assert!(tried >= snapshot.nodes.len(), "{tried} simulations: not every node was tried");
    assert_eq!(worlds, 1, "all methods share one");
    taken
}

/// What the methods find, up to the first that finds anything, and how often a world was prepared.
fn pass(snapshot: &Snapshot) -> (Vec<Decision>, usize) {
    let (queued, backed_off) = (HashSet::new(), BTreeSet::new());
    let rebooted = HashSet::new();
    let input = Input {
        snapshot,
        pools: &snapshot.node_pools,
        pdbs: &[],
        now: Timestamp::UNIX_EPOCH + Duration::from_secs(1_000_000_000),
        queued: &queued,
        backed_off: &backed_off,
        repair: &Policies::none(),
        rebooted: &rebooted,
        gates: Gates::default(),
    };
    let (mut prepared, mut decisions) = (Prepared::default(), Vec::new());
    for method in Method::ALL {
        let decision = prepared.decide(&input, method, &|| true);
        let found = !decision.commands.is_empty();
        decisions.push(decision);
        if found {
            break;
        }
    }
    (decisions, prepared.worlds())
}

/// The first pass over clusters of which 30 % is requested.
fn first_passes(sizes: &[usize], types: &Arc<[Arc<InstanceType>]>, distinct: bool) {
    println!(
        "| nodes | pods | pass | per node | simulations | commands | nodes that go | $/h saved |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|");
    for nodes in sizes {
        let snapshot = cluster(*nodes, 3 * PODS_PER_NODE / 10, types, distinct);
        let pods: usize = snapshot.nodes.iter().map(|n| n.pods.len()).sum();
        let start = Instant::now();
        let (decisions, _) = pass(&snapshot);
        let taken = start.elapsed();
        let commands: Vec<&Command> = decisions.iter().flat_map(|d| &d.commands).collect();
        println!(
            "| {nodes} | {pods} | {} | {} | {} | {} | {} | {:.2} |",
            shown(taken),
            shown(taken / u32::try_from(*nodes).unwrap_or(u32::MAX)),
            decisions.iter().map(|d| d.simulations).sum::<usize>(),
            commands.len(),
            commands.iter().map(|c| c.candidates.len()).sum::<usize>(),
            commands.iter().map(|c| c.savings).sum::<f64>(),
        );
    }
}

fn shown(time: Duration) -> String {
    match time.as_micros() {
        0..10_000 => format!("{} µs", time.as_micros()),
        _ => format!("{:.2} s", time.as_secs_f64()),
    }
}

/// The same question to a snapshot of its own.
fn one_by_itself(snapshot: &Snapshot) -> Duration {
    let start = Instant::now();
    let mut own = snapshot.clone();
    let gone = own.nodes.remove(0);
    own.pods.extend(gone.pods.iter().cloned());
    assert!(!solve(&own).new_claims.is_empty());
    start.elapsed()
}

fn instance_types() -> Arc<[Arc<InstanceType>]> {
    let mut all = Vec::new();
    for family in 0..FAMILIES {
        for size in SIZES {
            let name = format!("f{family}.{size}");
            let ratio = [2, 4, 8][family % 3];
            let price = (0.04 * size as f64 + 0.005 * (size * ratio) as f64)
                * (1.0 + family as f64 / 1000.0);
            let offerings = ZONES.iter().map(|zone| Offering {
                requirements: [
                    Requirement::is(labels::ZONE, zone),
                    Requirement::is(labels::CAPACITY_TYPE, labels::CAPACITY_ON_DEMAND),
                ]
                .into_iter()
                .collect::<Requirements>(),
                price,
                available: true,
                ..Offering::default()
            });
            all.push(Arc::new(InstanceType {
                name: Arc::from(name.as_str()),
                requirements: [
                    Requirement::is(labels::INSTANCE_TYPE, &name),
                    Requirement::is(labels::ARCH, "amd64"),
                    Requirement::is(labels::OS, "linux"),
                    Requirement::new(labels::ZONE, Operator::In, ZONES),
                    Requirement::is(labels::CAPACITY_TYPE, labels::CAPACITY_ON_DEMAND),
                ]
                .into_iter()
                .collect(),
                offerings: offerings.collect(),
                capacity: [
                    (Name::Cpu, size * 1000),
                    (Name::Memory, (size * ratio) << 30),
                    (Name::Pods, 110),
                ]
                .into_iter()
                .collect(),
                ..InstanceType::default()
            }));
        }
    }
    all.truncate(1366);
    all.into()
}

/// Nodes of one size; 23 pods of mixed sizes fill the eight cores of one to the last.
fn cluster(
    nodes: usize,
    pods_per_node: usize,
    types: &Arc<[Arc<InstanceType>]>,
    distinct: bool,
) -> Snapshot {
    let mut sharing = Sharing::default();
    let apps: Vec<PodInfo> = (0..APPS).map(app).collect();
    let state = (0..nodes).map(|at| {
        let name = format!("node-{at:05}");
        let labels: BTreeMap<&str, &str> = BTreeMap::from([
            (labels::HOSTNAME, name.as_str()),
            (labels::ZONE, ZONES[at % 3]),
            (labels::INSTANCE_TYPE, "f1.8"),
            (labels::ARCH, "amd64"),
            (labels::OS, "linux"),
            (labels::NODEPOOL, "default"),
            (labels::CAPACITY_TYPE, labels::CAPACITY_ON_DEMAND),
            (labels::REGISTERED, "true"),
            (labels::INITIALIZED, "true"),
        ]);
        let id = format!("aws:///zone/i-{at:05}");
        let kinds = [
            conditions::LAUNCHED,
            conditions::REGISTERED,
            conditions::INITIALIZED,
            conditions::CONSOLIDATABLE,
        ];
        let conditions = kinds.map(|kind| {
            json!({"type": kind, "status": "True", "reason": kind, "message": "",
                "lastTransitionTime": "1970-01-01T00:00:00Z"})
        });
        let claim = json!({"metadata": {"name": name, "labels": labels},
            "spec": {"requirements": [], "nodeClassRef":
                {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"}},
            "status": {"providerID": id, "nodeName": name, "conditions": conditions}});
        let room = json!({"cpu": "8", "memory": "32Gi", "pods": "110"});
        let node = json!({"metadata": {"name": name, "labels": labels}, "spec": {"providerID": id},
            "status": {"capacity": room, "allocatable": room,
                "conditions": [{"type": "Ready", "status": "True"}]}});
        let pods = (0..pods_per_node).map(|n| {
            let mut pod = apps[(at * 7 + n * 11) % APPS].clone();
            pod.key = PodKey::new("default", &format!("pod-{at:05}-{n:02}"));
            pod.uid = Arc::clone(&pod.key.name);
            pod.node_name = Some(Arc::from(name.as_str()));
            if distinct {
                let own = i64::try_from(at * PODS_PER_NODE + n).unwrap_or(0) << 10;
                pod.requests.set(Name::Memory, (1 << 30) + own);
            }
            Arc::new(sharing.share(pod))
        });
        StateNode::from(NodeView {
            pods: pods.collect(),
            node: Some(Arc::new(serde_json::from_value(node).expect("a node"))),
            node_claim: Some(Arc::new(serde_json::from_value(claim).expect("a NodeClaim"))),
            ..NodeView::default()
        })
    });
    let nodes = state.collect();
    let spec = json!({"disruption": {"consolidateAfter": "0s", "budgets": [{"nodes": "100%"}],
        "consolidationPolicy": "WhenEmptyOrUnderutilized"}});
    let pool = NodePool::new("default", serde_json::from_value(spec).expect("a pool"));
    Snapshot {
        options: Options { pack_by_price: false, reserved_fallback: true, ..Options::default() },
        node_pools: vec![NodePoolInput {
            node_pool: Arc::new(pool),
            instance_types: Arc::clone(types),
        }],
        nodes,
        well_known: BTreeSet::new(),
        ..Snapshot::default()
    }
}

/// A pod of one application; every fourth is spread over zones, every fifth over hosts.
fn app(number: usize) -> PodInfo {
    let name = format!("app-{number}");
    let cpu = 320 + 10 * (number % 5);
    let selector = json!({"matchLabels": {"app": name}});
    let spread = |key: &str, soft: bool| {
        json!({"maxSkew": 5, "topologyKey": key, "labelSelector": selector,
            "whenUnsatisfiable": if soft { "ScheduleAnyway" } else { "DoNotSchedule" }})
    };
    let mut rules = Vec::new();
    if number.is_multiple_of(4) {
        rules.push(spread(labels::ZONE, true));
    }
    if number.is_multiple_of(5) {
        rules.push(spread(labels::HOSTNAME, false));
    }
    let pod = json!({"metadata": {"name": name, "namespace": "default", "labels": {"app": name},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": name}]},
        "spec": {"topologySpreadConstraints": rules, "containers": [{"name": "c",
            "resources": {"requests": {"cpu": format!("{cpu}m"), "memory": "1Gi"}}}]},
        "status": {"phase": "Running"}});
    PodInfo::from_pod(&serde_json::from_value(pod).expect("a pod"))
}
