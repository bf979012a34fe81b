//! Status conditions and terminations of one kind of object: gauges of what is, counts and events
//! of what changes.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use jiff::Timestamp;
use prometheus::GaugeVec;
use tokio::sync::broadcast::error::RecvError;

use super::super::Context;
use super::view::{Kind, Seen, View};
use crate::operator::events::Event;
use crate::operator::metrics::series::{Sample, Series};
use crate::operator::metrics::status::{ANY, KindMetrics};

/// Gauges of times are brought up to date this often.
const PERIOD: Duration = Duration::from_secs(10);

/// Follows the objects of a kind for as long as the state lives.
pub(super) async fn run(ctx: Arc<Context>, kind: &'static Kind) {
    let mut changes = ctx.cluster.subscribe();
    let mut watch = Watch::new(kind);
    let mut tick = tokio::time::interval(PERIOD);
    loop {
        tokio::select! {
            biased;
            _ = tick.tick() => refresh(&ctx, &mut watch),
            change = changes.recv() => match change {
                Ok(change) => {
                    if let Some(name) = (kind.of)(&change) {
                        let now = ctx.clock.now();
                        let found = (kind.one)(&ctx.cluster, name);
                        publish(&ctx, watch.see(name, found, now));
                    }
                }
                Err(RecvError::Lagged(_)) => refresh(&ctx, &mut watch),
                Err(RecvError::Closed) => return,
            },
        }
    }
}

fn refresh(ctx: &Context, watch: &mut Watch) {
    if !ctx.cluster.listed() {
        return;
    }
    let now = ctx.clock.now();
    let all = (watch.kind.all)(&ctx.cluster);
    let gone = watch.known.keys().filter(|name| all.iter().all(|v| v.name != **name));
    let gone: Vec<String> = gone.cloned().collect();
    for view in all {
        let name = view.name.clone();
        publish(ctx, watch.see(&name, Some(view), now));
    }
    for name in gone {
        publish(ctx, watch.see(&name, None, now));
    }
}

fn publish(ctx: &Context, events: Vec<Event>) {
    for event in events {
        ctx.recorder.publish(event);
    }
}

/// The metrics that objects of a kind count for, with the values of the labels that come first.
type Target = (&'static LazyLock<KindMetrics>, Vec<String>);

/// What is known of the objects of a kind.
struct Watch {
    kind: &'static Kind,
    known: HashMap<String, View>,
    targets: Vec<(Target, Series)>,
}

impl Watch {
    fn new(kind: &'static Kind) -> Self {
        let mut targets = vec![((kind.metrics, Vec::new()), Series::default())];
        if kind.counted_together {
            let fixed = vec![kind.group.to_owned(), kind.kind.to_owned()];
            targets.push(((&ANY, fixed), Series::default()));
        }
        Self { kind, known: HashMap::new(), targets }
    }

    /// Takes in an object as it is now, or that it is gone; gives the events to publish.
    fn see(&mut self, name: &str, found: Option<View>, now: Timestamp) -> Vec<Event> {
        let mut events = Vec::new();
        let before = self.known.remove(name);
        let replaced = |b: &View| found.as_ref().is_some_and(|f| f.uid != b.uid);
        let (gone, before) = match before {
            Some(b) if found.is_none() || replaced(&b) => (Some(b), None),
            other => (None, other),
        };
        if let Some(gone) = &gone {
            self.ended(gone, now);
            if gone.deleted.is_some() {
                events.extend(gone.finalizers.iter().map(|f| finalized(gone, f)));
            }
        }
        if let Some(view) = found {
            events.extend(self.changed(before.as_ref(), &view));
            self.show(&view, now);
            self.known.insert(name.to_owned(), view);
        } else {
            for ((metrics, _), series) in &self.targets {
                series.keep(&gauges(metrics), |owner| owner != name);
            }
        }
        events
    }

    fn ended(&self, gone: &View, now: Timestamp) {
        let Some(deleted) = gone.deleted else { return };
        for ((metrics, fixed), _) in &self.targets {
            let labels = labels(metrics, fixed, &[], gone);
            metrics.termination_seconds.with_label_values(&labels).observe(seconds(deleted, now));
        }
    }

    /// Counts conditions that changed, or were never seen; tells of those that changed.
    fn changed(&self, before: Option<&View>, view: &View) -> Vec<Event> {
        let mut events = Vec::new();
        for condition in &view.conditions {
            let old = before.and_then(|b| b.condition(&condition.kind));
            if old.is_some_and(|o| o.status == condition.status) {
                continue;
            }
            for (target, _) in &self.targets {
                count(target, view, old, condition);
            }
            events.extend(old.map(|old| transitioned(view, old, condition)));
        }
        let removed = before.into_iter().flat_map(|b| &b.finalizers);
        let removed = removed.filter(|f| view.deleted.is_some() && !view.finalizers.contains(*f));
        events.extend(removed.map(|f| finalized(view, f)));
        events
    }

    fn show(&self, view: &View, now: Timestamp) {
        for ((metrics, fixed), series) in &self.targets {
            let mut samples: Vec<Sample> = Vec::new();
            for condition in &view.conditions {
                let values =
                    ["", &view.name, &condition.kind, &condition.status, &condition.reason];
                let labels = labels(metrics, fixed, &values, view);
                let lasted = condition.since.map_or(0.0, |since| seconds(since, now));
                samples.push((0, labels.clone(), 1.0));
                samples.push((1, labels, lasted));
            }
            if let Some(deleted) = view.deleted {
                let labels = labels(metrics, fixed, &["", &view.name], view);
                samples.push((2, labels, seconds(deleted, now)));
            }
            series.set(&gauges(metrics), &view.name, samples);
        }
    }
}

fn gauges(metrics: &KindMetrics) -> [&GaugeVec; 3] {
    [&metrics.condition_count, &metrics.condition_seconds, &metrics.termination_current]
}

/// Values of the fixed labels, the metric's own and the object's.
fn labels(metrics: &KindMetrics, fixed: &[String], own: &[&str], view: &View) -> Vec<String> {
    let extra = metrics.extra.iter().map(|key| view.label(key).to_owned());
    fixed.iter().cloned().chain(own.iter().map(|v| (*v).to_owned())).chain(extra).collect()
}

fn count((metrics, fixed): &Target, view: &View, old: Option<&Seen>, new: &Seen) {
    let values = labels(metrics, fixed, &[&new.kind, &new.status, &new.reason], view);
    metrics.transitions.with_label_values(&values).inc();
    let times = old.and_then(|o| Some((o, o.since?, new.since?)));
    if let Some((old, from, to)) = times {
        let values = labels(metrics, fixed, &[&old.kind, &old.status], view);
        metrics.transition_seconds.with_label_values(&values).observe(seconds(from, to));
    }
}

fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}

