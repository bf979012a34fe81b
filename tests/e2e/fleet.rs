//! `karpenter explain`, `top`, `cost`, `budgets`: from a scenario, from the controller's API, from a live cluster.

use std::process::{Command, Output};

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::browser::Browser;
use crate::chain::one_initialized;
use crate::operator::get;
use crate::support::controller::free_port;
use crate::support::world::root;
use crate::support::{Controller, World, until};

const SHOP: &str = "examples/scenarios/shop.yaml";

fn karpenter(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_karpenter")).args(words).current_dir(root()).output().unwrap()
}

/// Runs a command in the world's environment.
fn in_world(world: &World, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_karpenter")).args(words).envs(&world.env).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn shown(words: &[&str]) -> String {
    let done = karpenter(&[words, &["--scenario", SHOP]].concat());
    assert!(done.status.success(), "{words:?}: {}", text(&done.stderr));
    text(&done.stdout)
}

fn json(words: &[&str]) -> Value {
    serde_json::from_str(&shown(&[words, &["--output", "json"]].concat())).unwrap()
}

#[test]
fn a_pod_that_fits_nowhere_gets_each_pools_reason_and_what_would_help() {
    let pod = json(&["explain", "pod", "shop/warehouse"]);
    assert_eq!(pod["waitsFor"], "nothing");
    let pools = pod["nodePools"].as_array().unwrap();
    let stages: Vec<_> = pools.iter().map(|p| (&p["nodePool"], &p["stage"])).collect();
    assert_eq!(
        format!("{stages:?}"),
        r#"[(String("general"), String("instanceTypes")), (String("batch"), String("taints"))]"#
    );
    assert_eq!(pools[0]["nearest"][0]["missing"][0]["resource"], "memory");
    let table = shown(&["explain", "pod", "warehouse", "--namespace", "shop"]);
    assert!(table.contains("would help: lower the pod's requests"), "{table}");
}

#[test]
fn pods_with_a_place_name_their_node_or_their_pool() {
    assert!(shown(&["explain", "pod", "shop/web-3"]).contains("fits on node ip-10-0-1-10"));
    assert!(shown(&["explain", "pod", "shop/report-1"]).contains("NodePool batch creates a node"));
    assert!(shown(&["explain", "pod", "shop/web-0"]).contains("runs on node ip-10-0-1-10"));
}

#[test]
fn an_object_that_does_not_exist_is_one_line_and_exit_code_1() {
    for words in [
        ["explain", "pod", "shop/nobody"],
        ["explain", "node", "nobody"],
        ["explain", "nodepool", "nobody"],
    ] {
        let done = karpenter(&[&words[..], &["--scenario", SHOP]].concat());
        assert_eq!(done.status.code(), Some(1), "{words:?}");
        let error = text(&done.stderr);
        assert!(error.lines().count() == 1 && error.contains("there is no"), "{error}");
    }
    let done = karpenter(&["budgets", "nobody", "--scenario", SHOP]);
    assert_eq!(done.status.code(), Some(1));
    let done = karpenter(&["top", "--scenario", "no-such-file"]);
    assert_eq!(done.status.code(), Some(2));
}

#[test]
fn top_cost_and_budgets_are_tables_json_and_yaml() {
    let top = shown(&["top"]);
    assert!(top.contains("ip-10-0-1-10.ec2.internal") && top.contains("0.1008"), "{top}");
    let cost = json(&["cost"]);
    assert_eq!(cost["total"], 0.1008);
    assert_eq!(cost["nodePools"][0]["name"], "general");
    let budgets = shown(&["budgets", "general", "--days", "2", "--output", "yaml"]);
    assert!(
        budgets.contains("nodePool: general") && budgets.contains("reason: Drifted"),
        "{budgets}"
    );
    assert!(!shown(&["top"]).contains('\u{1b}'), "colours only on a terminal");
}

