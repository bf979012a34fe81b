//! What comes next for a node that is to be rebooted, by what is seen of it. Pure.
//!
//! All that decides is on the objects, so that a controller that restarts goes on where the last one
//! stopped. The one exception is since when the cloud has been asked: a restart begins that time again.

use std::time::Duration;

use jiff::Timestamp;

/// A drain takes at least this long, unless it is skipped: pods may be bound a moment before the
/// taint.
const SHORTEST_DRAIN: Duration = Duration::from_secs(5);
/// The cloud is asked for this long, and a node without a Node is waited for before it is asked.
const ASKING: Duration = Duration::from_secs(5 * 60);
/// A node has this long to come back.
const RECOVERY: Duration = Duration::from_secs(20 * 60);
/// Time between looks at what is waited for.
pub(super) const POLL: Duration = Duration::from_secs(15);

/// How a reboot ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Succeeded,
    ProviderError,
    RecoveryTimeout,
    InvalidRequest,
}

impl Outcome {
    /// The `result` of metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::ProviderError => "provider_error",
            Self::RecoveryTimeout => "recovery_timeout",
            Self::InvalidRequest => "invalid_request",
        }
    }

    pub(super) fn message(self) -> &'static str {
        match self {
            Self::Succeeded => "node rebooted and rejoined the cluster",
            Self::ProviderError => "reboot was not issued within the issuance timeout",
            Self::RecoveryTimeout => "node did not recover within the observation window",
            Self::InvalidRequest => "invalid reboot request",
        }
    }
}

/// How long the drain may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    /// Until the node is empty.
    None,
    Of(Duration),
    /// The request cannot be read.
    Unreadable,
}

/// What is seen of a node and its claim.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'a> {
    /// When the reboot was requested.
    pub requested: Timestamp,
    /// When the cloud accepted it, once it has.
    pub issued: Option<Timestamp>,
    /// Since when the cloud has been asked.
    pub asked: Option<Timestamp>,
    pub bound: Bound,
    /// Pods that the drain still waits for.
    pub pods: usize,
    /// The boot id that was written down before the reboot.
    pub boot_id_before: Option<&'a str>,
    /// The Node, while there is one.
    pub node: Option<SeenNode<'a>>,
}

/// What is seen of the Node.
#[derive(Clone, Copy, Debug)]
pub(super) struct SeenNode<'a> {
    pub boot_id: &'a str,
    pub ready: bool,
    /// New pods are kept away.
    pub tainted: bool,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Keep new pods away.
    Taint,
    /// Evict pods, and look again.
    Drain(Duration),
    /// Write the boot id down.
    Remember,
    /// Ask the cloud; a refusal is tried again.
    Ask,
    /// The node is another boot already: write down that the reboot was issued.
    Issued,
    /// The new boot is there: let pods in again.
    Observed,
    Wait(Duration),
    End(Outcome),
}

/// The next step.
pub(super) fn next(seen: &Seen<'_>, now: Timestamp) -> Step {
    let Some(node) = seen.node else { return without_node(seen, now) };
    let booted = seen.boot_id_before.is_some_and(|before| before != node.boot_id);
    if let Some(issued) = seen.issued {
        let left = RECOVERY.saturating_sub(since(issued, now));
        return match () {
            // The taint goes first: a node that is ready but tainted takes no pods.
            () if booted && node.tainted => Step::Observed,
            () if booted && node.ready => Step::End(Outcome::Succeeded),
            () if left.is_zero() => Step::End(Outcome::RecoveryTimeout),
            () => Step::Wait(left.min(POLL)),
        };
    }
    if seen.bound == Bound::Unreadable {
        return Step::End(Outcome::InvalidRequest);
    }
    if seen.asked.is_some_and(|first| since(first, now) >= ASKING) {
        return Step::End(Outcome::ProviderError);
    }
    match seen.boot_id_before {
        // Before anything else, since each pod that is bound meanwhile has to be evicted too.
        _ if !node.tainted => Step::Taint,
        // The answer of the call was lost, or somebody else rebooted the instance: either way it is
        // done.
        Some(_) if booted => Step::Issued,
        Some(_) => Step::Ask,
        // The boot id is written down after the drain and before the call: without it a restart
        // could not know whether the reboot happened.
        None => drain_left(seen, now).map_or(Step::Remember, Step::Drain),
    }
}

/// A Node that is gone may come back until the time of its phase is up.
fn without_node(seen: &Seen<'_>, now: Timestamp) -> Step {
    let (begun, limit, late) = match (seen.issued, seen.asked) {
        (Some(issued), _) => (issued, RECOVERY, Outcome::RecoveryTimeout),
        (None, asked) => (asked.unwrap_or(seen.requested), ASKING, Outcome::ProviderError),
    };
    if since(begun, now) >= limit { Step::End(late) } else { Step::Wait(POLL) }
}

