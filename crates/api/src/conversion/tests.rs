use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

mod bodies;
mod properties;

fn nothing(_: &str) -> Result<Option<String>, String> {
    Ok(None)
}

fn to(object: &Value, version: &str) -> Value {
    let group = object["apiVersion"].as_str().unwrap().split('/').next().unwrap();
    convert_object(object.clone(), &format!("{group}/{version}"), &nothing).unwrap()
}

fn founding_pool() -> Value {
    json!({"apiVersion": "karpenter.sh/v1beta1", "kind": "NodePool",
        "metadata": {"name": "default"},
        "spec": {
            "disruption": {"budgets": [{"nodes": "10%"}],
                "consolidationPolicy": "WhenUnderutilized", "expireAfter": "720h"},
            "limits": {"cpu": 1000},
            "template": {"spec": {
                "nodeClassRef": {"apiVersion": "karpenter.k8s.aws/v1beta1",
                    "kind": "EC2NodeClass", "name": "default"},
                "requirements": [{"key": "kubernetes.io/arch", "operator": "In",
                    "values": ["amd64"]}]}}}})
}

#[test]
fn a_pool_of_the_old_version_is_read() {
    let v1 = to(&founding_pool(), "v1");
    assert_eq!(v1["apiVersion"], "karpenter.sh/v1");
    let disruption = &v1["spec"]["disruption"];
    assert_eq!(disruption["consolidationPolicy"], "WhenEmptyOrUnderutilized");
    assert_eq!(disruption["consolidateAfter"], "0s");
    assert_eq!(disruption.get("expireAfter"), None);
    let node = &v1["spec"]["template"]["spec"];
    assert_eq!(node["expireAfter"], "720h");
    assert_eq!(
        node["nodeClassRef"],
        json!({"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"})
    );
    assert_eq!(
        v1["metadata"]["annotations"][CLASS_REFERENCE],
        r#"{"kind":"EC2NodeClass","name":"default","apiVersion":"karpenter.k8s.aws/v1beta1"}"#
    );
    assert_eq!(to(&v1, "v1beta1"), founding_pool());
}

#[test]
fn the_kubelet_is_kept_in_an_annotation() {
    let mut pool = founding_pool();
    pool["spec"]["template"]["spec"]["kubelet"] =
        json!({"maxPods": 20, "clusterDNS": ["10.0.0.10"]});
    let v1 = to(&pool, "v1");
    assert_eq!(
        v1["metadata"]["annotations"][KUBELET],
        r#"{"clusterDNS":["10.0.0.10"],"maxPods":20}"#
    );
    assert_eq!(v1["spec"]["template"]["spec"].get("kubelet"), None);
    assert_eq!(to(&v1, "v1beta1"), pool);
}

#[test]
fn what_v1_cannot_say_comes_back() {
    let mut pool = founding_pool();
    pool["spec"]["disruption"]["consolidateAfter"] = json!("Never");
    let v1 = to(&pool, "v1");
    assert_eq!(v1["spec"]["disruption"]["consolidateAfter"], "0s");
    assert_eq!(to(&v1, "v1beta1"), pool);
    let mut edited = v1;
    edited["spec"]["weight"] = json!(7);
    let back = to(&edited, "v1beta1");
    assert_eq!(back["spec"]["weight"], 7);
    assert_eq!(back["spec"]["disruption"]["consolidateAfter"], "Never");
}

#[test]
fn what_v1beta1_cannot_say_survives_an_edit_there() {
    let v1 = json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool",
        "metadata": {"name": "p"},
        "spec": {
            "disruption": {"consolidationPolicy": "Balanced", "consolidateAfter": "30s",
                "budgets": [{"nodes": "1", "reasons": ["Empty"]}]},
            "template": {"spec": {"expireAfter": "Never", "terminationGracePeriod": "5m",
                "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass",
                    "name": "c"},
                "requirements": []}}}});
    let beta = to(&v1, "v1beta1");
    assert_eq!(beta["spec"]["disruption"]["budgets"], json!([{"nodes": "1"}]));
    assert_eq!(to(&beta, "v1"), v1);
    let mut edited = beta;
    edited["spec"]["weight"] = json!(3);
    let back = to(&edited, "v1");
    assert_eq!(back["spec"]["weight"], 3);
    assert_eq!(back["spec"]["template"]["spec"]["terminationGracePeriod"], "5m");
    assert_eq!(back["spec"]["disruption"], v1["spec"]["disruption"]);
    assert_eq!(back["metadata"], v1["metadata"]);
}