#[test]
fn budgets_and_explain_agree_on_how_many_nodes_may_be_disrupted() {
    let pool = json(&["explain", "nodepool", "general"]);
    let calendar = json(&["budgets", "general"]);
    let now = |reason: &str| {
        let of = calendar["reasons"].as_array().unwrap().iter().find(|r| r["reason"] == reason);
        of.unwrap()["windows"][0]["allowed"].clone()
    };
    for budget in pool["budgets"].as_array().unwrap() {
        assert_eq!(now(budget["reason"].as_str().unwrap()), budget["allowed"], "{budget}");
        // Ten percent of one node, rounded up.
        assert_eq!(budget["allowed"], 1, "{budget}");
    }
}

#[test]
fn shells_get_their_completions() {
    for shell in ["bash", "zsh", "fish"] {
        let done = karpenter(&["completions", shell]);
        assert!(done.status.success() && text(&done.stdout).contains("explain"), "{shell}");
    }
}

/// What a command printed, and what it said on standard error.
fn live(world: &World, words: &[&str]) -> (String, String) {
    let done = in_world(world, words);
    assert!(done.status.success(), "{words:?}: {}", text(&done.stderr));
    (text(&done.stdout), text(&done.stderr))
}

/// An address of this machine that the API server's proxy may call: it refuses loopback.
fn own_address() -> String {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent: this only chooses the interface.
    socket.connect("192.0.2.1:9").expect("a network interface besides loopback");
    socket.local_addr().unwrap().ip().to_string()
}

/// The controller's Service as the chart makes it, for a process of this machine.
async fn expose(world: &World, port: &str) {
    let number: u16 = port.parse().unwrap();
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "karpenter", "namespace": "kube-system",
            "labels": {"app.kubernetes.io/name": "karpenter"}},
        "spec": {"ports": [{"name": "api", "port": 8089, "targetPort": number}]}});
    // The proxy calls only addresses of pods. A gate keeps this one from being anybody's work.
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "karpenter-0", "namespace": "kube-system"},
        "spec": {"schedulingGates": [{"name": "example.com/elsewhere"}],
            "containers": [{"name": "controller", "image": "karpenter"}]}});
    let ip = own_address();
    let target = json!({"kind": "Pod", "name": "karpenter-0", "namespace": "kube-system"});
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "karpenter", "namespace": "kube-system"},
        "subsets": [{"addresses": [{"ip": ip, "targetRef": target}],
            "ports": [{"name": "api", "port": number}]}]});
    for object in [service, pod, endpoints] {
        world.apply(&object.to_string()).await;
    }
    let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
    let patch = ["patch", "pod", "karpenter-0", "-n", "kube-system", "--subresource=status"];
    world.kubectl(&[&patch[..], &["--type=merge", "-p", &status.to_string()]].concat());
}

/// The rows of `top` without what changes by itself.
fn rows_of(top: &str) -> Vec<Value> {
    let rows: Value = serde_json::from_str(top).unwrap();
    let kept = ["name", "nodeClaim", "nodePool", "instanceType", "zone", "price", "state", "pods"];
    let row = |row: &Value| kept.map(|field| row[field].clone()).to_vec().into();
    rows.as_array().unwrap().iter().map(row).collect()
}

