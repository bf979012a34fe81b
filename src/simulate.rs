//! Scenario files in, decisions out: the offline twin of the controller.
//!
//! A scenario is one JSON or YAML document with NodePools, instance types, nodes and pods. It is
//! read strictly, turned into the same snapshot that the controller takes of its cluster, and
//! given to the same functions.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

pub mod build;
pub mod change;
mod check;
pub mod disrupt;
#[cfg(feature = "aws")]
pub mod ec2;
pub(crate) mod expected;
mod objects;
pub(crate) mod read;
pub mod record;
pub mod report;
pub mod scenario;
pub mod table;
mod types;

use crate::api::yaml;

pub use build::World;
pub use scenario::Scenario;

/// Why a scenario cannot be used: the place in the document, and what is wrong there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", if path.is_empty() { "document" } else { path })]
pub struct ScenarioError {
    /// Where in the document, such as `pods[3].spec.containers[0]`; empty for the whole of it.
    pub path: String,
    /// What was expected.
    pub message: String,
}

impl ScenarioError {
    pub(crate) fn new(path: impl Into<String>, message: impl ToString) -> Self {
        Self { path: path.into(), message: message.to_string() }
    }

    /// The same error with its place seen from further out.
    fn under(self, path: &str) -> Self {
        let dot = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        Self { path: format!("{path}{dot}{}", self.path), ..self }
    }
}

/// Reads a scenario; JSON when the first visible character is a brace, else YAML.
///
/// # Errors
/// When the document cannot be read, has unknown fields, or misses needed ones.
pub fn load(mut reader: impl Read) -> Result<Scenario, ScenarioError> {
    let mut head = Vec::new();
    let mut byte = [0_u8; 1];
    loop {
        // Byte by byte up to the first visible one: standard input cannot be read twice.
        match reader.read(&mut byte) {
            Ok(0) => break,
            Ok(_) => {
                head.push(byte[0]);
                if !byte[0].is_ascii_whitespace() {
                    break;
                }
            }
            Err(error) => return Err(ScenarioError::new("", error)),
        }
    }
    if head.iter().all(u8::is_ascii_whitespace) {
        return Err(ScenarioError::new("", "expected a scenario, found nothing"));
    }
    let json = head.last() == Some(&b'{');
    let mut whole = std::io::Cursor::new(head).chain(reader);
    if json {
        let mut de = serde_json::Deserializer::from_reader(whole);
        let scenario: Scenario = read::strict(&mut de, "")?;
        de.end().map_err(|e| ScenarioError::new("", e))?;
        return Ok(scenario);
    }
    let mut text = String::new();
    whole.read_to_string(&mut text).map_err(|e| ScenarioError::new("", e))?;
    let mut outcome = Err(ScenarioError::new("", "expected one document"));
    // Scenarios may be long; what aliases may blow them up to stays limited.
    let options = serde_saphyr::options! { budget: None, with_snippet: false };
    let parsed = serde_saphyr::with_deserializer_from_str_with_options(&text, options, |de| {
        outcome = read::strict(de, "");
        Ok(())
    });
    match (outcome, parsed) {
        (Ok(_), Err(error)) => Err(ScenarioError::new("", yaml::explain(&error))),
        (outcome, _) => outcome,
    }
}

/// Reads a scenario from a file, or from standard input for `-`.
///
/// # Errors
/// When there is no such file, or as [`load`] says.
pub fn load_file(path: &Path) -> Result<Scenario, ScenarioError> {
    if path == Path::new("-") {
        return load(std::io::stdin().lock());
    }
    let file =
        File::open(path).map_err(|error| ScenarioError::new(path.display().to_string(), error))?;
    load(BufReader::with_capacity(1 << 16, file))
}

#[cfg(test)]
mod tests;
