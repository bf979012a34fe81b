//! Instances and fleets: what is launched when EC2 refuses, throttles, forgets or tells late.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use karpenter::api::v1::NodeClaim;
use serde_json::{Value, json};

use crate::chain::tags;
use crate::support::{Controller, World, node_class, stays, until, within};

/// Text that launches have in their bodies and dry runs have not: the tag with the claim's name.
const REAL: &str = "karpenter.sh%2Fnodeclaim";

/// A pool of these types and capacity types.
pub fn node_pool(types: &[&str], capacity_types: &[&str]) -> Value {
    let is = |key: &str, values: &[&str]| json!({"key": key, "operator": "In", "values": values});
    json!({
        "apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": {"name": "default"},
        "spec": {"template": {"spec": {
            "requirements": [
                is("node.kubernetes.io/instance-type", types),
                is("karpenter.sh/capacity-type", capacity_types),
            ],
            "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"},
        }}},
    })
}

/// A Deployment of pods that need a node each: no two fit on one of those used here.
pub fn spread(name: &str, replicas: usize) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "affinity": {"podAntiAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": [{
                            "labelSelector": {"matchLabels": {"app": name}},
                            "topologyKey": "kubernetes.io/hostname"}]}},
                    "containers": [{"name": "pause", "image": "pause",
                        "resources": {"requests": {"cpu": "1200m", "memory": "200Mi"}}}],
                },
            },
        },
    })
}

pub async fn apply(world: &World, manifests: &[Value]) {
    for manifest in manifests {
        world.apply(&manifest.to_string()).await;
    }
}

pub async fn running(world: &World, count: usize) {
    until(&format!("{count} running pods"), || async {
        (world.running().await == count).then_some(())
    })
    .await;
}

fn lifecycle(instance: &aws_sdk_ec2::types::Instance) -> &str {
    instance.instance_lifecycle().map_or("on-demand", |l| l.as_str())
}

/// Fleet requests, except those that only asked whether they would be allowed.
async fn fleets(world: &World) -> Vec<Value> {
    let calls = world.calls("CreateFleet").await;
    calls.into_iter().filter(|c| c["parameters"]["DryRun"].is_null()).collect()
}

/// Types that a fleet request names.
fn asked_types(call: &Value) -> BTreeSet<String> {
    let configs = call["parameters"]["LaunchTemplateConfigs"].as_array().unwrap();
    configs
        .iter()
        .flat_map(|c| c["Overrides"].as_array().unwrap())
        .map(|o| o["InstanceType"].as_str().unwrap().to_owned())
        .collect()
}

/// The value of a metric's sample that has all of these labels.
pub async fn metric(controller: &Controller, name: &str, labels: &[&str]) -> Option<f64> {
    let url = format!("http://127.0.0.1:{}", controller.metrics_port);
    let client = kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
    let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
    let text = client.request_text(request).await.unwrap();
    let line = text.lines().find(|l| {
        l.split(['{', ' ']).next() == Some(name) && labels.iter().all(|w| l.contains(w))
    })?;
    line.rsplit(' ').next()?.parse().ok()
}

