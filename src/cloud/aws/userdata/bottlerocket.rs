//! Bottlerocket: TOML settings, the user's merged with what the node needs.

use toml::{Table, Value};

use super::{Bootstrap, UserDataError, dns_ip, go_duration, kubelet_labels};
use crate::api::v1::EC2NodeClass;
use crate::cloud::aws::ami::AmiFamily;

mod settings;

/// The command that makes local disks one array.
const MOUNT: &str = "000-mount-instance-storage";
/// Directories that older releases do not bind by themselves.
const DIRECTORIES: [&str; 3] = ["/var/lib/containerd", "/var/lib/kubelet", "/var/log/pods"];
/// The first release that binds them.
const BINDS: (u32, u32) = (1, 46);

/// The settings; only what stands under `settings` survives.
pub(super) fn render(bootstrap: &Bootstrap) -> Result<String, UserDataError> {
    let mut document: Table = bootstrap
        .custom
        .parse()
        .map_err(|e| UserDataError::Custom(format!("invalid UserData, expected TOML: {e}")))?;
    let mut all = take_table(&mut document, "settings")?;
    let mut kubernetes = settings::known(take_table(&mut all, "kubernetes")?)?;
    apply_cluster(bootstrap, &mut kubernetes);
    apply_kubelet(bootstrap, &mut kubernetes);
    all.insert("kubernetes".into(), Value::Table(settings::ordered(kubernetes)));
    if all.contains_key("bootstrap-commands") || bootstrap.raid0 {
        let mut commands = settings::commands(take_table(&mut all, "bootstrap-commands")?)?;
        if bootstrap.raid0 {
            commands.insert(MOUNT.into(), Value::Table(mount(bootstrap.binds_by_itself)));
        }
        let commands = Value::Table(settings::sorted(commands));
        all.insert("bootstrap-commands".into(), commands);
    }
    let mut result = Table::new();
    result.insert("settings".into(), Value::Table(all));
    toml::to_string(&result).map_err(|e| UserDataError::Custom(e.to_string()))
}

/// Keys of the user's settings that are not passed on, each with its place.
pub(super) fn dropped(custom: &str) -> Vec<String> {
    let Ok(document) = custom.parse::<Table>() else { return Vec::new() };
    let others = document.keys().filter(|key| *key != "settings").cloned();
    let mut found: Vec<String> = others.collect();
    let settings = document.get("settings").and_then(Value::as_table);
    let part = |key: &str| settings.and_then(|s| s.get(key)).and_then(Value::as_table);
    if let Some(kubernetes) = part("kubernetes") {
        settings::dropped_settings("settings.kubernetes", kubernetes, &mut found);
    }
    if let Some(commands) = part("bootstrap-commands") {
        settings::dropped_commands("settings.bootstrap-commands", commands, &mut found);
    }
    found
}

/// Takes a table out of another; nothing is an empty table.
fn take_table(parent: &mut Table, key: &str) -> Result<Table, UserDataError> {
    match parent.remove(key) {
        Some(Value::Table(table)) => Ok(table),
        None => Ok(Table::new()),
        Some(other) => Err(UserDataError::Custom(format!(
            "invalid UserData, {key}: expected a table, found {}",
            other.type_str()
        ))),
    }
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

/// Where the cluster is, and what the node is called there.
fn apply_cluster(bootstrap: &Bootstrap, kubernetes: &mut Table) {
    kubernetes.insert("cluster-name".into(), text(&bootstrap.cluster_name));
    kubernetes.insert("api-server".into(), text(&bootstrap.cluster_endpoint));
    if bootstrap.ca_bundle.is_empty() {
        // The user's may belong to another cluster.
        kubernetes.remove("cluster-certificate");
    } else {
        kubernetes.insert("cluster-certificate".into(), text(&bootstrap.ca_bundle));
    }
    let mut labels = match kubernetes.remove("node-labels") {
        Some(Value::Table(labels)) => labels,
        _ => Table::new(),
    };
    for (key, value) in kubelet_labels(&bootstrap.labels) {
        labels.insert(key.to_owned(), text(value));
    }
    kubernetes.insert("node-labels".into(), Value::Table(labels));
    let mut taints = Table::new();
    for taint in &bootstrap.taints {
        let value = text(&format!("{}:{}", taint.value.as_deref().unwrap_or(""), taint.effect));
        match taints.get_mut(&taint.key) {
            Some(Value::Array(list)) => list.push(value),
            _ => {
                taints.insert(taint.key.clone(), Value::Array(vec![value]));
            }
        }
    }
    kubernetes.insert("node-taints".into(), Value::Table(taints));
}

/// The kubelet's settings; what they leave open stays as the user data has it.
fn apply_kubelet(bootstrap: &Bootstrap, kubernetes: &mut Table) {
    let kubelet = &bootstrap.kubelet;
    let number = |key: &str| kubelet.get(key).and_then(serde_json::Value::as_i64);
    if let Some(ip) = dns_ip(bootstrap) {
        kubernetes.insert("cluster-dns-ip".into(), text(ip));
    }
    for (ours, theirs) in
        [("maxPods", "max-pods"), ("evictionMaxPodGracePeriod", "eviction-max-pod-grace-period")]
    {
        if let Some(n) = number(ours) {
            kubernetes.insert(theirs.into(), Value::Integer(n));
        }
    }
    for (ours, theirs) in [
        ("imageGCHighThresholdPercent", "image-gc-high-threshold-percent"),
        ("imageGCLowThresholdPercent", "image-gc-low-threshold-percent"),
    ] {
        if let Some(n) = number(ours) {
            // Bottlerocket's API takes these two as text.
            kubernetes.insert(theirs.into(), Value::String(n.to_string()));
        }
    }
    if let Some(on) = kubelet.get("cpuCFSQuota").and_then(serde_json::Value::as_bool) {
        kubernetes.insert("cpu-cfs-quota-enforced".into(), Value::Boolean(on));
    }
    for (ours, theirs) in [
        ("systemReserved", "system-reserved"),
        ("kubeReserved", "kube-reserved"),
        ("evictionHard", "eviction-hard"),
        ("evictionSoft", "eviction-soft"),
        ("evictionSoftGracePeriod", "eviction-soft-grace-period"),
    ] {
        let Some(map) = kubelet.get(ours).and_then(serde_json::Value::as_object) else { continue };
        let shown = |value| {
            if ours == "evictionSoftGracePeriod" {
                go_duration(value)
            } else {
                super::scalar(value)
            }
        };
        let table: Table = map.iter().map(|(k, v)| (k.clone(), Value::String(shown(v)))).collect();
        kubernetes.insert(theirs.into(), Value::Table(table));
    }
}

/// The command that mounts local disks before the kubelet starts.
fn mount(binds_by_itself: bool) -> Table {
    let command = |words: &[&str]| Value::Array(words.iter().map(|w| text(w)).collect());
    let mut bind = vec!["apiclient", "ephemeral-storage", "bind"];
    if !binds_by_itself {
        bind.push("--dirs");
        bind.extend(DIRECTORIES);
    }
    let commands = vec![command(&["apiclient", "ephemeral-storage", "init"]), command(&bind)];
    let mut mount = Table::new();
    mount.insert("commands".into(), Value::Array(commands));
    mount.insert("mode".into(), text("always"));
    mount.insert("essential".into(), Value::Boolean(true));
    mount
}

/// True when the images of a class are known to bind their directories without a list of them.
#[must_use]
pub fn binds_by_itself(class: &EC2NodeClass) -> bool {
    let Some(version) = version(class) else { return false };
    if version == "latest" {
        return true;
    }
    let mut parts = version.trim_start_matches('v').split('.').map(str::parse::<u32>);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor)), Some(_)) => (major, minor) >= BINDS,
        _ => false,
    }
}

