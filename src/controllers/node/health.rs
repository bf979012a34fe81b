//! Nodes that do not recover are deleted at once, as Karpenter 1.14 does: `node.health`, with the
//! feature gate NodeRepair and the setting `legacy-node-repair`. Without that setting repair is one
//! of the disruption methods.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use tokio::task::JoinSet;

use super::all_nodes;
use crate::api::labels;
use crate::api::v1::NodeClaim;
use crate::cloud::Policies;
use crate::controllers::nodeclaim::deletion;
use crate::controllers::nodeclaim::termination::tighten_deadline;
use crate::controllers::runner::{self, Identity};
use crate::controllers::{Context, Error, Outcome, observability};
use crate::disruption::repair::{RepairPolicy, most_unhealthy};
use crate::operator::events::{Report, reference};
use crate::operator::metrics;

const HEALTH: Identity = Identity { name: "node.health", group: "", kind: "Node", workers: 10 };
/// Time between looks at a pool with too many unhealthy nodes.
const BLOCKED: Duration = Duration::from_secs(300);

/// Starts the controller, if settings ask for it and the provider knows what to repair.
pub(super) fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    if !legacy(ctx) || ctx.cloud.repair_policies().is_empty() {
        return;
    }
    tasks.spawn(runner::run(HEALTH, Arc::clone(ctx), all_nodes, runner::changed_node, reconcile));
}

/// Whether nodes are repaired as Karpenter 1.14 does.
fn legacy(ctx: &Context) -> bool {
    ctx.settings.gates.node_repair && ctx.settings.legacy_node_repair
}

async fn reconcile(ctx: Arc<Context>, name: String) -> Outcome {
    let Some(node) = ctx.cluster.node(&name) else { return Ok(None) };
    let provider_id = node.spec.as_ref().and_then(|s| s.provider_id.as_deref()).unwrap_or_default();
    let Some(claim) = ctx.cluster.claim_by_provider_id(provider_id) else { return Ok(None) };
    let Some((policy, due)) = due(&node, ctx.cloud.repair_policies()) else { return Ok(None) };
    let now = ctx.clock.now();
    if let Ok(left) = Duration::try_from(due.duration_since(now))
        && !left.is_zero()
    {
        return Ok(Some(left));
    }
    // Many sick nodes at once are more likely a fault of the network or of the image than of each
    // node.
    if let Some(reason) = blocked(&ctx, &claim) {
        ctx.recorder.publish(Report::NodeRepairBlocked { why: &reason }.on(reference(&*node)));
        return Ok(Some(BLOCKED));
    }
    repair(&ctx, &claim, policy.condition, now).await?;
    Ok(None)
}

/// The policy whose toleration ends first, and when.
fn due(node: &Node, policies: &Policies) -> Option<(RepairPolicy, Timestamp)> {
    let matches = policies.matching(node, None);
    let ends = matches.into_iter().filter_map(|m| Some((m.policy, m.due_at()?)));
    ends.min_by_key(|(_, end)| *end)
}

/// Why nothing is repaired now, if so: too many of the claim's pool, or of all, are unhealthy.
fn blocked(ctx: &Context, claim: &NodeClaim) -> Option<&'static str> {
    let pool = |all: Option<&std::collections::BTreeMap<String, String>>| {
        all.and_then(|l| l.get(labels::NODEPOOL)).cloned()
    };
    let own = pool(claim.metadata.labels.as_ref());
    let nodes: Vec<Arc<Node>> = ctx
        .cluster
        .nodes()
        .into_iter()
        .filter(|n| own.is_none() || pool(n.metadata.labels.as_ref()) == own)
        .collect();
    let policies = ctx.cloud.repair_policies();
    let bad = nodes.iter().filter(|n| policies.knows(n)).count();
    (bad > most_unhealthy(nodes.len())).then_some(if own.is_some() {
        "more than 20% nodes are unhealthy in the nodepool"
    } else {
        // Karpenter's text, spelled as there: users match it.
        "more then 20% nodes are unhealthy in the cluster"
    })
}

