//! The `karpenter` binary: parse the command line and run the chosen command.

use std::process::ExitCode;

/// The system's allocator, which samples what is allocated where `--enable-profiling` asks for it.
#[cfg(all(feature = "profiling", target_os = "linux"))]
#[global_allocator]
static ALLOCATOR: karpenter_profiling::Allocator = karpenter_profiling::allocator();

fn main() -> ExitCode {
    karpenter::cli::run(std::env::args_os())
}
