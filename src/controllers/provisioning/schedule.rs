//! From the cluster's state to the snapshot that the solver reads.

use std::collections::HashSet;
use std::sync::Arc;

use super::super::Context;
use super::waiting;
use crate::api::conditions;
use crate::api::v1::NodePool;
use crate::operator::logging;
use crate::scheduling::default_spread;
use crate::scheduling::node::StateNode;
use crate::scheduling::pod::PodInfo;
use crate::scheduling::snapshot::{NodePoolInput, Options, Snapshot};
use crate::scheduling::volumes::{self, VolumeError, VolumeObjects};

/// The cluster at this moment as disruption looks at it: any pod may have to move.
///
/// Of the waiting pods only those count that provisioning would place; buffers' pods wait as well.
pub(in crate::controllers) fn snapshot(
    ctx: &Context,
    node_pools: Vec<NodePoolInput>,
    mut nodes: Vec<StateNode>,
    mut pods: Vec<Arc<PodInfo>>,
) -> Snapshot {
    let objects = ctx.cluster.volumes();
    pods.retain(|p| crate::scheduling::validation::waiting_pod(p, &objects).is_ok());
    pods.extend(waiting::buffers(ctx));
    if !ctx.settings.scheduler_config.default_constraints.is_empty() {
        let selectors = ctx.cluster.selectors();
        for node in &mut nodes {
            default_spread::apply(&mut node.pods, &ctx.settings.scheduler_config, &selectors);
        }
    }
    let mut snapshot = build(ctx, node_pools, nodes, pods);
    let bound: Vec<Arc<PodInfo>> = snapshot
        .nodes
        .iter()
        .flat_map(|n| &n.pods)
        .filter(|p| !p.claims.is_empty() && p.is_reschedulable())
        .cloned()
        .collect();
    add_volumes(&mut snapshot, &bound, &objects, false);
    snapshot
}

/// The cluster at this moment, with the pods to place.
pub(super) fn build(
    ctx: &Context,
    node_pools: Vec<NodePoolInput>,
    nodes: Vec<StateNode>,
    mut pods: Vec<Arc<PodInfo>>,
) -> Snapshot {
    default_spread::apply(&mut pods, &ctx.settings.scheduler_config, &ctx.cluster.selectors());
    Snapshot {
        options: Options {
            respect_preferences: ctx.settings.respect_preferences,
            best_effort_min_values: ctx.settings.best_effort_min_values,
            reserved_capacity: ctx.settings.gates.reserved_capacity,
            ignore_dynamic_resources: ctx.settings.ignore_dra_requests,
            ..Options::default()
        },
        node_pools,
        daemonset_pods: ctx.cluster.daemon_set_pods(),
        nodes,
        pods,
        namespaces: ctx.cluster.namespaces(),
        dynamic: ctx.cluster.dynamic_resources(),
        ..Snapshot::default()
    }
}

/// Looks up what the volumes of pods ask for.
///
/// As upstream, a pod for which that fails is placed nevertheless, without regard to other pods.
pub(super) fn add_volumes(
    snapshot: &mut Snapshot,
    pods: &[Arc<PodInfo>],
    objects: &VolumeObjects,
    tell: bool,
) {
    let mut unresolved = HashSet::new();
    for pod in pods.iter().filter(|p| !p.claims.is_empty()) {
        let found = match volumes::resolve(pod, objects) {
            Ok(found) => found,
            Err(failure) => {
                if tell {
                    tracing::error!(
                        "Pod" = %logging::obj_ns(&pod.key.namespace, &pod.key.name),
                        "error" = %failure,
                        "failed getting volume topology requirements"
                    );
                    if matches!(failure.error, VolumeError::NoClaim(_)) {
                        tracing::error!(
                            "Pod" = %logging::obj_ns(&pod.key.namespace, &pod.key.name),
                            "error" = %failure,
                            "failed tracking CSI volume limits for volume"
                        );
                    }
                }
                unresolved.insert(&pod.key);
                failure.volumes
            }
        };
        if tell && !found.alternatives.is_empty() {
            let shown: Vec<String> = found.alternatives.iter().map(ToString::to_string).collect();
            tracing::debug!(
                "Pod" = %logging::obj_ns(&pod.key.namespace, &pod.key.name),
                "alternatives" = %logging::json(&shown),
                "getting requirements from pod volumes"
            );
        }
        if !found.is_free() {
            snapshot.pod_volumes.insert(pod.key.clone(), Arc::new(found));
        }
    }
    for pod in snapshot.pods.iter_mut().filter(|p| unresolved.contains(&p.key)) {
        let constraints = Arc::new(pod.constraints.without_topology());
        Arc::make_mut(pod).constraints = constraints;
    }
}

