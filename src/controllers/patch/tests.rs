//! Tests of the writes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::http::Response;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Node;
use kube::client::Body;
use parking_lot::Mutex;

use super::*;

#[test]
fn a_patch_holds_only_what_changed() {
    let before = json!({"a": 1, "b": {"c": 2, "d": 3}, "e": [1]});
    let after = json!({"a": 1, "b": {"c": 4}, "e": [1, 2]});
    assert_eq!(diff(&before, &after), Some(json!({"b": {"c": 4, "d": null}, "e": [1, 2]})));
    assert_eq!(diff(&before, &before), None);
}

#[test]
fn a_change_is_made_to_what_the_object_is_now() {
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status});
    let object = |version: &str, label: &str, conditions: Value| {
        json!({"metadata": {"resourceVersion": version, "labels": {"a": label}},
            "status": {"conditions": conditions}})
    };
    let before = object("1", "x", json!([condition("Launched", "Unknown")]));
    let mut after = object("1", "x", json!([condition("Launched", "True")]));
    after["status"]["providerID"] = json!("i-1");
    // Meanwhile another controller has set a condition, and somebody a label.
    let live =
        object("2", "y", json!([condition("Launched", "Unknown"), condition("Drifted", "True")]));
    let merged = rebase(&before, &after, &live);
    let mut expected = live.clone();
    expected["status"] = json!({"providerID": "i-1",
        "conditions": [condition("Launched", "True"), condition("Drifted", "True")]});
    assert_eq!(merged, expected);
}

#[test]
fn a_condition_that_is_taken_away_goes_and_one_that_is_new_comes() {
    let list =
        |kinds: &[&str]| json!({"c": kinds.iter().map(|k| json!({"type": k})).collect::<Vec<_>>()});
    let merged = rebase(&list(&["A", "B"]), &list(&["B", "C"]), &list(&["A", "B", "D"]));
    assert_eq!(merged, list(&["B", "D", "C"]));
    assert_eq!(rebase(&json!({}), &list(&["A"]), &list(&["B"])), list(&["B", "A"]));
    // Lists without types are one value.
    let (one, two, three) = (json!({"l": [1]}), json!({"l": [1, 2]}), json!({"l": [3]}));
    assert_eq!(rebase(&one, &two, &three), two);
    assert_eq!(rebase(&one, &json!({}), &one), json!({}));
}

#[test]
fn a_finalizer_is_removed_from_the_list_that_was_read() {
    let meta = ObjectMeta {
        uid: Some("u".into()),
        finalizers: Some(vec!["other".into(), "ours".into()]),
        ..ObjectMeta::default()
    };
    let patch = without_finalizer(&meta, "ours").unwrap();
    assert_eq!(patch[1], json!({"op": "test", "path": "/metadata/finalizers/1", "value": "ours"}));
    assert_eq!(patch[2], json!({"op": "remove", "path": "/metadata/finalizers/1"}));
    assert_eq!(without_finalizer(&meta, "third"), None);
}

/// An API server that answers as configured, and records what it was asked.
#[derive(Clone)]
struct Server {
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    answers: Arc<Mutex<VecDeque<(u16, Value)>>>,
}

impl tower::Service<Request<Body>> for Server {
    type Response = Response<Body>;
    type Error = tower::BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, tower::BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), tower::BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move {
            let method = request.method().to_string();
            let body = request.into_body().collect_bytes().await?;
            let body = serde_json::from_slice(&body).unwrap_or_default();
            server.asked.lock().push((method, body));
            let (code, object) = server.answers.lock().pop_front().unwrap();
            let body = Body::from(object.to_string().into_bytes());
            Ok(Response::builder().status(code).body(body)?)
        })
    }
}

/// A client whose requests are answered by these, in order, and what it asked.
fn api(answers: &[(u16, Value)]) -> (Api<Node>, Server) {
    let answers = Arc::new(Mutex::new(answers.iter().cloned().collect()));
    let server = Server { asked: Arc::default(), answers };
    (Api::all(kube::Client::new(server.clone(), "default")), server)
}

fn refusal(code: u16) -> (u16, Value) {
    (
        code,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
        "message": "no", "reason": "No"}),
    )
}

fn node(version: &str, taints: &[&str], finalizers: &[&str]) -> Value {
    let taints: Vec<Value> =
        taints.iter().map(|key| json!({"key": key, "effect": "NoSchedule"})).collect();
    json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "n", "uid": "u", "resourceVersion": version, "finalizers": finalizers},
        "spec": {"taints": taints}})
}

fn parsed(value: &Value) -> Node {
    serde_json::from_value(value.clone()).unwrap()
}

fn add_taint(node: &mut Node) {
    let taint = json!({"key": "ours", "effect": "NoSchedule"});
    let list = node.spec.get_or_insert_default().taints.get_or_insert_default();
    list.push(serde_json::from_value(taint).unwrap());
}

