//! NodePools and NodeClaims.

use serde_json::{Map, Value, json};

use super::{
    CLASS_REFERENCE, ConversionError, ExpireAfter, KUBELET, STORED_VERSION_MIGRATED, annotation,
    compact, put, remove_annotation, set_annotation_text, take,
};
use crate::labels;
use crate::v1::KUBELET_FIELDS;

const NEVER: &str = "Never";

pub(super) fn pool_up(mut object: Value) -> Value {
    object["apiVersion"] = json!("karpenter.sh/v1");
    let mut spec = take(&mut object, "spec").unwrap_or(json!({}));
    let mut disruption = take(&mut spec, "disruption").unwrap_or(json!({}));
    let mut template = take(&mut spec, "template").unwrap_or(json!({}));
    let mut node = take(&mut template, "spec").unwrap_or(json!({}));
    let expire_after = take(&mut disruption, "expireAfter").unwrap_or(json!(NEVER));
    let policy = take(&mut disruption, "consolidationPolicy");
    let after = take(&mut disruption, "consolidateAfter");
    let underutilized = policy.as_ref().is_none_or(|p| p == "WhenUnderutilized");
    // v1beta1 consolidates underused nodes without waiting, and allows `consolidateAfter` only with
    // WhenEmpty.
    let after = if underutilized { json!("0s") } else { after.unwrap_or(json!(NEVER)) };
    let policy = if underutilized { Some(json!("WhenEmptyOrUnderutilized")) } else { policy };
    put(&mut disruption, "consolidateAfter", Some(after));
    put(&mut disruption, "consolidationPolicy", policy);
    node_up(&mut object, &mut node);
    if let Some(node) = node.as_object_mut() {
        node.shift_remove("resources");
    }
    put(&mut node, "expireAfter", Some(expire_after));
    put(&mut template, "spec", Some(node));
    put(&mut spec, "disruption", Some(disruption));
    put(&mut spec, "template", Some(template));
    put_before_status(object, spec)
}

pub(super) fn pool_down(mut object: Value) -> Result<Value, ConversionError> {
    object["apiVersion"] = json!("karpenter.sh/v1beta1");
    let mut spec = take(&mut object, "spec").unwrap_or(json!({}));
    let mut disruption = take(&mut spec, "disruption").unwrap_or(json!({}));
    let mut template = take(&mut spec, "template").unwrap_or(json!({}));
    let mut node = take(&mut template, "spec").unwrap_or(json!({}));
    // v1beta1 knows none of the fields that are taken out here; the caller keeps them in an
    // annotation.
    take(&mut spec, "replicas");
    let expire_after = take(&mut node, "expireAfter").unwrap_or(json!(NEVER));
    let policy = take(&mut disruption, "consolidationPolicy");
    let after = take(&mut disruption, "consolidateAfter");
    let empty = policy.as_ref().is_some_and(|p| p == "WhenEmpty");
    if empty {
        put(&mut disruption, "consolidateAfter", Some(after.unwrap_or(json!(NEVER))));
    }
    let policy = if empty { "WhenEmpty" } else { "WhenUnderutilized" };
    put(&mut disruption, "consolidationPolicy", Some(json!(policy)));
    put(&mut disruption, "expireAfter", Some(expire_after));
    let budgets = disruption.get_mut("budgets").and_then(Value::as_array_mut);
    for budget in budgets.into_iter().flatten() {
        take(budget, "reasons");
    }
    node_down(&mut object, &mut node)?;
    put(&mut template, "spec", Some(node));
    put(&mut spec, "disruption", Some(disruption));
    put(&mut spec, "template", Some(template));
    Ok(put_before_status(object, spec))
}

pub(super) fn claim_up(
    mut object: Value,
    expire_after: ExpireAfter<'_>,
) -> Result<Value, ConversionError> {
    object["apiVersion"] = json!("karpenter.sh/v1");
    let mut spec = take(&mut object, "spec").unwrap_or(json!({}));
    let pool = object["metadata"]["labels"].get(labels::NODEPOOL).and_then(Value::as_str);
    let expiry = match pool {
        Some(pool) => expire_after(pool).map_err(ConversionError::NodePool)?,
        None => None,
    };
    node_up(&mut object, &mut spec);
    put(&mut spec, "expireAfter", Some(json!(expiry.as_deref().unwrap_or(NEVER))));
    Ok(put_before_status(object, spec))
}

pub(super) fn claim_down(mut object: Value) -> Result<Value, ConversionError> {
    object["apiVersion"] = json!("karpenter.sh/v1beta1");
    let mut spec = take(&mut object, "spec").unwrap_or(json!({}));
    take(&mut spec, "expireAfter");
    node_down(&mut object, &mut spec)?;
    Ok(put_before_status(object, spec))
}

