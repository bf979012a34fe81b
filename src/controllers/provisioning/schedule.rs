//! From the cluster's state to the snapshot that the solver reads.

use super::super::Context;
use crate::assemble::{
    Assembly, Inputs, Overlays, PoolOffer, PoolProblem, Purpose, Settings, assemble, launches,
};
use crate::operator::logging;
use crate::scheduling::pod::PodKey;
use crate::scheduling::snapshot::{NodePoolInput, Options, Snapshot};
use crate::scheduling::volumes::{Unresolved, VolumeError};

/// The cluster at this moment as disruption looks at it: any pod may have to move.
pub(in crate::controllers) async fn snapshot(ctx: &Context) -> Snapshot {
    let pools = pools(ctx, false).await;
    assembled(ctx, pools, Purpose::Disruption).snapshot
}

/// All pools with what they may launch, also those in which nothing is launched for pods: their
/// nodes may be disrupted all the same.
pub(in crate::controllers) async fn all_pools(ctx: &Context) -> Vec<NodePoolInput> {
    let mut pools = Vec::new();
    for node_pool in ctx.cluster.pools() {
        let Ok(mut instance_types) = ctx.instance_types(&node_pool).await else { continue };
        if ctx.settings.gates.node_overlay {
            let name = node_pool.metadata.name.as_deref().unwrap_or_default();
            let store = ctx.cluster.overlay_store();
            let Some(laid) = store.and_then(|s| s.apply(name, &instance_types)) else { continue };
            instance_types = laid;
        }
        pools.push(NodePoolInput { node_pool, instance_types });
    }
    pools
}

/// The cluster at this moment, with the pods to place. Logs what is not as it should be.
pub(super) async fn to_provision(ctx: &Context) -> Assembly {
    let pools = if nothing_waits(ctx) { Vec::new() } else { pools(ctx, true).await };
    let assembly = assembled(ctx, pools, Purpose::Provisioning);
    for (name, problem) in &assembly.unusable_pools {
        log_problem(name, *problem);
    }
    for (pod, failure) in &assembly.unresolved {
        log_unresolved(pod, failure);
    }
    for (pod, found) in &assembly.snapshot.pod_volumes {
        if !found.alternatives.is_empty() {
            let shown: Vec<String> = found.alternatives.iter().map(ToString::to_string).collect();
            tracing::debug!(
                "Pod" = %logging::obj_ns(&pod.namespace, &pod.name),
                "alternatives" = %logging::json(&shown),
                "getting requirements from pod volumes"
            );
        }
    }
    assembly
}

/// No pod needs a node, so that pools need not be asked for what they offer.
fn nothing_waits(ctx: &Context) -> bool {
    let buffers = ctx.settings.gates.capacity_buffer && !ctx.cluster.buffer_pods().is_empty();
    let leaving = || ctx.cluster.state_nodes().iter().any(|n| n.deleting() && !n.pods.is_empty());
    !buffers && ctx.cluster.waiting_pods().is_empty() && !leaving()
}

fn log_problem(pool: &str, problem: PoolProblem) {
    let name = logging::obj(pool);
    match problem {
        PoolProblem::Foreign
        | PoolProblem::Static
        | PoolProblem::Deleting
        | PoolProblem::TypesUnknown => {}
        PoolProblem::NotReady => {
            tracing::error!("NodePool" = %name, "ignoring nodepool, not ready");
        }
        PoolProblem::NoTypes => {
            tracing::info!("NodePool" = %name, "skipping, no resolved instance types found");
        }
        PoolProblem::AwaitsOverlays => tracing::debug!(
            "NodePool" = %name,
            "error" = format!("nodepool {pool:?} is awaiting evaluation"),
            "skipping, awaiting nodeoverlay evaluation"
        ),
    }
}

fn log_unresolved(pod: &PodKey, failure: &Unresolved) {
    let name = logging::obj_ns(&pod.namespace, &pod.name);
    tracing::error!(
        "Pod" = %name, "error" = %failure, "failed getting volume topology requirements"
    );
    if matches!(failure.error, VolumeError::NoClaim(_)) {
        tracing::error!(
            "Pod" = %name, "error" = %failure, "failed tracking CSI volume limits for volume"
        );
    }
}

fn assembled(ctx: &Context, node_pools: Vec<PoolOffer>, purpose: Purpose) -> Assembly {
    let (settings, cluster) = (&ctx.settings, &ctx.cluster);
    let gates = &settings.gates;
    // Nodes before pods: a pod that is bound meanwhile is then counted twice rather than never.
    let nodes = cluster.state_nodes();
    let inputs = Inputs {
        node_pools,
        daemonset_pods: cluster.daemon_set_pods(),
        nodes,
        pods: cluster.waiting_pods(),
        promised: cluster.promised_pods(),
        buffer_pods: if gates.capacity_buffer { cluster.buffer_pods() } else { Vec::new() },
        pdbs: cluster.pdbs(),
        volumes: cluster.volumes(),
        selectors: cluster.selectors(),
        dynamic: cluster.dynamic_resources(),
        overlays: match (gates.node_overlay, cluster.overlay_store()) {
            (false, _) => Overlays::Off,
            (true, None) => Overlays::Awaited,
            (true, Some(store)) => Overlays::InForce(store),
        },
        namespaces: cluster.namespaces(),
        ..Inputs::default()
    };
    let options = Options {
        respect_preferences: settings.respect_preferences,
        best_effort_min_values: settings.best_effort_min_values,
        reserved_capacity: gates.reserved_capacity,
        ignore_dynamic_resources: settings.ignore_dra_requests,
        ..Options::default()
    };
    let (scheduler_config, now) = (&settings.scheduler_config, ctx.clock.now());
    assemble(inputs, &Settings { options, scheduler_config, now, purpose })
}

/// Every pool, with what the provider offers those that launch; `log` is for those that do not look
/// all the time.
async fn pools(ctx: &Context, log: bool) -> Vec<PoolOffer> {
    let mut offers = Vec::new();
    for node_pool in ctx.cluster.pools() {
        let mut instance_types = None;
        if launches(&node_pool).is_ok() {
            let answer = ctx.instance_types(&node_pool).await;
            if let (Err(error), true) = (&answer, log) {
                let name = node_pool.metadata.name.as_deref().unwrap_or_default();
                tracing::error!(
                    "NodePool" = %logging::obj(name),
                    "error" = %error,
                    "skipping, unable to resolve instance types"
                );
            }
            instance_types = answer.ok();
        }
        offers.push(PoolOffer { node_pool, instance_types });
    }
    offers
}
