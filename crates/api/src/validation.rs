//! Checks that the schemas cannot express; the controllers put what they find on conditions.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::labels;
use super::v1::{EC2NodeClass, NodePool, NodeSelectorRequirementWithMinValues, Operator};
use super::v1alpha1::NodeOverlay;

/// Something wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Path of the field in the object.
    pub path: String,
    /// What is wrong and what was expected.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// Resources of the instance types themselves, which overlays may not change.
const INSTANCE_RESOURCES: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "pods",
    "vpc.amazonaws.com/pod-eni",
    "aws.amazon.com/neuron",
    "aws.amazon.com/neuroncore",
    "habana.ai/gaudi",
    "vpc.amazonaws.com/efa",
];

/// Checks an object of ours in its stored version; other objects have nothing to find.
#[must_use]
pub fn object(object: &Value) -> Vec<Finding> {
    match (object["apiVersion"].as_str(), object["kind"].as_str()) {
        (Some("karpenter.sh/v1"), Some("NodePool")) => {
            // What another provider's pool may say is not for us to judge.
            read(object, |pool: &NodePool| {
                if pool.is_managed() { [node_pool(pool), budgets(pool)].concat() } else { vec![] }
            })
        }
        (Some("karpenter.sh/v1"), Some("NodeClaim")) => {
            read(object, |_: &super::v1::NodeClaim| Vec::new())
        }
        (Some("karpenter.sh/v1alpha1"), Some("NodeOverlay")) => read(object, node_overlay),
        (Some("karpenter.k8s.aws/v1"), Some("EC2NodeClass")) => read(object, ec2_node_class),
        (Some("autoscaling.x-k8s.io/v1beta1"), Some("CapacityBuffer")) => {
            read(object, capacity_buffer)
        }
        _ => Vec::new(),
    }
}

/// Reads an object as the controllers do, then checks it.
fn read<T: DeserializeOwned>(object: &Value, check: impl Fn(&T) -> Vec<Finding>) -> Vec<Finding> {
    match serde_path_to_error::deserialize(object) {
        Ok(read) => check(&read),
        Err(error) => {
            let path = error.path().to_string();
            vec![Finding { path, message: error.into_inner().to_string() }]
        }
    }
}

/// Checks what budgets say about time. One that cannot be read lets nothing be disrupted, but
/// does not keep the pool from being used: the controllers leave it at that.
#[must_use]
pub fn budgets(pool: &NodePool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (i, budget) in pool.spec.disruption.budgets.iter().enumerate() {
        let Some(schedule) = &budget.schedule else { continue };
        if let Err(error) = schedule.parse::<croner::Cron>() {
            findings.push(Finding {
                path: format!("spec.disruption.budgets[{i}].schedule"),
                message: format!(
                    "invalid schedule {schedule:?}, expected five cron fields or a name such as @daily: {error}"
                ),
            });
        }
    }
    findings
}

/// Checks a NodeOverlay's requirements and capacity.
#[must_use]
pub fn node_overlay(overlay: &NodeOverlay) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |path: String, message: String| findings.push(Finding { path, message });
    for (i, requirement) in overlay.spec.requirements.iter().enumerate() {
        let path = format!("spec.requirements[{i}]");
        let requirement = NodeSelectorRequirementWithMinValues {
            key: requirement.key.clone(),
            operator: requirement.operator,
            values: requirement.values.clone(),
            min_values: None,
        };
        if requirement.operator == Operator::NotIn && requirement.values.is_empty() {
            add(format!("{path}.values"), "operator NotIn needs at least one value".to_owned());
        }
        findings_of_requirement(&requirement, &path, &mut add);
    }
    for name in overlay.spec.capacity.iter().flat_map(|c| c.keys()) {
        if INSTANCE_RESOURCES.contains(&name.as_str()) {
            let text = "is restricted: instance types have this resource of their own";
            add(format!("spec.capacity[{name}]"), text.to_owned());
        }
    }
    findings
}

/// Checks what of an EC2NodeClass can be checked without asking AWS, its kubelet settings aside,
/// which the provider knows.
#[must_use]
pub fn ec2_node_class(class: &EC2NodeClass) -> Vec<Finding> {
    let mut findings = Vec::new();
    let spec = &class.spec;
    for (i, term) in spec.ami_selector_terms.iter().enumerate() {
        let path = format!("spec.amiSelectorTerms[{i}]");
        if let Some(alias) = &term.alias {
            let parts: Vec<&str> = alias.split('@').collect();
            if parts.len() != 2 {
                findings.push(Finding {
                    path: format!("{path}.alias"),
                    message: format!("invalid alias {alias:?}, expected family@version"),
                });
            }
        }
        if term.id.as_deref() == Some("ami-placeholder") {
            findings.push(Finding {
                path,
                message: "stands for the images of the Ubuntu family, which is not supported: expected terms that select images".to_owned(),
            });
        }
    }
    for (i, device) in spec.block_device_mappings.iter().flatten().enumerate() {
        let size = device.ebs.as_ref().and_then(|e| e.volume_size.as_deref());
        if let Some(error) = size.and_then(|s| super::quantity::parse(s).err()) {
            findings.push(Finding {
                path: format!("spec.blockDeviceMappings[{i}].ebs.volumeSize"),
                message: error.to_string(),
            });
        }
    }
    findings
}

