//! A cluster, read only, turned into a scenario: what bears on decisions and nothing else.
//!
//! Objects are cut down by naming what is kept: no Secret is read, and no environment value,
//! command, image or managed field goes into a scenario.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Container, Namespace, Node, NodeSpec, NodeStatus, PersistentVolume, PersistentVolumeClaim, Pod,
    PodSpec, PodStatus, Volume,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::{CSINode, StorageClass};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::api::v1::{EC2NodeClass, NodeClaim, NodePool};
use crate::api::{annotations, pod_defaults};
use crate::scheduling::pod::PodInfo;

/// A cluster that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("listing {what}: {source}")]
pub struct RecordError {
    what: String,
    source: Box<kube::Error>,
}

/// Objects per page of a list, as many as kubectl asks for.
const PAGE: u32 = 500;

pub(crate) async fn list<K>(client: &Client) -> Result<Vec<K>, RecordError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    pages(&Api::<K>::all(client.clone()), &K::plural(&())).await
}

async fn pages<K>(api: &Api<K>, what: &str) -> Result<Vec<K>, RecordError>
where
    K: Clone + Debug + DeserializeOwned,
{
    let mut params = ListParams::default().limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = api
            .list(&params)
            .await
            .map_err(|source| RecordError { what: what.to_owned(), source: Box::new(source) })?;
        all.extend(page.items);
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params.continue_token = Some(token),
            _ => return Ok(all),
        }
    }
}

/// Kinds that a cluster need not know; none of them when it does not.
///
/// # Errors
/// When the cluster cannot be asked whether it knows them: that is no answer.
async fn list_if_known(
    client: &Client,
    group: &str,
    version: &str,
    kind: &str,
) -> Result<Vec<Value>, RecordError> {
    let gvk = GroupVersionKind::gvk(group, version, kind);
    let found = kube::discovery::oneshot::pinned_kind(client, &gvk).await;
    let resource = match found {
        Ok((resource, _)) => resource,
        Err(kube::Error::Discovery(_)) => return Ok(Vec::new()),
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Vec::new()),
        Err(error) => return Err(RecordError { what: kind.to_owned(), source: Box::new(error) }),
    };
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let items = pages(&api, kind).await?;
    Ok(items.into_iter().map(|o| custom(object(&o))).collect())
}

/// Reads the cluster as a scenario document; its instance types come from elsewhere.
///
/// # Errors
/// When one of the lists is refused.
pub async fn record(
    client: &Client,
    name: &str,
    now: Timestamp,
) -> Result<Map<String, Value>, RecordError> {
    let node_pools = list::<NodePool>(client).await?;
    let node_classes = list::<EC2NodeClass>(client).await?;
    let claims = list::<NodeClaim>(client).await?;
    let nodes = list::<Node>(client).await?;
    let daemon_sets = list::<DaemonSet>(client).await?;
    let pods = list::<Pod>(client).await?;
    let mut objects = objects(client).await?;
    objects.extend(node_classes.iter().map(object).map(custom));

    let daemons: Value = {
        let newest = newest_daemons(&pods);
        let of = |set: &DaemonSet| {
            let meta = &set.metadata;
            let key = |text: &Option<String>| text.clone().unwrap_or_default();
            newest.get(&(key(&meta.namespace), key(&meta.name))).copied()
        };
        daemon_sets.iter().map(|set| daemon_pod(set, of(set))).collect()
    };
    let (waiting, bound) = by_node(pods);
    let mut document = Map::new();
    document.insert("name".into(), name.into());
    document.insert("description".into(), format!("recorded from a cluster at {now}").into());
    // The time of the recording: conditions and ages in it are only comparable to that.
    document.insert("options".into(), json!({"now": now.to_string()}));
    document.insert("nodePools".into(), node_pools.iter().map(object).map(custom).collect());
    document.insert("daemonSetPods".into(), daemons);
    document.insert("nodes".into(), node_entries(nodes, claims, bound));
    document.insert("pods".into(), waiting.into());
    document.insert("objects".into(), objects.into());
    Ok(document)
}

