//! Whatever the webhook is sent, it answers.

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{any_json, class, founding_pool, nothing};
use crate::conversion::{KEPT_V1, KEPT_V1BETA1, review, review_body};

fn ask(body: &[u8]) -> Result<Value, serde_json::Error> {
    let answer = review_body(body, |question| review(question, &nothing))?;
    Ok(serde_json::from_slice(&answer).unwrap())
}

/// Only what is no JSON has no answer, and every answer is one that the API server understands.
fn is_answered(body: &[u8]) -> Result<(), TestCaseError> {
    let Ok(answer) = ask(body) else {
        prop_assert!(serde_json::from_slice::<Value>(body).is_err());
        return Ok(());
    };
    let question: Value = serde_json::from_slice(body).unwrap();
    let request = &question["request"];
    prop_assert_eq!(&answer["kind"], "ConversionReview");
    let response = &answer["response"];
    prop_assert_eq!(response["uid"].as_str(), Some(request["uid"].as_str().unwrap_or_default()));
    match response["result"]["status"].as_str() {
        Some("Success") => {
            let (asked, got) = (&request["objects"], &response["convertedObjects"]);
            prop_assert_eq!(asked.as_array().unwrap().len(), got.as_array().unwrap().len());
            for object in got.as_array().unwrap() {
                prop_assert_eq!(&object["apiVersion"], &request["desiredAPIVersion"]);
            }
        }
        Some("Failure") => {
            prop_assert!(!response["result"]["message"].as_str().unwrap().is_empty());
        }
        other => prop_assert!(false, "{other:?}"),
    }
    Ok(())
}

fn question(desired: &str, objects: Value) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview",
        "request": {"uid": "u", "desiredAPIVersion": desired, "objects": objects}})
}

/// A good review with some bytes changed, left out or put in.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let pool = question("karpenter.sh/v1", json!([founding_pool()]));
    let class = class(json!({"amiFamily": "Ubuntu", "role": "r"}));
    let class = question("karpenter.k8s.aws/v1", json!([class]));
    let good = prop::sample::select(vec![pool.to_string(), class.to_string()]);
    let edit = (any::<prop::sample::Index>(), 0..4usize, vec(any::<u8>(), 0..4));
    (good, vec(edit, 0..5)).prop_map(|(good, edits)| {
        let mut body = good.into_bytes();
        for (at, removed, put) in edits {
            let start = at.index(body.len() + 1);
            let end = (start + removed).min(body.len());
            body.splice(start..end, put);
        }
        body
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_answered(body in vec(any::<u8>(), 0..200)) {
        is_answered(&body)?;
    }

    #[test]
    fn damaged_reviews_are_answered(body in damaged()) {
        is_answered(&body)?;
    }

    #[test]
    fn reviews_of_anything_are_answered(
        desired in prop_oneof![
            prop::sample::select(vec!["karpenter.sh/v1", "karpenter.sh/v1beta1",
                "karpenter.k8s.aws/v1beta1", "karpenter.sh/v9", ""]).prop_map(Value::from),
            any_json(),
        ],
        objects in prop_oneof![any_json(), vec(any_json(), 0..3).prop_map(Value::from)],
        whole in prop::option::of(any_json()),
    ) {
        let mut question = question("", objects);
        question["request"]["desiredAPIVersion"] = desired;
        is_answered(&serde_json::to_vec(&whole.unwrap_or(question)).unwrap())?;
    }
}

/// Objects of 3 MB, more than the API server lets anybody store, in the shapes that cost most.
#[test]
fn large_objects_are_converted() {
    let size = 3 << 20;
    let mut text = founding_pool();
    text["metadata"]["annotations"] = json!({"big": "x".repeat(size)});
    let requirement = json!({"key": "a", "operator": "In", "values": ["b"]});
    let mut list = founding_pool();
    let many = size / requirement.to_string().len();
    list["spec"]["template"]["spec"]["requirements"] = json!(vec![requirement; many]);
    // Beside what an earlier version of it is said to have held.
    let mut kept = list.clone();
    let mut other = list["spec"].clone();
    other["template"]["spec"]["requirements"] = json!(
        (0..many / 2)
            .map(|i| json!({"key": i.to_string(), "operator": "Gte", "values": ["1"]}))
            .collect::<Vec<_>>()
    );
    kept["metadata"]["annotations"] = json!({KEPT_V1: json!({"spec": other}).to_string()});
    let mut deep = founding_pool();
    let nested = (0..100).fold(json!(1), |inner, _| json!([inner]));
    deep["metadata"]["annotations"] = json!({KEPT_V1BETA1: nested.to_string()});
    deep["spec"]["template"]["spec"]["requirements"] = nested;
    for object in [text, list, kept, deep] {
        let body = question("karpenter.sh/v1", json!([object])).to_string();
        let answer = ask(body.as_bytes()).unwrap();
        assert_eq!(answer["response"]["result"]["status"], "Success");
        assert_eq!(answer["response"]["convertedObjects"][0]["apiVersion"], "karpenter.sh/v1");
    }
    let endless = vec![b'['; size];
    assert!(ask(&endless).is_err());
}
