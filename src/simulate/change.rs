//! What changed NodePools would do to a scenario: the way to rest with them, beside the one without.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::build::adopt;
use super::disrupt::{self, CommandReport, DisruptReport};
use super::report::tidy;
use super::table::{Table, commands};
use super::{Scenario, ScenarioError, World};
use crate::api::hash::node_pool_hash;
use crate::api::v1::NodePool;
use crate::api::{annotations, conditions};
use crate::disruption::drifted_by_pool;

/// Hours of a month: a year's 8,760 over twelve, as AWS's price pages count.
const HOURS: f64 = 730.0;

/// What a change would do.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangeReport {
    /// The NodePools of the change.
    pub node_pools: Vec<PoolChange>,
    /// The cluster as it is, once waiting pods have their nodes.
    pub now: Figures,
    /// The same when every command that is found without the change was carried out.
    pub without_change: Figures,
    /// The same with the change.
    pub with_change: Figures,
    /// What is carried out with the change, in order.
    pub commands: Vec<CommandReport>,
}

/// A NodePool of the change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolChange {
    pub name: String,
    /// `added`, `changed` or `unchanged`.
    pub change: &'static str,
    /// Its nodes today.
    pub nodes: usize,
    /// Those of them that are not what it asks for any more, and are replaced.
    pub drifted: usize,
}

/// A cluster in figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    pub nodes: usize,
    /// Price per hour.
    pub price: f64,
    /// Waiting pods that have no place.
    pub unschedulable: usize,
    /// Pods that have to move until then, each as often as it does.
    pub evictions: usize,
    /// Nothing is left to do.
    pub at_rest: bool,
}

impl Figures {
    fn at_rest(report: &DisruptReport) -> Self {
        let plan = report.plan.clone().unwrap_or_default();
        Self {
            nodes: plan.nodes_after,
            price: plan.price_after,
            unschedulable: report.unschedulable,
            evictions: plan.evictions,
            at_rest: plan.at_rest,
        }
    }
}

