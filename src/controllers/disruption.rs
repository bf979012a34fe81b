//! Disruption: nodes that are not needed, or not as they should be, are replaced and removed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Context, Error, provisioning, runner};
use crate::api::conditions;
use crate::cloud::Policies;
use crate::cluster::Change;
use crate::disruption::{self, Abandoned, Command, Decision, Gates, Input, Method, Prepared};
use crate::operator::logging;
use crate::scheduling::snapshot::{NodePoolInput, Snapshot};

mod events;
mod marks;
mod queue;
mod reboots;
mod record;
mod resume;
mod settled;
mod verdicts;

use queue::Started;
pub use verdicts::Verdicts;

/// The cluster is looked at again after this long when there is nothing to do.
const PERIOD: Duration = Duration::from_secs(10);
/// A NodeClaim that became consolidatable is looked at at once, others that do within this time when
/// the loop comes by again.
const WAKE: Duration = Duration::from_secs(3);
/// A pass that a NodeClaim woke waits this long for its neighbors: NodeClaims that are released by the
/// same change become consolidatable one after another, and together they allow better commands.
const SETTLE: Duration = Duration::from_millis(1500);
/// An incomplete state is looked at again after this long.
const UNSYNCED: Duration = Duration::from_secs(1);
/// What a pass decides from is read again after this long, even if nothing changed.
const CURRENT: Duration = Duration::from_secs(1);
/// A consolidation must still hold after this long before it is carried out.
const VALIDATION: Duration = Duration::from_secs(15);
/// Time that each kind of consolidation may take.
const MULTI_LIMIT: Duration = Duration::from_secs(60);
const SINGLE_LIMIT: Duration = Duration::from_secs(180);
/// A method that did not run for so long was held up.
const ABNORMAL: Duration = Duration::from_secs(900);
/// A pool whose replacement failed is left by drift for this long, twice as long each time.
const BACK_OFF: Duration = Duration::from_secs(60);
const MOST_BACK_OFF: Duration = Duration::from_secs(3600);

/// What the loop and the commands in flight share.
#[derive(Default)]
pub(super) struct InFlight {
    /// Provider ids of nodes that a command works on.
    queued: Mutex<HashSet<String>>,
    /// Pools whose replacements failed: how often in a row, and until when they are left.
    failed: Mutex<BTreeMap<String, (u32, Timestamp)>>,
    reboots: reboots::History,
}

impl InFlight {
    fn backed_off(&self, now: Timestamp) -> BTreeSet<String> {
        let failed = self.failed.lock();
        failed.iter().filter(|(_, (_, until))| *until > now).map(|(pool, _)| pool.clone()).collect()
    }

    fn replacement_failed(&self, pool: &str, now: Timestamp) {
        let mut failed = self.failed.lock();
        let entry = failed.entry(pool.to_owned()).or_insert((0, now));
        let wait = BACK_OFF.saturating_mul(1 << entry.0.min(10)).min(MOST_BACK_OFF);
        *entry = (entry.0 + 1, now + wait);
    }

    fn replacement_came_up(&self, pool: &str) {
        self.failed.lock().remove(pool);
    }
}

/// What a pass hands to the next one.
#[derive(Default)]
struct Loop {
    /// Ends with the controller, and with it the commands that are being carried out.
    commands: JoinSet<()>,
    /// What an earlier process began was picked up.
    resumed: bool,
    last: Option<Instant>,
    settled: settled::Settled,
}

