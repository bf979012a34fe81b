//! The `karpenter` binary: parse the command line and run the chosen command.

use std::process::ExitCode;

fn main() -> ExitCode {
    karpenter::cli::run(std::env::args_os())
}
