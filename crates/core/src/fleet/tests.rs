use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::*;
use crate::api::labels;
use crate::api::v1::{NodePool, Operator};
use crate::disruption::Reason;
use crate::scheduling::instance_type::{InstanceType, Offering};
use crate::scheduling::node::StateNode;
use crate::scheduling::pod::PodInfo;
use crate::scheduling::requirements::{Requirement, Requirements};
use crate::scheduling::resources::{Name, ResourceList};
use crate::scheduling::snapshot::NodePoolInput;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn instance_type(name: &str, cpu: i64, memory: i64, price: f64) -> Arc<InstanceType> {
    let mut offering = Requirements::new();
    offering.add(Requirement::is(labels::ZONE, "a"));
    offering.add(Requirement::is(labels::CAPACITY_TYPE, "on-demand"));
    let mut requirements = offering.clone();
    requirements.add(Requirement::is(labels::INSTANCE_TYPE, name));
    requirements.add(Requirement::new(labels::ARCH, Operator::In, ["amd64"]));
    let mut capacity = ResourceList::new();
    capacity.set(Name::Cpu, cpu * 1000);
    capacity.set(Name::Memory, memory << 30);
    capacity.set(Name::Pods, 110);
    Arc::new(InstanceType {
        name: Arc::from(name),
        requirements,
        offerings: vec![Offering {
            requirements: offering,
            price,
            available: true,
            ..Offering::default()
        }],
        capacity,
        ..InstanceType::default()
    })
}

fn pool(spec: Value) -> NodePoolInput {
    let pool: NodePool = read(json!({
        "apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": {"name": "general"}, "spec": spec,
    }));
    NodePoolInput {
        node_pool: Arc::new(pool),
        instance_types: Arc::from(vec![
            instance_type("small", 2, 4, 0.1),
            instance_type("large", 8, 16, 0.4),
        ]),
    }
}

fn pod(namespace: &str, name: &str, cpu: &str, memory: &str) -> Arc<PodInfo> {
    let pod: Pod = read(json!({
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]},
        "status": {"phase": "Pending"},
    }));
    Arc::new(PodInfo::from_pod(&pod))
}

fn node(name: &str, kind: &str, pods: Vec<Arc<PodInfo>>) -> StateNode {
    let node: Node = read(json!({
        "metadata": {"name": name, "labels": {
            "karpenter.sh/nodepool": "general", "karpenter.sh/registered": "true", "karpenter.sh/initialized": "true",
            "node.kubernetes.io/instance-type": kind, "topology.kubernetes.io/zone": "a",
            "karpenter.sh/capacity-type": "on-demand"}},
        "spec": {"providerID": format!("aws:///a/{name}")},
        "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110"}, "capacity": {"cpu": "2", "memory": "4Gi"},
                   "conditions": [{"type": "Ready", "status": "True"}]},
    }));
    let claim = read(json!({
        "apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
        "metadata": {"name": format!("{name}-claim"), "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"}, "requirements": []},
        "status": {"providerID": format!("aws:///a/{name}")},
    }));
    let mut state = StateNode::default();
    state.node = Some(Arc::new(node));
    state.node_claim = Some(Arc::new(claim));
    state.pods = pods;
    state
}

fn snapshot() -> Snapshot {
    Snapshot {
        node_pools: vec![pool(json!({
            "limits": {"cpu": "3"},
            "disruption": {"budgets": [{"nodes": "1"}]},
            "template": {"spec": {"nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"},
                                  "requirements": []}},
        }))],
        nodes: vec![node("n1", "small", vec![pod("shop", "web", "1", "1Gi")])],
        ..Snapshot::default()
    }
}

fn fleet(snapshot: &Snapshot) -> Fleet {
    let results = crate::scheduling::solve(snapshot);
    Fleet::new(
        snapshot,
        &snapshot.node_pools,
        &results,
        &Rejections::new(),
        at("2026-01-01T01:00:00Z"),
    )
}

