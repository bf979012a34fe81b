//! What happens to an object on its way into the store: defaults, what a subresource may change,
//! what an update may not touch, and the schemas of custom resources.

use jiff::Timestamp;
use karpenter_api::admission::{Admission, Admitted};
use serde_json::{Map, Value, json};

use super::failure::Failure;
use super::kinds::Kind;
use super::pods;

/// Fields of the metadata that only the server writes.
const OWN: [&str; 8] = [
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "selfLink",
];

/// RFC 3339 in whole seconds, as the API server writes times.
#[must_use]
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub(crate) fn meta(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    let meta = &mut object["metadata"];
    if !meta.is_object() {
        *meta = json!({});
    }
    match meta {
        Value::Object(map) => map,
        // It was made an object right above.
        _ => unreachable!("metadata is an object"),
    }
}

pub(crate) fn is_deleting(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

pub(crate) fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty())
}

/// Fills in what a new object lacks, and drops what it may not bring.
pub(crate) fn on_create(kind: &Kind, object: &mut Value) {
    // Kubelets register with a status, and the model's attacher is done at once.
    let keeps_status = !kind.status || matches!(kind.plural, "nodes" | "volumeattachments");
    if !keeps_status && let Some(map) = object.as_object_mut() {
        map.shift_remove("status");
    }
    match kind.plural {
        "pods" => pods::defaults(object),
        "namespaces" => object["status"] = json!({ "phase": "Active" }),
        "persistentvolumes" | "persistentvolumeclaims" => {
            object["status"] = json!({ "phase": "Pending" });
        }
        "nodes" => not_ready_taint(object),
        _ => {}
    }
}

/// A new node takes no pods before it is ready.
fn not_ready_taint(node: &mut Value) {
    let key = "node.kubernetes.io/not-ready";
    if !node["spec"].is_object() {
        node["spec"] = json!({});
    }
    let taint = json!({ "key": key, "effect": "NoSchedule" });
    match node["spec"]["taints"].as_array_mut() {
        Some(list) if list.iter().any(|t| t["key"] == key && t["effect"] == "NoSchedule") => {}
        Some(list) => list.push(taint),
        None => node["spec"]["taints"] = json!([taint]),
    }
}

/// Checks a custom resource; gives it pruned and with defaults.
pub(crate) fn admit(kind: &Kind, old: Option<&Value>, object: Value) -> Result<Value, Failure> {
    if !kind.custom {
        return Ok(object);
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let admission = Admission::get();
    let admitted = match old {
        Some(old) => admission.update(old, object),
        None => admission.create(object),
    };
    let Some(Admitted { object, findings, .. }) = admitted else {
        return Err(Failure::bad_request(format!(
            "expected an object of kind {} in {}",
            kind.kind,
            kind.api_version()
        )));
    };
    if findings.is_empty() {
        return Ok(object);
    }
    let list: Vec<String> = findings.iter().map(ToString::to_string).collect();
    Err(Failure::invalid(kind, &name, &list.join(", ")))
}

/// Keeps of a change what its subresource may change, and counts generations.
pub(crate) fn on_update(
    kind: &Kind,
    old: &Value,
    mut new: Value,
    subresource: &str,
) -> Result<Value, Failure> {
    let name = old["metadata"]["name"].as_str().unwrap_or_default();
    check_identity(kind, old, &new, name)?;
    keep_own(old, &mut new);
    if kind.status && subresource == "status" {
        // A write to the status of a custom resource ignores metadata, while that of a built-in
        // kind takes labels and annotations.
        let mut kept = old.clone();
        if !kind.custom {
            for part in ["labels", "annotations"] {
                set_or_remove(meta(&mut kept), part, new["metadata"].get(part));
            }
        }
        if let Some(map) = kept.as_object_mut() {
            set_or_remove(map, "status", new.get("status"));
        }
        new = kept;
    } else if kind.status
        && let Some(map) = new.as_object_mut()
    {
        set_or_remove(map, "status", old.get("status"));
    }
    // The API server accepts no new finalizer on an object that is being deleted.
    if is_deleting(old) {
        check_finalizers(kind, old, &new, name)?;
    }
    let mut new = admit(kind, Some(old), new)?;
    if kind.generation && subresource.is_empty() && !same_but_metadata(old, &new) {
        let count = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        meta(&mut new).insert("generation".to_owned(), json!(count));
    }
    Ok(new)
}

fn check_identity(kind: &Kind, old: &Value, new: &Value, name: &str) -> Result<(), Failure> {
    let (was, is) = (&old["metadata"], &new["metadata"]);
    if is["name"].as_str().is_some_and(|n| n != name) {
        return Err(Failure::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            is["name"].as_str().unwrap_or_default()
        )));
    }
    let uid = is["uid"].as_str().filter(|u| !u.is_empty());
    if uid.is_some() && uid != was["uid"].as_str() {
        let why = format!(
            "Precondition failed: UID in precondition: {}, UID in object meta: {}",
            uid.unwrap_or_default(),
            was["uid"].as_str().unwrap_or_default()
        );
        return Err(Failure::conflict(kind, name, &why));
    }
    let version = is["resourceVersion"].as_str().filter(|v| !v.is_empty());
    if version.is_some() && version != was["resourceVersion"].as_str() {
        return Err(Failure::modified(kind, name));
    }
    Ok(())
}

fn keep_own(old: &Value, new: &mut Value) {
    for field in ["apiVersion", "kind"] {
        new[field] = old[field].clone();
    }
    let target = meta(new);
    for field in OWN.iter().copied().chain(["resourceVersion"]) {
        set_or_remove(target, field, old["metadata"].get(field));
    }
}

fn check_finalizers(kind: &Kind, old: &Value, new: &Value, name: &str) -> Result<(), Failure> {
    let list = |v: &Value| v["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    let known = list(old);
    let added: Vec<String> =
        list(new).iter().filter(|f| !known.contains(f)).map(ToString::to_string).collect();
    if added.is_empty() {
        return Ok(());
    }
    let why = format!(
        "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
        added.join(", ")
    );
    Err(Failure::invalid(kind, name, &why))
}

fn same_but_metadata(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return a == b };
    let matters = |key: &&String| !matches!(key.as_str(), "metadata" | "status");
    a.keys().chain(b.keys()).filter(matters).all(|key| a.get(key) == b.get(key))
}

fn set_or_remove(map: &mut Map<String, Value>, key: &str, value: Option<&Value>) {
    match value {
        Some(value) => {
            map.insert(key.to_owned(), value.clone());
        }
        None => {
            map.shift_remove(key);
        }
    }
}
