//! Conversion between v1beta1 and v1, as JSON, so that unknown fields survive.
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

pub use review::{review, review_body};

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

/// Finds the `expireAfter` of a NodePool by its name, in v1 form; none when there is no such pool
/// or it says nothing, an error when that cannot be decided.
pub type ExpireAfter<'a> = &'a dyn Fn(&str) -> Result<Option<String>, String>;

/// Why an object could not be converted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConversionError {
    /// No conversion for such objects.
    #[error("{0}")]
    Unsupported(String),
    /// An annotation that holds what the other version said cannot be read.
    #[error("unmarshaling {what} annotation, {error}")]
    Annotation { what: &'static str, error: String },
    /// The NodePool of a NodeClaim cannot be looked up now.
    #[error("getting nodepool, {0}")]
    NodePool(String),
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
    if group == crate::labels::AWS_GROUP { PATH_AWS } else { PATH }
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
    let is_up = current == version("v1beta1") && desired == version("v1");
    let is_down = current == version("v1") && desired == version("v1beta1");
    if !is_up && !is_down {
        return Err(unsupported(&object));
    }
    if object.get("spec").is_none_or(Value::is_null) {
        // An EC2NodeClass may be stored without a spec. There is nothing to convert then, and
        // nothing may be invented.
        let mut object = object;
        object["apiVersion"] = json!(desired);
        return Ok(object);
    }
    if is_up { up(kind, object, expire_after) } else { down(kind, object) }
}

/// v1beta1 to v1, with what an earlier v1 object said beyond v1beta1.
fn up(kind: Kind, object: Value, expire_after: ExpireAfter<'_>) -> Result<Value, ConversionError> {
    let there = |object| up_plain(kind, object, expire_after);
    convert_keeping(object, KEPT_V1, KEPT_V1BETA1, &there, &|object| down_plain(kind, object))
}

/// v1 to v1beta1, with what an earlier v1beta1 object said beyond v1.
fn down(kind: Kind, object: Value) -> Result<Value, ConversionError> {
    // A claim that was written as v1beta1 has its pool's expiry whenever it is read back. Any other
    // has its own, whatever the pool says by then: it is kept, since none equals the empty text.
    let of_pool = annotation(&object, CLASS_REFERENCE).is_some();
    let expiry = object["spec"]["expireAfter"].as_str().filter(|_| of_pool).map(str::to_owned);
    let expiry = expiry.unwrap_or_default();
    let back = |object| up_plain(kind, object, &|_| Ok(Some(expiry.clone())));
    convert_keeping(object, KEPT_V1BETA1, KEPT_V1, &|object| down_plain(kind, object), &back)
}

type Plain<'a> = &'a dyn Fn(Value) -> Result<Value, ConversionError>;

/// Converts with `there`, and sees to it that nothing is lost: what `back` could not bring back is
/// written to the annotation `keep`, and what an earlier conversion wrote to the annotation `kept`
/// is put back.
fn convert_keeping(
    object: Value,
    kept: &str,
    keep: &str,
    there: Plain<'_>,
    back: Plain<'_>,
) -> Result<Value, ConversionError> {
    let earlier = take_annotation(&object, kept);
    let mut object = object;
    remove_annotation(&mut object, kept);
    let mut result = there(object.clone())?;
    // What was kept belongs to this object, so nothing new has to be kept for the way back.
    if let Some(earlier) = earlier {
        restore(&mut result, &earlier, there, back)?;
        return Ok(result);
    }
    let returned = back(result.clone())?;
    let lost = lost(&object, &returned);
    if !lost.is_empty() {
        set_annotation(&mut result, keep, &Value::Object(lost));
    }
    Ok(result)
}

/// What of an object is not in it any more when it has come back: its spec as a whole, and the
/// annotations that were lost (their text) or have come (null).
fn lost(object: &Value, returned: &Value) -> Map<String, Value> {
    let mut lost = Map::new();
    if object["spec"] != returned["spec"] {
        lost.insert("spec".to_owned(), object["spec"].clone());
    }
    let (before, after) = (annotations(object), annotations(returned));
    let keys = before.keys().chain(after.keys());
    let differing =
        // That mark says where the object is stored, not what it says.
        keys.filter(|k| before.get(*k) != after.get(*k) && *k != STORED_VERSION_MIGRATED);
    let differing: Map<String, Value> =
        differing.map(|k| (k.clone(), before.get(k).cloned().unwrap_or(Value::Null))).collect();
    if !differing.is_empty() {
        lost.insert("annotations".to_owned(), Value::Object(differing));
    }
    lost
}

/// Puts back what was kept, except what was changed meanwhile.
fn restore(
    result: &mut Value,
    kept: &Value,
    there: Plain<'_>,
    back: Plain<'_>,
) -> Result<(), ConversionError> {
    let marks = kept["annotations"].as_object().cloned().unwrap_or_default();
    // The object that was kept, and how it would come through unchanged.
    let mut earlier = result.clone();
    if let Some(spec) = kept.get("spec") {
        earlier["spec"] = spec.clone();
    }
    put_annotations(&mut earlier, &marks);
    let unchanged = there(back(earlier)?)?;
    if let Some(spec) = kept.get("spec") {
        result["spec"] = merge::three_way(spec, &unchanged["spec"], &result["spec"]);
    }
    let (now, then) = (annotations(result), annotations(&unchanged));
    let untouched: Map<String, Value> =
        marks.into_iter().filter(|(key, _)| now.get(key) == then.get(key)).collect();
    put_annotations(result, &untouched);
    Ok(())
}

fn annotations(object: &Value) -> Map<String, Value> {
    object["metadata"]["annotations"].as_object().cloned().unwrap_or_default()
}

/// Sets annotations; null takes one away.
fn put_annotations(object: &mut Value, marks: &Map<String, Value>) {
    for (key, value) in marks {
        match value.as_str() {
            Some(text) => set_annotation_text(object, key, text.to_owned()),
            None => remove_annotation(object, key),
        }
    }
}

fn up_plain(
    kind: Kind,
    object: Value,
    expire_after: ExpireAfter<'_>,
) -> Result<Value, ConversionError> {
    match kind {
        Kind::NodePool => Ok(nodes::pool_up(object)),
        Kind::NodeClaim => nodes::claim_up(object, expire_after),
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

/// Our own annotation, parsed. One that somebody damaged counts as absent: failing would keep
/// every list with this object in it from being read.
fn take_annotation(object: &Value, key: &str) -> Option<Value> {
    serde_json::from_str(annotation(object, key)?).ok()
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