fn provider_ids(claims: &[NodeClaim]) -> BTreeSet<String> {
    claims.iter().filter_map(|c| c.status.as_ref()?.provider_id.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_pool_is_avoided_by_the_next_launch() {
    let world = World::up().await;
    world.admin("pools", Some(json!({"t3.medium/*/spot": 0}))).await;
    let controller = Controller::start(&world);
    apply(
        &world,
        &[node_class("default", json!({})), node_pool(&["t3.medium", "t3.large"], &["spot"])],
    )
    .await;
    apply(&world, &[spread("first", 1)]).await;
    running(&world, 1).await;
    let instances = world.instances().await;
    assert_eq!(instances.len(), 1, "{instances:?}");
    assert_eq!(instances[0].instance_type().unwrap().as_str(), "t3.large");
    let asked = fleets(&world).await;
    assert_eq!(asked_types(&asked[0]), ["t3.large", "t3.medium"].map(str::to_owned).into());
    let marks = controller.logged("removing offering from offerings");
    let zones: BTreeSet<&str> = marks.iter().filter_map(|m| m["zone"].as_str()).collect();
    assert_eq!(zones, ["us-east-1a", "us-east-1b", "us-east-1c"].into());
    assert_eq!(marks[0]["reason"], "InsufficientInstanceCapacity");
    assert_eq!(marks[0]["instance-type"], "t3.medium");
    assert_eq!(marks[0]["capacity-type"], "spot");
    assert_eq!(marks[0]["ttl"], "3m0s");
    let failures = metric(
        &controller,
        "karpenter_cloudprovider_instance_launch_failures_total",
        &["reason=\"LaunchFailed\"", "zone=\"us-east-1a\"", "zone_id=\"use1-az"],
    )
    .await;
    assert_eq!(failures, Some(1.0));

    apply(&world, &[spread("second", 1)]).await;
    running(&world, 2).await;
    let asked = fleets(&world).await;
    assert_eq!(asked.len(), 2);
    assert_eq!(asked_types(&asked[1]), ["t3.large".to_owned()].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_spot_capacity_on_demand_is_taken() {
    let world = World::up().await;
    world.admin("pools", Some(json!({"*/*/spot": 0}))).await;
    let controller = Controller::start(&world);
    let pool = node_pool(&["t3.medium", "t3.large"], &["spot", "on-demand"]);
    apply(&world, &[node_class("default", json!({})), pool, spread("web", 1)]).await;
    running(&world, 1).await;
    let instances = world.instances().await;
    assert_eq!(instances.len(), 1, "{instances:?}");
    assert_eq!(lifecycle(&instances[0]), "on-demand");
    controller
        .says(&["insufficient capacity, with fleet error(s), InsufficientInstanceCapacity"])
        .await;
    let failed = &controller.logged("failed launching nodeclaim")[0];
    assert_eq!(failed["aws-operation-name"], "CreateFleet");
    assert_eq!(failed["aws-service-name"], "EC2");
    assert_eq!(failed["aws-error-code"], "UnfulfillableCapacity");
    assert_eq!(failed["aws-status-code"], 200);
    assert_eq!(failed["aws-request-id"].as_str().map(str::len), Some(36), "{failed}");
    let claims = world.claims().await;
    assert_eq!(claims.len(), 1, "the claim of the refused launch is gone");
    let node = &world.nodes().await[0];
    assert_eq!(node.metadata.labels.as_ref().unwrap()["karpenter.sh/capacity-type"], "on-demand");
}

#[tokio::test(flavor = "multi_thread")]
async fn throttling_delays_a_launch_and_fails_none() {
    let world = World::up().await;
    let throttle = |action: &str, times: u32| {
        json!({"service": "ec2", "action": action, "times": times,
            "code": "RequestLimitExceeded", "message": "Request limit exceeded.", "status": 503})
    };
    for rule in [
        throttle("CreateFleet", 5),
        throttle("DescribeInstances", 3),
        throttle("CreateLaunchTemplate", 2),
        throttle("CreateTags", 2),
    ] {
        world.fault(rule).await;
    }
    let controller = Controller::start(&world);
    let pool = node_pool(&["t3.medium"], &["spot"]);
    apply(&world, &[node_class("default", json!({})), pool, spread("web", 3)]).await;
    running(&world, 3).await;
    assert_eq!(world.instances().await.len(), 3);
    assert_eq!(controller.logged("created nodeclaim").len(), 3, "no claim was given up");
    until("all Name tags", || async {
        let instances = world.instances().await;
        instances.iter().all(|i| tags(i).contains_key("Name")).then_some(())
    })
    .await;
    let labels = ["service=\"EC2\"", "action=\"CreateFleet\"", "status_code=\"503\""];
    let refused = metric(&controller, "aws_sdk_go_request_attempt_total", &labels).await;
    assert_eq!(refused, Some(5.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_template_that_vanished_is_made_anew() {
    let world = World::up().await;
    world
        .fault(json!({"service": "ec2", "action": "CreateFleet", "contains": REAL, "times": 1,
            "code": "InvalidLaunchTemplateName.NotFoundException", "message": "gone", "status": 400}))
        .await;
    let controller = Controller::start(&world);
    let pool = node_pool(&["t3.medium"], &["spot"]);
    apply(&world, &[node_class("default", json!({})), pool, spread("web", 1)]).await;
    running(&world, 1).await;
    assert_eq!(world.instances().await.len(), 1);
    assert_eq!(fleets(&world).await.len(), 2, "retried once, in the same reconcile");
    controller.says(&["invalidating launch template in the cache"]).await;
    assert!(
        controller
            .logged("Reconciler error")
            .iter()
            .all(|l| l["controller"] != "nodeclaim.lifecycle")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_that_ec2_does_not_show_yet_are_waited_for() {
    let world = World::up().await;
    // New instances are unknown to DescribeInstances at first.
    world
        .fault(json!({"service": "ec2", "action": "DescribeInstances", "contains": "InstanceId.1",
            "times": 4, "code": "InvalidInstanceID.NotFound", "message": "not yet", "status": 400}))
        .await;
    let controller = Controller::start(&world);
    let pool = node_pool(&["t3.medium"], &["spot"]);
    apply(&world, &[node_class("default", json!({})), pool, spread("web", 1)]).await;
    running(&world, 1).await;
    stays(Duration::from_secs(5), "one instance", 1, || async { world.instances().await.len() })
        .await;
    assert_eq!(controller.logged("created nodeclaim").len(), 1);
}

/// A fleet for several claims whose answer is lost: each claim finds an instance of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_for_many_survives_a_crash() {
    const CLAIMS: usize = 6;
    let world = World::up().await;
    let mut controller = Controller::start(&world);
    let pool = node_pool(&["t3.medium"], &["spot"]);
    apply(&world, &[node_class("default", json!({})), pool]).await;
    world
        .fault(json!({"service": "ec2", "action": "CreateFleet", "delay": 600,
            "code": "InternalError", "status": 500, "lose": true}))
        .await;
    apply(&world, &[spread("web", CLAIMS)]).await;
    until("the instances", || async { (world.instances().await.len() == CLAIMS).then_some(()) })
        .await;
    controller.kill();
    world.heal().await;
    let before: BTreeSet<String> =
        world.instances().await.iter().map(|i| i.instance_id().unwrap().to_owned()).collect();
    let claims = world.claims().await;
    assert_eq!(claims.len(), CLAIMS);
    assert!(provider_ids(&claims).is_empty(), "the answer was lost");
    let asked = fleets(&world).await;
    assert!(asked.len() < CLAIMS, "several claims shared a fleet: {}", asked.len());

    let _controller = Controller::start(&world);
    running(&world, CLAIMS).await;
    let after: BTreeSet<String> =
        world.instances().await.iter().map(|i| i.instance_id().unwrap().to_owned()).collect();
    assert_eq!(before, after, "the same instances, no more");
    // Pods may run a moment before the claims say so: a reconcile writes its outcome at its end.
    until("an instance of its own for each claim", || async {
        (provider_ids(&world.claims().await).len() == CLAIMS).then_some(())
    })
    .await;
    stays(Duration::from_secs(40), "the instances", CLAIMS, || async {
        world.instances().await.len()
    })
    .await;
}

/// The answer of a fleet is lost although EC2 carried it out; the same process asks again.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_asked_for_again() {
    let world = World::up().await;
    for text in [REAL, "launched-for"] {
        world
            .fault(json!({"service": "ec2", "action": "CreateFleet", "contains": text, "times": 2,
                "code": "InternalError", "message": "lost", "status": 500, "lose": true}))
            .await;
    }
    let _controller = Controller::start(&world);
    let pool = node_pool(&["t3.medium"], &["spot"]);
    apply(&world, &[node_class("default", json!({})), pool, spread("web", 3)]).await;
    running(&world, 3).await;
    stays(Duration::from_secs(10), "three instances", 3, || async {
        world.instances().await.len()
    })
    .await;
    let tokens: BTreeSet<String> = fleets(&world)
        .await
        .iter()
        .filter_map(|c| c["parameters"]["ClientToken"].as_str().map(str::to_owned))
        .collect();
    assert!(tokens.len() <= 3, "retries keep their token: {tokens:?}");
    assert!(fleets(&world).await.len() > tokens.len(), "some answer was lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_is_removed() {
    let world = World::up().await;
    let controller = Controller::start(&world);
    let pool = node_pool(&["t3.medium"], &["spot"]);
    apply(&world, &[node_class("default", json!({})), pool, spread("web", 1)]).await;
    running(&world, 1).await;
    let subnet = world.env["WORLD_SUBNETS"].split(',').next().unwrap().to_owned();
    let tag =
        |key: &str, value: &str| aws_sdk_ec2::types::Tag::builder().key(key).value(value).build();
    let stray = |others: &[(&str, &str)]| {
        let mut all = aws_sdk_ec2::types::TagSpecification::builder()
            .resource_type(aws_sdk_ec2::types::ResourceType::Instance)
            .tags(tag("karpenter.sh/nodepool", "default"))
            .tags(tag("karpenter.k8s.aws/ec2nodeclass", "default"));
        for (key, value) in others {
            all = all.tags(tag(key, value));
        }
        world
            .ec2
            .run_instances()
            .image_id("ami-09c00c2e93ce7bd23")
            .instance_type("t3.medium".into())
            .min_count(1)
            .max_count(1)
            .subnet_id(&subnet)
            .tag_specifications(all.build())
            .send()
    };
    stray(&[("eks:eks-cluster-name", "weasel-eks")]).await.unwrap();
    stray(&[("eks:eks-cluster-name", "another-cluster")]).await.unwrap();
    assert_eq!(world.instances().await.len(), 3);
    within(Duration::from_secs(90), "the orphan gone", || async {
        (world.instances().await.len() == 2).then_some(())
    })
    .await;
    controller.says(&["garbage collected cloudprovider instance"]).await;
    stays(Duration::from_secs(15), "the others", 2, || async { world.instances().await.len() })
        .await;
    assert_eq!(world.running().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn reservations_are_used_first_and_left_when_full() {
    let world = World::up().await;
    world
        .admin(
            "capacity-reservations",
            Some(json!({"CapacityReservationId": "cr-0000000000000001",
                "InstanceType": "t3.medium", "AvailabilityZone": "us-east-1b",
                "TotalInstanceCount": 1, "Tags": {"team": "web"}})),
        )
        .await;
    let controller = Controller::start(&world);
    let class = node_class(
        "default",
        json!({"capacityReservationSelectorTerms": [{"tags": {"team": "web"}}]}),
    );
    let pool = node_pool(&["t3.medium"], &["reserved", "spot"]);
    apply(&world, &[class, pool, spread("first", 1)]).await;
    running(&world, 1).await;
    let instances = world.instances().await;
    assert_eq!(instances[0].capacity_reservation_id(), Some("cr-0000000000000001"));
    let node = &world.nodes().await[0];
    let labels = node.metadata.labels.as_ref().unwrap();
    assert_eq!(labels["karpenter.sh/capacity-type"], "reserved");
    assert_eq!(labels["karpenter.k8s.aws/capacity-reservation-id"], "cr-0000000000000001");
    assert_eq!(labels["topology.kubernetes.io/zone"], "us-east-1b");

    apply(&world, &[spread("second", 1)]).await;
    running(&world, 2).await;
    let kinds: BTreeMap<String, usize> =
        world.nodes().await.iter().fold(BTreeMap::new(), |mut all, node| {
            let kind = &node.metadata.labels.as_ref().unwrap()["karpenter.sh/capacity-type"];
            *all.entry(kind.clone()).or_default() += 1;
            all
        });
    assert_eq!(kinds, [("reserved".to_owned(), 1), ("spot".to_owned(), 1)].into());
    drop(controller);
}

/// A reservation that someone else filled meanwhile: the launch is refused, and goes elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_that_cannot_be_fulfilled_is_left() {
    let world = World::up().await;
    // EC2 tells one free place, but does not give it.
    world
        .admin(
            "capacity-reservations",
            Some(json!({"CapacityReservationId": "cr-0000000000000002",
                "InstanceType": "t3.medium", "AvailabilityZone": "us-east-1a",
                "TotalInstanceCount": 1, "AvailableInstanceCount": 1, "Tags": {"team": "web"}})),
        )
        .await;
    let controller = Controller::start(&world);
    let class = node_class(
        "default",
        json!({"capacityReservationSelectorTerms": [{"tags": {"team": "web"}}]}),
    );
    apply(&world, &[class, node_pool(&["t3.medium"], &["reserved", "spot"])]).await;
    until("the reservation in the node class", || async {
        let text = world.kubectl(&["get", "ec2nodeclass", "default", "-o", "json"]);
        text.contains("cr-0000000000000002").then_some(())
    })
    .await;
    world
        .admin(
            "capacity-reservations",
            Some(json!({"CapacityReservationId": "cr-0000000000000002",
                "InstanceType": "t3.medium", "AvailabilityZone": "us-east-1a",
                "TotalInstanceCount": 1, "AvailableInstanceCount": 0, "Tags": {"team": "web"}})),
        )
        .await;
    apply(&world, &[spread("web", 1)]).await;
    running(&world, 1).await;
    assert_eq!(lifecycle(&world.instances().await[0]), "spot");
    let said = controller.says(&["marking capacity reservation unavailable"]).await;
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["capacity-reservation-id"], "cr-0000000000000002");
    assert_eq!(said["reason"], "ReservationCapacityExceeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_known_prices_outlive_the_process() {
    let world = World::up().await;
    world.admin("prices", Some(json!({"on-demand": {"t3.medium": 0.0555}}))).await;
    let mut controller = Controller::start(&world);
    let map = until("prices kept", || async {
        let text = world
            .kubectl_with(
                &["get", "configmap", "karpenter-prices", "-n", "kube-system", "-o", "json"],
                "",
            )
            .ok()?;
        let map: Value = serde_json::from_str(&text).unwrap();
        let on_demand: Value =
            serde_json::from_str(map["data"]["on-demand.json"].as_str()?).unwrap();
        (on_demand["t3.medium"] == 0.0555).then_some(map)
    })
    .await;
    assert_eq!(map["data"]["region"], "us-east-1");
    assert_eq!(controller.stop(), Some(0));
    for action in ["GetProducts", "DescribeSpotPriceHistory"] {
        world
            .fault(json!({"action": action, "code": "AccessDeniedException", "message": "no",
                "status": 403}))
            .await;
    }
    // With the flag off, nothing is read.
    let mut forgetful =
        Controller::with(&world, &[("ISOLATED_VPC", "true"), ("PRICE_CONFIG_MAP", "")]);
    forgetful.says(&["discovered zones"]).await;
    assert!(forgetful.logged("restored last known prices").is_empty());
    forgetful.kill();
    let controller = Controller::with(&world, &[("ISOLATED_VPC", "true")]);
    apply(
        &world,
        &[
            node_class("default", json!({})),
            node_pool(&["t3.medium"], &["on-demand"]),
            spread("web", 1),
        ],
    )
    .await;
    running(&world, 1).await;
    controller.says(&["restored last known prices"]).await;
    controller.says(&["running in an isolated VPC"]).await;
    let asked = fleets(&world).await;
    let priority = &asked[0]["parameters"]["LaunchTemplateConfigs"][0]["Overrides"][0]["Priority"];
    let priority: f64 =
        priority.as_str().map_or_else(|| priority.as_f64().unwrap(), |t| t.parse().unwrap());
    assert!((priority - 0.0555).abs() < 1e-9, "{priority}");
}

/// 1,000 NodeClaims at once: how many calls EC2 gets, and how long it takes.
///
/// `cargo test --test e2e storm -- --ignored --nocapture`; `STORM` sets another number.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes; run by name"]
async fn storm_of_a_thousand_claims() {
    let count: usize = std::env::var("STORM").ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
    let world = World::up().await;
    let controller = Controller::with(&world, &[("LOG_LEVEL", "info")]);
    let pool = node_pool(&["t3.medium", "t3.large", "m5.large"], &["spot", "on-demand"]);
    apply(&world, &[node_class("default", json!({})), pool]).await;
    until("a ready node class", || async {
        let text = world.kubectl(&[
            "get",
            "ec2nodeclass",
            "default",
            "-o",
            "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}",
        ]);
        (text == "True").then_some(())
    })
    .await;
    let before = number_of_calls(&world).await;
    // Held meanwhile: the claims are there at once, however slowly this machine makes them.
    controller.hold(true);
    let api = kube::Api::<NodeClaim>::all(world.kube.clone());
    let claims = (0..count).map(|n| serde_json::from_value(storm_claim(n)).unwrap());
    let made = futures::stream::iter(claims)
        .map(|claim: NodeClaim| {
            let api = api.clone();
            async move { api.create(&Default::default(), &claim).await }
        })
        .buffer_unordered(20);
    made.for_each(|outcome| async { drop(outcome.unwrap()) }).await;
    controller.hold(false);
    let start = Instant::now();
    // An API server with so much to do is not asked all the time.
    within(Duration::from_secs(1800), "all launched", || async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        (controller.logged("launched nodeclaim").len() >= count).then_some(())
    })
    .await;
    let launched = start.elapsed();
    let mut calls = calls_since(&world, before).await;
    let instances = world.instances().await;
    let have: BTreeSet<&str> = instances.iter().filter_map(|i| i.instance_id()).collect();
    let told = controller.logged("launched nodeclaim");
    let named: BTreeSet<&str> =
        told.iter().filter_map(|l| l["provider-id"].as_str()?.rsplit('/').next()).collect();
    assert_eq!(instances.len(), count);
    assert_eq!(have, named);
    // Each instance's Name is its own, so that there is no way to tag several by one call.
    let tagged = calls.remove("CreateTags").unwrap_or(0);
    let total: usize = calls.values().sum();
    println!(
        "{count} claims: launched in {launched:?}, {total} EC2 calls: {calls:?}, and {tagged} to tag Nodes"
    );
    assert!(total < 400, "{total} calls");
}

fn storm_claim(n: usize) -> Value {
    json!({
        "apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
        "metadata": {"name": format!("storm-{n:04}"), "labels": {"karpenter.sh/nodepool": "default"}},
        "spec": {
            "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"},
            "requirements": [
                {"key": "node.kubernetes.io/instance-type", "operator": "In",
                    "values": ["t3.medium", "t3.large", "m5.large"]},
                {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["spot", "on-demand"]},
            ],
            "resources": {"requests": {"cpu": "500m"}},
        },
    })
}

async fn number_of_calls(world: &World) -> u64 {
    let calls = world.admin("calls?service=ec2", None).await;
    calls.as_array().and_then(|c| c.last()?["number"].as_u64()).unwrap_or(0)
}

/// EC2 calls by action, except those of the joiner and of this test.
async fn calls_since(world: &World, number: u64) -> BTreeMap<String, usize> {
    let calls = world.admin(&format!("calls?service=ec2&after={number}"), None).await;
    let mut found = BTreeMap::new();
    for call in calls.as_array().unwrap() {
        *found.entry(call["action"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    found
}
