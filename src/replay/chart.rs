//! The outcome of replays over time, as an SVG picture.

use std::fmt::Write as _;

use super::{Outcome, Sample};

const WIDTH: f64 = 960.0;
const PANEL: f64 = 180.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 46.0;
const GAP: f64 = 46.0;
const COLOURS: [&str; 6] = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b"];

/// What a panel shows.
type Value = fn(&Sample) -> f64;

#[allow(clippy::cast_precision_loss, reason = "counts of nodes and pods are small")]
const PANELS: [(&str, Value); 4] = [
    ("Nodes", |s| s.nodes as f64),
    ("Price per hour", |s| s.price_per_hour),
    ("Pods that run", |s| s.pods as f64),
    ("Pods that wait", |s| s.pending as f64),
];

/// Draws outcomes over each other.
#[must_use]
pub fn svg(outcomes: &[Outcome]) -> String {
    #[allow(clippy::cast_precision_loss, reason = "four panels")]
    let height = TOP + PANELS.len() as f64 * (PANEL + GAP);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (at, outcome) in outcomes.iter().enumerate() {
        #[allow(clippy::cast_precision_loss, reason = "a handful of outcomes")]
        let x = LEFT + at as f64 * 220.0;
        let colour = COLOURS[at % COLOURS.len()];
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"10\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{}\" y=\"21\">{}: {:.2}</text>",
            x + 18.0,
            escaped(&outcome.name),
            outcome.money
        );
    }
    let hours = outcomes.iter().flat_map(|o| &o.samples).map(|s| s.hour).fold(1.0, f64::max);
    for (at, (name, value)) in PANELS.iter().enumerate() {
        #[allow(clippy::cast_precision_loss, reason = "four panels")]
        let top = TOP + at as f64 * (PANEL + GAP);
        panel(&mut text, outcomes, name, *value, top, hours);
    }
    text.push_str("</svg>\n");
    text
}

fn panel(text: &mut String, outcomes: &[Outcome], name: &str, value: Value, top: f64, hours: f64) {
    let most = outcomes.iter().flat_map(|o| &o.samples).map(value).fold(0.0, f64::max);
    let most = if most > 0.0 { most } else { 1.0 };
    let width = WIDTH - LEFT - 20.0;
    let bottom = top + PANEL;
    let _ = writeln!(
        text,
        "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{name}</text>\n<path d=\"M{LEFT} {top}V{bottom}H{}\" fill=\"none\" stroke=\"#888\"/>",
        top - 6.0,
        LEFT + width
    );
    for part in 0..=2 {
        let share = f64::from(part) / 2.0;
        let y = bottom - share * PANEL;
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#555\">{:.*}</text>",
            LEFT - 6.0,
            y + 4.0,
            usize::from(most < 10.0),
            most * share
        );
    }
    // At most twelve labels, at round times: more would overlap.
    let step = [1.0, 2.0, 6.0, 12.0, 24.0, 48.0, 168.0]
        .into_iter()
        .find(|step| hours / step <= 12.0)
        .unwrap_or(720.0);
    let mut hour = 0.0;
    while hour <= hours {
        let x = LEFT + hour / hours * width;
        let label =
            if step >= 24.0 { format!("day {:.0}", hour / 24.0) } else { format!("{hour:.0}h") };
        let _ = writeln!(
            text,
            "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555\">{label}</text>",
            bottom + 15.0
        );
        hour += step;
    }
    for (at, outcome) in outcomes.iter().enumerate() {
        let mut path = String::new();
        for (index, sample) in outcome.samples.iter().enumerate() {
            let x = LEFT + sample.hour / hours * width;
            let y = bottom - value(sample) / most * PANEL;
            let letter = if index == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{letter}{x:.1} {y:.1}");
        }
        let colour = COLOURS[at % COLOURS.len()];
        let _ = writeln!(
            text,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>"
        );
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_a_line_in_every_panel() {
        let outcome = |name: &str| Outcome {
            name: name.to_owned(),
            samples: vec![Sample::default(), Sample { hour: 2.0, nodes: 3, ..Sample::default() }],
            ..Outcome::default()
        };
        let text = svg(&[outcome("a"), outcome("b<c>")]);
        assert_eq!(text.matches("stroke-width").count(), 8);
        assert!(text.contains("b&lt;c&gt;") && text.ends_with("</svg>\n"));
    }
}
