//! The page of the fleet in a real browser: `make page-test`.
//!
//! The page, its stream and its headers come from the real server; what it shows are figures of the
//! scenario in `examples/`, taken as the controller takes them. `page.mjs` drives Chromium, and asks for
//! another scene by a line `scene NAME` on its standard output.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use karpenter::fleet::{Fleet, NodeRow, Verdict, Verdicts};
use karpenter::operator::fleet_api::{Decision, Source, Timeline, serve};
use karpenter::scheduling;
use karpenter::simulate::{World, load_file};

/// Nodes of the large scene.
const MANY: usize = 5_000;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

struct Shown {
    fleet: Mutex<Arc<Fleet>>,
    timeline: Timeline,
}

impl Source for Shown {
    fn fleet(&self) -> BoxFuture<'_, Result<Arc<Fleet>, String>> {
        let fleet = Arc::clone(&self.fleet.lock().unwrap());
        Box::pin(std::future::ready(Ok(fleet)))
    }

    fn timeline(&self) -> Timeline {
        self.timeline.clone()
    }
}

/// The scenario's figures: one node, pods that get nodes, and one that fits nowhere.
fn shop(now: Timestamp) -> Fleet {
    let scenario = load_file(&root().join("examples/scenarios/shop.yaml")).unwrap();
    let world = World::new(scenario).unwrap();
    let results = scheduling::solve(&world.snapshot);
    let node = world.snapshot.nodes[0].name().to_owned();
    let verdict = Verdict {
        method: "SingleNodeConsolidation".to_owned(),
        code: "not_cheaper".to_owned(),
        message: "can't replace with a cheaper node <b>bold</b>".to_owned(),
    };
    let verdicts: Verdicts = [(node, vec![verdict])].into_iter().collect();
    Fleet::new(&world.snapshot, &world.pools, &results, &verdicts, now)
}

/// The fleet after what the page asked for.
fn scene(name: &str, now: Timestamp) -> Fleet {
    let mut fleet = shop(now);
    let first = fleet.nodes[0].clone();
    let another = |name: &str, state: &str| NodeRow {
        name: name.to_owned(),
        node_claim: Some(format!("claim-of-{name}")),
        state: state.to_owned(),
        created: Some(now),
        verdicts: Vec::new(),
        ..first.clone()
    };
    match name {
        "shop" | "gone" => {}
        "launching" => fleet.nodes.push(another("ip-10-0-9-9.ec2.internal", "Launching")),
        "many" => {
            let types = ["m7i.large", "c7g.2xlarge", "r6i.4xlarge"];
            fleet.nodes.extend((fleet.nodes.len()..MANY).map(|i| NodeRow {
                node_pool: Some(["general", "batch"][i % 2].to_owned()),
                instance_type: types[i % types.len()].to_owned(),
                capacity_type: ["on-demand", "spot", "on-demand", "reserved"][i % 4].to_owned(),
                cpu_share: f64::from(u32::try_from(i * 37 % 100).unwrap()) / 100.0,
                memory_share: f64::from(u32::try_from(i * 53 % 100).unwrap()) / 100.0,
                ..another(
                    &format!("ip-10-1-{}-{}.ec2.internal", i / 256, i % 256),
                    if i % 97 == 5 { "NotReady" } else { "Ready" },
                )
            }));
        }
        other => panic!("page.mjs asks for scene {other:?}"),
    }
    fleet.nodes.sort_by(|a, b| a.name.cmp(&b.name));
    for pool in &mut fleet.node_pools {
        let own = fleet.nodes.iter().filter(|n| n.node_pool.as_deref() == Some(&pool.name));
        pool.nodes = own.count();
    }
    fleet
}

fn timeline(now: Timestamp) -> Timeline {
    let mut timeline = Timeline::default();
    for minutes in (0..720).rev() {
        let time = now - SignedDuration::from_mins(minutes);
        let launched = minutes < 300;
        if minutes == 300 {
            timeline.add(Decision {
                time,
                kind: "launched",
                node_claim: "general-7xk2p".to_owned(),
                node_pool: Some("general".to_owned()),
                instance_type: Some("m7i.large".to_owned()),
                reason: None,
                price: Some(0.1008),
            });
        }
        timeline.sample(time, if launched { 0.2016 } else { 0.1008 });
    }
    timeline
}

#[test]
fn the_page_shows_the_fleet_in_chromium() {
    let now = "2026-11-29T12:00:00Z".parse().unwrap();
    let shown = Arc::new(Shown {
        fleet: Mutex::new(Arc::new(scene("shop", now))),
        timeline: timeline(now),
    });
    let port = {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        free.local_addr().unwrap().port()
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let source: Arc<dyn Source> = Arc::clone(&shown) as _;
    runtime.block_on(serve(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), source)).unwrap();
    let mut browser = Command::new("node")
        .arg(root().join("tests/page/page.mjs"))
        .arg(format!("http://127.0.0.1:{port}/"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("Node.js runs the tests of the page");
    for line in BufReader::new(browser.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        match line.strip_prefix("scene ") {
            Some(name) => *shown.fleet.lock().unwrap() = Arc::new(scene(name, now)),
            None => println!("{line}"),
        }
    }
    assert!(browser.wait().unwrap().success(), "see the lines above");
}
