//! Which conditions of Nodes are repaired, and how: the provider's policies, checked and compiled.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use regex::Regex;

/// The highest priority of a policy.
const MOST_PRIORITY: u8 = 100;
/// A node's place in the order rises by one rank for each of these that it has been waiting.
const AGING: Duration = Duration::from_secs(1800);

/// What is done about an unhealthy node. The greater disrupts more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// The instance is rebooted; the node stays.
    Reboot,
    /// The node is replaced.
    Replace,
}

/// A condition of a Node that is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepairPolicy {
    /// Type of the Node's condition.
    pub condition: &'static str,
    /// The status that is bad.
    pub status: &'static str,
    /// A regular expression that the condition's reason has to match. The one policy without an
    /// expression is the fallback: it serves every condition and status that some policy names and
    /// whose reason no expression matches.
    pub reason: &'static str,
    /// How long the condition must last.
    pub toleration: Duration,
    /// How long the drain may take, blocked pods or not; none leaves it to the NodeClaim.
    pub drain: Option<Duration>,
    /// 0 to 100: which unhealthy nodes go first.
    pub priority: u8,
    /// What is done.
    pub action: Action,
}

/// A set of policies that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The condition's type is missing.
    #[error("repair policy {0}: expected a condition type, got none")]
    NoCondition(usize),
    /// The status is none that a condition may have.
    #[error("repair policy for condition {0}: expected status True, False or Unknown, got {1:?}")]
    Status(&'static str, &'static str),
    /// The expression cannot be compiled.
    #[error("repair policy for condition {0}: reason pattern {1:?} is no regular expression, {2}")]
    Reason(&'static str, &'static str, String),
    /// The priority is out of range.
    #[error("repair policy for condition {0}: expected a priority from 0 to 100, got {1}")]
    Priority(&'static str, u8),
    /// There is not exactly one fallback.
    #[error("repair policies: expected one policy without a reason pattern, got {0}")]
    Fallbacks(usize),
    /// The fallback does not replace.
    #[error("repair policies: the policy without a reason pattern must replace the node")]
    FallbackAction,
}

/// A provider's policies.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    all: Vec<(RepairPolicy, Option<Regex>)>,
}

/// A policy whose condition a node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// The policy; its condition and status are the node's, also where it is the fallback.
    pub policy: RepairPolicy,
    /// The reason of the node's condition.
    pub reason: String,
    /// How many priorities of the policies are lower.
    rank: usize,
    /// Since when the condition holds; none when nobody knows.
    since: Option<Timestamp>,
}

/// What is done about a node, made of all policies that are due.
#[derive(Clone, Debug, PartialEq)]
pub struct Due {
    /// The policy that decides, its drain bound the shortest of all that are due.
    pub policy: RepairPolicy,
    /// The reason of the node's condition.
    pub reason: String,
    /// When that policy was due.
    pub since: Timestamp,
    /// How urgent the repair is: the greatest of the ranks of the policies that are due, each raised
    /// by the time that it has been due.
    pub score: f64,
}

impl Policies {
    /// No policies: nothing is repaired.
    #[must_use]
    pub const fn none() -> Self {
        Self { all: Vec::new() }
    }

    /// Checks and compiles policies.
    ///
    /// # Errors
    /// With the first policy that cannot be used, or when there is not exactly one fallback.
    pub fn new(policies: &[RepairPolicy]) -> Result<Self, PolicyError> {
        let mut all = Vec::new();
        for (at, policy) in policies.iter().enumerate() {
            all.push((*policy, compiled(at, policy)?));
        }
        let fallbacks: Vec<_> = all.iter().filter(|(_, reason)| reason.is_none()).collect();
        match fallbacks.as_slice() {
            [(only, _)] if only.action == Action::Replace => Ok(Self { all }),
            [_] => Err(PolicyError::FallbackAction),
            several => Err(PolicyError::Fallbacks(several.len())),
        }
    }

    /// True when nothing is repaired.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The condition and status of a policy that knows the condition, whatever its reason.
    fn pair(&self, condition: &NodeCondition) -> Option<(&'static str, &'static str)> {
        let same =
            |p: &RepairPolicy| p.condition == condition.type_ && p.status == condition.status;
        self.all.iter().map(|(p, _)| p).find(|p| same(p)).map(|p| (p.condition, p.status))
    }

