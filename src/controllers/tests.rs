//! Whole controllers beside another provider's objects.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::*;
use crate::api::v1::NodeClaim;
use crate::cloud::fake::FakeProvider;

/// Method and path of each request.
pub(super) type Asked = Arc<Mutex<Vec<String>>>;

/// What controllers work with, on an API server and a cloud that are none.
pub(super) fn context(client: &kube::Client) -> Arc<Context> {
    let clock = Clock::tokio(Timestamp::from_second(1_000_000).unwrap());
    let settings = Settings::parse(&[], |name| match name {
        "CLUSTER_NAME" => Some("c".to_owned()),
        "FEATURE_GATES" => {
            Some("StaticCapacity=true,NodeRepair=true,CapacityBuffer=true".to_owned())
        }
        _ => None,
    });
    let state = Arc::new(State::default());
    state.list_everything();
    Arc::new(Context {
        client: client.clone(),
        cluster: state,
        cloud: Arc::new(FakeProvider::new(Vec::new())),
        settings: Arc::new(settings.unwrap()),
        recorder: Recorder::new(client.clone(), clock.clone()),
        clock,
        registration_health: nodepool::health::Tracker::default(),
        savings: cost::Ledger::default(),
        verdicts: disruption::Verdicts::default(),
        launches: nodeclaim::Launches::default(),
    })
}

/// An API server that has these NodeClaims and nothing else, and remembers what it was asked.
pub(super) fn api_server(claims: Vec<Value>, asked: &Asked) -> kube::Client {
    let asked = Arc::clone(asked);
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let path = request.uri().path().to_owned();
        asked.lock().push(format!("{} {path}", request.method()));
        let answer = match path.as_str() {
            "/apis/karpenter.sh/v1/nodeclaims" => json!({"kind": "NodeClaimList",
                "apiVersion": "karpenter.sh/v1", "metadata": {}, "items": claims}),
            path => json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                "reason": "NotFound", "code": 404, "message": format!("{path} is not there")}),
        };
        let status = if answer["code"] == 404 { 404 } else { 200 };
        let response = http::Response::builder()
            .status(status)
            .body(Body::from(answer.to_string().into_bytes()));
        async move { Ok::<_, Infallible>(response.unwrap()) }
    });
    kube::Client::new(service, "default")
}

fn auto_mode_pool(extra: Value) -> crate::api::v1::NodePool {
    let mut spec = json!({"template": {"spec": {"expireAfter": "1s", "requirements": [],
        "nodeClassRef": {"group": "eks.amazonaws.com", "kind": "NodeClass", "name": "default"}}}});
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let ready = json!([{"type": "Ready", "status": "True", "reason": "", "message": "",
        "lastTransitionTime": "1970-01-01T00:00:00Z"}]);
    serde_json::from_value(json!({"metadata": {"name": "general-purpose", "uid": "p"},
        "spec": spec, "status": {"conditions": ready}}))
    .unwrap()
}

fn auto_mode_claim(name: &str, provider_id: Option<&str>) -> Value {
    let conditions: Vec<Value> =
        ["Launched", "Registered", "Initialized", "Drifted", "Consolidatable"]
            .iter()
            .filter(|_| provider_id.is_some())
            .map(|kind| {
                json!({"type": kind, "status": "True", "reason": kind, "message": "",
                "lastTransitionTime": "1970-01-01T00:00:00Z"})
            })
            .collect();
    json!({"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
        "metadata": {"name": name, "uid": name, "creationTimestamp": "1970-01-01T00:00:00Z",
            "labels": {"karpenter.sh/nodepool": "general-purpose"}},
        "spec": {"expireAfter": "1s", "requirements": [],
            "nodeClassRef": {"group": "eks.amazonaws.com", "kind": "NodeClass", "name": "default"}},
        "status": {"providerID": provider_id, "conditions": conditions}})
}

fn auto_mode_node(name: &str, provider_id: &str) -> Node {
    serde_json::from_value(json!({"metadata": {"name": name, "uid": name,
        "finalizers": ["karpenter.sh/termination"], "deletionTimestamp": "1970-01-01T00:00:00Z",
        "labels": {"karpenter.sh/nodepool": "general-purpose", "karpenter.sh/registered": "true",
            "karpenter.sh/initialized": "true", "eks.amazonaws.com/nodeclass": "default",
            "node.kubernetes.io/instance-type": "c6a.large"}},
        "spec": {"providerID": provider_id},
        "status": {"conditions": [{"type": "Ready", "status": "False",
            "lastTransitionTime": "1970-01-01T00:00:00Z"}]}}))
    .unwrap()
}

#[tokio::test(start_paused = true)]
async fn no_controller_touches_what_is_another_providers() {
    let asked = Asked::default();
    let claims = vec![auto_mode_claim("old", Some("aws:///z/i-1")), auto_mode_claim("new", None)];
    let ctx = context(&api_server(claims.clone(), &asked));
    let state = &ctx.cluster;
    state.apply_pool(auto_mode_pool(json!({})));
    state.apply_pool(auto_mode_pool(json!({"replicas": 3})));
    for claim in claims {
        state.apply_claim(serde_json::from_value::<NodeClaim>(claim).unwrap());
    }
    state.apply_node(auto_mode_node("node", "aws:///z/i-1"));
    state.apply_pod(
        &serde_json::from_value(json!({"metadata": {"name": "a", "namespace": "n", "uid": "a"},
            "spec": {"containers": []}, "status": {"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}}))
        .unwrap(),
    );
    let mut tasks = JoinSet::new();
    nodepool::start(&ctx, &mut tasks);
    nodeclaim::start(&ctx, &provisioning::Shared::new(&ctx).decisions, &mut tasks);
    node::start(&ctx, &mut tasks);
    static_pool::start(&ctx, &mut tasks);
    disruption::start(&ctx, &mut tasks);
    let shared = provisioning::Shared::new(&ctx);
    provisioning::start(&ctx, &shared, &mut tasks);
    tokio::time::sleep(Duration::from_secs(1800)).await;
    tasks.shutdown().await;
    let asked = asked.lock().clone();
    // Events on our own pods are no harm.
    let ours = |r: &&String| !r.starts_with("GET ") && !r.ends_with("/events");
    let written: Vec<&String> = asked.iter().filter(ours).collect();
    assert!(written.is_empty(), "{written:?}");
    assert!(asked.iter().any(|r| r == "GET /apis/karpenter.sh/v1/nodeclaims"), "{asked:?}");
    assert!(ctx.cloud.list().await.unwrap().is_empty());
}

#[test]
fn several_failures_keep_the_aws_call_that_failed() {
    let call = FailedCall { operation: "CreateFleet", ..FailedCall::default() };
    let launch = crate::cloud::Error::Create {
        reason: "LaunchFailed".to_owned(),
        condition: String::new(),
        message: crate::cloud::Detail::from("denied").of_call(call.clone()),
    };
    let errors = vec![Error::Other("first".to_owned()), Error::Launch(launch)];
    let error = Error::all(errors).unwrap_err();
    assert_eq!(error.to_string(), "first; launching nodeclaim, denied");
    assert_eq!(error.failed_call(), Some(call));
    assert!(Error::all(Vec::new()).is_ok());
}
