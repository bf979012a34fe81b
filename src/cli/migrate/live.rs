//! The answers of AWS, asked for now.
//!
//! They come through the AWS CLI: it has the user's profiles, single sign-on and assumed roles, and
//! the controller's binary needs no client for Auto Scaling groups, which it never touches.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::answers::Answers;

/// Asks for the groups of a cluster, and for all launch templates and configurations of the account's
/// region: which of them the groups use is known only once the groups are read.
///
/// `program` is the AWS CLI.
///
/// # Errors
/// When the program cannot be run, or AWS refuses.
pub fn ask(program: &OsStr, cluster: &str) -> anyhow::Result<Answers> {
    let aws = |words: &[&str]| call(program, words);
    let mut answers = Answers::default();
    let mut keep = |words: &[&str]| -> anyhow::Result<()> {
        answers.add(aws(words)?, Path::new(&words[..2].join(" ")))
    };
    keep(&["autoscaling", "describe-auto-scaling-groups"])?;
    keep(&["autoscaling", "describe-launch-configurations"])?;
    let listed = aws(&["eks", "list-nodegroups", "--cluster-name", cluster])?;
    for name in texts(&listed["nodegroups"]) {
        let one = ["--cluster-name", cluster, "--nodegroup-name", &name];
        keep(&[&["eks", "describe-nodegroup"], &one[..]].concat())?;
    }
    let templates = aws(&["ec2", "describe-launch-templates"])?;
    let ids = templates["LaunchTemplates"].as_array().into_iter().flatten();
    for id in ids.filter_map(|t| t["LaunchTemplateId"].as_str()) {
        keep(&["ec2", "describe-launch-template-versions", "--launch-template-id", id])?;
    }
    Ok(answers)
}

fn texts(list: &Value) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Runs one command. The CLI fetches every page of an answer itself.
fn call(program: &OsStr, words: &[&str]) -> anyhow::Result<Value> {
    let line = words.join(" ");
    eprintln!("asking AWS: {line}");
    let done = Command::new(program)
        .args(words)
        .args(["--output", "json"])
        .env("AWS_PAGER", "")
        .output()
        .with_context(|| {
            format!(
                "--from-aws: cannot run {}, expected the AWS CLI in PATH; without it, save the answers elsewhere and give them with -f",
                program.display()
            )
        })?;
    if !done.status.success() {
        bail!("--from-aws: aws {line}: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    serde_json::from_slice(&done.stdout)
        .with_context(|| format!("--from-aws: aws {line}: expected an answer in JSON"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_what_to_do() {
        let error = ask(OsStr::new("no-such-aws"), "shop").unwrap_err();
        let text = format!("{error:#}");
        assert!(text.starts_with("--from-aws: cannot run no-such-aws, expected the AWS CLI"));
        assert!(text.contains("give them with -f"), "{text}");
    }

    #[test]
    fn what_aws_refuses_is_reported_with_the_command() {
        let error = ask(OsStr::new("false"), "shop").unwrap_err().to_string();
        assert!(error.contains("aws autoscaling describe-auto-scaling-groups"), "{error}");
        let error = format!("{:#}", ask(OsStr::new("echo"), "shop").unwrap_err());
        assert!(error.contains("expected an answer in JSON"), "{error}");
    }
}
