//! The chart's dashboards: each query finds series that the controller really writes.

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::{Value, json};

use crate::chain::one_initialized;
use crate::operator::get;
use crate::support::world::root;
use crate::support::{Controller, World, until};

/// Metrics that have no series until something goes wrong; tests of the model world show them.
const OF_TROUBLE: &[&str] = &[
    "karpenter_cloudprovider_errors_total",
    "karpenter_cloudprovider_instance_launch_failures_total",
    "karpenter_interruption_received_messages_total",
    "karpenter_nodepools_cost_tracker_errors_total",
    "karpenter_voluntary_disruption_failed_validations_total",
    "karpenter_voluntary_disruption_queue_failures_total",
];

/// A metric with the matchers of its labels, as a query asks for it.
#[derive(Debug)]
struct Selector {
    metric: String,
    matchers: Vec<(String, Regex)>,
}

/// The selectors of a query; a variable of the dashboard stands for any value.
fn selectors(query: &str) -> Vec<Selector> {
    const STARTS: &str = "aws_sdk_go|client_go|controller_runtime|karpenter|leader_election|operator|process|workqueue";
    let metric = Regex::new(&format!(r"\b((?:{STARTS})_\w+)(?:\{{([^}}]*)\}})?")).unwrap();
    let matcher = Regex::new(r#"(\w+)(=~?)"([^"]*)""#).unwrap();
    let of = |found: regex::Captures<'_>| {
        let labels = found.get(2).map_or("", |m| m.as_str());
        let matchers = matcher.captures_iter(labels).map(|m| {
            let wanted = match (&m[2], m[3].starts_with('$')) {
                (_, true) => ".*".to_owned(),
                ("=", _) => regex::escape(&m[3]),
                _ => m[3].to_owned(),
            };
            (m[1].to_owned(), Regex::new(&format!("^(?:{wanted})$")).unwrap())
        });
        Selector { metric: found[1].to_owned(), matchers: matchers.collect() }
    };
    metric.captures_iter(query).map(of).collect()
}

impl Selector {
    /// True when a line of a scrape is a series that is asked for.
    fn finds(&self, line: &str) -> bool {
        let Some(rest) = line.strip_prefix(&self.metric) else { return false };
        let labels = match rest.split_once('}') {
            Some((labels, _)) if labels.starts_with('{') => labels,
            _ if rest.starts_with(' ') => "",
            _ => return false,
        };
        self.matchers.iter().all(|(name, wanted)| {
            let start = [format!("{{{name}=\""), format!(",{name}=\"")];
            let value = start.iter().find_map(|s| labels.split_once(s.as_str()));
            value.is_some_and(|(_, value)| wanted.is_match(value.split('"').next().unwrap_or("")))
        })
    }
}

/// Every query of a dashboard, those of its variables too.
fn queries(board: &Value) -> Vec<String> {
    let targets = board["panels"].as_array().unwrap().iter();
    let targets = targets.flat_map(|p| p["targets"].as_array().unwrap());
    let variables = board["templating"]["list"].as_array().unwrap().iter();
    let variables = variables.filter_map(|v| v["query"]["query"].as_str());
    targets.map(|t| t["expr"].as_str().unwrap()).chain(variables).map(str::to_owned).collect()
}

/// A DaemonSet, for the requests of daemons.
fn agent() -> Value {
    let labels = json!({"app": "agent"});
    let container = json!({"name": "agent", "image": "pause",
        "resources": {"requests": {"cpu": "50m", "memory": "50Mi"}}});
    json!({"apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": "agent", "namespace": "default"},
        "spec": {"selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}}}})
}

/// Something once pods were evicted.
fn evicted(port: u16) -> Option<()> {
    let (_, text) = get(port, "/metrics")?;
    text.contains("\nkarpenter_pods_eviction_requests_total{").then_some(())
}

#[test]
fn a_selector_finds_what_it_asks_for_and_nothing_else() {
    let query = r#"max(karpenter_nodepools_usage{resource_type="cpu",nodepool=~"$nodepool"})"#;
    let [selector] = &selectors(query)[..] else { panic!("one selector") };
    let finds = |labels: &str| selector.finds(&format!("karpenter_nodepools_usage{labels} 1"));
    assert!(finds(r#"{nodepool="a",resource_type="cpu"}"#));
    assert!(!finds(r#"{nodepool="a",resource_type="memory"}"#));
    assert!(!finds(r#"{resource_type="cpu"}"#) && !finds(r#"_other{resource_type="cpu"}"#));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_the_dashboards_finds_series_of_a_node_s_life() {
    let boards = ["capacity", "controller", "cost", "disruption"].map(|name| {
        let file = root().join(format!("charts/karpenter/dashboards/{name}.json"));
        serde_json::from_str::<Value>(&std::fs::read_to_string(file).unwrap()).unwrap()
    });
    let wanted: Vec<Selector> =
        boards.iter().flat_map(queries).flat_map(|query| selectors(&query)).collect();
    assert!(wanted.len() > 45, "{}", wanted.len());

    let world = World::up().await;
    let settings = [("COST_METRICS", "true"), ("DISABLE_LEADER_ELECTION", "false")];
    let controller = Controller::with(&world, &settings);
    world.apply_file("examples/weasel-eks/manifests.yaml").await;
    world.apply(&agent().to_string()).await;
    world.deploy("web", 3, "250m", "200Mi").await;
    one_initialized(&world).await;
    let (mut found, mut without) = (BTreeSet::new(), BTreeSet::new());
    let mut look = || {
        let (_, text) = get(controller.metrics_port, "/metrics")?;
        let new: Vec<usize> = (0..wanted.len())
            .filter(|i| !found.contains(i) && text.lines().any(|line| wanted[*i].finds(line)))
            .collect();
        found.extend(new);
        let rest: Vec<&Selector> = (0..wanted.len())
            .filter(|i| !found.contains(i))
            .map(|i| &wanted[i])
            .filter(|s| !OF_TROUBLE.contains(&s.metric.as_str()))
            .collect();
        let names: BTreeSet<String> = rest.iter().map(|s| s.metric.clone()).collect();
        if names != without {
            println!("without series: {names:?}");
            without = names;
        }
        Some(without.is_empty())
    };
    // Its pods are evicted and get another node, which goes once it is empty.
    until("a node with pods", || async { (world.running().await == 4).then_some(()) }).await;
    look();
    let name = world.nodes().await[0].metadata.name.clone().unwrap();
    world.kubectl(&["delete", "node", &name, "--wait=false"]);
    until("evictions", || std::future::ready(evicted(controller.metrics_port))).await;
    until("pods on another node", || async {
        let nodes = world.nodes().await;
        let gone = nodes.iter().all(|n| n.metadata.name.as_ref() != Some(&name));
        (gone && world.running().await == 4).then_some(())
    })
    .await;
    until("what the pods cost", || {
        let page = get(controller.metrics_port, "/metrics");
        std::future::ready(
            page.filter(|(_, text)| text.contains("\nkarpenter_cost_pods_dollars_per_hour{")),
        )
    })
    .await;
    look();
    world.scale("web", 0);
    until("series for every query", || std::future::ready(look().filter(|all| *all))).await;
}
