//! The `karpenter` binary: parse the command line and run the chosen command.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    karpenter::cli::run(std::env::args_os())
}
