//! `karpenter convert`: manifests of one API version as the other, as the webhook converts them.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::Value;

use super::manifests::{self, Manifest};
use super::validate;
use crate::api::admission::Admission;
use crate::api::checks::identity;
use crate::api::conversion;

mod changes;

/// What to convert, and into what.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Manifests, directories of them, or `-` for standard input.
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true, num_args = 1..)]
    pub files: Vec<PathBuf>,
    /// The version to convert to.
    #[arg(long, value_enum, default_value_t = Version::V1)]
    pub to: Version,
    /// Rewrite the files instead of printing everything.
    #[arg(long)]
    pub in_place: bool,
}

/// API versions of NodePool, NodeClaim and EC2NodeClass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Version {
    V1,
    V1beta1,
}

impl Version {
    fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V1beta1 => "v1beta1",
        }
    }
}

/// Converts; documents of other kinds go through as they stand. What changed is reported on standard
/// error, and so is what cannot be converted: kinds and versions of ours that this release does not know.
///
/// Exit code 1 when something that came out would not be accepted, 2 when some input cannot be
/// used; then nothing is written.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    match convert_all(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("karpenter convert: {error}");
            ExitCode::from(2)
        }
    }
}

fn convert_all(args: &Args) -> anyhow::Result<bool> {
    let files = manifests::expand(&args.files)?;
    let mut read = files.iter().map(|f| manifests::read(f)).collect::<Result<Vec<_>, _>>()?;
    let pools = expiry_of_pools(&read);
    let mut report = String::new();
    let mut fine = true;
    let mut touched = Vec::new();
    for manifest in &mut read {
        let mut changed_any = false;
        let name = manifest.name.clone();
        for document in &mut manifest.documents {
            let mut changed = false;
            for object in manifests::objects_mut(&mut document.value) {
                let label = format!("{name}: {}", manifests::name_of(object));
                if let Some(finding) = identity::check(object) {
                    report.push_str(&format!(
                        "{label}: not converted\n  needs your hand: {finding}\n"
                    ));
                    // A kind of ours in a version that is unknown here would be refused by the API
                    // server.
                    fine = false;
                    continue;
                }
                let Some((converted, problems)) = convert(object, args.to, &pools)
                    .map_err(|error| anyhow::anyhow!("{label}: {error}"))?
                else {
                    continue;
                };
                report.push_str(&format!("{label}: now {}\n", text(&converted["apiVersion"])));
                report.push_str(&changes::describe(object, &converted));
                for problem in &problems {
                    report.push_str(&format!("  needs your hand: {problem}\n"));
                }
                fine &= problems.is_empty();
                *object = converted;
                changed = true;
            }
            if changed {
                // JSON stays JSON: its file may be read by something that knows no YAML.
                document.text = if document.text.trim_start().starts_with('{') {
                    serde_json::to_string_pretty(&document.value)?
                } else {
                    serde_saphyr::to_string(&document.value)?
                };
                changed_any = true;
            }
        }
        touched.push(changed_any);
    }
    // Only once all are converted: a file that cannot be leaves the others as they were.
    for (manifest, _) in read.iter().zip(touched).filter(|(_, touched)| args.in_place && *touched) {
        if let Some(path) = &manifest.path {
            let text = stream(std::slice::from_ref(manifest));
            std::fs::write(path, text).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
        }
    }
    if report.is_empty() {
        report = format!("nothing to convert to {}\n", args.to.as_str());
    }
    eprint!("{report}");
    if !args.in_place {
        let printed = std::io::stdout().lock().write_all(stream(&read).as_bytes());
        printed.or_else(|e| {
            if e.kind() == std::io::ErrorKind::BrokenPipe { Ok(()) } else { Err(e) }
        })?;
    }
    Ok(fine)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// All documents as one stream.
fn stream(manifests: &[Manifest]) -> String {
    let mut out = String::new();
    for document in manifests.iter().flat_map(|m| &m.documents) {
        if document.text.trim().is_empty() {
            continue;
        }
        if !out.is_empty() {
            out.push_str("---\n");
        }
        out.push_str(&document.text);
        if !out.ends_with('\n') {
            out.push('\n');
        }
    }
    out
}

/// `expireAfter` of the pools among the input, for the NodeClaims that belong to them.
fn expiry_of_pools(read: &[Manifest]) -> BTreeMap<String, String> {
    let documents = read.iter().flat_map(|m| &m.documents);
    let objects = documents.flat_map(|d| manifests::objects(&d.value));
    let pools = objects.filter(|o| o["kind"] == "NodePool");
    pools
        .filter_map(|pool| {
            let mut pool = pool.clone();
            // In v1beta1 a pool without `expireAfter` has a default, which its NodeClaims carry.
            Admission::get().apply_defaults(&mut pool);
            let spec = &pool["spec"];
            let expiry = spec["template"]["spec"]["expireAfter"]
                .as_str()
                .or_else(|| spec["disruption"]["expireAfter"].as_str())?;
            Some((pool["metadata"]["name"].as_str()?.to_owned(), expiry.to_owned()))
        })
        .collect()
}

/// The object in the other version, with what keeps it from being accepted there; `None` when
/// there is nothing to convert.
fn convert(
    object: &Value,
    to: Version,
    pools: &BTreeMap<String, String>,
) -> Result<Option<(Value, Vec<String>)>, conversion::ConversionError> {
    let current = text(&object["apiVersion"]);
    let Some((group, version)) = current.split_once('/') else { return Ok(None) };
    let known = matches!(version, "v1" | "v1beta1");
    if !known || version == to.as_str() || !conversion::is_convertible(object) {
        return Ok(None);
    }
    let mut given = object.clone();
    // What the API server would fill in differs between the versions.
    Admission::get().apply_defaults(&mut given);
    let desired = format!("{group}/{}", to.as_str());
    let expire_after = |pool: &str| Ok(pools.get(pool).cloned());
    let converted = conversion::convert_object(given, &desired, &expire_after)?;
    let mut problems: Vec<String> = Vec::new();
    if let Some(admitted) = Admission::get().create(converted.clone()) {
        problems.extend(admitted.findings.iter().map(ToString::to_string));
    }
    if to == Version::V1 {
        let found = validate::of_controllers(&converted);
        problems.extend(found.iter().filter(|f| f.is_error()).map(ToString::to_string));
    }
    problems.dedup();
    Ok(Some((converted, problems)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_stream_keeps_what_is_not_ours() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("all.yaml");
        let pod = "# a pod\napiVersion: v1\nkind: Pod\nmetadata: {name: x}\n";
        let pool = "apiVersion: karpenter.sh/v1beta1\nkind: NodePool\nmetadata:\n  name: p\nspec:\n  template:\n    spec:\n      nodeClassRef:\n        name: c\n      requirements: []\n";
        std::fs::write(&path, format!("{pod}---\n{pool}")).unwrap();
        let args = Args { files: vec![folder.path().to_owned()], to: Version::V1, in_place: true };
        assert!(convert_all(&args).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(&format!("{pod}---\n")), "{text}");
        let read = manifests::read(&path).unwrap();
        let pool = &read.documents[1].value;
        assert_eq!(pool["apiVersion"], "karpenter.sh/v1");
        assert_eq!(pool["spec"]["template"]["spec"]["expireAfter"], "720h");
        assert_eq!(pool["spec"]["disruption"]["budgets"], json!([{"nodes": "10%"}]));
        let again = convert_all(&args).unwrap();
        assert!(again && std::fs::read_to_string(&path).unwrap() == text);
    }

    #[test]
    fn one_file_that_cannot_be_converted_leaves_all_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let pool = |name: &str, kubelet: &str| {
            format!(
                "apiVersion: karpenter.sh/v1\nkind: NodePool\nmetadata:\n  name: {name}\n  annotations: {{compatibility.karpenter.sh/v1beta1-kubelet-conversion: '{kubelet}'}}\nspec:\n  template:\n    spec:\n      nodeClassRef: {{group: karpenter.k8s.aws, kind: EC2NodeClass, name: c}}\n      requirements: []\n"
            )
        };
        let files = [("a.yaml", pool("a", "{}")), ("b.yaml", pool("b", "no JSON"))];
        for (name, text) in &files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let files_of = vec![folder.path().to_owned()];
        let args = Args { files: files_of, to: Version::V1beta1, in_place: true };
        assert!(convert_all(&args).is_err(), "the annotation of the second cannot be read");
        for (name, text) in &files {
            assert_eq!(&std::fs::read_to_string(folder.path().join(name)).unwrap(), text);
        }
    }

    #[test]
    fn json_stays_json() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool.json");
        let pool = json!({"apiVersion": "karpenter.sh/v1beta1", "kind": "NodePool",
            "metadata": {"name": "p"}, "spec": {"template": {"spec": {
                "nodeClassRef": {"name": "c"}, "requirements": []}}}});
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [pool]});
        std::fs::write(&path, list.to_string()).unwrap();
        let args = Args { files: vec![path.clone()], to: Version::V1, in_place: true };
        assert!(convert_all(&args).unwrap());
        let read: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read["items"][0]["apiVersion"], "karpenter.sh/v1");
    }

    #[test]
    fn claims_take_the_expiry_of_their_pool_in_the_input() {
        let claim = json!({"apiVersion": "karpenter.sh/v1beta1", "kind": "NodeClaim",
            "metadata": {"name": "n", "labels": {"karpenter.sh/nodepool": "p"}},
            "spec": {"nodeClassRef": {"name": "c"}, "requirements": []}});
        let pools = BTreeMap::from([("p".to_owned(), "48h".to_owned())]);
        let (v1, problems) = convert(&claim, Version::V1, &pools).unwrap().unwrap();
        assert_eq!(v1["spec"]["expireAfter"], "48h");
        assert!(problems.is_empty(), "{problems:?}");
    }

    #[test]
    fn what_v1_cannot_run_is_reported() {
        let class = json!({"apiVersion": "karpenter.k8s.aws/v1beta1", "kind": "EC2NodeClass",
            "metadata": {"name": "c"}, "spec": {"amiFamily": "Ubuntu", "role": "r",
                "subnetSelectorTerms": [{"id": "subnet-1"}],
                "securityGroupSelectorTerms": [{"id": "sg-1"}]}});
        let (_, problems) = convert(&class, Version::V1, &BTreeMap::new()).unwrap().unwrap();
        assert!(problems[0].starts_with("spec.amiSelectorTerms[0]: "), "{problems:?}");
    }

    #[test]
    fn kinds_that_nothing_converts_are_reported() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("old.yaml");
        let old = "apiVersion: karpenter.sh/v1alpha5\nkind: Provisioner\nmetadata: {name: x}\n";
        std::fs::write(&path, old).unwrap();
        let args = Args { files: vec![path.clone()], to: Version::V1, in_place: true };
        assert!(!convert_all(&args).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), old);
    }
}
