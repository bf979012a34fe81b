//! What a cluster shows of itself: clusters live through every method of disruption and through what
//! goes wrong; every metric moves meanwhile, with Karpenter's labels, and every event is published.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use karpenter::model::{Options, World};
use karpenter::operator::events::{CATALOG, Row};
use karpenter::operator::metrics;
use parking_lot::Mutex;
use serde_json::Value;

use crate::support::*;

mod elsewhere;
mod scenarios;
mod writes;

/// Time between two looks at the metrics.
const SCRAPE: Duration = Duration::from_secs(10);

/// What was shown so far.
#[derive(Default)]
struct Shown {
    /// Names of metrics with a sample that was not zero, with the labels of the first such sample.
    metrics: BTreeMap<String, Vec<String>>,
    /// Names of series that need no second look.
    series: HashSet<String>,
    /// Names of the values of the list of events.
    events: BTreeSet<&'static str>,
    /// Events that are none of the list.
    odd: BTreeSet<String>,
}

impl Shown {
    fn scrape(&mut self) {
        let mut page = String::new();
        metrics::render_into(&mut |piece| {
            page.push_str(&piece);
            true
        });
        for line in page.lines().filter(|l| !l.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let name = series.split('{').next().unwrap_or_default();
            if !self.series.contains(name) && value.parse::<f64>().is_ok_and(|v| v != 0.0) {
                self.series.insert(name.to_owned());
                let (name, labels) = parse(series);
                self.metrics.entry(name).or_insert(labels);
            }
        }
    }

    fn read_events(&mut self, world: &World) {
        for event in world.all("events") {
            let mut rows = CATALOG.iter().filter(|row| is_of(&event, row)).peekable();
            if rows.peek().is_none() {
                let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
                self.odd.insert(format!("{} {:?}", text("reason"), text("message")));
            }
            self.events.extend(rows.map(|row| row.name));
        }
    }
}

/// Name and sorted labels of a series; the parts of histograms and summaries go by its name.
fn parse(series: &str) -> (String, Vec<String>) {
    let (name, inner) = series.split_once('{').unwrap_or((series, ""));
    let mut labels = Vec::new();
    let mut rest = inner.trim_end_matches('}');
    while let Some((label, after)) = rest.split_once("=\"") {
        labels.push(label.trim_start_matches(',').to_owned());
        let mut escaped = false;
        let end = after.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        rest = end.map_or("", |end| &after[end + 1..]);
    }
    labels.retain(|l| !matches!(l.as_str(), "le" | "quantile"));
    labels.sort();
    let base = ["_bucket", "_sum", "_count"].iter().find_map(|part| {
        let base = name.strip_suffix(part)?;
        let is_parted =
            |d: &metrics::Definition| d.name == base && matches!(d.kind, "histogram" | "summary");
        metrics::catalog().iter().any(is_parted).then_some(base)
    });
    (base.unwrap_or(name).to_owned(), labels)
}

/// Whether an event is of a row: its reason, type, object and text are.
fn is_of(event: &Value, row: &Row) -> bool {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kind = text(&event["involvedObject"]["kind"]);
    let reason = if row.reason.starts_with('<') { None } else { Some(row.reason) };
    reason.is_none_or(|r| text(&event["reason"]) == r)
        && text(&event["type"]) == if row.warning { "Warning" } else { "Normal" }
        && (row.on.contains(&"any") || row.on.contains(&kind.as_str()))
        && has_shape(&text(&event["message"]), row.text)
}

/// Whether a text is a template with anything in place of what is in braces.
fn has_shape(text: &str, template: &str) -> bool {
    let mut fixed = Vec::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        fixed.push(before);
        rest = after.split_once('}').map_or("", |(_, after)| after);
    }
    let Some(mut left) = text.strip_prefix(fixed.first().copied().unwrap_or(rest)) else {
        return false;
    };
    if fixed.is_empty() {
        return left.is_empty();
    }
    for part in &fixed[1..] {
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    left.ends_with(rest)
}

/// Plays a scenario and looks at the metrics all the time and at the events in the end.
fn play(
    shown: &Arc<Mutex<Shown>>,
    change: impl FnOnce(&mut Options) + Send,
    body: impl AsyncFnOnce(&mut World) + Send,
) {
    with(change, async |w| {
        let scraped = Arc::clone(shown);
        let scraper = tokio::spawn(async move {
            loop {
                tokio::time::sleep(SCRAPE).await;
                scraped.lock().scrape();
            }
        });
        body(w).await;
        scraper.abort();
        shown.lock().read_events(w);
    });
}

/// Karpenter's metrics.
fn karpenters() -> Vec<metrics::Definition> {
    let rows = include_str!("../../src/operator/metrics/karpenter-1.14.txt").lines();
    let names: BTreeSet<&str> =
        rows.filter(|l| !l.starts_with('#')).filter_map(|l| l.split(' ').next()).collect();
    let mut all = metrics::catalog();
    all.retain(|d| names.contains(d.name.as_str()));
    assert_eq!(all.len(), names.len());
    all
}

#[test]
fn every_metric_moves_and_every_event_is_published() {
    metrics::init(Some("0000000"), metrics::Options::default());
    let shown = Arc::new(Mutex::new(Shown::default()));
    let broken = std::thread::scope(|threads| {
        let play = |scenario: &'static scenarios::Scenario| {
            let shown = &shown;
            threads.spawn(move || scenario(shown))
        };
        let all: Vec<_> = scenarios::ALL.iter().map(play).collect();
        all.into_iter().filter_map(|thread| thread.join().err()).count()
    });
    let shown = shown.lock();
    let mut idle = Vec::new();
    for metric in karpenters() {
        let Some(seen) = shown.metrics.get(&metric.name) else {
            if !elsewhere::is_metric(&metric.name) {
                idle.push(metric.name);
            }
            continue;
        };
        let mut labels = metric.labels.clone();
        labels.sort();
        assert_eq!(*seen, labels, "{}", metric.name);
    }
    let missing: Vec<&str> = CATALOG
        .iter()
        .map(|row| row.name)
        .filter(|name| !shown.events.contains(name) && !elsewhere::is_event(name))
        .collect();
    assert!(
        broken == 0 && idle.is_empty() && missing.is_empty() && shown.odd.is_empty(),
        "{broken} scenarios failed\nmetrics that did not move: {idle:#?}\nevents that were not \
         published: {missing:#?}\nevents that are not in the list: {:#?}",
        shown.odd
    );
}

#[test]
fn what_is_shown_elsewhere_is_tested_there() {
    elsewhere::check();
}

#[test]
fn texts_are_told_apart_by_their_fixed_parts() {
    assert!(has_shape("Pod should schedule on: node/a", "Pod should schedule on: {on}"));
    assert!(has_shape("All pods", "All pods") && !has_shape("All pods go", "All pods"));
    assert!(!has_shape("Failed to drain node, x", "Failed to drain node, {why} (Pod={pod})"));
    let series = r#"karpenter_pods_state{name="a\",b=\"",phase="x"}"#;
    let (name, labels) = parse(series);
    assert_eq!(
        (name.as_str(), labels),
        ("karpenter_pods_state", vec!["name".into(), "phase".into()])
    );
}
