//! `karpenter replay`: what days of a workload would cost with these NodePools.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use super::manifests;
use crate::api::admission::Admission;
use crate::clock::Clock;
use crate::operator::settings::Settings;
use crate::replay::record::{self, Recording};
use crate::replay::workload::parse_span;
use crate::replay::{Outcome, Variant, Workloads, chart, play, report};
use crate::simulate::{ScenarioError, load_file};

const AFTER_HELP: &str = "\
Exit codes:
  0  played and printed
  1  the outcome could not be written, or the cluster that is to be recorded could not be read
  2  the command line or a file is wrong; standard error names the place in the document and what was
     expected there

Equal input gives equal output. Nothing outside the process is asked: the API server, the cloud, the scheduler and
the kubelets are models, on a clock of their own; the controllers are the real ones.";

/// A workload, and what it is played against.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Workload file, YAML or JSON: Deployments and Jobs over days.
    #[arg(long, value_name = "FILE", required_unless_present = "record")]
    pub workload: Option<PathBuf>,
    /// Manifests with NodePools; give it several times to compare.
    #[arg(long, value_name = "FILE", required_unless_present = "record")]
    pub nodepools: Vec<PathBuf>,
    /// Instance types with prices: a document with `instanceTypes`, as scenarios have them.
    #[arg(long, value_name = "FILE", required_unless_present = "record")]
    pub instance_types: Option<PathBuf>,
    /// Play nothing: record the workloads of the current kubeconfig context, read only, as a workload file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["workload", "nodepools", "instance_types", "flags", "chart"])]
    pub record: Option<PathBuf>,
    /// How long to record, such as 7d or 90m; until it is interrupted at the latest.
    #[arg(long = "for", value_name = "TIME", requires = "record", value_parser = some_time, default_value = "7d")]
    pub length: Duration,
    /// Time between looks at the cluster while it is recorded.
    #[arg(long, value_name = "TIME", requires = "record", value_parser = some_time, default_value = "1m")]
    pub every: Duration,
    /// A flag of the controller, such as `--flag=--feature-gates=SpotToSpotConsolidation=true`.
    #[arg(long = "flag", value_name = "FLAG", allow_hyphen_values = true)]
    pub flags: Vec<String>,
    /// How to print the outcome.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Write a picture of the outcome over time, as SVG.
    #[arg(long, value_name = "FILE")]
    pub chart: Option<PathBuf>,
}

/// Forms of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For machines.
    Json,
}

fn some_time(text: &str) -> Result<Duration, String> {
    let time = parse_span(text).filter(|time| !time.is_zero());
    time.ok_or_else(|| "expected a length of time such as 7d, 1d6h, 90m or 30s".to_owned())
}

/// What went wrong, by exit code.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}: {1}")]
    Input(String, String),
    #[error("writing {0}: {1}")]
    Write(String, std::io::Error),
    #[error("reading the cluster: {0}")]
    Cluster(String),
}

/// Reads, plays, prints.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let done = match &args.record {
        Some(file) => record(file, args.length, args.every),
        None => replay(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("karpenter replay: {error}");
            match error {
                Failure::Input(..) => ExitCode::from(2),
                Failure::Write(..) | Failure::Cluster(_) => ExitCode::FAILURE,
            }
        }
    }
}

fn replay(args: &Args) -> Result<(), Failure> {
    let input = |path: &Path, error: &dyn std::fmt::Display| {
        Failure::Input(path.display().to_string(), error.to_string())
    };
    let needed = |path: &Option<PathBuf>| path.clone().unwrap_or_default();
    let (workload, types) = (needed(&args.workload), needed(&args.instance_types));
    let text = std::fs::read_to_string(&workload).map_err(|e| input(&workload, &e))?;
    let workloads = Workloads::parse(&text).map_err(|e| input(&workload, &e))?;
    let mut flags = vec!["--cluster-name=model".to_owned()];
    flags.extend(args.flags.iter().cloned());
    // Once here, so that a wrong flag is reported before days are played.
    Settings::parse(&flags, |_| None)
        .map_err(|e| Failure::Input("--flag".to_owned(), e.to_string()))?;
    let types = load_file(&types)
        .and_then(|mut scenario| scenario.take_types())
        .map_err(|e| input(&types, &e))?;
    let mut variants = Vec::new();
    for path in &args.nodepools {
        let pools = pools(path)?;
        variants.push(Variant {
            name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            pools,
            types: types.iter().map(|t| std::sync::Arc::clone(&t.instance_type)).collect(),
            flags: args.flags.clone(),
        });
    }
    // Each has its own thread; none sees another.
    let workloads = &workloads;
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            variants.iter().map(|v| scope.spawn(move || play(workloads, v))).collect();
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    if let Some(path) = &args.chart {
        std::fs::write(path, chart::svg(&outcomes))
            .map_err(|e| Failure::Write(path.display().to_string(), e))?;
    }
    print(args.output, &outcomes)
}

