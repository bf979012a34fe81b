//! Strict reading: an unknown field is an error, and every error names its place.

use serde::de::{Deserialize, Deserializer};
use serde_ignored::Path as Ignored;

use super::ScenarioError;

/// Reads a value, refusing fields that nothing reads; `prefix` stands before every path.
pub(super) fn strict<'de, D, T>(deserializer: D, prefix: &str) -> Result<T, ScenarioError>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let mut unknown: Option<String> = None;
    let mut note = |path: Ignored<'_>| {
        // The custom kinds are told apart before they are read; their type fields are not read again.
        let of_kind =
            matches!(&path, Ignored::Map { key, .. } if key == "apiVersion" || key == "kind");
        if unknown.is_none() && !of_kind {
            let mut text = String::new();
            write_path(&path, &mut text);
            unknown = Some(text);
        }
    };
    let mut track = serde_path_to_error::Track::new();
    let located = serde_path_to_error::Deserializer::new(deserializer, &mut track);
    let result = T::deserialize(serde_ignored::Deserializer::new(located, &mut note));
    match (result, unknown) {
        (Err(error), _) => {
            let path = track.path().to_string();
            let path = if path == "." { "" } else { &path };
            Err(ScenarioError::new(join(prefix, path), error))
        }
        (Ok(_), Some(path)) => Err(ScenarioError::new(join(prefix, &path), "unknown field")),
        (Ok(value), None) => Ok(value),
    }
}

fn join(prefix: &str, path: &str) -> String {
    if prefix.is_empty() || path.is_empty() || path.starts_with('[') {
        format!("{prefix}{path}")
    } else {
        format!("{prefix}.{path}")
    }
}

fn write_path(path: &Ignored<'_>, out: &mut String) {
    match path {
        Ignored::Root => {}
        Ignored::Seq { parent, index } => {
            write_path(parent, out);
            out.push_str(&format!("[{index}]"));
        }
        Ignored::Map { parent, key } => {
            write_path(parent, out);
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(key);
        }
        Ignored::Some { parent }
        | Ignored::NewtypeStruct { parent }
        | Ignored::NewtypeVariant { parent } => write_path(parent, out),
    }
}
