//! Metrics of pods: where each is, and how long it took to get there.
//!
//! What there is a line of for every pod is written from the state when the metrics are asked for,
//! so that nothing is kept twice.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::Context;
use super::provisioning::decisions::Decisions;
use crate::api::labels;
use crate::cluster::Change;
use crate::operator::{logging, metrics};
use crate::scheduling::node::StateNode;
use crate::scheduling::pod::{Phase, PodInfo, PodKey};

/// Starts watching pods, and adds them to the metrics.
pub fn start(ctx: &Arc<Context>, decisions: &Arc<Decisions>, tasks: &mut JoinSet<()>) {
    if ctx.settings.disable_cluster_state_observability {
        return;
    }
    let waits = Arc::new(Waits::default());
    let (ctx2, waits2, decisions2) = (Arc::clone(ctx), Arc::clone(&waits), Arc::clone(decisions));
    metrics::add_source(move |out| {
        states(&ctx2, out);
        waits2.write(&decisions2, ctx2.clock.now(), out);
    });
    let (ctx, decisions) = (Arc::clone(ctx), Arc::clone(decisions));
    let work = async move { run(&ctx, &waits, &decisions).await };
    tasks.spawn(work.instrument(logging::controller_span("metrics.pod")));
}

async fn run(ctx: &Context, waits: &Waits, decisions: &Decisions) {
    let mut changes = ctx.cluster.subscribe();
    loop {
        for pod in ctx.cluster.pods() {
            waits.see(&pod.key, Some(&pod), decisions);
        }
        loop {
            match changes.recv().await {
                Ok(Change::Pod(key)) => {
                    let pod = ctx.cluster.pod(&key);
                    waits.see(&key, pod.as_deref(), decisions);
                }
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => break,
                Err(RecvError::Closed) => return,
            }
        }
        waits.forget_unless(|key| ctx.cluster.pod(key).is_some());
    }
}

/// Pods that are not where they are going yet, with the seconds of their creation.
#[derive(Default)]
struct Waits {
    unbound: Mutex<HashMap<PodKey, i64>>,
    unstarted: Mutex<HashMap<PodKey, i64>>,
}

impl Waits {
    fn see(&self, key: &PodKey, pod: Option<&PodInfo>, decisions: &Decisions) {
        let Some(pod) = pod.filter(|p| !p.terminal) else {
            self.unbound.lock().remove(key);
            self.unstarted.lock().remove(key);
            return;
        };
        let thought_of = || decisions.times(key).and_then(|t| t.schedulable);
        let since =
            |at: i64, from: i64| f64::from(i32::try_from((at - from).max(0)).unwrap_or(i32::MAX));
        match pod.bound_at {
            None => drop(self.unbound.lock().insert(key.clone(), pod.created)),
            Some(at) => {
                if let Some(created) = self.unbound.lock().remove(key) {
                    metrics::PODS_BOUND.with_label_values::<&str>(&[]).observe(since(at, created));
                    if let Some(from) = thought_of() {
                        metrics::PODS_PROVISIONING_BOUND
                            .with_label_values::<&str>(&[])
                            .observe(since(at, from.as_second()));
                    }
                }
            }
        }
        match pod.ready_at {
            None if pod.phase == Phase::Pending => {
                self.unstarted.lock().insert(key.clone(), pod.created);
            }
            None => {}
            Some(at) => {
                if let Some(created) = self.unstarted.lock().remove(key) {
                    metrics::PODS_STARTUP.observe(&[], since(at, created));
                    if let Some(from) = thought_of() {
                        metrics::PODS_PROVISIONING_STARTUP
                            .with_label_values::<&str>(&[])
                            .observe(since(at, from.as_second()));
                    }
                }
            }
        }
    }

    fn forget_unless(&self, there: impl Fn(&PodKey) -> bool) {
        self.unbound.lock().retain(|key, _| there(key));
        self.unstarted.lock().retain(|key, _| there(key));
    }

    fn write(&self, decisions: &Decisions, now: Timestamp, out: &mut String) {
        let mut all = Vec::new();
        for (map, plain, provisioning) in [
            (&self.unbound, "unbound", "provisioning_unbound"),
            (&self.unstarted, "unstarted", "provisioning_unstarted"),
        ] {
            let entries: Vec<(PodKey, i64)> =
                map.lock().iter().map(|(key, at)| (key.clone(), *at)).collect();
            for (key, created) in entries {
                all.push((plain, now.as_second() - created, key.clone()));
                if let Some(from) = decisions.times(&key).and_then(|t| t.schedulable) {
                    all.push((provisioning, now.as_second() - from.as_second(), key));
                }
            }
        }
        for (key, acknowledged) in decisions.undecided() {
            let waited = now.as_second() - acknowledged.as_second();
            all.push(("provisioning_scheduling_undecided", waited, key));
        }
        all.sort_by(|a, b| (a.0, &a.2).cmp(&(b.0, &b.2)));
        let mut last = "";
        for (name, seconds, key) in all {
            if name != last {
                last = name;
                let _ = writeln!(out, "# TYPE karpenter_pods_{name}_time_seconds gauge");
            }
            let (pod, namespace) = (&key.name, &key.namespace);
            let _ = writeln!(
                out,
                "karpenter_pods_{name}_time_seconds{{name=\"{pod}\",namespace=\"{namespace}\"}} {}",
                seconds.max(0)
            );
        }
    }
}

