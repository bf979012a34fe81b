//! The table `tests/data/rules.yaml`: for every CEL rule what it accepts and what it refuses.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// One rule of one version of one kind.
pub struct Case {
    pub kind: String,
    /// `group/version`.
    pub api_version: String,
    /// Where the rule stands in the schema.
    pub path: String,
    /// Where its message is expected.
    pub at: String,
    pub message: String,
    pub accepted: Value,
    pub refused: Value,
    /// What is stored before, for rules on changes.
    pub from: Option<Value>,
}

impl Case {
    /// How the case is spoken of when something is wrong with it.
    pub fn label(&self) -> String {
        format!("{} {} {}: {}", self.api_version, self.kind, self.path, self.message)
    }
}

fn group(kind: &str) -> &'static str {
    match kind {
        "EC2NodeClass" => "karpenter.k8s.aws",
        "CapacityBuffer" => "autoscaling.x-k8s.io",
        _ => "karpenter.sh",
    }
}

/// Where `node` stands for in a kind.
fn node(kind: &str) -> &'static [&'static str] {
    if kind == "NodePool" { &["spec", "template", "spec"] } else { &["spec"] }
}

/// Applies a merge patch.
pub fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let members: &mut Map<String, Value> = target.as_object_mut().unwrap();
    for (key, value) in patch {
        if value.is_null() {
            members.remove(key);
        } else {
            merge(members.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// A valid object of a kind and version.
pub fn base(table: &Value, kind: &str, version: &str) -> Value {
    let mut object = table["bases"][format!("{kind} {version}")].clone();
    assert!(object.is_object(), "no base for {kind} {version}");
    object["apiVersion"] = json!(format!("{}/{version}", group(kind)));
    object["kind"] = json!(kind);
    object["metadata"] = json!({"name": "x"});
    object
}

fn patched(base: &Value, patch: &Value, kind: &str) -> Value {
    let mut object = base.clone();
    let mut patch = patch.clone();
    if let Some(inner) = patch.as_object_mut().and_then(|p| p.remove("node")) {
        let mut wrapped = inner;
        for key in node(kind).iter().rev() {
            wrapped = json!({ *key: wrapped });
        }
        merge(&mut object, &wrapped);
    }
    merge(&mut object, &patch);
    object
}

/// The table as it is.
pub fn table() -> Value {
    serde_saphyr::from_str(include_str!("../../data/rules.yaml")).unwrap()
}

/// Every rule of the table for every version that it names.
pub fn cases() -> Vec<Case> {
    let table = table();
    let mut cases = Vec::new();
    for rule in table["rules"].as_array().unwrap() {
        for of in rule["of"].as_array().unwrap() {
            let (kind, version) = of.as_str().unwrap().split_once(' ').unwrap();
            let base = base(&table, kind, version);
            let place = |key: &str| {
                let path = rule[key].as_str().or_else(|| rule["path"].as_str()).unwrap();
                path.replacen("node.", &format!("{}.", node(kind).join(".")), 1)
            };
            let from = rule.get("from").map(|patch| patched(&base, patch, kind));
            let start = from.clone().unwrap_or(base);
            cases.push(Case {
                kind: kind.to_owned(),
                api_version: format!("{}/{version}", group(kind)),
                path: place("path"),
                at: place("at"),
                message: rule["message"].as_str().unwrap().to_owned(),
                accepted: patched(&start, &rule["accepted"], kind),
                refused: patched(&start, &rule["refused"], kind),
                from,
            });
        }
    }
    cases
}

/// Every rule of the definitions: version, kind, path, message.
#[allow(dead_code, reason = "the unit tests of the same table use it")]
pub fn rules_of(crds: &[(&str, Value)]) -> BTreeSet<(String, String, String, String)> {
    fn walk(schema: &Value, path: &str, found: &mut Vec<(String, String)>) {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            found.push((path.to_owned(), rule["message"].as_str().unwrap().to_owned()));
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            walk(field, &path, found);
        }
        for (key, mark) in [("items", "[]"), ("additionalProperties", "{}")] {
            if schema[key].is_object() {
                walk(&schema[key], &format!("{path}{mark}"), found);
            }
        }
    }
    let mut rules = BTreeSet::new();
    for (_, crd) in crds {
        let spec = &crd["spec"];
        for version in spec["versions"].as_array().unwrap() {
            let mut found = Vec::new();
            walk(&version["schema"]["openAPIV3Schema"], "", &mut found);
            let text = |v: &Value| v.as_str().unwrap().to_owned();
            let api_version = format!("{}/{}", text(&spec["group"]), text(&version["name"]));
            let kind = text(&spec["names"]["kind"]);
            rules.extend(found.into_iter().map(|(p, m)| (api_version.clone(), kind.clone(), p, m)));
        }
    }
    rules
}

/// Values of one field: those that are accepted and those that are not.
pub struct Values {
    pub label: String,
    base: Value,
    kind: String,
    patch: Value,
    accepted: Vec<Value>,
    refused: Vec<Value>,
}

impl Values {
    /// An object for each value, and whether it is accepted.
    pub fn objects(&self) -> Vec<(Value, bool)> {
        let good = self.accepted.iter().map(|v| (v, true));
        let all = good.chain(self.refused.iter().map(|v| (v, false)));
        all.map(|(value, accepted)| {
            let mut patch = self.patch.clone();
            put(&mut patch, value);
            (patched(&self.base, &patch, &self.kind), accepted)
        })
        .collect()
    }
}

/// Puts a value where the patch has `$`.
fn put(patch: &mut Value, value: &Value) {
    match patch {
        Value::String(text) if text == "$" => *patch = value.clone(),
        Value::Array(items) => items.iter_mut().for_each(|v| put(v, value)),
        Value::Object(members) => members.values_mut().for_each(|v| put(v, value)),
        _ => {}
    }
}

/// The table of values for every version that it names.
pub fn values() -> Vec<Values> {
    let table = table();
    let mut all = Vec::new();
    for entry in table["values"].as_array().unwrap() {
        for of in entry["of"].as_array().unwrap() {
            let (kind, version) = of.as_str().unwrap().split_once(' ').unwrap();
            let list = |key: &str| entry[key].as_array().unwrap().clone();
            all.push(Values {
                label: format!("{kind} {version} {}", entry["patch"]),
                base: base(&table, kind, version),
                kind: kind.to_owned(),
                patch: entry["patch"].clone(),
                accepted: list("accepted"),
                refused: list("refused"),
            });
        }
    }
    all
}
