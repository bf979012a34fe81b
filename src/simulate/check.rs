//! What the schema lets through and the solver could not use.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Container, Node, NodeSelectorTerm, Pod, PodAffinityTerm, Taint,
    TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::ScenarioError;
use crate::api::checks::{self, is_label_value, is_qualified_name};
use crate::api::v1::{NodeClaim, NodePool, Operator};
use crate::scheduling::quantity;
use crate::scheduling::resources::ApiQuantity;

/// Checks a pod; `path` is its place.
pub(super) fn pod(path: &str, pod: &Pod) -> Result<(), ScenarioError> {
    named(path, pod.metadata.name.as_deref())?;
    labels(&format!("{path}.metadata.labels"), pod.metadata.labels.as_ref())?;
    let Some(spec) = &pod.spec else {
        return Err(ScenarioError::new(format!("{path}.spec"), "expected a pod's spec"));
    };
    let path = &format!("{path}.spec");
    containers(&format!("{path}.containers"), &spec.containers)?;
    containers(
        &format!("{path}.initContainers"),
        spec.init_containers.as_deref().unwrap_or_default(),
    )?;
    // The API server has checked all of this for a real cluster; the decisions rely on it.
    quantities(&format!("{path}.overhead"), spec.overhead.as_ref())?;
    let whole = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    quantities(&format!("{path}.resources.requests"), whole)?;
    for (at, toleration) in spec.tolerations.iter().flatten().enumerate() {
        let place = format!("{path}.tolerations[{at}]");
        // `Lt` and `Gt` are Kubernetes' newer operators for numeric taints; empty means `Equal`.
        let operators = ["", "Exists", "Equal", "Lt", "Gt"];
        one_of(&format!("{place}.operator"), toleration.operator.as_deref(), &operators)?;
        effect(&place, toleration.effect.as_deref())?;
    }
    if let Some(affinity) = &spec.affinity {
        affinities(&format!("{path}.affinity"), affinity)?;
    }
    spreads(path, spec.topology_spread_constraints.as_deref().unwrap_or_default())
}

fn affinities(path: &str, affinity: &Affinity) -> Result<(), ScenarioError> {
    const HARD: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const SOFT: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    if let Some(node) = &affinity.node_affinity {
        let required = node.required_during_scheduling_ignored_during_execution.as_ref();
        let terms = required.map(|r| r.node_selector_terms.as_slice()).unwrap_or_default();
        for (at, term) in terms.iter().enumerate() {
            expressions(&format!("{path}.nodeAffinity.{HARD}.nodeSelectorTerms[{at}]"), term)?;
        }
        let preferred = node.preferred_during_scheduling_ignored_during_execution.as_deref();
        for (at, term) in preferred.unwrap_or_default().iter().enumerate() {
            expressions(&format!("{path}.nodeAffinity.{SOFT}[{at}].preference"), &term.preference)?;
        }
    }
    let near = affinity.pod_affinity.as_ref().map(|a| {
        (
            "podAffinity",
            a.required_during_scheduling_ignored_during_execution.as_deref(),
            a.preferred_during_scheduling_ignored_during_execution.as_deref(),
        )
    });
    let apart = affinity.pod_anti_affinity.as_ref().map(|a| {
        (
            "podAntiAffinity",
            a.required_during_scheduling_ignored_during_execution.as_deref(),
            a.preferred_during_scheduling_ignored_during_execution.as_deref(),
        )
    });
    for (kind, required, preferred) in near.into_iter().chain(apart) {
        for (at, term) in required.unwrap_or_default().iter().enumerate() {
            affinity_term(&format!("{path}.{kind}.{HARD}[{at}]"), term)?;
        }
        for (at, weighted) in preferred.unwrap_or_default().iter().enumerate() {
            let place = format!("{path}.{kind}.{SOFT}[{at}].podAffinityTerm");
            affinity_term(&place, &weighted.pod_affinity_term)?;
        }
    }
    Ok(())
}

fn affinity_term(path: &str, term: &PodAffinityTerm) -> Result<(), ScenarioError> {
    topology_key(path, &term.topology_key)?;
    selector(&format!("{path}.labelSelector"), term.label_selector.as_ref())?;
    selector(&format!("{path}.namespaceSelector"), term.namespace_selector.as_ref())
}

