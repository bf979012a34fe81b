//! Any bytes as the body of a conversion review, and as an object: no panic, an answer, and nothing
//! valid is lost.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

use karpenter_api::admission::Admission;
use karpenter_api::conversion;

fn no_pool(_: &str) -> Result<Option<String>, String> {
    Ok(None)
}

fuzz_target!(|bytes: &[u8]| {
    let answer = conversion::review_body(bytes, |review| conversion::review(review, &no_pool));
    let value = serde_json::from_slice::<Value>(bytes);
    assert_eq!(answer.is_ok(), value.is_ok(), "all JSON is answered, nothing else");
    let (Ok(answer), Ok(value)) = (answer, value) else { return };
    is_an_answer(&serde_json::from_slice(&answer).expect("JSON"));
    let Some(given) = value.as_object() else { return };
    for (kind, group) in [
        ("NodePool", "karpenter.sh"),
        ("NodeClaim", "karpenter.sh"),
        ("EC2NodeClass", "karpenter.k8s.aws"),
    ] {
        for (from, to) in [("v1beta1", "v1"), ("v1", "v1beta1")] {
            let mut object = json!({"metadata": {"name": "x"}});
            object.as_object_mut().expect("an object").extend(given.clone());
            object["apiVersion"] = json!(format!("{group}/{from}"));
            object["kind"] = json!(kind);
            there_and_back(object, &format!("{group}/{from}"), &format!("{group}/{to}"));
        }
    }
});

/// What the API server can read: a success with objects, or a failure with a reason.
fn is_an_answer(answer: &Value) {
    let response = &answer["response"];
    match response["result"]["status"].as_str() {
        Some("Success") => assert!(response["convertedObjects"].is_array(), "{answer}"),
        Some("Failure") => assert!(response["result"]["message"].is_string(), "{answer}"),
        _ => panic!("{answer}"),
    }
}

/// Converts; what the API server would store comes back as it was.
fn there_and_back(object: Value, from: &str, to: &str) {
    let _ = conversion::convert_object(object.clone(), to, &no_pool);
    let Some(admitted) = Admission::get().create(object) else { return };
    if !admitted.findings.is_empty() || has_marks(&admitted.object) {
        return;
    }
    let there = conversion::convert_object(admitted.object.clone(), to, &no_pool);
    let there = there.expect("valid objects are converted");
    let back = conversion::convert_object(there, from, &no_pool);
    assert_eq!(back.as_ref(), Ok(&admitted.object), "lost on the way to {to}");
}

/// True for objects with annotations that conversions write: those may hold anything.
fn has_marks(object: &Value) -> bool {
    object["metadata"].get("annotations").is_some()
}
