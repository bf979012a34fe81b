//! One object of a file, as the API server would store it.

use std::fmt::Display;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::manifests;
use crate::api::admission::Admission;
use crate::api::checks::identity;
use crate::api::conversion;

/// Input that cannot be used: where, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}{message}", if place.is_empty() { String::new() } else { format!("{place}: ") })]
pub struct InputError {
    place: String,
    message: String,
}

impl InputError {
    pub fn new(place: impl Display, message: impl Display) -> Self {
        Self { place: place.to_string(), message: message.to_string() }
    }
}

/// The one object of that kind in a file of one or more documents.
///
/// What the API server would refuse is an error, except for fields that are merely missing: a
/// draft may be looked at, too; `notes` says what is missing.
///
/// # Errors
/// When the file cannot be read, or the object not be used.
pub fn object<T: DeserializeOwned>(
    path: &Path,
    kind: &str,
    notes: &mut Vec<String>,
) -> Result<T, InputError> {
    let place = path.display();
    let manifest = manifests::read(path).map_err(|e| InputError::new("", e))?;
    let all: Vec<&Value> =
        manifest.documents.iter().flat_map(|d| manifests::objects(&d.value)).collect();
    let found: Vec<&&Value> = all.iter().filter(|d| d["kind"] == kind).collect();
    let [object] = found.as_slice() else {
        let problem = all.iter().find_map(|o| Some(format!("; {}", identity::check(o)?)));
        let (count, problem) = (found.len(), problem.unwrap_or_default());
        let message = format!("expected one object of kind {kind}, found {count}{problem}");
        return Err(InputError::new(&place, message));
    };
    let object = (***object).clone();
    if let Some(finding) = identity::check(&object) {
        return Err(InputError::new(&place, format!("{kind}: {finding}")));
    }
    if let Some(admitted) = Admission::get().create(object.clone()) {
        let found = admitted.unknown.into_iter().chain(admitted.findings);
        let (missing, wrong): (Vec<_>, Vec<_>) =
            // Findings of missing fields begin with this word in every check of the schema.
            found.partition(|f| f.message.starts_with("required"));
        if let Some(first) = wrong.first() {
            return Err(InputError::new(&place, format!("{kind}: {first}")));
        }
        notes
            .extend(missing.iter().map(|f| format!("{kind}: the API server would refuse it: {f}")));
    }
    let object = as_v1(object).map_err(|e| InputError::new(&place, format!("{kind}: {e}")))?;
    serde_path_to_error::deserialize(object)
        .map_err(|e| InputError::new(&place, format!("{kind}: {}: {}", e.path(), e.inner())))
}

/// The object in version v1, converted where it is of v1beta1.
fn as_v1(object: Value) -> Result<Value, String> {
    let version = object.get("apiVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
    match version.split_once('/') {
        Some((_, "v1")) => Ok(object),
        Some((group, "v1beta1")) if conversion::is_convertible(&object) => {
            conversion::convert_object(object, &format!("{group}/v1"), &|_| Ok(None))
                .map_err(|e| e.to_string())
        }
        _ => Err(format!("apiVersion {version:?}, expected version v1 or v1beta1")),
    }
}
