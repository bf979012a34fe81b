//! One watch a kind, feeding the state. What nothing reads is dropped before it is kept.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::{DaemonSet, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, PodTemplate,
    ReplicationController, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::storage::v1::{CSINode, StorageClass, VolumeAttachment};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::volumes::key_of;
use super::{Change, State};
use crate::api::autoscaling::CapacityBuffer;
use crate::api::v1::{EC2NodeClass, NodeClaim, NodePool};
use crate::api::v1alpha1::NodeOverlay;
use crate::scheduling::pod::PodKey;

/// How often an API that is not there is asked for again.
const ABSENT: Duration = Duration::from_secs(30);

/// What is watched besides what always is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// CapacityBuffers and PodTemplates.
    pub buffers: bool,
    /// NodeOverlays.
    pub overlays: bool,
    /// Services and workloads, for the selectors of default spread constraints.
    pub selectors: bool,
    /// Devices for dynamic resources and the claims on them.
    pub devices: bool,
}

/// Starts every watch; they run until the set is dropped.
pub fn start(client: &Client, state: &Arc<State>, wanted: Wanted, tasks: &mut JoinSet<()>) {
    let feed = Feed { client: client.clone(), state: Arc::clone(state) };
    core(&feed, tasks);
    karpenter(&feed, tasks);
    storage(&feed, tasks);
    if wanted.selectors {
        selectors(&feed, tasks);
    }
    if wanted.overlays {
        let watch = feed.watch(
            Api::<NodeOverlay>::all(client.clone()),
            "nodeoverlays",
            |o: &NodeOverlay| o.name_any(),
            State::apply_overlay,
            |state, name: &String| state.delete_overlay(name),
        );
        tasks.spawn(feed.clone().once_served("karpenter.sh/v1alpha1", "nodeoverlays", watch));
    }
    if wanted.buffers {
        buffers(&feed, tasks);
    }
    if wanted.devices {
        devices(&feed, tasks);
    }
}

fn core(feed: &Feed, tasks: &mut JoinSet<()>) {
    let client = &feed.client;
    tasks.spawn(feed.watch(
        Api::<Pod>::all(client.clone()),
        "pods",
        pod_key::<Pod>,
        |state, pod| state.apply_pod(&pod),
        |state, key| state.delete_pod(key),
    ));
    tasks.spawn(feed.watch(
        Api::<Node>::all(client.clone()),
        "nodes",
        |n: &Node| n.name_any(),
        |state, mut node| {
            if let Some(status) = &mut node.status {
                status.images = None;
            }
            state.apply_node(node);
        },
        |state, name: &String| state.delete_node(name),
    ));
    tasks.spawn(feed.watch(
        Api::<DaemonSet>::all(client.clone()),
        "daemonsets",
        |d: &DaemonSet| key_of(d.meta()),
        |state, set| state.apply_daemon_set(&set),
        |state, (namespace, name)| state.delete_daemon_set(namespace, name),
    ));
    tasks.spawn(feed.watch(
        Api::<PodDisruptionBudget>::all(client.clone()),
        "poddisruptionbudgets",
        |d: &PodDisruptionBudget| key_of(d.meta()),
        State::apply_pdb,
        |state, (namespace, name)| state.delete_pdb(namespace, name),
    ));
    tasks.spawn(feed.watch(
        Api::<Namespace>::all(client.clone()),
        "namespaces",
        |n: &Namespace| n.name_any(),
        |state, namespace| state.apply_namespace(&namespace),
        |state, name: &String| state.delete_namespace(name),
    ));
}

fn karpenter(feed: &Feed, tasks: &mut JoinSet<()>) {
    let client = &feed.client;
    tasks.spawn(feed.watch(
        Api::<NodeClaim>::all(client.clone()),
        "nodeclaims",
        |n: &NodeClaim| n.name_any(),
        State::apply_claim,
        |state, name: &String| state.delete_claim(name),
    ));
    tasks.spawn(feed.watch(
        Api::<NodePool>::all(client.clone()),
        "nodepools",
        |n: &NodePool| n.name_any(),
        State::apply_pool,
        |state, name: &String| state.delete_pool(name),
    ));
    tasks.spawn(feed.watch(
        Api::<EC2NodeClass>::all(client.clone()),
        "ec2nodeclasses",
        |n: &EC2NodeClass| n.name_any(),
        State::apply_class,
        |state, name: &String| state.delete_class(name),
    ));
}

