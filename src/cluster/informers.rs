//! One watch for each kind, feeding the state. What nothing reads is passed over while an object is
//! read; what cannot be understood is left out alone.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, PodTemplate,
    ReplicationController, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::storage::v1::{CSINode, StorageClass, VolumeAttachment};
use kube::api::ObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use rustc_hash::FxHashSet;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::unreadable::LeftOut;
use super::volumes::key_of;
use super::{Change, State};
use crate::api::autoscaling::CapacityBuffer;
use crate::api::v1::{EC2NodeClass, NodeClaim, NodePool};
use crate::api::v1alpha1::NodeOverlay;
use crate::operator::client::in_protobuf;
use crate::operator::readable::Readable;
use crate::scheduling::pod::PodKey;

/// How often the API server is asked again for a kind that it does not serve: a CRD may be
/// installed at any time.
const ABSENT: Duration = Duration::from_secs(30);

/// What is watched besides what always is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// CapacityBuffers and what they may refer to: PodTemplates and workloads.
    pub buffers: bool,
    /// NodeOverlays.
    pub overlays: bool,
    /// Services and workloads, for the selectors of default spread constraints.
    pub selectors: bool,
    /// Devices for dynamic resources and the claims on them.
    pub devices: bool,
    /// The costs by which ReplicaSets choose are this process's own, and not read.
    pub replica_costs_are_ours: bool,
}

