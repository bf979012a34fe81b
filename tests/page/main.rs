//! The page of the fleet in a real browser: `make page-test`.
//!
//! The page, its stream and its headers come from the real server; what it shows are figures of the
//! scenario in `examples/`, taken as the controller takes them. `page.mjs` drives Chromium, and asks for
//! another scene by a line `scene NAME` on its standard output.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use karpenter::disruption::{Method, Rejection};
use karpenter::fleet::{Fleet, Launch, NodeRow, Rejections, Verdict};
use karpenter::operator::fleet_api::{Decision, Saving, Source, Timeline, serve};
use karpenter::scheduling;
use karpenter::simulate::{World, load_file};

mod browser;

use browser::Browser;

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
    let mut fleet = Fleet::new(&world.snapshot, &world.pools, &results, &Rejections::new(), now);
    // Texts of the cluster that would be markup, if anything were.
    fleet.nodes[0].verdicts = vec![Verdict {
        method: "SingleNodeConsolidation".to_owned(),
        code: "not_cheaper".to_owned(),
        message: "can't replace with a cheaper node <b>bold</b>".to_owned(),
        until: Some(now + SignedDuration::from_mins(30)),
    }];
    let failed = Launch {
        time: now - SignedDuration::from_mins(4),
        node_claim: "general-4fw7d".to_owned(),
        error: Some("InsufficientCapacityError".to_owned()),
        message: Some("no spot <b>anywhere</b>".to_owned()),
        ..Launch::default()
    };
    let general = fleet.node_pools.iter_mut().find(|p| p.name == "general").unwrap();
    general.launches = vec![failed];
    fleet
}

/// So many nodes made from the scenario's one, with what nodes differ in.
fn grown(fleet: &mut Fleet, number: usize, now: Timestamp) {
    const TYPES: [(&str, f64); 4] = [
        ("m7i.large", 0.1008),
        ("c7g.2xlarge", 0.29),
        ("r6i.4xlarge", 1.008),
        ("m7g.xlarge", 0.1632),
    ];
    let first = fleet.nodes[0].clone();
    let share =
        |i: usize, step: usize| f64::from(u32::try_from(20 + i * step % 79).unwrap()) / 100.0;
    fleet.nodes.extend((fleet.nodes.len()..number).map(|i| {
        let (kind, price) = TYPES[i * 7 / 3 % TYPES.len()];
        let capacity_type = ["on-demand", "spot", "spot", "reserved", "spot"][i % 5];
        let name = format!("ip-10-1-{}-{}.ec2.internal", i / 250, 3 + i % 250);
        NodeRow {
            node_claim: Some(format!("claim-of-{name}")),
            name,
            node_pool: Some(["general", "batch", "general"][i % 3].to_owned()),
            instance_type: kind.to_owned(),
            zone: format!("us-east-1{}", ["a", "b", "c"][i % 3]),
            price: Some(if capacity_type == "spot" { price * 0.4 } else { price }),
            capacity_type: capacity_type.to_owned(),
            state: ["NotReady", "Launching", "Deleting"]
                .get(i % 97)
                .copied()
                .unwrap_or("Ready")
                .to_owned(),
            created: Some(
                now - SignedDuration::from_mins(i64::try_from(7 + i * i % 9000).unwrap()),
            ),
            pods: 3 + i * 5 % 26,
            cpu_share: share(i, 37),
            memory_share: share(i, 53),
            ..first.clone()
        }
    }));
}

/// What the methods have against a node that is needed.
fn verdicts_of_a_day() -> Vec<Verdict> {
    let all = [
        (Method::Repair, Rejection::Healthy),
        (Method::Emptiness, Rejection::NotEmpty),
        (Method::Drift, Rejection::NotDrifted),
        (Method::MultiNode, Rejection::NoSet),
        (Method::SingleNode, Rejection::NotCheaper),
    ];
    let verdict = |(method, rejection): (Method, Rejection)| Verdict {
        method: method.name().to_owned(),
        code: rejection.label().to_owned(),
        message: rejection.to_string(),
        until: None,
    };
    all.map(verdict).to_vec()
}

