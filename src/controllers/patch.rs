//! Writes: merge patches of exactly what changed.

use k8s_openapi::NamespaceResourceScope;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// Whether a write must find the object as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Refused when the object changed meanwhile.
    Optimistic,
    /// Laid over whatever is there.
    None,
}

/// The merge patch that turns `before` into `after`, or nothing when they are equal.
#[must_use]
pub fn diff(before: &Value, after: &Value) -> Option<Value> {
    if before == after {
        return None;
    }
    let (Value::Object(a), Value::Object(b)) = (before, after) else {
        return Some(after.clone());
    };
    let mut patch = Map::new();
    for (key, value) in b {
        match a.get(key) {
            Some(old) => {
                if let Some(change) = diff(old, value) {
                    patch.insert(key.clone(), change);
                }
            }
            None => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    for key in a.keys().filter(|k| !b.contains_key(*k)) {
        patch.insert(key.clone(), Value::Null);
    }
    Some(Value::Object(patch))
}

fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// True when the object changed since it was read.
#[must_use]
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Writes what changed of metadata and spec, then of the status; an object that is gone is fine.
///
/// # Errors
/// When the API server refuses.
pub async fn apply<K>(api: &Api<K>, before: &K, after: &K, lock: Lock) -> Result<(), kube::Error>
where
    K: Resource + Serialize + DeserializeOwned + Clone + std::fmt::Debug,
{
    let name = before.meta().name.clone().unwrap_or_default();
    let (mut old, mut new) = (to_value(before), to_value(after));
    let old_status = old.as_object_mut().and_then(|o| o.remove("status")).unwrap_or(json!({}));
    let new_status = new.as_object_mut().and_then(|o| o.remove("status")).unwrap_or(json!({}));
    let version = before.meta().resource_version.clone();
    let locked = |patch: &mut Value, version: &Option<String>| {
        if lock == Lock::Optimistic
            && let Some(version) = version
        {
            patch["metadata"]["resourceVersion"] = json!(version);
        }
    };
    let mut version = version;
    if let Some(mut patch) = diff(&old, &new) {
        locked(&mut patch, &version);
        match api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(written) => version = written.meta().resource_version.clone(),
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    if let Some(status) = diff(&old_status, &new_status) {
        let mut patch = json!({ "status": status });
        locked(&mut patch, &version);
        match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn to_value<K: Serialize>(object: &K) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

/// Deletes an object; one that is gone is fine. Tells whether there was one.
///
/// # Errors
/// When the API server refuses.
pub async fn delete<K>(api: &Api<K>, name: &str) -> Result<bool, kube::Error>
where
    K: Resource + DeserializeOwned + Clone + std::fmt::Debug,
{
    match api.delete(name, &kube::api::DeleteParams::default()).await {
        Ok(_) => Ok(true),
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The API of a namespaced kind.
#[must_use]
pub fn namespaced<K>(client: &kube::Client, namespace: &str) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    Api::namespaced(client.clone(), namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_holds_only_what_changed() {
        let before = json!({"a": 1, "b": {"c": 2, "d": 3}, "e": [1]});
        let after = json!({"a": 1, "b": {"c": 4}, "e": [1, 2]});
        assert_eq!(diff(&before, &after), Some(json!({"b": {"c": 4, "d": null}, "e": [1, 2]})));
        assert_eq!(diff(&before, &before), None);
    }
}
