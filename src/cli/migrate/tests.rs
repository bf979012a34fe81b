use base64::Engine as _;
use clap::Parser as _;
use serde_json::json;

use super::*;
use crate::api::yaml;
use crate::cli::manifests;

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

fn args(more: &[&str]) -> Args {
    let line = ["migrate", "--from-cluster-autoscaler"].iter().chain(more);
    Line::try_parse_from(line).unwrap().args
}

/// Answers from a text with `UserDataText` for base64 `UserData`.
fn answers(text: &str) -> Answers {
    fn encode(value: &mut Value) {
        match value {
            Value::Object(map) => {
                if let Some(text) = map.remove("UserDataText") {
                    let bytes = text.as_str().unwrap().as_bytes();
                    let encoded = base64::engine::general_purpose::STANDARD.encode(bytes);
                    map.insert("UserData".to_owned(), json!(encoded));
                }
                map.values_mut().for_each(encode);
            }
            Value::Array(list) => list.iter_mut().for_each(encode),
            _ => {}
        }
    }
    let mut answers = Answers::default();
    for document in text.split("\n---\n") {
        let mut value: Value = yaml::read(document).unwrap();
        encode(&mut value);
        answers.add(value, "case".as_ref()).unwrap();
    }
    answers
}

fn case(name: &str) -> Answers {
    let path = format!("{}/src/cli/migrate/cases/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    answers(&std::fs::read_to_string(path).unwrap())
}

fn run_case(name: &str, more: &[&str]) -> Outcome {
    migrate(&case(name), &args(more)).unwrap()
}

fn objects(outcome: &Outcome) -> Vec<Value> {
    let documents = outcome.manifests.split("---\n").skip(1);
    documents.map(|text| yaml::read(text).unwrap()).collect()
}

const CASES: [&str; 15] = [
    "accelerated",
    "attributes",
    "bottlerocket",
    "launch-configuration",
    "managed-on-demand",
    "managed-own-image",
    "managed-spot-bottlerocket",
    "managed-template",
    "mixed-share",
    "mixed-weights",
    "script-bootstrap",
    "script-conditional",
    "two-architectures",
    "windows",
    "zones",
];

#[test]
fn each_shape_of_group_becomes_what_launches_the_same_machines() {
    for name in CASES {
        let outcome = run_case(name, &[]);
        let notes = outcome.report.split("\nSteps,").next().unwrap();
        insta::assert_snapshot!(name, format!("{}===\n{notes}\n", outcome.manifests));
    }
}

#[test]
fn every_manifest_passes_validation() {
    for name in CASES {
        for more in [&[][..], &["--keep-minimum"], &["--keep-zones"]] {
            let outcome = run_case(name, more);
            assert!(outcome.complete, "{name}: {}", outcome.report);
            let found = objects(&outcome);
            assert!(found.len() >= 2, "{name}");
            for object in found {
                let findings = validate::check(&object).expect("one of our kinds");
                let errors: Vec<_> = findings.iter().filter(|f| f.is_error()).collect();
                assert!(errors.is_empty(), "{name}: {}: {errors:?}", manifests::name_of(&object));
            }
        }
    }
}

#[test]
fn limits_add_up_to_the_maximum_size() {
    let limits = |name: &str, more: &[&str]| -> Vec<(String, String)> {
        let pools = objects(&run_case(name, more)).into_iter().filter(|o| o["kind"] == "NodePool");
        pools
            .map(|p| {
                let limits = p["spec"]["limits"].to_string() + &p["spec"]["replicas"].to_string();
                (p["metadata"]["name"].as_str().unwrap().to_owned(), limits)
            })
            .collect()
    };
    let of = |name: &str, limits: &str| (name.to_owned(), limits.to_owned());
    assert_eq!(
        limits("mixed-share", &[]),
        [of("share-on-demand", r#"{"nodes":"6"}null"#), of("share-spot", r#"{"nodes":"6"}null"#)]
    );
    assert_eq!(
        limits("mixed-share", &["--keep-minimum"]),
        [
            of("share-on-demand-minimum", "null3"),
            of("share-on-demand", r#"{"nodes":"3"}null"#),
            of("share-spot-minimum", "null1"),
            of("share-spot", r#"{"nodes":"5"}null"#)
        ]
    );
    assert_eq!(
        limits("mixed-weights", &[]),
        [of("mixed-on-demand", r#"{"cpu":"28"}null"#), of("mixed-spot", r#"{"cpu":"60"}null"#)]
    );
    assert_eq!(limits("zones", &[]), [of("db", r#"{"nodes":"10"}null"#)]);
    assert_eq!(limits("zones", &["--keep-zones"]).len(), 3);
}

#[test]
fn groups_that_cannot_be_carried_over_do_not_stop_the_others() {
    let mut answers = case("zones");
    answers.groups.push(json!({"AutoScalingGroupName": "lost", "MaxSize": 1,
        "LaunchTemplate": {"LaunchTemplateId": "lt-lost", "Version": "7"},
        "Tags": [{"Key": "kubernetes.io/cluster/shop", "Value": "owned"}]}));
    answers.groups.push(json!({"AutoScalingGroupName": "managed", "MaxSize": 1,
        "Tags": [{"Key": "eks:nodegroup-name", "Value": "unsaved"}, {"Key": "eks:cluster-name", "Value": "shop"}]}));
    answers.groups.push(json!({"AutoScalingGroupName": "batch-jobs", "MaxSize": 1,
        "LaunchTemplate": {"LaunchTemplateId": "lt-db", "Version": "9"}}));
    let outcome = migrate(&answers, &args(&[])).unwrap();
    assert!(!outcome.complete);
    assert_eq!(objects(&outcome).len(), 2);
    for line in [
        "lost: not carried over: version 7 of launch template lt-lost is not in the files; save it with: aws ec2 describe-launch-template-versions --launch-template-id lt-lost --output json",
        "managed: not carried over: belongs to the node group unsaved, which is not in the files; save it with: aws eks describe-nodegroup --cluster-name CLUSTER --nodegroup-name unsaved --output json",
        "batch-jobs: skipped: it has no tag of a cluster; --group batch-jobs takes it",
    ] {
        assert!(outcome.report.contains(line), "{}", outcome.report);
    }
}

#[test]
fn groups_of_several_clusters_are_distinguished() {
    let mut answers = case("zones");
    answers.groups[1]["Tags"][0]["Key"] = json!("kubernetes.io/cluster/other");
    let error = migrate(&answers, &args(&[])).err().unwrap().to_string();
    assert!(error.contains("other, shop"), "{error}");
    let chosen = migrate(&answers, &args(&["--cluster-name", "other"])).unwrap();
    assert_eq!(objects(&chosen)[1]["metadata"]["name"], "db-eu-west-1b");
    let error = migrate(&answers, &args(&["--group", "none"])).err().unwrap().to_string();
    assert_eq!(error, "--group none: the files have no such group");
}

#[test]
fn answers_that_a_loop_appends_to_a_file_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("groups.json");
    let group = |name: &str| json!({"nodegroup": {"nodegroupName": name}}).to_string();
    std::fs::write(&file, format!("{}\n{}\n", group("a"), group("b"))).unwrap();
    let read = Answers::read(&[folder.path().to_owned()]).unwrap();
    assert_eq!(read.node_groups.len(), 2);
    std::fs::write(&file, "{\"Reservations\": []}").unwrap();
    let error = Answers::read(&[file]).err().unwrap().to_string();
    assert!(error.contains("expected an answer of AWS"), "{error}");
}

#[test]
fn pools_of_different_groups_never_share_a_name() {
    let mut writer = pools::Writer::new(false);
    let mut names = std::collections::BTreeSet::new();
    let base = objects(&run_case("mixed-share", &[]))[0]["metadata"]["name"].clone();
    let base = base.as_str().unwrap();
    let read = |name: &str, case_name: &str| {
        let answers = case(case_name);
        let mut group = read_groups(&answers, &args(&[]), &mut String::new())
            .into_iter()
            .find_map(|(_, group)| group.ok())
            .unwrap();
        group.name = name.to_owned();
        group
    };
    for (name, from) in [
        (base, "mixed-share"),
        (&format!("{base}-on-demand"), "zones"),
        (&format!("{base}-spot"), "zones"),
    ] {
        for object in writer.write(&mut read(name, from)).unwrap() {
            let of = format!("{}/{}", object["kind"], object["metadata"]["name"]);
            assert!(names.insert(of.clone()), "{of} is there twice");
        }
    }
}

#[test]
fn the_steps_name_each_group_and_the_way_back() {
    let report = run_case("managed-on-demand", &[]).report;
    for text in ["--nodegroup-name general --scaling-config minSize=0", "To go back:"] {
        assert!(report.contains(text), "{report}");
    }
    assert!(steps::saving(Some("shop")).contains("aws eks list-nodegroups --cluster-name shop"));
}
