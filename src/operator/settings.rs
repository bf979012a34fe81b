//! Settings: flags in Go's style over environment variables over defaults.
//!
//! A flag given on the command line wins over its environment variable, which wins over the
//! default. Environment values that cannot be read are ignored, as Karpenter does.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::api::duration::parse_go;

/// What the controller was told.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub metrics_port: u16,
    pub health_probe_port: u16,
    pub webhook_port: u16,
    /// Where the API server reaches the conversion webhook from outside the cluster.
    pub webhook_url: String,
    pub disable_leader_election: bool,
    pub leader_election_name: String,
    pub leader_election_namespace: String,
    pub cpu_requests: i64,
    pub log_level: String,
    pub batch_max_duration: Duration,
    pub batch_idle_duration: Duration,
    pub respect_preferences: bool,
    pub best_effort_min_values: bool,
    pub ignore_dra_requests: bool,
    pub gates: FeatureGates,
    pub cluster_ca_bundle: String,
    pub cluster_name: String,
    pub cluster_endpoint: String,
    pub isolated_vpc: bool,
    pub eks_control_plane: bool,
    pub vm_memory_overhead_percent: f64,
    pub interruption_queue: String,
    pub reserved_enis: i64,
    pub disable_dry_run: bool,
    pub ami_refresh_interval: Duration,
    pub subnet_refresh_interval: Duration,
}

/// Features that are not on for everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureGates {
    pub node_repair: bool,
    pub reserved_capacity: bool,
    pub spot_to_spot_consolidation: bool,
    pub node_overlay: bool,
    pub static_capacity: bool,
    pub capacity_buffer: bool,
}

impl Default for FeatureGates {
    fn default() -> Self {
        Self {
            node_repair: false,
            reserved_capacity: true,
            spot_to_spot_consolidation: false,
            node_overlay: false,
            static_capacity: false,
            capacity_buffer: false,
        }
    }
}

impl FeatureGates {
    fn parse(text: &str) -> Result<Self, SettingsError> {
        let mut gates = Self::default();
        for pair in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                SettingsError(format!(
                    "parsing feature gates, malformed pair, expect string=bool, got {pair:?}"
                ))
            })?;
            let on = parse_bool(value.trim()).ok_or_else(|| {
                SettingsError(format!(
                    "parsing feature gates, invalid value of {key}: {value}, expected true or false"
                ))
            })?;
            match key.trim() {
                "NodeRepair" => gates.node_repair = on,
                "ReservedCapacity" => gates.reserved_capacity = on,
                "SpotToSpotConsolidation" => gates.spot_to_spot_consolidation = on,
                "NodeOverlay" => gates.node_overlay = on,
                "StaticCapacity" => gates.static_capacity = on,
                "CapacityBuffer" => gates.capacity_buffer = on,
                _ => {}
            }
        }
        Ok(gates)
    }
}

/// A command line or environment that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(pub String);

#[derive(Clone, Copy, PartialEq)]
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

