//! The rules of repair beside those of other methods: budgets, static pools, who is a candidate.

use super::static_pools::{ready, reserved, reserved_node, static_pool};
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

const LOST: repair::RepairPolicy = repair::RepairPolicy {
    condition: "Ready",
    status: "False",
    reason: "",
    toleration: std::time::Duration::from_secs(1800),
    drain: Some(std::time::Duration::from_secs(600)),
    priority: 0,
    action: repair::Action::Replace,
};

fn policies(list: &[repair::RepairPolicy]) -> repair::Policies {
    repair::Policies::new(list).unwrap()
}

fn broken(mut state: StateNode) -> StateNode {
    let mut node = (**state.node.as_ref().unwrap()).clone();
    node.status.as_mut().unwrap().conditions = serde_json::from_value(json!([{"type": "Ready",
        "status": "False", "lastTransitionTime": "1970-01-01T00:10:00Z"}]))
    .unwrap();
    state.node = Some(Arc::new(node));
    state
}

#[test]
fn a_broken_node_is_replaced_within_the_budget_for_unhealthy_nodes() {
    let nodes = |count: usize| {
        let mut nodes = vec![broken(node("bad", "small", "2", &[], &["1"]))];
        nodes.extend((1..count).map(|i| node(&format!("n{i}"), "small", "2", &[], &["1500m"])));
        nodes
    };
    let ask = |disruption: Value, count: usize| {
        let snap = snapshot(disruption, nodes(count));
        Given { repair: policies(&[LOST]), ..Given::new(&snap) }.run(Method::Repair)
    };
    let decision = ask(json!({}), 5);
    assert_eq!(names(&decision), ["bad"]);
    let command = &decision.commands[0];
    assert_eq!(command.replacements.len(), 1, "the replacement comes first");
    assert_eq!(command.repair.as_ref().unwrap().drain, LOST.drain);
    assert_eq!(why(&decision, "n1"), &Rejection::Healthy);
    let none = ask(json!({"budgets": [{"nodes": "0", "reasons": ["Unhealthy"]}]}), 5);
    assert!(matches!(why(&none, "bad"), Rejection::BudgetUsedUp(_)));
    let two_of_five = snapshot(json!({}), {
        let mut nodes = nodes(5);
        nodes[1] = broken(nodes[1].clone());
        nodes
    });
    let decision =
        Given { repair: policies(&[LOST]), ..Given::new(&two_of_five) }.run(Method::Repair);
    assert_eq!(why(&decision, "bad"), &Rejection::ManyUnhealthy("p".into()));
    assert!(run(&two_of_five, Method::Repair).commands.is_empty(), "off without policies");
}

#[test]
fn only_the_annotation_against_repair_keeps_a_broken_node() {
    let mark = |key: &str| {
        let mut state = broken(node("bad", "small", "2", &[], &["1"]));
        let mut joined = (**state.node.as_ref().unwrap()).clone();
        joined.metadata.annotations.get_or_insert_default().insert(key.to_owned(), "true".into());
        state.node = Some(Arc::new(joined));
        let snap = snapshot(json!({}), vec![state]);
        Given { repair: policies(&[LOST]), ..Given::new(&snap) }.run(Method::Repair)
    };
    assert_eq!(names(&mark("karpenter.sh/do-not-disrupt")), ["bad"]);
    assert_eq!(why(&mark("karpenter.sh/do-not-repair"), "bad"), &Rejection::DoNotRepair);
}

/// A node whose claim is being rebooted.
fn rebooting(mut state: StateNode) -> StateNode {
    let mut claim = (**state.node_claim.as_ref().unwrap()).clone();
    let list = &mut claim.status.as_mut().unwrap().conditions;
    let (kind, reason) = (conditions::REBOOTING, "RebootIssued");
    conditions::set(list, kind, "True", reason, reason, None, Timestamp::UNIX_EPOCH);
    state.node_claim = Some(Arc::new(claim));
    let mut joined = (**state.node.as_ref().unwrap()).clone();
    joined.metadata.labels.as_mut().unwrap().remove(labels::INITIALIZED);
    joined.spec.as_mut().unwrap().taints = Some(vec![crate::api::taints::rebooting()]);
    state.node = Some(Arc::new(joined));
    state
}

