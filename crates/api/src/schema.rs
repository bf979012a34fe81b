//! Schema pieces that the derived schemas share: Kubernetes types, patterns and list kinds.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// A label or taint key: optional DNS prefix, slash, name.
pub const QUALIFIED_NAME: &str = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*(\/))?([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$";
/// A label value.
pub const LABEL_VALUE: &str = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$";
/// A Go duration in seconds, minutes and hours.
pub const DURATION: &str = r"^([0-9]+(s|m|h))+$";
/// A Go duration or `Never`.
pub const DURATION_OR_NEVER: &str = r"^(([0-9]+(s|m|h))+|Never)$";
/// A Kubernetes quantity.
pub const QUANTITY: &str = r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$";
/// Durations as v1beta1 has them: each anchor binds one alternative only.
pub const DURATION_OR_NEVER_V1BETA1: &str = r"^(([0-9]+(s|m|h))+)|(Never)$";
/// Reasons as NodeClaims of v1beta1 have them.
pub const CONDITION_REASON_V1BETA1: &str = r"(^([A-Za-z][A-Za-z0-9_,:]*[A-Za-z0-9_])?$)";
// The patterns of Kubernetes' `metav1.Condition`.
const CONDITION_REASON: &str = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$";
const CONDITION_REASON_OR_EMPTY: &str = r"^([A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?|)$";
const CONDITION_TYPE: &str = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$";

fn schema(value: Value) -> Schema {
    Schema::try_from(value).unwrap_or_else(|_| json_schema!({"type": "object"}))
}

/// A map from resource name to quantity.
pub fn quantities(_: &mut SchemaGenerator) -> Schema {
    schema(json!({
        "type": "object",
        "additionalProperties": {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": QUANTITY,
            "x-kubernetes-int-or-string": true,
        },
    }))
}

fn condition_items(reason_required: bool) -> Value {
    let mut required = vec!["lastTransitionTime", "status", "type"];
    let mut reason = json!({"type": "string", "maxLength": 1024,
        "description": "Why the condition has its status, in one word for programs.",
        "pattern": if reason_required { CONDITION_REASON } else { CONDITION_REASON_OR_EMPTY }});
    if reason_required {
        required.extend(["message", "reason"]);
        required.sort_unstable();
        reason["minLength"] = json!(1);
    }
    json!({
        "type": "object",
        "description": "One aspect of the object's current state.",
        "required": required,
        "properties": {
            "lastTransitionTime": {"type": "string", "format": "date-time",
                "description": "When the status last changed."},
            "message": {"type": "string", "maxLength": 32768,
                "description": "Details for people; may be empty."},
            "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0,
                "description": "The metadata.generation that the condition speaks of."},
            "reason": reason,
            "status": {"type": "string", "enum": ["True", "False", "Unknown"],
                "description": "Whether the condition holds."},
            "type": {"type": "string", "maxLength": 316, "pattern": CONDITION_TYPE,
                "description": "Which aspect the condition speaks of."},
        },
    })
}

/// Conditions as a list map keyed by type.
pub fn conditions(_: &mut SchemaGenerator) -> Schema {
    schema(json!({"type": "array", "items": condition_items(true),
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}))
}

/// Conditions of a NodeClaim, whose reason and message may be left out.
pub fn claim_conditions(_: &mut SchemaGenerator) -> Schema {
    schema(json!({"type": "array", "items": condition_items(false),
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}))
}

/// Conditions as a plain list.
pub fn plain_conditions(_: &mut SchemaGenerator) -> Schema {
    schema(json!({"type": "array", "items": condition_items(true)}))
}

/// Taints as an atomic list.
pub fn taints(_: &mut SchemaGenerator) -> Schema {
    schema(json!({"type": "array", "x-kubernetes-list-type": "atomic", "items": {
        "type": "object",
        "description": "A mark that only pods which tolerate it may ignore.",
        "required": ["effect", "key"],
        "properties": {
            "effect": {"type": "string", "enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"],
                "description": "What happens to pods that do not tolerate the taint."},
            "key": {"type": "string", "minLength": 1, "pattern": QUALIFIED_NAME,
                "description": "The taint's key."},
            "timeAdded": {"type": "string", "format": "date-time",
                "description": "When the taint was set."},
            "value": {"type": "string", "pattern": QUALIFIED_NAME,
                "description": "The taint's value."},
        },
    }}))
}

/// A point in time.
pub fn time(_: &mut SchemaGenerator) -> Schema {
    schema(json!({"type": "string", "format": "date-time"}))
}

/// A duration.
pub fn duration(_: &mut SchemaGenerator) -> Schema {
    schema(json!({"type": "string", "pattern": DURATION}))
}

/// A duration or `Never`.
pub fn duration_or_never(_: &mut SchemaGenerator) -> Schema {
    schema(json!({"type": "string", "pattern": DURATION_OR_NEVER}))
}

/// An object whose fields are kept as they are.
pub fn open_object(_: &mut SchemaGenerator) -> Schema {
    schema(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true,
        "additionalProperties": {"x-kubernetes-preserve-unknown-fields": true}}))
}