#[tokio::test]
async fn an_edit_that_meets_a_conflict_is_made_again_at_once_to_the_live_object() {
    let (seen, live) = (node("1", &[], &[]), node("2", &["theirs"], &[]));
    let (api, server) = api(&[refusal(409), (200, live), (200, node("3", &[], &[]))]);
    assert!(edit(&api, &parsed(&seen), add_taint).await.unwrap());
    let asked = server.asked.lock();
    let methods: Vec<&str> = asked.iter().map(|(method, _)| method.as_str()).collect();
    assert_eq!(methods, ["PATCH", "GET", "PATCH"]);
    let last = &asked[2].1;
    assert_eq!(last["metadata"]["resourceVersion"], "2");
    let keys: Vec<&Value> =
        last["spec"]["taints"].as_array().unwrap().iter().map(|t| &t["key"]).collect();
    assert_eq!(keys, ["theirs", "ours"]);
}

#[tokio::test]
async fn an_edit_of_an_object_that_was_made_anew_is_none() {
    let mut other = node("9", &[], &[]);
    other["metadata"]["uid"] = json!("v");
    let (api, _) = api(&[refusal(409), (200, other)]);
    assert!(!edit(&api, &parsed(&node("1", &[], &[])), add_taint).await.unwrap());
}

#[tokio::test]
async fn a_finalizer_goes_though_the_object_changed_meanwhile() {
    let seen = node("1", &[], &["ours"]);
    let live = node("7", &[], &["theirs", "ours"]);
    let (api, server) = api(&[refusal(422), (200, live), (200, node("8", &[], &["theirs"]))]);
    assert!(release(&api, &parsed(&seen), "ours").await.unwrap());
    let asked = server.asked.lock();
    // The version of the object plays no part, the list of finalizers does.
    assert!(!asked[0].1.to_string().contains("resourceVersion"));
    assert_eq!(asked[2].1[1]["path"], "/metadata/finalizers/1");
}

#[tokio::test]
async fn an_object_that_is_gone_is_not_released_again() {
    let (api, _) = api(&[refusal(404)]);
    assert!(!release(&api, &parsed(&node("1", &[], &["ours"])), "ours").await.unwrap());
}

#[tokio::test]
async fn a_merge_keeps_the_conditions_that_others_have_set() {
    let with = |version: &str, conditions: Value| {
        let mut node = node(version, &[], &[]);
        node["status"] = json!({"conditions": conditions});
        node
    };
    let condition = |kind: &str| json!({"type": kind, "status": "True"});
    let (before, after) = (with("1", json!([])), with("1", json!([condition("Launched")])));
    let live = with("2", json!([condition("Drifted")]));
    let (api, server) = api(&[refusal(409), (200, live), (200, with("3", json!([])))]);
    merge(&api, &parsed(&before), &parsed(&after)).await.unwrap();
    let last = server.asked.lock()[2].1.clone();
    assert_eq!(last["metadata"]["resourceVersion"], "2");
    let kinds: Vec<&Value> =
        last["status"]["conditions"].as_array().unwrap().iter().map(|c| &c["type"]).collect();
    assert_eq!(kinds, ["Drifted", "Launched"]);
}

#[tokio::test]
async fn a_label_is_written_whatever_the_version_is_and_a_list_is_not() {
    let before = parsed(&node("1", &[], &[]));
    let mut after = before.clone();
    after.metadata.labels.get_or_insert_default().insert("a".to_owned(), "b".to_owned());
    let (api, server) = api(&[(200, node("9", &[], &[])), (200, node("10", &[], &["f"]))]);
    merge(&api, &before, &after).await.unwrap();
    after.metadata.finalizers = Some(vec!["f".to_owned()]);
    merge(&api, &before, &after).await.unwrap();
    let asked = server.asked.lock();
    let versions: Vec<&Value> =
        asked.iter().map(|(_, body)| &body["metadata"]["resourceVersion"]).collect();
    assert_eq!(versions, [&Value::Null, &json!("1")]);
}

#[tokio::test]
async fn a_status_that_follows_a_write_without_a_lock_keeps_what_others_have_set_before_it() {
    let mut before = node("1", &[], &[]);
    before["status"] = json!({"conditions": []});
    let mut after = before.clone();
    after["metadata"]["labels"] = json!({"a": "b"});
    after["status"]["conditions"] = json!([{"type": "Launched", "status": "True"}]);
    // The write of the label finds an object that has got a condition meanwhile.
    let mut found = node("7", &[], &[]);
    found["status"] = json!({"conditions": [{"type": "Drifted", "status": "True"}]});
    let (api, server) = api(&[(200, found), (200, node("8", &[], &[]))]);
    merge(&api, &parsed(&before), &parsed(&after)).await.unwrap();
    let asked = server.asked.lock();
    let last = &asked[1].1;
    assert_eq!(last["metadata"]["resourceVersion"], "7");
    let kinds: Vec<&Value> =
        last["status"]["conditions"].as_array().unwrap().iter().map(|c| &c["type"]).collect();
    assert_eq!(kinds, ["Drifted", "Launched"]);
}

#[test]
fn finalizers_are_added_and_removed_one_by_one() {
    let list = |names: &[&str]| json!({ "finalizers": names });
    let merged = rebase(&list(&["old"]), &list(&["old", "ours"]), &list(&["theirs"]));
    assert_eq!(merged, list(&["theirs", "ours"]));
    let merged = rebase(&list(&["a", "b"]), &list(&["b"]), &list(&["a", "b", "c"]));
    assert_eq!(merged, list(&["b", "c"]));
}
