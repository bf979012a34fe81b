//! How the watches read objects: one that cannot be understood is left out alone, never its whole list.
//!
//! The API server admits more than the typed readers do: a custom resource without `spec`, a field
//! that another version of its definition allowed. A list is one JSON document, so that one such
//! object would make all others unreadable.

use std::borrow::Cow;
use std::sync::LazyLock;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;
use kube::api::ObjectMeta;
use serde::Deserialize;
use serde::de::{DeserializeOwned, DeserializeSeed as _, Deserializer};
use serde_json::Value;

use self::json::{Json, Pruned};
use crate::api::{autoscaling, labels};

mod json;

/// An object of a kind, or what is known of one that is none.
#[derive(Clone, Debug)]
pub enum Readable<K> {
    /// The object.
    Object(K),
    /// It cannot be understood.
    Unreadable(Box<Unreadable>),
}

/// An object that cannot be understood.
#[derive(Clone, Debug)]
pub struct Unreadable {
    /// Its metadata, as far as that can be read.
    pub meta: ObjectMeta,
    /// The field, and what was expected of it.
    pub problem: String,
    /// The object as the API server sent it.
    pub raw: Value,
}

impl<K: Resource<DynamicType = ()> + DeserializeOwned> Readable<K> {
    fn from_json(mut json: Json<'_>) -> Self {
        let own = [labels::GROUP, labels::AWS_GROUP, autoscaling::GROUP];
        // A custom resource's `spec` may be left out where its definition does not require it; Go
        // reads that as an empty one.
        // Only for this project's own groups: Kubernetes' types require what they need.
        if own.contains(&&*K::group(&())) {
            json.fill("spec");
        }
        if let Ok(object) = K::deserialize(&json) {
            return Self::Object(object);
        }
        // Keeping the path to what is wrong costs more than reading, so only invalid objects pay
        // for it.
        let value = Value::from(json);
        match serde_path_to_error::deserialize(&value) {
            Ok(object) => Self::Object(object),
            Err(error) => {
                let meta = meta_of(&value);
                Self::Unreadable(Box::new(Unreadable {
                    meta,
                    problem: problem(&error),
                    raw: value,
                }))
            }
        }
    }

    /// A reference to the object.
    #[must_use]
    pub fn reference(&self) -> ObjectReference {
        self.object_ref(&())
    }
}

fn problem(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    match error.path().to_string().as_str() {
        "" | "." => error.inner().to_string(),
        path => format!("{path}: {}", error.inner()),
    }
}

fn meta_of(value: &Value) -> ObjectMeta {
    let meta = &value["metadata"];
    let text = |key: &str| meta[key].as_str().map(str::to_owned);
    serde_json::from_value(meta.clone()).unwrap_or_else(|_| ObjectMeta {
        name: text("name"),
        namespace: text("namespace"),
        uid: text("uid"),
        resource_version: text("resourceVersion"),
        ..ObjectMeta::default()
    })
}

impl<K: Resource<DynamicType = ()>> Resource for Readable<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Object(object) => object.meta(),
            Self::Unreadable(unreadable) => &unreadable.meta,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Object(object) => object.meta_mut(),
            Self::Unreadable(unreadable) => &mut unreadable.meta,
        }
    }
}

impl<'de, K> Deserialize<'de> for Readable<K>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let unread = unread(&K::kind(&()));
        Ok(Self::from_json(Pruned(Some(unread)).deserialize(deserializer)?))
    }
}

