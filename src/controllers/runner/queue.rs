//! The work queue of one controller: which objects are due, which are being reconciled, and when the
//! others are looked at again.
//!
//! Owns one entry per object, so that an object has at most one pending time and one reconcile. Reads
//! no clock: the time is an argument.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::operator::rate::Backoff;

/// Changes bring the next attempt for an object that fails forward to this long after the last one,
/// not further: reconciles write to the object that they fail on, and that change would start the
/// next attempt at once, without end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where an object's next reconcile stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    /// Nothing is pending.
    Nothing,
    /// Due at a later time.
    Later(Instant),
    /// Due, and waiting for a worker since then.
    Due(Instant),
}

/// What is known of one object.
#[derive(Debug)]
struct Entry {
    pending: Pending,
    /// A change came during the reconcile under way.
    changed: bool,
    /// Failures in a row.
    failures: u32,
    /// Changes start no attempt before this time.
    not_before: Option<Instant>,
}

/// Objects by name.
#[derive(Debug)]
pub(super) struct Queue {
    backoff: Backoff,
    entries: HashMap<Arc<str>, Entry>,
    due: VecDeque<Arc<str>>,
    later: BTreeSet<(Instant, Arc<str>)>,
    /// Starts of the reconciles under way.
    running: HashMap<Arc<str>, Instant>,
    /// Entries that came into `due` so far.
    added: u64,
}

impl Queue {
    /// An empty queue whose failures wait as `backoff` says.
    pub(super) fn new(backoff: Backoff) -> Self {
        Self {
            backoff,
            entries: HashMap::new(),
            due: VecDeque::new(),
            later: BTreeSet::new(),
            running: HashMap::new(),
            added: 0,
        }
    }

    /// Asks for a reconcile because something changed.
    pub(super) fn add(&mut self, name: &str, now: Instant) {
        let name = match self.entries.get_key_value(name) {
            Some((name, _)) => Arc::clone(name),
            None => Arc::from(name),
        };
        let entry = self.entries.entry(Arc::clone(&name)).or_insert(Entry {
            pending: Pending::Nothing,
            changed: false,
            failures: 0,
            not_before: None,
        });
        if self.running.contains_key(&name) {
            // A second worker on the same object would write what the first one is about to write.
            entry.changed = true;
            return;
        }
        // A change does not end the wait after a failure; it only brings it forward.
        let at = entry.not_before.map_or(now, |t| t.max(now));
        self.schedule(&name, at, now);
    }

    /// Takes the object that has been due for longest, and how long it has waited for a worker.
    pub(super) fn next(&mut self, now: Instant) -> Option<(Arc<str>, Duration)> {
        self.advance(now);
        let name = self.due.pop_front()?;
        let entry = self.entries.get_mut(&name)?;
        let Pending::Due(since) = entry.pending else { return None };
        // Cleared here and not at the end: what comes during the reconcile must not be lost.
        entry.pending = Pending::Nothing;
        entry.changed = false;
        self.running.insert(Arc::clone(&name), now);
        Some((name, now.saturating_duration_since(since)))
    }

    /// Records the end of a reconcile: when to look again, if at all, or that it failed.
    pub(super) fn done(&mut self, name: &str, outcome: Result<Option<Duration>, ()>, now: Instant) {
        let Some((name, _)) = self.entries.get_key_value(name) else { return };
        let name = Arc::clone(name);
        let Some(entry) = self.entries.get_mut(&name) else { return };
        self.running.remove(&name);
        let changed = std::mem::take(&mut entry.changed);
        let wait = match outcome {
            Ok(again) => {
                entry.failures = 0;
                entry.not_before = None;
                if changed { Some(Duration::ZERO) } else { again }
            }
            Err(()) => {
                entry.failures = entry.failures.saturating_add(1);
                let wait = self.backoff.delay(entry.failures);
                entry.not_before = Some(now + wait.min(PATIENCE));
                Some(if changed { wait.min(PATIENCE) } else { wait })
            }
        };
        match wait {
            Some(wait) => self.schedule(&name, now + wait, now),
            // Names of objects that are gone would fill the map otherwise.
            None => drop(self.entries.remove(&name)),
        }
    }

