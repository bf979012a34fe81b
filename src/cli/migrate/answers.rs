//! Saved answers of AWS: which files hold them, and what they hold.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::fields::Fields;
use crate::cli::manifests;

/// What the files hold together.
#[derive(Debug, Default)]
pub struct Answers {
    /// Items of `AutoScalingGroups`.
    pub groups: Vec<Value>,
    /// Items of `LaunchTemplateVersions`.
    pub templates: Vec<Value>,
    /// Items of `LaunchConfigurations`.
    pub configurations: Vec<Value>,
    /// Each `nodegroup`.
    pub node_groups: Vec<Value>,
}

impl Answers {
    /// Reads files and directories of them; `-` is standard input. A file may hold several answers.
    ///
    /// # Errors
    /// When a file cannot be read, or holds something else.
    pub fn read(arguments: &[PathBuf]) -> anyhow::Result<Self> {
        let mut answers = Self::default();
        for file in manifests::expand(arguments)? {
            for document in documents(&file)? {
                answers.add(document, &file)?;
            }
        }
        Ok(answers)
    }

    pub(super) fn add(&mut self, document: Value, file: &Path) -> anyhow::Result<()> {
        let mut fields = Fields::of(document);
        let node_group = fields.take("nodegroup");
        let lists = [
            (&mut self.groups, "AutoScalingGroups"),
            (&mut self.templates, "LaunchTemplateVersions"),
            (&mut self.configurations, "LaunchConfigurations"),
        ];
        let mut known = node_group.is_object();
        for (target, name) in lists {
            if let Value::Array(items) = fields.take(name) {
                known = true;
                target.extend(items);
            }
        }
        if node_group.is_object() {
            self.node_groups.push(node_group);
        }
        anyhow::ensure!(
            known,
            "{}: expected an answer of AWS with AutoScalingGroups, LaunchTemplateVersions, LaunchConfigurations or nodegroup",
            file.display()
        );
        Ok(())
    }

    /// The version of a launch template that a specification means.
    ///
    /// # Errors
    /// What is missing, and how to save it.
    pub fn template(&self, specification: Value) -> Result<Value, String> {
        let mut wanted = Fields::of(specification);
        let mut either = |one: &str, other: &str| wanted.text(one).or_else(|| wanted.text(other));
        let id = either("LaunchTemplateId", "id");
        let name = either("LaunchTemplateName", "name");
        // EC2's own default where a specification names no version.
        let version = either("Version", "version").unwrap_or_else(|| "$Default".to_owned());
        let is = |value: &Value, wanted: &Option<String>| value.as_str() == wanted.as_deref();
        let mut found: Vec<&Value> = self
            .templates
            .iter()
            .filter(|t| match id {
                Some(_) => is(&t["LaunchTemplateId"], &id),
                None => is(&t["LaunchTemplateName"], &name),
            })
            .collect();
        // `$Latest` means the highest number, in whatever order they were saved.
        found.sort_by_key(|t| t["VersionNumber"].as_i64());
        let chosen = match version.as_str() {
            "$Latest" => found.last(),
            "$Default" => found.iter().find(|t| t["DefaultVersion"] == true),
            number => {
                let number = number.parse::<i64>().ok();
                found.iter().find(|t| number.is_some() && t["VersionNumber"].as_i64() == number)
            }
        };
        chosen.map(|t| t["LaunchTemplateData"].clone()).ok_or_else(|| {
            let (option, value) = match (&id, &name) {
                (Some(id), _) => ("--launch-template-id", id.as_str()),
                (None, name) => ("--launch-template-name", name.as_deref().unwrap_or_default()),
            };
            format!(
                "version {version} of launch template {value} is not in the files; save it with: aws ec2 describe-launch-template-versions {option} {value} --output json"
            )
        })
    }

    /// A launch configuration.
    ///
    /// # Errors
    /// How to save it when it is missing.
    pub fn configuration(&self, name: &str) -> Result<Value, String> {
        let found = self.configurations.iter().find(|c| c["LaunchConfigurationName"] == name);
        found.cloned().ok_or_else(|| {
            format!(
                "launch configuration {name} is not in the files; save it with: aws autoscaling describe-launch-configurations --launch-configuration-names {name} --output json"
            )
        })
    }
}

/// The documents of a file: JSON objects one after the other, as a shell loop appends them, or YAML.
fn documents(file: &Path) -> anyhow::Result<Vec<Value>> {
    let manifest = match manifests::read(file) {
        Ok(manifest) => manifest,
        Err(error) => {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            if !text.trim_start().starts_with('{') {
                return Err(error.into());
            }
            let all = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
            return all
                .collect::<Result<_, _>>()
                .map_err(|e| anyhow::anyhow!("{}: {e}", file.display()));
        }
    };
    let values = manifest.documents.into_iter().map(|d| d.value);
    Ok(values.filter(|value| !value.is_null()).collect())
}
