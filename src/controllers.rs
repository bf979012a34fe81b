//! The reconcilers, and the table of all of them.
//!
//! Each is thin: it reads the state, asks a pure function or the provider, and writes the answer.
//!
//! [`runner`] runs all of them. Workers are what one cpu gives; `..` names the most that more cpus give.
//!
//! | controller | object | workers | woken by |
//! |---|---|---|---|
//! | `nodeclass` | EC2NodeClass | 10 | the class, the end of a NodeClaim |
//! | `nodeclass.hash` | EC2NodeClass | 10 | the class |
//! | `nodepool.readiness` | NodePool | 10 | the pool, its class, each 5 s |
//! | `nodeclaim.lifecycle` | NodeClaim | 1000..5000 | the claim, its Node, the Node's devices |
//! | `nodeclaim.disruption` | NodeClaim | 10..1000 | the claim, its pool, its class, each 5 min |
//! | `nodeclaim.podevents` | NodeClaim | 10 | pods that come to or leave its Node |
//! | `nodeclaim.expiration` | NodeClaim | 10 | the claim, its expiry |
//! | `nodeclaim.consistency` | NodeClaim | 10 | the claim, each 10 min |
//! | `nodeclaim.hydration` | NodeClaim | 10 | the claim |
//! | `nodeclaim.tagging` | NodeClaim | 50 | the claim |
//! | `nodeclaim.reboot` | NodeClaim | 10 | a claim that reboots, its Node, each 15 s |
//! | `nodeclaim.garbagecollection` | none | 1 | each 2 min |
//! | `node.termination` | Node | 100..5000 | the Node and its pods on its way out, each 1 s |
//! | `eviction-queue` | Pod | 100..5000 | `node.termination` |
//! | `node.health` | Node | 10 | the Node |
//! | `node.hydration` | Node | 10 | the Node |
//! | `provisioner` | none | 1 | its triggers |
//! | `provisioner.trigger.pod`, `.node` | Pod, Node | 10 | the object, each 10 s |
//! | `disruption` | none | 1 | a NodeClaim that becomes consolidatable, each 10 s |
//! | `pod.deletioncost` | none | 1 | each 60 s |
//! | `static.provisioning`, `static.deprovisioning` | NodePool | 10 | the pool, its NodeClaims |
//! | `capacitybuffer` | CapacityBuffer | 10 | the buffer, its PodTemplate, each 30 s |
//! | `nodeoverlay.controller` | none | 1 | overlays, pools, classes, each 6 h |
//! | `dynamicresources.deviceallocation` | ResourceClaim | 1 | the claim |
//! | `interruption` | none | 1 | messages of the queue |
//! | `interruption.instancestatus` | none | 1 | each 60 s |
//! | `instance.garbagecollection` | none | 1 | each 10 s, later each 2 min |
//! | `instanceprofile.garbagecollection` | none | 1 | each 30 min |
//! | `launchtemplate` | none | 1 | each 10 s |
//! | `capacityreservation.capacitytype`, `.expiration` | none | 1 | each 60 s |
//! | `zonalshift` | none | 1 | each 30 s |
//! | `providers.instancetype`, `providers.pricing` | none | 1 | each 12 h |
//! | `providers.instancetype.capacity` | Node | 1 | the Node |
//! | `providers.version` | none | 1 | each 5 min |
//! | `providers.ssm.invalidation` | none | 1 | each 30 min |
//! | `cloudprovider.metrics` | none | 1 | each 60 s |
//! | `metrics.node`, `metrics.nodepool` | none | 1 | each 5 s, 10 s |
//! | `migration.crd` | CustomResourceDefinition | 3 | each 30 s until it is done |
//!
//! What only follows the changes of the state to count them (`metrics.pod`, the controllers of status
//! conditions, lifetimes) has no queue: nothing of it can fail.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::v1::NodePool;
use crate::clock::Clock;
#[cfg(feature = "aws")]
use crate::cloud::aws::AwsProvider;
use crate::cloud::{CloudProvider, FailedCall};
use crate::cluster::State;
use crate::operator::events::Recorder;
use crate::operator::settings::Settings;
use crate::scheduling::instance_type::InstanceType;

