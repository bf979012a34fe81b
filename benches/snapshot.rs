//! What a snapshot of a large cluster costs: 5,000 nodes and 100,000 pods.
//!
//! `cargo bench --bench snapshot` prints the median of 200 runs each. "By sharing views" is what the
//! controllers do; "by building views" is what each of them did before the state kept the views.

#![allow(clippy::disallowed_methods, reason = "real time is what is measured")]
#![allow(clippy::unwrap_used, reason = "benches may panic as tests may")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod};
use karpenter::api::v1::NodeClaim;
use karpenter::cluster::State;
use karpenter::operator::readable::Readable;
use karpenter::scheduling::node::NodeView;
use kube::Resource;
use kube::api::ObjectList;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const NODES: usize = 5_000;
const PODS_EACH: usize = 20;

/// Objects of a page of a list, as the API server sends it and the watches read it.
fn page<K>(items: &[Value]) -> Vec<K>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone,
{
    let text = json!({"metadata": {}, "items": items}).to_string();
    let list: ObjectList<Readable<K>> = serde_json::from_str(&text).unwrap();
    let object = |item| match item {
        Readable::Object(object) => object,
        Readable::Unreadable(found) => panic!("{}", found.problem),
    };
    list.items.into_iter().map(object).collect()
}

fn cluster() -> State {
    let state = State::default();
    let name = |n: usize| format!("ip-10-0-{}-{}.ec2.internal", n >> 8, n & 255);
    let id = |n: usize| format!("aws:///us-east-1a/i-{n:017x}");
    let labels = |n: usize| {
        json!({"karpenter.sh/nodepool": format!("pool-{}", n % 20),
            "karpenter.sh/registered": "true", "karpenter.sh/initialized": "true",
            "karpenter.k8s.aws/ec2nodeclass": "default", "kubernetes.io/arch": "amd64",
            "kubernetes.io/os": "linux", "topology.kubernetes.io/zone": "us-east-1a",
            "topology.kubernetes.io/region": "us-east-1", "karpenter.sh/capacity-type": "spot",
            "node.kubernetes.io/instance-type": "m5.4xlarge", "kubernetes.io/hostname": name(n)})
    };
    let amounts = json!({"cpu": "16", "memory": "64Gi", "pods": "234"});
    let managed = json!([{"manager": "kubelet", "operation": "Update", "apiVersion": "v1",
        "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:app": {}, "f:team": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"main\"}": {"f:image": {}, "f:env": {}}}}}}]);
    for nodes in (0..NODES).collect::<Vec<_>>().chunks(500) {
        let claims: Vec<Value> = nodes
            .iter()
            .map(|n| {
                json!({"metadata": {"name": format!("claim-{n}"), "labels": labels(*n)},
                    "spec": {}, "status": {"providerID": id(*n), "capacity": amounts}})
            })
            .collect();
        page::<NodeClaim>(&claims).into_iter().for_each(|claim| state.apply_claim(claim));
        let nodes: Vec<Value> = nodes
            .iter()
            .map(|n| {
                json!({"metadata": {"name": name(*n), "labels": labels(*n), "uid": id(*n),
                    "managedFields": managed}, "spec": {"providerID": id(*n)},
                    "status": {"capacity": amounts, "allocatable": amounts,
                        "images": [{"names": ["registry.example/app:v1"], "sizeBytes": 1}],
                        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady",
                            "message": "kubelet is posting ready status",
                            "lastHeartbeatTime": "2026-01-01T00:00:00Z",
                            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
            })
            .collect();
        page::<Node>(&nodes).into_iter().for_each(|node| state.apply_node(node));
    }
    for pods in (0..NODES * PODS_EACH).collect::<Vec<_>>().chunks(500) {
        let pods: Vec<Value> = pods.iter().map(|p| pod(*p, &name(p % NODES), &managed)).collect();
        page::<Pod>(&pods).iter().for_each(|pod| state.apply_pod(pod));
    }
    state
}

/// One of the pods of 800 Deployments, with what real ones carry.
fn pod(index: usize, node: &str, managed: &Value) -> Value {
    let app = format!("app-{}", index % 800);
    let probe = json!({"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 10});
    let container = |name: &str, cpu: &str| {
        json!({"name": name, "image": format!("registry.example/{app}:v1.2.3"),
            "env": [{"name": "A", "value": "some value of normal length"},
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "readinessProbe": probe, "livenessProbe": probe,
            "resources": {"requests": {"cpu": cpu, "memory": "64Mi"}},
            "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets"}]})
    };
    let status = |name: &str| {
        json!({"name": name, "ready": true, "image": app, "imageID": app, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}})
    };
    json!({"metadata": {"name": format!("{app}-{index}"), "namespace": "default",
        "uid": format!("00000000-0000-0000-0000-{index:012}"), "managedFields": managed,
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {"app": app, "team": "t", "pod-template-hash": "abc"},
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet",
            "name": format!("{app}-abc"), "uid": "u", "controller": true}]},
        "spec": {"nodeName": node,
            "containers": [container("main", "500m"), container("proxy", "50m")],
            "volumes": [{"name": "token", "projected": {"sources": []}}],
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"app": app}}}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists",
                "effect": "NoExecute", "tolerationSeconds": 300}]},
        "status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z",
            "podIPs": [{"ip": "10.0.0.1"}],
            "containerStatuses": [status("main"), status("proxy")],
            "conditions": [{"type": "Ready", "status": "True",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
}

/// What the process holds in memory, in MiB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.trim().strip_suffix(" kB")).and_then(|n| n.trim().parse().ok());
    kib.unwrap_or(0_usize) / 1024
}

/// The median time of a run.
fn median<T>(mut run: impl FnMut() -> T) -> Duration {
    let mut times: Vec<Duration> = (0..200)
        .map(|_| {
            let start = Instant::now();
            black_box(run());
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    let start = Instant::now();
    let state = cluster();
    println!("reading the lists:              {:>12?}", start.elapsed());
    println!("resident afterwards:            {:>8} MiB", resident());
    let nodes = state.state_nodes();
    assert_eq!(nodes.len(), NODES);
    assert_eq!(nodes.iter().map(|n| n.pods.len()).sum::<usize>(), NODES * PODS_EACH);
    let again = state.state_nodes();
    assert!(nodes.iter().zip(&again).all(|(a, b)| a.is_same(b)), "views are shared");
    let all = median(|| state.state_nodes());
    println!("the cluster, by sharing views:  {all:>12?}");
    println!("one pool, by sharing views:     {:>12?}", median(|| state.state_nodes_of("pool-7")));
    println!("the cluster, by building views: {:>12?}", median(|| built(&state)));
    assert!(all < Duration::from_millis(1), "a snapshot takes less than a millisecond");
}

fn built(state: &State) -> BTreeMap<Option<String>, NodeView> {
    let view = |claim: Arc<NodeClaim>| {
        let id = claim.status.as_ref().and_then(|s| s.provider_id.clone()).unwrap();
        let node = state.nodes_by_provider_id(&id).pop();
        let name = node.as_ref().and_then(|n| n.metadata.name.clone()).unwrap();
        let key = claim.metadata.name.clone();
        let pods = state.pods_on(&name);
        (key, NodeView { pods, node, node_claim: Some(claim), ..NodeView::default() })
    };
    state.claims().into_iter().map(view).collect()
}
