//! Names, labels and annotations.

use serde_json::Value;

use super::{Finding, member};
use crate::checks::names::{is_label_value, is_qualified_name, is_subdomain};

/// The most that all annotations may take together, in bytes; Kubernetes' limit.
const ANNOTATIONS_LIMIT: usize = 256 << 10;

pub(super) fn findings(object: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |path: String, message: String| findings.push(Finding::new(path, message));
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default();
    let generated = metadata["generateName"].as_str().unwrap_or_default();
    if name.is_empty() && generated.is_empty() {
        add("metadata.name".to_owned(), "required: name or generateName".to_owned());
    }
    if !name.is_empty() && !is_subdomain(name) {
        let text = format!("invalid name {name:?}, expected lower-case letters, digits, - and .");
        add("metadata.name".to_owned(), text);
    }
    let mut size = 0;
    for field in ["labels", "annotations"] {
        let path = format!("metadata.{field}");
        let Some(map) = metadata.get(field).filter(|m| !m.is_null()) else { continue };
        let Some(map) = map.as_object() else {
            add(path, "expected a map of texts".to_owned());
            continue;
        };
        for (key, value) in map {
            let path = member(&path, key, false);
            let Some(text) = value.as_str() else {
                add(path, format!("expected a text, is {value}"));
                continue;
            };
            // Keys of annotations may have upper-case prefixes.
            let plain = if field == "labels" { key.clone() } else { key.to_ascii_lowercase() };
            if !is_qualified_name(&plain) {
                add(path.clone(), format!("invalid key {key:?}, expected [prefix/]name"));
            }
            if field == "labels" && !is_label_value(text) {
                add(path, format!("invalid value {text:?}, expected a label value"));
            } else if field == "annotations" {
                size += key.len() + text.len();
            }
        }
    }
    if size > ANNOTATIONS_LIMIT {
        let text = format!("{size} bytes together, expected at most {ANNOTATIONS_LIMIT}");
        add("metadata.annotations".to_owned(), text);
    }
    findings
}