/// Starts every watch; they run until the set is dropped.
pub fn start(client: &Client, state: &Arc<State>, wanted: Wanted, tasks: &mut JoinSet<()>) {
    if wanted.replica_costs_are_ours {
        state.leave_replica_costs();
    }
    state.begin_listing();
    let feed = Feed { client: in_protobuf(client), state: Arc::clone(state) };
    core(&feed, tasks);
    karpenter(&feed, tasks);
    storage(&feed, tasks);
    if wanted.selectors || wanted.buffers {
        workloads(&feed, tasks);
    }
    if wanted.selectors {
        selectors(&feed, tasks);
    }
    if wanted.overlays {
        let watch = feed.watch::<NodeOverlay, _>(
            "nodeoverlays",
            name_of,
            State::apply_overlay,
            |state, name| state.delete_overlay(name),
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
    tasks.spawn(feed.watch::<Pod, _>(
        "pods",
        // The state's own key, so that the names of all pods are not kept twice.
        |state, meta| state.pod_key(pod_key(meta)),
        |state, pod| state.apply_pod(&pod),
        |state, key| state.delete_pod(key),
    ));
    tasks.spawn(feed.watch::<Node, _>("nodes", name_of, State::apply_node, |state, name| {
        state.delete_node(name)
    }));
    tasks.spawn(feed.watch::<DaemonSet, _>(
        "daemonsets",
        |_, meta| key_of(meta),
        |state, set| state.apply_daemon_set(&set),
        |state, (namespace, name)| state.delete_daemon_set(namespace, name),
    ));
    tasks.spawn(feed.watch::<PodDisruptionBudget, _>(
        "poddisruptionbudgets",
        |_, meta| key_of(meta),
        State::apply_pdb,
        |state, (namespace, name)| state.delete_pdb(namespace, name),
    ));
    tasks.spawn(feed.watch::<Namespace, _>(
        "namespaces",
        name_of,
        |state, namespace| state.apply_namespace(&namespace),
        |state, name| state.delete_namespace(name),
    ));
}

fn karpenter(feed: &Feed, tasks: &mut JoinSet<()>) {
    tasks.spawn(feed.watch::<NodeClaim, _>(
        "nodeclaims",
        name_of,
        State::apply_claim,
        |state, name| state.delete_claim(name),
    ));
    tasks.spawn(feed.watch::<NodePool, _>(
        "nodepools",
        name_of,
        State::apply_pool,
        |state, name| state.delete_pool(name),
    ));
    tasks.spawn(feed.watch::<EC2NodeClass, _>(
        "ec2nodeclasses",
        name_of,
        State::apply_class,
        |state, name| state.delete_class(name),
    ));
}

fn storage(feed: &Feed, tasks: &mut JoinSet<()>) {
    tasks.spawn(feed.watch::<PersistentVolumeClaim, _>(
        "persistentvolumeclaims",
        |_, meta| key_of(meta),
        |state, claim| state.apply_volume_claim(&claim),
        |state, (namespace, name)| state.delete_volume_claim(namespace, name),
    ));
    tasks.spawn(feed.watch::<PersistentVolume, _>(
        "persistentvolumes",
        name_of,
        |state, volume| state.apply_volume(&volume),
        |state, name| state.delete_volume(name),
    ));
    tasks.spawn(feed.watch::<StorageClass, _>(
        "storageclasses",
        name_of,
        |state, class| state.apply_storage_class(&class),
        |state, name| state.delete_storage_class(name),
    ));
    tasks.spawn(feed.watch::<CSINode, _>(
        "csinodes",
        name_of,
        |state, node| state.apply_csi_node(&node),
        |state, name| state.delete_csi_node(name),
    ));
    tasks.spawn(feed.watch::<VolumeAttachment, _>(
        "volumeattachments",
        name_of,
        State::apply_attachment,
        |state, name| state.delete_attachment(name),
    ));
}

/// Read for their selectors, and reported because buffers may take their size and shape from them.
fn workloads(feed: &Feed, tasks: &mut JoinSet<()>) {
    // Nobody waits for these: a pod whose selector cannot be deduced is placed without one.
    tasks.spawn(feed.watch::<ReplicaSet, _>(
        "replicasets",
        |_, meta| key_of(meta),
        |state, set| {
            state.publish(Change::Workload("ReplicaSet", pod_key(&set.metadata)));
            state.apply_replica_set(set);
        },
        |state, key| {
            state.delete_selector("ReplicaSet", key);
            state.publish(Change::Workload("ReplicaSet", PodKey::new(&key.0, &key.1)));
        },
    ));
    tasks.spawn(feed.watch::<StatefulSet, _>(
        "statefulsets",
        |_, meta| key_of(meta),
        |state, set| {
            state.publish(Change::Workload("StatefulSet", pod_key(&set.metadata)));
            state.apply_stateful_set(set);
        },
        |state, key| {
            state.delete_selector("StatefulSet", key);
            state.publish(Change::Workload("StatefulSet", PodKey::new(&key.0, &key.1)));
        },
    ));
}

fn selectors(feed: &Feed, tasks: &mut JoinSet<()>) {
    tasks.spawn(feed.watch::<Service, _>(
        "services",
        |_, meta| key_of(meta),
        State::apply_service,
        |state, key| state.delete_selector("Service", key),
    ));
    tasks.spawn(feed.watch::<ReplicationController, _>(
        "replicationcontrollers",
        |_, meta| key_of(meta),
        State::apply_replication_controller,
        |state, key| state.delete_selector("ReplicationController", key),
    ));
}

fn buffers(feed: &Feed, tasks: &mut JoinSet<()>) {
    let watch = feed.watch::<CapacityBuffer, _>(
        "capacitybuffers",
        |_, meta| pod_key(meta),
        State::apply_buffer,
        |state, key| state.delete_buffer(key),
    );
    let group = "autoscaling.x-k8s.io/v1beta1";
    tasks.spawn(feed.clone().once_served(group, "capacitybuffers", watch));
    feed.state.expect_listing("podtemplates");
    tasks.spawn(feed.watch::<PodTemplate, _>(
        "podtemplates",
        |_, meta| pod_key(meta),
        |state, template| state.publish(Change::PodTemplate(pod_key(&template.metadata))),
        |state, key| state.publish(Change::PodTemplate(key.clone())),
    ));
    tasks.spawn(feed.watch::<Deployment, _>(
        "deployments",
        |_, meta| pod_key(meta),
        |state, found| state.publish(Change::Workload("Deployment", pod_key(&found.metadata))),
        |state, key| state.publish(Change::Workload("Deployment", key.clone())),
    ));
}

fn devices(feed: &Feed, tasks: &mut JoinSet<()>) {
    let group = "resource.k8s.io/v1";
    let slices = feed.watch::<ResourceSlice, _>(
        "resourceslices",
        name_of,
        |state, slice| state.apply_slice(&slice),
        |state, name| state.delete_slice(name),
    );
    tasks.spawn(feed.clone().once_served(group, "resourceslices", slices));
    let classes = feed.watch::<DeviceClass, _>(
        "deviceclasses",
        name_of,
        |state, class| state.apply_device_class(&class),
        |state, name| state.delete_device_class(name),
    );
    tasks.spawn(feed.clone().once_served(group, "deviceclasses", classes));
    let claims = feed.watch::<ResourceClaim, _>(
        "resourceclaims",
        |_, meta| pod_key(meta),
        |state, claim| state.apply_resource_claim(&claim),
        |state, key| state.delete_resource_claim(key),
    );
    tasks.spawn(feed.clone().once_served(group, "resourceclaims", claims));
}

fn name_of(_: &State, meta: &ObjectMeta) -> String {
    meta.name.clone().unwrap_or_default()
}

fn pod_key(meta: &ObjectMeta) -> PodKey {
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
        source: &'static str,
        id_of: impl Fn(&State, &ObjectMeta) -> I + Send + 'static,
        apply: impl Fn(&State, K) + Send + 'static,
        forget: impl Fn(&State, &I) + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
        I: Hash + Eq + Clone + Send + 'static,
    {
        let state = Arc::clone(&self.state);
        let api = Api::<Readable<K>>::all(self.client.clone());
        let mut intake = Intake { source, id_of, apply, forget, known: FxHashSet::default() };
        async move {
            let mut listed: FxHashSet<I> = FxHashSet::default();
            let mut listing = Listing::of(source);
            let mut events = watcher(api.clone(), listing.config()).default_backoff().boxed();
            loop {
                match events.try_next().await {
                    // A list that was cut off counts for nothing: what it lacked may exist.
                    Ok(Some(watcher::Event::Init)) => listed = FxHashSet::default(),
                    Ok(Some(watcher::Event::InitApply(object))) => {
                        listed.insert(intake.take(&state, object));
                    }
                    Ok(Some(watcher::Event::InitDone)) => {
                        intake.keep_only(&state, std::mem::take(&mut listed));
                        state.mark_listed(source);
                    }
                    Ok(Some(watcher::Event::Apply(object))) => drop(intake.take(&state, object)),
                    Ok(Some(watcher::Event::Delete(object))) => {
                        intake.remove(&state, object.meta());
                    }
                    Ok(None) => return,
                    Err(error) if listing == Listing::Streamed && is_refused(&error) => {
                        tracing::debug!("error" = %error, "resource" = source, "listing by pages");
                        listing = Listing::Paged;
                        events = watcher(api.clone(), listing.config()).default_backoff().boxed();
                    }
                    Err(error) => {
                        report(source, &error);
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
        // The log line comes once, not every half minute.
        let mut logged = false;
        loop {
            match self.client.list_api_group_resources(group_version).await {
                Ok(list) if list.resources.iter().any(|r| r.name == plural) => break,
                // An API server that does not answer says nothing about the kind, so nobody may
                // decide yet.
                Err(error) if !is_absent(&error) => {
                    tracing::error!("error" = %error, "resource" = plural, "discovery failed");
                    sleep(Duration::from_secs(1)).await;
                    continue;
                }
                _ => {}
            }
            // A kind that is not served has no objects, which is as good as a list of none.
            self.state.mark_listed(plural);
            if !logged {
                logged = true;
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

/// How the objects of a kind that exist already are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listing {
    /// As the first events of the watch. The API server sends them from its cache while they are
    /// read here, so that neither side waits for the other or holds a page.
    Streamed,
    /// By pages of 500: one answer never holds a whole large cluster.
    Paged,
}

impl Listing {
    /// Streamed for the kinds of which a cluster has many. For the others one page is read sooner:
    /// a stream ends only when the API server's cache has caught up with etcd.
    fn of(source: &str) -> Self {
        if matches!(source, "pods" | "nodes") { Self::Streamed } else { Self::Paged }
    }

    fn config(self) -> watcher::Config {
        match self {
            Self::Streamed => watcher::Config::default().streaming_lists(),
            Self::Paged => watcher::Config::default(),
        }
    }
}

/// True when the API server does not stream lists: an old one, or one whose gate `WatchList` is off,
/// refuses the parameter as invalid.
fn is_refused(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => {
            matches!(status.code, 400 | 422)
        }
        _ => false,
    }
}

/// Logs that a watch ended. The API server ends one whose version it no longer has, as it does once
/// with each new kind: everything is listed again, and nothing is wrong.
fn report(source: &str, error: &watcher::Error) {
    if is_expired(error) {
        tracing::debug!("error" = %error, "resource" = source, "watch expired, listing again");
    } else {
        tracing::error!("error" = %error, "resource" = source, "watch failed");
    }
}

fn is_expired(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchError(status) => status.code == 410,
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.code == 410,
        _ => false,
    }
}

/// What becomes of one kind's objects, and which of them are known.
struct Intake<I, IdOf, Apply, Forget> {
    source: &'static str,
    id_of: IdOf,
    apply: Apply,
    forget: Forget,
    known: FxHashSet<I>,
}

impl<I, IdOf, Apply, Forget> Intake<I, IdOf, Apply, Forget>
where
    I: Hash + Eq + Clone,
    IdOf: Fn(&State, &ObjectMeta) -> I,
    Forget: Fn(&State, &I),
{
    /// Takes in an object, and gives its id. One that cannot be understood is as good as gone.
    fn take<K>(&mut self, state: &State, object: Readable<K>) -> I
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
        Apply: Fn(&State, K),
    {
        match object {
            Readable::Object(object) => {
                // Only the name is needed after the object has moved into the state.
                let meta = ObjectMeta {
                    name: object.meta().name.clone(),
                    namespace: object.meta().namespace.clone(),
                    ..ObjectMeta::default()
                };
                state.take_back(self.source, &meta);
                (self.apply)(state, object);
                let id = (self.id_of)(state, &meta);
                self.known.insert(id.clone());
                id
            }
            Readable::Unreadable(found) => {
                let reference = Readable::<K>::Unreadable(found.clone()).reference();
                let id = (self.id_of)(state, &found.meta);
                if self.known.remove(&id) {
                    (self.forget)(state, &id);
                }
                let object = LeftOut { reference, problem: found.problem };
                state.leave_out(self.source, &found.meta, object);
                id
            }
        }
    }

    fn remove(&mut self, state: &State, meta: &ObjectMeta) {
        let id = (self.id_of)(state, meta);
        state.take_back(self.source, meta);
        if self.known.remove(&id) {
            (self.forget)(state, &id);
        }
    }

    /// Forgets what a complete list did not hold.
    fn keep_only(&mut self, state: &State, listed: FxHashSet<I>) {
        for gone in self.known.difference(&listed) {
            (self.forget)(state, gone);
        }
        self.known.retain(|id| listed.contains(id));
        self.known.shrink_to_fit();
        // Unreadable objects that were deleted while the watch was down.
        state.keep_unreadable(self.source, |meta| listed.contains(&(self.id_of)(state, meta)));
    }
}

#[cfg(test)]
mod tests;
