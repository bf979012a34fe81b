//! Static pools: a NodePool with `replicas` has that many nodes, whatever the pods need
//! (feature gate StaticCapacity).

use std::sync::Arc;

use tokio::task::JoinSet;

use super::Context;
use super::runner::{self, Identity};
use crate::api::labels;
use crate::api::v1::NodePool;
use crate::cluster::Change;

mod deprovisioning;
mod provisioning;

const PROVISIONING: Identity =
    Identity { name: "static.provisioning", group: labels::GROUP, kind: "NodePool", workers: 10 };
const DEPROVISIONING: Identity =
    Identity { name: "static.deprovisioning", group: labels::GROUP, kind: "NodePool", workers: 10 };

/// Starts the controllers, if the gate is on.
pub fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    if !ctx.settings.gates.static_capacity {
        return;
    }
    let ctx2 = Arc::clone(ctx);
    let paces: Arc<provisioning::Paces> = Arc::default();
    tasks.spawn(runner::run(PROVISIONING, ctx2, all, concerned, move |ctx, name| {
        provisioning::reconcile(ctx, Arc::clone(&paces), name)
    }));
    let ctx2 = Arc::clone(ctx);
    tasks.spawn(runner::run(DEPROVISIONING, ctx2, all, concerned, deprovisioning::reconcile));
}

fn all(ctx: &Context) -> Vec<String> {
    let pools = ctx.cluster.pools();
    let fixed = pools.iter().filter(|p| p.spec.replicas.is_some());
    fixed.filter_map(|p| p.metadata.name.clone()).collect()
}

/// A claim that is gone no longer names its pool.
fn concerned(ctx: &Context, change: &Change) -> Vec<String> {
    match change {
        Change::NodePool(name) => vec![name.clone()],
        Change::NodeClaim(name) => match ctx.cluster.claim(name) {
            Some(claim) => claim
                .metadata
                .labels
                .as_ref()
                .and_then(|l| l.get(labels::NODEPOOL))
                .cloned()
                .into_iter()
                .collect(),
            None => all(ctx),
        },
        _ => Vec::new(),
    }
}

/// A pool that is to be kept at its number of nodes, and that number.
fn kept(ctx: &Context, name: &str) -> Option<(Arc<NodePool>, i64)> {
    let pool = ctx.cluster.pool(name).filter(|p| p.metadata.deletion_timestamp.is_none())?;
    let replicas = pool.spec.replicas?;
    Some((pool, replicas))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disruption::static_drift::replacement;
    use serde_json::json;

    #[test]
    fn a_claim_of_a_static_pool_leaves_the_choice_to_the_provider() {
        let spec = json!({"replicas": 2, "template": {
            "metadata": {"labels": {"team": "a"}},
            "spec": {"requirements": [{"key": "karpenter.sh/capacity-type", "operator": "In",
                "values": ["spot"]}],
                "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass",
                    "name": "c"}}}});
        let pool = Arc::new(NodePool::new("p", serde_json::from_value(spec).unwrap()));
        let claim = replacement(&pool).to_node_claim();
        let keys: Vec<&str> = claim.spec.requirements.iter().map(|r| r.key.as_str()).collect();
        assert!(keys.contains(&labels::CAPACITY_TYPE) && keys.contains(&"team"));
        assert!(!keys.contains(&labels::INSTANCE_TYPE));
        assert!(claim.spec.resources.is_none());
        let labels_of = claim.metadata.labels.unwrap();
        assert_eq!(labels_of["karpenter.sh/nodepool"], "p");
        assert_eq!(labels_of["team"], "a");
    }
}
