//! NodePool in v1 and v1beta1.

use serde_json::{Value, json};

use super::overlay::{add, clear, clear_rules, one_of, remove, rule, set};
use super::rules::{self, Namer};
use super::{AGE_PATH, READY_PATH, Version, column, derived};
use crate::schema::{DURATION_OR_NEVER_V1BETA1, QUANTITY};
use crate::v1;

// Hours and minutes only: a cron schedule opens its windows on whole minutes.
const BUDGET_DURATION: &str = "^((([0-9]+(h|m))|([0-9]+h[0-9]+m))(0s)?)$";
const BUDGET_NODES: &str = "^((100|[0-9]{1,2})%|[0-9]+)$";
// Karpenter's pattern: each anchor binds one alternative only, so much passes that is no schedule.
// The controller parses it.
const BUDGET_SCHEDULE: &str =
    r"^(@(annually|yearly|monthly|weekly|daily|midnight|hourly))|((.+)\s(.+)\s(.+)\s(.+)\s(.+))$";

pub(super) fn versions() -> Vec<Version> {
    let v1 = schema();
    vec![
        Version {
            name: "v1",
            columns: json!([
                column("NodeClass", "string", ".spec.template.spec.nodeClassRef.name", 0),
                column("Nodes", "string", ".status.nodes", 0),
                column("Ready", "string", READY_PATH, 0),
                column("Age", "date", AGE_PATH, 0),
                column("Weight", "integer", ".spec.weight", 1),
                column("CPU", "string", ".status.resources.cpu", 1),
                column("Memory", "string", ".status.resources.memory", 1),
            ]),
            schema: v1.clone(),
            storage: true,
        },
        Version {
            name: "v1beta1",
            columns: json!([
                column("NodeClass", "string", ".spec.template.spec.nodeClassRef.name", 0),
                column("Weight", "string", ".spec.weight", 1),
            ]),
            schema: schema_v1beta1(v1),
            storage: false,
        },
    ]
}

fn schema() -> Value {
    let mut schema = derived::<v1::NodePool>();
    let s = &mut schema;
    set(s, "", json!({"required": ["spec"]}));
    set(s, "spec", json!({"required": ["template"]}));
    rule(
        s,
        "spec",
        "Cannot transition NodePool between static (replicas set) and dynamic (replicas unset) provisioning modes",
        "has(self.replicas) == has(oldSelf.replicas)",
    );
    rule(
        s,
        "spec",
        "only 'limits.nodes' is supported on static NodePools",
        "!has(self.replicas) || (!has(self.limits) || self.limits.size() == 0 || (self.limits.size() == 1 && 'nodes' in self.limits))",
    );
    rule(
        s,
        "spec",
        "'weight' is not supported on static NodePools",
        "!has(self.replicas) || !has(self.weight)",
    );
    set(s, "spec.replicas", json!({"format": "int64", "minimum": 0}));
    set(s, "spec.weight", json!({"format": "int32", "minimum": 1, "maximum": 100}));
    set(s, "spec.disruption", json!({"default": {"consolidateAfter": "0s"}}));
    set(s, "spec.disruption.consolidateAfter", json!({"default": "0s"}));
    one_of(
        s,
        "spec.disruption.consolidationPolicy",
        &["WhenEmpty", "WhenEmptyOrUnderutilized", "Balanced"],
    );
    set(s, "spec.disruption.consolidationPolicy", json!({"default": "WhenEmptyOrUnderutilized"}));
    budgets(s);
    set(s, "spec.template", json!({"required": ["spec"]}));
    set(s, "spec.template.spec", json!({"required": ["nodeClassRef", "requirements"]}));
    set(s, "spec.template.spec.expireAfter", json!({"default": "720h"}));
    set(s, "spec.template.metadata.annotations", json!({"x-kubernetes-map-type": "granular"}));
    rules::template_labels(s, "spec.template.metadata.labels");
    rules::requirements(s, "spec.template.spec.requirements", Namer::Pool);
    let class = "spec.template.spec.nodeClassRef";
    rules::class_ref(s, class);
    for field in ["group", "kind"] {
        rule(
            s,
            class,
            &format!("nodeClassRef.{field} is immutable"),
            &format!("self.{field} == oldSelf.{field}"),
        );
    }
    set(s, "status.nodes", json!({"default": 0, "format": "int64"}));
    schema
}

