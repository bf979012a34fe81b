//! Prometheus metrics, by Karpenter's names.

use std::any::Any;
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;
use prometheus::{CounterVec, GaugeVec, HistogramOpts, HistogramVec, Opts, Registry, TextEncoder};

use crate::api::labels;

macro_rules! metrics {
    ($($(#[$doc:meta])* $id:ident: $type:ty = $make:expr;)*) => {
        $($(#[$doc])* pub static $id: LazyLock<$type> = LazyLock::new(|| $make);)*

        /// Makes every metric known, so that all are there from the start.
        pub(super) fn touch_all() {
            $(LazyLock::force(&$id);)*
        }
    };
}

mod controller;
mod list;
mod options;
pub mod page;
mod process;
mod scraped;
pub mod series;
mod stage;
pub mod status;
mod summary;

pub use controller::{ControllerMetrics, Reconciled};
pub use list::*;
pub use options::{Level, Options, Release};
use page::{Family, Page, Sink};
pub use scraped::*;
pub use stage::Stage;
pub use summary::SummaryVec;

/// One metric of the list.
#[derive(Clone, Debug)]
pub struct Definition {
    /// Its name.
    pub name: String,
    /// `counter`, `gauge`, `histogram` or `summary`.
    pub kind: &'static str,
    /// Its labels.
    pub labels: Vec<String>,
    /// What it shows.
    pub help: String,
    /// How stable Karpenter says that it is.
    pub stage: Option<Stage>,
}

/// Filled by each metric when it is first used; `touch_all` makes sure that all of them were.
static CATALOG: Mutex<Vec<Definition>> = Mutex::new(Vec::new());

/// Every metric that there is, by name.
#[must_use]
pub fn catalog() -> Vec<Definition> {
    touch_all();
    let mut all = CATALOG.lock().clone();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn touch_all() {
    list::touch_all();
    scraped::touch_all();
    status::touch_all();
}

fn define(name: &str, kind: &'static str, help: &str, labels: &[&str]) {
    let labels = labels.iter().map(|l| (*l).to_owned()).collect();
    let (stage, help) = (Stage::of(name), help.to_owned());
    let definition = Definition { name: name.to_owned(), kind, labels, help, stage };
    CATALOG.lock().push(definition);
}

/// Buckets of durations, in seconds; Karpenter's, so that existing queries keep their resolution.
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
    define(name, "counter", help, labels);
    register(CounterVec::new(Opts::new(name, help), labels))
}

fn gauge(name: &str, help: &str, labels: &[&str]) -> GaugeVec {
    define(name, "gauge", help, labels);
    register(GaugeVec::new(Opts::new(name, help), labels))
}

fn histogram(name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
    histogram_of(name, help, labels, buckets.to_vec())
}

fn histogram_of(name: &str, help: &str, labels: &[&str], buckets: Vec<f64>) -> HistogramVec {
    define(name, "histogram", help, labels);
    register(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels))
}

fn summary(name: &str, help: &str, labels: &'static [&'static str]) -> SummaryVec {
    define(name, "summary", help, labels);
    register(SummaryVec::new(name, help, labels))
}

fn scraped(name: &str, help: &str, labels: &[&str]) -> Family {
    define(name, "gauge", help, labels);
    Family::new(name, "gauge", help, labels)
}

fn scraped_counter(name: &str, help: &str, labels: &[&str]) -> Family {
    define(name, "counter", help, labels);
    Family::new(name, "counter", help, labels)
}

/// `count` bucket bounds from `start` on, each `factor` times the one before.
fn exponential(start: f64, factor: f64, count: usize) -> Vec<f64> {
    std::iter::successors(Some(start), |bound| Some(bound * factor)).take(count).collect()
}

#[allow(clippy::expect_used, reason = "names and labels are constants, checked by a test")]
fn register<M: prometheus::core::Collector + Clone + 'static>(
    metric: Result<M, prometheus::Error>,
) -> M {
    let metric = metric.expect("a metric's name and labels are well formed");
    REGISTRY.register(Box::new(metric.clone())).expect("a metric is registered once");
    metric
}

/// Sets what is known at the start. To be called before any metric is written.
pub fn init(commit: Option<&str>, options: Options) {
    options::set(options);
    // Registers every metric; their labels depend on the options, which are set before.
    let catalog = catalog();
    let names: Vec<&str> = catalog.iter().map(|d| d.name.as_str()).collect();
    for pattern in options::current().idle_patterns(&names) {
        tracing::error!("metrics-drop" = pattern, "no metric has this name");
    }
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

/// The release whose labels the metrics have.
#[must_use]
pub fn release() -> Release {
    options::current().release
}

/// Counts a failed call of the provider. `class` is empty for errors without a class of their own,
/// `pool` for calls that are not about one NodePool.
pub fn provider_failed(labels: [&str; 3], class: &str, pool: &str) {
    let [controller, method, provider] = labels;
    match release() {
        Release::V1_14 => {
            CLOUDPROVIDER_ERRORS.with_label_values(&[controller, method, provider, class]).inc();
        }
        Release::V1_15 => {
            let class = if class.is_empty() { "unknown" } else { class };
            let labels = [controller, method, provider, class, pool];
            CLOUDPROVIDER_ERRORS.with_label_values(&labels).inc();
        }
    }
}

/// Counts a NodeClaim that was deleted because its node was unhealthy. Labels are condition,
/// NodePool, capacity type and image.
pub fn unhealthy_disrupted(labels: [&str; 4], mode: &str) {
    let [condition, pool, capacity_type, image] = labels;
    match release() {
        Release::V1_14 => NODECLAIMS_UNHEALTHY.with_label_values(&labels).inc(),
        Release::V1_15 => {
            let labels = [condition, pool, capacity_type, image, mode];
            NODECLAIMS_UNHEALTHY.with_label_values(&labels).inc();
        }
    }
}

/// Records the time from a pod's creation until it has a node.
pub fn pod_bound(seconds: f64, dynamic: bool) {
    observe_bound(&PODS_BOUND, seconds, dynamic);
}

/// Records the time from the first decision about a pod until it has a node.
pub fn pod_bound_since_decision(seconds: f64, dynamic: bool) {
    observe_bound(&PODS_PROVISIONING_BOUND, seconds, dynamic);
}

fn observe_bound(metric: &HistogramVec, seconds: f64, dynamic: bool) {
    let flag = if dynamic { "true" } else { "false" };
    let labels: &[&str] = if release() == Release::V1_15 { &[flag] } else { &[] };
    metric.with_label_values(labels).observe(seconds);
}

/// Writes all metrics in the text format, piece by piece. Ends early once nobody reads.
pub fn render_into(sink: Sink<'_>) {
    let options = options::current();
    let mut page = Page::new(options, sink);
    for family in REGISTRY.gather().into_iter().filter(|f| options.serves(f.name())) {
        if let Ok(text) = TextEncoder::new().encode_to_string(&[family]) {
            page.push(&text);
        }
    }
    process::write(&mut page);
    // A slow reader must not hold back callers that add a source.
    let sources = SOURCES.lock().clone();
    for source in &sources {
        (source.write)(&mut page);
    }
    page.finish();
}

/// Something that writes metrics for as long as its owner is there.
#[derive(Clone)]
struct Source {
    owner: Weak<dyn Any + Send + Sync>,
    write: Arc<dyn Fn(&mut Page<'_>) + Send + Sync>,
}

/// What writes its metrics when they are asked for.
static SOURCES: Mutex<Vec<Source>> = Mutex::new(Vec::new());

/// Adds metrics that are written only when they are asked for. A gauge must have one source.
///
/// The source does not keep its owner alive, and ends with it: a process may start the controllers
/// more than once, as tests do.
pub fn add_source<T: Any + Send + Sync>(
    owner: &Arc<T>,
    write: impl Fn(&T, &mut Page<'_>) + Send + Sync + 'static,
) {
    let weak = Arc::downgrade(owner);
    let owner: Weak<dyn Any + Send + Sync> = weak.clone();
    let write = move |page: &mut Page<'_>| {
        if let Some(owner) = weak.upgrade() {
            write(&owner, page);
        }
    };
    let mut sources = SOURCES.lock();
    sources.retain(|s| s.owner.strong_count() > 0);
    sources.push(Source { owner, write: Arc::new(write) });
}

/// What a source writes, whole.
pub fn page_of(options: &Options, write: impl FnOnce(&mut Page<'_>)) -> String {
    let mut text = String::new();
    let mut sink = |piece: String| {
        text.push_str(&piece);
        true
    };
    let mut page = Page::new(options, &mut sink);
    write(&mut page);
    page.finish();
    text
}

/// All metrics, whole.
#[cfg(test)]
pub fn render() -> String {
    let mut text = String::new();
    render_into(&mut |piece| {
        text.push_str(&piece);
        true
    });
    text
}

#[cfg(test)]
mod tests;
