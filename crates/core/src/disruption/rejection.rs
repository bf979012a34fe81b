//! Why nodes stay, and why commands are dropped: values that carry their facts. Event reasons,
//! texts, metric labels and log fields are made from them here and nowhere else.

use std::fmt;

use jiff::Timestamp;

use super::Method;
use super::budget::Allowance;
use super::consolidation::SPOT_OPTIONS;
use super::pdb::Blocked;
use super::score::Score;
use crate::api::{annotations, labels};
use crate::scheduling::pod::PodKey;

/// At most this many pods are named in a text.
const PODS_NAMED: usize = 5;

/// Why a method leaves a node alone.
#[derive(Clone, Debug, PartialEq)]
pub enum Rejection {
    /// No NodeClaim stands behind the node.
    NotManaged,
    /// A command works on the node already.
    Queued,
    /// The NodeClaim has no Node.
    NoNode,
    /// The node has not joined completely.
    NotInitialized {
        /// Whether it has registered.
        registered: bool,
    },
    /// The instance is being rebooted.
    Rebooting,
    /// The node is on its way out.
    Deleting,
    /// A pod is expected on the node.
    Nominated,
    /// The annotation on the Node or NodeClaim.
    DoNotDisrupt,
    /// The annotation against repair on the Node or NodeClaim.
    DoNotRepair,
    /// The node belongs to no NodePool.
    NoPool,
    /// The NodePool is gone, or what it may launch is not known.
    UnknownPool(String),
    /// A pod on the node carries the annotation.
    ProtectedPod {
        /// The pod.
        pod: PodKey,
        /// When the protection ends, if it does.
        until: Option<Timestamp>,
    },
    /// A PodDisruptionBudget stands against evicting a pod.
    Blocked {
        /// The pod.
        pod: PodKey,
        /// The budgets.
        by: Blocked,
    },
    /// The NodePool keeps a fixed number of nodes, which the method is not about.
    Static,
    /// The NodePool keeps no fixed number of nodes, which the method is about.
    NotStatic,
    /// The NodeClaim has not drifted.
    NotDrifted,
    /// Pods run on the node.
    NotEmpty,
    /// Nothing runs on the node: emptiness is about it.
    Empty,
    /// The NodeClaim is not (yet) `Consolidatable`.
    NotConsolidatable,
    /// `consolidateAfter: Never`.
    ConsolidationDisabled(String),
    /// The NodePool consolidates only nodes without pods.
    OnlyWhenEmpty(String),
    /// The node keeps room for capacity buffers.
    BufferPods(String),
    /// The node's instance type is not among the NodePool's.
    UnknownType(String),
    /// The node lacks a label that prices depend on.
    NoLabel(&'static str),
    /// The NodePool's budget lets no more nodes go.
    BudgetUsedUp(Allowance),
    /// Pods would be left without a node.
    Stranded(Vec<Stranded>),
    /// More nodes would have to be launched than the method may.
    SeveralReplacements(usize),
    /// Nothing that holds the pods is cheaper.
    NotCheaper,
    /// What the node costs is an estimate, for its instance type.
    EstimatedPrice(String),
    /// What is cheaper has too few values for `minValues`.
    MinValues(Vec<String>),
    /// Spot for spot needs a feature gate.
    SpotToSpotDisabled,
    /// Spot for spot needs more cheaper types.
    SpotOptions(usize),
    /// The policy Balanced finds the savings too small for the disruption.
    NotWorth(Score),
    /// Time ran out before the node's turn.
    NotTried,
    /// A command for other nodes was found first.
    OtherFirst,
    /// No set of nodes was found that could go together with it.
    NoSet,
    /// A replacement for the NodePool failed lately; others go first.
    BackedOff(String),
    /// The static NodePool has more nodes than replicas, and gives up some first.
    AboveReplicas,
    /// The static NodePool is at `limits.nodes`, so that nothing can be launched first.
    StaticAtLimit,
    /// Everything that the static NodePool may launch is a capacity reservation that is full.
    StaticReservationsFull,
    /// The node is healthy, or not unhealthy for long enough.
    Healthy,
    /// Too many nodes of the NodePool are unhealthy for the nodes to be the cause.
    ManyUnhealthy(String),
    /// Blocking pods can be bypassed only within a termination grace period.
    RepairUnbounded,
}

impl Rejection {
    /// True when it may end by the passing of time alone, without a change of the cluster.
    #[must_use]
    pub fn ends_by_itself(&self) -> bool {
        matches!(
            self,
            Self::Nominated
                | Self::ProtectedPod { until: Some(_), .. }
                | Self::BudgetUsedUp(_)
                | Self::NotTried
                | Self::NotWorth(_)
                | Self::BackedOff(_)
                | Self::Healthy
                | Self::ManyUnhealthy(_)
        )
    }
}

/// A pod that would be left without a node, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranded {
    /// The pod.
    pub pod: PodKey,
    /// What scheduling says.
    pub why: String,
}

