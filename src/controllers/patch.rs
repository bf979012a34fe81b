//! Writes: merge patches of exactly what changed.
//!
//! Most of what the controllers write depends on nothing that others write: an annotation, a label, a
//! figure of a status. Such a patch goes through whatever else changes of the object. A merge patch
//! replaces a list whole, though, and what was read must then still be there: [`merge`] locks these
//! writes alone, and [`edit`] each of its own, since it makes the change from what it read. Both start
//! again from the live object at once where they meet a conflict.

use axum::http::{Request, header};
use k8s_openapi::NamespaceResourceScope;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::operator::readable::Readable;

/// When a write must find the object as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lock {
    /// Always.
    Whole,
    /// Where the patch replaces a list, which would take back what others have put into it since.
    Lists,
}

impl Lock {
    /// Adds the version that the patch must find, if it must.
    fn close(self, patch: &mut Value, version: Option<&String>) {
        if let Some(version) = version
            && (self == Self::Whole || has_list(patch))
        {
            patch["metadata"]["resourceVersion"] = json!(version);
        }
    }
}

/// True when a merge patch replaces a list.
fn has_list(patch: &Value) -> bool {
    match patch {
        Value::Array(_) => true,
        Value::Object(fields) => fields.values().any(has_list),
        _ => false,
    }
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

/// True when a JSON patch did not find what it tests for.
fn is_stale(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 422)
}

