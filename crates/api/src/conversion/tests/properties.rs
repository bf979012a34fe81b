//! Nothing is lost on the way to the other version and back, whatever a valid object says.

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{nothing, to};
use crate::admission::Admission;
use crate::conversion::{
    ALIAS_VERSION, CLASS_REFERENCE, KUBELET, STORED_VERSION_MIGRATED, UBUNTU, convert_object,
};

type Any = BoxedStrategy<Value>;

/// One of the values.
fn one(values: Value) -> Any {
    prop::sample::select(values.as_array().unwrap().clone()).boxed()
}

fn list(items: Any) -> Any {
    vec(items, 0..4).prop_map(Value::from).boxed()
}

/// An object with the needed members and some of the others.
fn object(needed: Vec<(&'static str, Any)>, others: Vec<(&'static str, Any)>) -> Any {
    let needed = needed.into_iter().map(|(name, value)| (name, value.prop_map(Some).boxed()));
    let others = others.into_iter().map(|(name, value)| (name, prop::option::of(value).boxed()));
    let (names, values): (Vec<_>, Vec<_>) = needed.chain(others).unzip();
    values
        .prop_map(move |values| {
            let members = names.iter().zip(values);
            let map: Map<String, Value> =
                members.filter_map(|(n, v)| Some(((*n).to_owned(), v?))).collect();
            Value::Object(map)
        })
        .boxed()
}