/// Checks that a CapacityBuffer says what its room is for.
#[must_use]
pub fn capacity_buffer(buffer: &super::autoscaling::CapacityBuffer) -> Vec<Finding> {
    let spec = &buffer.spec;
    if spec.pod_template_ref.is_some() || spec.scalable_ref.is_some() {
        return Vec::new();
    }
    let message = "expected podTemplateRef or scalableRef: without either nothing is kept free";
    vec![Finding { path: "spec".to_owned(), message: message.to_owned() }]
}

/// Checks a NodePool's labels, taints and requirements.
#[must_use]
pub fn node_pool(pool: &NodePool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |path: String, message: String| findings.push(Finding { path, message });
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
    for (i, requirement) in template.spec.requirements.iter().enumerate() {
        let path = format!("spec.template.spec.requirements[{i}]");
        if labels::normalize(&requirement.key) == labels::NODEPOOL {
            add(format!("{path}.key"), "is restricted: Karpenter sets it".to_owned());
        }
        findings_of_requirement(requirement, &path, &mut add);
    }
    findings
}

fn findings_of_requirement(
    requirement: &NodeSelectorRequirementWithMinValues,
    path: &str,
    add: &mut impl FnMut(String, String),
) {
    let key = labels::normalize(&requirement.key);
    if key != labels::NODEPOOL
        && let Some(problem) = labels::restriction(key)
    {
        add(format!("{path}.key"), problem);
    }
    if !is_qualified_name(key) {
        add(format!("{path}.key"), format!("invalid key {key:?}, expected [prefix/]name"));
    }
    for value in requirement.values.iter().filter(|v| !is_label_value(v)) {
        add(format!("{path}.values"), format!("invalid value {value:?}, expected a label value"));
    }
    let count = i64::try_from(requirement.values.len()).unwrap_or(i64::MAX);
    match requirement.operator {
        Operator::In => {
            if count == 0 {
                add(format!("{path}.values"), "operator In needs at least one value".to_owned());
            }
            if let Some(wanted) = requirement.min_values.filter(|m| count < *m) {
                let text = format!("has {count} values, minValues asks for at least {wanted}");
                add(format!("{path}.values"), text);
            }
            known_values(requirement, key, path, add);
        }
        Operator::Gt | Operator::Lt | Operator::Gte | Operator::Lte => {
            let number = requirement.values.first().and_then(|v| v.parse::<i64>().ok());
            if count != 1 || number.is_none_or(|n| n < 0) {
                let text = format!(
                    "operator {} needs a single positive integer",
                    requirement.operator.as_str()
                );
                add(format!("{path}.values"), text);
            }
        }
        Operator::NotIn | Operator::Exists | Operator::DoesNotExist => {}
    }
}

/// Some labels have only so many values: at least one, and minValues of them, must be known.
fn known_values(
    requirement: &NodeSelectorRequirementWithMinValues,
    key: &str,
    path: &str,
    add: &mut impl FnMut(String, String),
) {
    let known: &[&str] = match key {
        labels::CAPACITY_TYPE => &["on-demand", "spot", "reserved"],
        labels::INSTANCE_TENANCY => &["dedicated", "default"],
        _ => return,
    };
    let valid = requirement.values.iter().filter(|v| known.contains(&v.as_str())).count();
    if valid == 0 && !requirement.values.is_empty() {
        add(
            format!("{path}.values"),
            format!("no valid value in {:?}, expected some of {known:?}", requirement.values),
        );
    } else if requirement.min_values.is_some_and(|m| i64::try_from(valid).unwrap_or(0) < m) {
        add(format!("{path}.values"), format!("fewer than minValues of {known:?}"));
    }
}

fn is_name(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && edge(text.chars().next())
        && edge(text.chars().last())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

pub(super) fn is_subdomain(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    text.len() <= 253
        && text.split('.').all(|part| {
            edge(part.chars().next())
                && edge(part.chars().last())
                && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        })
}

/// `name` or `prefix/name`, as Kubernetes has them.
#[must_use]
pub fn is_qualified_name(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_name(name),
        None => is_name(text),
    }
}

/// Empty or a name.
#[must_use]
pub fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_name(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn paths(template: serde_json::Value) -> Vec<String> {
        let pool =
            NodePool::new("p", serde_json::from_value(json!({"template": template})).unwrap());
        node_pool(&pool).into_iter().map(|f| f.path).collect()
    }

    #[test]
    fn another_providers_pool_is_not_judged() {
        let pool = |group: &str, kind: &str| {
            object(&json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool",
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
