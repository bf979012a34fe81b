//! NodeOverlay.

use serde_json::{Value, json};

use super::overlay::{rule, set};
use super::rules::{self, Namer};
use super::{AGE_PATH, READY_PATH, Version, column, derived};
use crate::v1alpha1::NodeOverlay;

const PRICE: &str = r"^\d+(\.\d+)?$";
// Karpenter's pattern: a signed amount, or a percentage not below -100 %.
const ADJUSTMENT: &str =
    r"^(([+-]{1}(\d*\.?\d+))|(\+{1}\d*\.?\d+%)|(^(-\d{1,2}(\.\d+)?%)$)|(-100%))$";

pub(super) fn versions() -> Vec<Version> {
    vec![Version {
        name: "v1alpha1",
        columns: json!([
            column("Ready", "string", READY_PATH, 0),
            column("Age", "date", AGE_PATH, 0),
            column("Weight", "integer", ".spec.weight", 1),
        ]),
        schema: schema(),
        storage: true,
    }]
}

fn schema() -> Value {
    let mut schema = derived::<NodeOverlay>();
    let s = &mut schema;
    set(s, "", json!({"required": ["spec"]}));
    set(s, "spec", json!({"required": ["requirements"]}));
    rule(
        s,
        "spec",
        "cannot set both 'price' and 'priceAdjustment'",
        "!has(self.price) || !has(self.priceAdjustment)",
    );
    rule(
        s,
        "spec.capacity",
        "invalid resource restricted",
        "self.all(x, !(x in ['cpu', 'memory', 'ephemeral-storage', 'pods']))",
    );
    set(s, "spec.price", json!({"pattern": PRICE}));
    set(s, "spec.priceAdjustment", json!({"pattern": ADJUSTMENT}));
    set(s, "spec.weight", json!({"format": "int32", "minimum": 1, "maximum": 10000}));
    rules::requirements(s, "spec.requirements", Namer::Overlay);
    schema
}