#[test]
fn a_node_has_its_price_and_its_fill() {
    let fleet = fleet(&snapshot());
    let row = fleet.node("n1-claim").unwrap();
    assert_eq!((row.name.as_str(), row.state.as_str(), row.price), ("n1", "Ready", Some(0.1)));
    assert_eq!((row.cpu_share, row.memory_share, row.pods), (0.5, 0.25, 1));
    assert_eq!(row.created, Some(at("2026-01-01T00:00:00Z")));
}

#[test]
fn cost_is_divided_by_requests_and_the_rest_is_wasted() {
    let cost = fleet(&snapshot()).cost;
    // Half of the price goes by cpu (1 of 2), half by memory (1 of 4 GiB).
    assert_eq!(
        cost.namespaces,
        [Share { name: "shop".into(), cost: 0.0375, wasted: 0.0, count: 1 }]
    );
    assert_eq!((cost.total, cost.wasted), (0.1, 0.0625));
    assert_eq!(cost.node_pools[0].name, "general");
}

#[test]
fn limits_show_what_is_left() {
    let fleet = fleet(&snapshot());
    let row = fleet.node_pool("general").unwrap();
    assert_eq!(row.used["cpu"].0, "2");
    assert_eq!(row.remaining["cpu"].0, "1");
    assert_eq!((row.nodes, row.counted, row.cost), (1, Some(1), 0.1));
    assert_eq!(row.budgets[0].allowed, Some(1));
}

