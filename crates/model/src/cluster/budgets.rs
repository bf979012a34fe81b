//! PodDisruptionBudgets: how many pods are healthy, and how many may go.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Value, json};

use super::Cluster;
use super::scheduler::selects;
use crate::api::{Key, kind};

impl Cluster {
    pub(super) fn budget_changed(&mut self, budget: &Value, gone: bool) {
        let key = Key::of(budget);
        if gone {
            self.budgets.remove(&key);
            return;
        }
        let selector = &budget["spec"]["selector"];
        let selector = serde_json::from_value(selector.clone()).unwrap_or_default();
        self.budgets.insert(key.clone(), selector);
        self.dirty_budgets.insert(key);
    }

    /// The budgets that select pods with these labels are counted again.
    pub(super) fn budgets_of(&mut self, namespace: &str, labels: &BTreeMap<String, String>) {
        for (key, selector) in &self.budgets {
            let about = key.namespace == namespace && selects(selector, labels);
            if about && !self.dirty_budgets.contains(key) {
                self.dirty_budgets.insert(key.clone());
            }
        }
    }

    /// All budgets of a namespace are counted again.
    pub(super) fn budgets_in(&mut self, namespace: &str) {
        let keys = self.budgets.keys().filter(|k| k.namespace == namespace);
        self.dirty_budgets.extend(keys.cloned());
    }

    pub(super) fn update_budgets(&mut self) {
        let kind_of = kind("poddisruptionbudgets");
        for key in std::mem::take(&mut self.dirty_budgets) {
            let Some(budget) = self.store.get(kind_of, &key.namespace, &key.name) else { continue };
            let status = self.status_of(&key, &budget);
            if budget["status"] == status {
                continue;
            }
            let _ = self.store.modify(kind_of, &key.namespace, &key.name, "status", |budget| {
                for (field, value) in status.as_object().into_iter().flatten() {
                    budget["status"][field] = value.clone();
                }
                Ok(())
            });
        }
    }

    fn status_of(&self, key: &Key, budget: &Arc<Value>) -> Value {
        let all = LabelSelector::default();
        let selector = self.budgets.get(key).unwrap_or(&all);
        let mine = self.pods.iter().filter(|(k, p)| {
            k.namespace == key.namespace && !p.finished && selects(selector, &p.labels)
        });
        let (mut expected, mut healthy) = (0_i64, 0_i64);
        let mut counted = std::collections::BTreeSet::new();
        for (_, pod) in mine {
            if pod.ready && !pod.deleting {
                healthy += 1;
            }
            match &pod.owner {
                Some(owner) => {
                    // Expected pods are the scale of the workload, not what happens to exist.
                    if counted.insert(owner.uid.clone()) {
                        expected += self.scale_of(&key.namespace, owner.plural, &owner.name);
                    }
                }
                None => expected += 1,
            }
        }
        let spec = &budget["spec"];
        let desired = if spec["minAvailable"].is_null() {
            expected - amount(&spec["maxUnavailable"], expected)
        } else {
            amount(&spec["minAvailable"], expected)
        }
        .max(0);
        // As the disruption controller: a budget that selects nothing allows nothing.
        let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
        json!({
            "currentHealthy": healthy, "desiredHealthy": desired, "expectedPods": expected,
            "disruptionsAllowed": allowed, "disruptedPods": {},
            "observedGeneration": budget["metadata"]["generation"],
        })
    }

    fn scale_of(&self, namespace: &str, plural: &str, name: &str) -> i64 {
        let found = self.store.get(kind(plural), namespace, name);
        let Some(found) = found else { return 0 };
        let field = if plural == "jobs" { "parallelism" } else { "replicas" };
        found["spec"][field].as_i64().unwrap_or(1)
    }
}

/// A number, or a share of one rounded up.
fn amount(value: &Value, of: i64) -> i64 {
    match value {
        Value::Number(number) => number.as_i64().unwrap_or(0),
        Value::String(text) => {
            let share = text.strip_suffix('%').and_then(|t| t.parse::<i64>().ok());
            share.map_or_else(|| text.parse().unwrap_or(0), |share| (share * of + 99) / 100)
        }
        _ => 0,
    }
}
