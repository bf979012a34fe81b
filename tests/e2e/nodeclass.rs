//! EC2NodeClasses: every family boots, drift is found and only drift, broken input is told and
//! mended, and what is left over is removed.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use karpenter::api::v1::{EC2NodeClass, NodeClaim};
use kube::Api;
use serde_json::{Value, json};

use crate::chain::condition;
use crate::support::{Controller, World, until, within};

mod broken;
mod drift;
mod expressions;
mod images;
mod isolation;
mod leftovers;

const ROLE: &str = "KarpenterNodeRole-weasel-eks";
const CLUSTER: &str = "weasel-eks";
/// The image that the founding manifests name.
const AL2: &str = "ami-09c00c2e93ce7bd23";
/// Things that live by the minute need more than the usual patience.
const MINUTES: Duration = Duration::from_secs(600);

pub fn class(name: &str, over: Value) -> Value {
    let discovery = json!([{"tags": {"karpenter.sh/discovery": CLUSTER}}]);
    let mut class = json!({
        "apiVersion": "karpenter.k8s.aws/v1", "kind": "EC2NodeClass", "metadata": {"name": name},
        "spec": {
            "amiSelectorTerms": [{"alias": "al2023@v20261101"}],
            "role": ROLE,
            "subnetSelectorTerms": discovery,
            "securityGroupSelectorTerms": discovery,
        },
    });
    class["spec"].as_object_mut().unwrap().extend(over.as_object().unwrap().clone());
    class
}

/// A NodePool of one type whose nodes are never disrupted; `family` is a label of its nodes.
fn pool(name: &str, class: &str, os: &str, arch: &str) -> Value {
    let kind = if arch == "arm64" { "m6g.large" } else { "m5.large" };
    let is = |key: &str, value: &str| json!({"key": key, "operator": "In", "values": [value]});
    json!({
        "apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": {"name": name},
        "spec": {
            "disruption": {"consolidateAfter": "Never", "budgets": [{"nodes": "0"}]},
            "template": {
                "metadata": {"labels": {"family": name}},
                "spec": {
                    "requirements": [
                        is("node.kubernetes.io/instance-type", kind),
                        is("kubernetes.io/os", os),
                        is("kubernetes.io/arch", arch),
                        is("karpenter.sh/capacity-type", "on-demand"),
                    ],
                    "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": class},
                },
            },
        },
    })
}

/// A pod that only a node of that pool may run.
fn pod(name: &str, pool: &str, os: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "nodeSelector": {"family": pool, "kubernetes.io/os": os},
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "pause", "image": "pause",
                "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}}}],
        },
    })
}

async fn apply(world: &World, objects: &[Value]) {
    for object in objects {
        world.apply(&object.to_string()).await;
    }
}

/// Applies so that fields left out are taken away, too.
async fn replace(world: &World, object: &Value) {
    world.apply(&object.to_string()).await;
}

pub async fn class_of(world: &World, name: &str) -> EC2NodeClass {
    Api::<EC2NodeClass>::all(world.kube.clone()).get(name).await.unwrap()
}

fn find<'a>(list: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    list.iter().find(|c| c.type_ == kind)
}

/// Waits until a condition of the class has that status and reason, with these words in its message.
async fn says(world: &World, name: &str, kind: &str, status: &str, reason: &str, words: &str) {
    within(MINUTES, &format!("{name}: {kind} is {status} for {reason} ({words})"), || async {
        let list = class_of(world, name).await.status?.conditions;
        let found = find(&list, kind)?;
        let good =
            found.status == status && found.reason == reason && found.message.contains(words);
        good.then_some(())
    })
    .await;
}

pub async fn ready(world: &World, name: &str) {
    says(world, name, "Ready", "True", "Ready", "").await;
}

async fn claim_of(world: &World, pool: &str) -> Option<NodeClaim> {
    let claims = world.claims().await;
    claims.into_iter().find(|c| {
        c.metadata.labels.as_ref().and_then(|l| l.get("karpenter.sh/nodepool")).map(String::as_str)
            == Some(pool)
    })
}

