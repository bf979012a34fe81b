//! What disruption would do to a scenario: waiting pods are placed first, as the controller does, then
//! each method is asked. `all` carries every command out on paper and goes on until nothing is left.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::Timestamp;
use serde::Serialize;

use super::World;
use super::build::adopt;
use super::report::{ClaimReport, tidy};
use crate::disruption::{self, Command, Decision, Input, Method, Prepared, Rejection};
use crate::scheduling;

mod apply;

use apply::Cluster;

/// A scenario that does not come to rest after so many commands has some fault; the limit only
/// ensures that the process ends.
const MOST_COMMANDS: usize = 10_000;

/// What would be disrupted.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DisruptReport {
    /// Commands in the order in which they would be carried out.
    pub commands: Vec<CommandReport>,
    /// Nodes that stay, and why.
    pub rejected: Vec<Rejected>,
    /// What the budgets of each pool leave at the beginning, for each reason.
    pub budgets: Vec<BudgetReport>,
    /// Nodes launched for waiting pods before anything is disrupted.
    pub launched: usize,
    /// Waiting pods that have no place.
    pub unschedulable: usize,
    /// What the scenario leaves open, and how it was taken.
    pub assumed: Vec<String>,
    /// How often scheduling was simulated.
    pub simulations: usize,
    /// The whole plan in figures; only where all commands are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// How long the decisions took, where that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solve_seconds: Option<f64>,
}

/// Nodes to remove, and what comes first.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CommandReport {
    pub method: &'static str,
    pub reason: String,
    pub decision: String,
    pub candidates: Vec<String>,
    pub replacements: Vec<ClaimReport>,
    pub savings: f64,
    /// Pods that have to move.
    pub evictions: usize,
}

/// A node that stays.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rejected {
    pub node: String,
    /// The reason of the method that came nearest to disrupting it.
    pub reason: String,
    /// Price per hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price: Option<f64>,
    /// One, and what evicting its pods costs on top.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disruption_cost: Option<f64>,
    /// What its going away entirely would be worth to its pool, by the policy Balanced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// What each method has against it.
    pub methods: Vec<MethodReason>,
}

/// What one method has against a node.
#[derive(Clone, Debug, Serialize)]
pub struct MethodReason {
    pub method: &'static str,
    /// A word that does not change.
    pub code: &'static str,
    pub reason: String,
    /// The reason as the method gave it.
    #[serde(skip)]
    pub rejection: (Method, Rejection),
}

/// A pool's budget.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BudgetReport {
    pub node_pool: String,
    pub reason: &'static str,
    /// Nodes that count.
    pub nodes: i64,
    /// How many of them may be under disruption; `None` without a limit.
    pub allowed: Option<i64>,
    pub disrupting: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A plan in figures.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Price an hour before and after.
    pub price_before: f64,
    pub price_after: f64,
    pub nodes_before: usize,
    pub nodes_after: usize,
    /// How often the methods had to look at the cluster until there was nothing to do; what is found
    /// together is carried out together.
    pub passes: usize,
    /// Pods that had to move, each as often as it did.
    pub evictions: usize,
    /// Nothing is left to do at the end.
    pub at_rest: bool,
}

/// Lets every method find its commands; nodes that a command takes are out of the next one's reach.
#[must_use]
pub fn disrupt(mut world: World, now: Timestamp) -> DisruptReport {
    let mut report = begin(&mut world, None);
    let mut verdicts = Verdicts::default();
    let mut taken: BTreeSet<String> = BTreeSet::new();
    let mut queued: HashSet<String> = HashSet::new();
    let mut prepared = Prepared::default();
    for method in Method::ALL {
        let decision = decide(&world, &mut prepared, &queued, method, now);
        report.simulations += decision.simulations;
        budgets(&mut report, method, &decision);
        verdicts.add(method, &decision);
        if decision.commands.is_empty() {
            continue;
        }
        prepared = Prepared::default();
        for command in &decision.commands {
            report.commands.push(describe(command));
            for candidate in &command.candidates {
                taken.insert(candidate.node.name().to_owned());
                queued.extend(candidate.node.provider_id().map(str::to_owned));
            }
        }
        for node in &mut world.snapshot.nodes {
            // As in the controller, where the command's nodes are tainted before the next method
            // runs.
            node.marked_for_deletion |= taken.contains(node.name());
        }
    }
    report.rejected = verdicts.rejected(&taken);
    report
}

/// Carries one command out after the other, each on the cluster that the last one left, until no
/// method finds anything.
#[must_use]
pub fn all(mut world: World, now: Timestamp) -> DisruptReport {
    let report = begin(&mut world, None);
    carry_out(&mut world, report, now)
}

/// The same, once the pods that wait have arrived on their nodes, and new nodes have joined: no node is
/// left alone because it expects pods, or because others are not ready.
#[must_use]
pub fn to_rest(mut world: World, now: Timestamp) -> DisruptReport {
    let report = begin(&mut world, Some(now));
    // The pods that the nominations were for have arrived.
    for node in world.snapshot.nodes.iter_mut().filter(|n| n.nominated_until.is_some()) {
        node.nominated_until = None;
    }
    carry_out(&mut world, report, now)
}

