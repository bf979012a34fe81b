//! Deployments, ReplicaSets, StatefulSets, Jobs and DaemonSets make their pods, again and again;
//! what nobody owns any more is collected.

use std::sync::Arc;

use serde_json::{Value, json};

use super::facts::{PodFacts, owner_of};
use super::scheduler::may_run;
use super::{Cluster, Due};
use crate::api::{Deletion, Key, Kind, kind};

/// By this annotation, pods of a ReplicaSet go first or last.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

impl Cluster {
    pub(super) fn reconcile_workloads(&mut self) {
        if std::mem::take(&mut self.look_at_daemons) {
            for set in self.store.all(kind("daemonsets")) {
                self.dirty_workloads.insert(("daemonsets", Key::of(&set)));
            }
        }
        for (plural, key) in std::mem::take(&mut self.dirty_workloads) {
            let Some(object) = self.store.get(kind(plural), &key.namespace, &key.name) else {
                continue;
            };
            if object["metadata"]["deletionTimestamp"].is_string() {
                continue;
            }
            match plural {
                "deployments" => self.deployment(&object),
                "daemonsets" => self.daemon_set(&object),
                "jobs" => self.job(&object),
                _ => self.replicas(plural, &object),
            }
        }
    }

    fn deployment(&mut self, object: &Arc<Value>) {
        let key = Key::of(object);
        let template = &object["spec"]["template"];
        // A changed template gives another name, and so a new ReplicaSet. The old ones are scaled
        // down at once: a rolling update is not modelled.
        let name = format!("{}-{}", key.name, digest(template));
        let replicas = object["spec"]["replicas"].as_i64().unwrap_or(1);
        let kind_of = kind("replicasets");
        let uid = &object["metadata"]["uid"];
        for set in self.store.all(kind_of) {
            let own = owner_of(&set).is_some_and(|o| o.uid == *uid);
            let old = Key::of(&set);
            if own && old.name != name && set["spec"]["replicas"] != 0 {
                self.scale(&old, 0);
            }
        }
        if self.store.get(kind_of, &key.namespace, &name).is_some() {
            self.scale(&Key::new(&key.namespace, &name), replicas);
            return;
        }
        let set = json!({
            "metadata": { "name": name, "labels": template["metadata"]["labels"],
                "ownerReferences": [reference(kind("deployments"), object)] },
            "spec": { "replicas": replicas, "selector": object["spec"]["selector"],
                "template": template },
        });
        let _ = self.store.create(kind_of, &key.namespace, set);
    }

    fn scale(&mut self, key: &Key, replicas: i64) {
        let _ = self.store.modify(kind("replicasets"), &key.namespace, &key.name, "", |set| {
            set["spec"]["replicas"] = json!(replicas);
            Ok(())
        });
    }

    /// The pods of an owner that have neither finished nor are being deleted.
    fn active(&self, uid: &Value) -> Vec<Key> {
        let keys = self.by_owner.get(uid.as_str().unwrap_or_default());
        let alive = |key: &&Key| self.pods.get(*key).is_some_and(|p| !p.finished && !p.deleting);
        keys.into_iter().flatten().filter(alive).cloned().collect()
    }

    fn replicas(&mut self, plural: &'static str, object: &Arc<Value>) {
        let key = Key::of(object);
        let wanted = object["spec"]["replicas"].as_u64().unwrap_or(1);
        let wanted = usize::try_from(wanted).unwrap_or(0);
        let mut active = self.active(&object["metadata"]["uid"]);
        for _ in active.len()..wanted {
            self.make_pod(kind(plural), object, &key, None);
        }
        let extra = active.len().saturating_sub(wanted);
        if extra > 0 {
            self.put_in_order(&mut active);
        }
        for gone in active.into_iter().take(extra) {
            self.drop_pod(&gone);
        }
        let healthy = self.healthy(&object["metadata"]["uid"]);
        self.count(plural, &key, "readyReplicas", healthy);
    }

    /// Pods that wait go first, then those of the least deletion cost, then the youngest.
    fn put_in_order(&self, active: &mut [Key]) {
        active.sort_by_cached_key(|k| {
            let pod = self.pods.get(k);
            let costs = pod.map(|p| &p.object["metadata"]["annotations"][DELETION_COST]);
            let cost: i32 = costs.and_then(|c| c.as_str()?.parse().ok()).unwrap_or(0);
            let bound = pod.is_some_and(|p| p.node.is_some());
            (bound, cost, std::cmp::Reverse(pod.map(|p| p.created)))
        });
    }

    fn healthy(&self, uid: &Value) -> usize {
        let keys = self.by_owner.get(uid.as_str().unwrap_or_default());
        let ready = |key: &&Key| self.pods.get(*key).is_some_and(|p| p.ready);
        keys.into_iter().flatten().filter(ready).count()
    }

    fn count(&mut self, plural: &'static str, key: &Key, field: &str, value: usize) {
        let known = self.store.get(kind(plural), &key.namespace, &key.name);
        if known.is_none_or(|o| o["status"][field].as_u64().unwrap_or(0) == value as u64) {
            return;
        }
        let _ = self.store.modify(kind(plural), &key.namespace, &key.name, "status", |object| {
            if object["status"][field].as_u64().unwrap_or(0) != value as u64 {
                object["status"][field] = json!(value);
            }
            Ok(())
        });
    }

    fn drop_pod(&mut self, key: &Key) {
        if let Some(pod) = self.pods.get(key) {
            self.unwanted.insert(pod.uid.clone());
        }
        let _ = self.store.delete(kind("pods"), &key.namespace, &key.name, &Deletion::default());
    }

