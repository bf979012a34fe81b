//! Status conditions and terminations of one kind of object: gauges of what is, counts and events
//! of what changes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::broadcast::error::RecvError;

use super::super::Context;
use super::view::{Kind, Seen, View};
use crate::api::conditions;
use crate::operator::events::{Event, Report};
use crate::operator::metrics::Level;
use crate::operator::metrics::page::Page;
use crate::operator::metrics::status::{ANY, KindMetrics};

/// Objects are looked at this often, in case a change was missed.
const PERIOD: Duration = Duration::from_secs(10);

/// What is known of the objects of a kind, by name.
pub(in crate::controllers) type Known = Arc<Mutex<HashMap<String, Arc<View>>>>;

/// Follows the objects of a kind for as long as the state lives.
pub(super) async fn run(ctx: Arc<Context>, kind: &'static Kind, known: Known) {
    let mut changes = ctx.cluster.subscribe();
    ctx.cluster.until_listed().await;
    let mut watch = Watch { kind, known };
    let mut tick = tokio::time::interval(PERIOD);
    loop {
        tokio::select! {
            biased;
            // Changes are not kept for a listener that falls behind; this finds what it missed.
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
    let there: HashSet<&str> = all.iter().map(|v| v.name.as_str()).collect();
    let known: Vec<String> = watch.known.lock().keys().cloned().collect();
    let gone: Vec<String> = known.into_iter().filter(|n| !there.contains(n.as_str())).collect();
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
type Target = (&'static KindMetrics, Vec<&'static str>);

fn targets(kind: &Kind) -> impl Iterator<Item = Target> {
    let own: Target = (&**kind.metrics, Vec::new());
    let together: Option<Target> =
        kind.counted_together.then(|| (&*ANY, vec![kind.group, kind.kind]));
    std::iter::once(own).chain(together)
}

/// Counts what changes.
struct Watch {
    kind: &'static Kind,
    known: Known,
}

impl Watch {
    /// Takes in an object as it is now, or that it is gone; returns the events to publish.
    fn see(&mut self, name: &str, found: Option<View>, now: Timestamp) -> Vec<Event> {
        let mut events = Vec::new();
        let before = self.known.lock().remove(name);
        // The same name with another UID is another object: the first one has ended.
        let replaced = |b: &Arc<View>| found.as_ref().is_some_and(|f| f.uid != b.uid);
        let (gone, before) = match before {
            Some(b) if found.is_none() || replaced(&b) => (Some(b), None),
            other => (None, other),
        };
        if let Some(gone) = &gone {
            self.ended(gone, now);
            // Without a deletion time the object was removed by force, or left out as unreadable.
            if gone.deleted.is_some() {
                events.extend(gone.finalizers.iter().map(|f| finalized(gone, f)));
            }
        }
        if let Some(view) = found {
            let view = View { seen: now, ..view };
            events.extend(self.changed(before.as_deref(), &view));
            self.known.lock().insert(name.to_owned(), Arc::new(view));
        }
        events
    }

    fn ended(&self, gone: &View, now: Timestamp) {
        let Some(deleted) = gone.deleted else { return };
        for (metrics, fixed) in targets(self.kind) {
            let labels = labels(metrics, &fixed, &[], gone);
            metrics.termination_seconds.with_label_values(&labels).observe(seconds(deleted, now));
        }
    }

    /// Counts conditions that changed or were never seen, and reports those that changed.
    fn changed(&self, before: Option<&View>, view: &View) -> Vec<Event> {
        let mut events = Vec::new();
        for condition in &view.conditions {
            // A condition that was not there has no earlier state, so that only its count moves.
            let old = before.and_then(|b| self.old(b, &condition.kind));
            let status = old.as_ref().map_or(conditions::UNKNOWN, |o| o.status.as_str());
            if status == condition.status {
                continue;
            }
            for target in targets(self.kind) {
                count(&target, view, old.as_ref(), condition);
            }
            events.extend(old.map(|old| transitioned(view, &old, condition)));
        }
        let removed = before.into_iter().flat_map(|b| &b.finalizers);
        let removed = removed.filter(|f| view.deleted.is_some() && !view.finalizers.contains(*f));
        events.extend(removed.map(|f| finalized(view, f)));
        events
    }

    /// A condition as it was. One that the object has from its beginning was unknown before it was
    /// written: a claim's first written status is often that it was launched.
    fn old(&self, before: &View, kind: &str) -> Option<Seen> {
        let implied = || {
            self.kind.implied.contains(&kind).then(|| Seen {
                kind: kind.to_owned(),
                status: conditions::UNKNOWN.to_owned(),
                reason: conditions::AWAITING.to_owned(),
                message: conditions::AWAITING_MESSAGE.to_owned(),
                since: Some(before.seen),
            })
        };
        before.condition(kind).cloned().or_else(implied)
    }
}

/// Writes the gauges of all kinds. Below the level `full` the objects of numerous kinds are counted.
pub(in crate::controllers) fn write(
    kinds: &[(&'static Kind, Known)],
    now: Timestamp,
    page: &mut Page<'_>,
) {
    let kinds: Vec<(&Kind, Vec<Arc<View>>)> = kinds
        .iter()
        .map(|(kind, known)| (*kind, known.lock().values().cloned().collect()))
        .collect();
    for (kind, views) in &kinds {
        write_target(kind.metrics, &[(*kind, Vec::new(), views)], now, page);
    }
    let together: Vec<_> = kinds
        .iter()
        .filter(|(kind, _)| kind.counted_together)
        .map(|(kind, views)| (*kind, vec![kind.group, kind.kind], views))
        .collect();
    write_target(&ANY, &together, now, page);
}

/// Objects of a kind, with the values of the labels that come first.
type Group<'a> = (&'a Kind, Vec<&'static str>, &'a Vec<Arc<View>>);

fn write_target(metrics: &KindMetrics, groups: &[Group<'_>], now: Timestamp, page: &mut Page<'_>) {
    let each = |(kind, ..): &Group<'_>| page_shows_each(kind, page.level());
    let single: Vec<bool> = groups.iter().map(each).collect();
    if let Some(mut lines) = page.family(&metrics.condition_count) {
        let mut counts: BTreeMap<Vec<&str>, u32> = BTreeMap::new();
        for ((_, fixed, views), each) in groups.iter().zip(&single) {
            for view in views.iter() {
                let name = if *each { view.name.as_str() } else { "" };
                for c in &view.conditions {
                    let own = ["", name, &c.kind, &c.status, &c.reason];
                    *counts.entry(labels(metrics, fixed, &own, view)).or_default() += 1;
                }
            }
        }
        counts.iter().for_each(|(values, count)| lines.add(values, f64::from(*count)));
    }
    if let Some(mut lines) = page.family(&metrics.condition_seconds) {
        for (_, fixed, views) in groups {
            for view in views.iter() {
                for c in &view.conditions {
                    let own = ["", &view.name, &c.kind, &c.status, &c.reason];
                    let lasted = c.since.map_or(0.0, |since| seconds(since, now));
                    lines.add(&labels(metrics, fixed, &own, view), lasted);
                }
            }
        }
    }
    if let Some(mut lines) = page.family(&metrics.termination_current) {
        for (_, fixed, views) in groups {
            for view in views.iter() {
                let Some(deleted) = view.deleted else { continue };
                let own = ["", view.name.as_str()];
                lines.add(&labels(metrics, fixed, &own, view), seconds(deleted, now));
            }
        }
    }
}

fn page_shows_each(kind: &Kind, level: Level) -> bool {
    level == Level::Full || !kind.numerous
}

/// Values of the fixed labels, the metric's own and the object's.
fn labels<'a>(
    metrics: &KindMetrics,
    fixed: &[&'a str],
    own: &[&'a str],
    view: &'a View,
) -> Vec<&'a str> {
    let extra = metrics.extra.iter().map(|key| view.label(key));
    fixed.iter().copied().chain(own.iter().copied()).chain(extra).collect()
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
    let message = match new.message.as_str() {
        "" => String::new(),
        text => format!(", Message: {text}"),
    };
    let report = Report::Transitioned {
        kind: &new.kind,
        old: &old.status,
        new: &new.status,
        reason: &new.reason,
        message: &message,
    };
    report.on(view.reference.clone())
}

fn finalized(view: &View, finalizer: &str) -> Event {
    Report::Finalized { finalizer: &finalizer }.on(view.reference.clone())
}

pub(super) fn known_of(kind: &Kind, state: &crate::cluster::State) -> Known {
    let all = (kind.all)(state).into_iter().map(|view| (view.name.clone(), Arc::new(view)));
    Arc::new(Mutex::new(all.collect()))
}

#[cfg(test)]
mod tests {
    use super::super::view;
    use super::*;
    use crate::operator::metrics::{self, Options};

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

    fn watch(kind: &'static Kind) -> Watch {
        Watch { kind, known: Known::default() }
    }

    fn shown(watch: &Watch, level: Level, now: i64, start: &str) -> Vec<String> {
        let kinds = [(watch.kind, Arc::clone(&watch.known))];
        let options = Options { level, ..Options::default() };
        let now = Timestamp::from_second(now).unwrap();
        let text = metrics::page_of(&options, |page| write(&kinds, now, page));
        text.lines().filter(|l| l.starts_with(start)).map(str::to_owned).collect()
    }

    #[test]
    fn a_condition_is_shown_counted_and_reported() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut watch = watch(&view::NODEPOOL);
        let see = |watch: &mut Watch, view: Option<View>, second| {
            let events = watch.see("observed", view, at(second));
            events.into_iter().map(|e| e.message).collect::<Vec<_>>()
        };
        let unknown = pool("observed", "1", "Unknown", "New", 100);
        assert!(see(&mut watch, Some(unknown), 100).is_empty());
        let ready = || pool("observed", "1", "True", "Ready", 130);
        assert_eq!(
            see(&mut watch, Some(ready()), 140),
            ["Status condition transitioned, Type: Ready, Status: Unknown -> True, Reason: Ready"]
        );
        assert_eq!(
            shown(
                &watch,
                Level::Full,
                150,
                "operator_nodepool_status_condition_current_status_seconds{"
            ),
            [
                r#"operator_nodepool_status_condition_current_status_seconds{namespace="",name="observed",type="Ready",status="True",reason="Ready"} 20"#
            ]
        );
        assert_eq!(
            shown(&watch, Level::Full, 150, "operator_status_condition_count{"),
            [
                r#"operator_status_condition_count{group="karpenter.sh",kind="NodePool",namespace="",name="observed",type="Ready",status="True",reason="Ready"} 1"#
            ]
        );
        // Nothing changed: nothing to report.
        assert!(see(&mut watch, Some(ready()), 151).is_empty());

        let mut going = ready();
        going.deleted = Some(at(160));
        going.finalizers = vec!["karpenter.sh/termination".to_owned()];
        see(&mut watch, Some(going), 170);
        let current =
            shown(&watch, Level::Full, 175, "operator_nodepool_termination_current_time_seconds{");
        assert!(current[0].ends_with(" 15"), "{current:?}");
        assert_eq!(see(&mut watch, None, 180), ["Finalized karpenter.sh/termination"]);
        assert!(shown(&watch, Level::Full, 181, "operator_").is_empty());
        let ended = metrics::status::NODEPOOL.termination_seconds.with_label_values::<&str>(&[]);
        assert!(ended.get_sample_sum() >= 20.0);
    }

    #[test]
    fn an_object_of_the_same_name_is_another() {
        let now = Timestamp::UNIX_EPOCH;
        let mut watch = watch(&view::NODEPOOL);
        watch.see("twice", Some(pool("twice", "1", "True", "Ready", 0)), now);
        let events = watch.see("twice", Some(pool("twice", "2", "False", "New", 0)), now);
        assert!(events.is_empty(), "{events:?}");
    }

    fn claim(name: &str, conditions: &[(&str, &str)]) -> View {
        let conditions = conditions.iter().map(|(kind, status)| Seen {
            kind: (*kind).to_owned(),
            status: (*status).to_owned(),
            reason: (*kind).to_owned(),
            message: String::new(),
            since: Some(Timestamp::UNIX_EPOCH),
        });
        View { name: name.to_owned(), conditions: conditions.collect(), ..View::default() }
    }

    #[test]
    fn a_condition_that_is_first_written_as_true_was_unknown_before() {
        let now = Timestamp::UNIX_EPOCH;
        let mut watch = watch(&view::NODECLAIM);
        assert!(watch.see("c", Some(claim("c", &[])), now).is_empty());
        let launched = [("Launched", "True"), ("Registered", "Unknown"), ("Drifted", "True")];
        let events = watch.see("c", Some(claim("c", &launched)), now);
        let texts: Vec<(&str, &str)> =
            events.iter().map(|e| (&*e.reason, e.message.as_str())).collect();
        assert_eq!(
            texts,
            [(
                "Launched",
                "Status condition transitioned, Type: Launched, Status: Unknown -> True, Reason: Launched"
            )]
        );
        // What was there before the controller looked is no change.
        assert!(watch.see("old", Some(claim("old", &launched)), now).is_empty());
    }

    #[test]
    fn objects_of_numerous_kinds_are_counted_below_the_full_level() {
        let now = Timestamp::UNIX_EPOCH;
        let mut watch = watch(&view::NODECLAIM);
        for name in ["a", "b"] {
            watch.see(name, Some(claim(name, &[("Ready", "False")])), now);
        }
        let of = |level| shown(&watch, level, 5, "operator_nodeclaim_status_condition_count{");
        assert_eq!(of(Level::Full).len(), 2);
        let counted = of(Level::Standard);
        assert!(counted.len() == 1 && counted[0].ends_with(" 2"), "{counted:?}");
        assert!(counted[0].contains(r#"name="""#));
        let start = "operator_nodeclaim_status_condition_current_status_seconds";
        assert!(shown(&watch, Level::Standard, 5, start).is_empty());
    }
}
