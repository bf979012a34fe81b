//! Conversion between v1beta1 and v1, as JSON, so that fields nobody here knows survive.
//!
//! Each direction follows Karpenter's own rules. What one version cannot say is kept in an
//! annotation and put back on the way back, as far as nothing that it depends on was changed
//! meanwhile: a round trip in either direction gives the same object.

use serde_json::{Map, Value, json};

mod ec2nodeclass;
mod merge;
mod nodes;
mod review;
#[cfg(test)]
mod tests;

pub use nodes::apply_defaults as apply_v1beta1_defaults;
pub use review::review;

/// Path under which the webhook answers for NodePools and NodeClaims.
pub const PATH: &str = "/conversion/karpenter.sh";
/// Path under which the webhook answers for EC2NodeClasses; both paths take every kind.
pub const PATH_AWS: &str = "/conversion/karpenter.k8s.aws";
/// Versions of ConversionReview that the webhook reads, in Karpenter's order.
pub const REVIEW_VERSIONS: &[&str] = &["v1beta1", "v1"];

/// v1: the kubelet settings that the v1beta1 object had.
pub const KUBELET: &str = "compatibility.karpenter.sh/v1beta1-kubelet-conversion";
/// v1: the node class reference that the v1beta1 object had.
pub const CLASS_REFERENCE: &str = "compatibility.karpenter.sh/v1beta1-nodeclass-reference";
/// v1: what an Ubuntu node class was changed into.
pub const UBUNTU: &str = "compatibility.karpenter.k8s.aws/v1beta1-ubuntu";
/// v1beta1: the version of the v1 object's alias, unless `latest`.
pub const ALIAS_VERSION: &str = "compatibility.karpenter.k8s.aws/v1-alias-version";
/// v1: set by Karpenter 1.x once an object is stored as v1.
pub const STORED_VERSION_MIGRATED: &str = "karpenter.sh/stored-version-migrated";
/// v1beta1: what v1 said and v1beta1 cannot.
pub const KEPT_V1: &str = "compatibility.karpenter.sh/v1-kept";
/// v1: what v1beta1 said and v1 cannot.
pub const KEPT_V1BETA1: &str = "compatibility.karpenter.sh/v1beta1-kept";

/// Finds the `expireAfter` of a NodePool by its name, in v1 form.
pub type ExpireAfter<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Why an object could not be converted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConversionError {
    /// No conversion for such objects.
    #[error("{0}")]
    Unsupported(String),
    /// An annotation that holds what the other version said cannot be read.
    #[error("unmarshaling {what} annotation, {error}")]
    Annotation { what: &'static str, error: String },
}

/// The kinds that have two versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    NodePool,
    NodeClaim,
    EC2NodeClass,
}

impl Kind {
    fn of(object: &Value) -> Option<Self> {
        let group = object["apiVersion"].as_str()?.split('/').next()?;
        match (group, object["kind"].as_str()?) {
            ("karpenter.sh", "NodePool") => Some(Self::NodePool),
            ("karpenter.sh", "NodeClaim") => Some(Self::NodeClaim),
            ("karpenter.k8s.aws", "EC2NodeClass") => Some(Self::EC2NodeClass),
            _ => None,
        }
    }

    fn group(self) -> &'static str {
        if self == Self::EC2NodeClass { "karpenter.k8s.aws" } else { "karpenter.sh" }
    }
}

/// The webhook's path for the kinds of an API group.
#[must_use]
pub fn path_of(group: &str) -> &'static str {
    if group == crate::api::labels::AWS_GROUP { PATH_AWS } else { PATH }
}

/// True for objects that [`convert_object`] knows, in either version.
#[must_use]
pub fn is_convertible(object: &Value) -> bool {
    Kind::of(object).is_some()
}

/// Converts an object to `group/version`; one that has that version already is returned as it is.
///
/// # Errors
/// When the kind or version is unknown, or an annotation written by a conversion is damaged.
pub fn convert_object(
    object: Value,
    desired: &str,
    expire_after: ExpireAfter<'_>,
) -> Result<Value, ConversionError> {
    let unsupported = |object: &Value| {
        ConversionError::Unsupported(format!(
            "cannot convert {} {} to {desired:?}, expected NodePool, NodeClaim or EC2NodeClass in v1beta1 or v1",
            object["apiVersion"], object["kind"]
        ))
    };
    let kind = Kind::of(&object).ok_or_else(|| unsupported(&object))?;
    let current = object["apiVersion"].as_str().unwrap_or_default().to_owned();
    if current == desired {
        return Ok(object);
    }
    let version = |name: &str| format!("{}/{name}", kind.group());
    if current == version("v1beta1") && desired == version("v1") {
        up(kind, object, expire_after)
    } else if current == version("v1") && desired == version("v1beta1") {
        down(kind, object)
    } else {
        Err(unsupported(&object))
    }
}

/// v1beta1 to v1, with what an earlier v1 object said beyond v1beta1.
fn up(kind: Kind, object: Value, expire_after: ExpireAfter<'_>) -> Result<Value, ConversionError> {
    let kept = take_annotation(&object, KEPT_V1)?;
    let plain = strip(object, KEPT_V1);
    let mut result = up_plain(kind, plain.clone(), expire_after)?;
    if let Some(kept) = kept {
        if let Some(spec) = kept.get("spec") {
            let mut earlier = result.clone();
            earlier["spec"] = spec.clone();
            // The keeper's own view of the object: what v1beta1 showed of it.
            let view = down_plain(kind, earlier)?;
            let unchanged = up_plain(kind, view, expire_after)?;
            result["spec"] = merge::three_way(spec, &unchanged["spec"], &result["spec"]);
        }
        if kept.get("reference").is_none() && kind != Kind::EC2NodeClass {
            remove_annotation(&mut result, CLASS_REFERENCE);
        }
        return Ok(result);
    }
    let back = down_plain(kind, result.clone())?;
    if !same(&back, &plain) {
        set_annotation(&mut result, KEPT_V1BETA1, &json!({"spec": plain["spec"]}));
    }
    Ok(result)
}

