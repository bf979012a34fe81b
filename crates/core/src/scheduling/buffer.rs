//! Capacity buffers: how many pods' room a buffer keeps, and the pods that stand for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Container, Pod, PodCondition, PodSpec, PodStatus, PodTemplateSpec,
};
use kube::core::ObjectMeta;

use super::pod::{PodInfo, PodKey};
use super::resources::{ApiQuantity, ResourceList, pod_requests};
use crate::api::autoscaling::{CapacityBuffer, CapacityBufferSpec};
use crate::api::{annotations, pod_defaults};

/// How many pods a buffer asks room for: the larger of `replicas` and the percentage, but no more
/// than the limits allow.
///
/// `scalable` is the number of replicas of the workload that `scalableRef` names, if it names one;
/// `template` gives the requests of one pod.
#[must_use]
pub fn replicas(
    spec: &CapacityBufferSpec,
    scalable: Option<i32>,
    template: &PodTemplateSpec,
) -> i32 {
    let share = spec.percentage.zip(scalable).filter(|(_, n)| *n > 0).map(|(percent, n)| {
        // Rounded up, so that a small workload with a small percentage still gets a buffer of one
        // pod. In 64 bits, because the API puts no upper bound on the percentage.
        let share = (i64::from(n) * i64::from(percent)).div_euclid(100)
            + i64::from((i64::from(n) * i64::from(percent)).rem_euclid(100) > 0);
        i32::try_from(share).unwrap_or(i32::MAX)
    });
    let desired = spec.replicas.into_iter().chain(share).max();
    match (desired, spec.limits.as_ref().and_then(|l| limited(l, template))) {
        (Some(desired), Some(limit)) => desired.min(limit),
        (Some(desired), None) => desired,
        // Limits alone mean: as many pods as fit into them.
        (None, Some(limit)) => limit,
        (None, None) => 0,
    }
}

/// How many pods fit into the limits. `None` when the limits name no resource that a pod requests:
/// such limits bound nothing.
fn limited(limits: &BTreeMap<String, ApiQuantity>, template: &PodTemplateSpec) -> Option<i32> {
    let requests = pod_requests(&effective_spec(template), None);
    let limits = ResourceList::from_quantities_lossy(Some(limits));
    limits
        .iter()
        .filter_map(|(name, limit)| {
            let request = requests.find(name).filter(|r| *r > 0)?;
            Some(i32::try_from(limit / request).unwrap_or(i32::MAX).max(0))
        })
        .min()
}

/// The virtual pods of a buffer. They exist in memory only, and go through scheduling like any
/// other waiting pod, which is what makes the room that they ask for.
#[must_use]
pub fn virtual_pods(
    buffer: &CapacityBuffer,
    template: &PodTemplateSpec,
    count: i32,
) -> Vec<Arc<PodInfo>> {
    let meta = &buffer.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or("default");
    let name = meta.name.as_deref().unwrap_or_default();
    let uid = meta.uid.as_deref().unwrap_or_default();
    let of = Arc::new(PodKey::new(namespace, name));
    // Parsed once and cloned: the pods differ in name and uid only, and sharing the rest also lets
    // the solver see that they are alike.
    let base = PodInfo::from_pod(&pod(namespace, name, template));
    (1..=count.max(0))
        .map(|i| {
            let mut info = base.clone();
            info.key = PodKey {
                namespace: Arc::clone(&of.namespace),
                name: Arc::from(format!("capacity-buffer-{name}-{i}")),
            };
            info.uid = Arc::from(format!("{uid}-{i}"));
            info.created = meta.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second());
            info.buffer = Some(Arc::clone(&of));
            Arc::new(info)
        })
        .collect()
}

