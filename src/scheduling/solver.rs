//! The scheduling loop: existing nodes first, then nodes planned in this round, then new ones.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;

use super::instance_type::sort_by_price;
use super::pod::{Constraints, HostPort, PodInfo, PodKey};
use super::requirements::{Allow, Requirement, Requirements};
use super::resources::{Name, ResourceList};
use super::results::{MAX_INSTANCE_TYPES, PlannedClaim, PodError, Reason, Results};
use super::snapshot::Snapshot;
use super::taints::tolerate_all;
use super::template::{
    Candidate, Template, daemon_tolerations, min_values_reached, prefer_no_schedule,
};
use crate::api::{labels, taints};

/// Places the snapshot's pods.
#[must_use]
pub fn solve(snapshot: &Snapshot) -> Results {
    solve_while(snapshot, &|| true)
}

/// Places the snapshot's pods for as long as `go_on` says so; pods not reached are in no list.
#[must_use]
pub fn solve_while(snapshot: &Snapshot, go_on: &dyn Fn() -> bool) -> Results {
    let mut solver = Solver::new(snapshot);
    solver.run(go_on);
    solver.finish()
}

/// A node that exists, with the room left on it.
struct Existing {
    name: String,
    requirements: Requirements,
    taints: Vec<Taint>,
    room: ResourceList,
    ports: Vec<(PodKey, HostPort)>,
    pods: Vec<PodKey>,
}

/// A node planned in this round.
struct Claim {
    template: usize,
    requirements: Requirements,
    requests: ResourceList,
    candidates: Vec<Arc<Candidate>>,
    ports: Vec<HostPort>,
    pods: Vec<PodKey>,
    min_values_relaxed: bool,
}

/// A pod's constraints as far as they have not been relaxed.
struct Attempt<'a> {
    pod: &'a PodInfo,
    constraints: Arc<Constraints>,
    requirements: Requirements,
}

struct Solver<'a> {
    snapshot: &'a Snapshot,
    templates: Vec<Template>,
    existing: Vec<Existing>,
    claims: Vec<Claim>,
    /// What each limited pool may still use.
    remaining: HashMap<String, ResourceList>,
    errors: BTreeMap<PodKey, PodError>,
    tolerate_prefer_no_schedule: bool,
}

impl<'a> Solver<'a> {
    fn new(snapshot: &'a Snapshot) -> Self {
        let mut pools: Vec<_> = snapshot
            .node_pools
            .iter()
            .filter(|p| p.node_pool.spec.replicas.is_none())
            .filter(|p| p.node_pool.metadata.deletion_timestamp.is_none())
            .collect();
        pools.sort_by(|a, b| {
            let weight = |p: &&super::snapshot::NodePoolInput| p.node_pool.spec.weight.unwrap_or(0);
            weight(b)
                .cmp(&weight(a))
                .then_with(|| b.node_pool.metadata.name.cmp(&a.node_pool.metadata.name))
        });
        let tolerate_prefer_no_schedule = pools.iter().any(|p| {
            let list = p.node_pool.spec.template.spec.taints.as_deref().unwrap_or_default();
            list.iter().any(|t| t.effect == taints::PREFER_NO_SCHEDULE)
        });
        let templates: Vec<Template> = pools
            .iter()
            .filter_map(|input| Template::new(input, &snapshot.daemonset_pods).ok())
            .collect();
        let mut remaining: HashMap<String, ResourceList> = pools
            .iter()
            .filter_map(|p| {
                let limits = p.node_pool.spec.limits.as_ref()?;
                let name = p.node_pool.metadata.name.clone()?;
                Some((name, ResourceList::from_quantities_lossy(Some(limits))))
            })
            .collect();
        let mut nodes: Vec<_> = snapshot.nodes.iter().filter(|n| !n.deleting()).collect();
        for node in &nodes {
            if let Some(left) = node.node_pool().and_then(|name| remaining.get_mut(name)) {
                left.sub(&node.capacity());
            }
        }
        nodes.sort_by(|a, b| {
            b.initialized().cmp(&a.initialized()).then_with(|| a.name().cmp(b.name()))
        });
        let existing = nodes.iter().map(|n| Existing::new(n, &snapshot.daemonset_pods)).collect();
        Self {
            snapshot,
            templates,
            existing,
            claims: Vec::new(),
            remaining,
            errors: BTreeMap::new(),
            tolerate_prefer_no_schedule,
        }
    }

