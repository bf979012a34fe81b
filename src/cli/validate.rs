//! `karpenter validate`: everything that the API server and the controllers would find wrong with
//! manifests, without a cluster.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::Value;

use super::manifests;
use crate::api::admission::Admission;
use crate::api::checks::{self, Finding, identity};
use crate::api::conversion;
use crate::api::v1::{EC2NodeClass, NodePool};
use crate::cloud::aws::{nodeclass, offered};
use crate::operator::settings::AwsFeatureGates;

/// What to check.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Manifests, directories of them, or `-` for standard input.
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true, num_args = 1..)]
    pub files: Vec<PathBuf>,
}

/// Prints one line per finding. Exit code 0 when there is none but warnings, 1 when there are some,
/// 2 when some input cannot be used.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let files = match manifests::expand(&args.files) {
        Ok(files) => files,
        Err(error) => return unusable(&error),
    };
    let (mut objects, mut others, mut findings, mut warnings) = (0, 0, 0, 0);
    let mut code = ExitCode::SUCCESS;
    for file in files {
        let manifest = match manifests::read(&file) {
            Ok(manifest) => manifest,
            Err(error) => {
                code = unusable(&error);
                continue;
            }
        };
        for object in manifest.documents.iter().flat_map(|d| manifests::objects(&d.value)) {
            let Some(found) = check(object) else {
                others += usize::from(!object.is_null());
                continue;
            };
            objects += 1;
            for finding in found {
                let (count, mark) = if finding.is_error() {
                    (&mut findings, "")
                } else {
                    (&mut warnings, "warning: ")
                };
                *count += 1;
                // One line each: values that are cited may have several.
                let text = finding.to_string().replace('\n', " ");
                println!("{}: {}: {mark}{text}", manifest.name, manifests::name_of(object));
            }
        }
    }
    let skipped = if others > 0 { format!(", {others} others skipped") } else { String::new() };
    let warned = if warnings > 0 { format!(", {warnings} warnings") } else { String::new() };
    eprintln!("{objects} objects checked{skipped}, {findings} findings{warned}");
    if code == ExitCode::SUCCESS && findings > 0 { ExitCode::FAILURE } else { code }
}

fn unusable(error: &manifests::ManifestError) -> ExitCode {
    eprintln!("karpenter validate: {error}");
    ExitCode::from(2)
}

/// What is wrong with an object; `None` for objects that are not ours.
#[must_use]
pub fn check(object: &Value) -> Option<Vec<Finding>> {
    let admission = Admission::get();
    let Some(admitted) = admission.create(object.clone()) else {
        return identity::check(object).map(|finding| vec![finding]);
    };
    let mut findings = [admitted.unknown, admitted.findings].concat();
    // The controllers never see what the API server refuses, so their checks would only repeat it.
    if !findings.is_empty() {
        return Some(findings);
    }
    match stored(admitted.object) {
        Ok((stored, converted)) => {
            findings = of_controllers(&stored);
            // An object that v1beta1 allows may break a rule of v1, and is stored as v1.
            if converted && let Some(again) = admission.create(stored) {
                findings.extend(again.findings);
                for finding in &mut findings {
                    finding.message.push_str(" (in v1, as which the object is stored)");
                }
            }
        }
        Err(error) => findings.push(Finding::new("metadata.annotations", error.to_string())),
    }
    findings.dedup();
    Some(findings)
}

/// What the controllers find wrong with an object in its stored version.
pub(super) fn of_controllers(stored: &Value) -> Vec<Finding> {
    let mut findings = checks::object(stored);
    if stored["kind"] == "EC2NodeClass"
        && let Ok(class) = serde_json::from_value::<EC2NodeClass>(stored.clone())
    {
        // Whether expressions are allowed is the controller's setting, not the class's.
        findings.extend(nodeclass::findings(&class, AwsFeatureGates::ALL));
    }
    if stored["kind"] == "NodePool"
        && let Ok(pool) = serde_json::from_value::<NodePool>(stored.clone())
    {
        findings.extend(offered::warnings(&pool));
    }
    findings
}

