//! Status conditions: their names, and reading and writing them in a list.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// All conditions that make the object usable hold.
pub const READY: &str = "Ready";
/// The instance was launched.
pub const LAUNCHED: &str = "Launched";
/// The Node joined and was matched.
pub const REGISTERED: &str = "Registered";
/// The Node is ready, with its resources and without startup taints.
pub const INITIALIZED: &str = "Initialized";
/// No pod came or went for `consolidateAfter`.
pub const CONSOLIDATABLE: &str = "Consolidatable";
/// The node is not what its pool and class say now; the reason says in what.
pub const DRIFTED: &str = "Drifted";
/// The pods were moved away.
pub const DRAINED: &str = "Drained";
/// The volumes of drained pods are detached.
pub const VOLUMES_DETACHED: &str = "VolumesDetached";
/// The instance is going.
pub const INSTANCE_TERMINATING: &str = "InstanceTerminating";
/// Node and NodeClaim agree.
pub const CONSISTENT_STATE_FOUND: &str = "ConsistentStateFound";
/// Why the node is being disrupted.
pub const DISRUPTION_REASON: &str = "DisruptionReason";
/// The instance is being rebooted to repair its node.
pub const REBOOTING: &str = "Rebooting";
/// What schemas cannot check was found right.
pub const VALIDATION_SUCCEEDED: &str = "ValidationSucceeded";
/// The pool's class can be used.
pub const NODE_CLASS_READY: &str = "NodeClassReady";
/// Nodes of the pool register.
pub const NODE_REGISTRATION_HEALTHY: &str = "NodeRegistrationHealthy";
/// Subnets were found.
pub const SUBNETS_READY: &str = "SubnetsReady";
/// Security groups were found.
pub const SECURITY_GROUPS_READY: &str = "SecurityGroupsReady";
/// Images were found.
pub const AMIS_READY: &str = "AMIsReady";
/// The instance profile is there.
pub const INSTANCE_PROFILE_READY: &str = "InstanceProfileReady";
/// Capacity reservations were resolved.
pub const CAPACITY_RESERVATIONS_READY: &str = "CapacityReservationsReady";
/// The placement group was resolved.
pub const PLACEMENT_GROUP_READY: &str = "PlacementGroupReady";

/// Reason and message of a condition that was not evaluated yet.
pub const AWAITING: &str = "AwaitingReconciliation";
/// Its message.
pub const AWAITING_MESSAGE: &str = "object is awaiting reconciliation";

/// Status of a condition that holds.
pub const TRUE: &str = "True";
/// Status of a condition that does not hold.
pub const FALSE: &str = "False";
/// Status of a condition of which it is not known.
pub const UNKNOWN: &str = "Unknown";

/// Conditions that make up `Ready` of a NodeClaim.
pub const NODECLAIM_READY: &[&str] = &[LAUNCHED, REGISTERED, INITIALIZED];
/// Conditions that make up `Ready` of a NodePool.
pub const NODEPOOL_READY: &[&str] = &[VALIDATION_SUCCEEDED, NODE_CLASS_READY];

/// The condition of a type.
#[must_use]
pub fn get<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == kind)
}

/// True when the condition of that type is `True`.
#[must_use]
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    get(conditions, kind).is_some_and(|c| c.status == TRUE)
}

/// True when the condition of that type is `False`.
#[must_use]
pub fn is_false(conditions: &[Condition], kind: &str) -> bool {
    get(conditions, kind).is_some_and(|c| c.status == FALSE)
}

/// Sets a condition; the transition time moves only when the status changes.
///
/// Returns whether anything but the observed generation changed.
pub fn set(
    conditions: &mut Vec<Condition>,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> bool {
    let mut transition = Time(now);
    if let Some(existing) = conditions.iter_mut().find(|c| c.type_ == kind) {
        if existing.status == status && existing.reason == reason && existing.message == message {
            existing.observed_generation = generation;
            return false;
        }
        // By the Kubernetes API conventions: only a change of the status is a transition.
        if existing.status == status {
            transition = existing.last_transition_time.clone();
        }
        existing.status = status.to_owned();
        existing.reason = reason.to_owned();
        existing.message = message.to_owned();
        existing.observed_generation = generation;
        existing.last_transition_time = transition;
        sort(conditions);
        return true;
    }
    conditions.push(Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: generation,
        last_transition_time: transition,
    });
    sort(conditions);
    true
}