async fn objects(client: &Client) -> Result<Vec<Value>, RecordError> {
    let mut all = Vec::new();
    let namespaces = list::<Namespace>(client).await?;
    all.extend(
        namespaces
            .into_iter()
            .map(|n| object(&Namespace { metadata: meta(n.metadata), ..Namespace::default() })),
    );
    let budgets = list::<PodDisruptionBudget>(client).await?;
    all.extend(budgets.into_iter().map(|mut b| {
        b.metadata = meta(b.metadata);
        object(&b)
    }));
    let claims = list::<PersistentVolumeClaim>(client).await?;
    all.extend(claims.into_iter().map(|mut c| {
        c.metadata = meta(c.metadata);
        object(&c)
    }));
    let volumes = list::<PersistentVolume>(client).await?;
    all.extend(volumes.into_iter().map(|v| object(&volume(v))));
    let classes = list::<StorageClass>(client).await?;
    all.extend(classes.into_iter().map(|mut c| {
        c.metadata = meta(c.metadata);
        // Parameters of a driver may hold anything, and no decision reads them.
        c.parameters = None;
        object(&c)
    }));
    let csi = list::<CSINode>(client).await?;
    all.extend(csi.into_iter().map(|mut c| {
        c.metadata = meta(c.metadata);
        object(&c)
    }));
    all.extend(list_if_known(client, "karpenter.sh", "v1alpha1", "NodeOverlay").await?);
    let buffers =
        list_if_known(client, "autoscaling.x-k8s.io", "v1beta1", "CapacityBuffer").await?;
    all.extend(buffers);
    for kind in ["ResourceSlice", "DeviceClass", "ResourceClaim", "ResourceClaimTemplate"] {
        let found = list_if_known(client, "resource.k8s.io", "v1", kind).await?;
        all.extend(found.into_iter().map(without_parameters));
    }
    Ok(all)
}

fn object<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// A custom object without what only the API server needs.
fn custom(mut value: Value) -> Value {
    let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) else { return value };
    for field in ["managedFields", "resourceVersion", "selfLink"] {
        meta.remove(field);
    }
    if let Some(annotations) = meta.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.retain(|key, _| kept_annotation(key));
    }
    value
}

/// Devices and claims without what is configured for drivers, which may hold anything.
fn without_parameters(mut value: Value) -> Value {
    let places = ["/spec", "/spec/devices", "/spec/spec/devices", "/status/allocation/devices"];
    for place in places {
        if let Some(part) = value.pointer_mut(place).and_then(Value::as_object_mut) {
            part.remove("config");
        }
    }
    if let Some(status) = value.get_mut("status").and_then(Value::as_object_mut) {
        status.remove("devices");
    }
    value
}

/// Annotations that decisions read; others may hold anything, the applied manifest for one.
pub(crate) fn kept_annotation(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let karpenter = domain == "karpenter.sh"
        || domain.ends_with(".karpenter.sh")
        || domain.starts_with("karpenter.k8s.aws");
    karpenter
        || matches!(
            key,
            annotations::POD_DELETION_COST
                | annotations::DISRUPTION_COST
                | "pv.kubernetes.io/bind-completed"
                | "storageclass.kubernetes.io/is-default-class"
        )
}

fn meta(full: ObjectMeta) -> ObjectMeta {
    let kept: Option<BTreeMap<String, String>> =
        full.annotations.map(|all| all.into_iter().filter(|(k, _)| kept_annotation(k)).collect());
    ObjectMeta {
        name: full.name,
        namespace: full.namespace,
        uid: full.uid,
        labels: full.labels,
        annotations: kept.filter(|a| !a.is_empty()),
        creation_timestamp: full.creation_timestamp,
        deletion_timestamp: full.deletion_timestamp,
        generation: full.generation,
        owner_references: full.owner_references,
        ..ObjectMeta::default()
    }
}

