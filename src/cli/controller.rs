//! The controller process: settings, logs and the runtime.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::app;
use crate::operator::logging;
use crate::operator::settings::{self, Settings, SettingsError};
use crate::operator::traces::Traces;

/// Stack of worker threads: the solver recurses, async state is large in debug builds.
const STACK: usize = 8 << 20;

#[cfg(all(feature = "profiling", target_os = "linux"))]
use karpenter_profiling::sample_heap;

/// This build has no profiles.
#[cfg(not(all(feature = "profiling", target_os = "linux")))]
fn sample_heap() -> std::io::Result<()> {
    Err(std::io::Error::other(
        "this binary is built without the feature profiling, which serves profiles",
    ))
}

/// What sends traces, where a collector is set.
fn start_traces(settings: &Settings) -> anyhow::Result<Option<Traces>> {
    let endpoint = settings.otlp_endpoint.as_str();
    let asked = (!endpoint.is_empty()).then(|| Traces::new(endpoint, &settings.cluster_name));
    asked.transpose()
}

/// Names of the environment's variables.
fn variables() -> impl Iterator<Item = String> {
    // `vars` panics on a variable that is not valid Unicode, whoever set it.
    std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())
}

/// Runs the controller until a signal ends it; the exit code says how it went.
pub fn run(args: &[String]) -> ExitCode {
    // Go's flag package accepts both one and two dashes.
    if args.iter().any(|a| matches!(a.as_str(), "-h" | "--h" | "--help" | "-help")) {
        eprint!("{}", settings::usage());
        return ExitCode::SUCCESS;
    }
    let settings = match Settings::parse(args, |name| std::env::var(name).ok()) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("{error}");
            if matches!(error, SettingsError::Flags(_)) {
                eprint!("{}", settings::usage());
            }
            return ExitCode::from(2);
        }
    };
    // First of all: it starts the process over.
    let unsampled = settings.enable_profiling.then(sample_heap).and_then(Result::err);
    let traces = match start_traces(&settings) {
        Ok(traces) => traces,
        Err(error) => {
            eprintln!("sending traces to {}, {error:#}", settings.otlp_endpoint);
            return ExitCode::from(2);
        }
    };
    let outputs = (&settings.log_output_paths, &settings.log_error_output_paths);
    if let Err(error) = logging::init(&settings.log_level, outputs.0, outputs.1, traces.as_ref()) {
        eprintln!("{error}");
        return ExitCode::from(2);
    }
    // Before anything that could panic, and after the log exists.
    logging::report_panics();
    if let Some(error) = unsampled {
        tracing::error!("error" = %error, "the heap cannot be profiled");
    }
    for text in settings.unknown.iter().chain(&settings::unknown_variables(variables())) {
        tracing::warn!("{text}");
    }
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(STACK).build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("error" = %error, "failed to start");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(app::serve(Arc::new(settings)));
    // Blocking tasks, such as a scrape whose reader hangs, must not keep the process alive.
    runtime.shutdown_timeout(Duration::from_secs(2));
    if let Some(traces) = traces {
        traces.stop();
    }
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("error" = %error, "failed to run");
            ExitCode::FAILURE
        }
    }
}
