//! Metrics of pods: where each is, and how long it took to get there.
//!
//! What has a series per pod is written from the state when the metrics are asked for, so that
//! nothing is kept twice.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::Context;
use super::provisioning::decisions::Decisions;
use crate::api::labels;
use crate::cluster::Change;
use crate::operator::metrics::page::{Family, Page};
use crate::operator::metrics::{Level, Release};
use crate::operator::{logging, metrics};
use crate::scheduling::node::StateNode;
use crate::scheduling::pod::{Phase, PodInfo, PodKey};

/// Starts watching pods, and adds them to the metrics.
pub fn start(ctx: &Arc<Context>, decisions: &Arc<Decisions>, tasks: &mut JoinSet<()>) {
    if ctx.settings.disable_cluster_state_observability {
        return;
    }
    let waits = Arc::new(Waits::default());
    let (waits2, decisions2) = (Arc::clone(&waits), Arc::clone(decisions));
    metrics::add_source(ctx, move |ctx, page| {
        write_states(&ctx.cluster.pods(), &ctx.cluster.state_nodes(), page);
        waits2.write(&decisions2, ctx.clock.now(), page);
    });
    let (ctx, decisions) = (Arc::clone(ctx), Arc::clone(decisions));
    let work = async move { run(&ctx, &waits, &decisions).await };
    tasks.spawn(work.instrument(logging::controller_span("metrics.pod")));
}