/// Pods that wait for a node, and those that have one, by its name.
fn by_node(pods: Vec<Pod>) -> (Vec<Value>, BTreeMap<String, Vec<Value>>) {
    let (mut waiting, mut bound): (Vec<Value>, BTreeMap<String, Vec<Value>>) = Default::default();
    for pod in pods {
        let info = PodInfo::from_pod(&pod);
        match info.node_name.clone() {
            Some(node) if !info.terminal => {
                bound.entry(node.to_string()).or_default().push(object(&lean_pod(pod)));
            }
            // Pods that wait for something else than a node would only be reported as ignored.
            None if info.is_provisionable() => waiting.push(object(&lean_pod(pod))),
            _ => {}
        }
    }
    (waiting, bound)
}

fn lean_container(container: Container) -> Container {
    Container {
        name: container.name,
        resources: container.resources,
        ports: container.ports,
        restart_policy: container.restart_policy,
        ..Container::default()
    }
}

fn lean_volume(volume: Volume) -> Option<Volume> {
    let wanted = volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some();
    wanted.then(|| Volume {
        name: volume.name,
        persistent_volume_claim: volume.persistent_volume_claim,
        ephemeral: volume.ephemeral,
        ..Volume::default()
    })
}

/// What decides where a pod may run and what it takes there.
pub(crate) fn lean_spec(spec: PodSpec) -> PodSpec {
    let lean = |list: Vec<Container>| list.into_iter().map(lean_container).collect();
    PodSpec {
        containers: lean(spec.containers),
        init_containers: spec.init_containers.map(lean),
        affinity: spec.affinity,
        node_name: spec.node_name,
        node_selector: spec.node_selector,
        host_network: spec.host_network,
        overhead: spec.overhead,
        priority: spec.priority,
        resource_claims: spec.resource_claims,
        resources: spec.resources,
        scheduler_name: spec.scheduler_name,
        scheduling_gates: spec.scheduling_gates,
        termination_grace_period_seconds: spec.termination_grace_period_seconds,
        tolerations: spec.tolerations,
        topology_spread_constraints: spec.topology_spread_constraints,
        volumes: spec.volumes.map(|all| all.into_iter().filter_map(lean_volume).collect()),
        ..PodSpec::default()
    }
}

/// A pod with what decisions read.
fn lean_pod(pod: Pod) -> Pod {
    let status = pod.status.map(|status| {
        let container_statuses = |list: Option<Vec<_>>| {
            list.map(|all: Vec<k8s_openapi::api::core::v1::ContainerStatus>| {
                all.into_iter()
                    .map(|s| k8s_openapi::api::core::v1::ContainerStatus {
                        name: s.name,
                        allocated_resources: s.allocated_resources,
                        resources: s.resources,
                        ..Default::default()
                    })
                    .collect()
            })
        };
        let conditions = status.conditions.map(|all| {
            all.into_iter()
                // Nothing is decided by messages, and they may be long.
                .map(|c| k8s_openapi::api::core::v1::PodCondition { message: None, ..c })
                .collect()
        });
        PodStatus {
            phase: status.phase,
            conditions,
            nominated_node_name: status.nominated_node_name,
            resource_claim_statuses: status.resource_claim_statuses,
            start_time: status.start_time,
            container_statuses: container_statuses(status.container_statuses),
            init_container_statuses: container_statuses(status.init_container_statuses),
            ..PodStatus::default()
        }
    });
    Pod { metadata: meta(pod.metadata), spec: pod.spec.map(lean_spec), status }
}