/// Fields that are passed over while an object is read.
#[derive(Debug, Default)]
pub(in crate::operator) struct Unread {
    whole: bool,
    fields: Vec<(&'static str, Unread)>,
}

impl Unread {
    fn of(paths: &[&'static str]) -> Self {
        let mut root = Self::default();
        for path in paths {
            let mut at = &mut root;
            for part in path.split('.') {
                let known = at.fields.iter().position(|(name, _)| *name == part);
                let index = known.unwrap_or_else(|| {
                    at.fields.push((part, Self::default()));
                    at.fields.len() - 1
                });
                at = &mut at.fields[index].1;
            }
            at.whole = true;
        }
        root
    }

    /// True when nothing of the field is read.
    pub(in crate::operator) fn is_whole(&self) -> bool {
        self.whole
    }

    /// What is passed over below a field.
    pub(in crate::operator) fn field(&self, name: &str) -> Option<&Self> {
        self.fields.iter().find(|(field, _)| *field == name).map(|(_, unread)| unread)
    }
}

/// Who set which field: as large as the rest of most objects, and read by nobody.
const OF_ALL: &[&str] = &["metadata.managedFields"];

/// What fills most of a pod: nothing of it bears on where the pod can run.
const OF_POD_SPEC: &[&str] = &[
    "containers.args",
    "containers.command",
    "containers.env",
    "containers.envFrom",
    "containers.image",
    "containers.lifecycle",
    "containers.livenessProbe",
    "containers.readinessProbe",
    "containers.securityContext",
    "containers.startupProbe",
    "containers.volumeMounts",
    "ephemeralContainers",
    "initContainers.args",
    "initContainers.command",
    "initContainers.env",
    "initContainers.envFrom",
    "initContainers.image",
    "initContainers.lifecycle",
    "initContainers.livenessProbe",
    "initContainers.readinessProbe",
    "initContainers.securityContext",
    "initContainers.startupProbe",
    "initContainers.volumeMounts",
    "dnsConfig",
    "hostAliases",
    "imagePullSecrets",
    "securityContext",
    "volumes.configMap",
    "volumes.downwardAPI",
    "volumes.projected",
    "volumes.secret",
];

/// What fills most of a pod's status: how its containers run, while decisions read conditions and
/// amounts only.
const OF_POD_STATUS: &[&str] = &[
    "status.containerStatuses.containerID",
    "status.containerStatuses.image",
    "status.containerStatuses.imageID",
    "status.containerStatuses.lastState",
    "status.containerStatuses.state",
    "status.containerStatuses.volumeMounts",
    "status.ephemeralContainerStatuses",
    "status.hostIPs",
    "status.initContainerStatuses.imageID",
    "status.initContainerStatuses.lastState",
    "status.initContainerStatuses.state",
    "status.podIPs",
];

/// What fills most of a Node's status: a Node names up to 50 images, and every heartbeat rewrites
/// its conditions.
const OF_NODE: &[&str] = &[
    "status.config",
    "status.conditions.lastHeartbeatTime",
    "status.daemonEndpoints",
    "status.features",
    "status.images",
    "status.runtimeHandlers",
    "status.volumesAttached",
    "status.volumesInUse",
];

/// The fields that nothing reads of objects of a kind.
pub(in crate::operator) fn unread(kind: &str) -> &'static Unread {
    static POD: LazyLock<Unread> = LazyLock::new(|| under("spec.", OF_POD_STATUS));
    static DAEMON_SET: LazyLock<Unread> = LazyLock::new(|| under("spec.template.spec.", &[]));
    static NODE: LazyLock<Unread> = LazyLock::new(|| Unread::of(&[OF_ALL, OF_NODE].concat()));
    static OTHER: LazyLock<Unread> = LazyLock::new(|| Unread::of(OF_ALL));
    match kind {
        "Pod" => &POD,
        "DaemonSet" => &DAEMON_SET,
        "Node" => &NODE,
        _ => &OTHER,
    }
}

fn under(spec: &str, more: &[&'static str]) -> Unread {
    let of_spec: Vec<&'static str> =
        OF_POD_SPEC.iter().map(|path| &*format!("{spec}{path}").leak()).collect();
    Unread::of(&[OF_ALL, &of_spec, more].concat())
}

#[cfg(test)]
mod tests;
