use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};

use super::*;
use crate::api::{conditions, labels};
use crate::scheduling::instance_type::{InstanceType, Offering, Overhead};
use crate::scheduling::node::{NodeView, StateNode};
use crate::scheduling::pod::{PodInfo, PodKey};
use crate::scheduling::requirements::Requirement;
use crate::scheduling::resources::Name;
use crate::scheduling::snapshot::NodePoolInput;
use crate::scheduling::volumes::PodVolumes;

mod properties;
mod repairs;
mod several;
mod static_pools;

fn kind(name: &str, cpu: i64, price: f64) -> Arc<InstanceType> {
    let on_demand = labels::CAPACITY_ON_DEMAND;
    Arc::new(InstanceType {
        name: Arc::from(name),
        requirements: [
            Requirement::is(labels::INSTANCE_TYPE, name),
            Requirement::is(labels::ZONE, "a"),
            Requirement::is(labels::CAPACITY_TYPE, on_demand),
        ]
        .into_iter()
        .collect(),
        offerings: vec![Offering {
            requirements: [
                Requirement::is(labels::ZONE, "a"),
                Requirement::is(labels::CAPACITY_TYPE, on_demand),
            ]
            .into_iter()
            .collect(),
            price,
            available: true,
            ..Offering::default()
        }],
        capacity: [(Name::Cpu, cpu * 1000), (Name::Memory, cpu << 32), (Name::Pods, 20)]
            .into_iter()
            .collect(),
        overhead: Overhead::default(),
        ..InstanceType::default()
    })
}

fn pod(name: &str, cpu: &str) -> Arc<PodInfo> {
    Arc::new(PodInfo::from_pod(
        &serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n", "uid": name},
            "spec": {"nodeName": "x",
                "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
            "status": {"phase": "Running"}}))
        .unwrap(),
    ))
}

fn node(name: &str, kind: &str, cpu: &str, conditions: &[&str], pods: &[&str]) -> StateNode {
    let on_demand = labels::CAPACITY_ON_DEMAND;
    let labels = json!({labels::INSTANCE_TYPE: kind, labels::ZONE: "a",
        labels::CAPACITY_TYPE: on_demand, labels::NODEPOOL: "p",
        labels::REGISTERED: "true", labels::INITIALIZED: "true"});
    let amounts = json!({"cpu": cpu, "memory": "64Gi", "pods": "20"});
    let conditions: Vec<Value> = conditions
        .iter()
        .chain(&["Initialized"])
        .map(|c| {
            json!({"type": c, "status": "True", "reason": c, "message": "",
                "lastTransitionTime": "1970-01-01T00:00:00Z"})
        })
        .collect();
    let id = format!("aws:///a/{name}");
    let view = NodeView {
        node: Some(Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": labels},
                "spec": {"providerID": id}, "status": {"capacity": amounts, "allocatable": amounts,
                "conditions": [{"type": "Ready", "status": "True"}]}}))
            .unwrap(),
        )),
        node_claim: Some(Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": labels},
                "spec": {}, "status": {"providerID": id, "conditions": conditions}}))
            .unwrap(),
        )),
        pods: pods.iter().enumerate().map(|(i, cpu)| pod(&format!("{name}-{i}"), cpu)).collect(),
        ..NodeView::default()
    };
    view.into()
}

fn snapshot(disruption: Value, nodes: Vec<StateNode>) -> Snapshot {
    Snapshot {
        node_pools: vec![NodePoolInput {
            node_pool: Arc::new(crate::api::v1::NodePool::new(
                "p",
                serde_json::from_value(json!({"disruption": disruption})).unwrap(),
            )),
            instance_types: [kind("small", 2, 0.1), kind("medium", 4, 0.2), kind("large", 16, 0.8)]
                .into(),
        }],
        nodes,
        ..Snapshot::default()
    }
}

/// What a test may change of an input.
struct Given<'a> {
    snapshot: &'a Snapshot,
    pools: &'a [NodePoolInput],
    pdbs: &'a [Arc<PodDisruptionBudget>],
    backed_off: BTreeSet<String>,
    repair: repair::Policies,
    rebooted: HashSet<String>,
    gates: Gates,
}

