//! `karpenter instance-types`: what the provider knows of each instance type.

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::object::object;
use crate::api::labels;
use crate::api::v1::{EC2NodeClass, EC2NodeClassStatus, NodePool, Subnet};
use crate::clock::Clock;
use crate::cloud::aws::clients::{self, Clients};
use crate::cloud::aws::instancetype::{self, Options, info};
use crate::cloud::aws::pricing;
use crate::operator::settings::AwsFeatureGates;
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::requirements::{Allow, Requirements};

mod show;

/// Which types to show, under which node class, and how.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Region whose types, zones and prices are asked for; the AWS configuration's by default.
    #[arg(long, value_name = "REGION")]
    pub region: Option<String>,
    /// Only types that this NodePool allows (YAML or JSON).
    #[arg(long, value_name = "FILE")]
    pub nodepool: Option<PathBuf>,
    /// The EC2NodeClass whose images, volumes and kubelet settings count (YAML or JSON).
    #[arg(long, value_name = "FILE")]
    pub nodeclass: Option<PathBuf>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = show::Output::Table)]
    pub output: show::Output,
    /// Output of `aws ec2 describe-instance-types` to use instead of asking AWS; `-` reads standard
    /// input. Prices are then those that the binary carries, and zones are made up.
    #[arg(long, value_name = "FILE")]
    pub aws_instance_types: Option<PathBuf>,
    /// Share of memory that the hypervisor keeps.
    #[arg(long, value_name = "SHARE", default_value_t = 0.075)]
    pub vm_memory_overhead_percent: f64,
    /// Network interfaces that are not for pods.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub reserved_enis: i64,
    /// Evaluate expressions in the node class's kubelet settings.
    #[arg(long)]
    pub node_class_cel: bool,
}

/// Shows the types. Input that cannot be used gives exit code 2, AWS that cannot be asked 1.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &error),
    };
    let text = match runtime.block_on(collect(args)) {
        Ok(types) => show::show(args.output, &types),
        Err(Problem::Input(error)) => return fail(2, &error),
        Err(Problem::Aws(error)) => return fail(1, &error),
    };
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => fail(1, &error),
        _ => ExitCode::SUCCESS,
    }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("karpenter instance-types: {error}");
    ExitCode::from(code)
}

/// Why there is nothing to show.
#[derive(Debug)]
enum Problem {
    Input(String),
    Aws(String),
}

async fn collect(args: &Args) -> Result<Vec<Arc<InstanceType>>, Problem> {
    let pool: Option<NodePool> = read(args.nodepool.as_deref(), "NodePool")?;
    let class: Option<EC2NodeClass> = read(args.nodeclass.as_deref(), "EC2NodeClass")?;
    let wanted = pool.as_ref().map(requirements_of);
    let provider =
        if args.aws_instance_types.is_some() { offline(args)? } else { live(args).await? };
    let class = with_zones(class.unwrap_or_else(default_class), &provider.zones());
    let marks = pool.as_ref().and_then(|p| p.metadata.annotations.as_ref());
    let class =
        class.with_kubelet_of(marks).map_err(|e| Problem::Input(format!("NodePool: {e}")))?;
    let types = provider.list(&class).map_err(|e| Problem::Input(e.to_string()))?;
    let allowed = |t: &&Arc<InstanceType>| {
        wanted.as_ref().is_none_or(|w| {
            w.compatible(&t.requirements, Allow::WellKnown).is_ok()
                && t.compatible_offerings(w).next().is_some()
        })
    };
    Ok(types.iter().filter(allowed).cloned().collect())
}

/// What a NodePool asks of its nodes.
fn requirements_of(pool: &NodePool) -> Requirements {
    let template = &pool.spec.template;
    let mut all = Requirements::from_api(&template.spec.requirements);
    all.merge(&Requirements::from_labels(template.metadata.labels.iter().flatten()));
    all
}

/// A node class without settings, of the family that most clusters have.
fn default_class() -> EC2NodeClass {
    let mut class = EC2NodeClass::new("default", Default::default());
    class.spec.ami_family = Some("AL2023".to_owned());
    class
}

