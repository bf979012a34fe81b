//! The command line: with no subcommand the binary is the controller; each subcommand has a file here.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod completions;
mod controller;
mod convert;
mod crds;
mod fleet;
mod instance_types;
mod manifests;
mod migrate;
mod object;
mod render;
mod replay;
mod simulate;
mod validate;

/// Subcommands; without one, the controller runs and the arguments are its settings.
#[derive(Parser)]
#[command(
    name = "karpenter",
    version = env!("KARPENTER_VERSION"),
    about = "A Kubernetes node autoscaler for EKS",
    after_help = crate::operator::settings::usage()
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the controller (what happens without a subcommand, too).
    #[command(disable_help_flag = true)]
    Controller {
        /// Settings of the controller.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        settings: Vec<String>,
    },
    /// Show the launch templates and user data of a node class, without launching.
    Render(render::Args),
    /// Print what is known of each instance type: labels, amounts, offerings with prices.
    InstanceTypes(instance_types::Args),
    /// Decide for a scenario file, without cluster or cloud.
    Simulate(simulate::Args),
    /// Play days of a workload against NodePools: money, evictions, waiting times.
    Replay(replay::Args),
    /// Print the CustomResourceDefinitions.
    Crds(crds::Args),
    /// Convert manifests between v1beta1 and v1.
    Convert(convert::Args),
    /// Check manifests as the API server and the controllers would.
    Validate(validate::Args),
    /// Write NodePools and EC2NodeClasses for node groups that another autoscaler resizes.
    Migrate(migrate::Args),
    /// Explain why a pod waits, why a node stays, or what a NodePool may do.
    Explain(fleet::explain::Args),
    /// Show nodes by NodePool: fill, price, age, and why they stay.
    Top(fleet::top::Args),
    /// Show what the nodes cost per hour, and for whom.
    Cost(fleet::cost::Args),
    /// Show when a NodePool's budgets allow disruption.
    Budgets(fleet::budgets::Args),
    /// Print the completion script of a shell.
    Completions(completions::Args),
}

/// Name of the binary as a plugin of kubectl: `kubectl karpenter explain …`.
const PLUGIN: &str = "kubectl-karpenter";

/// Parses `args` (the program name first), runs the command and returns its exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let first = args.get(1).map(|a| a.to_string_lossy().into_owned()).unwrap_or_default();
    let asks_help = matches!(first.as_str(), "-h" | "--help" | "help" | "-V" | "--version");
    // As a plugin of kubectl it is a tool of users: it never becomes a controller by accident.
    let plugin = args.first().is_some_and(|name| {
        std::path::Path::new(name).file_name().is_some_and(|name| name == PLUGIN)
    });
    // Karpenter's chart starts the binary with flags alone, or with none.
    if !plugin && (first.is_empty() || (first.starts_with('-') && !asks_help)) {
        let settings = args[args.len().min(1)..].iter();
        return controller::run(
            &settings.map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>(),
        );
    }
    match Cli::try_parse_from(args) {
        Ok(cli) => match cli.command {
            Command::Controller { settings } => controller::run(&settings),
            Command::Render(args) => render::run(&args),
            Command::InstanceTypes(args) => instance_types::run(&args),
            Command::Simulate(args) => simulate::run(&args),
            Command::Replay(args) => replay::run(&args),
            Command::Crds(args) => crds::run(&args),
            Command::Convert(args) => convert::run(&args),
            Command::Validate(args) => validate::run(&args),
            Command::Migrate(args) => migrate::run(&args),
            Command::Explain(args) => fleet::explain::run(&args),
            Command::Top(args) => fleet::top::run(&args),
            Command::Cost(args) => fleet::cost::run(&args),
            Command::Budgets(args) => fleet::budgets::run(&args),
            Command::Completions(args) => completions::run(&args),
        },
        Err(error) => {
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Cli;

    #[test]
    fn the_reference_page_lists_every_command() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/src/reference/commands.md");
        let text = std::fs::read_to_string(page).unwrap();
        let rows = text.lines().filter_map(|l| l.strip_prefix("| `karpenter "));
        let listed: std::collections::BTreeSet<&str> =
            rows.filter_map(|row| row.split([' ', '`']).next()).collect();
        let command = Cli::command();
        let known: std::collections::BTreeSet<&str> =
            command.get_subcommands().map(clap::Command::get_name).collect();
        assert_eq!(listed, known);
    }

    #[test]
    fn short_and_long_help_list_the_settings() {
        let short = Cli::command().render_help().to_string();
        let long = Cli::command().render_long_help().to_string();
        for text in [short, long] {
            assert!(text.contains("--cluster-name (CLUSTER_NAME)"), "{text}");
        }
    }
}