/// Every flag; its environment variable is the name in capitals with underscores.
const FLAGS: &[Flag] = &[
    flag("karpenter-service", Kind::Text, "", "accepted, without effect"),
    flag("metrics-port", Kind::Int, "8080", "port of the Prometheus endpoint"),
    flag("health-probe-port", Kind::Int, "8081", "port of /healthz and /readyz"),
    flag("webhook-port", Kind::Int, "8443", "port of the conversion webhook"),
    flag(
        "webhook-url",
        Kind::Text,
        "",
        "base URL under which the API server reaches the conversion webhook; empty means the Service",
    ),
    flag("kube-client-qps", Kind::Int, "200", "rate limit of the API client"),
    flag("kube-client-burst", Kind::Int, "300", "burst of the API client"),
    flag("enable-profiling", Kind::Bool, "false", "accepted, without effect"),
    flag("disable-controller-warmup", Kind::Bool, "true", "accepted, without effect"),
    flag("disable-leader-election", Kind::Bool, "false", "run without a Lease"),
    flag("disable-cluster-state-observability", Kind::Bool, "false", "publish no state metrics"),
    flag("leader-election-name", Kind::Text, "karpenter-leader-election", "name of the Lease"),
    flag(
        "leader-election-namespace",
        Kind::Text,
        "",
        "namespace of the Lease; empty means the pod's own",
    ),
    flag("memory-limit", Kind::Int, "-1", "accepted, without effect"),
    flag("cpu-requests", Kind::Int, "1000", "the container's cpu request in millicores"),
    flag("log-level", Kind::Text, "info", "debug, info or error"),
    flag("log-output-paths", Kind::Text, "stdout", "where logs go"),
    flag("log-error-output-paths", Kind::Text, "stderr", "where the logger's own errors go"),
    flag("batch-max-duration", Kind::Time, "10s", "longest time that pods are collected"),
    flag("batch-idle-duration", Kind::Time, "1s", "quiet time that ends a batch"),
    flag("preference-policy", Kind::Text, "Respect", "Respect or Ignore"),
    flag("min-values-policy", Kind::Text, "Strict", "Strict or BestEffort"),
    flag("ignore-dra-requests", Kind::Bool, "true", "leave pods with resource claims alone"),
    flag("feature-gates", Kind::Text, "", "Name=bool pairs, comma separated"),
    flag("scheduler-config", Kind::Text, "", "default topology spread constraints"),
    flag("cluster-ca-bundle", Kind::Text, "", "base64 CA of the API server for user data"),
    flag("cluster-name", Kind::Text, "", "name of the EKS cluster (required)"),
    flag(
        "cluster-endpoint",
        Kind::Text,
        "",
        "URL of the API server for nodes; found through EKS when empty",
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
    flag("aws-feature-gates", Kind::Text, "", "Name=bool pairs, comma separated"),
];

fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

fn valid(kind: Kind, text: &str) -> bool {
    match kind {
        Kind::Text => true,
        Kind::Int => text.parse::<i64>().is_ok(),
        Kind::Float => text.parse::<f64>().is_ok(),
        Kind::Bool => parse_bool(text).is_some(),
        Kind::Time => parse_go(text).is_ok(),
    }
}

/// The usage text.
#[must_use]
pub fn usage() -> String {
    let mut text =
        String::from("Settings of the controller (flag, environment variable, default):\n");
    for f in FLAGS {
        let default = if f.default.is_empty() { "\"\"" } else { f.default };
        text.push_str(&format!(
            "  --{}  ({}, {default})\n        {}\n",
            f.name,
            env_name(f.name),
            f.help
        ));
    }
    text
}

fn env_name(flag: &str) -> String {
    flag.to_uppercase().replace('-', "_")
}

impl Settings {
    /// Reads flags (without the program's name) over an environment.
    ///
    /// # Errors
    /// When a flag is unknown or its value unusable, or settings contradict each other.
    pub fn parse(
        args: &[String],
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, SettingsError> {
        let mut values: BTreeMap<&str, String> = BTreeMap::new();
        for f in FLAGS {
            let from_env = env(&env_name(f.name)).filter(|v| valid(f.kind, v));
            values.insert(f.name, from_env.unwrap_or_else(|| f.default.to_owned()));
        }
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            let Some(body) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
                break;
            };
            let (name, value) = body.split_once('=').map_or((body, None), |(n, v)| (n, Some(v)));
            let f = FLAGS.iter().find(|f| f.name == name).ok_or_else(|| {
                SettingsError(format!("parsing flags, flag provided but not defined: -{name}"))
            })?;
            let value = match (value, f.kind) {
                (Some(value), _) => value.to_owned(),
                (None, Kind::Bool) => "true".to_owned(),
                (None, _) => rest.next().cloned().ok_or_else(|| {
                    SettingsError(format!("parsing flags, flag needs an argument: -{name}"))
                })?,
            };
            if !valid(f.kind, &value) {
                return Err(SettingsError(format!(
                    "parsing flags, invalid value {value:?} for flag -{name}: {}",
                    f.help
                )));
            }
            values.insert(f.name, value);
        }
        let settings = Self::from_values(&values)?;
        settings.check()?;
        Ok(settings)
    }

    fn from_values(values: &BTreeMap<&str, String>) -> Result<Self, SettingsError> {
        let text = |name: &str| values.get(name).cloned().unwrap_or_default();
        let int = |name: &str| text(name).parse::<i64>().unwrap_or_default();
        let boolean = |name: &str| parse_bool(&text(name)).unwrap_or_default();
        let time = |name: &str| parse_go(&text(name)).unwrap_or_default();
        let port = |name: &str| u16::try_from(int(name)).unwrap_or_default();
        let one_of = |name: &str, yes: &str, no: &str| match text(name) {
            value if value == yes => Ok(true),
            value if value == no => Ok(false),
            value => Err(SettingsError(format!(
                "validating cli flags / env vars, invalid {} {value:?}, expected {yes} or {no}",
                env_name(name)
            ))),
        };
        let log_level = text("log-level");
        if !matches!(log_level.as_str(), "" | "debug" | "info" | "error") {
            return Err(SettingsError(format!(
                "validating cli flags / env vars, invalid LOG_LEVEL {log_level:?}, expected debug, info or error"
            )));
        }
        Ok(Self {
            metrics_port: port("metrics-port"),
            health_probe_port: port("health-probe-port"),
            webhook_port: port("webhook-port"),
            webhook_url: text("webhook-url"),
            disable_leader_election: boolean("disable-leader-election"),
            leader_election_name: text("leader-election-name"),
            leader_election_namespace: text("leader-election-namespace"),
            cpu_requests: Some(int("cpu-requests")).filter(|n| *n > 0).unwrap_or(1000),
            log_level,
            batch_max_duration: time("batch-max-duration"),
            batch_idle_duration: time("batch-idle-duration"),
            respect_preferences: one_of("preference-policy", "Respect", "Ignore")?,
            best_effort_min_values: !one_of("min-values-policy", "Strict", "BestEffort")?,
            ignore_dra_requests: boolean("ignore-dra-requests"),
            gates: FeatureGates::parse(&text("feature-gates"))?,
            cluster_ca_bundle: text("cluster-ca-bundle"),
            cluster_name: text("cluster-name"),
            cluster_endpoint: text("cluster-endpoint"),
            isolated_vpc: boolean("isolated-vpc"),
            eks_control_plane: boolean("eks-control-plane"),
            vm_memory_overhead_percent: text("vm-memory-overhead-percent").parse().unwrap_or(0.075),
            interruption_queue: text("interruption-queue"),
            reserved_enis: int("reserved-enis"),
            disable_dry_run: boolean("disable-dry-run"),
            ami_refresh_interval: time("ami-refresh-interval"),
            subnet_refresh_interval: time("subnet-refresh-interval"),
        })
    }

    fn check(&self) -> Result<(), SettingsError> {
        let minute = Duration::from_secs(60);
        let endpoint_ok = self.cluster_endpoint.is_empty()
            || self
                .cluster_endpoint
                .split_once("://")
                .is_some_and(|(scheme, host)| !scheme.is_empty() && !host.is_empty());
        let problems: Vec<&str> = [
            (self.cluster_name.is_empty(), "missing field, cluster-name"),
            (!endpoint_ok, "cluster endpoint URL is not valid"),
            (
                self.vm_memory_overhead_percent < 0.0,
                "vm-memory-overhead-percent cannot be negative",
            ),
            (self.reserved_enis < 0, "reserved-enis cannot be negative"),
            (self.ami_refresh_interval < minute, "ami-refresh-interval must be at least 1m"),
            (self.subnet_refresh_interval < minute, "subnet-refresh-interval must be at least 1m"),
        ]
        .into_iter()
        .filter(|(bad, _)| *bad)
        .map(|(_, text)| text)
        .collect();
        if problems.is_empty() {
            return Ok(());
        }
        Err(SettingsError(format!("validating options, {}", problems.join("; "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str], env: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        Settings::parse(&args, |name| {
            env.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned())
        })
    }

    #[test]
    fn flags_win_over_the_environment() {
        let env = [("CLUSTER_NAME", "e"), ("BATCH_IDLE_DURATION", "3s"), ("RESERVED_ENIS", "x")];
        let settings = parse(&["-cluster-name=f", "--disable-dry-run"], &env).unwrap();
        assert_eq!(settings.cluster_name, "f");
        assert!(settings.disable_dry_run);
        assert_eq!(settings.batch_idle_duration, Duration::from_secs(3));
        assert_eq!(settings.reserved_enis, 0);
        assert_eq!(parse(&["--cluster-name", "g"], &env).unwrap().cluster_name, "g");
    }

    #[test]
    fn nonsense_is_named() {
        let text = |args: &[&str]| parse(args, &[]).unwrap_err().to_string();
        assert_eq!(text(&[]), "validating options, missing field, cluster-name");
        assert!(text(&["--kubeconfig=x"]).contains("-kubeconfig"));
        assert!(text(&["--cluster-name=x", "--log-level=warn"]).contains("LOG_LEVEL"));
        assert!(text(&["--cluster-name=x", "--reserved-enis=y"]).contains("reserved-enis"));
        assert!(text(&["--cluster-name=x", "--feature-gates=A"]).contains("malformed pair"));
        assert!(text(&["--cluster-name=x", "--ami-refresh-interval=1s"]).contains("at least 1m"));
    }

    #[test]
    fn gates_left_out_keep_their_defaults() {
        let env = [("CLUSTER_NAME", "x"), ("FEATURE_GATES", "NodeRepair=true,Drift=true")];
        let gates = parse(&[], &env).unwrap().gates;
        assert!(gates.node_repair && gates.reserved_capacity && !gates.node_overlay);
    }
}
