//! Claims, volumes, classes and driver limits, and the selectors that default spread is deduced from.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, ReplicationController, Service,
};
use k8s_openapi::api::storage::v1::{CSINode, StorageClass, VolumeAttachment};
use kube::api::ObjectMeta;

use super::State;
use crate::scheduling::default_spread::Selectors;
use crate::scheduling::volumes::VolumeObjects;

/// Namespace and name.
pub(super) fn key_of(meta: &ObjectMeta) -> (String, String) {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// VolumeAttachments by the Node that they are for.
#[derive(Default)]
pub(super) struct Attachments {
    nodes: HashMap<String, String>,
    volumes: HashMap<String, BTreeMap<String, String>>,
}

impl Attachments {
    fn set(&mut self, name: String, node: String, volume: String) {
        self.volumes.entry(node.clone()).or_default().insert(name.clone(), volume);
        self.nodes.insert(name, node);
    }

    fn remove(&mut self, name: &str) {
        let Some(node) = self.nodes.remove(name) else { return };
        if let Some(volumes) = self.volumes.get_mut(&node) {
            volumes.remove(name);
            if volumes.is_empty() {
                self.volumes.remove(&node);
            }
        }
    }

    fn on(&self, node: &str) -> Vec<(String, String)> {
        let volumes = self.volumes.get(node).into_iter().flatten();
        volumes.map(|(name, volume)| (name.clone(), volume.clone())).collect()
    }
}

/// The pods that a change of volumes concerns.
enum Concerned<'a> {
    /// Those that use the claim of this namespace and name.
    Claim(&'a str, &'a str),
    /// Those that use any of these claims.
    Claims(&'a [(String, String)]),
    /// Those that use any claim.
    Every,
}

impl State {
    /// What scheduling reads of volumes; shared until the next change.
    #[must_use]
    pub fn volumes(&self) -> Arc<VolumeObjects> {
        Arc::clone(&self.inner.read().volumes)
    }

    /// Changes what is known of volumes, and the views of the nodes whose pods it concerns.
    fn change_volumes(&self, change: impl FnOnce(&mut VolumeObjects), concerned: Concerned<'_>) {
        let mut inner = self.write();
        // Copied only if a snapshot still holds the previous version.
        change(Arc::make_mut(&mut inner.volumes));
        let nodes: BTreeSet<Arc<str>> = match concerned {
            Concerned::Claim(namespace, name) => {
                inner.pods.nodes_of_claim(namespace, name).into_iter().collect()
            }
            Concerned::Claims(claims) => claims
                .iter()
                .flat_map(|(namespace, name)| inner.pods.nodes_of_claim(namespace, name))
                .collect(),
            Concerned::Every => inner.pods.nodes_with_claims(),
        };
        for node in nodes {
            inner.show_pods_of(&node);
        }
    }

    /// Takes in a PersistentVolumeClaim.
    pub fn apply_volume_claim(&self, object: &PersistentVolumeClaim) {
        let (namespace, name) = key_of(&object.metadata);
        self.change_volumes(|v| v.set_claim(object), Concerned::Claim(&namespace, &name));
    }

    /// Forgets a PersistentVolumeClaim.
    pub fn delete_volume_claim(&self, namespace: &str, name: &str) {
        self.change_volumes(|v| v.remove_claim(namespace, name), Concerned::Claim(namespace, name));
    }

    /// Takes in a PersistentVolume.
    pub fn apply_volume(&self, object: &PersistentVolume) {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let claims = self.claims_on_volume(name);
        self.change_volumes(|v| v.set_volume(object), Concerned::Claims(&claims));
    }

    /// Forgets a PersistentVolume.
    pub fn delete_volume(&self, name: &str) {
        let claims = self.claims_on_volume(name);
        self.change_volumes(|v| v.remove_volume(name), Concerned::Claims(&claims));
    }

    /// The claims that are bound to a volume, as they themselves name it: what a volume says of its
    /// claim may be old, or of a claim that another volume was bound to.
    // All claims are searched, as volumes change seldom; an index would cost memory for each.
    fn claims_on_volume(&self, name: &str) -> Vec<(String, String)> {
        let volumes = self.volumes();
        let claims = volumes.claims_on(name);
        claims.map(|(namespace, name)| (namespace.to_owned(), name.to_owned())).collect()
    }

    /// Takes in a StorageClass.
    pub fn apply_storage_class(&self, object: &StorageClass) {
        self.change_volumes(|v| v.set_class(object), Concerned::Every);
    }

    /// Forgets a StorageClass.
    pub fn delete_storage_class(&self, name: &str) {
        self.change_volumes(|v| v.remove_class(name), Concerned::Every);
    }

    /// Takes in a CSINode.
    pub fn apply_csi_node(&self, object: &CSINode) {
        let mut inner = self.write();
        Arc::make_mut(&mut inner.volumes).set_csi_node(object);
        inner.show_pods_of(object.metadata.name.as_deref().unwrap_or_default());
    }

    /// Forgets a CSINode.
    pub fn delete_csi_node(&self, name: &str) {
        let mut inner = self.write();
        Arc::make_mut(&mut inner.volumes).remove_csi_node(name);
        inner.show_pods_of(name);
    }

    /// Takes in a VolumeAttachment; only those of PersistentVolumes count.
    pub fn apply_attachment(&self, object: VolumeAttachment) {
        let name = object.metadata.name.unwrap_or_default();
        let volume = object.spec.source.persistent_volume_name;
        let mut inner = self.write();
        // An attachment that changed may have been another node's before.
        inner.attachments.remove(&name);
        if let Some(volume) = volume {
            inner.attachments.set(name, object.spec.node_name, volume);
        }
    }

    /// Forgets a VolumeAttachment.
    pub fn delete_attachment(&self, name: &str) {
        self.write().attachments.remove(name);
    }

    /// VolumeAttachments of a Node: their names, and the PersistentVolumes that they are about.
    #[must_use]
    pub fn attachments(&self, node: &str) -> Vec<(String, String)> {
        self.inner.read().attachments.on(node)
    }

    /// The selectors of Services and workloads; empty unless they are watched.
    #[must_use]
    pub fn selectors(&self) -> Arc<Selectors> {
        Arc::clone(&self.inner.read().selectors)
    }

    fn change_selectors(&self, change: impl FnOnce(&mut Selectors)) {
        change(Arc::make_mut(&mut self.write().selectors));
    }

    /// Takes in a Service; one without a selector is as good as none.
    pub fn apply_service(&self, object: Service) {
        let key = key_of(&object.metadata);
        let selector = object.spec.and_then(|s| s.selector);
        self.change_selectors(|s| put(&mut s.services, key, selector));
    }

    /// Takes in a ReplicationController.
    pub fn apply_replication_controller(&self, object: ReplicationController) {
        let key = key_of(&object.metadata);
        let selector = object.spec.and_then(|s| s.selector);
        self.change_selectors(|s| put(&mut s.replication_controllers, key, selector));
    }

    /// Takes in a ReplicaSet.
    pub fn apply_replica_set(&self, object: ReplicaSet) {
        let key = key_of(&object.metadata);
        let selector = object.spec.map(|s| s.selector);
        self.change_selectors(|s| put(&mut s.replica_sets, key, selector));
    }

    /// Takes in a StatefulSet.
    pub fn apply_stateful_set(&self, object: StatefulSet) {
        let key = key_of(&object.metadata);
        let selector = object.spec.map(|s| s.selector);
        self.change_selectors(|s| put(&mut s.stateful_sets, key, selector));
    }

    /// Forgets the selector of an object that went away.
    pub fn delete_selector(&self, kind: &str, key: &(String, String)) {
        self.change_selectors(|s| match kind {
            "Service" => drop(s.services.remove(key)),
            "ReplicationController" => drop(s.replication_controllers.remove(key)),
            "ReplicaSet" => drop(s.replica_sets.remove(key)),
            _ => drop(s.stateful_sets.remove(key)),
        });
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}
