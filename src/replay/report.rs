//! The outcome of replays as a table.

use std::fmt;

use super::Outcome;

/// Outcomes side by side.
pub struct Table<'a>(pub &'a [Outcome]);

/// A heading, and what stands under it.
type Row = (&'static str, fn(&Outcome) -> String);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: [Row; 12] = [
            ("", |o| o.name.clone()),
            ("Money", |o| format!("{:.2}", o.money)),
            ("Node hours", |o| format!("{:.1}", o.node_hours)),
            ("Most nodes", |o| o.most_nodes.to_string()),
            ("Launches", |o| o.launches.to_string()),
            ("Interruptions", |o| o.interruptions.to_string()),
            ("Evictions", |o| o.evictions.to_string()),
            ("Pods bound", |o| o.pods_bound.to_string()),
            ("Wait, median", |o| seconds(o.wait_median)),
            ("Wait, 99th percentile", |o| seconds(o.wait99th)),
            ("Pending at the end", |o| o.pending_at_end.to_string()),
            ("Money per node hour", |o| {
                format!("{:.4}", if o.node_hours > 0.0 { o.money / o.node_hours } else { 0.0 })
            }),
        ];
        let first = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let widths: Vec<usize> = self
            .0
            .iter()
            .map(|o| rows.iter().map(|(_, cell)| cell(o).chars().count()).max().unwrap_or(0))
            .collect();
        for (name, cell) in &rows {
            write!(f, "{name:<first$}")?;
            for (outcome, width) in self.0.iter().zip(&widths) {
                write!(f, "  {:>width$}", cell(outcome))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

fn seconds(value: f64) -> String {
    format!("{value:.1}s")
}
