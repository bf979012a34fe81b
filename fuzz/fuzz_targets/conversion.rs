//! Any bytes as a conversion review, and as an object: no panic, and nothing valid is lost.
#![no_main]

use karpenter::api::admission::Admission;
use karpenter::api::conversion;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fn no_pool(_: &str) -> Result<Option<String>, String> {
    Ok(None)
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return };
    let _ = conversion::review(&value, &no_pool);
    for (kind, group) in [
        ("NodePool", "karpenter.sh"),
        ("NodeClaim", "karpenter.sh"),
        ("EC2NodeClass", "karpenter.k8s.aws"),
    ] {
        for (from, to) in [("v1beta1", "v1"), ("v1", "v1beta1")] {
            let mut object = json!({"metadata": {"name": "x"}});
            if let (Some(object), Some(given)) = (object.as_object_mut(), value.as_object()) {
                object.extend(given.clone());
            }
            object["apiVersion"] = json!(format!("{group}/{from}"));
            object["kind"] = json!(kind);
            there_and_back(object, &format!("{group}/{from}"), &format!("{group}/{to}"));
        }
    }
});

/// Converts; what the API server would store comes back as it was.
fn there_and_back(object: Value, from: &str, to: &str) {
    let _ = conversion::convert_object(object.clone(), to, &no_pool);
    let Some(admitted) = Admission::get().create(object) else { return };
    if !admitted.findings.is_empty() || has_marks(&admitted.object) {
        return;
    }
    let there = conversion::convert_object(admitted.object.clone(), to, &no_pool);
    let Ok(there) = there else { return };
    let back = conversion::convert_object(there, from, &no_pool);
    assert_eq!(back.as_ref(), Ok(&admitted.object), "lost on the way to {to}");
}

/// True for objects with annotations that conversions write: those may hold anything.
fn has_marks(object: &Value) -> bool {
    object["metadata"].get("annotations").is_some()
}
