//! Static pools, and reservations that a replacement would need a second time.

use super::*;

pub(super) fn static_pool(replicas: i64, limit: Option<i64>, nodes: Vec<StateNode>) -> Snapshot {
    let mut snap = snapshot(json!({"budgets": [{"nodes": "100%"}]}), nodes);
    let mut pool = (*snap.node_pools[0].node_pool).clone();
    pool.spec.replicas = Some(replicas);
    if let Some(limit) = limit {
        pool.spec.limits = serde_json::from_value(json!({"nodes": limit.to_string()})).unwrap();
    }
    snap.node_pools[0].node_pool = Arc::new(pool);
    snap
}

#[test]
fn drifted_nodes_of_a_static_pool_are_replaced_within_its_node_limit() {
    let nodes =
        || (0..3).map(|i| node(&format!("n{i}"), "small", "2", &["Drifted"], &["1"])).collect();
    let free = static_pool(3, None, nodes());
    let decision = run(&free, Method::StaticDrift);
    assert_eq!(names(&decision), ["n0", "n1", "n2"]);
    assert!(decision.commands.iter().all(|c| c.replacements.len() == 1));
    assert!(run(&free, Method::Drift).commands.is_empty());
    let limited = static_pool(3, Some(4), nodes());
    let decision = run(&limited, Method::StaticDrift);
    assert_eq!(names(&decision), ["n0"], "one more node may be there");
    assert_eq!(why(&decision, "n1"), &Rejection::StaticAtLimit);
    let event = why(&decision, "n1").event(Method::StaticDrift);
    assert_eq!(event, Some(EventKind::DisruptionBlocked));
    let surplus = static_pool(2, None, nodes());
    let decision = run(&surplus, Method::StaticDrift);
    assert_eq!(why(&decision, "n0"), &Rejection::AboveReplicas);
}

#[test]
fn at_its_limit_a_static_pool_terminates_first_only_behind_the_gate() {
    let nodes = || vec![node("n0", "small", "2", &["Drifted"], &["1"])];
    let mut snap = static_pool(1, Some(1), nodes());
    let mut pool = (*snap.node_pools[0].node_pool).clone();
    let ready = json!({"conditions": [{"type": "Ready", "status": "True", "reason": "Ready",
        "message": "", "lastTransitionTime": "1970-01-01T00:00:00Z"}]});
    pool.status = Some(serde_json::from_value(ready).unwrap());
    snap.node_pools[0].node_pool = Arc::new(pool);
    assert!(run(&snap, Method::StaticDrift).commands.is_empty());
    let gates = Gates { terminate_first_drift: true, ..Gates::default() };
    let decision = Given { gates, ..Given::new(&snap) }.run(Method::StaticDrift);
    assert_eq!(decision.commands[0].decision(), "terminate-first");
}

/// A type that is only to be had in a reservation, with so many slots left.
pub(super) fn reserved(left: i64) -> Arc<InstanceType> {
    let mut kind = (*kind("small", 2, 0.1)).clone();
    let offering = &mut kind.offerings[0];
    let is = Requirement::is;
    offering.requirements = [
        is(labels::ZONE, "a"),
        is(labels::CAPACITY_TYPE, labels::CAPACITY_RESERVED),
        is(labels::CAPACITY_RESERVATION_ID, "cr-1"),
    ]
    .into_iter()
    .collect();
    (offering.available, offering.reservation_full) = (left > 0, left == 0);
    offering.reservation_capacity = left;
    kind.requirements.add(is(labels::CAPACITY_TYPE, labels::CAPACITY_RESERVED));
    Arc::new(kind)
}

/// A drifted node in a reservation.
pub(super) fn reserved_node(name: &str, id: &str) -> StateNode {
    let mut state = node(name, "small", "2", &["Drifted"], &["1"]);
    let mut joined = (**state.node.as_ref().unwrap()).clone();
    let all = joined.metadata.labels.as_mut().unwrap();
    all.insert(labels::CAPACITY_TYPE.to_owned(), labels::CAPACITY_RESERVED.to_owned());
    all.insert(labels::CAPACITY_RESERVATION_ID.to_owned(), id.to_owned());
    state.node = Some(Arc::new(joined));
    state
}

fn decisions(snapshot: &Snapshot, method: Method, gates: Gates) -> Vec<&'static str> {
    let decision = Given { gates, ..Given::new(snapshot) }.run(method);
    decision.commands.iter().map(Command::decision).collect()
}

#[test]
fn a_node_in_a_full_reservation_is_terminated_first_only_where_its_slot_holds_all_its_pods() {
    let snap = |id: &str| {
        let mut snap = snapshot(json!({}), vec![reserved_node("n0", id)]);
        snap.node_pools[0].instance_types = [reserved(0)].into();
        snap
    };
    assert!(decisions(&snap("cr-1"), Method::Drift, Gates::default()).is_empty());
    assert_eq!(decisions(&snap("cr-1"), Method::Drift, FIRST), ["terminate-first"]);
    assert!(decisions(&snap("cr-2"), Method::Drift, FIRST).is_empty(), "another reservation");
    let mut room = snap("cr-1");
    room.node_pools[0].instance_types = [reserved(1)].into();
    assert_eq!(decisions(&room, Method::Drift, FIRST), ["replace"], "there is a slot");
}

pub(super) fn ready(mut snap: Snapshot) -> Snapshot {
    let mut pool = (*snap.node_pools[0].node_pool).clone();
    let ready = json!({"conditions": [{"type": "Ready", "status": "True", "reason": "Ready",
        "message": "", "lastTransitionTime": "1970-01-01T00:00:00Z"}]});
    pool.status = Some(serde_json::from_value(ready).unwrap());
    snap.node_pools[0].node_pool = Arc::new(pool);
    snap
}

#[test]
fn a_static_pool_of_full_reservations_terminates_first_what_gives_back_a_slot() {
    let all = json!({"budgets": [{"nodes": "100%"}]});
    let mut snap = static_pool(2, None, Vec::new());
    snap.nodes = vec![reserved_node("n0", "cr-2"), reserved_node("n1", "cr-1")];
    snap.node_pools[0].instance_types = [reserved(0)].into();
    let mut pool = (*snap.node_pools[0].node_pool).clone();
    pool.spec.disruption = serde_json::from_value(all).unwrap();
    snap.node_pools[0].node_pool = Arc::new(pool);
    let snap = ready(snap);
    let decision = Given { gates: FIRST, ..Given::new(&snap) }.run(Method::StaticDrift);
    assert_eq!(names(&decision), ["n1"]);
    let first = decision.commands[0].terminate_first.unwrap();
    assert_eq!(first.label(), "no-reserved-capacity");
    assert_eq!(why(&decision, "n0"), &Rejection::StaticReservationsFull);
}

#[test]
fn a_static_pool_with_room_for_some_replacements_terminates_none_first() {
    let nodes = (0..3).map(|i| node(&format!("n{i}"), "small", "2", &["Drifted"], &["1"]));
    let snap = ready(static_pool(3, Some(4), nodes.collect()));
    assert_eq!(decisions(&snap, Method::StaticDrift, FIRST), ["replace"]);
}
