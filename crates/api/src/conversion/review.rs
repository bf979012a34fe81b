//! ConversionReviews, as the API server sends them.

use serde_json::{Value, json};

use super::{ExpireAfter, convert_object};

/// Answers the body of a request, whatever it holds: `review` is asked about any JSON.
///
/// # Errors
/// When the body is not JSON, or nests deeper than 128 levels.
pub fn review_body(
    body: &[u8],
    review: impl Fn(&Value) -> Value,
) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&review(&serde_json::from_slice(body)?))
}

/// Answers a ConversionReview; what is wrong with it stands in the answer's result.
#[must_use]
pub fn review(review: &Value, expire_after: ExpireAfter<'_>) -> Value {
    let request = &review["request"];
    let uid = request["uid"].as_str().unwrap_or_default();
    let response = match answer(request, expire_after) {
        Ok(objects) => {
            json!({"uid": uid, "convertedObjects": objects, "result": {"status": "Success"}})
        }
        Err(message) => {
            json!({"uid": uid, "result": {"status": "Failure", "message": message}})
        }
    };
    // Both versions of the review have the same form; the answer has that of the question.
    let version = review["apiVersion"].as_str().filter(|v| *v == "apiextensions.k8s.io/v1beta1");
    json!({"apiVersion": version.unwrap_or("apiextensions.k8s.io/v1"),
        "kind": "ConversionReview", "response": response})
}

fn answer(request: &Value, expire_after: ExpireAfter<'_>) -> Result<Vec<Value>, String> {
    let desired = request["desiredAPIVersion"]
        .as_str()
        .ok_or("request.desiredAPIVersion: expected a text such as karpenter.sh/v1")?;
    let objects =
        request["objects"].as_array().ok_or("request.objects: expected a list of objects")?;
    objects
        .iter()
        .enumerate()
        .map(|(i, object)| {
            if !object.is_object() {
                return Err(format!("request.objects[{i}]: expected an object"));
            }
            convert_object(object.clone(), desired, expire_after)
                .map_err(|e| format!("request.objects[{i}]: {e}"))
        })
        .collect()
}
