//! The table of flags, and their syntax: that of Go's flag package, which users' manifests are written for.

use std::collections::BTreeMap;

use super::SettingsError;
use crate::api::duration::parse_go;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Int,
    Float,
    Bool,
    Time,
}

struct Flag {
    name: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
}

const fn flag(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Flag {
    Flag { name, kind, default, help }
}

/// Default of `--feature-gates`.
pub(super) const GATES: &str = "NodeRepair=false,ReservedCapacity=true,SpotToSpotConsolidation=false,NodeOverlay=false,StaticCapacity=false,CapacityBuffer=false";

/// Every flag; its environment variable is the name in capitals with underscores.
const FLAGS: &[Flag] = &[
    flag(
        "karpenter-service",
        Kind::Text,
        "",
        "name of the Service of the conversion webhook, karpenter when empty",
    ),
    flag("metrics-port", Kind::Int, "8080", "port of the Prometheus endpoint"),
    flag("health-probe-port", Kind::Int, "8081", "port of /healthz and /readyz"),
    flag("webhook-port", Kind::Int, "8443", "port of the conversion webhook, 0 for none"),
    flag(
        "webhook-url",
        Kind::Text,
        "",
        "base URL under which the API server reaches the conversion webhook, the Service when empty",
    ),
    flag("disable-webhook", Kind::Bool, "false", "serve no conversion webhook"),
    flag("kube-client-qps", Kind::Int, "200", "requests a second to the API server, on average"),
    flag("kube-client-burst", Kind::Int, "300", "requests at once to the API server"),
    flag("enable-profiling", Kind::Bool, "false", "accepted, without effect"),
    flag(
        "disable-controller-warmup",
        Kind::Bool,
        "true",
        "accepted, without effect: watches start before leadership",
    ),
    flag("disable-leader-election", Kind::Bool, "false", "run without a Lease"),
    flag(
        "disable-cluster-state-observability",
        Kind::Bool,
        "false",
        "publish no metrics and events of the state of pods, nodes and NodePools",
    ),
    flag("leader-election-name", Kind::Text, "karpenter-leader-election", "name of the Lease"),
    flag(
        "leader-election-namespace",
        Kind::Text,
        "",
        "namespace of the Lease, the pod's own when empty",
    ),
    flag("memory-limit", Kind::Int, "-1", "the container's memory limit in bytes"),
    flag("cpu-requests", Kind::Int, "1000", "the container's cpu request in millicores"),
    flag("log-level", Kind::Text, "info", "debug, info or error"),
    flag("log-output-paths", Kind::Text, "stdout", "where logs go: stdout, stderr, files"),
    flag(
        "log-error-output-paths",
        Kind::Text,
        "stderr",
        "where the logger's own errors go: stdout, stderr, files",
    ),
    flag("batch-max-duration", Kind::Time, "10s", "longest time that pods are collected"),
    flag("batch-idle-duration", Kind::Time, "1s", "quiet time that ends the collecting"),
    flag("preference-policy", Kind::Text, "Respect", "Respect or Ignore"),
    flag("min-values-policy", Kind::Text, "Strict", "Strict or BestEffort"),
    flag("ignore-dra-requests", Kind::Bool, "true", "schedule as if pods had no resource claims"),
    flag("feature-gates", Kind::Text, GATES, "Name=bool pairs, comma separated"),
    flag(
        "scheduler-config",
        Kind::Text,
        "",
        "YAML with default topology spread constraints, podTopologySpread.defaultConstraints",
    ),
    flag(
        "cluster-ca-bundle",
        Kind::Text,
        "",
        "base64 CA of the API server for user data, the controller's own when empty",
    ),
    flag("cluster-name", Kind::Text, "", "name of the EKS cluster, required"),
    flag(
        "cluster-endpoint",
        Kind::Text,
        "",
        "URL of the API server for nodes, asked from EKS when empty",
    ),
    flag("isolated-vpc", Kind::Bool, "false", "make no pricing API calls"),
    flag("eks-control-plane", Kind::Bool, "false", "read version and service CIDR from EKS"),
    flag(
        "vm-memory-overhead-percent",
        Kind::Float,
        "0.075",
        "share of memory that the hypervisor keeps",
    ),
    flag("interruption-queue", Kind::Text, "", "name of the SQS queue with interruption events"),
    flag("reserved-enis", Kind::Int, "0", "network interfaces that are not for pods"),
    flag("disable-dry-run", Kind::Bool, "false", "make no dry-run authorization checks"),
    flag(
        "enable-zonal-shift",
        Kind::Bool,
        "false",
        "avoid zones that a zonal shift moved away from",
    ),
    flag("ami-refresh-interval", Kind::Time, "1m", "how long found images are kept, at least 1m"),
    flag(
        "subnet-refresh-interval",
        Kind::Time,
        "1m",
        "how long found subnets are kept, at least 1m",
    ),
    flag("aws-feature-gates", Kind::Text, "NodeClassCEL=false", "Name=bool pairs, comma separated"),
    flag(
        "price-config-map",
        Kind::Text,
        "karpenter-prices",
        "ConfigMap that keeps the last known prices for a restart without a way to AWS, none when empty",
    ),
];

/// The values of all flags, each readable as its kind.
pub(super) struct Values(BTreeMap<&'static str, String>);

impl Values {
    /// Reads flags (without the program's name) over an environment over defaults.
    pub(super) fn read(
        args: &[String],
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, SettingsError> {
        let mut values = BTreeMap::new();
        for f in FLAGS {
            let from_env = env(&env_name(f.name)).filter(|v| f.kind.check_env(v));
            values.insert(f.name, from_env.unwrap_or_else(|| f.default.to_owned()));
        }
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            let Some((f, value)) = next_flag(arg, &mut rest)? else { break };
            if let Err(expected) = f.kind.check_flag(&value) {
                return Err(SettingsError::Flags(format!(
                    "invalid value {value:?} for flag -{}: {value:?} is not a valid value, must be {expected}",
                    f.name
                )));
            }
            values.insert(f.name, value);
        }
        Ok(Self(values))
    }

    pub(super) fn text(&self, name: &str) -> String {
        self.0.get(name).cloned().unwrap_or_default()
    }

    pub(super) fn int(&self, name: &str) -> i64 {
        parse_int(&self.text(name)).unwrap_or_default()
    }

    pub(super) fn float(&self, name: &str) -> f64 {
        self.text(name).parse().unwrap_or_default()
    }

    pub(super) fn boolean(&self, name: &str) -> bool {
        parse_bool(&self.text(name)).unwrap_or_default()
    }

    pub(super) fn time(&self, name: &str) -> std::time::Duration {
        parse_go(&self.text(name)).unwrap_or_default()
    }
}

/// The flag that `arg` names, with its value; `None` ends the flags.
fn next_flag<'a>(
    arg: &str,
    rest: &mut impl Iterator<Item = &'a String>,
) -> Result<Option<(&'static Flag, String)>, SettingsError> {
    if arg.len() < 2 || !arg.starts_with('-') || arg == "--" {
        return Ok(None);
    }
    let body = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).unwrap_or(arg);
    if body.starts_with(['-', '=']) {
        return Err(SettingsError::Flags(format!("bad flag syntax: {arg}")));
    }
    let (name, value) = body.split_once('=').map_or((body, None), |(n, v)| (n, Some(v)));
    let f = FLAGS
        .iter()
        .find(|f| f.name == name)
        .ok_or_else(|| SettingsError::Flags(format!("flag provided but not defined: -{name}")))?;
    let value = match (value, f.kind) {
        (Some(value), _) => value.to_owned(),
        (None, Kind::Bool) => "true".to_owned(),
        (None, _) => rest
            .next()
            .cloned()
            .ok_or_else(|| SettingsError::Flags(format!("flag needs an argument: -{name}")))?,
    };
    Ok(Some((f, value)))
}

