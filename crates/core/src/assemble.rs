//! From what a cluster holds to the snapshot that decisions read: the only way there.
//!
//! The controllers fill [`Inputs`] from their watches and `karpenter simulate` from a document.
//! What counts and what does not is decided here, so that both decide alike: which pools launch,
//! which pods wait, who has to move, what overlays, buffers, default spread constraints, volumes
//! and devices make of them. What was left out comes back as values, for whoever reports it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::api::scheduler_config::SchedulerConfig;
use crate::api::v1::NodePool;
use crate::api::{conditions, taints};
use crate::disruption::pdb::Limits;
use crate::scheduling::default_spread::{self, Selectors};
use crate::scheduling::dra;
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::node::StateNode;
use crate::scheduling::overlay;
use crate::scheduling::pod::{NotWaiting, PodInfo, PodKey};
use crate::scheduling::snapshot::{NodePoolInput, Options, Snapshot};
use crate::scheduling::taints::tolerate_all;
use crate::scheduling::validation::{self, Ignored};
use crate::scheduling::volumes::{self, Unresolved, VolumeObjects};

/// Everything that bears on a decision, as it was read.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// Every NodePool.
    pub node_pools: Vec<PoolOffer>,
    /// One representative pod per DaemonSet.
    pub daemonset_pods: Vec<Arc<PodInfo>>,
    /// Nodes that exist or are being launched, with the pods bound to them.
    pub nodes: Vec<StateNode>,
    /// Pods without a node.
    pub pods: Vec<Arc<PodInfo>>,
    /// Pods for which a NodeClaim without an instance was made: they are not placed again.
    pub promised: HashSet<PodKey>,
    /// Pods that stand for the room of capacity buffers.
    pub buffer_pods: Vec<Arc<PodInfo>>,
    /// Every PodDisruptionBudget.
    pub pdbs: Vec<Arc<PodDisruptionBudget>>,
    /// Claims, volumes, classes and driver limits.
    pub volumes: Arc<VolumeObjects>,
    /// Selectors of Services and workloads.
    pub selectors: Arc<Selectors>,
    /// Devices, their classes and the claims on them.
    pub dynamic: Arc<dra::Objects>,
    /// The overlays in force; nothing when they do not count.
    pub overlays: Overlays,
    /// Labels of namespaces.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Label keys that a new node may lack and still satisfy, besides the provider's own.
    pub well_known: BTreeSet<String>,
}

/// A NodePool and what its provider offers it, before overlays.
#[derive(Clone, Debug)]
pub struct PoolOffer {
    /// The NodePool.
    pub node_pool: Arc<NodePool>,
    /// Its instance types; nothing where they are not known for now.
    pub instance_types: Option<Arc<[Arc<InstanceType>]>>,
}

/// What overlays make of the pools' instance types.
#[derive(Clone, Debug, Default)]
pub enum Overlays {
    /// The gate is off.
    #[default]
    Off,
    /// They were not judged yet, so that no type's price is known for sure.
    Awaited,
    /// Those in force.
    InForce(Arc<overlay::Store>),
}

/// What a snapshot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Pods that wait, and those whose node goes away, are placed.
    Provisioning,
    /// Any node may be tried as gone: every pod may have to move.
    Disruption,
}

/// Settings that decide what counts.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// Settings of the solver.
    pub options: Options,
    /// Spread constraints for pods without any of their own.
    pub scheduler_config: &'a SchedulerConfig,
    /// The moment of the decision.
    pub now: Timestamp,
    /// What the snapshot is for.
    pub purpose: Purpose,
}

