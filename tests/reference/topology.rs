//! Rules between pods, and whether a finished placement keeps them.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Pod, PodAffinityTerm, TopologySpreadConstraint, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::model::{self, Document, Expression, HOSTNAME, Objects};
use super::place::{self, Filter, Place};

/// One required rule of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub kind: Kind,
    pub key: String,
    pub selector: Option<LabelSelector>,
    pub namespaces: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Affinity,
    AntiAffinity,
    Spread { skew: i64, min_domains: Option<usize>, filter: Filter },
}

impl Rule {
    pub fn selects(&self, pod: &Pod) -> bool {
        self.namespaces.contains(model::namespace(pod))
            && model::selects(self.selector.as_ref(), &model::labels(pod))
    }
}

fn affinity_rule(kind: Kind, term: &PodAffinityTerm, pod: &Pod, objects: &Objects) -> Rule {
    let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
    match &term.namespace_selector {
        Some(selector) => namespaces.extend(
            objects
                .namespaces
                .iter()
                .filter(|(_, labels)| model::selects(Some(selector), labels))
                .map(|(name, _)| name.clone()),
        ),
        None if namespaces.is_empty() => {
            namespaces.insert(model::namespace(pod).to_owned());
        }
        None => {}
    }
    Rule { kind, key: term.topology_key.clone(), selector: term.label_selector.clone(), namespaces }
}

/// The rules that a pod's placement must keep.
pub fn rules(pod: &Pod, objects: &Objects) -> Vec<Rule> {
    let affinity = pod.spec.as_ref().expect("a pod spec").affinity.clone().unwrap_or_default();
    let together = affinity
        .pod_affinity
        .and_then(|a| a.required_during_scheduling_ignored_during_execution)
        .unwrap_or_default();
    let apart = affinity
        .pod_anti_affinity
        .and_then(|a| a.required_during_scheduling_ignored_during_execution)
        .unwrap_or_default();
    all_rules(pod, objects, &together, &apart, "DoNotSchedule")
}

/// The rules that a pod would rather have kept.
pub fn wishes(pod: &Pod, objects: &Objects) -> Vec<Rule> {
    let affinity = pod.spec.as_ref().expect("a pod spec").affinity.clone().unwrap_or_default();
    let terms = |list: Option<Vec<WeightedPodAffinityTerm>>| -> Vec<PodAffinityTerm> {
        list.into_iter().flatten().map(|wish| wish.pod_affinity_term).collect()
    };
    let together = terms(
        affinity.pod_affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution),
    );
    let apart = terms(
        affinity
            .pod_anti_affinity
            .and_then(|a| a.preferred_during_scheduling_ignored_during_execution),
    );
    all_rules(pod, objects, &together, &apart, "ScheduleAnyway")
}

fn all_rules(
    pod: &Pod,
    objects: &Objects,
    together: &[PodAffinityTerm],
    apart: &[PodAffinityTerm],
    unsatisfiable: &str,
) -> Vec<Rule> {
    let mut all: Vec<Rule> = Vec::new();
    all.extend(together.iter().map(|t| affinity_rule(Kind::Affinity, t, pod, objects)));
    all.extend(apart.iter().map(|t| affinity_rule(Kind::AntiAffinity, t, pod, objects)));
    let spec = pod.spec.as_ref().expect("a pod spec");
    let spreads = spec.topology_spread_constraints.iter().flatten();
    all.extend(
        spreads
            .filter(|spread| spread.when_unsatisfiable == unsatisfiable)
            .map(|spread| spread_rule(spread, pod)),
    );
    all
}

fn spread_rule(spread: &TopologySpreadConstraint, pod: &Pod) -> Rule {
    let mut selector = spread.label_selector.clone();
    for key in spread.match_label_keys.iter().flatten() {
        if let (Some(selector), Some(value)) = (&mut selector, model::labels(pod).get(key)) {
            selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
                key: key.clone(),
                operator: "In".to_owned(),
                values: Some(vec![value.clone()]),
            });
        }
    }
    let honors = |policy: &Option<String>, default: bool| match policy.as_deref() {
        Some(text) => text == "Honor",
        None => default,
    };
    let filter = Filter {
        terms: match honors(&spread.node_affinity_policy, true) {
            true => model::node_terms(pod),
            false => Vec::new(),
        },
        tolerations: honors(&spread.node_taints_policy, false)
            .then(|| model::tolerations(pod).to_vec()),
    };
    Rule {
        kind: Kind::Spread {
            skew: spread.max_skew.into(),
            min_domains: spread.min_domains.map(|n| usize::try_from(n).unwrap_or(0)),
            filter,
        },
        key: spread.topology_key.clone(),
        selector,
        namespaces: [model::namespace(pod).to_owned()].into(),
    }
}

