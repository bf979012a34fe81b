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
    let read_of_json = read::<Pod>(PODS.1);
    assert_eq!(read::<Pod>(&json::from_protobuf(PODS.0).unwrap()), read_of_json);
    let pods = read_of_json.1;
    let rich = pods.iter().find(|p| p.metadata.name.as_deref() == Some("rich")).unwrap();
    let spec = rich.spec.as_ref().unwrap();
    assert_eq!(spec.tolerations.as_ref().unwrap()[0].toleration_seconds, Some(0), "not unset");
    assert_eq!(spec.node_name, None, "not empty");
    assert!(rich.metadata.deletion_timestamp.is_some());
}

#[test]
fn nodes_are_the_same_in_both_formats() {
    assert_eq!(read::<Node>(&json::from_protobuf(NODES.0).unwrap()), read::<Node>(NODES.1),);
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
    let mut client = Transcoded(Client::new(server.clone(), "default"));
    let request = Request::get(path).body(Body::empty()).unwrap();
    let answer = client.call(request).await.unwrap();
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

/// A watch's events as the API server sends them: a Pod, and the bookmark that ends what exists.
fn events() -> Vec<u8> {
    let field = |number: u8, bytes: &[u8]| {
        let mut field = vec![number << 3 | 2];
        let mut length = bytes.len();
        while length > 127 {
            field.push(u8::try_from(length % 128).unwrap() | 128);
            length /= 128;
        }
        field.push(u8::try_from(length).unwrap());
        field.extend_from_slice(bytes);
        field
    };
    let event = |kind: &str, object: &[u8]| {
        let meta = [field(1, b"v1"), field(2, b"Pod")].concat();
        let whole = [b"k8s\0".to_vec(), field(1, &meta), field(2, object)].concat();
        let event = [field(1, kind.as_bytes()), field(2, &field(1, &whole))].concat();
        [u32::try_from(event.len()).unwrap().to_be_bytes().to_vec(), event].concat()
    };
    let ends = field(12, &[field(1, b"k8s.io/initial-events-end"), field(2, b"true")].concat());
    let meta = [field(6, b"7"), ends].concat();
    [event("ADDED", &field(1, &field(1, b"x"))), event("BOOKMARK", &field(1, &meta))].concat()
}

#[tokio::test]
async fn a_watch_in_protobuf_comes_as_lines_of_json() {
    let body: &'static [u8] = events().leak();
    let kind = "application/vnd.kubernetes.protobuf;stream=watch";
    let (asked, lines) = ask("/api/v1/pods?watch=true", kind, body).await;
    assert!(asked.starts_with(kind), "{asked}");
    let lines = String::from_utf8(lines).unwrap();
    let lines: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["type"], "ADDED");
    assert_eq!(lines[0]["object"]["metadata"]["name"], "x");
    assert_eq!(lines[1]["type"], "BOOKMARK");
    let ends = &lines[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"];
    assert_eq!(ends, "true");
}

#[test]
fn events_that_come_in_pieces_are_put_together() {
    let (events, mut unread, mut json) = (events(), Vec::new(), Vec::new());
    for byte in &events {
        unread.push(*byte);
        json.extend(whole_events(&mut unread).unwrap());
    }
    assert!(unread.is_empty());
    assert_eq!(json.iter().filter(|byte| **byte == b'\n').count(), 2);
}

#[tokio::test]
async fn other_requests_go_through() {
    let pods = "/api/v1/pods";
    for path in [&format!("{pods}/x"), "/api/v1/namespaces/n/pods", "/api/v1/services"] {
        let (asked, _) = ask(path, "application/json", b"{}").await;
        assert_eq!(asked, "", "{path}");
    }
}
