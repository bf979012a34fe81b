//! `karpenter migrate` and `simulate -f` as programs: files in, manifests and reports out.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use crate::support::world::{World, root};

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

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_read_from_aws_itself() {
    let world = World::bare(&[]).await;
    let venv = Command::new(root().join("tests/env/world")).arg("venv").output().unwrap();
    let path = format!("{}/bin:{}", text(&venv.stdout).trim(), std::env::var("PATH").unwrap());
    let run = |program: &str, words: &[&str]| {
        let mut command = Command::new(program);
        command.args(words).envs(&world.env).env("PATH", &path).stdin(Stdio::null());
        let done = command.output().unwrap();
        (done.status.code(), text(&done.stdout), text(&done.stderr))
    };
    let aws = |line: &str| {
        let (code, _, error) = run("aws", &line.split(' ').collect::<Vec<_>>());
        assert_eq!(code, Some(0), "aws {line}: {error}");
    };
    aws(
        "ec2 create-launch-template --launch-template-name blue --launch-template-data ImageId=ami-09c00c2e93ce7bd23,InstanceType=m5.large",
    );
    aws(&format!(
        "autoscaling create-auto-scaling-group --auto-scaling-group-name blue --launch-template LaunchTemplateName=blue,Version=$Latest --min-size 0 --max-size 7 --vpc-zone-identifier {} --tags Key=k8s.io/cluster-autoscaler/enabled,Value=true Key=kubernetes.io/cluster/weasel-eks,Value=owned",
        world.env["WORLD_SUBNETS"]
    ));
    aws(&format!(
        "eks create-nodegroup --cluster-name weasel-eks --nodegroup-name green --node-role arn:aws:iam::123456789012:role/KarpenterNodeRole-weasel-eks --instance-types c5.xlarge --scaling-config minSize=1,maxSize=3,desiredSize=1 --subnets {}",
        world.env["WORLD_SUBNETS"].replace(',', " ")
    ));
    let words = ["migrate", FLAG, "--from-aws", "--cluster-name", "weasel-eks"];
    let (code, manifests, report) = run(env!("CARGO_BIN_EXE_karpenter"), &words);
    assert_eq!(code, Some(0), "{report}");
    for expected in ["# from blue", "m5.large", "# from green", "c5.xlarge", "nodes: \"7\""] {
        assert!(manifests.contains(expected), "{expected}: {manifests}");
    }
    let checked = karpenter(&["validate", "-f", "-"], &manifests);
    assert!(checked.status.success(), "{}", text(&checked.stdout));

    let unknown = ["migrate", FLAG, "--from-aws", "--cluster-name", "no-such-cluster"];
    let (code, _, report) = run(env!("CARGO_BIN_EXE_karpenter"), &unknown);
    assert_eq!(code, Some(2), "{report}");
    assert!(report.contains("aws eks list-nodegroups --cluster-name no-such-cluster"), "{report}");
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
