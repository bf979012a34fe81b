//! User data of nodes that join the cluster by themselves: what a NodePool has to know of it, and
//! what a node class does in its place.

use base64::Engine as _;
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::group::Group;
use super::shell;
use crate::api::v1::KUBELET_FIELDS;
use crate::api::yaml;
use crate::cloud::aws::ami::AmiFamily;
use crate::cloud::aws::userdata::mime;

/// The script by which nodes of the AL2 family join a cluster.
const BOOTSTRAP: &str = "/etc/eks/bootstrap.sh";

/// The text of base64 user data.
///
/// # Errors
/// When it is not base64, or not a text.
pub fn decode(text: &str) -> Result<String, &'static str> {
    let joined: String = text.split_whitespace().collect();
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(joined)
        .map_err(|_| "is not base64, and is left out")?;
    String::from_utf8(bytes).map_err(|_| "is compressed or no text; unpack it into spec.userData")
}

/// The family whose images understand the text.
pub fn family(text: &str) -> AmiFamily {
    if text.contains("<powershell>") {
        return AmiFamily::Windows2022;
    }
    let toml = toml::from_str::<toml::Table>(text).ok();
    if toml.is_some_and(|t| t.get("settings").is_some_and(|s| s.get("kubernetes").is_some())) {
        AmiFamily::Bottlerocket
    } else if text.contains("node.eks.aws") {
        AmiFamily::Al2023
    } else if text.contains(BOOTSTRAP) {
        AmiFamily::Al2
    } else {
        AmiFamily::Custom
    }
}

/// Carries user data over. `joins`: the text itself makes the node join, and may say labels, taints
/// and kubelet settings.
pub fn read(group: &mut Group, family: AmiFamily, text: &str, joins: bool) {
    let mut kept = text.to_owned();
    match family {
        AmiFamily::Al2 if joins => match without_bootstrap(text) {
            Some((rest, arguments)) => {
                bootstrap(group, &arguments);
                kept = rest;
            }
            None => {
                // The script decides itself how to join: it stays whole, and is all that the node runs.
                group.set("amiFamily", AmiFamily::Custom.as_str());
                flags(group, &flags_in(text), true);
                group.note("UserData: calls bootstrap.sh in a way that is not understood, so the family is Custom and the user data stays as it is; labels and taints that it works out must be added to the NodePool");
            }
        },
        AmiFamily::Al2023 => {
            for config in node_configs(text) {
                node_config(group, config);
            }
        }
        AmiFamily::Bottlerocket => bottlerocket(group, text),
        AmiFamily::Windows2019 | AmiFamily::Windows2022 | AmiFamily::Windows2025 if joins => {
            kept = without_windows_bootstrap(group, text);
        }
        AmiFamily::Custom => {
            flags(group, &flags_in(text), true);
            group.note("UserData: the family is Custom, so it must make the node join the cluster as it does today");
        }
        _ => {}
    }
    if family.is_windows() {
        kept = without_tags(&kept);
    }
    if has_content(&kept) {
        group.set("userData", kept);
    }
}

/// Arguments that look like flags, wherever they stand in a script.
fn flags_in(text: &str) -> Vec<String> {
    let words = text.split(|c: char| c.is_whitespace() || matches!(c, '"' | '\''));
    words.filter(|w| w.starts_with("--") && w.contains('=')).map(str::to_owned).collect()
}

/// False for a script of which only its frame is left.
fn has_content(text: &str) -> bool {
    let frame = |line: &str| {
        line.is_empty()
            || line.starts_with('#')
            || line.starts_with("set -")
            || line.starts_with("--")
            || line.to_ascii_lowercase().starts_with("mime-version:")
            || line.to_ascii_lowercase().starts_with("content-")
    };
    text.lines().any(|line| !frame(line.trim()))
}