    /// The condition of that name, if a policy is about it.
    #[must_use]
    pub fn condition(&self, name: &str) -> Option<&'static str> {
        self.all.iter().map(|(p, _)| p.condition).find(|known| *known == name)
    }

    /// Whether the node has a condition that the policies know, due or not.
    #[must_use]
    pub fn knows(&self, node: &Node) -> bool {
        conditions(node).any(|c| self.pair(c).is_some())
    }

    /// Policies whose condition a node has. A condition cannot be older than its Node, and begins
    /// after `not_before`, the end of the node's last reboot.
    #[must_use]
    pub fn matching(&self, node: &Node, not_before: Option<Timestamp>) -> Vec<Match> {
        let created = node.metadata.creation_timestamp.as_ref().map(|t| t.0);
        let mut found = Vec::new();
        for condition in conditions(node) {
            let Some((kind, status)) = self.pair(condition) else { continue };
            let reason = condition.reason.as_deref().unwrap_or_default();
            let since = condition.last_transition_time.as_ref().map(|t| t.0);
            let since = since.max(created).max(not_before);
            let mut add = |policy: &RepairPolicy| {
                found.push(Match {
                    policy: RepairPolicy { condition: kind, status, ..*policy },
                    reason: reason.to_owned(),
                    rank: self.rank(policy.priority),
                    since,
                });
            };
            let mut special = false;
            for (policy, pattern) in &self.all {
                let same = policy.condition == kind && policy.status == status;
                if same && pattern.as_ref().is_some_and(|p| p.is_match(reason)) {
                    add(policy);
                    special = true;
                }
            }
            if !special && let Some((fallback, _)) = self.all.iter().find(|(_, p)| p.is_none()) {
                add(fallback);
            }
        }
        found
    }

    /// How many different priorities are lower.
    fn rank(&self, priority: u8) -> usize {
        let all: BTreeSet<u8> = self.all.iter().map(|(p, _)| p.priority).collect();
        all.range(..priority).count()
    }
}

impl Match {
    /// When the node is repaired for it; none when nobody knows since when the condition holds.
    #[must_use]
    pub fn due_at(&self) -> Option<Timestamp> {
        self.since.map(|since| since + self.policy.toleration)
    }
}

/// Makes one decision of all policies that are due: what disrupts most decides, then the higher
/// priority, then what was due first, then the condition's name. The shortest drain bound of all
/// counts.
#[must_use]
pub fn due(matches: &[Match], now: Timestamp) -> Option<Due> {
    let due: Vec<(&Match, Timestamp)> =
        matches.iter().filter_map(|m| Some((m, m.due_at().filter(|at| *at <= now)?))).collect();
    let (best, since) = due.iter().min_by(|(a, a_at), (b, b_at)| {
        let (x, y) = (&a.policy, &b.policy);
        y.action
            .cmp(&x.action)
            .then(y.priority.cmp(&x.priority))
            .then(a_at.cmp(b_at))
            .then_with(|| x.condition.cmp(y.condition))
    })?;
    let score = |(m, at): &(&Match, Timestamp)| {
        let waiting = now.duration_since(*at).as_secs_f64().max(0.0);
        f64::from(u32::try_from(m.rank).unwrap_or(u32::MAX)) + waiting / AGING.as_secs_f64()
    };
    Some(Due {
        policy: RepairPolicy {
            drain: due.iter().filter_map(|(m, _)| m.policy.drain).min(),
            ..best.policy
        },
        reason: best.reason.clone(),
        since: *since,
        score: due.iter().map(score).fold(0.0, f64::max),
    })
}

fn conditions(node: &Node) -> impl Iterator<Item = &NodeCondition> {
    node.status.iter().flat_map(|s| s.conditions.iter().flatten())
}

