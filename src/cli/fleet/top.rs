//! `karpenter top`: nodes by NodePool with fill, price, age and why they stay.

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use super::{Failure, Output, Source, age, colours, finish, load, price, print};
use crate::fleet::{Fleet, NodeRow};
use crate::simulate::table::Table;

/// Cells of a bar.
const BAR: usize = 10;

/// Nodes by NodePool: requested share of cpu and memory, price, age, and why disruption leaves them alone.
#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct Args {
    /// Only nodes of this NodePool.
    #[arg(long, value_name = "NAME")]
    node_pool: Option<String>,
    /// Print again every so many seconds until interrupted.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "5",
          value_parser = clap::value_parser!(u64).range(1..=3600), conflicts_with = "scenario")]
    watch: Option<u64>,
    #[command(flatten)]
    source: Source,
}

/// Prints the nodes, once or again and again.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    if args.watch.is_some() && args.source.output != Output::Table {
        let error = Failure::Usage("--watch goes with --output table".to_owned());
        return finish("top", Err(error));
    }
    loop {
        let outcome = show(args);
        match (args.watch, &outcome) {
            (Some(seconds), Ok(())) => pause(Duration::from_secs(seconds)),
            _ => return finish("top", outcome),
        }
    }
}

fn show(args: &Args) -> Result<(), Failure> {
    let mut fleet = load(&args.source)?.fleet;
    if let Some(pool) = &args.node_pool {
        if fleet.node_pool(pool).is_none() {
            return Err(Failure::NotFound(format!("there is no NodePool {pool:?}")));
        }
        fleet.nodes.retain(|n| n.node_pool.as_deref() == Some(pool));
    }
    if args.watch.is_some() && colours() {
        // Clear the screen and go to its first cell.
        print!("\x1b[2J\x1b[H");
    }
    print(args.source.output, &fleet.nodes, Shown(&fleet))
}

struct Shown<'a>(&'a Fleet);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: Vec<&NodeRow> = self.0.nodes.iter().collect();
        rows.sort_by(|a, b| (&a.node_pool, &a.name).cmp(&(&b.node_pool, &b.name)));
        let mut table = Table::new(&[
            "NODEPOOL",
            "NODE",
            "TYPE",
            "ZONE",
            "CAPACITY",
            "STATE",
            "CPU",
            "MEMORY",
            "PODS",
            "PRICE/H",
            "AGE",
            "STAYS BECAUSE",
        ]);
        for row in rows {
            table.row(vec![
                row.node_pool.clone().unwrap_or_else(|| "-".to_owned()),
                row.name.clone(),
                row.instance_type.clone(),
                row.zone.clone(),
                row.capacity_type.clone(),
                row.state.clone(),
                bar(row.cpu_share),
                bar(row.memory_share),
                row.pods.to_string(),
                price(row.price),
                age(row.created, self.0.time),
                // Methods are asked in order, so the last verdict is that of consolidation, which
                // looks most closely.
                row.verdicts.last().map(|v| v.message.clone()).unwrap_or_default(),
            ]);
        }
        let pending = self.0.pods.len();
        writeln!(
            f,
            "{table}\n{} node(s), {pending} pending pod(s), {:.4} per hour",
            self.0.nodes.len(),
            self.0.cost.total
        )
    }
}

/// A share as a bar and a number.
fn bar(share: f64) -> String {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share is between 0 and 1"
    )]
    let full = ((share * BAR as f64).round() as usize).min(BAR);
    format!("{}{} {:>3.0}%", "█".repeat(full), "░".repeat(BAR - full), share * 100.0)
}

#[expect(clippy::disallowed_methods, reason = "the command line runs no task meanwhile")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::bar;

    #[test]
    fn a_bar_is_as_long_as_the_share() {
        assert_eq!(bar(0.0), "░░░░░░░░░░   0%");
        assert_eq!(bar(0.52), "█████░░░░░  52%");
        assert_eq!(bar(1.0), "██████████ 100%");
    }
}
