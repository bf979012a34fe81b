//! `karpenter crds`: the CustomResourceDefinitions of this build.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::api::crds;

/// Where to put the definitions.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write one file a definition into this directory instead of printing them all.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// Prints or writes the definitions; exit code 2 when they cannot be written.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let outcome = match &args.dir {
        Some(folder) => write(folder),
        None => print(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("karpenter crds: {error}");
            ExitCode::from(2)
        }
    }
}

fn print() -> Result<(), String> {
    let text: String = crds::all().iter().map(|(_, crd)| crds::to_yaml(crd)).collect();
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.to_string()),
        _ => Ok(()),
    }
}

fn write(folder: &Path) -> Result<(), String> {
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    std::fs::create_dir_all(folder).map_err(|e| failed(folder, e))?;
    for (name, crd) in crds::all() {
        let path = folder.join(name);
        std::fs::write(&path, crds::to_yaml(&crd)).map_err(|e| failed(&path, e))?;
        println!("{}", path.display());
    }
    Ok(())
}
