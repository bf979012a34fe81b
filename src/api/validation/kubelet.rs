//! `spec.kubelet` of an EC2NodeClass, which the schema leaves open.

use serde_json::{Map, Value};

use super::Finding;
use super::kubelet_fields::{FIELDS, Kind};
use crate::api::duration;
use crate::scheduling::quantity;

/// What the kubelet watches to evict pods.
const SIGNALS: &[&str] = &[
    "memory.available",
    "nodefs.available",
    "nodefs.inodesFree",
    "imagefs.available",
    "imagefs.inodesFree",
    "pid.available",
];
/// Resources that can be reserved.
const RESERVED: &[&str] = &["cpu", "memory", "ephemeral-storage", "pid"];
/// Fields that every image family applies.
const MANAGED: &[&str] = &[
    "clusterDNS",
    "maxPods",
    "podsPerCore",
    "systemReserved",
    "kubeReserved",
    "evictionHard",
    "evictionSoft",
    "evictionSoftGracePeriod",
    "evictionMaxPodGracePeriod",
    "imageGCHighThresholdPercent",
    "imageGCLowThresholdPercent",
    "cpuCFSQuota",
];

/// Checks the settings' names, types and values; whether the image's family applies them is
/// [`for_family`]'s question.
#[must_use]
pub fn check(kubelet: &Map<String, Value>) -> Vec<Finding> {
    let mut out = Out(Vec::new());
    for (name, value) in kubelet {
        match FIELDS.iter().find(|(n, _)| n == name) {
            // A text is an expression, checked when it is compiled.
            Some(_) if name == "maxPods" && value.is_string() => {}
            Some((_, kind)) => typed(*kind, value, &format!("spec.kubelet.{name}"), &mut out),
            None => out.add(&format!("spec.kubelet.{name}"), "unknown field"),
        }
    }
    if kubelet.contains_key("registerWithTaints") {
        out.add(
            "spec.kubelet.registerWithTaints",
            "can't be set: taints come from the NodePool and NodeClaim",
        );
    }
    eviction(kubelet, &mut out);
    for field in ["kubeReserved", "systemReserved"] {
        for (key, value) in entries(kubelet, field) {
            out.key(field, key, RESERVED);
            if value.as_str().is_some_and(|v| v.starts_with('-')) {
                out.add(&format!("spec.kubelet.{field}[{key}]"), "may not be negative");
            }
        }
    }
    numbers(kubelet, &mut out);
    out.0
}

struct Out(Vec<Finding>);

impl Out {
    fn add(&mut self, path: &str, message: impl Into<String>) {
        self.0.push(Finding { path: path.to_owned(), message: message.into() });
    }

    fn key(&mut self, field: &str, key: &str, allowed: &[&str]) {
        if !allowed.contains(&key) {
            let text = format!("invalid key, expected one of {}", allowed.join(", "));
            self.add(&format!("spec.kubelet.{field}[{key}]"), text);
        }
    }
}

fn entries<'a>(
    kubelet: &'a Map<String, Value>,
    field: &str,
) -> impl Iterator<Item = (&'a String, &'a Value)> {
    kubelet.get(field).and_then(Value::as_object).into_iter().flatten()
}

fn typed(kind: Kind, value: &Value, path: &str, out: &mut Out) {
    let wanted = match (kind, value) {
        (_, Value::Null)
        | (Kind::Any, _)
        | (Kind::Text, Value::String(_))
        | (Kind::Flag, Value::Bool(_))
        | (Kind::Number, Value::Number(_)) => return,
        (Kind::Whole, Value::Number(n)) if n.is_i64() || n.is_u64() => return,
        (Kind::Duration, Value::String(text)) => {
            if duration::parse_go(text.trim_start_matches('-')).is_ok() {
                return;
            }
            "a duration such as 10s"
        }
        (Kind::List(item), Value::Array(items)) => {
            for (i, value) in items.iter().enumerate() {
                typed(*item, value, &format!("{path}[{i}]"), out);
            }
            return;
        }
        (Kind::Map(item), Value::Object(members)) => {
            for (key, value) in members {
                typed(*item, value, &format!("{path}[{key}]"), out);
            }
            return;
        }
        (Kind::Object(fields), Value::Object(members)) => {
            for (name, value) in members {
                let path = format!("{path}.{name}");
                match fields.iter().find(|(n, _)| n == name) {
                    Some((_, kind)) => typed(*kind, value, &path, out),
                    None => out.add(&path, "unknown field"),
                }
            }
            return;
        }
        (Kind::Text, _) => "a text",
        (Kind::Flag, _) => "true or false",
        (Kind::Whole, _) => "a whole number",
        (Kind::Number, _) => "a number",
        (Kind::Duration, _) => "a duration such as 10s",
        (Kind::List(_), _) => "a list",
        (Kind::Map(_) | Kind::Object(_), _) => "a map",
    };
    out.add(path, format!("invalid value {value}, expected {wanted}"));
}

