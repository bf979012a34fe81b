//! Every event that is published: its reason, its type, the objects that it is on, and its text.
//! There is no other way to make one.

use std::borrow::Cow;
use std::fmt::Display;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;

use super::Event;

/// One kind of event, as the reference page lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The name of the value of [`Report`].
    pub name: &'static str,
    /// CamelCase; `<condition type>` where it is the type of a condition.
    pub reason: &'static str,
    /// True for `Warning`, false for `Normal`.
    pub warning: bool,
    /// Kinds of the objects that it is published on.
    pub on: &'static [&'static str],
    /// The text; what is in braces differs from event to event.
    pub text: &'static str,
}

macro_rules! reports {
    ($($(#[$doc:meta])* $name:ident $({ $($field:ident),+ })? = $type:ident $reason:literal on [$($kind:literal),+] $text:literal;)*) => {
        /// What an event reports.
        #[derive(Clone, Copy)]
        #[allow(missing_docs, reason = "the texts say what the fields are")]
        pub enum Report<'a> {
            $($(#[$doc])* $name $({ $($field: &'a (dyn Display + Sync)),+ })?,)*
        }

        /// Every kind of event.
        pub const CATALOG: &[Row] = &[$(Row {
            name: stringify!($name),
            reason: $reason,
            warning: is_warning!($type),
            on: &[$($kind),+],
            text: $text,
        },)*];

        impl Report<'_> {
            fn row_reason(&self) -> &'static str {
                match self {
                    $(Self::$name $({ $($field: _),+ })? => $reason,)*
                }
            }

            fn warning(&self) -> bool {
                match self {
                    $(Self::$name $({ $($field: _),+ })? => is_warning!($type),)*
                }
            }

            #[allow(unused_variables, reason = "a field may only tell events apart")]
            fn text(&self) -> String {
                match self {
                    $(Self::$name $({ $($field),+ })? => format!($text),)*
                }
            }
        }
    };
}

macro_rules! is_warning {
    (Warning) => {
        true
    };
    (Normal) => {
        false
    };
}

reports! {
    // Provisioning.
    /// A pod is expected to run on a NodeClaim or a Node.
    Nominated { on } = Normal "Nominated" on ["Pod"] "Pod should schedule on: {on}";
    /// No place was found for a pod.
    FailedScheduling { why } = Warning "FailedScheduling" on ["Pod"] "Failed to schedule pod, {why}";
    /// No instance type is left of a NodePool's own requirements.
    NoCompatibleInstanceTypes { cause } = Warning "NoCompatibleInstanceTypes" on ["NodePool"] "NodePool requirements filtered out all compatible available instance types{cause}";

    // A NodeClaim's life.
    /// No offering could be launched; the NodeClaim is deleted.
    InsufficientCapacity { claim, error } = Warning "InsufficientCapacityError" on ["NodeClaim"] "NodeClaim {claim} event: {error}";
    /// The same on a pod that the NodeClaim was made for.
    NominatedClaimFailed { claim, error } = Warning "InsufficientCapacityError" on ["Pod"] "NodeClaim {claim} nominated for this pod failed to launch: {error}";
    /// The node class cannot be used; the NodeClaim is deleted.
    NodeClassNotReady { claim, error } = Warning "NodeClassNotReady" on ["NodeClaim"] "NodeClaim {claim} event: {error}";
    /// The Node came without the taint that keeps pods away until it is registered.
    UnregisteredTaintMissing = Warning "UnregisteredTaintMissing" on ["NodeClaim"] "Missing karpenter.sh/unregistered taint which prevents registration related race conditions on Karpenter-managed nodes";
    /// The Node is smaller than the NodeClaim promised.
    FailedConsistencyCheck { issue } = Warning "FailedConsistencyCheck" on ["NodeClaim"] "{issue}";

    // Drains.
    /// Pods that are left at the deadline are deleted.
    TerminationGracePeriodExpiring { deadline } = Warning "TerminationGracePeriodExpiring" on ["Node", "NodeClaim"] "All pods will be deleted by {deadline}";
    /// Pods are left on the node.
    Draining { count } = Warning "FailedDraining" on ["Node"] "Failed to drain node, {count} pods are waiting to be evicted";
    /// A pod may not be evicted.
    EvictionRefused { why, pod } = Warning "FailedDraining" on ["Node"] "Failed to drain node, {why} (Pod={pod})";
    /// Volumes are still attached.
    AwaitingVolumeDetachment { volumes } = Normal "AwaitingVolumeDetachment" on ["Node"] "Awaiting deletion of bound volumeattachments ({volumes})";
    /// A pod was evicted.
    Evicted { reason } = Normal "Evicted" on ["Pod"] "Evicted pod: {reason}";
    /// A pod is deleted since its node's deadline is near.
    Disrupted { deadline, seconds, grace } = Normal "Disrupted" on ["Pod"] "Deleting the pod, its node has to be drained by {deadline}: the pod is granted {seconds} seconds{grace}, and neither its PodDisruptionBudget nor its do-not-disrupt annotation is respected";

    // Disruption.
    /// The annotation of a pod cannot be read.
    InvalidDoNotDisrupt { problem } = Warning "InvalidDoNotDisruptAnnotation" on ["Pod"] "Invalid karpenter.sh/do-not-disrupt annotation: {problem}, ignoring annotation";
    /// The annotation protects the pod for a time.
    DoNotDisruptUntil { until } = Normal "DoNotDisruptUntil" on ["Pod"] "The karpenter.sh/do-not-disrupt grace period will elapse at {until:.0}";
    /// The time is over.
    DoNotDisruptElapsed = Normal "DoNotDisruptGracePeriodElapsed" on ["Pod"] "The karpenter.sh/do-not-disrupt grace period has elapsed, pod is now disruptable";
    /// Too many nodes are unhealthy for the nodes to be the cause.
    NodeRepairBlocked { why } = Warning "NodeRepairBlocked" on ["Node", "NodeClaim", "NodePool"] "{why}";
    /// A node may not be disrupted.
    DisruptionBlocked { why } = Normal "DisruptionBlocked" on ["Node", "NodeClaim"] "{why}";
    /// A NodePool's budgets let no node go.
    NoAllowedDisruptions { reason } = Normal "DisruptionBlocked" on ["NodePool"] "No allowed disruptions for disruption reason {reason} due to blocking budget";
    /// A NodePool's budgets cannot be read.
    InvalidBudgets { error } = Warning "DisruptionBlocked" on ["NodePool"] "Invalid disruption budgets, no node is disrupted: {error}";
    /// Nothing would be saved, or consolidation is not about the node.
    Unconsolidatable { why } = Normal "Unconsolidatable" on ["Node", "NodeClaim"] "{why}";
    /// A cheaper replacement was found for a node.
    ConsolidationCandidate { command, savings } = Normal "ConsolidationCandidate" on ["Node", "NodeClaim"] "Consolidation candidate: {command} (savings: ${savings})";
    /// The command for a node no longer holds.
    ConsolidationRejected { command, reason, savings } = Normal "ConsolidationRejected" on ["Node", "NodeClaim"] "Consolidation rejected: {command}, reason: {reason} (savings: ${savings})";
    /// The policy Balanced agrees to a command.
    ConsolidationApproved { comparison } = Normal "ConsolidationApproved" on ["Node", "NodeClaim", "NodePool"] "{comparison}";
    /// A replacement is launched.
    DisruptionLaunching { reason } = Normal "DisruptionLaunching" on ["NodeClaim"] "Launching NodeClaim: {reason}";
    /// A replacement is waited for.
    DisruptionWaitingReadiness = Normal "DisruptionWaitingReadiness" on ["NodeClaim"] "Waiting on readiness to continue disruption";
    /// A node is deleted.
    DisruptionTerminating { kind, reason } = Normal "DisruptionTerminating" on ["Node", "NodeClaim"] "Disrupting {kind}: {reason}";

    /// An instance that was rebooted runs again.
    RebootObserved { since } = Normal "RebootObserved" on ["NodeClaim"] "New boot observed (bootID changed); awaiting node readiness";
    /// A reboot did not help, or did not come about.
    RebootFailed { since, why } = Warning "RebootFailed" on ["NodeClaim"] "{why}";

    // Conditions and finalizers of any object.
    /// A condition changed.
    Transitioned { kind, old, new, reason, message } = Normal "<condition type>" on ["NodeClaim", "NodePool", "Node", "EC2NodeClass"] "Status condition transitioned, Type: {kind}, Status: {old} -> {new}, Reason: {reason}{message}";
    /// A finalizer was removed.
    Finalized { finalizer } = Normal "Finalized" on ["NodeClaim", "NodePool", "Node", "EC2NodeClass"] "Finalized {finalizer}";
    /// An object has a field of another type than its kind has.
    Unreadable { problem } = Warning "Unreadable" on ["any"] "Object cannot be read and is left out, {problem}";

    // AWS.
    /// A node class waits for its last NodeClaims.
    WaitingOnNodeClaimTermination { claims } = Normal "WaitingOnNodeClaimTermination" on ["EC2NodeClass"] "Waiting on NodeClaim termination for {claims}";
    /// The node class is gone or going.
    NodeClassMissing = Warning "" on ["NodePool", "NodeClaim"] "Failed resolving NodeClass";
    /// The account lacks the role that spot instances need.
    SpotRoleMissing { code } = Warning "" on ["NodeClaim"] "Attempted to launch a spot instance but failed due to {code}";
    /// EC2 takes a spot instance back.
    SpotInterrupted = Warning "SpotInterrupted" on ["Node", "NodeClaim"] "Spot interruption warning was triggered";
    /// EC2 may soon take a spot instance back.
    SpotRebalanceRecommendation = Normal "SpotRebalanceRecommendation" on ["Node", "NodeClaim"] "Spot rebalance recommendation was triggered";
    /// EC2 takes an instance of a reservation back.
    CapacityReservationInterrupted = Warning "CapacityReservationInstanceInterrupted" on ["Node", "NodeClaim"] "Capacity Reservation interruption warning was triggered";
    /// An instance stops.
    InstanceStopping = Warning "InstanceStopping" on ["Node", "NodeClaim"] "Instance is stopping";
    /// An instance terminates.
    InstanceTerminating = Warning "InstanceTerminating" on ["Node", "NodeClaim"] "Instance is terminating";
    /// A status check fails, or EC2 plans maintenance.
    InstanceUnhealthy = Warning "InstanceUnhealthy" on ["Node", "NodeClaim"] "An unhealthy warning was triggered for the instance";
    /// The NodeClaim is deleted for it.
    TerminatingOnInterruption { kind } = Warning "TerminatingOnInterruption" on ["Node", "NodeClaim"] "Interruption triggered termination for the {kind}";
    /// A zone is to be left alone.
    ZonalShiftActive { zone } = Warning "ZonalShiftActive" on ["NodePool"] "A zonal shift is active, not launching in zone {zone}";
    /// It is used again.
    ZonalShiftCleared { zone } = Normal "ZonalShiftCleared" on ["NodePool"] "A zonal shift is over, launching in zone {zone} again";

    // The process.
    /// A replica became leader, or stopped leading.
    LeaderElection { identity, what } = Normal "LeaderElection" on ["Lease"] "{identity} {what}";
}

impl Report<'_> {
    /// The event on an object. Equal ones within their window are left out.
    #[must_use]
    pub fn on(&self, object: ObjectReference) -> Event {
        let mut event = Event::new(object, self.warning(), self.reason(), self.text());
        match self {
            // Each change is reported: none is the same as another.
            Self::Transitioned { .. } | Self::Finalized { .. } => {
                event.dedupe_for = Duration::ZERO;
                event = event.by_message();
            }
            // The windows and the limit are Karpenter's, for each event.
            Self::Nominated { .. } | Self::NominatedClaimFailed { .. } => event = event.limited(),
            Self::FailedScheduling { .. } => event.dedupe_for = Duration::from_secs(300),
            Self::NoCompatibleInstanceTypes { .. } => event.dedupe_for = Duration::from_secs(60),
            Self::NoAllowedDisruptions { reason } => {
                event = event.by(reason);
                event.dedupe_for = Duration::from_secs(60);
            }
            Self::InvalidBudgets { .. } => {
                event = event.by(&"invalid");
                event.dedupe_for = Duration::from_secs(900);
            }
            Self::NodeRepairBlocked { .. } | Self::Unconsolidatable { .. } => {
                event.dedupe_for = Duration::from_secs(900);
            }
            Self::ConsolidationCandidate { command, .. } => event = event.by(command),
            Self::ConsolidationRejected { command, reason, .. } => {
                event = event.by(command).by(reason);
            }
            Self::DisruptionLaunching { reason } | Self::DisruptionTerminating { reason, .. } => {
                event = event.by(reason);
            }
            // Once per reboot, and a reboot takes less than the window.
            Self::RebootObserved { since } | Self::RebootFailed { since, .. } => {
                event = event.by(since);
                event.dedupe_for = Duration::from_secs(1800);
            }
            Self::FailedConsistencyCheck { .. }
            | Self::EvictionRefused { .. }
            | Self::InvalidDoNotDisrupt { .. }
            | Self::DoNotDisruptUntil { .. }
            | Self::Unreadable { .. }
            | Self::ZonalShiftActive { .. }
            | Self::ZonalShiftCleared { .. }
            | Self::LeaderElection { .. } => event = event.by_message(),
            _ => {}
        }
        event
    }

    fn reason(&self) -> Cow<'static, str> {
        match self {
            Self::Transitioned { kind, .. } => Cow::Owned(kind.to_string()),
            other => Cow::Borrowed(other.row_reason()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows of the reference page's tables.
    fn promised() -> Vec<String> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/src/reference/events.md");
        let text = std::fs::read_to_string(path).unwrap();
        let rows = text.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| reason "));
        rows.map(str::to_owned).collect()
    }

    #[test]
    fn the_reference_page_lists_every_event_with_reason_type_objects_and_text() {
        let rows: Vec<String> = CATALOG
            .iter()
            .map(|row| {
                let reason = match row.reason {
                    "" => "(empty)".to_owned(),
                    reason => format!("`{reason}`"),
                };
                let kind = if row.warning { "Warning" } else { "Normal" };
                format!("| {reason} | {kind} | {} | `{}` |", row.on.join(", "), row.text)
            })
            .collect();
        assert_eq!(promised(), rows);
    }

    #[test]
    fn an_event_has_the_reason_and_the_text_of_its_row() {
        let report = Report::Transitioned {
            kind: &"Ready",
            old: &"False",
            new: &"True",
            reason: &"Ready",
            message: &"",
        };
        let event = report.on(ObjectReference::default());
        assert_eq!((&*event.reason, event.warning), ("Ready", false));
        let text =
            "Status condition transitioned, Type: Ready, Status: False -> True, Reason: Ready";
        assert_eq!((event.message.as_str(), event.dedupe_for), (text, Duration::ZERO));
        let until = jiff::Timestamp::from_millisecond(1_500).unwrap();
        let event = Report::DoNotDisruptUntil { until: &until }.on(ObjectReference::default());
        assert!(event.message.ends_with("elapse at 1970-01-01T00:00:01Z"), "{}", event.message);
    }
}
