//! The process around the controllers: settings, logging, metrics, events, leadership, servers.

pub mod certs;
pub mod client;
pub mod config_map;
pub mod events;
pub mod fleet_api;
pub mod leader;
pub mod logging;
pub mod metrics;
pub mod rate;
pub mod readable;
pub mod server;
pub mod settings;
pub mod traces;
pub mod webhook;

/// Files that a pod's service account gives it.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The namespace that the process lives in: the service account's, else `SYSTEM_NAMESPACE`, else
/// `kube-system`.
#[must_use]
pub fn namespace() -> String {
    let mounted = std::fs::read_to_string(format!("{SERVICE_ACCOUNT}/namespace")).ok();
    first_namespace(mounted, std::env::var("SYSTEM_NAMESPACE").ok())
}

fn first_namespace(mounted: Option<String>, set: Option<String>) -> String {
    let mut named = [mounted, set].into_iter().flatten().map(|text| text.trim().to_owned());
    named.find(|name| !name.is_empty()).unwrap_or_else(|| "kube-system".to_owned())
}

#[cfg(test)]
mod tests {
    use super::first_namespace;

    #[test]
    fn the_mounted_namespace_comes_before_the_setting() {
        let of = |mounted: &str, set: &str| {
            first_namespace(Some(mounted.to_owned()), Some(set.to_owned()))
        };
        assert_eq!(of("a\n", "b"), "a");
        assert_eq!(of(" ", "b"), "b");
        assert_eq!(first_namespace(None, None), "kube-system");
    }
}
