//! Is a result valid: does every pod sit where it may, and does everything fit and cost what is said?

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;

use super::model::{self, Amounts, Document, Expression, Objects, TypeDoc};
use super::outcome::{Claim, Outcome};
use super::place::{self, Kind, Place};
use super::topology;

/// A scenario with a result laid over it.
pub struct World<'a> {
    pub doc: &'a Document,
    pub objects: Objects,
    pub outcome: &'a Outcome,
    pub pods: BTreeMap<String, &'a Pod>,
    pub places: Vec<Place<'a>>,
}

impl<'a> World<'a> {
    pub fn new(doc: &'a Document, outcome: &'a Outcome) -> Self {
        let pods: BTreeMap<String, &Pod> = doc.pods.iter().map(|p| (model::name(p), p)).collect();
        let mut places = place::existing_places(doc);
        for existing in &outcome.existing_nodes {
            if let Some(place) = places.iter_mut().find(|p| p.name == existing.name) {
                place.placed = existing.pods.iter().filter_map(|n| pods.get(n).copied()).collect();
            }
        }
        for (index, claim) in outcome.node_claims.iter().enumerate() {
            places.push(place::claim_place(doc, claim, index, &pods));
        }
        Self { doc, objects: doc.objects(), outcome, pods, places }
    }

    /// Everything that is wrong with the result, in words; nothing when it is valid.
    pub fn problems(&self) -> Vec<String> {
        let mut found = self.accounting();
        let first_claim = self.places.len() - self.outcome.node_claims.len();
        for (index, place) in self.places.iter().enumerate() {
            match index.checked_sub(first_claim) {
                None => self.existing(place, &mut found),
                Some(at) => self.claim(place, &self.outcome.node_claims[at], &mut found),
            }
            self.neighbours(place, &mut found);
        }
        self.limits(&mut found);
        found.extend(topology::broken(self.doc, &self.objects, &self.places));
        found
    }

    /// Every pod once, every name known, prices summed up.
    fn accounting(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        let outcome = self.outcome;
        let on_new = outcome.node_claims.iter().flat_map(|c| &c.pods);
        let on_old = outcome.existing_nodes.iter().flat_map(|n| &n.pods);
        let left = outcome.unschedulable.iter().map(|l| &l.pod);
        for name in on_new.chain(on_old).chain(left) {
            if !self.pods.contains_key(name) {
                found.push(format!("{name} is no pod of the scenario"));
            }
            if !seen.insert(name) {
                found.push(format!("{name} is named twice"));
            }
        }
        found.extend(
            self.pods.keys().filter(|n| !seen.contains(n)).map(|n| format!("{n} is nowhere")),
        );
        for node in &outcome.existing_nodes {
            if !self.places.iter().any(|p| p.name == node.name) {
                found.push(format!("{} is no node of the scenario", node.name));
            }
        }
        let sum: f64 =
            outcome.node_claims.iter().filter_map(|c| c.cheapest.as_ref()).map(|l| l.price).sum();
        if (sum - outcome.total_price).abs() > 1e-6 * sum.max(1.0) {
            found.push(format!("total price {} where the nodes cost {sum}", outcome.total_price));
        }
        found
    }

    /// Node selector, required affinity, volumes and taints of one pod on one node.
    fn may_sit(&self, place: &Place<'_>, pod: &Pod, of_type: Option<&TypeDoc>) -> Option<String> {
        let name = model::name(pod);
        let sure = |term: &Vec<Expression>| {
            term.iter().all(|e| {
                place.label(self.doc, normal(&e.key), of_type).is_some_and(|l| l.surely(e))
            })
        };
        if !model::node_terms(pod).iter().any(sure) {
            return Some(format!("{name} may not be on {}: node selector or affinity", place.name));
        }
        if !self.objects.volume_terms(pod).iter().any(sure) {
            return Some(format!("{name} may not be on {}: its volumes", place.name));
        }
        let bad = place.taints.iter().find(|t| {
            t.effect != "PreferNoSchedule" && !model::tolerates(model::tolerations(pod), t)
        });
        bad.map(|t| format!("{name} does not tolerate {} of {}", t.key, place.name))
    }

