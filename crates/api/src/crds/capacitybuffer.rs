//! CapacityBuffer.

use serde_json::{Value, json};

use super::overlay::{rule, set};
use super::{AGE_PATH, Version, column, derived};
use crate::autoscaling::{ACTIVE_CAPACITY, CapacityBuffer};

pub(super) fn versions() -> Vec<Version> {
    vec![Version {
        name: "v1beta1",
        columns: json!([
            column("Strategy", "string", ".spec.provisioningStrategy", 0),
            column("PodTemplate", "string", ".status.podTemplateRef.name", 0),
            column("Replicas", "integer", ".status.replicas", 0),
            column("ConditionsType", "string", ".status.conditions[*].type", 0),
            column("ConditionsStatus", "string", ".status.conditions[*].status", 0),
            column("ConditionsReason", "string", ".status.conditions[*].reason", 0),
            column("Age", "date", AGE_PATH, 0),
        ]),
        schema: schema(),
        storage: true,
    }]
}

fn schema() -> Value {
    let mut schema = derived::<CapacityBuffer>();
    let s = &mut schema;
    set(s, "", json!({"required": ["spec"]}));
    rule(
        s,
        "spec",
        "If podTemplateRef is set, replicas or limits must also be set",
        "!has(self.podTemplateRef) || has(self.replicas) || has(self.limits)",
    );
    rule(
        s,
        "spec",
        "You must define either PodTemplateRef or ScalableRef, but not both",
        "!(has(self.podTemplateRef) && has(self.scalableRef))",
    );
    set(s, "spec.provisioningStrategy", json!({"default": ACTIVE_CAPACITY}));
    for field in ["percentage", "replicas"] {
        set(s, &format!("spec.{field}"), json!({"format": "int32", "minimum": 0}));
    }
    for path in ["spec.podTemplateRef", "status.podTemplateRef"] {
        set(s, path, json!({"required": ["name"]}));
        set(s, &format!("{path}.name"), json!({"minLength": 1}));
    }
    set(s, "spec.scalableRef", json!({"required": ["kind", "name"]}));
    for field in ["kind", "name"] {
        set(s, &format!("spec.scalableRef.{field}"), json!({"minLength": 1}));
    }
    schema
}
