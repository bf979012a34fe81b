//! Names, defaults as read back, and columns.

use std::collections::BTreeMap;

use karpenter::api::admission::Admission;
use serde_json::{Value, json};

use super::{Served, table, text};
use crate::support::World;

/// Asks the API server for a path.
async fn ask(world: &World, path: &str, accept: &str) -> Value {
    let request =
        http::Request::builder().uri(path).header("Accept", accept).body(Vec::new()).unwrap();
    let answer = world.kube.request_text(request).await.unwrap();
    serde_json::from_str(&answer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_look_as_users_know_them() {
    let served = Served::up().await;
    names(&served.world).await;
    defaults(&served).await;
    columns(&served).await;
    scaling(&served).await;
}

async fn names(world: &World) {
    let mut seen = BTreeMap::new();
    for group in [
        "karpenter.sh/v1",
        "karpenter.sh/v1beta1",
        "karpenter.sh/v1alpha1",
        "karpenter.k8s.aws/v1",
        "karpenter.k8s.aws/v1beta1",
        "autoscaling.x-k8s.io/v1beta1",
    ] {
        let list = ask(world, &format!("/apis/{group}"), "application/json").await;
        for resource in list["resources"].as_array().unwrap() {
            let name = text(&resource["name"]).to_owned();
            seen.insert(format!("{group} {name}"), resource.clone());
        }
    }
    let short = |of: &str| seen[of].get("shortNames").cloned().unwrap_or(json!([]));
    for (of, shorts, category, namespaced) in [
        ("karpenter.sh/v1 nodepools", json!([]), "karpenter", false),
        ("karpenter.sh/v1beta1 nodepools", json!([]), "karpenter", false),
        ("karpenter.sh/v1 nodeclaims", json!([]), "karpenter", false),
        ("karpenter.sh/v1alpha1 nodeoverlays", json!(["overlays"]), "karpenter", false),
        ("karpenter.k8s.aws/v1 ec2nodeclasses", json!(["ec2nc", "ec2ncs"]), "karpenter", false),
        ("autoscaling.x-k8s.io/v1beta1 capacitybuffers", json!(["cb"]), "autoscaling", true),
    ] {
        assert_eq!(short(of), shorts, "{of}");
        assert_eq!(seen[of]["categories"], json!([category]), "{of}");
        assert_eq!(seen[of]["namespaced"], namespaced, "{of}");
        assert!(seen.contains_key(&format!("{of}/status")), "{of}");
        let scales = of == "karpenter.sh/v1 nodepools";
        assert_eq!(seen.contains_key(&format!("{of}/scale")), scales, "{of}");
    }
    assert_eq!(text(&seen["karpenter.k8s.aws/v1 ec2nodeclasses"]["singularName"]), "ec2nodeclass");
}

/// What is left out comes back with its default, in both versions, as we compute it too.
async fn defaults(served: &Served) {
    let table = table::table();
    for (of, want) in [
        (
            "NodePool v1",
            json!({"/disruption": {"consolidateAfter": "0s", "budgets": [{"nodes": "10%"}],
                "consolidationPolicy": "WhenEmptyOrUnderutilized"},
                "/template/spec/expireAfter": "720h"}),
        ),
        (
            "NodePool v1beta1",
            json!({"/disruption": {"budgets": [{"nodes": "10%"}], "expireAfter": "720h",
                "consolidationPolicy": "WhenUnderutilized"}}),
        ),
        ("NodeClaim v1", json!({"/expireAfter": "720h"})),
        ("NodeClaim v1beta1", json!({"/expireAfter": null})),
        ("NodeOverlay v1alpha1", json!({"/weight": null})),
        (
            "EC2NodeClass v1",
            json!({"/metadataOptions": {"httpEndpoint": "enabled", "httpProtocolIPv6": "disabled",
                "httpPutResponseHopLimit": 1, "httpTokens": "required"}}),
        ),
        (
            "EC2NodeClass v1beta1",
            json!({"/metadataOptions": {"httpEndpoint": "enabled", "httpProtocolIPv6": "disabled",
                "httpPutResponseHopLimit": 2, "httpTokens": "required"}}),
        ),
        (
            "CapacityBuffer v1beta1",
            json!({"/provisioningStrategy": "buffer.x-k8s.io/active-capacity"}),
        ),
    ] {
        let (kind, version) = of.split_once(' ').unwrap();
        let mut object = table::base(&table, kind, version);
        object["metadata"]["name"] = json!(format!("defaults-{version}"));
        let made = served.create(&object).await;
        for (pointer, want) in want.as_object().unwrap() {
            let found = made["spec"].pointer(pointer).cloned().unwrap_or(Value::Null);
            assert_eq!(&found, want, "{of} {pointer}");
        }
        let offline = Admission::get().create(object).unwrap().object;
        assert_eq!(made["spec"], offline["spec"], "{of}");
    }
    let partly = json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool",
        "metadata": {"name": "partly"},
        "spec": {"disruption": {"budgets": [], "consolidateAfter": "1m"}, "template": {"spec": {
            "requirements": [], "nodeClassRef": {"group": "g", "kind": "K", "name": "n"}}}}});
    let made = served.create(&partly).await;
    assert_eq!(made["spec"]["disruption"]["budgets"], json!([]), "an empty list stays empty");
    let mut budget = partly;
    budget["metadata"]["name"] = json!("budget");
    budget["spec"]["disruption"] = json!({"budgets": [{"reasons": ["Empty"]}]});
    let made = served.create(&budget).await;
    assert_eq!(made["spec"]["disruption"]["budgets"][0]["nodes"], "10%");
    assert_eq!(made["spec"]["disruption"]["consolidateAfter"], "0s");
}