/// What keeps a pool out of a round.
enum Unusable {
    NotReady,
    Unresolved(crate::cloud::Error),
    NoTypes,
    NotEvaluated,
}

impl Unusable {
    fn tell(&self, pool: &str) {
        let name = logging::obj(pool);
        match self {
            Self::NotReady => tracing::error!("NodePool" = %name, "ignoring nodepool, not ready"),
            Self::Unresolved(error) => {
                tracing::error!("NodePool" = %name, "error" = %error, "skipping, unable to resolve instance types");
            }
            Self::NoTypes => {
                tracing::info!("NodePool" = %name, "skipping, no resolved instance types found");
            }
            Self::NotEvaluated => tracing::debug!(
                "NodePool" = %name,
                "error" = format!("nodepool {pool:?} is awaiting evaluation"),
                "skipping, awaiting nodeoverlay evaluation"
            ),
        }
    }
}

/// NodePools that are ready, with what they may launch: nothing where that is not known for now.
/// Tells of what is not as it should be.
pub(super) async fn usable_pools(ctx: &Context) -> Vec<NodePoolInput> {
    inputs(ctx, true).await
}

/// Those with something to launch, without a word, for those that look often.
pub(in crate::controllers) async fn pools(ctx: &Context) -> Vec<NodePoolInput> {
    inputs(ctx, false).await
}

async fn inputs(ctx: &Context, tell: bool) -> Vec<NodePoolInput> {
    let mut inputs = Vec::new();
    for pool in ctx.cluster.pools() {
        if pool.spec.replicas.is_some() || pool.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let name = pool.metadata.name.clone().unwrap_or_default();
        match input(ctx, Arc::clone(&pool), &name).await {
            Ok(input) => inputs.push(input),
            Err(_) if !tell => {}
            Err(why) => {
                why.tell(&name);
                if !matches!(why, Unusable::NotReady) {
                    inputs.push(NodePoolInput { node_pool: pool, instance_types: Arc::new([]) });
                }
            }
        }
    }
    inputs
}

/// A pool with what it may launch, overlays laid over.
async fn input(ctx: &Context, pool: Arc<NodePool>, name: &str) -> Result<NodePoolInput, Unusable> {
    let status = pool.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    if !conditions::is_true(status, conditions::READY) {
        return Err(Unusable::NotReady);
    }
    let mut instance_types = ctx.instance_types(&pool).await.map_err(Unusable::Unresolved)?;
    if instance_types.is_empty() {
        return Err(Unusable::NoTypes);
    }
    if ctx.settings.gates.node_overlay {
        let store = ctx.cluster.overlay_store().ok_or(Unusable::NotEvaluated)?;
        instance_types = store.apply(name, &instance_types).ok_or(Unusable::NotEvaluated)?;
    }
    Ok(NodePoolInput { node_pool: pool, instance_types })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_whose_volumes_cannot_be_looked_up_is_placed_without_regard_to_others() {
        let pod = |name: &str, claims: bool| {
            let mut value = json!({"metadata": {"name": name, "namespace": "n"},
                "spec": {"containers": [], "nodeSelector": {"team": "a"},
                    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "z",
                        "whenUnsatisfiable": "DoNotSchedule"}]}});
            if claims {
                value["spec"]["volumes"] =
                    json!([{"name": "v", "persistentVolumeClaim": {"claimName": "gone"}}]);
            }
            Arc::new(PodInfo::from_pod(&serde_json::from_value(value).unwrap()))
        };
        let pods = vec![pod("a", true), pod("b", false)];
        let mut snapshot = Snapshot { pods: pods.clone(), ..Snapshot::default() };
        add_volumes(&mut snapshot, &pods, &VolumeObjects::default(), false);
        let left = |at: usize| &snapshot.pods[at].constraints;
        assert!(left(0).spread.is_empty() && left(0).node_selector.has("team"));
        assert_eq!(left(1).spread.len(), 1);
    }
}
