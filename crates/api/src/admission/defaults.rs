//! Pruning and defaulting.

use serde_json::Value;

use super::{Finding, is_true, member};

/// Takes away what the schema does not know, and notes it.
pub(super) fn prune(schema: &Value, object: &mut Value, unknown: &mut Vec<Finding>) {
    let Some(members) = object.as_object_mut() else { return };
    for (name, value) in members.iter_mut() {
        if !matches!(name.as_str(), "apiVersion" | "kind" | "metadata")
            && let Some(field) = schema["properties"].get(name)
        {
            prune_value(field, value, name, unknown);
        }
    }
    members.retain(|name, _| {
        let known = matches!(name.as_str(), "apiVersion" | "kind" | "metadata")
            || schema["properties"].get(name).is_some();
        if !known {
            unknown.push(unknown_field(name.clone()));
        }
        known
    });
}

fn unknown_field(path: String) -> Finding {
    Finding::new(path, "unknown field")
}

fn prune_value(schema: &Value, value: &mut Value, path: &str, unknown: &mut Vec<Finding>) {
    if is_true(schema, "x-kubernetes-preserve-unknown-fields") {
        return;
    }
    match value {
        Value::Array(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                prune_value(&schema["items"], item, &format!("{path}[{i}]"), unknown);
            }
        }
        Value::Object(members) => {
            let (fields, others) = (schema.get("properties"), schema.get("additionalProperties"));
            members.retain(|name, _| {
                // The keys of a map are data, and never unknown.
                let known = others.is_some() || fields.is_some_and(|f| f.get(name).is_some());
                if !known {
                    unknown.push(unknown_field(member(path, name, true)));
                }
                known
            });
            for (name, value) in members {
                let field = fields.and_then(|f| f.get(name));
                if let Some(found) = field.or(others) {
                    let path = member(path, name, field.is_some());
                    prune_value(found, value, &path, unknown);
                }
            }
        }
        _ => {}
    }
}

/// Fills in defaults, also inside defaults; a null that has a default counts as absent.
pub(super) fn fill(schema: &Value, value: &mut Value) {
    match value {
        Value::Array(items) => {
            for item in items {
                fill(&schema["items"], item);
            }
        }
        Value::Object(members) => {
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                // The API server treats a null like this for fields that are not nullable, and none
                // here is.
                let absent = members.get(name).is_none_or(Value::is_null);
                if let Some(default) = field.get("default").filter(|_| absent) {
                    members.insert(name.clone(), default.clone());
                }
            }
            for (name, value) in members {
                let field = schema["properties"].get(name);
                if let Some(found) = field.or_else(|| schema.get("additionalProperties")) {
                    fill(found, value);
                }
            }
        }
        _ => {}
    }
}