fn storage(feed: &Feed, tasks: &mut JoinSet<()>) {
    let client = &feed.client;
    tasks.spawn(feed.watch(
        Api::<PersistentVolumeClaim>::all(client.clone()),
        "persistentvolumeclaims",
        |c: &PersistentVolumeClaim| key_of(c.meta()),
        |state, claim| state.apply_volume_claim(&claim),
        |state, (namespace, name)| state.delete_volume_claim(namespace, name),
    ));
    tasks.spawn(feed.watch(
        Api::<PersistentVolume>::all(client.clone()),
        "persistentvolumes",
        |v: &PersistentVolume| v.name_any(),
        |state, volume| state.apply_volume(&volume),
        |state, name: &String| state.delete_volume(name),
    ));
    tasks.spawn(feed.watch(
        Api::<StorageClass>::all(client.clone()),
        "storageclasses",
        |c: &StorageClass| c.name_any(),
        |state, class| state.apply_storage_class(&class),
        |state, name: &String| state.delete_storage_class(name),
    ));
    tasks.spawn(feed.watch(
        Api::<CSINode>::all(client.clone()),
        "csinodes",
        |n: &CSINode| n.name_any(),
        |state, node| state.apply_csi_node(&node),
        |state, name: &String| state.delete_csi_node(name),
    ));
    tasks.spawn(feed.watch(
        Api::<VolumeAttachment>::all(client.clone()),
        "volumeattachments",
        |a: &VolumeAttachment| a.name_any(),
        State::apply_attachment,
        |state, name: &String| state.delete_attachment(name),
    ));
}

fn selectors(feed: &Feed, tasks: &mut JoinSet<()>) {
    let client = &feed.client;
    // Nobody waits for these: a pod whose selector cannot be deduced is placed without one.
    tasks.spawn(feed.watch(
        Api::<Service>::all(client.clone()),
        "services",
        |s: &Service| key_of(s.meta()),
        State::apply_service,
        |state, key| state.delete_selector("Service", key),
    ));
    tasks.spawn(feed.watch(
        Api::<ReplicationController>::all(client.clone()),
        "replicationcontrollers",
        |r: &ReplicationController| key_of(r.meta()),
        State::apply_replication_controller,
        |state, key| state.delete_selector("ReplicationController", key),
    ));
    tasks.spawn(feed.watch(
        Api::<ReplicaSet>::all(client.clone()),
        "replicasets",
        |r: &ReplicaSet| key_of(r.meta()),
        State::apply_replica_set,
        |state, key| state.delete_selector("ReplicaSet", key),
    ));
    tasks.spawn(feed.watch(
        Api::<StatefulSet>::all(client.clone()),
        "statefulsets",
        |s: &StatefulSet| key_of(s.meta()),
        State::apply_stateful_set,
        |state, key| state.delete_selector("StatefulSet", key),
    ));
}

fn buffers(feed: &Feed, tasks: &mut JoinSet<()>) {
    let client = &feed.client;
    let watch = feed.watch(
        Api::<CapacityBuffer>::all(client.clone()),
        "capacitybuffers",
        pod_key::<CapacityBuffer>,
        State::apply_buffer,
        |state, key| state.delete_buffer(key),
    );
    let group = "autoscaling.x-k8s.io/v1beta1";
    tasks.spawn(feed.clone().once_served(group, "capacitybuffers", watch));
    feed.state.expect_listing("podtemplates");
    tasks.spawn(feed.watch(
        Api::<PodTemplate>::all(client.clone()),
        "podtemplates",
        pod_key::<PodTemplate>,
        |state, template| state.tell(Change::PodTemplate(pod_key(&template))),
        |state, key| state.tell(Change::PodTemplate(key.clone())),
    ));
}

