//! `karpenter migrate` and `simulate -f` as programs: files in, manifests and reports out.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use crate::support::world::root;

fn karpenter(words: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_karpenter"))
        .args(words)
        .current_dir(root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const FLAG: &str = "--from-cluster-autoscaler";

#[test]
fn what_migrate_prints_passes_validate() {
    let case = "src/cli/migrate/cases/zones.yaml";
    let done = karpenter(&["migrate", FLAG, "-f", case], "");
    let report = text(&done.stderr);
    assert!(done.status.success(), "{report}");
    assert!(report.contains("Steps, in this order:"), "{report}");
    let manifests = text(&done.stdout);
    let checked = karpenter(&["validate", "-f", "-"], &manifests);
    assert!(checked.status.success(), "{}{manifests}", text(&checked.stdout));
    assert!(text(&checked.stderr).starts_with("2 objects checked, 0 findings"));
}

#[test]
fn migrate_without_files_prints_the_commands_that_save_them() {
    let done = karpenter(&["migrate", FLAG, "--cluster-name", "shop"], "");
    assert!(done.status.success());
    let script = text(&done.stdout);
    let parsed = Command::new("bash").args(["-n", "-c", &script]).output().unwrap();
    assert!(parsed.status.success(), "{}", text(&parsed.stderr));
    assert!(script.contains("aws eks describe-nodegroup --cluster-name shop"), "{script}");
    let wrong = karpenter(&["migrate", FLAG, "-f", "Cargo.toml"], "");
    assert_eq!(wrong.status.code(), Some(2), "{}", text(&wrong.stderr));
}

#[test]
fn a_changed_node_pool_is_laid_over_the_scenario() {
    let shop = "examples/scenarios/shop.yaml";
    let pool = "apiVersion: karpenter.sh/v1\nkind: NodePool\nmetadata: {name: general}\nspec:\n  template:\n    spec:\n      nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: default}\n      requirements:\n      - {key: karpenter.sh/capacity-type, operator: In, values: [spot]}\n";
    let done = karpenter(&["simulate", "--scenario", shop, "-f", "-"], pool);
    let table = text(&done.stdout);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(table.contains("general   changed  1      1"), "{table}");
    assert!(table.contains("The change saves "), "{table}");
    let wrong = pool.replace("values: [spot]", "values: []");
    let done = karpenter(&["simulate", "--scenario", shop, "-f", "-"], &wrong);
    assert_eq!(done.status.code(), Some(2));
    assert!(text(&done.stderr).contains("NodePool/general: spec.template.spec.requirements"));
}