/// The class with subnets in every zone, unless its status has some.
fn with_zones(mut class: EC2NodeClass, zones: &BTreeSet<String>) -> EC2NodeClass {
    let status = class.status.get_or_insert_with(EC2NodeClassStatus::default);
    if status.subnets.is_empty() {
        status.subnets = zones
            .iter()
            .map(|zone| Subnet { id: format!("subnet-{zone}"), zone: zone.clone(), zone_id: None })
            .collect();
    }
    class
}

/// The object of a file, if one is named; what the API server would refuse in it goes to standard
/// error.
fn read<T: DeserializeOwned>(path: Option<&Path>, kind: &str) -> Result<Option<T>, Problem> {
    let Some(path) = path else { return Ok(None) };
    let mut notes = Vec::new();
    let found = object(path, kind, &mut notes).map_err(|e| Problem::Input(e.to_string()))?;
    for note in notes {
        eprintln!("note: {note}");
    }
    Ok(Some(found))
}

fn read_text(path: &Path) -> Result<String, Problem> {
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    text.map_err(|e| Problem::Input(format!("{}: {e}", path.display())))
}

fn provider(
    args: &Args,
    clients: Clients,
    isolated: bool,
) -> (instancetype::Provider, Arc<pricing::Provider>) {
    let clock = Clock::system();
    let pricing = Arc::new(pricing::Provider::new(clients.clone(), isolated));
    let options = Options {
        region: clients.region.clone(),
        vm_memory_overhead: args.vm_memory_overhead_percent,
        reserved_enis: args.reserved_enis,
        reserved_capacity: true,
        kubelet_expressions: args.node_class_cel,
        devices: AwsFeatureGates::default(),
        volume_limits: false,
    };
    let parts = instancetype::Parts::of_prices(&clients, &clock, &pricing);
    (instancetype::Provider::new(parts, options), pricing)
}

/// Types of a file, in zones made up of the region's name.
fn offline(args: &Args) -> Result<instancetype::Provider, Problem> {
    let path = args.aws_instance_types.as_deref().unwrap_or_else(|| Path::new("-"));
    let types = info::parse(&read_text(path)?)
        .map_err(|e| Problem::Input(format!("{}: {e}", path.display())))?;
    let region = args.region.clone().unwrap_or_else(|| "us-east-1".to_owned());
    let config = aws_config::SdkConfig::builder()
        .behavior_version(aws_config::BehaviorVersion::latest())
        .region(aws_config::Region::new(region.clone()))
        .build();
    let (provider, _) = provider(args, Clients::new(&config), true);
    let zones: BTreeSet<String> = ["a", "b", "c"].map(|z| format!("{region}{z}")).into();
    let zones_of: HashMap<_, _> =
        types.iter().map(|t| (t.instance_type.clone(), zones.clone())).collect();
    provider.set_catalog(types, zones_of);
    Ok(provider)
}

/// Types, zones and prices of AWS.
async fn live(args: &Args) -> Result<instancetype::Provider, Problem> {
    let mut config = clients::load_config().await;
    if let Some(region) = &args.region {
        config = config.into_builder().region(aws_config::Region::new(region.clone())).build();
    }
    if config.region().is_none() {
        return Err(Problem::Input(
            "no region: give --region, or set AWS_REGION or a region in the AWS profile".to_owned(),
        ));
    }
    let (provider, pricing) = provider(args, Clients::new(&config), false);
    let now = Clock::system().now();
    let (types, on_demand, spot) =
        tokio::join!(provider.update(), pricing.update_on_demand(), pricing.update_spot(now));
    types.map_err(|e| Problem::Aws(e.to_string()))?;
    for (kind, outcome) in [("on-demand", on_demand), (labels::CAPACITY_SPOT, spot)] {
        if let Err(error) = outcome {
            // Types without live prices are still worth showing.
            eprintln!("karpenter instance-types: {kind} prices are the built-in ones: {error}");
        }
    }
    Ok(provider)
}

#[cfg(test)]
mod tests;
