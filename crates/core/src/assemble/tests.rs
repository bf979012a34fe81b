use super::*;
use crate::api::v1::NodeClaim;
use crate::scheduling::node::NodeView;
use serde_json::{Value, json};

fn pod(extra: Value) -> PodInfo {
    let mut value = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u",
        "labels": {"app": "a"}}, "spec": {"containers": [], "nodeName": "x"},
        "status": {"phase": "Running"}});
    for (part, fields) in extra.as_object().unwrap() {
        let fields = fields.as_object().unwrap().clone();
        value[part].as_object_mut().unwrap().extend(fields);
    }
    PodInfo::from_pod(&serde_json::from_value(value).unwrap())
}

fn waiting(name: &str, spec: Value) -> Arc<PodInfo> {
    let mut whole = json!({"containers": []});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let value = json!({"metadata": {"name": name, "namespace": "n", "labels": {"app": "a"}},
        "spec": whole, "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled",
            "status": "False", "reason": "Unschedulable"}]}});
    Arc::new(PodInfo::from_pod(&serde_json::from_value(value).unwrap()))
}

/// A node of which the NodeClaim is being deleted, with one pod.
fn draining() -> StateNode {
    let claim: NodeClaim = serde_json::from_value(json!({"metadata": {"name": "c",
        "deletionTimestamp": "2024-01-01T00:00:00Z"}, "spec": {"requirements": [],
            "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "n"}}}))
    .unwrap();
    let pods = vec![Arc::new(pod(json!({})))];
    NodeView { node_claim: Some(Arc::new(claim)), pods, ..NodeView::default() }.into()
}

fn assembled(inputs: Inputs, purpose: Purpose) -> Assembly {
    let scheduler_config = &SchedulerConfig::default();
    let (options, now) = (Options::default(), Timestamp::UNIX_EPOCH);
    assemble(inputs, &Settings { options, scheduler_config, now, purpose })
}

#[test]
fn pods_that_may_not_move_stay() {
    let now = Timestamp::UNIX_EPOCH;
    let none = Limits::new(&[]);
    assert!(moves_now(&pod(json!({})), &none, now));
    let kept = json!({"metadata": {"annotations": {"karpenter.sh/do-not-disrupt": "true"}}});
    assert!(!moves_now(&pod(kept), &none, now));
    let pdb = json!({"metadata": {"name": "b", "namespace": "n"},
        "spec": {"selector": {"matchLabels": {"app": "a"}}, "maxUnavailable": 0}});
    let blocked = Limits::new(&[Arc::new(serde_json::from_value(pdb).unwrap())]);
    assert!(!moves_now(&pod(json!({})), &blocked, now));
    let tolerant = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
    assert!(moves_now(&pod(tolerant), &blocked, now));
    assert!(!moves_now(&pod(json!({"status": {"phase": "Succeeded"}})), &none, now));
}

#[test]
fn pods_of_a_draining_node_are_placed_when_provisioning() {
    let inputs = || Inputs { nodes: vec![draining()], ..Inputs::default() };
    let found = assembled(inputs(), Purpose::Provisioning);
    assert_eq!((found.pending, found.leaving, found.snapshot.pods.len()), (0, 1, 1));
    let found = assembled(inputs(), Purpose::Disruption);
    assert_eq!((found.leaving, found.snapshot.pods.len()), (0, 0));
    let promised = [PodKey::new("n", "p")].into();
    let found = assembled(Inputs { promised, ..inputs() }, Purpose::Provisioning);
    assert_eq!((found.leaving, found.snapshot.pods.len()), (0, 0));
}

#[test]
fn pods_of_a_node_that_is_only_marked_are_held() {
    let keys = |node: StateNode| {
        let inputs = Inputs { nodes: vec![node], ..Inputs::default() };
        assembled(inputs, Purpose::Provisioning).held.len()
    };
    let mut marked = draining();
    marked.marked_for_deletion = true;
    assert_eq!(keys(marked.clone()), 0, "it goes for good");
    let mut claim = (**marked.node_claim.as_ref().unwrap()).clone();
    claim.metadata.deletion_timestamp = None;
    marked.node_claim = Some(Arc::new(claim));
    assert_eq!(keys(marked), 1);
}

#[test]
fn only_pods_that_can_be_placed_wait() {
    let out = json!({"affinity": {"nodeAffinity":
    {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "karpenter.sh/nodepool", "operator": "DoesNotExist"}]}
    ]}}}});
    let pods = vec![waiting("a", json!({})), waiting("b", out)];
    let buffer_pods = vec![waiting("capacity-buffer-x-1", json!({}))];
    let mut daemon = (*waiting("c", json!({}))).clone();
    daemon.owners.daemon_set = true;
    let pods = [pods, vec![Arc::new(daemon)]].concat();
    let found = assembled(Inputs { pods, buffer_pods, ..Inputs::default() }, Purpose::Provisioning);
    assert_eq!((found.pending, found.ignored.len()), (2, 1));
    assert_eq!(found.not_waiting[0].1, NotWaiting::OfDaemonSet);
    assert!(found.ignored[0].1.opted_out);
}

