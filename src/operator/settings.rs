//! Settings: flags in Go's style over environment variables over defaults.
//!
//! A flag given on the command line wins over its environment variable, which wins over the
//! default. Environment values that cannot be read are ignored, as Karpenter does; an empty one
//! counts where text is expected.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::http::Uri;

use super::metrics::{self, Level, Release};
use crate::api::scheduler_config::SchedulerConfig;

mod flags;
mod gates;

use flags::Values;
pub use flags::{chart_values, reference, unknown_variables, usage};
pub use gates::{AwsFeatureGates, FeatureGates};

/// The controller's settings, from flags and environment variables.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Name of the Service of the conversion webhook.
    pub karpenter_service: String,
    /// Port of `/metrics`; 0 for none.
    pub metrics_port: u16,
    /// Which metrics are served.
    pub metrics: metrics::Options,
    /// Port of `/healthz` and `/readyz`; 0 for none.
    pub health_probe_port: u16,
    /// Port of the conversion webhook; 0 for none.
    pub webhook_port: u16,
    /// Where the API server reaches the conversion webhook from outside the cluster.
    pub webhook_url: String,
    /// Requests a second to the API server, on average.
    pub kube_client_qps: u32,
    /// Requests at once to the API server.
    pub kube_client_burst: u32,
    /// Serve CPU and heap profiles.
    pub enable_profiling: bool,
    /// Base URL of a collector for traces; empty means none.
    pub otlp_endpoint: String,
    /// Run without a Lease.
    pub disable_leader_election: bool,
    /// Publish no metrics and events of the state of pods, nodes and NodePools.
    pub disable_cluster_state_observability: bool,
    /// Name of the Lease.
    pub leader_election_name: String,
    /// Namespace of the Lease; empty means the pod's own.
    pub leader_election_namespace: String,
    /// The container's memory limit in bytes, when there is one.
    pub memory_limit: Option<u64>,
    /// The container's cpu request in millicores.
    pub cpu_requests: i64,
    /// `debug`, `info`, `error` or empty, which means `info`.
    pub log_level: String,
    /// Where logs go, comma separated.
    pub log_output_paths: String,
    /// Where the logger's own errors go, comma separated.
    pub log_error_output_paths: String,
    /// Longest time that pending pods are collected.
    pub batch_max_duration: Duration,
    /// Quiet time that ends the collecting.
    pub batch_idle_duration: Duration,
    /// Preferences of pods count.
    pub respect_preferences: bool,
    /// `minValues` may be relaxed.
    pub best_effort_min_values: bool,
    /// Pods are scheduled as if they had no resource claims.
    pub ignore_dra_requests: bool,
    /// Features that can be switched.
    pub gates: FeatureGates,
    /// Unhealthy nodes are repaired as Karpenter 1.14 does it.
    pub legacy_node_repair: bool,
    /// Spread constraints for pods without any.
    pub scheduler_config: SchedulerConfig,
    /// Base64 CA of the API server for user data; empty means the controller's own.
    pub cluster_ca_bundle: String,
    /// Name of the EKS cluster.
    pub cluster_name: String,
    /// URL of the API server for nodes; empty means that EKS is asked.
    pub cluster_endpoint: String,
    /// No pricing API calls.
    pub isolated_vpc: bool,
    /// Version and service CIDR come from EKS.
    pub eks_control_plane: bool,
    /// Share of memory that the hypervisor keeps.
    pub vm_memory_overhead_percent: f64,
    /// Where the read-only API of the fleet listens; port 0 for nowhere.
    pub api_address: SocketAddr,
    /// Name of the SQS queue with interruption events; empty means none.
    pub interruption_queue: String,
    /// Network interfaces that are not for pods.
    pub reserved_enis: i64,
    /// No dry-run authorization checks.
    pub disable_dry_run: bool,
    /// Avoid zones that a zonal shift moved away from.
    pub enable_zonal_shift: bool,
    /// How long found images are kept.
    pub ami_refresh_interval: Duration,
    /// How long found subnets are kept.
    pub subnet_refresh_interval: Duration,
    /// How long found security groups are kept.
    pub security_group_refresh_interval: Duration,
    /// New nodes are given no more volumes than EC2 says their type can attach.
    pub instance_type_volume_limits: bool,
    /// ConfigMap that keeps the last known prices; empty keeps none.
    pub price_config_map: String,
    /// Serve what nodes cost and what was saved.
    pub cost_metrics: bool,
    /// ConfigMap that keeps what was saved; empty keeps nothing.
    pub savings_config_map: String,
    /// Features of the EC2 provider that can be switched.
    pub aws_gates: AwsFeatureGates,
    /// What to log of names that no setting and no gate has.
    pub unknown: Vec<String>,
}