fn transitioned(view: &View, old: &Seen, new: &Seen) -> Event {
    let mut message = format!(
        "Status condition transitioned, Type: {}, Status: {} -> {}, Reason: {}",
        new.kind, old.status, new.status, new.reason
    );
    if !new.message.is_empty() {
        message.push_str(&format!(", Message: {}", new.message));
    }
    always(Event::new(view.reference.clone(), false, new.kind.clone(), message))
}

fn finalized(view: &View, finalizer: &str) -> Event {
    let message = format!("Finalized {finalizer}");
    always(Event::new(view.reference.clone(), false, "Finalized", message))
}

/// Each change is told of: none is the same as another.
fn always(mut event: Event) -> Event {
    event.dedupe.push_str(&event.message);
    event.dedupe_for = Duration::ZERO;
    event
}

#[cfg(test)]
mod tests {
    use super::super::view;
    use super::*;
    use crate::operator::metrics;

    fn pool(name: &str, uid: &str, status: &str, reason: &str, at: i64) -> View {
        View {
            name: name.to_owned(),
            uid: uid.to_owned(),
            conditions: vec![Seen {
                kind: "Ready".to_owned(),
                status: status.to_owned(),
                reason: reason.to_owned(),
                message: String::new(),
                since: Timestamp::from_second(at).ok(),
            }],
            ..View::default()
        }
    }

    fn shown(start: &str) -> Vec<String> {
        let text = metrics::render();
        let lines = text.lines().filter(|l| l.starts_with(start) && l.contains("observed"));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn a_condition_is_shown_counted_and_told_of() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut watch = Watch::new(&view::NODEPOOL);
        assert!(
            watch
                .see("observed", Some(pool("observed", "1", "Unknown", "New", 100)), at(100))
                .is_empty()
        );
        let events =
            watch.see("observed", Some(pool("observed", "1", "True", "Ready", 130)), at(150));
        assert_eq!(
            events[0].message,
            "Status condition transitioned, Type: Ready, Status: Unknown -> True, Reason: Ready"
        );
        assert_eq!(
            shown("operator_nodepool_status_condition_current_status_seconds"),
            [
                r#"operator_nodepool_status_condition_current_status_seconds{name="observed",namespace="",reason="Ready",status="True",type="Ready"} 20"#
            ]
        );
        assert_eq!(
            shown("operator_status_condition_count"),
            [
                r#"operator_status_condition_count{group="karpenter.sh",kind="NodePool",name="observed",namespace="",reason="Ready",status="True",type="Ready"} 1"#
            ]
        );
        // Nothing changed: nothing to tell.
        assert!(
            watch
                .see("observed", Some(pool("observed", "1", "True", "Ready", 130)), at(151))
                .is_empty()
        );

        let mut going = pool("observed", "1", "True", "Ready", 130);
        going.deleted = Some(at(160));
        going.finalizers = vec!["karpenter.sh/termination".to_owned()];
        watch.see("observed", Some(going), at(170));
        assert_eq!(shown("operator_nodepool_termination_current_time_seconds").len(), 1);
        let events = watch.see("observed", None, at(180));
        assert_eq!(events[0].message, "Finalized karpenter.sh/termination");
        assert!(shown("operator_nodepool_").is_empty());
    }

    #[test]
    fn an_object_of_the_same_name_is_another() {
        let now = Timestamp::UNIX_EPOCH;
        let mut watch = Watch::new(&view::NODEPOOL);
        watch.see("twice", Some(pool("twice", "1", "True", "Ready", 0)), now);
        let events = watch.see("twice", Some(pool("twice", "2", "False", "New", 0)), now);
        assert!(events.is_empty(), "{events:?}");
    }
}
