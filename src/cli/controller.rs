//! The controller process: settings, logs and the runtime.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::app;
use crate::operator::logging;
use crate::operator::settings::{self, Settings, SettingsError};

/// Stack of worker threads: the solver recurses, async state is large in debug builds.
const STACK: usize = 8 << 20;

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
    let outputs = (&settings.log_output_paths, &settings.log_error_output_paths);
    if let Err(error) = logging::init(&settings.log_level, outputs.0, outputs.1) {
        eprintln!("{error}");
        return ExitCode::from(2);
    }
    // Before anything that could panic, and after the log exists.
    logging::report_panics();
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
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("error" = %error, "failed to run");
            ExitCode::FAILURE
        }
    }
}
