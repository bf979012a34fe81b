//! What an API server with our CRDs does with an object before it stores it, without one.
//!
//! Unknown fields are pruned, defaults filled in, and the rest is checked against the schema and
//! its CEL rules. `karpenter validate` and `karpenter convert` use it; the end-to-end tests hold
//! it against a real API server.

use std::sync::OnceLock;

use serde_json::Value;

use super::checks::Finding;
use super::crds;

mod cel;
mod defaults;
mod metadata;
mod pattern;
mod schema;
#[cfg(test)]
mod tests;

/// One served version of a kind.
struct Version {
    api_version: String,
    kind: String,
    namespaced: bool,
    schema: Value,
}

/// The schemas of every served version of every kind.
pub struct Admission {
    versions: Vec<Version>,
}

/// What becomes of an object.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// The object as it would be stored, when nothing is wrong with it.
    pub object: Value,
    /// Fields that the schema does not know. The API server drops them; clients with strict field
    /// validation, such as kubectl, refuse them.
    pub unknown: Vec<Finding>,
    /// Why the API server would refuse the object.
    pub findings: Vec<Finding>,
}

impl Admission {
    /// The schemas of this build's CRDs.
    #[must_use]
    pub fn get() -> &'static Self {
        static SHARED: OnceLock<Admission> = OnceLock::new();
        SHARED.get_or_init(|| Self { versions: crds::all().iter().flat_map(versions_of).collect() })
    }

    fn version(&self, object: &Value) -> Option<&Version> {
        let (api_version, kind) = (object["apiVersion"].as_str()?, object["kind"].as_str()?);
        self.versions.iter().find(|v| v.api_version == api_version && v.kind == kind)
    }

    /// True for objects of a kind and version that the CRDs serve.
    #[must_use]
    pub fn serves(&self, object: &Value) -> bool {
        self.version(object).is_some()
    }

    /// True for objects of an API group and kind that the CRDs define, in whatever version.
    #[must_use]
    pub fn defines(&self, object: &Value) -> bool {
        let group = |text: &str| text.split('/').next().map(str::to_owned);
        let wanted = object["apiVersion"].as_str().and_then(group);
        self.versions
            .iter()
            .any(|v| object["kind"] == v.kind.as_str() && group(&v.api_version) == wanted)
    }

    /// The versions in which objects of the same group and kind are served.
    #[must_use]
    pub fn served_versions(&self, kind: &str) -> Vec<&str> {
        self.versions.iter().filter(|v| v.kind == kind).map(|v| v.api_version.as_str()).collect()
    }

    /// Fills in the defaults of the object's version; other objects stay as they are.
    pub fn apply_defaults(&self, object: &mut Value) {
        if let Some(version) = self.version(object) {
            defaults::fill(&version.schema, object);
        }
    }

    /// What becomes of a new object; `None` when its kind or version is not served.
    #[must_use]
    pub fn create(&self, object: Value) -> Option<Admitted> {
        self.admit(None, object)
    }

    /// What becomes of a change of `old`, an object as stored, to `object` in the same version.
    #[must_use]
    pub fn update(&self, old: &Value, object: Value) -> Option<Admitted> {
        self.admit(Some(old), object)
    }

    fn admit(&self, old: Option<&Value>, mut object: Value) -> Option<Admitted> {
        let version = self.version(&object)?;
        let mut unknown = Vec::new();
        defaults::prune(&version.schema, &mut object, &mut unknown);
        // After pruning and before validation, in the API server's order.
        defaults::fill(&version.schema, &mut object);
        // The API server clears a namespace that the kind does not have.
        if !version.namespaced
            && let Some(Value::Object(meta)) = object.get_mut("metadata")
        {
            meta.remove("namespace");
        }
        let mut findings = metadata::findings(&object);
        // CEL rules assume the types that the schema promises, so the API server does not evaluate
        // them on an object that breaks it.
        let sound = schema::check(&version.schema, &object, "", &mut findings);
        if sound {
            cel::check(&version.schema, &object, old, "", &mut findings);
        }
        Some(Admitted { object, unknown, findings })
    }
}

fn versions_of((_, definition): &(&str, Value)) -> Vec<Version> {
    let spec = &definition["spec"];
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let group = text(&spec["group"]);
    let list = spec["versions"].as_array().cloned().unwrap_or_default();
    list.into_iter()
        .filter(|v| v["served"] == true)
        .map(|mut v| Version {
            api_version: format!("{group}/{}", text(&v["name"])),
            kind: text(&spec["names"]["kind"]),
            namespaced: spec["scope"] == "Namespaced",
            schema: v["schema"]["openAPIV3Schema"].take(),
        })
        .collect()
}

/// The path of a member: `spec.limits`, or `spec.limits[example.com/gpu]` for names that are no
/// fields.
fn member(path: &str, name: &str, field: bool) -> String {
    match (path.is_empty(), field) {
        (true, _) => name.to_owned(),
        (false, true) => format!("{path}.{name}"),
        (false, false) => format!("{path}[{name}]"),
    }
}

/// The members of an object with their schemas: declared fields, else those of its map values.
fn members<'a>(
    schema: &'a Value,
    object: &'a serde_json::Map<String, Value>,
) -> impl Iterator<Item = (&'a String, &'a Value, &'a Value, bool)> {
    object.iter().filter_map(move |(name, value)| {
        let field = schema.get("properties").and_then(|p| p.get(name));
        let found = field.or_else(|| schema.get("additionalProperties"))?;
        Some((name, value, found, field.is_some()))
    })
}

fn is_true(schema: &Value, key: &str) -> bool {
    schema.get(key) == Some(&Value::Bool(true))
}
