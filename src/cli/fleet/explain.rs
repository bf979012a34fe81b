//! `karpenter explain`: why a pod waits, why a node stays, what a NodePool may do.

use std::fmt;
use std::process::ExitCode;

use serde::Serialize;

use super::{Failure, Loaded, Source, age, finish, load, minute, price, print, proxy};
use crate::fleet::{Launch, NodeRow, PodRow, PoolRow, Waiting};
use crate::simulate::table::Table;

/// Why a pod waits, why a node stays, or what a NodePool may do.
#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct Args {
    /// Kind of the object.
    #[arg(value_enum)]
    kind: Kind,
    /// Its name; of a pod also NAMESPACE/NAME.
    name: String,
    /// The pod's namespace.
    #[arg(long, short, default_value = "default")]
    namespace: String,
    #[command(flatten)]
    source: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// A pod.
    #[value(alias = "pods", alias = "po")]
    Pod,
    /// A Node.
    #[value(alias = "nodes", alias = "no")]
    Node,
    /// A NodeClaim.
    #[value(alias = "nodeclaims")]
    Nodeclaim,
    /// A NodePool.
    #[value(alias = "nodepools")]
    Nodepool,
}

/// Explains one object.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    finish("explain", explain(args))
}

fn explain(args: &Args) -> Result<(), Failure> {
    let loaded = load(&args.source)?;
    let output = args.source.output;
    match args.kind {
        Kind::Pod => {
            let given = args.name.split_once('/');
            let (namespace, name) = given.unwrap_or((&args.namespace, &args.name));
            match loaded.fleet.pod(namespace, name) {
                Some(row) => print(output, row, Pod(row)),
                None => {
                    bound(&loaded, namespace, name).and_then(|bound| print(output, &bound, &bound))
                }
            }
        }
        Kind::Node | Kind::Nodeclaim => {
            let kind = if args.kind == Kind::Node { "Node" } else { "NodeClaim" };
            let missing = || Failure::NotFound(format!("there is no {kind} {:?}", args.name));
            let row = loaded.fleet.node(&args.name).ok_or_else(missing)?;
            print(output, row, Node(row, loaded.fleet.time))
        }
        Kind::Nodepool => {
            let missing = || Failure::NotFound(format!("there is no NodePool {:?}", args.name));
            let row = loaded.fleet.node_pool(&args.name).ok_or_else(missing)?;
            print(output, row, Pool(row))
        }
    }
}

/// A pod that waits for nothing here.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Bound {
    namespace: String,
    name: String,
    /// The node that it runs on; absent while Kubernetes' scheduler has not yet tried to place it.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    message: String,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Pod {}/{} {}", self.namespace, self.name, self.message)
    }
}

/// Where a pod is that does not wait for this controller.
fn bound(loaded: &Loaded, namespace: &str, name: &str) -> Result<Bound, Failure> {
    let missing = || Failure::NotFound(format!("there is no pod {namespace}/{name}"));
    let here = loaded.snapshot.as_ref().and_then(|snapshot| {
        snapshot.nodes.iter().find_map(|node| {
            let found =
                node.pods.iter().any(|p| &*p.key.namespace == namespace && &*p.key.name == name);
            found.then(|| node.name().to_owned())
        })
    });
    let node = match here {
        Some(node) => Some(node),
        // The controller's figures hold only pods that wait; where a bound one runs, the API server
        // knows.
        None if loaded.live => {
            proxy::node_of_pod(namespace, name).map_err(Failure::NotFound)?.ok_or_else(missing)?
        }
        None => return Err(missing()),
    };
    let message = match &node {
        Some(node) => format!("runs on node {node}"),
        None => {
            "has no node, and Kubernetes' scheduler has not reported it as unschedulable".to_owned()
        }
    };
    Ok(Bound { namespace: namespace.to_owned(), name: name.to_owned(), node, message })
}

struct Pod<'a>(&'a PodRow);

