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
