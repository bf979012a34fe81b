//! A scheduler by Kubernetes' rules, as far as pods here use them: taints, node selectors and
//! affinity, resources, host ports, affinity to and from pods, hard spread constraints, and the
//! zones of volumes. Of the nodes that fit, the least loaded is taken.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use karpenter_core::scheduling::taints::tolerates;

use super::Cluster;
use super::facts::{NodeFacts, PodFacts};
use crate::api::{Key, kind, set_condition, write_time};

impl Cluster {
    /// Binds what can be bound, and marks the rest.
    pub(super) fn schedule(&mut self) {
        if !std::mem::take(&mut self.retry) || self.pending.is_empty() {
            return;
        }
        let mut queue: Vec<(i32, jiff::Timestamp, Key)> = self
            .pending
            .iter()
            .filter_map(|key| {
                let pod = self.pods.get(key)?;
                Some((-pod.priority, pod.created, key.clone()))
            })
            .collect();
        // Kubernetes' order: priority, then age; the name makes it the same each time.
        queue.sort();
        // Pods of one owner are alike: where one fits nowhere, the others do not either. True where
        // that may change once another pod is bound.
        let mut refused: BTreeMap<String, bool> = BTreeMap::new();
        for (_, _, key) in queue {
            let alike = self.pods.get(&key).and_then(alike);
            if alike.as_ref().is_some_and(|uid| refused.contains_key(uid)) {
                self.mark_unschedulable(&key);
                continue;
            }
            match self.place(&key) {
                Some(node) => {
                    self.bind(&key, &node);
                    refused.retain(|_, follows| !*follows);
                }
                None => {
                    let follows = |p: &PodFacts| !p.near.is_empty() || !p.spread.is_empty();
                    if let Some(uid) = alike {
                        refused.insert(uid, self.pods.get(&key).is_some_and(follows));
                    }
                    self.mark_unschedulable(&key);
                }
            }
        }
    }

    fn bind(&mut self, key: &Key, node: &str) {
        let claims = self.pods.get(key).map(|p| p.volume_claims.clone()).unwrap_or_default();
        self.provide_volumes(&key.namespace, &claims, node);
        if self.store.bind(&key.namespace, &key.name, node).is_err() {
            return;
        }
        self.pending.remove(key);
        // What comes next in the queue has to see it there.
        if let (Some(pod), Some(to)) = (self.pods.get_mut(key), self.nodes.get_mut(node)) {
            to.add(key, pod);
        }
    }

    fn mark_unschedulable(&mut self, key: &Key) {
        let Some(pod) = self.pods.get(key) else { return };
        // The same condition again would be a change of nothing, for each round and pod.
        if crate::api::condition(&pod.object, "PodScheduled") == Some("False") {
            return;
        }
        let now = write_time(self.store.now());
        let _ = self.store.modify(kind("pods"), &key.namespace, &key.name, "status", |pod| {
            set_condition(pod, "PodScheduled", "False", "Unschedulable", &now);
            Ok(())
        });
    }

    /// The node for a pod.
    fn place(&self, key: &Key) -> Option<String> {
        let pod = self.pods.get(key)?;
        let zones = self.volume_zones(&key.namespace, &pod.volume_claims)?;
        let company = self.company(key, pod);
        let mut best: Option<(f64, &String)> = None;
        for (name, node) in &self.nodes {
            let in_zone = zones.as_ref().is_none_or(|wanted| {
                node.labels.get(karpenter_api::labels::ZONE).is_some_and(|z| wanted.contains(z))
            });
            if !in_zone || !self.fits(pod, name, node) || !company.allows(node) {
                continue;
            }
            let load = node.load();
            if best.is_none_or(|(least, _)| load < least) {
                best = Some((load, name));
            }
        }
        best.map(|(_, name)| name.clone())
    }

    fn fits(&self, pod: &PodFacts, name: &str, node: &NodeFacts) -> bool {
        may_run(pod, name, node, &["NoSchedule", "NoExecute"])
            && pod.requests.fits(&node.free)
            && self.ports_are_free(pod, node)
    }

    fn ports_are_free(&self, pod: &PodFacts, node: &NodeFacts) -> bool {
        pod.ports.is_empty()
            || node
                .pods
                .iter()
                .filter_map(|k| self.pods.get(k))
                .all(|other| other.ports.is_disjoint(&pod.ports))
    }

    /// Pods that are bound and not finished, with their nodes.
    fn placed(&self) -> impl Iterator<Item = (&Key, &PodFacts, &NodeFacts)> {
        self.nodes.values().flat_map(move |node| {
            node.pods.iter().filter_map(move |key| Some((key, self.pods.get(key)?, node)))
        })
    }

