//! The founding document's cluster gets its node, and loses it again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aws_sdk_ec2::types::Instance;
use k8s_openapi::api::core::v1::Node;
use karpenter::api::v1::NodeClaim;
use serde_json::Value;

use crate::support::{Controller, World, stays, until};

const MANIFESTS: &str = "examples/weasel-eks/manifests.yaml";
/// The image that the manifests name.
const IMAGE: &str = "ami-09c00c2e93ce7bd23";

/// Whether a condition of the claim is True.
pub fn condition(claim: &NodeClaim, kind: &str) -> bool {
    let list = claim.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    list.iter().any(|c| c.type_ == kind && c.status == "True")
}

/// Waits until there is exactly one NodeClaim and it is initialized.
pub async fn one_initialized(world: &World) -> NodeClaim {
    until("one initialized NodeClaim", || async {
        let claims = world.claims().await;
        claims.into_iter().find(|c| condition(c, "Initialized"))
    })
    .await
}

/// Tags of an instance.
pub fn tags(instance: &Instance) -> BTreeMap<&str, &str> {
    let pairs = instance.tags().iter();
    pairs.filter_map(|t| Some((t.key()?, t.value()?))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_founding_cluster_gets_its_node_and_loses_it() {
    let world = World::up().await;
    // At debug level every line tells its place in the code, too.
    let controller = Controller::with(&world, &[("LOG_LEVEL", "info")]);
    world.apply_file(MANIFESTS).await;
    world.deploy("inflate", 3, "250m", "200Mi").await;

    let claim = one_initialized(&world).await;
    until("three running pods", || async { (world.running().await == 3).then_some(()) }).await;
    let instances = world.instances().await;
    assert_eq!(instances.len(), 1, "{instances:?}");
    check_instance(&world, &instances[0], &claim).await;
    let nodes = world.nodes().await;
    assert_eq!(nodes.len(), 1);
    check_node(&nodes[0], &claim);
    check_log(&controller, &claim);

    world.scale("inflate", 0);
    until("the claim gone", || async { world.claims().await.is_empty().then_some(()) }).await;
    assert!(world.nodes().await.is_empty());
    assert!(world.instances().await.is_empty());
    until("no launch template", || async {
        world.launch_templates().await.is_empty().then_some(())
    })
    .await;
}

async fn check_instance(world: &World, instance: &Instance, claim: &NodeClaim) {
    assert_eq!(instance.instance_type().unwrap().as_str(), "t3.medium");
    assert_eq!(instance.instance_lifecycle().unwrap().as_str(), "spot");
    assert_eq!(instance.image_id(), Some(IMAGE));
    let subnet = instance.subnet_id().unwrap();
    assert!(world.env["WORLD_SUBNETS"].split(',').any(|s| s == subnet), "{subnet}");
    let groups: BTreeSet<_> =
        instance.security_groups().iter().filter_map(|g| g.group_id()).collect();
    assert_eq!(groups, world.env["WORLD_SECURITY_GROUPS"].split(',').collect());
    let tags = tags(instance);
    let name = claim.metadata.name.as_deref().unwrap();
    assert_eq!(tags["karpenter.sh/nodepool"], "default");
    assert_eq!(tags["karpenter.sh/nodeclaim"], name);
    assert_eq!(tags["eks:eks-cluster-name"], "weasel-eks");
    assert_eq!(tags["kubernetes.io/cluster/weasel-eks"], "owned");
    let node = claim.status.as_ref().unwrap().node_name.as_deref().unwrap();
    until("the Name tag", || async {
        let found = world.instances().await;
        (crate::chain::tags(&found[0]).get("Name") == Some(&node)).then_some(())
    })
    .await;
    let profile = instance.iam_instance_profile().and_then(|p| p.arn()).unwrap();
    let profile = profile.rsplit('/').next().unwrap();
    let iam = aws_sdk_iam::Client::new(&world.aws);
    let profile = iam.get_instance_profile().instance_profile_name(profile).send().await.unwrap();
    let roles = profile.instance_profile.unwrap().roles;
    assert_eq!(roles[0].role_name, "KarpenterNodeRole-weasel-eks");
    let id = claim.status.as_ref().unwrap().provider_id.as_deref().unwrap();
    assert!(id.ends_with(instance.instance_id().unwrap()), "{id}");
}

fn check_node(node: &Node, claim: &NodeClaim) {
    let labels = node.metadata.labels.as_ref().unwrap();
    for (key, value) in [
        ("karpenter.sh/nodepool", "default"),
        ("karpenter.sh/registered", "true"),
        ("karpenter.sh/initialized", "true"),
        ("karpenter.sh/capacity-type", "spot"),
        ("kubernetes.io/arch", "amd64"),
        ("kubernetes.io/os", "linux"),
        ("node.kubernetes.io/instance-type", "t3.medium"),
        ("karpenter.k8s.aws/instance-family", "t3"),
    ] {
        assert_eq!(labels.get(key).map(String::as_str), Some(value), "{key}");
    }
    let taints = node.spec.as_ref().unwrap().taints.clone().unwrap_or_default();
    assert!(taints.iter().all(|t| t.key != "karpenter.sh/unregistered"), "{taints:?}");
    assert_eq!(node.metadata.name, claim.status.as_ref().unwrap().node_name);
}

/// The keys of each founding line, in their order.
const LINES: &[(&str, &[&str])] = &[
    ("found provisionable pod(s)", &["Pods", "duration"]),
    ("computed new nodeclaim(s) to fit pod(s)", &["nodeclaims", "pods"]),
    ("created nodeclaim", &["NodePool", "NodeClaim", "requests", "instance-types"]),
    (
        "launched nodeclaim",
        &[
            "controllerGroup",
            "controllerKind",
            "NodeClaim",
            "namespace",
            "name",
            "reconcileID",
            "provider-id",
            "instance-type",
            "zone",
            "capacity-type",
            "allocatable",
        ],
    ),
    (
        "registered nodeclaim",
        &[
            "controllerGroup",
            "controllerKind",
            "NodeClaim",
            "namespace",
            "name",
            "reconcileID",
            "provider-id",
            "Node",
        ],
    ),
    (
        "initialized nodeclaim",
        &[
            "controllerGroup",
            "controllerKind",
            "NodeClaim",
            "namespace",
            "name",
            "reconcileID",
            "provider-id",
            "Node",
            "allocatable",
        ],
    ),
];

/// The six lines of the founding document come in their order, each with its keys in their order.
fn check_log(controller: &Controller, claim: &NodeClaim) {
    let log: Vec<Value> = controller.log().into_iter().filter(|l| l["level"] == "INFO").collect();
    let mut last = 0;
    for (message, rest) in LINES {
        let at = log.iter().position(|l| l["message"] == *message);
        let at = at.unwrap_or_else(|| panic!("no line {message:?}"));
        assert!(at >= last, "{message:?} comes too early");
        last = at;
        let keys: Vec<&str> = log[at].as_object().unwrap().keys().map(String::as_str).collect();
        let start = ["level", "time", "logger", "message", "commit", "controller"];
        let wanted: Vec<&str> = start.iter().chain(rest.iter()).copied().collect();
        assert_eq!(keys, wanted, "{message:?}");
        assert_eq!(log[at]["logger"], "controller");
    }
    let launched = &controller.logged("launched nodeclaim")[0];
    assert_eq!(
        launched["allocatable"],
        serde_json::json!({"cpu": "1930m", "ephemeral-storage": "17Gi", "memory": "3246Mi", "pods": "17"})
    );
    assert_eq!(launched["controller"], "nodeclaim.lifecycle");
    assert_eq!(launched["NodeClaim"]["name"], claim.metadata.name.as_deref().unwrap());
    let created = &controller.logged("created nodeclaim")[0];
    assert_eq!(created["instance-types"], "t3.medium");
    assert_eq!(created["requests"]["pods"], "3");
    assert_eq!(created["requests"]["cpu"], "750m");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_killed_after_the_fleet_makes_no_second_instance() {
    let world = World::up().await;
    let mut controller = Controller::start(&world);
    world.apply_file(MANIFESTS).await;
    // CreateFleet is carried out, but its answer is long in coming: time enough to die.
    world
        .fault(serde_json::json!({"service": "ec2", "action": "CreateFleet", "delay": 600,
            "code": "InternalError", "status": 500, "lose": true}))
        .await;
    world.deploy("inflate", 3, "250m", "200Mi").await;
    until("the instance", || async { (world.instances().await.len() == 1).then_some(()) }).await;
    controller.kill();
    let claims = world.claims().await;
    assert_eq!(claims.len(), 1);
    assert!(claims[0].status.as_ref().and_then(|s| s.provider_id.as_ref()).is_none());
    world.heal().await;

    let _second = Controller::start(&world);
    let claim = one_initialized(&world).await;
    assert_eq!(claim.metadata.uid, claims[0].metadata.uid);
    until("three running pods", || async { (world.running().await == 3).then_some(()) }).await;
    stays(Duration::from_secs(3), "instances", 1, || async { world.instances().await.len() }).await;
    let launched = world.ec2.describe_instances().send().await.unwrap();
    assert_eq!(launched.reservations().iter().map(|r| r.instances().len()).sum::<usize>(), 1);
}
