//! Bottlerocket: TOML settings, the user's merged with what the node needs.

use toml::{Table, Value};

use super::{Bootstrap, UserDataError, dns_ip, kubelet_labels};

/// The settings; only what stands under `settings` survives.
pub(super) fn render(bootstrap: &Bootstrap) -> Result<String, UserDataError> {
    let mut document: Table = bootstrap
        .custom
        .parse()
        .map_err(|e| UserDataError::Custom(format!("invalid UserData, expected TOML: {e}")))?;
    let mut settings = take_table(&mut document, "settings");
    let mut kubernetes = take_table(&mut settings, "kubernetes");
    let text = |t: &str| Value::String(t.to_owned());
    kubernetes.insert("cluster-name".into(), text(&bootstrap.cluster_name));
    kubernetes.insert("api-server".into(), text(&bootstrap.cluster_endpoint));
    if !bootstrap.ca_bundle.is_empty() {
        kubernetes.insert("cluster-certificate".into(), text(&bootstrap.ca_bundle));
    }
    let mut labels = take_table(&mut kubernetes, "node-labels");
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
    apply_kubelet(bootstrap, &mut kubernetes);
    settings.insert("kubernetes".into(), Value::Table(kubernetes));
    if bootstrap.raid0 {
        add_raid0(&mut settings);
    }
    let mut result = Table::new();
    result.insert("settings".into(), Value::Table(settings));
    toml::to_string(&result).map_err(|e| UserDataError::Custom(e.to_string()))
}

fn take_table(parent: &mut Table, key: &str) -> Table {
    match parent.remove(key) {
        Some(Value::Table(table)) => table,
        _ => Table::new(),
    }
}

fn apply_kubelet(bootstrap: &Bootstrap, kubernetes: &mut Table) {
    let kubelet = &bootstrap.kubelet;
    if let Some(ip) = dns_ip(bootstrap) {
        kubernetes.insert("cluster-dns-ip".into(), Value::String(ip.to_owned()));
    }
    for (ours, theirs) in
        [("maxPods", "max-pods"), ("evictionMaxPodGracePeriod", "eviction-max-pod-grace-period")]
    {
        if let Some(n) = kubelet.get(ours).and_then(serde_json::Value::as_i64) {
            kubernetes.insert(theirs.into(), Value::Integer(n));
        }
    }
    for (ours, theirs) in [
        ("imageGCHighThresholdPercent", "image-gc-high-threshold-percent"),
        ("imageGCLowThresholdPercent", "image-gc-low-threshold-percent"),
    ] {
        if let Some(n) = kubelet.get(ours).and_then(serde_json::Value::as_i64) {
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
        if let Some(map) = kubelet.get(ours).and_then(serde_json::Value::as_object) {
            let table: Table =
                map.iter().map(|(k, v)| (k.clone(), Value::String(super::scalar(v)))).collect();
            kubernetes.insert(theirs.into(), Value::Table(table));
        }
    }
}

fn add_raid0(settings: &mut Table) {
    let command = |words: &[&str]| {
        Value::Array(words.iter().map(|w| Value::String((*w).to_owned())).collect())
    };
    let mut commands = take_table(settings, "bootstrap-commands");
    let mut mount = Table::new();
    mount.insert(
        "commands".into(),
        Value::Array(vec![
            command(&["apiclient", "ephemeral-storage", "init"]),
            command(&[
                "apiclient",
                "ephemeral-storage",
                "bind",
                "--dirs",
                "/var/lib/containerd",
                "/var/lib/kubelet",
                "/var/log/pods",
            ]),
        ]),
    );
    mount.insert("mode".into(), Value::String("always".into()));
    mount.insert("essential".into(), Value::Boolean(true));
    commands.insert("000-mount-instance-storage".into(), Value::Table(mount));
    settings.insert("bootstrap-commands".into(), Value::Table(commands));
}
