//! The controller process put together: everything is made here, and handed to what uses it.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use kube::config::Kubeconfig;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::api::conversion;
use crate::clock::Clock;
use crate::cloud::aws::errors::AwsError;
use crate::cloud::aws::{AwsProvider, clients};
use crate::cloud::metered::Metered;
use crate::cluster::State;
use crate::cluster::informers::{self, Wanted};
use crate::controllers::{self, Context};
use crate::operator::events::Recorder;
use crate::operator::leader::Election;
use crate::operator::rate::Backoff;
use crate::operator::server;
use crate::operator::settings::Settings;
use crate::operator::{SERVICE_ACCOUNT, client, logging, metrics, namespace, webhook};

/// Waits between attempts to reach EC2 at the start.
const REACH: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

/// Runs the controllers until the process is asked to stop.
///
/// # Errors
/// When something that the process needs cannot be had, when the lease is lost, or when a controller,
/// a watch or a server ends by itself.
pub async fn serve(settings: Arc<Settings>) -> anyhow::Result<()> {
    metrics::init(logging::COMMIT, settings.metrics.clone());
    let version = env!("CARGO_PKG_VERSION");
    tracing::debug!("version" = version, "discovered karpenter version");
    let config = client::config().await?;
    let client = client::limited(&config, settings.kube_client_qps, settings.kube_client_burst)?;
    let clock = Clock::system();
    let namespace = namespace();
    let mut background = JoinSet::new();
    let profiling = settings.enable_profiling;
    server::serve_metrics(settings.metrics_port, profiling, &mut background).await?;
    let state = Arc::new(State::default());
    let wanted = Wanted {
        buffers: settings.gates.capacity_buffer,
        overlays: settings.gates.node_overlay,
        selectors: !settings.scheduler_config.default_constraints.is_empty(),
        devices: !settings.ignore_dra_requests,
        replica_costs_are_ours: settings.gates.pod_deletion_cost_management,
    };
    informers::start(&client, &state, wanted, &mut background);
    let listed = Arc::clone(&state);
    let checks = vec![
        ("manager", server::check(move || listed.listed())),
        ("crd", server::crds_are_served(client.clone())),
    ];
    server::serve_health(settings.health_probe_port, checks, &mut background).await?;
    let review = reviewer(&state);
    webhook::start(&client, &settings, &namespace, &clock, review, &mut background).await?;

    let stop = CancellationToken::new();
    let stopper = stop.clone();
    tokio::spawn(async move {
        terminated().await;
        stopper.cancel();
    });
    let recorder = Recorder::new(client.clone(), clock.clone());
    let election = (!settings.disable_leader_election).then(|| {
        let of_lease = Some(settings.leader_election_namespace.as_str());
        let of_lease = of_lease.filter(|n| !n.is_empty()).unwrap_or(&namespace);
        let client = client::unlimited(&config)?;
        let name = &settings.leader_election_name;
        Ok::<_, anyhow::Error>(Election::new(client, recorder.clone(), of_lease, name))
    });
    let election = election.transpose()?;
    if let Some(election) = &election {
        tokio::select! {
            () = election.acquire() => {}
            () = stop.cancelled() => return Ok(()),
            error = ended(&mut background) => return Err(error),
        }
    }
    let lost = async {
        match &election {
            Some(election) => election.keep().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        done = work(client, Arc::clone(&settings), recorder, clock, state, stop) => done?,
        () = lost => return Err(anyhow::anyhow!("leader election lost")),
        error = ended(&mut background) => return Err(error),
    }
    if let Some(election) = &election {
        election.release().await;
    }
    Ok(())
}

/// Waits for AWS, then runs the controllers until asked to stop.
async fn work(
    client: kube::Client,
    settings: Arc<Settings>,
    recorder: Recorder,
    clock: Clock,
    state: Arc<State>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let aws = tokio::select! {
        aws = reach_aws(&client, &settings, &clock, &state) => Arc::new(aws),
        () = stop.cancelled() => return Ok(()),
    };
    aws.set_recorder(recorder.clone());
    let cloud = Arc::new(Metered::new(Arc::clone(&aws)));
    let ctx = Context {
        client,
        cluster: state,
        cloud,
        settings,
        recorder,
        clock,
        registration_health: controllers::nodepool::health::Tracker::default(),
        savings: controllers::cost::Ledger::default(),
        verdicts: controllers::disruption::Verdicts::default(),
        launches: controllers::nodeclaim::Launches::default(),
    };
    Ok(controllers::run_all(Arc::new(ctx), aws, stop).await?)
}

/// Returns once a watch or a server ends, which none does by itself: the process must not go on
/// without it.
async fn ended(background: &mut JoinSet<()>) -> anyhow::Error {
    match background.join_next().await {
        Some(Err(error)) => anyhow::anyhow!("a task in the background ended, {error}"),
        Some(Ok(())) => anyhow::anyhow!("a task in the background ended"),
        None => std::future::pending().await,
    }
}

/// Tries until EC2 answers: an outage of AWS must not restart the process for ever.
async fn reach_aws(
    client: &kube::Client,
    settings: &Arc<Settings>,
    clock: &Clock,
    state: &State,
) -> AwsProvider {
    let mut failures = 0;
    loop {
        let config = clients::load_config().await;
        let made = AwsProvider::new(
            Arc::clone(settings),
            client.clone(),
            ca(),
            clock.clone(),
            &config,
            state.overlays_in_force(),
        )
        .await;
        match made {
            Ok(aws) => match begin(&aws).await {
                Ok(()) => return aws,
                Err(error) => {
                    tracing::error!("error" = %error, "ec2 api connectivity check failed");
                }
            },
            Err(error) => tracing::error!("error" = %error, "ec2 api connectivity check failed"),
        }
        failures += 1;
        sleep(REACH.delay(failures)).await;
    }
}

/// What has to be known before anything is launched.
async fn begin(aws: &AwsProvider) -> Result<(), AwsError> {
    aws.check_connectivity().await?;
    // A cluster that no shift can be about is a mistake in the settings.
    aws.update_zonal_shifts().await?;
    if let Some(keeper) = &aws.price_keeper {
        keeper.restore(&aws.pricing).await;
    }
    aws.instance_types.update().await
}

/// The CA of the API server, in PEM form, as nodes need it.
fn ca() -> Option<Vec<u8>> {
    if let Ok(pem) = std::fs::read(format!("{SERVICE_ACCOUNT}/ca.crt")) {
        return Some(pem);
    }
    let config = Kubeconfig::read().ok()?;
    let name = config.current_context.as_ref()?;
    let context = config.contexts.iter().find(|c| c.name == *name)?.context.as_ref()?;
    let cluster = config.clusters.iter().find(|c| c.name == context.cluster)?.cluster.as_ref()?;
    if let Some(data) = &cluster.certificate_authority_data {
        return base64::engine::general_purpose::STANDARD.decode(data).ok();
    }
    std::fs::read(cluster.certificate_authority.as_ref()?).ok()
}

/// Answers conversion reviews; the `expireAfter` of NodeClaims comes from the pools known here.
fn reviewer(
    state: &Arc<State>,
) -> impl Fn(&serde_json::Value) -> serde_json::Value + Clone + Send + Sync + 'static {
    let state = Arc::clone(state);
    move |review| {
        let expire_after = |pool: &str| {
            if !state.has_listed("nodepools") {
                return Err("the NodePools are not listed yet".to_owned());
            }
            let pool = state.pool(pool);
            let expiry = pool.and_then(|p| p.spec.template.spec.expire_after.clone());
            Ok(expiry.map(|e| e.to_string()))
        };
        conversion::review(review, &expire_after)
    }
}

/// Returns when the process is asked to stop.
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
}
