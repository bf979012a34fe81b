//! Static drift: drifted nodes of pools with a fixed number of nodes. Each gets a replacement made
//! from the pool's template, as long as `limits.nodes` leaves room for one more node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::command::TerminateFirst;
use super::methods::{Pass, Search};
use super::{Candidate, Command, Input, Method, Rejection, drift};
use crate::api::v1::NodePool;
use crate::api::{conditions, labels};
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::node::StateNode;
use crate::scheduling::requirements::{Allow, Requirement, Requirements};
use crate::scheduling::resources::{Name, ResourceList};
use crate::scheduling::results::{PlannedClaim, TypeList};

pub(super) struct StaticDrift;

impl Search for StaticDrift {
    fn fit(&self, _: &Input<'_>, candidate: &Candidate) -> Result<(), Rejection> {
        if !candidate.is_static() {
            return Err(Rejection::NotStatic);
        }
        if !candidate.condition(conditions::DRIFTED) {
            return Err(Rejection::NotDrifted);
        }
        Ok(())
    }

    fn search(&self, pass: &mut Pass<'_>, mut candidates: Vec<Candidate>) {
        drift::by_age(&mut candidates);
        let mut room = Room::default();
        let terminate_first = pass.input.gates.terminate_first_drift;
        if terminate_first {
            // Only these give back a slot that the pool can launch in again.
            candidates.sort_by_key(|c| !room.of(pass.input, c).frees_slot(c));
        }
        for candidate in candidates {
            if !drift::has_turn(pass, &candidate) {
                continue;
            }
            match room.replace(pass, Method::StaticDrift, &candidate, terminate_first) {
                Ok(command) => {
                    pass.budgets.take(candidate.pool_name());
                    pass.decision.take(command);
                }
                Err(rejection) => pass.reject(&candidate, rejection),
            }
        }
    }
}

/// Room for replacements in each static pool.
#[derive(Default)]
pub(super) struct Room(BTreeMap<String, Slots>);

/// Room for replacements in one static pool.
struct Slots {
    /// How many more nodes the pool may have.
    left: i64,
    /// The pool was at its limit before the first replacement.
    at_limit: bool,
    /// Where everything that the pool may launch is a full reservation: the reservations.
    full: Option<BTreeSet<String>>,
}

impl Slots {
    /// The candidate holds a slot in a reservation that the pool can launch in.
    fn frees_slot(&self, candidate: &Candidate) -> bool {
        let held = candidate.label(labels::CAPACITY_RESERVATION_ID);
        let reserved = candidate.label(labels::CAPACITY_TYPE) == Some(labels::CAPACITY_RESERVED);
        self.full.as_ref().is_some_and(|f| reserved && held.is_some_and(|id| f.contains(id)))
    }
}

impl Room {
    fn of(&mut self, input: &Input<'_>, candidate: &Candidate) -> &mut Slots {
        let name = candidate.pool_name();
        self.0.entry(name.to_owned()).or_insert_with(|| {
            let all = Count::of(&input.snapshot.nodes, name).all;
            let left = node_limit(&candidate.pool).saturating_sub(all);
            Slots { left, at_limit: left <= 0, full: full_reservations(input, &candidate.pool) }
        })
    }

    /// A command for one node of a static pool, its replacement within the pool's limit. Budgets are
    /// the caller's affair.
    pub(super) fn replace(
        &mut self,
        pass: &Pass<'_>,
        method: Method,
        candidate: &Candidate,
        terminate_first: bool,
    ) -> Result<Command, Rejection> {
        let count = Count::of(&pass.input.snapshot.nodes, candidate.pool_name());
        if count.staying > candidate.pool.spec.replicas.unwrap_or(0) {
            return Err(Rejection::AboveReplicas);
        }
        let slots = self.of(pass.input, candidate);
        let command = Command::delete(method, vec![candidate.clone()]);
        // Without the gate nothing but a replacement helps, whatever is full.
        let full = terminate_first && slots.full.is_some();
        if !full && slots.left > 0 {
            slots.left -= 1;
            return Ok(command.with_replacements(vec![replacement(&candidate.pool)]));
        }
        let (reason, blocked, frees) = if full {
            let (reason, blocked) =
                (TerminateFirst::NoReservedCapacity, Rejection::StaticReservationsFull);
            (reason, blocked, slots.frees_slot(candidate))
        } else {
            (TerminateFirst::StaticAtLimit, Rejection::StaticAtLimit, slots.at_limit)
        };
        if !terminate_first || !frees || !launchable(&candidate.pool) {
            return Err(blocked);
        }
        Ok(Command { terminate_first: Some(reason), ..command })
    }
}

