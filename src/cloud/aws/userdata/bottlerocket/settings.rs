//! Which of the user's own settings a node gets, and in which order they are written.

use std::collections::BTreeMap;

use toml::{Table, Value};

use crate::cloud::aws::userdata::UserDataError;

/// What a setting holds.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Integer,
    Boolean,
    Texts,
    Map,
    /// A table of tables with these fields.
    Named(&'static [(&'static str, Kind)]),
    Fields(&'static [(&'static str, Kind)]),
    /// More than one form is allowed.
    Any,
}

use Kind::{Any, Boolean, Fields, Integer, Map, Named, Text, Texts};

/// Settings of `settings.kubernetes`, in the order in which they are written.
const KUBERNETES: &[(&str, Kind)] = &[
    ("api-server", Text),
    ("cloud-provider", Text),
    ("cluster-certificate", Text),
    ("cluster-name", Text),
    ("cluster-dns-ip", Any),
    (
        "credential-providers",
        Named(&[
            ("enabled", Boolean),
            ("cache-duration", Text),
            ("image-patterns", Texts),
            ("environment", Map),
        ]),
    ),
    ("node-labels", Map),
    ("node-taints", Any),
    ("max-pods", Integer),
    ("static-pods", Named(&[("enabled", Boolean), ("manifest", Text)])),
    ("eviction-hard", Map),
    ("eviction-soft", Map),
    ("eviction-soft-grace-period", Map),
    ("eviction-max-pod-grace-period", Integer),
    ("kube-reserved", Map),
    ("system-reserved", Map),
    ("allowed-unsafe-sysctls", Texts),
    ("server-tls-bootstrap", Boolean),
    ("registry-qps", Integer),
    ("registry-burst", Integer),
    ("event-qps", Integer),
    ("event-burst", Integer),
    ("kube-api-qps", Integer),
    ("kube-api-burst", Integer),
    ("container-log-max-size", Text),
    ("container-log-max-files", Integer),
    ("cpu-manager-policy", Text),
    ("cpu-manager-policy-options", Texts),
    ("cpu-manager-reconcile-period", Text),
    ("memory-manager-policy", Text),
    (
        "memory-manager-reserved-memory",
        Named(&[
            ("enabled", Boolean),
            ("memory", Text),
            ("hugepages-2Mi", Text),
            ("hugepages-1Gi", Text),
        ]),
    ),
    ("topology-manager-scope", Text),
    ("topology-manager-policy", Text),
    (
        "topology-manager-policy-options",
        Fields(&[("prefer-closest-numa-nodes", Boolean), ("max-allowable-numa-nodes", Integer)]),
    ),
    ("image-gc-high-threshold-percent", Text),
    ("image-gc-low-threshold-percent", Text),
    ("ids-per-pod", Integer),
    ("cpu-cfs-quota-enforced", Boolean),
    ("shutdown-grace-period", Text),
    ("shutdown-grace-period-for-critical-pods", Text),
    ("cluster-domain", Text),
    ("seccomp-default", Boolean),
    ("pod-pids-limit", Integer),
    ("device-ownership-from-security-context", Boolean),
    ("single-process-oom-kill", Boolean),
    ("container-log-max-workers", Integer),
    ("container-log-monitor-interval", Text),
    ("hostname-override-source", Text),
    ("log-level", Any),
];

/// Settings of one of `settings.bootstrap-commands`.
const COMMAND: &[(&str, Kind)] = &[("commands", Any), ("mode", Text), ("essential", Boolean)];

/// The settings of Kubernetes that are passed on; others are logged and dropped.
pub(super) fn known(table: Table) -> Result<Table, UserDataError> {
    let unknown: Vec<&str> = table
        .keys()
        .map(String::as_str)
        .filter(|key| KUBERNETES.iter().all(|(name, _)| name != key))
        .collect();
    if !unknown.is_empty() {
        let reason = format!("settings.kubernetes has no {}", unknown.join(", "));
        tracing::error!("reason" = reason, "Unknown parameter in userData K8s settings");
    }
    fields(KUBERNETES, "settings.kubernetes", table)
}