fn topology_key(path: &str, key: &str) -> Result<(), ScenarioError> {
    if is_qualified_name(key) {
        return Ok(());
    }
    let message = format!("expected a label's key, [prefix/]name, found {key:?}");
    Err(ScenarioError::new(format!("{path}.topologyKey"), message))
}

fn selector(path: &str, selector: Option<&LabelSelector>) -> Result<(), ScenarioError> {
    let expressions = selector.and_then(|s| s.match_expressions.as_deref()).unwrap_or_default();
    for (at, expression) in expressions.iter().enumerate() {
        let place = format!("{path}.matchExpressions[{at}].operator");
        let operators = ["In", "NotIn", "Exists", "DoesNotExist"];
        one_of(&place, Some(&expression.operator), &operators)?;
    }
    Ok(())
}

/// Refuses a number outside of these bounds.
fn range(
    path: &str,
    number: Option<i64>,
    least: i64,
    most: Option<i64>,
) -> Result<(), ScenarioError> {
    let outside = |n: &i64| *n < least || most.is_some_and(|most| *n > most);
    let Some(number) = number.filter(outside) else { return Ok(()) };
    let to = most.map_or_else(|| "or more".to_owned(), |most| format!("to {most}"));
    Err(ScenarioError::new(path, format!("expected {least} {to}, found {number}")))
}

/// Refuses a text that is none of these.
fn one_of(path: &str, text: Option<&str>, known: &[&str]) -> Result<(), ScenarioError> {
    let Some(text) = text.filter(|t| !known.contains(t)) else { return Ok(()) };
    let known: Vec<&str> = known.iter().copied().filter(|k| !k.is_empty()).collect();
    let message = format!("unknown value {text:?}, expected one of {}", known.join(", "));
    Err(ScenarioError::new(path, message))
}

fn effect(path: &str, effect: Option<&str>) -> Result<(), ScenarioError> {
    let effects = ["", "NoSchedule", "PreferNoSchedule", "NoExecute"];
    one_of(&format!("{path}.effect"), effect, &effects)
}

fn taints(path: &str, taints: Option<&Vec<Taint>>) -> Result<(), ScenarioError> {
    for (at, taint) in taints.into_iter().flatten().enumerate() {
        effect(&format!("{path}[{at}]"), Some(&taint.effect))?;
    }
    Ok(())
}

fn labels(path: &str, labels: Option<&BTreeMap<String, String>>) -> Result<(), ScenarioError> {
    for (key, value) in labels.into_iter().flatten() {
        let problem = if !is_qualified_name(key) {
            "expected a key of the form [prefix/]name".to_owned()
        } else if !is_label_value(value) {
            format!(
                "invalid value {value:?}, expected at most 63 letters, digits, '-', '_' and '.'"
            )
        } else {
            continue;
        };
        return Err(ScenarioError::new(format!("{path}.{key}"), problem));
    }
    Ok(())
}

/// Checks a NodePool as its controllers would; `path` is its place.
pub(super) fn node_pool(path: &str, pool: &NodePool) -> Result<(), ScenarioError> {
    named(path, pool.metadata.name.as_deref())?;
    quantities(&format!("{path}.spec.limits"), pool.spec.limits.as_ref())?;
    range(&format!("{path}.spec.weight"), pool.spec.weight.map(i64::from), 1, Some(100))?;
    range(&format!("{path}.spec.replicas"), pool.spec.replicas, 0, None)?;
    for (at, requirement) in pool.spec.template.spec.requirements.iter().enumerate() {
        let place = format!("{path}.spec.template.spec.requirements[{at}].minValues");
        range(&place, requirement.min_values, 1, Some(50))?;
    }
    let findings = checks::nodepool::check_with_budgets(pool);
    match findings.into_iter().next() {
        Some(first) => Err(ScenarioError::new(format!("{path}.{}", first.path), first.message)),
        None => Ok(()),
    }
}

