//! What nodes cost, by NodePool, namespace, capacity type and zone, and what was saved: opt-in
//! metrics under names that Karpenter does not have.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

use super::Context;
use crate::api::labels;
use crate::fleet::pod_share;
use crate::operator::metrics::page::{Family, Page};
use crate::operator::metrics::{self};
use crate::scheduling::node::StateNode;

mod ledger;
mod packing;

pub use ledger::{Keeper, Ledger};
pub use packing::saved_per_hour as saved_by_packing;

/// The prices of NodeClaims that are known, in dollars an hour, by the claim's name.
#[derive(Default)]
pub struct Prices(Mutex<Arc<HashMap<String, f64>>>);

impl Prices {
    /// Replaces all of them.
    pub fn set(&self, prices: HashMap<String, f64>) {
        *self.0.lock() = Arc::new(prices);
    }

    /// All of them.
    #[must_use]
    pub fn get(&self) -> Arc<HashMap<String, f64>> {
        Arc::clone(&self.0.lock())
    }
}

/// Adds the metrics of cost.
pub fn start(ctx: &Arc<Context>, prices: &Arc<Prices>) {
    let prices = Arc::clone(prices);
    metrics::add_source(ctx, move |ctx, page| {
        write(&ctx.cluster.state_nodes(), &prices.get(), page);
        write_saved(&ctx.savings, ctx.clock.now(), page);
    });
}

/// Where a node is and what kind of capacity it has.
type Place<'a> = [&'a str; 3];

fn write(nodes: &[StateNode], prices: &HashMap<String, f64>, page: &mut Page<'_>) {
    let mut of_nodes: BTreeMap<Place<'_>, f64> = BTreeMap::new();
    let mut unused: BTreeMap<Place<'_>, f64> = BTreeMap::new();
    let mut of_namespaces: BTreeMap<&str, f64> = BTreeMap::new();
    for node in nodes {
        let claim = node.node_claim.as_ref().and_then(|c| c.metadata.name.as_ref());
        let Some(price) = claim.and_then(|name| prices.get(name)) else { continue };
        let label = |key: &str| node.labels().get(key).map_or("", String::as_str);
        let place = [label(labels::NODEPOOL), label(labels::CAPACITY_TYPE), label(labels::ZONE)];
        *of_nodes.entry(place).or_default() += price;
        let allocatable = node.allocatable();
        let mut free = 1.0;
        for pod in node.pods.iter().filter(|p| !p.terminal) {
            let share = pod_share(pod, &allocatable);
            free -= share;
            *of_namespaces.entry(&pod.key.namespace).or_default() += price * share;
        }
        *unused.entry(place).or_default() += price * f64::max(free, 0.0);
    }
    let mut places = |family: &Family, costs: &BTreeMap<Place<'_>, f64>| {
        let Some(mut lines) = page.family(family) else { return };
        costs.iter().for_each(|(place, cost)| lines.add(place, *cost));
    };
    places(&metrics::COST_NODES, &of_nodes);
    places(&metrics::COST_UNUSED, &unused);
    if let Some(mut lines) = page.family(&metrics::COST_PODS) {
        of_namespaces.iter().for_each(|(namespace, cost)| lines.add(&[namespace], *cost));
    }
}

fn write_saved(ledger: &Ledger, now: jiff::Timestamp, page: &mut Page<'_>) {
    let totals = ledger.totals(now);
    if let Some(mut lines) = page.family(&metrics::COST_SAVED) {
        for (key, total) in &totals {
            lines.add(&[&key.nodepool, &key.reason], total.dollars);
        }
    }
    if let Some(mut lines) = page.family(&metrics::COST_SAVING) {
        for (key, total) in &totals {
            lines.add(&[&key.nodepool, &key.reason], total.per_hour);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::metrics::{Options, page_of};
    use crate::scheduling::node::NodeView;
    use crate::scheduling::pod::{PodInfo, PodKey};
    use crate::scheduling::resources::Name;

    fn node(name: &str, devices: bool, pods: &[(&str, i64, i64)]) -> StateNode {
        let mut allocatable = serde_json::json!({"cpu": "4", "memory": "8Gi"});
        if devices {
            allocatable["nvidia.com/gpu"] = "1".into();
        }
        let labels = serde_json::json!({labels::NODEPOOL: "default", labels::ZONE: "a",
            labels::CAPACITY_TYPE: "spot", labels::REGISTERED: "true", labels::INITIALIZED: "true"});
        let object = serde_json::json!({"metadata": {"name": name, "labels": labels},
            "status": {"capacity": allocatable, "allocatable": allocatable}});
        let claim = serde_json::json!({"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
            "metadata": {"name": name, "labels": labels}, "spec": {"requirements": [],
                "nodeClassRef": {"group": "g", "kind": "k", "name": "n"}}});
        let pods = pods.iter().map(|(namespace, cpu, gib)| {
            Arc::new(PodInfo {
                key: PodKey::new(namespace, "p"),
                requests: [(Name::Cpu, *cpu), (Name::Memory, gib << 30)].into_iter().collect(),
                ..PodInfo::default()
            })
        });
        NodeView {
            node: Some(Arc::new(serde_json::from_value(object).unwrap())),
            node_claim: Some(Arc::new(serde_json::from_value(claim).unwrap())),
            pods: pods.collect(),
            ..NodeView::default()
        }
        .into()
    }

    #[test]
    fn a_node_s_price_is_shared_by_what_its_pods_request() {
        let nodes = [
            node("n", false, &[("web", 2000, 2), ("jobs", 1000, 0)]),
            node("gpu", true, &[("web", 4000, 8)]),
            node("unpriced", false, &[("web", 4000, 8)]),
        ];
        let prices = HashMap::from([("n".to_owned(), 0.8), ("gpu".to_owned(), 3.0)]);
        let text = page_of(&Options::default(), |page| write(&nodes, &prices, page));
        let value = |start: &str| -> f64 {
            let line = text.lines().find(|l| l.starts_with(start));
            line.unwrap_or_else(|| panic!("{start}: {text}"))
                .rsplit(' ')
                .next()
                .unwrap()
                .parse()
                .unwrap()
        };
        let place = r#"{nodepool="default",capacity_type="spot",zone="a"}"#;
        let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found}");
        close(value(&format!("karpenter_cost_nodes_dollars_per_hour{place}")), 3.8);
        // Half of the cpu and a quarter of the memory; two of three resources of the other node.
        close(value(r#"karpenter_cost_pods_dollars_per_hour{namespace="web"}"#), 0.3 + 2.0);
        close(value(r#"karpenter_cost_pods_dollars_per_hour{namespace="jobs"}"#), 0.1);
        close(value(&format!("karpenter_cost_unused_dollars_per_hour{place}")), 0.4 + 1.0);
    }
}