/// Sets a condition to `True` with its own name as the reason, as Karpenter writes it.
pub fn set_true(
    conditions: &mut Vec<Condition>,
    kind: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> bool {
    set(conditions, kind, TRUE, kind, "", generation, now)
}

/// Removes the condition of a type, and returns whether it was there.
pub fn clear(conditions: &mut Vec<Condition>, kind: &str) -> bool {
    let before = conditions.len();
    conditions.retain(|c| c.type_ != kind);
    conditions.len() != before
}

/// Adds what is missing of the dependents and of `Ready` as Unknown, since the object's creation.
pub fn init(
    conditions: &mut Vec<Condition>,
    dependents: &[&str],
    generation: Option<i64>,
    created: Timestamp,
) {
    for kind in dependents.iter().copied().chain([READY]) {
        if get(conditions, kind).is_none() {
            set(conditions, kind, UNKNOWN, AWAITING, AWAITING_MESSAGE, generation, created);
        }
    }
}

/// Recomputes `Ready`: False if a dependent is, else Unknown if one is or is outdated, else True.
///
/// The message names the latest transition first. Times that were read back have whole seconds, so
/// that of equal ones the order in which conditions are stored decides.
pub fn set_ready(
    conditions: &mut Vec<Condition>,
    dependents: &[&str],
    generation: Option<i64>,
    now: Timestamp,
) -> bool {
    let mut unhealthy: Vec<((Timestamp, usize), &str, String)> = Vec::new();
    let mut any_false = false;
    for kind in dependents {
        match conditions.iter().enumerate().find(|(_, c)| c.type_ == *kind) {
            Some((_, c)) if c.status == TRUE && c.observed_generation == generation => {}
            Some((place, c)) => {
                any_false |= c.status == FALSE && c.observed_generation == generation;
                let at = c.last_transition_time.0;
                unhealthy.push(((at, place), kind, c.status.clone()));
            }
            // A condition that is absent comes last in the message: it never changed.
            None => unhealthy.push(((Timestamp::MIN, 0), kind, UNKNOWN.to_owned())),
        }
    }
    if unhealthy.is_empty() {
        return set_true(conditions, READY, generation, now);
    }
    unhealthy.sort_by_key(|(at, _, _)| std::cmp::Reverse(*at));
    let message =
        unhealthy.iter().map(|(_, k, s)| format!("{k}={s}")).collect::<Vec<_>>().join(", ");
    let (status, reason) =
        if any_false { (FALSE, "UnhealthyDependents") } else { (UNKNOWN, "ReconcilingDependents") };
    set(conditions, READY, status, reason, &message, generation, now)
}

/// Oldest transition first and `Ready` last, the order in which Karpenter stores them.
pub fn sort(conditions: &mut [Condition]) {
    conditions.sort_by(|a, b| {
        (a.type_ == READY)
            .cmp(&(b.type_ == READY))
            .then_with(|| a.last_transition_time.0.cmp(&b.last_transition_time.0))
    });
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What the reference page lists in the cells of its tables that name conditions.
    fn documented() -> BTreeSet<String> {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/reference/conditions.md");
        let text = std::fs::read_to_string(page).unwrap();
        let (mut column, mut found) = (None, BTreeSet::new());
        for line in text.lines() {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            match column {
                _ if cells.len() < 3 => column = None,
                None => column = cells.iter().position(|c| *c == "Condition").or(Some(0)),
                Some(at) => {
                    let quoted = cells[at].split('`').skip(1).step_by(2);
                    found.extend(quoted.map(str::to_owned));
                }
            }
        }
        found
    }

    #[test]
    fn the_reference_page_lists_every_condition() {
        // The constants before the first reason are the types.
        let source = include_str!("conditions.rs").split("pub const AWAITING").next().unwrap();
        let constants = source.lines().filter(|l| l.starts_with("pub const "));
        let mut known: BTreeSet<String> =
            constants.filter_map(|l| l.split('"').nth(1)).map(str::to_owned).collect();
        assert!(known.len() > 20, "{known:?}");
        // Those of CapacityBuffers are the cluster autoscalers' common API.
        known.extend(["ReadyForProvisioning", "Provisioning"].map(str::to_owned));
        assert_eq!(documented(), known);
    }

    #[test]
    fn the_transition_time_moves_with_the_status_only() {
        let mut list = Vec::new();
        let later = Timestamp::UNIX_EPOCH + std::time::Duration::from_secs(5);
        set(&mut list, LAUNCHED, UNKNOWN, "a", "", None, Timestamp::UNIX_EPOCH);
        assert!(set(&mut list, LAUNCHED, UNKNOWN, "b", "", None, later));
        assert_eq!(list[0].last_transition_time.0, Timestamp::UNIX_EPOCH);
        assert!(set_true(&mut list, LAUNCHED, None, later));
        assert_eq!(list[0].last_transition_time.0, later);
        assert!(!set_true(&mut list, LAUNCHED, None, later));
    }

    #[test]
    fn ready_follows_its_dependents() {
        let mut list = Vec::new();
        let now = Timestamp::UNIX_EPOCH;
        set_ready(&mut list, NODECLAIM_READY, None, now);
        assert_eq!(get(&list, READY).unwrap().status, UNKNOWN);
        for kind in NODECLAIM_READY {
            set_true(&mut list, kind, None, now);
        }
        set_ready(&mut list, NODECLAIM_READY, None, now);
        assert!(is_true(&list, READY));
        set(&mut list, LAUNCHED, FALSE, "x", "", None, now);
        set_ready(&mut list, NODECLAIM_READY, None, now);
        assert!(is_false(&list, READY));
    }

    #[test]
    fn ready_names_the_latest_transition_first_also_once_times_are_read_back() {
        let mut list = Vec::new();
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        set(&mut list, SUBNETS_READY, FALSE, "a", "", None, at(1100));
        set(&mut list, SECURITY_GROUPS_READY, FALSE, "b", "", None, at(1200));
        let dependents = [SUBNETS_READY, SECURITY_GROUPS_READY];
        let latest_first = "SecurityGroupsReady=False, SubnetsReady=False";
        set_ready(&mut list, &dependents, None, at(1300));
        assert_eq!(get(&list, READY).unwrap().message, latest_first);
        for condition in &mut list {
            condition.last_transition_time = Time(at(1000));
        }
        assert!(!set_ready(&mut list, &dependents, None, at(2000)));
        assert_eq!(get(&list, READY).unwrap().message, latest_first);
    }
}
