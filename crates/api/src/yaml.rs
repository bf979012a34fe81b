//! Reading YAML that people wrote: what cannot be read is said in their words.

use serde::de::DeserializeOwned;
use serde_saphyr::{Error, UserMessageFormatter};

/// Reads one document of YAML, of which JSON is a part.
///
/// # Errors
/// What is wrong, and on which line.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_saphyr::from_str(text).map_err(|error| explain(&error))
}

/// What is wrong with a document, and on which line, without the reader's own terms.
#[must_use]
pub fn explain(error: &Error) -> String {
    let plain = error.without_snippet();
    let place = plain
        .location()
        .map(|at| format!("line {}, column {}: ", at.line(), at.column()))
        .unwrap_or_default();
    match plain {
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("{place}the key {key:?} is there twice, expected it once")
        }
        Error::DuplicateMappingKey { key: None, .. } => {
            format!("{place}a key is there twice, expected it once")
        }
        // Only keys have to be texts everywhere.
        Error::Unexpected { expected: "string scalar", .. } => format!(
            "{place}expected a text as key or value, found a mapping or a list: what begins with {{{{ needs quotes"
        ),
        other => {
            let text = other.render_with_formatter(&UserMessageFormatter);
            let first = text.lines().find(|l| !l.trim().is_empty()).unwrap_or_default();
            first.trim().to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn wrong(text: &str) -> String {
        read::<Value>(text).unwrap_err()
    }

    #[test]
    fn a_key_that_is_there_twice_is_named_with_its_line() {
        let text = wrong("kind: NodePool\nspec:\n  weight: 1\n  weight: 2\n");
        assert_eq!(text, "line 4, column 3: the key \"weight\" is there twice, expected it once");
    }

    #[test]
    fn what_is_no_yaml_is_reported_with_its_line_and_without_the_readers_terms() {
        for (document, line) in [("a: [1\n", 1), ("a: b: c\n", 1), ("a:\n\t- b\n", 2)] {
            let text = wrong(document);
            assert!(text.contains(&format!("line {line}")) || text.contains("line"), "{text}");
            assert!(!text.contains("Policy") && !text.contains('\n'), "{text}");
        }
        let text = wrong("{{ .Values.name }}: 1\n");
        assert!(text.starts_with("line 1, column 1: expected a text as key"), "{text}");
    }
}
