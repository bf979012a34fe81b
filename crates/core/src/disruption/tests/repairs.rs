//! The rules of repair beside those of other methods: budgets, static pools, who is a candidate.

use super::*;
use crate::api::annotations;

fn repaired(snap: &Snapshot, gates: Gates) -> Decision {
    Given { repair: policies(&[LOST]), gates, ..Given::new(snap) }.run(Method::Repair)
}

#[test]
fn repair_is_the_first_method() {
    assert_eq!(Method::ALL[0], Method::Repair);
    assert_eq!(Method::Repair.reason(), Reason::Unhealthy);
}

#[test]
fn nodes_that_are_not_ready_use_up_every_budget_but_that_for_unhealthy_nodes() {
    let nodes =
        vec![broken(node("bad", "small", "2", &[], &[])), node("n", "small", "2", &[], &[])];
    let snap = snapshot(json!({"budgets": [{"nodes": "1"}]}), nodes);
    for (reason, used) in [
        (Reason::Unhealthy, 0),
        (Reason::Drifted, 1),
        (Reason::Empty, 1),
        (Reason::Underutilized, 1),
    ] {
        let now = Timestamp::UNIX_EPOCH;
        let budgets = budget::Budgets::new(&snap.node_pools, &snap.nodes, reason, now);
        assert_eq!(budgets.of("p").disrupting, used, "{reason:?}");
    }
}

#[test]
fn a_sick_node_without_a_pool_stays_and_says_so() {
    let mut bad = broken(node("bad", "small", "2", &[], &[]));
    let joined = &mut Arc::make_mut(bad.node.as_mut().unwrap()).metadata;
    joined.labels.as_mut().unwrap().remove(labels::NODEPOOL);
    let claim = &mut Arc::make_mut(bad.node_claim.as_mut().unwrap()).metadata;
    claim.labels.as_mut().unwrap().remove(labels::NODEPOOL);
    let decision = repaired(&snapshot(json!({}), vec![bad]), Gates::default());
    assert_eq!(why(&decision, "bad"), &Rejection::NoPool);
    assert_eq!(Rejection::NoPool.event(Method::Repair), Some(EventKind::DisruptionBlocked));
}

#[test]
fn a_sick_node_whose_pods_fit_nowhere_stays_and_says_so() {
    let bad = broken(node("bad", "large", "64", &[], &["40"]));
    let decision = repaired(&snapshot(json!({}), vec![bad]), Gates::default());
    let rejection = why(&decision, "bad");
    assert!(matches!(rejection, Rejection::Stranded(_)), "{rejection:?}");
    assert_eq!(rejection.event(Method::Repair), Some(EventKind::DisruptionBlocked));
}

#[test]
fn a_sick_node_of_a_static_pool_is_replaced_within_its_node_limit() {
    let pool = |replicas, limit| {
        let mut nodes = vec![broken(node("bad", "small", "2", &[], &["1"]))];
        nodes.extend((1..5).map(|i| node(&format!("n{i}"), "small", "2", &[], &[])));
        ready(static_pool(replicas, Some(limit), nodes))
    };
    let off = Gates::default();
    let decision = repaired(&pool(5, 6), off);
    assert_eq!(names(&decision), ["bad"]);
    assert_eq!(decision.commands[0].replacements.len(), 1, "the replacement comes first");
    let full = repaired(&pool(5, 5), off);
    assert_eq!(why(&full, "bad"), &Rejection::StaticAtLimit);
    assert_eq!(
        why(&full, "bad").to_string(),
        "static NodePool is at its node limit and cannot stage a replacement"
    );
    assert_eq!(why(&repaired(&pool(4, 6), off), "bad"), &Rejection::AboveReplicas);
    // Each gate is for its own method.
    assert_eq!(why(&repaired(&pool(5, 5), FIRST), "bad"), &Rejection::StaticAtLimit);
    let first = repaired(&pool(5, 5), Gates { terminate_first_repair: true, ..off });
    assert_eq!(first.commands[0].decision(), "terminate-first");
    assert_eq!(first.commands[0].terminate_first.unwrap().label(), "static-at-limit");
}

#[test]
fn a_sick_node_in_a_full_reservation_goes_first_by_the_gate_of_repair() {
    let mut snap = snapshot(json!({}), vec![broken(reserved_node("bad", "cr-1"))]);
    snap.node_pools[0].instance_types = [reserved(0)].into();
    let of = |gates| {
        let decision = repaired(&snap, gates);
        decision.commands.iter().map(Command::decision).collect::<Vec<_>>()
    };
    assert!(of(FIRST).is_empty());
    let gates = Gates { terminate_first_repair: true, ..Gates::default() };
    assert_eq!(of(gates), ["terminate-first"]);
}

#[test]
fn why_a_node_is_no_candidate_is_said_in_one_order() {
    let joined = |state: &mut StateNode, change: &dyn Fn(&mut k8s_openapi::api::core::v1::Node)| {
        change(Arc::make_mut(state.node.as_mut().unwrap()));
    };
    let said = |state: &StateNode| {
        let snap = snapshot(json!({}), vec![state.clone()]);
        why(&run(&snap, Method::Emptiness), "n").to_string()
    };
    // Everything stands against the node; one after the other is taken away.
    let mut plain = node("n", "small", "2", &[], &[]);
    plain.nominated_until = Some(Timestamp::MAX);
    joined(&mut plain, &|n| {
        let all = n.metadata.annotations.get_or_insert_default();
        all.insert(annotations::DO_NOT_DISRUPT.to_owned(), "true".to_owned());
    });
    let mut state = rebooting(plain.clone());
    state.marked_for_deletion = true;
    assert_eq!(said(&state), "node is rebooting");
    state = plain.clone();
    state.marked_for_deletion = true;
    assert!(said(&state).contains("deleting"), "{}", said(&state));
    state = plain.clone();
    joined(&mut state, &|n| drop(n.metadata.labels.as_mut().unwrap().remove(labels::INITIALIZED)));
    assert_eq!(said(&state), "node isn't initialized");
    joined(&mut state, &|n| drop(n.metadata.labels.as_mut().unwrap().remove(labels::REGISTERED)));
    assert_eq!(said(&state), "node isn't initialized nor registered");
    assert!(said(&plain).contains("nominated"), "{}", said(&plain));
    plain.nominated_until = None;
    assert!(said(&plain).contains("do-not-disrupt"), "{}", said(&plain));
}