impl<'a> Given<'a> {
    fn new(snapshot: &'a Snapshot) -> Self {
        Self {
            snapshot,
            pools: &snapshot.node_pools,
            pdbs: &[],
            backed_off: BTreeSet::new(),
            repair: repair::Policies::none(),
            rebooted: HashSet::new(),
            gates: Gates::default(),
        }
    }

    fn with<T>(&self, ask: impl FnOnce(&Input<'_>) -> T) -> T {
        let queued = HashSet::new();
        ask(&Input {
            snapshot: self.snapshot,
            pools: self.pools,
            pdbs: self.pdbs,
            now: Timestamp::from_second(3600).unwrap(),
            queued: &queued,
            backed_off: &self.backed_off,
            repair: &self.repair,
            rebooted: &self.rebooted,
            gates: self.gates,
        })
    }

    fn run(&self, method: Method) -> Decision {
        self.with(|input| decide(input, method, &|| true))
    }
}

fn run(snapshot: &Snapshot, method: Method) -> Decision {
    Given::new(snapshot).run(method)
}

fn names(decision: &Decision) -> Vec<&str> {
    decision.commands.iter().flat_map(|c| &c.candidates).map(|c| c.node.name()).collect()
}

fn why<'a>(decision: &'a Decision, node: &str) -> &'a Rejection {
    decision.verdicts[node].rejection.as_ref().unwrap()
}

const ALL: &[&str] = &["Consolidatable"];
const FIRST: Gates =
    Gates { spot_to_spot: false, terminate_first_drift: true, terminate_first_repair: false };

#[test]
fn empty_nodes_go_within_their_budget() {
    let nodes = || {
        vec![
            node("a", "small", "2", ALL, &[]),
            node("b", "small", "2", ALL, &[]),
            node("c", "small", "2", ALL, &["1"]),
            node("d", "small", "2", &[], &[]),
        ]
    };
    let all = json!({"budgets": [{"nodes": "100%"}]});
    let decision = run(&snapshot(all, nodes()), Method::Emptiness);
    assert_eq!(names(&decision), ["a", "b"]);
    assert!((decision.commands[0].savings - 0.2).abs() < 1e-9);
    let one = json!({"budgets": [{"nodes": "10%"}]});
    let decision = run(&snapshot(one, nodes()), Method::Emptiness);
    assert_eq!(names(&decision), ["a"]);
    assert!(decision.constrained);
    assert!(matches!(why(&decision, "b"), Rejection::BudgetUsedUp(_)));
    assert_eq!(why(&decision, "c"), &Rejection::NotEmpty);
    assert_eq!(why(&decision, "d"), &Rejection::NotConsolidatable);
    let never = json!({"consolidateAfter": "Never"});
    let decision = run(&snapshot(never, nodes()), Method::Emptiness);
    assert_eq!(why(&decision, "a"), &Rejection::ConsolidationDisabled("p".into()));
}

#[test]
fn a_node_whose_pods_fit_elsewhere_is_deleted() {
    let nodes =
        vec![node("big", "large", "16", ALL, &["1"]), node("rest", "medium", "4", ALL, &["1"])];
    let decision = run(&snapshot(json!({}), nodes), Method::SingleNode);
    assert_eq!(names(&decision), ["big"], "its savings are the greatest");
    assert_eq!(decision.commands[0].decision(), "delete");
}

#[test]
fn a_large_node_is_replaced_with_a_cheaper_one() {
    let nodes = vec![node("big", "large", "16", ALL, &["1"])];
    let decision = run(&snapshot(json!({}), nodes), Method::SingleNode);
    let command = &decision.commands[0];
    assert_eq!(command.decision(), "replace");
    let types: Vec<&str> =
        command.replacements[0].instance_types.iter().map(|t| &*t.name).collect();
    assert_eq!(types, ["small", "medium"]);
    assert!((command.savings - 0.7).abs() < 1e-9);
}

