use serde_json::{Value, json};

use super::report::Report;
use super::*;
use crate::scheduling;

mod devices;
mod facts;
mod input;
mod placement;

fn base() -> Value {
    json!({
        "name": "one",
        "nodePools": [{"apiVersion": "karpenter.sh/v1", "kind": "NodePool",
            "metadata": {"name": "default"}, "spec": {"template": {"spec": {
                "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "d"},
                "requirements": []}}}}],
        "instanceTypes": [{"name": "m5.large",
            "requirements": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}],
            "capacity": {"cpu": "2", "memory": "8Gi", "pods": "29"},
            "overhead": {"cpu": "70m"},
            "offerings": [{"zone": "a", "capacityType": "spot", "price": 0.03},
                {"zone": "a", "capacityType": "on-demand", "price": 0.1, "available": true}]}],
        "pods": [pod("a", "1"), pod("b", "7")]
    })
}

fn pod(name: &str, cpu: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "n"},
        "spec": {"containers": [{"name": "c", "image": "i",
            "resources": {"requests": {"cpu": cpu}}}]}})
}

fn solved(document: &Value) -> Value {
    let scenario = load(document.to_string().as_bytes()).unwrap();
    let world = World::new(scenario).unwrap();
    let report = Report::new(&scheduling::solve(&world.snapshot)).with_left_out(&world);
    serde_json::to_value(report).unwrap()
}

