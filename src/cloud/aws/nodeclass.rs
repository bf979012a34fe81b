//! What is wrong with an EC2NodeClass by itself, whatever AWS says.

use super::ami::AmiFamily;
use super::instancetype::expressions;
use super::instancetype::sharing::Sharing;
use super::{kubelet, userdata};
use crate::api::annotations;
use crate::api::checks::Finding;
use crate::api::v1::EC2NodeClass;
use crate::operator::settings::AwsFeatureGates;

/// Reason of kubelet settings that the kubelet would not take.
pub const INVALID_KUBELET: &str = "InvalidKubeletConfiguration";
/// Reason of kubelet settings that the family would drop.
const UNSUPPORTED_KUBELET: &str = "UnsupportedKubeletConfiguration";
/// Reason of an annotation on shared GPUs that the driver would not take.
const INVALID_SHARING: &str = "NVIDIAConsumableCapacityInvalid";
/// Reason of shared GPUs whose gate is off.
const SHARING_OFF: &str = "DRADisabled";
/// Failures that are on the condition alone, as in Karpenter: no reconcile fails for them.
pub const QUIET: &[&str] = &[INVALID_KUBELET, INVALID_SHARING, SHARING_OFF];
/// Reason of an expression that does not compile.
const INVALID_EXPRESSION: &str = "KubeletExpressionInvalid";

/// Before an annotation's key, in the path of a finding.
const ANNOTATIONS: &str = "metadata.annotations.";

