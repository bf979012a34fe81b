//! From a scenario to what the deciding functions read.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use rustc_hash::FxHashSet;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::objects::{Gates, Objects};
use super::scenario::{NodeEntry, Scenario, ScenarioOptions, TypeEntry};
use super::{ScenarioError, check, read};
use crate::api::scheduler_config::SchedulerConfig;
use crate::api::v1::{NodeClaim, NodeClaimSpec, NodePool};
use crate::api::{conditions, conversion, labels};
use crate::assemble::{Inputs, PoolOffer, PoolProblem, Purpose, Settings, assemble};
use crate::disruption;
use crate::disruption::repair::Policies;
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::node::{NodeView, StateNode};
use crate::scheduling::pod::{PodInfo, PodKey};
use crate::scheduling::snapshot::{NodePoolInput, Options, Snapshot};

/// Everything that a scenario says, ready to decide on.
#[derive(Debug, Default)]
pub struct World {
    /// What scheduling reads.
    pub snapshot: Snapshot,
    /// All pools, also those in which nothing is launched for pods.
    pub pools: Vec<NodePoolInput>,
    /// PodDisruptionBudgets, for disruption.
    pub pdbs: Vec<Arc<PodDisruptionBudget>>,
    /// When to decide, if the scenario says.
    pub now: Option<Timestamp>,
    /// Feature gates of disruption.
    pub gates: disruption::Gates,
    /// Conditions that repair is about; none where its gate is off.
    pub repair: Policies,
    /// Waiting pods that are left alone, and why.
    pub ignored: Vec<(PodKey, String)>,
    /// Objects without effect, and why.
    pub left_out: Vec<(String, String)>,
}

// Gates that change a decision; the others of the controller have nothing to act on here.
pub(super) const GATES: [&str; 9] = [
    "NodeRepair",
    "ReservedCapacity",
    "SpotToSpotConsolidation",
    "NodeOverlay",
    "StaticCapacity",
    "CapacityBuffer",
    "TerminateFirstDrift",
    "TerminateFirstRepair",
    // The setting ignore-dra-requests, the other way round.
    "DynamicResources",
];

impl World {
    /// Checks and converts a scenario, to place its pods.
    ///
    /// # Errors
    /// When a part of it cannot be used; the error names the part.
    pub fn new(scenario: Scenario) -> Result<Self, ScenarioError> {
        Self::assembled(scenario, Purpose::Provisioning)
    }

    /// Checks and converts a scenario, to find nodes to disrupt.
    ///
    /// # Errors
    /// When a part of it cannot be used; the error names the part.
    pub fn for_disruption(scenario: Scenario) -> Result<Self, ScenarioError> {
        Self::assembled(scenario, Purpose::Disruption)
    }

    fn assembled(scenario: Scenario, purpose: Purpose) -> Result<Self, ScenarioError> {
        let options = scenario.options.clone();
        let gate = |name: &str| options.feature_gates.get(name).copied();
        let solver = solver_options(&options)?;
        let scheduler_config = &SchedulerConfig::parse(&options.scheduler_config)
            .map_err(|e| ScenarioError::new("options.schedulerConfig", e))?;
        let (mut inputs, objects) = read_inputs(scenario)?;
        let gates = Gates {
            overlays: gate("NodeOverlay").unwrap_or(false),
            buffers: gate("CapacityBuffer").unwrap_or(false),
        };
        let left_out = objects.give(&mut inputs, gates);
        let (pdbs, pools) = (inputs.pdbs.clone(), inputs.node_pools.clone());
        let on = |name: &str| gate(name).unwrap_or(false);
        let now = options.now.unwrap_or(Timestamp::UNIX_EPOCH);
        let settings = Settings { options: solver, scheduler_config, now, purpose };
        let assembly = assemble(inputs, &settings);
        let mut left_out: Vec<(String, String)> =
            left_out.into_iter().map(|l| (l.what, l.why)).collect();
        left_out.extend(assembly.unusable_pools.iter().filter_map(|(name, problem)| {
            Some((format!("NodePool {name}"), pool_problem(*problem)?.to_owned()))
        }));
        let not_waiting =
            assembly.not_waiting.iter().map(|(p, why)| (p.key.clone(), why.to_string()));
        let ignored = assembly.ignored.iter().map(|(p, why)| (p.key.clone(), why.to_string()));
        Ok(Self {
            ignored: not_waiting.chain(ignored).collect(),
            pools: all_pools(pools, &assembly.snapshot),
            snapshot: assembly.snapshot,
            pdbs,
            now: options.now,
            gates: disruption::Gates {
                spot_to_spot: on("SpotToSpotConsolidation"),
                terminate_first_drift: on("TerminateFirstDrift"),
                terminate_first_repair: on("TerminateFirstRepair"),
            },
            repair: if on("NodeRepair") { repair_policies()? } else { Policies::none() },
            left_out,
        })
    }
}