    fn run(&mut self, go_on: &dyn Fn() -> bool) {
        let mut order: Vec<&Arc<PodInfo>> = self.snapshot.pods.iter().collect();
        order.sort_by(|a, b| {
            let amount = |p: &PodInfo, name| p.requests.get(&name);
            amount(b, Name::Cpu)
                .cmp(&amount(a, Name::Cpu))
                .then_with(|| amount(b, Name::Memory).cmp(&amount(a, Name::Memory)))
                .then_with(|| a.created.cmp(&b.created))
                .then_with(|| a.uid.cmp(&b.uid))
                .then_with(|| a.key.cmp(&b.key))
        });
        let mut queue: VecDeque<(&Arc<PodInfo>, usize)> =
            order.into_iter().map(|p| (p, usize::MAX)).collect();
        while let Some((pod, last_length)) = queue.pop_front() {
            if last_length == queue.len() || !go_on() {
                break;
            }
            match self.place(pod) {
                Ok(()) => {
                    self.errors.remove(&pod.key);
                }
                Err(error) => {
                    self.errors.insert(pod.key.clone(), error);
                    let length = queue.len();
                    queue.push_back((pod, length));
                }
            }
        }
    }

    /// Tries the pod as it is, then with one preference less each time.
    fn place(&mut self, pod: &PodInfo) -> Result<(), PodError> {
        if pod.dynamic_resources && self.snapshot.options.ignore_dynamic_resources {
            return Err(PodError::DynamicResources);
        }
        let respect = self.snapshot.options.respect_preferences;
        let mut constraints = Arc::clone(&pod.constraints);
        loop {
            let requirements = constraints.requirements(respect);
            let attempt = Attempt { pod, constraints: Arc::clone(&constraints), requirements };
            let error = match self.try_once(&attempt) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            match relax(&constraints, self.tolerate_prefer_no_schedule) {
                Some(weaker) => constraints = Arc::new(weaker),
                None => return Err(error),
            }
        }
    }

    fn try_once(&mut self, attempt: &Attempt<'_>) -> Result<(), PodError> {
        if self.existing.iter_mut().any(|node| node.add(attempt).is_ok()) {
            return Ok(());
        }
        let mut order: Vec<usize> = (0..self.claims.len()).collect();
        order.sort_by_key(|i| self.claims[*i].pods.len());
        for index in order {
            let claim = &mut self.claims[index];
            if claim.add(&self.templates[claim.template], attempt).is_ok() {
                return Ok(());
            }
        }
        self.open_claim(attempt)
    }

    fn open_claim(&mut self, attempt: &Attempt<'_>) -> Result<(), PodError> {
        if self.templates.is_empty() {
            return Err(PodError::NoTemplates);
        }
        let mut reasons = Vec::new();
        for index in 0..self.templates.len() {
            match self.claim_from(index, attempt) {
                Ok(claim) => {
                    self.spend_limits(&claim);
                    self.claims.push(claim);
                    return Ok(());
                }
                Err(reason) => reasons.push((self.templates[index].name.clone(), reason)),
            }
        }
        Err(PodError::Pools(reasons))
    }