/// Starts the loop.
pub fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    record::preset();
    let (ctx, in_flight) = (Arc::clone(ctx), Arc::new(InFlight::default()));
    let passes = Arc::new(tokio::sync::Mutex::new(Loop::default()));
    let context = Arc::clone(&ctx);
    let woken = Arc::new(AtomicBool::new(false));
    runner::singleton(tasks, "disruption", &context, ripe(Arc::clone(&woken)), move || {
        let (ctx, in_flight) = (Arc::clone(&ctx), Arc::clone(&in_flight));
        let (passes, woken) = (Arc::clone(&passes), Arc::clone(&woken));
        async move {
            if woken.swap(false, Ordering::AcqRel) {
                tokio::time::sleep(SETTLE).await;
            }
            let mut passes = passes.lock().await;
            while passes.commands.try_join_next().is_some() {}
            if !ctx.cluster.synced(ctx.clock.now()) {
                return Ok(Some(UNSYNCED));
            }
            if !passes.resumed {
                resume::commands(&ctx, &in_flight, &mut passes.commands).await?;
                passes.resumed = true;
            }
            warn_of_gap(&mut passes.last);
            let started = pass(&ctx, &in_flight, &mut passes).await?;
            Ok(Some(if started { Duration::ZERO } else { PERIOD }))
        }
    });
}

/// Logs when the loop was held up for long.
fn warn_of_gap(last: &mut Option<Instant>) {
    let now = Instant::now();
    if let Some(last) = last.replace(now)
        && now.duration_since(last) > ABNORMAL
    {
        tracing::debug!(
            "name" = "disruption-loop",
            "time_since" = logging::go_duration(now.duration_since(last)),
            "abnormal time between runs"
        );
    }
}

/// Wakes the loop when a NodeClaim becomes consolidatable, so that `consolidateAfter` and the time
/// for validation are all that a command waits for; in a storm of them not too often.
fn ripe(woken: Arc<AtomicBool>) -> impl Fn(&Context, &Change) -> bool + Send + 'static {
    let last = Mutex::new(Instant::now());
    move |ctx, change| {
        let Change::NodeClaim(name) = change else { return false };
        let Some(claim) = ctx.cluster.claim(name) else { return false };
        let list = claim.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        let since = conditions::get(list, conditions::CONSOLIDATABLE)
            .filter(|c| c.status == conditions::TRUE)
            .map(|c| ctx.clock.since(c.last_transition_time.0));
        let mut last = last.lock();
        if since.is_none_or(|since| since > WAKE) || last.elapsed() < WAKE {
            return false;
        }
        *last = Instant::now();
        woken.store(true, Ordering::Release);
        true
    }
}

/// The methods that settings let run.
fn methods(ctx: &Context) -> impl Iterator<Item = Method> {
    let gates = ctx.settings.gates;
    let repair = gates.node_repair && !ctx.settings.legacy_node_repair;
    Method::ALL.into_iter().filter(move |method| match method {
        Method::Repair => repair,
        Method::StaticDrift => gates.static_capacity,
        _ => true,
    })
}

/// Tries every method once; returns whether a command was started.
async fn pass(
    ctx: &Arc<Context>,
    in_flight: &Arc<InFlight>,
    passes: &mut Loop,
) -> Result<bool, Error> {
    marks::clean_up(ctx, in_flight).await?;
    events::pods(ctx);
    let mut look = Look::now(ctx, in_flight).await;
    for method in methods(ctx) {
        if !look.is_current(ctx) {
            look = Look::now(ctx, in_flight).await;
        }
        let seen = &look.seen;
        if passes.settled.covers(method, seen) {
            continue;
        }
        let decision = decide(ctx, &look, method).await;
        passes.settled.note(method, seen, &decision);
        events::stay(ctx, seen, method, &decision);
        events::budgets(ctx, method, &decision);
        ctx.verdicts.keep(method, seen.now, &decision);
        if decision.commands.is_empty() {
            continue;
        }
        let found = decision.commands;
        if carry_out(ctx, in_flight, found, &mut passes.commands).await? {
            return Ok(true);
        }
        // None of them holds any more, so what they were found in does not either.
        look = Look::now(ctx, in_flight).await;
    }
    Ok(false)
}

/// What the methods of one pass look at, as long as it does not change.
struct Look {
    seen: Arc<Seen>,
    /// Not with what was seen, which is kept for the next passes: a world is as large as the cluster.
    prepared: Arc<Mutex<Prepared>>,
}

impl Look {
    async fn now(ctx: &Context, in_flight: &InFlight) -> Self {
        let seen = Arc::new(Seen::now(ctx, in_flight).await);
        Self { seen, prepared: Arc::default() }
    }