/// Columns and cells of a table, as kubectl shows them.
async fn columns(served: &Served) {
    let pool = json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool",
        "metadata": {"name": "shown"},
        "spec": {"weight": 7, "template": {"spec": {"requirements": [],
            "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gold"}}}},
        "status": {"nodes": 3, "resources": {"cpu": "12", "memory": "48Gi"}, "conditions": [ready()]}});
    let claim = json!({"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
        "metadata": {"name": "shown", "labels": {"node.kubernetes.io/instance-type": "c5.large",
            "karpenter.sh/capacity-type": "spot", "topology.kubernetes.io/zone": "us-east-1a",
            "karpenter.sh/nodepool": "pool"}},
        "spec": {"requirements": [],
            "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gold"}},
        "status": {"nodeName": "ip-1", "imageID": "ami-1", "providerID": "aws:///a/i-1",
            "conditions": [ready(), condition("Drifted")]}});
    let class = json!({"apiVersion": "karpenter.k8s.aws/v1", "kind": "EC2NodeClass",
        "metadata": {"name": "shown"},
        "spec": {"role": "r", "amiSelectorTerms": [{"alias": "al2023@latest"}],
            "subnetSelectorTerms": [{"id": "subnet-1"}],
            "securityGroupSelectorTerms": [{"id": "sg-1"}]},
        "status": {"conditions": [ready()]}});
    let overlay = json!({"apiVersion": "karpenter.sh/v1alpha1", "kind": "NodeOverlay",
        "metadata": {"name": "shown"}, "spec": {"requirements": [], "weight": 9},
        "status": {"conditions": [ready()]}});
    let buffer = json!({"apiVersion": "autoscaling.x-k8s.io/v1beta1", "kind": "CapacityBuffer",
        "metadata": {"name": "shown"}, "spec": {"podTemplateRef": {"name": "t"}, "replicas": 2},
        "status": {"replicas": 2, "podTemplateRef": {"name": "t"},
            "conditions": [condition("ReadyForProvisioning")]}});
    for object in [pool, claim, class, overlay, buffer] {
        store_with_status(served, object).await;
    }
    for (path, wide, want) in [
        ("karpenter.sh/v1/nodepools", false, "Name=shown NodeClass=gold Nodes=3 Ready=True Age"),
        ("karpenter.sh/v1/nodepools", true, "Weight=7 CPU=12 Memory=48Gi"),
        ("karpenter.sh/v1beta1/nodepools", false, "Name=shown NodeClass=gold"),
        ("karpenter.sh/v1beta1/nodepools", true, "Weight=7"),
        (
            "karpenter.sh/v1/nodeclaims",
            false,
            "Name=shown Type=c5.large Capacity=spot Zone=us-east-1a Node=ip-1 Ready=True Age",
        ),
        (
            "karpenter.sh/v1/nodeclaims",
            true,
            "ImageID=ami-1 ID=aws:///a/i-1 NodePool=pool NodeClass=gold Drifted=True",
        ),
        (
            "karpenter.sh/v1beta1/nodeclaims",
            false,
            "Name=shown Type=c5.large Zone=us-east-1a Node=ip-1 Ready=True Age",
        ),
        ("karpenter.sh/v1beta1/nodeclaims", true, "Capacity=spot NodePool=pool NodeClass=gold"),
        ("karpenter.k8s.aws/v1/ec2nodeclasses", false, "Name=shown Ready=True Age"),
        ("karpenter.k8s.aws/v1/ec2nodeclasses", true, "Role=r"),
        ("karpenter.k8s.aws/v1beta1/ec2nodeclasses", false, "Name=shown Age"),
        ("karpenter.sh/v1alpha1/nodeoverlays", false, "Name=shown Ready=True Age"),
        ("karpenter.sh/v1alpha1/nodeoverlays", true, "Weight=9"),
        (
            "autoscaling.x-k8s.io/v1beta1/namespaces/default/capacitybuffers",
            false,
            "Name=shown Strategy=buffer.x-k8s.io/active-capacity PodTemplate=t Replicas=2 \
             ConditionsType=ReadyForProvisioning ConditionsStatus=True ConditionsReason=Test Age",
        ),
    ] {
        let accept = "application/json;as=Table;v=v1;g=meta.k8s.io";
        let table = ask(&served.world, &format!("/apis/{path}"), accept).await;
        assert_eq!(row(&table, "shown", wide), want, "{path}");
    }
}

