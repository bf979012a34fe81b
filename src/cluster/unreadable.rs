//! Objects that cannot be understood: left out of all decisions, and reported.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::ObjectMeta;

use super::{Change, State};
use crate::operator::metrics;

/// An object that is left out, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct LeftOut {
    /// The object.
    pub reference: ObjectReference,
    /// The field, and what was expected of it.
    pub problem: String,
}

/// Objects that are left out, by the kind's plural and the object's name.
pub(super) type UnreadableObjects = BTreeMap<(&'static str, String), LeftOut>;

/// Namespace and name in one text.
fn full_name(meta: &ObjectMeta) -> String {
    let name = meta.name.as_deref().unwrap_or_default();
    match meta.namespace.as_deref() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

impl State {
    /// Notes that an object cannot be understood.
    pub(super) fn leave_out(&self, source: &'static str, meta: &ObjectMeta, object: LeftOut) {
        let news = {
            let mut inner = self.write();
            let key = (source, full_name(meta));
            // A watch delivers the same object again and again; it is logged when something about
            // it changed.
            let news = inner.unreadable.get(&key) != Some(&object);
            if news {
                tracing::error!(
                    "resource" = source,
                    "name" = key.1,
                    "error" = object.problem,
                    "object cannot be read, leaving it out"
                );
                inner.unreadable.insert(key, object);
            }
            news
        };
        if news {
            self.count_unreadable(source);
        }
    }

    /// Notes that an object is understood, or gone.
    pub(super) fn take_back(&self, source: &'static str, meta: &ObjectMeta) {
        // Called for every object of every watch, while there is hardly ever one that is left out:
        // a read lock is enough then.
        if self.inner.read().unreadable.is_empty() {
            return;
        }
        if self.write().unreadable.remove(&(source, full_name(meta))).is_some() {
            self.count_unreadable(source);
        }
    }

    /// Drops those of a kind that a list does not hold.
    pub(super) fn keep_unreadable(
        &self,
        source: &'static str,
        listed: impl Fn(&ObjectMeta) -> bool,
    ) {
        let known: Vec<LeftOut> = {
            let inner = self.inner.read();
            let own = inner.unreadable.iter().filter(|((of, _), _)| *of == source);
            own.map(|(_, object)| object.clone()).collect()
        };
        for object in known {
            let meta = ObjectMeta {
                name: object.reference.name,
                namespace: object.reference.namespace,
                ..ObjectMeta::default()
            };
            if !listed(&meta) {
                self.take_back(source, &meta);
            }
        }
    }

    /// Every object that cannot be understood.
    #[must_use]
    pub fn left_out(&self) -> Vec<LeftOut> {
        self.inner.read().unreadable.values().cloned().collect()
    }

    fn count_unreadable(&self, source: &'static str) {
        let count = self.inner.read().unreadable.keys().filter(|(of, _)| *of == source).count();
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        metrics::UNREADABLE_OBJECTS.with_label_values(&[source]).set(f64::from(count));
        self.publish(Change::Unreadable);
    }
}