/// Checks a node; `path` is its place.
pub(super) fn node(path: &str, node: &Node) -> Result<(), ScenarioError> {
    named(path, node.metadata.name.as_deref())?;
    labels(&format!("{path}.metadata.labels"), node.metadata.labels.as_ref())?;
    let spec = node.spec.as_ref();
    taints(&format!("{path}.spec.taints"), spec.and_then(|s| s.taints.as_ref()))?;
    let status = node.status.as_ref();
    quantities(&format!("{path}.status.capacity"), status.and_then(|s| s.capacity.as_ref()))?;
    let allocatable = status.and_then(|s| s.allocatable.as_ref());
    quantities(&format!("{path}.status.allocatable"), allocatable)
}

/// Checks a NodeClaim; `path` is its place.
pub(super) fn node_claim(path: &str, claim: &NodeClaim) -> Result<(), ScenarioError> {
    named(path, claim.metadata.name.as_deref())?;
    labels(&format!("{path}.metadata.labels"), claim.metadata.labels.as_ref())?;
    taints(&format!("{path}.spec.taints"), claim.spec.taints.as_ref())?;
    taints(&format!("{path}.spec.startupTaints"), claim.spec.startup_taints.as_ref())?;
    let status = claim.status.as_ref();
    quantities(&format!("{path}.status.capacity"), status.and_then(|s| s.capacity.as_ref()))?;
    let allocatable = status.and_then(|s| s.allocatable.as_ref());
    quantities(&format!("{path}.status.allocatable"), allocatable)
}

fn named(path: &str, name: Option<&str>) -> Result<(), ScenarioError> {
    match name {
        Some(name) if !name.is_empty() => Ok(()),
        _ => Err(ScenarioError::new(format!("{path}.metadata.name"), "expected a name")),
    }
}

fn containers(path: &str, list: &[Container]) -> Result<(), ScenarioError> {
    for (at, container) in list.iter().enumerate() {
        let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        quantities(&format!("{path}[{at}].resources.requests"), requests)?;
    }
    Ok(())
}

pub(super) fn quantities(
    path: &str,
    amounts: Option<&BTreeMap<String, ApiQuantity>>,
) -> Result<(), ScenarioError> {
    for (name, amount) in amounts.into_iter().flatten() {
        let error = match quantity::parse(&amount.0) {
            Err(error) => error.to_string(),
            Ok(_) if amount.0.trim_start().starts_with('-') => {
                format!("expected a quantity of zero or more, found {:?}", amount.0)
            }
            Ok(_) => continue,
        };
        return Err(ScenarioError::new(format!("{path}.{name}"), error));
    }
    Ok(())
}

fn expressions(path: &str, term: &NodeSelectorTerm) -> Result<(), ScenarioError> {
    for (at, expression) in term.match_expressions.iter().flatten().enumerate() {
        if Operator::parse(&expression.operator).is_none() {
            return Err(ScenarioError::new(
                format!("{path}.matchExpressions[{at}].operator"),
                format!(
                    "unknown operator {:?}, expected In, NotIn, Exists, DoesNotExist, Gt or Lt",
                    expression.operator
                ),
            ));
        }
    }
    Ok(())
}

fn spreads(path: &str, list: &[TopologySpreadConstraint]) -> Result<(), ScenarioError> {
    for (at, constraint) in list.iter().enumerate() {
        let place = format!("{path}.topologySpreadConstraints[{at}]");
        let numbers =
            [("maxSkew", Some(constraint.max_skew)), ("minDomains", constraint.min_domains)];
        for (field, number) in numbers {
            range(&format!("{place}.{field}"), number.map(i64::from), 1, None)?;
        }
        topology_key(&place, &constraint.topology_key)?;
        let texts = [
            (
                "whenUnsatisfiable",
                Some(&constraint.when_unsatisfiable),
                ["DoNotSchedule", "ScheduleAnyway"],
            ),
            ("nodeAffinityPolicy", constraint.node_affinity_policy.as_ref(), ["Honor", "Ignore"]),
            ("nodeTaintsPolicy", constraint.node_taints_policy.as_ref(), ["Honor", "Ignore"]),
        ];
        for (field, text, known) in texts {
            one_of(&format!("{place}.{field}"), text.map(String::as_str), &known)?;
        }
        selector(&format!("{place}.labelSelector"), constraint.label_selector.as_ref())?;
    }
    Ok(())
}
