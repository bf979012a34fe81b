//! Static drift: drifted nodes of pools with a fixed number of nodes. Each gets a replacement made
//! from the pool's template, as long as `limits.nodes` leaves room for one more node.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::command::TerminateFirst;
use super::methods::{Pass, Search};
use super::{Candidate, Command, Input, Method, Rejection, drift};
use crate::api::v1::NodePool;
use crate::api::{conditions, labels};
use crate::scheduling::node::StateNode;
use crate::scheduling::requirements::{Requirement, Requirements};
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
        for candidate in candidates {
            match room.replace(pass, Method::StaticDrift, &candidate, terminate_first) {
                Ok(command) => pass.decision.take(command),
                Err(Rejection::BudgetUsedUp(_)) => pass.over_budget(&candidate),
                Err(rejection) => pass.reject(&candidate, rejection),
            }
        }
    }
}

/// How many more nodes each static pool may have.
#[derive(Default)]
pub(super) struct Room(BTreeMap<String, i64>);

impl Room {
    /// A command for one node of a static pool, its replacement within the pool's limit.
    pub(super) fn replace(
        &mut self,
        pass: &mut Pass<'_>,
        method: Method,
        candidate: &Candidate,
        terminate_first: bool,
    ) -> Result<Command, Rejection> {
        let name = candidate.pool_name();
        if pass.budgets.remaining(name) <= 0 {
            return Err(Rejection::BudgetUsedUp(pass.budgets.of(name)));
        }
        if pass.input.backed_off.contains(name) {
            return Err(Rejection::BackedOff(name.to_owned()));
        }
        let count = Count::of(&pass.input.snapshot.nodes, name);
        if count.staying > candidate.pool.spec.replicas.unwrap_or(0) {
            return Err(Rejection::AboveReplicas);
        }
        let room = self
            .0
            .entry(name.to_owned())
            .or_insert_with(|| node_limit(&candidate.pool).saturating_sub(count.all));
        let command = Command::delete(method, vec![candidate.clone()]);
        if *room > 0 {
            *room -= 1;
            pass.budgets.take(name);
            return Ok(command.with_replacements(vec![replacement(&candidate.pool)]));
        }
        if !terminate_first || !launchable(&candidate.pool) {
            return Err(Rejection::StaticAtLimit);
        }
        pass.budgets.take(name);
        Ok(Command { terminate_first: Some(TerminateFirst::StaticAtLimit), ..command })
    }
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
