//! What is particular about pods: defaults, graceful deletion, binding and eviction.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::failure::Failure;
use super::kinds::kind;
use super::ops::{Deleted, Deletion};
use super::store::{Inner, Key, Store};
use super::write::{is_deleting, time};

/// Seconds that a pod gets to end unless it says otherwise.
const GRACE: i64 = 30;
/// Seconds that a pod stays on a node that is not ready or cannot be reached: the default of the
/// admission plugin DefaultTolerationSeconds.
const STAY: i64 = 300;

/// What a new pod has unless it says otherwise.
pub(crate) fn defaults(pod: &mut Value) {
    pod["status"] = json!({ "phase": "Pending", "qosClass": "Burstable" });
    if !pod["spec"].is_object() {
        pod["spec"] = json!({});
    }
    let spec = &mut pod["spec"];
    let fields = [
        ("restartPolicy", json!("Always")),
        ("dnsPolicy", json!("ClusterFirst")),
        ("terminationGracePeriodSeconds", json!(GRACE)),
        ("schedulerName", json!("default-scheduler")),
        ("priority", json!(0)),
    ];
    for (field, value) in fields {
        if spec[field].is_null() {
            spec[field] = value;
        }
    }
    // As the admission plugin DefaultTolerationSeconds.
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let list = spec["tolerations"].as_array().cloned().unwrap_or_default();
        let covered = |t: &Value| {
            let all = t["key"].as_str().is_none_or(str::is_empty) && t["operator"] == "Exists";
            let effect = t["effect"].as_str().unwrap_or_default();
            (all || t["key"] == key) && matches!(effect, "" | "NoExecute")
        };
        if !list.iter().any(covered) {
            let mut list = list;
            list.push(json!({ "key": key, "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": STAY }));
            spec["tolerations"] = Value::Array(list);
        }
    }
}

pub(crate) fn is_finished(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// Seconds until a pod that is deleted now has to be gone.
pub(crate) fn grace(pod: &Value, wanted: Option<i64>) -> i64 {
    let on_node = pod["spec"]["nodeName"].as_str().is_some_and(|n| !n.is_empty());
    if !on_node || is_finished(pod) {
        return 0;
    }
    let own = pod["spec"]["terminationGracePeriodSeconds"].as_i64();
    wanted.or(own).unwrap_or(GRACE).max(0)
}

/// The pod, on a node.
pub(crate) fn bound(pod: &Value, node: &str, now: &str) -> Result<Value, Failure> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    if let Some(on) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
        let why = format!("pod {name} is already assigned to node \"{on}\"");
        return Err(Failure::conflict(kind("pods"), name, &why));
    }
    if is_deleting(pod) {
        let why = format!("pod {name} is being deleted, cannot be assigned to a host");
        return Err(Failure::conflict(kind("pods"), name, &why));
    }
    let mut pod = pod.clone();
    pod["spec"]["nodeName"] = json!(node);
    set_condition(&mut pod, "PodScheduled", "True", "", now);
    Ok(pod)
}

/// Sets a condition in a status; true when that changes its status or reason.
pub fn set_condition(
    object: &mut Value,
    kind: &str,
    status: &str,
    reason: &str,
    now: &str,
) -> bool {
    let list = &mut object["status"]["conditions"];
    if !list.is_array() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else { return false };
    let mut made = json!({ "type": kind, "status": status, "lastTransitionTime": now });
    if !reason.is_empty() {
        made["reason"] = json!(reason);
    }
    match list.iter_mut().find(|c| c["type"] == kind) {
        Some(known) => {
            let same = known["status"] == status;
            if same && known["reason"].as_str().unwrap_or_default() == reason {
                return false;
            }
            // By the API conventions, the transition time changes with the status only.
            if same {
                made["lastTransitionTime"] = known["lastTransitionTime"].clone();
            }
            *known = made;
        }
        None => list.push(made),
    }
    true
}

/// The status of a condition.
#[must_use]
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let list = object["status"]["conditions"].as_array()?;
    list.iter().find(|c| c["type"] == kind)?["status"].as_str()
}

/// True when a label selector of a spec selects the labels of an object.
#[must_use]
pub fn selects(selector: &Value, object: &Value) -> bool {
    let labels = &object["metadata"]["labels"];
    let label = |key: &str| labels.get(key).and_then(Value::as_str);
    let by_label = selector["matchLabels"].as_object().into_iter().flatten();
    let by_label = by_label.into_iter().all(|(key, value)| label(key) == value.as_str());
    let by_expression = selector["matchExpressions"].as_array().into_iter().flatten();
    by_label
        && by_expression.into_iter().all(|e| {
            let key = e["key"].as_str().unwrap_or_default();
            let named = |v: &str| e["values"].as_array().is_some_and(|l| l.iter().any(|w| w == v));
            match e["operator"].as_str().unwrap_or_default() {
                "In" => label(key).is_some_and(named),
                "NotIn" => !label(key).is_some_and(named),
                "Exists" => label(key).is_some(),
                "DoesNotExist" => label(key).is_none(),
                _ => false,
            }
        })
}

