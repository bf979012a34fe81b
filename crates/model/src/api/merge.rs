//! Patches.

use serde_json::Value;

use super::failure::Failure;

/// Lays a merge patch over an object (RFC 7386): null removes.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(map) = target else { return };
    for (key, change) in changes {
        if change.is_null() {
            map.shift_remove(key);
        } else {
            merge(map.entry(key.clone()).or_insert(Value::Null), change);
        }
    }
}

/// Applies a patch by its content type.
///
/// # Errors
/// When the patch cannot be read or applied, or is of a kind that is not served.
pub fn apply(target: &mut Value, content_type: &str, body: &Value) -> Result<(), Failure> {
    match content_type.split(';').next().unwrap_or_default().trim() {
        "application/merge-patch+json" => {
            merge(target, body);
            Ok(())
        }
        "application/json-patch+json" => {
            let patch: json_patch::Patch = serde_json::from_value(body.clone())
                .map_err(|e| Failure::bad_request(format!("error decoding patch: {e}")))?;
            json_patch::patch(target, &patch).map_err(|e| {
                let mut failure =
                    Failure::bad_request(format!("the server rejected our request: {e}"));
                // The API server's code for a JSON patch that does not apply, such as a failed
                // `test`.
                failure.code = 422;
                failure.reason = "Invalid";
                failure
            })
        }
        other => Err(Failure::unsupported(format!(
            "the body of the request was in an unknown format: {other}, accepted are application/json-patch+json and application/merge-patch+json"
        ))),
    }
}
