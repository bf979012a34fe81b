//! `karpenter simulate`: what would be decided, for a scenario file or for a cluster as it is.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::scheduling;
use crate::simulate::ec2::{self, Classes};
use crate::simulate::report::{self, Report};
use crate::simulate::scenario::{TypeEntry, describe_types};
use crate::simulate::{Scenario, ScenarioError, World, change, disrupt, load, load_file, record};

use super::{manifests, validate};

const AFTER_HELP: &str = "\
Exit codes:
  0  decided and printed, whether or not every pod has a place
  1  the cluster could not be read, or the outcome not written
  2  the command line or the scenario is wrong; standard error names the place in the document and
     what was expected there

Scenarios set feature gates with \"options\": {\"featureGates\": {\"NodeOverlay\": true}}: those of the controller and
DynamicResources, which stands for ignore-dra-requests=false and lets ResourceSlices, DeviceClasses, ResourceClaims
and ResourceClaimTemplates among the scenario's objects, and the resourceSlices of its instance types, count.

Equal scenarios give equal bytes, but for solveSeconds and peakRssBytes at the end of the JSON.";

/// A scenario, and how to show what comes of it.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Scenario file, JSON or YAML; `-` reads standard input.
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "from_cluster",
        conflicts_with = "from_cluster"
    )]
    pub scenario: Option<PathBuf>,
    /// Take the scenario from the current kubeconfig context, read only.
    #[arg(long)]
    pub from_cluster: bool,
    /// Write the scenario taken from the cluster to a file; it holds no Secret and no environment value.
    #[arg(long, value_name = "FILE", requires = "from_cluster", conflicts_with = "scenario")]
    pub save: Option<PathBuf>,
    /// What `aws ec2 describe-instance-types` printed, for scenarios without instance types; they are
    /// built as the EC2 provider builds them, at the list's prices, in the region of AWS_REGION or the nodes.
    #[arg(long, value_name = "FILE")]
    pub aws_instance_types: Option<PathBuf>,
    /// How to print the outcome.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Seed of whatever is left to chance; nothing is, so that every seed gives the same outcome.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Decide what to disrupt instead of where to place pods.
    #[arg(long)]
    pub disrupt: bool,
    /// Carry out every command on paper and go on until nothing is left: the whole plan, with what it
    /// saves and how many pods have to move.
    #[arg(long, requires = "disrupt")]
    pub all: bool,
    /// Changed or new NodePools: print what the change would do, beside what happens without it.
    #[arg(
        short = 'f',
        long = "filename",
        value_name = "FILE",
        num_args = 1..,
        conflicts_with_all = ["disrupt", "all"]
    )]
    pub files: Vec<PathBuf>,
}

/// Forms of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For machines.
    Json,
}

/// What went wrong, by exit code.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    #[error("{0}")]
    Cluster(String),
    #[error("writing {0}: {1}")]
    Write(String, std::io::Error),
}

impl Failure {
    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Scenario(_) => ExitCode::from(2),
            Self::Cluster(_) | Self::Write(..) => ExitCode::FAILURE,
        }
    }
}

/// Reads the scenario, decides, prints.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    match decide(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("karpenter simulate: {error}");
            error.exit_code()
        }
    }
}

fn decide(args: &Args) -> Result<(), Failure> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut scenario = match &args.scenario {
        Some(path) => read_scenario(path, args.aws_instance_types.as_deref())?,
        None => from_cluster(args)?,
    };
    let now = *scenario.options.now.get_or_insert_with(|| Clock::system().now());
    if !args.files.is_empty() {
        let report = change::compare(scenario, changed_pools(&args.files)?, now)?;
        return print(args.output, &report);
    }
    if args.disrupt {
        let world = World::for_disruption(scenario)?;
        let start = Instant::now();
        let mut plan =
            if args.all { disrupt::all(world, now) } else { disrupt::disrupt(world, now) };
        plan.solve_seconds = Some(start.elapsed().as_secs_f64());
        return print(args.output, &plan);
    }
    let world = World::new(scenario)?;
    // Only the decision is measured, not the reading of the file.
    let start = Instant::now();
    let results = scheduling::solve(&world.snapshot);
    let seconds = start.elapsed().as_secs_f64();
    let mut found = Report::new(&results).with_left_out(&world);
    found.solve_seconds = Some(seconds);
    found.peak_rss_bytes = report::peak_rss();
    print(args.output, &found)
}

