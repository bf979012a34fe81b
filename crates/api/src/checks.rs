//! What is wrong with an object: one list of findings per object, for all commands that show it.
//!
//! A file per kind says what no schema can express. The controllers put findings on conditions,
//! `karpenter validate`, `convert` and `render` print them, `simulate` refuses what has some.

use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::v1::NodePool;

pub mod capacitybuffer;
pub mod ec2nodeclass;
pub mod identity;
pub mod names;
pub mod nodeoverlay;
pub mod nodepool;
mod requirement;

pub use names::{is_label_value, is_qualified_name};

/// Something about a field that its author should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Path of the field in the object; empty for the whole of it.
    pub path: String,
    /// Reason of the condition that shows it; empty where no condition does.
    pub reason: &'static str,
    /// What is wrong and what was expected.
    pub message: String,
    /// How much it matters.
    pub severity: Severity,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The object is refused, or cannot be used.
    Error,
    /// The object works, but most likely not as it was meant to.
    Warning,
}

impl Finding {
    /// An error, of which no condition speaks.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        let (path, message) = (path.into(), message.into());
        Self { path, reason: "", message, severity: Severity::Error }
    }

    /// The same with the reason of the condition that shows it.
    #[must_use]
    pub fn because(self, reason: &'static str) -> Self {
        Self { reason, ..self }
    }

    /// The same as a warning.
    #[must_use]
    pub fn as_warning(self) -> Self {
        Self { severity: Severity::Warning, ..self }
    }

    /// True unless it is a warning.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            return f.write_str(&self.message);
        }
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// Checks an object of ours in its stored version; other objects have nothing to find.
#[must_use]
pub fn object(object: &Value) -> Vec<Finding> {
    match (object["apiVersion"].as_str(), object["kind"].as_str()) {
        (Some("karpenter.sh/v1"), Some("NodePool")) => {
            // What another provider's pool may say is not for us to judge.
            read(object, |pool: &NodePool| {
                if pool.is_managed() { nodepool::check_with_budgets(pool) } else { Vec::new() }
            })
        }
        (Some("karpenter.sh/v1"), Some("NodeClaim")) => {
            read(object, |_: &crate::v1::NodeClaim| Vec::new())
        }
        (Some("karpenter.sh/v1alpha1"), Some("NodeOverlay")) => read(object, nodeoverlay::check),
        (Some("karpenter.k8s.aws/v1"), Some("EC2NodeClass")) => read(object, ec2nodeclass::check),
        (Some("autoscaling.x-k8s.io/v1beta1"), Some("CapacityBuffer")) => {
            read(object, capacitybuffer::check)
        }
        _ => Vec::new(),
    }
}

/// Reads an object as the controllers do, then checks it.
fn read<T: DeserializeOwned>(object: &Value, check: impl Fn(&T) -> Vec<Finding>) -> Vec<Finding> {
    match serde_path_to_error::deserialize(object) {
        Ok(read) => check(&read),
        Err(error) => {
            let path = error.path().to_string();
            // The schema and the types may differ: what the controllers cannot read has no effect.
            vec![Finding::new(path, error.into_inner().to_string())]
        }
    }
}