/// Every command shows the same of the live cluster, whether the controller answers or not, and says where
/// it computed by itself.
#[tokio::test(flavor = "multi_thread")]
async fn commands_ask_the_controller_and_compute_where_none_answers() {
    let world = World::up().await;
    let port = free_port().to_string();
    let _controller = Controller::with(&world, &[("API_PORT", &port), ("API_ADDRESS", "0.0.0.0")]);
    world.apply_file("examples/weasel-eks/manifests.yaml").await;
    world.deploy("web", 1, "1", "1Gi").await;
    let claim = one_initialized(&world).await;
    let claim = claim.metadata.name.unwrap();
    world.deploy("huge", 1, "500", "1Gi").await;
    expose(&world, &port).await;
    let (node, huge, web) = until("a pod that runs and one that fits nowhere", || async {
        let pods = world.pods().await;
        let pod = |app: &str| {
            pods.iter().find(|p| p.metadata.name.as_deref().is_some_and(|n| n.starts_with(app)))
        };
        let name = |pod: &Pod| pod.metadata.name.clone().unwrap();
        let node = pod("web-")?.spec.as_ref()?.node_name.clone()?;
        let tried = pod("huge-")?.status.as_ref()?.conditions.as_ref()?;
        tried.iter().any(|c| c.reason.as_deref() == Some("Unschedulable")).then_some(())?;
        Some((node, name(pod("huge-")?), name(pod("web-")?)))
    })
    .await;
    let (huge, web) = (format!("default/{huge}"), format!("default/{web}"));
    until("the controller's answer through the API server", || async {
        let done = in_world(&world, &["explain", "pod", &huge]);
        (done.status.success() && done.stderr.is_empty()).then_some(())
    })
    .await;

    let (node, claim) = (node.as_str(), claim.as_str());
    let (huge, web) = (huge.as_str(), web.as_str());
    let commands: Vec<(Vec<&str>, Vec<&str>)> = vec![
        (
            vec!["explain", "pod", huge],
            vec!["No NodePool can create a node", "default (", "cpu ", " of 500"],
        ),
        (vec!["explain", "pod", web], vec!["runs on node", node]),
        (vec!["explain", "node", node], vec![node, "t3.medium", claim, "NodePool default"]),
        (vec!["explain", "nodeclaim", claim], vec![node, "t3.medium", claim]),
        (
            vec!["explain", "nodepool", "default"],
            vec!["NodePool default: ", "1 node(s)", "cpu", "Underutilized"],
        ),
        (vec!["top"], vec!["default", node, "t3.medium", "spot", "Ready"]),
        (vec!["cost"], vec!["default", "spot", "per hour", "requested by no pod"]),
        (vec!["budgets", "default", "--days", "2"], vec!["NodePool default, 1 node(s)", "Drifted"]),
    ];
    let check = |commands: &[(Vec<&str>, Vec<&str>)], source: &[&str], aside: &str| {
        for (words, parts) in commands {
            let (shown, said) = live(&world, &[&words[..], source].concat());
            for part in parts {
                assert!(shown.contains(part), "{words:?} {source:?}: no {part:?} in {shown}");
            }
            if aside.is_empty() {
                assert_eq!(said, "", "{words:?} {source:?}");
            } else {
                assert!(said.contains(aside), "{words:?}: {said}");
            }
        }
    };
    check(&commands, &[], "");
    // Only the controller keeps a ledger.
    assert!(live(&world, &["cost"]).0.contains("saved"), "savings of the controller");
    let pool = live(&world, &["explain", "nodepool", "default"]).0;
    let launch = pool.lines().find(|line| line.contains(claim) && line.contains("t3.medium"));
    assert!(launch.is_some(), "the launch of {claim}: {pool}");
    let asked = rows_of(&live(&world, &["top", "--output", "json"]).0);
    let missing = in_world(&world, &["explain", "pod", "default/nobody"]);
    assert_eq!(missing.status.code(), Some(1));
    assert_eq!(text(&missing.stderr).trim(), "karpenter explain: there is no pod default/nobody");

    // An unoptimised binary takes ten seconds of CPU to read all instance types: each command computes once.
    let (some, others) = commands.split_at(4);
    check(some, &["--without-controller"], "");
    world.kubectl(&["delete", "service", "karpenter", "-n", "kube-system"]);
    check(others, &[], "computing from the live cluster");
    assert_eq!(rows_of(&live(&world, &["top", "--output", "json"]).0), asked);
}

