//! Capacity buffers: room kept free for pods to come (feature gate CapacityBuffer).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{PodTemplate, PodTemplateSpec};
use kube::Api;
use tokio::task::JoinSet;

use super::patch;
use super::provisioning::batcher::Batcher;
use super::runner::{self, Identity};
use super::{Context, Error, Outcome};
use crate::api::autoscaling::{ACTIVE_CAPACITY, CapacityBuffer, LocalRef, ScalableRef};
use crate::api::conditions;
use crate::cluster::{Change, State};
use crate::scheduling::buffer::{self, Placement};
use crate::scheduling::pod::{PodInfo, PodKey};
use crate::scheduling::results::Results;

const CONTROLLER: Identity = Identity {
    name: "capacitybuffer",
    group: "autoscaling.x-k8s.io",
    kind: "CapacityBuffer",
    workers: 10,
};
/// A buffer is looked at again after this long.
const PERIOD: Duration = Duration::from_secs(30);

/// What opens a batch when a buffer goes.
const BUFFER: &str = "capacitybuffer";

const READY_FOR_PROVISIONING: &str = "ReadyForProvisioning";
const PROVISIONING: &str = "Provisioning";

/// Starts the controller, if the gate is on.
pub fn start(ctx: &Arc<Context>, batcher: &Arc<Batcher>, tasks: &mut JoinSet<()>) {
    if !ctx.settings.gates.capacity_buffer {
        return;
    }
    let batcher = Arc::clone(batcher);
    tasks.spawn(runner::run(
        CONTROLLER,
        Arc::clone(ctx),
        |ctx| ctx.cluster.buffers().iter().map(|b| key_of(b).to_string()).collect(),
        concerned,
        move |ctx, name| reconcile(ctx, name, Arc::clone(&batcher)),
    ));
}

