//! What is wrong with an EC2NodeClass by itself, whatever AWS says.

use super::ami::AmiFamily;
use super::instancetype::expressions;
use super::{kubelet, userdata};
use crate::api::v1::EC2NodeClass;

/// Reason of kubelet settings that the kubelet would not take.
pub const INVALID_KUBELET: &str = "InvalidKubeletConfiguration";

/// Why a class failed: the condition's reason and message.
pub type Failure = (&'static str, String);

/// The first thing that is wrong with the class's own settings. `allowed` tells whether kubelet
/// expressions may be used.
#[must_use]
pub fn failure(class: &EC2NodeClass, allowed: bool) -> Option<Failure> {
    let problems = kubelet::check(class);
    if !problems.is_empty() {
        return Some((INVALID_KUBELET, problems.join("; ")));
    }
    if let Some(failure) = expressions_failure(class, allowed) {
        return Some(failure);
    }
    if let Some(message) = kubelet::unsupported(class) {
        return Some(("UnsupportedKubeletConfiguration", message));
    }
    let custom = class.spec.user_data.as_deref().unwrap_or_default();
    let error = userdata::check(AmiFamily::of(class), custom).err()?;
    Some(("UserDataInvalid", error.to_string()))
}

fn expressions_failure(class: &EC2NodeClass, allowed: bool) -> Option<Failure> {
    let found = kubelet::expressions(class);
    if !found.is_empty() && !allowed {
        let message =
            "spec.kubelet contains a CEL expression, but the NodeClassCEL feature gate is disabled";
        return Some(("KubeletExpressionsDisabled", message.to_owned()));
    }
    found.iter().find_map(|(field, text)| {
        let error = expressions::check(text).err()?;
        let message = format!("compiling expression, {error} (field={field})");
        Some(("KubeletExpressionInvalid", message))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn class(spec: Value) -> EC2NodeClass {
        EC2NodeClass::new("c", serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn settings_are_told_by_reason() {
        let yaml = "spec:\n  kubelet: [\n";
        for (spec, reason) in [
            (json!({"kubelet": {"maxPods": -1}}), Some("InvalidKubeletConfiguration")),
            (json!({"kubelet": {"maxPods": "vcpus"}}), Some("KubeletExpressionsDisabled")),
            (
                json!({"amiFamily": "AL2", "kubelet": {"cgroupRoot": "/"}}),
                Some("UnsupportedKubeletConfiguration"),
            ),
            (json!({"amiFamily": "AL2023", "kubelet": {"cgroupRoot": "/"}}), None),
            (
                json!({"amiFamily": "Bottlerocket", "userData": "[settings"}),
                Some("UserDataInvalid"),
            ),
            (json!({"amiFamily": "AL2023", "userData": yaml}), Some("UserDataInvalid")),
            (json!({"amiFamily": "AL2023", "userData": "#!/bin/bash\nspec: [\n"}), None),
            (json!({"amiFamily": "AL2023", "userData": "echo: [\n"}), None),
            (
                json!({"amiFamily": "AL2", "userData": "Content-Type: text/plain\n\nx"}),
                Some("UserDataInvalid"),
            ),
            (json!({"amiFamily": "Custom", "userData": "[settings"}), None),
            (json!({}), None),
        ] {
            assert_eq!(failure(&class(spec.clone()), false).map(|f| f.0), reason, "{spec}");
        }
    }

    #[test]
    fn expressions_are_compiled_where_they_are_allowed() {
        let check = |kubelet: Value| {
            failure(&class(json!({"amiFamily": "AL2023", "kubelet": kubelet})), true)
        };
        assert_eq!(check(json!({"maxPods": "vcpus * 8", "kubeReserved": {"cpu": "100m"}})), None);
        let (reason, message) = check(json!({"kubeReserved": {"cpu": "cores * 5"}})).unwrap();
        assert_eq!(reason, "KubeletExpressionInvalid");
        assert!(message.contains("\"cores\""), "{message}");
        assert!(message.ends_with("(field=spec.kubelet.kubeReserved[cpu])"), "{message}");
        let (reason, message) = check(json!({"maxPods": "instance_type"})).unwrap();
        assert_eq!(reason, "KubeletExpressionInvalid");
        assert!(message.ends_with("(field=spec.kubelet.maxPods)"), "{message}");
    }
}
