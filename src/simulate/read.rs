//! Strict reading: an unknown field is an error, and every error names its place.

use serde::de::{Deserialize, Deserializer};
use serde_ignored::Path as Ignored;

use super::ScenarioError;
use super::expected::{self, Step};

/// Reads a value, refusing fields that nothing reads; `prefix` stands before every path.
pub(crate) fn strict<'de, D, T>(deserializer: D, prefix: &str) -> Result<T, ScenarioError>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let mut unknown: Option<Vec<(Step, String)>> = None;
    let mut note = |path: Ignored<'_>| {
        // `apiVersion` and `kind` were read beforehand, to choose the type. The type has no such
        // fields, which does not make them unknown ones.
        let of_kind =
            matches!(&path, Ignored::Map { key, .. } if key == "apiVersion" || key == "kind");
        if unknown.is_none() && !of_kind {
            let mut steps = Vec::new();
            collect(&path, &mut steps);
            unknown = Some(steps);
        }
    };
    let mut track = serde_path_to_error::Track::new();
    let located = serde_path_to_error::Deserializer::new(deserializer, &mut track);
    let noted = serde_ignored::Deserializer::new(located, &mut note);
    // Erased, so that each type's reader is in the binary once, and not once more with each of
    // these layers and formats inlined: that is what the process's memory consists of otherwise.
    let result = erased_serde::deserialize(&mut <dyn erased_serde::Deserializer>::erase(noted));
    match (result, unknown) {
        // What was unknown comes first in the document, and is often the cause of the error.
        (_, Some(steps)) => Err(unknown_field::<T>(prefix, &steps)),
        (Err(error), None) => {
            let path = track.path().to_string();
            let path = if path == "." { "" } else { &path };
            Err(ScenarioError::new(join(prefix, path), error))
        }
        (Ok(value), None) => Ok(value),
    }
}

/// The error for a field that nothing reads: where it is, and what could stand there.
fn unknown_field<'de, T: Deserialize<'de>>(
    prefix: &str,
    steps: &[(Step, String)],
) -> ScenarioError {
    let text: String = steps.iter().map(|(_, text)| text.as_str()).collect();
    let path = join(prefix, text.trim_start_matches('.'));
    let parents: Vec<Step> = steps.iter().rev().skip(1).rev().map(|(s, _)| s.clone()).collect();
    let known = expected::fields::<T>(&parents).unwrap_or_default();
    let message = if known.is_empty() {
        "unknown field".to_owned()
    } else {
        format!("unknown field, expected one of {}", known.join(", "))
    };
    ScenarioError::new(path, message)
}

fn join(prefix: &str, path: &str) -> String {
    if prefix.is_empty() || path.is_empty() || path.starts_with('[') {
        format!("{prefix}{path}")
    } else {
        format!("{prefix}.{path}")
    }
}

fn collect(path: &Ignored<'_>, out: &mut Vec<(Step, String)>) {
    match path {
        Ignored::Root => {}
        Ignored::Seq { parent, index } => {
            collect(parent, out);
            out.push((Step::Item, format!("[{index}]")));
        }
        Ignored::Map { parent, key } => {
            collect(parent, out);
            out.push((Step::Field(key.clone()), format!(".{key}")));
        }
        Ignored::Some { parent }
        | Ignored::NewtypeStruct { parent }
        | Ignored::NewtypeVariant { parent } => collect(parent, out),
    }
}