#[test]
fn a_claim_takes_the_expiry_of_its_pool() {
    let claim = json!({"apiVersion": "karpenter.sh/v1beta1", "kind": "NodeClaim",
        "metadata": {"name": "c", "labels": {"karpenter.sh/nodepool": "p"}},
        "spec": {"nodeClassRef": {"name": "default"}, "requirements": []}});
    let find = |name: &str| Ok((name == "p").then(|| "48h".to_owned()));
    let v1 = convert_object(claim.clone(), "karpenter.sh/v1", &find).unwrap();
    assert_eq!(v1["spec"]["expireAfter"], "48h");
    assert_eq!(to(&claim, "v1")["spec"]["expireAfter"], "Never");
}

fn class(spec: Value) -> Value {
    json!({"apiVersion": "karpenter.k8s.aws/v1beta1", "kind": "EC2NodeClass",
        "metadata": {"name": "c"}, "spec": spec})
}

#[test]
fn families_become_aliases() {
    let v1 = to(&class(json!({"amiFamily": "AL2023", "role": "r"})), "v1");
    assert_eq!(v1["spec"]["amiSelectorTerms"], json!([{"alias": "al2023@latest"}]));
    assert_eq!(v1["spec"].get("amiFamily"), None);
    let given = class(json!({"amiFamily": "AL2", "amiSelectorTerms": [{"id": "ami-1"}]}));
    let v1 = to(&given, "v1");
    assert_eq!(v1["spec"]["amiFamily"], "AL2");
    assert_eq!(v1["spec"]["amiSelectorTerms"], json!([{"id": "ami-1"}]));
    let pinned = json!({"apiVersion": "karpenter.k8s.aws/v1", "kind": "EC2NodeClass",
        "metadata": {"name": "c"},
        "spec": {"amiSelectorTerms": [{"alias": "al2023@v20240625"}], "kubelet": {"maxPods": 5}}});
    let beta = to(&pinned, "v1beta1");
    assert_eq!(beta["spec"]["amiFamily"], "AL2023");
    assert_eq!(beta["metadata"]["annotations"][ALIAS_VERSION], "v20240625");
    assert_eq!(to(&beta, "v1"), pinned);
}

#[test]
fn a_class_without_spec_stays_without() {
    let class = json!({"apiVersion": "karpenter.k8s.aws/v1beta1", "kind": "EC2NodeClass",
        "metadata": {"name": "c"}});
    let v1 = to(&class, "v1");
    assert_eq!(v1.get("spec"), None);
    assert_eq!(v1["apiVersion"], "karpenter.k8s.aws/v1");
    assert_eq!(to(&v1, "v1beta1"), class);
}

#[test]
fn ubuntu_is_marked_and_comes_back() {
    let ubuntu = class(json!({"amiFamily": "Ubuntu", "role": "r"}));
    let v1 = to(&ubuntu, "v1");
    assert_eq!(v1["spec"]["amiFamily"], "AL2");
    assert_eq!(v1["metadata"]["annotations"][UBUNTU], "amiFamily,blockDeviceMappings,incompatible");
    assert_eq!(to(&v1, "v1beta1"), ubuntu);
}

#[test]
fn a_review_never_fails_as_a_whole() {
    for bad in [
        json!(null),
        json!({"request": {"uid": "u"}}),
        json!({"request": {"uid": "u", "desiredAPIVersion": "karpenter.sh/v1", "objects": [3]}}),
        json!({"request": {"uid": "u", "desiredAPIVersion": "karpenter.sh/v9",
            "objects": [founding_pool()]}}),
        json!({"request": {"uid": "u", "desiredAPIVersion": "karpenter.sh/v1",
            "objects": [{"apiVersion": "v1", "kind": "Pod"}]}}),
    ] {
        let answer = review(&bad, &nothing);
        assert_eq!(answer["response"]["result"]["status"], "Failure", "{bad}");
        assert!(answer["response"]["result"]["message"].as_str().unwrap().len() > 10);
    }
    let good = json!({"request": {"uid": "u", "desiredAPIVersion": "karpenter.sh/v1",
        "objects": [founding_pool(), founding_pool()]}});
    let answer = review(&good, &nothing);
    assert_eq!(answer["response"]["convertedObjects"].as_array().unwrap().len(), 2);
}

