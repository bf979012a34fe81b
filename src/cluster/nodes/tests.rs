use serde_json::{Value, json};

use super::*;
use crate::api::v1::NodePool;

fn claim(name: &str, group: &str, kind: &str) -> NodeClaim {
    serde_json::from_value(json!({"metadata": {"name": name,
        "labels": {"karpenter.sh/nodepool": "p"}},
        "spec": {"nodeClassRef": {"group": group, "kind": kind, "name": "default"}},
        "status": {"providerID": format!("aws:///z/i-{name}")}}))
    .unwrap()
}

fn node(value: Value) -> Node {
    serde_json::from_value(value).unwrap()
}

#[test]
fn nodes_and_claims_meet_by_provider_id() {
    let state = State::default();
    let claim = json!({"metadata": {"name": "c"}, "spec": {},
        "status": {"providerID": "aws:///z/i-1"}});
    state.apply_claim(serde_json::from_value(claim).unwrap());
    let n1 = json!({"metadata": {"name": "n1"}, "spec": {"providerID": "aws:///z/i-1"}});
    state.apply_node(node(n1));
    let nodes = state.state_nodes();
    assert_eq!(nodes.len(), 1);
    assert!(nodes[0].managed() && nodes[0].node.is_some());
    assert!(!nodes[0].registered());
    let found = state.claim_by_provider_id("aws:///z/i-1").unwrap();
    assert_eq!(found.metadata.name.as_deref(), Some("c"));
    assert_eq!(state.nodes_by_provider_id("aws:///z/i-1").len(), 1);
    assert!(state.state_node("n1").unwrap().managed() && state.state_node("c").is_some());
    state.delete_claim("c");
    assert_eq!(state.state_nodes().len(), 1);
    assert!(!state.state_nodes()[0].managed());
    assert!(state.claim_by_provider_id("aws:///z/i-1").is_none());
}

#[test]
fn nobody_is_notified_of_what_the_first_lists_hold() {
    let state = State::default();
    let mut changes = state.subscribe();
    let named = |name: &str| node(json!({"metadata": {"name": name}, "spec": {}}));
    state.apply_node(named("listed"));
    state.list_everything();
    assert!(changes.try_recv().is_err() && state.listed());
    state.apply_node(named("watched"));
    assert_eq!(changes.try_recv().unwrap(), Change::Node("watched".to_owned()));
    // A watch that lists again takes nothing back.
    state.expect_listing("later");
    state.apply_node(named("more"));
    assert_eq!(changes.try_recv().unwrap(), Change::Node("more".to_owned()));
}

#[test]
fn a_node_of_a_pool_counts_once_it_is_known() {
    let state = State::default();
    let count = |labels: Value, id: Option<&str>| {
        state.apply_node(node(json!({"metadata": {"name": "n", "labels": labels},
            "spec": {"providerID": id}})));
        state.state_nodes().len()
    };
    assert_eq!(count(json!({}), None), 1);
    assert_eq!(count(json!({"karpenter.sh/nodepool": "p"}), None), 0);
    assert_eq!(count(json!({"karpenter.sh/nodepool": "p"}), Some("i")), 0);
    let typed = json!({"karpenter.sh/nodepool": "p", "node.kubernetes.io/instance-type": "t"});
    assert_eq!(count(typed, Some("i")), 1);
    assert_eq!(state.state_nodes_of("p").len(), 1);
}

#[test]
fn what_belongs_to_another_provider_never_enters() {
    let state = State::default();
    state.list_everything();
    let mut changes = state.subscribe();
    for (group, kind) in
        [("eks.amazonaws.com", "NodeClass"), ("karpenter.k8s.aws", "Other"), ("x", "EC2NodeClass")]
    {
        state.apply_claim(claim("foreign", group, kind));
        state.apply_pool(
            serde_json::from_value::<NodePool>(json!({"metadata": {"name": "auto"}, "spec": {
                "template": {"spec": {"nodeClassRef": {"group": group, "kind": kind,
                    "name": "default"}}}}}))
            .unwrap(),
        );
    }
    assert!(state.claims().is_empty() && state.pools().is_empty());
    assert!(changes.try_recv().is_err(), "nobody is notified of them");
    let labels = json!({"karpenter.sh/nodepool": "p", "eks.amazonaws.com/nodeclass": "default",
        "node.kubernetes.io/instance-type": "t"});
    state.apply_node(node(json!({"metadata": {"name": "n", "labels": labels},
        "spec": {"providerID": "aws:///z/i-foreign"},
        "status": {"allocatable": {"cpu": "2"}}})));
    let nodes = state.state_nodes();
    assert_eq!(nodes.len(), 1, "its Node is capacity that exists");
    assert!(!nodes[0].managed() && nodes[0].initialized());
    assert!(state.managed_node("n").is_none(), "and nobody may touch it");
    state.apply_claim(claim("own", "karpenter.k8s.aws", "EC2NodeClass"));
    state.apply_claim(claim("old", "", ""));
    assert_eq!(state.claims().len(), 2);
    state.apply_claim(claim("old", "eks.amazonaws.com", "NodeClass"));
    assert_eq!(state.claims().len(), 1, "one that became foreign leaves");
}