    fn claim_from(&self, index: usize, attempt: &Attempt<'_>) -> Result<Claim, Reason> {
        let template = &self.templates[index];
        let mut candidates = template.candidates.clone();
        if let Some(left) = self.remaining.get(&template.name) {
            if left.find(&Name::from("nodes")) == Some(0) {
                return Err(Reason::NodeLimit(template.name.clone()));
            }
            candidates.retain(|c| {
                left.iter().all(|(name, value)| c.instance_type.capacity.get(name) <= value)
            });
            if candidates.is_empty() {
                return Err(Reason::Limits(template.name.clone()));
            }
        }
        let mut requirements = template.requirements.clone();
        requirements.add(Requirement::is(
            labels::HOSTNAME,
            &format!("hostname-placeholder-{:04}", self.claims.len() + 1),
        ));
        let mut claim = Claim {
            template: index,
            requirements,
            requests: ResourceList::new(),
            candidates,
            ports: Vec::new(),
            pods: Vec::new(),
            min_values_relaxed: false,
        };
        match claim.add(template, attempt) {
            Err(Reason::NoInstanceType(error))
                if error.min_values.is_some() && self.snapshot.options.best_effort_min_values =>
            {
                claim.lower_min_values(attempt);
                claim.add(template, attempt)?;
            }
            other => other?,
        }
        Ok(claim)
    }

    /// Limits are charged with the largest type that the claim may become.
    fn spend_limits(&mut self, claim: &Claim) {
        let name = &self.templates[claim.template].name;
        if let Some(left) = self.remaining.get_mut(name) {
            let mut largest = ResourceList::new();
            for candidate in &claim.candidates {
                largest.max(&candidate.instance_type.capacity);
            }
            left.sub(&largest);
        }
    }

    fn finish(self) -> Results {
        let mut results = Results {
            errors: self.errors.into_iter().collect(),
            existing: self
                .existing
                .into_iter()
                .filter(|n| !n.pods.is_empty())
                .map(|n| (n.name, n.pods))
                .collect(),
            ..Results::default()
        };
        for mut claim in self.claims {
            let template = &self.templates[claim.template];
            claim.requirements.remove(labels::HOSTNAME);
            let mut instance_types: Vec<_> =
                claim.candidates.iter().map(|c| Arc::clone(&c.instance_type)).collect();
            sort_by_price(&mut instance_types, &claim.requirements);
            instance_types.truncate(MAX_INSTANCE_TYPES);
            let mut requests = claim.requests;
            requests.add(&template.overhead(&claim.candidates));
            results.new_claims.push(PlannedClaim {
                node_pool: Arc::clone(&template.node_pool),
                requirements: claim.requirements,
                taints: template.taints.clone(),
                requests,
                instance_types,
                pods: claim.pods,
                min_values_relaxed: claim.min_values_relaxed,
            });
        }
        results
    }
}

impl Existing {
    fn new(node: &super::node::StateNode, daemons: &[Arc<PodInfo>]) -> Self {
        let taints = node.taints();
        let mut requirements = Requirements::from_labels(node.labels());
        let name = node.name().to_owned();
        if !requirements.has(labels::HOSTNAME) {
            requirements.add(Requirement::is(labels::HOSTNAME, &name));
        }
        let mut expected = ResourceList::new();
        for daemon in daemons {
            let wanted = daemon.constraints.strict_requirements();
            if tolerate_all(&taints, &daemon_tolerations(daemon)).is_ok()
                && requirements.compatible(&wanted, Allow::Nothing).is_ok()
            {
                expected.add(&daemon.requests);
            }
        }
        for pod in node.pods.iter().filter(|p| p.owners.daemon_set && !p.terminal) {
            expected.sub(&pod.requests);
        }
        let expected: ResourceList =
            expected.iter().map(|(name, value)| (name.clone(), value.max(0))).collect();
        let mut room = node.available();
        room.sub(&expected);
        let ports = node
            .pods
            .iter()
            .flat_map(|p| p.constraints.host_ports.iter().map(|h| (p.key.clone(), h.clone())))
            .collect();
        Self { name, requirements, taints, room, ports, pods: Vec::new() }
    }

