//! Both versions of what is stored, through a real API server; and reviews that are none.

use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use kube::api::{DynamicObject, ListParams, PostParams};
use kube::{Client, Config};
use serde_json::{Value, json};

use super::{Served, text};
use crate::support::World;
use crate::support::world::root;

/// The first cluster's manifests, as they were written for v1beta1.
const MANIFESTS: &str = "examples/weasel-eks/manifests.yaml";
/// How many objects are listed at once.
const MANY: usize = 1000;

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_are_served() {
    let served = Served::up().await;
    first_cluster(&served).await;
    later_fields(&served).await;
    nonsense(&served).await;
    load(&served).await;
}

/// The manifests are stored, and read in both versions.
async fn first_cluster(served: &Served) {
    let text = std::fs::read_to_string(root().join(MANIFESTS)).unwrap();
    served.world.apply(&text).await;
    let pool = served.get("karpenter.sh/v1", "NodePool", "default").await;
    let spec = &pool["spec"];
    assert_eq!(spec["disruption"]["consolidationPolicy"], "WhenEmptyOrUnderutilized");
    assert_eq!(spec["disruption"]["consolidateAfter"], "0s");
    assert_eq!(spec["template"]["spec"]["expireAfter"], "720h");
    assert_eq!(
        spec["template"]["spec"]["nodeClassRef"],
        json!({"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"})
    );
    let class = served.get("karpenter.k8s.aws/v1", "EC2NodeClass", "default").await;
    assert_eq!(class["spec"]["amiFamily"], "AL2");
    assert_eq!(class["spec"]["amiSelectorTerms"], json!([{"id": "ami-09c00c2e93ce7bd23"}]));
    assert_eq!(class["spec"]["metadataOptions"]["httpPutResponseHopLimit"], 2);
    for written in serde_saphyr::from_multiple::<Value>(&text).unwrap() {
        let (version, kind) = (super::text(&written["apiVersion"]), super::text(&written["kind"]));
        let read = served.get(version, kind, "default").await;
        contains(&read["spec"], &written["spec"], &format!("{kind} spec"));
        let marks = read["metadata"]["annotations"].as_object().unwrap();
        assert!(marks.keys().all(|k| !k.starts_with("compatibility.")), "{marks:?}");
    }
    // Applying the same again changes nothing.
    let before = served.get("karpenter.sh/v1", "NodePool", "default").await;
    served.world.apply(&text).await;
    let after = served.get("karpenter.sh/v1", "NodePool", "default").await;
    assert_eq!(before["metadata"]["generation"], after["metadata"]["generation"]);
}

/// Checks that everything that was written is there.
fn contains(read: &Value, written: &Value, path: &str) {
    match written {
        Value::Object(members) => {
            for (name, value) in members {
                contains(&read[name], value, &format!("{path}.{name}"));
            }
        }
        other => assert_eq!(read, other, "{path}"),
    }
}

/// What v1beta1 cannot say survives a client of v1beta1 that changes something else.
async fn later_fields(served: &Served) {
    let pool = json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool",
        "metadata": {"name": "later"},
        "spec": {
            "disruption": {"consolidationPolicy": "Balanced", "consolidateAfter": "30s",
                "budgets": [{"nodes": "1", "reasons": ["Drifted"]}]},
            "template": {"spec": {"terminationGracePeriod": "5m", "requirements": [
                {"key": "karpenter.k8s.aws/instance-cpu", "operator": "Gte", "values": ["4"]}],
                "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass",
                    "name": "default"}}}}});
    let v1 = served.create(&pool).await;
    let api = served.api("karpenter.sh/v1beta1", "NodePool");
    let mut beta: DynamicObject = api.get("later").await.unwrap();
    beta.data["spec"]["weight"] = json!(5);
    api.replace("later", &PostParams::default(), &beta).await.unwrap();
    let mut want = v1["spec"].clone();
    want["weight"] = json!(5);
    let read = served.get("karpenter.sh/v1", "NodePool", "later").await;
    assert_eq!(read["spec"], want);
    assert_eq!(read["metadata"].get("annotations"), None, "nothing of ours is left");
}