fn compiled(at: usize, policy: &RepairPolicy) -> Result<Option<Regex>, PolicyError> {
    let kind = policy.condition;
    if kind.is_empty() {
        return Err(PolicyError::NoCondition(at));
    }
    if !matches!(policy.status, "True" | "False" | "Unknown") {
        return Err(PolicyError::Status(kind, policy.status));
    }
    if policy.priority > MOST_PRIORITY {
        return Err(PolicyError::Priority(kind, policy.priority));
    }
    if policy.reason.is_empty() {
        return Ok(None);
    }
    let bad = |e: regex::Error| PolicyError::Reason(kind, policy.reason, e.to_string());
    Regex::new(policy.reason).map(Some).map_err(bad)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    const FALLBACK: RepairPolicy = RepairPolicy {
        condition: "Ready",
        status: "False",
        reason: "",
        toleration: Duration::from_secs(1800),
        drain: Some(Duration::from_secs(600)),
        priority: 10,
        action: Action::Replace,
    };

    fn special(reason: &'static str, action: Action, priority: u8) -> RepairPolicy {
        let (toleration, drain) = (10 * MINUTE, None);
        RepairPolicy { condition: "GPU", reason, toleration, drain, priority, action, ..FALLBACK }
    }

    fn at(minutes: u32) -> Timestamp {
        Timestamp::UNIX_EPOCH + minutes * MINUTE
    }

    /// A node with conditions of a type, a reason and the minute since when they are False.
    fn node(list: &[(&str, &str, u32)]) -> Node {
        let list: Vec<_> = list
            .iter()
            .map(|(kind, reason, minute)| {
                json!({"type": kind, "status": "False", "reason": reason,
                    "lastTransitionTime": at(*minute).to_string()})
            })
            .collect();
        serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"conditions": list}}))
            .unwrap()
    }

    fn set(policies: &[RepairPolicy]) -> Policies {
        Policies::new(policies).unwrap()
    }

    #[test]
    fn a_set_must_have_one_fallback_that_replaces_and_only_usable_policies() {
        let error = |list: &[RepairPolicy]| Policies::new(list).unwrap_err();
        assert_eq!(error(&[]), PolicyError::Fallbacks(0));
        assert_eq!(error(&[FALLBACK, FALLBACK]), PolicyError::Fallbacks(2));
        let reboots = RepairPolicy { action: Action::Reboot, ..FALLBACK };
        assert_eq!(error(&[reboots]), PolicyError::FallbackAction);
        let with = |policy| error(&[FALLBACK, policy]);
        let xid = special("Xid", Action::Replace, 0);
        assert_eq!(with(RepairPolicy { priority: 101, ..xid }), PolicyError::Priority("GPU", 101));
        assert_eq!(with(RepairPolicy { status: "no", ..xid }), PolicyError::Status("GPU", "no"));
        assert_eq!(with(RepairPolicy { condition: "", ..xid }), PolicyError::NoCondition(1));
        let odd = with(RepairPolicy { reason: "(", ..xid }).to_string();
        assert!(odd.contains("GPU") && odd.contains("\"(\""), "{odd}");
    }

    #[test]
    fn the_fallback_serves_conditions_whose_reason_no_pattern_matches() {
        let policies = set(&[FALLBACK, special("^Xid(74|79)$", Action::Reboot, 50)]);
        let found = |reason| {
            let node = node(&[("GPU", reason, 0), ("Disk", "Full", 0)]);
            let all = policies.matching(&node, None);
            assert_eq!(all.len(), 1, "a condition that no policy names is left alone: {all:?}");
            (all[0].policy.condition, all[0].policy.action, all[0].due_at())
        };
        assert_eq!(found("Xid79"), ("GPU", Action::Reboot, Some(at(10))));
        assert_eq!(found("Xid799"), ("GPU", Action::Replace, Some(at(30))));
    }

    #[test]
    fn of_policies_that_are_due_the_most_disruptive_decides_and_the_shortest_drain_counts() {
        let short = RepairPolicy { drain: Some(MINUTE), ..special("Xid", Action::Reboot, 90) };
        let policies = set(&[FALLBACK, short]);
        let both = node(&[("GPU", "Xid", 0), ("Ready", "Lost", 0)]);
        let ask = |minute| due(&policies.matching(&both, None), at(minute));
        assert_eq!(ask(9), None);
        let first = ask(10).unwrap();
        assert_eq!((first.policy.action, first.policy.drain), (Action::Reboot, Some(MINUTE)));
        let second = ask(30).unwrap();
        assert_eq!((second.policy.condition, second.policy.action), ("Ready", Action::Replace));
        assert_eq!((second.policy.drain, second.reason.as_str()), (Some(MINUTE), "Lost"));
    }

    #[test]
    fn among_equal_actions_priority_then_time_then_name_decide() {
        let of = |condition, priority| RepairPolicy {
            condition,
            ..special(".*", Action::Replace, priority)
        };
        let decides = |policies: &[RepairPolicy], list: &[(&str, &str, u32)]| {
            let matches = set(policies).matching(&node(list), None);
            due(&matches, at(60)).unwrap().policy.condition
        };
        let list = [("A", "", 5), ("B", "", 0), ("C", "", 0)];
        assert_eq!(decides(&[FALLBACK, of("A", 3), of("B", 2), of("C", 2)], &list), "A");
        assert_eq!(decides(&[FALLBACK, of("A", 2), of("C", 2), of("B", 2)], &list), "B");
    }

    #[test]
    fn a_condition_counts_from_the_last_reboot_and_the_node_s_creation_on() {
        let policies = set(&[FALLBACK]);
        let mut sick = node(&[("Ready", "Lost", 5)]);
        let when = |node: &Node, not_before| policies.matching(node, not_before)[0].due_at();
        assert_eq!(when(&sick, None), Some(at(35)));
        assert_eq!(when(&sick, Some(at(20))), Some(at(50)));
        assert_eq!(when(&sick, Some(at(2))), Some(at(35)));
        sick.metadata.creation_timestamp =
            Some(serde_json::from_value(json!(at(10).to_string())).unwrap());
        assert_eq!(when(&sick, None), Some(at(40)));
    }

    #[test]
    fn waiting_for_half_an_hour_is_worth_one_rank_of_priority() {
        let policies = set(&[FALLBACK, special("Xid", Action::Replace, 90)]);
        let score = |list: &[(&str, &str, u32)]| {
            due(&policies.matching(&node(list), None), at(60)).unwrap().score
        };
        assert!((score(&[("GPU", "Xid", 50)]) - 1.0).abs() < 1e-9);
        assert!((score(&[("Ready", "Lost", 0)]) - 1.0).abs() < 1e-9);
        assert!((score(&[("GPU", "Xid", 50), ("Ready", "Lost", 0)]) - 1.0).abs() < 1e-9);
    }
}
