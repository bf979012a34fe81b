use serde_json::{Value, json};

use super::*;

#[allow(clippy::type_complexity, reason = "the type of closures cannot be named otherwise")]
fn intake() -> Intake<
    String,
    impl Fn(&State, &ObjectMeta) -> String,
    impl Fn(&State, NodePool),
    impl Fn(&State, &String),
> {
    Intake {
        source: "nodepools",
        id_of: name_of,
        apply: State::apply_pool,
        forget: |state: &State, name: &String| state.delete_pool(name),
        known: HashSet::new(),
    }
}

fn pool(name: &str, weight: Value) -> Readable<NodePool> {
    let value = json!({"metadata": {"name": name, "uid": name}, "spec": {"weight": weight}});
    serde_json::from_value(value).unwrap()
}

#[test]
fn an_object_that_cannot_be_understood_is_left_out_alone_and_reported() {
    let (state, mut intake) = (State::default(), intake());
    state.list_everything();
    let mut changes = state.subscribe();
    let ids = ["good", "odd"].map(|name| {
        let weight = if name == "odd" { json!("heavy") } else { json!(1) };
        intake.take(&state, pool(name, weight))
    });
    intake.keep_only(&state, ids.into_iter().collect());
    assert!(state.pool("good").is_some() && state.pool("odd").is_none());
    let [left_out] = state.left_out().try_into().unwrap();
    assert_eq!(left_out.reference.name.as_deref(), Some("odd"));
    assert_eq!(left_out.reference.kind.as_deref(), Some("NodePool"));
    assert!(left_out.problem.starts_with("spec.weight: "), "{}", left_out.problem);
    let received: Vec<Change> = std::iter::from_fn(|| changes.try_recv().ok()).collect();
    assert!(received.contains(&Change::Unreadable), "{received:?}");

    intake.take(&state, pool("odd", json!(7)));
    assert!(state.pool("odd").is_some() && state.left_out().is_empty(), "it was mended");
    intake.take(&state, pool("odd", json!("heavy")));
    assert!(state.pool("odd").is_none(), "what it was before does not count any more");
    intake.remove(&state, &ObjectMeta { name: Some("odd".to_owned()), ..ObjectMeta::default() });
    assert!(state.left_out().is_empty());
}

#[test]
fn what_a_new_list_does_not_hold_is_forgotten() {
    let (state, mut intake) = (State::default(), intake());
    intake.take(&state, pool("stays", json!(1)));
    intake.take(&state, pool("goes", json!(1)));
    intake.take(&state, pool("odd", json!("heavy")));
    intake.keep_only(&state, HashSet::from(["stays".to_owned()]));
    assert!(state.pool("stays").is_some() && state.pool("goes").is_none());
    assert!(state.left_out().is_empty());
}

#[test]
fn an_expired_watch_is_no_failure() {
    let status = |code| Box::new(kube::core::Status { code, ..Default::default() });
    assert!(is_expired(&watcher::Error::WatchError(status(410))));
    assert!(is_expired(&watcher::Error::WatchFailed(kube::Error::Api(status(410)))));
    assert!(!is_expired(&watcher::Error::WatchError(status(500))));
    assert!(!is_expired(&watcher::Error::NoResourceVersion));
}