/// A command line or environment that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// A flag is unknown or holds no value of its kind.
    #[error("parsing flags, {0}")]
    Flags(String),
    /// Values that cannot be used.
    #[error("{0}")]
    Invalid(String),
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
        let settings = Self::from_values(&Values::read(args, env)?)?;
        settings.check()?;
        Ok(settings)
    }

    fn from_values(values: &Values) -> Result<Self, SettingsError> {
        let text = |name| values.text(name);
        let (gates, unknown_gates) = FeatureGates::parse(&text("feature-gates"))?;
        let (aws_gates, unknown_aws) = AwsFeatureGates::parse(&text("aws-feature-gates"))?;
        let gate = |name: &String| format!("feature gate {name} is not known and has no effect");
        let mut unknown: Vec<String> =
            values.unknown.iter().map(|name| flags::unknown_flag(name)).collect();
        unknown.extend(unknown_gates.iter().chain(&unknown_aws).map(gate));
        let log_level = choice(values, "log-level", &["debug", "info", "error", ""])?;
        let preference = choice(values, "preference-policy", &["Respect", "Ignore"])?;
        let min_values = choice(values, "min-values-policy", &["Strict", "BestEffort"])?;
        let webhook_port = port(values, "webhook-port")?;
        Ok(Self {
            karpenter_service: Some(text("karpenter-service"))
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| "karpenter".to_owned()),
            metrics_port: port(values, "metrics-port")?,
            metrics: metrics_options(values)?,
            health_probe_port: port(values, "health-probe-port")?,
            webhook_port: if values.boolean("disable-webhook") { 0 } else { webhook_port },
            webhook_url: text("webhook-url"),
            kube_client_qps: positive(values, "kube-client-qps", 200),
            kube_client_burst: positive(values, "kube-client-burst", 300),
            enable_profiling: values.boolean("enable-profiling"),
            otlp_endpoint: text("otlp-endpoint"),
            disable_leader_election: values.boolean("disable-leader-election"),
            disable_cluster_state_observability: values
                .boolean("disable-cluster-state-observability"),
            leader_election_name: text("leader-election-name"),
            leader_election_namespace: text("leader-election-namespace"),
            memory_limit: u64::try_from(values.int("memory-limit")).ok().filter(|n| *n > 0),
            cpu_requests: positive(values, "cpu-requests", 1000).into(),
            log_level,
            log_output_paths: text("log-output-paths"),
            log_error_output_paths: text("log-error-output-paths"),
            batch_max_duration: values.time("batch-max-duration"),
            batch_idle_duration: values.time("batch-idle-duration"),
            respect_preferences: preference == "Respect",
            best_effort_min_values: min_values == "BestEffort",
            // A gate that makes devices known would do nothing while the requests for them are
            // ignored.
            ignore_dra_requests: values.boolean("ignore-dra-requests")
                && !aws_gates.dynamic_resources(),
            gates,
            legacy_node_repair: values.boolean("legacy-node-repair"),
            scheduler_config: SchedulerConfig::parse(&text("scheduler-config"))
                .map_err(|e| SettingsError::Invalid(format!("parsing scheduler config, {e}")))?,
            cluster_ca_bundle: text("cluster-ca-bundle"),
            cluster_name: text("cluster-name"),
            cluster_endpoint: text("cluster-endpoint"),
            isolated_vpc: values.boolean("isolated-vpc"),
            eks_control_plane: values.boolean("eks-control-plane"),
            vm_memory_overhead_percent: values.float("vm-memory-overhead-percent"),
            api_address: SocketAddr::new(
                address(values, "api-address")?,
                port(values, "api-port")?,
            ),
            interruption_queue: text("interruption-queue"),
            reserved_enis: values.int("reserved-enis"),
            disable_dry_run: values.boolean("disable-dry-run"),
            enable_zonal_shift: values.boolean("enable-zonal-shift"),
            ami_refresh_interval: values.time("ami-refresh-interval"),
            subnet_refresh_interval: values.time("subnet-refresh-interval"),
            security_group_refresh_interval: values.time("security-group-refresh-interval"),
            instance_type_volume_limits: values.boolean("instance-type-volume-limits"),
            cost_metrics: values.boolean("cost-metrics"),
            savings_config_map: text("savings-config-map"),
            price_config_map: text("price-config-map"),
            aws_gates,
            unknown,
        })
    }

    /// All that is wrong, in one error.
    fn check(&self) -> Result<(), SettingsError> {
        let minute = Duration::from_secs(60);
        let endpoint = &self.cluster_endpoint;
        let endpoint_ok = endpoint.is_empty() || is_url(endpoint);
        // All at once, so that one start shows every problem.
        let problems: Vec<String> = [
            (
                !endpoint_ok,
                format!("cluster endpoint URL is not valid (cluster-endpoint={endpoint})"),
            ),
            (
                !is_http(&self.otlp_endpoint),
                format!(
                    "otlp-endpoint {:?} is no base URL, expected one such as http://collector:4318",
                    self.otlp_endpoint
                ),
            ),
            (
                self.vm_memory_overhead_percent < 0.0,
                "vm-memory-overhead-percent cannot be negative".to_owned(),
            ),
            (
                self.vm_memory_overhead_percent.is_nan() || self.vm_memory_overhead_percent >= 1.0,
                "vm-memory-overhead-percent must be less than 1, as it is a share".to_owned(),
            ),
            (self.reserved_enis < 0, "reserved-enis cannot be negative".to_owned()),
            (self.cluster_name.is_empty(), "missing field, cluster-name".to_owned()),
            (
                self.ami_refresh_interval < minute,
                "ami-refresh-interval must be at least 1m".to_owned(),
            ),
            (
                self.subnet_refresh_interval < minute,
                "subnet-refresh-interval must be at least 1m".to_owned(),
            ),
            (
                self.security_group_refresh_interval < minute,
                "security-group-refresh-interval must be at least 1m".to_owned(),
            ),
        ]
        .into_iter()
        .filter(|(bad, _)| *bad)
        .map(|(_, text)| text)
        .collect();
        if problems.is_empty() {
            return Ok(());
        }
        Err(SettingsError::Invalid(format!("validating options, {}", problems.join("; "))))
    }

    /// Workers of a controller that scales between two bounds with the cpu request: all of them
    /// from 60 cores on.
    #[must_use]
    pub fn workers(&self, min: usize, max: usize) -> usize {
        let cores = usize::try_from((self.cpu_requests + 999) / 1000).unwrap_or(1).max(1);
        // Karpenter's formula: linear between 1 core (`min`) and 60 cores (`max`).
        (max.saturating_sub(min) * (cores - 1) / 59 + min).clamp(min, max)
    }
}