/// The fleet after what the page asked for.
fn scene(name: &str, now: Timestamp) -> Fleet {
    let mut fleet = shop(now);
    let first = fleet.nodes[0].clone();
    match name {
        "shop" | "gone" => {}
        "launching" => fleet.nodes.push(NodeRow {
            name: "ip-10-0-9-9.ec2.internal".to_owned(),
            node_claim: Some("general-9x2kq".to_owned()),
            state: "Launching".to_owned(),
            created: Some(now),
            verdicts: Vec::new(),
            ..first
        }),
        "idle" => fleet.pods.clear(),
        "day" => {
            let node = &mut fleet.nodes[0];
            node.node_claim = Some("general-7xk2p".to_owned());
            node.created = Some(now - SignedDuration::from_hours(5));
            node.verdicts = verdicts_of_a_day();
            grown(&mut fleet, 46, now);
        }
        "many" => grown(&mut fleet, MANY, now),
        other => panic!("page.mjs asks for scene {other:?}"),
    }
    fleet.nodes.sort_by(|a, b| a.name.cmp(&b.name));
    for pool in &mut fleet.node_pools {
        let own = fleet.nodes.iter().filter(|n| n.node_pool.as_deref() == Some(&pool.name));
        pool.nodes = own.clone().count();
        pool.cost = own.filter_map(|n| n.price).sum();
    }
    let priced = fleet.nodes.iter().filter_map(|n| Some((n.price?, n.cpu_share + n.memory_share)));
    fleet.cost.total = priced.clone().map(|(price, _)| price).sum();
    fleet.cost.wasted = priced.map(|(price, shares)| price * (1.0 - shares / 2.0)).sum();
    fleet
}

/// A day in which load rises and falls, with what was launched and deleted for it.
fn timeline(now: Timestamp) -> Timeline {
    let mut timeline = Timeline::default();
    let decision = |time, kind, number: usize, reason: Option<&str>| Decision {
        time,
        kind,
        node_claim: format!("general-{:05x}", 0x7c1d2 + number * 0x3a7f),
        node_pool: Some(["general", "batch"][number % 2].to_owned()),
        instance_type: Some(["m7i.large", "m7g.xlarge"][number % 2].to_owned()),
        reason: reason.map(str::to_owned),
        price: Some([0.1008, 0.1632][number % 2]),
    };
    let mut cost = 0.3024;
    for minutes in (0..1440).rev() {
        let time = now - SignedDuration::from_mins(minutes);
        let number = usize::try_from(minutes).unwrap() / 47;
        match minutes {
            0 | 300 => {}
            m if m % 47 == 0 && (700..1150).contains(&m) => {
                timeline.add(decision(time, "launched", number, None));
                cost += [0.1008, 0.1632][number % 2];
            }
            m if m % 47 == 0 && m < 700 => {
                let reason = ["Underutilized", "Empty", "Drifted"][number % 3];
                timeline.add(decision(time, "deleted", number, Some(reason)));
                cost -= [0.1008, 0.1632][number % 2] / 2.0;
            }
            _ => {}
        }
        if minutes == 300 {
            let node_claim = "general-7xk2p".to_owned();
            timeline.add(Decision { node_claim, ..decision(time, "launched", 0, None) });
            cost += 0.1008;
        }
        timeline.sample(time, cost);
    }
    timeline.savings = [
        ("general", "underutilized", 0.4034, 5.21),
        ("general", "empty", 0.1008, 1.92),
        ("batch", "packing", 0.0618, 0.74),
    ]
    .map(|(node_pool, reason, per_hour, total)| Saving {
        node_pool: node_pool.to_owned(),
        reason: reason.to_owned(),
        per_hour,
        total,
    })
    .to_vec();
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
    let mut browser = Browser::on(&format!("http://127.0.0.1:{port}/"), "page.mjs");
    while let Some(name) = browser.scene() {
        *shown.fleet.lock().unwrap() = Arc::new(scene(&name, now));
    }
    browser.finish();
}
