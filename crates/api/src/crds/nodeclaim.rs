//! NodeClaim in v1 and v1beta1.

use serde_json::{Value, json};

use super::overlay::{add, clear_rules, remove, rule, set};
use super::rules::{self, Namer};
use super::{AGE_PATH, READY_PATH, Version, column, derived};
use crate::schema::CONDITION_REASON_V1BETA1;
use crate::v1;

pub(super) fn versions() -> Vec<Version> {
    let label = |key: &str| format!(".metadata.labels.{}", key.replace('.', r"\."));
    let (kind, zone) =
        (label("node.kubernetes.io/instance-type"), label("topology.kubernetes.io/zone"));
    let (capacity, pool) = (label("karpenter.sh/capacity-type"), label("karpenter.sh/nodepool"));
    let v1 = schema();
    vec![
        Version {
            name: "v1",
            columns: json!([
                column("Type", "string", &kind, 0),
                column("Capacity", "string", &capacity, 0),
                column("Zone", "string", &zone, 0),
                column("Node", "string", ".status.nodeName", 0),
                column("Ready", "string", READY_PATH, 0),
                column("Age", "date", AGE_PATH, 0),
                column("ImageID", "string", ".status.imageID", 1),
                column("ID", "string", ".status.providerID", 1),
                column("NodePool", "string", &pool, 1),
                column("NodeClass", "string", ".spec.nodeClassRef.name", 1),
                column(
                    "Drifted",
                    "string",
                    r#".status.conditions[?(@.type=="Drifted")].status"#,
                    1
                ),
            ]),
            schema: v1.clone(),
            storage: true,
        },
        Version {
            name: "v1beta1",
            columns: json!([
                column("Type", "string", &kind, 0),
                column("Zone", "string", &zone, 0),
                column("Node", "string", ".status.nodeName", 0),
                column("Ready", "string", READY_PATH, 0),
                column("Age", "date", AGE_PATH, 0),
                column("Capacity", "string", &capacity, 1),
                column("NodePool", "string", &pool, 1),
                column("NodeClass", "string", ".spec.nodeClassRef.name", 1),
            ]),
            schema: schema_v1beta1(v1),
            storage: false,
        },
    ]
}

fn schema() -> Value {
    let mut schema = derived::<v1::NodeClaim>();
    let s = &mut schema;
    set(s, "", json!({"required": ["spec"]}));
    set(s, "spec", json!({"required": ["nodeClassRef", "requirements"]}));
    rule(s, "spec", "spec is immutable", "self == oldSelf");
    set(s, "spec.expireAfter", json!({"default": "720h"}));
    rules::requirements(s, "spec.requirements", Namer::Claim);
    rules::class_ref(s, "spec.nodeClassRef");
    schema
}

fn schema_v1beta1(mut schema: Value) -> Value {
    let s = &mut schema;
    clear_rules(s, "spec");
    remove(s, "spec", &["expireAfter", "terminationGracePeriod"]);
    rules::requirements_v1beta1(s, "spec.requirements", false);
    rules::class_ref_v1beta1(s, "spec.nodeClassRef");
    rules::taints_v1beta1(s, "spec");
    let reason = "status.conditions[].reason";
    set(s, reason, json!({"pattern": CONDITION_REASON_V1BETA1}));
    add(s, "spec", "kubelet", rules::kubelet_v1beta1());
    schema
}