/// The text without its call of bootstrap.sh, and the arguments of that; `None` when there is not
/// exactly one at the beginning of a line.
fn without_bootstrap(text: &str) -> Option<(String, Vec<String>)> {
    let lines: Vec<&str> = text.lines().collect();
    let is_call = |line: &str| {
        let line = line.strip_prefix("sudo ").unwrap_or(line);
        line.strip_prefix(BOOTSTRAP).is_some_and(|rest| rest.starts_with([' ', '\\']))
    };
    let first = lines.iter().position(|l| is_call(l))?;
    let last = (first..lines.len()).find(|i| !lines[*i].trim_end().ends_with('\\'))?;
    // A call over several lines, each continued by a backslash.
    let call: String = lines[first..=last]
        .iter()
        .map(|l| l.trim_end().trim_end_matches('\\'))
        .collect::<Vec<_>>()
        .join(" ");
    let mut rest: Vec<&str> = lines[..first].to_vec();
    rest.extend(&lines[last + 1..]);
    let rest = rest.join("\n") + "\n";
    // A second call, or one within a condition, is beyond what can be taken out safely.
    if rest.contains(BOOTSTRAP) {
        return None;
    }
    let mut words = shell::words(&call)?;
    let name = words.iter().position(|w| w == BOOTSTRAP)?;
    words.drain(..=name);
    Some((rest, words))
}

/// Reads the arguments of bootstrap.sh.
fn bootstrap(group: &mut Group, arguments: &[String]) {
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(option) = argument.strip_prefix("--") else {
            if !argument.contains('$') {
                group.cluster.get_or_insert_with(|| argument.clone());
            }
            continue;
        };
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => (option, rest.next().cloned().unwrap_or_default()),
        };
        match name {
            "kubelet-extra-args" => match shell::arguments(&value) {
                Some(words) => flags(group, &words, false),
                None => group.note(format!("UserData: kubelet arguments {value:?} cannot be read")),
            },
            "dns-cluster-ip" => kubelet(group, "clusterDNS", json!([value])),
            "local-disks" if value == "raid0" => group.set("instanceStorePolicy", "RAID0"),
            // The node class's own user data says these.
            "b64-cluster-ca"
            | "apiserver-endpoint"
            | "container-runtime"
            | "use-max-pods"
            | "aws-api-retry-attempts"
            | "ip-family"
            | "service-ipv6-cidr" => {}
            other => {
                group.note(format!("UserData: bootstrap.sh --{other} {value}: has no counterpart"))
            }
        }
    }
}

/// Reads arguments of the kubelet; `only_known` leaves others alone without a note.
fn flags(group: &mut Group, words: &[String], only_known: bool) {
    let mut rest = words.iter().peekable();
    while let Some(word) = rest.next() {
        let Some(flag) = word.strip_prefix("--") else { continue };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            // The kubelet accepts `--flag=value` and `--flag value`; a flag followed by another
            // flag is a boolean.
            None => match rest.next_if(|next| !next.starts_with("--")) {
                Some(value) => (flag, value.clone()),
                None => (flag, String::new()),
            },
        };
        let pairs = |separator: char| -> Map<String, Value> {
            let pairs = value.split(',').filter_map(|p| p.split_once(separator));
            pairs.map(|(k, v)| (k.trim().to_owned(), json!(v.trim()))).collect()
        };
        match name {
            "node-labels" => {
                for (key, value) in value.split(',').filter_map(|l| l.split_once('=')) {
                    group.label(key.trim(), value.trim());
                }
            }
            "register-with-taints" => {
                for taint in value.split(',').filter(|t| !t.is_empty()) {
                    let (head, effect) = taint.rsplit_once(':').unwrap_or((taint, ""));
                    let (key, value) = head.split_once('=').unwrap_or((head, ""));
                    group.taint(key.trim(), value, effect);
                }
            }
            "max-pods" | "pods-per-core" | "image-gc-high-threshold" | "image-gc-low-threshold" => {
                let field = match name {
                    "max-pods" => "maxPods",
                    "pods-per-core" => "podsPerCore",
                    "image-gc-high-threshold" => "imageGCHighThresholdPercent",
                    _ => "imageGCLowThresholdPercent",
                };
                match value.parse::<i64>() {
                    Ok(number) => kubelet(group, field, json!(number)),
                    Err(_) => group.note(format!("UserData: --{name}={value}: expected a number")),
                }
            }
            "cpu-cfs-quota" => kubelet(group, "cpuCFSQuota", json!(value != "false")),
            "cluster-dns" => {
                kubelet(group, "clusterDNS", json!(value.split(',').collect::<Vec<_>>()));
            }
            "kube-reserved" => kubelet(group, "kubeReserved", Value::Object(pairs('='))),
            "system-reserved" => kubelet(group, "systemReserved", Value::Object(pairs('='))),
            "eviction-hard" => kubelet(group, "evictionHard", Value::Object(pairs('<'))),
            "eviction-soft" => kubelet(group, "evictionSoft", Value::Object(pairs('<'))),
            "eviction-soft-grace-period" => {
                kubelet(group, "evictionSoftGracePeriod", Value::Object(pairs('=')));
            }
            _ if only_known => {}
            _ => group.note(format!("UserData: kubelet flag --{name}={value}: has no counterpart")),
        }
    }
}