/// The object in the version in which it is stored, and whether it was converted.
fn stored(object: Value) -> Result<(Value, bool), conversion::ConversionError> {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    if !conversion::is_convertible(&object) || version.ends_with("/v1") {
        return Ok((object, false));
    }
    let group = version.split('/').next().unwrap_or_default();
    let desired = format!("{group}/v1");
    Ok((conversion::convert_object(object, &desired, &|_| Ok(None))?, true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pool(spec: Value) -> Value {
        json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": {"name": "p"},
            "spec": spec})
    }

    fn lines(object: &Value) -> Vec<String> {
        check(object).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_layer_finds_its_own() {
        let node = |requirements: Value| {
            json!({"template": {"spec": {"requirements": requirements, "nodeClassRef":
                {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "c"}}}})
        };
        assert!(lines(&pool(node(json!([])))).is_empty());
        let mut unknown = node(json!([]));
        unknown["wieght"] = json!(3);
        assert_eq!(lines(&pool(unknown)), ["spec.wieght: unknown field"]);
        let mut schema = node(json!([]));
        schema["weight"] = json!(300);
        assert_eq!(lines(&pool(schema)), ["spec.weight: is 300, expected at most 100"]);
        let rule = lines(&pool(node(json!([{"key": "a", "operator": "In", "values": []}]))));
        assert_eq!(
            rule,
            [
                "spec.template.spec.requirements: requirements with operator 'In' must have a value defined"
            ]
        );
        let controller =
            lines(&pool(node(json!([{"key": "a", "operator": "In", "values": ["b c"]}]))));
        assert!(controller[0].starts_with("spec.template.spec.requirements[0].values: "));
        let mut budget = node(json!([]));
        budget["disruption"] =
            json!({"budgets": [{"nodes": "0", "schedule": "99 99 * * *", "duration": "1h"}]});
        assert!(lines(&pool(budget))[0].starts_with("spec.disruption.budgets[0].schedule: "));
    }

    #[test]
    fn kubelet_settings_are_checked_as_the_controller_does() {
        let class = |kubelet: Value| {
            json!({"apiVersion": "karpenter.k8s.aws/v1", "kind": "EC2NodeClass",
                "metadata": {"name": "c"}, "spec": {"role": "r", "kubelet": kubelet,
                    "amiSelectorTerms": [{"alias": "bottlerocket@latest"}],
                    "subnetSelectorTerms": [{"id": "subnet-1"}],
                    "securityGroupSelectorTerms": [{"id": "sg-1"}]}})
        };
        assert!(lines(&class(json!({"maxPods": 5}))).is_empty());
        let found = lines(&class(json!({"maxPods": -5})));
        assert!(found[0].starts_with("spec.kubelet.maxPods: "), "{found:?}");
        let found = lines(&class(json!({"podsPerCore": 2})));
        assert!(found[0].starts_with("spec.kubelet: "), "{found:?}");
    }

    #[test]
    fn other_objects_are_left_alone_and_old_kinds_are_not() {
        assert!(check(&json!({"apiVersion": "v1", "kind": "Pod"})).is_none());
        assert!(check(&Value::Null).is_none());
        let old = json!({"apiVersion": "karpenter.sh/v1alpha5", "kind": "Provisioner"});
        assert!(lines(&old)[0].starts_with("kind: Provisioner of karpenter.sh/v1alpha5"));
        assert_eq!(lines(&json!({"kind": "NodePool", "metadata": {"name": "p"}})).len(), 1);
        let old = json!({"apiVersion": "karpenter.sh/v1alpha5", "kind": "NodePool"});
        assert!(lines(&old)[0].ends_with("expected karpenter.sh/v1 or karpenter.sh/v1beta1"));
    }

    #[test]
    fn v1beta1_is_checked_as_what_it_becomes() {
        let class = json!({"apiVersion": "karpenter.k8s.aws/v1beta1", "kind": "EC2NodeClass",
            "metadata": {"name": "c"}, "spec": {"amiFamily": "AL2", "role": "r",
                "subnetSelectorTerms": [{"id": "subnet-1"}],
                "securityGroupSelectorTerms": [{"id": "sg-1"}],
                "amiSelectorTerms": [{"id": "ami-1", "owner": "self"}, {"id": "ami-2"}]}});
        let found = lines(&class);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("spec.amiSelectorTerms: 'id' is mutually exclusive"));
        assert!(found[0].ends_with("(in v1, as which the object is stored)"));
    }
}