/// How long the drain goes on before the next look; nothing when it is over. Pods that are left at
/// its end go through the reboot with the node.
fn drain_left(seen: &Seen<'_>, now: Timestamp) -> Option<Duration> {
    let limit = match seen.bound {
        Bound::Of(Duration::ZERO) | Bound::Unreadable => return None,
        _ if seen.pods == 0 => SHORTEST_DRAIN,
        Bound::None => return Some(POLL),
        Bound::Of(limit) => limit.max(SHORTEST_DRAIN),
    };
    let left = limit.saturating_sub(since(seen.requested, now));
    (!left.is_zero()).then_some(left.min(POLL))
}

fn since(start: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(start)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    const UP: SeenNode<'static> = SeenNode { boot_id: "a", ready: true, tainted: true };

    fn seen() -> Seen<'static> {
        Seen {
            requested: at(0),
            issued: None,
            asked: None,
            bound: Bound::Of(Duration::from_secs(60)),
            pods: 0,
            boot_id_before: None,
            node: Some(UP),
        }
    }

    #[test]
    fn a_reboot_goes_through_its_steps_in_order() {
        let mut now = Seen { pods: 2, node: Some(SeenNode { tainted: false, ..UP }), ..seen() };
        assert_eq!(next(&now, at(0)), Step::Taint);
        now.node = Some(UP);
        assert_eq!(next(&now, at(1)), Step::Drain(POLL));
        now.pods = 0;
        assert_eq!(next(&now, at(4)), Step::Drain(Duration::from_secs(1)), "late bindings");
        assert_eq!(next(&now, at(20)), Step::Remember);
        now.boot_id_before = Some("a");
        assert_eq!(next(&now, at(21)), Step::Ask);
        now.issued = Some(at(22));
        assert_eq!(next(&now, at(23)), Step::Wait(POLL), "still the old boot");
        now.node = Some(SeenNode { boot_id: "b", ready: false, tainted: true });
        assert_eq!(next(&now, at(60)), Step::Observed);
        now.node = Some(SeenNode { boot_id: "b", ready: false, tainted: false });
        assert_eq!(next(&now, at(61)), Step::Wait(POLL));
        now.node = Some(SeenNode { boot_id: "b", ready: true, tainted: false });
        assert_eq!(next(&now, at(70)), Step::End(Outcome::Succeeded));
    }

    #[test]
    fn a_drain_ends_at_its_bound_and_leaves_the_rest_where_it_is() {
        let busy = |bound| Seen { pods: 1, bound, ..seen() };
        for (bound, seconds, want) in [
            (Bound::Of(Duration::ZERO), 0, Step::Remember),
            (Bound::Of(Duration::from_secs(1)), 4, Step::Drain(Duration::from_secs(1))),
            (Bound::Of(Duration::from_secs(1)), 5, Step::Remember),
            (Bound::Of(Duration::from_secs(60)), 59, Step::Drain(Duration::from_secs(1))),
            (Bound::Of(Duration::from_secs(60)), 60, Step::Remember),
            (Bound::None, 100_000, Step::Drain(POLL)),
            (Bound::Unreadable, 0, Step::End(Outcome::InvalidRequest)),
        ] {
            assert_eq!(next(&busy(bound), at(seconds)), want, "{bound:?} after {seconds} s");
        }
    }

    #[test]
    fn a_reboot_that_happened_while_nobody_looked_is_not_asked_for_again() {
        let missed = Seen { boot_id_before: Some("z"), asked: Some(at(10)), ..seen() };
        assert_eq!(next(&missed, at(20)), Step::Issued);
    }

    #[test]
    fn what_does_not_come_back_and_what_is_refused_ends() {
        let asked = Seen { boot_id_before: Some("a"), asked: Some(at(10)), ..seen() };
        assert_eq!(next(&asked, at(309)), Step::Ask);
        assert_eq!(next(&asked, at(310)), Step::End(Outcome::ProviderError));
        let issued = Seen { issued: Some(at(10)), boot_id_before: Some("a"), ..seen() };
        assert_eq!(next(&issued, at(1209)), Step::Wait(Duration::from_secs(1)));
        assert_eq!(next(&issued, at(1210)), Step::End(Outcome::RecoveryTimeout));
    }

    #[test]
    fn a_node_that_is_gone_is_waited_for_until_the_phase_ends() {
        let gone = Seen { node: None, ..seen() };
        assert_eq!(next(&gone, at(299)), Step::Wait(POLL));
        assert_eq!(next(&gone, at(300)), Step::End(Outcome::ProviderError));
        let issued = Seen { issued: Some(at(100)), ..gone };
        assert_eq!(next(&issued, at(1299)), Step::Wait(POLL));
        assert_eq!(next(&issued, at(1300)), Step::End(Outcome::RecoveryTimeout));
    }
}