/// The NodePools of manifests, each as the API server and the controllers would take it.
fn changed_pools(files: &[PathBuf]) -> Result<Vec<Value>, Failure> {
    let wrong = |place: &str, error: &dyn std::fmt::Display| {
        Failure::Scenario(ScenarioError::new(place, error))
    };
    let mut pools = Vec::new();
    for file in manifests::expand(files).map_err(|e| wrong("-f", &e))? {
        let manifest = manifests::read(&file).map_err(|e| wrong("-f", &e))?;
        for object in manifest.documents.iter().flat_map(|d| manifests::objects(&d.value)) {
            let name = manifests::name_of(object);
            match validate::check(object) {
                // A document of comments alone.
                _ if object.is_null() => continue,
                Some(found) if object["kind"] == "NodePool" => {
                    if let Some(finding) = found.iter().find(|f| f.is_error()) {
                        return Err(wrong(&name, finding));
                    }
                    pools.push(object.clone());
                }
                _ => {
                    return Err(wrong(
                        &name,
                        &"expected a NodePool: other kinds cannot be changed",
                    ));
                }
            }
        }
    }
    Ok(pools)
}

/// A scenario file; its instance types come from the saved answer where it has none.
pub(super) fn read_scenario(
    path: &Path,
    instance_types: Option<&Path>,
) -> Result<Scenario, Failure> {
    let mut scenario = load_file(path)?;
    if let (Some(answer), None) = (instance_types, &scenario.instance_types) {
        let classes = Classes::of(&scenario)?;
        scenario.provide_types(saved_types(answer, &classes)?);
    }
    Ok(scenario)
}

fn saved_types(path: &Path, classes: &Classes) -> Result<Vec<TypeEntry>, Failure> {
    let wrong = |e: &dyn std::fmt::Display| ScenarioError::new(path.display().to_string(), e);
    let text = std::fs::read_to_string(path).map_err(|e| wrong(&e))?;
    Ok(ec2::from_answer(&text, classes).map_err(|e| wrong(&e))?)
}

/// The cluster's scenario, its instance types from the saved answer or from AWS.
fn from_cluster(args: &Args) -> Result<Scenario, Failure> {
    read_cluster(args.aws_instance_types.as_deref(), args.save.as_deref())
}

/// The cluster of the current kubeconfig context as a scenario; `keep` is where to write it, too.
pub(super) fn read_cluster(
    instance_types: Option<&Path>,
    keep: Option<&Path>,
) -> Result<Scenario, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::Cluster(format!("reading the cluster: {e}"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| failed(&e))?;
    let mut document = runtime.block_on(async {
        let config = kube::Config::infer().await.map_err(|e| failed(&e))?;
        let name = config.cluster_url.host().unwrap_or("cluster").to_owned();
        let client = kube::Client::try_from(config).map_err(|e| failed(&e))?;
        record::record(&client, &name, Clock::system().now()).await.map_err(|e| failed(&e))
    })?;
    let text =
        |document: &Map<String, Value>| serde_json::to_vec_pretty(document).map_err(|e| failed(&e));
    let classes = Classes::of(&load(text(&document)?.as_slice())?)?;
    let types = match instance_types {
        Some(path) => saved_types(path, &classes)?,
        None => runtime.block_on(ec2::from_aws(&classes)).map_err(|e| {
            let hint = "give --aws-instance-types FILE where AWS cannot be asked";
            Failure::Cluster(format!("asking AWS for instance types: {e}; {hint}"))
        })?,
    };
    document.insert("instanceTypes".to_owned(), describe_types(&types));
    let text = text(&document)?;
    if let Some(path) = keep {
        save(path, &text)?;
    }
    // Read back from the text, so that a saved scenario gives the same answer later.
    Ok(load(text.as_slice())?)
}

fn save(path: &Path, text: &[u8]) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|e| Failure::Write(path.display().to_string(), e))
}

/// Writes the outcome bit by bit; a reader that has seen enough is no error.
fn print<T>(output: Output, outcome: &T) -> Result<(), Failure>
where
    T: serde::Serialize + std::fmt::Display,
{
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let written = match output {
        Output::Table => write!(out, "{outcome}"),
        Output::Json => serde_json::to_writer_pretty(&mut out, outcome)
            .map_err(std::io::Error::from)
            .and_then(|()| out.write_all(b"\n")),
    };
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Write("the outcome".to_owned(), error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::Args;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        _args: Args,
    }

    fn accepted(words: &str) -> bool {
        Command::try_parse_from(std::iter::once("simulate").chain(words.split(' '))).is_ok()
    }

    #[test]
    fn a_scenario_comes_from_one_place_and_goes_with_every_other_option() {
        assert!(accepted("--scenario - --output json --seed 3 --disrupt"));
        assert!(accepted("--from-cluster --save f.json --output table"));
        assert!(accepted("--scenario f --disrupt --all") && !accepted("--scenario f --all"));
        assert!(accepted("--scenario f -f pool.yaml") && accepted("--from-cluster -f a b"));
        assert!(!accepted("--scenario f --disrupt -f pool.yaml"));
        for wrong in ["--output json", "--scenario f --from-cluster", "--scenario f --save g"] {
            assert!(!accepted(wrong), "{wrong}");
        }
    }
}
