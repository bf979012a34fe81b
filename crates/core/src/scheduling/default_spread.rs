//! Default topology spread constraints for pods that have none of their own, as the
//! `defaultConstraints` of kube-scheduler's `PodTopologySpread` plugin configure them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::pod::{Constraints, PodInfo};
use crate::api::scheduler_config::SchedulerConfig;

/// The selectors from which a pod's default spread is deduced, each by `(namespace, name)`.
#[derive(Clone, Debug, Default)]
pub struct Selectors {
    /// Services with a selector.
    pub services: BTreeMap<(String, String), BTreeMap<String, String>>,
    /// ReplicationControllers.
    pub replication_controllers: BTreeMap<(String, String), BTreeMap<String, String>>,
    /// ReplicaSets.
    pub replica_sets: BTreeMap<(String, String), LabelSelector>,
    /// StatefulSets.
    pub stateful_sets: BTreeMap<(String, String), LabelSelector>,
}

impl Selectors {
    /// The selector of the pods to spread a pod among: those of its Services and its controller, as
    /// kube-scheduler combines them. `None` when nothing selects the pod, which then gets no
    /// defaults.
    #[must_use]
    pub fn deduce(&self, pod: &PodInfo) -> Option<LabelSelector> {
        let namespace = pod.key.namespace.to_string();
        let mut exact: BTreeMap<String, String> = BTreeMap::new();
        // The map is sorted by namespace first, so that one namespace is one range of it.
        let from = (namespace.clone(), String::new());
        for (_, selector) in self.services.range(from..).take_while(|((ns, _), _)| *ns == namespace)
        {
            if selector.iter().all(|(k, v)| pod.labels.get(k) == Some(v)) {
                exact.extend(selector.clone());
            }
        }
        // Kept apart from the labels of Services: kube-scheduler lets one Service, or a
        // ReplicationController, override a label of another, but the selector of a ReplicaSet or
        // StatefulSet has to hold as well.
        let mut expressions: Vec<LabelSelectorRequirement> = Vec::new();
        if let Some(owner) = pod.owner.as_ref().filter(|o| o.controller) {
            let key = (namespace, owner.name.to_string());
            let selector = match (&*owner.api_version, &*owner.kind) {
                ("v1", "ReplicationController") => {
                    exact.extend(
                        self.replication_controllers.get(&key).cloned().unwrap_or_default(),
                    );
                    None
                }
                ("apps/v1", "ReplicaSet") => self.replica_sets.get(&key),
                ("apps/v1", "StatefulSet") => self.stateful_sets.get(&key),
                _ => None,
            };
            if let Some(selector) = selector {
                expressions.extend(selector.match_labels.iter().flatten().map(|(k, v)| {
                    LabelSelectorRequirement {
                        key: k.clone(),
                        operator: "In".to_owned(),
                        values: Some(vec![v.clone()]),
                    }
                }));
                expressions.extend(selector.match_expressions.iter().flatten().cloned());
            }
        }
        if exact.is_empty() && expressions.is_empty() {
            return None;
        }
        Some(LabelSelector {
            match_labels: (!exact.is_empty()).then_some(exact),
            match_expressions: (!expressions.is_empty()).then_some(expressions),
        })
    }
}

/// Gives pods without a spread constraint the default ones, each with the pod's deduced selector.
/// One constraint of its own, of whatever kind, keeps all defaults away, as in kube-scheduler.
///
/// Pods that share constraints, labels and owner share the result too, which keeps them one class
/// to the solver.
pub fn apply(pods: &mut [Arc<PodInfo>], config: &SchedulerConfig, selectors: &Selectors) {
    if config.default_constraints.is_empty() {
        return;
    }
    // Pods of one template differ in nothing that the selector is deduced from.
    type Template = (usize, usize, usize, Arc<str>);
    let mut made: HashMap<Template, Option<Arc<Constraints>>> = HashMap::new();
    for pod in pods.iter_mut().filter(|p| p.constraints.spread.is_empty()) {
        let template = (
            Arc::as_ptr(&pod.constraints) as usize,
            Arc::as_ptr(&pod.labels) as usize,
            pod.owner.as_ref().map_or(0, |o| Arc::as_ptr(o) as usize),
            Arc::clone(&pod.key.namespace),
        );
        let constraints = made.entry(template).or_insert_with(|| {
            let selector = selectors.deduce(pod)?;
            let mut constraints = (*pod.constraints).clone();
            constraints.spread = config.default_constraints.clone();
            for spread in &mut constraints.spread {
                spread.label_selector = Some(selector.clone());
            }
            Some(Arc::new(constraints))
        });
        if let Some(constraints) = constraints {
            Arc::make_mut(pod).constraints = Arc::clone(constraints);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const CONFIG: &str = "podTopologySpread:
  defaultConstraints:
  - {maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: ScheduleAnyway}
";

    fn pod(owner: &str) -> Arc<PodInfo> {
        let value = json!({"metadata": {"name": "p", "namespace": "n", "labels": {"app": "a"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": owner, "name": "o", "uid": "u",
                "controller": true}]}, "spec": {"containers": []}});
        Arc::new(PodInfo::from_pod(&serde_json::from_value(value).unwrap()))
    }

    #[test]
    fn siblings_are_selected_by_services_and_owner() {
        let mut selectors = Selectors::default();
        assert_eq!(selectors.deduce(&pod("ReplicaSet")), None);
        let key = |name: &str| ("n".to_owned(), name.to_owned());
        let label = |v: &str| [("app".to_owned(), v.to_owned())].into_iter().collect();
        selectors.services.insert(key("s"), label("a"));
        selectors.services.insert(key("t"), label("b"));
        selectors.services.insert(("m".to_owned(), "s".to_owned()), label("c"));
        let found = selectors.deduce(&pod("Job")).unwrap();
        assert_eq!(found.match_labels, Some(label("a")));
        assert_eq!(found.match_expressions, None);
        let selector = LabelSelector { match_labels: Some(label("a")), ..Default::default() };
        selectors.replica_sets.insert(key("o"), selector);
        let found = selectors.deduce(&pod("ReplicaSet")).unwrap();
        assert_eq!(found.match_expressions.unwrap()[0].values, Some(vec!["a".to_owned()]));
    }

    #[test]
    fn pods_without_constraints_get_the_default_ones() {
        let mut selectors = Selectors::default();
        let label: BTreeMap<_, _> = [("app".to_owned(), "a".to_owned())].into_iter().collect();
        selectors.services.insert(("n".to_owned(), "s".to_owned()), label.clone());
        let mut pods = [pod("ReplicaSet"), pod("ReplicaSet")];
        pods[1] = Arc::new(PodInfo {
            key: crate::scheduling::pod::PodKey::new("n", "q"),
            ..(*pods[0]).clone()
        });
        apply(&mut pods, &SchedulerConfig::parse(CONFIG).unwrap(), &selectors);
        let spread = &pods[0].constraints.spread;
        assert_eq!(spread[0].label_selector.as_ref().unwrap().match_labels, Some(label));
        assert!(Arc::ptr_eq(&pods[0].constraints, &pods[1].constraints));
    }
}