#[test]
fn an_estimated_price_never_justifies_a_replacement() {
    let estimated = |wanted: &'static [&'static str]| {
        let nodes = vec![node("big", "large", "16", ALL, &["1"])];
        let mut snapshot = snapshot(json!({}), nodes);
        let types = snapshot.node_pools[0].instance_types.iter().map(|kind| {
            let mut kind = (**kind).clone();
            kind.offerings[0].price_estimated = wanted.contains(&&*kind.name);
            Arc::new(kind)
        });
        snapshot.node_pools[0].instance_types = types.collect();
        run(&snapshot, Method::SingleNode)
    };
    let types = |decision: Decision| -> Vec<String> {
        let mut command = decision.commands.into_iter().next().unwrap();
        command.replacements.remove(0).instance_types.iter().map(|t| t.name.to_string()).collect()
    };
    assert_eq!(types(estimated(&["small"])), ["medium"]);
    let decision = estimated(&["small", "medium"]);
    assert!(decision.commands.is_empty());
    assert_eq!(why(&decision, "big"), &Rejection::NotCheaper);
    let decision = estimated(&["large"]);
    assert!(decision.commands.is_empty(), "what the node costs is not known either");
    assert_eq!(why(&decision, "big"), &Rejection::EstimatedPrice("large".into()));
}

#[test]
fn several_nodes_become_one() {
    let nodes = (0..4).map(|i| node(&format!("n{i}"), "medium", "4", ALL, &["900m"])).collect();
    let budget = json!({"budgets": [{"nodes": "100%"}]});
    let decision = run(&snapshot(budget, nodes), Method::MultiNode);
    let command = &decision.commands[0];
    assert_eq!(command.candidates.len(), 3);
    assert!(command.replacements.is_empty(), "three fit on the fourth");
}

#[test]
fn a_protected_pod_keeps_its_node() {
    let mut busy = node("busy", "large", "16", ALL, &["1"]);
    let mut guarded = (*busy.pods[0]).clone();
    guarded.do_not_disrupt = Some("true".into());
    busy.pods = vec![Arc::new(guarded)];
    let decision = run(&snapshot(json!({}), vec![busy]), Method::SingleNode);
    assert!(decision.commands.is_empty());
    assert!(matches!(why(&decision, "busy"), Rejection::ProtectedPod { until: None, .. }));
}

#[test]
fn a_drifted_node_is_replaced_whatever_that_costs() {
    let nodes = vec![node("old", "small", "2", &["Drifted"], &["1"])];
    let decision = run(&snapshot(json!({}), nodes), Method::Drift);
    let command = &decision.commands[0];
    assert_eq!((command.reason(), command.replacements.len()), (Reason::Drifted, 1));
    let text = command.describe("id");
    assert!(text.starts_with("Drifted/id: replace: nodepools=[p]: [old] -> [1 replacement]"));
}

#[test]
fn a_command_that_no_longer_holds_is_dropped() {
    let snap = snapshot(json!({}), vec![node("a", "small", "2", ALL, &[])]);
    let command = run(&snap, Method::Emptiness).commands.remove(0);
    let check = |snapshot: &Snapshot| {
        let given = Given::new(snapshot);
        given.with(|input| still_valid(input, &command).map(|c| c.candidates.len()))
    };
    assert_eq!(check(&snap), Ok(1));
    let busy = snapshot(json!({}), vec![node("a", "small", "2", ALL, &["1"])]);
    assert_eq!(check(&busy), Err(Abandoned::Churn { gone: 1 }));
}

#[test]
fn a_deletion_of_several_nodes_shrinks_to_those_that_still_can_go() {
    let nodes = |busy: bool| {
        (0..4)
            .map(|i| {
                let is: &[&str] = if busy && i == 1 { &[] } else { ALL };
                node(&format!("n{i}"), "medium", "4", is, &["900m"])
            })
            .collect()
    };
    let budget = || json!({"budgets": [{"nodes": "100%"}]});
    let command = run(&snapshot(budget(), nodes(false)), Method::MultiNode).commands.remove(0);
    let later = snapshot(budget(), nodes(true));
    let left = Given::new(&later).with(|input| still_valid(input, &command)).unwrap();
    assert_eq!(left.candidates.len(), command.candidates.len() - 1);
    assert!(left.savings < command.savings);
}

#[test]
fn three_nodes_become_one_where_two_do_not_pay() {
    let prices = [kind("small", 2, 0.0765), kind("medium", 4, 0.153)];
    let nodes = (0..3).map(|i| node(&format!("n{i}"), "small", "2", ALL, &["1200m"])).collect();
    let mut snap = snapshot(json!({"budgets": [{"nodes": "100%"}]}), nodes);
    snap.node_pools[0].instance_types = prices.into();
    let decision = run(&snap, Method::MultiNode);
    assert_eq!(names(&decision).len(), 3);
    assert!((decision.commands[0].savings - 0.0765).abs() < 1e-9);
}

