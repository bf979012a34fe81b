//! `pod.deletioncost`: pods on nodes that consolidation would remove are the first to go when their
//! ReplicaSet is scaled down, so that scaling down empties nodes.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::task::JoinSet;

use super::{Context, Error, compute, patch, provisioning, runner};
use crate::api::annotations;
use crate::cloud::Policies;
use crate::disruption::deletion_cost::{Write, Writes, writes};
use crate::disruption::{Gates, Input};
use crate::operator::metrics;

/// Time between looks at the cluster.
const PERIOD: Duration = Duration::from_secs(60);
/// An incomplete state is looked at again after this long.
const UNSYNCED: Duration = Duration::from_secs(1);
/// Nodes whose pods are written in one pass. At thirty pods each that is 1,500 writes a minute.
const NODES: usize = 50;
/// Pods that are written at once.
const AT_ONCE: usize = 10;

/// Starts the controller, if the gate is on.
pub fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    if !ctx.settings.gates.pod_deletion_cost_management {
        return;
    }
    let ctx = Arc::clone(ctx);
    runner::repeat(tasks, "pod.deletioncost", move || {
        let ctx = Arc::clone(&ctx);
        async move {
            if !ctx.cluster.synced(ctx.clock.now()) {
                return Ok(Some(UNSYNCED));
            }
            let found = decide(&ctx).await?;
            metrics::DELETION_COST_NODES.reset();
            for (pool, nodes) in &found.nodes {
                let nodes = f64::from(u32::try_from(*nodes).unwrap_or(u32::MAX));
                metrics::DELETION_COST_NODES.with_label_values(&[pool]).set(nodes);
            }
            let work: Vec<_> = found.pods.iter().map(|pod| write(&ctx, pod)).collect();
            stream::iter(work).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
            Ok(Some(PERIOD))
        }
    });
}

async fn decide(ctx: &Arc<Context>) -> Result<Writes, Error> {
    let pools = provisioning::all_pools(ctx).await;
    let snapshot = provisioning::snapshot(ctx).await;
    let (pdbs, now) = (ctx.cluster.pdbs(), ctx.clock.now());
    let decided = compute(move || {
        let (queued, backed_off) = (HashSet::new(), BTreeSet::new());
        let input = Input {
            snapshot: &snapshot,
            pools: &pools,
            pdbs: &pdbs,
            now,
            queued: &queued,
            backed_off: &backed_off,
            repair: &Policies::none(),
            rebooted: &queued,
            gates: Gates::default(),
        };
        writes(&input, NODES)
    });
    decided.await.map_err(|error| Error::Other(format!("ranking nodes, {error}")))
}

/// Writes one pod's cost. What fails is found again by the next pass.
async fn write(ctx: &Context, write: &Write) {
    let (namespace, name) = (&*write.pod.namespace, &*write.pod.name);
    let cost = write.cost.map(|c| c.to_string());
    // The UID keeps the cost off a new pod of the same name.
    let change = json!({"metadata": {"uid": &*write.uid,
        "annotations": {annotations::POD_DELETION_COST: cost}}});
    let api = patch::namespaced::<Pod>(&ctx.client, namespace);
    let result = match api.patch(name, &PatchParams::default(), &Patch::Merge(&change)).await {
        Ok(_) => "updated",
        Err(kube::Error::Api(status)) if status.code == 404 => "skipped_notfound",
        Err(error) if patch::is_conflict(&error) => "skipped_conflict",
        Err(error) => {
            tracing::error!("Pod" = %write.pod, "error" = %error, "failed writing deletion cost");
            "error"
        }
    };
    metrics::DELETION_COST_WRITES.with_label_values(&[result]).inc();
}