fn refused(document: &Value) -> String {
    match load(document.to_string().as_bytes()).and_then(World::new) {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_scenario_gives_nodes_prices_and_reasons() {
    let out = solved(&base());
    assert_eq!(out["nodeClaims"][0]["pods"], json!(["n/a"]));
    assert_eq!(
        out["nodeClaims"][0]["cheapest"],
        json!({"instanceType": "m5.large", "zone": "a", "capacityType": "spot", "price": 0.03})
    );
    assert_eq!(out["totalPrice"], json!(0.03));
    assert_eq!(out["unschedulable"][0]["pod"], "n/b");
    assert_eq!(out["unschedulable"][0]["nodePools"][0]["name"], "default");
}

#[test]
fn unknown_fields_are_named_by_their_path() {
    let mut document = base();
    document["pods"][1]["spec"]["containers"][0]["imagee"] = "x".into();
    let error = refused(&document);
    let (place, expected) = error.split_once(": unknown field, expected one of ").unwrap();
    assert_eq!(place, "pods[1].spec.containers[0].imagee");
    assert!(expected.split(", ").any(|field| field == "image"), "{expected}");
    let mut document = base();
    document["nodePools"][0]["spec"]["limit"] = json!({});
    assert_eq!(
        refused(&document),
        "nodePools[0].spec.limit: unknown field, expected one of disruption, limits, replicas, template, weight"
    );
    let mut document = base();
    document["instanceTypes"][0]["cost"] = 1.into();
    assert!(refused(&document).starts_with("instanceTypes[0]"));
}

#[test]
fn wrong_values_are_named_by_their_path() {
    let mut document = base();
    document["instanceTypes"][0]["capacity"]["cpu"] = "two".into();
    assert!(refused(&document).starts_with("instanceTypes[0].capacity.cpu: invalid quantity"));
    let mut document = base();
    document["pods"][0]["spec"]["containers"] = "x".into();
    assert!(refused(&document).starts_with("pods[0].spec.containers: invalid type"));
    let mut document = base();
    document["options"] = json!({"preferencePolicy": "Maybe"});
    assert!(refused(&document).starts_with("options.preferencePolicy: unknown value"));
    let mut document = base();
    document["pods"][1]["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "1core".into();
    assert!(refused(&document).starts_with("pods[1].spec.containers[0].resources.requests.cpu: "));
    let mut document = base();
    document["pods"][1]["metadata"]["name"] = "a".into();
    assert_eq!(refused(&document), "pods[1].metadata.name: second pod n/a");
    let mut document = base();
    document["nodes"] = json!([{"node": {"metadata": {"name": "x"}, "status":
        {"allocatable": {"cpu": "-1"}}}}]);
    assert!(refused(&document).starts_with("nodes[0].node.status.allocatable.cpu: expected"));
    assert!(load("{".as_bytes()).is_err());
    assert!(load("".as_bytes()).is_err());
}

#[test]
fn yaml_is_read_like_json() {
    let yaml = serde_saphyr::to_string(&base()).unwrap();
    let world = World::new(load(yaml.as_bytes()).unwrap()).unwrap();
    let out = serde_json::to_value(Report::new(&scheduling::solve(&world.snapshot))).unwrap();
    assert_eq!(out, solved(&base()));
}

#[test]
fn pools_may_keep_instance_types_to_themselves() {
    let mut document = base();
    document["instanceTypes"][0]["nodePools"] = json!(["other"]);
    assert!(refused(&document).contains("there is no NodePool \"other\""));
    document["nodePools"][0]["metadata"]["name"] = "other".into();
    assert_eq!(solved(&document)["nodeClaims"][0]["nodePool"], "other");
}

fn with_claim(mut document: Value, claim: &str) -> Value {
    document["pods"][0]["spec"]["volumes"] =
        json!([{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]);
    document
}

#[test]
fn pods_that_cannot_be_read_are_ignored() {
    let mut document = base();
    document["pods"][0]["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "x"});
    let out = solved(&document);
    assert_eq!(out["nodeClaims"], json!([]));
    let text = out["unschedulable"][0]["error"].as_str().unwrap();
    assert!(text.starts_with("ignoring pod, ") && text.contains("kubernetes.io/hostname"));
    let out = solved(&with_claim(base(), "gone"));
    let text = out["unschedulable"][0]["error"].as_str().unwrap();
    assert!(text.ends_with("PersistentVolumeClaim \"gone\" not found"), "{text}");
}

#[test]
fn overlays_and_buffers_count_when_their_gate_is_on() {
    let mut document = base();
    document["objects"] = json!([
        {"apiVersion": "karpenter.sh/v1alpha1", "kind": "NodeOverlay", "metadata": {"name": "o"},
            "spec": {"requirements": [{"key": "karpenter.sh/capacity-type", "operator": "In",
                "values": ["spot"]}], "priceAdjustment": "+900%"}},
        {"apiVersion": "karpenter.sh/v1alpha1", "kind": "NodeOverlay", "metadata": {"name": "bad"},
            "spec": {"requirements": [], "capacity": {"cpu": "1"}}},
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "t", "namespace": "n"},
            "template": {"spec": {"containers": [{"name": "c",
                "resources": {"requests": {"cpu": "1500m"}}}]}}},
        {"apiVersion": "autoscaling.x-k8s.io/v1beta1", "kind": "CapacityBuffer",
            "metadata": {"name": "b", "namespace": "n"},
            "spec": {"replicas": 2, "podTemplateRef": {"name": "t"}}}
    ]);
    assert_eq!(solved(&document)["totalPrice"], json!(0.03));
    document["options"] = json!({"featureGates": {"NodeOverlay": true, "CapacityBuffer": true}});
    let out = solved(&document);
    assert_eq!(out["nodeClaims"].as_array().unwrap().len(), 3);
    assert_eq!(out["totalPrice"], json!(0.3));
    assert_eq!(out["withoutEffect"][0]["object"], "NodeOverlay bad");
    assert!(out.to_string().contains("n/capacity-buffer-b-2"));
}

/// Types that a saved answer of EC2 describes, built as the provider builds them.
#[test]
fn instance_types_may_come_from_a_saved_answer() {
    let mut document = base();
    document.as_object_mut().unwrap().remove("instanceTypes");
    assert!(refused(&document).starts_with("instanceTypes: expected instance types, or"));

    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/instance-types.json.gz");
    let unpacked = std::process::Command::new("gzip").args(["-dc", file]).output().unwrap();
    let answer = String::from_utf8(unpacked.stdout).unwrap();
    let mut scenario = load(document.to_string().as_bytes()).unwrap();
    let classes = ec2::Classes::of(&scenario).unwrap();
    let types = ec2::from_answer(&answer, &classes).unwrap();
    assert!(types.len() > 500, "{}", types.len());
    document["instanceTypes"] = scenario::describe_types(&types);
    scenario.provide_types(types);
    let world = World::new(scenario).unwrap();
    let direct = serde_json::to_value(Report::new(&scheduling::solve(&world.snapshot))).unwrap();
    assert_eq!(direct["unschedulable"], json!([]));
    assert!(direct["totalPrice"].as_f64().unwrap() > 0.0);
    // What is written down of them decides the same.
    assert_eq!(solved(&document)["nodeClaims"], direct["nodeClaims"]);
    assert!(ec2::from_answer("{}", &classes).is_err());
}

#[test]
fn what_only_limits_name_is_requested_too() {
    let mut document = base();
    document["instanceTypes"][0]["capacity"]["nvidia.com/gpu"] = "1".into();
    document["pods"][0]["spec"]["containers"][0]["resources"]["limits"] =
        json!({"nvidia.com/gpu": "1"});
    let out = solved(&document);
    assert_eq!(out["nodeClaims"][0]["requests"]["nvidia.com/gpu"], "1");
}

/// A node that is going away, with one pod of one cpu on it.
fn draining() -> Value {
    let mut pod = pod("moving", "1");
    pod["status"] = json!({"phase": "Running"});
    json!([{"node": {"metadata": {"name": "old", "labels": {"karpenter.sh/nodepool": "default"},
            "deletionTimestamp": "2026-01-01T00:00:00Z"},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "29"}}}, "pods": [pod]}])
}

#[test]
fn pods_of_a_draining_node_are_placed_again_unless_something_keeps_them() {
    let mut document = base();
    document["pods"] = json!([]);
    document["nodes"] = draining();
    assert_eq!(solved(&document)["nodeClaims"][0]["pods"], json!(["n/moving"]));
    document["nodes"][0]["pods"][0]["metadata"]["annotations"] =
        json!({"karpenter.sh/do-not-disrupt": "true"});
    assert_eq!(solved(&document)["nodeClaims"], json!([]));
    document["nodes"] = draining();
    document["nodes"][0]["pods"][0]["metadata"]["labels"] = json!({"app": "kept"});
    document["objects"] = json!([{"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": "b", "namespace": "n"}, "spec": {"maxUnavailable": 0,
            "selector": {"matchLabels": {"app": "kept"}}}}]);
    assert_eq!(solved(&document)["nodeClaims"], json!([]));
}

