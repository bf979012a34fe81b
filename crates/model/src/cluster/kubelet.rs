//! Kubelets: nodes that join, pods that run on them and end, and nodes whose machine is gone.

use std::time::Duration;

use serde_json::json;

use super::facts::PodFacts;
use super::{Cluster, Due, ENDS_IN, RUN_FOR};
use crate::api::{Deletion, Key, kind, set_condition, write_time};
use crate::cloud::{Instance, Life, node_labels};

/// The boot id of an instance, another one for each boot.
fn boot_id(instance: &Instance) -> String {
    format!("{}/{}", instance.provider_id, instance.boots)
}

/// How long pods stay on a node that cannot be reached, by their default tolerations.
const STAY: Duration = Duration::from_secs(300);

impl Cluster {
    /// Lets machines join, and notices those that are gone.
    pub(super) fn machines(&mut self) {
        let now = self.store.now();
        let instances = self.cloud.instances();
        for instance in &instances {
            let waits = !self.joined.contains(&instance.provider_id);
            if waits && instance.joins.is_some_and(|at| at <= now) {
                self.joined.insert(instance.provider_id.clone());
                if !matches!(instance.life, Life::Ending(_)) {
                    self.boots.insert(instance.provider_id.clone(), instance.boots);
                    self.join(instance);
                }
            }
            let booted = self.boots.get(&instance.provider_id).is_some_and(|b| *b < instance.boots);
            if booted && self.joined.contains(&instance.provider_id) {
                self.boots.insert(instance.provider_id.clone(), instance.boots);
                self.booted(instance);
            }
            if instance.sick && self.is_ready(&instance.node_name) {
                self.set_ready(&instance.node_name, "False", "KubeletNotReady");
            }
        }
        let running: std::collections::BTreeSet<&str> =
            instances.iter().map(|i| i.provider_id.as_str()).collect();
        let lost: Vec<String> = self
            .nodes
            .iter()
            .filter(|(_, n)| !n.provider_id.is_empty() && n.ready)
            .filter(|(_, n)| !running.contains(n.provider_id.as_str()))
            .map(|(name, _)| name.clone())
            .collect();
        for name in lost {
            // Once per node: this is looked at with every change.
            if self.losing.insert(name.clone()) {
                self.after(self.pace.lost, Due::Lost(name));
            }
        }
    }

    fn is_ready(&self, name: &str) -> bool {
        self.nodes.get(name).is_some_and(|n| n.ready)
    }

    fn join(&mut self, instance: &Instance) {
        let now = write_time(self.store.now());
        let node = json!({
            "metadata": { "name": instance.node_name, "labels": node_labels(instance) },
            "spec": { "providerID": instance.provider_id, "taints": instance.taints },
            "status": {
                "capacity": instance.capacity.to_quantities(),
                "allocatable": instance.allocatable.to_quantities(),
                "conditions": [{ "type": "Ready", "status": "False", "reason": "KubeletNotReady",
                    "lastTransitionTime": now, "lastHeartbeatTime": now }],
                "nodeInfo": { "kubeletVersion": "v1.34.0", "architecture": "amd64",
                    "operatingSystem": "linux", "bootID": boot_id(instance), "containerRuntimeVersion": "",
                    "kernelVersion": "", "kubeProxyVersion": "", "machineID": "", "osImage": "",
                    "systemUUID": "" },
            },
        });
        if self.store.create(kind("nodes"), "", node).is_ok() && !instance.sick {
            self.after(self.pace.ready, Due::Ready(instance.node_name.clone()));
        }
    }

    /// A machine came back from a reboot: its faults are gone, and it is ready a little later.
    fn booted(&mut self, instance: &Instance) {
        let name = &instance.node_name;
        let (now, id) = (write_time(self.store.now()), boot_id(instance));
        let _ = self.store.modify(kind("nodes"), "", name, "status", |node| {
            node["status"]["nodeInfo"]["bootID"] = json!(id);
            let faults = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            for fault in faults.iter().filter(|c| c["status"] == "False") {
                if let Some(kind) = fault["type"].as_str().filter(|k| k.ends_with("Ready")) {
                    set_condition(node, kind, "True", "Healthy", &now);
                }
            }
            Ok(())
        });
        self.set_ready(name, "False", "KubeletNotReady");
        self.after(self.pace.ready, Due::Ready(name.clone()));
    }

    fn set_ready(&mut self, name: &str, status: &str, reason: &str) {
        let now = write_time(self.store.now());
        let _ = self.store.modify(kind("nodes"), "", name, "status", |node| {
            set_condition(node, "Ready", status, reason, &now);
            Ok(())
        });
        // The node's lifecycle controller turns the condition into taints.
        let (not_ready, unreachable) = (status == "False", status == "Unknown");
        let _ = self.store.modify(kind("nodes"), "", name, "", |node| {
            let list = &mut node["spec"]["taints"];
            if !list.is_array() {
                *list = json!([]);
            }
            if let Some(list) = list.as_array_mut() {
                for (key, wanted) in [
                    ("node.kubernetes.io/not-ready", not_ready),
                    ("node.kubernetes.io/unreachable", unreachable),
                ] {
                    list.retain(|t| t["key"] != key);
                    if wanted {
                        list.push(json!({ "key": key, "effect": "NoSchedule" }));
                        list.push(json!({ "key": key, "effect": "NoExecute" }));
                    }
                }
            }
            Ok(())
        });
    }

    pub(super) fn node_ready(&mut self, name: &str) {
        let alive = self.machine_of(name).is_some_and(|i| !i.sick);
        if alive {
            self.set_ready(name, "True", "KubeletReady");
        }
    }

