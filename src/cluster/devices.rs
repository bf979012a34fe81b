//! Devices for dynamic resources, their classes and the claims on them.

use std::sync::Arc;

use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};

use super::{Change, State};
use crate::scheduling::dra::{ClaimKey, Objects};

impl State {
    /// What scheduling reads of dynamic resources; shared until the next change. Empty unless they
    /// are watched.
    #[must_use]
    pub fn dynamic_resources(&self) -> Arc<Objects> {
        Arc::clone(&self.inner.read().dynamic)
    }

    fn change_dynamic(&self, change: impl FnOnce(&mut Objects)) {
        change(Arc::make_mut(&mut self.write().dynamic));
    }

    /// Takes in a ResourceSlice.
    pub fn apply_slice(&self, object: &ResourceSlice) {
        self.change_dynamic(|d| d.set_slice(object));
        self.publish_slice(object.metadata.name.as_deref().unwrap_or_default());
    }

    /// Forgets a ResourceSlice.
    pub fn delete_slice(&self, name: &str) {
        // Before it is removed: afterwards nobody knows which node it was about.
        self.publish_slice(name);
        self.change_dynamic(|d| drop(d.slices.remove(name)));
    }

    fn publish_slice(&self, name: &str) {
        let dynamic = self.dynamic_resources();
        if let Some(node) = dynamic.slices.get(name).and_then(|s| s.node()) {
            self.publish(Change::ResourceSlice(node.to_owned()));
        }
    }

    /// Takes in a DeviceClass.
    pub fn apply_device_class(&self, object: &DeviceClass) {
        self.change_dynamic(|d| d.set_class(object));
    }

    /// Forgets a DeviceClass.
    pub fn delete_device_class(&self, name: &str) {
        self.change_dynamic(|d| drop(d.classes.remove(name)));
    }

    /// Takes in a ResourceClaim.
    pub fn apply_resource_claim(&self, object: &ResourceClaim) {
        self.change_dynamic(|d| d.set_claim(object));
        let meta = &object.metadata;
        self.publish(Change::ResourceClaim(ClaimKey::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )));
    }

    /// Forgets a ResourceClaim.
    pub fn delete_resource_claim(&self, key: &ClaimKey) {
        self.change_dynamic(|d| drop(d.claims.remove(key)));
        self.publish(Change::ResourceClaim(key.clone()));
    }
}
