//! `karpenter cost`: what the nodes cost per hour, and for whom.

use std::fmt;
use std::process::ExitCode;

use super::{Source, finish, load, print};
use crate::fleet::{Cost, Share};
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
        print(args.source.output, &loaded.fleet.cost, Shown(&loaded.fleet.cost))
    });
    finish("cost", outcome)
}

struct Shown<'a>(&'a Cost);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cost = self.0;
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
        match cost.nodes_without_price {
            0 => Ok(()),
            n => writeln!(f, "{n} node(s) have no known price and are not counted"),
        }
    }
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
