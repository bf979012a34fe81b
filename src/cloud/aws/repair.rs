//! What the kubelet and EKS's node monitoring agent report of Nodes that do not recover, and how such
//! nodes are repaired. The numbers are those of Karpenter's provider 1.15.

use std::time::Duration;

use crate::api::conditions;
use crate::disruption::repair::{Action, Policies, PolicyError, RepairPolicy};

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// A fault of an accelerator whose reason nothing is known of. The fallback.
const ACCELERATOR: RepairPolicy = RepairPolicy {
    condition: "AcceleratedHardwareReady",
    status: conditions::FALSE,
    reason: "",
    toleration: minutes(30),
    drain: Some(minutes(10)),
    priority: 0,
    action: Action::Replace,
};

/// A fault of an accelerator that is known to stay, or that a reboot clears.
const fn xid(reason: &'static str, action: Action) -> RepairPolicy {
    let drain = Some(minutes(5));
    RepairPolicy { reason, toleration: minutes(10), drain, action, ..ACCELERATOR }
}

/// Xids that a reboot clears.
const TRANSIENT: &str = ".*XID(46|48|54|62|63|95|109|110|136|140|143|155|156|158).*";
/// Xids of hardware that is lost.
const LOST: &str = ".*XID(64|74|79|119|120).*";

const fn other(condition: &'static str, status: &'static str) -> RepairPolicy {
    RepairPolicy { condition, status, reason: ".*", ..ACCELERATOR }
}

/// The other conditions.
const OTHERS: [RepairPolicy; 6] = [
    other("Ready", conditions::FALSE),
    other("Ready", conditions::UNKNOWN),
    other("StorageReady", conditions::FALSE),
    other("NetworkingReady", conditions::FALSE),
    other("KernelReady", conditions::FALSE),
    other("ContainerRuntimeReady", conditions::FALSE),
];

/// The policies; nodes are rebooted only where the gate RebootForRepair is on.
///
/// # Errors
/// When the set cannot be used.
pub fn repair_policies(reboot: bool) -> Result<Policies, PolicyError> {
    let transient = if reboot { Action::Reboot } else { Action::Replace };
    let accelerators =
        [ACCELERATOR, xid(TRANSIENT, transient), xid(LOST, Action::Replace)].into_iter();
    Policies::new(&accelerators.chain(OTHERS).collect::<Vec<_>>())
}

/// The policies of 1.14, by which nodes are deleted at once.
///
/// # Errors
/// When the set cannot be used.
pub fn legacy_repair_policies() -> Result<Policies, PolicyError> {
    let accelerator = RepairPolicy { toleration: minutes(10), ..ACCELERATOR };
    let all = [accelerator].into_iter().chain(OTHERS);
    Policies::new(&all.map(|p| RepairPolicy { drain: None, ..p }).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;
    use serde_json::json;

    use super::*;

    /// What is done, after how many minutes, and how many the drain may take.
    fn found(set: &Policies, kind: &str, status: &str, reason: &str) -> Option<(Action, i64, u64)> {
        let node: Node = serde_json::from_value(json!({"status": {"conditions": [{"type": kind,
            "status": status, "reason": reason,
            "lastTransitionTime": "1970-01-01T00:00:00Z"}]}}))
        .unwrap();
        let all = set.matching(&node, None);
        assert!(all.len() <= 1, "{all:?}");
        all.first().map(|m| {
            let drain = m.policy.drain.map_or(0, |d| d.as_secs() / 60);
            (m.policy.action, m.due_at().unwrap().as_second() / 60, drain)
        })
    }

    #[test]
    fn every_condition_of_the_agent_has_its_time_and_its_bound() {
        let set = repair_policies(true).unwrap();
        for kind in ["Ready", "StorageReady", "NetworkingReady", "KernelReady"] {
            let wanted = Some((Action::Replace, 30, 10));
            assert_eq!(found(&set, kind, "False", "Any"), wanted, "{kind}");
        }
        assert_eq!(found(&set, "Ready", "Unknown", ""), Some((Action::Replace, 30, 10)));
        assert_eq!(found(&set, "StorageReady", "Unknown", ""), None);
        let neuron = found(&set, "AcceleratedHardwareReady", "False", "NeuronDMAError");
        assert_eq!(neuron, Some((Action::Replace, 30, 10)));
    }

    #[test]
    fn a_fault_that_a_reboot_clears_reboots_only_behind_the_gate() {
        let of = |reboot, reason| {
            let set = repair_policies(reboot).unwrap();
            found(&set, "AcceleratedHardwareReady", "False", reason)
        };
        assert_eq!(of(true, "NvidiaXID109Error"), Some((Action::Reboot, 10, 5)));
        assert_eq!(of(false, "NvidiaXID109Error"), Some((Action::Replace, 10, 5)));
        assert_eq!(of(true, "NvidiaXID79Error"), Some((Action::Replace, 10, 5)));
    }

    #[test]
    fn the_policies_of_1_14_replace_for_every_reason_and_leave_the_drain_alone() {
        let set = legacy_repair_policies().unwrap();
        let accelerator = found(&set, "AcceleratedHardwareReady", "False", "NvidiaXID109Error");
        assert_eq!(accelerator, Some((Action::Replace, 10, 0)));
        assert_eq!(found(&set, "KernelReady", "False", "x"), Some((Action::Replace, 30, 0)));
    }
}