/// What the provider repairs.
#[cfg(feature = "aws")]
fn repair_policies() -> Result<Policies, ScenarioError> {
    crate::cloud::aws::repair::repair_policies(false)
        .map_err(|e| ScenarioError::new("options.featureGates", e))
}

/// Without a provider nothing is repaired.
#[cfg(not(feature = "aws"))]
fn repair_policies() -> Result<Policies, ScenarioError> {
    Ok(Policies::none())
}

/// Every pool of ours; of those in the snapshot the types as overlays make them.
fn all_pools(offers: Vec<PoolOffer>, snapshot: &Snapshot) -> Vec<NodePoolInput> {
    let input = |offer: PoolOffer| {
        let name = &offer.node_pool.metadata.name;
        let laid = snapshot.node_pools.iter().find(|p| p.node_pool.metadata.name == *name);
        let instance_types = match laid {
            Some(laid) => Arc::clone(&laid.instance_types),
            None => offer.instance_types?,
        };
        Some(NodePoolInput { node_pool: offer.node_pool, instance_types })
    };
    offers.into_iter().filter(|o| o.node_pool.is_managed()).filter_map(input).collect()
}

/// Why a pool has no effect; `None` for those whose instance types are for the document to give.
fn pool_problem(problem: PoolProblem) -> Option<&'static str> {
    match problem {
        PoolProblem::Foreign => Some("its node class is another provider's"),
        PoolProblem::Static => Some("a static pool launches nothing for pods"),
        PoolProblem::Deleting => Some("it is being deleted"),
        PoolProblem::NotReady => Some("it is not ready"),
        PoolProblem::TypesUnknown | PoolProblem::NoTypes | PoolProblem::AwaitsOverlays => None,
    }
}

fn solver_options(options: &ScenarioOptions) -> Result<Options, ScenarioError> {
    let gate = |name: &str| options.feature_gates.get(name).copied();
    if let Some(name) = options.feature_gates.keys().find(|k| !GATES.contains(&k.as_str())) {
        let message = format!("unknown feature gate, expected one of {}", GATES.join(", "));
        return Err(ScenarioError::new(format!("options.featureGates.{name}"), message));
    }
    let preferences = ["Respect", "Ignore"];
    let min_values = ["Strict", "BestEffort"];
    Ok(Options {
        respect_preferences: choice(
            "options.preferencePolicy",
            &options.preference_policy,
            preferences,
        )?,
        best_effort_min_values: !choice(
            "options.minValuesPolicy",
            &options.min_values_policy,
            min_values,
        )?,
        reserved_capacity: gate("ReservedCapacity").unwrap_or(true),
        ignore_dynamic_resources: !gate("DynamicResources").unwrap_or(false),
        ..Options::default()
    })
}

/// What the scenario lists, checked; its objects are not worked in yet.
fn read_inputs(scenario: Scenario) -> Result<(Inputs, Objects), ScenarioError> {
    let pools = node_pools(scenario.node_pools)?;
    let names: BTreeSet<String> = pools.iter().filter_map(|p| p.metadata.name.clone()).collect();
    let ours = pools.iter().any(NodePool::is_managed);
    let types = match scenario.instance_types {
        Some(types) => types.into_items("instanceTypes")?,
        None if !ours => Vec::new(),
        None => {
            let message = "expected instance types, or --aws-instance-types FILE beside it";
            return Err(ScenarioError::new("instanceTypes", message));
        }
    };
    check_types(&types, &names)?;
    let mut inputs = Inputs {
        node_pools: offers(pools, &types),
        daemonset_pods: scenario.daemon_set_pods.into_items("daemonSetPods")?,
        pods: scenario.pods.into_items("pods")?,
        well_known: scenario.well_known_labels.into_iter().collect(),
        ..Inputs::default()
    };
    for (index, entry) in scenario.nodes.into_items("nodes")?.into_iter().enumerate() {
        inputs.nodes.extend(state_node(index, entry)?);
    }
    check_waiting(&inputs.pods)?;
    check_unique(&inputs.pods, &inputs.nodes)?;
    let mut objects = Objects::default();
    for (index, object) in scenario.objects.into_iter().enumerate() {
        objects.add(&format!("objects[{index}]"), object)?;
    }
    Ok((inputs, objects))
}

/// True for the first of two settings, which an empty text means as well.
fn choice(path: &str, text: &str, [first, second]: [&str; 2]) -> Result<bool, ScenarioError> {
    match text {
        "" => Ok(true),
        _ if text == first => Ok(true),
        _ if text == second => Ok(false),
        _ => Err(ScenarioError::new(
            path,
            format!("unknown value {text:?}, expected {first:?} or {second:?}"),
        )),
    }
}

