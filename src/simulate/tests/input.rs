//! Unusual input: what is wrong is reported with its place, and what only looks wrong is read.

use serde_json::{Value, json};

use super::{base, load, pod, refused, solved};

/// The base with something else at this place; fields on the way are made.
fn with(place: &str, value: Value) -> Value {
    let mut document = base();
    document["nodes"] = json!([
        {"node": {"metadata": {"name": "n1"}}, "pods": [pod("bound", "1")]}]);
    document["objects"] = json!([{"kind": "Namespace", "metadata": {"name": "n"}}]);
    let mut at = &mut document;
    for step in place.split('/') {
        at = match step.parse::<usize>() {
            Ok(index) => {
                if at.is_null() {
                    *at = json!([]);
                }
                let list = at.as_array_mut().unwrap();
                while list.len() <= index {
                    list.push(Value::Null);
                }
                &mut list[index]
            }
            Err(_) => &mut at[step],
        };
    }
    *at = value;
    document
}

#[test]
fn what_is_wrong_is_reported_with_its_place() {
    let claim = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"requirements": [],
            "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "n"}}})
    };
    let near = |term: Value| json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}});
    let spread = |fields: Value| {
        let mut constraint = json!({"maxSkew": 1, "topologyKey": "z",
            "whenUnsatisfiable": "DoNotSchedule"});
        constraint.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!([constraint])
    };
    let requirement = |operator: &str, values: Value| json!([{"key": "karpenter.sh/capacity-type", "operator": operator, "values": values}]);
    for (place, value, told) in [
        (
            "nodePools/0/spec/limits",
            json!({"cpu": "many"}),
            "nodePools[0].spec.limits.cpu: invalid quantity",
        ),
        (
            "nodePools/0/spec/template/spec/requirements",
            requirement("In", json!(["cheap"])),
            "nodePools[0].spec.template.spec.requirements[0].values: no valid value in",
        ),
        (
            "nodePools/0/spec/template/spec/requirements",
            requirement("Near", json!([])),
            "nodePools[0].spec.template.spec.requirements[0].operator: unknown variant `Near`",
        ),
        (
            "nodePools/0/spec/template/metadata",
            json!({"labels": {"karpenter.sh/x": "y"}}),
            "nodePools[0].spec.template.metadata.labels[karpenter.sh/x]: using label karpenter.sh/x is not allowed",
        ),
        (
            "nodePools/0/spec/template/spec/taints",
            json!([{"key": "a", "effect": "Soon"}]),
            "nodePools[0].spec.template.spec.taints[0].effect: invalid effect",
        ),
        ("nodePools/0/metadata", json!({}), "nodePools[0].metadata.name: expected a name"),
        ("instanceTypes/0/name", json!(""), "instanceTypes[0].name: expected a name"),
        (
            "instanceTypes/0/offerings/0/price",
            json!(-1),
            "instanceTypes[0].offerings[0].price: expected a price of zero or more, found -1",
        ),
        (
            "instanceTypes/0/offerings/0/zone",
            json!(""),
            "instanceTypes[0].offerings[0].zone: expected",
        ),
        (
            "instanceTypes/0/offerings/1/capacityType",
            json!("Spot"),
            "instanceTypes[0].offerings[1].capacityType: unknown value \"Spot\"",
        ),
        (
            "instanceTypes/0/offerings/0/reservationCapacity",
            json!(-1),
            "instanceTypes[0].offerings[0].reservationCapacity: expected",
        ),
        ("pods/0/metadata/name", Value::Null, "pods[0].metadata.name: expected a name"),
        (
            "pods/0/metadata/labels",
            json!({"app": "a b"}),
            "pods[0].metadata.labels.app: invalid value \"a b\"",
        ),
        (
            "pods/0/metadata/labels",
            json!({"/app": "a"}),
            "pods[0].metadata.labels./app: expected a key",
        ),
        (
            "pods/0/spec/tolerations",
            json!([{"operator": "Near"}]),
            "pods[0].spec.tolerations[0].operator: unknown value \"Near\"",
        ),
        (
            "pods/0/spec/tolerations",
            json!([{"effect": "Soon"}]),
            "pods[0].spec.tolerations[0].effect: unknown value \"Soon\"",
        ),
        (
            "pods/0/spec/affinity",
            near(json!({})),
            "pods[0].spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: expected",
        ),
        (
            "pods/0/spec/affinity",
            near(
                json!({"topologyKey": "z", "labelSelector": {"matchExpressions": [{"key": "a", "operator": "Gt"}]}}),
            ),
            "pods[0].spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].labelSelector.matchExpressions[0].operator: unknown value \"Gt\"",
        ),
        (
            "pods/0/spec/topologySpreadConstraints",
            spread(json!({"maxSkew": 0})),
            "pods[0].spec.topologySpreadConstraints[0].maxSkew: expected 1 or more, found 0",
        ),
        (
            "pods/0/spec/topologySpreadConstraints",
            spread(json!({"minDomains": 0})),
            "pods[0].spec.topologySpreadConstraints[0].minDomains: expected",
        ),
        (
            "pods/0/spec/topologySpreadConstraints",
            spread(json!({"topologyKey": ""})),
            "pods[0].spec.topologySpreadConstraints[0].topologyKey: expected",
        ),
        (
            "pods/0/spec/topologySpreadConstraints",
            spread(json!({"nodeTaintsPolicy": "Honour"})),
            "pods[0].spec.topologySpreadConstraints[0].nodeTaintsPolicy: unknown value",
        ),
        (
            "pods/0/spec/containers/0/resources/requests",
            json!({"cpu": "1e99"}),
            "pods[0].spec.containers[0].resources.requests.cpu: ",
        ),
        ("nodes/0", json!({}), "nodes[0]: expected a node, a nodeClaim, or both"),
        ("nodes/0/node/metadata", json!({}), "nodes[0].node.metadata.name: expected a name"),
        (
            "nodes/1/node",
            json!({"metadata": {"name": "n1"}}),
            "nodes[1].node.metadata.name: second Node n1",
        ),
        (
            "nodes/0/node/spec",
            json!({"taints": [{"key": "a", "effect": "Soon"}]}),
            "nodes[0].node.spec.taints[0].effect: unknown value",
        ),
        ("nodes/0/nodeClaim", claim(""), "nodes[0].nodeClaim.metadata.name: expected a name"),
        ("nodes/0/pods/1", pod("bound", "1"), "nodes[0].pods[1].metadata.name: second pod n/bound"),
        ("nodes/0/pods/1", pod("a", "1"), "nodes[0].pods[1].metadata.name: second pod n/a"),
        (
            "objects/0",
            json!({"metadata": {"name": "x"}}),
            "objects[0].kind: expected an object's kind",
        ),
        ("objects/0/metadata", json!({}), "objects[0].metadata.name: expected a name"),
        (
            "objects/1",
            json!({"kind": "Namespace", "metadata": {"name": "n"}}),
            "objects[1].metadata.name: second Namespace \"n\"",
        ),
        (
            "options/featureGates",
            json!({"Nothing": true}),
            "options.featureGates.Nothing: unknown feature gate",
        ),
        ("options/now", json!("noon"), "options.now: "),
        ("options/minValuesPolicy", json!("Some"), "options.minValuesPolicy: unknown value"),
        (
            "options/schedulerConfig",
            json!("foo: 1"),
            "options.schedulerConfig: decoding scheduler config, ",
        ),
        ("pods/0/spec/nodeName", json!("n1"), "pods[0].spec.nodeName: expected a pod that waits"),
        (
            "nodePools/0/spec/weight",
            json!(101),
            "nodePools[0].spec.weight: expected 1 to 100, found 101",
        ),
        (
            "nodePools/0/spec/replicas",
            json!(-1),
            "nodePools[0].spec.replicas: expected 0 or more, found -1",
        ),
        (
            "nodePools/0/spec/template/spec/requirements",
            json!([{"key": "a", "operator": "Exists", "minValues": 51}]),
            "nodePools[0].spec.template.spec.requirements[0].minValues: expected 1 to 50, found 51",
        ),
        ("options/seed", json!(1), "options.seed: unknown field"),
        ("pods", json!({}), "pods: "),
        ("nodes", json!(1), "nodes: "),
    ] {
        let error = refused(&with(place, value));
        assert!(error.starts_with(told), "{place}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn lists_may_be_empty_or_missing() {
    let out = solved(&json!({}));
    assert_eq!(
        out,
        json!({"nodeClaims": [], "existingNodes": [], "unschedulable": [], "totalPrice": 0.0})
    );
    for list in ["pods", "daemonSetPods", "nodes", "objects", "nodePools"] {
        let mut document = base();
        document[list] = json!([]);
        if list == "nodePools" {
            document["instanceTypes"] = json!([]);
        }
        solved(&document);
        if !matches!(list, "objects" | "nodePools") {
            document[list] = Value::Null;
            solved(&document);
        }
    }
}

#[test]
fn amounts_may_be_plain_numbers_and_huge() {
    let mut document =
        with("pods/1/spec/containers/0/resources/requests", json!({"cpu": 1, "memory": 1e9}));
    document["nodePools"][0]["spec"]["limits"] = json!({"cpu": 1000});
    document["instanceTypes"][0]["capacity"] = json!({"cpu": 2, "memory": "1E", "pods": 29});
    let out = solved(&document);
    assert_eq!(out["unschedulable"], json!([]));
    document["pods"][0]["spec"]["containers"][0]["resources"]["requests"] =
        json!({"memory": "9000E"});
    let out = solved(&document);
    assert_eq!(out["unschedulable"][0]["pod"], "n/a");
}

#[test]
fn yaml_documents_are_read_as_people_write_them() {
    let text = "# a comment
name: hand-written
nodePools:
- apiVersion: karpenter.sh/v1
  kind: NodePool
  metadata: {name: default}
  spec:
    limits: {cpu: 1000}
    template:
      spec:
        nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: d}
        requirements: []
instanceTypes:
- name: m5.large
  capacity: {cpu: 2, memory: 8Gi, pods: 29}
  offerings: [{zone: a, capacityType: spot, price: 0.03}]
pods:
- metadata: {name: a, namespace: web, creationTimestamp: null}
  spec:
    containers:
    - name: c
      resources: {requests: {cpu: 500m, memory: 1Gi}}
";
    let scenario = load(text.as_bytes()).unwrap();
    assert_eq!(scenario.name, "hand-written");
    let world = super::World::new(scenario).unwrap();
    assert_eq!(crate::scheduling::solve(&world.snapshot).new_claims.len(), 1);
    let wrong = text.replace("zone: a,", "zone: a, colour: red,");
    let error = load(wrong.as_bytes()).and_then(super::World::new).unwrap_err().to_string();
    assert!(error.starts_with("instanceTypes[0].offerings[0].colour: unknown field"), "{error}");
    let error = load("pods: [".as_bytes()).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    assert!(load("--- \nname: a\n---\nname: b\n".as_bytes()).is_err());
}