fn eviction(kubelet: &Map<String, Value>, out: &mut Out) {
    for field in
        ["evictionHard", "evictionSoft", "evictionSoftGracePeriod", "evictionMinimumReclaim"]
    {
        for (key, value) in entries(kubelet, field) {
            out.key(field, key, SIGNALS);
            let Some(text) = value.as_str() else { continue };
            let path = format!("spec.kubelet.{field}[{key}]");
            if field == "evictionSoftGracePeriod" {
                if duration::parse_go(text).is_err() {
                    let text = format!("invalid value {text:?}, expected a duration such as 1m30s");
                    out.add(&path, text);
                }
            } else if !is_threshold(text) {
                let text = format!(
                    "invalid value {text:?}, expected 0% to 100% or a quantity such as 1Gi"
                );
                out.add(&path, text);
            }
        }
    }
    for (here, there) in
        [("evictionSoft", "evictionSoftGracePeriod"), ("evictionSoftGracePeriod", "evictionSoft")]
    {
        for (key, _) in entries(kubelet, here) {
            if entries(kubelet, there).all(|(k, _)| k != key) {
                let text = format!("has no matching entry in {there}");
                out.add(&format!("spec.kubelet.{here}[{key}]"), text);
            }
        }
    }
}

fn is_threshold(text: &str) -> bool {
    match text.strip_suffix('%') {
        Some(number) => number.parse::<f64>().is_ok_and(|n| (0.0..=100.0).contains(&n)),
        None => quantity::parse(text).is_ok_and(|q| q.nanos >= 0),
    }
}

fn numbers(kubelet: &Map<String, Value>, out: &mut Out) {
    let number = |name: &str| kubelet.get(name).and_then(Value::as_i64);
    let (high, low) = ("imageGCHighThresholdPercent", "imageGCLowThresholdPercent");
    for name in [high, low] {
        if let Some(n) = number(name).filter(|n| !(0..=100).contains(n)) {
            out.add(&format!("spec.kubelet.{name}"), format!("is {n}, expected 0 to 100"));
        }
    }
    if let (Some(high), Some(low)) = (number(high), number(low))
        && high <= low
    {
        out.add(
            "spec.kubelet.imageGCHighThresholdPercent",
            format!("is {high}, expected more than imageGCLowThresholdPercent, which is {low}"),
        );
    }
    for name in ["podsPerCore", "evictionMaxPodGracePeriod", "maxPods"] {
        if let Some(n) = number(name).filter(|n| *n < 0) {
            out.add(&format!("spec.kubelet.{name}"), format!("is {n}, expected at least 0"));
        }
    }
}