fn annotations() -> Any {
    object(
        vec![],
        vec![
            ("team", one(json!(["a", ""]))),
            (KUBELET, one(json!([r#"{"maxPods":3}"#, r#"{ "podsPerCore": 2, "maxPods": 1 }"#]))),
            (
                CLASS_REFERENCE,
                one(json!([
                    r#"{"name":"default"}"#,
                    "null",
                    r#"{"kind":"EC2NodeClass","name":"x","apiVersion":"a/b"}"#
                ])),
            ),
            (UBUNTU, one(json!(["amiFamily", "amiFamily,blockDeviceMappings,incompatible"]))),
            (ALIAS_VERSION, one(json!(["v20240807", "latest"]))),
            ("karpenter.sh/nodepool-hash", one(json!(["12345"]))),
        ],
    )
}

fn metadata() -> Any {
    object(
        vec![("name", one(json!(["default", "x"]))), ("annotations", annotations())],
        vec![("labels", one(json!([{"karpenter.sh/nodepool": "p"}, {"a": "b"}])))],
    )
    .prop_map(|mut metadata| {
        // An empty map is an absent one.
        let map = metadata.as_object_mut().unwrap();
        if map["annotations"] == json!({}) {
            map.remove("annotations");
        }
        metadata
    })
    .boxed()
}

fn requirements(v1: bool) -> Any {
    let mut all = vec![
        json!({"key": "a", "operator": "In", "values": ["x", "y"], "minValues": 2}),
        json!({"key": "a", "operator": "Gt", "values": ["3"]}),
        json!({"key": "b", "operator": "Exists"}),
        json!({"key": "b", "operator": "NotIn", "values": []}),
    ];
    if v1 {
        all.extend([
            json!({"key": "a", "operator": "Gte", "values": ["4"]}),
            json!({"key": "a", "operator": "Gte", "values": ["0"]}),
            json!({"key": "c", "operator": "Lte", "values": ["9223372036854775807"]}),
        ]);
    }
    list(one(Value::Array(all)))
}

fn taints() -> Any {
    list(one(json!([{"key": "a", "effect": "NoSchedule"},
        {"key": "a", "value": "b", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}])))
}

fn kubelet() -> Any {
    one(json!([{}, {"maxPods": 20, "clusterDNS": ["10.0.0.10"]},
        {"evictionSoft": {"pid.available": "5%"}, "evictionSoftGracePeriod": {"pid.available": "1m"},
            "cpuCFSQuota": false}]))
}

/// What NodePools and NodeClaims of v1beta1 have in common.
fn node_v1beta1(of_pool: bool) -> Any {
    let reference = object(
        vec![("name", one(json!(["default", "other"])))],
        vec![
            ("kind", one(json!(["EC2NodeClass", ""]))),
            ("apiVersion", one(json!(["karpenter.k8s.aws/v1beta1", "v1", ""]))),
        ],
    );
    let resources = if of_pool { json!([{}]) } else { json!([{}, {"requests": {"cpu": "1"}}]) };
    object(
        vec![("nodeClassRef", reference), ("requirements", requirements(false))],
        vec![
            ("kubelet", kubelet()),
            ("resources", one(resources)),
            ("taints", taints()),
            ("startupTaints", taints()),
        ],
    )
}

/// What NodePools and NodeClaims of v1 have in common.
fn node_v1() -> Any {
    let reference = object(
        vec![
            ("group", one(json!(["karpenter.k8s.aws", "other"]))),
            ("kind", one(json!(["EC2NodeClass", "Other"]))),
            ("name", one(json!(["default", "other"]))),
        ],
        vec![],
    );
    object(
        vec![("nodeClassRef", reference), ("requirements", requirements(true))],
        vec![
            ("taints", taints()),
            ("startupTaints", taints()),
            ("expireAfter", one(json!(["Never", "720h", "1h30m"]))),
            ("terminationGracePeriod", one(json!(["48h", "0s"]))),
        ],
    )
}

fn template(node: Any) -> Any {
    let labels = object(
        vec![],
        vec![("labels", one(json!([{}, {"a": "b"}]))), ("annotations", one(json!([{"c": "d"}])))],
    );
    object(vec![("spec", node)], vec![("metadata", labels)])
}

fn budgets(v1: bool) -> Any {
    let mut all = vec![
        json!({"nodes": "10%"}),
        json!({"nodes": "0", "schedule": "@daily", "duration": "1h"}),
    ];
    if v1 {
        all.push(json!({"nodes": "1", "reasons": ["Drifted"]}));
        all.push(json!({"nodes": "1", "reasons": []}));
    }
    list(one(Value::Array(all)))
}

fn pool_v1beta1() -> Any {
    let disruption = prop_oneof![
        object(
            vec![
                ("consolidationPolicy", one(json!(["WhenEmpty"]))),
                ("consolidateAfter", one(json!(["30s", "Never"])))
            ],
            vec![("budgets", budgets(false)), ("expireAfter", one(json!(["Never", "1hr"])))],
        ),
        object(
            vec![],
            vec![
                ("consolidateAfter", one(json!(["Never"]))),
                ("budgets", budgets(false)),
                ("expireAfter", one(json!(["Never", "48h"])))
            ],
        ),
    ];
    let spec = object(
        vec![("template", template(node_v1beta1(true)))],
        vec![
            ("disruption", disruption.boxed()),
            ("weight", one(json!([1, 100]))),
            ("limits", one(json!([{}, {"cpu": 1000, "memory": "1Gi"}]))),
        ],
    );
    whole("karpenter.sh/v1beta1", "NodePool", spec, one(json!([{"resources": {"cpu": "3"}}])))
}

fn pool_v1() -> Any {
    let disruption = object(
        vec![],
        vec![
            (
                "consolidationPolicy",
                one(json!(["WhenEmpty", "WhenEmptyOrUnderutilized", "Balanced"])),
            ),
            ("consolidateAfter", one(json!(["0s", "30s", "Never"]))),
            ("budgets", budgets(true)),
        ],
    );
    let spec = object(
        vec![("template", template(node_v1()))],
        vec![
            ("disruption", disruption),
            ("replicas", one(json!([0, 3]))),
            ("limits", one(json!([{"nodes": 5}]))),
        ],
    );
    let status =
        one(json!([{"nodes": 3, "resources": {"cpu": "3"}, "nodeClassObservedGeneration": 2,
        "conditions": []}]));
    whole("karpenter.sh/v1", "NodePool", spec, status)
}

fn claim_v1() -> Any {
    let spec = (node_v1(), prop::option::of(one(json!([{"requests": {"cpu": "1"}}]))))
        .prop_map(|(mut node, resources)| {
            if let Some(resources) = resources {
                node["resources"] = resources;
            }
            node
        })
        .boxed();
    let status = one(json!([{"lastPodEventTime": "2026-01-01T00:00:00Z", "nodeName": "n"}]));
    whole("karpenter.sh/v1", "NodeClaim", spec, status)
}

fn claim_v1beta1() -> Any {
    whole("karpenter.sh/v1beta1", "NodeClaim", node_v1beta1(false), one(json!([{"nodeName": "n"}])))
}

fn class_common() -> Vec<(&'static str, Any)> {
    vec![
        ("associatePublicIPAddress", one(json!([true, false]))),
        ("context", one(json!(["c"]))),
        ("detailedMonitoring", one(json!([true]))),
        ("instanceStorePolicy", one(json!(["RAID0"]))),
        (
            "metadataOptions",
            one(json!([{"httpPutResponseHopLimit": 1}, {"httpTokens": "optional"}])),
        ),
        ("tags", one(json!([{}, {"a": "b"}]))),
        ("userData", one(json!(["#!/bin/bash\necho x\n"]))),
    ]
}

fn selectors() -> Vec<(&'static str, Any)> {
    vec![
        ("subnetSelectorTerms", one(json!([[{"id": "subnet-1"}, {"tags": {"a": "*"}}]]))),
        ("securityGroupSelectorTerms", one(json!([[{"name": "n"}], [{"id": "sg-1"}]]))),
        ("role", one(json!(["r", "q"]))),
    ]
}

fn class_v1beta1() -> Any {
    let families = json!(["AL2", "AL2023", "Bottlerocket", "Ubuntu", "Windows2019", "Windows2022"]);
    let mut needed = selectors();
    needed.push(("amiFamily", one(families)));
    let mut others = class_common();
    others.push((
        "amiSelectorTerms",
        one(json!([[{"id": "ami-1"}], [{"tags": {"a": "b"}, "owner": "self"}, {"name": "n"}]])),
    ));
    others.push((
        "blockDeviceMappings",
        one(json!([[], [{"deviceName": "/dev/xvda", "ebs": {"volumeSize": "20Gi"}}]])),
    ));
    let status = one(json!([{"subnets": [{"id": "subnet-1", "zone": "a"}]}]));
    whole("karpenter.k8s.aws/v1beta1", "EC2NodeClass", object(needed, others), status)
}

fn class_v1() -> Any {
    let images = one(json!([
        {"amiSelectorTerms": [{"alias": "al2023@latest"}]},
        {"amiSelectorTerms": [{"alias": "bottlerocket@1.20.3", "ssmParameter": "p"}]},
        {"amiSelectorTerms": [{"alias": "al2@v20240807"}], "amiFamily": "AL2"},
        {"amiSelectorTerms": [{"alias": "al2@latest"}], "amiFamily": "Custom"},
        {"amiSelectorTerms": [{"alias": "windows2025@latest"}]},
        {"amiSelectorTerms": [{"alias": "al2@x@y"}]},
        {"amiSelectorTerms": [{"id": "ami-1"}, {"ssmParameter": "p"}], "amiFamily": "AL2023"},
        {"amiSelectorTerms": [{"id": "ami-placeholder"}], "amiFamily": "AL2"},
    ]));
    let mut others = class_common();
    others.extend([
        ("kubelet", one(json!([{}, {"maxPods": 5, "any": [1]}]))),
        ("capacityReservationSelectorTerms", one(json!([[{"id": "cr-1"}]]))),
        ("connectionTracking", one(json!([{"udpTimeout": 30}]))),
        ("cpuOptions", one(json!([{}]))),
        ("enclaveOptions", one(json!([{"enabled": true}, {"enabled": false}]))),
        ("ipPrefixCount", one(json!([2]))),
        (
            "networkInterfaces",
            one(json!([[], [{"deviceIndex": 0, "networkCardIndex": 0, "interfaceType": "interface"}]])),
        ),
        ("placementGroupSelector", one(json!([{"name": "n"}]))),
        (
            "blockDeviceMappings",
            one(json!([[], [{"ebs": {"snapshotID": "s", "volumeInitializationRate": 100}}]])),
        ),
    ]);
    let spec = (object(selectors(), others), images)
        .prop_map(|(mut spec, images)| {
            spec.as_object_mut().unwrap().extend(images.as_object().unwrap().clone());
            spec
        })
        .boxed();
    let status = one(json!([{"amis": [{"id": "ami-1", "requirements": [], "deprecated": true}]}]));
    whole("karpenter.k8s.aws/v1", "EC2NodeClass", spec, status)
}

/// The object with its defaults, as the API server hands it to the webhook. Every one is valid.
fn whole(version: &'static str, kind: &'static str, spec: Any, status: Any) -> Any {
    (metadata(), spec, prop::option::of(status))
        .prop_map(move |(metadata, spec, status)| {
            let mut object = json!({"apiVersion": version, "kind": kind, "metadata": metadata,
                "spec": spec});
            if let Some(status) = status {
                object["status"] = status;
            }
            let admitted = Admission::get().create(object).unwrap();
            assert!(admitted.findings.is_empty(), "{:?}", admitted.findings);
            assert!(admitted.unknown.is_empty(), "{:?}", admitted.unknown);
            admitted.object
        })
        .boxed()
}

fn any_v1beta1() -> Any {
    prop_oneof![pool_v1beta1(), claim_v1beta1(), class_v1beta1()].boxed()
}

fn any_v1() -> Any {
    prop_oneof![pool_v1(), claim_v1(), class_v1()].boxed()
}

/// Converts where every pool has that expiry.
fn with_pools(object: &Value, version: &str, expiry: &str) -> Value {
    let group = object["apiVersion"].as_str().unwrap().split('/').next().unwrap();
    let find = |_: &str| Ok(Some(expiry.to_owned()));
    convert_object(object.clone(), &format!("{group}/{version}"), &find).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn v1beta1_comes_back_as_it_was(object in any_v1beta1()) {
        let v1 = to(&object, "v1");
        prop_assert_eq!(to(&v1, "v1beta1"), object);
    }

    #[test]
    fn v1_comes_back_as_it_was(object in any_v1()) {
        let beta = to(&object, "v1beta1");
        // A claim that was written as v1beta1 takes what its pool says.
        let of_pool = object["metadata"]["annotations"].get(CLASS_REFERENCE).is_some();
        let expiry = object["spec"]["expireAfter"].as_str().filter(|_| of_pool);
        prop_assert_eq!(&with_pools(&beta, "v1", expiry.unwrap_or("99h")), &object);
        prop_assert_eq!(&with_pools(&beta, "v1", expiry.unwrap_or("Never")), &object);
    }

    #[test]
    fn there_and_back_again_and_again_changes_nothing(object in any_v1()) {
        let beta = to(&object, "v1beta1");
        let expiry = object["spec"]["expireAfter"].as_str().unwrap_or("Never");
        let again = to(&with_pools(&beta, "v1", expiry), "v1beta1");
        prop_assert_eq!(again, beta);
    }

    #[test]
    fn an_edit_in_v1beta1_changes_v1_there_and_nowhere_else(pool in pool_v1(), weight in 1..100) {
        let mut beta = to(&pool, "v1beta1");
        beta["spec"]["weight"] = json!(weight);
        beta["metadata"]["labels"] = json!({"edited": "true"});
        let mut want = pool;
        want["spec"]["weight"] = json!(weight);
        want["metadata"]["labels"] = json!({"edited": "true"});
        prop_assert_eq!(to(&beta, "v1"), want);
    }

    #[test]
    fn an_edit_in_v1_changes_v1beta1_there_and_nowhere_else(class in class_v1beta1()) {
        let mut v1 = to(&class, "v1");
        v1["spec"]["context"] = json!("edited");
        let mut want = class;
        want["spec"]["context"] = json!("edited");
        prop_assert_eq!(to(&v1, "v1beta1"), want);
    }

    #[test]
    fn valid_pools_and_claims_become_valid(object in prop_oneof![pool_v1beta1(), claim_v1beta1()]) {
        let v1 = to(&object, "v1");
        let admitted = Admission::get().create(v1).unwrap();
        // An expiry that only v1beta1's loose pattern lets through stays what it is.
        let expected = |path: &str| path.ends_with("expireAfter");
        let found: Vec<_> = admitted.findings.iter().filter(|f| !expected(&f.path)).collect();
        prop_assert!(found.is_empty(), "{found:?}");
        prop_assert!(admitted.unknown.is_empty(), "{:?}", admitted.unknown);
    }
}

/// The mark of Karpenter's own migration goes on the way to v1beta1, as it does there.
#[test]
fn the_mark_of_a_migration_goes() {
    let mut pool = json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool",
        "metadata": {"name": "p", "annotations": {STORED_VERSION_MIGRATED: "true"}},
        "spec": {"template": {"spec": {"requirements": [],
            "nodeClassRef": {"group": "g", "kind": "K", "name": "n"}}}}});
    Admission::get().apply_defaults(&mut pool);
    let beta = to(&pool, "v1beta1");
    assert_eq!(beta["metadata"]["annotations"].get(STORED_VERSION_MIGRATED), None);
    let back = convert_object(beta, "karpenter.sh/v1", &nothing).unwrap();
    assert_eq!(back["spec"], pool["spec"]);
    assert_eq!(back["metadata"].get("annotations"), None);
}
