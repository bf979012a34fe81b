//! The metrics of one controller and its work queue, as the controller framework names them.

use std::time::Duration;

use prometheus::{Counter, Gauge, Histogram};

use super::list;

/// How a reconcile ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reconciled {
    /// Nothing more to do until something changes.
    Success,
    /// To be looked at again after a time.
    RequeueAfter,
    /// To be tried again.
    Error,
}

impl Reconciled {
    /// The value of the label `result`.
    fn result(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::RequeueAfter => "requeue_after",
            Self::Error => "error",
        }
    }
}

/// Handles of the series of one controller; cheap to clone.
#[derive(Clone)]
pub struct ControllerMetrics {
    controller: &'static str,
    active: Gauge,
    reconcile_time: Histogram,
    errors: Counter,
    panics: Counter,
    depth: Gauge,
    adds: Counter,
    waits: Histogram,
    work: Histogram,
    retries: Counter,
    unfinished: Gauge,
    longest: Gauge,
}

impl ControllerMetrics {
    /// The series of a controller that may run so many reconciles side by side. All of them are
    /// there from now on, with 0 where nothing happened yet.
    #[must_use]
    pub fn new(controller: &'static str, workers: usize) -> Self {
        let (one, queue) = ([controller], [controller, controller]);
        #[allow(clippy::cast_precision_loss, reason = "there are never so many workers")]
        list::MAX_CONCURRENT.with_label_values(&one).set(workers as f64);
        // A rate over a series that appears with its first failure would miss that failure.
        for result in ["success", "requeue_after", "requeue", "error"] {
            list::RECONCILES.with_label_values(&[controller, result]);
        }
        list::TERMINAL_ERRORS.with_label_values(&one);
        list::RECONCILE_TIMEOUTS.with_label_values(&one);
        Self {
            controller,
            active: list::ACTIVE_WORKERS.with_label_values(&one),
            reconcile_time: list::RECONCILE_TIME.with_label_values(&one),
            errors: list::RECONCILE_ERRORS.with_label_values(&one),
            panics: list::RECONCILE_PANICS.with_label_values(&one),
            // The framework's queue has priorities; all objects have the same one here.
            depth: list::QUEUE_DEPTH.with_label_values(&[controller, controller, "0"]),
            adds: list::QUEUE_ADDS.with_label_values(&queue),
            waits: list::QUEUE_DURATION.with_label_values(&queue),
            work: list::QUEUE_WORK.with_label_values(&queue),
            retries: list::QUEUE_RETRIES.with_label_values(&queue),
            unfinished: list::QUEUE_UNFINISHED.with_label_values(&queue),
            longest: list::QUEUE_LONGEST.with_label_values(&queue),
        }
    }

    /// Counts objects that became due.
    pub fn added(&self, count: u64) {
        #[allow(clippy::cast_precision_loss, reason = "a counter is a float")]
        self.adds.inc_by(count as f64);
    }

    /// Records how long a due object waited for a worker.
    pub fn waited(&self, time: Duration) {
        self.waits.observe(time.as_secs_f64());
    }

    /// Shows how many objects wait for a worker.
    pub fn waiting(&self, depth: usize) {
        #[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
        self.depth.set(depth as f64);
    }

    /// Shows for how long the reconciles under way have run: together, and the longest.
    pub fn unfinished(&self, unfinished: Duration, longest: Duration) {
        self.unfinished.set(unfinished.as_secs_f64());
        self.longest.set(longest.as_secs_f64());
    }

    /// Counts a reconcile that begins.
    pub fn started(&self) {
        self.active.inc();
    }

    /// Counts a reconcile that panicked.
    pub fn panicked(&self) {
        self.panics.inc();
    }

    /// Counts a reconcile that ended.
    pub fn finished(&self, time: Duration, how: Reconciled) {
        self.active.dec();
        list::RECONCILES.with_label_values(&[self.controller, how.result()]).inc();
        if how == Reconciled::Error {
            self.errors.inc();
            self.retries.inc();
        }
        self.reconcile_time.observe(time.as_secs_f64());
        self.work.observe(time.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_shows_all_its_series_from_the_start() {
        let measured = ControllerMetrics::new("shown", 3);
        measured.added(2);
        measured.waited(Duration::from_millis(5));
        measured.waiting(1);
        measured.unfinished(Duration::from_secs(3), Duration::from_secs(2));
        measured.started();
        measured.finished(Duration::from_millis(20), Reconciled::Error);
        let text = super::super::render();
        for line in [
            r#"controller_runtime_reconcile_total{controller="shown",result="error"} 1"#,
            r#"controller_runtime_reconcile_total{controller="shown",result="requeue"} 0"#,
            r#"controller_runtime_reconcile_errors_total{controller="shown"} 1"#,
            r#"controller_runtime_terminal_reconcile_errors_total{controller="shown"} 0"#,
            r#"controller_runtime_reconcile_panics_total{controller="shown"} 0"#,
            r#"controller_runtime_reconcile_timeouts_total{controller="shown"} 0"#,
            r#"controller_runtime_max_concurrent_reconciles{controller="shown"} 3"#,
            r#"controller_runtime_active_workers{controller="shown"} 0"#,
            r#"workqueue_depth{controller="shown",name="shown",priority="0"} 1"#,
            r#"workqueue_adds_total{controller="shown",name="shown"} 2"#,
            r#"workqueue_retries_total{controller="shown",name="shown"} 1"#,
            r#"workqueue_unfinished_work_seconds{controller="shown",name="shown"} 3"#,
            r#"workqueue_longest_running_processor_seconds{controller="shown",name="shown"} 2"#,
            r#"workqueue_queue_duration_seconds_count{controller="shown",name="shown"} 1"#,
            r#"workqueue_work_duration_seconds_count{controller="shown",name="shown"} 1"#,
        ] {
            assert!(text.contains(line), "{line}");
        }
    }
}