    fn job(&mut self, object: &Arc<Value>) {
        let key = Key::of(object);
        let uid = &object["metadata"]["uid"];
        let completions = object["spec"]["completions"].as_u64().unwrap_or(1);
        let parallelism = object["spec"]["parallelism"].as_u64().unwrap_or(1);
        let keys = self.by_owner.get(uid.as_str().unwrap_or_default());
        let succeeded = |k: &&Key| self.pods.get(*k).is_some_and(|p| p.phase == "Succeeded");
        let seen = keys.into_iter().flatten().filter(succeeded).count();
        let known = object["status"]["succeeded"].as_u64().unwrap_or(0);
        // Pods that succeeded may be removed with their node; what was counted stays.
        let done = known.max(seen as u64);
        if done != known {
            self.count("jobs", &key, "succeeded", usize::try_from(done).unwrap_or(0));
        }
        let active = self.active(uid).len() as u64;
        let wanted = parallelism.min(completions.saturating_sub(done));
        for _ in active..wanted {
            self.make_pod(kind("jobs"), object, &key, None);
        }
    }

    fn daemon_set(&mut self, object: &Arc<Value>) {
        let key = Key::of(object);
        let pod = daemon_pod(object, None);
        let facts = PodFacts::of(&Arc::new(pod));
        let uid = &object["metadata"]["uid"];
        let mut there: std::collections::BTreeMap<String, Key> = std::collections::BTreeMap::new();
        for pod in self.active(uid) {
            if let Some(target) = self.pods.get(&pod).and_then(target_of) {
                there.insert(target, pod);
            }
        }
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        for name in names {
            let Some(node) = self.nodes.get(&name) else { continue };
            let runs = may_run(&facts, &name, node, &["NoSchedule", "NoExecute"]);
            if runs && !there.contains_key(&name) {
                self.make_pod(kind("daemonsets"), object, &key, Some(&name));
            }
        }
        for (name, pod) in there {
            if !self.nodes.contains_key(&name) {
                self.drop_pod(&pod);
            }
        }
    }

    fn make_pod(
        &mut self,
        owner: &'static Kind,
        object: &Arc<Value>,
        key: &Key,
        node: Option<&str>,
    ) {
        let mut pod = if owner.plural == "daemonsets" {
            daemon_pod(object, node)
        } else {
            json!({ "metadata": object["spec"]["template"]["metadata"],
                "spec": object["spec"]["template"]["spec"] })
        };
        if !pod["metadata"].is_object() {
            pod["metadata"] = json!({});
        }
        pod["metadata"]["generateName"] = json!(format!("{}-", key.name));
        pod["metadata"]["ownerReferences"] = json!([reference(owner, object)]);
        match self.store.create(kind("pods"), &key.namespace, pod) {
            // The pod counts before the log shows it.
            Ok(made) => self.pod_changed(&made, false),
            // The namespace may not be there yet.
            Err(_) => self.after(std::time::Duration::from_secs(5), Due::Look),
        }
    }

    /// Removes what an object that is gone owned.
    pub(super) fn collect_owned(&mut self, kind_of: &'static Kind, object: &Arc<Value>) {
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        for key in self.by_owner.get(&uid).cloned().unwrap_or_default() {
            self.drop_pod(&key);
        }
        let dependents = match kind_of.plural {
            "deployments" => "replicasets",
            "nodepools" => "nodeclaims",
            "nodeclaims" => "nodes",
            _ => return,
        };
        for dependent in self.store.all(kind(dependents)) {
            let owners = dependent["metadata"]["ownerReferences"].as_array();
            if owners.is_some_and(|o| o.iter().any(|o| o["uid"] == uid.as_str())) {
                let key = Key::of(&dependent);
                let how = Deletion::default();
                let _ = self.store.delete(kind(dependents), &key.namespace, &key.name, &how);
            }
        }
    }
}

/// The node that a daemon's pod is for.
fn target_of(pod: &PodFacts) -> Option<String> {
    let terms = pod.terms.as_ref()?;
    let fields = terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    fields.into_iter().find(|f| f.key == "metadata.name")?.values.as_ref()?.first().cloned()
}

fn daemon_pod(object: &Value, node: Option<&str>) -> Value {
    let template = &object["spec"]["template"];
    let mut pod = json!({ "metadata": template["metadata"], "spec": template["spec"] });
    let spec = &mut pod["spec"];
    let mut tolerations = spec["tolerations"].as_array().cloned().unwrap_or_default();
    for (key, effect) in [
        ("node.kubernetes.io/not-ready", "NoExecute"),
        ("node.kubernetes.io/unreachable", "NoExecute"),
        ("node.kubernetes.io/disk-pressure", "NoSchedule"),
        ("node.kubernetes.io/memory-pressure", "NoSchedule"),
        ("node.kubernetes.io/pid-pressure", "NoSchedule"),
        ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ] {
        tolerations.push(json!({ "key": key, "operator": "Exists", "effect": effect }));
    }
    spec["tolerations"] = Value::Array(tolerations);
    if let Some(node) = node {
        spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = json!({
            "nodeSelectorTerms": [{ "matchFields":
                [{ "key": "metadata.name", "operator": "In", "values": [node] }] }] });
    }
    pod
}

fn reference(owner: &Kind, object: &Value) -> Value {
    json!({ "apiVersion": owner.api_version(), "kind": owner.kind, "controller": true,
        "blockOwnerDeletion": true, "name": object["metadata"]["name"],
        "uid": object["metadata"]["uid"] })
}

/// A short name for a template.
fn digest(template: &Value) -> String {
    let mut hash: u32 = 0x811c_9dc5;
    for byte in template.to_string().bytes() {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    format!("{hash:08x}")
}
