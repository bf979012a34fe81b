use axum::http::{Request, Response};
use kube::client::Body;
use parking_lot::Mutex;
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
        known: FxHashSet::default(),
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
    intake.keep_only(&state, FxHashSet::from_iter(["stays".to_owned()]));
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

/// Feeds Nodes from an API server that answers each request as `answer` says by its query; `None`
/// leaves it open. Returns the queries, once Nodes are listed.
async fn nodes_listed_by(
    answer: impl Fn(&str) -> Option<(u16, String)> + Clone + Send + 'static,
) -> (Arc<State>, Vec<String>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let server = tower::service_fn(move |request: Request<Body>| {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let answered = answer(&query);
        log.lock().push(query);
        async move {
            match answered {
                Some((code, body)) => {
                    Ok(Response::builder().status(code).body(Body::from(body.into_bytes()))?)
                }
                None => std::future::pending::<Result<Response<Body>, tower::BoxError>>().await,
            }
        }
    });
    let client = Client::new(server, "default");
    let state = Arc::new(State::default());
    let feed = Feed { client, state: Arc::clone(&state) };
    let watch =
        tokio::spawn(feed.watch::<Node, _>("nodes", name_of, State::apply_node, |state, name| {
            state.delete_node(name)
        }));
    while !state.has_listed("nodes") {
        sleep(Duration::from_millis(10)).await;
    }
    watch.abort();
    let asked = asked.lock().clone();
    (state, asked)
}

fn a_node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "resourceVersion": "7"}})
}

#[tokio::test(start_paused = true)]
async fn nodes_are_listed_by_the_first_events_of_their_watch() {
    let (state, asked) = nodes_listed_by(|query| {
        if !query.contains("sendInitialEvents") {
            // Nothing happens after what exists.
            return None;
        }
        let bookmark = json!({"type": "BOOKMARK", "object": {"kind": "Node", "apiVersion": "v1",
            "metadata": {"resourceVersion": "9",
                "annotations": {"k8s.io/initial-events-end": "true"}}}});
        let added = json!({"type": "ADDED", "object": a_node("n")});
        Some((200, format!("{added}\n{bookmark}\n")))
    })
    .await;
    assert!(state.node("n").is_some());
    assert!(asked[0].contains("sendInitialEvents=true"), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_streams_no_lists_is_asked_for_pages() {
    let (state, asked) = nodes_listed_by(|query| {
        if query.contains("sendInitialEvents") {
            let refusal = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                "code": 422, "reason": "Invalid", "message": "sendInitialEvents: Forbidden"});
            return Some((422, refusal.to_string()));
        }
        let list = json!({"kind": "NodeList", "apiVersion": "v1",
            "metadata": {"resourceVersion": "9"}, "items": [a_node("n")]});
        (!query.contains("watch=true")).then(|| (200, list.to_string()))
    })
    .await;
    assert!(state.node("n").is_some());
    assert!(asked[0].contains("sendInitialEvents=true"), "{asked:?}");
    assert!(asked[1].contains("limit=500"), "at once, without a wait: {asked:?}");
}
