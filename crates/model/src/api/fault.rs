//! What goes wrong between a client and the API server.

use std::time::Duration;

use serde_json::Value;

use super::kinds::Kind;

/// A request that is about to be carried out.
#[derive(Clone, Debug)]
pub struct Call {
    /// Whose client asks.
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: &'static str,
    pub kind: &'static Kind,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
}

impl Call {
    /// True when it changes something.
    #[must_use]
    pub fn writes(&self) -> bool {
        !matches!(self.verb, "get" | "list" | "watch")
    }
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is carried out late.
    Delay(Duration),
    /// It is refused with a status code.
    Refuse(u16),
    /// It does not arrive.
    Unreachable,
    /// It is carried out, but the answer is lost.
    Lost,
    /// It does not arrive, and the client waits for ever: it is about to be killed.
    HangBefore,
    /// It is carried out, and the client waits for the answer for ever.
    HangAfter,
}

/// Decides which requests go wrong.
pub trait FaultPlan: Send {
    /// What happens to a request; nothing means that all is well.
    fn fault(&mut self, call: &Call) -> Option<Fault>;

    /// How many changes a list that may be old lacks.
    fn staleness(&mut self, _call: &Call) -> u64 {
        0
    }

    /// How much later a watch shows what changed.
    fn lag(&mut self, _call: &Call) -> Duration {
        Duration::ZERO
    }
}

/// Nothing goes wrong.
pub struct NoFaults;

impl FaultPlan for NoFaults {
    fn fault(&mut self, _call: &Call) -> Option<Fault> {
        None
    }
}

/// Distorts what a client sends and what it sees: a defect that is planted, to show that the checks
/// of a world find it.
pub trait Lens: Send {
    /// May change a request's body. False answers the request as if it had been carried out.
    fn send(&mut self, _call: &Call, _body: &mut Value) -> bool {
        true
    }

    /// May change an object that a user is shown. False hides it.
    fn show(&mut self, _user: &str, _kind: &'static Kind, _object: &mut Value) -> bool {
        true
    }
}