/// Records the cluster of the current kubeconfig context until the time is over or somebody interrupts.
fn record(file: &Path, length: Duration, every: Duration) -> Result<(), Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::Cluster(e.to_string());
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| failed(&e))?;
    runtime.block_on(async {
        let config = kube::Config::infer().await.map_err(|e| failed(&e))?;
        let name = config.cluster_url.host().unwrap_or("cluster").to_owned();
        let client = kube::Client::try_from(config).map_err(|e| failed(&e))?;
        let clock = Clock::system();
        let mut recording = Recording::new(&name, clock.now());
        let first = record::Workloads::of(&client).await.map_err(|e| failed(&e))?;
        recording.note(clock.now(), first);
        // Written now, so that a file that cannot be is found out about before days have passed.
        write(file, &recording, clock.now())?;
        eprintln!("recording to {}; interrupt to stop earlier", file.display());
        let mut interrupted = std::pin::pin!(interrupted());
        let end = clock.now() + length;
        loop {
            let left = Duration::try_from(end.duration_since(clock.now())).unwrap_or_default();
            let stops = tokio::select! {
                () = &mut interrupted => true,
                () = tokio::time::sleep(left.min(every)) => left <= every,
            };
            match record::Workloads::of(&client).await {
                Ok(seen) => recording.note(clock.now(), seen),
                // What changed meanwhile is seen by the next look.
                Err(error) => eprintln!("karpenter replay: {error}; trying again"),
            }
            write(file, &recording, clock.now())?;
            if stops {
                return Ok(());
            }
        }
    })
}

/// Comes when somebody asks the process to end.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let ended = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = ended => {}
    }
}

/// Writes what was recorded; a reader sees the old file or the new one, whole.
fn write(file: &Path, recording: &Recording, now: jiff::Timestamp) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::Write(file.display().to_string(), e);
    let document = recording.document(now);
    let text = if file.extension().is_some_and(|e| e == "json") {
        serde_json::to_string_pretty(&document).map_err(std::io::Error::from)
    } else {
        serde_saphyr::to_string(&document).map_err(std::io::Error::other)
    };
    let part = file.with_extension("part");
    std::fs::write(&part, text.map_err(failed)?).map_err(failed)?;
    std::fs::rename(&part, file).map_err(failed)
}

/// The NodePools of a file, checked as the API server would.
fn pools(path: &Path) -> Result<Vec<Value>, Failure> {
    let name = path.display().to_string();
    let wrong = |error: &dyn std::fmt::Display| Failure::Input(name.clone(), error.to_string());
    let manifest = manifests::read(path).map_err(|e| wrong(&e))?;
    let mut pools = Vec::new();
    for (index, document) in manifest.documents.iter().enumerate() {
        for object in manifests::objects(&document.value) {
            if object["kind"] != "NodePool" {
                continue;
            }
            let under = |path: &str, message: &str| {
                let place = format!("document {}: {path}", index + 1);
                wrong(&ScenarioError::new(place, message))
            };
            let admitted = Admission::get().create(object.clone());
            let Some(admitted) = admitted else {
                return Err(under("apiVersion", "expected karpenter.sh/v1"));
            };
            // The model's API server has no conversion webhook.
            if object["apiVersion"] != "karpenter.sh/v1" {
                return Err(under("apiVersion", "expected karpenter.sh/v1"));
            }
            if let Some(finding) = admitted.unknown.iter().chain(&admitted.findings).next() {
                return Err(under(&finding.path, &finding.message));
            }
            let mut pool = admitted.object;
            // There is one node class, which stands for all.
            pool["spec"]["template"]["spec"]["nodeClassRef"] = serde_json::json!({
                "group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default" });
            pools.push(pool);
        }
    }
    if pools.is_empty() {
        return Err(wrong(&"expected at least one NodePool"));
    }
    Ok(pools)
}

fn print(output: Output, outcomes: &[Outcome]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = match output {
        Output::Table => write!(out, "{}", report::Table(outcomes)),
        Output::Json => serde_json::to_writer_pretty(&mut out, outcomes)
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