/// The newest pod of each DaemonSet, by namespace and name of the set: what admission gave it counts.
fn newest_daemons(pods: &[Pod]) -> BTreeMap<(String, String), &Pod> {
    let mut newest: BTreeMap<(String, String), &Pod> = BTreeMap::new();
    for pod in pods {
        let owners = pod.metadata.owner_references.iter().flatten();
        let Some(owner) = owners.into_iter().find(|o| o.kind == "DaemonSet") else { continue };
        let key = (pod.metadata.namespace.clone().unwrap_or_default(), owner.name.clone());
        let made = |p: &Pod| p.metadata.creation_timestamp.as_ref().map(|t| t.0);
        let known = newest.entry(key).or_insert(pod);
        if made(known) < made(pod) {
            *known = pod;
        }
    }
    newest
}

/// The pod that stands for a DaemonSet, as the controller chooses it: its newest pod, with the node
/// affinity that the template asks for instead of the one node that the pod was made for; else what the
/// template would make.
fn daemon_pod(set: &DaemonSet, newest: Option<&Pod>) -> Value {
    let name = set.metadata.name.clone().unwrap_or_default();
    let template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let own = template.spec.unwrap_or_default();
    let affinity = own.affinity.clone();
    let mut spec = match newest.and_then(|p| p.spec.clone()) {
        Some(spec) => PodSpec { affinity, node_name: None, ..lean_spec(spec) },
        None => lean_spec(own),
    };
    pod_defaults::fill(&mut spec);
    let labels = newest.and_then(|p| p.metadata.labels.clone());
    let owner = OwnerReference {
        api_version: "apps/v1".to_owned(),
        kind: "DaemonSet".to_owned(),
        name: name.clone(),
        uid: set.metadata.uid.clone().unwrap_or_default(),
        ..OwnerReference::default()
    };
    object(&Pod {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: set.metadata.namespace.clone(),
            labels: labels.or(template.metadata.and_then(|m| m.labels)),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    })
}

/// A volume with its place and its driver.
fn volume(full: PersistentVolume) -> PersistentVolume {
    let mut lean = PersistentVolume { metadata: meta(full.metadata), ..full };
    if let Some(csi) = lean.spec.as_mut().and_then(|s| s.csi.as_mut()) {
        csi.volume_attributes = None;
        csi.controller_expand_secret_ref = None;
        csi.controller_publish_secret_ref = None;
        csi.node_expand_secret_ref = None;
        csi.node_publish_secret_ref = None;
        csi.node_stage_secret_ref = None;
    }
    lean
}

fn lean_node(node: Node) -> Node {
    Node {
        metadata: meta(node.metadata),
        spec: node.spec.map(|spec| NodeSpec {
            provider_id: spec.provider_id,
            taints: spec.taints,
            unschedulable: spec.unschedulable,
            ..NodeSpec::default()
        }),
        status: node.status.map(|status| NodeStatus {
            allocatable: status.allocatable,
            capacity: status.capacity,
            conditions: status.conditions,
            ..NodeStatus::default()
        }),
    }
}