fn typed<T: DeserializeOwned>(path: &str, value: Value) -> Result<T, ScenarioError> {
    read::strict(value, path)
}

fn node_pools(values: Vec<Value>) -> Result<Vec<NodePool>, ScenarioError> {
    let mut pools: Vec<NodePool> = Vec::new();
    for (index, mut value) in values.into_iter().enumerate() {
        let path = format!("nodePools[{index}]");
        if value["apiVersion"] == "karpenter.sh/v1beta1" {
            value = conversion::convert_object(value, "karpenter.sh/v1", &|_| Ok(None))
                .map_err(|e| ScenarioError::new(&path, e))?;
        }
        if value.get("kind").is_some_and(|k| k != "NodePool") {
            return Err(ScenarioError::new(format!("{path}.kind"), "expected \"NodePool\""));
        }
        if value.get("apiVersion").is_some_and(|v| v != "karpenter.sh/v1") {
            let message = "expected \"karpenter.sh/v1\" or \"karpenter.sh/v1beta1\"";
            return Err(ScenarioError::new(format!("{path}.apiVersion"), message));
        }
        let mut pool: NodePool = typed(&path, value)?;
        check::node_pool(&path, &pool)?;
        assume_ready(&mut pool);
        let name = pool.metadata.name.as_deref().unwrap_or_default();
        if pools.iter().any(|p| p.metadata.name.as_deref() == Some(name)) {
            let place = format!("{path}.metadata.name");
            return Err(ScenarioError::new(place, format!("second NodePool {name:?}")));
        }
        pools.push(pool);
    }
    Ok(pools)
}

/// No NodePool that does not exist, and no name twice for one NodePool.
fn check_types(types: &[TypeEntry], pools: &BTreeSet<String>) -> Result<(), ScenarioError> {
    let mut seen = BTreeSet::new();
    for (index, entry) in types.iter().enumerate() {
        let path = format!("instanceTypes[{index}]");
        if let Some(other) = entry.node_pools.iter().flatten().find(|n| !pools.contains(*n)) {
            let message = format!("there is no NodePool {other:?}");
            return Err(ScenarioError::new(format!("{path}.nodePools"), message));
        }
        let name = &entry.instance_type.name;
        let mut users: Vec<&String> = entry.node_pools.iter().flatten().collect();
        if entry.node_pools.is_none() {
            users = pools.iter().collect();
        }
        if users.into_iter().any(|pool| !seen.insert((name, pool))) {
            let message = format!("expected a name of its own, found {name:?} again");
            return Err(ScenarioError::new(format!("{path}.name"), message));
        }
    }
    Ok(())
}

/// Pods with a node stand with that node.
fn check_waiting(pods: &[Arc<PodInfo>]) -> Result<(), ScenarioError> {
    match pods.iter().position(|p| p.node_name.is_some()) {
        None => Ok(()),
        Some(index) => Err(ScenarioError::new(
            format!("pods[{index}].spec.nodeName"),
            "expected a pod that waits: those that have a node stand in that node's pods",
        )),
    }
}

/// No pod, Node or NodeClaim twice.
fn check_unique(pods: &[Arc<PodInfo>], nodes: &[StateNode]) -> Result<(), ScenarioError> {
    let bound: usize = nodes.iter().map(|n| n.pods.len()).sum();
    let mut seen = FxHashSet::with_capacity_and_hasher(pods.len() + bound, Default::default());
    let second = |path: String, what: &str, name: &dyn std::fmt::Display| {
        Err(ScenarioError::new(format!("{path}.metadata.name"), format!("second {what} {name}")))
    };
    if let Some(index) = pods.iter().position(|p| !seen.insert(&p.key)) {
        return second(format!("pods[{index}]"), "pod", &pods[index].key);
    }
    let (mut names, mut claims) = (FxHashSet::default(), FxHashSet::default());
    for (index, state) in nodes.iter().enumerate() {
        if let Some(at) = state.pods.iter().position(|p| !seen.insert(&p.key)) {
            return second(format!("nodes[{index}].pods[{at}]"), "pod", &state.pods[at].key);
        }
        let name = state.node.as_ref().and_then(|n| n.metadata.name.as_deref());
        if let Some(name) = name.filter(|n| !names.insert(*n)) {
            return second(format!("nodes[{index}].node"), "Node", &name);
        }
        let claim = state.node_claim.as_ref().and_then(|c| c.metadata.name.as_deref());
        if let Some(name) = claim.filter(|n| !claims.insert(*n)) {
            return second(format!("nodes[{index}].nodeClaim"), "NodeClaim", &name);
        }
    }
    Ok(())
}