#[test]
fn a_pod_whose_volumes_cannot_be_looked_up_is_placed_without_regard_to_others() {
    let pod = |name: &str, claims: bool| {
        let mut spec = json!({"nodeSelector": {"team": "a"}, "topologySpreadConstraints":
            [{"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}]});
        if claims {
            spec["volumes"] =
                json!([{"name": "v", "persistentVolumeClaim": {"claimName": "gone"}}]);
        }
        waiting(name, spec)
    };
    // Such a pod does not wait by itself, but it may stand on a node that goes away.
    let mut node = draining();
    node.pods = vec![pod("a", true)];
    let inputs = Inputs { nodes: vec![node], pods: vec![pod("b", false)], ..Inputs::default() };
    let found = assembled(inputs, Purpose::Provisioning);
    let left = |name: &str| {
        let pods = &found.snapshot.pods;
        Arc::clone(&pods.iter().find(|p| &*p.key.name == name).unwrap().constraints)
    };
    assert!(left("a").spread.is_empty() && left("a").node_selector.has("team"));
    assert_eq!(left("b").spread.len(), 1);
    assert_eq!(found.unresolved.len(), 1);
}

fn pool(spec: Value, ready: bool) -> NodePool {
    let mut whole = json!({"template": {"spec": {"requirements": [],
        "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "n"}}}});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let status = if ready { "True" } else { "False" };
    serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": whole,
        "status": {"conditions": [{"type": "Ready", "status": status, "reason": "Ready",
            "message": "", "lastTransitionTime": "2024-01-01T00:00:00Z"}]}}))
    .unwrap()
}

/// How many types are left to the snapshot's pool, if it is there, and what is wrong with it.
fn usable(
    pool: NodePool,
    types: Option<usize>,
    overlays: Overlays,
) -> (Option<usize>, Option<PoolProblem>) {
    let types = types.map(|n| (0..n).map(|_| Arc::new(InstanceType::default())).collect());
    let offer = PoolOffer { node_pool: Arc::new(pool), instance_types: types };
    let inputs = Inputs { node_pools: vec![offer], overlays, ..Inputs::default() };
    let found = assembled(inputs, Purpose::Provisioning);
    let left = found.snapshot.node_pools.first().map(|p| p.instance_types.len());
    (left, found.unusable_pools.first().map(|(_, why)| *why))
}

#[test]
fn pools_that_launch_nothing_come_back_with_their_reason() {
    let ready = || pool(json!({}), true);
    let awaits = Some(PoolProblem::AwaitsOverlays);
    assert_eq!(usable(ready(), Some(1), Overlays::Off), (Some(1), None));
    assert_eq!(usable(ready(), Some(0), Overlays::Off), (Some(0), Some(PoolProblem::NoTypes)));
    assert_eq!(usable(ready(), None, Overlays::Off), (Some(0), Some(PoolProblem::TypesUnknown)));
    assert_eq!(usable(ready(), Some(1), Overlays::Awaited), (Some(0), awaits));
    assert_eq!(usable(ready(), Some(1), Overlays::InForce(Arc::default())), (Some(0), awaits));
    let broken = pool(json!({}), false);
    assert_eq!(usable(broken, Some(1), Overlays::Off), (None, Some(PoolProblem::NotReady)));
    let theirs = json!({"template": {"spec": {"requirements": [],
        "nodeClassRef": {"group": "eks.amazonaws.com", "kind": "NodeClass", "name": "n"}}}});
    let theirs = pool(theirs, true);
    assert_eq!(usable(theirs, Some(1), Overlays::Off), (None, Some(PoolProblem::Foreign)));
    let fixed = pool(json!({"replicas": 1}), true);
    assert_eq!(usable(fixed, Some(1), Overlays::Off), (None, Some(PoolProblem::Static)));
}