fn pod(namespace: &str, buffer: &str, template: &PodTemplateSpec) -> Pod {
    let template_meta = template.metadata.clone().unwrap_or_default();
    let mut marks = template_meta.annotations.unwrap_or_default();
    marks.extend([
        (annotations::BUFFER_FAKE_POD.to_owned(), "true".to_owned()),
        (annotations::BUFFER_NAME.to_owned(), buffer.to_owned()),
        (annotations::BUFFER_NAMESPACE.to_owned(), namespace.to_owned()),
    ]);
    let mut spec = effective_spec(template);
    // A template may name a node, but a pod with a node counts as bound and would never be placed.
    spec.node_name = None;
    // The lowest priority there is, as in Karpenter: a virtual pod is worth less than any real one.
    spec.priority = Some(i32::MIN);
    drop_claims(&mut spec);
    Pod {
        metadata: ObjectMeta {
            namespace: Some(namespace.to_owned()),
            labels: template_meta.labels,
            annotations: Some(marks),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: Some(PodStatus {
            phase: Some("Pending".to_owned()),
            conditions: Some(vec![PodCondition {
                type_: "PodScheduled".to_owned(),
                status: "False".to_owned(),
                // What kube-scheduler would have set: only a pod marked so counts as waiting for a
                // node.
                reason: Some("Unschedulable".to_owned()),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        }),
    }
}

/// The template's spec as that of a real pod, with the API server's defaults.
#[must_use]
pub fn effective_spec(template: &PodTemplateSpec) -> PodSpec {
    let mut spec = template.spec.clone().unwrap_or_default();
    pod_defaults::fill(&mut spec);
    spec
}

/// Takes out volumes that need a PersistentVolumeClaim, and their mounts. Nobody creates claims for
/// a virtual pod, so that it would wait for them for ever.
fn drop_claims(spec: &mut PodSpec) {
    let mut dropped = Vec::new();
    if let Some(volumes) = &mut spec.volumes {
        volumes.retain(|v| {
            let claim = v.persistent_volume_claim.is_some() || v.ephemeral.is_some();
            if claim {
                dropped.push(v.name.clone());
            }
            !claim
        });
    }
    for container in containers(spec) {
        if let Some(mounts) = &mut container.volume_mounts {
            mounts.retain(|m| !dropped.contains(&m.name));
        }
    }
}

fn containers(spec: &mut PodSpec) -> impl Iterator<Item = &mut Container> {
    spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten())
}

/// Where the virtual pods of a buffer went in one scheduling round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// On nodes that exist.
    pub existing: usize,
    /// On nodes to launch.
    pub new: usize,
    /// Nowhere.
    pub failed: usize,
}

/// The `Provisioning` condition that a round's outcome makes: status, reason, message.
///
/// `None` when the round ended before it reached all of the buffer's pods: the condition then keeps
/// what an earlier round found.
#[must_use]
pub fn provisioning(
    ready: bool,
    replicas: i32,
    placed: Placement,
) -> Option<(bool, &'static str, String)> {
    let total = usize::try_from(replicas).unwrap_or(0);
    if !ready {
        let text = "Buffer is not ReadyForProvisioning".to_owned();
        return Some((false, "NotReadyForProvisioning", text));
    }
    if total == 0 {
        return Some((false, "BufferEmpty", "Buffer has zero desired replicas".to_owned()));
    }
    if placed.new + placed.failed > 0 {
        let text = format!(
            "{}/{total} virtual pods required new capacity, {} failed",
            placed.new, placed.failed
        );
        return Some((false, "RequiresNewCapacity", text));
    }
    (placed.existing >= total).then(|| {
        let text = format!("All {total} virtual pods fit on existing capacity");
        (true, "FitsExistingCapacity", text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::resources::Name;
    use serde_json::{Value, json};

    fn template(value: Value) -> PodTemplateSpec {
        serde_json::from_value(value).unwrap()
    }

    fn web() -> PodTemplateSpec {
        template(json!({"metadata": {"labels": {"app": "web"}}, "spec": {
            "nodeName": "x",
            "containers": [{"name": "c", "resources": {"limits": {"cpu": "500m", "memory": "1Gi"},
                "requests": {"memory": "512Mi"}},
                "volumeMounts": [{"name": "data", "mountPath": "/d"}]}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]}}))
    }

    fn spec(value: Value) -> CapacityBufferSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_larger_wish_counts_within_the_limits() {
        let count = |s: Value, n: Option<i32>| replicas(&spec(s), n, &web());
        assert_eq!(count(json!({"replicas": 3}), None), 3);
        assert_eq!(count(json!({"replicas": 3, "percentage": 21}), Some(20)), 5);
        assert_eq!(count(json!({"percentage": 1}), Some(3)), 1);
        assert_eq!(count(json!({"percentage": 0}), Some(3)), 0);
        assert_eq!(count(json!({"percentage": 50}), Some(0)), 0);
        assert_eq!(count(json!({"replicas": 9, "limits": {"cpu": "2"}}), None), 4);
        assert_eq!(count(json!({"limits": {"cpu": "2", "memory": "1Gi"}}), None), 2);
        assert_eq!(count(json!({"replicas": 9, "limits": {"example.com/gpu": "1"}}), None), 9);
        assert_eq!(count(json!({"limits": {"example.com/gpu": "1"}}), None), 0);
    }

    #[test]
    fn virtual_pods_wait_like_real_ones() {
        let mut buffer = CapacityBuffer::new("b", spec(json!({})));
        buffer.metadata.namespace = Some("n".to_owned());
        buffer.metadata.uid = Some("u".to_owned());
        let pods = virtual_pods(&buffer, &web(), 2);
        assert_eq!(pods.len(), 2);
        let pod = &pods[1];
        assert_eq!(pod.key.to_string(), "n/capacity-buffer-b-2");
        assert_eq!(&*pod.uid, "u-2");
        assert!(pod.is_provisionable() && pod.claims.is_empty());
        assert_eq!(pod.requests.get(&Name::Cpu), 500);
        assert_eq!(pod.requests.get(&Name::Memory), 512 << 20);
        assert_eq!(pod.priority, i32::MIN);
        assert_eq!(pod.labels.get("app").map(String::as_str), Some("web"));
        assert!(virtual_pods(&buffer, &web(), -1).is_empty());
    }

    #[test]
    fn the_condition_states_where_the_pods_went() {
        let placed = |existing, new, failed| Placement { existing, new, failed };
        let reason = |ready, n, p| provisioning(ready, n, p).map(|(ok, reason, _)| (ok, reason));
        assert_eq!(reason(false, 3, placed(3, 0, 0)), Some((false, "NotReadyForProvisioning")));
        assert_eq!(reason(true, 0, placed(0, 0, 0)), Some((false, "BufferEmpty")));
        assert_eq!(
            provisioning(true, 3, placed(1, 1, 1)).unwrap().2,
            "1/3 virtual pods required new capacity, 1 failed"
        );
        assert_eq!(reason(true, 3, placed(3, 0, 0)), Some((true, "FitsExistingCapacity")));
        assert_eq!(reason(true, 3, placed(1, 0, 0)), None);
    }
}
