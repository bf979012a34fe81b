use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, PodTemplate,
    ReplicationController, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::storage::v1::{CSINode, StorageClass};
use kube::api::ObjectList;
use serde_json::json;

use super::*;
use crate::api::autoscaling::CapacityBuffer;
use crate::api::v1::{EC2NodeClass, NodeClaim, NodePool};
use crate::api::v1alpha1::NodeOverlay;

/// Every field of an object, by its path.
fn paths(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                let path = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
                found.push(path.clone());
                paths(field, &path, found);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                paths(item, &format!("{at}/{index}"), found);
            }
        }
        _ => {}
    }
}

/// The object with each field but its name gone, empty, or of another type, one at a time.
fn mutilated(object: &Value) -> Vec<Value> {
    let mut all = Vec::new();
    let mut fields = Vec::new();
    paths(object, "", &mut fields);
    fields.retain(|p| p != "/metadata" && p != "/metadata/name" && p != "/kind");
    for path in fields {
        let (parent, key) = path.rsplit_once('/').unwrap();
        let mut without = object.clone();
        if let Some(Value::Object(fields)) = without.pointer_mut(parent) {
            fields.shift_remove(&key.replace("~1", "/").replace("~0", "~"));
        }
        all.push(without);
        for unreadable in
            [json!(null), json!({}), json!([]), json!("unreadable"), json!(-7), json!(0.5)]
        {
            let mut other = object.clone();
            *other.pointer_mut(&path).unwrap() = unreadable;
            all.push(other);
        }
    }
    all
}

/// Reads a list of mutilated objects with a good one among them; gives how many were unreadable.
fn survives<K>(object: Value) -> usize
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug,
{
    let kind = K::kind(&()).into_owned();
    let mut items = mutilated(&object);
    assert!(items.len() > 10, "{kind}: there is something to mutilate");
    items.push(object);
    let count = items.len();
    let list = json!({"kind": format!("{kind}List"), "apiVersion": "v1",
        "metadata": {"resourceVersion": "1"}, "items": items});
    let list: ObjectList<Readable<K>> = serde_json::from_str(&list.to_string()).unwrap();
    assert_eq!(list.items.len(), count);
    let unreadable = |item: &&Readable<K>| matches!(item, Readable::Unreadable(_));
    for item in list.items.iter().filter(unreadable) {
        let Readable::Unreadable(unreadable) = item else { unreachable!() };
        assert_eq!(unreadable.meta.name.as_deref(), Some("x"), "{kind}: {:?}", unreadable.raw);
        assert!(!unreadable.problem.is_empty());
        assert_eq!(item.reference().kind.as_deref(), Some(&*kind));
    }
    assert!(!unreadable(&list.items.last().unwrap()), "{kind}: the good one is read");
    list.items.iter().filter(unreadable).count()
}

fn meta() -> Value {
    json!({"name": "x", "namespace": "n", "uid": "u", "resourceVersion": "7",
        "labels": {"a": "b"}, "annotations": {"a": "b"}, "finalizers": ["f"],
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": "o", "uid": "u"}]})
}

fn of(spec: Value, status: Value) -> Value {
    json!({"metadata": meta(), "spec": spec, "status": status})
}

fn pod_spec() -> Value {
    json!({"nodeName": "n", "priority": 1, "nodeSelector": {"a": "b"},
        "containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 1}],
            "resources": {"requests": {"cpu": "1", "memory": 5}}}],
        "tolerations": [{"key": "k", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [
                {"key": "a", "operator": "In", "values": ["b"]}]}]}}},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "z",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"a": "b"}}}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "p"}}]})
}