fn budgets(s: &mut Value) {
    let budgets = "spec.disruption.budgets";
    set(
        s,
        budgets,
        json!({"default": [{"nodes": "10%"}], "maxItems": 50, "x-kubernetes-list-type": "atomic"}),
    );
    rule(
        s,
        budgets,
        "'schedule' must be set with 'duration'",
        "self.all(x, has(x.schedule) == has(x.duration))",
    );
    set(s, "spec.disruption.budgets[]", json!({"required": ["nodes"]}));
    let field = |name: &str| format!("spec.disruption.budgets[].{name}");
    set(s, &field("duration"), json!({"pattern": BUDGET_DURATION}));
    set(s, &field("nodes"), json!({"default": "10%", "pattern": BUDGET_NODES}));
    set(s, &field("schedule"), json!({"pattern": BUDGET_SCHEDULE}));
    set(s, &field("reasons"), json!({"maxItems": 50, "x-kubernetes-list-type": "set"}));
    one_of(s, &field("reasons[]"), &["Underutilized", "Empty", "Drifted", "Unhealthy"]);
}

/// The status keeps what is newer than v1beta1: a client that changes a spec through v1beta1 would
/// wipe it otherwise, until the controllers write it again.
fn schema_v1beta1(mut schema: Value) -> Value {
    let s = &mut schema;
    clear_rules(s, "spec");
    remove(s, "spec", &["replicas"]);
    remove(s, "spec.template.spec", &["expireAfter", "terminationGracePeriod"]);
    remove(s, "spec.disruption.budgets[]", &["reasons"]);
    clear(s, "spec.disruption.budgets", &["x-kubernetes-list-type"]);
    clear(s, "spec.disruption.consolidateAfter", &["default"]);
    set(s, "spec.disruption.consolidateAfter", json!({"pattern": DURATION_OR_NEVER_V1BETA1}));
    clear(s, "spec.template.metadata.annotations", &["x-kubernetes-map-type"]);
    rules::taints_v1beta1(s, "spec.template.spec");
    set(
        s,
        "spec.disruption",
        json!({"default": {"consolidationPolicy": "WhenUnderutilized", "expireAfter": "720h"}}),
    );
    one_of(s, "spec.disruption.consolidationPolicy", &["WhenEmpty", "WhenUnderutilized"]);
    set(s, "spec.disruption.consolidationPolicy", json!({"default": "WhenUnderutilized"}));
    add(
        s,
        "spec.disruption",
        "expireAfter",
        json!({"type": "string", "default": "720h", "pattern": DURATION_OR_NEVER_V1BETA1,
            "description": "How long a node may live before it is replaced."}),
    );
    rule(
        s,
        "spec.disruption",
        "consolidateAfter cannot be combined with consolidationPolicy=WhenUnderutilized",
        "has(self.consolidateAfter) ? self.consolidationPolicy != 'WhenUnderutilized' || self.consolidateAfter == 'Never' : true",
    );
    rule(
        s,
        "spec.disruption",
        "consolidateAfter must be specified with consolidationPolicy=WhenEmpty",
        "self.consolidationPolicy == 'WhenEmpty' ? has(self.consolidateAfter) : true",
    );
    rules::template_labels_v1beta1(s, "spec.template.metadata.labels");
    rules::requirements_v1beta1(s, "spec.template.spec.requirements", true);
    rules::class_ref_v1beta1(s, "spec.template.spec.nodeClassRef");
    add(s, "spec.template.spec", "kubelet", rules::kubelet_v1beta1());
    add(
        s,
        "spec.template.spec",
        "resources",
        json!({"type": "object", "maxProperties": 0,
            "description": "Not used by NodePools.",
            "properties": {"requests": {"type": "object", "description": "Not used by NodePools.", "additionalProperties": {
                "anyOf": [{"type": "integer"}, {"type": "string"}], "pattern": QUANTITY,
                "x-kubernetes-int-or-string": true}}}}),
    );
    schema
}
