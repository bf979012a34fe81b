//! What the API of the fleet serves: figures from the cluster's state, and what happened lately.
//!
//! The figures are computed when somebody asks, and kept for a second, so that a page that is open in
//! many browsers costs no more than one. The time line looks at NodeClaims and prices every ten seconds.
//! None of this runs while the API's port is 0, which is the default.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::{Context, provisioning};
use crate::api::v1::NodeClaim;
use crate::api::{conditions, labels};
use crate::disruption::candidate::Pools;
use crate::fleet::{Fleet, Rejections};
use crate::operator::fleet_api::{Decision, Saving, Source, Timeline};
use crate::scheduling::node::StateNode;
use crate::scheduling::{self, snapshot::Snapshot};

/// How long an answer is good for.
const FRESH: SignedDuration = SignedDuration::from_secs(1);
/// Time between looks at NodeClaims and the cost.
const PERIOD: Duration = Duration::from_secs(10);
/// The source of the API's answers.
pub struct Figures {
    ctx: Arc<Context>,
    // Held while an answer is computed: whoever asks meanwhile gets the same one.
    last: tokio::sync::Mutex<Option<(Timestamp, Arc<Fleet>)>>,
    timeline: Mutex<Timeline>,
}

impl Figures {
    async fn compute(&self) -> Result<Arc<Fleet>, String> {
        let mut last = self.last.lock().await;
        let now = self.ctx.clock.now();
        if let Some((time, fleet)) = &*last
            && now.duration_since(*time) < FRESH
        {
            return Ok(Arc::clone(fleet));
        }
        if !self.ctx.cluster.listed() {
            return Err("the cluster's objects are not listed yet".to_owned());
        }
        let pools = provisioning::all_pools(&self.ctx).await;
        let snapshot = provisioning::snapshot(&self.ctx).await;
        let rejections = self.rejections(&snapshot);
        let mut fleet = tokio::task::spawn_blocking(move || {
            let results = scheduling::solve(&snapshot);
            Fleet::new(&snapshot, &pools, &results, &rejections, now)
        })
        .await
        .map_err(|e| format!("computing the figures: {e}"))?;
        for pool in &mut fleet.node_pools {
            pool.launches = self.ctx.launches.of(&pool.name);
        }
        let fleet = Arc::new(fleet);
        *last = Some((now, Arc::clone(&fleet)));
        Ok(fleet)
    }

    /// What each disruption method last had against each node.
    fn rejections(&self, snapshot: &Snapshot) -> Rejections {
        let of = |node: &str| {
            let last = self.ctx.verdicts.of(node).into_iter();
            last.filter_map(|(method, _, verdict)| Some((method, verdict.rejection?))).collect()
        };
        snapshot.nodes.iter().map(|n| (n.name().to_owned(), of(n.name()))).collect()
    }
}

impl Source for Figures {
    fn fleet(&self) -> BoxFuture<'_, Result<Arc<Fleet>, String>> {
        Box::pin(self.compute())
    }

    fn timeline(&self) -> Timeline {
        let savings = self.ctx.savings.totals(self.ctx.clock.now()).into_iter();
        let savings = savings.map(|(key, total)| Saving {
            node_pool: key.nodepool,
            reason: key.reason,
            per_hour: total.per_hour,
            total: total.dollars,
        });
        let mut timeline = self.timeline.lock().clone();
        timeline.savings = savings.collect();
        timeline
    }
}

/// Starts the API and what it needs, unless its port is 0.
pub fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    if ctx.settings.api_address.port() == 0 {
        return;
    }
    let figures = Arc::new(Figures {
        ctx: Arc::clone(ctx),
        last: tokio::sync::Mutex::new(None),
        timeline: Mutex::new(Timeline::default()),
    });
    let address = ctx.settings.api_address;
    tasks.spawn(async move {
        let source: Arc<dyn Source> = Arc::clone(&figures) as _;
        // Without the API everything else goes on: it only shows.
        if let Err(error) = crate::operator::fleet_api::serve(address, source).await {
            tracing::error!("error" = %error, "failed to serve the fleet API");
            return std::future::pending().await;
        }
        let mut known = Known::default();
        loop {
            figures.observe(&mut known).await;
            tokio::time::sleep(PERIOD).await;
        }
    });
}

/// NodeClaims that the time line has heard of.
#[derive(Default)]
struct Known {
    /// Whether the claim was being deleted, by name.
    claims: HashMap<String, bool>,
    started: bool,
}

impl Figures {
    /// Adds to the time line what changed since the last look.
    async fn observe(&self, known: &mut Known) {
        if !self.ctx.cluster.listed() {
            return;
        }
        let pools = provisioning::all_pools(&self.ctx).await;
        let now = self.ctx.clock.now();
        let prices = prices(&self.ctx.cluster.state_nodes(), &Pools::new(&pools));
        let price = |claim: &str| prices.get(claim).copied();
        let claims = self.ctx.cluster.claims();
        let mut timeline = self.timeline.lock();
        timeline.sample(now, prices.values().sum());
        let mut seen = HashMap::new();
        for claim in &claims {
            let Some(name) = claim.metadata.name.clone() else { continue };
            let launched = claim
                .status
                .as_ref()
                .is_some_and(|s| conditions::is_true(&s.conditions, conditions::LAUNCHED));
            if !launched {
                continue;
            }
            let deleting = claim.metadata.deletion_timestamp.is_some();
            let before = known.claims.get(&name);
            if before.is_none() {
                timeline.add(decision(claim, "launched", launch_time(claim, now), price(&name)));
            }
            // What was already going away when this process started is no news.
            if deleting && before != Some(&true) && (known.started || before.is_some()) {
                timeline.add(decision(claim, "deleted", now, price(&name)));
            }
            seen.insert(name, deleting);
        }
        *known = Known { claims: seen, started: true };
    }
}

/// What each NodeClaim costs per hour, as far as that is known.
fn prices(nodes: &[StateNode], pools: &Pools<'_>) -> BTreeMap<String, f64> {
    let of = |node: &StateNode| {
        let claim = node.node_claim.as_ref()?.metadata.name.clone()?;
        Some((claim, pools.price_of(node)?))
    };
    nodes.iter().filter_map(of).collect()
}

fn launch_time(claim: &NodeClaim, now: Timestamp) -> Timestamp {
    let status = claim.status.as_ref();
    status
        .and_then(|s| conditions::get(&s.conditions, conditions::LAUNCHED))
        .map_or(now, |c| c.last_transition_time.0)
}

fn decision(
    claim: &NodeClaim,
    kind: &'static str,
    time: Timestamp,
    price: Option<f64>,
) -> Decision {
    let label = |key: &str| claim.metadata.labels.as_ref().and_then(|l| l.get(key)).cloned();
    let reason = claim
        .status
        .as_ref()
        .and_then(|s| conditions::get(&s.conditions, conditions::DISRUPTION_REASON))
        .filter(|_| kind == "deleted")
        .map(|c| c.reason.clone());
    Decision {
        time,
        kind,
        node_claim: claim.metadata.name.clone().unwrap_or_default(),
        node_pool: label(labels::NODEPOOL),
        instance_type: label(labels::INSTANCE_TYPE),
        reason,
        price,
    }
}
