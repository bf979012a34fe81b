//! `karpenter simulate`: what would be decided for a scenario file, without cluster or cloud.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use crate::scheduling;
use crate::simulate::report::{self, Report};
use crate::simulate::{ScenarioError, World, disrupt, load_file};

/// A scenario, and how to show what comes of it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Scenario file, JSON or YAML; `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    pub scenario: PathBuf,
    /// How to print the outcome.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Seed of whatever is left to chance; today nothing is.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Decide what to disrupt instead of where to place pods.
    #[arg(long)]
    pub disrupt: bool,
    /// Add the time and memory that it took; without it, equal input prints equal bytes.
    #[arg(long)]
    pub measure: bool,
}

/// Forms of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For machines.
    Json,
}

/// Reads the scenario, decides, prints. A scenario that cannot be used gives exit code 2.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let text = match decide(args) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("karpenter simulate: {error}");
            return ExitCode::from(2);
        }
    };
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("karpenter simulate: writing the outcome: {error}");
            ExitCode::FAILURE
        }
    }
}

fn decide(args: &Args) -> Result<String, ScenarioError> {
    let world = World::new(load_file(&args.scenario)?)?;
    if args.disrupt {
        let now = world.now.unwrap_or_else(|| crate::clock::Clock::system().now());
        let found = disrupt::disrupt(world, now);
        return Ok(show(args.output, &found));
    }
    let start = Instant::now();
    let results = scheduling::solve(&world.snapshot);
    let seconds = start.elapsed().as_secs_f64();
    let peak = report::peak_rss();
    let mut found = Report::new(&results);
    if args.measure {
        found.solve_seconds = Some(seconds);
        found.peak_rss_bytes = peak;
    }
    Ok(show(args.output, &found))
}

fn show<T: serde::Serialize + std::fmt::Display>(output: Output, outcome: &T) -> String {
    match output {
        Output::Table => outcome.to_string(),
        Output::Json => {
            // Reports are plain data with text keys: they always serialize.
            let mut text = serde_json::to_string_pretty(outcome).unwrap_or_default();
            text.push('\n');
            text
        }
    }
}