/// v1 to v1beta1, with what an earlier v1beta1 object said beyond v1.
fn down(kind: Kind, object: Value) -> Result<Value, ConversionError> {
    let kept = take_annotation(&object, KEPT_V1BETA1)?;
    let plain = strip(object, KEPT_V1BETA1);
    let mut result = down_plain(kind, plain.clone())?;
    let nothing = |_: &str| None;
    if let Some(spec) = kept.as_ref().and_then(|k| k.get("spec")) {
        let mut earlier = result.clone();
        earlier["spec"] = spec.clone();
        let unchanged = down_plain(kind, up_plain(kind, earlier, &nothing)?)?;
        result["spec"] = merge::three_way(spec, &unchanged["spec"], &result["spec"]);
        return Ok(result);
    }
    let expiry = plain["spec"]["expireAfter"].as_str().map(str::to_owned);
    let back = up_plain(kind, result.clone(), &|_| expiry.clone())?;
    if !same(&back, &plain) {
        let mut kept = json!({});
        if back["spec"] != plain["spec"] {
            kept["spec"] = plain["spec"].clone();
        }
        if annotation(&plain, CLASS_REFERENCE).is_some() {
            kept["reference"] = json!(true);
        }
        set_annotation(&mut result, KEPT_V1, &kept);
    } else if kind == Kind::NodeClaim && expiry.is_some() {
        // The pool's expireAfter may differ by the time the claim is read back.
        let mut kept = json!({"spec": plain["spec"]});
        if annotation(&plain, CLASS_REFERENCE).is_some() {
            kept["reference"] = json!(true);
        }
        set_annotation(&mut result, KEPT_V1, &kept);
    }
    Ok(result)
}

/// Equal in spec, labels and annotations, the mark of Karpenter's own migration aside.
fn same(a: &Value, b: &Value) -> bool {
    let annotations = |v: &Value| {
        let mut map = v["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
        map.shift_remove(STORED_VERSION_MIGRATED);
        map
    };
    a["spec"] == b["spec"] && annotations(a) == annotations(b)
}

fn up_plain(
    kind: Kind,
    object: Value,
    expire_after: ExpireAfter<'_>,
) -> Result<Value, ConversionError> {
    match kind {
        Kind::NodePool => Ok(nodes::pool_up(object)),
        Kind::NodeClaim => Ok(nodes::claim_up(object, expire_after)),
        Kind::EC2NodeClass => Ok(ec2nodeclass::up(object)),
    }
}

fn down_plain(kind: Kind, object: Value) -> Result<Value, ConversionError> {
    match kind {
        Kind::NodePool => nodes::pool_down(object),
        Kind::NodeClaim => nodes::claim_down(object),
        Kind::EC2NodeClass => Ok(ec2nodeclass::down(object)),
    }
}

/// An annotation's text.
fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["metadata"]["annotations"].get(key)?.as_str().filter(|t| !t.is_empty())
}

/// Our own annotation, parsed.
fn take_annotation(object: &Value, key: &str) -> Result<Option<Value>, ConversionError> {
    annotation(object, key)
        .map(|text| {
            serde_json::from_str(text).map_err(|e| ConversionError::Annotation {
                what: "conversion",
                error: e.to_string(),
            })
        })
        .transpose()
}

fn strip(mut object: Value, key: &str) -> Value {
    remove_annotation(&mut object, key);
    object
}

fn remove_annotation(object: &mut Value, key: &str) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    if let Some(map) = metadata.get_mut("annotations").and_then(Value::as_object_mut)
        && map.shift_remove(key).is_some()
        && map.is_empty()
    {
        metadata.shift_remove("annotations");
    }
}

fn set_annotation(object: &mut Value, key: &str, value: &Value) {
    set_annotation_text(object, key, value.to_string());
}

fn set_annotation_text(object: &mut Value, key: &str, text: String) {
    let metadata = &mut object["metadata"];
    if !metadata.is_object() {
        *metadata = json!({});
    }
    let annotations = &mut metadata["annotations"];
    if !annotations.is_object() {
        *annotations = json!({});
    }
    annotations[key] = Value::String(text);
}

/// Moves a member of an object.
fn take(object: &mut Value, key: &str) -> Option<Value> {
    object.as_object_mut()?.shift_remove(key).filter(|v| !v.is_null())
}

/// Sets a member when there is a value.
fn put(object: &mut Value, key: &str, value: Option<Value>) {
    if let (Some(object), Some(value)) = (object.as_object_mut(), value) {
        object.insert(key.to_owned(), value);
    }
}

/// An object without members that are null.
fn compact(members: impl IntoIterator<Item = (&'static str, Option<Value>)>) -> Value {
    let mut map = Map::new();
    for (key, value) in members {
        if let Some(value) = value.filter(|v| !v.is_null() && v.as_str() != Some("")) {
            map.insert(key.to_owned(), value);
        }
    }
    Value::Object(map)
}