    /// True as long as another look would show the same.
    fn is_current(&self, ctx: &Context) -> bool {
        self.seen.revision == ctx.cluster.revision() && ctx.clock.since(self.seen.now) < CURRENT
    }
}

/// Starts commands that were found together, each by itself; returns whether any was. Nothing is
/// drained before all are marked: pods would move to nodes that the next command removes.
async fn carry_out(
    ctx: &Arc<Context>,
    in_flight: &Arc<InFlight>,
    found: Vec<Command>,
    tasks: &mut JoinSet<()>,
) -> Result<bool, Error> {
    for command in &found {
        events::candidates(ctx, command);
    }
    let (mut begun, mut failed) = (Vec::new(), None);
    for command in validate(ctx, in_flight, found).await {
        events::approved(ctx, &command);
        match queue::start(ctx, in_flight, command).await {
            Ok(Started::Nothing) => {}
            Ok(started) => begun.push(started),
            Err(error) => {
                if let Some(earlier) = failed.replace(error) {
                    tracing::error!("error" = %earlier, "Reconciler error");
                }
            }
        }
    }
    let any = !begun.is_empty();
    for started in begun {
        queue::follow_to_end(ctx, in_flight, started, tasks);
    }
    match failed {
        Some(error) if any => tracing::error!("error" = %error, "Reconciler error"),
        Some(error) => return Err(error),
        None => {}
    }
    Ok(any)
}

/// What a decision is made from.
struct Seen {
    revision: u64,
    snapshot: Snapshot,
    pools: Vec<NodePoolInput>,
    pdbs: Vec<Arc<PodDisruptionBudget>>,
    queued: HashSet<String>,
    backed_off: BTreeSet<String>,
    rebooted: HashSet<String>,
    now: Timestamp,
}

impl Seen {
    async fn now(ctx: &Context, in_flight: &InFlight) -> Self {
        // Before anything is read: what changes meanwhile is then looked at again.
        let revision = ctx.cluster.revision();
        let pools = provisioning::all_pools(ctx).await;
        let snapshot = provisioning::snapshot(ctx).await;
        let now = ctx.clock.now();
        Self {
            revision,
            snapshot,
            pools,
            pdbs: ctx.cluster.pdbs(),
            queued: in_flight.queued.lock().clone(),
            backed_off: in_flight.backed_off(now),
            rebooted: in_flight.reboots.spent(now),
            now,
        }
    }

    fn input<'a>(&'a self, ctx: &'a Context) -> Input<'a> {
        static NONE: Policies = Policies::none();
        let gates = ctx.settings.gates;
        Input {
            snapshot: &self.snapshot,
            pools: &self.pools,
            pdbs: &self.pdbs,
            now: self.now,
            queued: &self.queued,
            backed_off: &self.backed_off,
            repair: if gates.node_repair { ctx.cloud.repair_policies() } else { &NONE },
            rebooted: &self.rebooted,
            gates: Gates {
                spot_to_spot: gates.spot_to_spot_consolidation,
                terminate_first_drift: gates.terminate_first_drift,
                terminate_first_repair: gates.terminate_first_repair,
            },
        }
    }
}

async fn decide(ctx: &Arc<Context>, look: &Look, method: Method) -> Decision {
    let limit = if method == Method::MultiNode { MULTI_LIMIT } else { SINGLE_LIMIT };
    let begun = Instant::now();
    let (shared, given, prepared) =
        (Arc::clone(ctx), Arc::clone(&look.seen), Arc::clone(&look.prepared));
    let decided = super::compute(move || {
        let end = Instant::now() + limit;
        let input = given.input(&shared);
        prepared.lock().decide(&input, method, &|| Instant::now() < end)
    })
    .await;
    let decision = decided.unwrap_or_else(|error| {
        tracing::error!("error" = %error, "method" = method.name(), "disruption method ended early");
        Decision::default()
    });
    record::decision(method, &decision, begun.elapsed());
    decision
}