/// The API as it is on its port, and the end of the process's part in it.
#[tokio::test(flavor = "multi_thread")]
async fn the_controller_serves_the_fleet_and_its_page() {
    let world = World::up().await;
    let port = free_port().to_string();
    let _controller = Controller::with(&world, &[("API_PORT", &port)]);
    world.apply_file("examples/weasel-eks/manifests.yaml").await;
    world.deploy("web", 1, "1", "1Gi").await;
    let claim = one_initialized(&world).await;
    let pool = claim.metadata.labels.as_ref().unwrap()["karpenter.sh/nodepool"].clone();
    world.deploy("huge", 1, "500", "1Gi").await;
    let base = format!("http://127.0.0.1:{port}");
    let ask = |path: String| {
        let url = format!("{base}{path}");
        async move {
            let done =
                Command::new("curl").args(["-sf", "--max-time", "20", &url]).output().ok()?;
            done.status.success().then(|| text(&done.stdout))
        }
    };
    let fleet = until("a fleet with a node and a pod that fits nowhere", || async {
        let fleet: Value = serde_json::from_str(&ask("/v1/fleet".into()).await?).ok()?;
        let fits_nowhere = fleet["pods"].as_array()?.iter().any(|p| p["waitsFor"] == "nothing");
        (fits_nowhere && fleet["nodes"][0]["state"] == "Ready").then_some(fleet)
    })
    .await;
    assert_eq!(fleet["schema"], "karpenter.fleet/v1");
    let node = &fleet["nodes"][0];
    assert_eq!(node["nodeClaim"], claim.metadata.name.clone().unwrap());
    assert!(node["price"].as_f64().unwrap() > 0.0, "{node}");
    let name = node["name"].as_str().unwrap();
    assert!(ask(format!("/v1/nodes/{name}")).await.is_some());
    assert!(ask("/v1/nodes/nobody".into()).await.is_none(), "a missing node is an error");
    assert!(ask(format!("/v1/nodepools/{pool}")).await.unwrap().contains("\"budgets\""));
    assert!(ask("/".into()).await.unwrap().contains("<title>Fleet</title>"));
    until("the launch in the time line", || async {
        ask("/v1/timeline".into()).await?.contains("\"kind\":\"launched\"").then_some(())
    })
    .await;
}

/// The saving per hour of removed empty nodes, as metrics show it; zero before there is any.
fn saved_by_emptiness(controller: &Controller) -> Option<f64> {
    let (_, text) = get(controller.metrics_port, "/metrics")?;
    let mut lines =
        text.lines().filter(|l| l.starts_with("karpenter_cost_saving_dollars_per_hour{"));
    let line = lines.find(|line| line.contains("reason=\"empty\""));
    line.map_or(Some(0.0), |line| line.rsplit(' ').next()?.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_saved_is_still_known_after_a_restart() {
    let world = World::up().await;
    let settings = [("COST_METRICS", "true"), ("SAVINGS_CONFIG_MAP", "karpenter-savings")];
    let mut first = Controller::with(&world, &settings);
    world.apply_file("examples/weasel-eks/manifests.yaml").await;
    world.deploy("web", 1, "1", "1Gi").await;
    one_initialized(&world).await;
    world.scale("web", 0);
    let saved = until("a saving by the node that is gone", || {
        std::future::ready(saved_by_emptiness(&first).filter(|saved| *saved > 0.0))
    })
    .await;
    // It ends long before the ledger's next turn.
    assert_eq!(first.stop(), Some(0));
    let kept = world.kubectl(&[
        "get",
        "configmap",
        "karpenter-savings",
        "-n",
        "kube-system",
        "-o",
        "json",
    ]);
    assert!(kept.contains("savings.json") && kept.contains("empty"), "{kept}");
    let second = Controller::with(&world, &settings);
    let known = until("what the first process saved", || {
        std::future::ready(saved_by_emptiness(&second).filter(|saved| *saved > 0.0))
    })
    .await;
    assert!((known - saved).abs() < 1e-9, "{known} {saved}");
}

/// A browser follows a node from its launch to its end on the controller's own page.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Chromium and Node.js: make page-test"]
async fn the_page_follows_the_local_world_in_chromium() {
    let world = World::up().await;
    let port = free_port().to_string();
    let _controller = Controller::with(&world, &[("API_PORT", &port)]);
    world.apply_file("examples/weasel-eks/manifests.yaml").await;
    let url = format!("http://127.0.0.1:{port}/");
    until("the page", || async {
        let done = Command::new("curl").args(["-sf", "-o", "/dev/null", &url]).status().ok()?;
        done.success().then_some(())
    })
    .await;
    let mut browser = Browser::on(&url, "world.mjs");
    while let Some(scene) = browser.scene() {
        match scene.as_str() {
            "huge" => world.deploy("huge", 1, "500", "1Gi").await,
            "web" => world.deploy("web", 1, "1", "1Gi").await,
            "nothing" => ["huge", "web"].iter().for_each(|name| world.scale(name, 0)),
            // Asked for after a failure.
            "gone" => {}
            other => panic!("world.mjs asks for scene {other:?}"),
        }
    }
    browser.finish();
}