impl Store {
    /// Evicts a pod, if its PodDisruptionBudget allows that.
    ///
    /// # Errors
    /// 429 when the budget does not allow it, 500 when there is more than one budget.
    pub fn evict(&self, namespace: &str, name: &str, how: &Deletion) -> Result<Deleted, Failure> {
        let kind = kind("pods");
        let key = Key::new(namespace, name);
        let mut inner = self.inner.lock();
        let pod = inner.tables[kind.index()].objects.get(&key).cloned();
        let pod = pod.ok_or_else(|| Failure::not_found(kind, name))?;
        let wanted = how.preconditions.uid.as_deref();
        if wanted.is_some_and(|uid| pod["metadata"]["uid"] != uid) {
            // Deleting checks the preconditions, too, but by then the budget would be spent.
            return self.delete_in(&mut inner, kind, &key, how);
        }
        // A pod that does not run, or is going anyway, costs no budget.
        let pending = pod["status"]["phase"] == "Pending";
        let counts = !pending && !is_finished(&pod) && !is_deleting(&pod);
        if counts && !self.ignores_budgets.load(Ordering::Relaxed) {
            self.spend_budget(&mut inner, &pod)?;
        }
        if how.preconditions.resource_version.is_none() {
            self.mark_evicted(&mut inner, &pod);
        }
        self.delete_in(&mut inner, kind, &key, how)
    }

    /// Evictions are granted whatever the budgets say: a defect that is planted.
    pub fn ignore_budgets(&self) {
        self.ignores_budgets.store(true, Ordering::Relaxed);
    }

    /// Notes on a pod why it goes, before it does.
    fn mark_evicted(&self, inner: &mut Inner, pod: &Arc<Value>) {
        if is_deleting(pod) {
            return;
        }
        let mut marked = (**pod).clone();
        let now = time(self.now());
        set_condition(&mut marked, "DisruptionTarget", "True", "EvictionByEvictionAPI", &now);
        self.put(inner, kind("pods"), marked);
    }

    /// Counts an eviction in the pod's budget.
    fn spend_budget(&self, inner: &mut Inner, pod: &Arc<Value>) -> Result<(), Failure> {
        let kind = kind("poddisruptionbudgets");
        let namespace = &pod["metadata"]["namespace"];
        let budgets: Vec<Arc<Value>> = inner.tables[kind.index()]
            .objects
            .values()
            .filter(|b| b["metadata"]["namespace"] == *namespace)
            .filter(|b| selects(&b["spec"]["selector"], pod))
            .cloned()
            .collect();
        let budget = match budgets.as_slice() {
            [] => return Ok(()),
            [one] => one,
            _ => {
                return Err(Failure::internal(
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
        };
        let status = &budget["status"];
        let number = |field: &str| status[field].as_i64().unwrap_or(0);
        // Unhealthy pods: `IfHealthyBudget` is the default policy.
        if condition(pod, "Ready") != Some("True") {
            let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
            let healthy = number("currentHealthy") >= number("desiredHealthy");
            if always || (healthy && number("desiredHealthy") > 0) {
                return Ok(());
            }
        }
        let named = budget["metadata"]["name"].as_str().unwrap_or_default();
        let observed = number("observedGeneration");
        // The counts are those of an older spec.
        if observed < budget["metadata"]["generation"].as_i64().unwrap_or(0) {
            return Err(refused(&format!(
                "The disruption budget {named} is still being processed by the server."
            )));
        }
        if number("disruptionsAllowed") <= 0 {
            return Err(refused(&format!(
                "The disruption budget {named} needs {} healthy pods and has {} currently",
                number("desiredHealthy"),
                number("currentHealthy")
            )));
        }
        let mut spent = (**budget).clone();
        spent["status"]["disruptionsAllowed"] = json!(number("disruptionsAllowed") - 1);
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        if !spent["status"]["disruptedPods"].is_object() {
            spent["status"]["disruptedPods"] = json!({});
        }
        spent["status"]["disruptedPods"][name] = json!(time(self.now()));
        self.put(inner, kind, spent);
        Ok(())
    }
}

fn refused(why: &str) -> Failure {
    Failure::too_many(
        "Cannot evict pod as it would violate the pod's disruption budget.",
        json!({ "causes": [{ "reason": "DisruptionBudget", "message": why }] }),
    )
}