/// Why a class failed: the condition's reason and message.
pub type Failure = (&'static str, String);

/// Everything about the class's own settings that can be said without asking AWS, what decides its
/// condition first. Some settings need their gate.
#[must_use]
pub fn findings(class: &EC2NodeClass, gates: AwsFeatureGates) -> Vec<Finding> {
    let mut all: Vec<Finding> = kubelet::check(class)
        .iter()
        .map(|text| located("spec.kubelet", text).because(INVALID_KUBELET))
        .collect();
    all.extend(expression_findings(class, gates.node_class_cel));
    all.extend(
        kubelet::unsupported(class)
            .iter()
            .map(|text| located("spec.kubelet", text).because(UNSUPPORTED_KUBELET)),
    );
    all.extend(sharing_finding(class, gates.dra_nvidia_gpu));
    let family = AmiFamily::of(class);
    let custom = class.spec.user_data.as_deref().unwrap_or_default();
    if let Err(error) = userdata::check(family, custom) {
        all.push(located("spec.userData", &error.to_string()).because("UserDataInvalid"));
    }
    let name = family.as_str();
    all.extend(userdata::dropped(family, custom).into_iter().map(|key| {
        let text = format!("{key} is dropped: nodes of the {name} family are not given it");
        Finding::new("spec.userData", text).as_warning()
    }));
    all
}

/// A text that begins with its own path, or with that of the field that it is about.
fn located(field: &str, text: &str) -> Finding {
    match text.split_once(": ") {
        Some((path, message)) if path.starts_with(field) && !path.contains(' ') => {
            Finding::new(path, message)
        }
        _ => Finding::new(field, text.strip_prefix(field).unwrap_or(text).trim_start()),
    }
}

fn sharing_finding(class: &EC2NodeClass, allowed: bool) -> Option<Finding> {
    let field = format!("{ANNOTATIONS}{}", annotations::NVIDIA_CONSUMABLE_CAPACITY);
    match Sharing::of(class) {
        Err(text) => Some(Finding::new(field, text).because(INVALID_SHARING)),
        Ok(Some(_)) if !allowed => {
            let text = "enables GPU sharing, but the DRANVIDIAGPU feature gate is disabled";
            Some(Finding::new(field, text).because(SHARING_OFF))
        }
        Ok(_) => None,
    }
}

fn expression_findings(class: &EC2NodeClass, allowed: bool) -> Vec<Finding> {
    let found = kubelet::expressions(class);
    if !found.is_empty() && !allowed {
        let message = "contains a CEL expression, but the NodeClassCEL feature gate is disabled";
        return vec![Finding::new("spec.kubelet", message).because("KubeletExpressionsDisabled")];
    }
    let wrong = found.into_iter().filter_map(|(field, text)| {
        let error = expressions::check(&text).err()?;
        let text = format!("compiling expression, {error}");
        Some(Finding::new(field, text).because(INVALID_EXPRESSION))
    });
    wrong.collect()
}

/// The first thing that is wrong with the class's own settings, as the condition says it: all
/// findings of one reason together, but for expressions, of which the first counts.
#[must_use]
pub fn failure(class: &EC2NodeClass, gates: AwsFeatureGates) -> Option<Failure> {
    let all = findings(class, gates);
    let reason = all.iter().find(|f| f.is_error())?.reason;
    let texts: Vec<String> =
        all.iter().filter(|f| f.is_error() && f.reason == reason).map(of_condition).collect();
    let text = if reason == INVALID_EXPRESSION { texts[0].clone() } else { texts.join("; ") };
    Some((reason, text))
}

/// A finding as Karpenter's condition words it: alerts and scripts match these texts.
fn of_condition(finding: &Finding) -> String {
    let Finding { path, message, reason, .. } = finding;
    if *reason == INVALID_EXPRESSION {
        return format!("{message} (field={path})");
    }
    if let Some(key) = path.strip_prefix(ANNOTATIONS) {
        let joint = if *reason == INVALID_SHARING { "," } else { "" };
        return format!("annotation {key}{joint} {message}");
    }
    let whole = path == "spec.kubelet" && *reason != INVALID_KUBELET;
    if whole { format!("{path} {message}") } else { finding.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn class(spec: Value) -> EC2NodeClass {
        EC2NodeClass::new("c", serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn settings_are_reported_by_reason() {
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
            assert_eq!(
                failure(&class(spec.clone()), AwsFeatureGates::default()).map(|f| f.0),
                reason,
                "{spec}"
            );
        }
    }

    #[test]
    fn shared_gpus_are_refused_where_the_driver_or_the_gate_does_not_allow_them() {
        let key = annotations::NVIDIA_CONSUMABLE_CAPACITY;
        let check = |value: &str, gates| {
            let mut class = class(json!({"amiFamily": "AL2023"}));
            class.metadata.annotations = Some([(key.to_owned(), value.to_owned())].into());
            failure(&class, gates)
        };
        for (value, off, on) in [
            ("disabled", None, None),
            ("", None, None),
            ("memory", Some("DRADisabled"), None),
            ("3", Some("DRADisabled"), None),
            (
                "half",
                Some("NVIDIAConsumableCapacityInvalid"),
                Some("NVIDIAConsumableCapacityInvalid"),
            ),
        ] {
            assert_eq!(check(value, AwsFeatureGates::default()).map(|f| f.0), off, "{value}");
            assert_eq!(check(value, AwsFeatureGates::ALL).map(|f| f.0), on, "{value}");
        }
        let text = |value, gates| check(value, gates).unwrap().1;
        assert_eq!(
            text("memory", AwsFeatureGates::default()),
            "annotation karpenter.k8s.aws/nvidia-consumable-capacity enables GPU sharing, but the \
             DRANVIDIAGPU feature gate is disabled"
        );
        let wrong = text("half", AwsFeatureGates::ALL);
        assert!(wrong.starts_with(&format!("annotation {key}, \"half\" is not one of")), "{wrong}");
    }

    #[test]
    fn expressions_are_compiled_where_they_are_allowed() {
        let check = |kubelet: Value| {
            failure(
                &class(json!({"amiFamily": "AL2023", "kubelet": kubelet})),
                AwsFeatureGates::ALL,
            )
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

    #[test]
    fn what_of_the_user_data_is_dropped_is_reported_as_a_warning() {
        let toml = "[grpc]\naddress = \"x\"\n[settings.kubernetes]\nkube-api-qps = 30\nhostname-override = \"o\"\n[settings.kubernetes.static-pods.a]\nenabled = true\nnonsense = 1\n";
        let class = class(json!({"amiFamily": "Bottlerocket", "userData": toml}));
        let found = findings(&class, AwsFeatureGates::ALL);
        let texts: Vec<&str> =
            found.iter().filter_map(|f| f.message.split(" is dropped").next()).collect();
        assert_eq!(
            texts,
            [
                "grpc",
                "settings.kubernetes.hostname-override",
                "settings.kubernetes.static-pods.a.nonsense"
            ]
        );
        assert!(found.iter().all(|f| !f.is_error() && f.path == "spec.userData"));
        assert_eq!(failure(&class, AwsFeatureGates::ALL), None);
    }

    #[test]
    fn user_data_that_ec2_would_not_take_is_found() {
        let line = "echo otter otter otter otter otter otter\n";
        let long = format!("#!/bin/bash\n{}", line.repeat(500));
        for family in ["AL2023", "AL2", "Custom"] {
            let class = class(json!({"amiFamily": family, "userData": long}));
            let (reason, text) = failure(&class, AwsFeatureGates::ALL).unwrap();
            assert_eq!(reason, "UserDataInvalid");
            assert!(text.starts_with("spec.userData: makes user data of at least"), "{text}");
            assert!(text.contains("expected at most 16384"), "{text}");
        }
    }

    #[test]
    fn an_archive_without_an_empty_line_after_its_headers_is_refused() {
        let archive = "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"MARK\"\n--MARK\nContent-Type: text/x-shellscript\n\n#!/bin/bash\necho first\n\n--MARK\nContent-Type: text/x-shellscript\n\n#!/bin/bash\necho second\n\n--MARK--\n";
        for family in ["AL2023", "AL2"] {
            let class = class(json!({"amiFamily": family, "userData": archive}));
            let (_, text) = failure(&class, AwsFeatureGates::ALL).unwrap();
            assert!(text.contains("missing colon: \"--MARK\""), "{text}");
        }
    }
}