#[test]
fn a_rebooting_node_counts_for_every_reason_and_is_no_candidate() {
    let nodes =
        vec![rebooting(node("r", "small", "2", ALL, &[])), node("n", "small", "2", ALL, &[])];
    let snap = snapshot(json!({"budgets": [{"nodes": "1"}]}), nodes);
    for reason in [Reason::Unhealthy, Reason::Empty, Reason::Drifted, Reason::Underutilized] {
        let pools = &snap.node_pools;
        let budgets = budget::Budgets::new(pools, &snap.nodes, reason, Timestamp::UNIX_EPOCH);
        let of = budgets.of("p");
        assert_eq!((of.total, of.disrupting), (2, 1), "{reason:?}");
    }
    let decision = run(&snap, Method::Emptiness);
    assert_eq!(why(&decision, "r"), &Rejection::Rebooting);
    assert_eq!(why(&decision, "r").to_string(), "node is rebooting");
    assert!(names(&decision).is_empty());
    assert!(snap.nodes[0].taints().is_empty(), "its room is there again soon");
}

#[test]
fn a_policy_that_reboots_asks_for_no_replacement_and_gives_way_to_one_after_two_reboots() {
    let reboot = repair::RepairPolicy {
        reason: "^Xid",
        action: repair::Action::Reboot,
        drain: None,
        ..LOST
    };
    let mut bad = broken(node("bad", "small", "2", &[], &["1"]));
    let mut joined = (**bad.node.as_ref().unwrap()).clone();
    joined.status.as_mut().unwrap().conditions.as_mut().unwrap()[0].reason = Some("Xid119".into());
    bad.node = Some(Arc::new(joined));
    let mut claim = (**bad.node_claim.as_ref().unwrap()).clone();
    claim.metadata.uid = Some("uid".to_owned());
    claim.spec.termination_grace_period = Some(serde_json::from_value(json!("5m")).unwrap());
    bad.node_claim = Some(Arc::new(claim));
    let snap = snapshot(json!({}), vec![bad]);
    let ask = |rebooted: &[&str]| {
        let rebooted = rebooted.iter().map(|u| (*u).to_owned()).collect();
        let repair = policies(&[LOST, reboot]);
        Given { repair, rebooted, ..Given::new(&snap) }.run(Method::Repair).commands.remove(0)
    };
    let command = ask(&[]);
    assert_eq!((command.decision(), command.replacements.len()), ("reboot", 0));
    assert_eq!(command.repair.as_ref().unwrap().reason, "Xid119");
    assert_eq!(ask(&["uid"]).decision(), "replace");
}

#[test]
fn a_node_that_never_came_up_needs_no_budget_to_be_repaired() {
    let mut bad = broken(node("bad", "small", "2", &[], &[]));
    let mut joined = (**bad.node.as_ref().unwrap()).clone();
    joined.metadata.labels.as_mut().unwrap().remove(labels::INITIALIZED);
    bad.node = Some(Arc::new(joined));
    let none = json!({"budgets": [{"nodes": "0"}]});
    for replicas in [None, Some(1)] {
        let mut snap = snapshot(none.clone(), vec![bad.clone()]);
        let mut pool = (*snap.node_pools[0].node_pool).clone();
        pool.spec.replicas = replicas;
        snap.node_pools[0].node_pool = Arc::new(pool);
        let decision = Given { repair: policies(&[LOST]), ..Given::new(&snap) }.run(Method::Repair);
        assert_eq!(names(&decision), ["bad"], "replicas {replicas:?}");
    }
}

#[test]
fn pods_that_block_are_bypassed_only_where_the_drain_is_bounded() {
    let unbounded = repair::RepairPolicy { drain: None, ..LOST };
    let ask = |policy, own: Option<&str>| {
        let mut bad = broken(node("bad", "small", "2", &[], &[]));
        let mut kept = (*pod("kept", "1")).clone();
        kept.do_not_disrupt = Some("true".into());
        bad.pods = vec![Arc::new(kept)];
        let mut claim = (**bad.node_claim.as_ref().unwrap()).clone();
        claim.spec.termination_grace_period =
            own.map(|text| serde_json::from_value(json!(text)).unwrap());
        bad.node_claim = Some(Arc::new(claim));
        let snap = snapshot(json!({}), vec![bad]);
        let decision =
            Given { repair: policies(&[policy]), ..Given::new(&snap) }.run(Method::Repair);
        let drain = decision.commands.first().map(|c| c.repair.as_ref().unwrap().drain);
        drain.ok_or_else(|| why(&decision, "bad").to_string())
    };
    let blocked = "repair requires a termination grace period to bypass blocking pods";
    assert_eq!(ask(unbounded, None), Err(blocked.to_owned()));
    assert_eq!(ask(unbounded, Some("1h")), Ok(None));
    assert_eq!(ask(LOST, Some("1h")), Ok(LOST.drain));
    assert_eq!(ask(LOST, Some("1m")), Ok(Some(std::time::Duration::from_secs(60))));
}
