//! Answers that are lost, reservations that end, stopped instances, and pods that take their time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use aws_sdk_ec2::types::{CapacityReservationInstancePlatform, InstanceMatchCriteria};
use serde_json::{Value, json};

use crate::chain::{condition, one_initialized};
use crate::instances::{apply, node_pool, running, spread};
use crate::support::{Controller, World, node_class, stays, until, within};

/// A world whose API server can lose answers, and a controller that reaches it so.
async fn unheard() -> (World, Controller) {
    let world = World::with(&["--proxy"]).await;
    let controller =
        Controller::with(&world, &[("KUBECONFIG", &world.env["WORLD_PROXIED_KUBECONFIG"])]);
    (world, controller)
}

/// The API server's answers to requests of this kind are lost, so many times.
fn lose(world: &World, rule: Value, times: usize) {
    let mut rule = rule;
    rule["times"] = json!(times);
    rule["drop"] = json!(true);
    let proxied = &world.env["WORLD_PROXIED_KUBECONFIG"];
    let words = ["--kubeconfig", proxied, "create", "--raw", "/_local/answers", "-f", "-"];
    world.kubectl_with(&words, &rule.to_string()).unwrap();
}

/// How many answers were lost so far.
fn lost(world: &World) -> u64 {
    let proxied = &world.env["WORLD_PROXIED_KUBECONFIG"];
    let text = world.kubectl(&["--kubeconfig", proxied, "get", "--raw", "/_local/answers"]);
    let rules: Vec<Value> = serde_json::from_str(&text).unwrap();
    rules.iter().filter_map(|r| r["met"].as_u64()).sum()
}

