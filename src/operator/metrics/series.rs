//! Gauges about objects: all series of an object are set together, and go with it.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use prometheus::GaugeVec;

/// Series of gauges by the object that they are about.
#[derive(Default)]
pub struct Series {
    owned: Mutex<BTreeMap<String, BTreeSet<Point>>>,
}

/// Which gauge, and its label values.
type Point = (usize, Vec<String>);

/// A value to set: an index into the gauges, the label values, the value.
pub type Sample = (usize, Vec<String>, f64);

impl Series {
    /// Sets the object's series to exactly these; earlier ones of it that are missing are removed.
    pub fn set(&self, gauges: &[&GaugeVec], owner: &str, samples: Vec<Sample>) {
        let mut fresh = BTreeSet::new();
        for (index, labels, value) in samples {
            if let Some(gauge) = gauges.get(index)
                && let Ok(series) = gauge.get_metric_with_label_values(&labels)
            {
                series.set(value);
                fresh.insert((index, labels));
            }
        }
        let mut owned = self.owned.lock();
        for point in owned.get(owner).into_iter().flatten().filter(|p| !fresh.contains(*p)) {
            remove(gauges, point);
        }
        owned.insert(owner.to_owned(), fresh);
    }

    /// Removes the series of every object that is not among the living.
    pub fn keep(&self, gauges: &[&GaugeVec], living: impl Fn(&str) -> bool) {
        self.owned.lock().retain(|owner, points| {
            let stays = living(owner);
            if !stays {
                points.iter().for_each(|point| remove(gauges, point));
            }
            stays
        });
    }
}

fn remove(gauges: &[&GaugeVec], (index, labels): &Point) {
    if let Some(gauge) = gauges.get(*index) {
        let _ = gauge.remove_label_values(labels);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::Opts;
    use prometheus::core::Collector as _;

    #[test]
    fn series_go_with_what_they_are_about() {
        let gauge = GaugeVec::new(Opts::new("g", "g"), &["name", "kind"]).unwrap();
        let (series, gauges) = (Series::default(), [&gauge]);
        let sample = |name: &str, kind: &str| (0, vec![name.to_owned(), kind.to_owned()], 1.0);
        let count = || gauge.collect()[0].get_metric().len();
        series.set(&gauges, "a", vec![sample("a", "x"), sample("a", "y")]);
        series.set(&gauges, "b", vec![sample("b", "x")]);
        assert_eq!(count(), 3);
        series.set(&gauges, "a", vec![sample("a", "y")]);
        assert_eq!(count(), 2);
        series.keep(&gauges, |owner| owner == "b");
        assert_eq!(count(), 1);
        assert_eq!(gauge.with_label_values(&["b", "x"]).get(), 1.0);
    }
}
