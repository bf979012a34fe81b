//! Asking a prepared world is as good as solving a snapshot made for the question.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::properties::{Sketch, fingerprint, input, pods_of, sketch};
use super::*;

/// A cluster with pods on its nodes: each sketch sits on the node with its number.
fn cluster(waiting: &[Sketch], bound: &[(Sketch, usize, u8)], nodes: usize) -> Snapshot {
    let mut snapshot = input(waiting, 0);
    snapshot.options.pack_by_price = false;
    let on_nodes: Vec<Sketch> = bound.iter().map(|(sketch, _, _)| sketch.clone()).collect();
    let pods = pods_of(&on_nodes);
    for at in 0..nodes {
        let name = format!("n{at}");
        // Zone c is known from nodes only.
        let zone = ["a", "b", "c"][at % 3];
        let pool = ["plain", "tainted"][at % 2];
        let node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {labels::HOSTNAME: name, labels::ZONE: zone,
                labels::NODEPOOL: pool}},
            "status": {"capacity": {"cpu": "6"},
                "allocatable": {"cpu": "6", "memory": "8Gi", "pods": "6"}}}))
        .unwrap();
        let here = pods.iter().zip(bound).enumerate().filter(|(_, (_, (_, n, _)))| n % nodes == at);
        let here = here.map(|(number, (pod, (_, _, state)))| {
            let mut pod = (**pod).clone();
            pod.key.name = Arc::from(format!("b{number:03}"));
            pod.uid = Arc::from(format!("b{number:03}"));
            pod.node_name = Some(Arc::from(name.as_str()));
            pod.terminating = *state == 0;
            pod.owners.daemon_set = *state == 1;
            Arc::new(pod)
        });
        let pods = here.collect();
        let closed = at % 4 == 3;
        snapshot.nodes.push(StateNode::from(NodeView {
            node: Some(Arc::new(node)),
            pods,
            closed,
            ..NodeView::default()
        }));
    }
    let daemon = json!({"metadata": {"name": "d", "namespace": "n", "labels": {"app": "1"}},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "200m"}}}]}});
    snapshot.daemonset_pods =
        vec![Arc::new(PodInfo::from_pod(&serde_json::from_value(daemon).unwrap()))];
    snapshot
}

/// The results as lines of text, in their order.
fn shown(results: &Results) -> Vec<String> {
    let mut lines = fingerprint(results);
    lines.extend(results.new_claims.iter().map(|c| format!("{:?} {:?}", c.pods, c.requirements)));
    lines.extend(results.existing.iter().map(|e| format!("{e:?}")));
    lines.extend(results.errors.iter().map(|e| format!("{e:?}")));
    lines
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_question_has_the_outcome_of_a_snapshot_of_its_own(
        waiting in proptest::collection::vec(sketch(), 0..6),
        bound in proptest::collection::vec((sketch(), 0_usize..9, 0_u8..8), 0..30),
        nodes in 1_usize..9,
        questions in proptest::collection::vec(
            (proptest::collection::btree_set(0_usize..9, 1..4), any::<bool>()), 1..5),
    ) {
        let snapshot = cluster(&waiting, &bound, nodes);
        let mut world = World::new(Arc::new(snapshot.clone()), |pod| pod.is_reschedulable());
        for (numbers, closing) in questions {
            let gone: BTreeSet<String> =
                numbers.iter().map(|at| format!("n{}", at % nodes)).collect();
            let names: Vec<&str> = gone.iter().map(String::as_str).collect();
            let leaving = snapshot.nodes.iter().filter(|n| gone.contains(n.name()));
            let pods: Vec<Arc<PodInfo>> = leaving
                .flat_map(|n| &n.pods)
                .filter(|p| p.is_reschedulable())
                .cloned()
                .collect();
            let mut own = snapshot.clone();
            own.left_out = own.nodes.extract_if(.., |n| gone.contains(n.name())).collect();
            own.nodes.iter_mut().for_each(|n| n.closed &= closing);
            own.pods.extend(pods.iter().cloned());
            prop_assert_eq!(shown(&world.without(&names, &pods, closing)), shown(&solve(&own)));
        }
    }
}

#[test]
fn a_question_leaves_no_trace() {
    let snapshot = input(&[], 4);
    let mut world = World::new(Arc::new(snapshot.clone()), |_| true);
    let before = shown(&world.without(&["n0"], &[], false));
    world.without(&["n0", "n1", "n2", "n3"], &[], true);
    assert_eq!(shown(&world.without(&["n0"], &[], false)), before);
}

#[test]
fn pods_that_were_not_announced_are_placed_all_the_same() {
    let snapshot = input(&[], 2);
    let mut world = World::new(Arc::new(snapshot.clone()), |_| true);
    let stranger = pod("stranger", "1", json!({}));
    let results = world.without(&["n0"], &[stranger], false);
    assert_eq!(results.existing.len(), 1);
    assert_eq!(results.existing[0].0, "n1");
}

