//! Whether a pod tolerates a node's taints.

use k8s_openapi::api::core::v1::{Taint, Toleration};

/// A taint that a pod does not tolerate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("did not tolerate taint (taint={0})")]
pub struct TaintError(pub String);

fn text(taint: &Taint) -> String {
    match taint.value.as_deref() {
        Some(value) if !value.is_empty() => format!("{}={value}:{}", taint.key, taint.effect),
        _ => format!("{}:{}", taint.key, taint.effect),
    }
}

/// Whether one toleration covers one taint, by the rules of Kubernetes.
#[must_use]
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    if toleration.effect.as_deref().is_some_and(|e| !e.is_empty() && e != taint.effect) {
        return false;
    }
    // An empty key matches every taint, and is valid with the operator `Exists` only.
    let key = toleration.key.as_deref().unwrap_or("");
    if !key.is_empty() && key != taint.key {
        return false;
    }
    let wanted = toleration.value.as_deref().unwrap_or("");
    let actual = taint.value.as_deref().unwrap_or("");
    // `Lt` and `Gt` (KEP-5471) compare integers, and cover no taint whose value is none.
    let number = |text: &str| text.parse::<i64>().ok();
    match toleration.operator.as_deref().unwrap_or("") {
        "" | "Equal" => !key.is_empty() && wanted == actual,
        "Exists" => true,
        "Lt" => number(actual).zip(number(wanted)).is_some_and(|(a, w)| a < w),
        "Gt" => number(actual).zip(number(wanted)).is_some_and(|(a, w)| a > w),
        _ => false,
    }
}

/// Tolerates every PreferNoSchedule taint. Taints of that effect count as required at first, and
/// relaxation adds this toleration last.
#[must_use]
pub fn prefer_no_schedule() -> Toleration {
    Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some(crate::api::taints::PREFER_NO_SCHEDULE.to_owned()),
        ..Toleration::default()
    }
}

/// Checks that every taint is tolerated. PreferNoSchedule counts like the other effects, as in
/// Karpenter: relaxation is what makes it a preference.
///
/// # Errors
/// The first taint that is not.
pub fn tolerate_all<'a>(
    taints: impl IntoIterator<Item = &'a Taint>,
    tolerations: &[Toleration],
) -> Result<(), TaintError> {
    match taints.into_iter().find(|taint| !tolerations.iter().any(|t| tolerates(t, taint))) {
        Some(taint) => Err(TaintError(text(taint))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::taints;

    #[test]
    fn tolerations_match_as_kubernetes_does() {
        let taint = taints::new("team", Some("a"), taints::NO_SCHEDULE);
        let toleration = |v: serde_json::Value| serde_json::from_value::<Toleration>(v).unwrap();
        for (yes, value) in [
            (true, serde_json::json!({"operator": "Exists"})),
            (true, serde_json::json!({"key": "team", "value": "a"})),
            (false, serde_json::json!({"key": "team", "value": "b"})),
            (
                false,
                serde_json::json!({"key": "team", "operator": "Exists", "effect": "NoExecute"}),
            ),
            (false, serde_json::json!({"key": "other", "operator": "Exists"})),
        ] {
            assert_eq!(tolerates(&toleration(value.clone()), &taint), yes, "{value}");
        }
        let error = tolerate_all([&taint], &[]).unwrap_err();
        assert_eq!(error.to_string(), "did not tolerate taint (taint=team=a:NoSchedule)");
    }
}