/// Carries the commands out; the world is then as the last one left it.
fn carry_out(world: &mut World, mut report: DisruptReport, now: Timestamp) -> DisruptReport {
    let mut plan = Plan {
        price_before: apply::price(world),
        nodes_before: world.snapshot.nodes.len(),
        ..Plan::default()
    };
    let mut cluster = Cluster::new(now);
    let none = HashSet::new();
    'passes: while report.commands.len() < MOST_COMMANDS {
        let (mut verdicts, mut prepared) = (Verdicts::default(), Prepared::default());
        for method in Method::ALL {
            let decision = decide(world, &mut prepared, &none, method, now);
            report.simulations += decision.simulations;
            // Budgets are reported as they are at the beginning, so only in the first pass.
            if report.commands.is_empty() {
                budgets(&mut report, method, &decision);
            }
            if !decision.commands.is_empty() {
                plan.passes += 1;
                plan.evictions += decision.commands.iter().map(Command::pod_count).sum::<usize>();
                report.commands.extend(decision.commands.iter().map(describe));
                cluster.carry_out(world, &decision.commands);
                // After a command the methods start over: an earlier method may find something on
                // the changed cluster.
                continue 'passes;
            }
            verdicts.add(method, &decision);
        }
        plan.at_rest = true;
        report.rejected = verdicts.rejected(&BTreeSet::new());
        break;
    }
    plan.price_after = tidy(apply::price(world));
    plan.price_before = tidy(plan.price_before);
    plan.nodes_after = world.snapshot.nodes.len();
    report.plan = Some(plan);
    report
}

/// Completes the scenario and places what waits.
fn begin(world: &mut World, arrived: Option<Timestamp>) -> DisruptReport {
    let alone: Vec<String> = world
        .snapshot
        .nodes
        .iter()
        .filter(|n| n.node_claim.is_none() && n.node_pool().is_some())
        .map(|n| n.name().to_owned())
        .collect();
    // After `alone` was gathered: from here on those nodes have a NodeClaim.
    adopt(&mut world.snapshot.nodes, &world.pools);
    let mut report = DisruptReport::default();
    let adopted: BTreeSet<&str> =
        world.snapshot.nodes.iter().filter(|n| n.managed()).map(|n| n.name()).collect();
    report.assumed = alone
        .iter()
        .filter(|name| adopted.contains(name.as_str()))
        .map(|name| {
            format!("node {name:?} has no NodeClaim here: taken for launched, initialized and Consolidatable")
        })
        .collect();
    if !world.snapshot.pods.is_empty() {
        let results = scheduling::solve(&world.snapshot);
        report.launched = results.new_claims.len();
        report.unschedulable = results.errors.len();
        apply::place(world, &results, arrived);
    }
    report
}

fn decide(
    world: &World,
    prepared: &mut Prepared,
    queued: &HashSet<String>,
    method: Method,
    now: Timestamp,
) -> Decision {
    let (backed_off, rebooted) = (BTreeSet::new(), HashSet::new());
    let input = Input {
        snapshot: &world.snapshot,
        pools: &world.pools,
        pdbs: &world.pdbs,
        now,
        queued,
        backed_off: &backed_off,
        repair: &world.repair,
        rebooted: &rebooted,
        gates: world.gates,
    };
    // Without a time limit: on paper the answer must not depend on the speed of the machine.
    prepared.decide(&input, method, &|| true)
}

fn describe(command: &Command) -> CommandReport {
    CommandReport {
        method: command.method.name(),
        reason: command.reason().as_str().to_owned(),
        decision: command.decision().to_owned(),
        candidates: command.candidates.iter().map(|c| c.node.name().to_owned()).collect(),
        replacements: command.replacements.iter().map(ClaimReport::new).collect(),
        savings: tidy(command.savings),
        evictions: command.pod_count(),
    }
}

fn budgets(report: &mut DisruptReport, method: Method, decision: &Decision) {
    let reason = method.reason().as_str();
    // The two kinds of consolidation share a reason, and its budget.
    if report.budgets.iter().any(|b| b.reason == reason) {
        return;
    }
    report.budgets.extend(decision.budgets.iter().map(|(pool, allowance)| BudgetReport {
        node_pool: pool.to_owned(),
        reason,
        nodes: allowance.total,
        allowed: Some(allowance.allowed).filter(|a| *a < disruption::budget::UNLIMITED),
        disrupting: allowance.disrupting,
        error: allowance.error.as_ref().map(ToString::to_string),
    }));
}

/// What all methods have against each node.
#[derive(Default)]
struct Verdicts(BTreeMap<String, Rejected>);

impl Verdicts {
    fn add(&mut self, method: Method, decision: &Decision) {
        for (node, verdict) in &decision.verdicts {
            let entry = self.0.entry(node.clone()).or_insert_with(|| Rejected {
                node: node.clone(),
                reason: String::new(),
                price: None,
                disruption_cost: None,
                score: None,
                methods: Vec::new(),
            });
            if let Some(figures) = verdict.figures {
                entry.price = Some(tidy(figures.price));
                entry.disruption_cost = Some(tidy(figures.disruption_cost));
                entry.score = figures.score.filter(|s| s.is_finite()).map(tidy);
            }
            if let Some(rejection) = &verdict.rejection {
                let reason = rejection.to_string();
                // What an event would say counts most; among equals the last method's word.
                if rejection.event(method).is_some() || entry.reason.is_empty() {
                    entry.reason.clone_from(&reason);
                }
                let code = rejection.label();
                let rejection = (method, rejection.clone());
                entry.methods.push(MethodReason { method: method.name(), code, reason, rejection });
            }
        }
    }

    fn rejected(self, taken: &BTreeSet<String>) -> Vec<Rejected> {
        self.0.into_values().filter(|r| !taken.contains(&r.node) && !r.methods.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests;