/// Logs a failure with a message; of a failed AWS call also what AWS support asks for.
macro_rules! log_failure {
    ($error:expr, $message:literal) => {{
        let error = &$error;
        let call = error.failed_call();
        let call = call.as_ref();
        tracing::error!(
            "aws-error-code" = call.map(|c| c.code.as_str()),
            "aws-operation-name" = call.map(|c| c.operation),
            "aws-request-id" = call.map(|c| c.request_id.as_str()).filter(|id| !id.is_empty()),
            "aws-service-name" = call.map(|c| c.service),
            "aws-status-code" = call.map(|c| c.status).filter(|status| *status != 0),
            "error" = %error,
            $message
        );
    }};
}

#[cfg(feature = "aws")]
pub mod aws;
pub mod capacity_buffer;
pub mod cost;
pub mod deletion_cost;
pub mod device_allocation;
pub mod disruption;
pub mod fleet;
#[cfg(feature = "aws")]
pub mod interruption;
pub mod migration;
pub mod node;
pub mod node_overlay;
pub mod nodeclaim;
#[cfg(feature = "aws")]
pub mod nodeclass;
pub mod nodepool;
pub mod observability;
pub mod patch;
pub mod pod_metrics;
pub mod provisioning;
pub mod read_live;
pub mod runner;
pub mod scrape;
pub mod state_metrics;
pub mod static_pool;
pub mod unreadable;

/// What every controller works with.
pub struct Context {
    pub client: kube::Client,
    pub cluster: Arc<State>,
    pub cloud: Arc<dyn CloudProvider>,
    pub settings: Arc<Settings>,
    pub recorder: Recorder,
    pub clock: Clock,
    pub registration_health: nodepool::health::Tracker,
    /// What was saved.
    pub savings: cost::Ledger,
    /// Why nodes are still there.
    pub verdicts: disruption::Verdicts,
    /// How the last launches ended.
    pub launches: nodeclaim::Launches,
}

impl Context {
    /// What a NodePool may launch, overlays not laid over.
    ///
    /// # Errors
    /// When its node class is not there or cannot be used, or the provider knows no types yet.
    pub async fn instance_types(
        &self,
        pool: &NodePool,
    ) -> Result<Arc<[Arc<InstanceType>]>, crate::cloud::Error> {
        let class = self.cluster.class_of(&pool.spec.template.spec.node_class_ref);
        self.cloud.instance_types(pool, class.as_deref()).await
    }
}

