//! Objects that have every field of their schema, for tests that nothing gets lost.

use serde_json::{Map, Value, json};

use super::all;

/// Texts for fields with a pattern: the first that fits is taken.
const SAMPLES: &[&str] = &[
    "x",
    "x1",
    "1h",
    "10%",
    "@daily",
    "ami-1",
    "sg-1",
    "subnet-1",
    "cr-1",
    "pg-1",
    "123456789012",
    "20Gi",
    "1",
    "1.5",
    "+1",
];

/// An object with every field for every served version of every kind. Not all of them are valid:
/// some fields exclude each other.
pub(crate) fn objects() -> Vec<Value> {
    let mut objects = Vec::new();
    for (_, definition) in all() {
        let spec = &definition["spec"];
        for version in spec["versions"].as_array().unwrap() {
            let mut object = sample(&version["schema"]["openAPIV3Schema"], "");
            let group = spec["group"].as_str().unwrap();
            let version = version["name"].as_str().unwrap();
            object["apiVersion"] = json!(format!("{group}/{version}"));
            object["kind"] = spec["names"]["kind"].clone();
            object["metadata"] = json!({"name": "x"});
            objects.push(object);
        }
    }
    objects
}

fn sample(schema: &Value, path: &str) -> Value {
    if schema["x-kubernetes-int-or-string"] == true {
        return json!("1500m");
    }
    if let Some(choice) = schema["enum"].as_array() {
        return choice.last().unwrap().clone();
    }
    match schema["type"].as_str() {
        // Any text in the schema of a node class's status, whose writer is a controller.
        Some("string") if path.ends_with(".operator") => json!("In"),
        Some("object") => {
            let mut object = Map::new();
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                object.insert(name.clone(), sample(field, &format!("{path}.{name}")));
            }
            if let Some(values) = schema.get("additionalProperties") {
                object.insert("key".to_owned(), sample(values, &format!("{path}{{}}")));
            }
            Value::Object(object)
        }
        Some("array") => json!([sample(&schema["items"], &format!("{path}[]"))]),
        Some("integer") => json!(schema["minimum"].as_f64().unwrap_or(0.0) as i64 + 7),
        Some("boolean") => json!(true),
        Some("string") if schema["format"] == "date-time" => json!("2026-01-02T03:04:05Z"),
        Some("string") => match schema["pattern"].as_str() {
            None => json!("x"),
            Some(pattern) => {
                let pattern = regex::Regex::new(pattern).unwrap();
                let fits = SAMPLES.iter().find(|s| pattern.is_match(s));
                json!(fits.unwrap_or_else(|| panic!("no sample for {path}: {pattern}")))
            }
        },
        // An open object's members.
        None => json!({"any": [1, "x"]}),
        other => panic!("{path}: unknown type {other:?}"),
    }
}