    fn existing(&self, place: &Place<'_>, found: &mut Vec<String>) {
        let Kind::Existing { room, .. } = &place.kind else { return };
        if place.placed.is_empty() {
            return;
        }
        let mut wanted = Amounts::new();
        for pod in &place.placed {
            model::add(&mut wanted, &model::requests(pod));
            found.extend(self.may_sit(place, pod, None));
        }
        if let Some(resource) = model::short_of(&wanted, room) {
            found.push(format!("{} has too little {resource}", place.name));
        }
        if !place::volumes_within_limits(&self.objects, place, None) {
            found.push(format!("{} has too many volumes", place.name));
        }
    }

    fn claim(&self, place: &Place<'_>, claim: &Claim, found: &mut Vec<String>) {
        let Kind::New { types, expressions, .. } = &place.kind else { return };
        let Some(pool) = place::pool(self.doc, &claim.node_pool) else {
            found.push(format!("{}: there is no NodePool {}", place.name, claim.node_pool));
            return;
        };
        if types.is_empty() || types.len() != claim.instance_types.len() {
            found.push(format!("{}: unknown instance types", place.name));
        }
        if place.placed.is_empty() {
            found.push(format!("{} has no pod", place.name));
        }
        for expression in place::pool_expressions(pool) {
            let own: Vec<Expression> =
                expressions.iter().filter(|e| e.key == expression.key).cloned().collect();
            let kept = super::label::Label::of(&own).is_some_and(|l| l.surely(&expression));
            if own.is_empty() || !kept {
                found.push(format!("{}: the pool's {expression:?} is not kept", place.name));
            }
        }
        let mut pods = Amounts::new();
        place.placed.iter().for_each(|p| model::add(&mut pods, &model::requests(p)));
        let told = model::amounts(&claim.requests);
        if let Some(resource) = model::short_of(&pods, &told) {
            found.push(format!("{}: requests name less {resource} than its pods do", place.name));
        }
        let mut prices = Vec::new();
        for of_type in types {
            let mut wanted = pods.clone();
            for daemon in place::daemons(self.doc, pool, of_type) {
                model::add(&mut wanted, &model::requests(daemon));
                for pod in place.placed.iter().filter(|p| model::ports_clash(p, daemon)) {
                    found.push(format!(
                        "{}: {} clashes with a daemon's port",
                        place.name,
                        model::name(pod)
                    ));
                }
            }
            if let Some(resource) = model::short_of(&wanted, &of_type.allocatable()) {
                found.push(format!("{}: {} has too little {resource}", place.name, of_type.name));
            }
            for pod in &place.placed {
                found.extend(
                    self.may_sit(place, pod, Some(of_type))
                        .map(|p| format!("{p} as {}", of_type.name)),
                );
            }
            match cheapest(self.doc, place, of_type) {
                Some(price) => prices.push(price),
                None => found.push(format!("{}: {} has no offering", place.name, of_type.name)),
            }
        }
        self.price(place, claim, &prices, found);
        found.extend(
            unmet_min_values(self.doc, claim, types)
                .map(|key| format!("{}: too few values of {key}", place.name)),
        );
    }

    fn price(&self, place: &Place<'_>, claim: &Claim, prices: &[f64], found: &mut Vec<String>) {
        let Some(launch) = &claim.cheapest else {
            found.push(format!("{} has no cheapest launch", place.name));
            return;
        };
        let offered = self
            .doc
            .instance_types
            .iter()
            .filter(|t| t.name == launch.instance_type)
            .flat_map(|t| &t.offerings)
            .any(|o| {
                o.available
                    && o.zone == launch.zone
                    && o.capacity_type == launch.capacity_type
                    && (o.price - launch.price).abs() < 1e-9
            });
        let least = prices.iter().copied().fold(f64::MAX, f64::min);
        if !offered || (least - launch.price).abs() > 1e-9 {
            found.push(format!(
                "{}: {} is not the lowest price, {least} is",
                place.name, launch.price
            ));
        }
        if !prices.is_sorted() {
            found.push(format!("{}: instance types are not cheapest first", place.name));
        }
    }

    /// Host ports of pods on one node.
    fn neighbours(&self, place: &Place<'_>, found: &mut Vec<String>) {
        for (at, pod) in place.placed.iter().enumerate() {
            let others = place.bound.iter().chain(&place.placed[at + 1..]);
            for other in others.filter(|o| model::ports_clash(pod, o)) {
                let (a, b) = (model::name(pod), model::name(other));
                found.push(format!("{a} and {b} want one port of {}", place.name));
            }
        }
    }

