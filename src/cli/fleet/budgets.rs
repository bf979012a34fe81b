//! `karpenter budgets NODEPOOL`: when disruption is allowed, as a calendar.

use std::fmt;
use std::process::ExitCode;

use serde::Serialize;

use super::{Failure, Source, finish, load, minute, print};
use crate::fleet::{REASONS, Window, calendar};
use crate::simulate::table::Table;

/// How many nodes of a NodePool may be disrupted at the same time, over the next days.
#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct Args {
    /// The NodePool's name.
    node_pool: String,
    /// Days to show, 1 to 366.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(i64).range(1..=366))]
    days: i64,
    #[command(flatten)]
    source: Source,
}

/// The answer.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Calendar {
    node_pool: String,
    nodes: usize,
    reasons: Vec<Of>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Of {
    reason: &'static str,
    windows: Vec<Window>,
}

/// Prints the calendar.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    finish("budgets", calendar_of(args).and_then(|c| print(args.source.output, &c, Shown(&c))))
}

fn calendar_of(args: &Args) -> Result<Calendar, Failure> {
    let loaded = load(&args.source)?;
    let missing = || Failure::NotFound(format!("there is no NodePool {:?}", args.node_pool));
    let pool = loaded
        .pools
        .iter()
        .find(|p| p.metadata.name.as_deref() == Some(&args.node_pool))
        .ok_or_else(missing)?;
    let row = loaded.fleet.node_pool(&args.node_pool);
    let nodes = row.map_or(0, |p| p.nodes);
    // An older controller does not say which of them count.
    let total = row.and_then(|p| p.counted).or(nodes.try_into().ok()).unwrap_or(i64::MAX);
    let reasons = REASONS.map(|reason| {
        let windows = calendar(pool, total, reason, loaded.fleet.time, args.days)
            .map_err(|e| Failure::NotFound(format!("NodePool {:?}: {e}", args.node_pool)))?;
        Ok(Of { reason: reason.as_str(), windows })
    });
    let reasons = reasons.into_iter().collect::<Result<Vec<_>, Failure>>()?;
    Ok(Calendar { node_pool: args.node_pool.clone(), nodes, reasons })
}

struct Shown<'a>(&'a Calendar);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&["REASON", "FROM (UTC)", "UNTIL (UTC)", "NODES"]);
        for of in &self.0.reasons {
            for window in &of.windows {
                let allowed =
                    window.allowed.map_or_else(|| "no limit".to_owned(), |n| n.to_string());
                table.row(vec![
                    of.reason.to_owned(),
                    minute(window.from),
                    minute(window.until),
                    allowed,
                ]);
            }
        }
        writeln!(f, "NodePool {}, {} node(s)\n\n{table}", self.0.node_pool, self.0.nodes)
    }
}