impl fmt::Display for Pod<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pod = self.0;
        let requests: Vec<String> =
            pod.requests.iter().map(|(name, amount)| format!("{name}={}", amount.0)).collect();
        writeln!(f, "Pod {}/{} requests {}", pod.namespace, pod.name, requests.join(" "))?;
        match &pod.waiting {
            Waiting::Node { node } => writeln!(f, "It fits on node {node}, and waits for it."),
            Waiting::NodeClaim { node_pool, instance_type } => {
                let kind = instance_type.as_deref().unwrap_or("an instance");
                writeln!(f, "NodePool {node_pool} creates a node for it, at best a {kind}.")
            }
            Waiting::Nothing { message, node_pools } if node_pools.is_empty() => {
                writeln!(f, "It fits nowhere: {message}")
            }
            Waiting::Nothing { node_pools, .. } => {
                writeln!(f, "No NodePool can create a node for it:")?;
                for verdict in node_pools {
                    let (pool, stage) = (&verdict.node_pool, &verdict.stage);
                    writeln!(f, "\n{pool} ({stage})\n  {}", short(&verdict.message))?;
                    for kind in &verdict.nearest {
                        writeln!(f, "  nearest: {}", nearest(kind))?;
                    }
                    if let Some(hint) = &verdict.hint {
                        writeln!(f, "  would help: {hint}")?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// The reason without the requirements that it was decided on: they are long, JSON and YAML have them.
fn short(message: &str) -> &str {
    message.split_once(", requirements=").map_or(message, |(reason, _)| reason)
}

fn nearest(kind: &crate::fleet::NearestType) -> String {
    let mut parts: Vec<String> = kind
        .missing
        .iter()
        .map(|m| format!("{} {} of {} requested", m.resource, m.allocatable.0, m.requested.0))
        .collect();
    parts.extend(kind.unmet.clone());
    if kind.unavailable {
        parts.push("no offering is available".to_owned());
    }
    format!("{}: {}", kind.instance_type, parts.join("; "))
}

struct Node<'a>(&'a NodeRow, jiff::Timestamp);

impl fmt::Display for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = self.0;
        writeln!(
            f,
            "Node {}: {}, {} {} in {}, {} per hour, {}",
            node.name,
            node.state,
            node.capacity_type,
            node.instance_type,
            node.zone,
            price(node.price),
            node.created.map_or("of unknown age".to_owned(), |t| age(Some(t), self.1) + " old")
        )?;
        if let Some(claim) = &node.node_claim {
            let pool = node.node_pool.as_deref().unwrap_or("-");
            writeln!(f, "NodeClaim {claim} of NodePool {pool}")?;
        }
        writeln!(
            f,
            "{} pod(s) request {:.0} % of cpu and {:.0} % of memory",
            node.pods,
            node.cpu_share * 100.0,
            node.memory_share * 100.0
        )?;
        if node.verdicts.is_empty() {
            let why = if node.node_claim.is_none() {
                "Karpenter does not manage this node, so it is never disrupted."
            } else {
                "No disruption method has rejected it."
            };
            return writeln!(f, "{why}");
        }
        // Most reasons hold until the cluster changes.
        let ends = node.verdicts.iter().any(|v| v.until.is_some());
        let mut headings = vec!["METHOD", "STAYS BECAUSE"];
        headings.extend(ends.then_some("UNTIL (UTC)"));
        let mut table = Table::new(&headings);
        for verdict in &node.verdicts {
            let mut row = vec![verdict.method.clone(), verdict.message.clone()];
            row.extend(ends.then(|| verdict.until.map_or_else(|| "-".to_owned(), minute)));
            table.row(row);
        }
        write!(f, "\n{table}")
    }
}

struct Pool<'a>(&'a PoolRow);

