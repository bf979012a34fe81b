//! How much a scrape of a large cluster is, and that it leaves nothing behind.

use jiff::Timestamp;
use serde_json::json;
use tokio::time::Instant;

use super::{observability, pod_metrics, state_metrics};
use crate::api::labels;
use crate::cluster::State;
use crate::operator::metrics::{Level, Options, page_of};

const NODES: usize = 5_000;
const PODS: usize = 100_000;

/// A cluster of that size: 10 NodePools in 3 zones with 40 instance types.
fn cluster(nodes: usize, pods: usize) -> State {
    let state = State::default();
    let conditions =
        ["Ready", "Launched", "Registered", "Initialized", "Consolidatable"].map(|kind| {
            json!({"type": kind, "status": "True", "reason": kind, "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
        });
    for n in 0..nodes {
        let capacity_type = if n % 2 == 0 { "spot" } else { "on-demand" };
        let labels = json!({
            labels::NODEPOOL: format!("pool-{}", n % 10),
            labels::ZONE: format!("us-east-1{}", ["a", "b", "c"][n % 3]),
            labels::CAPACITY_TYPE: capacity_type,
            labels::INSTANCE_TYPE: format!("m{}.xlarge", n % 40),
            labels::ARCH: "amd64", labels::OS: "linux", labels::REGION: "us-east-1",
            labels::REGISTERED: "true", labels::INITIALIZED: "true",
            "karpenter.k8s.aws/ec2nodeclass": "default",
        });
        let id = format!("aws:///us-east-1a/i-{n:017x}");
        let claim = json!({
            "apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
            "metadata": {"name": format!("pool-{n:05}"), "labels": labels},
            "spec": {"requirements": [], "nodeClassRef":
                {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"}},
            "status": {"providerID": id, "conditions": conditions},
        });
        state.apply_claim(serde_json::from_value(claim).unwrap());
        let resources =
            json!({"cpu": "4", "memory": "16Gi", "pods": "58", "ephemeral-storage": "20Gi"});
        let node = json!({
            "metadata": {"name": format!("ip-10-0-{}-{}.ec2.internal", n / 250, n % 250),
                "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"providerID": id},
            "status": {"capacity": resources, "allocatable": resources, "conditions":
                [{"type": "Ready", "status": "True", "reason": "KubeletReady",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        });
        state.apply_node(serde_json::from_value(node).unwrap());
    }
    for p in 0..pods {
        let n = p % nodes;
        let requests = json!({"cpu": "150m", "memory": "500Mi"});
        let pod = json!({
            "metadata": {"name": format!("web-7d4f8b9c6d-{p:06}"), "namespace": format!("team-{}", p % 200),
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet",
                    "name": format!("web-{}", p % 2000), "uid": "u", "controller": true}]},
            "spec": {"nodeName": format!("ip-10-0-{}-{}.ec2.internal", n / 250, n % 250),
                "containers": [{"name": "c", "resources": {"requests": requests}}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        });
        state.apply_pod(&serde_json::from_value(pod).unwrap());
    }
    state
}

fn scrape(state: &State, level: Level) -> String {
    let kinds = observability::known_now(state);
    let now = Timestamp::from_second(1_770_000_000).unwrap();
    let options = Options { level, ..Options::default() };
    page_of(&options, |page| {
        let nodes = state.state_nodes();
        state_metrics::write_nodes(&nodes, now, page);
        pod_metrics::write_states(&state.pods(), &nodes, page);
        observability::write_conditions(&kinds, now, page);
    })
}

#[test]
fn below_the_full_level_a_scrape_does_not_grow_with_the_cluster() {
    let small = scrape(&cluster(300, 900), Level::Standard);
    let large = scrape(&cluster(600, 1800), Level::Standard);
    assert_eq!(small.lines().count(), large.lines().count());
    assert!(large.len() < 1_000_000, "{}", large.len());
}

/// Run with `cargo test --release -- --ignored --nocapture scrape`: the limits are those of a build
/// that is meant to be used.
#[test]
#[ignore = "measures time; needs an optimised build"]
fn a_scrape_of_the_largest_cluster_at_the_standard_level_takes_little() {
    let state = cluster(NODES, PODS);
    for level in [Level::Full, Level::Standard, Level::Minimal] {
        let begun = Instant::now();
        let text = scrape(&state, level);
        let (time, lines) = (begun.elapsed(), text.lines().count());
        println!("{level:?}: {lines} lines, {} bytes, {time:?}", text.len());
        if level < Level::Full {
            assert!(text.len() < 3_000_000 && time.as_millis() < 100, "{level:?}");
        }
    }
}
