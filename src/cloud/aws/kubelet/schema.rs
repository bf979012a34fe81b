//! The fields of `KubeletConfiguration`, version `kubelet.config.k8s.io/v1beta1` of Kubernetes 1.36.

use serde_json::{Map, Value};

use crate::api::duration::parse_go;

/// What a field holds.
#[derive(Clone, Copy)]
enum Kind {
    Bool,
    Int32,
    Int64,
    Float,
    Text,
    Duration,
    List(&'static Kind),
    Map(&'static Kind),
    Object(&'static [(&'static str, Kind)]),
    /// Not looked into.
    Any,
}

use Kind::{Any, Bool, Duration, Float, Int32, Int64, List, Object, Text};

const FIELDS: &[(&str, Kind)] = &[
    ("kind", Text),
    ("apiVersion", Text),
    ("enableServer", Bool),
    ("staticPodPath", Text),
    ("podLogsDir", Text),
    ("syncFrequency", Duration),
    ("fileCheckFrequency", Duration),
    ("httpCheckFrequency", Duration),
    ("staticPodURL", Text),
    ("staticPodURLHeader", Kind::Map(&List(&Text))),
    ("address", Text),
    ("port", Int32),
    ("readOnlyPort", Int32),
    ("tlsCertFile", Text),
    ("tlsPrivateKeyFile", Text),
    ("tlsCipherSuites", List(&Text)),
    ("tlsMinVersion", Text),
    ("rotateCertificates", Bool),
    ("serverTLSBootstrap", Bool),
    ("authentication", AUTHENTICATION),
    ("authorization", AUTHORIZATION),
    ("registryPullQPS", Int32),
    ("registryBurst", Int32),
    ("imagePullCredentialsVerificationPolicy", Text),
    ("preloadedImagesVerificationAllowlist", List(&Text)),
    ("eventRecordQPS", Int32),
    ("eventBurst", Int32),
    ("enableDebuggingHandlers", Bool),
    ("enableContentionProfiling", Bool),
    ("healthzPort", Int32),
    ("healthzBindAddress", Text),
    ("oomScoreAdj", Int32),
    ("clusterDomain", Text),
    ("clusterDNS", List(&Text)),
    ("streamingConnectionIdleTimeout", Duration),
    ("nodeStatusUpdateFrequency", Duration),
    ("nodeStatusReportFrequency", Duration),
    ("nodeLeaseDurationSeconds", Int32),
    ("imageMinimumGCAge", Duration),
    ("imageMaximumGCAge", Duration),
    ("imageGCHighThresholdPercent", Int32),
    ("imageGCLowThresholdPercent", Int32),
    ("volumeStatsAggPeriod", Duration),
    ("kubeletCgroups", Text),
    ("systemCgroups", Text),
    ("cgroupRoot", Text),
    ("cgroupsPerQOS", Bool),
    ("cgroupDriver", Text),
    ("cpuManagerPolicy", Text),
    ("singleProcessOOMKill", Bool),
    ("cpuManagerPolicyOptions", Kind::Map(&Text)),
    ("cpuManagerReconcilePeriod", Duration),
    ("memoryManagerPolicy", Text),
    ("topologyManagerPolicy", Text),
    ("topologyManagerScope", Text),
    ("topologyManagerPolicyOptions", Kind::Map(&Text)),
    ("qosReserved", Kind::Map(&Text)),
    ("runtimeRequestTimeout", Duration),
    ("hairpinMode", Text),
    ("maxPods", Int32),
    ("podCIDR", Text),
    ("podPidsLimit", Int64),
    ("resolvConf", Text),
    ("runOnce", Bool),
    ("cpuCFSQuota", Bool),
    ("cpuCFSQuotaPeriod", Duration),
    ("nodeStatusMaxImages", Int32),
    ("maxOpenFiles", Int64),
    ("contentType", Text),
    ("kubeAPIQPS", Int32),
    ("kubeAPIBurst", Int32),
    ("serializeImagePulls", Bool),
    ("maxParallelImagePulls", Int32),
    ("evictionHard", Kind::Map(&Text)),
    ("evictionSoft", Kind::Map(&Text)),
    ("evictionSoftGracePeriod", Kind::Map(&Text)),
    ("evictionPressureTransitionPeriod", Duration),
    ("evictionMaxPodGracePeriod", Int32),
    ("evictionMinimumReclaim", Kind::Map(&Text)),
    ("mergeDefaultEvictionSettings", Bool),
    ("podsPerCore", Int32),
    ("enableControllerAttachDetach", Bool),
    ("protectKernelDefaults", Bool),
    ("makeIPTablesUtilChains", Bool),
    ("iptablesMasqueradeBit", Int32),
    ("iptablesDropBit", Int32),
    ("featureGates", Kind::Map(&Bool)),
    ("failSwapOn", Bool),
    ("memorySwap", Object(&[("swapBehavior", Text)])),
    ("containerLogMaxSize", Text),
    ("containerLogMaxFiles", Int32),
    ("containerLogMaxWorkers", Int32),
    ("containerLogMonitorInterval", Duration),
    ("configMapAndSecretChangeDetectionStrategy", Text),
    ("systemReserved", Kind::Map(&Text)),
    ("kubeReserved", Kind::Map(&Text)),
    ("reservedSystemCPUs", Text),
    ("showHiddenMetricsForVersion", Text),
    ("systemReservedCgroup", Text),
    ("kubeReservedCgroup", Text),
    ("enforceNodeAllocatable", List(&Text)),
    ("allowedUnsafeSysctls", List(&Text)),
    ("volumePluginDir", Text),
    ("providerID", Text),
    ("kernelMemcgNotification", Bool),
    ("logging", LOGGING),
    ("enableSystemLogHandler", Bool),
    ("enableSystemLogQuery", Bool),
    ("shutdownGracePeriod", Duration),
    ("shutdownGracePeriodCriticalPods", Duration),
    (
        "shutdownGracePeriodByPodPriority",
        List(&Object(&[("priority", Int32), ("shutdownGracePeriodSeconds", Int64)])),
    ),
    ("crashLoopBackOff", Object(&[("maxContainerRestartPeriod", Duration)])),
    ("reservedMemory", List(&Object(&[("numaNode", Int32), ("limits", Kind::Map(&Any))]))),
    ("enableProfilingHandler", Bool),
    ("enableDebugFlagsHandler", Bool),
    ("seccompDefault", Bool),
    ("memoryThrottlingFactor", Float),
    ("memoryReservationPolicy", Text),
    ("registerWithTaints", List(&Any)),
    ("registerNode", Bool),
    ("tracing", Object(&[("endpoint", Text), ("samplingRatePerMillion", Int32)])),
    ("localStorageCapacityIsolation", Bool),
    ("containerRuntimeEndpoint", Text),
    ("imageServiceEndpoint", Text),
    ("failCgroupV1", Bool),
    ("userNamespaces", Object(&[("idsPerPod", Int64)])),
];