/// Why a reconcile did not finish; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused.
    #[error("{0}")]
    Kube(#[from] kube::Error),
    /// The cloud refused.
    #[error("{0}")]
    Cloud(#[from] crate::cloud::Error),
    /// The cloud did not launch an instance.
    #[error("launching nodeclaim, {0}")]
    Launch(crate::cloud::Error),
    /// AWS refused.
    #[cfg(feature = "aws")]
    #[error("{0}")]
    Aws(#[from] crate::cloud::aws::errors::AwsError),
    /// More than one thing failed.
    #[error("{}", joined(.0))]
    Several(Vec<Error>),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

fn joined(errors: &[Error]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Error {
    /// The AWS call that failed, where it was one.
    #[must_use]
    pub fn failed_call(&self) -> Option<FailedCall> {
        match self {
            Self::Cloud(error) | Self::Launch(error) => error.failed_call(),
            #[cfg(feature = "aws")]
            Self::Aws(error) => Some(error.call()),
            Self::Several(errors) => errors.iter().find_map(Self::failed_call),
            Self::Kube(_) | Self::Other(_) => None,
        }
    }

    /// Nothing, one error as it is, or several as one.
    ///
    /// # Errors
    /// When there is at least one.
    pub fn all(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }
}

/// When to look at the object again, beside its changes.
pub type Outcome = Result<Option<Duration>, Error>;

/// Runs every controller until cancelled.
///
/// # Errors
/// When a controller ends by itself: the process must not go on without it.
#[cfg(feature = "aws")]
pub async fn run_all(
    ctx: Arc<Context>,
    aws: Arc<AwsProvider>,
    cancel: CancellationToken,
) -> Result<(), Error> {
    let mut tasks = JoinSet::new();
    nodeclass::start(&ctx, &aws, &mut tasks);
    aws::start(&ctx, &aws, &mut tasks);
    interruption::start(&ctx, &aws, &mut tasks);
    start(&ctx, &mut tasks);
    let keeper = cost::Keeper::new(
        ctx.client.clone(),
        &crate::operator::namespace(),
        &ctx.settings.savings_config_map,
    );
    let keeper = keeper.map(Arc::new);
    if let Some(keeper) = &keeper {
        Arc::clone(keeper).start(&ctx, &mut tasks);
    }
    fleet::start(&ctx, &mut tasks);
    let ended = supervise(tasks, cancel).await;
    if let Some(keeper) = keeper {
        keeper.finish(&ctx.savings).await;
    }
    ended
}

/// Lets tasks run until cancelled. None of them ends by itself, and the process must not go on without
/// one that does.
async fn supervise(mut tasks: JoinSet<()>, cancel: CancellationToken) -> Result<(), Error> {
    let ended = tokio::select! {
        () = cancel.cancelled() => Ok(()),
        Some(ended) = tasks.join_next() => Err(Error::Other(match ended {
            Ok(()) => "a controller ended".to_owned(),
            Err(error) => format!("a controller ended, {error}"),
        })),
    };
    tasks.shutdown().await;
    ended
}

/// Starts every controller that works with any provider.
pub fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    nodepool::start(ctx, tasks);
    let shared = provisioning::Shared::new(ctx);
    nodeclaim::start(ctx, &shared.decisions, tasks);
    node::start(ctx, tasks);
    migration::start(ctx, tasks);
    provisioning::start(ctx, &shared, tasks);
    state_metrics::start(ctx, tasks);
    pod_metrics::start(ctx, &shared.decisions, tasks);
    capacity_buffer::start(ctx, &shared.batcher, tasks);
    node_overlay::start(ctx, tasks);
    static_pool::start(ctx, tasks);
    device_allocation::start(ctx, tasks);
    disruption::start(ctx, tasks);
    deletion_cost::start(ctx, tasks);
    observability::start(ctx, tasks);
    unreadable::start(ctx, tasks);
}

/// Runs a computation where it holds nothing up: on a thread of its own, or, on a runtime that has
/// only one thread, at once, so that the order of what happens does not depend on threads.
///
/// # Errors
/// When the computation panics on its thread.
pub(crate) async fn compute<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    let flavor = tokio::runtime::Handle::current().runtime_flavor();
    if flavor == tokio::runtime::RuntimeFlavor::CurrentThread {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod supervised {
    use super::*;

    #[tokio::test]
    async fn a_controller_that_ends_ends_all_and_is_an_error() {
        for panics in [false, true] {
            let mut tasks = JoinSet::new();
            tasks.spawn(std::future::pending());
            tasks.spawn(async move { assert!(!panics, "odd") });
            let error = supervise(tasks, CancellationToken::new()).await.unwrap_err();
            assert!(error.to_string().starts_with("a controller ended"), "{error}");
        }
    }

    #[tokio::test]
    async fn controllers_that_are_asked_to_stop_end_without_an_error() {
        let (mut tasks, cancel) = (JoinSet::new(), CancellationToken::new());
        tasks.spawn(std::future::pending());
        cancel.cancel();
        supervise(tasks, cancel).await.unwrap();
    }
}