async fn run(ctx: &Context, waits: &Waits, decisions: &Decisions) {
    let mut changes = ctx.cluster.subscribe();
    ctx.cluster.until_listed().await;
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

/// A pod on its way.
#[derive(Clone, Copy)]
struct Wait {
    /// When the pod was made, in seconds.
    created: i64,
    /// Whether it asks for dynamic resources.
    dynamic: bool,
}

/// Pods that are not where they are going yet.
#[derive(Default)]
struct Waits {
    unbound: Mutex<HashMap<PodKey, Wait>>,
    unstarted: Mutex<HashMap<PodKey, Wait>>,
}

impl Waits {
    fn see(&self, key: &PodKey, pod: Option<&PodInfo>, decisions: &Decisions) {
        let Some(pod) = pod.filter(|p| !p.terminal) else {
            self.unbound.lock().remove(key);
            self.unstarted.lock().remove(key);
            return;
        };
        let wait = Wait { created: pod.created, dynamic: pod.dynamic_resources };
        let thought_of = || decisions.times(key).and_then(|t| t.schedulable);
        let since =
            |at: i64, from: i64| f64::from(i32::try_from((at - from).max(0)).unwrap_or(i32::MAX));
        match pod.bound_at {
            None => drop(self.unbound.lock().insert(key.clone(), wait)),
            Some(at) => {
                if let Some(waited) = self.unbound.lock().remove(key) {
                    metrics::pod_bound(since(at, waited.created), waited.dynamic);
                    if let Some(from) = thought_of() {
                        metrics::pod_bound_since_decision(
                            since(at, from.as_second()),
                            waited.dynamic,
                        );
                    }
                }
            }
        }
        match pod.ready_at {
            None if pod.phase == Phase::Pending => {
                self.unstarted.lock().insert(key.clone(), wait);
            }
            None => {}
            Some(at) => {
                if let Some(waited) = self.unstarted.lock().remove(key) {
                    metrics::PODS_STARTUP.observe(&[], since(at, waited.created));
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

    fn write(&self, decisions: &Decisions, now: Timestamp, page: &mut Page<'_>) {
        if page.level() < Level::Full {
            return;
        }
        let copy = |map: &Mutex<HashMap<PodKey, Wait>>| -> Vec<(PodKey, Wait)> {
            map.lock().iter().map(|(key, wait)| (key.clone(), *wait)).collect()
        };
        let (unbound, unstarted) = (copy(&self.unbound), copy(&self.unstarted));
        let seconds = |from: i64| {
            f64::from(i32::try_from((now.as_second() - from).max(0)).unwrap_or(i32::MAX))
        };
        let release = metrics::release();
        let mut waits =
            |family: &Family, list: &[(PodKey, Wait)], by_decision: bool, labelled: bool| {
                let Some(mut lines) = page.family(family) else { return };
                for (key, wait) in list {
                    let decided = || decisions.times(key).and_then(|t| t.schedulable);
                    let from = if by_decision {
                        decided().map(Timestamp::as_second)
                    } else {
                        Some(wait.created)
                    };
                    let Some(from) = from else { continue };
                    let mut values = vec![&*key.name, &*key.namespace];
                    if labelled && release == Release::V1_15 {
                        values.push(flag(wait.dynamic));
                    }
                    lines.add(&values, seconds(from));
                }
            };
        waits(&metrics::PODS_UNBOUND, &unbound, false, true);
        waits(&metrics::PODS_PROVISIONING_UNBOUND, &unbound, true, true);
        waits(&metrics::PODS_UNSTARTED, &unstarted, false, false);
        waits(&metrics::PODS_PROVISIONING_UNSTARTED, &unstarted, true, false);
        if let Some(mut lines) = page.family(&metrics::PODS_UNDECIDED) {
            for (key, acknowledged) in decisions.undecided() {
                lines.add(&[&key.name, &key.namespace], seconds(acknowledged.as_second()));
            }
        }
    }
}

/// What the metrics show of a pod's node.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Place<'a> {
    nodepool: &'a str,
    zone: &'a str,
    arch: &'a str,
    capacity_type: &'a str,
    instance_type: &'a str,
    managed: bool,
}

impl<'a> Place<'a> {
    fn of(node: &'a StateNode) -> Self {
        let label = |key: &str| node.labels().get(key).map_or("", String::as_str);
        Self {
            nodepool: label(labels::NODEPOOL),
            zone: label(labels::ZONE),
            arch: label(labels::ARCH),
            capacity_type: label(labels::CAPACITY_TYPE),
            instance_type: label(labels::INSTANCE_TYPE),
            managed: node.managed(),
        }
    }
}

/// Writes where each pod is. Below the level `full` pods are counted by their node's place and type
/// of capacity, phase and readiness.
pub(super) fn write_states(pods: &[Arc<PodInfo>], nodes: &[StateNode], page: &mut Page<'_>) {
    let full = page.level() == Level::Full;
    let Some(mut lines) = page.family(&metrics::PODS_STATE) else { return };
    let mut places = vec![Place::default()];
    let mut known = HashMap::from([(Place::default(), 0)]);
    let mut of_node: FxHashMap<&str, usize> = FxHashMap::default();
    let mut counts = Counts::default();
    for node in nodes {
        let Some(name) = node.node.as_ref().and_then(|n| n.metadata.name.as_deref()) else {
            continue;
        };
        let mut place = Place::of(node);
        if !full {
            place.instance_type = "";
        }
        let index = *known.entry(place).or_insert_with(|| {
            places.push(place);
            places.len() - 1
        });
        of_node.insert(name, index);
        if !full {
            node.pods.iter().for_each(|pod| counts.add(pod, index));
        }
    }
    let place_of = |pod: &PodInfo| {
        pod.node_name.as_deref().and_then(|n| of_node.get(n)).copied().unwrap_or_default()
    };
    if full {
        for pod in pods {
            let owner = owner_of(pod);
            let node = pod.node_name.as_deref().unwrap_or_default();
            let own = [&*pod.key.name, &*pod.key.namespace, owner.as_str(), node];
            lines.add(&Kind::of(pod, place_of(pod)).values(&places, own), 1.0);
        }
        return;
    }
    counts.add_rest(pods, place_of);
    let counts: BTreeMap<[&str; 13], u32> =
        counts.0.into_iter().map(|(kind, count)| (kind.values(&places, [""; 4]), count)).collect();
    for (values, count) in counts {
        lines.add(&values, f64::from(count));
    }
}

/// Pods, counted by small keys: their labels are put together once per line.
#[derive(Default)]
struct Counts(FxHashMap<Kind, u32>);

impl Counts {
    fn add(&mut self, pod: &PodInfo, place: usize) {
        *self.0.entry(Kind::of(pod, place)).or_default() += 1;
    }

    /// Adds the pods that the views of nodes do not have: those without a node, finished ones, and those
    /// of a node that is not known yet.
    // Looking up the node of each pod by its name takes most of a scrape, and nearly all pods are in a view.
    fn add_rest(&mut self, pods: &[Arc<PodInfo>], place_of: impl Fn(&PodInfo) -> usize) {
        let in_views: u32 = self.0.values().sum();
        let runs = |pod: &&Arc<PodInfo>| pod.node_name.is_some() && !pod.terminal;
        let all_are = u32::try_from(pods.iter().filter(runs).count()).is_ok_and(|n| n == in_views);
        if !all_are {
            self.0.clear();
        }
        for pod in pods.iter().filter(|pod| !all_are || !runs(pod)) {
            self.add(pod, place_of(pod));
        }
    }
}

/// What pods that are counted together have in common.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    /// The place of their node, as an index; the first for pods without a known one.
    place: usize,
    scheduled: bool,
    phase: Phase,
    ready: bool,
}

impl Kind {
    fn of(pod: &PodInfo, place: usize) -> Self {
        Self { place, scheduled: pod.node_name.is_some(), phase: pod.phase, ready: pod.ready }
    }

    /// The values of the labels, in their order.
    fn values<'a>(
        self,
        places: &[Place<'a>],
        [name, namespace, owner, node]: [&'a str; 4],
    ) -> [&'a str; 13] {
        let place = places.get(self.place).copied().unwrap_or_default();
        [
            name,
            namespace,
            owner,
            node,
            flag(self.scheduled),
            place.nodepool,
            place.zone,
            place.arch,
            place.capacity_type,
            place.instance_type,
            self.phase.as_str(),
            flag(self.ready),
            flag(place.managed),
        ]
    }
}

fn flag(on: bool) -> &'static str {
    if on { "true" } else { "false" }
}

fn owner_of(pod: &PodInfo) -> String {
    pod.owner.as_ref().map_or_else(String::new, |o| {
        format!(
            "/apis/{}/namespaces/{}/{}s/{}",
            o.api_version,
            pod.key.namespace,
            o.kind.to_lowercase(),
            o.name
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::metrics::{Options, page_of};
    use crate::scheduling::node::NodeView;

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
        let shown =
            |now: i64| page_of(&Options::default(), |page| waits.write(&decisions, at(now), page));
        let line = r#"karpenter_pods_unbound_time_seconds{name="p",namespace="n"} 5"#;
        assert!(shown(105).contains(line));
        assert!(shown(105).contains("provisioning_scheduling_undecided_time_seconds{"));
        decisions.placed(&key, at(103));
        for name in ["unbound", "unstarted"] {
            let line = format!(
                r#"karpenter_pods_provisioning_{name}_time_seconds{{name="p",namespace="n"}} 2"#
            );
            assert!(shown(105).contains(&line), "{}", shown(105));
        }
        pod.bound_at = Some(107);
        pod.ready_at = Some(110);
        waits.see(&key, Some(&pod), &decisions);
        assert_eq!(shown(111), "");
    }

    fn pods() -> Vec<Arc<PodInfo>> {
        let pod = |name: &str| {
            let value = serde_json::json!({"metadata": {"name": name, "namespace": "n",
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r",
                    "uid": "u"}]}, "spec": {"nodeName": "x", "containers": []},
                "status": {"phase": "Running"}});
            Arc::new(PodInfo::from_pod(&serde_json::from_value(value).unwrap()))
        };
        vec![pod("p"), pod("q")]
    }

    fn nodes() -> Vec<StateNode> {
        let value = serde_json::json!({"metadata": {"name": "x", "labels": {
            labels::NODEPOOL: "default", labels::INSTANCE_TYPE: "m5.large"}}});
        let node = Some(Arc::new(serde_json::from_value(value).unwrap()));
        vec![NodeView { node, ..NodeView::default() }.into()]
    }

    #[test]
    fn a_pod_shows_its_node_and_owner() {
        let text = page_of(&Options::default(), |page| write_states(&pods(), &nodes(), page));
        assert!(
            text.contains(
                "karpenter_pods_state{name=\"p\",namespace=\"n\",\
             owner=\"/apis/apps/v1/namespaces/n/replicasets/r\",node=\"x\",scheduled=\"true\",\
             nodepool=\"default\",zone=\"\",arch=\"\",capacity_type=\"\",\
             instance_type=\"m5.large\",phase=\"Running\",ready=\"false\",managed=\"false\"} 1\n"
            ),
            "{text}"
        );
        assert_eq!(text.lines().count(), 4);
    }

    #[test]
    fn pods_of_views_and_others_are_counted_once() {
        let options = Options { level: Level::Standard, ..Options::default() };
        let mut nodes = nodes();
        nodes[0].pods = pods();
        let waiting = serde_json::json!({"metadata": {"name": "w", "namespace": "n"},
            "spec": {"containers": []}, "status": {"phase": "Pending"}});
        let mut all = pods();
        all.push(Arc::new(PodInfo::from_pod(&serde_json::from_value(waiting).unwrap())));
        let text = page_of(&options, |page| write_states(&all, &nodes, page));
        let counts: Vec<&str> = text.lines().filter_map(|l| Some(l.rsplit_once("} ")?.1)).collect();
        assert_eq!(counts, ["1", "2"], "{text}");
    }

    #[test]
    fn pods_are_counted_below_the_full_level() {
        let options = Options { level: Level::Standard, ..Options::default() };
        let text = page_of(&options, |page| write_states(&pods(), &nodes(), page));
        let line = text.lines().last().unwrap();
        assert!(line.starts_with(r#"karpenter_pods_state{name="",namespace="",owner="",node="","#));
        assert!(line.contains(r#"nodepool="default""#) && line.ends_with(" 2"), "{text}");
    }
}
