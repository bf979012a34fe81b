//! NodePools.

use std::collections::BTreeSet;

use super::names::{is_label_value, is_qualified_name};
use super::{Finding, requirement};
use crate::labels;
use crate::v1::NodePool;

/// Reason of the condition of a pool with findings.
pub const FAILED: &str = "NodePoolValidationFailed";

/// Checks a NodePool's labels, taints and requirements.
#[must_use]
pub fn check(pool: &NodePool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |path: String, message: String| findings.push(Finding::new(path, message));
    let template = &pool.spec.template;
    for (path, duration) in [
        ("spec.disruption.consolidateAfter", Some(&pool.spec.disruption.consolidate_after)),
        ("spec.template.spec.expireAfter", template.spec.expire_after.as_ref()),
        (
            "spec.template.spec.terminationGracePeriod",
            template.spec.termination_grace_period.as_ref(),
        ),
    ] {
        if let Some(problem) = duration.and_then(|d| d.problem()) {
            add(path.to_owned(), problem);
        }
    }
    for (key, value) in template.metadata.labels.iter().flatten() {
        let path = format!("spec.template.metadata.labels[{key}]");
        if key == labels::NODEPOOL {
            add(path.clone(), "is restricted: Karpenter sets it".to_owned());
        } else if let Some(problem) = labels::restriction(key) {
            add(path.clone(), problem);
        }
        if !is_qualified_name(key) {
            add(path.clone(), format!("invalid key {key:?}, expected [prefix/]name"));
        }
        if !is_label_value(value) {
            add(path, format!("invalid value {value:?}, expected a label value"));
        }
    }
    // One set for both lists, as in Karpenter: a node has all of these taints at once.
    let mut seen = BTreeSet::new();
    for (field, list) in
        [("taints", &template.spec.taints), ("startupTaints", &template.spec.startup_taints)]
    {
        for (i, taint) in list.iter().flatten().enumerate() {
            let path = format!("spec.template.spec.{field}[{i}]");
            if !is_qualified_name(&taint.key) {
                add(
                    format!("{path}.key"),
                    format!("invalid key {:?}, expected [prefix/]name", taint.key),
                );
            }
            if let Some(value) = taint.value.as_deref().filter(|v| !v.is_empty())
                // Karpenter checks values of taints as qualified names, which is stricter than the
                // API server.
                && !is_qualified_name(value)
            {
                add(
                    format!("{path}.value"),
                    format!("invalid value {value:?}, expected [prefix/]name"),
                );
            }
            if !matches!(
                taint.effect.as_str(),
                "" | "NoSchedule" | "PreferNoSchedule" | "NoExecute"
            ) {
                add(
                    format!("{path}.effect"),
                    format!(
                        "invalid effect {:?}, expected NoSchedule, PreferNoSchedule or NoExecute",
                        taint.effect
                    ),
                );
            }
            if !seen.insert((taint.key.clone(), taint.effect.clone())) {
                let text =
                    format!("duplicate taint Key/Effect pair {}={}", taint.key, taint.effect);
                add(path, text);
            }
        }
    }
    for (i, wanted) in template.spec.requirements.iter().enumerate() {
        let path = format!("spec.template.spec.requirements[{i}]");
        if labels::normalize(&wanted.key) == labels::NODEPOOL {
            add(format!("{path}.key"), "is restricted: Karpenter sets it".to_owned());
        }
        requirement::check(wanted, &path, &mut add);
    }
    findings.into_iter().map(|f| f.because(FAILED)).collect()
}

/// Checks a NodePool, its budgets included.
#[must_use]
pub fn check_with_budgets(pool: &NodePool) -> Vec<Finding> {
    [check(pool), budgets(pool)].concat()
}

/// Checks what budgets say about time. One that cannot be read lets nothing be disrupted, but
/// does not keep the pool from being used: the controllers leave it at that.
#[must_use]
pub fn budgets(pool: &NodePool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (i, budget) in pool.spec.disruption.budgets.iter().enumerate() {
        let Some(schedule) = &budget.schedule else { continue };
        if let Err(error) = schedule.parse::<crate::schedule::Schedule>() {
            findings.push(Finding::new(
                format!("spec.disruption.budgets[{i}].schedule"),
                format!(
                    "invalid schedule {schedule:?}, expected five cron fields or a name such as @daily: {error}"
                ),
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn paths(template: serde_json::Value) -> Vec<String> {
        let pool =
            NodePool::new("p", serde_json::from_value(json!({"template": template})).unwrap());
        check(&pool).into_iter().map(|f| f.path).collect()
    }

    #[test]
    fn another_providers_pool_is_not_judged() {
        let pool = |group: &str, kind: &str| {
            crate::checks::object(&json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool",
                "metadata": {"name": "p"}, "spec": {"template": {"spec": {
                    "nodeClassRef": {"group": group, "kind": kind, "name": "default"},
                    "requirements": [{"key": "karpenter.sh/capacity-type", "operator": "In",
                        "values": ["theirs"]}]}}}}))
        };
        assert!(pool("eks.amazonaws.com", "NodeClass").is_empty());
        assert_eq!(pool("karpenter.k8s.aws", "EC2NodeClass").len(), 1);
    }

    #[test]
    fn findings_name_the_field() {
        assert!(paths(json!({})).is_empty());
        assert_eq!(
            paths(json!({"metadata": {"labels": {"karpenter.sh/nodepool": "x"}}})),
            ["spec.template.metadata.labels[karpenter.sh/nodepool]"]
        );
        assert_eq!(
            paths(json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}],
                "startupTaints": [{"key": "a", "effect": "NoSchedule"}]}})),
            ["spec.template.spec.startupTaints[0]"]
        );
        let requirement = |r: serde_json::Value| paths(json!({"spec": {"requirements": [r]}}));
        for bad in [
            json!({"key": "a", "operator": "In"}),
            json!({"key": "a", "operator": "In", "values": ["x"], "minValues": 2}),
            json!({"key": "a", "operator": "Gt", "values": ["x"]}),
            json!({"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["cheap"]}),
        ] {
            assert_eq!(requirement(bad), ["spec.template.spec.requirements[0].values"]);
        }
        assert_eq!(
            requirement(json!({"key": "kubernetes.io/hostname", "operator": "Exists"})),
            ["spec.template.spec.requirements[0].key"]
        );
    }
}
