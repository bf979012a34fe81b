//! Prometheus metrics, by Karpenter's names.

use std::sync::LazyLock;

use parking_lot::Mutex;
use prometheus::{
    CounterVec, Encoder as _, GaugeVec, HistogramOpts, HistogramVec, Opts, Registry, TextEncoder,
};

use crate::api::labels;

mod controller;
mod list;
pub mod series;
pub mod status;
mod summary;

pub use controller::{ControllerMetrics, Reconciled};
pub use list::*;
pub use summary::SummaryVec;

/// Buckets of durations, in seconds.
pub const DURATIONS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9,
    1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 15.0, 20.0,
    25.0, 30.0, 40.0, 50.0, 60.0, 120.0, 150.0, 300.0, 450.0, 600.0,
];

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::new);

/// The well-known labels of nodes, each with the metric label that shows it.
pub static NODE_LABELS: LazyLock<Vec<(&'static str, String)>> = LazyLock::new(|| {
    let keys = labels::WELL_KNOWN_CORE.iter().chain(labels::WELL_KNOWN_AWS);
    keys.map(|key| (*key, metric_label(key.rsplit('/').next().unwrap_or(key)))).collect()
});

/// A name as a metric label: lower case, with underscores.
#[must_use]
pub fn metric_label(name: &str) -> String {
    name.to_lowercase().replace(['-', '.', '/'], "_")
}

fn counter(name: &str, help: &str, labels: &[&str]) -> CounterVec {
    register(CounterVec::new(Opts::new(name, help), labels))
}

fn gauge(name: &str, help: &str, labels: &[&str]) -> GaugeVec {
    register(GaugeVec::new(Opts::new(name, help), labels))
}

fn histogram(name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
    histogram_of(name, help, labels, buckets.to_vec())
}

fn histogram_of(name: &str, help: &str, labels: &[&str], buckets: Vec<f64>) -> HistogramVec {
    register(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels))
}

fn summary(name: &str, help: &str, labels: &'static [&'static str]) -> SummaryVec {
    register(SummaryVec::new(name, help, labels))
}

/// `count` bucket bounds from `start` on, each twice the one before.
fn powers_of_two(start: f64, count: usize) -> Vec<f64> {
    std::iter::successors(Some(start), |bound| Some(bound * 2.0)).take(count).collect()
}

#[allow(clippy::expect_used, reason = "names and labels are constants, checked by a test")]
fn register<M: prometheus::core::Collector + Clone + 'static>(
    metric: Result<M, prometheus::Error>,
) -> M {
    let metric = metric.expect("a metric's name and labels are well formed");
    REGISTRY.register(Box::new(metric.clone())).expect("a metric is registered once");
    metric
}

/// Sets what is known at the start.
pub fn init(commit: Option<&str>) {
    list::touch_all();
    status::touch_all();
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let version = env!("CARGO_PKG_VERSION");
    // There is no Go version; dashboards expect the label all the same.
    BUILD_INFO.with_label_values(&[version, "", arch, commit.unwrap_or_default()]).set(1.0);
    CONVERSION_PANICS.with_label_values::<&str>(&[]);
    for kind in ["multi", "single"] {
        CONSOLIDATION_TIMEOUTS.with_label_values(&[kind]);
    }
}

/// All metrics in the text format.
#[must_use]
pub fn render() -> String {
    let mut buffer = Vec::new();
    let _ = TextEncoder::new().encode(&REGISTRY.gather(), &mut buffer);
    let mut text = String::from_utf8(buffer).unwrap_or_default();
    for source in SOURCES.lock().iter() {
        source(&mut text);
    }
    text
}

type Source = Box<dyn Fn(&mut String) + Send + Sync>;

/// What writes its metrics when they are asked for.
static SOURCES: Mutex<Vec<Source>> = Mutex::new(Vec::new());

/// Adds metrics that are written, in the text format, only when they are asked for.
pub fn add_source(source: impl Fn(&mut String) + Send + Sync + 'static) {
    SOURCES.lock().push(Box::new(source));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_registers_and_shows() {
        init(Some("abcdef0"));
        let text = render();
        assert!(text.contains("karpenter_build_info{"));
        assert!(text.contains("controller_runtime_conversion_webhook_panics_total 0"));
        assert!(text.contains(
            r#"karpenter_voluntary_disruption_consolidation_timeouts_total{consolidation_type="multi"} 0"#
        ));
    }

    #[test]
    fn node_labels_are_short_and_distinct() {
        let shown: Vec<&str> = NODE_LABELS.iter().map(|(_, label)| label.as_str()).collect();
        for label in ["nodepool", "zone", "instance_type", "capacity_type", "instance_cpu"] {
            assert!(shown.contains(&label), "{label}");
        }
        let distinct: std::collections::BTreeSet<&str> = shown.iter().copied().collect();
        assert_eq!(distinct.len(), shown.len());
    }
}
