//! `karpenter cost`: what the nodes cost per hour, and for whom.

use std::fmt;
use std::process::ExitCode;

use serde::Serialize;

use super::{Source, finish, load, print};
use crate::fleet::{Cost, Share};
use crate::operator::fleet_api::Saving;
use crate::simulate::table::Table;

/// What the nodes cost per hour: by NodePool, namespace, capacity type and zone.
#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct Args {
    #[command(flatten)]
    source: Source,
}

/// Prints the cost.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let outcome = load(&args.source).and_then(|loaded| {
        let answer = Answer { cost: &loaded.fleet.cost, savings: loaded.savings };
        print(args.source.output, &answer, &answer)
    });
    finish("cost", outcome)
}

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    cost: &'a Cost,
    /// What was saved, an estimate; absent where no controller answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    savings: Option<Vec<Saving>>,
}

impl fmt::Display for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cost = self.cost;
        for (title, shares, wasted) in [
            ("NODEPOOL", &cost.node_pools, true),
            ("NAMESPACE", &cost.namespaces, false),
            ("CAPACITY TYPE", &cost.capacity_types, true),
            ("ZONE", &cost.zones, true),
        ] {
            writeln!(f, "{}", table(title, shares, wasted))?;
        }
        let share = if cost.total > 0.0 { cost.wasted / cost.total * 100.0 } else { 0.0 };
        writeln!(
            f,
            "{:.4} per hour, {:.0} per month of 730 hours; {share:.0} % of it is requested by no pod",
            cost.total,
            cost.total * 730.0
        )?;
        if cost.nodes_without_price > 0 {
            let number = cost.nodes_without_price;
            writeln!(f, "{number} node(s) have no known price and are not counted")?;
        }
        match &self.savings {
            Some(savings) => saved(f, savings),
            None => Ok(()),
        }
    }
}

/// What the controller's ledger holds.
fn saved(f: &mut fmt::Formatter<'_>, savings: &[Saving]) -> fmt::Result {
    if savings.is_empty() {
        return writeln!(f, "No decision has saved anything yet");
    }
    let mut table = Table::new(&["SAVED BY NODEPOOL", "REASON", "PER HOUR", "IN ALL"]);
    for Saving { node_pool, reason, per_hour, total } in savings {
        let row = [node_pool.clone(), reason.clone(), format!("{per_hour:.4}")];
        table.row([&row[..], &[format!("{total:.4}")]].concat());
    }
    let of = |amount: fn(&Saving) -> f64| savings.iter().map(amount).sum::<f64>();
    writeln!(
        f,
        "\n{table}\nAn estimate: {:.4} saved so far, {:.4} per hour by decisions of the last 24 hours",
        of(|s| s.total),
        of(|s| s.per_hour)
    )
}

fn table(title: &str, shares: &[Share], wasted: bool) -> Table {
    let counted = if wasted { "NODES" } else { "PODS" };
    let mut headings = vec![title, counted, "COST/H"];
    if wasted {
        headings.push("WASTED/H");
    }
    let mut table = Table::new(&headings);
    for share in shares {
        let mut row =
            vec![share.name.clone(), share.count.to_string(), format!("{:.4}", share.cost)];
        if wasted {
            row.push(format!("{:.4}", share.wasted));
        }
        table.row(row);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn savings_are_shown_where_a_controller_keeps_them() {
        let saving = Saving {
            node_pool: "general".to_owned(),
            reason: "empty".to_owned(),
            per_hour: 0.1008,
            total: 1.25,
        };
        let cost = Cost::default();
        let of = |savings| Answer { cost: &cost, savings };
        let shown = of(Some(vec![saving.clone(), saving])).to_string();
        let row = shown.lines().find(|line| line.starts_with("general")).unwrap();
        let row: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(row, ["general", "empty", "0.1008", "1.2500"], "{shown}");
        assert!(shown.contains("2.5000 saved so far, 0.2016 per hour"), "{shown}");
        assert!(of(Some(Vec::new())).to_string().contains("No decision has saved"), "none yet");
        assert!(!of(None).to_string().contains("saved"), "nobody knows without a controller");
        assert!(serde_json::to_value(of(None)).unwrap().get("savings").is_none());
    }
}