fn devices(feed: &Feed, tasks: &mut JoinSet<()>) {
    let client = &feed.client;
    let group = "resource.k8s.io/v1";
    let slices = feed.watch(
        Api::<ResourceSlice>::all(client.clone()),
        "resourceslices",
        |s: &ResourceSlice| s.name_any(),
        |state, slice| state.apply_slice(&slice),
        |state, name: &String| state.delete_slice(name),
    );
    tasks.spawn(feed.clone().once_served(group, "resourceslices", slices));
    let classes = feed.watch(
        Api::<DeviceClass>::all(client.clone()),
        "deviceclasses",
        |c: &DeviceClass| c.name_any(),
        |state, class| state.apply_device_class(&class),
        |state, name: &String| state.delete_device_class(name),
    );
    tasks.spawn(feed.clone().once_served(group, "deviceclasses", classes));
    let claims = feed.watch(
        Api::<ResourceClaim>::all(client.clone()),
        "resourceclaims",
        pod_key::<ResourceClaim>,
        |state, claim| state.apply_resource_claim(&claim),
        |state, key| state.delete_resource_claim(key),
    );
    tasks.spawn(feed.clone().once_served(group, "resourceclaims", claims));
}

fn pod_key<K: Resource>(object: &K) -> PodKey {
    let meta = object.meta();
    PodKey::new(meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""))
}

/// Where objects come from and go to.
#[derive(Clone)]
struct Feed {
    client: Client,
    state: Arc<State>,
}

impl Feed {
    /// Feeds one kind; what a new list no longer holds is forgotten.
    fn watch<K, I>(
        &self,
        api: Api<K>,
        source: &'static str,
        id_of: impl Fn(&K) -> I + Send + 'static,
        apply: impl Fn(&State, K) + Send + 'static,
        forget: impl Fn(&State, &I) + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        I: Hash + Eq + Clone + Send + 'static,
    {
        let state = Arc::clone(&self.state);
        async move {
            let mut known: HashSet<I> = HashSet::new();
            let mut listed: HashSet<I> = HashSet::new();
            let mut events = watcher(api, config(source)).default_backoff().boxed();
            let slim = |mut object: K| {
                object.meta_mut().managed_fields = None;
                object
            };
            loop {
                match events.try_next().await {
                    Ok(Some(watcher::Event::Init)) => listed.clear(),
                    Ok(Some(watcher::Event::InitApply(object))) => {
                        listed.insert(id_of(&object));
                        known.insert(id_of(&object));
                        apply(&state, slim(object));
                    }
                    Ok(Some(watcher::Event::InitDone)) => {
                        for gone in known.difference(&listed) {
                            forget(&state, gone);
                        }
                        known = std::mem::take(&mut listed);
                        state.mark_listed(source);
                    }
                    Ok(Some(watcher::Event::Apply(object))) => {
                        known.insert(id_of(&object));
                        apply(&state, slim(object));
                    }
                    Ok(Some(watcher::Event::Delete(object))) => {
                        let id = id_of(&object);
                        known.remove(&id);
                        forget(&state, &id);
                    }
                    Ok(None) => return,
                    Err(error) => {
                        tracing::error!("error" = %error, "resource" = source, "watch failed");
                    }
                }
            }
        }
    }

    /// Starts a watch once the API server serves its kind; nobody waits for one that it does not.
    async fn once_served(
        self,
        group_version: &'static str,
        plural: &'static str,
        watch: impl Future<Output = ()> + Send,
    ) {
        self.state.expect_listing(plural);
        let mut told = false;
        loop {
            match self.client.list_api_group_resources(group_version).await {
                Ok(list) if list.resources.iter().any(|r| r.name == plural) => break,
                Err(error) if !is_absent(&error) => {
                    tracing::error!("error" = %error, "resource" = plural, "discovery failed");
                    sleep(Duration::from_secs(1)).await;
                    continue;
                }
                _ => {}
            }
            self.state.mark_listed(plural);
            if !told {
                told = true;
                tracing::info!(
                    "resource" = plural,
                    "waiting for the API server to serve the resource"
                );
            }
            sleep(ABSENT).await;
        }
        watch.await;
    }
}

fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Pods are listed page by page, so that no answer holds all of them at once; the other kinds take
/// what the API server has at hand.
fn config(source: &str) -> watcher::Config {
    let config = watcher::Config::default();
    if source == "pods" { config } else { config.any_semantic() }
}
