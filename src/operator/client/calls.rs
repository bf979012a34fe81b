//! What a request asks of the API server, as the metrics name it.

use std::time::Duration;

use axum::http::{Method, Request};

use crate::operator::metrics;

/// True for a request that starts a watch.
pub(super) fn is_watch<B>(request: &Request<B>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1"))
}

/// A request for objects of a kind. A watch is none: it lasts as long as it can.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Call {
    verb: String,
    group: String,
    version: String,
    kind: String,
    subresource: String,
}

impl Call {
    /// Reads a request; `None` for a watch and for what is not about objects.
    pub(super) fn of<B>(request: &Request<B>) -> Option<Self> {
        if is_watch(request) {
            return None;
        }
        Self::parse(request.method(), request.uri().path())
    }

    fn parse(method: &Method, path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", version, rest),
            ["apis", group, version, rest @ ..] => (*group, version, rest),
            _ => return None,
        };
        let rest = match rest {
            // A request for a Namespace itself has nothing behind its name.
            ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
            rest => rest,
        };
        let (kind, name) = (rest.first()?, rest.get(1));
        let verb = match (method, name) {
            // The verbs are those that Karpenter's operator library derives from the method.
            (&Method::POST, _) | (&Method::PUT, None) => "CREATE",
            (&Method::GET, None) => "LIST",
            (&Method::PUT, Some(_)) => "UPDATE",
            (other, _) => other.as_str(),
        };
        Some(Self {
            verb: verb.to_owned(),
            group: group.to_owned(),
            version: (*version).to_owned(),
            kind: (*kind).to_owned(),
            subresource: rest.get(2).copied().unwrap_or_default().to_owned(),
        })
    }

    /// Records how long the request took, waiting for its turn included.
    pub(super) fn took(&self, time: Duration) {
        let labels = [&self.verb, &self.group, &self.version, &self.kind, &self.subresource];
        metrics::CLIENT_GO_DURATION.with_label_values(&labels).observe(time.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(method: &Method, path: &str) -> Option<[String; 5]> {
        let request = Request::builder().method(method).uri(path).body(()).unwrap();
        let c = Call::of(&request)?;
        Some([c.verb, c.group, c.version, c.kind, c.subresource])
    }

    #[test]
    fn a_request_is_named_by_verb_and_kind() {
        for (method, path, expected) in [
            (Method::GET, "/api/v1/pods?limit=500", ["LIST", "", "v1", "pods", ""]),
            (Method::GET, "/api/v1/namespaces/x/pods/p", ["GET", "", "v1", "pods", ""]),
            (Method::GET, "/api/v1/namespaces", ["LIST", "", "v1", "namespaces", ""]),
            (Method::GET, "/api/v1/namespaces/x", ["GET", "", "v1", "namespaces", ""]),
            (
                Method::POST,
                "/api/v1/namespaces/x/pods/p/eviction",
                ["CREATE", "", "v1", "pods", "eviction"],
            ),
            (
                Method::PATCH,
                "/apis/karpenter.sh/v1/nodeclaims/c/status",
                ["PATCH", "karpenter.sh", "v1", "nodeclaims", "status"],
            ),
            (
                Method::PUT,
                "/apis/coordination.k8s.io/v1/namespaces/k/leases/l",
                ["UPDATE", "coordination.k8s.io", "v1", "leases", ""],
            ),
        ] {
            assert_eq!(call(&method, path).unwrap(), expected.map(str::to_owned), "{path}");
        }
    }

    #[test]
    fn watches_and_other_paths_are_not_measured() {
        for path in ["/api/v1/pods?watch=true&resourceVersion=0", "/version", "/api", "/apis/x"] {
            assert_eq!(call(&Method::GET, path), None, "{path}");
        }
    }
}