fn condition(kind: &str) -> Value {
    json!({"type": kind, "status": "True", "reason": "Test", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1})
}

fn ready() -> Value {
    condition("Ready")
}

async fn store_with_status(served: &Served, object: Value) {
    let made = served.create(&object).await;
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let mut whole = made;
    whole["status"] = object["status"].clone();
    let whole = serde_json::from_value(whole).unwrap();
    let api = served.api(version, kind);
    api.replace_status("shown", &Default::default(), &whole).await.unwrap();
}

/// The row of an object: its plain columns, or those that only `-o wide` shows. Ages change.
fn row(table: &Value, name: &str, wide: bool) -> String {
    let definitions = table["columnDefinitions"].as_array().unwrap();
    let rows = table["rows"].as_array().unwrap();
    let row = rows.iter().find(|r| r["cells"][0] == name).unwrap();
    let mut shown = Vec::new();
    for (column, cell) in definitions.iter().zip(row["cells"].as_array().unwrap()) {
        if (column["priority"].as_i64().unwrap_or(0) > 0) != wide {
            continue;
        }
        let title = text(&column["name"]);
        let cell = cell.as_str().map_or_else(|| cell.to_string(), str::to_owned);
        shown.push(if title == "Age" { title.to_owned() } else { format!("{title}={cell}") });
    }
    shown.join(" ")
}

/// Static pools can be scaled.
async fn scaling(served: &Served) {
    let pool = json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool",
        "metadata": {"name": "static"},
        "spec": {"replicas": 1, "template": {"spec": {"requirements": [],
            "nodeClassRef": {"group": "g", "kind": "K", "name": "n"}}}}});
    served.create(&pool).await;
    served.world.kubectl(&["scale", "nodepool", "static", "--replicas=4"]);
    assert_eq!(served.get("karpenter.sh/v1", "NodePool", "static").await["spec"]["replicas"], 4);
    let refused = served.world.kubectl_with(&["scale", "nodepool", "shown", "--replicas=4"], "");
    assert!(refused.is_err(), "a dynamic pool has no replicas");
}
