//! The operations on objects, as the API server carries them out.

use std::sync::Arc;

use serde_json::{Value, json};

use super::failure::Failure;
use super::kinds::{Kind, kind};
use super::pods;
use super::store::{Inner, Key, Store};
use super::write::{self, has_finalizers, is_deleting, meta, time};

/// Letters of generated names: Kubernetes leaves out vowels and what looks alike.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// What must hold for a deletion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preconditions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

/// How an object is deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deletion {
    /// Seconds; of pods only.
    pub grace: Option<i64>,
    pub preconditions: Preconditions,
}

impl Deletion {
    /// The options of a request's body.
    #[must_use]
    pub fn from_options(options: &Value) -> Self {
        let text = |v: &Value| v.as_str().map(str::to_owned);
        let wanted = &options["preconditions"];
        Self {
            grace: options["gracePeriodSeconds"].as_i64(),
            preconditions: Preconditions {
                uid: text(&wanted["uid"]),
                resource_version: text(&wanted["resourceVersion"]),
            },
        }
    }

    /// At once.
    #[must_use]
    pub fn now() -> Self {
        Self { grace: Some(0), ..Self::default() }
    }
}

/// What became of a deletion.
#[derive(Clone, Debug)]
pub struct Deleted {
    pub object: Arc<Value>,
    /// False while finalizers or a grace period hold it.
    pub gone: bool,
}

