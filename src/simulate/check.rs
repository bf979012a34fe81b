//! What the schema lets through and the solver could not use.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Node, NodeSelectorTerm, Pod};

use super::ScenarioError;
use crate::api::v1::Operator;
use crate::scheduling::quantity;
use crate::scheduling::resources::ApiQuantity;

/// Checks a pod; `path` is its place.
pub(super) fn pod(path: &str, pod: &Pod) -> Result<(), ScenarioError> {
    named(path, pod.metadata.name.as_deref())?;
    let Some(spec) = &pod.spec else {
        return Err(ScenarioError::new(format!("{path}.spec"), "expected a pod's spec"));
    };
    containers(&format!("{path}.spec.containers"), &spec.containers)?;
    containers(
        &format!("{path}.spec.initContainers"),
        spec.init_containers.as_deref().unwrap_or_default(),
    )?;
    quantities(&format!("{path}.spec.overhead"), spec.overhead.as_ref())?;
    let whole = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    quantities(&format!("{path}.spec.resources.requests"), whole)?;
    let Some(affinity) = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref()) else {
        return spreads(path, pod);
    };
    let place = format!("{path}.spec.affinity.nodeAffinity");
    if let Some(required) = &affinity.required_during_scheduling_ignored_during_execution {
        for (at, term) in required.node_selector_terms.iter().enumerate() {
            let field = "requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
            expressions(&format!("{place}.{field}[{at}]"), term)?;
        }
    }
    let preferred = affinity.preferred_during_scheduling_ignored_during_execution.as_deref();
    for (at, term) in preferred.unwrap_or_default().iter().enumerate() {
        let field = "preferredDuringSchedulingIgnoredDuringExecution";
        expressions(&format!("{place}.{field}[{at}].preference"), &term.preference)?;
    }
    spreads(path, pod)
}

/// Checks a node; `path` is its place.
pub(super) fn node(path: &str, node: &Node) -> Result<(), ScenarioError> {
    named(path, node.metadata.name.as_deref())?;
    let status = node.status.as_ref();
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

fn spreads(path: &str, pod: &Pod) -> Result<(), ScenarioError> {
    let constraints = pod.spec.as_ref().and_then(|s| s.topology_spread_constraints.as_deref());
    for (at, constraint) in constraints.unwrap_or_default().iter().enumerate() {
        let place = format!("{path}.spec.topologySpreadConstraints[{at}]");
        if constraint.max_skew < 1 {
            let message = format!("expected 1 or more, found {}", constraint.max_skew);
            return Err(ScenarioError::new(format!("{place}.maxSkew"), message));
        }
        if !matches!(constraint.when_unsatisfiable.as_str(), "DoNotSchedule" | "ScheduleAnyway") {
            let message = format!(
                "unknown value {:?}, expected \"DoNotSchedule\" or \"ScheduleAnyway\"",
                constraint.when_unsatisfiable
            );
            return Err(ScenarioError::new(format!("{place}.whenUnsatisfiable"), message));
        }
    }
    Ok(())
}