/// What templates and claims have in common.
fn node_up(object: &mut Value, node: &mut Value) {
    match take(node, "kubelet") {
        Some(kubelet) => {
            set_annotation_text(object, KUBELET, kubelet_in_order(&kubelet).to_string());
        }
        None => remove_annotation(object, KUBELET),
    }
    let reference = take(node, "nodeClassRef");
    let text = |key: &str| {
        reference.as_ref().and_then(|r| r.get(key)).and_then(Value::as_str).unwrap_or_default()
    };
    let kept = reference.as_ref().map_or(Value::Null, |r| {
        let mut kept = compact([("kind", r.get("kind").cloned())]);
        put(&mut kept, "name", Some(r.get("name").cloned().unwrap_or(json!(""))));
        let version = r.get("apiVersion").filter(|v| v.as_str() != Some("")).cloned();
        put(&mut kept, "apiVersion", version.filter(|v| !v.is_null()));
        kept
    });
    // v1beta1 may leave out kind and version, while v1 requires kind and group. The original
    // reference is kept, so that converting back gives the same object.
    set_annotation_text(object, CLASS_REFERENCE, kept.to_string());
    let class = if reference.is_none() {
        json!({"group": "", "kind": "", "name": ""})
    } else {
        let kind = Some(text("kind")).filter(|k| !k.is_empty()).unwrap_or("EC2NodeClass");
        let group = Some(text("apiVersion").split('/').next().unwrap_or_default())
            .filter(|g| !g.is_empty())
            .unwrap_or(labels::AWS_GROUP);
        json!({"group": group, "kind": kind, "name": text("name")})
    };
    put(node, "nodeClassRef", Some(class));
    if node["requirements"].is_null() {
        put(node, "requirements", Some(json!([])));
    }
}

fn node_down(object: &mut Value, node: &mut Value) -> Result<(), ConversionError> {
    take(node, "terminationGracePeriod");
    requirements_down(node);
    let read = |key: &str, what: &'static str| {
        annotation(object, key)
            .map(|text| {
                serde_json::from_str::<Value>(text)
                    .map_err(|e| ConversionError::Annotation { what, error: e.to_string() })
            })
            .transpose()
    };
    let kubelet = read(KUBELET, "kubelet config")?;
    let kept = read(CLASS_REFERENCE, "nodeClassRef")?;
    let current = take(node, "nodeClassRef");
    let name = |v: &Option<Value>| v.as_ref().and_then(|v| v.get("name")).cloned();
    // An edit of the v1 reference counts for more than what v1beta1 once said.
    let reference = match kept {
        Some(kept) if name(&Some(kept.clone())) == name(&current) => Some(kept),
        Some(Value::Null) if name(&current).is_none_or(|n| n == "") => None,
        _ => current
            .map(|c| compact([("kind", c.get("kind").cloned()), ("name", c.get("name").cloned())])),
    };
    put(node, "nodeClassRef", reference);
    put(node, "kubelet", kubelet.filter(|k| !k.is_null()));
    for key in [KUBELET, CLASS_REFERENCE, STORED_VERSION_MIGRATED] {
        remove_annotation(object, key);
    }
    Ok(())
}

/// Writes Gte and Lte, which v1beta1 does not have, as the Gt and Lt that mean the same.
fn requirements_down(node: &mut Value) {
    let list = node.get_mut("requirements").and_then(Value::as_array_mut);
    for requirement in list.into_iter().flatten() {
        let step: i64 = match requirement["operator"].as_str() {
            Some("Gte") => -1,
            Some("Lte") => 1,
            _ => continue,
        };
        let number = requirement["values"][0].as_str().and_then(|v| v.parse::<i64>().ok());
        let Some(bound) = number.and_then(|n| n.checked_add(step)) else { continue };
        let Some(members) = requirement.as_object_mut() else { continue };
        if bound < 0 {
            // At least zero: any number will do.
            members.insert("operator".to_owned(), json!("Exists"));
            members.shift_remove("values");
        } else {
            let operator = if step < 0 { "Gt" } else { "Lt" };
            members.insert("operator".to_owned(), json!(operator));
            members.insert("values".to_owned(), json!([bound.to_string()]));
        }
    }
}

/// Members in their fixed order, unknown ones last.
fn kubelet_in_order(kubelet: &Value) -> Value {
    let Some(given) = kubelet.as_object() else { return kubelet.clone() };
    let mut ordered = Map::new();
    for key in KUBELET_FIELDS {
        if let Some(value) = given.get(*key) {
            let mut value = value.clone();
            value.sort_all_objects();
            ordered.insert((*key).to_owned(), value);
        }
    }
    for (key, value) in given {
        ordered.entry(key.clone()).or_insert_with(|| value.clone());
    }
    Value::Object(ordered)
}

fn take_null(object: &mut Value, key: &str) {
    if let Some(object) = object.as_object_mut() {
        object.shift_remove(key);
    }
}

/// Puts the spec back where readers expect it.
pub(super) fn put_before_status(mut object: Value, spec: Value) -> Value {
    let status = take(&mut object, "status");
    for key in ["spec", "status"] {
        take_null(&mut object, key);
    }
    put(&mut object, "spec", Some(spec));
    put(&mut object, "status", status);
    object
}