#[test]
fn one_node_of_the_own_pool_is_found_though_a_heavier_pool_would_split_the_pods() {
    let mut snap = snapshot(json!({}), vec![node("big", "huge", "64", ALL, &["3", "3"])]);
    snap.node_pools[0].instance_types = [kind("huge", 64, 3.0), kind("eight", 8, 0.4)].into();
    let heavy = json!({"weight": 50});
    snap.node_pools.push(NodePoolInput {
        node_pool: Arc::new(crate::api::v1::NodePool::new(
            "heavy",
            serde_json::from_value(heavy).unwrap(),
        )),
        instance_types: [kind("medium", 4, 0.2)].into(),
    });
    let decision = run(&snap, Method::SingleNode);
    let command = decision.commands.first().unwrap_or_else(|| panic!("{decision:?}"));
    let replacement = &command.replacements[0];
    assert_eq!(replacement.node_pool.metadata.name.as_deref(), Some("p"));
    assert!((command.savings - 2.6).abs() < 1e-9);
    let valid = Given::new(&snap).with(|input| still_valid(input, command).is_ok());
    assert!(valid, "it holds when it is looked at again");
}

#[test]
fn several_replacements_are_launched_only_where_the_pool_asks_for_them() {
    let nodes = || vec![node("big", "huge", "64", ALL, &["1500m", "1500m"])];
    let mut snap = snapshot(json!({}), nodes());
    snap.node_pools[0].instance_types = [kind("huge", 64, 3.0), kind("small", 2, 0.1)].into();
    let decision = run(&snap, Method::SingleNode);
    assert_eq!(why(&decision, "big"), &Rejection::NotCheaper);
    let mut pool = (*snap.node_pools[0].node_pool).clone();
    let marks = pool.metadata.annotations.get_or_insert_default();
    marks.insert(crate::api::annotations::MAX_REPLACEMENTS.to_owned(), "2".to_owned());
    snap.node_pools[0].node_pool = Arc::new(pool);
    let decision = run(&snap, Method::SingleNode);
    assert_eq!(decision.commands[0].replacements.len(), 2);
    assert!((decision.commands[0].savings - 2.8).abs() < 1e-9);
}

#[test]
fn nodes_of_a_pool_that_is_not_ready_are_disrupted() {
    let mut snap = snapshot(json!({}), vec![node("a", "small", "2", ALL, &[])]);
    let pools = std::mem::take(&mut snap.node_pools);
    let given = Given { pools: &pools, ..Given::new(&snap) };
    assert_eq!(names(&given.run(Method::Emptiness)), ["a"]);
    let unknown = Given::new(&snap).run(Method::Emptiness);
    assert_eq!(why(&unknown, "a"), &Rejection::UnknownPool("p".into()));
}

#[test]
fn drift_makes_no_room_for_pods_that_will_not_move() {
    let mut old = node("old", "small", "2", &["Drifted"], &["1", "1"]);
    let mut claim = (**old.node_claim.as_ref().unwrap()).clone();
    claim.spec.termination_grace_period = Some(serde_json::from_value(json!("1h")).unwrap());
    old.node_claim = Some(Arc::new(claim));
    let mut guarded = (*old.pods[0]).clone();
    guarded.do_not_disrupt = Some("true".into());
    old.pods[0] = Arc::new(guarded);
    let decision = run(&snapshot(json!({}), vec![old]), Method::Drift);
    let planned = &decision.commands[0].replacements[0];
    assert_eq!(planned.pods, [PodKey::new("n", "old-1")]);
}

