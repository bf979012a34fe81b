//! Requests and answers seen through a [`Lens`].

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use parking_lot::Mutex;
use serde_json::Value;
use tower::BoxError;

use super::fault::{Call, Lens};
use super::kinds::Kind;
use super::server::{Answer, Asked};

/// The lens in place, if any.
pub(super) type Shared = Arc<Mutex<Option<Box<dyn Lens>>>>;

/// Distorts a request that writes; false when it must not be carried out.
pub(super) fn send(lens: &Shared, asked: &mut Asked) -> bool {
    let mut guard = lens.lock();
    let Some(lens) = guard.as_mut().filter(|_| asked.call.writes()) else { return true };
    let mut body = serde_json::from_slice(&asked.body).unwrap_or(Value::Null);
    let before = body.clone();
    let goes = lens.send(&asked.call, &mut body);
    // An unchanged body keeps its bytes, and with them the order of its fields.
    if body != before {
        asked.body = Bytes::from(body.to_string());
    }
    goes
}

/// Distorts an answer.
pub(super) async fn show(lens: &Shared, call: &Call, answer: Answer) -> Result<Answer, BoxError> {
    if !answer.status().is_success() {
        return Ok(answer);
    }
    let (head, body) = answer.into_parts();
    let (user, kind, lens) = (call.user.clone(), call.kind, Arc::clone(lens));
    if call.verb == "watch" {
        let frames = body.into_data_stream().filter_map(move |line| {
            let line = line.ok().and_then(|line| event(&lens, &user, kind, &line));
            std::future::ready(line.map(|line| Ok::<_, Infallible>(Frame::data(line))))
        });
        return Ok(Response::from_parts(head, StreamBody::new(frames).boxed_unsync()));
    }
    let bytes = body.collect().await?.to_bytes();
    let shown = match serde_json::from_slice::<Value>(&bytes) {
        Ok(mut value) => {
            if let Some(items) = value["items"].as_array_mut() {
                items.retain_mut(|item| look(&lens, &user, kind, item));
            } else if value["kind"] != "Status" {
                // What was asked for by name is shown as it is, or changed.
                look(&lens, &user, kind, &mut value);
            }
            Bytes::from(value.to_string())
        }
        Err(_) => bytes,
    };
    Ok(Response::from_parts(head, Full::new(shown).boxed_unsync()))
}

fn look(lens: &Shared, user: &str, kind: &'static Kind, object: &mut Value) -> bool {
    lens.lock().as_mut().is_none_or(|lens| lens.show(user, kind, object))
}

/// A watch's line; `None` for an object that is hidden.
fn event(lens: &Shared, user: &str, kind: &'static Kind, line: &Bytes) -> Option<Bytes> {
    let Ok(mut event) = serde_json::from_slice::<Value>(line) else { return Some(line.clone()) };
    if matches!(event["type"].as_str(), Some("BOOKMARK" | "ERROR")) {
        return Some(line.clone());
    }
    look(lens, user, kind, &mut event["object"]).then(|| Bytes::from(format!("{event}\n")))
}
