//! Lanes: each class of API calls has slots of its own, so that many calls of one class leave the
//! others their share.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, Request};
use kube::client::Body;
use tokio::sync::Semaphore;

/// The class of an API call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Creates and changes: launches, status writes, finalizers, leases.
    Write,
    /// Reads of objects and lists.
    Read,
    /// Evictions and deletions of pods: a drain makes thousands, and a PodDisruptionBudget refuses
    /// most of them again and again.
    Evict,
    /// Watches, until they have begun.
    Watch,
    /// Kubernetes events: nobody waits for them.
    Event,
}

impl Lane {
    /// Every lane with its slots: calls that may be under way at once. An API server that is slow
    /// answers none in time when it has many more to work at.
    pub(super) const ALL: [(Self, usize); 5] = [
        // Together far below the 600 requests that an API server admits by default for all its
        // clients; the most for what pods wait for.
        (Self::Write, 25),
        (Self::Read, 15),
        (Self::Evict, 10),
        (Self::Watch, 10),
        (Self::Event, 2),
    ];

    /// The lane of a request.
    pub(super) fn of(request: &Request<Body>) -> Self {
        let path = request.uri().path().trim_end_matches('/');
        let query = request.uri().query().unwrap_or_default();
        let mut last = path.rsplit('/');
        let (name, plural) = (last.next().unwrap_or_default(), last.next().unwrap_or_default());
        match *request.method() {
            Method::GET if query.split('&').any(|p| p == "watch=true" || p == "watch=1") => {
                Self::Watch
            }
            Method::GET | Method::HEAD => Self::Read,
            Method::POST if name == "eviction" => Self::Evict,
            Method::DELETE if plural == "pods" => Self::Evict,
            Method::POST if name == "events" => Self::Event,
            _ => Self::Write,
        }
    }

    /// How long the API server may take until its answer begins; it ends its own requests after one
    /// minute. The begin of a watch waits until there is something to send.
    pub(super) fn patience(self) -> Option<Duration> {
        (self != Self::Watch).then_some(Duration::from_secs(70))
    }
}

/// The slots of every lane.
#[derive(Clone)]
pub(super) struct Lanes(Arc<[Semaphore]>);

impl Lanes {
    pub(super) fn new() -> Self {
        Self(Lane::ALL.iter().map(|(_, slots)| Semaphore::new(*slots)).collect())
    }

    /// The slots of a lane.
    pub(super) fn slots(&self, lane: Lane) -> &Semaphore {
        &self.0[lane as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(method: Method, uri: &str) -> Lane {
        Lane::of(&Request::builder().method(method).uri(uri).body(Body::empty()).unwrap())
    }

    #[test]
    fn each_class_of_calls_has_its_lane() {
        let pods = "/api/v1/namespaces/default/pods";
        for (method, uri, expected) in [
            (Method::POST, "/apis/karpenter.sh/v1/nodeclaims", Lane::Write),
            (Method::PATCH, "/apis/karpenter.sh/v1/nodeclaims/a/status", Lane::Write),
            (Method::PUT, "/apis/coordination.k8s.io/v1/namespaces/x/leases/l", Lane::Write),
            (Method::DELETE, "/api/v1/nodes/pods", Lane::Write),
            (Method::DELETE, "/apis/karpenter.sh/v1/nodeclaims/a", Lane::Write),
            (Method::GET, "/api/v1/pods?limit=500", Lane::Read),
            (Method::GET, "/api/v1/pods?&watch=true&timeoutSeconds=290", Lane::Watch),
            (Method::GET, "/api/v1/namespaces/watch=true/pods", Lane::Read),
            (Method::POST, &format!("{pods}/a/eviction?"), Lane::Evict),
            (Method::DELETE, &format!("{pods}/a"), Lane::Evict),
            (Method::POST, "/api/v1/namespaces/default/events", Lane::Event),
        ] {
            assert_eq!(lane(method.clone(), uri), expected, "{method} {uri}");
        }
    }

    #[test]
    fn every_lane_finds_its_own_slots() {
        let lanes = Lanes::new();
        for (lane, slots) in Lane::ALL {
            assert_eq!(lanes.slots(lane).available_permits(), slots, "{lane:?}");
        }
    }
}