#[test]
fn a_pool_whose_replacement_failed_lets_others_drift_first() {
    let mut other = node("b", "small", "2", &["Drifted"], &["1"]);
    let mut claim = (**other.node_claim.as_ref().unwrap()).clone();
    let relabel = |labels: &mut Option<std::collections::BTreeMap<String, String>>| {
        labels.get_or_insert_default().insert(labels::NODEPOOL.to_owned(), "q".to_owned());
    };
    relabel(&mut claim.metadata.labels);
    let mut joined = (**other.node.as_ref().unwrap()).clone();
    relabel(&mut joined.metadata.labels);
    (other.node, other.node_claim) = (Some(Arc::new(joined)), Some(Arc::new(claim)));
    let nodes = vec![node("a", "small", "2", &["Drifted"], &["1"]), other];
    let mut snap = snapshot(json!({}), nodes);
    let mut second = snap.node_pools[0].clone();
    let mut pool = (*second.node_pool).clone();
    pool.metadata.name = Some("q".to_owned());
    second.node_pool = Arc::new(pool);
    snap.node_pools.push(second);
    assert_eq!(names(&run(&snap, Method::Drift)), ["a"]);
    let given = Given { backed_off: ["p".to_owned()].into(), ..Given::new(&snap) };
    let decision = given.run(Method::Drift);
    assert_eq!(names(&decision), ["b"]);
    assert_eq!(why(&decision, "a"), &Rejection::BackedOff("p".into()));
}

/// A pod of a controller of that kind.
fn owned(name: &str, kind: &str, version: &str, cost: Option<&str>) -> Arc<PodInfo> {
    let mut value = json!({"metadata": {"name": name, "namespace": "n", "uid": name,
            "ownerReferences": [{"apiVersion": version, "kind": kind, "name": "o", "uid": "o",
                "controller": true}]},
        "spec": {"nodeName": "x",
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
        "status": {"phase": "Running"}});
    if let Some(cost) = cost {
        value["metadata"]["annotations"] =
            json!({"controller.kubernetes.io/pod-deletion-cost": cost});
    }
    Arc::new(PodInfo::from_pod(&serde_json::from_value(value).unwrap()))
}

#[test]
fn pods_of_nodes_that_would_go_first_get_the_lowest_deletion_costs() {
    let of = |name: &str, kind: &str, conditions: &[&str], pods: Vec<Arc<PodInfo>>| {
        let mut node = node(name, kind, "16", conditions, &[]);
        node.pods = pods;
        node
    };
    let set = |name: &str, cost| owned(name, "ReplicaSet", "apps/v1", cost);
    let mut leaving = of("leaving", "small", ALL, vec![set("l", Some("7"))]);
    leaving.marked_for_deletion = true;
    let stateful = owned("s", "StatefulSet", "apps/v1", None);
    let nodes = vec![
        leaving,
        of("cheap", "small", ALL, vec![set("c", None)]),
        of("dear", "large", ALL, vec![set("d", Some("-2")), owned("j", "Job", "batch/v1", None)]),
        of("old", "small", &["Drifted"], vec![set("o", None)]),
        of("pinned", "large", ALL, vec![set("p", Some("-9")), stateful]),
    ];
    let costs = |budget: &str, most| {
        let snap = snapshot(
            json!({"consolidateAfter": "0s", "budgets": [{"nodes": budget}]}),
            nodes.clone(),
        );
        let found = Given::new(&snap).with(|input| deletion_cost::writes(input, most));
        let pods = found.pods.iter().map(|w| (w.pod.name.to_string(), w.cost));
        (pods.collect::<Vec<_>>(), found.nodes.get("p").copied().unwrap_or(0))
    };
    let own = |list: &[(&str, Option<i32>)]| -> Vec<(String, Option<i32>)> {
        list.iter().map(|(n, c)| ((*n).to_owned(), *c)).collect()
    };
    // The drifted node, then what saves most; `d` has its cost already.
    let wanted = own(&[("l", Some(i32::MIN)), ("o", Some(-3)), ("c", Some(-1)), ("p", None)]);
    assert_eq!(costs("100%", 50), (wanted.clone(), 4));
    assert_eq!(costs("100%", 1).0, own(&[("l", Some(i32::MIN)), ("o", Some(-3))]));
    // Nodes beyond the budget lose theirs. The one that leaves is in it.
    let wanted = own(&[("l", Some(i32::MIN)), ("o", Some(-2)), ("d", Some(-1)), ("p", None)]);
    assert_eq!(costs("2", 50).0, wanted);
}

#[test]
fn pods_on_a_node_in_its_quiet_time_still_keep_others_away() {
    // The pod on the young node must be alone in its zone: were the node left out, a second pod of
    // its kind would seem to fit where a cheaper node can be launched.
    let apart = |name: &str, on: &str| {
        let pod = json!({"metadata": {"name": name, "namespace": "n", "uid": name,
                "labels": {"app": "a"}},
            "spec": {"nodeName": on, "affinity": {"podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [{
                    "topologyKey": "topology.kubernetes.io/zone",
                    "labelSelector": {"matchLabels": {"app": "a"}}}]}},
                "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
            "status": {"phase": "Running"}});
        Arc::new(PodInfo::from_pod(&serde_json::from_value(pod).unwrap()))
    };
    let mut big = node("big", "large", "16", ALL, &[]);
    big.pods = vec![apart("x", "big")];
    let mut young = node("young", "medium", "4", &[], &[]);
    young.pods = vec![apart("y", "young")];
    let mut claim = (**young.node_claim.as_ref().unwrap()).clone();
    let recent = serde_json::from_value(json!("1970-01-01T00:59:30Z")).unwrap();
    claim.status.as_mut().unwrap().last_pod_event_time = Some(recent);
    young.node_claim = Some(Arc::new(claim));
    let after = json!({"consolidateAfter": "5m", "budgets": [{"nodes": "100%"}]});
    let decision = run(&snapshot(after, vec![big, young]), Method::SingleNode);
    assert!(matches!(why(&decision, "big"), Rejection::Stranded(_)), "{decision:?}");
}

