//! Consistency: whether the Node is as large as its claim was promised.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Api;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::super::patch;
use super::super::runner::{self, Identity};
use super::super::{Context, Outcome};
use super::{all_claims, events, is_true, set_true, status_of};
use crate::api::conditions;
use crate::api::labels;
use crate::api::v1::NodeClaim;
use crate::scheduling::resources::ResourceList;

const CONSISTENCY: Identity = Identity {
    name: "nodeclaim.consistency",
    group: labels::GROUP,
    kind: "NodeClaim",
    workers: 10,
};
/// A claim is looked at once in this time.
const PERIOD: Duration = Duration::from_secs(600);
/// Share of the promised capacity that a Node has to have, in per cent.
const ENOUGH: i128 = 90;

/// Starts the controller.
pub(super) fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let seen: Arc<Mutex<HashMap<String, Timestamp>>> = Arc::default();
    tasks.spawn(runner::run(
        CONSISTENCY,
        Arc::clone(ctx),
        all_claims,
        runner::changed_claim,
        move |ctx, name| {
            let seen = Arc::clone(&seen);
            async move { reconcile(&ctx, &seen, &name).await }
        },
    ));
}

async fn reconcile(ctx: &Context, seen: &Mutex<HashMap<String, Timestamp>>, name: &str) -> Outcome {
    let Some(before) = ctx.cluster.claim(name) else {
        seen.lock().remove(name);
        return Ok(None);
    };
    let id = before.status.as_ref().and_then(|s| s.provider_id.clone()).unwrap_or_default();
    if id.is_empty()
        || before.metadata.deletion_timestamp.is_some()
        || !is_true(&before, conditions::INITIALIZED)
    {
        return Ok(None);
    }
    let now = ctx.clock.now();
    let last = seen.lock().get(name).copied();
    let passed = last.map(|t| Duration::try_from(now.duration_since(t)).unwrap_or_default());
    if let Some(left) = passed.and_then(|p| PERIOD.checked_sub(p)).filter(|l| !l.is_zero()) {
        return Ok(Some(left));
    }
    let nodes = ctx.cluster.nodes_by_provider_id(&id);
    let [node] = nodes.as_slice() else { return Ok(None) };
    seen.lock().insert(name.to_owned(), now);
    let capacity = node.status.as_ref().and_then(|s| s.capacity.as_ref());
    let issues = too_small(&before, &ResourceList::from_quantities_lossy(capacity));
    for issue in &issues {
        tracing::info!("issue" = issue, "failed consistency check");
        ctx.recorder.publish(events::failed_consistency_check(&before, issue));
    }
    let mut claim = (*before).clone();
    let kind = conditions::CONSISTENT_STATE_FOUND;
    if issues.is_empty() {
        set_true(&mut claim, kind, now);
    } else {
        let generation = claim.metadata.generation;
        let list = &mut status_of(&mut claim).conditions;
        let (reason, text) = ("ConsistencyCheckFailed", "Consistency Check Failed");
        conditions::set(list, kind, conditions::FALSE, reason, text, generation, now);
    }
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    if let Err(error) = patch::merge(&api, &before, &claim).await {
        seen.lock().remove(name);
        return Err(error.into());
    }
    Ok(Some(PERIOD))
}

/// A text for each requested resource of which the Node has too little.
fn too_small(claim: &NodeClaim, found: &ResourceList) -> Vec<String> {
    let requests = claim.spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    let requested = ResourceList::from_quantities_lossy(requests);
    let capacity = claim.status.as_ref().and_then(|s| s.capacity.as_ref());
    let expected = ResourceList::from_quantities_lossy(capacity);
    let text = |list: &ResourceList, name: &str| {
        list.to_quantities().remove(name).map_or_else(|| "0".to_owned(), |q| q.0)
    };
    let mut issues = Vec::new();
    for (name, value) in requested.iter() {
        let (wanted, have) = (i128::from(expected.get(name)), i128::from(found.get(name)));
        if value == 0 || wanted == 0 || have * 100 >= wanted * ENOUGH {
            continue;
        }
        let tenths = have * 1000 / wanted;
        issues.push(format!(
            "expected {} of resource {}, but found {} ({}.{}% of expected)",
            text(&expected, name.as_str()),
            name.as_str(),
            text(found, name.as_str()),
            tenths / 10,
            tenths % 10
        ));
    }
    issues
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_may_be_a_tenth_smaller() {
        let claim: NodeClaim = serde_json::from_value(json!({"metadata": {"name": "c"},
            "spec": {"resources": {"requests": {"memory": "1Gi", "cpu": "1"}}},
            "status": {"capacity": {"memory": "1000Mi", "cpu": "2", "nvidia.com/gpu": "1"}}}))
        .unwrap();
        let found = |memory: &str| {
            let node: k8s_openapi::api::core::v1::Node = serde_json::from_value(
                json!({"metadata": {}, "status": {"capacity": {"memory": memory, "cpu": "2"}}}),
            )
            .unwrap();
            ResourceList::from_quantities_lossy(node.status.unwrap().capacity.as_ref())
        };
        assert!(too_small(&claim, &found("900Mi")).is_empty());
        assert_eq!(
            too_small(&claim, &found("800Mi")),
            ["expected 1000Mi of resource memory, but found 800Mi (80.0% of expected)"]
        );
    }
}