/// Whether a wish about other pods is not met where a pod ended up.
pub fn unmet(
    doc: &Document,
    objects: &Objects,
    places: &[Place<'_>],
    at: usize,
    pod: &Pod,
    wish: &Rule,
) -> bool {
    match &wish.kind {
        Kind::Affinity => {
            let selected = places.iter().flat_map(Place::pods).filter(|p| wish.selects(p)).count();
            // The first of its kind has nobody to go to.
            let first = wish.selects(pod) && selected == 1;
            !first && alone(doc, places, at, pod, wish).is_some()
        }
        Kind::AntiAffinity => {
            let mut found = Vec::new();
            apart(doc, places, at, pod, true, wish, &mut found);
            !found.is_empty()
        }
        Kind::Spread { filter, .. } => {
            skewed(doc, objects, places, at, pod, wish, filter).is_some()
        }
    }
}

/// Domains of a key that nodes have or could be launched in, as a pod with this rule sees them: a
/// node is launched from a pool, as a type, from an offering, and all three must suit the rule.
pub fn universe(
    doc: &Document,
    places: &[Place<'_>],
    key: &str,
    filter: &Filter,
) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for pool in &doc.node_pools {
        let open = filter.tolerations.as_ref().is_none_or(|tolerations| {
            place::pool_taints(pool).iter().all(|t| model::tolerates(tolerations, t))
        });
        let types = doc.types_of(pool.metadata.name.as_deref().unwrap_or_default());
        if !open || pool.spec.replicas.is_some() || key == HOSTNAME {
            continue;
        }
        let anything = [Vec::new()];
        let terms = if filter.terms.is_empty() { &anything[..] } else { &filter.terms[..] };
        for (term, of_type) in terms.iter().flat_map(|t| types.iter().map(move |k| (t, k))) {
            for offering in of_type.offerings.iter().filter(|o| o.available) {
                all.extend(place::launched_as(doc, pool, of_type, offering, term, key));
            }
        }
    }
    for node in places {
        if matches!(node.kind, place::Kind::Existing { .. }) && node.counted_for(doc, filter) {
            all.extend(node.domains(doc, key));
        }
    }
    all
}

/// Broken rules, in words.
pub fn broken(doc: &Document, objects: &Objects, places: &[Place<'_>]) -> Vec<String> {
    let mut found = Vec::new();
    let mut solitary: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for (at, node) in places.iter().enumerate() {
        let owners =
            node.bound.iter().map(|p| (p, false)).chain(node.placed.iter().map(|p| (p, true)));
        for (pod, placed) in owners {
            for rule in rules(pod, objects) {
                match &rule.kind {
                    Kind::AntiAffinity => apart(doc, places, at, pod, placed, &rule, &mut found),
                    Kind::Affinity if placed => {
                        if let Some(problem) = alone(doc, places, at, pod, &rule) {
                            if !rule.selects(pod) {
                                found.push(problem);
                            } else {
                                let class = format!("{rule:?} {:?}", model::node_terms(pod));
                                let entry = solitary.entry(class).or_default();
                                entry.0 += 1;
                                entry.1 = problem;
                            }
                        }
                    }
                    Kind::Spread { filter, .. } if placed => {
                        // Soft taints kept nodes from counting for as long as they were respected.
                        let views = [Some(filter.clone()), filter.past_soft_taints(doc)];
                        let problems: Vec<_> = views
                            .iter()
                            .flatten()
                            .map(|filter| skewed(doc, objects, places, at, pod, &rule, filter))
                            .collect();
                        if problems.iter().all(Option::is_some) {
                            found.extend(problems.into_iter().flatten().next());
                        }
                    }
                    _ => {}
                }
            }
        }
    }
    // The first pod of its kind may open a domain; nobody after it may be alone.
    found.extend(solitary.into_values().filter(|(n, _)| *n > 1).map(|(_, problem)| problem));
    found.sort();
    found.dedup();
    found
}

fn apart(
    doc: &Document,
    places: &[Place<'_>],
    at: usize,
    pod: &Pod,
    placed: bool,
    rule: &Rule,
    found: &mut Vec<String>,
) {
    let here = places[at].domains(doc, &rule.key);
    if placed && !here.is_empty() {
        for daemon in place::expected(doc, &places[at], false) {
            if rule.selects(daemon) {
                found.push(format!("{} is to be apart from a daemon", model::name(pod)));
            }
        }
    }
    for (other_at, other) in places.iter().enumerate() {
        let there = other.domains(doc, &rule.key);
        if here.is_disjoint(&there) {
            continue;
        }
        let others =
            other.bound.iter().map(|p| (p, false)).chain(other.placed.iter().map(|p| (p, true)));
        for (neighbour, neighbour_placed) in others {
            let same = other_at == at && model::name(neighbour) == model::name(pod);
            if !same && (placed || neighbour_placed) && rule.selects(neighbour) {
                found.push(format!(
                    "{} is to be apart by {} from {}, which shares {here:?}",
                    model::name(pod),
                    rule.key,
                    model::name(neighbour)
                ));
            }
        }
    }
}

/// A pod that is to be with others and, wherever its node ends up, may not be.
fn alone(
    doc: &Document,
    places: &[Place<'_>],
    at: usize,
    pod: &Pod,
    rule: &Rule,
) -> Option<String> {
    let name = model::name(pod);
    let others = |place: &Place<'_>, own: bool| {
        place.pods().any(|p| rule.selects(p) && !(own && model::name(p) == name))
            || place::expected(doc, place, true).into_iter().any(|d| rule.selects(d))
    };
    let here = places[at].domains(doc, &rule.key);
    let accompanied = others(&places[at], true)
        || !here.is_empty()
            && here.iter().all(|domain| {
                let there = |p: &Place<'_>| p.domain(doc, &rule.key).as_ref() == Some(domain);
                places
                    .iter()
                    .enumerate()
                    .any(|(other, place)| other != at && there(place) && others(place, false))
            });
    (!accompanied).then(|| format!("{name} is to share {} and is alone in {here:?}", rule.key))
}

/// A pod in a domain that has too many of its kind.
fn skewed(
    doc: &Document,
    objects: &Objects,
    places: &[Place<'_>],
    at: usize,
    pod: &Pod,
    rule: &Rule,
    filter: &Filter,
) -> Option<String> {
    let Kind::Spread { skew, min_domains, .. } = &rule.kind else { return None };
    let name = model::name(pod);
    let Some(domain) = places[at].domain(doc, &rule.key) else {
        return Some(format!("{name} is to be spread by {} and its domain is open", rule.key));
    };
    // Only where every pod that counts keeps the rule itself does the end say what held on the way.
    let decidable = places.iter().flat_map(|p| &p.placed).all(|p| {
        !rule.selects(p)
            || (rules(p, objects).contains(rule) && model::node_terms(p) == model::node_terms(pod))
    });
    if !rule.selects(pod) || !decidable {
        return None;
    }
    let mut counts: BTreeMap<String, i64> = BTreeMap::new();
    for place in places.iter().filter(|p| p.counted_for(doc, filter)) {
        let here = i64::try_from(place.pods().filter(|p| rule.selects(p)).count()).unwrap_or(0);
        if let Some(domain) = place.domain(doc, &rule.key) {
            *counts.entry(domain).or_default() += here;
        }
    }
    // The least is taken over the domains of the one required term that was in force.
    let terms = model::node_terms(pod);
    let in_force = terms
        .iter()
        .filter(|t| t.iter().filter(|e| e.key == rule.key).all(|e| e.met_by(Some(&domain))));
    let least = in_force
        .map(|term| least(doc, places, &counts, rule, *min_domains, filter, term))
        .max()
        .unwrap_or(0);
    let here = counts.get(&domain).copied().unwrap_or(0);
    (here - least > *skew).then(|| {
        format!(
            "{name}: {here} in {domain} by {}, least {least}, skew {skew}: {counts:?}",
            rule.key
        )
    })
}

/// The lowest count that a pod's spread is measured against, under one of its required terms.
pub fn least(
    doc: &Document,
    places: &[Place<'_>],
    counts: &BTreeMap<String, i64>,
    rule: &Rule,
    min_domains: Option<usize>,
    filter: &Filter,
    term: &[Expression],
) -> i64 {
    if rule.key == HOSTNAME {
        return 0;
    }
    let allowed: Vec<String> = universe(doc, places, &rule.key, filter)
        .into_iter()
        .filter(|d| term.iter().filter(|e| e.key == rule.key).all(|e| e.met_by(Some(d))))
        .collect();
    if min_domains.is_some_and(|n| allowed.len() < n) {
        return 0;
    }
    allowed.iter().map(|d| counts.get(d).copied().unwrap_or(0)).min().unwrap_or(0)
}