fn key_of(buffer: &CapacityBuffer) -> PodKey {
    let meta = &buffer.metadata;
    PodKey::new(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

fn concerned(ctx: &Context, change: &Change) -> Vec<String> {
    buffers_of(&ctx.cluster, change)
}

/// Buffers that a change bears on.
fn buffers_of(state: &State, change: &Change) -> Vec<String> {
    match change {
        Change::Buffer(key) => vec![key.to_string()],
        Change::PodTemplate(template) => state
            .buffers()
            .iter()
            .filter(|b| {
                let named = b.spec.pod_template_ref.as_ref().map(|r| r.name.as_str());
                b.metadata.namespace.as_deref() == Some(&*template.namespace)
                    && named == Some(&*template.name)
            })
            .map(|b| key_of(b).to_string())
            .collect(),
        Change::Workload(kind, workload) => state
            .buffers()
            .iter()
            .filter(|b| {
                b.metadata.namespace.as_deref() == Some(&*workload.namespace)
                    && b.spec
                        .scalable_ref
                        .as_ref()
                        .is_some_and(|r| r.kind == *kind && r.name == *workload.name && is_apps(r))
            })
            .map(|b| key_of(b).to_string())
            .collect(),
        _ => Vec::new(),
    }
}

/// The group of the workloads that a buffer may follow; it may be left out.
fn is_apps(reference: &ScalableRef) -> bool {
    matches!(reference.api_group.as_deref().unwrap_or_default(), "" | "apps")
}

/// The shape of a buffer's pods, and how many real ones there are.
struct Shape {
    template: PodTemplateSpec,
    /// Name and generation of the PodTemplate.
    of: Option<(String, Option<i64>)>,
    /// Replicas of the scalable object.
    scalable: Option<i32>,
}

/// Why a buffer's pods have no shape.
struct Shapeless {
    reason: &'static str,
    message: String,
    /// Set when trying again may help.
    retry: Option<Error>,
}

async fn reconcile(ctx: Arc<Context>, name: String, batcher: Arc<Batcher>) -> Outcome {
    let Some((namespace, name)) = name.split_once('/') else { return Ok(None) };
    let key = PodKey::new(namespace, name);
    let found = ctx.cluster.buffer(&key).filter(|b| b.metadata.deletion_timestamp.is_none());
    // The provisioner runs, too, when a buffer goes or resolves no more: the nodes that keep its room
    // are free from that round on.
    let release = || {
        if ctx.cluster.drop_buffer_pods(&key) {
            batcher.trigger(&Arc::from(format!("{BUFFER}/{key}")));
        }
    };
    let Some(before) = found else {
        release();
        return Ok(None);
    };
    let mut changed = (*before).clone();
    let shape = shape(&ctx, &before).await;
    let (generation, now) = (before.metadata.generation, ctx.clock.now());
    let status = changed.status.get_or_insert_default();
    let strategy = before.spec.provisioning_strategy.as_deref().unwrap_or(ACTIVE_CAPACITY);
    status.provisioning_strategy = Some(strategy.to_owned());
    let kind = READY_FOR_PROVISIONING;
    match &shape {
        Ok(shape) => {
            let text = "Pod template resolved successfully";
            let list = &mut status.conditions;
            conditions::set(list, kind, conditions::TRUE, "Resolved", text, generation, now);
            status.pod_template_ref = shape.of.clone().map(|(name, _)| LocalRef { name });
            status.pod_template_generation = shape.of.as_ref().and_then(|(_, g)| *g);
            let count = buffer::replicas(&before.spec, shape.scalable, &shape.template);
            status.replicas = Some(count);
        }
        Err(problem) => {
            let (list, reason) = (&mut status.conditions, problem.reason);
            let text = &problem.message;
            conditions::set(list, kind, conditions::FALSE, reason, text, generation, now);
        }
    }
    let count = status.replicas.unwrap_or(0);
    let api = patch::namespaced::<CapacityBuffer>(&ctx.client, namespace);
    patch::merge(&api, &*before, &changed).await?;
    match shape {
        Ok(shape) => {
            let pods = buffer::virtual_pods(&before, &shape.template, count);
            ctx.cluster.set_buffer_pods(&key, pods);
            batcher.trigger(&Arc::from(before.metadata.uid.as_deref().unwrap_or(name)));
            Ok(Some(PERIOD))
        }
        Err(Shapeless { retry: Some(error), .. }) => Err(error),
        Err(_) => {
            release();
            Ok(Some(PERIOD))
        }
    }
}

async fn shape(ctx: &Context, buffer: &CapacityBuffer) -> Result<Shape, Shapeless> {
    let namespace = buffer.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(reference) = &buffer.spec.pod_template_ref {
        let api = patch::namespaced::<PodTemplate>(&ctx.client, namespace);
        let found = get(&api, "PodTemplateNotFound", "PodTemplate", &reference.name).await?;
        let generation = found.metadata.generation;
        return Ok(Shape {
            template: found.template.unwrap_or_default(),
            of: Some((reference.name.clone(), generation)),
            scalable: None,
        });
    }
    match &buffer.spec.scalable_ref {
        Some(reference) => scalable(ctx, namespace, reference).await,
        None => Err(Shapeless {
            reason: "ResolutionFailed",
            message: "Neither podTemplateRef nor scalableRef is set".to_owned(),
            retry: None,
        }),
    }
}

async fn scalable(
    ctx: &Context,
    namespace: &str,
    reference: &ScalableRef,
) -> Result<Shape, Shapeless> {
    let group = reference.api_group.as_deref().filter(|g| !g.is_empty()).unwrap_or("apps");
    let (kind, name, missing) = (reference.kind.as_str(), &reference.name, "ScalableRefNotFound");
    let (template, replicas) = match (group, kind) {
        ("apps", "Deployment") => {
            let api = patch::namespaced::<Deployment>(&ctx.client, namespace);
            let spec = get(&api, missing, kind, name).await?.spec.unwrap_or_default();
            (Some(spec.template), spec.replicas)
        }
        ("apps", "StatefulSet") => {
            let api = patch::namespaced::<StatefulSet>(&ctx.client, namespace);
            let spec = get(&api, missing, kind, name).await?.spec.unwrap_or_default();
            (Some(spec.template), spec.replicas)
        }
        ("apps", "ReplicaSet") => {
            let api = patch::namespaced::<ReplicaSet>(&ctx.client, namespace);
            let spec = get(&api, missing, kind, name).await?.spec.unwrap_or_default();
            (spec.template, spec.replicas)
        }
        _ => {
            let message = format!(
                "unsupported scalableRef {group}/{kind}, expected apps Deployment, StatefulSet or ReplicaSet"
            );
            let retry = Some(Error::Other(message.clone()));
            return Err(Shapeless { reason: "ResolutionFailed", message, retry });
        }
    };
    Ok(Shape {
        template: template.unwrap_or_default(),
        of: None,
        scalable: Some(replicas.unwrap_or(1)),
    })
}

async fn get<K>(api: &Api<K>, missing: &'static str, kind: &str, name: &str) -> Result<K, Shapeless>
where
    K: kube::Resource + serde::de::DeserializeOwned + Clone + std::fmt::Debug,
{
    match api.get_opt(name).await {
        Ok(Some(found)) => Ok(found),
        Ok(None) => Err(Shapeless {
            reason: missing,
            message: format!("{kind} {name:?} not found"),
            retry: None,
        }),
        Err(error) => Err(Shapeless {
            reason: "ResolutionFailed",
            message: error.to_string(),
            retry: Some(error.into()),
        }),
    }
}

/// Where a round put the pods of each buffer, and how many each existing node, by name, took.
fn places(
    results: &Results,
    pods: &[Arc<PodInfo>],
) -> (HashMap<Arc<PodKey>, Placement>, HashMap<String, usize>) {
    let of: HashMap<&PodKey, &Arc<PodKey>> =
        pods.iter().filter_map(|p| Some((&p.key, p.buffer.as_ref()?))).collect();
    let mut placed: HashMap<Arc<PodKey>, Placement> = HashMap::new();
    let mut on: HashMap<String, usize> = HashMap::new();
    for (name, keys) in &results.existing {
        for buffer in keys.iter().filter_map(|k| of.get(k)) {
            placed.entry(Arc::clone(buffer)).or_default().existing += 1;
            *on.entry(name.clone()).or_default() += 1;
        }
    }
    for buffer in results.new_claims.iter().flat_map(|c| &c.pods).filter_map(|k| of.get(k)) {
        placed.entry(Arc::clone(buffer)).or_default().new += 1;
    }
    for buffer in results.errors.iter().filter_map(|(k, _)| of.get(k)) {
        placed.entry(Arc::clone(buffer)).or_default().failed += 1;
    }
    (placed, on)
}

/// Records on each buffer where a round put its pods, and in the state which nodes hold room for them.
pub(super) async fn placed(ctx: &Context, results: &Results, pods: &[Arc<PodInfo>]) {
    let (placed, on) = places(results, pods);
    let ids = on.into_iter().filter_map(|(name, count)| {
        Some((ctx.cluster.state_node(&name)?.provider_id()?.to_owned(), count))
    });
    ctx.cluster.set_buffer_nodes(ids.collect());
    let written = join_all(ctx.cluster.buffers().into_iter().map(|before| {
        let placement = placed.get(&key_of(&before)).copied().unwrap_or_default();
        write(ctx, before, placement)
    }));
    for error in written.await.into_iter().filter_map(Result::err) {
        tracing::debug!("error" = %error, "failed to write a buffer's status");
    }
}

async fn write(
    ctx: &Context,
    before: Arc<CapacityBuffer>,
    placement: Placement,
) -> Result<(), kube::Error> {
    let status = before.status.clone().unwrap_or_default();
    let ready = conditions::is_true(&status.conditions, READY_FOR_PROVISIONING);
    let outcome = buffer::provisioning(ready, status.replicas.unwrap_or(0), placement);
    let Some((ok, reason, message)) = outcome else { return Ok(()) };
    let mut changed = (*before).clone();
    let value = if ok { conditions::TRUE } else { conditions::FALSE };
    let (generation, now) = (before.metadata.generation, ctx.clock.now());
    let list = &mut changed.status.get_or_insert_default().conditions;
    conditions::set(list, PROVISIONING, value, reason, &message, generation, now);
    let namespace = before.metadata.namespace.as_deref().unwrap_or_default();
    let api = patch::namespaced::<CapacityBuffer>(&ctx.client, namespace);
    patch::merge(&api, &*before, &changed).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::tests::{Asked, api_server, context};
    use crate::scheduling::results::PodError;
    use serde_json::json;

    #[tokio::test(start_paused = true)]
    async fn a_buffer_that_goes_or_resolves_no_more_opens_a_batch() {
        let ctx = context(&api_server(Vec::new(), &Asked::default()));
        let batcher = Arc::new(Batcher::new(Duration::from_secs(1), Duration::from_secs(10)));
        let key = PodKey::new("n", "b");
        let run = || reconcile(Arc::clone(&ctx), "n/b".to_owned(), Arc::clone(&batcher));
        let keep_room = || ctx.cluster.set_buffer_pods(&key, vec![Arc::new(PodInfo::default())]);
        let buffer = json!({"metadata": {"name": "b", "namespace": "n"},
            "spec": {"podTemplateRef": {"name": "gone"}, "replicas": 1}});
        ctx.cluster.apply_buffer(serde_json::from_value(buffer).unwrap());
        run().await.unwrap();
        assert!(!batcher.wait().await, "it never kept room");
        keep_room();
        run().await.unwrap();
        assert!(batcher.wait().await, "its template is gone");
        assert!(ctx.cluster.buffer_pods().is_empty());
        keep_room();
        ctx.cluster.delete_buffer(&key);
        run().await.unwrap();
        assert!(batcher.wait().await, "it is gone");
        assert!(ctx.cluster.buffer_pods().is_empty());
    }

    #[test]
    fn a_buffer_is_looked_at_when_its_workload_changes() {
        let ctx_state = crate::cluster::State::default();
        let buffer = json!({"metadata": {"name": "b", "namespace": "n"}, "spec": {
            "scalableRef": {"apiGroup": "apps", "kind": "Deployment", "name": "web"}}});
        ctx_state.apply_buffer(serde_json::from_value(buffer).unwrap());
        let of = |kind: &'static str, namespace: &str, name: &str| {
            let change = Change::Workload(kind, PodKey::new(namespace, name));
            buffers_of(&ctx_state, &change)
        };
        assert_eq!(of("Deployment", "n", "web"), ["n/b"]);
        assert!(of("StatefulSet", "n", "web").is_empty());
        assert!(of("Deployment", "m", "web").is_empty() && of("Deployment", "n", "x").is_empty());
    }

    #[test]
    fn only_buffers_pods_are_counted() {
        let pod = |name: &str, buffer: Option<&str>| {
            Arc::new(PodInfo {
                key: PodKey::new("n", name),
                buffer: buffer.map(|b| Arc::new(PodKey::new("n", b))),
                ..PodInfo::default()
            })
        };
        let pods = [pod("a", Some("x")), pod("b", Some("x")), pod("c", None)];
        let results = Results {
            existing: vec![("node".to_owned(), vec![PodKey::new("n", "a"), PodKey::new("n", "c")])],
            errors: vec![(PodKey::new("n", "b"), PodError::NoTemplates)],
            ..Results::default()
        };
        let (placed, on) = places(&results, &pods);
        assert_eq!(placed.len(), 1);
        let expected = Placement { existing: 1, new: 0, failed: 1 };
        assert_eq!(placed[&PodKey::new("n", "x")], expected);
        assert_eq!(on["node"], 1);
    }
}