/// Three pods get a node each, though answers of this kind are lost: as many claims and instances
/// as there are nodes, whatever was not heard of.
async fn nothing_is_doubled(rule: Value, times: usize) {
    let (world, _controller) = unheard().await;
    let pool = node_pool(&["t3.medium"], &["on-demand"]);
    apply(&world, &[node_class("default", json!({})), pool]).await;
    lose(&world, rule, times);
    apply(&world, &[spread("web", 3)]).await;
    running(&world, 3).await;
    assert_eq!(lost(&world), times as u64);
    let count = || async { (world.claims().await.len(), world.instances().await.len()) };
    assert_eq!(count().await, (3, 3));
    stays(Duration::from_secs(15), "claims and instances", (3, 3), count).await;
    let all = world.claims().await;
    assert!(all.iter().all(|c| condition(c, "Initialized")), "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn node_claims_whose_creation_was_not_heard_of_are_not_made_twice() {
    let claims = json!({"verb": "create", "group": "karpenter.sh", "resource": "nodeclaims"});
    nothing_is_doubled(claims, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_whose_claim_was_written_unheard_are_not_launched_twice() {
    let written = json!({"verb": "patch", "resource": "nodeclaims", "contains": "aws:///"});
    nothing_is_doubled(written, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_reservation_is_cancelled_runs_on_as_on_demand() {
    let world = World::up().await;
    let _controller = Controller::start(&world);
    let made = world
        .ec2
        .create_capacity_reservation()
        .instance_type("t3.medium")
        .instance_platform(CapacityReservationInstancePlatform::LinuxUnix)
        .availability_zone("us-east-1b")
        .instance_count(1)
        .instance_match_criteria(InstanceMatchCriteria::Targeted)
        .send()
        .await
        .unwrap();
    let id = made.capacity_reservation.unwrap().capacity_reservation_id.unwrap();
    let class = json!({"capacityReservationSelectorTerms": [{"id": id}]});
    let pool = node_pool(&["t3.medium"], &["reserved", "on-demand"]);
    apply(&world, &[node_class("default", class), pool, spread("web", 1)]).await;
    let claim = one_initialized(&world).await;
    running(&world, 1).await;
    let kind = |labels: &std::collections::BTreeMap<String, String>| {
        let reservation = labels.get("karpenter.k8s.aws/capacity-reservation-id").cloned();
        (labels["karpenter.sh/capacity-type"].clone(), reservation)
    };
    let labels = claim.metadata.labels.clone().unwrap();
    assert_eq!(kind(&labels), ("reserved".to_owned(), Some(id.clone())));
    let before = world.instances().await;
    assert_eq!(before[0].capacity_reservation_id(), Some(id.as_str()));

    world.ec2.cancel_capacity_reservation().capacity_reservation_id(&id).send().await.unwrap();
    let now = || async {
        let claims = world.claims().await;
        let nodes = world.nodes().await;
        let claims = claims.iter().filter_map(|c| c.metadata.labels.as_ref());
        let nodes = nodes.iter().filter_map(|n| n.metadata.labels.as_ref());
        claims.chain(nodes).map(kind).collect::<Vec<_>>()
    };
    let settled = vec![("on-demand".to_owned(), None); 2];
    // The capacity types are compared once a minute.
    within(Duration::from_secs(150), "labels of an on-demand node", || async {
        (now().await == settled).then_some(())
    })
    .await;
    // Nothing is replaced, neither now nor by the class's next look at its reservations.
    stays(Duration::from_secs(75), "the labels", settled, now).await;
    let after = world.instances().await;
    assert_eq!(after.len(), 1);
    assert_eq!(after[0].instance_id(), before[0].instance_id());
    assert_eq!(world.claims().await[0].metadata.name, claim.metadata.name);
    assert_eq!(world.running().await, 1);
}

/// A pod on the pool's node that takes its time.
fn pod(name: &str, grace: u64, annotations: Value, lifecycle: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "annotations": annotations},
        "spec": {"terminationGracePeriodSeconds": grace, "containers": [{
            "name": "c", "image": "pause", "lifecycle": lifecycle,
            "resources": {"requests": {"cpu": "50m", "memory": "50Mi"}}}]},
    })
}

fn hook(seconds: u64) -> Value {
    json!({"preStop": {"sleep": {"seconds": seconds}}})
}

async fn names_of_pods(world: &World) -> BTreeSet<String> {
    world.pods().await.into_iter().filter_map(|p| p.metadata.name).collect()
}

/// A controller, and a node with these pods, which run; the claim's name.
async fn node_with(world: &World, template: Value, pods: &[Value]) -> (Controller, String) {
    let controller = Controller::start(world);
    let mut pool = node_pool(&["t3.large"], &["on-demand"]);
    pool["spec"]["disruption"] = json!({"consolidateAfter": "Never"});
    let spec = pool["spec"]["template"]["spec"].as_object_mut().unwrap();
    spec.extend(template.as_object().unwrap().clone());
    apply(world, &[node_class("default", json!({})), pool]).await;
    apply(world, pods).await;
    let claim = one_initialized(world).await;
    running(world, pods.len()).await;
    (controller, claim.metadata.name.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_waits_for_pods_that_take_their_grace() {
    let world = World::up().await;
    let pods = [
        pod("hooked", 60, json!({}), hook(12)),
        pod("slow", 8, json!({"local-world/termination": "slow"}), json!({})),
        pod("quick", 60, json!({}), json!({})),
    ];
    let (_controller, claim) = node_with(&world, json!({}), &pods).await;
    let start = Instant::now();
    world.kubectl(&["delete", "nodeclaim", &claim, "--wait=false"]);
    let ends = |name: &'static str| {
        let world = &world;
        async move {
            until(&format!("{name} has ended"), || async {
                (!names_of_pods(world).await.contains(name)).then_some(())
            })
            .await;
            start.elapsed()
        }
    };
    let (quick, slow) = (ends("quick").await, ends("slow").await);
    assert!(quick < Duration::from_secs(6), "{quick:?}");
    assert!(slow >= Duration::from_secs(7), "{slow:?}");
    // The instance is there for as long as a pod is on it.
    assert_eq!(world.instances().await.len(), 1);
    let hooked = ends("hooked").await;
    assert!(hooked >= Duration::from_secs(11), "{hooked:?}");
    within(Duration::from_secs(15), "the instance terminated", || async {
        world.instances().await.is_empty().then_some(())
    })
    .await;
    until("the claim gone", || async { world.claims().await.is_empty().then_some(()) }).await;
    let evicted = world.events("Evicted").await;
    assert_eq!(evicted.len(), 3, "each pod is evicted once: {evicted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_with_a_longer_grace_than_their_node_end_with_it() {
    let world = World::up().await;
    let pods = [pod("long", 600, json!({}), hook(600))];
    let limit = json!({"terminationGracePeriod": "25s"});
    let (_controller, claim) = node_with(&world, limit, &pods).await;
    let start = Instant::now();
    world.kubectl(&["delete", "nodeclaim", &claim, "--wait=false"]);
    until("the instance terminated", || async { world.instances().await.is_empty().then_some(()) })
        .await;
    let took = start.elapsed().as_secs();
    assert!((22..40).contains(&took), "{took} s");
    until("the claim gone", || async { world.claims().await.is_empty().then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unready_pods_hold_a_drain_only_where_their_budget_says_so() {
    let world = World::up().await;
    let never = json!({"local-world/ready": "never"});
    let mut pods = ["kept", "let-go"].map(|n| pod(n, 0, never.clone(), json!({})));
    let mut budgets = Vec::new();
    for (pod, policy) in pods.iter_mut().zip(["IfHealthyBudget", "AlwaysAllow"]) {
        let labels = json!({"app": pod["metadata"]["name"]});
        pod["metadata"]["labels"] = labels.clone();
        budgets.push(json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
            "metadata": {"name": pod["metadata"]["name"], "namespace": "default"},
            "spec": {"minAvailable": 1, "unhealthyPodEvictionPolicy": policy,
                "selector": {"matchLabels": labels}}}));
    }
    let (_controller, claim) = node_with(&world, json!({}), &pods).await;
    apply(&world, &budgets).await;
    // The disruption controller has looked at both.
    until("the budgets' status", || async {
        let text = world.kubectl(&["get", "pdb", "-o", "jsonpath={.items[*].status.expectedPods}"]);
        (text == "1 1").then_some(())
    })
    .await;
    world.kubectl(&["delete", "nodeclaim", &claim, "--wait=false"]);
    let there = || async { names_of_pods(&world).await };
    until("the one that is let go", || async { (!there().await.contains("let-go")).then_some(()) })
        .await;
    let kept = BTreeSet::from(["kept".to_owned()]);
    stays(Duration::from_secs(15), "the other", kept, there).await;
    assert_eq!(world.instances().await.len(), 1);
    world.kubectl(&["annotate", "pod", "kept", "--overwrite", "local-world/ready=now"]);
    world.kubectl(&[
        "patch",
        "pdb",
        "kept",
        "--type=merge",
        "-p",
        r#"{"spec":{"minAvailable":0}}"#,
    ]);
    until("the claim gone", || async { world.claims().await.is_empty().then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_instance_was_stopped_is_replaced() {
    let world = World::up().await;
    world.admin("state-changes", Some(json!(["stopping", "stopped", "terminated"]))).await;
    let queue = ("INTERRUPTION_QUEUE", world.env["WORLD_QUEUE"].as_str());
    let controller = Controller::with(&world, &[queue]);
    let pool = node_pool(&["t3.medium"], &["on-demand"]);
    apply(&world, &[node_class("default", json!({})), pool, spread("web", 1)]).await;
    let claim = one_initialized(&world).await;
    running(&world, 1).await;
    let id = world.instances().await[0].instance_id().unwrap().to_owned();
    world.ec2.stop_instances().instance_ids(&id).send().await.unwrap();
    until("another instance, and that alone", || async {
        let all = world.instances().await;
        (all.len() == 1 && all[0].instance_id() != Some(&id)).then_some(())
    })
    .await;
    running(&world, 1).await;
    let line = &controller.logged("initiating delete from interruption message")[0];
    assert_eq!(line["messageKind"], "instance_stopped");
    assert_eq!(line["NodeClaim"]["name"], claim.metadata.name.as_deref().unwrap());
}

/// A pod that needs some of a device.
fn device_pod(name: &str, resource: &str, count: &str) -> Value {
    let mut pod = pod(name, 0, json!({}), json!({}));
    let amounts = json!({"cpu": "50m", "memory": "50Mi", resource: count});
    pod["spec"]["containers"][0]["resources"] =
        json!({"requests": amounts, "limits": {resource: count}});
    pod
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_with_devices_get_nodes_that_have_them() {
    let world = World::with(&["--pod-eni", "--csi"]).await;
    let _controller = Controller::start(&world);
    let types = ["m5.large", "c6in.32xlarge", "inf2.xlarge", "g4dn.xlarge"];
    let mut pool = node_pool(&types, &["on-demand"]);
    pool["spec"]["template"]["spec"]["startupTaints"] =
        json!([{"key": "ebs.csi.aws.com/agent-not-ready", "effect": "NoExecute"}]);
    // The accelerators' image and the plain one.
    let class = json!({"amiFamily": "AL2023", "amiSelectorTerms": [{"alias": "al2023@latest"}]});
    apply(&world, &[node_class("default", class), pool]).await;
    apply(
        &world,
        &[
            device_pod("branch", "vpc.amazonaws.com/pod-eni", "1"),
            device_pod("fabric", "vpc.amazonaws.com/efa", "1"),
            device_pod("neuron", "aws.amazon.com/neuron", "1"),
            device_pod("cores", "aws.amazon.com/neuroncore", "2"),
            device_pod("gpu", "nvidia.com/gpu", "1"),
        ],
    )
    .await;
    running_pods(&world, &["branch", "fabric", "neuron", "cores", "gpu"]).await;
    until("all claims initialized", || async {
        world.claims().await.iter().all(|c| condition(c, "Initialized")).then_some(())
    })
    .await;
    for node in world.nodes().await {
        let taints = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
        assert!(taints.is_empty(), "{taints:?}");
    }
}

/// Waits until these pods run.
async fn running_pods(world: &World, names: &[&str]) {
    until(&format!("{names:?} run"), || async {
        let pods = world.pods().await;
        let runs = |name: &&str| {
            pods.iter().any(|p| {
                p.metadata.name.as_deref() == Some(name)
                    && p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
            })
        };
        names.iter().all(runs).then_some(())
    })
    .await;
}
