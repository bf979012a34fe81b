//! Which waiting pods Karpenter ignores: those that opted out, and those whose constraints or
//! volumes it cannot use.

use std::fmt;

use k8s_openapi::api::core::v1::PodSpec;

use super::pod::{Constraints, PodInfo};
use super::requirements::Requirements;
use super::volumes::{self, VolumeObjects};
use crate::api::checks::{is_label_value, is_qualified_name};
use crate::api::labels;
use crate::api::v1::Operator;

/// Why a waiting pod is ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ignored {
    /// The pod asks for a node without a NodePool, which is no mistake: no event is published for
    /// it.
    pub opted_out: bool,
    problems: Vec<String>,
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("; "))
    }
}

impl std::error::Error for Ignored {}

/// Checks a waiting pod. All checks run, so that its owner learns of all problems at once.
///
/// # Errors
/// When the pod is to be left alone.
pub fn waiting_pod(pod: &PodInfo, objects: &VolumeObjects) -> Result<(), Ignored> {
    let mut ignored = Ignored::default();
    // A pod that any of its required terms allows onto a node of a NodePool has not opted out, and
    // neither has one that only prefers other nodes.
    let opts_out = |wanted: &Requirements| {
        wanted.get(labels::NODEPOOL).is_some_and(|r| r.operator() == Operator::DoesNotExist)
    };
    if pod.constraints.alternatives().iter().all(opts_out) {
        ignored.opted_out = true;
        ignored.problems.push(format!(
            "configured to not run on a Karpenter provisioned node (requirement={} DoesNotExist)",
            labels::NODEPOOL
        ));
    }
    if let Some(text) = &pod.invalid {
        ignored.problems.push(text.to_string());
    }
    if let Err(error) = volumes::validate(pod, objects) {
        ignored.problems.push(error.to_string());
    }
    if ignored.problems.is_empty() { Ok(()) } else { Err(ignored) }
}

/// What is wrong with a pod's node selector and required node affinity, if anything. Preferences
/// are not checked: one that cannot be met is dropped.
#[must_use]
pub fn node_selection(spec: &PodSpec) -> Option<String> {
    let mut problems = Vec::new();
    for (key, value) in spec.node_selector.iter().flatten() {
        requirement(key, Some(Operator::In), "In", std::slice::from_ref(value), &mut problems);
    }
    let terms = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|n| n.required_during_scheduling_ignored_during_execution.as_ref())
        .map(|s| s.node_selector_terms.as_slice())
        .unwrap_or_default();
    for term in terms {
        // The only field that may be matched is `metadata.name`, and a node to be launched has no
        // name yet.
        if term.match_fields.is_some() {
            problems.push("node selector term with matchFields is not supported".to_owned());
        }
        for expression in term.match_expressions.iter().flatten() {
            let values = expression.values.as_deref().unwrap_or_default();
            let operator = Operator::parse(&expression.operator);
            requirement(&expression.key, operator, &expression.operator, values, &mut problems);
        }
    }
    (!problems.is_empty()).then(|| problems.join("; "))
}

fn requirement(
    key: &str,
    operator: Option<Operator>,
    written: &str,
    values: &[String],
    problems: &mut Vec<String>,
) {
    let key = labels::normalize(key);
    let Some(operator) = operator else {
        problems.push(format!(
            "key {key} has an unsupported operator {written}, expected one of In, NotIn, Exists, DoesNotExist, Gt, Lt, Gte, Lte"
        ));
        return;
    };
    // After normalization: a deprecated key is checked as the label that it stands for.
    if let Some(problem) = labels::restriction(key) {
        problems.push(problem);
    }
    if !is_qualified_name(key) {
        problems.push(format!("key {key} is not a qualified name, expected [prefix/]name"));
    }
    for value in values.iter().filter(|v| !is_label_value(v)) {
        problems.push(format!("invalid value {value:?} for key {key}, expected a label value"));
    }
    match operator {
        Operator::In if values.is_empty() => {
            problems.push(format!("key {key} with operator In must have a value defined"));
        }
        Operator::In => known_values(key, values, problems),
        Operator::Gt | Operator::Lt | Operator::Gte | Operator::Lte => {
            let number = values.first().and_then(|v| v.parse::<i64>().ok());
            // As Karpenter words it; zero is accepted too.
            if values.len() != 1 || number.is_none_or(|n| n < 0) {
                problems.push(format!(
                    "key {key} with operator {} must have a single positive integer value",
                    operator.as_str()
                ));
            }
        }
        Operator::NotIn | Operator::Exists | Operator::DoesNotExist => {}
    }
}

/// Labels with a fixed set of values. A pod that asks for none of them could never be placed.
const KNOWN_VALUES: [(&str, &[&str]); 2] = [
    (
        labels::CAPACITY_TYPE,
        &[labels::CAPACITY_ON_DEMAND, labels::CAPACITY_SPOT, labels::CAPACITY_RESERVED],
    ),
    (labels::INSTANCE_TENANCY, &["dedicated", "default"]),
];

/// Values that a label cannot have, listed together with some that it can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownValues {
    /// The label's key.
    pub key: &'static str,
    /// Values that it can have.
    pub valid: Vec<String>,
    /// Values that it cannot.
    pub invalid: Vec<String>,
}

