//! Objects of a large cluster, for the test beside this file and for `benches/scrape.rs`.

use serde_json::{Value, json};

use super::State;

/// NodeClaims, Nodes and Pods.
struct Objects {
    claims: Vec<Value>,
    nodes: Vec<Value>,
    pods: Vec<Value>,
}

/// The state of a cluster of these objects; see [`objects`].
pub fn state(nodes: usize, pods: usize) -> State {
    let state = State::default();
    let objects = objects(nodes, pods);
    for claim in objects.claims {
        state.apply_claim(serde_json::from_value(claim).unwrap());
    }
    for node in objects.nodes {
        state.apply_node(serde_json::from_value(node).unwrap());
    }
    for pod in objects.pods {
        state.apply_pod(&serde_json::from_value(pod).unwrap());
    }
    state
}

/// So many nodes of 10 NodePools in 3 zones with 40 instance types, with pods of 200 namespaces on them.
fn objects(nodes: usize, pods: usize) -> Objects {
    let node_name = |n: usize| format!("ip-10-0-{}-{}.ec2.internal", n / 250, n % 250);
    let provider_id = |n: usize| format!("aws:///us-east-1a/i-{n:017x}");
    let labels = |n: usize| {
        json!({
            "karpenter.sh/nodepool": format!("pool-{}", n % 10),
            "topology.kubernetes.io/zone": format!("us-east-1{}", ["a", "b", "c"][n % 3]),
            "karpenter.sh/capacity-type": if n.is_multiple_of(2) { "spot" } else { "on-demand" },
            "node.kubernetes.io/instance-type": format!("m{}.xlarge", n % 40),
            "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux",
            "topology.kubernetes.io/region": "us-east-1",
            "karpenter.sh/registered": "true", "karpenter.sh/initialized": "true",
            "karpenter.k8s.aws/ec2nodeclass": "default",
        })
    };
    let conditions =
        ["Ready", "Launched", "Registered", "Initialized", "Consolidatable"].map(|kind| {
            json!({"type": kind, "status": "True", "reason": kind, "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        });
    let resources =
        json!({"cpu": "4", "memory": "16Gi", "pods": "58", "ephemeral-storage": "20Gi"});
    let claim = |n: usize| {
        json!({
            "apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
            "metadata": {"name": format!("pool-{n:05}"), "labels": labels(n)},
            "spec": {"requirements": [], "nodeClassRef":
                {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"}},
            "status": {"providerID": provider_id(n), "conditions": conditions},
        })
    };
    let node = |n: usize| {
        json!({
            "metadata": {"name": node_name(n), "labels": labels(n),
                "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"providerID": provider_id(n)},
            "status": {"capacity": resources, "allocatable": resources, "conditions":
                [{"type": "Ready", "status": "True", "reason": "KubeletReady",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        })
    };
    let pod = |p: usize| {
        let requests = json!({"cpu": "150m", "memory": "500Mi"});
        json!({
            "metadata": {"name": format!("web-7d4f8b9c6d-{p:06}"), "namespace": format!("team-{}", p % 200),
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet",
                    "name": format!("web-{}", p % 2000), "uid": "u", "controller": true}]},
            "spec": {"nodeName": node_name(p % nodes),
                "containers": [{"name": "c", "resources": {"requests": requests}}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        })
    };
    Objects {
        claims: (0..nodes).map(claim).collect(),
        nodes: (0..nodes).map(node).collect(),
        pods: (0..pods).map(pod).collect(),
    }
}