/// Nodes and NodeClaims of one provider id together, each with its pods.
fn node_entries(
    nodes: Vec<Node>,
    claims: Vec<NodeClaim>,
    mut bound: BTreeMap<String, Vec<Value>>,
) -> Value {
    let id_of = |node: &Node| node.spec.as_ref().and_then(|s| s.provider_id.clone());
    let mut entries = Vec::new();
    let mut taken = BTreeSet::new();
    for node in nodes {
        let claim = claims.iter().position(|c| {
            let id = c.status.as_ref().and_then(|s| s.provider_id.clone());
            id.is_some() && id == id_of(&node)
        });
        let name = node.metadata.name.clone().unwrap_or_default();
        let mut entry = Map::new();
        entry.insert("node".into(), object(&lean_node(node)));
        if let Some(at) = claim {
            taken.insert(at);
            entry.insert("nodeClaim".into(), custom(object(&claims[at])));
        }
        entry.insert("pods".into(), bound.remove(&name).unwrap_or_default().into());
        entries.push(Value::Object(entry));
    }
    let alone = claims.iter().enumerate().filter(|(at, _)| !taken.contains(at));
    entries.extend(alone.map(|(_, claim)| json!({"nodeClaim": custom(object(claim))})));
    entries.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_environment_stay_behind() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "n", "annotations":
                {"kubectl.kubernetes.io/last-applied-configuration": "hunter2",
                 "karpenter.sh/do-not-disrupt": "true"},
                "managedFields": [{"manager": "hunter2"}]},
            "spec": {"containers": [{"name": "c", "image": "hunter2", "command": ["hunter2"],
                "env": [{"name": "PASSWORD", "value": "hunter2"}],
                "resources": {"requests": {"cpu": "1"}}}],
                "volumes": [{"name": "s", "secret": {"secretName": "hunter2"}},
                    {"name": "d", "persistentVolumeClaim": {"claimName": "data"}}],
                "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "t"}]},
            "status": {"resourceClaimStatuses": [{"name": "gpu", "resourceClaimName": "a-gpu-x"}],
                "phase": "Pending", "conditions": [{"type": "PodScheduled",
                "status": "False", "reason": "Unschedulable", "message": "hunter2"}]}
        }))
        .unwrap();
        let before = PodInfo::from_pod(&pod);
        let lean = lean_pod(pod);
        let text = object(&lean).to_string();
        assert!(!text.contains("hunter2"), "{text}");
        let after = PodInfo::from_pod(&lean);
        assert!(after.is_provisionable());
        assert_eq!(after.requests, before.requests);
        assert_eq!(after.claims, before.claims);
        assert_eq!(after.device_claims(), before.device_claims());
        assert_eq!(after.device_claims().len(), 1);
        assert_eq!(after.do_not_disrupt, before.do_not_disrupt);
    }

    #[test]
    fn what_drivers_are_reported_stays_behind() {
        let config = json!([{"opaque": {"driver": "d", "parameters": {"token": "hunter2"}}}]);
        let requests = json!([{"name": "r", "exactly": {"deviceClassName": "c"}}]);
        let devices = json!({"requests": requests, "config": config});
        let lean =
            without_parameters(json!({"kind": "ResourceClaim", "spec": {"devices": devices},
            "status": {"devices": [{"data": "hunter2"}],
                "allocation": {"devices": {"results": [], "config": config}}}}));
        assert!(!lean.to_string().contains("hunter2"), "{lean}");
        assert_eq!(lean["spec"]["devices"]["requests"], requests);
        let template = without_parameters(json!({"spec": {"spec": {"devices": devices}}}));
        assert!(!template.to_string().contains("hunter2"), "{template}");
        let class = without_parameters(json!({"spec": {"selectors": [], "config": config}}));
        assert!(!class.to_string().contains("hunter2"), "{class}");
    }

    #[test]
    fn a_daemon_set_is_its_newest_pod_with_the_templates_affinity() {
        let set: DaemonSet =
            serde_json::from_value(json!({"metadata": {"name": "d", "namespace": "n"},
            "spec": {"selector": {}, "template": {"spec": {"containers": [{"name": "c",
                "resources": {"limits": {"cpu": "1"}}}]}}}}))
            .unwrap();
        let pod = |created: &str, cpu: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": created, "namespace": "n",
                "creationTimestamp": created, "ownerReferences": [{"apiVersion": "apps/v1",
                    "kind": "DaemonSet", "name": "d", "uid": "u"}]},
                "spec": {"nodeName": "x", "affinity": {"nodeAffinity": {}},
                    "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}}))
            .unwrap()
        };
        let pods = [pod("2024-01-02T00:00:00Z", "3"), pod("2024-01-01T00:00:00Z", "2")];
        let newest = newest_daemons(&pods);
        let found = daemon_pod(&set, newest.values().next().copied());
        let cpu = "/spec/containers/0/resources/requests/cpu";
        assert_eq!(found.pointer(cpu).unwrap(), "3");
        assert!(found["spec"].get("affinity").is_none() && found["spec"].get("nodeName").is_none());
        assert_eq!(daemon_pod(&set, None).pointer(cpu).unwrap(), "1");
    }
}