/// Waits until the pool has a node in use.
async fn joins(world: &World, pool: &str) -> NodeClaim {
    within(MINUTES, &format!("an initialized node of {pool}"), || async {
        claim_of(world, pool).await.filter(|c| condition(c, "Initialized"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_family_boots() {
    let world = World::up().await;
    let controller = Controller::start(&world);
    let families = [
        (
            "al2",
            "linux",
            "amd64",
            json!({"amiFamily": "AL2", "amiSelectorTerms": [{"id": AL2}], "userData": "#!/bin/bash\necho hello\n"}),
        ),
        (
            "al2023",
            "linux",
            "amd64",
            json!({"userData": "apiVersion: node.eks.aws/v1alpha1\nkind: NodeConfig\nspec:\n  kubelet:\n    config:\n      maxParallelImagePulls: 5\n"}),
        ),
        (
            "al2023-arm",
            "linux",
            "arm64",
            json!({"amiSelectorTerms": [{"alias": "al2023@latest"}], "instanceStorePolicy": "RAID0"}),
        ),
        (
            "bottlerocket",
            "linux",
            "amd64",
            json!({"amiSelectorTerms": [{"alias": "bottlerocket@latest"}], "userData": "[settings.kernel]\nlockdown = \"integrity\"\n"}),
        ),
        (
            "windows2019",
            "windows",
            "amd64",
            json!({"amiSelectorTerms": [{"alias": "windows2019@latest"}]}),
        ),
        (
            "windows2022",
            "windows",
            "amd64",
            json!({"amiSelectorTerms": [{"alias": "windows2022@latest"}], "userData": "Write-Host hello"}),
        ),
        (
            "windows2025",
            "windows",
            "amd64",
            json!({"amiSelectorTerms": [{"alias": "windows2025@latest"}]}),
        ),
        ("custom", "linux", "amd64", custom(&world)),
    ];
    for (name, os, arch, over) in families.clone() {
        apply(&world, &[class(name, over), pool(name, name, os, arch), pod(name, name, os)]).await;
    }
    for (name, os, arch, _) in families.clone() {
        let claim = joins(&world, name).await;
        let node = claim.status.unwrap().node_name.unwrap();
        let nodes = world.nodes().await;
        let node = nodes.iter().find(|n| n.metadata.name.as_deref() == Some(&node)).unwrap();
        let labels = node.metadata.labels.as_ref().unwrap();
        assert_eq!(labels["kubernetes.io/os"], os, "{name}");
        assert_eq!(labels["kubernetes.io/arch"], arch, "{name}");
        assert_eq!(labels["family"], name);
        let taints = node.spec.as_ref().unwrap().taints.clone().unwrap_or_default();
        assert!(taints.iter().all(|t| t.key != "karpenter.sh/unregistered"), "{name}: {taints:?}");
        let pods = &node.status.as_ref().unwrap().capacity.as_ref().unwrap()["pods"].0;
        assert_eq!(pods, if os == "windows" { "110" } else { "29" }, "{name}");
    }
    until("eight running pods", || async { (world.running().await == 8).then_some(()) }).await;
    for (name, _, arch, _) in families {
        is_rendered(&world, name, if arch == "arm64" { "m6g.large" } else { "m5.large" }).await;
    }
    assert!(controller.logged("Unknown parameter in userData K8s settings").is_empty());
    // Nothing drifts of itself.
    for claim in world.claims().await {
        assert!(!condition(&claim, "Drifted"), "{claim:?}");
    }
    // A template of each class, and none once nobody needs it.
    let templates = world.launch_templates().await;
    assert!(templates.len() >= 8, "{templates:?}");
    within(MINUTES, "unused launch templates are removed", || async {
        world.launch_templates().await.is_empty().then_some(())
    })
    .await;
}

/// `karpenter render` tells beforehand what the launch of a class's node used.
async fn is_rendered(world: &World, name: &str, kind: &str) {
    let eks = aws_sdk_eks::Client::new(&world.aws);
    let cluster = eks.describe_cluster().name(CLUSTER).send().await.unwrap().cluster.unwrap();
    let file = |suffix: &str, text: &str| {
        let path = world.dir.join(format!("{name}-{suffix}.yaml"));
        std::fs::write(&path, text).unwrap();
        path
    };
    let info = json!({"clusterName": CLUSTER, "clusterEndpoint": world.env["CLUSTER_ENDPOINT"],
        "clusterCABundle": world.env["CLUSTER_CA_BUNDLE"], "region": "us-east-1",
        "clusterCIDR": cluster.kubernetes_network_config().unwrap().service_ipv4_cidr()});
    let done = std::process::Command::new(env!("CARGO_BIN_EXE_karpenter"))
        .args(["render", "--output", "json", "--capacity-type", "on-demand"])
        .args(["--instance-type", kind, "--nodeclass"])
        .arg(file("class", &world.kubectl(&["get", "ec2nodeclass", name, "-o", "yaml"])))
        .arg("--nodepool")
        .arg(file("pool", &world.kubectl(&["get", "nodepool", name, "-o", "yaml"])))
        .arg("--cluster-info")
        .arg(file("info", &info.to_string()))
        .output()
        .unwrap();
    assert!(done.status.success(), "{name}: {done:?}");
    assert!(done.stderr.is_empty(), "{name}: {done:?}");
    let rendered: Value = serde_json::from_slice(&done.stdout).unwrap();
    let rendered = &rendered.as_array().unwrap()[0];
    let calls = world.calls("CreateLaunchTemplate").await;
    // The name is made from everything in the template.
    let made = calls
        .iter()
        .map(|c| &c["parameters"])
        .find(|p| p["LaunchTemplateName"] == rendered["launchTemplateName"]);
    let made = made.unwrap_or_else(|| panic!("{name} was not made as rendered: {rendered}"));
    let data = &made["LaunchTemplateData"];
    assert_eq!(data["UserData"], rendered["launchTemplateData"]["UserData"], "{name}");
    assert_eq!(data["ImageId"], rendered["launchTemplateData"]["ImageId"], "{name}");
}

/// A user's own image, which is told nothing but what the user says.
fn custom(world: &World) -> Value {
    let config = json!({
        "apiVersion": "node.eks.aws/v1alpha1", "kind": "NodeConfig",
        "spec": {
            "cluster": {
                "name": CLUSTER, "apiServerEndpoint": world.env["CLUSTER_ENDPOINT"],
                "certificateAuthority": world.env["CLUSTER_CA_BUNDLE"], "cidr": "10.100.0.0/16",
            },
            "kubelet": {
                "config": {"maxPods": 29, "registerWithTaints": [
                    {"key": "karpenter.sh/unregistered", "effect": "NoExecute"}]},
                "flags": ["--node-labels=family=custom"],
            },
        },
    });
    let archive = format!(
        "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"B\"\n\n--B\nContent-Type: application/node.eks.aws\n\n{config}\n--B--\n"
    );
    json!({"amiFamily": "Custom", "userData": archive,
        "amiSelectorTerms": [{"name": "amazon-eks-node-al2023-x86_64-standard-1.35-*"}]})
}