fn kubelet(group: &mut Group, field: &str, value: Value) {
    let settings = group.class.entry("kubelet").or_insert_with(|| json!({}));
    settings[field] = value;
}

/// The configurations of nodeadm in the text.
fn node_configs(text: &str) -> Vec<Value> {
    let bodies = if mime::is_archive(text) {
        let parts = mime::read(text, mime::Ending::Optional).unwrap_or_default();
        let configs = parts.into_iter().filter(|p| p.content_type() == mime::NODE_CONFIG);
        configs.map(|p| p.body).collect()
    } else {
        vec![text.to_owned()]
    };
    let read = bodies.iter().filter_map(|body| yaml::read::<Value>(body).ok());
    read.filter(|config| config["kind"] == "NodeConfig").collect()
}

/// Reads what a NodePool has to know of a NodeConfig, which itself stays in the user data.
fn node_config(group: &mut Group, config: Value) {
    let mut spec = Fields::of(config).object("spec");
    if let Some(name) = spec.object("cluster").text("name") {
        group.cluster.get_or_insert(name);
    }
    let mut settings = spec.object("kubelet");
    let arguments = settings.texts("flags");
    flags(group, &arguments, true);
    let mut config = settings.object("config");
    for &field in KUBELET_FIELDS {
        let value = config.take(field);
        if !value.is_null() {
            kubelet(group, field, value);
        }
    }
    for mut taint in config.list("registerWithTaints").into_iter().map(Fields::of) {
        let mut text = |name: &str| taint.text(name).unwrap_or_default();
        let (key, value, effect) = (text("key"), text("value"), text("effect"));
        group.taint(&key, &value, &effect);
    }
    let strategy = spec.object("instance").object("localStorage").text("strategy");
    if strategy.as_deref() == Some("RAID0") {
        group.set("instanceStorePolicy", "RAID0");
    }
}

/// Reads what a NodePool has to know of Bottlerocket's settings, which stay in the user data.
fn bottlerocket(group: &mut Group, text: &str) {
    let Ok(table) = toml::from_str::<toml::Table>(text) else { return };
    let settings = serde_json::to_value(table).unwrap_or_default();
    let mut settings = Fields::of(settings).object("settings").object("kubernetes");
    if let Some(name) = settings.text("cluster-name") {
        group.cluster.get_or_insert(name);
    }
    for (key, value) in settings.map("node-labels") {
        group.label(&key, &value);
    }
    if let Value::Object(taints) = settings.take("node-taints") {
        for (key, values) in taints {
            // Bottlerocket accepts one text or a list of them for each key.
            let list = match values {
                Value::Array(list) => list,
                one => vec![one],
            };
            for taint in list.iter().filter_map(Value::as_str) {
                let (value, effect) = taint.rsplit_once(':').unwrap_or(("", taint));
                group.taint(&key, value, effect);
            }
        }
    }
    if let Some(count) = settings.number("max-pods") {
        kubelet(group, "maxPods", json!(count));
    }
    for (from, to) in [
        ("kube-reserved", "kubeReserved"),
        ("system-reserved", "systemReserved"),
        ("eviction-hard", "evictionHard"),
    ] {
        let value = settings.take(from);
        if value.is_object() {
            kubelet(group, to, value);
        }
    }
}

/// The script without the lines that make a Windows node join, as EKS documents them.
fn without_windows_bootstrap(group: &mut Group, text: &str) -> String {
    let (call, rest): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|l| l.contains("EKSBootstrapScript") || l.contains("EKSBinDir"));
    let arguments = call.iter().filter_map(|line| {
        let (_, rest) = line.split_once("-KubeletExtraArgs")?;
        shell::arguments(rest.split(['"', '\'']).nth(1)?)
    });
    for words in arguments.collect::<Vec<_>>() {
        flags(group, &words, false);
    }
    rest.join("\n") + "\n"
}

/// The script between the tags: a node class takes it without them.
fn without_tags(text: &str) -> String {
    text.replace("<powershell>", "").replace("</powershell>", "").trim().to_owned() + "\n"
}
