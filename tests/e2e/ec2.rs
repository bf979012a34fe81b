//! What EC2 announces, keeps together, prices and forbids: interruptions, placement groups, shifts.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::time::Duration;

use serde_json::{Value, json};

use crate::chain::one_initialized;
use crate::instances::{apply, metric, node_pool, running, spread};
use crate::support::{Controller, World, node_class, until, within};

fn queue(world: &World) -> (&'static str, &str) {
    ("INTERRUPTION_QUEUE", world.env["WORLD_QUEUE"].as_str())
}

async fn instance_ids(world: &World) -> BTreeSet<String> {
    world.instances().await.iter().filter_map(|i| i.instance_id.clone()).collect()
}

/// Waits until the one instance is another than before.
async fn replaced(world: &World, before: &BTreeSet<String>) {
    until("another instance in its place", || async {
        let now = instance_ids(world).await;
        (now.len() == 1 && now.is_disjoint(before)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_node_is_drained_and_its_pool_avoided() {
    let world = World::up().await;
    let controller = Controller::with(&world, &[queue(&world)]);
    let pool = node_pool(&["t3.medium", "t3.large"], &["spot"]);
    apply(&world, &[node_class("default", json!({})), pool, spread("web", 1)]).await;
    let claim = one_initialized(&world).await;
    running(&world, 1).await;
    let before = instance_ids(&world).await;
    let id = before.first().unwrap();
    // A recommendation is told, and no more.
    world.admin("interrupt", Some(json!({"kind": "rebalance", "instance": id}))).await;
    until("the recommendation", || async {
        (!world.events("SpotRebalanceRecommendation").await.is_empty()).then_some(())
    })
    .await;
    assert_eq!(instance_ids(&world).await, before);
    world.admin("interrupt", Some(json!({"kind": "spot", "instance": id}))).await;
    replaced(&world, &before).await;
    running(&world, 1).await;
    let told = world.events("SpotInterrupted").await;
    assert_eq!(told, ["Spot interruption warning was triggered"; 2], "the claim, the Node");
    assert_eq!(world.events("TerminatingOnInterruption").await.len(), 2);
    let line = &controller.logged("initiating delete from interruption message")[0];
    assert_eq!(line["messageKind"], "spot_interrupted");
    assert_eq!(line["action"], "CordonAndDrain");
    assert_eq!(line["NodeClaim"]["name"], claim.metadata.name.as_deref().unwrap());
    let mark = &controller.logged("removing offering from offerings")[0];
    assert_eq!(
        (&mark["reason"], &mark["capacity-type"]),
        (&json!("spot_interrupted"), &json!("spot"))
    );
    assert_eq!(
        mark["zone"],
        claim.metadata.labels.as_ref().unwrap()["topology.kubernetes.io/zone"]
    );
    let labels = ["reason=\"spot_interrupted\"", "nodepool=\"default\""];
    let name = "karpenter_nodeclaims_disrupted_total";
    assert_eq!(metric(&controller, name, &labels).await, Some(1.0));
    for (kind, count) in [("spot_interrupted", 1.0), ("rebalance_recommendation", 1.0)] {
        let label = format!("message_type=\"{kind}\"");
        let name = "karpenter_interruption_received_messages_total";
        assert_eq!(metric(&controller, name, &[&label]).await, Some(count), "{kind}");
    }
    until("an empty queue", || async {
        let name = "karpenter_interruption_deleted_messages_total";
        metric(&controller, name, &[]).await.filter(|n| *n >= 2.0)
    })
    .await;
}

/// EC2's own checks, and what it plans, are looked at without any queue.
#[tokio::test(flavor = "multi_thread")]
async fn an_impaired_instance_is_replaced() {
    let world = World::up().await;
    let controller = Controller::start(&world);
    let pool = node_pool(&["t3.medium"], &["on-demand"]);
    apply(&world, &[node_class("default", json!({})), pool, spread("web", 1)]).await;
    running(&world, 1).await;
    let before = instance_ids(&world).await;
    let long_ago = 1_700_000_000;
    let status = json!({before.first().unwrap(): {"system": "impaired", "since": long_ago}});
    world.admin("status", Some(status)).await;
    within(Duration::from_secs(180), "another instance", || async {
        let now = instance_ids(&world).await;
        (now.len() == 1 && now.is_disjoint(&before)).then_some(())
    })
    .await;
    controller.says(&["detected unhealthy instance owned by cluster", "SystemStatus"]).await;
    let name = "karpenter_interruption_instance_status_unhealthy_total";
    assert_eq!(metric(&controller, name, &["category=\"SystemStatus\""]).await, Some(1.0));
    assert!(!world.events("InstanceUnhealthy").await.is_empty());
}

/// EC2 chooses the partition; the Node has its label from the moment that it counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_registers_with_its_partition() {
    let world = World::with(&["--pending", "4", "--boot", "1"]).await;
    let group = json!({"GroupName": "parts", "Strategy": "partition", "PartitionCount": 3});
    world.admin("placement-groups", Some(group)).await;
    let _controller = Controller::start(&world);
    let class = node_class("default", json!({"placementGroupSelector": {"name": "parts"}}));
    let pool = node_pool(&["m5.large"], &["spot"]);
    apply(&world, &[class, pool, spread("web", 2)]).await;
    running(&world, 2).await;
    let (id, part) =
        ("karpenter.k8s.aws/placement-group-id", "karpenter.k8s.aws/placement-group-partition");
    for node in world.nodes().await {
        let labels = node.metadata.labels.unwrap();
        assert!(labels[id].starts_with("pg-"), "{labels:?}");
        assert!(["1", "2", "3"].contains(&labels[part].as_str()), "{labels:?}");
        assert_eq!(labels["karpenter.sh/registered"], "true");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_under_a_shift_is_left_alone() {
    let world = World::up().await;
    // At first the cluster is no resource of the zonal shift service: nothing starts.
    world
        .fault(json!({"service": "arc-zonal-shift", "times": 1, "status": 404,
            "code": "ResourceNotFoundException", "message": "no such resource"}))
        .await;
    let shift = json!([{"appliedStatus": "APPLIED", "awayFrom": "use1-az1", "comment": "test",
        "expiryTime": 4_000_000_000_u64, "resourceIdentifier": "cluster",
        "startTime": 1_700_000_000, "zonalShiftId": "1"}]);
    world.admin("zonal-shifts", Some(shift)).await;
    let controller = Controller::with(&world, &[("ENABLE_ZONAL_SHIFT", "true")]);
    let refused = controller.says(&["ec2 api connectivity check failed", "no such resource"]).await;
    assert!(refused.contains("GetManagedResource"), "{refused}");
    let mut pool = node_pool(&["t3.medium"], &["spot"]);
    pool["spec"]["template"]["spec"]["requirements"].as_array_mut().unwrap().push(json!(
        {"key": "topology.k8s.aws/zone-id", "operator": "In", "values": ["use1-az1", "use1-az2"]}));
    apply(&world, &[node_class("default", json!({})), pool, spread("web", 2)]).await;
    running(&world, 2).await;
    let zones: BTreeSet<String> = world
        .nodes()
        .await
        .into_iter()
        .filter_map(|n| n.metadata.labels?.remove("topology.k8s.aws/zone-id"))
        .collect();
    assert_eq!(zones, ["use1-az2".to_owned()].into());
}

/// A resource that only an overlay knows of: the launch must know it, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_resource_of_an_overlay_can_be_launched() {
    let world = World::up().await;
    // No list has a price for this type; the overlay's is the one there is.
    world.admin("prices", Some(json!({"on-demand": {"g7.2xlarge": null}}))).await;
    let _controller = Controller::with(&world, &[("FEATURE_GATES", "NodeOverlay=true")]);
    let pool = node_pool(&["g7.2xlarge", "t3.medium"], &["on-demand"]);
    let only = json!([{"key": "node.kubernetes.io/instance-type", "operator": "In",
        "values": ["g7.2xlarge"]}]);
    let overlay = |name: &str, more: Value| {
        let mut spec = json!({"requirements": only});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"apiVersion": "karpenter.sh/v1alpha1", "kind": "NodeOverlay",
            "metadata": {"name": name}, "spec": spec})
    };
    let class = node_class("default", json!({}));
    let priced = overlay("priced", json!({"price": "1.25"}));
    let dongles = overlay("dongles", json!({"capacity": {"example.com/dongle": "4"}}));
    apply(&world, &[class, pool, priced, dongles]).await;
    world.kubectl(&["wait", "--for=condition=Ready", "nodeoverlay", "--all", "--timeout=60s"]);
    let mut web = spread("web", 1);
    web["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({
        "requests": {"cpu": "100m", "example.com/dongle": "1"},
        "limits": {"example.com/dongle": "1"}});
    apply(&world, &[web]).await;
    let claim = until("a launched claim", || async {
        let claims = world.claims().await;
        claims.into_iter().find(|c| crate::chain::condition(c, "Launched"))
    })
    .await;
    let instances = world.instances().await;
    assert_eq!(instances[0].instance_type().unwrap().as_str(), "g7.2xlarge");
    let capacity = claim.status.unwrap().capacity.unwrap();
    assert_eq!(capacity["example.com/dongle"].0, "4");
    let fleets = world.calls("CreateFleet").await;
    let asked = fleets.iter().find(|c| c["parameters"]["DryRun"].is_null()).unwrap();
    let priority = &asked["parameters"]["LaunchTemplateConfigs"][0]["Overrides"][0]["Priority"];
    assert_eq!(priority.as_f64(), Some(1.25), "{asked}");
}

/// Runs `karpenter instance-types` in a world's environment; gives its output, or what it says is wrong.
fn instance_types(world: &World, words: &[&str]) -> Result<String, (Option<i32>, String)> {
    let done = std::process::Command::new(env!("CARGO_BIN_EXE_karpenter"))
        .arg("instance-types")
        .args(words)
        .env_clear()
        .envs(&world.env)
        .output()
        .unwrap();
    if done.status.success() {
        return Ok(String::from_utf8(done.stdout).unwrap());
    }
    Err((done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_tells_what_aws_and_files_say_of_types() {
    let world = World::up().await;
    world.admin("prices", Some(json!({"on-demand": {"m5.large": 0.0777}}))).await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, value: &Value| {
        let path = folder.path().join(name);
        std::fs::write(&path, value.to_string()).unwrap();
        path.to_string_lossy().into_owned()
    };
    let pool = file("pool", &node_pool(&["m5.large", "m5.xlarge"], &["spot", "on-demand"]));
    let class = file("class", &node_class("default", json!({"kubelet": {"maxPods": 20}})));
    let words = ["--nodepool", &pool, "--nodeclass", &class];
    let json = instance_types(&world, &[&words[..], &["-o", "json"]].concat()).unwrap();
    let types: Vec<Value> = serde_json::from_str(&json).unwrap();
    let names: Vec<&str> = types.iter().filter_map(|t| t["name"].as_str()).collect();
    assert_eq!(names, ["m5.large", "m5.xlarge"]);
    let large = &types[0];
    assert_eq!(large["labels"]["karpenter.k8s.aws/instance-network-bandwidth"], json!(["750"]));
    assert_eq!(large["capacity"]["pods"], "20");
    assert_eq!(large["overhead"]["kubeReserved"]["memory"], "574Mi");
    assert_eq!(large["allocatable"]["memory"], "6903Mi");
    let offers = large["offerings"].as_array().unwrap();
    let of = |kind: &str| offers.iter().filter(|o| o["capacityType"] == kind).collect::<Vec<_>>();
    assert!(of("on-demand").iter().all(|o| o["price"] == 0.0777), "{offers:?}");
    // Zones in which the local world sells no spot capacity have no price.
    let spot: Vec<f64> = of("spot").iter().filter_map(|o| o["price"].as_f64()).collect();
    assert!(!spot.is_empty() && spot.iter().all(|price| *price < 0.06), "{offers:?}");
    let zones: BTreeSet<&str> = offers.iter().filter_map(|o| o["zone"].as_str()).collect();
    assert_eq!(zones.len(), 6, "every zone of the region");
    let yaml = instance_types(&world, &[&words[..], &["-o", "yaml"]].concat()).unwrap();
    assert!(yaml.contains("name: m5.large") && yaml.contains("karpenter.k8s.aws/instance-cpu"));
    let table = instance_types(&world, &words).unwrap();
    assert!(table.starts_with("NAME") && table.lines().count() == 3, "{table}");

    let west = instance_types(&world, &["--region", "us-west-2", "-o", "json"]).unwrap();
    let west: Vec<Value> = serde_json::from_str(&west).unwrap();
    assert!(west.len() > 1000, "{}", west.len());
    assert_eq!(west[0]["labels"]["topology.kubernetes.io/region"], json!(["us-west-2"]));

    let answer = json!({"InstanceTypes": [{"InstanceType": "m5.large", "Hypervisor": "nitro",
        "SupportedUsageClasses": ["on-demand"], "VCpuInfo": {"DefaultVCpus": 2},
        "MemoryInfo": {"SizeInMiB": 8192},
        "ProcessorInfo": {"Manufacturer": "Intel", "SupportedArchitectures": ["x86_64"]},
        "NetworkInfo": {"Ipv4AddressesPerInterface": 10,
            "NetworkCards": [{"MaximumNetworkInterfaces": 3, "BaselineBandwidthInGbps": 0.75}]}}]});
    let answer = file("answer", &answer);
    let offline = ["--aws-instance-types", &answer, "--reserved-enis", "1", "-o", "json"];
    let types: Vec<Value> =
        serde_json::from_str(&instance_types(&world, &offline).unwrap()).unwrap();
    assert_eq!(types[0]["capacity"]["pods"], "20", "two interfaces are left for pods");
    let (code, text) = instance_types(&world, &["--nodepool", &class]).unwrap_err();
    assert_eq!(code, Some(2));
    assert!(text.contains("expected \"NodePool\""), "{text}");
    world
        .fault(json!({"action": "DescribeInstanceTypes", "code": "UnauthorizedOperation",
            "message": "no", "status": 403}))
        .await;
    let controller = Controller::with(&world, &[("AWS_REGION", ""), ("AWS_DEFAULT_REGION", "")]);
    controller.says(&["no region: expected AWS_REGION"]).await;
    let (code, text) = instance_types(&world, &[]).unwrap_err();
    assert_eq!(code, Some(1));
    assert!(text.contains("DescribeInstanceTypes: UnauthorizedOperation"), "{text}");
}

/// An instance metadata service that knows the region.
fn metadata_service() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let head: Vec<String> = lines.take_while(|l| !l.is_empty()).collect();
            let first = head.first().map_or("", String::as_str);
            let (status, body) = if first.starts_with("PUT /latest/api/token") {
                ("200 OK", "token")
            } else if first.starts_with("GET /latest/meta-data/placement/region") {
                ("200 OK", "us-east-1")
            } else {
                ("404 Not Found", "")
            };
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\nx-aws-ec2-metadata-token-ttl-seconds: 600\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machine_tells_the_region_that_nothing_else_names() {
    let mut world = World::up().await;
    let controller = Controller::start(&world);
    controller.says(&["discovered region"]).await;
    assert!(controller.logged("retrieving region from IMDS").is_empty());
    drop(controller);
    for name in ["AWS_REGION", "AWS_DEFAULT_REGION", "AWS_EC2_METADATA_DISABLED"] {
        world.env.remove(name);
    }
    let url = metadata_service();
    let controller = Controller::with(&world, &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url)]);
    controller.says(&["discovered region", "us-east-1"]).await;
    assert_eq!(controller.logged("retrieving region from IMDS").len(), 1);
}