/// A snapshot, and what is not in it.
#[derive(Clone, Debug, Default)]
pub struct Assembly {
    /// What decisions read.
    pub snapshot: Snapshot,
    /// How many of the snapshot's pods wait for their first node, buffers' pods included.
    pub pending: usize,
    /// How many of them have to leave their node.
    pub leaving: usize,
    /// Those of them whose node is only marked: a command waits for its replacements, and no node
    /// is launched beside those.
    pub held: HashSet<PodKey>,
    /// Waiting pods that are left alone, and why.
    pub ignored: Vec<(Arc<PodInfo>, Ignored)>,
    /// Pods that do not wait for a new node, and why.
    pub not_waiting: Vec<(Arc<PodInfo>, NotWaiting)>,
    /// Pools that launch nothing, and why.
    pub unusable_pools: Vec<(String, PoolProblem)>,
    /// Pods whose volumes could not be looked up: they are placed without regard to other pods.
    pub unresolved: Vec<(PodKey, Unresolved)>,
}

/// Why a pool launches nothing for pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolProblem {
    /// Its node class is another provider's.
    Foreign,
    /// It keeps a fixed number of nodes, whatever waits.
    Static,
    /// It is being deleted.
    Deleting,
    /// It is not ready.
    NotReady,
    /// Its provider could not be asked.
    TypesUnknown,
    /// Its provider offers it no type.
    NoTypes,
    /// Overlays were not judged for it yet.
    AwaitsOverlays,
}

/// Whether a pool launches nodes for pods.
///
/// # Errors
/// Why it does not.
pub fn launches(pool: &NodePool) -> Result<(), PoolProblem> {
    if !pool.is_managed() {
        return Err(PoolProblem::Foreign);
    }
    if pool.metadata.deletion_timestamp.is_some() {
        return Err(PoolProblem::Deleting);
    }
    if pool.spec.replicas.is_some() {
        return Err(PoolProblem::Static);
    }
    let status = pool.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    if conditions::is_true(status, conditions::READY) { Ok(()) } else { Err(PoolProblem::NotReady) }
}

/// Makes the snapshot.
#[must_use]
pub fn assemble(inputs: Inputs, settings: &Settings<'_>) -> Assembly {
    let mut assembly = Assembly::default();
    let mut pods = Vec::with_capacity(inputs.pods.len());
    for pod in inputs.pods {
        if inputs.promised.contains(&pod.key) {
            continue;
        }
        if let Err(why) = pod.waits() {
            assembly.not_waiting.push((pod, why));
            continue;
        }
        match validation::waiting_pod(&pod, &inputs.volumes) {
            Ok(()) => pods.push(pod),
            Err(why) => assembly.ignored.push((pod, why)),
        }
    }
    pods.extend(inputs.buffer_pods);
    assembly.pending = pods.len();
    let mut nodes = inputs.nodes;
    let config = settings.scheduler_config;
    match settings.purpose {
        Purpose::Provisioning => {
            let mut leaving = leaving(&nodes, &Limits::new(&inputs.pdbs), settings.now);
            leaving.retain(|pod| !inputs.promised.contains(&pod.key));
            assembly.leaving = leaving.len();
            let marked = nodes.iter().filter(|n| n.only_marked()).flat_map(|n| &n.pods);
            assembly.held = marked.map(|pod| pod.key.clone()).collect();
            pods.extend(leaving);
        }
        // Disruption takes the pods of leaving nodes itself: which ones depends on the candidates.
        Purpose::Disruption if !config.default_constraints.is_empty() => {
            for node in &mut nodes {
                default_spread::apply(&mut node.pods, config, &inputs.selectors);
            }
        }
        Purpose::Disruption => {}
    }
    default_spread::apply(&mut pods, config, &inputs.selectors);
    let (node_pools, problems) = usable_pools(inputs.node_pools, &inputs.overlays);
    assembly.unusable_pools = problems;
    let dynamic =
        if settings.options.ignore_dynamic_resources { Arc::default() } else { inputs.dynamic };
    assembly.snapshot = Snapshot {
        options: settings.options,
        node_pools,
        daemonset_pods: inputs.daemonset_pods,
        nodes,
        pods,
        dynamic,
        namespaces: inputs.namespaces,
        well_known: inputs.well_known,
        ..Snapshot::default()
    };
    assembly.unresolved = add_volumes(&mut assembly.snapshot, &inputs.volumes, settings.purpose);
    assembly
}