/// Which event reports that a node stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The node may not be disrupted.
    DisruptionBlocked,
    /// Nothing would be saved, or consolidation is not about the node.
    Unconsolidatable,
    /// Too many nodes are unhealthy.
    NodeRepairBlocked,
}

impl Rejection {
    /// The event on Node and NodeClaim, where there is one: many nodes are simply not what a method
    /// is about, and Karpenter keeps silent about those.
    #[must_use]
    pub fn event(&self, method: Method) -> Option<EventKind> {
        match self {
            Self::NotManaged
            | Self::Queued
            | Self::Static
            | Self::NotStatic
            | Self::NotDrifted
            | Self::NotEmpty
            | Self::Empty
            | Self::NotConsolidatable
            | Self::BudgetUsedUp(_)
            | Self::NotWorth(_)
            | Self::NotTried
            | Self::OtherFirst
            | Self::NoSet
            | Self::BackedOff(_)
            | Self::AboveReplicas
            | Self::Healthy => None,
            Self::NoNode
            | Self::NotInitialized { .. }
            | Self::Rebooting
            | Self::Deleting
            | Self::Nominated
            | Self::DoNotDisrupt
            | Self::DoNotRepair
            | Self::NoPool
            | Self::UnknownPool(_)
            | Self::ProtectedPod { .. }
            | Self::Blocked { .. }
            | Self::StaticAtLimit
            | Self::StaticReservationsFull
            | Self::RepairUnbounded => Some(EventKind::DisruptionBlocked),
            Self::ManyUnhealthy(_) => Some(EventKind::NodeRepairBlocked),
            Self::ConsolidationDisabled(_)
            | Self::OnlyWhenEmpty(_)
            | Self::BufferPods(_)
            | Self::UnknownType(_)
            | Self::NoLabel(_) => Some(EventKind::Unconsolidatable),
            Self::Stranded(_)
            | Self::SeveralReplacements(_)
            | Self::NotCheaper
            | Self::EstimatedPrice(_)
            | Self::MinValues(_)
            | Self::SpotToSpotDisabled
            | Self::SpotOptions(_) => match method {
                // Of a set of nodes no single one is the reason.
                Method::MultiNode => None,
                Method::SingleNode | Method::Emptiness => Some(EventKind::Unconsolidatable),
                Method::Repair | Method::Drift | Method::StaticDrift => {
                    Some(EventKind::DisruptionBlocked)
                }
            },
        }
    }

