//! Amazon Linux 2023: a nodeadm NodeConfig.

use serde_json::{Map, Value, json};

use super::mime::{self, Ending, Part};
use super::{Bootstrap, UserDataError, node_labels};

/// The whole archive: the user's parts first, then the NodeConfig, since nodeadm lets later ones win.
pub(super) fn render(bootstrap: &Bootstrap) -> Result<String, UserDataError> {
    let mut parts = custom_parts(&bootstrap.custom)?;
    parts.push(Part::new(mime::NODE_CONFIG, &node_config(bootstrap)?));
    Ok(mime::write(&parts))
}

fn custom_parts(custom: &str) -> Result<Vec<Part>, UserDataError> {
    if custom.is_empty() {
        return Ok(Vec::new());
    }
    if mime::is_archive(custom) {
        let keep = |h: &String| h.to_ascii_lowercase().starts_with("content-type:");
        let mut parts = mime::read(custom, Ending::Optional)?;
        for part in &mut parts {
            part.headers.retain(keep);
            if part.content_type() == mime::NODE_CONFIG {
                check_documents(&part.body)?;
            }
        }
        return Ok(parts);
    }
    let is_mapping = |document: &Value| document.is_object() || document.is_null();
    let kind = match serde_saphyr::from_multiple::<Value>(custom) {
        Ok(documents) if documents.iter().all(is_mapping) => mime::NODE_CONFIG,
        // A NodeConfig that cannot be read would run as a shell script, and the node never join.
        Err(error) if is_meant_for_nodeadm(custom) => return Err(broken(&error)),
        _ => mime::SHELL_SCRIPT,
    };
    Ok(vec![Part::new(kind, custom)])
}

fn is_meant_for_nodeadm(custom: &str) -> bool {
    !custom.trim_start().starts_with("#!")
        && custom.lines().any(|line| {
            line.strip_prefix("apiVersion:").is_some_and(|v| v.trim().starts_with("node.eks.aws/"))
        })
}

fn check_documents(body: &str) -> Result<(), UserDataError> {
    serde_saphyr::from_multiple::<Value>(body).map(|_| ()).map_err(|e| broken(&e))
}

fn broken(error: &impl std::fmt::Display) -> UserDataError {
    UserDataError::Custom(format!(
        "parsing custom user data input, expected a NodeConfig in YAML: {error}"
    ))
}

fn node_config(bootstrap: &Bootstrap) -> Result<String, UserDataError> {
    use base64::Engine as _;
    let cidr = bootstrap.cluster_cidr.as_deref().ok_or_else(|| {
        UserDataError::NotReady("resolving cluster CIDR, the service CIDR is not known".to_owned())
    })?;
    let mut cluster = json!({
        "apiServerEndpoint": bootstrap.cluster_endpoint,
        "cidr": cidr,
        "name": bootstrap.cluster_name,
    });
    if !bootstrap.ca_bundle.is_empty() {
        base64::engine::general_purpose::STANDARD
            .decode(&bootstrap.ca_bundle)
            .map_err(|e| UserDataError::NotReady(format!("decoding CABundle, {e}")))?;
        cluster["certificateAuthority"] = bootstrap.ca_bundle.clone().into();
    }
    let storage = if bootstrap.raid0 { json!({"strategy": "RAID0"}) } else { json!({}) };
    let mut config: Map<String, Value> = bootstrap.kubelet.clone();
    let taints = bootstrap.taints.iter().map(|t| {
        let mut taint = json!({"effect": t.effect, "key": t.key});
        if let Some(value) = t.value.as_deref().filter(|v| !v.is_empty()) {
            taint["value"] = value.into();
        }
        taint
    });
    config.insert("registerWithTaints".to_owned(), taints.collect());
    let mut kubelet = json!({"config": config});
    let labels = node_labels(bootstrap);
    if !labels.is_empty() {
        kubelet["flags"] = json!([format!("--node-labels={labels:?}")]);
    }
    let document = json!({
        "apiVersion": "node.eks.aws/v1alpha1",
        "kind": "NodeConfig",
        "metadata": {},
        "spec": {
            "cluster": cluster,
            "containerd": {},
            "instance": {"localStorage": storage},
            "kubelet": kubelet,
        },
    });
    let yaml = yaml(&document);
    Ok(format!("# Karpenter Generated NodeConfig\n{yaml}"))
}

/// Block-style YAML with sorted keys and list dashes at their parent's indent.
fn yaml(value: &Value) -> String {
    let mut text = String::new();
    write_block(&mut text, value, 0);
    text
}

fn write_block(text: &mut String, value: &Value, indent: usize) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) => {
            let sorted: std::collections::BTreeMap<_, _> = map.iter().collect();
            for (key, value) in sorted {
                write_entry(text, &format!("{pad}{}:", plain(key)), value, indent + 2, indent);
            }
        }
        Value::Array(list) => {
            for item in list {
                let mut inner = String::new();
                write_block(&mut inner, item, indent + 2);
                if matches!(item, Value::Object(m) if !m.is_empty()) {
                    text.push_str(&format!("{pad}- {}", inner.trim_start()));
                } else {
                    text.push_str(&format!("{pad}- {}\n", flow(item)));
                }
            }
        }
        _ => {}
    }
}

fn write_entry(
    text: &mut String,
    head: &str,
    value: &Value,
    map_indent: usize,
    list_indent: usize,
) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            text.push_str(&format!("{head}\n"));
            write_block(text, value, map_indent);
        }
        Value::Array(list) if !list.is_empty() => {
            text.push_str(&format!("{head}\n"));
            write_block(text, value, list_indent);
        }
        other => text.push_str(&format!("{head} {}\n", flow(other))),
    }
}

fn flow(value: &Value) -> String {
    match value {
        Value::String(text) => plain(text),
        other => other.to_string(),
    }
}

/// A string without quotes where YAML would read it back unchanged, else double-quoted.
fn plain(text: &str) -> String {
    let safe = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:+=".contains(c))
        && !text.ends_with(':')
        && !matches!(
            text.to_ascii_lowercase().as_str(),
            "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
        );
    if safe { text.to_owned() } else { Value::String(text.to_owned()).to_string() }
}