/// Waits a while and asks whether the commands still hold.
async fn validate(
    ctx: &Arc<Context>,
    in_flight: &Arc<InFlight>,
    commands: Vec<Command>,
) -> Vec<Command> {
    let Some(what) = commands.first().and_then(|c| c.method.validated()) else { return commands };
    tokio::time::sleep(VALIDATION).await;
    let seen = Seen::now(ctx, in_flight).await;
    let shared = Arc::clone(ctx);
    let checked =
        super::compute(move || disruption::all_still_valid(&seen.input(&shared), commands))
            .await
            .unwrap_or_default();
    let mut valid = Vec::with_capacity(checked.len());
    for outcome in checked {
        match outcome {
            Ok(command) => valid.push(command),
            Err(abandoned) => {
                let (why, command) = *abandoned;
                abandon(ctx, &command, &why, command.method.validated().unwrap_or(what));
            }
        }
    }
    valid
}

fn abandon(ctx: &Context, command: &Command, why: &Abandoned, what: &str) {
    tracing::debug!(
        "reason" = why.reason(),
        "error" = %why,
        "command" = command.describe(""),
        "abandoning {what} attempt due to pod churn, command is no longer valid"
    );
    record::failed_validation(command);
    events::abandoned(ctx, command, why);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::controllers::tests::{Asked, api_server, context};
    use crate::simulate::{World, build::adopt, load};

    /// Two full nodes, of which neither can go.
    fn full_nodes() -> Seen {
        let node = |name: &str| {
            json!({"node": {"metadata": {"name": name, "labels": {
                    "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": "a",
                    "node.kubernetes.io/instance-type": "large", "karpenter.sh/nodepool": "p",
                    "karpenter.sh/capacity-type": "on-demand", "karpenter.sh/registered": "true",
                    "karpenter.sh/initialized": "true"}},
                "spec": {"providerID": format!("aws:///a/{name}")},
                "status": {"capacity": {"cpu": "4", "memory": "8Gi", "pods": "20"},
                    "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "20"},
                    "conditions": [{"type": "Ready", "status": "True"}]}},
              "pods": [{"metadata": {"name": name, "namespace": "n"},
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "3900m"}}}]},
                "status": {"phase": "Running"}}]})
        };
        let scenario = json!({
            "nodePools": [{"apiVersion": "karpenter.sh/v1", "kind": "NodePool",
                "metadata": {"name": "p"}, "spec": {
                    "disruption": {"consolidateAfter": "0s", "budgets": [{"nodes": "100%"}]},
                    "template": {"spec": {"requirements": [], "nodeClassRef":
                        {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "d"}}}}}],
            "instanceTypes": [{"name": "large", "requirements": [],
                "capacity": {"cpu": "4", "memory": "8Gi", "pods": "20"},
                "offerings": [{"zone": "a", "capacityType": "on-demand", "price": 0.2}]}],
            "nodes": [node("n1"), node("n2")]});
        let scenario = load(scenario.to_string().as_bytes()).unwrap();
        let World { mut snapshot, pools, pdbs, .. } = World::for_disruption(scenario).unwrap();
        adopt(&mut snapshot.nodes, &pools);
        Seen {
            revision: 0,
            snapshot,
            pools,
            pdbs,
            queued: HashSet::new(),
            backed_off: BTreeSet::new(),
            rebooted: HashSet::new(),
            now: Timestamp::from_second(3600).unwrap(),
        }
    }

    #[tokio::test]
    async fn the_methods_of_one_pass_share_one_prepared_world() {
        let ctx = context(&api_server(Vec::new(), &Asked::default()));
        let look = Look { seen: Arc::new(full_nodes()), prepared: Arc::default() };
        let mut asked = BTreeSet::new();
        for method in methods(&ctx) {
            let decision = decide(&ctx, &look, method).await;
            assert_eq!(decision.commands.len(), 0, "{:?}", decision.commands);
            if decision.simulations > 0 {
                asked.insert(method);
            }
        }
        assert_eq!(asked, BTreeSet::from([Method::MultiNode, Method::SingleNode]));
        assert_eq!(look.prepared.lock().worlds(), 1);
    }
}