    /// A word for logs, metrics and JSON.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotManaged => "not_managed",
            Self::Queued => "queued",
            Self::NoNode => "no_node",
            Self::NotInitialized { .. } => "not_initialized",
            Self::Rebooting => "rebooting",
            Self::Deleting => "deleting",
            Self::Nominated => "nominated",
            Self::DoNotDisrupt => "do_not_disrupt",
            Self::DoNotRepair => "do_not_repair",
            Self::NoPool => "no_nodepool",
            Self::UnknownPool(_) => "unknown_nodepool",
            Self::ProtectedPod { .. } => "protected_pod",
            Self::Blocked { .. } => "pod_disruption_budget",
            Self::Static => "static",
            Self::NotStatic => "not_static",
            Self::NotDrifted => "not_drifted",
            Self::NotEmpty => "not_empty",
            Self::Empty => "empty",
            Self::NotConsolidatable => "not_consolidatable",
            Self::ConsolidationDisabled(_) => "consolidation_disabled",
            Self::OnlyWhenEmpty(_) => "only_when_empty",
            Self::BufferPods(_) => "buffer_pods",
            Self::UnknownType(_) => "unknown_instance_type",
            Self::NoLabel(_) => "no_label",
            Self::BudgetUsedUp(_) => "budget",
            Self::Stranded(_) => "pods_without_node",
            Self::SeveralReplacements(_) => "several_replacements",
            Self::NotCheaper => "not_cheaper",
            Self::EstimatedPrice(_) => "estimated_price",
            Self::MinValues(_) => "min_values",
            Self::SpotToSpotDisabled => "spot_to_spot_disabled",
            Self::SpotOptions(_) => "spot_options",
            Self::NotWorth(_) => "score",
            Self::NotTried => "timeout",
            Self::OtherFirst => "other_first",
            Self::NoSet => "no_set",
            Self::BackedOff(_) => "backed_off",
            Self::AboveReplicas => "above_replicas",
            Self::StaticAtLimit => "node_limit",
            Self::StaticReservationsFull => "reservations_full",
            Self::Healthy => "healthy",
            Self::ManyUnhealthy(_) => "many_unhealthy",
            Self::RepairUnbounded => "repair_unbounded",
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotManaged => f.write_str("node isn't managed by karpenter"),
            Self::Queued => f.write_str("node is being disrupted already"),
            Self::NoNode => f.write_str("nodeclaim does not have an associated node"),
            Self::NotInitialized { registered: true } => f.write_str("node isn't initialized"),
            Self::NotInitialized { registered: false } => {
                f.write_str("node isn't initialized nor registered")
            }
            Self::Rebooting => f.write_str("node is rebooting"),
            Self::Deleting => f.write_str("node is deleting or marked for deletion"),
            Self::Nominated => f.write_str("node is nominated for a pending pod"),
            Self::DoNotDisrupt => {
                let key = annotations::DO_NOT_DISRUPT;
                write!(f, "disruption is blocked through the {key:?} annotation")
            }
            Self::DoNotRepair => {
                let key = annotations::DO_NOT_REPAIR;
                write!(f, "repair is blocked through the {key:?} annotation")
            }
            Self::NoPool => {
                write!(f, "node doesn't have required label (label={})", labels::NODEPOOL)
            }
            Self::UnknownPool(name) => write!(f, "NodePool not found (NodePool={name})"),
            Self::ProtectedPod { pod, until } => {
                write!(f, "pod has {:?} annotation (Pod={pod}", annotations::DO_NOT_DISRUPT)?;
                match until {
                    Some(until) => write!(f, ", until={until})"),
                    None => f.write_str(")"),
                }
            }
            Self::Blocked { pod, by } => write!(f, "{by} (Pod={pod})"),
            Self::Static => f.write_str("NodePool has a fixed number of nodes"),
            Self::NotStatic => f.write_str("NodePool has no fixed number of nodes"),
            Self::NotDrifted => f.write_str("node has not drifted"),
            Self::NotEmpty => f.write_str("node is not empty"),
            Self::Empty => f.write_str("node is empty"),
            Self::NotConsolidatable => {
                f.write_str("NodeClaim is not Consolidatable, consolidateAfter has not passed")
            }
            Self::ConsolidationDisabled(pool) => {
                write!(f, "NodePool {pool:?} has consolidation disabled")
            }
            Self::OnlyWhenEmpty(pool) => write!(
                f,
                "NodePool {pool:?} has consolidation policy WhenEmpty, but node is not empty"
            ),
            Self::BufferPods(node) => write!(f, "Node {node:?} has buffer pods"),
            Self::UnknownType(name) => write!(f, "Instance Type {name:?} not found"),
            Self::NoLabel(key) => write!(f, "Node does not have label {key:?}"),
            Self::BudgetUsedUp(budget) => write!(
                f,
                "disruption budget is used up ({} of {} nodes allowed, {} disrupting)",
                budget.allowed.min(budget.total),
                budget.total,
                budget.disrupting
            ),
            Self::Stranded(pods) => stranded(f, pods),
            Self::SeveralReplacements(count) => {
                write!(f, "Can't remove without creating {count} candidates")
            }
            Self::NotCheaper => f.write_str("Can't replace with a cheaper node"),
            Self::EstimatedPrice(kind) => {
                write!(f, "Can't replace with a cheaper node, the price of {kind} is estimated")
            }
            Self::MinValues(keys) => write!(
                f,
                "Filtering by price: minValues requirement is not met for label(s) (label(s)=[{}])",
                keys.join(", ")
            ),
            Self::SpotToSpotDisabled => f.write_str(
                "SpotToSpotConsolidation is disabled, can't replace a spot node with a spot node",
            ),
            Self::SpotOptions(found) => write!(
                f,
                "SpotToSpotConsolidation requires {SPOT_OPTIONS} cheaper instance type options than the current candidate to consolidate, got {found}"
            ),
            Self::NotWorth(score) => {
                write!(f, "savings are not worth the disruption, {}", score.comparison())
            }
            Self::NotTried => f.write_str("time ran out before the node's turn"),
            Self::OtherFirst => f.write_str("other nodes go first"),
            Self::NoSet => f.write_str("no set of nodes with it can go together at a lower price"),
            Self::BackedOff(pool) => {
                write!(f, "a replacement for NodePool {pool:?} failed lately")
            }
            Self::AboveReplicas => f.write_str("static NodePool has more nodes than replicas"),
            Self::StaticAtLimit => {
                f.write_str("static NodePool is at its node limit and cannot stage a replacement")
            }
            Self::StaticReservationsFull => f.write_str(
                "static NodePool's capacity reservations are full and cannot stage a replacement",
            ),
            Self::Healthy => f.write_str("node is healthy"),
            Self::ManyUnhealthy(pool) => {
                write!(f, "more than 20% of nodes in nodepool {pool:?} are unhealthy")
            }
            Self::RepairUnbounded => {
                f.write_str("repair requires a termination grace period to bypass blocking pods")
            }
        }
    }
}

