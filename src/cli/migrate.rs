//! `karpenter migrate`: NodePools and EC2NodeClasses for what another autoscaler manages.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::Value;

use super::validate;

mod answers;
mod attributes;
mod autoscaling;
mod fields;
mod group;
mod image;
mod live;
mod merge;
mod nodegroup;
mod pools;
mod shell;
mod steps;
mod template;
mod userdata;

use self::answers::Answers;
use self::group::Group;

/// What to migrate from, and where it is described.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write NodePools and EC2NodeClasses for the groups that Cluster Autoscaler resizes.
    #[arg(long, required = true)]
    pub from_cluster_autoscaler: bool,
    /// Saved answers of AWS, or directories of them; without any, and without `--from-aws`, the commands that save them are printed.
    #[arg(short = 'f', long = "filename", value_name = "FILE", num_args = 1..)]
    pub files: Vec<PathBuf>,
    /// Ask AWS now, by the AWS CLI (`aws`), for the groups of `--cluster-name`.
    #[arg(long, conflicts_with = "files", requires = "cluster_name")]
    pub from_aws: bool,
    /// The cluster whose groups are meant, where the files have groups of several.
    #[arg(long, value_name = "NAME")]
    pub cluster_name: Option<String>,
    /// Only these groups.
    #[arg(long = "group", value_name = "NAME")]
    pub groups: Vec<String>,
    /// Keep minimum sizes by static NodePools (feature gate StaticCapacity).
    #[arg(long)]
    pub keep_minimum: bool,
    /// Write a NodePool for each group, also where groups differ in their zone alone.
    #[arg(long)]
    pub keep_zones: bool,
}

/// What became of the groups.
struct Outcome {
    /// The manifests, as a stream of YAML documents.
    manifests: String,
    /// Notes on each group and the order of steps.
    report: String,
    /// Every group was carried over, into manifests that pass every check.
    complete: bool,
}

/// Prints the manifests; notes and the order of steps go to standard error. Exit code 1 when a group
/// could not be carried over, 2 when the files cannot be used.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    if args.files.is_empty() && !args.from_aws {
        print!("{}", steps::saving(args.cluster_name.as_deref()));
        return ExitCode::SUCCESS;
    }
    let answers = match (&args.cluster_name, args.from_aws) {
        (Some(cluster), true) => live::ask("aws".as_ref(), cluster),
        _ => Answers::read(&args.files),
    };
    let outcome = match answers.and_then(|answers| migrate(&answers, args)) {
        Ok(outcome) => outcome,
        Err(error) => {
            eprintln!("karpenter migrate: {error:#}");
            return ExitCode::from(2);
        }
    };
    eprint!("{}", outcome.report);
    match std::io::stdout().lock().write_all(outcome.manifests.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            eprintln!("karpenter migrate: writing the manifests: {error}");
            ExitCode::FAILURE
        }
        _ if outcome.complete => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn migrate(answers: &Answers, args: &Args) -> anyhow::Result<Outcome> {
    let mut report = String::new();
    let mut complete = true;
    let mut groups = Vec::new();
    let read = read_groups(answers, args, &mut report);
    for wanted in &args.groups {
        let known = read.iter().any(|(name, _)| name == wanted);
        anyhow::ensure!(known, "--group {wanted}: the files have no such group");
    }
    for (name, read) in read {
        if !args.groups.is_empty() && !args.groups.contains(&name) {
            continue;
        }
        match read {
            Ok(group) => groups.push(group),
            Err(problem) => {
                report.push_str(&format!("{name}: not carried over: {problem}\n"));
                complete = false;
            }
        }
    }
    let cluster = cluster(&groups, args)?;
    let other = |group: &Group| group.cluster.is_some() && group.cluster != cluster;
    // A group that names no cluster stays: it was asked for by name.
    groups.retain(|group| !other(group));
    anyhow::ensure!(
        !groups.is_empty() || !complete,
        "the files have no group of a cluster, expected Auto Scaling groups tagged kubernetes.io/cluster/NAME or k8s.io/cluster-autoscaler/enabled, or node groups; --group names others"
    );
    if !args.keep_zones {
        groups = merge::merge(groups);
    }
    let mut writer = pools::Writer::new(args.keep_minimum);
    let mut manifests = String::new();
    for group in &mut groups {
        let from = group.sources.join(", ");
        match writer.write(group) {
            Ok(objects) => {
                for object in &objects {
                    complete &= check(group, object);
                    manifests.push_str(&document(&from, object)?);
                }
                let made = objects.iter().map(super::manifests::name_of).collect::<Vec<_>>();
                report.push_str(&format!("{from}: now {}\n", made.join(", ")));
            }
            Err(problem) => {
                report.push_str(&format!("{from}: not carried over: {problem}\n"));
                complete = false;
            }
        }
        for note in &group.notes {
            report.push_str(&format!("  {note}\n"));
        }
    }
    report.push_str(&steps::order(&groups, cluster.as_deref()));
    Ok(Outcome { manifests, report, complete })
}

/// Reads every group of a cluster; the report lists those that are of none.
fn read_groups(
    answers: &Answers,
    args: &Args,
    report: &mut String,
) -> Vec<(String, Result<Group, String>)> {
    let mut all = Vec::new();
    let mut managed: Vec<&str> = Vec::new();
    for node_group in &answers.node_groups {
        managed.extend(nodegroup::groups_behind(node_group));
        let name = node_group["nodegroupName"].as_str().unwrap_or_default().to_owned();
        all.push((name, nodegroup::read(answers, node_group)));
    }
    for group in &answers.groups {
        let name = autoscaling::name(group).to_owned();
        // The Auto Scaling groups behind a node group belong to it, and would be carried over
        // twice.
        if managed.contains(&name.as_str()) {
            continue;
        }
        let read = match autoscaling::node_group(group) {
            Some(owner) => Err(format!(
                "belongs to the node group {owner}, which is not in the files; save it with: aws eks describe-nodegroup --cluster-name CLUSTER --nodegroup-name {owner} --output json"
            )),
            None => autoscaling::read(answers, group),
        };
        let of_cluster = autoscaling::is_tagged(group)
            || read.as_ref().is_ok_and(|group| group.cluster.is_some());
        if of_cluster || args.groups.contains(&name) {
            all.push((name, read));
        } else {
            report.push_str(&format!(
                "{name}: skipped: it has no tag of a cluster; --group {name} takes it\n"
            ));
        }
    }
    all
}

/// The cluster that is meant.
fn cluster(groups: &[Group], args: &Args) -> anyhow::Result<Option<String>> {
    if args.cluster_name.is_some() {
        return Ok(args.cluster_name.clone());
    }
    let mut found: Vec<&String> = groups.iter().filter_map(|g| g.cluster.as_ref()).collect();
    found.sort();
    found.dedup();
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some((*one).clone())),
        several => {
            let names: Vec<&str> = several.iter().map(|n| n.as_str()).collect();
            anyhow::bail!(
                "the files have groups of several clusters, expected one of {} as --cluster-name",
                names.join(", ")
            )
        }
    }
}

/// Checks a manifest as `karpenter validate` does; what is wrong becomes a note.
fn check(group: &mut Group, object: &Value) -> bool {
    let mut fine = true;
    for finding in validate::check(object).unwrap_or_default() {
        fine &= !finding.is_error();
        group.note(format!("{}: {finding}", super::manifests::name_of(object)));
    }
    fine
}

fn document(from: &str, object: &Value) -> anyhow::Result<String> {
    Ok(format!("---\n# from {from}\n{}", serde_saphyr::to_string(object)?))
}

#[cfg(test)]
mod tests;