#[test]
fn a_node_is_managed_by_its_label_or_by_its_claim() {
    let state = State::default();
    let labelled = json!({"metadata": {"name": "a",
        "labels": {"karpenter.k8s.aws/ec2nodeclass": "default"}}});
    state.apply_node(node(labelled));
    let plain = json!({"metadata": {"name": "b"}, "spec": {"providerID": "aws:///z/i-c"}});
    state.apply_node(node(plain));
    assert!(state.managed_node("a").is_some() && state.managed_node("b").is_none());
    state.apply_claim(claim("c", "karpenter.k8s.aws", "EC2NodeClass"));
    assert!(state.managed_node("b").is_some());
}

#[test]
fn the_state_only_moves_forward() {
    let state = State::default();
    state.list_everything();
    let mut changes = state.subscribe();
    let at = |version: &str, labels: Value| -> NodeClaim {
        serde_json::from_value(json!({"metadata": {"name": "c", "resourceVersion": version,
            "labels": labels}, "spec": {}}))
        .unwrap()
    };
    let shown = || state.claim("c").unwrap().metadata.resource_version.clone().unwrap();
    state.apply_claim(at("9", json!({"karpenter.sh/nodepool": "a"})));
    state.apply_claim(at("10", json!({"karpenter.sh/nodepool": "b"})));
    assert_eq!(shown(), "10", "versions are numbers");
    state.apply_claim(at("9", json!({"karpenter.sh/nodepool": "a"})));
    state.announce_claim(at("8", json!({})));
    assert_eq!(shown(), "10");
    assert_eq!(state.claims_of_pool("b").len(), 1);
    assert!(state.claims_of_pool("a").is_empty());
    assert!(changes.try_recv().is_ok() && changes.try_recv().is_ok());
    assert!(changes.try_recv().is_err(), "an old one is no change");
    state.delete_claim("c");
    state.apply_claim(at("3", json!({})));
    assert_eq!(shown(), "3", "another object of the name may begin anywhere");
}

#[test]
fn what_this_process_wrote_wakes_controllers_once() {
    let state = State::default();
    state.list_everything();
    let mut changes = state.subscribe();
    let at = |version: &str| -> NodeClaim {
        serde_json::from_value(json!({"metadata": {"name": "c", "resourceVersion": version},
            "spec": {}}))
        .unwrap()
    };
    state.announce_claim(at("1"));
    assert!(changes.try_recv().is_err(), "a claim that is not known stays so");
    state.apply_claim(at("1"));
    assert!(changes.try_recv().is_ok());
    state.announce_claim(at("2"));
    assert!(matches!(changes.try_recv(), Ok(Change::NodeClaim(name)) if name == "c"));
    state.apply_claim(at("2"));
    assert!(changes.try_recv().is_err(), "what the watch brings of it is no change any more");
}

