//! NodeOverlays.

use super::{Finding, requirement};
use crate::v1::{NodeSelectorRequirementWithMinValues, Operator};
use crate::v1alpha1::NodeOverlay;

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

/// Checks a NodeOverlay's requirements and capacity.
#[must_use]
pub fn check(overlay: &NodeOverlay) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |path: String, message: String| findings.push(Finding::new(path, message));
    for (i, requirement) in overlay.spec.requirements.iter().enumerate() {
        let path = format!("spec.requirements[{i}]");
        let wanted = NodeSelectorRequirementWithMinValues {
            key: requirement.key.clone(),
            operator: requirement.operator,
            values: requirement.values.clone(),
            min_values: None,
        };
        if requirement.operator == Operator::NotIn && requirement.values.is_empty() {
            add(format!("{path}.values"), "operator NotIn needs at least one value".to_owned());
        }
        requirement::check(&wanted, &path, &mut add);
    }
    for name in overlay.spec.capacity.iter().flat_map(|c| c.keys()) {
        if INSTANCE_RESOURCES.contains(&name.as_str()) {
            let text = "is restricted: instance types have this resource of their own";
            add(format!("spec.capacity[{name}]"), text.to_owned());
        }
    }
    findings
}