impl fmt::Display for Pool<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pool = self.0;
        writeln!(
            f,
            "NodePool {}: weight {}, {} node(s), {:.4} per hour, {} instance type(s), {} pending pod(s) wait for its nodes",
            pool.name, pool.weight, pool.nodes, pool.cost, pool.instance_types, pool.waiting_pods
        )?;
        if !pool.limits.is_empty() {
            let mut table = Table::new(&["LIMIT", "ALLOWED", "USED", "REMAINING"]);
            for (name, limit) in &pool.limits {
                let amount = |list: &std::collections::BTreeMap<String, _>| {
                    list.get(name).map_or_else(
                        || "0".to_owned(),
                        |q: &crate::scheduling::resources::ApiQuantity| q.0.clone(),
                    )
                };
                table.row(vec![
                    name.clone(),
                    limit.0.clone(),
                    amount(&pool.used),
                    amount(&pool.remaining),
                ]);
            }
            write!(f, "\n{table}")?;
        }
        let mut table = Table::new(&["REASON", "ALLOWED", "USED", "CHANGES (UTC)", "THEN"]);
        let count = |n: Option<i64>| n.map_or_else(|| "no limit".to_owned(), |n| n.to_string());
        for budget in &pool.budgets {
            if let Some(error) = &budget.error {
                writeln!(f, "\nBudgets cannot be read, so nothing is disrupted: {error}")?;
                return Ok(());
            }
            table.row(vec![
                budget.reason.clone(),
                count(budget.allowed),
                budget.used.to_string(),
                budget.changes_at.map_or_else(|| "-".to_owned(), minute),
                if budget.changes_at.is_some() {
                    count(budget.then_allowed)
                } else {
                    "-".to_owned()
                },
            ]);
        }
        write!(f, "\n{table}")?;
        launches(f, &pool.launches)
    }
}

/// How the last launches ended; nothing where the controller did not answer.
fn launches(f: &mut fmt::Formatter<'_>, launches: &[Launch]) -> fmt::Result {
    if launches.is_empty() {
        return Ok(());
    }
    let mut table =
        Table::new(&["LAUNCH (UTC)", "NODECLAIM", "TYPE", "ZONE", "CAPACITY", "FAILED WITH"]);
    for launch in launches {
        let text = |field: &Option<String>| field.clone().unwrap_or_else(|| "-".to_owned());
        let failed = launch.error.as_ref().map(|class| match &launch.message {
            Some(message) => format!("{class}: {message}"),
            None => class.clone(),
        });
        table.row(vec![
            minute(launch.time),
            launch.node_claim.clone(),
            text(&launch.instance_type),
            text(&launch.zone),
            text(&launch.capacity_type),
            text(&failed),
        ]);
    }
    write!(f, "\n{table}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Verdict;

    fn at(text: &str) -> jiff::Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_reason_that_ends_by_itself_shows_when() {
        let verdict = |until| Verdict {
            method: "Emptiness".to_owned(),
            code: "not_consolidatable".to_owned(),
            message: "nodeclaim isn't consolidatable".to_owned(),
            until,
        };
        let row = |until| NodeRow { verdicts: vec![verdict(until)], ..NodeRow::default() };
        let now = at("2026-01-01T00:00:00Z");
        let shown = Node(&row(Some(at("2026-01-01T00:30:00Z"))), now).to_string();
        assert!(shown.contains("UNTIL (UTC)") && shown.contains("Thu 2026-01-01 00:30"), "{shown}");
        assert!(!Node(&row(None), now).to_string().contains("UNTIL"), "no empty column");
    }

    #[test]
    fn launches_and_their_failures_are_listed() {
        let failed = Launch {
            time: at("2026-01-01T00:00:00Z"),
            node_claim: "general-1".to_owned(),
            error: Some("InsufficientCapacityError".to_owned()),
            message: Some("all requested instance types were unavailable".to_owned()),
            ..Launch::default()
        };
        let pool = PoolRow { launches: vec![failed], ..PoolRow::default() };
        let shown = Pool(&pool).to_string();
        let line = shown.lines().find(|line| line.contains("general-1")).unwrap();
        assert!(line.contains("InsufficientCapacityError: all requested"), "{shown}");
        assert!(!Pool(&PoolRow::default()).to_string().contains("LAUNCH"), "none without any");
    }
}