impl Store {
    /// Stores a new object.
    ///
    /// # Errors
    /// As the API server refuses it.
    pub fn create(
        &self,
        kind: &'static Kind,
        namespace: &str,
        mut object: Value,
    ) -> Result<Arc<Value>, Failure> {
        if !kind.custom {
            object["apiVersion"] = json!(kind.api_version());
            object["kind"] = json!(kind.kind);
        }
        let mut inner = self.inner.lock();
        self.name(&mut inner, kind, namespace, &mut object)?;
        write::on_create(kind, &mut object);
        let mut object = write::admit(kind, None, object)?;
        let uid = uid(&mut inner.random);
        let now = time(self.now());
        let meta = meta(&mut object);
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
            meta.shift_remove(field);
        }
        meta.insert("uid".to_owned(), json!(uid));
        meta.insert("creationTimestamp".to_owned(), json!(now));
        if kind.generation {
            meta.insert("generation".to_owned(), json!(1));
        }
        Ok(self.put(&mut inner, kind, object))
    }

    /// Checks or makes the name and the namespace of a new object.
    fn name(
        &self,
        inner: &mut Inner,
        kind: &'static Kind,
        namespace: &str,
        object: &mut Value,
    ) -> Result<(), Failure> {
        let prefix = object["metadata"]["generateName"].as_str().unwrap_or_default().to_owned();
        let given = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if !version.is_empty() {
            let text = "resourceVersion should not be set on objects to be created";
            return Err(Failure::bad_request(text));
        }
        let name = if !given.is_empty() {
            given
        } else if prefix.is_empty() {
            return Err(Failure::invalid(
                kind,
                "",
                "metadata.name: Required value: name or generateName is required",
            ));
        } else {
            let random = &mut inner.random;
            let letters = (0..5).map(|_| char::from(LETTERS[random.usize(..LETTERS.len())]));
            format!("{prefix}{}", letters.collect::<String>())
        };
        // As the admission plugin NamespaceLifecycle: nothing is created in a namespace that does
        // not exist.
        if kind.namespaced {
            let stated = object["metadata"]["namespace"].as_str().unwrap_or_default();
            if !stated.is_empty() && stated != namespace {
                return Err(Failure::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
            let spaces = super::kind("namespaces");
            let key = Key::new("", namespace);
            if !inner.tables[spaces.index()].objects.contains_key(&key) {
                return Err(Failure::not_found(spaces, namespace));
            }
            object["metadata"]["namespace"] = json!(namespace);
        } else {
            meta(object).shift_remove("namespace");
        }
        let key = Key::new(if kind.namespaced { namespace } else { "" }, &name);
        if inner.tables[kind.index()].objects.contains_key(&key) {
            return Err(Failure::exists(kind, &name));
        }
        object["metadata"]["name"] = json!(name);
        Ok(())
    }

    /// Changes an object, or one of its subresources.
    ///
    /// # Errors
    /// As the API server refuses it, or as `change` does.
    pub fn modify(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        subresource: &str,
        change: impl FnOnce(&mut Value) -> Result<(), Failure>,
    ) -> Result<Arc<Value>, Failure> {
        let key = Key::new(namespace, name);
        let mut inner = self.inner.lock();
        let old = inner.tables[kind.index()].objects.get(&key).cloned();
        let old = old.ok_or_else(|| Failure::not_found(kind, name))?;
        let mut new = (*old).clone();
        change(&mut new)?;
        let new = write::on_update(kind, &old, new, subresource)?;
        // A change that changes nothing makes no event and no version, as in the API server.
        if new == *old {
            return Ok(old);
        }
        let waits = new["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) > 0;
        let stored = self.put(&mut inner, kind, new);
        // The last finalizer is gone: watches still see this change, then the deletion.
        if is_deleting(&stored) && !has_finalizers(&stored) && !waits {
            self.remove(&mut inner, kind, &key);
        }
        Ok(stored)
    }

    /// Deletes an object, at once or once its finalizers and its grace period let go.
    ///
    /// # Errors
    /// When it is not there, or not as the preconditions say.
    pub fn delete(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        how: &Deletion,
    ) -> Result<Deleted, Failure> {
        let mut inner = self.inner.lock();
        self.delete_in(&mut inner, kind, &Key::new(namespace, name), how)
    }

    pub(crate) fn delete_in(
        &self,
        inner: &mut Inner,
        kind: &'static Kind,
        key: &Key,
        how: &Deletion,
    ) -> Result<Deleted, Failure> {
        let found = inner.tables[kind.index()].objects.get(key).cloned();
        let old = found.ok_or_else(|| Failure::not_found(kind, &key.name))?;
        check_preconditions(kind, &key.name, &old, &how.preconditions)?;
        let grace = if kind.plural == "pods" { pods::grace(&old, how.grace) } else { 0 };
        let known = old["metadata"]["deletionGracePeriodSeconds"].as_i64();
        if is_deleting(&old) && known.is_some_and(|k| k <= grace) {
            // A grace period only becomes shorter.
            if has_finalizers(&old) || known != Some(0) {
                return Ok(Deleted { object: old, gone: false });
            }
        }
        if grace == 0 && !has_finalizers(&old) {
            let object = self.remove(inner, kind, key).unwrap_or(old);
            return Ok(Deleted { object, gone: true });
        }
        let mut new = (*old).clone();
        let end = self.now() + std::time::Duration::from_secs(grace.unsigned_abs());
        let generation = old["metadata"]["generation"].as_i64();
        let first = !is_deleting(&old);
        let meta = meta(&mut new);
        meta.insert("deletionTimestamp".to_owned(), json!(time(end)));
        meta.insert("deletionGracePeriodSeconds".to_owned(), json!(grace));
        // The API server counts the beginning of a deletion as a change of the spec.
        if kind.generation && first {
            meta.insert("generation".to_owned(), json!(generation.unwrap_or(0) + 1));
        }
        Ok(Deleted { object: self.put(inner, kind, new), gone: false })
    }

    /// Puts a pod on a node.
    ///
    /// # Errors
    /// When there is no such pod, or it is on a node already.
    pub fn bind(&self, namespace: &str, name: &str, node: &str) -> Result<(), Failure> {
        let kind = kind("pods");
        let key = Key::new(namespace, name);
        let mut inner = self.inner.lock();
        let old = inner.tables[kind.index()].objects.get(&key).cloned();
        let old = old.ok_or_else(|| Failure::not_found(kind, name))?;
        let new = pods::bound(&old, node, &time(self.now()))?;
        self.put(&mut inner, kind, new);
        Ok(())
    }
}

fn check_preconditions(
    kind: &Kind,
    name: &str,
    old: &Value,
    wanted: &Preconditions,
) -> Result<(), Failure> {
    let found = |field: &str| old["metadata"][field].as_str().unwrap_or_default();
    let pairs = [
        ("UID", &wanted.uid, found("uid")),
        ("ResourceVersion", &wanted.resource_version, found("resourceVersion")),
    ];
    for (what, wanted, found) in pairs {
        if let Some(wanted) = wanted.as_deref().filter(|w| *w != found) {
            let why = format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
            );
            return Err(Failure::conflict(kind, name, &why));
        }
    }
    Ok(())
}

/// A version 4 UUID.
fn uid(random: &mut fastrand::Rng) -> String {
    let (a, b) = (random.u64(..), random.u64(..));
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        0x8000 | (b >> 48) & 0x3fff,
        b & 0xffff_ffff_ffff
    )
}
