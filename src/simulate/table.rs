//! Reports for people.

use std::fmt::{self, Display};

use super::disrupt::{CommandReport, DisruptReport, Rejected};
use super::report::{ClaimDetails, ClaimReport, Report};

/// Rows under headings, each column as wide as its widest cell.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|h| (*h).to_owned()).collect()] }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |c: usize| self.rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

fn some(items: &[String], most: usize) -> String {
    let shown = items.iter().take(most).cloned().collect::<Vec<_>>().join(", ");
    if items.len() > most { format!("{shown} and {} more", items.len() - most) } else { shown }
}

/// A price with a mark where it is only an estimate.
pub fn shown_price(price: f64, estimated: bool) -> String {
    format!("{}{price:.4}", if estimated { "~" } else { "" })
}

fn amounts(claim: &ClaimDetails) -> String {
    let shown = claim.requests.iter().map(|(name, amount)| format!("{name}={}", amount.0));
    shown.collect::<Vec<_>>().join(" ")
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.node_claims.is_empty() {
            let mut table = Table::new(&[
                "NODEPOOL", "TYPE", "ZONE", "CAPACITY", "PRICE/H", "TYPES", "PODS", "REQUESTS",
            ]);
            for claim in self.node_claims.iter().map(ClaimReport::details) {
                let (kind, zone, capacity, price) = match &claim.cheapest {
                    Some(l) => (
                        l.instance_type.clone(),
                        l.zone.clone(),
                        l.capacity_type.clone(),
                        shown_price(l.price, l.price_estimated),
                    ),
                    None => ("-".into(), "-".into(), "-".into(), "-".into()),
                };
                table.row(vec![
                    claim.node_pool.clone(),
                    kind,
                    zone,
                    capacity,
                    price,
                    claim.instance_types.len().to_string(),
                    claim.pods.len().to_string(),
                    amounts(&claim),
                ]);
            }
            writeln!(f, "New nodes\n{table}")?;
        }
        if !self.existing_nodes.is_empty() {
            let mut table = Table::new(&["NODE", "PODS", "NAMES"]);
            for node in &self.existing_nodes {
                table.row(vec![
                    node.name.clone(),
                    node.pods.len().to_string(),
                    some(&node.pods, 5),
                ]);
            }
            writeln!(f, "Pods for existing nodes\n{table}")?;
        }
        if !self.unschedulable.is_empty() {
            writeln!(f, "Unschedulable pods")?;
            for pod in &self.unschedulable {
                writeln!(f, "{}", pod.pod)?;
                if pod.node_pools.is_empty() {
                    writeln!(f, "  {}", pod.error)?;
                }
                for pool in &pod.node_pools {
                    writeln!(f, "  {}: {}", pool.name, pool.reason)?;
                }
            }
            writeln!(f)?;
        }
        if !self.without_effect.is_empty() {
            let mut table = Table::new(&["OBJECT", "REASON"]);
            for object in &self.without_effect {
                table.row(vec![object.object.clone(), object.reason.clone()]);
            }
            writeln!(f, "Objects without effect\n{table}")?;
        }
        let on_new: usize = self.node_claims.iter().map(ClaimReport::pods).sum();
        let on_old: usize = self.existing_nodes.iter().map(|n| n.pods.len()).sum();
        writeln!(
            f,
            "{} new node(s) for {on_new} pod(s), {on_old} pod(s) on existing nodes, {} unschedulable; {:.4} an hour",
            self.node_claims.len(),
            self.unschedulable.len(),
            self.total_price
        )?;
        if let (Some(seconds), Some(bytes)) = (self.solve_seconds, self.peak_rss_bytes) {
            writeln!(f, "decided in {seconds:.6} s, at most {} KiB of memory", bytes / 1024)?;
        }
        Ok(())
    }
}

impl Display for DisruptReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.launched + self.unschedulable > 0 {
            let (launched, lost) = (self.launched, self.unschedulable);
            writeln!(f, "First {launched} nodes are launched; {lost} pods have no place\n")?;
        }
        if self.commands.is_empty() {
            writeln!(f, "Nothing to disrupt")?;
        } else {
            writeln!(f, "Commands\n{}", commands(&self.commands))?;
        }
        if let Some(plan) = &self.plan {
            writeln!(
                f,
                "{} -> {} nodes, {:.4} -> {:.4} an hour, {} evictions, {}\n",
                plan.nodes_before,
                plan.nodes_after,
                plan.price_before,
                plan.price_after,
                plan.evictions,
                if plan.at_rest { "then at rest" } else { "not at rest" }
            )?;
        }
        let mut budgets = Table::new(&["NODEPOOL", "REASON", "NODES", "ALLOWED", "DISRUPTING"]);
        // A budget without a limit says nothing.
        let limited: Vec<_> = self.budgets.iter().filter(|b| b.allowed.is_some()).collect();
        for budget in &limited {
            budgets.row(vec![
                budget.node_pool.clone(),
                budget.reason.to_owned(),
                budget.nodes.to_string(),
                budget.allowed.map_or_else(|| "-".to_owned(), |a| a.to_string()),
                budget.disrupting.to_string(),
            ]);
        }
        if !limited.is_empty() {
            writeln!(f, "Budgets\n{budgets}")?;
        }
        for budget in &self.budgets {
            if let Some(error) = &budget.error {
                writeln!(f, "NodePool {}: {error}", budget.node_pool)?;
            }
        }
        if !self.rejected.is_empty() {
            writeln!(f, "Nodes that stay\n{}", staying(&self.rejected))?;
        }
        for text in &self.assumed {
            writeln!(f, "Note: {text}")?;
        }
        Ok(())
    }
}

pub(super) fn commands(commands: &[CommandReport]) -> Table {
    let mut table =
        Table::new(&["REASON", "DECISION", "CANDIDATES", "REPLACEMENTS", "EVICTIONS", "SAVINGS/H"]);
    for command in commands {
        let types: Vec<String> = command
            .replacements
            .iter()
            .map(ClaimReport::details)
            .map(|r| match &r.cheapest {
                Some(l) => format!("{} {} {}", l.instance_type, l.zone, l.capacity_type),
                None => r.node_pool,
            })
            .collect();
        table.row(vec![
            command.reason.clone(),
            command.decision.clone(),
            some(&command.candidates, 5),
            if types.is_empty() { "-".into() } else { some(&types, 3) },
            command.evictions.to_string(),
            format!("{:.4}", command.savings),
        ]);
    }
    table
}

/// A line for each node, and below it what each method has against it, where these differ.
fn staying(rejected: &[Rejected]) -> Table {
    let mut table = Table::new(&["NODE", "PRICE/H", "COST", "SCORE", "METHOD", "STAYS BECAUSE"]);
    let number =
        |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"));
    for node in rejected {
        let mut head = vec![
            node.node.clone(),
            number(node.price),
            number(node.disruption_cost),
            number(node.score),
        ];
        for (at, found) in node.methods.iter().enumerate() {
            // The same reason of the next method says nothing new.
            if at > 0 && node.methods[at - 1].reason == found.reason {
                continue;
            }
            let mut cells = head;
            cells.push(found.method.to_owned());
            cells.push(found.reason.clone());
            table.row(cells);
            head = vec![String::new(); 4];
        }
    }
    table
}