/// Pods that will lose their node and can move now.
fn leaving(nodes: &[StateNode], limits: &Limits, now: Timestamp) -> Vec<Arc<PodInfo>> {
    nodes
        .iter()
        .filter(|n| n.deleting())
        .flat_map(|n| &n.pods)
        .filter(|p| moves_now(p, limits, now))
        .cloned()
        .collect()
}

/// Needs another node, and neither annotation nor budgets keep it where it is for good.
fn moves_now(pod: &PodInfo, limits: &Limits, now: Timestamp) -> bool {
    if !pod.is_reschedulable() || (pod.is_active() && pod.do_not_disrupt_active(now)) {
        return false;
    }
    let evictable = pod.is_active()
        && !pod.owners.node
        && tolerate_all([&taints::disrupted()], &pod.constraints.tolerations).is_err();
    !evictable || limits.check_forever(pod).is_ok()
}

/// The pools that launch nodes, with what overlays make of their types, and why others do not.
///
/// A pool that could launch and has no type for now stays: pods get that as the reason.
fn usable_pools(
    pools: Vec<PoolOffer>,
    overlays: &Overlays,
) -> (Vec<NodePoolInput>, Vec<(String, PoolProblem)>) {
    let (mut usable, mut problems) = (Vec::new(), Vec::new());
    for PoolOffer { node_pool, instance_types } in pools {
        let name = node_pool.metadata.name.clone().unwrap_or_default();
        if let Err(problem) = launches(&node_pool) {
            problems.push((name, problem));
            continue;
        }
        let instance_types = offered(&name, instance_types, overlays).unwrap_or_else(|problem| {
            problems.push((name, problem));
            Arc::new([])
        });
        usable.push(NodePoolInput { node_pool, instance_types });
    }
    (usable, problems)
}

fn offered(
    pool: &str,
    types: Option<Arc<[Arc<InstanceType>]>>,
    overlays: &Overlays,
) -> Result<Arc<[Arc<InstanceType>]>, PoolProblem> {
    let types = types.ok_or(PoolProblem::TypesUnknown)?;
    if types.is_empty() {
        return Err(PoolProblem::NoTypes);
    }
    match overlays {
        Overlays::Off => Ok(types),
        Overlays::Awaited => Err(PoolProblem::AwaitsOverlays),
        Overlays::InForce(store) => store.apply(pool, &types).ok_or(PoolProblem::AwaitsOverlays),
    }
}

/// Looks up what the volumes of the pods ask for: of those to place, and where any pod may have to
/// move, of the bound ones, too.
///
/// As upstream, a pod for which that fails is placed nevertheless, without regard to other pods.
fn add_volumes(
    snapshot: &mut Snapshot,
    objects: &VolumeObjects,
    purpose: Purpose,
) -> Vec<(PodKey, Unresolved)> {
    let mut unresolved = Vec::new();
    let mut found = Vec::new();
    let bound = snapshot.nodes.iter().filter(|_| purpose == Purpose::Disruption);
    let bound = bound.flat_map(|n| &n.pods).filter(|p| p.is_reschedulable());
    for pod in snapshot.pods.iter().chain(bound).filter(|p| !p.claims.is_empty()) {
        let asked = volumes::resolve(pod, objects).unwrap_or_else(|failure| {
            let asked = failure.volumes.clone();
            unresolved.push((pod.key.clone(), failure));
            asked
        });
        if !asked.is_free() {
            found.push((pod.key.clone(), Arc::new(asked)));
        }
    }
    snapshot.pod_volumes.extend(found);
    let failed: HashSet<&PodKey> = unresolved.iter().map(|(key, _)| key).collect();
    for pod in snapshot.pods.iter_mut().filter(|p| failed.contains(&p.key)) {
        let constraints = Arc::new(pod.constraints.without_topology());
        Arc::make_mut(pod).constraints = constraints;
    }
    unresolved
}

#[cfg(test)]
mod tests;
