//! Values files of Karpenter 1.15.

use serde_json::{Map, Value};

use super::{file, run_helm};

/// Values that have their default in the file: each excludes another that is set there.
const AT_DEFAULT: &[&str] =
    &["serviceAccount.create", "settings.enableDRA", "settings.legacyNodeRepair"];

fn rendered(values: &Value) -> Result<String, String> {
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), values.to_string()).unwrap();
    let text = path.path().to_string_lossy();
    let monitors = "monitoring.coreos.com/v1";
    run_helm(&[
        "template",
        "karpenter",
        "charts/karpenter",
        "--api-versions",
        monitors,
        "-f",
        &text,
    ])
}

/// The paths of all values that are no objects.
fn paths(values: &Map<String, Value>, path: &[String]) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for (name, value) in values {
        let path = [path, std::slice::from_ref(name)].concat();
        match value.as_object() {
            Some(object) => all.extend(paths(object, &path)),
            None => all.push(path),
        }
    }
    all
}

fn without(values: &Value, path: &[String]) -> Value {
    let mut left = values.clone();
    let (last, parents) = path.split_last().unwrap();
    let parent = parents.iter().fold(&mut left, |at, name| &mut at[name]);
    parent.as_object_mut().unwrap().remove(last);
    left
}

#[test]
fn every_value_of_a_file_of_1_15_has_an_effect() {
    let text = std::fs::read_to_string(file("1.15.yaml")).unwrap();
    let values: Value = serde_saphyr::from_str(&text).unwrap();
    let whole = rendered(&values);
    assert!(whole.is_ok(), "{whole:?}");
    let all = paths(values.as_object().unwrap(), &[]);
    assert!(all.len() > 80, "{}", all.len());
    let idle: Vec<String> = all
        .iter()
        .filter(|path| rendered(&without(&values, path)) == whole)
        .map(|path| path.join("."))
        .collect();
    assert_eq!(idle, AT_DEFAULT);
}