/// Keys in `settings.kubernetes` that are not passed on.
pub(super) fn dropped_settings(at: &str, table: &Table, found: &mut Vec<String>) {
    unknown(KUBERNETES, at, table, found);
}

/// Keys in `settings.bootstrap-commands` that are not passed on.
pub(super) fn dropped_commands(at: &str, table: &Table, found: &mut Vec<String>) {
    for (name, command) in table {
        if let Value::Table(command) = command {
            unknown(COMMAND, &format!("{at}.{name}"), command, found);
        }
    }
}

fn unknown(known: &[(&str, Kind)], at: &str, table: &Table, found: &mut Vec<String>) {
    for (key, value) in table {
        let place = format!("{at}.{key}");
        match (known.iter().find(|(name, _)| name == key), value) {
            (None, _) => found.push(place),
            (Some((_, Fields(fields))), Value::Table(table)) => {
                unknown(fields, &place, table, found);
            }
            (Some((_, Named(fields))), Value::Table(tables)) => {
                for (name, table) in tables {
                    if let Value::Table(table) = table {
                        unknown(fields, &format!("{place}.{name}"), table, found);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The user's bootstrap commands.
pub(super) fn commands(table: Table) -> Result<Table, UserDataError> {
    named(COMMAND, "settings.bootstrap-commands", table)
}

/// Known keys in their order, empty ones left out, maps sorted.
pub(super) fn ordered(mut table: Table) -> Table {
    let mut result = Table::new();
    for (key, _) in KUBERNETES {
        let value = match table.remove(*key) {
            None => continue,
            Some(Value::Table(map)) if map.is_empty() => continue,
            Some(Value::Array(list)) if list.is_empty() => continue,
            Some(Value::String(text)) if text.is_empty() => continue,
            Some(Value::Table(map)) => Value::Table(sorted(map)),
            Some(other) => other,
        };
        result.insert((*key).to_owned(), value);
    }
    result
}

/// A table with its keys in order.
pub(super) fn sorted(table: Table) -> Table {
    let entries: BTreeMap<String, Value> = table.into_iter().collect();
    entries.into_iter().collect()
}

fn fields(known: &[(&str, Kind)], at: &str, mut table: Table) -> Result<Table, UserDataError> {
    let mut kept = Table::new();
    for (key, kind) in known {
        if let Some(value) = table.remove(*key) {
            kept.insert((*key).to_owned(), check(*kind, &format!("{at}.{key}"), value)?);
        }
    }
    Ok(kept)
}

fn named(
    known: &'static [(&'static str, Kind)],
    at: &str,
    table: Table,
) -> Result<Table, UserDataError> {
    table
        .into_iter()
        .map(|(key, value)| {
            let value = check(Fields(known), &format!("{at}.{key}"), value)?;
            Ok((key, value))
        })
        .collect()
}

fn check(kind: Kind, at: &str, value: Value) -> Result<Value, UserDataError> {
    let is_text = |v: &Value| v.is_str();
    let wrong = |expected: &str, value: &Value| {
        Err(UserDataError::Custom(format!(
            "invalid UserData, {at}: expected {expected}, found {}",
            value.type_str()
        )))
    };
    match (kind, value) {
        (Any, value) => Ok(value),
        (Text, value @ Value::String(_))
        | (Integer, value @ Value::Integer(_))
        | (Boolean, value @ Value::Boolean(_)) => Ok(value),
        (Texts, Value::Array(list)) if list.iter().all(is_text) => Ok(Value::Array(list)),
        (Map, Value::Table(map)) if map.values().all(is_text) => Ok(Value::Table(map)),
        (Named(known), Value::Table(table)) => named(known, at, table).map(Value::Table),
        (Fields(known), Value::Table(table)) => fields(known, at, table).map(Value::Table),
        (Text, value) => wrong("text", &value),
        (Integer, value) => wrong("an integer", &value),
        (Boolean, value) => wrong("true or false", &value),
        (Texts, value) => wrong("a list of texts", &value),
        (Map, value) => wrong("a table of texts", &value),
        (Named(_) | Fields(_), value) => wrong("a table", &value),
    }
}
