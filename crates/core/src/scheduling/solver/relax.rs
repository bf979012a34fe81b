//! What a pod asks for, and what it still asks for when that cannot be had.

use std::sync::Arc;

use k8s_openapi::api::core::v1::PodAffinityTerm;
use serde_json::{Value, json};

use crate::scheduling::pod::Constraints;
use crate::scheduling::requirements::Requirements;
use crate::scheduling::taints::prefer_no_schedule;

/// The constraints as written, then with one preference less each time.
pub(super) fn stages(
    constraints: &Arc<Constraints>,
    tolerate_prefer: bool,
    respect: bool,
) -> Vec<Arc<Constraints>> {
    let mut stages = vec![Arc::clone(constraints)];
    let mut last = Arc::clone(constraints);
    while let Some(weaker) = relax(&last, tolerate_prefer) {
        last = Arc::new(weaker);
        // Preferences that were never required leave nothing to try again.
        let same = !respect
            && stages.last().is_some_and(|before| {
                before.required_terms == last.required_terms
                    && before.tolerations == last.tolerations
            });
        if same {
            stages.pop();
        }
        stages.push(Arc::clone(&last));
    }
    stages
}

/// How many preferences were given up between some constraints and weaker ones.
///
/// Required terms are alternatives: to go by the second is no loss. Where preferences are ignored
/// only the taints that pods would rather avoid are one.
pub(super) fn given_up(from: &Constraints, to: &Constraints, respect: bool) -> u32 {
    let soft = |c: &Constraints| {
        let terms = c.preferred_affinity.len() + c.preferred_anti_affinity.len();
        if respect { terms + c.preferred_terms.len() + c.spread.len() } else { 0 }
    };
    let taints = to.tolerations.len().saturating_sub(from.tolerations.len());
    (soft(from).saturating_sub(soft(to)) + taints) as u32
}

/// What was given up, step by step, on the way from some constraints to weaker ones.
pub(super) fn reasons(from: &Constraints, to: &Constraints, tolerate_prefer: bool) -> Vec<String> {
    let mut at = from.clone();
    let mut steps = Vec::new();
    while at != *to
        && let Some(weaker) = relax(&at, tolerate_prefer)
    {
        steps.push(reason(&at, &weaker));
        at = weaker;
    }
    steps
}

/// What one step gave up.
fn reason(before: &Constraints, after: &Constraints) -> String {
    const SOFT: &str = "preferredDuringSchedulingIgnoredDuringExecution[0]";
    const HARD: &str = "requiredDuringSchedulingIgnoredDuringExecution[0]";
    let term = |r: &Requirements| json!({"matchExpressions": r.to_api()});
    let weighted = |(weight, term): &(i32, PodAffinityTerm)| json!({"weight": weight, "podAffinityTerm": term});
    let removed = |place: String, value: Value| format!("removing: {place}={value}");
    if after.required_terms.len() < before.required_terms.len() {
        removed(format!("spec.affinity.nodeAffinity.{HARD}"), term(&before.required_terms[0]))
    } else if after.preferred_affinity.len() < before.preferred_affinity.len() {
        let gone = weighted(&before.preferred_affinity[0]);
        removed(format!("spec.affinity.podAffinity.{SOFT}"), gone)
    } else if after.preferred_anti_affinity.len() < before.preferred_anti_affinity.len() {
        let gone = weighted(&before.preferred_anti_affinity[0]);
        removed(format!("spec.affinity.podAntiAffinity.{SOFT}"), gone)
    } else if after.preferred_terms.len() < before.preferred_terms.len() {
        let (weight, preference) = &before.preferred_terms[0];
        let gone = json!({"weight": weight, "preference": term(preference)});
        removed(format!("spec.affinity.nodeAffinity.{SOFT}"), gone)
    } else if after.spread.len() < before.spread.len() {
        let soft = before.spread.iter().find(|s| s.when_unsatisfiable == "ScheduleAnyway");
        format!("removing: spec.topologySpreadConstraints = {}", json!(soft))
    } else {
        "adding: toleration for PreferNoSchedule taints".to_owned()
    }
}

/// The constraints with the next preference dropped, or nothing when none is left.
fn relax(constraints: &Constraints, tolerate_prefer: bool) -> Option<Constraints> {
    let mut weaker = constraints.clone();
    if weaker.required_terms.len() > 1 {
        weaker.required_terms.remove(0);
        return Some(weaker);
    }
    if !weaker.preferred_affinity.is_empty() {
        weaker.preferred_affinity.remove(0);
        return Some(weaker);
    }
    if !weaker.preferred_anti_affinity.is_empty() {
        weaker.preferred_anti_affinity.remove(0);
        return Some(weaker);
    }
    if !weaker.preferred_terms.is_empty() {
        weaker.preferred_terms.remove(0);
        return Some(weaker);
    }
    if let Some(at) = weaker.spread.iter().position(|s| s.when_unsatisfiable == "ScheduleAnyway") {
        weaker.spread.swap_remove(at);
        return Some(weaker);
    }
    if tolerate_prefer && !weaker.tolerations.contains(&prefer_no_schedule()) {
        weaker.tolerations.push(prefer_no_schedule());
        return Some(weaker);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferences_go_in_order_and_the_last_required_term_stays() {
        let term = |v: &str| {
            json!({"matchExpressions": [
            {"key": "k", "operator": "In", "values": [v]}]})
        };
        let near = json!({"topologyKey": "z", "labelSelector": {}});
        let spec = serde_json::from_value(json!({"containers": [],
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution":
                        {"nodeSelectorTerms": [term("a"), term("b")]},
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {"weight": 1, "preference": term("c")}]},
                "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 1, "podAffinityTerm": near}]},
                "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 1, "podAffinityTerm": near}]}},
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "a", "whenUnsatisfiable": "ScheduleAnyway"},
                {"maxSkew": 1, "topologyKey": "b", "whenUnsatisfiable": "DoNotSchedule"}]}))
        .unwrap();
        let all = stages(&Arc::new(Constraints::from_spec(&spec)), true, true);
        let left: Vec<_> = all
            .iter()
            .map(|c| {
                (
                    c.required_terms.len(),
                    c.preferred_affinity.len(),
                    c.preferred_anti_affinity.len(),
                    c.preferred_terms.len(),
                    c.spread.len(),
                    c.tolerations.len(),
                )
            })
            .collect();
        assert_eq!(
            left,
            [
                (2, 1, 1, 1, 2, 0),
                (1, 1, 1, 1, 2, 0),
                (1, 0, 1, 1, 2, 0),
                (1, 0, 0, 1, 2, 0),
                (1, 0, 0, 0, 2, 0),
                (1, 0, 0, 0, 1, 0),
                (1, 0, 0, 0, 1, 1)
            ]
        );
        assert_eq!(all.last().unwrap().spread[0].topology_key, "b");
        let reported = reasons(&all[0], all.last().unwrap(), true);
        let starts = [
            "removing: spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution[0]={",
            "removing: spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0]={",
            "removing: spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0]={",
            "removing: spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0]={",
            "removing: spec.topologySpreadConstraints = {",
            "adding: toleration for PreferNoSchedule taints",
        ];
        assert_eq!(reported.len(), starts.len());
        assert!(reported.iter().zip(starts).all(|(t, s)| t.starts_with(s)), "{reported:?}");
        assert!(reasons(&all[0], &all[0], true).is_empty());
    }
}
