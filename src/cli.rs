//! The command line: with no subcommand the binary is the controller; each subcommand has a file here.

use std::ffi::OsString;
use std::process::ExitCode;

/// Parses `args` (the program name first), runs the command and returns its exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let _ = args.into_iter();
    ExitCode::SUCCESS
}