const AUTHENTICATION: Kind = Object(&[
    ("x509", Object(&[("clientCAFile", Text)])),
    ("webhook", Object(&[("enabled", Bool), ("cacheTTL", Duration)])),
    ("anonymous", Object(&[("enabled", Bool)])),
]);

const AUTHORIZATION: Kind = Object(&[
    ("mode", Text),
    ("webhook", Object(&[("cacheAuthorizedTTL", Duration), ("cacheUnauthorizedTTL", Duration)])),
]);

const LOGGING: Kind = Object(&[
    ("format", Text),
    ("flushFrequency", Any),
    ("verbosity", Int64),
    ("vmodule", List(&Object(&[("filePattern", Text), ("verbosity", Int64)]))),
    (
        "options",
        Object(&[
            ("text", Object(&[("splitStream", Bool), ("infoBufferSize", Any)])),
            ("json", Object(&[("splitStream", Bool), ("infoBufferSize", Any)])),
        ]),
    ),
]);

/// The unknown fields, sorted.
///
/// # Errors
/// The first value that is not what its field holds.
pub(super) fn check(settings: &Map<String, Value>) -> Result<Vec<String>, String> {
    let mut unknown = Vec::new();
    object(FIELDS, "", settings, &mut unknown)?;
    unknown.sort();
    Ok(unknown)
}

fn object(
    fields: &[(&str, Kind)],
    at: &str,
    value: &Map<String, Value>,
    unknown: &mut Vec<String>,
) -> Result<(), String> {
    for (key, value) in value {
        let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        match fields.iter().find(|(name, _)| name == key) {
            Some((_, kind)) => field(*kind, &path, value, unknown)?,
            None => unknown.push(path),
        }
    }
    Ok(())
}

fn field(kind: Kind, at: &str, value: &Value, unknown: &mut Vec<String>) -> Result<(), String> {
    let wrong = |expected: &str| Err(format!("{at}: expected {expected}, found {value}"));
    // As in Go's decoder, a null leaves the field unset.
    if value.is_null() {
        return Ok(());
    }
    match (kind, value) {
        (Any, _) | (Bool, Value::Bool(_)) | (Text, Value::String(_)) => Ok(()),
        (Float, value) if value.is_number() => Ok(()),
        (Int64, value) if value.is_i64() => Ok(()),
        (Int32, value) if value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => Ok(()),
        (Duration, Value::String(text)) if is_duration(text) => Ok(()),
        (List(kind), Value::Array(list)) => list
            .iter()
            .enumerate()
            .try_for_each(|(i, item)| field(*kind, &format!("{at}[{i}]"), item, unknown)),
        (Kind::Map(kind), Value::Object(map)) => map
            .iter()
            .try_for_each(|(key, item)| field(*kind, &format!("{at}[{key}]"), item, unknown)),
        (Object(fields), Value::Object(map)) => object(fields, at, map, unknown),
        (Bool, _) => wrong("true or false"),
        (Text, _) => wrong("text"),
        (Float, _) => wrong("a number"),
        (Int64, _) => wrong("an integer"),
        (Int32, _) => wrong("a 32-bit integer"),
        (Duration, _) => wrong("a duration such as 1m30s"),
        (List(_), _) => wrong("a list"),
        (Kind::Map(_) | Object(_), _) => wrong("an object"),
    }
}

/// A Go duration, which may be negative here.
fn is_duration(text: &str) -> bool {
    parse_go(text.strip_prefix('-').unwrap_or(text)).is_ok()
}