/// One line a pod.
fn states(ctx: &Context, out: &mut String) {
    let nodes: HashMap<String, StateNode> = ctx
        .cluster
        .state_nodes()
        .into_iter()
        .filter_map(|n| Some((n.node.as_ref()?.metadata.name.clone()?, n)))
        .collect();
    let mut pods = ctx.cluster.pods();
    if pods.is_empty() {
        return;
    }
    pods.sort_by(|a, b| a.key.cmp(&b.key));
    out.push_str("# HELP karpenter_pods_state Pod state is the current state of pods. This metric can be used several ways as it is labeled by the pod name, namespace, owner, node, nodepool name, zone, architecture, capacity type, instance type and pod phase.\n# TYPE karpenter_pods_state gauge\n");
    for pod in &pods {
        let node = pod.node_name.as_deref().and_then(|n| nodes.get(n));
        let _ = writeln!(out, "karpenter_pods_state{{{}}} 1", labels_of(pod, node));
    }
}

fn labels_of(pod: &PodInfo, node: Option<&StateNode>) -> String {
    let owner = pod.owner.as_ref().map_or_else(String::new, |o| {
        format!(
            "/apis/{}/namespaces/{}/{}s/{}",
            o.api_version,
            pod.key.namespace,
            o.kind.to_lowercase(),
            o.name
        )
    });
    let label = |key: &str| node.and_then(|n| n.labels().get(key)).map_or("", String::as_str);
    let flag = |on: bool| if on { "true" } else { "false" };
    let pairs = [
        ("name", &*pod.key.name),
        ("namespace", &pod.key.namespace),
        ("owner", &owner),
        ("node", pod.node_name.as_deref().unwrap_or("")),
        ("scheduled", flag(pod.node_name.is_some())),
        ("nodepool", label(labels::NODEPOOL)),
        ("zone", label(labels::ZONE)),
        ("arch", label(labels::ARCH)),
        ("capacity_type", label(labels::CAPACITY_TYPE)),
        ("instance_type", label(labels::INSTANCE_TYPE)),
        ("phase", pod.phase.as_str()),
        ("ready", flag(pod.ready)),
        ("managed", flag(node.is_some_and(|n| n.managed()))),
    ];
    // None of these can hold a character that would need escaping.
    pairs.map(|(key, value)| format!("{key}=\"{value}\"")).join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn waiting_pods_are_shown_until_they_run() {
        let (waits, decisions) = (Waits::default(), Decisions::default());
        let key = PodKey::new("n", "p");
        let mut pod = PodInfo { key: key.clone(), created: 100, ..PodInfo::default() };
        waits.see(&key, Some(&pod), &decisions);
        decisions.acknowledge(&key, at(101));
        let shown = |now: i64| {
            let mut out = String::new();
            waits.write(&decisions, at(now), &mut out);
            out
        };
        let line = r#"karpenter_pods_unbound_time_seconds{name="p",namespace="n"} 5"#;
        assert!(shown(105).contains(line));
        assert!(shown(105).contains("provisioning_scheduling_undecided_time_seconds{"));
        pod.bound_at = Some(107);
        pod.ready_at = Some(110);
        waits.see(&key, Some(&pod), &decisions);
        let text = shown(111);
        assert!(!text.contains("unbound") && !text.contains("unstarted"));
    }

    #[test]
    fn a_pod_tells_its_node_and_owner() {
        let value = serde_json::json!({"metadata": {"name": "p", "namespace": "n",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r",
                "uid": "u"}]}, "spec": {"nodeName": "x", "containers": []},
            "status": {"phase": "Running"}});
        let pod = PodInfo::from_pod(&serde_json::from_value(value).unwrap());
        let text = labels_of(&pod, None);
        assert!(text.contains(r#"owner="/apis/apps/v1/namespaces/n/replicasets/r""#));
        assert!(text.contains(r#"scheduled="true""#) && text.contains(r#"phase="Running""#));
        assert!(text.contains(r#"managed="false""#));
    }
}