#[test]
fn bounds_that_v1beta1_lacks_are_reported_in_its_words() {
    let requirement =
        |op: &str, value: &str| json!({"key": "a", "operator": op, "values": [value]});
    let v1 = json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": {"name": "p"},
        "spec": {"disruption": {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "30s"},
            "template": {"spec": {"expireAfter": "720h",
                "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "c"},
                "requirements": [requirement("Gte", "4"), requirement("Lte", "8"),
                    requirement("Gte", "0")]}}}});
    let beta = to(&v1, "v1beta1");
    assert_eq!(
        beta["spec"]["template"]["spec"]["requirements"],
        json!([requirement("Gt", "3"), requirement("Lt", "9"),
            {"key": "a", "operator": "Exists"}])
    );
    assert_eq!(to(&beta, "v1"), v1);
}

#[test]
fn the_answer_has_the_version_of_the_question() {
    let ask = |version: &str| {
        json!({"apiVersion": version, "kind": "ConversionReview",
        "request": {"uid": "u", "desiredAPIVersion": "karpenter.sh/v1", "objects": []}})
    };
    for version in ["apiextensions.k8s.io/v1", "apiextensions.k8s.io/v1beta1"] {
        assert_eq!(review(&ask(version), &nothing)["apiVersion"], version);
    }
}

/// JSON of any shape, with the names that conversion looks for.
fn any_json() -> impl Strategy<Value = Value> {
    let key = prop::sample::select(vec![
        "spec",
        "status",
        "metadata",
        "annotations",
        "labels",
        "disruption",
        "budgets",
        "template",
        "requirements",
        "operator",
        "values",
        "kubelet",
        "nodeClassRef",
        "amiFamily",
        "amiSelectorTerms",
        "blockDeviceMappings",
        "ebs",
        "alias",
        "consolidationPolicy",
        "consolidateAfter",
        "expireAfter",
        "resources",
        KUBELET,
        CLASS_REFERENCE,
        UBUNTU,
        ALIAS_VERSION,
        KEPT_V1,
        KEPT_V1BETA1,
        "karpenter.sh/nodepool",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "Gte",
            "Ubuntu",
            "AL2",
            "al2@x@y",
            "WhenEmpty",
            "{}",
            "[1]",
            "{\"spec\":[]}",
            "{\"spec\":{\"disruption\":1}}",
            "x/y"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 60, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..8).prop_map(|members| Value::Object(
                members.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
            )),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_object_makes_it_panic(
        spec in any_json(),
        metadata in any_json(),
        status in any_json(),
        kind in prop::sample::select(vec!["NodePool", "NodeClaim", "EC2NodeClass", "Other"]),
        version in prop::sample::select(vec!["v1", "v1beta1", "v2"]),
        desired in prop::sample::select(vec!["v1", "v1beta1", ""]),
    ) {
        let group = if kind == "EC2NodeClass" { "karpenter.k8s.aws" } else { "karpenter.sh" };
        let object = json!({"apiVersion": format!("{group}/{version}"), "kind": kind,
            "metadata": metadata, "spec": spec, "status": status});
        let _ = convert_object(object, &format!("{group}/{desired}"), &nothing);
    }
}

/// Every field of either version comes back from the other.
#[test]
fn no_field_is_lost() {
    let mut seen = 0;
    for object in crate::crds::maximal::objects() {
        if !is_convertible(&object) {
            continue;
        }
        let (_, version) = object["apiVersion"].as_str().unwrap().split_once('/').unwrap();
        let other = if version == "v1" { "v1beta1" } else { "v1" };
        assert_eq!(to(&to(&object, other), version), object);
        seen += 1;
    }
    assert_eq!(seen, 6);
}
