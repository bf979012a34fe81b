//! Objects with conditions, whatever their kind, as far as metrics and events show them.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};

use crate::api::{conditions, labels};
use crate::cluster::{Change, State};
use crate::operator::events::reference;
use crate::operator::metrics::status::{self, KindMetrics};

/// One object.
#[derive(Clone, Debug, Default)]
pub(in crate::controllers) struct View {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) reference: ObjectReference,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) conditions: Vec<Seen>,
    pub(super) deleted: Option<Timestamp>,
    pub(super) finalizers: Vec<String>,
    /// When it was looked at.
    pub(super) seen: Timestamp,
}

/// One condition of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) kind: String,
    pub(super) status: String,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) since: Option<Timestamp>,
}

/// A kind of object, and where to find those of it.
pub(in crate::controllers) struct Kind {
    pub(super) controller: &'static str,
    pub(super) group: &'static str,
    pub(super) kind: &'static str,
    pub(super) metrics: &'static LazyLock<KindMetrics>,
    /// The metrics of all kinds together count these, too.
    pub(super) counted_together: bool,
    /// There are as many of the kind as there are nodes.
    pub(super) numerous: bool,
    /// Conditions that an object has from its beginning: unknown until they are written.
    pub(super) implied: &'static [&'static str],
    pub(super) all: fn(&State) -> Vec<View>,
    pub(super) one: fn(&State, &str) -> Option<View>,
    /// The name of the object that a change is about, if it is of the kind.
    pub(super) of: fn(&Change) -> Option<&str>,
}

pub(super) static NODECLAIM: Kind = Kind {
    controller: "operatorpkg.nodeclaim.status",
    group: labels::GROUP,
    kind: "NodeClaim",
    metrics: &status::NODECLAIM,
    counted_together: true,
    numerous: true,
    implied: &[
        conditions::READY,
        conditions::LAUNCHED,
        conditions::REGISTERED,
        conditions::INITIALIZED,
    ],
    all: |state| state.claims().iter().map(|c| of_claim(c)).collect(),
    one: |state, name| state.claim(name).map(|c| of_claim(&c)),
    of: |change| match change {
        Change::NodeClaim(name) => Some(name),
        _ => None,
    },
};

pub(super) static NODEPOOL: Kind = Kind {
    controller: "operatorpkg.nodepool.status",
    group: labels::GROUP,
    kind: "NodePool",
    metrics: &status::NODEPOOL,
    counted_together: true,
    numerous: false,
    implied: &[conditions::READY, conditions::VALIDATION_SUCCEEDED, conditions::NODE_CLASS_READY],
    all: |state| state.pools().iter().map(|p| of_pool(p)).collect(),
    one: |state, name| state.pool(name).map(|p| of_pool(&p)),
    of: |change| match change {
        Change::NodePool(name) => Some(name),
        _ => None,
    },
};

pub(super) static EC2NODECLASS: Kind = Kind {
    controller: "operatorpkg.ec2nodeclass.status",
    group: labels::AWS_GROUP,
    kind: "EC2NodeClass",
    metrics: &status::EC2NODECLASS,
    counted_together: true,
    numerous: false,
    implied: &[
        conditions::READY,
        conditions::AMIS_READY,
        conditions::SUBNETS_READY,
        conditions::SECURITY_GROUPS_READY,
        conditions::INSTANCE_PROFILE_READY,
        conditions::VALIDATION_SUCCEEDED,
    ],
    all: |state| state.classes().iter().map(|c| of_class(c)).collect(),
    one: |state, name| state.class(name).map(|c| of_class(&c)),
    of: |change| match change {
        Change::NodeClass(name) => Some(name),
        _ => None,
    },
};

pub(super) static NODE: Kind = Kind {
    controller: "operatorpkg.node.status",
    group: "",
    kind: "Node",
    metrics: &status::NODE_STATUS,
    counted_together: false,
    numerous: true,
    implied: &[],
    all: |state| state.nodes().iter().map(|n| of_node(n)).collect(),
    one: |state, name| state.node(name).map(|n| of_node(&n)),
    of: |change| match change {
        Change::Node(name) => Some(name),
        _ => None,
    },
};

fn of_claim(claim: &crate::api::v1::NodeClaim) -> View {
    let list = claim.status.as_ref().map(|s| s.conditions.as_slice());
    view(&claim.metadata, reference(claim), of_conditions(list))
}

fn of_pool(pool: &crate::api::v1::NodePool) -> View {
    let list = pool.status.as_ref().map(|s| s.conditions.as_slice());
    view(&pool.metadata, reference(pool), of_conditions(list))
}

fn of_class(class: &crate::api::v1::EC2NodeClass) -> View {
    let list = class.status.as_ref().map(|s| s.conditions.as_slice());
    view(&class.metadata, reference(class), of_conditions(list))
}

fn of_node(node: &Node) -> View {
    let list = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let conditions = list.into_iter().flatten().map(|c| Seen {
        kind: c.type_.clone(),
        status: c.status.clone(),
        reason: c.reason.clone().unwrap_or_default(),
        message: c.message.clone().unwrap_or_default(),
        since: c.last_transition_time.as_ref().map(|t| t.0),
    });
    view(&node.metadata, reference(node), conditions.collect())
}

fn of_conditions(list: Option<&[Condition]>) -> Vec<Seen> {
    let seen = |c: &Condition| Seen {
        kind: c.type_.clone(),
        status: c.status.clone(),
        reason: c.reason.clone(),
        message: c.message.clone(),
        since: Some(c.last_transition_time.0),
    };
    list.unwrap_or_default().iter().map(seen).collect()
}

fn view(meta: &ObjectMeta, reference: ObjectReference, conditions: Vec<Seen>) -> View {
    View {
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        reference,
        labels: meta.labels.clone().unwrap_or_default(),
        conditions,
        deleted: meta.deletion_timestamp.as_ref().map(|t| t.0),
        finalizers: meta.finalizers.clone().unwrap_or_default(),
        seen: Timestamp::default(),
    }
}

impl View {
    /// The condition of a type.
    pub(super) fn condition(&self, kind: &str) -> Option<&Seen> {
        self.conditions.iter().find(|c| c.kind == kind)
    }

    /// A label's value, empty when there is none.
    pub(super) fn label(&self, key: &str) -> &str {
        self.labels.get(key).map_or("", String::as_str)
    }
}
