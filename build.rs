//! Finds the revision that the binary is built from, as its log and metrics name it.

use std::path::Path;
use std::process::Command;

/// Where the revision is given when the sources come without their history.
const GIVEN: &str = "KARPENTER_COMMIT";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={GIVEN}");
    let given = std::env::var(GIVEN).ok().filter(|commit| !commit.is_empty());
    let commit = given.or_else(from_git);
    if let Some(commit) = &commit {
        println!("cargo::rustc-env={GIVEN}={commit}");
    }
    // The commit's date and not the build's, so that two builds of one commit are the same bytes.
    let date = git(&["log", "-1", "--format=%cs"]).unwrap_or_else(|| "unknown date".to_owned());
    let commit = commit.unwrap_or_else(|| "unknown".to_owned());
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    println!("cargo::rustc-env=KARPENTER_VERSION={version} (commit {commit}, {date})");
}

/// The first seven digits of HEAD, with `-dirty` where the tree differs from it.
///
/// Release builds follow every commit. Debug builds do not, so that a commit costs no rebuild:
/// theirs is the revision of the last time this script ran.
fn from_git() -> Option<String> {
    let commit = git(&["rev-parse", "--short=7", "HEAD"])?;
    if std::env::var("PROFILE").as_deref() == Ok("release") {
        for file in ["logs/HEAD", "HEAD"] {
            let path = git(&["rev-parse", "--git-path", file])?;
            if Path::new(&path).exists() {
                println!("cargo::rerun-if-changed={path}");
            }
        }
        for folder in ["src", "crates"] {
            println!("cargo::rerun-if-changed={folder}");
        }
    }
    let changes = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changes.is_empty() { commit } else { format!("{commit}-dirty") })
}

fn git(args: &[&str]) -> Option<String> {
    // Whoever builds need not be whoever owns the folder.
    let output = Command::new("git")
        .args(["-c", "safe.directory=*"])
        .args(args)
        .output()
        .ok()
        .filter(|o| o.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