/// Deletes the claim; its node is drained without waiting for anything.
async fn repair(
    ctx: &Context,
    claim: &NodeClaim,
    condition: &str,
    now: Timestamp,
) -> Result<(), Error> {
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    // Before the deletion, and also for a claim that is being deleted: pods on a sick node cannot
    // end by themselves.
    tighten_deadline(&api, claim, now).await?;
    if claim.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    if deletion::delete(ctx, claim.metadata.name.as_deref().unwrap_or_default()).await? {
        tracing::info!("deleting unhealthy node");
        observability::disrupted_with_pods(ctx, claim, "unhealthy", "");
        count(claim, condition, None);
    }
    Ok(())
}

/// Counts a NodeClaim that was deleted because of its Node's condition. Without a bound of the
/// repair, the drain has the claim's own.
pub(in crate::controllers) fn count(claim: &NodeClaim, condition: &str, bound: Option<Duration>) {
    let own = claim.grace_period();
    let mode = observability::termination_mode(bound.or(own));
    let label =
        |key: &str| claim.metadata.labels.as_ref().and_then(|l| l.get(key)).map_or("", |v| v);
    let image = claim.status.as_ref().and_then(|s| s.image_id.as_deref()).unwrap_or_default();
    let (pool, capacity_type) = (label(labels::NODEPOOL), label(labels::CAPACITY_TYPE));
    metrics::unhealthy_disrupted([&snake_case(condition), pool, capacity_type, image], mode);
}

/// `KernelReady` as `kernel_ready`.
fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.extend(c.to_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    use super::*;
    use crate::disruption::repair::Action;

    fn policies() -> Policies {
        let ready = RepairPolicy {
            condition: "Ready",
            status: "False",
            reason: "",
            toleration: Duration::from_secs(1800),
            drain: None,
            priority: 0,
            action: Action::Replace,
        };
        let accelerator = RepairPolicy {
            condition: "AcceleratedHardwareReady",
            reason: ".*",
            toleration: Duration::from_secs(600),
            ..ready
        };
        Policies::new(&[ready, accelerator]).unwrap()
    }

    fn node(conditions: &[(&str, &str, &str)]) -> Node {
        let list: Vec<_> = conditions
            .iter()
            .map(|(kind, status, since)| {
                json!({"type": kind, "status": status, "lastTransitionTime": since})
            })
            .collect();
        serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"conditions": list}}))
            .unwrap()
    }

    #[test]
    fn the_toleration_that_ends_first_counts() {
        let found =
            |conditions| due(&node(conditions), &policies()).map(|(p, end)| (p.condition, end));
        assert_eq!(found(&[("Ready", "True", "2026-01-01T00:00:00Z")]), None);
        assert_eq!(found(&[("KernelReady", "False", "2026-01-01T00:00:00Z")]), None);
        let both = found(&[
            ("Ready", "False", "2026-01-01T00:00:00Z"),
            ("AcceleratedHardwareReady", "False", "2026-01-01T00:10:00Z"),
        ]);
        let end = "2026-01-01T00:20:00Z".parse().unwrap();
        assert_eq!(both, Some(("AcceleratedHardwareReady", end)));
    }

    #[test]
    fn a_new_node_that_does_not_say_since_when_it_is_not_ready_gets_its_time() {
        let mut new = node(&[]);
        let joined: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        new.status =
            serde_json::from_value(json!({"conditions": [{"type": "Ready", "status": "False"}]}))
                .unwrap();
        assert_eq!(due(&new, &policies()).map(|(_, end)| end), None);
        new.metadata.creation_timestamp = Some(Time(joined));
        let end = due(&new, &policies()).map(|(_, end)| end);
        assert_eq!(end, Some(joined + Duration::from_secs(1800)));
    }

    #[test]
    fn a_fifth_of_the_nodes_rounded_up_may_be_unhealthy() {
        for (all, most) in [(0, 0), (1, 1), (5, 1), (6, 2), (10, 2), (11, 3)] {
            assert_eq!(most_unhealthy(all), most, "{all}");
        }
    }

    #[test]
    fn conditions_are_named_as_metrics_name_things() {
        assert_eq!(snake_case("AcceleratedHardwareReady"), "accelerated_hardware_ready");
    }
}
