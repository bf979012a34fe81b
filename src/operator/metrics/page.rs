//! The text that a scrape is answered with, written piece by piece.
//!
//! What has many series is written from the state when it is asked for: nothing of it is kept
//! between scrapes, and a scrape holds no more than one piece at a time.

use std::fmt::Write as _;

use super::options::{Level, Options};

/// A piece is passed on once it is this long, in bytes: large enough that the channel costs
/// nothing, small beside the whole.
const PIECE: usize = 64 << 10;

/// A gauge or counter that is written when it is asked for.
#[derive(Clone, Debug)]
pub struct Family {
    name: String,
    kind: &'static str,
    help: String,
    labels: Vec<String>,
}

impl Family {
    pub(super) fn new(name: &str, kind: &'static str, help: &str, labels: &[&str]) -> Self {
        let labels = labels.iter().map(|l| (*l).to_owned()).collect();
        Self { name: name.to_owned(), kind, help: help.to_owned(), labels }
    }

    /// The names of the labels.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }
}

/// Takes a piece; false when nobody reads any more.
pub type Sink<'a> = &'a mut dyn FnMut(String) -> bool;

/// An answer under way.
pub struct Page<'a> {
    text: String,
    sink: Sink<'a>,
    open: bool,
    options: &'a Options,
}

impl<'a> Page<'a> {
    pub(super) fn new(options: &'a Options, sink: Sink<'a>) -> Self {
        Self { text: String::with_capacity(PIECE + 4096), sink, open: true, options }
    }

    /// How detailed the answer is.
    #[must_use]
    pub fn level(&self) -> Level {
        self.options.level
    }

    /// Begins a gauge; `None` when it is not served.
    pub fn family<'p>(&'p mut self, family: &'p Family) -> Option<Lines<'p, 'a>> {
        self.options.serves(&family.name).then_some(Lines { page: self, family, begun: false })
    }

    pub(super) fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.pass_on(PIECE);
    }

    pub(super) fn finish(mut self) {
        self.pass_on(1);
    }

    fn pass_on(&mut self, least: usize) {
        if self.text.len() < least {
            return;
        }
        if self.open {
            // A copy of the right size; the buffer with its capacity serves for the next piece.
            let piece = self.text.clone();
            self.open = (self.sink)(piece);
        }
        self.text.clear();
    }
}

/// The series of one gauge.
pub struct Lines<'p, 'a> {
    page: &'p mut Page<'a>,
    family: &'p Family,
    begun: bool,
}

impl Lines<'_, '_> {
    /// Adds a series, its label values in the order of the gauge's labels.
    pub fn add(&mut self, values: &[&str], value: f64) {
        self.add_rendered("", values, value);
    }

    /// Adds a series whose first label values were rendered before, see [`render`].
    pub fn add_rendered(&mut self, rendered: &str, values: &[&str], value: f64) {
        if !self.page.open {
            return;
        }
        let Family { name, kind, help, labels } = self.family;
        let text = &mut self.page.text;
        if !self.begun {
            self.begun = true;
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        }
        text.push_str(name);
        if !labels.is_empty() {
            text.push('{');
            text.push_str(rendered);
            let last = labels.get(labels.len().saturating_sub(values.len())..).unwrap_or_default();
            write_labels(text, last, values);
            text.push('}');
        }
        let _ = writeln!(text, " {value}");
        self.page.pass_on(PIECE);
    }
}

/// Renders label values, a comma behind each, for use in many series.
#[must_use]
pub fn render(labels: &[String], values: &[&str]) -> String {
    let mut text = String::new();
    write_labels(&mut text, labels, values);
    text.push(',');
    text
}

fn write_labels(text: &mut String, labels: &[String], values: &[&str]) {
    for (index, (label, value)) in labels.iter().zip(values).enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(label);
        text.push_str("=\"");
        if value.contains(['\\', '"', '\n']) {
            text.push_str(&value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"));
        } else {
            text.push_str(value);
        }
        text.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page_of(options: &Options, write: impl FnOnce(&mut Page<'_>)) -> Vec<String> {
        let mut pieces = Vec::new();
        let mut sink = |piece| {
            pieces.push(piece);
            true
        };
        let mut page = Page::new(options, &mut sink);
        write(&mut page);
        page.finish();
        pieces
    }

    #[test]
    fn series_are_text_that_prometheus_reads() {
        let family = Family::new("g", "gauge", "Help.", &["a", "b"]);
        let none = Family::new("n", "gauge", "Help.", &[]);
        let pieces = page_of(&Options::default(), |page| {
            let first = render(&family.labels[..1], &["1"]);
            let mut lines = page.family(&family).unwrap();
            lines.add(&["x", "q\"\\\n"], 1.5);
            lines.add_rendered(&first, &["2"], 3.0);
            page.family(&none).unwrap().add(&[], 2.0);
        });
        let text = "# HELP g Help.\n# TYPE g gauge\ng{a=\"x\",b=\"q\\\"\\\\\\n\"} 1.5\n\
                    g{a=\"1\",b=\"2\"} 3\n# HELP n Help.\n# TYPE n gauge\nn 2\n";
        assert_eq!(pieces.concat(), text);
    }

    #[test]
    fn a_long_answer_comes_in_pieces_and_ends_when_nobody_reads() {
        let family = Family::new("karpenter_long", "gauge", "Help.", &["a"]);
        let write = |page: &mut Page<'_>| {
            let mut lines = page.family(&family).unwrap();
            (0..10_000).for_each(|n| lines.add(&[&n.to_string()], 1.0));
        };
        let pieces = page_of(&Options::default(), write);
        assert!(pieces.len() > 3 && pieces.iter().all(|p| p.len() < PIECE + 200));
        assert_eq!(pieces.concat().lines().count(), 10_002);

        let options = Options::default();
        let mut count = 0;
        let mut sink = |_| {
            count += 1;
            false
        };
        let mut page = Page::new(&options, &mut sink);
        write(&mut page);
        page.finish();
        assert_eq!(count, 1);
    }

    #[test]
    fn a_dropped_gauge_is_not_begun() {
        let options = Options { drop: vec!["g".to_owned()], ..Options::default() };
        let family = Family::new("g", "gauge", "Help.", &[]);
        let pieces = page_of(&options, |page| assert!(page.family(&family).is_none()));
        assert!(pieces.is_empty());
    }
}
