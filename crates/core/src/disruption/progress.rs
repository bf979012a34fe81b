//! A command under way, as a state machine over what the objects show. Nothing of it is kept only in
//! memory: the taint and the condition mark the candidates, an annotation on the replacements names
//! them, so that a controller that starts anew takes the same steps.

use std::time::Duration;

use jiff::Timestamp;

use super::Abandoned;

/// A command is given up after this long, more for many candidates.
const TIMEOUT: Duration = Duration::from_secs(600);
const MOST_TIMEOUT: Duration = Duration::from_secs(3600);
/// What each candidate that is queued adds.
const PER_CANDIDATE: Duration = Duration::from_millis(80);

/// A command under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// NodeClaims to delete.
    pub candidates: Vec<String>,
    /// NodeClaims that have to be initialized first.
    pub replacements: Vec<String>,
    /// How many replacements there should be.
    pub wanted: usize,
    /// When the command was started.
    pub since: Timestamp,
    /// When it is given up.
    pub timeout: Duration,
}

/// How long a command may take while so many candidates are queued.
#[must_use]
pub fn timeout(queued: usize) -> Duration {
    let all = u32::try_from(queued).unwrap_or(u32::MAX);
    PER_CANDIDATE.saturating_mul(all).clamp(TIMEOUT, MOST_TIMEOUT)
}

/// What is seen of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CandidateState {
    /// It carries the command's marks.
    Marked,
    /// It carries none: somebody has taken them back.
    Unmarked,
    /// It is being deleted, or gone.
    Going,
}

/// What is seen of a replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplacementState {
    /// It is on its way up.
    Waiting,
    /// It is initialized, or has been.
    Ready,
    /// It is being deleted, or gone.
    Gone,
}

/// What is seen of a command's objects, in the order of [`Progress`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The candidates.
    pub candidates: Vec<CandidateState>,
    /// The replacements.
    pub replacements: Vec<ReplacementState>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Wait for these replacements.
    Wait(Vec<String>),
    /// Delete these candidates.
    Delete(Vec<String>),
    /// Nothing is left to do.
    Done,
    /// Take back the marks of these candidates, and remove the replacements that nobody waits for.
    RollBack {
        /// Candidates that stay.
        candidates: Vec<String>,
        /// Replacements that are not up yet.
        orphans: Vec<String>,
        /// Why.
        why: Abandoned,
    },
}

/// The next step of a command.
#[must_use]
pub fn next(command: &Progress, seen: &Seen, now: Timestamp) -> Step {
    let candidates = || command.candidates.iter().zip(&seen.candidates);
    let replacements = || command.replacements.iter().zip(&seen.replacements);
    let staying: Vec<String> = candidates()
        .filter(|(_, state)| **state != CandidateState::Going)
        .map(|(name, _)| name.clone())
        .collect();
    if staying.is_empty() {
        return Step::Done;
    }
    let waiting: Vec<String> = replacements()
        .filter(|(_, state)| **state == ReplacementState::Waiting)
        .map(|(name, _)| name.clone())
        .collect();
    let gone = replacements().find(|(_, state)| **state == ReplacementState::Gone);
    let unmarked = candidates().find(|(_, state)| **state == CandidateState::Unmarked);
    let late = Duration::try_from(now.duration_since(command.since)).unwrap_or_default()
        >= command.timeout;
    let why = if let Some((name, _)) = gone {
        Some(Abandoned::ReplacementDeleted { name: name.clone() })
    } else if command.replacements.len() < command.wanted {
        Some(Abandoned::Incomplete { made: command.replacements.len(), wanted: command.wanted })
    } else if let Some((name, _)) = unmarked {
        Some(Abandoned::Unmarked { name: name.clone() })
    } else if late && !waiting.is_empty() {
        Some(Abandoned::TimedOut)
    } else {
        None
    };
    match why {
        Some(why) => Step::RollBack { candidates: staying, orphans: waiting, why },
        None if waiting.is_empty() => Step::Delete(staying),
        None => Step::Wait(waiting),
    }
}

#[cfg(test)]
mod tests {
    use CandidateState::{Going, Marked, Unmarked};
    use ReplacementState::{Gone, Ready, Waiting};

    use super::*;

    fn step(
        candidates: &[CandidateState],
        replacements: &[ReplacementState],
        wanted: usize,
        minutes: i64,
    ) -> Step {
        let names = |kind: &str, n: usize| (0..n).map(|i| format!("{kind}{i}")).collect();
        let command = Progress {
            candidates: names("c", candidates.len()),
            replacements: names("r", replacements.len()),
            wanted,
            since: Timestamp::UNIX_EPOCH,
            timeout: timeout(1),
        };
        let seen = Seen { candidates: candidates.to_vec(), replacements: replacements.to_vec() };
        next(&command, &seen, Timestamp::from_second(60 * minutes).unwrap())
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn candidates_are_deleted_once_every_replacement_is_up() {
        assert_eq!(step(&[Marked, Marked], &[], 0, 0), Step::Delete(names(&["c0", "c1"])));
        assert_eq!(step(&[Marked], &[Ready, Waiting], 2, 0), Step::Wait(names(&["r1"])));
        assert_eq!(step(&[Marked], &[Ready, Ready], 2, 0), Step::Delete(names(&["c0"])));
    }

    #[test]
    fn a_command_that_was_cut_off_between_deletions_goes_on_with_the_rest() {
        assert_eq!(step(&[Going, Marked], &[Ready], 1, 0), Step::Delete(names(&["c1"])));
        assert_eq!(step(&[Going, Going], &[Ready], 1, 0), Step::Done);
        assert_eq!(step(&[Going], &[Gone], 1, 99), Step::Done);
    }

    #[test]
    fn a_command_that_cannot_go_on_is_rolled_back_whole() {
        let why = |step| match step {
            Step::RollBack { candidates, orphans, why } => (candidates, orphans, why),
            other => panic!("{other:?}"),
        };
        let lost = why(step(&[Marked], &[Waiting, Gone], 2, 0));
        let deleted = Abandoned::ReplacementDeleted { name: "r1".to_owned() };
        assert_eq!(lost, (names(&["c0"]), names(&["r0"]), deleted));
        let late = why(step(&[Marked], &[Waiting], 1, 10));
        assert_eq!(late, (names(&["c0"]), names(&["r0"]), Abandoned::TimedOut));
        let cut = why(step(&[Marked], &[Waiting], 2, 0));
        assert_eq!(cut.2, Abandoned::Incomplete { made: 1, wanted: 2 });
        let taken_back = why(step(&[Marked, Unmarked], &[Ready], 1, 0));
        assert_eq!(taken_back.2, Abandoned::Unmarked { name: "c1".to_owned() });
        assert_eq!(taken_back.1, Vec::<String>::new(), "one that is up serves pods by now");
    }

    #[test]
    fn a_replacement_that_came_up_late_is_used_all_the_same() {
        assert_eq!(step(&[Marked], &[Ready], 1, 99), Step::Delete(names(&["c0"])));
    }

    #[test]
    fn many_candidates_have_longer() {
        assert_eq!(timeout(3), Duration::from_secs(600));
        assert_eq!(timeout(10_000), Duration::from_secs(800));
        assert_eq!(timeout(1_000_000), Duration::from_secs(3600));
    }
}
