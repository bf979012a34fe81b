//! Summaries: quantiles over the last ten minutes, which the prometheus crate does not have.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType, Quantile, Summary};
use tokio::time::Instant;

/// The quantiles of Karpenter's summaries.
const QUANTILES: &[f64] = &[0.0, 0.5, 0.9, 0.99, 1.0];
/// Observations count for the quantiles this long; the default of Go's client library.
const WINDOW: Duration = Duration::from_secs(600);
/// At most this many observations are kept per series; older ones no longer count for the
/// quantiles.
const KEPT: usize = 4096;

/// A summary with labels. Clones share their values.
#[derive(Clone)]
pub struct SummaryVec {
    desc: Desc,
    labels: &'static [&'static str],
    series: Arc<Mutex<BTreeMap<Vec<String>, Series>>>,
}

#[derive(Default)]
struct Series {
    count: u64,
    sum: f64,
    recent: VecDeque<(Instant, f64)>,
}

impl SummaryVec {
    /// A summary without observations.
    ///
    /// # Errors
    /// When the name or a label is not well formed.
    pub fn new(
        name: &str,
        help: &str,
        labels: &'static [&'static str],
    ) -> Result<Self, prometheus::Error> {
        let names = labels.iter().map(|l| (*l).to_owned()).collect();
        let desc = Desc::new(name.to_owned(), help.to_owned(), names, Default::default())?;
        Ok(Self { desc, labels, series: Arc::default() })
    }

    /// Adds a value to the series with the label values, in the labels' order.
    pub fn observe(&self, values: &[&str], value: f64) {
        let key = values.iter().map(|v| (*v).to_owned()).collect();
        let mut all = self.series.lock();
        let series = all.entry(key).or_default();
        series.count += 1;
        series.sum += value;
        if series.recent.len() == KEPT {
            series.recent.pop_front();
        }
        series.recent.push_back((Instant::now(), value));
    }

    fn metric(&self, values: &[String], series: &mut Series) -> Metric {
        while series.recent.front().is_some_and(|(at, _)| at.elapsed() > WINDOW) {
            series.recent.pop_front();
        }
        let mut sorted: Vec<f64> = series.recent.iter().map(|(_, v)| *v).collect();
        sorted.sort_by(f64::total_cmp);
        let quantiles = QUANTILES.iter().map(|q| {
            let mut quantile = Quantile::default();
            quantile.set_quantile(*q);
            quantile.set_value(nearest_rank(&sorted, *q));
            quantile
        });
        let mut summary = Summary::default();
        summary.set_sample_count(series.count);
        summary.set_sample_sum(series.sum);
        summary.set_quantile(quantiles.collect());
        let pairs = self.labels.iter().zip(values).map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value.clone());
            pair
        });
        let mut metric = Metric::from_label(pairs.collect());
        metric.set_summary(summary);
        metric
    }
}

/// The smallest value that at least the share `q` of all values does not exceed; NaN of none.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn nearest_rank(sorted: &[f64], q: f64) -> f64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

impl Collector for SummaryVec {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(MetricType::SUMMARY);
        let mut all = self.series.lock();
        family.set_metric(all.iter_mut().map(|(values, s)| self.metric(values, s)).collect());
        vec![family]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let sorted: Vec<f64> = (1..=100).map(f64::from).collect();
        let all: Vec<f64> = QUANTILES.iter().map(|q| nearest_rank(&sorted, *q)).collect();
        assert_eq!(all, [1.0, 50.0, 90.0, 99.0, 100.0]);
        assert!(nearest_rank(&[], 0.5).is_nan());
        assert_eq!(nearest_rank(&[7.0], 0.0), 7.0);
    }

    #[test]
    fn a_summary_shows_as_one() {
        let summary = SummaryVec::new("x_seconds", "X.", &["nodepool"]).unwrap();
        for value in [3.0, 1.0, 2.0] {
            summary.observe(&["default"], value);
        }
        let text = prometheus::TextEncoder::new().encode_to_string(&summary.collect()).unwrap();
        assert!(text.contains("# TYPE x_seconds summary"), "{text}");
        for line in [
            r#"x_seconds{nodepool="default",quantile="0.5"} 2"#,
            r#"x_seconds{nodepool="default",quantile="1"} 3"#,
            r#"x_seconds_sum{nodepool="default"} 6"#,
            r#"x_seconds_count{nodepool="default"} 3"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