    fn machine_of(&self, name: &str) -> Option<std::sync::Arc<Instance>> {
        self.cloud.of_node(name)
    }

    pub(super) fn node_lost(&mut self, name: &str) {
        if self.machine_of(name).is_some() || !self.nodes.contains_key(name) {
            return;
        }
        self.set_ready(name, "Unknown", "NodeStatusUnknown");
        self.after(STAY, Due::EvictFrom(name.to_owned()));
        // The cloud's own controller removes nodes whose instance is gone.
        let _ = self.store.delete(kind("nodes"), "", name, &Deletion::default());
    }

    /// Pods that tolerate the taints of a lost node for a while only are deleted.
    pub(super) fn evict_from(&mut self, name: &str) {
        let Some(node) = self.nodes.get(name) else { return };
        if node.ready {
            return;
        }
        let keys: Vec<Key> = node.pods.iter().cloned().collect();
        for key in keys {
            let bounded = self.pods.get(&key).is_some_and(|p| {
                !p.deleting
                    && !p.tolerations.iter().any(|t| {
                        let key = t.key.as_deref().unwrap_or_default();
                        matches!(key, "" | "node.kubernetes.io/unreachable")
                            && t.effect.as_deref().is_none_or(|e| e.is_empty() || e == "NoExecute")
                            && t.toleration_seconds.is_none()
                    })
            });
            if bounded {
                let how = Deletion::default();
                let _ = self.store.delete(kind("pods"), &key.namespace, &key.name, &how);
            }
        }
    }

    /// Pods of a node that is no more are removed.
    pub(super) fn collect_pods(&mut self, name: &str) {
        if self.nodes.contains_key(name) {
            return;
        }
        let on: Vec<Key> = self
            .pods
            .iter()
            .filter(|(_, p)| p.node.as_deref() == Some(name))
            .map(|(k, _)| k.clone())
            .collect();
        for key in on {
            let _ = self.store.delete(kind("pods"), &key.namespace, &key.name, &Deletion::now());
        }
    }

    pub(super) fn start_pod(&mut self, key: &Key, uid: &str) {
        let Some(pod) = self.pods.get(key).filter(|p| p.uid == uid) else { return };
        let Some(node) = pod.node.clone() else { return };
        if pod.phase != "Pending" || pod.deleting {
            return;
        }
        let Some(machine) = self.machine_of(&node) else { return };
        if machine.sick {
            return;
        }
        let (claims, run_for) = (pod.volume_claims.clone(), pod.seconds(RUN_FOR));
        self.attach(&key.namespace, &claims, &node);
        let now = write_time(self.store.now());
        let _ = self.store.modify(kind("pods"), &key.namespace, &key.name, "status", |pod| {
            pod["status"]["phase"] = json!("Running");
            pod["status"]["startTime"] = json!(now);
            for condition in ["Initialized", "Ready", "ContainersReady"] {
                set_condition(pod, condition, "True", "", &now);
            }
            Ok(())
        });
        if let Some(seconds) = run_for {
            let due = Due::FinishPod(key.clone(), uid.to_owned());
            self.after(Duration::from_secs(seconds), due);
        }
    }

    pub(super) fn finish_pod(&mut self, key: &Key, uid: &str) {
        let Some(pod) = self.pods.get(key).filter(|p| p.uid == uid) else { return };
        if pod.phase != "Running" || pod.deleting {
            return;
        }
        let now = write_time(self.store.now());
        let _ = self.store.modify(kind("pods"), &key.namespace, &key.name, "status", |pod| {
            pod["status"]["phase"] = json!("Succeeded");
            set_condition(pod, "Ready", "False", "PodCompleted", &now);
            Ok(())
        });
    }

    /// A pod that is deleted ends when its processes do, at the latest after its grace period.
    pub(super) fn end_later(&mut self, key: &Key, pod: &PodFacts) {
        let meta = &pod.object["metadata"];
        let grace = meta["deletionGracePeriodSeconds"].as_u64().unwrap_or(0);
        let deadline: Option<jiff::Timestamp> =
            meta["deletionTimestamp"].as_str().and_then(|t| t.parse().ok());
        let Some(deadline) = deadline else { return };
        let begun = deadline - Duration::from_secs(grace);
        let own = pod.seconds(ENDS_IN).map_or(self.pace.end, Duration::from_secs);
        // Measured from the deletion, so that a grace period that became shorter ends the pod
        // earlier.
        let at = (begun + own).min(deadline).max(self.store.now());
        self.at(at, Due::EndPod(key.clone(), pod.uid.clone()));
    }

    pub(super) fn end_pod(&mut self, key: &Key, uid: &str) {
        let Some(pod) = self.pods.get(key).filter(|p| p.uid == uid && p.deleting) else { return };
        let Some(node) = pod.node.clone() else { return };
        // Without its machine nobody ends it; what happens to its node decides.
        if self.machine_of(&node).is_none() {
            if !self.nodes.contains_key(&node) {
                self.after(self.pace.lost, Due::CollectPods(node));
            }
            return;
        }
        let _ = self.store.delete(kind("pods"), &key.namespace, &key.name, &Deletion::now());
    }

    /// What follows when a pod left its node.
    pub(super) fn pod_left(&mut self, pod: &PodFacts) {
        let Some(node) = &pod.node else { return };
        let namespace = pod.object["metadata"]["namespace"].as_str().unwrap_or_default();
        for claim in &pod.volume_claims {
            if let Some(volume) = self.volume_of(namespace, claim) {
                let due = Due::Detach(super::volumes::attachment(&volume, node));
                self.after(self.pace.detach, due);
            }
        }
    }
}