#[test]
fn a_pod_that_is_too_large_names_the_nearest_type_and_what_it_lacks() {
    let mut snapshot = snapshot();
    snapshot.node_pools = vec![pool(json!({"template": {"spec": {"nodeClassRef":
        {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"}, "requirements": []}}}))];
    snapshot.pods = vec![pod("shop", "huge", "10", "8Gi")];
    let fleet = fleet(&snapshot);
    let Waiting::Nothing { node_pools, .. } = &fleet.pod("shop", "huge").unwrap().waiting else {
        panic!("{:?}", fleet.pods)
    };
    assert_eq!(node_pools[0].stage, "instanceTypes");
    let nearest = &node_pools[0].nearest[0];
    assert_eq!(nearest.instance_type, "large");
    assert_eq!((nearest.missing.len(), nearest.unmet.as_deref()), (1, None));
    assert_eq!(
        (nearest.missing[0].resource.as_str(), nearest.missing[0].allocatable.0.as_str()),
        ("cpu", "8")
    );
    assert!(node_pools[0].hint.as_deref().unwrap().contains("larger instance types"));
}

#[test]
fn a_pod_at_the_limit_is_advised_to_raise_it() {
    let mut snapshot = snapshot();
    snapshot.pods = vec![pod("shop", "more", "1900m", "1Gi")];
    let fleet = fleet(&snapshot);
    let Waiting::Nothing { node_pools, .. } = &fleet.pod("shop", "more").unwrap().waiting else {
        panic!("{:?}", fleet.pods)
    };
    assert_eq!(node_pools[0].stage, "limits");
    assert_eq!(node_pools[0].hint.as_deref(), Some("raise spec.limits of NodePool general"));
}

#[test]
fn the_calendar_has_no_gaps_and_joins_equal_windows() {
    let input = pool(json!({
        "disruption": {"budgets": [
            {"nodes": "10"},
            {"nodes": "0", "schedule": "0 8 * * mon-fri", "duration": "10h", "reasons": ["Drifted"]}]},
        "template": {"spec": {"nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"},
                              "requirements": []}},
    }));
    // A Thursday, within working hours.
    let now = at("2026-01-01T09:00:00Z");
    let drifted = calendar(&input.node_pool, 100, Reason::Drifted, now, 7).unwrap();
    let allowed: Vec<_> = drifted.iter().map(|w| w.allowed.unwrap()).collect();
    assert_eq!(allowed, [0, 10, 0, 10, 0, 10, 0, 10, 0, 10, 0]);
    assert_eq!(drifted[0].until, at("2026-01-01T18:00:00Z"));
    // Over the weekend.
    assert_eq!(
        (drifted[3].from, drifted[3].until),
        (at("2026-01-02T18:00:00Z"), at("2026-01-05T08:00:00Z"))
    );
    assert!(drifted.windows(2).all(|w| w[0].until == w[1].from));
    let empty = calendar(&input.node_pool, 100, Reason::Empty, now, 7).unwrap();
    assert_eq!(empty.len(), 1);
}

#[test]
fn the_document_reads_back_as_it_was_written() {
    let mut snapshot = snapshot();
    snapshot.pods = vec![pod("shop", "huge", "10", "8Gi"), pod("shop", "fits", "100m", "128Mi")];
    let fleet = fleet(&snapshot);
    let text = serde_json::to_string(&fleet).unwrap();
    assert_eq!(serde_json::from_str::<Fleet>(&text).unwrap(), fleet);
}

#[test]
fn a_verdict_says_when_it_ends_by_itself() {
    use crate::disruption::budget::Allowance;
    use crate::disruption::{Method, Rejection};
    use crate::scheduling::pod::PodKey;

    let mut snapshot = snapshot();
    let spec = json!({
        "disruption": {"consolidateAfter": "30m", "budgets": [
            {"nodes": "1"}, {"nodes": "0", "schedule": "0 0 * * *", "duration": "8h"}]},
        "template": {"spec": {"nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"},
                              "requirements": []}},
    });
    snapshot.node_pools = vec![pool(spec)];
    let node = &mut snapshot.nodes[0];
    node.nominated_until = Some(at("2026-01-01T01:00:20Z"));
    let claim = Arc::make_mut(node.node_claim.as_mut().unwrap());
    let status = claim.status.as_mut().unwrap();
    status.conditions =
        read(json!([{"type": "Initialized", "status": "True", "reason": "Initialized",
        "message": "", "lastTransitionTime": "2026-01-01T00:10:00Z"}]));
    status.last_pod_event_time = read(json!("2026-01-01T00:50:00Z"));
    let allowance = Allowance { total: 1, ..Allowance::default() };
    let protected = |until| Rejection::ProtectedPod { pod: PodKey::new("shop", "web"), until };
    let rejections = vec![
        (Method::Drift, Rejection::BudgetUsedUp(allowance)),
        (Method::Emptiness, Rejection::NotConsolidatable),
        (Method::MultiNode, Rejection::Nominated),
        (Method::SingleNode, protected(Some(at("2026-01-01T02:00:00Z")))),
        // What has ended, and what only the cluster can end.
        (Method::SingleNode, protected(Some(at("2026-01-01T00:30:00Z")))),
        (Method::SingleNode, Rejection::NotCheaper),
    ];
    let rejections: Rejections = [("n1".to_owned(), rejections)].into();
    let results = crate::scheduling::solve(&snapshot);
    let now = at("2026-01-01T01:00:00Z");
    let fleet = Fleet::new(&snapshot, &snapshot.node_pools, &results, &rejections, now);
    let until: Vec<_> =
        fleet.nodes[0].verdicts.iter().map(|v| v.until.map(|t| t.to_string())).collect();
    let wanted = [
        "2026-01-01T08:00:00Z",
        "2026-01-01T01:20:00Z",
        "2026-01-01T01:00:20Z",
        "2026-01-01T02:00:00Z",
    ];
    let wanted: Vec<_> =
        wanted.into_iter().map(|t| Some(t.to_owned())).chain([None, None]).collect();
    assert_eq!(until, wanted);
}

#[test]
fn a_device_counts_as_much_as_cpu_and_memory() {
    let whole = [(Name::Cpu, 4000), (Name::Memory, 8 << 30), (Name::from("nvidia.com/gpu"), 1)];
    let whole: ResourceList = whole.into_iter().collect();
    let with = |requests: &[(Name, i64)]| PodInfo {
        requests: requests.iter().cloned().collect(),
        ..PodInfo::default()
    };
    let plain = with(&[(Name::Cpu, 4000), (Name::Memory, 8 << 30)]);
    assert!((pod_share(&plain, &whole) - 2.0 / 3.0).abs() < 1e-9);
    let all =
        with(&[(Name::Cpu, 4000), (Name::Memory, 8 << 30), (Name::from("nvidia.com/gpu"), 1)]);
    assert!((pod_share(&all, &whole) - 1.0).abs() < 1e-9);
}