/// A thousand objects are converted in one list.
async fn load(served: &Served) {
    let api = served.api("karpenter.sh/v1", "NodePool");
    let start = Instant::now();
    stream::iter(0..MANY)
        .map(|i| {
            let api = api.clone();
            async move {
                let pool = json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool",
                    "metadata": {"name": format!("load-{i}")},
                    "spec": {"limits": {"cpu": i}, "template": {
                        "metadata": {"labels": {"team": format!("t{i}")}},
                        "spec": {"requirements": [
                            {"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}],
                        "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass",
                            "name": "default"}}}}});
                let pool: DynamicObject = serde_json::from_value(pool).unwrap();
                api.create(&PostParams::default(), &pool).await.unwrap();
            }
        })
        .buffer_unordered(16)
        .collect::<Vec<()>>()
        .await;
    let stored = start.elapsed();
    let start = Instant::now();
    let beta = served.api("karpenter.sh/v1beta1", "NodePool");
    let list = beta.list(&ListParams::default()).await.unwrap();
    let listed = start.elapsed();
    let of_load = |o: &&DynamicObject| o.metadata.name.as_ref().unwrap().starts_with("load-");
    let items: Vec<&DynamicObject> = list.items.iter().filter(of_load).collect();
    assert_eq!(items.len(), MANY);
    for item in items {
        assert_eq!(item.types.as_ref().unwrap().api_version, "karpenter.sh/v1beta1");
        let disruption = &item.data["spec"]["disruption"];
        assert_eq!(disruption["consolidationPolicy"], "WhenUnderutilized");
        assert_eq!(disruption["expireAfter"], "720h");
    }
    eprintln!("{MANY} objects stored in {stored:?}, listed in v1beta1 in {listed:?}");
    assert!(listed < Duration::from_secs(30), "the API server gives up after 30 s: {listed:?}");
}

/// Asks the webhook itself: status and body.
async fn ask(port: u16, path: &str, body: Vec<u8>) -> Result<Value, String> {
    let mut config = Config::new(format!("https://127.0.0.1:{port}").parse().unwrap());
    config.accept_invalid_certs = true;
    let client = Client::try_from(config).unwrap();
    let request =
        http::Request::post(path).header("Content-Type", "application/json").body(body).unwrap();
    let answer = client.request_text(request).await.map_err(|e| e.to_string())?;
    serde_json::from_str(&answer).map_err(|e| format!("{answer:?}: {e}"))
}

/// Whatever it is asked, the webhook answers, and goes on answering.
async fn nonsense(served: &Served) {
    let path = "/conversion/karpenter.sh";
    let review = |request: Value| {
        serde_json::to_vec(&json!({"apiVersion": "apiextensions.k8s.io/v1",
            "kind": "ConversionReview", "request": request}))
        .unwrap()
    };
    for body in [b"".to_vec(), b"{".to_vec(), b"\xff\xfe".to_vec(), vec![b'['; 100_000]] {
        assert!(ask(served.port, path, body).await.is_err());
    }
    let pool = json!({"apiVersion": "karpenter.sh/v1beta1", "kind": "NodePool",
        "metadata": {"name": "p", "annotations": {"big": "x".repeat(3 << 20)}},
        "spec": {"template": {"spec": {"nodeClassRef": {"name": "c"}, "requirements": []}}}});
    for (request, says) in [
        (json!(null), "request.desiredAPIVersion"),
        (json!({"uid": "u", "desiredAPIVersion": 3}), "request.desiredAPIVersion"),
        (json!({"uid": "u", "desiredAPIVersion": "karpenter.sh/v1"}), "request.objects"),
        (
            json!({"uid": "u", "desiredAPIVersion": "karpenter.sh/v1", "objects": [pool.clone(), 7]}),
            "request.objects[1]",
        ),
        (
            json!({"uid": "u", "desiredAPIVersion": "karpenter.sh/v9", "objects": [pool.clone()]}),
            "expected NodePool, NodeClaim or EC2NodeClass in v1beta1 or v1",
        ),
    ] {
        let answer = ask(served.port, path, review(request.clone())).await.unwrap();
        let result = &answer["response"]["result"];
        assert_eq!(result["status"], "Failure", "{answer}");
        assert!(text(&result["message"]).contains(says), "{answer}");
    }
    // An object of 3 MB is converted like any other.
    let request = json!({"uid": "u", "desiredAPIVersion": "karpenter.sh/v1", "objects": [pool]});
    let answer = ask(served.port, path, review(request)).await.unwrap();
    let converted = &answer["response"]["convertedObjects"][0];
    assert_eq!(answer["response"]["result"]["status"], "Success");
    assert_eq!(converted["apiVersion"], "karpenter.sh/v1");
    assert_eq!(text(&converted["metadata"]["annotations"]["big"]).len(), 3 << 20);
}

/// Without a webhook v1 goes on as ever; v1beta1 says what is missing.
#[tokio::test(flavor = "multi_thread")]
async fn v1_needs_no_webhook() {
    let world = World::up().await;
    let pool = json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool",
        "metadata": {"name": "p"},
        "spec": {"template": {"spec": {"requirements": [],
            "nodeClassRef": {"group": "g", "kind": "K", "name": "n"}}}}});
    world.kubectl_with(&["apply", "-f", "-"], &pool.to_string()).unwrap();
    assert!(world.kubectl(&["get", "nodepools"]).contains('p'));
    world.kubectl(&["label", "nodepool", "p", "a=b"]);
    let error = world.kubectl_with(&["get", "nodepools.v1beta1.karpenter.sh"], "").unwrap_err();
    assert!(error.contains("conversion webhook"), "{error}");
    world.kubectl(&["delete", "nodepool", "p"]);
}