/// An absolute URL with a host.
fn is_url(text: &str) -> bool {
    text.parse::<Uri>()
        .is_ok_and(|uri| uri.scheme().is_some() && uri.host().is_some_and(|host| !host.is_empty()))
}

/// Nothing, or a URL that HTTP can reach.
fn is_http(text: &str) -> bool {
    let known = text.starts_with("http://") || text.starts_with("https://");
    text.is_empty() || (known && is_url(text) && !text.contains(['?', '#']))
}

fn choice(values: &Values, name: &str, allowed: &[&str]) -> Result<String, SettingsError> {
    let value = values.text(name);
    if allowed.contains(&value.as_str()) {
        return Ok(value);
    }
    let named: Vec<&str> = allowed.iter().copied().filter(|a| !a.is_empty()).collect();
    Err(SettingsError::Invalid(format!(
        "validating cli flags / env vars, invalid {} {value:?}, expected {}",
        flags::env_name(name),
        named.join(" or ")
    )))
}

fn metrics_options(values: &Values) -> Result<metrics::Options, SettingsError> {
    let level = choice(values, "metrics-level", Level::WORDS)?;
    let release = choice(values, "metrics-compat", Release::WORDS)?;
    let drop = values.text("metrics-drop");
    let names = drop.split([',', ' ']).filter(|name| !name.is_empty());
    Ok(metrics::Options {
        level: Level::parse(&level).unwrap_or_default(),
        drop: names.map(str::to_owned).collect(),
        release: Release::parse(&release).unwrap_or_default(),
    })
}

fn address(values: &Values, name: &str) -> Result<IpAddr, SettingsError> {
    let value = values.text(name);
    value.parse().map_err(|_| {
        SettingsError::Invalid(format!(
            "validating cli flags / env vars, invalid {} {value:?}, expected an IP address",
            flags::env_name(name)
        ))
    })
}

fn port(values: &Values, name: &str) -> Result<u16, SettingsError> {
    let value = values.int(name);
    u16::try_from(value).map_err(|_| {
        SettingsError::Invalid(format!(
            "validating cli flags / env vars, invalid {} {value}, expected 0 to 65535",
            flags::env_name(name)
        ))
    })
}

fn positive(values: &Values, name: &str, otherwise: u32) -> u32 {
    u32::try_from(values.int(name)).ok().filter(|n| *n > 0).unwrap_or(otherwise)
}

#[cfg(test)]
mod tests;
