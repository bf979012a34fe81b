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
        // As Karpenter does: nodeadm needs no other header.
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

/// True for text that no shell would run, and that names what only a NodeConfig has.
fn is_meant_for_nodeadm(custom: &str) -> bool {
    !custom.trim_start().starts_with("#!")
        && custom.lines().any(|line| {
            let (key, value) = line.split_once(':').unwrap_or_default();
            match key {
                "apiVersion" => value.trim().starts_with("node.eks.aws/"),
                "kind" => value.contains("NodeConfig"),
                "spec" => true,
                _ => false,
            }
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
    // Unlike AL2's bootstrap script, nodeadm discovers nothing about the cluster, and requires the
    // service CIDR in its configuration.
    let cidr = bootstrap.cluster_cidr.as_deref().ok_or_else(|| {
        UserDataError::NotReady("resolving cluster CIDR, the service CIDR is not known".to_owned())
    })?;
    let mut cluster = json!({
        "apiServerEndpoint": bootstrap.cluster_endpoint,
        "cidr": cidr,
        "name": bootstrap.cluster_name,
    });
    if !bootstrap.ca_bundle.is_empty() {
        // Checked here, because nodeadm would fail on the instance, where nobody sees why.
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
            // The launch template's name is a hash of this text, so it must not vary.
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

/// A string without quotes where every YAML reader reads it back unchanged, else double-quoted.
fn plain(text: &str) -> String {
    let first = |c: char| c.is_ascii_alphanumeric() || c == '/' || c == '-';
    let safe = text.starts_with(first)
        && text != "-"
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:+=,\"%<".contains(c))
        && !text.ends_with(':')
        && !is_number_like(text)
        && !matches!(
            text.to_ascii_lowercase().as_str(),
            "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
        );
    if safe { text.to_owned() } else { Value::String(text.to_owned()).to_string() }
}

/// True for what some reader takes for a number, a date or a time.
fn is_number_like(text: &str) -> bool {
    let digits = text.trim_start_matches(['-', '+', '.']);
    // Neither hexadecimal digits nor parts of numbers and dates.
    let telling = |c: char| {
        "/%".contains(c)
            || (c.is_ascii_alphabetic() && !"abcdefotxz".contains(c.to_ascii_lowercase()))
    };
    digits.starts_with(|c: char| c.is_ascii_digit())
        && !text.contains(telling)
        && text.parse::<std::net::Ipv4Addr>().is_err()
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn strings_stay_strings() {
        for text in [
            "10.100.0.0/16",
            "10.100.0.10",
            "500m",
            "784Mi",
            "5%",
            "1m30s",
            "https://k.example:443",
            "--node-labels=\"a/b=c,d=e\"",
            "Y2E=",
            "karpenter.sh/nodepool",
            "memory.available",
            "12",
            "1.5",
            "1e3",
            "0x1f",
            "0o17",
            "2026-01-01",
            "12:30:45",
            "-1",
            "true",
            "No",
            "null",
            "-",
            "- a",
            "a: b",
            "a #b",
            "",
            " a",
            "*a",
            "fd00::a",
            "{a}",
            "'",
            "a:",
        ] {
            let line = format!("key: {}\nlist:\n- {}\n", plain(text), plain(text));
            let read: serde_json::Value = serde_saphyr::from_str(&line).unwrap();
            assert_eq!(read["key"], text, "{line}");
            assert_eq!(read["list"][0], text, "{line}");
        }
        for bare in ["10.100.0.0/16", "10.100.0.10", "500m", "5%", "--node-labels=\"a=b\""] {
            assert_eq!(plain(bare), bare);
        }
        for quoted in ["12", "1e3", "2026-01-01", "12:30:45", "true", "- a"] {
            assert_eq!(plain(quoted), format!("\"{quoted}\""));
        }
    }
}