#[test]
fn what_a_removed_node_says_about_its_type_is_not_forgotten() {
    let volumes = |pod: &Arc<PodInfo>| crate::scheduling::volumes::PodVolumes {
        attached: vec![(Arc::from("ebs"), Arc::clone(&pod.key.name))],
        ..Default::default()
    };
    let mut snapshot = input(&[], 1);
    snapshot.options.pack_by_price = false;
    let pods: Vec<Arc<PodInfo>> =
        (0..3).map(|i| pod(&format!("p{i}"), "100m", json!({}))).collect();
    for pod in &pods {
        snapshot.pod_volumes.insert(pod.key.clone(), Arc::new(volumes(pod)));
    }
    let node = &mut snapshot.nodes[0];
    let mut object = (**node.node.as_ref().unwrap()).clone();
    let own = object.metadata.labels.get_or_insert_default();
    own.insert(labels::NODEPOOL.to_owned(), "plain".to_owned());
    own.insert(labels::INSTANCE_TYPE.to_owned(), "small".to_owned());
    node.node = Some(Arc::new(object));
    node.volume_limits.insert("ebs".to_owned(), Some(2));
    node.pods.clone_from(&pods);
    let mut world = World::new(Arc::new(snapshot.clone()), |_| true);
    let results = world.without(&["n0"], &pods, false);
    assert_eq!(results.new_claims.len(), 2);
    // Nobody attaches three to any type of the pool.
    let mut heavy = (*snapshot.pod_volumes[&pods[0].key]).clone();
    heavy.attached.extend([(Arc::from("ebs"), Arc::from("x")), (Arc::from("ebs"), Arc::from("y"))]);
    snapshot.pod_volumes.insert(pods[0].key.clone(), Arc::new(heavy));
    let mut world = World::new(Arc::new(snapshot.clone()), |_| true);
    let results = world.without(&["n0"], &pods, false);
    let text = results.errors[0].1.to_string();
    assert!(text.contains("would exceed volume limit for all instance type options"), "{text}");
    // Nor is it where the question is answered from the beginning.
    let mut unprepared = World::new(Arc::new(snapshot), |_| false);
    assert_eq!(shown(&unprepared.without(&["n0"], &pods, false)), shown(&results));
}

/// Three pods with a volume each.
fn with_volumes(nodes: usize) -> (Snapshot, Vec<Arc<PodInfo>>) {
    let mut snapshot = input(&[], nodes);
    snapshot.options.pack_by_price = false;
    let pods: Vec<_> = (0..3).map(|i| pod(&format!("p{i}"), "100m", json!({}))).collect();
    for pod in &pods {
        let volumes = crate::scheduling::volumes::PodVolumes {
            attached: vec![(Arc::from("ebs"), Arc::clone(&pod.key.name))],
            ..Default::default()
        };
        snapshot.pod_volumes.insert(pod.key.clone(), Arc::new(volumes));
    }
    for pool in &mut snapshot.node_pools {
        let types = pool.instance_types.iter().map(|kind| {
            let mut kind = (**kind).clone();
            kind.volume_limits.insert("ebs".to_owned(), 2);
            Arc::new(kind)
        });
        pool.instance_types = types.collect();
    }
    (snapshot, pods)
}

#[test]
fn a_new_node_takes_no_more_volumes_than_the_provider_says_of_its_type() {
    let (snapshot, pods) = with_volumes(0);
    let claims = |snapshot: &Snapshot| {
        World::new(Arc::new(snapshot.clone()), |_| true).without(&[], &pods, false).new_claims.len()
    };
    assert_eq!(claims(&snapshot), 2);
    // Where the provider reports nothing, nothing is counted.
    let mut silent = snapshot;
    for pool in &mut silent.node_pools {
        let types = pool.instance_types.iter().map(|kind| {
            let mut kind = (**kind).clone();
            kind.volume_limits.clear();
            Arc::new(kind)
        });
        pool.instance_types = types.collect();
    }
    assert_eq!(claims(&silent), 1);
}

#[test]
fn a_node_takes_what_its_driver_says_and_before_that_what_the_provider_says_of_its_type() {
    let (snapshot, pods) = with_volumes(1);
    let placed = |said: Option<Option<u64>>| {
        let mut snapshot = snapshot.clone();
        let node = &mut snapshot.nodes[0];
        let mut object = (**node.node.as_ref().unwrap()).clone();
        let own = object.metadata.labels.get_or_insert_default();
        own.insert(labels::NODEPOOL.to_owned(), "plain".to_owned());
        own.insert(labels::INSTANCE_TYPE.to_owned(), "small".to_owned());
        node.node = Some(Arc::new(object));
        node.volume_limits.extend(said.map(|limit| ("ebs".to_owned(), limit)));
        let results = World::new(Arc::new(snapshot), |_| true).without(&[], &pods, false);
        results.existing.iter().map(|(_, pods)| pods.len()).sum::<usize>()
    };
    assert_eq!(placed(None), 2, "the driver did not come up yet");
    assert_eq!(placed(Some(Some(1))), 1);
    assert_eq!(placed(Some(None)), 3, "a driver without a count has no limit");
}