fn conditions() -> Value {
    json!([{"type": "Ready", "status": "True", "reason": "r", "message": "m",
        "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}])
}

#[test]
fn no_mutilated_object_of_a_watched_kind_fails_its_list() {
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": pod_spec()});
    let workload = json!({"replicas": 2, "selector": {"matchLabels": {"a": "b"}},
        "template": template});
    let class = json!({"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "c"});
    let requirement = json!({"key": "a", "operator": "In", "values": ["b"], "minValues": 1});
    let amounts = json!({"cpu": "1", "memory": 1024});
    let found = [
        survives::<Pod>(of(pod_spec(), json!({"phase": "Running", "conditions": conditions()}))),
        survives::<Node>(of(
            json!({"providerID": "i", "taints": [{"key": "k", "effect": "NoSchedule"}]}),
            json!({"capacity": amounts, "allocatable": amounts, "conditions": conditions()}),
        )),
        survives::<DaemonSet>(of(workload.clone(), json!({}))),
        survives::<Deployment>(of(workload.clone(), json!({}))),
        survives::<ReplicaSet>(of(workload.clone(), json!({}))),
        survives::<StatefulSet>(of(workload, json!({}))),
        survives::<PodDisruptionBudget>(of(
            json!({"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}}),
            json!({"disruptionsAllowed": 1, "currentHealthy": 1}),
        )),
        survives::<Namespace>(of(json!({}), json!({"phase": "Active"}))),
        survives::<PersistentVolumeClaim>(of(
            json!({"volumeName": "v", "storageClassName": "s"}),
            json!({"phase": "Bound"}),
        )),
        survives::<PersistentVolume>(of(
            json!({"csi": {"driver": "d", "volumeHandle": "v"},
                "claimRef": {"namespace": "n", "name": "p"}}),
            json!({"phase": "Bound"}),
        )),
        survives::<Service>(of(json!({"selector": {"a": "b"}}), json!({}))),
        survives::<ReplicationController>(of(json!({"selector": {"a": "b"}}), json!({}))),
        survives::<PodTemplate>(json!({"metadata": meta(), "template": {"spec": pod_spec()}})),
        survives::<StorageClass>(json!({"metadata": meta(), "provisioner": "p",
            "volumeBindingMode": "Immediate", "allowedTopologies": [
                {"matchLabelExpressions": [{"key": "z", "values": ["a"]}]}]})),
        survives::<CSINode>(json!({"metadata": meta(), "spec": {"drivers": [
            {"name": "d", "nodeID": "i", "allocatable": {"count": 3}}]}})),
        survives::<ResourceSlice>(of(
            json!({"driver": "d", "nodeName": "n", "pool": {"name": "p", "generation": 1,
                "resourceSliceCount": 1}, "devices": [{"name": "a"}]}),
            json!({}),
        )),
        survives::<DeviceClass>(of(
            json!({"selectors": [{"cel": {"expression": "true"}}]}),
            json!({}),
        )),
        survives::<ResourceClaim>(of(
            json!({"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}}),
            json!({"reservedFor": [{"resource": "pods", "name": "p", "uid": "u"}]}),
        )),
        survives::<NodeClaim>(of(
            json!({"nodeClassRef": class, "requirements": [requirement], "expireAfter": "1h",
                "resources": {"requests": amounts}}),
            json!({"providerID": "i", "capacity": amounts, "conditions": conditions()}),
        )),
        survives::<NodePool>(of(
            json!({"limits": amounts, "weight": 1, "template": {"spec": {"nodeClassRef": class,
                "requirements": [requirement], "expireAfter": "1h"}},
                "disruption": {"consolidateAfter": "1h", "budgets": [{"nodes": "10%"}]}}),
            json!({"resources": amounts, "conditions": conditions()}),
        )),
        survives::<EC2NodeClass>(of(
            json!({"role": "r", "amiSelectorTerms": [{"alias": "al2023@latest"}],
                "subnetSelectorTerms": [{"tags": {"a": "b"}}], "kubelet": {"maxPods": 5},
                "metadataOptions": {"httpPutResponseHopLimit": 1},
                "blockDeviceMappings": [{"deviceName": "d", "ebs": {"volumeSize": "1Gi"}}]}),
            json!({"subnets": [{"id": "s", "zone": "z"}], "conditions": conditions()}),
        )),
        survives::<NodeOverlay>(of(
            json!({"requirements": [requirement], "price": "1.5", "weight": 1,
                "capacity": amounts}),
            json!({"conditions": conditions()}),
        )),
        survives::<CapacityBuffer>(of(
            json!({"podTemplateRef": {"name": "t"}, "replicas": 2, "limits": amounts}),
            json!({"replicas": 2, "conditions": conditions()}),
        )),
    ];
    let any: BTreeSet<bool> = found.iter().map(|unreadable| *unreadable > 0).collect();
    assert!(any.contains(&true), "some of what was mutilated cannot be understood");
}

#[test]
fn a_class_without_spec_is_an_empty_one() {
    for object in
        [json!({"metadata": {"name": "bare"}}), json!({"metadata": {"name": "bare"}, "spec": null})]
    {
        let Readable::Object(class) =
            serde_json::from_value::<Readable<EC2NodeClass>>(object).unwrap()
        else {
            panic!("it is readable")
        };
        assert_eq!(class.spec, crate::api::v1::EC2NodeClassSpec::default());
    }
}

#[test]
fn the_problem_names_the_field() {
    let object = json!({"metadata": {"name": "x", "uid": "u"}, "spec": {"weight": "heavy"}});
    let Readable::Unreadable(unreadable) =
        serde_json::from_value::<Readable<NodePool>>(object).unwrap()
    else {
        panic!("a weight is a number")
    };
    assert!(
        unreadable.problem.starts_with("spec.weight: invalid type: string"),
        "{}",
        unreadable.problem
    );
    assert_eq!(unreadable.meta.uid.as_deref(), Some("u"));
}

#[test]
fn what_nobody_reads_is_passed_over() {
    let text = r#"{"metadata": {"name": "x", "managedFields": [{"manager": "kubelet"}]},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "env": [{"name": "A"}],
            "resources": {"requests": {"cpu": "1"}}}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]}}"#;
    let Readable::Object(pod) = serde_json::from_str::<Readable<Pod>>(text).unwrap() else {
        panic!("it is readable")
    };
    assert!(pod.metadata.managed_fields.is_none());
    let spec = pod.spec.unwrap();
    assert!(spec.containers[0].env.is_none());
    assert!(spec.containers[0].resources.as_ref().unwrap().requests.is_some());
    assert_eq!(spec.node_name.as_deref(), Some("n"));
    assert!(pod.status.unwrap().pod_ips.is_none());
}