impl Kind {
    /// True for a text that an environment variable may hold: decimal numbers, Go's many bools.
    fn check_env(self, text: &str) -> bool {
        match self {
            Self::Int => text.parse::<i64>().is_ok(),
            Self::Bool => parse_bool(text).is_some(),
            _ => self.check_flag(text).is_ok(),
        }
    }

    /// Checks a text that a flag may hold; the error says what is expected.
    fn check_flag(self, text: &str) -> Result<(), &'static str> {
        let (valid, expected) = match self {
            Self::Text => (true, "text"),
            Self::Int => (parse_int(text).is_some(), "an integer"),
            Self::Float => (text.parse::<f64>().is_ok(), "a number"),
            Self::Bool => (matches!(text, "true" | "false"), "true or false"),
            Self::Time => (parse_go(text).is_ok(), "a duration such as 10s or 1m30s"),
        };
        if valid { Ok(()) } else { Err(expected) }
    }
}

/// Go's integer literals: a sign, a base prefix, underscores between digits.
fn parse_int(text: &str) -> Option<i64> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => ("-", &text[1..]),
        b'+' => ("", &text[1..]),
        _ => ("", text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, body) = match lower.get(..2) {
        Some("0x") => (16, &lower[2..]),
        Some("0o") => (8, &lower[2..]),
        Some("0b") => (2, &lower[2..]),
        _ if lower.len() > 1 && lower.starts_with('0') => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    let misplaced = body.is_empty() || body.ends_with('_') || body.contains("__");
    if misplaced || (radix == 10 && body.starts_with('_')) {
        return None;
    }
    i64::from_str_radix(&format!("{sign}{}", body.replace('_', "")), radix).ok()
}

/// The words for truth and falsehood that Go knows.
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// The environment variable of a flag.
pub(super) fn env_name(flag: &str) -> String {
    flag.to_uppercase().replace('-', "_")
}

/// The usage text.
#[must_use]
pub fn usage() -> String {
    let mut text = String::from(
        "Settings of the controller: --flag=value over ENVIRONMENT_VARIABLE over default\n",
    );
    for f in FLAGS {
        let default = if f.default.is_empty() { "\"\"" } else { f.default };
        text.push_str(&format!(
            "  --{} ({})\n        {} (default {default})\n",
            f.name,
            env_name(f.name),
            f.help,
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_go_literals() {
        let good = [("0x1F", 31), ("1_000", 1000), ("-5", -5), ("0b11", 3), ("0o17", 15), ("0", 0)];
        for (text, value) in good {
            assert_eq!(parse_int(text), Some(value), "{text}");
        }
        for text in ["", "-", "1__0", "_1", "1_", "0x", "1.5", "x"] {
            assert_eq!(parse_int(text), None, "{text}");
        }
    }

    #[test]
    fn defaults_are_values_of_their_kind() {
        for f in FLAGS {
            assert_eq!(f.kind.check_flag(f.default), Ok(()), "{}", f.name);
        }
    }
}