/// The release of the images, as far as the selectors or the names of the images show it.
fn version(class: &EC2NodeClass) -> Option<String> {
    let terms = &class.spec.ami_selector_terms;
    let alias = terms.iter().find_map(|t| {
        let (family, version) = t.alias.as_deref()?.split_once('@')?;
        (AmiFamily::parse(family) == Some(AmiFamily::Bottlerocket)).then(|| version.to_owned())
    });
    let amis = class.status.as_ref().map(|s| s.amis.as_slice()).unwrap_or_default();
    let of_status = |only_of_terms: bool| {
        amis.iter()
            .filter(|a| !only_of_terms || terms.iter().any(|t| t.id.as_ref() == Some(&a.id)))
            .filter_map(|a| a.name.as_deref())
            .filter(|name| name.contains("bottlerocket"))
            .find_map(version_in)
    };
    alias
        .or_else(|| terms.iter().filter_map(|t| t.name.as_deref()).find_map(version_in))
        .or_else(|| of_status(true))
        .or_else(|| of_status(false))
}

/// The version within a name such as `bottlerocket-aws-k8s-1.33-x86_64-v1.46.0-1234abcd`.
fn version_in(name: &str) -> Option<String> {
    name.split('-').find(|part| part.starts_with('v') && part.contains('.')).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn releases_are_recognized_by_alias_or_name() {
        let class = |terms: serde_json::Value, amis: serde_json::Value| {
            let spec = json!({"amiFamily": "Bottlerocket", "amiSelectorTerms": terms});
            let mut class = EC2NodeClass::new("c", serde_json::from_value(spec).unwrap());
            class.status = Some(serde_json::from_value(json!({"amis": amis})).unwrap());
            class
        };
        let ami = |id: &str, name: &str| json!({"id": id, "name": name, "requirements": []});
        let named = "bottlerocket-aws-k8s-1.33-x86_64-v1.46.0-11aa22bb";
        let older = "bottlerocket-aws-k8s-1.33-x86_64-v1.45.9-11aa22bb";
        for (want, terms, amis) in [
            (true, json!([{"alias": "bottlerocket@latest"}]), json!([])),
            (true, json!([{"alias": "bottlerocket@v1.46.0"}]), json!([])),
            (true, json!([{"alias": "bottlerocket@2.0.0"}]), json!([])),
            (false, json!([{"alias": "bottlerocket@1.45.3"}]), json!([])),
            (true, json!([{"name": named}]), json!([])),
            (false, json!([{"name": older}]), json!([ami("ami-1", named)])),
            (true, json!([{"id": "ami-1"}]), json!([ami("ami-0", older), ami("ami-1", named)])),
            (false, json!([{"id": "ami-0"}]), json!([ami("ami-0", older), ami("ami-1", named)])),
            (true, json!([{"tags": {"a": "b"}}]), json!([ami("ami-1", named)])),
            (false, json!([{"tags": {"a": "b"}}]), json!([ami("ami-1", "other-v1.50.0")])),
            (false, json!([{"name": "bottlerocket-v1.50"}]), json!([])),
            (false, json!([]), json!([])),
        ] {
            assert_eq!(binds_by_itself(&class(terms.clone(), amis)), want, "{terms}");
        }
    }
}
