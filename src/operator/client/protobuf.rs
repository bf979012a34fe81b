//! Lists in protobuf. The API server keeps built-in objects in protobuf, and takes several times as long to
//! write a large list as JSON. What it answers becomes the JSON of the fields that are read, so that nobody
//! else has to know.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::http::{HeaderValue, Method, Request, Response, header};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use tower::{BoxError, Service};

mod fields;
mod json;

/// What the API server is asked for. One that does not know the first answers with the second.
const ACCEPT: HeaderValue =
    HeaderValue::from_static("application/vnd.kubernetes.protobuf, application/json;q=0.9");

/// The media type of an answer in protobuf.
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// A client whose lists of all Pods and of all Nodes come in protobuf, with no more than the fields that
/// [`Readable`](crate::operator::readable::Readable) reads. Every other call goes through as it is.
#[must_use]
pub fn lists_in_protobuf(client: &Client) -> Client {
    Client::new(Lists(client.clone()), client.default_namespace())
}

#[derive(Clone)]
struct Lists<S>(S);

impl<S> Service<Request<Body>> for Lists<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let asked = is_large_list(&request);
        if asked {
            request.headers_mut().insert(header::ACCEPT, ACCEPT);
        }
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = answer.await.map_err(Into::into)?;
            if !asked || !is_protobuf(&answer) {
                return Ok(answer);
            }
            let (mut head, body) = answer.into_parts();
            let bytes = body.collect().await?.to_bytes();
            let json = json::from_protobuf(&bytes)?;
            head.headers.remove(header::CONTENT_LENGTH);
            head.headers
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            Ok(Response::from_parts(head, Body::from(json)))
        })
    }
}

/// True for a list of all Pods or all Nodes, page by page or not; a watch goes on in JSON.
fn is_large_list(request: &Request<Body>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    let watches = query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1"));
    request.method() == Method::GET
        && !watches
        && matches!(request.uri().path(), "/api/v1/pods" | "/api/v1/nodes")
}

fn is_protobuf(answer: &Response<Body>) -> bool {
    let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    kind.is_some_and(|kind| kind.split(';').next().is_some_and(|kind| kind.trim() == PROTOBUF))
}

#[cfg(test)]
mod tests;
