//! One watch a kind, feeding the state.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use super::State;
use crate::api::v1::{EC2NodeClass, NodeClaim, NodePool};
use crate::scheduling::pod::PodKey;

/// Starts every watch; they run until the set is dropped.
pub fn start(client: &Client, state: &Arc<State>, tasks: &mut JoinSet<()>) {
    let name = |meta: &kube::api::ObjectMeta| meta.name.clone().unwrap_or_default();
    let pod_key = |pod: &Pod| {
        PodKey::new(
            pod.metadata.namespace.as_deref().unwrap_or(""),
            pod.metadata.name.as_deref().unwrap_or(""),
        )
    };
    tasks.spawn(watch(
        Api::<Pod>::all(client.clone()),
        Arc::clone(state),
        "pods",
        pod_key,
        |state, pod| state.apply_pod(&pod),
        |state, key| state.delete_pod(key),
    ));
    tasks.spawn(watch(
        Api::<Node>::all(client.clone()),
        Arc::clone(state),
        "nodes",
        move |n: &Node| name(&n.metadata),
        State::apply_node,
        |state, key: &String| state.delete_node(key),
    ));
    tasks.spawn(watch(
        Api::<NodeClaim>::all(client.clone()),
        Arc::clone(state),
        "nodeclaims",
        move |n: &NodeClaim| name(&n.metadata),
        State::apply_claim,
        |state, key: &String| state.delete_claim(key),
    ));
    tasks.spawn(watch(
        Api::<NodePool>::all(client.clone()),
        Arc::clone(state),
        "nodepools",
        move |n: &NodePool| name(&n.metadata),
        State::apply_pool,
        |state, key: &String| state.delete_pool(key),
    ));
    tasks.spawn(watch(
        Api::<EC2NodeClass>::all(client.clone()),
        Arc::clone(state),
        "ec2nodeclasses",
        move |n: &EC2NodeClass| name(&n.metadata),
        State::apply_class,
        |state, key: &String| state.delete_class(key),
    ));
    tasks.spawn(watch(
        Api::<DaemonSet>::all(client.clone()),
        Arc::clone(state),
        "daemonsets",
        |d: &DaemonSet| {
            (
                d.metadata.namespace.clone().unwrap_or_default(),
                d.metadata.name.clone().unwrap_or_default(),
            )
        },
        |state, set| state.apply_daemon_set(&set),
        |state, (namespace, name)| state.delete_daemon_set(namespace, name),
    ));
    tasks.spawn(watch(
        Api::<PodDisruptionBudget>::all(client.clone()),
        Arc::clone(state),
        "poddisruptionbudgets",
        |d: &PodDisruptionBudget| {
            (
                d.metadata.namespace.clone().unwrap_or_default(),
                d.metadata.name.clone().unwrap_or_default(),
            )
        },
        State::apply_pdb,
        |state, (namespace, name)| state.delete_pdb(namespace, name),
    ));
    tasks.spawn(watch(
        Api::<Namespace>::all(client.clone()),
        Arc::clone(state),
        "namespaces",
        move |n: &Namespace| name(&n.metadata),
        |state, namespace| state.apply_namespace(&namespace),
        |state, key: &String| state.delete_namespace(key),
    ));
}

/// Feeds one kind; what a new list no longer holds is forgotten.
async fn watch<K, I>(
    api: Api<K>,
    state: Arc<State>,
    source: &'static str,
    id_of: impl Fn(&K) -> I + Send,
    apply: impl Fn(&State, K) + Send,
    forget: impl Fn(&State, &I) + Send,
) where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    I: Hash + Eq + Clone + Send,
{
    let mut known: HashSet<I> = HashSet::new();
    let mut listed: HashSet<I> = HashSet::new();
    let mut events =
        watcher(api, watcher::Config::default().any_semantic()).default_backoff().boxed();
    loop {
        match events.try_next().await {
            Ok(Some(watcher::Event::Init)) => listed.clear(),
            Ok(Some(watcher::Event::InitApply(object))) => {
                listed.insert(id_of(&object));
                known.insert(id_of(&object));
                apply(&state, object);
            }
            Ok(Some(watcher::Event::InitDone)) => {
                for gone in known.difference(&listed) {
                    forget(&state, gone);
                }
                known.retain(|id| listed.contains(id));
                state.mark_listed(source);
            }
            Ok(Some(watcher::Event::Apply(object))) => {
                known.insert(id_of(&object));
                apply(&state, object);
            }
            Ok(Some(watcher::Event::Delete(object))) => {
                let id = id_of(&object);
                known.remove(&id);
                forget(&state, &id);
            }
            Ok(None) => return,
            Err(error) => tracing::error!("error" = %error, "resource" = source, "watch failed"),
        }
    }
}