    /// The earliest time at which an object becomes due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.later.first().map(|(at, _)| *at)
    }

    /// Objects that are due and wait for a worker.
    pub(super) fn depth(&self) -> usize {
        self.due.len()
    }

    /// Objects that are being reconciled.
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// How often objects became due since the last call.
    pub(super) fn take_added(&mut self) -> u64 {
        std::mem::take(&mut self.added)
    }

    /// The time for which the reconciles under way have run: together, and the longest.
    pub(super) fn unfinished(&self, now: Instant) -> (Duration, Duration) {
        self.running.values().fold((Duration::ZERO, Duration::ZERO), |(sum, longest), start| {
            let time = now.saturating_duration_since(*start);
            (sum + time, longest.max(time))
        })
    }

    /// Makes due what is due by now.
    pub(super) fn advance(&mut self, now: Instant) {
        while let Some((at, _)) = self.later.first()
            && *at <= now
            && let Some((at, name)) = self.later.pop_first()
        {
            if let Some(entry) = self.entries.get_mut(&name) {
                entry.pending = Pending::Due(at);
                self.due.push_back(name);
                self.added += 1;
            }
        }
    }

    /// Sets the pending time, unless an earlier one is pending.
    fn schedule(&mut self, name: &Arc<str>, at: Instant, now: Instant) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        match entry.pending {
            Pending::Due(_) => return,
            Pending::Later(before) if before <= at => return,
            Pending::Later(before) => drop(self.later.remove(&(before, Arc::clone(name)))),
            Pending::Nothing => {}
        }
        if at <= now {
            entry.pending = Pending::Due(now);
            self.due.push_back(Arc::clone(name));
            self.added += 1;
        } else {
            entry.pending = Pending::Later(at);
            self.later.insert((at, Arc::clone(name)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn queue() -> (Queue, Instant) {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(60));
        (Queue::new(backoff.with_jitter(|| 0.0)), Instant::now())
    }

    fn names(queue: &mut Queue, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| queue.next(now)).map(|(name, _)| name.to_string()).collect()
    }

    #[test]
    fn an_object_is_reconciled_by_one_worker_at_a_time() {
        let (mut queue, now) = queue();
        queue.add("a", now);
        queue.add("a", now);
        assert_eq!(names(&mut queue, now), ["a"]);
        queue.add("a", now);
        assert!(names(&mut queue, now).is_empty());
        queue.done("a", Ok(None), now);
        assert_eq!(names(&mut queue, now), ["a"]);
        queue.done("a", Ok(None), now);
        assert!(names(&mut queue, now).is_empty() && queue.entries.is_empty());
    }

    #[test]
    fn objects_are_taken_in_the_order_in_which_they_became_due() {
        let (mut queue, now) = queue();
        for name in ["c", "a", "b"] {
            queue.add(name, now);
        }
        assert_eq!((queue.depth(), queue.take_added()), (3, 3));
        assert_eq!(names(&mut queue, now), ["c", "a", "b"]);
        assert_eq!((queue.depth(), queue.running()), (0, 3));
    }

    #[test]
    fn of_two_pending_times_the_earlier_wins() {
        let (mut queue, now) = queue();
        queue.add("a", now);
        names(&mut queue, now);
        queue.done("a", Ok(Some(300 * SECOND)), now);
        assert_eq!(queue.next_due(), Some(now + 300 * SECOND));
        // A change starts a reconcile that asks for an earlier time: what was pending goes.
        queue.add("a", now + SECOND);
        assert_eq!(names(&mut queue, now + SECOND), ["a"]);
        queue.done("a", Ok(Some(29 * SECOND)), now + SECOND);
        assert_eq!(queue.next_due(), Some(now + 30 * SECOND));
        assert!(names(&mut queue, now + 29 * SECOND).is_empty());
        assert_eq!(names(&mut queue, now + 30 * SECOND), ["a"]);
        queue.done("a", Ok(None), now + 30 * SECOND);
        assert_eq!(queue.next_due(), None);
    }

    #[test]
    fn an_object_has_one_pending_time_however_many_changes_come() {
        let (mut queue, mut now) = queue();
        let mut runs = 0;
        // A change every 100 ms for ten seconds, and each reconcile asks to look again in one.
        for _ in 0..100 {
            queue.add("a", now);
            runs += names(&mut queue, now).len();
            queue.done("a", Ok(Some(SECOND)), now);
            assert_eq!(queue.later.len(), 1);
            now += Duration::from_millis(100);
        }
        assert_eq!(runs, 100);
        // Then only the last one is left.
        let quiet: usize = (0..50)
            .map(|_| {
                now += Duration::from_millis(100);
                let taken = names(&mut queue, now);
                queue.done("a", Ok(Some(SECOND)), now);
                taken.len()
            })
            .sum();
        assert_eq!(quiet, 5);
    }

    #[test]
    fn failures_back_off_and_a_success_ends_that() {
        let (mut queue, mut now) = queue();
        queue.add("a", now);
        let mut waits = Vec::new();
        for _ in 0..11 {
            assert_eq!(names(&mut queue, now), ["a"]);
            queue.done("a", Err(()), now);
            let due = queue.next_due().unwrap();
            waits.push((due - now).as_millis());
            now = due;
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000]);
        names(&mut queue, now);
        queue.done("a", Ok(None), now);
        queue.add("a", now);
        names(&mut queue, now);
        queue.done("a", Err(()), now);
        assert_eq!(queue.next_due(), Some(now + Duration::from_millis(100)));
    }

    #[test]
    fn changes_do_not_multiply_the_attempts_for_an_object_that_fails() {
        let (mut queue, start) = queue();
        let mut attempts = 0;
        // Each failure writes to its object: the change comes while the reconcile runs.
        queue.add("a", start);
        for tick in 0..6000_u32 {
            let now = start + tick * Duration::from_millis(10);
            if !names(&mut queue, now).is_empty() {
                attempts += 1;
                queue.add("a", now);
                queue.done("a", Err(()), now);
            }
            queue.add("a", now);
        }
        // 0, 0.1, 0.3, 0.7, 1.5, 3.1, 6.3, then every 5 seconds up to 56.3.
        assert_eq!(attempts, 17);
    }

    #[test]
    fn a_change_brings_the_next_attempt_forward() {
        let (mut queue, start) = queue();
        let mut now = start;
        queue.add("a", now);
        for _ in 0..11 {
            names(&mut queue, now);
            queue.done("a", Err(()), now);
            now = queue.next_due().unwrap();
        }
        let last = now - 60 * SECOND;
        queue.add("a", last + 20 * SECOND);
        assert_eq!(names(&mut queue, last + 20 * SECOND), ["a"]);
    }

    #[test]
    fn one_object_that_fails_does_not_hold_others_back() {
        let (mut queue, now) = queue();
        queue.add("bad", now);
        names(&mut queue, now);
        queue.done("bad", Err(()), now);
        queue.add("good", now);
        assert_eq!(names(&mut queue, now), ["good"]);
    }

    #[test]
    fn many_objects_cost_no_more_than_their_number() {
        let (mut queue, now) = queue();
        let start = Instant::now();
        for n in 0..100_000 {
            queue.add(&n.to_string(), now);
        }
        for _ in 0..100_000 {
            let (name, _) = queue.next(now).unwrap();
            assert!(queue.unfinished(now).1.is_zero());
            queue.done(&name, Ok(Some(SECOND)), now);
        }
        assert_eq!(queue.later.len(), 100_000);
        // A scan of all objects at each step takes minutes.
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }

    #[test]
    fn work_under_way_is_measured() {
        let (mut queue, now) = queue();
        queue.add("a", now);
        queue.add("b", now);
        assert_eq!(queue.next(now + SECOND).unwrap().1, SECOND);
        assert_eq!(queue.next(now + 3 * SECOND).unwrap().1, 3 * SECOND);
        assert_eq!(queue.unfinished(now + 4 * SECOND), (4 * SECOND, 3 * SECOND));
        queue.done("a", Ok(None), now + 4 * SECOND);
        assert_eq!(queue.unfinished(now + 4 * SECOND), (SECOND, SECOND));
    }
}