    /// What a pod's affinities and spread, and those of the pods that are placed, ask of its node.
    fn company<'a>(&'a self, key: &Key, pod: &'a PodFacts) -> Company<'a> {
        let mut company = Company::default();
        for term in &pod.apart {
            let there = self.placed().filter(|(k, p, _)| self.selected(term, (key, pod), (k, p)));
            let values = there.filter_map(|(_, _, at)| at.labels.get(&term.topology_key));
            company.apart.push((&term.topology_key, values.collect()));
        }
        if !self.averse.is_empty() {
            for (k, other, at) in self.placed().filter(|(_, other, _)| !other.apart.is_empty()) {
                for term in other.apart.iter().filter(|t| self.selected(t, (k, other), (key, pod)))
                {
                    let value = at.labels.get(&term.topology_key);
                    company.apart.push((&term.topology_key, value.into_iter().collect()));
                }
            }
        }
        for term in &pod.near {
            let mut anywhere = false;
            let there = self.placed().filter(|(k, p, _)| self.selected(term, (key, pod), (k, p)));
            let values: BTreeSet<&String> = there
                .inspect(|_| anywhere = true)
                .filter_map(|(_, _, at)| at.labels.get(&term.topology_key))
                .collect();
            // The first of a group that is drawn to itself may go anywhere.
            let first = !anywhere && self.selected(term, (key, pod), (key, pod));
            company.near.push((&term.topology_key, (!first).then_some(values)));
        }
        company.spread = pod.spread.iter().map(|c| self.spread(key, pod, c)).collect();
        company
    }

    /// Whether a term of one pod selects another.
    fn selected(
        &self,
        term: &PodAffinityTerm,
        (from, owner): (&Key, &PodFacts),
        (key, pod): (&Key, &PodFacts),
    ) -> bool {
        self.reaches(term, &from.namespace, &key.namespace)
            && matches(term.label_selector.as_ref(), pod)
            && same_values(term.match_label_keys.as_deref(), owner, pod)
            && other_values(term.mismatch_label_keys.as_deref(), owner, pod)
    }

    /// Whether a term of a pod in one namespace is about pods in another: those that it lists and
    /// those that its selector selects, or its own where it has neither.
    fn reaches(&self, term: &PodAffinityTerm, from: &str, namespace: &str) -> bool {
        let listed = term.namespaces.as_deref().unwrap_or_default();
        let Some(selector) = &term.namespace_selector else {
            let own = listed.is_empty() && namespace == from;
            return own || listed.iter().any(|n| n == namespace);
        };
        listed.iter().any(|n| n == namespace)
            || selects(selector, &self.namespace_labels(namespace))
    }

    fn namespace_labels(&self, namespace: &str) -> BTreeMap<String, String> {
        let object = self.store.get(kind("namespaces"), "", namespace);
        let labels = object.map(|o| o["metadata"]["labels"].clone()).unwrap_or_default();
        serde_json::from_value(labels).unwrap_or_default()
    }

    fn spread<'a>(
        &'a self,
        key: &Key,
        pod: &PodFacts,
        constraint: &'a TopologySpreadConstraint,
    ) -> Spread<'a> {
        // The defaults of the two policies differ: taints are ignored, affinity is honoured.
        let ignores_taints = constraint.node_taints_policy.as_deref() != Some("Honor");
        let ignores_affinity = constraint.node_affinity_policy.as_deref() == Some("Ignore");
        let mut counts: BTreeMap<&String, i32> = BTreeMap::new();
        for (name, other) in &self.nodes {
            let Some(value) = other.labels.get(&constraint.topology_key) else { continue };
            let counted = (ignores_affinity || chosen(pod, name, other))
                && (ignores_taints || tolerated(pod, other, &["NoSchedule", "NoExecute"]));
            if !counted {
                continue;
            }
            let matching = other.pods.iter().filter_map(|k| Some((k, self.pods.get(k)?)));
            let matching = matching.filter(|(k, p)| {
                k.namespace == key.namespace
                    && !p.deleting
                    && matches(constraint.label_selector.as_ref(), p)
                    && same_values(constraint.match_label_keys.as_deref(), pod, p)
            });
            *counts.entry(value).or_default() += i32::try_from(matching.count()).unwrap_or(0);
        }
        let few = constraint
            .min_domains
            .is_some_and(|least| i32::try_from(counts.len()).unwrap_or(0) < least);
        // With fewer domains than minDomains, Kubernetes takes the global minimum for zero.
        let least = if few { 0 } else { counts.values().copied().min().unwrap_or(0) };
        let own = i32::from(matches(constraint.label_selector.as_ref(), pod));
        let most = least + constraint.max_skew - own;
        Spread { topology: &constraint.topology_key, counts, most }
    }
}

/// What a pod's neighbors ask of its node: worked out once, and asked for each node.
#[derive(Default)]
struct Company<'a> {
    /// Topologies, and the domains in which it may not be.
    apart: Vec<(&'a String, BTreeSet<&'a String>)>,
    /// Topologies, and the domains of which it must be in one; in any of them without a set.
    near: Vec<(&'a String, Option<BTreeSet<&'a String>>)>,
    spread: Vec<Spread<'a>>,
}