#[test]
fn pods_that_call_for_no_node_are_left_alone_as_the_controller_does() {
    let mut document = base();
    let pods = document["pods"].as_array_mut().unwrap();
    pods.truncate(1);
    pods[0]["spec"]["schedulingGates"] = json!([{"name": "example.com/wait"}]);
    let mut daemon = pod("daemon", "1");
    daemon["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u"}]);
    let mut preempting = pod("preempting", "1");
    preempting["status"] = json!({"nominatedNodeName": "x"});
    pods.extend([daemon, preempting]);
    let out = solved(&document);
    assert_eq!(out["nodeClaims"], json!([]));
    let texts: Vec<&str> =
        (0..3).map(|i| out["unschedulable"][i]["error"].as_str().unwrap()).collect();
    assert!(texts[0].contains("has not found it unschedulable"), "{texts:?}");
    assert!(texts[1].contains("DaemonSet") && texts[2].contains("preemption"), "{texts:?}");
}

#[test]
fn pools_that_launch_nothing_are_named() {
    let mut document = base();
    document["nodePools"][0]["status"] = json!({"conditions": [{"type": "Ready",
        "status": "False", "reason": "x", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    let out = solved(&document);
    assert_eq!(out["nodeClaims"], json!([]));
    assert_eq!(
        out["withoutEffect"][0],
        json!({"object": "NodePool default", "reason": "it is not ready"})
    );
    let mut document = base();
    document["nodePools"][0]["spec"]["replicas"] = 1.into();
    assert_eq!(solved(&document)["withoutEffect"][0]["object"], "NodePool default");
}

#[test]
fn a_claim_without_a_class_gets_the_default_one() {
    let mut document = with_claim(base(), "data");
    document["objects"] = json!([
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "data", "namespace": "n"}, "spec": {}},
        {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": "ebs.csi.aws.com",
            "volumeBindingMode": "WaitForFirstConsumer", "metadata": {"name": "gp3",
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}}
    ]);
    assert_eq!(solved(&document)["nodeClaims"][0]["pods"], json!(["n/a"]));
}

/// Types of a saved answer for a scenario's classes.
fn types_for(document: &Value) -> Vec<scenario::TypeEntry> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/instance-types.json.gz");
    let unpacked = std::process::Command::new("gzip").args(["-dc", file]).output().unwrap();
    let answer = String::from_utf8(unpacked.stdout).unwrap();
    let scenario = load(document.to_string().as_bytes()).unwrap();
    ec2::from_answer(&answer, &ec2::Classes::of(&scenario).unwrap()).unwrap()
}

fn with_class(spec: Value) -> Value {
    let mut document = base();
    document.as_object_mut().unwrap().remove("instanceTypes");
    document["objects"] = json!([{"apiVersion": "karpenter.k8s.aws/v1", "kind": "EC2NodeClass",
        "metadata": {"name": "d"}, "spec": spec}]);
    document
}

#[test]
fn the_alias_says_the_family() {
    let of = |alias: &str| {
        let types = types_for(&with_class(
            json!({"amiSelectorTerms": [{"alias": alias}], "kubelet": {"maxPods": 10}}),
        ));
        let found = types.into_iter().find(|t| &*t.instance_type.name == "m5.large").unwrap();
        scenario::describe_types(&[found])[0].clone()
    };
    let os = |described: &Value| {
        let list = described["requirements"].as_array().unwrap().clone();
        list.into_iter().find(|r| r["key"] == "kubernetes.io/os").unwrap()["values"][0].clone()
    };
    assert_eq!(os(&of("windows2022@latest")), "windows");
    assert_eq!(os(&of("al2023@latest")), "linux");
    // Bottlerocket reserves memory for as many pods as the interfaces allow, AL2023 for maxPods.
    assert_ne!(of("bottlerocket@latest"), of("al2023@latest"));
}

#[test]
fn kubelet_settings_of_a_v1beta1_pool_count() {
    let mut document = with_class(json!({"amiFamily": "AL2023"}));
    document["nodePools"][0] = json!({"apiVersion": "karpenter.sh/v1beta1", "kind": "NodePool",
        "metadata": {"name": "old"}, "spec": {"template": {"spec": {"kubelet": {"maxPods": 5},
            "nodeClassRef": {"name": "d"}, "requirements": []}}}});
    let types = types_for(&document);
    let large = types.iter().find(|t| &*t.instance_type.name == "m5.large").unwrap();
    assert_eq!(scenario::describe_types(std::slice::from_ref(large))[0]["capacity"]["pods"], "5");
}

#[test]
fn a_class_that_the_controller_would_refuse_is_refused() {
    let document = with_class(json!({"amiFamily": "AL2023", "kubelet": {"maxPods": -1}}));
    let scenario = load(document.to_string().as_bytes()).unwrap();
    let error = ec2::Classes::of(&scenario).unwrap_err().to_string();
    assert!(error.starts_with("objects[0].spec.kubelet.maxPods: expected"), "{error}");
}