/// True when the object changed since it was read.
#[must_use]
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Writes what changed from `old` to `new` of metadata and spec, then of the status; an object that is
/// gone is fine. Returns the object as the API server has it after the last write, if there was one.
async fn write<K>(
    api: &Api<K>,
    found: &ObjectMeta,
    mut old: Value,
    mut new: Value,
    lock: Lock,
) -> Result<Option<K>, kube::Error>
where
    K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + std::fmt::Debug,
{
    let name = found.name.clone().unwrap_or_default();
    let (mut old_status, mut new_status) = (take_status(&mut old), take_status(&mut new));
    let mut version = found.resource_version.clone();
    let mut last = None;
    if let Some(mut patch) = diff(&old, &new) {
        lock.close(&mut patch, version.as_ref());
        match send(api, &name, None, &patch).await {
            Ok(Readable::Object(written)) => {
                version.clone_from(&written.meta().resource_version);
                // Without a lock that write may have found a newer object: the status is laid over
                // the one that it has.
                let found = take_status(&mut to_value(&written));
                new_status = rebase(&old_status, &new_status, &found);
                old_status = found;
                last = Some(written);
            }
            // Of its status nothing is known, so that nothing can be laid over it.
            Ok(Readable::Unreadable(_)) => return Ok(None),
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    if let Some(status) = diff(&old_status, &new_status) {
        let mut patch = json!({ "status": status });
        lock.close(&mut patch, version.as_ref());
        match send(api, &name, Some("status"), &patch).await {
            Ok(Readable::Object(written)) => last = Some(written),
            Ok(Readable::Unreadable(_)) => return Ok(None),
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(last)
}

/// Writes what changed, if the object still is what was read: for a step that must be decided again
/// from what it is now. Returns the object as the API server has it after the write.
///
/// # Errors
/// When the API server refuses, or the object changed ([`is_conflict`]).
pub async fn exact<K>(api: &Api<K>, before: &K, after: &K) -> Result<Option<K>, kube::Error>
where
    K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + std::fmt::Debug,
{
    write(api, before.meta(), to_value(before), to_value(after), Lock::Whole).await
}

fn take_status(object: &mut Value) -> Value {
    object.as_object_mut().and_then(|o| o.remove("status")).unwrap_or_else(|| json!({}))
}

/// Sends a merge patch. The answer is read as the watches read: what was written may be an object
/// of which only the metadata can be understood.
async fn send<K>(
    api: &Api<K>,
    name: &str,
    subresource: Option<&str>,
    patch: &Value,
) -> Result<Readable<K>, kube::Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone,
{
    let request = kube::core::Request::new(api.resource_url());
    let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
    let request = match subresource {
        Some(part) => request.patch_subresource(part, name, &params, &patch),
        None => request.patch(name, &params, &patch),
    };
    let request = request.map_err(kube::Error::BuildRequest)?;
    api.clone().into_client().request(request).await
}

/// Attempts of a write that meets conflicts; each but the first is made on the live object.
const ATTEMPTS: usize = 5;

/// Changes an object that others write, too: the write must find what it was made from, and where it
/// does not, it is made again at once from the live object. True when something was written; an
/// object that is gone is fine.
///
/// # Errors
/// When the API server refuses, or when the object changes faster than it can be read.
pub async fn edit<K>(api: &Api<K>, seen: &K, change: impl Fn(&mut K)) -> Result<bool, kube::Error>
where
    K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + std::fmt::Debug,
{
    let mut before = seen.clone();
    let mut left = ATTEMPTS;
    loop {
        let mut after = before.clone();
        change(&mut after);
        let (old, new) = (to_value(&before), to_value(&after));
        if old == new {
            return Ok(false);
        }
        left -= 1;
        match write(api, before.meta(), old, new, Lock::Whole).await {
            Ok(_) => return Ok(true),
            Err(error) if is_conflict(&error) && left > 0 => {}
            Err(error) => return Err(error),
        }
        match read_live(api, seen).await? {
            Some(live) => before = live,
            None => return Ok(false),
        }
    }
}

/// Writes what changed from `before` to `after`, whatever else changes of the object meanwhile. What
/// replaces a list must find the object as it was read, and where it does not, the change is made to
/// what the object is now: conditions are merged one by one. Returns the object as it is after the
/// write; nothing when nothing was written or the object is gone.
///
/// # Errors
/// When the API server refuses, or when the object changes faster than it can be read.
pub async fn merge<K>(api: &Api<K>, before: &K, after: &K) -> Result<Option<K>, kube::Error>
where
    K: Resource<DynamicType = ()>
        + Serialize
        + DeserializeOwned
        + Clone
        + PartialEq
        + std::fmt::Debug,
{
    // Most reconciles find nothing to change.
    if before == after {
        return Ok(None);
    }
    let (base, changed) = (to_value(before), to_value(after));
    if base == changed {
        return Ok(None);
    }
    let (mut old, mut new) = (base.clone(), changed.clone());
    let mut found = before.meta().clone();
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        match write(api, &found, old, new, Lock::Lists).await {
            Err(error) if is_conflict(&error) && left > 0 => {}
            other => return other,
        }
        let Some(live) = read_live(api, before).await? else { return Ok(None) };
        old = to_value(&live);
        new = rebase(&base, &changed, &old);
        // The live version is what the next write must find.
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
        found = live.meta().clone();
    }
}

/// `live` with the changes that lead from `before` to `after`. Lists whose entries have a `type` are
/// merged entry by entry, lists of strings (finalizers) as sets; other lists are one value.
fn rebase(before: &Value, after: &Value, live: &Value) -> Value {
    if before == after {
        return live.clone();
    }
    match (before, after, live) {
        (Value::Object(b), Value::Object(a), Value::Object(l)) => {
            let mut merged = l.clone();
            for key in b.keys().chain(a.keys().filter(|k| !b.contains_key(*k))) {
                let of = |map: &Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                match rebase(&of(b), &of(a), &of(l)) {
                    Value::Null => drop(merged.remove(key)),
                    value => drop(merged.insert(key.clone(), value)),
                }
            }
            Value::Object(merged)
        }
        (_, Value::Array(a), Value::Array(l)) if a.iter().chain(l).all(|v| kind(v).is_some()) => {
            let none = Vec::new();
            let b = before.as_array().unwrap_or(&none);
            Value::Array(rebase_by_kind(b, a, l))
        }
        (_, Value::Array(a), Value::Array(l)) if a.iter().chain(l).all(Value::is_string) => {
            let none = Vec::new();
            let b = before.as_array().unwrap_or(&none);
            let kept = l.iter().filter(|v| a.contains(v) || !b.contains(v));
            let new = a.iter().filter(|v| !l.contains(v) && !b.contains(v));
            Value::Array(kept.chain(new).cloned().collect())
        }
        _ => after.clone(),
    }
}

fn kind(entry: &Value) -> Option<&str> {
    entry.get("type")?.as_str()
}

fn rebase_by_kind(before: &[Value], after: &[Value], live: &[Value]) -> Vec<Value> {
    let find = |list: &[Value], name: &str| {
        list.iter().find(|v| kind(v) == Some(name)).cloned().unwrap_or_default()
    };
    let mut names: Vec<&str> = live.iter().filter_map(kind).collect();
    for name in after.iter().filter_map(kind) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let merged = names.into_iter().map(|name| {
        let (b, a) = (find(before, name), find(after, name));
        // A condition is one value: its fields belong together.
        if b == a { find(live, name) } else { a }
    });
    merged.filter(|v| !v.is_null()).collect()
}

/// Removes a finalizer, whatever else changes of the object meanwhile: only the list of finalizers
/// itself has to be as it was read, since another finalizer must not be lost. True when this call removed
/// it; an object that is gone is fine.
///
/// # Errors
/// When the API server refuses.
pub async fn release<K>(api: &Api<K>, seen: &K, finalizer: &str) -> Result<bool, kube::Error>
where
    K: Resource + DeserializeOwned + Clone + std::fmt::Debug,
{
    let mut found = seen.clone();
    let mut left = ATTEMPTS;
    loop {
        let Some(patch) = without_finalizer(found.meta(), finalizer) else { return Ok(false) };
        left -= 1;
        let name = found.meta().name.clone().unwrap_or_default();
        match json_patch(api, &name, &patch).await {
            Ok(()) => return Ok(true),
            // Removed before, by a reconcile whose outcome the watch does not show yet, or by somebody else.
            Err(error) if is_gone(&error) => return Ok(false),
            // The list is another one by now.
            Err(error) if is_stale(&error) && left > 0 => {}
            Err(error) => return Err(error),
        }
        match read_live(api, seen).await? {
            Some(live) => found = live,
            None => return Ok(false),
        }
    }
}

/// The operations that remove a finalizer of the object with that UID, if it has it.
fn without_finalizer(meta: &ObjectMeta, finalizer: &str) -> Option<Value> {
    let index = meta.finalizers.iter().flatten().position(|f| f == finalizer)?;
    let path = format!("/metadata/finalizers/{index}");
    Some(json!([
        {"op": "test", "path": "/metadata/uid", "value": meta.uid},
        {"op": "test", "path": path, "value": finalizer},
        {"op": "remove", "path": path},
    ]))
}

/// The object as the API server has it, unless it is gone or another one of that name.
async fn read_live<K>(api: &Api<K>, seen: &K) -> Result<Option<K>, kube::Error>
where
    K: Resource + DeserializeOwned + Clone + std::fmt::Debug,
{
    let live = api.get_opt(seen.meta().name.as_deref().unwrap_or_default()).await?;
    Ok(live.filter(|l| l.meta().uid == seen.meta().uid))
}

/// Sends a JSON patch (RFC 6902), the one kind of patch that can test what it finds.
async fn json_patch<K: Resource + Clone>(
    api: &Api<K>,
    name: &str,
    patch: &Value,
) -> Result<(), kube::Error> {
    let request = Request::patch(format!("{}/{name}?", api.resource_url()))
        .header(header::ACCEPT, "application/json")
        .header(header::CONTENT_TYPE, "application/json-patch+json")
        .body(patch.to_string().into_bytes())
        .map_err(|e| kube::Error::BuildRequest(kube::core::request::Error::BuildRequest(e)))?;
    api.clone().into_client().request::<Value>(request).await.map(drop)
}

fn to_value<K: Serialize>(object: &K) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

/// What the API server did about a deletion.
#[derive(Clone, Debug)]
pub enum Deleted<K> {
    /// There is no such object.
    Absent,
    /// The object is gone.
    Removed,
    /// The object is being deleted, and waits for its finalizers or its grace period.
    Terminating(Readable<K>),
}

/// Deletes an object; one that is gone is fine.
///
/// # Errors
/// When the API server refuses.
pub async fn delete<K>(api: &Api<K>, name: &str) -> Result<Deleted<K>, kube::Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug,
{
    let params = DeleteParams::default();
    let request = kube::core::Request::new(api.resource_url())
        .delete(name, &params)
        .map_err(kube::Error::BuildRequest)?;
    match api.clone().into_client().request_status::<Readable<K>>(request).await {
        Ok(answer) => Ok(answer.either(Deleted::Terminating, |_| Deleted::Removed)),
        Err(error) if is_gone(&error) => Ok(Deleted::Absent),
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
mod tests;
