//! `explain`, `top`, `cost` and `budgets`: the cluster in figures, and the reasons of decisions.
//!
//! The figures come from a scenario file, from the running controller, or, where no controller
//! answers, from the live cluster with the same functions that the controller uses.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use jiff::Timestamp;
use serde::Serialize;

use crate::clock::Clock;
use crate::fleet::{Fleet, Rejections};
use crate::operator::fleet_api::Saving;
use crate::scheduling::{self, snapshot::Snapshot};
use crate::simulate::build::adopt;
use crate::simulate::{Scenario, World, disrupt};

use super::simulate::{Failure as Reading, read_cluster, read_scenario};

pub mod budgets;
pub mod cost;
pub mod explain;
mod proxy;
pub mod top;

/// Where the figures come from, and how to print them.
#[derive(Debug, clap::Args)]
pub struct Source {
    /// Scenario file instead of the cluster of the current kubeconfig context; `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    pub scenario: Option<PathBuf>,
    /// What `aws ec2 describe-instance-types` printed, where neither the controller nor AWS can be asked.
    #[arg(long, value_name = "FILE")]
    pub aws_instance_types: Option<PathBuf>,
    /// Compute from the live cluster without asking the controller.
    #[arg(long, conflicts_with = "scenario")]
    pub without_controller: bool,
    /// How to print the answer.
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Forms of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For machines.
    Json,
    /// For machines and people.
    Yaml,
}

/// Exit codes of these commands, for their help texts.
const EXIT_CODES: &str = "\
Exit codes:
  0  printed
  1  the object does not exist, or the cluster could not be read
  2  the command line or the scenario is wrong";

/// Why nothing could be printed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Reading(#[from] Reading),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Usage(String),
    #[error("writing the answer: {0}")]
    Write(#[from] std::io::Error),
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Reading(reading) => reading.exit_code(),
            Self::Usage(_) => ExitCode::from(2),
            Self::NotFound(_) | Self::Write(_) => ExitCode::FAILURE,
        }
    }
}

/// The figures, and what they were made from where that is here.
struct Loaded {
    fleet: Fleet,
    /// Missing where the controller answered.
    snapshot: Option<Snapshot>,
    /// NodePools as objects, for calendars.
    pools: Vec<std::sync::Arc<crate::api::v1::NodePool>>,
    /// What was saved; only the controller keeps a ledger.
    savings: Option<Vec<Saving>>,
    /// From the live cluster, not from a file.
    live: bool,
}

/// Runs a command to its exit code; errors are one line on standard error.
fn finish(name: &str, outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Write(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("karpenter {name}: {error}");
            error.exit_code()
        }
    }
}

fn load(source: &Source) -> Result<Loaded, Failure> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let types = source.aws_instance_types.as_deref();
    if let Some(path) = &source.scenario {
        return Ok(compute(read_scenario(path, types)?, false)?);
    }
    if !source.without_controller {
        match proxy::ask() {
            Ok(proxy::Answer { fleet, pools, savings }) => {
                let savings = Some(savings);
                return Ok(Loaded { fleet, snapshot: None, pools, savings, live: true });
            }
            // On standard error, so that the output stays readable for machines.
            Err(why) => eprintln!(
                "karpenter: no controller answered ({why}); computing from the live cluster"
            ),
        }
    }
    Ok(compute(read_cluster(types, None)?, true)?)
}

/// Decides on a scenario as the controller would, and takes the figures.
fn compute(mut scenario: Scenario, live: bool) -> Result<Loaded, Reading> {
    let now = *scenario.options.now.get_or_insert_with(|| Clock::system().now());
    let World { mut snapshot, pools, .. } = World::new(scenario.clone())?;
    let results = scheduling::solve(&snapshot);
    if !live {
        // As disruption sees a file's nodes: without NodeClaims no budget would count them.
        adopt(&mut snapshot.nodes, &pools);
    }
    let stay = disrupt::disrupt(World::for_disruption(scenario)?, now).rejected.into_iter();
    let rejections: Rejections = stay
        .map(|node| (node.node, node.methods.into_iter().map(|m| m.rejection).collect()))
        .collect();
    let fleet = Fleet::new(&snapshot, &pools, &results, &rejections, now);
    let pools = pools.into_iter().map(|p| p.node_pool).collect();
    Ok(Loaded { fleet, pools, snapshot: Some(snapshot), savings: None, live })
}

/// Prints an answer in the form that was asked for.
fn print<T: Serialize>(
    output: Output,
    answer: &T,
    table: impl std::fmt::Display,
) -> Result<(), Failure> {
    let text = match output {
        Output::Table => table.to_string(),
        Output::Json => {
            let mut text = serde_json::to_string_pretty(answer).map_err(std::io::Error::from)?;
            text.push('\n');
            text
        }
        Output::Yaml => serde_saphyr::to_string(answer).map_err(std::io::Error::other)?,
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Whether colours may be used: only on a terminal, and never where `NO_COLOR` (no-color.org) is
/// set.
fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// A price as people read it.
fn price(amount: Option<f64>) -> String {
    amount.map_or_else(|| "-".to_owned(), |amount| format!("{amount:.4}"))
}

/// A moment as people read it, in UTC.
fn minute(time: Timestamp) -> String {
    time.strftime("%a %Y-%m-%d %H:%M").to_string()
}

/// An age in its largest unit, as kubectl shows it.
fn age(created: Option<Timestamp>, now: Timestamp) -> String {
    let Some(created) = created else { return "-".to_owned() };
    match (now.as_second() - created.as_second()).max(0) {
        // The larger unit comes at two of it, so that a value never has one digit that hides half
        // an hour.
        s if s < 120 => format!("{s}s"),
        s if s < 7200 => format!("{}m", s / 60),
        s if s < 172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}