#[test]
fn views_follow_every_event() {
    let state = State::default();
    let pod = |name: &str, node: &str, phase: &str| {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n"},
            "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase}}))
        .unwrap()
    };
    let pods = |name: &str| state.state_node(name).unwrap().pods.len();
    state.apply_pod(&pod("early", "n1", "Running"));
    state.apply_node(node(
        json!({"metadata": {"name": "n1"}, "spec": {"providerID": "aws:///z/i-c"}}),
    ));
    assert_eq!(pods("n1"), 1, "pods may come before their Node");
    let before = state.state_nodes();
    state.apply_claim(claim("c", "", ""));
    state.apply_pod(&pod("late", "n1", "Running"));
    assert_eq!(pods("c"), 2);
    assert_eq!(before[0].pods.len(), 1, "a snapshot stays as it was");
    state.apply_pod(&pod("late", "n1", "Succeeded"));
    assert_eq!(pods("c"), 1);
    state.mark_for_deletion(&["c".to_owned()]);
    assert!(state.state_node("c").unwrap().deleting());
    state.unmark_for_deletion(&["c".to_owned()]);
    assert!(!state.state_node("c").unwrap().deleting());
    let until = Timestamp::UNIX_EPOCH;
    state.nominate("c", until);
    assert_eq!(state.state_node("c").unwrap().nominated_until, Some(until));
    state.set_buffer_nodes(HashMap::from([("aws:///z/i-c".to_owned(), 3)]));
    assert_eq!(state.state_node("c").unwrap().buffer_pods, 3);
    state.set_buffer_nodes(HashMap::new());
    assert_eq!(state.state_node("c").unwrap().buffer_pods, 0);
    state.delete_node("n1");
    assert!(state.state_node("c").unwrap().node.is_none());
    assert_eq!(pods("c"), 0);
}

/// A Node with a pod that uses the claim `n/p`.
fn with_a_claim_in_use() -> State {
    let state = State::default();
    state.apply_node(node(json!({"metadata": {"name": "n1"}})));
    state.apply_pod(
        &serde_json::from_value(json!({"metadata": {"name": "a", "namespace": "n"},
            "spec": {"nodeName": "n1", "containers": [], "volumes": [
                {"name": "v", "persistentVolumeClaim": {"claimName": "p"}}]},
            "status": {"phase": "Running"}}))
        .unwrap(),
    );
    state
}

#[test]
fn volumes_of_a_view_follow_claims_and_drivers() {
    let state = with_a_claim_in_use();
    let attached = || state.state_node("n1").unwrap().attached.len();
    state.apply_csi_node(
        &serde_json::from_value(json!({"metadata": {"name": "n1"}, "spec": {"drivers": [
            {"name": "d", "nodeID": "i", "allocatable": {"count": 3}}]}}))
        .unwrap(),
    );
    assert_eq!((state.state_node("n1").unwrap().volume_limits["d"], attached()), (Some(3), 0));
    state.apply_volume_claim(
        &serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"},
            "spec": {"volumeName": "pv"}}))
        .unwrap(),
    );
    state.apply_volume(
        &serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": {
            "csi": {"driver": "d", "volumeHandle": "h"},
            "claimRef": {"namespace": "n", "name": "p"}}}))
        .unwrap(),
    );
    assert_eq!(attached(), 1);
    state.delete_volume_claim("n", "p");
    assert_eq!(attached(), 0);
}

#[test]
fn a_view_follows_a_volume_that_names_another_claim_now() {
    let state = with_a_claim_in_use();
    state.apply_volume_claim(
        &serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"},
            "spec": {"volumeName": "pv"}}))
        .unwrap(),
    );
    let volume = |claim: &str, driver: &str| {
        state.apply_volume(
            &serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": {
                "csi": {"driver": driver, "volumeHandle": "h"},
                "claimRef": {"namespace": "n", "name": claim}}}))
            .unwrap(),
        );
    };
    let attached = || state.state_node("n1").unwrap().attached.len();
    volume("p", "d");
    assert_eq!(attached(), 1);
    state.delete_volume("pv");
    assert_eq!(attached(), 0, "nobody knows its driver any more");
    // The claim still names the volume; the volume names the claim that it had before.
    volume("other", "d");
    assert_eq!(attached(), 1);
}

#[test]
fn a_view_has_the_pods_of_the_first_lists_once_everything_is_listed() {
    let state = State::default();
    state.begin_listing();
    state.apply_node(node(json!({"metadata": {"name": "n1"}})));
    let pod = |name: &str| {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n"},
            "spec": {"nodeName": "n1", "containers": []}, "status": {"phase": "Running"}}))
        .unwrap()
    };
    let pods = || state.state_node("n1").unwrap().pods.len();
    state.apply_pod(&pod("a"));
    state.apply_pod(&pod("b"));
    state.list_everything();
    assert_eq!(pods(), 2);
    state.apply_pod(&pod("c"));
    assert_eq!(pods(), 3, "from then on with each event");
}
