//! An API server: objects in memory behind the HTTP interface that [`kube::Client`] speaks.

mod distort;
mod failure;
mod fault;
mod kinds;
mod list;
mod merge;
mod ops;
mod pods;
mod request;
mod selector;
mod server;
mod store;
mod watch;
mod write;

pub use failure::Failure;
pub use fault::{Call, Fault, FaultPlan, Lens, NoFaults};
pub use kinds::{KINDS, Kind, kind};
pub use ops::{Deleted, Deletion, Preconditions};
pub use pods::{condition, selects, set_condition};
pub use selector::Selector;
pub use server::{ApiServer, Journal};
pub use store::{Event, EventKind, Key, Now, Store};
pub use write::time as write_time;
