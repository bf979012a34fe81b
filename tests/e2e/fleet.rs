//! `karpenter explain`, `top`, `cost`, `budgets`: from a scenario, from the controller's API, from a live cluster.

use std::process::{Command, Output};

use serde_json::Value;

use crate::chain::one_initialized;
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
fn shells_get_their_completions() {
    for shell in ["bash", "zsh", "fish"] {
        let done = karpenter(&["completions", shell]);
        assert!(done.status.success() && text(&done.stdout).contains("explain"), "{shell}");
    }
}

/// The controller serves the figures; the commands ask it through nothing but HTTP, and compute them
/// from the live cluster where there is no Service of a controller.
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

    let done = in_world(&world, &["explain", "node", name]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(
        text(&done.stderr).contains("computing from the live cluster"),
        "{}",
        text(&done.stderr)
    );
    assert!(text(&done.stdout).contains(&pool), "{}", text(&done.stdout));
}