fn stranded(f: &mut fmt::Formatter<'_>, pods: &[Stranded]) -> fmt::Result {
    f.write_str("Not all pods would schedule,")?;
    for Stranded { pod, why } in pods.iter().take(PODS_NAMED) {
        write!(f, " {pod} => {why}")?;
    }
    match pods.len().saturating_sub(PODS_NAMED) {
        0 => Ok(()),
        more => write!(f, " and {more} other(s)"),
    }
}

/// Why a command that was found is not carried out, or not to its end.
#[derive(Clone, Debug, PartialEq)]
pub enum Abandoned {
    /// Candidates are none any more.
    Churn {
        /// How many.
        gone: usize,
    },
    /// The budget of a NodePool does not let the candidates go any more.
    Budget {
        /// The NodePool.
        pool: String,
    },
    /// Pods would be left without a node.
    Stranded(Vec<Stranded>),
    /// Other nodes would have to be launched than when the command was found.
    OtherResults,
    /// A pod arrived, or became protected, between the decision and the taint.
    PodAppeared {
        /// The node.
        node: String,
        /// What stands against it now.
        why: Box<Rejection>,
    },
    /// A replacement is gone.
    ReplacementDeleted {
        /// Its NodeClaim.
        name: String,
    },
    /// The controller ended before all replacements were made.
    Incomplete {
        /// How many there are.
        made: usize,
        /// How many there should be.
        wanted: usize,
    },
    /// Somebody took the marks off a candidate.
    Unmarked {
        /// Its NodeClaim.
        name: String,
    },
    /// The replacements took too long.
    TimedOut,
}

impl Abandoned {
    /// The reason in `ConsolidationRejected` events: `churn`, `budget`, `scheduling` or `unknown`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Churn { .. } | Self::PodAppeared { .. } => "churn",
            Self::Budget { .. } => "budget",
            Self::Stranded(_) | Self::OtherResults => "scheduling",
            Self::ReplacementDeleted { .. }
            | Self::Incomplete { .. }
            | Self::Unmarked { .. }
            | Self::TimedOut => "unknown",
        }
    }
}

impl fmt::Display for Abandoned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Churn { gone } => write!(f, "{gone} candidates are no longer valid"),
            Self::Budget { pool } => {
                write!(f, "disruption budget of NodePool {pool:?} is used up")
            }
            Self::Stranded(pods) => stranded(f, pods),
            Self::OtherResults => f.write_str("scheduling simulation produced new results"),
            Self::PodAppeared { node, why } => write!(f, "node {node:?} changed: {why}"),
            Self::ReplacementDeleted { .. } => f.write_str("replacement was deleted"),
            Self::Incomplete { made, wanted } => {
                write!(f, "only {made} of {wanted} replacements were launched")
            }
            Self::Unmarked { name } => write!(f, "NodeClaim {name:?} is no longer marked"),
            Self::TimedOut => f.write_str("command reached timeout"),
        }
    }
}

impl std::error::Error for Abandoned {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_event_follows_from_the_reason_and_the_method() {
        let event = |r: Rejection, method| r.event(method);
        let protected = || Rejection::ProtectedPod { pod: PodKey::new("n", "p"), until: None };
        for method in Method::ALL {
            assert_eq!(event(protected(), method), Some(EventKind::DisruptionBlocked));
            assert_eq!(event(Rejection::NotDrifted, method), None);
        }
        let disabled = Rejection::ConsolidationDisabled("p".into());
        assert_eq!(event(disabled.clone(), Method::Emptiness), Some(EventKind::Unconsolidatable));
        assert_eq!(event(disabled, Method::SingleNode), Some(EventKind::Unconsolidatable));
        let full = || Rejection::Stranded(Vec::new());
        assert_eq!(event(full(), Method::Drift), Some(EventKind::DisruptionBlocked));
        assert_eq!(event(full(), Method::SingleNode), Some(EventKind::Unconsolidatable));
        assert_eq!(event(full(), Method::MultiNode), None);
        assert_eq!(event(Rejection::BudgetUsedUp(Allowance::default()), Method::Drift), None);
    }

    #[test]
    fn five_pods_are_named_and_the_others_counted() {
        let pods = |n: usize| {
            let one = |i| Stranded { pod: PodKey::new("n", &format!("p{i}")), why: "full".into() };
            Rejection::Stranded((0..n).map(one).collect()).to_string()
        };
        assert_eq!(pods(1), "Not all pods would schedule, n/p0 => full");
        assert!(pods(5).ends_with("n/p4 => full"));
        assert!(pods(7).ends_with("n/p4 => full and 2 other(s)"));
    }
}
