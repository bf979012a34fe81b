//! Finds the revision that the binary is built from, as its log and metrics name it.

use std::path::Path;
use std::process::Command;

/// Where the revision is given when the sources come without their history.
const GIVEN: &str = "KARPENTER_COMMIT";

fn main() {
    place_at_a_fixed_address();
    lay_out();
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={GIVEN}");
    let given = std::env::var(GIVEN).ok().filter(|commit| !commit.is_empty());
    if let Some(commit) = given.or_else(from_git) {
        println!("cargo::rustc-env={GIVEN}={commit}");
    }
}

/// Lays the functions that `karpenter simulate` calls side by side (`layout/README.md`).
///
/// Only where the linker is the one that rustc brings along: others do not know the option. The list
/// is no reason to run this again, since only linking reads it.
fn lay_out() {
    let set = |name: &str| std::env::var(name).unwrap_or_default();
    let target = (set("TARGET"), set("PROFILE"));
    let other_linker = std::env::var_os("RUSTC_LINKER").is_some()
        || set("CARGO_ENCODED_RUSTFLAGS").contains("link");
    if target == ("x86_64-unknown-linux-gnu".into(), "release".into()) && !other_linker {
        let list = Path::new(&set("CARGO_MANIFEST_DIR")).join("layout/functions.txt");
        println!("cargo::rustc-link-arg-bins=-Wl,--symbol-ordering-file={}", list.display());
        println!("cargo::rustc-link-arg-bins=-Wl,--no-warn-symbol-ordering");
    }
}

/// Links the binary to run at a fixed address, as Go's programs do.
///
/// A binary that may run anywhere has some hundred thousand pointers to mend at its start (most in
/// the tables of the AWS clients): that reads and writes about 15 MB that are never needed again.
fn place_at_a_fixed_address() {
    let target = |what: &str| std::env::var(format!("CARGO_CFG_TARGET_{what}")).unwrap_or_default();
    if target("OS") == "linux" && target("ENV") == "gnu" {
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
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
        println!("cargo::rerun-if-changed=src");
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
