//! Reading manifests: files, directories and standard input, YAML or JSON, many documents each.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::api::yaml;

/// The argument that means standard input, as for kubectl; also its name in messages.
const STDIN: &str = "-";

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("{0}: {1}")]
    Read(String, std::io::Error),
    #[error("{0}: document {1}: {2}")]
    Parse(String, usize, String),
    #[error("{0}: no manifests, expected files that end in .yaml, .yml or .json")]
    Empty(String),
}

/// One document of a file.
pub struct Document {
    /// Its text as it stands in the file, without the line that separates documents.
    pub text: String,
    /// What it says; null when there are only comments.
    pub value: Value,
}

/// A file with its documents.
pub struct Manifest {
    /// The file, or `-`.
    pub name: String,
    /// Where to write it back; standard input has no place.
    pub path: Option<PathBuf>,
    pub documents: Vec<Document>,
}

/// The files that the arguments name: directories stand for all manifests in and below them.
///
/// # Errors
/// When something is not there or cannot be listed.
pub fn expand(arguments: &[PathBuf]) -> Result<Vec<PathBuf>, ManifestError> {
    let mut files = Vec::new();
    for argument in arguments {
        if argument.is_dir() {
            let before = files.len();
            walk(argument, &mut files)?;
            if files.len() == before {
                return Err(ManifestError::Empty(argument.display().to_string()));
            }
        } else {
            files.push(argument.clone());
        }
    }
    Ok(files)
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), ManifestError> {
    let failed = |error| ManifestError::Read(folder.display().to_string(), error);
    let mut entries: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        entries.push(entry.map_err(failed)?.path());
    }
    // The order of a directory differs between file systems.
    entries.sort();
    for entry in entries {
        let extension = entry.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if entry.is_dir() {
            walk(&entry, files)?;
        } else if matches!(extension, "yaml" | "yml" | "json") {
            files.push(entry);
        }
    }
    Ok(())
}

/// Reads a file; `-` is standard input.
///
/// # Errors
/// When it cannot be read, or a document is neither YAML nor JSON.
pub fn read(path: &Path) -> Result<Manifest, ManifestError> {
    let name = path.display().to_string();
    let stdin = name == STDIN;
    let text = if stdin {
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    let text = text.map_err(|error| ManifestError::Read(name.clone(), error))?;
    let documents = parse(&text).map_err(|(i, e)| ManifestError::Parse(name.clone(), i, e))?;
    Ok(Manifest { name, path: (!stdin).then(|| path.to_owned()), documents })
}

/// The documents of a stream; an error names the document, counted from one.
fn parse(text: &str) -> Result<Vec<Document>, (usize, String)> {
    split(text)
        .into_iter()
        .enumerate()
        .map(|(i, (line, text))| {
            if is_blank(&text) {
                return Ok(Document { text, value: Value::Null });
            }
            // Empty lines in front, so that errors name the line of the file.
            match yaml::read::<Value>(&format!("{}{text}", "\n".repeat(line))) {
                Ok(value) => Ok(Document { text, value }),
                Err(error) => Err((i + 1, error)),
            }
        })
        .collect()
}

fn is_blank(text: &str) -> bool {
    text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#'))
}

/// Cuts a stream at the lines that separate documents; each comes with the number of lines before it.
fn split(text: &str) -> Vec<(usize, String)> {
    let mut documents = vec![(0, String::new())];
    for (at, line) in text.split_inclusive('\n').enumerate() {
        let mark = line.trim_end();
        let rest = mark.strip_prefix("---").filter(|r| r.is_empty() || r.starts_with(' '));
        match (rest, documents.last_mut()) {
            (Some(rest), Some(last)) => {
                // What comes before the first mark is a document only if it says something.
                if documents_start(&last.1) {
                    *last = (at + 1, String::new());
                } else {
                    documents.push((at + 1, String::new()));
                }
                if let (Some(last), false) = (documents.last_mut(), rest.trim().is_empty()) {
                    *last = (at, format!("{}\n", rest.trim_start()));
                }
            }
            (None, Some(last)) if mark != "..." => last.1.push_str(line),
            _ => {}
        }
    }
    documents
}

fn documents_start(text: &str) -> bool {
    text.trim().is_empty()
}

/// The objects of a document: itself, or the items of a list.
pub fn objects(value: &Value) -> Vec<&Value> {
    match list_items(value) {
        Some(items) => items.iter().collect(),
        None => vec![value],
    }
}

fn list_items(value: &Value) -> Option<&Vec<Value>> {
    let kind = value.get("kind")?.as_str()?;
    kind.ends_with("List").then(|| value.get("items")?.as_array()).flatten()
}

/// The objects of a document, to change them.
pub fn objects_mut(value: &mut Value) -> Vec<&mut Value> {
    if list_items(value).is_some() {
        value["items"].as_array_mut().into_iter().flatten().collect()
    } else {
        vec![value]
    }
}

/// How an object is spoken of: `NodePool/default`.
pub fn name_of(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or("?");
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().or_else(|| metadata["generateName"].as_str());
    format!("{kind}/{}", name.unwrap_or("?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_cut_at_their_marks() {
        let text = "# licence\n---\na: 1\n--- # second\nb: |\n  ---\n  x\n...\n---\n";
        let documents = parse(text).unwrap();
        let values: Vec<Value> = documents.iter().map(|d| d.value.clone()).collect();
        assert_eq!(
            values,
            [
                Value::Null,
                serde_json::json!({"a": 1}),
                serde_json::json!({"b": "---\nx\n"}),
                Value::Null
            ]
        );
        assert_eq!(documents[2].text, "# second\nb: |\n  ---\n  x\n");
        assert_eq!(parse("---\na: 1\n").unwrap().len(), 1);
        assert_eq!(parse(r#"{"kind": "List", "items": [1, 2]}"#).unwrap().len(), 1);
        assert_eq!(parse("a: 1\n---\nb: [\n").err().unwrap().0, 2);
    }

    #[test]
    fn a_key_that_is_there_twice_is_named_with_its_line_in_the_file() {
        let (document, text) = parse("a: 1\n---\nb: 1\nc: 2\nb: 3\n").err().unwrap();
        assert_eq!(document, 2);
        assert_eq!(text, "line 5, column 1: the key \"b\" is there twice, expected it once");
    }

    #[test]
    fn lists_are_their_items() {
        let list = serde_json::json!({"kind": "NodePoolList", "items": [{"kind": "NodePool"}]});
        assert_eq!(objects(&list).len(), 1);
        assert_eq!(name_of(objects(&list)[0]), "NodePool/?");
    }
}