/// Lays NodePools over those of the scenario, and carries out on paper what follows.
///
/// # Errors
/// When the scenario or a changed NodePool cannot be used.
pub fn compare(
    scenario: Scenario,
    changed: Vec<Value>,
    now: Timestamp,
) -> Result<ChangeReport, ScenarioError> {
    let mut with = scenario.clone();
    let mut names = Vec::new();
    for mut pool in changed {
        let name = pool["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let twin = with.node_pools.iter_mut().find(|p| p["metadata"]["name"] == name.as_str());
        match twin {
            Some(twin) => {
                // A manifest has no status, while the controller has written the pool's.
                if let (Some(status), None) = (twin.get("status"), pool.get("status")) {
                    pool["status"] = status.clone();
                }
                *twin = pool;
            }
            None => with.node_pools.push(pool),
        }
        names.push(name);
    }
    // Both sides are brought to rest: only then is their difference that of the change, and not of
    // what would be consolidated anyway.
    let before = World::for_disruption(scenario)?;
    let mut after = World::for_disruption(with)?;
    let pools = names.iter().map(|name| apply(name, &before, &mut after, now)).collect();
    let before = disrupt::to_rest(before, now);
    let after = disrupt::to_rest(after, now);
    let plan = before.plan.clone().unwrap_or_default();
    Ok(ChangeReport {
        node_pools: pools,
        now: Figures {
            nodes: plan.nodes_before,
            price: plan.price_before,
            unschedulable: before.unschedulable,
            evictions: 0,
            at_rest: before.commands.is_empty(),
        },
        without_change: Figures::at_rest(&before),
        with_change: Figures::at_rest(&after),
        commands: after.commands,
    })
}

/// Marks the nodes that are not what the changed pool asks for, as the controller does.
fn apply(name: &str, before: &World, after: &mut World, now: Timestamp) -> PoolChange {
    let find = |world: &World| {
        let found =
            world.pools.iter().find(|p| p.node_pool.metadata.name.as_deref() == Some(name))?;
        Some(Arc::clone(&found.node_pool))
    };
    let (old, new) = (find(before), find(after));
    // Drift is a condition of NodeClaims, so a node that comes without one gets one first.
    adopt(&mut after.snapshot.nodes, &after.pools);
    let mut change = PoolChange {
        name: name.to_owned(),
        change: match (&old, &new) {
            (None, _) => "added",
            (Some(old), Some(new)) if old.spec == new.spec => "unchanged",
            _ => "changed",
        },
        nodes: 0,
        drifted: 0,
    };
    for node in after.snapshot.nodes.iter_mut().filter(|n| n.node_pool() == Some(name)) {
        change.nodes += 1;
        let (Some(claim), Some(old), Some(new)) = (&node.node_claim, &old, &new) else { continue };
        let mut claim = (**claim).clone();
        let launched_from = marked(old);
        // What the claim was launched from is the pool as it was, unless it says otherwise.
        for (key, value) in launched_from.metadata.annotations.iter().flatten() {
            let own = claim.metadata.annotations.get_or_insert_default();
            own.entry(key.clone()).or_insert_with(|| value.clone());
        }
        let Some(reason) = drifted_by_pool(&claim, &marked(new)) else { continue };
        change.drifted += 1;
        let list = &mut claim.status.get_or_insert_default().conditions;
        conditions::set(list, conditions::DRIFTED, conditions::TRUE, reason, reason, None, now);
        node.node_claim = Some(Arc::new(claim));
    }
    change
}

/// The pool with nothing but the annotations that its controller writes: its hash, and the version of that.
fn marked(pool: &NodePool) -> NodePool {
    let mut pool = pool.clone();
    pool.metadata.annotations = Some(BTreeMap::from([
        (annotations::NODEPOOL_HASH.to_owned(), node_pool_hash(&pool)),
        (
            annotations::NODEPOOL_HASH_VERSION.to_owned(),
            annotations::NODEPOOL_HASH_VERSION_VALUE.to_owned(),
        ),
    ]));
    pool
}

impl fmt::Display for ChangeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut pools = Table::new(&["NODEPOOL", "CHANGE", "NODES", "DRIFTED"]);
        for pool in &self.node_pools {
            pools.row(vec![
                pool.name.clone(),
                pool.change.to_owned(),
                pool.nodes.to_string(),
                pool.drifted.to_string(),
            ]);
        }
        writeln!(f, "{pools}")?;
        let mut figures = Table::new(&["", "NODES", "PRICE/H", "WITHOUT A PLACE", "EVICTIONS"]);
        for (name, of) in [
            ("now", &self.now),
            ("without the change", &self.without_change),
            ("with the change", &self.with_change),
        ] {
            let rest = if of.at_rest || name == "now" { "" } else { " (not at rest)" };
            figures.row(vec![
                format!("{name}{rest}"),
                of.nodes.to_string(),
                format!("{:.4}", of.price),
                of.unschedulable.to_string(),
                of.evictions.to_string(),
            ]);
        }
        writeln!(f, "{figures}")?;
        if !self.commands.is_empty() {
            writeln!(f, "Commands with the change\n{}", commands(&self.commands))?;
        }
        let difference = tidy(self.with_change.price - self.without_change.price);
        let word = if difference > 0.0 { "costs" } else { "saves" };
        writeln!(
            f,
            "The change {word} {:.4} an hour, {:.0} a month of 730 hours",
            difference.abs(),
            difference.abs() * HOURS
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::simulate::load_file;

    fn shop() -> Scenario {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/scenarios/shop.yaml");
        load_file(path.as_ref()).unwrap()
    }

    fn compare_shop(change: impl FnOnce(&mut Value)) -> ChangeReport {
        let scenario = shop();
        let mut pool = scenario.node_pools[0].clone();
        change(&mut pool);
        compare(scenario, vec![pool], "2026-11-29T12:00:00Z".parse().unwrap()).unwrap()
    }

    #[test]
    fn nodes_that_a_changed_pool_does_not_allow_are_replaced() {
        let report = compare_shop(|pool| {
            pool["spec"]["template"]["spec"]["requirements"][0]["values"] = json!(["spot"]);
        });
        let pool = &report.node_pools[0];
        assert_eq!((pool.change, pool.nodes, pool.drifted), ("changed", 1, 1));
        assert!(report.with_change.price < report.without_change.price, "{report}");
        assert!(report.commands.iter().any(|c| c.reason == "Drifted"), "{report}");
        assert!(report.with_change.evictions >= 1 && report.with_change.at_rest, "{report}");
        assert!(report.to_string().contains("The change saves "), "{report}");
    }

    #[test]
    fn labels_and_taints_of_the_template_drift_nodes_by_the_hash() {
        let report = compare_shop(|pool| {
            pool["spec"]["template"]["metadata"] = json!({"labels": {"tier": "web"}});
        });
        assert_eq!(report.node_pools[0].drifted, 1);
    }

    #[test]
    fn a_pool_that_stays_the_same_changes_nothing() {
        let report = compare_shop(|_| {});
        let pool = &report.node_pools[0];
        assert_eq!((pool.change, pool.drifted), ("unchanged", 0));
        assert_eq!(report.with_change, report.without_change);
        let limited = compare_shop(|pool| pool["spec"]["limits"] = json!({"cpu": "2"}));
        let pool = &limited.node_pools[0];
        assert_eq!((pool.change, pool.drifted), ("changed", 0), "limits are no drift");
        assert!(limited.with_change.unschedulable > limited.without_change.unschedulable);
    }

    #[test]
    fn a_new_pool_gives_a_place_to_pods_that_had_none() {
        let report = compare_shop(|pool| {
            pool["metadata"]["name"] = json!("more");
            pool["spec"]["template"]["spec"]["requirements"] = json!([]);
        });
        assert_eq!(report.node_pools[0].change, "added");
        assert_eq!(report.now.unschedulable, 1);
    }
}
