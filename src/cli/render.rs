//! `karpenter render`: the launch templates that a launch would use, without launching.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use base64::Engine as _;
use serde_json::{Value, json};

use crate::api::labels;
use crate::api::v1::{EC2NodeClass, NodeClaim, NodePool};
use crate::cloud::aws::ami::AmiFamily;
use crate::cloud::aws::instancetype::requirements::compatible_with_class;
use crate::cloud::aws::launchtemplate::{self, Launch, Spec, USER_DATA_LIMIT, body};
use crate::cloud::aws::{nodeclass, tags};
use crate::operator::settings::AwsFeatureGates;
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::requirements::Requirements;

mod input;
pub(in crate::cli) mod instancetype;

use self::input::{Info, InputError};

/// A node class, and what is known of the rest.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Nothing is asked of a cluster or of AWS. What the files do not tell is printed as a placeholder, and said on\nstandard error. A node class saved with its status (kubectl get ec2nodeclass NAME -o yaml) has its images,\nsecurity groups and instance profile.\n\nThe file of --cluster-info has any of: clusterName, clusterEndpoint, clusterCABundle (base64), clusterCIDR,\nclusterDNS (address of the DNS Service), region, instanceProfile, amis and securityGroups (as in the node\nclass's status), placementGroup (id, strategy: cluster, partition or spread), featureGates\n({ReservedCapacity: true, NodeClassCEL: false})."
)]
pub struct Args {
    /// EC2NodeClass, YAML or JSON; `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    pub nodeclass: PathBuf,
    /// NodePool whose labels, taints and requirements the node gets.
    #[arg(long, value_name = "FILE")]
    pub nodepool: Option<PathBuf>,
    /// Instance type; by default the first that the NodePool names, or a common one of the image's architecture.
    #[arg(long, value_name = "TYPE")]
    pub instance_type: Option<String>,
    /// What is known of the cluster.
    #[arg(long, value_name = "FILE")]
    pub cluster_info: Option<PathBuf>,
    /// Capacity type: on-demand or spot; by default the first that the NodePool allows.
    #[arg(long, value_name = "TYPE", value_parser = ["on-demand", "spot"])]
    pub capacity_type: Option<String>,
    /// How to print it.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// Forms of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Reads the files, works the templates out, prints them. Input that cannot be used gives exit code 2.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let (text, notes) = match render(args) {
        Ok(done) => done,
        Err(error) => {
            eprintln!("karpenter render: {error}");
            return ExitCode::from(2);
        }
    };
    for note in notes {
        eprintln!("note: {note}");
    }
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            eprintln!("karpenter render: writing the outcome: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

fn render(args: &Args) -> Result<(String, Vec<String>), InputError> {
    let mut notes = Vec::new();
    let class: EC2NodeClass = input::object(&args.nodeclass, "EC2NodeClass", &mut notes)?;
    let pool: Option<NodePool> = args
        .nodepool
        .as_deref()
        .map(|path| input::object(path, "NodePool", &mut notes))
        .transpose()?;
    let info = args.cluster_info.as_deref().map(input::info).transpose()?.unwrap_or_default();
    let marks = pool.as_ref().and_then(|p| p.metadata.annotations.as_ref());
    let mut class =
        class.with_kubelet_of(marks).map_err(|e| InputError::new("NodePool", e))?.into_owned();
    let specs = specs(args, &mut class, pool.as_ref(), &info, &mut notes)?;
    let text = match args.output {
        Output::Text => specs.iter().map(text).collect::<Vec<_>>().join("\n"),
        Output::Json => {
            let list: Vec<Value> = specs.iter().map(machine).collect();
            // Plain data with text keys always serializes.
            serde_json::to_string_pretty(&list).unwrap_or_default() + "\n"
        }
    };
    Ok((text, notes))
}

/// The launch templates of a launch from the class for the pool.
fn specs(
    args: &Args,
    class: &mut EC2NodeClass,
    pool: Option<&NodePool>,
    info: &Info,
    notes: &mut Vec<String>,
) -> Result<Vec<Spec>, InputError> {
    let cluster_expressions = info.gate("NodeClassCEL").unwrap_or(false);
    check(class, cluster_expressions)?;
    // The API server fills these in.
    class.spec.metadata_options.get_or_insert_default();
    let cluster = input::cluster(info, AmiFamily::of(class), notes);
    input::complete(class, info, notes);
    let requirements = pool
        .map(|p| Requirements::from_api(&p.spec.template.spec.requirements))
        .unwrap_or_default();
    let wanted = args.instance_type.as_deref();
    let kind = instancetype::choose(wanted, class, &requirements, &cluster)?;
    notes.extend(misfits(class, pool, &kind, &requirements));
    let capacity_type = args.capacity_type.clone().unwrap_or_else(|| {
        let spot = requirements.get(labels::CAPACITY_TYPE).is_some_and(|r| r.has("spot"));
        if spot { "spot" } else { "on-demand" }.to_owned()
    });
    let claim = claim(class, pool, &requirements);
    let placement = input::placement(class, info, notes);
    let tags =
        tags::of(class, &claim, &cluster.name).map_err(|e| InputError::new("spec.tags", e))?;
    let launch = Launch {
        class,
        claim: &claim,
        types: &[kind],
        capacity_type: &capacity_type,
        tenancy: launchtemplate::tenancy(&requirements),
        tags: &tags,
        placement: placement.as_ref(),
    };
    launchtemplate::specs(&cluster, &launch).map_err(|e| InputError::new("", e))
}

/// Why the controller would not launch this type from this class for this pool, whatever is printed.
fn misfits(
    class: &EC2NodeClass,
    pool: Option<&NodePool>,
    kind: &InstanceType,
    requirements: &Requirements,
) -> Vec<String> {
    let name = &kind.name;
    let mut found = Vec::new();
    if !compatible_with_class(name, class) {
        found.push(format!("--instance-type: the images of the class do not boot on {name}"));
    }
    if let Err(why) = requirements.intersects(&kind.requirements) {
        found.push(format!("--instance-type: the NodePool does not allow {name}: {why}"));
    }
    let own = class.metadata.name.as_deref().unwrap_or_default();
    let wanted = pool.map(|p| p.spec.template.spec.node_class_ref.name.as_str());
    if let Some(wanted) = wanted.filter(|w| *w != own) {
        found.push(format!("spec.template.spec.nodeClassRef.name: the NodePool names the class {wanted:?}, not {own:?}"));
    }
    found
}

/// What the controller would refuse the class for, whatever AWS says.
fn check(class: &EC2NodeClass, expressions: bool) -> Result<(), InputError> {
    let gates = AwsFeatureGates { node_class_cel: expressions, ..AwsFeatureGates::ALL };
    nodeclass::failure(class, gates).map_or(Ok(()), |(_, text)| Err(InputError::new("", text)))
}

/// A claim as the scheduler would make it from the pool.
fn claim(class: &EC2NodeClass, pool: Option<&NodePool>, requirements: &Requirements) -> NodeClaim {
    let mut claim = NodeClaim::default();
    let mut all = requirements.labels();
    if let Some(pool) = pool {
        let template = &pool.spec.template;
        all.extend(template.metadata.labels.clone().unwrap_or_default());
        all.insert(labels::NODEPOOL.to_owned(), pool.metadata.name.clone().unwrap_or_default());
        claim.spec.taints = template.spec.taints.clone();
        claim.spec.startup_taints = template.spec.startup_taints.clone();
        claim.spec.requirements = requirements.to_api();
    }
    all.insert(labels::EC2NODECLASS.to_owned(), class.metadata.name.clone().unwrap_or_default());
    claim.metadata.labels = Some(all);
    claim.spec.node_class_ref.name = class.metadata.name.clone().unwrap_or_default();
    claim
}

fn decoded(spec: &Spec) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(&spec.user_data).unwrap_or_default()
}

fn types(spec: &Spec) -> Vec<&str> {
    spec.instance_types.iter().map(|t| &*t.name).collect()
}

fn text(spec: &Spec) -> String {
    let bytes = decoded(spec);
    let mut data = body(&spec.data);
    if let Some(data) = data.as_object_mut() {
        data.insert("UserData".to_owned(), "(below)".into());
    }
    let data = serde_json::to_string_pretty(&data).unwrap_or_default();
    let over = if bytes.len() > USER_DATA_LIMIT { ", too large" } else { "" };
    format!(
        "# launch template {} for {}\n{data}\n\n# user data, {} of {USER_DATA_LIMIT} bytes{over}\n{}\n",
        spec.name,
        types(spec).join(", "),
        bytes.len(),
        String::from_utf8_lossy(&bytes).trim_end_matches('\n'),
    )
}

fn machine(spec: &Spec) -> Value {
    json!({
        "launchTemplateName": spec.name,
        "instanceTypes": types(spec),
        "launchTemplateData": body(&spec.data),
        "userData": String::from_utf8_lossy(&decoded(spec)),
    })
}

#[cfg(test)]
mod tests;
