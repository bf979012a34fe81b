//! Lists and watches in protobuf. The API server keeps built-in objects in protobuf, and takes several times
//! as long to write many of them as JSON. What it answers becomes the JSON of the fields that are read, so
//! that nobody else has to know.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Bytes;
use axum::http::{HeaderValue, Method, Request, Response, header};
use futures::stream::{self, Stream, TryStreamExt as _};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use kube::Client;
use kube::client::Body;
use tower::{BoxError, Service};

use super::calls::is_watch;

mod fields;
mod json;

/// What the API server is asked for. One that does not know the first answers with the second.
const LIST: HeaderValue =
    HeaderValue::from_static("application/vnd.kubernetes.protobuf, application/json;q=0.9");

/// The same for a watch.
const WATCH: HeaderValue = HeaderValue::from_static(
    "application/vnd.kubernetes.protobuf;stream=watch, application/json;stream=watch;q=0.9",
);

/// The media type of an answer in protobuf.
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Bytes before each event of a watch, which are its length, the most significant first.
const LENGTH: usize = 4;

/// A client whose lists and watches of all Pods and of all Nodes come in protobuf, with no more than the
/// fields that [`Readable`](crate::operator::readable::Readable) reads. Other calls go through as they are.
#[must_use]
pub fn in_protobuf(client: &Client) -> Client {
    Client::new(Transcoded(client.clone()), client.default_namespace())
}

#[derive(Clone)]
struct Transcoded(Client);

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

impl Service<Request<Body>> for Transcoded {
    type Response = Answer;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // The client waits within a call.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let client = self.0.clone();
        Box::pin(async move { send(&client, request).await })
    }
}

/// A request whose answer may be large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Large {
    /// A list of all Pods or all Nodes, or a page of it.
    List,
    /// A watch of all Pods or all Nodes, which may begin with those that exist.
    Watch,
}

impl Large {
    fn of(request: &Request<Body>) -> Option<Self> {
        let all = matches!(request.uri().path(), "/api/v1/pods" | "/api/v1/nodes");
        let large = if is_watch(request) { Self::Watch } else { Self::List };
        (all && request.method() == Method::GET).then_some(large)
    }
}

/// Sends a request, and makes JSON of an answer in protobuf.
async fn send(client: &Client, mut request: Request<Body>) -> Result<Answer, BoxError> {
    let large = Large::of(&request);
    if let Some(large) = large {
        let accept = if large == Large::Watch { WATCH } else { LIST };
        request.headers_mut().insert(header::ACCEPT, accept);
    }
    let answer = client.send(request).await?;
    let Some(large) = large.filter(|_| is_protobuf(&answer)) else {
        return Ok(answer.map(|body| body.map_err(BoxError::from).boxed_unsync()));
    };
    let (mut head, body) = answer.into_parts();
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // A watch that is refused is answered by one object, as a list is.
    let body = if large == Large::Watch && head.status.is_success() {
        StreamBody::new(lines(body).map_ok(Frame::data)).boxed_unsync()
    } else {
        let bytes = body.collect().await?.to_bytes();
        let json = Bytes::from(json::from_protobuf(&bytes)?);
        Full::new(json).map_err(|never| match never {}).boxed_unsync()
    };
    Ok(Response::from_parts(head, body))
}

/// The events of a watch as lines of JSON; as many at a time as came together.
fn lines(body: Body) -> impl Stream<Item = Result<Bytes, BoxError>> + Send {
    let start = (body.into_data_stream(), Vec::new());
    stream::try_unfold(start, |(mut body, mut unread)| async move {
        loop {
            let Some(bytes) = body.try_next().await? else { return Ok(None) };
            unread.extend_from_slice(&bytes);
            let json = whole_events(&mut unread)?;
            if !json.is_empty() {
                return Ok(Some((Bytes::from(json), (body, unread))));
            }
        }
    })
}

/// Takes the events off that are there as a whole, and returns them as lines of JSON.
fn whole_events(bytes: &mut Vec<u8>) -> Result<Vec<u8>, json::Error> {
    let (mut json, mut read) = (Vec::new(), 0);
    while let Some((length, rest)) = bytes[read..].split_first_chunk::<LENGTH>() {
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let Some(event) = rest.get(..length) else { break };
        json::write_event(event, &mut json)?;
        json.push(b'\n');
        read += LENGTH + length;
    }
    bytes.drain(..read);
    Ok(json)
}

fn is_protobuf(answer: &Response<Body>) -> bool {
    let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    kind.is_some_and(|kind| kind.split(';').next().is_some_and(|kind| kind.trim() == PROTOBUF))
}

#[cfg(test)]
mod tests;