/// The pools, each with what it may launch.
fn offers(pools: Vec<NodePool>, types: &[TypeEntry]) -> Vec<PoolOffer> {
    let everything: Arc<[Arc<InstanceType>]> =
        types.iter().map(|t| Arc::clone(&t.instance_type)).collect();
    let restricted = types.iter().any(|t| t.node_pools.is_some());
    let offer = |pool: NodePool| {
        let name = pool.metadata.name.clone().unwrap_or_default();
        let allowed =
            |t: &&TypeEntry| t.node_pools.as_ref().is_none_or(|list| list.contains(&name));
        // One list for all pools where nothing restricts it: the solver recognizes the shared list
        // and reads it once.
        let instance_types = if restricted {
            types.iter().filter(allowed).map(|t| Arc::clone(&t.instance_type)).collect()
        } else {
            Arc::clone(&everything)
        };
        PoolOffer { node_pool: Arc::new(pool), instance_types: Some(instance_types) }
    };
    pools.into_iter().map(offer).collect()
}

/// A pool of which the document does not say whether it is ready is taken to be.
fn assume_ready(pool: &mut NodePool) {
    let list = &mut pool.status.get_or_insert_default().conditions;
    if conditions::get(list, conditions::READY).is_none() {
        // A manifest has no status. Without this, a file that works with kubectl would launch
        // nothing.
        conditions::set_true(list, conditions::READY, None, Timestamp::UNIX_EPOCH);
    }
}

/// A node; nothing for another provider's NodeClaim without one. With one it counts as any Node.
fn state_node(index: usize, entry: NodeEntry) -> Result<Option<StateNode>, ScenarioError> {
    if entry.node.is_none() && entry.node_claim.is_none() {
        let message = "expected a node, a nodeClaim, or both";
        return Err(ScenarioError::new(format!("nodes[{index}]"), message));
    }
    let node_claim = entry.node_claim.filter(|claim| claim.is_managed());
    if entry.node.is_none() && node_claim.is_none() {
        return Ok(None);
    }
    let view = NodeView {
        node: entry.node,
        node_claim,
        pods: entry.pods,
        marked_for_deletion: entry.marked_for_deletion,
        // A scenario has one moment, so a nomination holds for all of it.
        nominated_until: entry.nominated.then_some(Timestamp::MAX),
        ..NodeView::default()
    };
    Ok(Some(view.into()))
}

/// Gives each initialized node of a pool that comes without a NodeClaim one that may be consolidated.
pub fn adopt(nodes: &mut [StateNode], pools: &[NodePoolInput]) {
    for state in nodes.iter_mut().filter(|n| n.node_claim.is_none()) {
        let (Some(node), Some(pool)) = (&state.node, state.node_pool()) else { continue };
        let known = pools.iter().find(|p| p.node_pool.metadata.name.as_deref() == Some(pool));
        let labels = node.metadata.labels.as_ref();
        // A node that is still starting is never disrupted.
        if labels.and_then(|l| l.get(labels::INITIALIZED)).is_none_or(|v| v != "true") {
            continue;
        }
        let since =
            node.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
        let claim = claim_for(node, known.map(|k| &*k.node_pool), Some(since));
        state.node_claim = Some(Arc::new(claim));
    }
}

/// The NodeClaim behind a Node: launched, and initialized since a moment where there is one.
pub fn claim_for(
    node: &k8s_openapi::api::core::v1::Node,
    pool: Option<&NodePool>,
    since: Option<Timestamp>,
) -> NodeClaim {
    let name = node.metadata.name.clone().unwrap_or_default();
    let mut claim = NodeClaim::new(&name, NodeClaimSpec::default());
    claim.metadata.labels.clone_from(&node.metadata.labels);
    claim.metadata.annotations.clone_from(&node.metadata.annotations);
    claim.metadata.creation_timestamp.clone_from(&node.metadata.creation_timestamp);
    if let Some(pool) = pool {
        let template = &pool.spec.template.spec;
        claim.spec.node_class_ref = template.node_class_ref.clone();
        claim.spec.expire_after = template.expire_after.clone();
        claim.spec.termination_grace_period.clone_from(&template.termination_grace_period);
    }
    let mut status = crate::api::v1::NodeClaimStatus {
        node_name: Some(name),
        provider_id: node.spec.as_ref().and_then(|s| s.provider_id.clone()),
        capacity: node.status.as_ref().and_then(|s| s.capacity.clone()),
        allocatable: node.status.as_ref().and_then(|s| s.allocatable.clone()),
        ..Default::default()
    };
    let up = [conditions::REGISTERED, conditions::INITIALIZED, conditions::CONSOLIDATABLE];
    let at = since.unwrap_or(Timestamp::UNIX_EPOCH);
    conditions::set_true(&mut status.conditions, conditions::LAUNCHED, None, at);
    for kind in up.into_iter().filter(|_| since.is_some()) {
        conditions::set_true(&mut status.conditions, kind, None, at);
    }
    claim.status = Some(status);
    claim
}