    /// NodePool limits, counting each planned node as the largest that it may become.
    fn limits(&self, found: &mut Vec<String>) {
        for pool in &self.doc.node_pools {
            let name = pool.metadata.name.as_deref().unwrap_or_default();
            let Some(limits) = &pool.spec.limits else { continue };
            let mut used = used_by_nodes(self.doc, name);
            let mut grows = false;
            for place in &self.places {
                let Kind::New { types, pool, .. } = &place.kind else { continue };
                if pool == name {
                    model::add(&mut used, &largest(types));
                    model::add(&mut used, &one_node());
                    grows = true;
                }
            }
            for (resource, limit) in limits {
                let over = used.get(resource).copied().unwrap_or(0) > model::quantity(&limit.0);
                if grows && over {
                    found.push(format!("NodePool {name} exceeds its limit of {resource}"));
                }
            }
        }
    }
}

/// The key as it is written today.
pub fn normal(key: &str) -> &str {
    match key {
        "failure-domain.beta.kubernetes.io/zone" | "topology.ebs.csi.aws.com/zone" => model::ZONE,
        "beta.kubernetes.io/arch" => "kubernetes.io/arch",
        "beta.kubernetes.io/os" => "kubernetes.io/os",
        "beta.kubernetes.io/instance-type" => model::INSTANCE_TYPE,
        other => other,
    }
}

/// The most of every resource that any of the types has.
pub fn largest(types: &[&TypeDoc]) -> Amounts {
    let mut most = Amounts::new();
    for (name, amount) in types.iter().flat_map(|t| model::amounts(&t.capacity)) {
        let known = most.entry(name).or_default();
        *known = amount.max(*known);
    }
    most
}

/// What a node takes of the limit on nodes.
pub fn one_node() -> Amounts {
    [("nodes".to_owned(), 1_000_000_000)].into()
}

pub fn used_by_nodes(doc: &Document, pool: &str) -> Amounts {
    let mut used = Amounts::new();
    for entry in &doc.nodes {
        let labels = entry.node.metadata.labels.clone().unwrap_or_default();
        if labels.get(model::NODEPOOL).is_some_and(|p| p == pool) {
            let capacity = entry.node.status.as_ref().and_then(|s| s.capacity.clone());
            let of_node: Amounts = capacity
                .unwrap_or_default()
                .iter()
                .map(|(k, v)| (k.clone(), model::quantity(&v.0)))
                .collect();
            model::add(&mut used, &of_node);
            model::add(&mut used, &one_node());
        }
    }
    used
}

/// The lowest price of a type's offerings that a planned node allows.
pub fn cheapest(doc: &Document, place: &Place<'_>, of_type: &TypeDoc) -> Option<f64> {
    of_type
        .offerings
        .iter()
        .filter(|o| o.available)
        .filter(|o| {
            o.expressions()
                .iter()
                .all(|e| place.label(doc, &e.key, None).is_some_and(|l| l.narrowed(e).is_some()))
        })
        .map(|o| o.price)
        .min_by(f64::total_cmp)
}

/// Keys of which a planned node's types offer too few values.
pub fn unmet_min_values(
    doc: &Document,
    claim: &Claim,
    types: &[&TypeDoc],
) -> impl Iterator<Item = String> {
    let strict = doc.options.min_values_policy != "BestEffort";
    let unmet: Vec<String> = claim
        .requirements
        .iter()
        .filter(|w| {
            let asked = std::slice::from_ref(&w.expression);
            strict && values_of(types, &w.expression.key, asked) < w.min_values.unwrap_or(0)
        })
        .map(|w| w.expression.key.clone())
        .collect();
    unmet.into_iter()
}

/// How many values the types have for a key, of those that all that is asked for allows.
pub fn values_of<'a>(
    types: &[&TypeDoc],
    key: &str,
    asked: impl IntoIterator<Item = &'a Expression>,
) -> usize {
    let asked: Vec<&Expression> = asked.into_iter().filter(|e| normal(&e.key) == key).collect();
    let values: BTreeSet<String> = types
        .iter()
        .flat_map(|t| t.of_key(key))
        .filter(|e| e.operator == "In")
        .flat_map(|e| e.values.clone())
        .filter(|value| asked.iter().all(|e| e.met_by(Some(value))))
        .collect();
    values.len()
}
