//! What the API server fills into a pod before anybody reads it.
//!
//! Manifests, workload templates and scenario files have not passed an API server. Whoever judges
//! such a pod calls [`fill`] first, so that it asks for what the real pod will ask for.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Fills in the defaults that decide where a pod can run: requests from limits, and the ports of
/// the node that containers on the host's network take.
pub fn fill(spec: &mut PodSpec) {
    let host_network = spec.host_network == Some(true);
    for container in containers(spec) {
        requests_from_limits(container);
        if host_network {
            for port in container.ports.iter_mut().flatten() {
                // Kubernetes requires them to be equal on the host's network.
                port.host_port.get_or_insert(port.container_port);
            }
        }
    }
    pod_requests_from_limits(spec);
}

fn containers(spec: &mut PodSpec) -> impl Iterator<Item = &mut Container> {
    spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten())
}

fn requests_from_limits(container: &mut Container) {
    let Some(resources) = &mut container.resources else { return };
    let Some(limits) = &resources.limits else { return };
    let requests = resources.requests.get_or_insert_default();
    for (name, amount) in limits {
        requests.entry(name.clone()).or_insert_with(|| amount.clone());
    }
}

/// The pod's own limit counts as its request where neither the pod nor a container requests any:
/// otherwise the containers' sum is the request.
fn pod_requests_from_limits(spec: &mut PodSpec) {
    let requested = |name: &str| {
        let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let mut lists = all.filter_map(|c| c.resources.as_ref()?.requests.as_ref());
        lists.any(|requests| requests.contains_key(name))
    };
    let limits: BTreeMap<String, Quantity> = spec
        .resources
        .iter()
        .flat_map(|r| r.limits.iter().flatten())
        .filter(|(name, _)| is_pod_level(name) && !requested(name))
        .map(|(name, amount)| (name.clone(), amount.clone()))
        .collect();
    if limits.is_empty() {
        return;
    }
    let requests = spec.resources.get_or_insert_default().requests.get_or_insert_default();
    for (name, amount) in limits {
        requests.entry(name).or_insert(amount);
    }
}

/// Resources that a pod may ask for as a whole.
fn is_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn filled(spec: Value) -> Value {
        let mut spec: PodSpec = serde_json::from_value(spec).unwrap();
        fill(&mut spec);
        serde_json::to_value(spec).unwrap()
    }

    #[test]
    fn what_only_limits_name_is_requested_too() {
        let spec = filled(json!({
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"},
                "limits": {"cpu": "2", "nvidia.com/gpu": "1"}}}],
            "initContainers": [{"name": "i", "resources": {"limits": {"memory": "1Gi"}}}]}));
        assert_eq!(
            spec["containers"][0]["resources"]["requests"],
            json!({"cpu": "1", "nvidia.com/gpu": "1"})
        );
        assert_eq!(spec["initContainers"][0]["resources"]["requests"], json!({"memory": "1Gi"}));
    }

    #[test]
    fn a_pods_own_limit_counts_where_no_container_requests_any() {
        let spec = filled(json!({"resources": {"limits": {"cpu": "4", "memory": "8Gi"}},
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}));
        assert_eq!(spec["resources"]["requests"], json!({"memory": "8Gi"}));
    }

    #[test]
    fn ports_on_the_hosts_network_are_ports_of_the_node() {
        let containers = json!([{"name": "c", "ports": [{"containerPort": 80},
            {"containerPort": 81, "hostPort": 8081}]}]);
        let own = filled(json!({"hostNetwork": true, "containers": containers}));
        assert_eq!(own["containers"][0]["ports"][0]["hostPort"], 80);
        assert_eq!(own["containers"][0]["ports"][1]["hostPort"], 8081);
        let other = filled(json!({"containers": containers}));
        assert_eq!(other["containers"][0]["ports"][0].get("hostPort"), None);
    }
}