    fn add(&mut self, attempt: &Attempt<'_>) -> Result<(), Reason> {
        let pod = attempt.pod;
        if !pod.requests.fits(&self.room) {
            return Err(Reason::Resources);
        }
        tolerate_all(&self.taints, &attempt.constraints.tolerations).map_err(Reason::Taint)?;
        let ports = &attempt.constraints.host_ports;
        if ports.iter().any(|p| self.ports.iter().any(|(key, q)| *key != pod.key && p.conflicts(q)))
        {
            return Err(Reason::HostPort);
        }
        self.requirements
            .compatible(&attempt.requirements, Allow::Nothing)
            .map_err(Reason::Requirements)?;
        self.requirements.merge(&attempt.requirements);
        self.room.sub(&pod.requests);
        self.ports.extend(ports.iter().map(|p| (pod.key.clone(), p.clone())));
        self.pods.push(pod.key.clone());
        Ok(())
    }
}

impl Claim {
    fn add(&mut self, template: &Template, attempt: &Attempt<'_>) -> Result<(), Reason> {
        let pod = attempt.pod;
        tolerate_all(&template.taints, &attempt.constraints.tolerations).map_err(Reason::Taint)?;
        self.requirements
            .compatible(&attempt.requirements, Allow::WellKnown)
            .map_err(Reason::Requirements)?;
        let mut requirements = self.requirements.clone();
        requirements.merge(&attempt.requirements);
        let mut requests = self.requests.clone();
        requests.add(&pod.requests);
        let pod_ports = &attempt.constraints.host_ports;
        if pod_ports.iter().any(|p| self.ports.iter().any(|q| p.conflicts(q))) {
            return Err(Reason::HostPort);
        }
        let mut ports = self.ports.clone();
        ports.extend(pod_ports.iter().cloned());
        let candidates = template
            .filter(&self.candidates, &requirements, &requests, &ports)
            .map_err(Reason::NoInstanceType)?;
        self.requirements = requirements;
        self.requests = requests;
        self.candidates = candidates;
        self.ports = ports;
        self.pods.push(pod.key.clone());
        Ok(())
    }

    /// Lowers each minValues to what the candidates reach.
    fn lower_min_values(&mut self, attempt: &Attempt<'_>) {
        let mut wanted = self.requirements.clone();
        wanted.merge(&attempt.requirements);
        let reached: Vec<(String, i64)> = min_values_reached(&self.candidates, &wanted)
            .into_iter()
            .filter(|(_, wanted, reached)| reached < wanted)
            .map(|(key, _, reached)| (key.to_owned(), reached))
            .collect();
        for (key, reached) in reached {
            if let Some(requirement) = self.requirements.get(&key).cloned() {
                self.requirements.replace(requirement.with_min_values(Some(reached)));
                self.min_values_relaxed = true;
            }
        }
    }
}

/// The constraints with the next preference dropped, or nothing when none is left.
fn relax(constraints: &Constraints, tolerate_prefer_no_schedule: bool) -> Option<Constraints> {
    let mut weaker = constraints.clone();
    if weaker.required_terms.len() > 1 {
        weaker.required_terms.remove(0);
        return Some(weaker);
    }
    if !weaker.preferred_affinity.is_empty() {
        weaker.preferred_affinity.remove(0);
        return Some(weaker);
    }
    if !weaker.preferred_anti_affinity.is_empty() {
        weaker.preferred_anti_affinity.remove(0);
        return Some(weaker);
    }
    if !weaker.preferred_terms.is_empty() {
        weaker.preferred_terms.remove(0);
        return Some(weaker);
    }
    if let Some(at) = weaker.spread.iter().position(|s| s.when_unsatisfiable == "ScheduleAnyway") {
        weaker.spread.swap_remove(at);
        return Some(weaker);
    }
    if tolerate_prefer_no_schedule && !weaker.tolerations.contains(&prefer_no_schedule()) {
        weaker.tolerations.push(prefer_no_schedule());
        return Some(weaker);
    }
    None
}

#[cfg(test)]
mod tests;