/// Unknown values in a pod's node selector and required terms that do no harm, since known ones are
/// listed with them, but are most likely typing errors.
#[must_use]
pub fn unknown_values(constraints: &Constraints) -> Vec<UnknownValues> {
    let mut found = Vec::new();
    for wanted in std::iter::once(&constraints.node_selector).chain(&constraints.required_terms) {
        for (key, known) in KNOWN_VALUES {
            let Some(req) = wanted.get(key).filter(|r| r.operator() == Operator::In) else {
                continue;
            };
            let (valid, invalid): (Vec<String>, Vec<String>) =
                req.values().map(str::to_owned).partition(|v| known.contains(&v.as_str()));
            if !valid.is_empty() && !invalid.is_empty() {
                found.push(UnknownValues { key, valid, invalid });
            }
        }
    }
    found
}

/// Reports a label with a fixed set of values of which none is asked for. A single known value
/// among unknown ones is enough to go on.
fn known_values(key: &str, values: &[String], problems: &mut Vec<String>) {
    let Some((_, known)) = KNOWN_VALUES.into_iter().find(|(k, _)| *k == key) else { return };
    if !values.iter().any(|v| known.contains(&v.as_str())) {
        problems.push(format!(
            "no valid values found in {values:?} for {key}, expected one of: {known:?}"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn problem_of(spec: Value) -> Option<String> {
        let mut whole = json!({"containers": []});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": whole});
        let pod = PodInfo::from_pod(&serde_json::from_value(pod).unwrap());
        waiting_pod(&pod, &VolumeObjects::default()).err().map(|i| i.to_string())
    }

    fn required(term: Value) -> Value {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [term]}}}})
    }

    #[test]
    fn pods_may_opt_out() {
        let out = json!({"matchExpressions": [
            {"key": "karpenter.sh/nodepool", "operator": "DoesNotExist"}]});
        assert_eq!(
            problem_of(required(out)).unwrap(),
            "configured to not run on a Karpenter provisioned node (requirement=karpenter.sh/nodepool DoesNotExist)"
        );
        assert_eq!(problem_of(json!({})), None);
    }

    #[test]
    fn a_preference_or_one_of_several_terms_does_not_opt_out() {
        let out = json!({"matchExpressions": [
            {"key": "karpenter.sh/nodepool", "operator": "DoesNotExist"}]});
        let here = json!({"matchExpressions": [{"key": "team", "operator": "Exists"}]});
        let prefers = json!({"affinity": {"nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution":
                [{"weight": 50, "preference": out.clone()}]}}});
        assert_eq!(problem_of(prefers), None);
        let either = |terms: Value| {
            json!({"affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
        };
        assert_eq!(problem_of(either(json!([out.clone(), here]))), None);
        assert!(problem_of(either(json!([out.clone(), out]))).is_some());
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        assert!(problem_of(json!({"nodeSelector": {"kubernetes.io/hostname": "x"}})).is_some());
        assert!(problem_of(json!({"nodeSelector": {"karpenter.sh/unknown": "x"}})).is_some());
        assert_eq!(problem_of(json!({"nodeSelector": {"node-role.kubernetes.io/x": "y"}})), None);
        assert_eq!(
            problem_of(required(json!({"matchFields": []}))).unwrap(),
            "node selector term with matchFields is not supported"
        );
        for expression in [
            json!({"key": "a", "operator": "Near", "values": ["1"]}),
            json!({"key": "a", "operator": "Gt", "values": ["x"]}),
            json!({"key": "a", "operator": "In", "values": []}),
            json!({"key": "-a", "operator": "Exists"}),
            json!({"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["cheap"]}),
        ] {
            let key = expression["key"].as_str().unwrap().to_owned();
            let text = problem_of(required(json!({"matchExpressions": [expression]}))).unwrap();
            assert!(text.contains(&key), "{text}");
        }
        let spot = json!({"key": "karpenter.sh/capacity-type", "operator": "In",
            "values": ["cheap", "spot"]});
        assert_eq!(problem_of(required(json!({"matchExpressions": [spot]}))), None);
    }

    #[test]
    fn values_that_a_label_cannot_have_are_found_beside_those_that_it_can() {
        let spec = required(json!({"matchExpressions": [{"key": "karpenter.sh/capacity-type",
            "operator": "In", "values": ["cheap", "spot"]}]}));
        let mut whole = json!({"containers": []});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let constraints = Constraints::from_spec(&serde_json::from_value(whole).unwrap());
        let found = unknown_values(&constraints);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].key, "karpenter.sh/capacity-type");
        assert_eq!((&found[0].valid[0], &found[0].invalid[0]), (&"spot".into(), &"cheap".into()));
        assert!(unknown_values(&Constraints::default()).is_empty());
    }

    #[test]
    fn problems_are_reported_together() {
        let text = problem_of(json!({"nodeSelector": {"karpenter.sh/unknown": "x"},
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}))
        .unwrap();
        assert!(text.contains("karpenter.sh/unknown") && text.contains("; getting persistent"));
    }
}
