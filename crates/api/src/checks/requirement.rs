//! What the requirements of NodePools and NodeOverlays have in common.

use super::names::{is_label_value, is_qualified_name};
use crate::labels;
use crate::v1::{NodeSelectorRequirementWithMinValues, Operator};

/// Checks one requirement; `path` is its place.
pub(super) fn check(
    requirement: &NodeSelectorRequirementWithMinValues,
    path: &str,
    add: &mut impl FnMut(String, String),
) {
    // A deprecated key is allowed where the one in its place is.
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
            // Karpenter calls the number positive, but allows zero.
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