/// The reservations of a pool that can launch in nothing but reservations, all of which are full.
fn full_reservations(input: &Input<'_>, pool: &Arc<NodePool>) -> Option<BTreeSet<String>> {
    let known = input.pools.iter().find(|p| p.node_pool.metadata.name == pool.metadata.name)?;
    let wanted = replacement(pool).requirements;
    let fits =
        |t: &&Arc<InstanceType>| wanted.compatible(&t.requirements, Allow::WellKnown).is_ok();
    let mut full = BTreeSet::new();
    for offering in known.instance_types.iter().filter(fits).flat_map(|t| &t.offerings) {
        if wanted.compatible(&offering.requirements, Allow::WellKnown).is_err() {
            continue;
        }
        let reserved = offering.capacity_type() == labels::CAPACITY_RESERVED;
        if !reserved || (offering.available && offering.reservation_capacity > 0) {
            return None;
        }
        if offering.available || offering.reservation_full {
            full.insert(offering.reservation_id().to_owned());
        }
    }
    (!full.is_empty()).then_some(full)
}

/// Whether the static controller will launch what is missing afterwards.
fn launchable(pool: &NodePool) -> bool {
    let status = pool.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    pool.metadata.deletion_timestamp.is_none() && conditions::is_true(status, conditions::READY)
}

/// NodeClaims of a pool.
struct Count {
    /// Those that are not being deleted, chosen for disruption or not.
    staying: i64,
    all: i64,
}

impl Count {
    fn of(nodes: &[StateNode], pool: &str) -> Self {
        let mut count = Self { staying: 0, all: 0 };
        for claim in nodes.iter().filter_map(|n| n.node_claim.as_ref()) {
            let label = claim.metadata.labels.as_ref().and_then(|l| l.get(labels::NODEPOOL));
            if label.is_some_and(|l| l == pool) {
                count.all += 1;
                count.staying += i64::from(claim.metadata.deletion_timestamp.is_none());
            }
        }
        count
    }
}

/// The most nodes that a pool may have.
#[must_use]
pub fn node_limit(pool: &NodePool) -> i64 {
    let limits = ResourceList::from_quantities_lossy(pool.spec.limits.as_ref());
    limits.find(&Name::from("nodes")).unwrap_or(i64::MAX)
}

/// A claim as the pool describes it: the provider chooses among all of the pool's types.
#[must_use]
pub fn replacement(pool: &Arc<NodePool>) -> PlannedClaim {
    let template = &pool.spec.template;
    let mut requirements = Requirements::from_api(&template.spec.requirements);
    requirements.merge(&Requirements::from_labels(template.metadata.labels.iter().flatten()));
    let name = pool.metadata.name.as_deref().unwrap_or_default();
    requirements.add(Requirement::is(labels::NODEPOOL, name));
    let class = &template.spec.node_class_ref;
    let key = format!("{}/{}", class.group, class.kind.to_lowercase());
    requirements.add(Requirement::is(&key, &class.name));
    PlannedClaim {
        node_pool: Arc::clone(pool),
        requirements,
        taints: template.spec.taints.clone().unwrap_or_default(),
        requests: ResourceList::new(),
        instance_types: TypeList::default(),
        pods: Vec::new(),
        min_values_relaxed: false,
        devices: None,
    }
}
