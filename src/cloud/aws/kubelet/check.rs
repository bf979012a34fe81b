//! Checks of `spec.kubelet`, by the rules that the kubelet itself has.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::schema;
use crate::api::duration::parse_go;
use crate::api::v1::EC2NodeClass;
use crate::scheduling::quantity;

// Eviction signals of the Kubernetes documentation on node-pressure eviction.
const SIGNALS: &[&str] = &[
    "memory.available",
    "nodefs.available",
    "nodefs.inodesFree",
    "imagefs.available",
    "imagefs.inodesFree",
    "pid.available",
];
// What the kubelet accepts in kubeReserved and systemReserved.
const RESERVABLE: &[&str] = &["cpu", "memory", "ephemeral-storage", "pid"];

/// Everything that is wrong with a node class's kubelet settings, always in the same order.
#[must_use]
pub fn check(class: &EC2NodeClass) -> Vec<String> {
    let Some(settings) = class.spec.kubelet.as_ref().filter(|k| !k.is_empty()) else {
        return Vec::new();
    };
    let mut checked = settings.clone();
    if checked.get("maxPods").is_some_and(Value::is_string) {
        // An expression; the schema knows only the kubelet's own integer.
        checked.insert("maxPods".to_owned(), 0.into());
    }
    let mut problems = match schema::check(&checked) {
        Err(wrong_type) => return vec![format!("spec.kubelet: {wrong_type}")],
        Ok(unknown) => unknown
            .into_iter()
            .map(|field| format!("spec.kubelet: unknown field {field:?}"))
            .collect::<Vec<_>>(),
    };
    if settings.contains_key("registerWithTaints") {
        problems.push(
            "spec.kubelet.registerWithTaints: can't be set, taints come from the NodePool's template"
                .to_owned(),
        );
    }
    evictions(settings, &mut problems);
    reservations(settings, &mut problems);
    images(settings, &mut problems);
    for key in ["podsPerCore", "evictionMaxPodGracePeriod", "maxPods"] {
        if settings.get(key).and_then(Value::as_i64).is_some_and(|n| n < 0) {
            problems.push(format!("spec.kubelet.{key}: expected 0 or more"));
        }
    }
    problems
}

/// The entries of a map of the settings, sorted by key.
fn entries<'a>(settings: &'a Map<String, Value>, key: &str) -> Vec<(&'a str, &'a str)> {
    let map = settings.get(key).and_then(Value::as_object);
    let mut list: Vec<(&str, &str)> = map
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.as_str(), value.as_str().unwrap_or_default()))
        .collect();
    list.sort_unstable();
    list
}

fn evictions(settings: &Map<String, Value>, problems: &mut Vec<String>) {
    const GRACE: &str = "evictionSoftGracePeriod";
    for key in ["evictionHard", "evictionSoft", GRACE, "evictionMinimumReclaim"] {
        for (signal, value) in entries(settings, key) {
            let field = format!("spec.kubelet.{key}[{signal}]");
            if !SIGNALS.contains(&signal) {
                problems.push(format!(
                    "{field}: not an eviction signal, expected one of {}",
                    SIGNALS.join(", ")
                ));
            } else if key == GRACE {
                if parse_go(value).is_err() {
                    problems.push(format!(
                        "{field}: expected a duration of 0 or more such as 1m30s, found {value:?}"
                    ));
                }
            } else if !is_threshold(value) {
                problems.push(format!(
                    "{field}: expected a share from 0% to 100% or a quantity of 0 or more, found {value:?}"
                ));
            }
        }
    }
    let keys = |key: &str| -> BTreeSet<&str> {
        entries(settings, key).into_iter().map(|(signal, _)| signal).collect()
    };
    // The kubelet does not start with a soft threshold that has no grace period. Karpenter refuses
    // a grace period without a threshold as well.
    let (soft, grace) = (keys("evictionSoft"), keys(GRACE));
    for signal in soft.difference(&grace) {
        problems.push(format!("spec.kubelet.evictionSoft[{signal}]: no matching entry in {GRACE}"));
    }
    for signal in grace.difference(&soft) {
        problems.push(format!("spec.kubelet.{GRACE}[{signal}]: no matching entry in evictionSoft"));
    }
}

fn is_threshold(text: &str) -> bool {
    match text.strip_suffix('%') {
        Some(share) => share.parse::<f64>().is_ok_and(|n| (0.0..=100.0).contains(&n)),
        None => quantity::parse(text).is_ok_and(|q| q.milli() >= 0),
    }
}

/// Values may be expressions, which are checked elsewhere.
fn reservations(settings: &Map<String, Value>, problems: &mut Vec<String>) {
    for key in super::RESERVED {
        for (resource, value) in entries(settings, key) {
            let field = format!("spec.kubelet.{key}[{resource}]");
            if !RESERVABLE.contains(&resource) {
                problems.push(format!("{field}: expected one of {}", RESERVABLE.join(", ")));
            }
            if value.starts_with('-') {
                problems.push(format!("{field}: expected 0 or more, found {value:?}"));
            }
        }
    }
}

fn images(settings: &Map<String, Value>, problems: &mut Vec<String>) {
    let (high, low) = ("imageGCHighThresholdPercent", "imageGCLowThresholdPercent");
    let value = |key: &str| settings.get(key).and_then(Value::as_i64);
    for key in [high, low] {
        if value(key).is_some_and(|n| !(0..=100).contains(&n)) {
            problems.push(format!("spec.kubelet.{key}: expected 0 to 100"));
        }
    }
    if let (Some(h), Some(l)) = (value(high), value(low))
        && h <= l
    {
        problems.push(format!("spec.kubelet.{high}: expected more than {low}, which is {l}"));
    }
}
