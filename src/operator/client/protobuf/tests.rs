//! The answers in `testdata` are a real API server's, to the same requests in both formats.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::core::ObjectList;
use kube::core::Status;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::*;
use crate::operator::readable::Readable;

const PODS: (&[u8], &[u8]) =
    (include_bytes!("testdata/pods.pb"), include_bytes!("testdata/pods.json"));
const NODES: (&[u8], &[u8]) =
    (include_bytes!("testdata/nodes.pb"), include_bytes!("testdata/nodes.json"));
const STATUS: (&[u8], &[u8]) =
    (include_bytes!("testdata/status.pb"), include_bytes!("testdata/status.json"));

fn read<K>(json: &[u8]) -> (Option<String>, Vec<K>)
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned,
{
    let list: ObjectList<Readable<K>> = serde_json::from_slice(json).unwrap();
    let object = |item| match item {
        Readable::Object(object) => object,
        Readable::Unreadable(found) => panic!("{}", found.problem),
    };
    (list.metadata.resource_version, list.items.into_iter().map(object).collect())
}

#[test]
fn pods_are_the_same_in_both_formats() {
    let (version, pods) = read::<Pod>(&json::from_protobuf(PODS.0).unwrap());
    assert_eq!((version, &pods), {
        let (version, pods) = read::<Pod>(PODS.1);
        (version, &pods.clone())
    });
    let rich = pods.iter().find(|p| p.metadata.name.as_deref() == Some("rich")).unwrap();
    let spec = rich.spec.as_ref().unwrap();
    assert_eq!(spec.tolerations.as_ref().unwrap()[0].toleration_seconds, Some(0), "not unset");
    assert_eq!(spec.node_name, None, "not empty");
    assert!(rich.metadata.deletion_timestamp.is_some());
}

#[test]
fn nodes_are_the_same_in_both_formats() {
    assert_eq!(
        read::<Node>(&json::from_protobuf(NODES.0).unwrap()),
        read::<Node>(NODES.1),
    );
}

#[test]
fn a_failure_is_the_same_in_both_formats() {
    let status = |json: &[u8]| serde_json::from_slice::<Status>(json).unwrap();
    assert_eq!(status(&json::from_protobuf(STATUS.0).unwrap()).code, 400);
    assert_eq!(status(&json::from_protobuf(STATUS.0).unwrap()), status(STATUS.1));
}

#[test]
fn what_nothing_reads_is_not_made_into_json() {
    let json: Value = serde_json::from_slice(&json::from_protobuf(PODS.0).unwrap()).unwrap();
    let rich = json["items"].as_array().unwrap().iter().find(|p| p["metadata"]["name"] == "rich");
    let main = &rich.unwrap()["spec"]["containers"][0];
    assert_eq!(main["image"], Value::Null);
    assert_eq!(main["env"], Value::Null);
    assert_eq!(main["resources"]["requests"]["cpu"], "1500m");
    assert_eq!(rich.unwrap()["metadata"]["managedFields"], Value::Null);
}

#[test]
fn every_answer_that_is_cut_off_is_an_error_or_a_shorter_list() {
    for end in 0..PODS.0.len() {
        if let Ok(json) = json::from_protobuf(&PODS.0[..end]) {
            serde_json::from_slice::<Value>(&json).unwrap();
        }
    }
    let unknown = b"k8s\0\x0a\x0d\x0a\x02v1\x12\x07Unknown\x12\x00";
    let error = json::from_protobuf(unknown).unwrap_err().to_string();
    assert!(error.contains("\"Unknown\""), "{error}");
    assert!(json::from_protobuf(b"{}").is_err());
}

/// Answers every request with the same body; what was asked for is kept.
#[derive(Clone)]
struct Server {
    kind: &'static str,
    body: &'static [u8],
    asked: std::sync::Arc<parking_lot::Mutex<Vec<String>>>,
}

impl Service<Request<Body>> for Server {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = std::future::Ready<Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let accept = request.headers().get(header::ACCEPT).map(|v| v.to_str().unwrap());
        self.asked.lock().push(accept.unwrap_or_default().to_owned());
        let answer = Response::builder()
            .header(header::CONTENT_TYPE, self.kind)
            .body(Body::from(self.body.to_vec()));
        std::future::ready(Ok(answer.unwrap()))
    }
}

/// What is asked for, and what comes back, for a request.
async fn ask(path: &str, kind: &'static str, body: &'static [u8]) -> (String, Vec<u8>) {
    let server = Server { kind, body, asked: std::sync::Arc::default() };
    let mut lists = Lists(server.clone());
    let request = Request::get(path).body(Body::empty()).unwrap();
    let answer = lists.call(request).await.unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let asked = server.asked.lock().remove(0);
    (asked, body.to_vec())
}

#[tokio::test]
async fn a_list_of_all_pods_is_asked_for_in_protobuf_and_comes_as_json() {
    let (asked, body) = ask("/api/v1/pods?limit=500", PROTOBUF, PODS.0).await;
    assert!(asked.starts_with(PROTOBUF) && asked.contains("application/json"), "{asked}");
    assert_eq!(read::<Pod>(&body), read::<Pod>(PODS.1));
}

#[tokio::test]
async fn an_answer_in_json_goes_through() {
    let (_, body) = ask("/api/v1/pods?limit=500", "application/json", PODS.1).await;
    assert_eq!(body, PODS.1);
}

#[tokio::test]
async fn other_requests_go_through() {
    let pods = "/api/v1/pods";
    for path in [&format!("{pods}?watch=true"), "/api/v1/namespaces/n/pods", "/api/v1/services"] {
        let (asked, _) = ask(path, "application/json", b"{}").await;
        assert_eq!(asked, "", "{path}");
    }
}