#[test]
fn volumes_that_one_node_cannot_attach_keep_two_nodes_apart() {
    // What a node of the type attaches is known only from the nodes that would go.
    let decision = |limit: u64| {
        let full = |name: &str| {
            let mut node = node(name, "medium", "4", ALL, &["1", "1", "1"]);
            node.volume_limits.insert("ebs".to_owned(), Some(limit));
            node
        };
        let mut snapshot =
            snapshot(json!({"budgets": [{"nodes": "100%"}]}), vec![full("a"), full("b")]);
        let types = [kind("medium", 4, 0.2), kind("large", 16, 0.3)];
        snapshot.node_pools[0].instance_types = types.into();
        for pod in snapshot.nodes.iter().flat_map(|n| &n.pods) {
            let volumes = PodVolumes {
                attached: vec![("ebs".into(), pod.key.to_string().into())],
                ..PodVolumes::default()
            };
            snapshot.pod_volumes.insert(pod.key.clone(), Arc::new(volumes));
        }
        run(&snapshot, Method::MultiNode)
    };
    assert!(names(&decision(3)).is_empty(), "no node attaches six volumes");
    assert_eq!(names(&decision(6)), ["a", "b"]);
}

#[test]
fn the_balanced_policy_counts_what_protected_nodes_cost() {
    let mut protected = node("kept", "large", "16", ALL, &["1"]);
    let mut joined = (**protected.node.as_ref().unwrap()).clone();
    let marks = joined.metadata.annotations.get_or_insert_default();
    marks.insert("karpenter.sh/do-not-disrupt".to_owned(), "true".to_owned());
    protected.node = Some(Arc::new(joined));
    let mut full = node("full", "large", "16", ALL, &[]);
    full.pods = (0..6).map(|i| pod(&format!("f{i}"), "2500m")).collect();
    let nodes = vec![protected, full, node("low", "small", "2", ALL, &["500m", "500m"])];
    let balanced = json!({"consolidationPolicy": "Balanced"});
    let decision = run(&snapshot(balanced, nodes), Method::SingleNode);
    let figures = decision.verdicts["low"].figures.unwrap();
    // 0.1 of 1.7 an hour for 3 of 12 units of disruption; without the kept node 0.1 of 0.9.
    let wanted = (0.1 / 1.7) / (3.0 / 12.0);
    assert!((figures.score.unwrap() - wanted).abs() < 1e-9, "{figures:?}");
}

#[test]
fn a_node_taken_by_a_pod_between_decision_and_taint_stays() {
    let snap = snapshot(json!({}), vec![node("a", "small", "2", ALL, &[])]);
    let given = Given::new(&snap);
    let command = given.run(Method::Emptiness).commands.remove(0);
    let ask = |now: &StateNode| {
        given.with(|i| undisturbed(i, &command.candidates[0], Method::Emptiness, now))
    };
    assert_eq!(ask(&snap.nodes[0]), Ok(()));
    let busy = node("a", "small", "2", ALL, &["1"]);
    assert!(matches!(ask(&busy), Err(Abandoned::PodAppeared { .. })));
}