impl Company<'_> {
    fn allows(&self, node: &NodeFacts) -> bool {
        let domain = |topology: &String| node.labels.get(topology);
        self.apart.iter().all(|(key, values)| domain(key).is_none_or(|d| !values.contains(d)))
            && self.near.iter().all(|(key, values)| {
                domain(key).is_some_and(|d| values.as_ref().is_none_or(|v| v.contains(d)))
            })
            && self.spread.iter().all(|spread| {
                domain(spread.topology)
                    .is_some_and(|d| spread.counts.get(d).copied().unwrap_or(0) <= spread.most)
            })
    }
}

/// How full the domains of a topology are.
struct Spread<'a> {
    topology: &'a String,
    counts: BTreeMap<&'a String, i32>,
    /// A domain with more takes no other pod.
    most: i32,
}

/// What pods have in common that fit or do not fit for the same reasons; nothing for a pod that may
/// differ from its siblings.
fn alike(pod: &PodFacts) -> Option<String> {
    let owner = pod.owner.as_ref().filter(|o| o.plural != "daemonsets")?;
    pod.volume_claims.is_empty().then(|| owner.uid.clone())
}

/// Whether a node's taints and labels let a pod run there.
pub(super) fn may_run(pod: &PodFacts, name: &str, node: &NodeFacts, effects: &[&str]) -> bool {
    let cordoned = node.unschedulable
        && !pod.tolerations.iter().any(|t| {
            let all = t.key.as_deref().is_none_or(str::is_empty);
            t.operator.as_deref() == Some("Exists")
                && (all || t.key.as_deref() == Some("node.kubernetes.io/unschedulable"))
        });
    !cordoned && tolerated(pod, node, effects) && chosen(pod, name, node)
}

fn tolerated(pod: &PodFacts, node: &NodeFacts, effects: &[&str]) -> bool {
    node.taints
        .iter()
        .filter(|t| effects.contains(&t.effect.as_str()))
        .all(|taint| pod.tolerations.iter().any(|t| tolerates(t, taint)))
}

fn chosen(pod: &PodFacts, name: &str, node: &NodeFacts) -> bool {
    pod.selector.iter().all(|(key, value)| node.labels.get(key) == Some(value))
        && pod.terms.as_ref().is_none_or(|terms| terms.iter().any(|t| term_holds(t, name, node)))
}

fn term_holds(term: &NodeSelectorTerm, name: &str, node: &NodeFacts) -> bool {
    let (labels, fields) = (term.match_expressions.as_ref(), term.match_fields.as_ref());
    if labels.is_none_or(Vec::is_empty) && fields.is_none_or(Vec::is_empty) {
        return false;
    }
    let by_label =
        |r: &NodeSelectorRequirement| holds(r, node.labels.get(&r.key).map(String::as_str));
    let by_field = |r: &NodeSelectorRequirement| holds(r, Some(name));
    labels.into_iter().flatten().all(by_label) && fields.into_iter().flatten().all(by_field)
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let named = |v: &str| values.iter().any(|w| w == v);
    let bound = values.first().and_then(|v| v.parse::<i64>().ok());
    let number = value.and_then(|v| v.parse::<i64>().ok());
    match requirement.operator.as_str() {
        "In" => value.is_some_and(named),
        "NotIn" => !value.is_some_and(named),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number.zip(bound).is_some_and(|(n, b)| n > b),
        "Lt" => number.zip(bound).is_some_and(|(n, b)| n < b),
        _ => false,
    }
}

/// Whether a pod has the values of the keys that another has of them.
fn same_values(keys: Option<&[String]>, pod: &PodFacts, other: &PodFacts) -> bool {
    // A key that the pod itself does not have is left out, as the API server does.
    keys.into_iter().flatten().all(|key| match pod.labels.get(key) {
        Some(value) => other.labels.get(key) == Some(value),
        None => true,
    })
}

/// Whether a pod has none of the values of the keys that another has of them.
fn other_values(keys: Option<&[String]>, pod: &PodFacts, other: &PodFacts) -> bool {
    keys.into_iter().flatten().all(|key| match pod.labels.get(key) {
        Some(value) => other.labels.get(key) != Some(value),
        None => true,
    })
}

fn matches(selector: Option<&LabelSelector>, pod: &PodFacts) -> bool {
    selector.is_some_and(|selector| selects(selector, &pod.labels))
}

/// Whether labels are selected.
pub(super) fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let by_label = selector.match_labels.iter().flatten();
    let by_expression = selector.match_expressions.iter().flatten();
    by_label.into_iter().all(|(key, value)| labels.get(key) == Some(value))
        && by_expression.into_iter().all(|e| {
            let value = labels.get(&e.key);
            let named = |v: &String| e.values.as_ref().is_some_and(|l| l.contains(v));
            match e.operator.as_str() {
                "In" => value.is_some_and(named),
                "NotIn" => !value.is_some_and(named),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}