/// Checks that the images' family applies all that is set: anything else would be dropped in
/// silence.
///
/// `family` is the resolved one, such as `Bottlerocket`; AL2023 and Custom take everything.
#[must_use]
pub fn for_family(kubelet: &Map<String, Value>, family: &str) -> Vec<Finding> {
    let mut out = Out(Vec::new());
    if matches!(family, "AL2023" | "Custom") {
        return out.0;
    }
    let applied = |name: &str| {
        MANAGED.contains(&name) && !(family == "Bottlerocket" && name == "podsPerCore")
    };
    let mut dropped: Vec<&str> = kubelet.keys().map(String::as_str).collect();
    dropped.retain(|name| !applied(name));
    dropped.sort_unstable();
    if !dropped.is_empty() {
        let list = dropped.join(", ");
        out.add(
            "spec.kubelet",
            format!(
                "has fields not applied by the {family} AMI family that would be silently dropped: {list}"
            ),
        );
    }
    let servers = kubelet.get("clusterDNS").and_then(Value::as_array).map_or(0, Vec::len);
    if servers > 1 {
        out.add(
            "spec.kubelet.clusterDNS",
            format!(
                "the {family} AMI family doesn't accept multiple entries, only one, but {servers} were set"
            ),
        );
    }
    out.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn paths(kubelet: Value) -> Vec<String> {
        check(kubelet.as_object().unwrap()).into_iter().map(|f| f.path).collect()
    }

    #[test]
    fn good_settings_pass() {
        assert!(paths(json!({})).is_empty());
        assert!(
            paths(json!({"maxPods": 20, "clusterDNS": ["10.0.0.10"], "podsPerCore": 2,
                "kubeReserved": {"cpu": "100m", "memory": "instance.memory * 0.1"},
                "evictionHard": {"memory.available": "5%", "nodefs.available": "1Gi"},
                "evictionSoft": {"memory.available": "10%"},
                "evictionSoftGracePeriod": {"memory.available": "1m"},
                "imageGCHighThresholdPercent": 85, "imageGCLowThresholdPercent": 80,
                "featureGates": {"A": true}, "logging": {"verbosity": 3},
                "shutdownGracePeriodByPodPriority": [{"priority": 1, "shutdownGracePeriodSeconds": 5}],
                "nodeStatusUpdateFrequency": "10s"}))
            .is_empty()
        );
        assert!(paths(json!({"maxPods": "instance.cpu * 2"})).is_empty());
    }

    #[test]
    fn each_finding_names_its_field() {
        for (kubelet, path) in [
            (json!({"maxpods": 1}), "maxpods"),
            (json!({"logging": {"loud": 1}}), "logging.loud"),
            (json!({"clusterDNS": "10.0.0.10"}), "clusterDNS"),
            (json!({"clusterDNS": ["10.0.0.10", 1]}), "clusterDNS[1]"),
            (json!({"cpuCFSQuota": "yes"}), "cpuCFSQuota"),
            (json!({"syncFrequency": "often"}), "syncFrequency"),
            (json!({"registerWithTaints": []}), "registerWithTaints"),
            (json!({"evictionHard": {"disk": "5%"}}), "evictionHard[disk]"),
            (json!({"evictionHard": {"pid.available": "101%"}}), "evictionHard[pid.available]"),
            (
                json!({"evictionMinimumReclaim": {"pid.available": "-1"}}),
                "evictionMinimumReclaim[pid.available]",
            ),
            (json!({"evictionSoft": {"pid.available": "1"}}), "evictionSoft[pid.available]"),
            (json!({"kubeReserved": {"gpu": "1"}}), "kubeReserved[gpu]"),
            (json!({"systemReserved": {"cpu": "-1"}}), "systemReserved[cpu]"),
            (json!({"imageGCLowThresholdPercent": 101}), "imageGCLowThresholdPercent"),
            (
                json!({"imageGCHighThresholdPercent": 5, "imageGCLowThresholdPercent": 5}),
                "imageGCHighThresholdPercent",
            ),
            (json!({"maxPods": -1}), "maxPods"),
            (json!({"podsPerCore": -1}), "podsPerCore"),
            (json!({"evictionMaxPodGracePeriod": -1}), "evictionMaxPodGracePeriod"),
        ] {
            assert_eq!(paths(kubelet.clone()), [format!("spec.kubelet.{path}")], "{kubelet}");
        }
    }

    #[test]
    fn families_say_what_they_would_drop() {
        let kubelet = json!({"podsPerCore": 2, "syncFrequency": "1s", "clusterDNS": ["a", "b"]});
        let of = |family| for_family(kubelet.as_object().unwrap(), family);
        assert!(of("AL2023").is_empty() && of("Custom").is_empty());
        let text = |family| of(family).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(text("AL2").len(), 2);
        assert!(text("AL2")[0].ends_with("silently dropped: syncFrequency"));
        assert!(text("Bottlerocket")[0].ends_with("dropped: podsPerCore, syncFrequency"));
        assert!(text("Windows2022")[1].contains("only one, but 2 were set"));
    }
}
